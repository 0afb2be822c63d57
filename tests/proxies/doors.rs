//! The proxies: how each is started, and what of a decision it can pass on. Their configurations are those of `examples/`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::ports::free_port;
use crate::programs::find;
use crate::service::Shop;
use crate::stage::SOCKETS;

/// Headers of a decision that the service behind the proxy is to see, besides the one that the examples name.
const HEADERS: [&str; 12] = [
    "x-set",
    "x-append",
    "x-remove",
    "x-seen-method",
    "x-seen-scheme",
    "x-seen-host",
    "x-seen-path",
    "x-seen-query",
    "x-seen-source",
    "x-seen-headers",
    "x-seen-probe",
    "x-seen-body",
];

/// What becomes of a policy's own denial: status 451, headers and a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// It reaches whoever asked, with this status: Envoy over gRPC has no name for 451, and 403 instead.
    Whole(u16),
    /// The same, with control characters percent-encoded.
    Escaped,
    /// The proxy's own page, with this status.
    Own(u16),
}

#[derive(Debug)]
pub(crate) struct Door {
    /// Its folder in `examples/`.
    pub(crate) name: &'static str,
    program: &'static str,
    pub(crate) files: &'static [&'static str],
    /// What a test has otherwise than the example: more headers, and time, since a machine of tests is a busy one.
    edit: fn(&str) -> String,
    arguments: &'static [&'static str],
    pub(crate) page: Page,
    /// Whether the policy gets the request's body.
    pub(crate) sees_body: bool,
    /// Whether an obligation can add a line to a header that the client sent.
    pub(crate) appends: bool,
    /// Whether the policy gets the client's own headers.
    pub(crate) sees_headers: bool,
    /// Whether it listens before it knows its routes, and has 404 for everything until then.
    pub(crate) learns_late: bool,
}

pub(crate) static DOORS: [Door; 8] = [
    Door {
        name: "envoy",
        program: "envoy",
        files: &["envoy.yaml"],
        edit: |text| with_room(&text.replace("timeout: 0.25s }", "timeout: 6s }")),
        arguments: &[
            "-c",
            "envoy.yaml",
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            // Access logs; without it after 10 s.
            "--file-flush-interval-msec",
            "50",
        ],
        page: Page::Whole(403),
        sees_body: true,
        appends: true,
        sees_headers: true,
        learns_late: false,
    },
    Door {
        name: "envoy-http",
        program: "envoy",
        files: &["envoy.yaml"],
        edit: |text| {
            let patterns = |names: &[&str]| {
                let each: Vec<_> = names.iter().map(|name| format!("{{ exact: {name} }}")).collect();
                format!("{{ patterns: [{}] }}", each.join(", "))
            };
            let (set, append): (Vec<&str>, Vec<&str>) = HEADERS.iter().partition(|name| **name != "x-append");
            with_room(&text.replace("timeout: 0.25s }", "timeout: 6s }")).replace(
                "allowed_upstream_headers: { patterns: [{ exact: x-auth-subject }] }",
                &format!(
                    "allowed_upstream_headers: {}, allowed_upstream_headers_to_append: {}",
                    patterns(&set),
                    patterns(&append)
                ),
            )
        },
        arguments: &[
            "-c",
            "envoy.yaml",
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            // Access logs; without it after 10 s.
            "--file-flush-interval-msec",
            "50",
        ],
        page: Page::Whole(451),
        sees_body: false,
        appends: true,
        sees_headers: true,
        learns_late: false,
    },
    Door {
        name: "nginx",
        program: "nginx",
        files: &["nginx.conf"],
        edit: |text| {
            let more = HEADERS.iter().fold(String::new(), |mut lines, name| {
                let variable = name.replace('-', "_");
                writeln!(lines, "auth_request_set ${variable} $upstream_http_{variable};").unwrap();
                writeln!(lines, "proxy_set_header {name} ${variable};").unwrap();
                lines
            });
            let here = "proxy_set_header X-Auth-Subject $auth_subject;";
            text.replace("proxy_read_timeout 1s", "proxy_read_timeout 6s")
                .replace(here, &format!("{here}\n{more}"))
        },
        arguments: &["-e", "stderr", "-p", ".", "-c", "nginx.conf"],
        // auth_request knows 401 and 403; every other answer that is no success is 500.
        page: Page::Own(500),
        sees_body: false,
        appends: false,
        sees_headers: true,
        learns_late: false,
    },
    Door {
        name: "caddy",
        program: "caddy",
        files: &["Caddyfile"],
        edit: |text| {
            let gone = HEADERS.iter().filter(|name| name.starts_with("x-seen-"));
            let gone = gone.fold(String::new(), |lines, name| lines + &format!("request_header -{name}\n"));
            let here = "request_header -X-Auth-Subject";
            text.replace("response_header_timeout 1s", "response_header_timeout 6s")
                .replace("copy_headers X-Auth-Subject", &format!("copy_headers {}", HEADERS.join(" ")))
                .replace(here, &format!("{gone}{here}"))
        },
        arguments: &["run", "--config", "Caddyfile", "--adapter", "caddyfile"],
        page: Page::Whole(451),
        sees_body: false,
        appends: false,
        sees_headers: true,
        learns_late: false,
    },
    Door {
        name: "traefik",
        program: "traefik",
        files: &["dynamic.yml", "traefik.yml"],
        edit: |text| {
            let names: Vec<_> = HEADERS.iter().map(|name| format!("{name:?}")).collect();
            text.replace("[\"X-Auth-Subject\"]", &format!("[{}]", names.join(", ")))
        },
        arguments: &["--configFile=traefik.yml"],
        page: Page::Whole(451),
        sees_body: false,
        appends: false,
        sees_headers: true,
        learns_late: true,
    },
    Door {
        name: "haproxy",
        program: "haproxy",
        files: &["haproxy.cfg", "spoe.conf"],
        edit: |text| {
            let found = |variable: &str| {
                format!("%[var(txn.portcullis.{variable})] if {{ var(txn.portcullis.{variable}) -m found }}")
            };
            let set = HEADERS.iter().filter(|name| !["x-append", "x-remove"].contains(name));
            let mut more = set.fold(String::new(), |mut lines, name| {
                let variable = format!("header_{}", name.replace('-', "_"));
                writeln!(lines, "    http-request set-header {name} {}", found(&variable)).unwrap();
                lines
            });
            writeln!(more, "    http-request add-header x-append {}", found("append_x_append")).unwrap();
            more +=
                "    http-request del-header x-remove if { var(txn.portcullis.remove_x_remove) -m bool }\n";
            // The policy's page, in the policy's status: one line for each status that is to be had.
            let page = "    http-request return status 451 content-type text/plain lf-string \"%[var(txn.portcullis.body)]\" \
                 hdr x-denied-by \"%[var(txn.portcullis.header_x_denied_by)]\" hdr set-cookie \"%[var(txn.portcullis.append_set_cookie)]\" \
                 hdr set-cookie \"%[var(txn.portcullis.append_set_cookie_2)]\" if { var(txn.portcullis.status) -m int 451 }\n";
            let (gate, seen) = ("    # Only a decision opens.", "    default_backend shop");
            text.replace("defaults\n", &format!("{MAXHDR}\ndefaults\n"))
                .replace("timeout processing 1s", "timeout processing 6s")
                .replace(gate, &format!("{page}{gate}"))
                .replace(seen, &format!("{more}{seen}"))
        },
        arguments: &["-db", "-f", "haproxy.cfg"],
        page: Page::Escaped,
        sees_body: false,
        appends: true,
        sees_headers: true,
        learns_late: false,
    },
    Door {
        name: "haproxy-lua",
        program: "haproxy",
        files: &["haproxy.cfg", "portcullis.lua"],
        edit: |text| {
            text.replace("timeout = 1000", "timeout = 6000").replace("global\n", &format!("{MAXHDR}\n"))
        },
        arguments: &["-db", "-f", "haproxy.cfg"],
        page: Page::Whole(451),
        sees_body: false,
        appends: false,
        sees_headers: true,
        learns_late: false,
    },
    Door {
        name: "apache",
        program: "apache2",
        files: &["httpd.conf", "portcullis.lua"],
        // It takes 100 headers without that line.
        edit: |text| {
            text.replace("local PATIENCE = 1", "local PATIENCE = 6")
                .replace("ServerName", "LimitRequestFields 300\nServerName")
        },
        arguments: &["-D", "FOREGROUND", "-d", ".", "-f", "httpd.conf"],
        page: Page::Own(451),
        sees_body: false,
        appends: false,
        sees_headers: true,
        learns_late: false,
    },
];

