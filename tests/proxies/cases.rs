//! What is tried with every proxy. A case gives what it saw, in a few words for the matrix, or what is wrong.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::doors::Page;
use crate::exchange::{Response, request};
use crate::service::Arrived;
use crate::smuggling;
use crate::stage::{Stage, pid};
use crate::support::PATIENCE;

pub(crate) type Case = fn(&mut Stage) -> Result<String, String>;

pub(crate) const CASES: [(&str, Case); 17] = [
    ("allow", allow),
    ("deny", deny),
    ("deny with a page", page),
    ("headers changed", mutate),
    ("named in Connection", nominated),
    ("deadline", deadline),
    ("trap", trap),
    ("policy failed", failed),
    ("1 MB body", megabyte),
    ("200 headers", many_headers),
    ("smuggling", smuggling::attempts),
    ("pipelining", pipelining),
    ("chunked", chunked),
    ("gateway frozen", gateway_frozen),
    ("gateway killed", gateway_killed),
    ("worker killed", worker_killed),
    ("restart under load", restart),
];

/// One request after which nothing may have reached the service.
fn closed(stage: &Stage, path: &str) -> Result<Response, String> {
    stage.shop.arrived();
    let response = stage.get(path).ok_or("no answer")?;
    let arrived = stage.shop.arrived();
    if response.is_success() || !arrived.is_empty() {
        return Err(format!("OPEN: {response:?}, arrived: {arrived:?}"));
    }
    Ok(response)
}

/// Waits until a request is let through again.
fn until_open(stage: &Stage) -> Result<(), String> {
    let patience = Instant::now() + PATIENCE;
    loop {
        match stage.get("/do/allow") {
            Some(response) if response.is_success() => return Ok(()),
            last if Instant::now() > patience => return Err(format!("still closed: {last:?}")),
            _ => {}
        }
    }
}

fn allow(stage: &mut Stage) -> Result<String, String> {
    let response = stage.get("/do/allow?page=1").ok_or("no answer")?;
    let arrived = stage.shop.arrived();
    match &arrived[..] {
        [one] if response.status == 200 && one.method == "GET" && one.target == "/do/allow?page=1" => {
            Ok("200".into())
        }
        _ => Err(format!("{response:?}, arrived: {arrived:?}")),
    }
}

fn deny(stage: &mut Stage) -> Result<String, String> {
    let response = closed(stage, "/do/deny")?;
    if response.status == 403 { Ok("403".into()) } else { Err(format!("{response:?}")) }
}

fn page(stage: &mut Stage) -> Result<String, String> {
    let response = closed(stage, "/do/page")?;
    let cookies: Vec<_> = response.all("set-cookie").collect();
    let body: &[u8] = if stage.door.page == Page::Escaped { b"no entry%0A" } else { b"no entry\n" };
    let status = if let Page::Whole(status) = stage.door.page { status } else { 451 };
    let whole = (response.status, &*response.body) == (status, body)
        && response.header("x-denied-by") == Some("selective")
        && cookies == ["a=1", "b=2"];
    match stage.door.page {
        Page::Whole(_) | Page::Escaped if whole => Ok(format!("{status}, the policy's page and headers")),
        Page::Own(status) if response.status == status => Ok(format!("{status}, the proxy's page")),
        _ => Err(format!("{response:?}")),
    }
}

fn mutate(stage: &mut Stage) -> Result<String, String> {
    let sent =
        [("X-Set", "by the client"), ("X-Append", "first"), ("X-Remove", "secret"), ("X-Keep", "kept")];
    let response = stage.address.get("/do/mutate", &sent).ok_or("no answer")?;
    let arrived = stage.shop.arrived();
    let [one] = &arrived[..] else { return Err(format!("{response:?}, arrived: {arrived:?}")) };
    let appended = one.all("x-append").join(",").replace(' ', "");
    let expected = if stage.door.appends { "first,second" } else { "second" };
    let removed = one.all("x-remove").iter().all(|value| value.is_empty());
    if one.all("x-set") == ["by the policy"]
        && one.all("x-keep") == ["kept"]
        && removed
        && appended == expected
    {
        return Ok(if stage.door.appends {
            "set, appended, removed"
        } else {
            "set, replaced for append, removed"
        }
        .into());
    }
    Err(format!("arrived: {one:?}"))
}

/// Headers that a client names in `Connection` end at the first proxy. One that the policy sets is not the client's to end.
fn nominated(stage: &mut Stage) -> Result<String, String> {
    let sent = [("Connection", "X-Set"), ("X-Set", "by the client")];
    let response = stage.address.get("/do/mutate", &sent).ok_or("no answer")?;
    match &stage.shop.arrived()[..] {
        [] if response.status >= 400 => Ok(response.status.to_string()),
        [one] if one.all("x-set") == ["by the policy"] => Ok("set all the same".into()),
        arrived => Err(format!("{response:?}, arrived: {arrived:?}")),
    }
}

