//! Does what its input says, so that one signed policy serves many tests. `README.md` one folder up lists the words.

#![no_std]

extern crate alloc;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::hint::black_box;

use guest::{
    Address, Answer, CacheScope, Decision, Failure, Header, HttpRequest, Policy, Request, clock, data, log,
    metric, random,
};

struct Selective;

impl Policy for Selective {
    fn decide(request: Request) -> Answer {
        let input = match request {
            Request::Opaque(input) => input,
            Request::Http(request) => return http(&request),
        };
        let Ok(input) = core::str::from_utf8(&input.bytes) else {
            return Ok(Decision::deny(400, "expected text"));
        };
        let (word, argument) = input.split_once(':').unwrap_or((input, ""));
        answer(word, argument)
    }
}

guest::export!(Selective);

/// What the path says below `/do/`; every proxy passes on a path.
fn http(request: &HttpRequest) -> Answer {
    let Some(rest) = request.path.strip_prefix("/do/") else { return Ok(attributes(request)) };
    let (word, argument) = rest.split_once('/').unwrap_or((rest, ""));
    match word {
        "see" => Ok(seen(request)),
        "mutate" => Ok(mutation()),
        "page" => Ok(page()),
        _ => answer(word, argument),
    }
}

fn answer(word: &str, argument: &str) -> Answer {
    if word == "fail" {
        let (reason, detail) = argument.split_once('=').unwrap_or((argument, ""));
        return Err(Failure::new(reason, detail));
    }
    Ok(obey(word, argument))
}

/// Allows, and tells the service behind the proxy what was there to be seen.
fn seen(request: &HttpRequest) -> Decision {
    let source = match request.source.address {
        Address::Ipv4((a, b, c, d)) => format!("{a}.{b}.{c}.{d}"),
        Address::Ipv6(_) => String::from("ipv6"),
        Address::Unknown => String::from("unknown"),
    };
    let probes: Vec<String> =
        request.header("x-probe").map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    let body = request.body.as_ref().map_or(String::from("none"), |body| {
        let sum = body.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        format!("{} {sum}", body.len())
    });
    Decision::allow()
        .set_header("x-seen-method", &*request.method)
        .set_header("x-seen-scheme", &*request.scheme)
        .set_header("x-seen-host", &*request.host)
        .set_header("x-seen-path", &*request.path)
        .set_header("x-seen-query", request.query.as_deref().unwrap_or("none"))
        .set_header("x-seen-source", source)
        .set_header("x-seen-headers", request.headers.len().to_string())
        .set_header("x-seen-probe", probes.join("|"))
        .set_header("x-seen-body", body)
}

/// Allows, with one of every obligation that a request can have.
fn mutation() -> Decision {
    let mut decision = Decision::allow()
        .set_header("x-set", "by the policy")
        .remove_header("x-remove")
        .metadata("tier", "gold");
    decision.obligations.headers_append.push(Header { name: "x-append".into(), value: b"second".to_vec() });
    decision
}

/// Denies, with a page and headers of its own.
fn page() -> Decision {
    let mut decision = Decision::deny(451, "told to").set_header("x-denied-by", "selective");
    decision.obligations.headers_append.push(Header { name: "set-cookie".into(), value: b"a=1".to_vec() });
    decision.obligations.headers_append.push(Header { name: "set-cookie".into(), value: b"b=2".to_vec() });
    decision.obligations.body = Some(b"no entry\n".to_vec());
    decision
}

/// What the proxy said beyond HTTP.
fn attributes(request: &HttpRequest) -> Decision {
    request
        .attributes
        .iter()
        .fold(Decision::allow(), |decision, one| decision.metadata(&one.name, one.value.clone()))
}

