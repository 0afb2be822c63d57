//! For whom it is asked is what the operator says: by listener, by who connects, by the proxy's own configuration. And how long it
//! may take.

use std::fs;
use std::process::Command;

use crate::doors::Door;
use crate::exchange::{Address, request};
use crate::programs::{find, free_port};
use crate::service::Shop;
use crate::stage::{open_directory, site, start};
use crate::support::is_root;

/// An ordinary user that no test machine has.
const STRANGER: &str = "65532";

/// Envoy's `context_extensions` of a route, which no client reaches.
#[test]
fn a_route_of_envoys_says_whose_policy_it_is() {
    let (dir, shop, port) = (open_directory(), Shop::open(), free_port());
    let door = Door::named("envoy");
    let listeners = door
        .render("gateway.toml", dir.path(), port, shop.port)
        .replace("tenant = \"acme\"", "tenant = { context = \"tenant\", among = [\"acme\", \"globex\"] }");
    let _service = site(&listeners).start();
    let envoy = door.render("envoy.yaml", dir.path(), port, shop.port);
    let route = |prefix: &str, tenant: &str| {
        format!(
            "{{ match: {{ prefix: {prefix} }}, route: {{ cluster: shop }}, typed_per_filter_config: {{ envoy.filters.http.ext_authz: {{ \
             \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, \
             check_settings: {{ context_extensions: {{ tenant: {tenant} }} }} }} }} }}"
        )
    };
    let all = "{ match: { prefix: / }, route: { cluster: shop } }";
    let routes =
        [route("/do/", "acme"), route("/globex/", "globex"), route("/other/", "initech"), all.to_owned()];
    assert!(envoy.contains(all));
    fs::write(dir.path().join("envoy.yaml"), envoy.replace(all, &routes.join(", "))).unwrap();
    let log = dir.path().join("log");
    let mut proxy = crate::programs::Running::start("envoy", door.command(dir.path()), &log);
    proxy.until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());

    let ask = |method: &str, path: &str| {
        // A header with the same name is nothing to it.
        let bytes = request(method, path, &[("tenant", "acme"), ("x-portcullis-tenant", "acme")], b"");
        let status = Address::Tcp(port).send(&bytes, 1).pop().unwrap().status;
        (status, shop.arrived().len())
    };
    assert_eq!(ask("POST", "/do/allow"), (200, 1));
    assert_eq!(ask("GET", "/do/deny"), (403, 0));
    // That tenant's policy lets GET through and nothing else, whatever the path says.
    assert_eq!(ask("GET", "/globex/do/deny"), (200, 1));
    let (status, arrived) = ask("POST", "/globex/do/allow");
    assert!(status >= 400 && arrived == 0, "{status}");
    // One that the listener does not know, and none at all.
    assert_eq!((ask("GET", "/other/"), ask("GET", "/")), ((403, 0), (403, 0)), "{}", proxy.said());
}

/// A variable of nginx's, in a header that nginx sets on every request.
#[test]
fn a_variable_of_nginxs_says_whose_policy_it_is() {
    let (dir, shop, port) = (open_directory(), Shop::open(), free_port());
    let door = Door::named("nginx");
    let listeners = door.render("gateway.toml", dir.path(), port, shop.port).replace(
        "tenant = \"acme\"",
        "tenant = { header = \"x-portcullis-tenant\", among = [\"acme\", \"globex\"] }",
    );
    let _service = site(&listeners).start();
    let nginx = door.render("nginx.conf", dir.path(), port, shop.port);
    let here = "proxy_set_header X-Original-Method $request_method;";
    let mapped = nginx
        .replace(
            "    access_log off;",
            "    access_log off;\n    map $host $tenant { default acme; globex.test globex; none.test ''; }",
        )
        .replace(here, &format!("{here}\nproxy_set_header X-Portcullis-Tenant $tenant;"));
    fs::write(dir.path().join("nginx.conf"), mapped).unwrap();
    let log = dir.path().join("log");
    let mut proxy = crate::programs::Running::start("nginx", door.command(dir.path()), &log);
    proxy.until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());

    let ask = |host: &str, method: &str, path: &str| {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-Portcullis-Tenant: globex\r\nConnection: close\r\n\r\n"
        );
        let status = Address::Tcp(port).send(text.as_bytes(), 1).pop().unwrap().status;
        (status, shop.arrived().len())
    };
    assert_eq!(
        (ask("acme.test", "POST", "/do/allow"), ask("acme.test", "GET", "/do/deny")),
        ((200, 1), (403, 0))
    );
    let (status, arrived) = ask("globex.test", "POST", "/do/allow");
    assert!(status >= 400 && arrived == 0, "{status}");
    assert_eq!(ask("globex.test", "GET", "/do/deny"), (200, 1));
    // An empty value is none that it may name.
    assert_eq!(ask("none.test", "GET", "/do/allow"), (403, 0), "{}", proxy.said());
}