fn deadline(stage: &mut Stage) -> Result<String, String> {
    closed(stage, "/do/spin").map(|response| response.status.to_string())
}

fn trap(stage: &mut Stage) -> Result<String, String> {
    closed(stage, "/do/trap").map(|response| response.status.to_string())
}

fn failed(stage: &mut Stage) -> Result<String, String> {
    closed(stage, "/do/fail/no-data").map(|response| response.status.to_string())
}

fn megabyte(stage: &mut Stage) -> Result<String, String> {
    let body: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let sum = body.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    let responses = stage.address.send(&request("POST", "/do/see", &[], &body), 1);
    let arrived = stage.shop.arrived();
    let [one] = &arrived[..] else { return Err(format!("{responses:?}, {} arrived", arrived.len())) };
    if responses.first().is_none_or(|response| response.status != 200) || one.body != body {
        return Err(format!("{responses:?}, {} bytes arrived", one.body.len()));
    }
    let seen = one.one("x-seen-body").unwrap_or_default();
    match stage.door.sees_body {
        true if seen == format!("1000000 {sum}") => Ok("200, the policy saw it".into()),
        false if ["none", "0 0"].contains(&seen) => Ok("200, the policy sees none".into()),
        _ => Err(format!("the policy saw {seen:?}")),
    }
}

