//! Every folder of `examples/` is what it says: one command, and all as expected.

use std::process::Command;

use crate::ports::free_port;
use crate::programs::find;

fn run(name: &str, program: &str) {
    let program = find(program);
    let path = format!("{}/examples/{name}/run", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(&path);
    command
        .env("PORTCULLIS_BIN", env!("CARGO_BIN_EXE_portcullis"))
        .env("SLOW", "1")
        .env("PORT", free_port().to_string())
        .env("SHOP_PORT", free_port().to_string())
        .env("GATE_PORT", free_port().to_string());
    match name {
        "envoy" | "envoy-http" => _ = command.env("ENVOY", program),
        "traefik" => _ = command.env("TRAEFIK", program),
        _ => {}
    }
    let output = command.output().unwrap_or_else(|error| panic!("start {path}: {error}"));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && said.ends_with("all as expected\n"),
        "{path}: {}\n{said}\n{errors}",
        output.status
    );
}

#[test]
fn envoy() {
    run("envoy", "envoy");
}

#[test]
fn envoy_over_http() {
    run("envoy-http", "envoy");
}

#[test]
fn nginx() {
    run("nginx", "nginx");
}

#[test]
fn caddy() {
    run("caddy", "caddy");
}

#[test]
fn traefik() {
    run("traefik", "traefik");
}

#[test]
fn haproxy() {
    run("haproxy", "haproxy");
}

#[test]
fn haproxy_lua() {
    run("haproxy-lua", "haproxy");
}

#[test]
fn apache() {
    run("apache", "apache2");
}

#[test]
fn opa_sdk() {
    run("opa-sdk", "python");
}

#[test]
fn each_has_all_it_needs() {
    let folder = format!("{}/examples", env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        for file in ["README.md", "gateway.toml", "run"] {
            assert!(!path.is_dir() || path.join(file).is_file(), "{path:?} has no {file}");
        }
    }
}
