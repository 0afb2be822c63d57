//! What only Envoy can do: its time limits, its health checks, its shadow mode, HTTP/2.

use std::fs;
use std::process::Command;

use crate::doors::{Door, Ports};
use crate::exchange::Address;
use crate::programs::find;
use crate::service::Shop;
use crate::stage::{open_directory, replaced, site, start, start_with};

/// A proxy's own limit becomes the decision's, where it is shorter than the listener's: with 60 s no decision is late here, since who
/// has given up is not decided for any more.
#[test]
fn its_time_limit_is_the_decisions() {
    for name in ["envoy", "envoy-http"] {
        let (dir, shop) = (open_directory(), Shop::open());
        let ports = Ports::before(&shop);
        let door = Door::named(name);
        let listeners = door.render("gateway.toml", dir.path(), ports);
        let service = site(&replaced(&listeners, "deadline = \"4s\"", "deadline = \"60s\"")).start();
        let proxy =
            start_with(door, dir.path(), ports, |envoy| replaced(envoy, "timeout: 6s }", "timeout: 0.5s }"));
        let late = || service.status().workers.iter().map(|one| one.counters.refused_deadline).sum::<u64>();
        // The decision ends a little before Envoy does, and on a busy machine Envoy may be first all the same.
        let ended = (0..20).any(|_| {
            let response = Address::Tcp(ports.web).get("/do/spin", &[]).unwrap();
            assert!(!response.is_success() && shop.arrived().is_empty(), "{response:?}");
            late() > 0
        });
        assert!(ended, "{name}: nothing was ever late\n{}", proxy.said());
    }
}

/// Decides, and lets everything through all the same: what would happen is in the metadata and nowhere else.
#[test]
fn its_shadow_mode_decides_and_stops_nobody() {
    let (dir, shop) = (open_directory(), Shop::open());
    let ports = Ports::before(&shop);
    let door = Door::named("envoy");
    let _service = site(&door.render("gateway.toml", dir.path(), ports)).start();
    let access = dir.path().join("access");
    let mut proxy = start_with(door, dir.path(), ports, |envoy| {
        let mode = "failure_mode_allow: false";
        let envoy = replaced(envoy, mode, &format!("{mode}\n                      shadow_mode: true"));
        let log = format!(
            "stat_prefix: web\n                access_log: [{{ name: file, typed_config: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {access:?}, log_format: {{ \
             text_format_source: {{ inline_string: \"%REQ(:PATH)% %DYNAMIC_METADATA(envoy.filters.http.ext_authz)%\\n\" }} }} }} }}]"
        );
        replaced(&envoy, "stat_prefix: web", &log)
    });
    for path in ["/do/allow", "/do/deny", "/do/trap"] {
        let response = Address::Tcp(ports.web).get(path, &[]).unwrap();
        assert_eq!((response.status, shop.arrived().len()), (200, 1), "{path}: {response:?}");
    }
    let said = || fs::read_to_string(&access).unwrap_or_default();
    proxy.until(|| said().lines().count() == 3);
    let said = said();
    for (path, outcome) in [("/do/allow", "allow"), ("/do/deny", "denied"), ("/do/trap", "trap")] {
        let line = said.lines().find(|line| line.starts_with(path)).unwrap();
        assert!(
            line.contains(&format!("\"outcome\":\"{outcome}\"")) && line.contains("\"decision\":\""),
            "{line}"
        );
    }
}

/// Clients of Envoy that speak HTTP/2: method, host, path and query are in other places, and the same to the policy.
#[test]
fn http_2_is_the_same_question() {
    let (dir, shop) = (open_directory(), Shop::open());
    let ports = Ports::before(&shop);
    let door = Door::named("envoy");
    let _service = site(&door.render("gateway.toml", dir.path(), ports)).start();
    let _proxy = start(door, dir.path(), ports);
    let ask = |arguments: &[&str], path: &str| {
        let always = [
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_version} %{http_code}",
            "--http2-prior-knowledge",
            "--max-time",
            "30",
        ];
        let url = format!("http://127.0.0.1:{}{path}", ports.web);
        let output = Command::new(find("curl")).args(always).args(arguments).arg(url).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask(&["-H", "host: shop.test", "--data-binary", "abc"], "/do/see?q=1"), "2 200");
    let arrived = shop.arrived();
    let [one] = &arrived[..] else { panic!("{arrived:?}") };
    for (name, value) in [
        ("x-seen-method", "POST"),
        ("x-seen-host", "shop.test"),
        ("x-seen-path", "/do/see"),
        ("x-seen-query", "q=1"),
        ("host", "shop.test"),
    ] {
        assert_eq!(one.one(name), Some(value), "{one:?}");
    }
    assert!(one.one("x-seen-body").is_some_and(|seen| seen.starts_with("3 ")), "{one:?}");
    assert_eq!((ask(&[], "/do/deny"), shop.arrived().len()), ("2 403".to_owned(), 0));
}

/// Envoy asks for the health of what it asks, and asks nobody who is not well: then nothing is open.
#[test]
fn it_asks_for_health() {
    let (dir, shop) = (open_directory(), Shop::open());
    let ports = Ports::before(&shop);
    let door = Door::named("envoy");
    let _service = site(&door.render("gateway.toml", dir.path(), ports)).start();
    let checked = |service: &str| {
        let here = "    - name: portcullis\n";
        let check = format!(
            "      health_checks: [{{ timeout: 5s, interval: 0.1s, no_traffic_interval: 0.1s, unhealthy_threshold: 1, healthy_threshold: 1, \
             grpc_health_check: {{ service_name: {service:?} }} }}]\n\
             \x20     common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}\n"
        );
        move |envoy: &str| replaced(envoy, here, &format!("{here}{check}"))
    };
    let status = || Address::Tcp(ports.web).get("/do/allow", &[]).unwrap().status;
    let mut proxy = start_with(door, dir.path(), ports, checked("envoy.service.auth.v3.Authorization"));
    proxy.until(|| status() == 200);
    drop(proxy);
    shop.arrived();
    // The control: the same with a service that nobody has.
    let _proxy = start_with(door, dir.path(), ports, checked("shop"));
    assert_eq!((status(), shop.arrived().len()), (503, 0));
}