fn obey(word: &str, argument: &str) -> Decision {
    let number = || argument.parse::<u32>().unwrap_or(0);
    match word {
        "allow" => Decision::allow(),
        "deny" => Decision::deny(403, if argument.is_empty() { "told to" } else { argument }),
        "number" => Decision::allow().metadata("number", argument),
        "text" => Decision::allow().metadata("text", argument),
        "echo" => body(argument.as_bytes().to_vec()),
        "size" => body(vec![b'x'; number() as usize]),
        "many" => Decision { obligations: many(number()), ..Decision::allow() },
        "cache" => Decision::allow().cache(number(), CacheScope::Client),
        "status" => Decision::deny(argument.parse().unwrap_or(0), "told to"),
        "header" => {
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            Decision::allow().set_header(name, value)
        }
        "clock" => Decision::allow()
            .metadata("now", clock::now().to_string())
            .metadata("again", (work(100_000), clock::now()).1.to_string()),
        "random" => Decision::allow()
            .metadata("first", random::get_u64().to_string())
            .metadata("second", random::get_u64().to_string())
            .metadata("bytes", hex(&random::get_bytes(8))),
        "random-bytes" => Decision::allow().metadata("len", random::get_bytes(number()).len().to_string()),
        "log" => {
            log::write(log::Level::Info, argument);
            Decision::allow()
        }
        "log-flood" => {
            let line = "x".repeat(4096);
            (0..number()).for_each(|_| log::write(log::Level::Warn, &line));
            Decision::allow()
        }
        "work" => Decision::allow().metadata("work", work(number()).to_string()),
        "spin" => loop {
            work(1);
        },
        "trap" => core::arch::wasm32::unreachable(),
        "stack" => Decision::allow().metadata("depth", deeper(number()).to_string()),
        "clock-flood" => {
            let last = (0..number()).map(|_| clock::now()).last();
            Decision::allow().metadata("now", last.unwrap_or(0).to_string())
        }
        "metric" => {
            let (name, value) = argument.split_once('=').unwrap_or((argument, "1"));
            metric::add(name, value.parse().unwrap_or(0));
            Decision::allow()
        }
        "metric-flood" => {
            (0..number()).for_each(|_| metric::add("flood", 1));
            Decision::allow()
        }
        "data" => match data::get(argument) {
            Some(value) => body(value),
            None => Decision::deny(404, "no such key"),
        },
        "entries" => {
            let (prefix, after) = argument.split_once('>').unwrap_or((argument, ""));
            data::entries(prefix, (!after.is_empty()).then_some(after), 3)
                .into_iter()
                .fold(Decision::allow(), |decision, entry| {
                    decision.metadata(&entry.key, String::from_utf8_lossy(&entry.value))
                })
        }
        "memory" => Decision::allow().metadata("bytes", touch(number() as usize).to_string()),
        _ => Decision::deny(400, &format!("unknown word {word:?}")),
    }
}

fn body(bytes: Vec<u8>) -> Decision {
    let mut decision = Decision::allow();
    decision.obligations.body = Some(bytes);
    decision
}

/// `count` headers to append, a header to remove and a metadatum for each.
fn many(count: u32) -> guest::Obligations {
    let mut obligations = Decision::allow().obligations;
    for each in 0..count {
        let name = format!("x-many-{each}");
        obligations.headers_append.push(Header { name: name.clone(), value: b"1".to_vec() });
        obligations.headers_remove.push(name.clone());
        obligations.metadata.push(guest::Metadatum { key: name, value: String::from("1") });
    }
    obligations
}

/// `steps` steps of a generator that the compiler cannot see through.
fn work(steps: u32) -> u32 {
    (0..steps).fold(1, |state: u32, _| black_box(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
}

/// Calls itself that many times, with something to keep in each frame.
#[inline(never)]
fn deeper(levels: u32) -> u32 {
    if levels == 0 {
        return 0;
    }
    let kept = black_box(levels);
    deeper(levels - 1) + 1 + black_box(kept) - levels
}

/// Takes `bytes` of memory and writes to every page of it.
fn touch(bytes: usize) -> usize {
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = black_box(1));
    black_box(&memory).len()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
