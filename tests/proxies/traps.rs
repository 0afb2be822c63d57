//! What a line of an example is there for: with it closed, without it open.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use crate::doors::{DOORS, Door, Ports};
use crate::exchange::Address;
use crate::service::Shop;
use crate::stage::{open_directory, replaced, site, start_with};

/// The location of the example in which is asked.
const ASKED: &str = "location / {";

/// Denies every request, with a header that nginx takes for an order.
fn deny_with_a_redirect(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    // It ends with the test program.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut lines = BufReader::new(&stream).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let answer = "HTTP/1.1 403 Forbidden\r\nX-Accel-Redirect: /open\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
}

/// The gateway passes no such header on; nginx need not rely on it.
#[test]
fn nginx_goes_nowhere_for_a_denial() {
    let door = Door::named("nginx");
    let ask = |edit: fn(String) -> String| {
        let (dir, shop) = (open_directory(), Shop::open());
        let ports = Ports::before(&shop);
        deny_with_a_redirect(&dir.path().join("nginx.sock"));
        let _proxy = start_with(door, dir.path(), ports, |nginx| {
            let open = format!("location = /open {{ return 200 welcome; }}\n        {ASKED}");
            edit(replaced(nginx, ASKED, &open))
        });
        let status = Address::Tcp(ports.web).get("/shop", &[]).unwrap().status;
        (status, shop.arrived().len())
    };
    assert_eq!(ask(|nginx| nginx), (403, 0));
    let without =
        |nginx: String| replaced(&nginx, "proxy_ignore_headers X-Accel-Redirect ", "proxy_ignore_headers ");
    assert_eq!(ask(without), (200, 1), "the control");
}

/// A location that answers by itself before anybody is asked.
#[test]
fn nginxs_return_asks_nobody() {
    let door = Door::named("nginx");
    let (dir, shop) = (open_directory(), Shop::open());
    let ports = Ports::before(&shop);
    deny_with_a_redirect(&dir.path().join("nginx.sock"));
    let _proxy = start_with(door, dir.path(), ports, |nginx| {
        let first = "location = /return { auth_request /.portcullis; return 200 welcome; }";
        replaced(nginx, ASKED, &format!("{first}\n        {ASKED}"))
    });
    let ask = |path: &str| Address::Tcp(ports.web).get(path, &[]).unwrap().status;
    assert_eq!((ask("/return"), ask("/shop")), (200, 403), "docs/proxies.md says so");
}

/// Which of these upgrades, each of them allowed, the service behind the proxy hears of.
fn handed_on(door: &Door, edit: fn(&str) -> String) -> [bool; 2] {
    let (dir, shop) = (open_directory(), Shop::open());
    let ports = Ports::before(&shop);
    let _service = site(&door.render("gateway.toml", dir.path(), ports)).start();
    let _proxy = start_with(door, dir.path(), ports, edit);
    ["websocket", "h2c"].map(|protocol| {
        // What was asked until it knew its routes, and the one before.
        shop.arrived();
        let more = match protocol {
            "websocket" => "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
            _ => "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        };
        let request = format!(
            "GET /do/allow HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{more}\r\n"
        );
        let responses = Address::Tcp(ports.web).send(request.as_bytes(), 1);
        let arrived = shop.arrived();
        assert!(arrived.len() <= 1, "{responses:?}, arrived: {arrived:?}");
        arrived.iter().any(|one| one.one("upgrade").is_some())
    })
}

/// What is said after an upgrade nobody asks about.
#[test]
fn upgrades_are_handed_on_as_documented() {
    for door in &DOORS {
        assert_eq!(handed_on(door, str::to_owned), [false, false], "{}", door.name);
    }
    let without = |name: &str, edit| assert_eq!(handed_on(Door::named(name), edit), [true, true], "{name}");
    without("haproxy", |text| replaced(text, "http-request del-header upgrade\n", "\n"));
    without("haproxy-lua", |text| replaced(text, "http-request del-header upgrade\n", "\n"));
    without("caddy", |text| replaced(text, "request_header -Connection\n", "\n"));
    // As documented for who needs websockets.
    let websockets = |text: &str| {
        let line = "http-request del-header upgrade";
        replaced(text, line, &format!("{line} unless {{ req.hdr(upgrade) -i websocket }}"))
    };
    assert_eq!(handed_on(Door::named("haproxy"), websockets), [true, false]);
    let unnamed = |text: &str| replaced(text, "[\"unnamed\", ", "[");
    assert_eq!(handed_on(Door::named("traefik"), unnamed), [true, false]);
}
