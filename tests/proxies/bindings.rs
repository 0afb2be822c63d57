//! For whom it is asked is what the operator says: by listener, by who connects, by the proxy's own configuration.

use std::process::Command;

use crate::doors::{Door, Ports};
use crate::exchange::{Address, request};
use crate::programs::find;
use crate::service::Shop;
use crate::stage::{open_directory, replaced, site, start_with};
use crate::support::is_root;

/// An ordinary user that no test machine has.
const STRANGER: &str = "65532";

/// Envoy's `context_extensions` of a route, which no client reaches.
#[test]
fn a_route_of_envoys_says_whose_policy_it_is() {
    let (dir, shop) = (open_directory(), Shop::open());
    let ports = Ports::before(&shop);
    let door = Door::named("envoy");
    let listeners = door
        .render("gateway.toml", dir.path(), ports)
        .replace("tenant = \"acme\"", "tenant = { context = \"tenant\", among = [\"acme\", \"globex\"] }");
    let _service = site(&listeners).start();
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
    let proxy = start_with(door, dir.path(), ports, |envoy| replaced(envoy, all, &routes.join(", ")));

    let ask = |method: &str, path: &str| {
        // A header with the same name is nothing to it.
        let bytes = request(method, path, &[("tenant", "acme"), ("x-portcullis-tenant", "acme")], b"");
        let status = Address::Tcp(ports.web).send(&bytes, 1).pop().unwrap().status;
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
    let (dir, shop) = (open_directory(), Shop::open());
    let ports = Ports::before(&shop);
    let door = Door::named("nginx");
    let listeners = door.render("gateway.toml", dir.path(), ports).replace(
        "tenant = \"acme\"",
        "tenant = { header = \"x-portcullis-tenant\", among = [\"acme\", \"globex\"] }",
    );
    let _service = site(&listeners).start();
    let proxy = start_with(door, dir.path(), ports, |nginx| {
        let map = "map $host $tenant { default acme; globex.test globex; none.test ''; }";
        let nginx = replaced(nginx, "access_log off;", &format!("access_log off;\n    {map}"));
        let here = "proxy_set_header X-Original-Method $request_method;";
        replaced(&nginx, here, &format!("{here}\nproxy_set_header X-Portcullis-Tenant $tenant;"))
    });

    let ask = |host: &str, method: &str, path: &str| {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-Portcullis-Tenant: globex\r\nConnection: close\r\n\r\n"
        );
        let status = Address::Tcp(ports.web).send(text.as_bytes(), 1).pop().unwrap().status;
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
            "[gateway.listener.{name}]\nsocket = {socket:?}\nsocket_mode = \"0666\"\nprotocol = \"http\"\nrequest = \"own\"\npolicy = \"gate\"\ndeadline = \"20s\"\n{more}\n"
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
    // Whom a table of tenants or of peers leaves out does not even get an answer.
    assert_eq!((ask("table", false), ask("table", true)), ("200".to_owned(), "000".to_owned()));
    assert_eq!((ask("closed", false), ask("closed", true)), ("200".to_owned(), "000".to_owned()));
}