/// HAProxy takes 101 headers without it.
const MAXHDR: &str = "global\n    tune.http.maxhdr 300";

/// Envoy takes 100 headers without it, and holds a connection that it is done with for a second.
fn with_room(envoy: &str) -> String {
    let here = "                stat_prefix: web\n";
    let more = "                common_http_protocol_options: { max_headers_count: 300 }\n                delayed_close_timeout: 0s\n";
    envoy.replace(here, &format!("{here}{more}"))
}

/// Where who listens on loopback. What is in the examples is 8080, 8081 and 8181.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) web: u16,
    pub(crate) shop: u16,
    /// The gateway, for proxies that know no Unix sockets.
    pub(crate) gate: u16,
}

impl Ports {
    pub(crate) fn before(shop: &Shop) -> Self {
        Self { web: free_port(), shop: shop.port, gate: free_port() }
    }
}

impl Door {
    pub(crate) fn named(name: &str) -> &'static Self {
        DOORS.iter().find(|door| door.name == name).unwrap()
    }

    /// A file of the example, with the places of this test and the policy that does what it is told.
    pub(crate) fn render(&self, file: &str, dir: &Path, ports: Ports) -> String {
        let Ports { web, shop, gate } = ports;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(self.name).join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
        // By marks: a port may have the digits of another.
        let text = text
            .replace("8080", "<web>")
            .replace("8081", "<shop>")
            .replace("8181", "<gate>")
            .replace("<web>", &web.to_string())
            .replace("<shop>", &shop.to_string())
            .replace("<gate>", &gate.to_string())
            .replace(SOCKETS, dir.to_str().unwrap())
            .replace("policy = \"jwt-gate\"", "policy = \"gate\"")
            // Decisions have longer than this machine stops, and proxies longer than decisions.
            .replace("deadline = \"250ms\"", "deadline = \"4s\"")
            .replace("connect_timeout: 0.25s", "connect_timeout: 6s")
            .replace("timeout connect 1s", "timeout connect 6s")
            .replace("timeout hello 1s", "timeout hello 6s");
        if file == "gateway.toml" { text } else { (self.edit)(&text) }
    }

    pub(crate) fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(find(self.program));
        // Caddy keeps things at home.
        command
            .args(self.arguments)
            .current_dir(dir)
            .env("HOME", dir)
            .env("XDG_DATA_HOME", dir)
            .env("XDG_CONFIG_HOME", dir);
        command
    }
}