/// Some proxies have a limit of their own; no header may be lost between the decision and the service.
fn many_headers(stage: &mut Stage) -> Result<String, String> {
    let names: Vec<String> = (0..200).map(|number| format!("X-Many-{number:03}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "a value of some length")).collect();
    let responses = stage.address.send(&request("GET", "/do/see", &headers, b""), 1);
    let status = responses.first().map_or(0, |response| response.status);
    let arrived = stage.shop.arrived();
    let [one] = &arrived[..] else {
        let refused = arrived.is_empty() && (400..500).contains(&status);
        return if refused {
            Ok(format!("{status}, the proxy's limit"))
        } else {
            Err(format!("{responses:?}"))
        };
    };
    let there = one.headers.iter().filter(|(name, _)| name.starts_with("x-many-")).count();
    let seen: usize = one.one("x-seen-headers").and_then(|count| count.parse().ok()).unwrap_or(0);
    if there == 200 && (seen >= 200 || !stage.door.sees_headers) {
        return Ok(format!("200, the policy saw {seen}"));
    }
    Err(format!("{there} arrived, the policy saw {seen}"))
}

fn pipelining(stage: &mut Stage) -> Result<String, String> {
    let each = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    let last = request("GET", "/do/allow?last", &[], b"");
    let all = [each("/do/allow?first").as_bytes(), each("/do/deny").as_bytes(), &last].concat();
    let responses = stage.address.send(&all, 3);
    let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
    let arrived: Vec<String> = stage.shop.arrived().into_iter().map(|one| one.target).collect();
    // Whoever closes after a denial answers no more, which is no less closed.
    let whole = statuses == [200, 403, 200] && arrived == ["/do/allow?first", "/do/allow?last"];
    let cut = statuses == [200, 403] && arrived == ["/do/allow?first"];
    match (whole, cut) {
        (true, _) => Ok("200 403 200".into()),
        (_, true) => Ok("200 403, closed".into()),
        _ => Err(format!("{statuses:?}, arrived: {arrived:?}")),
    }
}

fn chunked(stage: &mut Stage) -> Result<String, String> {
    /// A name, what is written at a time, and the body that it is.
    type Written<'a> = (&'a str, &'a [&'a [u8]], &'a [u8]);
    let head =
        "POST /do/see HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let good: [Written<'_>; 4] = [
        ("one byte each", &[b"1\r\na\r\n1\r\nb\r\n", b"1\r\nc\r\n0\r\n\r\n"], b"abc"),
        ("upper case and zeros", &[b"00000A\r\n0123456789\r\n0\r\n\r\n"], b"0123456789"),
        ("cut anywhere", &[b"3", b"\r", b"\nab", b"c\r", b"\n0\r\n\r", b"\n"], b"abc"),
        ("a trailer", &[b"3\r\nabc\r\n0\r\nX-Set: trailer\r\n\r\n"], b"abc"),
    ];
    for (what, parts, body) in good {
        let parts: Vec<&[u8]> = std::iter::once(head.as_bytes()).chain(parts.iter().copied()).collect();
        let responses = stage.address.send_in_parts(&parts, 1);
        let arrived = stage.shop.arrived();
        let passed =
            matches!(&arrived[..], [one] if one.body == body && !one.all("x-set").contains(&"trailer"));
        if !passed || responses.first().is_none_or(|response| !response.is_success()) {
            return Err(format!("{what}: {responses:?}, arrived: {arrived:?}"));
        }
    }
    let bad: [(&str, &[u8]); 6] = [
        ("no number", b"x\r\nabc\r\n0\r\n\r\n"),
        ("a sign", b"+3\r\nabc\r\n0\r\n\r\n"),
        ("a number too large", b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("0x", b"0x3\r\nabc\r\n0\r\n\r\n"),
        ("longer than it says", b"3\r\nabcd\r\n0\r\n\r\n"),
        ("cut off", b"ffff\r\nabc"),
    ];
    let mut refused = 0;
    for (what, body) in bad {
        let responses = stage.address.try_send(&[head.as_bytes(), body].concat(), 1);
        let arrived = stage.shop.arrived();
        // A proxy may read it in its own way, if that is what the policy saw and the service gets.
        let as_decided = |one: &Arrived| {
            let sum =
                one.body.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
            let seen = format!("{} {sum}", one.body.len());
            one.target == "/do/see" && (!stage.door.sees_body || one.one("x-seen-body") == Some(&*seen))
        };
        if !arrived.iter().all(as_decided) || arrived.len() > 1 {
            return Err(format!("{what}: {responses:?}, arrived: {arrived:?}"));
        }
        refused += usize::from(!responses.iter().any(Response::is_success));
    }
    Ok(format!("{} passed whole, {refused} of {} refused", good.len(), bad.len()))
}

/// Nobody answers, and nobody hangs up: the proxy's own time limit. The supervisor would put another in its place, so it is held too.
fn gateway_frozen(stage: &mut Stage) -> Result<String, String> {
    until_open(stage)?;
    // First, so that it cannot end what is held.
    let supervisor = stage.service().pid();
    let gateway = pid(stage.service(), "gateway");
    for one in [supervisor, gateway] {
        kill(one, Signal::SIGSTOP).unwrap();
        until_stopped(one);
    }
    let seen = closed(stage, "/do/allow");
    let released = [gateway, supervisor].map(|one| kill(one, Signal::SIGCONT));
    if released.iter().any(Result::is_err) {
        return Err(format!("the gateway did not outlive it: {released:?}\n{}", stage.service().log()));
    }
    until_open(stage)?;
    seen.map(|response| response.status.to_string())
}

/// Until all its threads are: the others go on until the one that the signal is for has been given its turn.
fn until_stopped(process: Pid) {
    let until = Instant::now() + PATIENCE;
    let stopped = || {
        let threads = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
        threads.map(|thread| fs::read_to_string(thread.expect("a thread").path().join("stat"))).all(|stat| {
            let stat = stat.unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        })
    };
    while !stopped() {
        assert!(Instant::now() < until, "{process} does not stop");
        std::thread::yield_now();
    }
}

fn gateway_killed(stage: &mut Stage) -> Result<String, String> {
    after_death(stage, "gateway")
}

fn worker_killed(stage: &mut Stage) -> Result<String, String> {
    after_death(stage, "worker")
}

/// Until the next one serves, denials stay denials, whatever becomes of what is allowed.
fn after_death(stage: &mut Stage, role: &str) -> Result<String, String> {
    until_open(stage)?;
    stage.signal(role, Signal::SIGKILL);
    for _ in 0..20 {
        closed(stage, "/do/deny")?;
    }
    until_open(stage)?;
    let response = closed(stage, "/do/deny")?;
    if response.status == 403 { Ok("closed, then 200".into()) } else { Err(format!("{response:?}")) }
}

/// A restart of everything while four clients ask without a pause.
fn restart(stage: &mut Stage) -> Result<String, String> {
    until_open(stage)?;
    stage.shop.arrived();
    let (over, allowed, denied, open) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let address = stage.address.clone();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let good = address.get("/do/allow", &[]);
                    allowed.fetch_add(
                        usize::from(good.is_some_and(|good| good.is_success())),
                        Ordering::Relaxed,
                    );
                    let bad = address.get("/do/deny", &[]);
                    denied.fetch_add(1, Ordering::Relaxed);
                    open.fetch_add(usize::from(bad.is_some_and(|bad| bad.is_success())), Ordering::Relaxed);
                }
            });
        }
        // Whatever happens in here, the others have to hear that it is over.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let started = Instant::now();
            while allowed.load(Ordering::Relaxed) < 20 && started.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            stage.restart();
            until_open(stage)
        }));
        over.store(true, Ordering::Relaxed);
        ended.unwrap_or_else(|_| Err("the service did not come back".into()))
    })?;
    let (denied, open) = (denied.into_inner(), open.into_inner());
    let through = stage.shop.arrived().iter().filter(|one| one.target.starts_with("/do/deny")).count();
    if open != 0 || through != 0 {
        return Err(format!("OPEN: {open} of {denied} denials, {through} reached the service"));
    }
    Ok(format!("0 of {denied} denials open"))
}