/// The kernel says who connects; nobody can say it themselves.
#[test]
fn who_connects_says_whose_policy_it_is() {
    if !is_root() {
        // Another user's connection takes one.
        return;
    }
    let dir = open_directory();
    let listener = |name: &str, more: &str| {
        let socket = dir.path().join(format!("{name}.sock"));
        format!(
            "[gateway.listener.{name}]\nsocket = {socket:?}\nsocket_mode = \"0666\"\nprotocol = \"http\"\nrequest = \"own\"\npolicy = \"gate\"\ndeadline = \"2s\"\n{more}\n"
        )
    };
    let listeners = [
        listener("table", "tenant = { peer = { \"0\" = \"acme\" } }"),
        listener("closed", "tenant = \"acme\"\npeers = [0]"),
        listener("open", "tenant = \"acme\""),
    ];
    let _service = site(&listeners.concat()).start();
    let ask = |name: &str, as_stranger: bool| {
        let socket = dir.path().join(format!("{name}.sock"));
        let (curl, setpriv) = (find("curl"), find("setpriv"));
        let mut command = if as_stranger { Command::new(setpriv) } else { Command::new(&curl) };
        if as_stranger {
            command.args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups"]).arg(&curl);
        }
        command
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30", "--unix-socket"])
            .arg(socket);
        let output = command.arg("http://shop.test/do/allow").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!((ask("open", false), ask("open", true)), ("200".to_owned(), "200".to_owned()));
    assert_eq!((ask("table", false), ask("table", true)), ("200".to_owned(), "403".to_owned()));
    // Not even an answer.
    assert_eq!((ask("closed", false), ask("closed", true)), ("200".to_owned(), "000".to_owned()));
}

/// A proxy's own limit becomes the decision's, where it is shorter than the listener's.
#[test]
fn envoys_time_limit_is_the_decisions() {
    let (dir, shop, port) = (open_directory(), Shop::open(), free_port());
    let door = Door::named("envoy-http");
    let listeners = door
        .render("gateway.toml", dir.path(), port, shop.port)
        .replace("deadline = \"2s\"", "deadline = \"60s\"");
    let _service = site(&listeners).start();
    // The test's own render says 5 s; whoever waits for the listener's 60 s is answered by Envoy, with another status.
    let _proxy = start(door, dir.path(), port, shop.port);
    let response = Address::Tcp(port).get("/do/spin", &[]).unwrap();
    assert!(!response.is_success() && shop.arrived().is_empty(), "{response:?}");
    let socket = Address::Unix(dir.path().join("envoy-http.sock"));
    let response = socket.get("/authz/do/spin", &[("x-envoy-expected-rq-timeout-ms", "20")]).unwrap();
    assert_eq!((response.status, response.header("x-portcullis-outcome")), (504, Some("deadline")));
}

/// Decides, and lets everything through all the same: what would happen is in the metadata and nowhere else.
#[test]
fn envoys_shadow_mode_decides_and_stops_nobody() {
    let (dir, shop, port) = (open_directory(), Shop::open(), free_port());
    let door = Door::named("envoy");
    let _service = site(&door.render("gateway.toml", dir.path(), port, shop.port)).start();
    let access = dir.path().join("access");
    let envoy = door
        .render("envoy.yaml", dir.path(), port, shop.port)
        .replace("failure_mode_allow: false", "failure_mode_allow: false\n                      shadow_mode: true")
        .replace(
            "stat_prefix: web",
            &format!(
                "stat_prefix: web\n                access_log: [{{ name: file, typed_config: {{ \"@type\": \
                 type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {access:?}, log_format: {{ \
                 text_format_source: {{ inline_string: \"%REQ(:PATH)% %DYNAMIC_METADATA(envoy.filters.http.ext_authz)%\\n\" }} }} }} }}]"
            ),
        );
    fs::write(dir.path().join("envoy.yaml"), envoy).unwrap();
    let log = dir.path().join("log");
    let mut proxy = crate::programs::Running::start("envoy", door.command(dir.path()), &log);
    proxy.until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    for path in ["/do/allow", "/do/deny", "/do/trap"] {
        let response = Address::Tcp(port).get(path, &[]).unwrap();
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
