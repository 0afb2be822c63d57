//! From what OPA wrote to a decision of the service: `policy build`, a signature, the store, a worker.

use std::path::Path;
use std::process::{Command, Output};

use portcullis::bundle::Platform;
use portcullis::decision::Outcome;
use serde_json::{Value, json};

use crate::folder;
use crate::support::{Site, sign_bundle};

fn portcullis(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("policy").args(arguments).env_remove("OPA_BIN").envs(environment.iter().copied());
    command.output().unwrap()
}

pub(crate) fn good(arguments: &[&str]) -> String {
    let output = portcullis(arguments, &[]);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    out
}

pub(crate) fn bad(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = portcullis(arguments, environment);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

/// Of a build for acme's policy gate, on this machine. A decision may take a minute: a machine that stops for a second is not what
/// is tested.
pub(crate) fn build<'a>(source: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let platform = if Platform::host() == Platform::LinuxArm64 { "linux/arm64" } else { "linux/amd64" };
    let who = ["build", source, "--tenant", "acme", "--policy", "gate", "--version", "1", "--out", out];
    [&who[..], &["--platform", platform, "--deadline", "60s"], more].concat()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_opa_compiled_is_built_signed_and_served() {
    let bundle = folder().join("policies/rbac.tar.gz");
    let site = Site::new().uids_from(61_700).class("web", "").tenant_of("acme", "web", &["gate"], "");
    let out = site.bundle("acme", "gate");
    good(&build(text(&bundle), text(&out), &["--entrypoint", "app/rbac/allow", "--result", "boolean"]));
    sign_bundle(&out, &site.key);

    let inspected: Value = serde_json::from_str(&good(&["inspect", text(&out), "--json"])).unwrap();
    let rego = &inspected["config"]["rego"];
    assert_eq!(rego["abi"], "1.3");
    assert_eq!(rego["entrypoint"], "app/rbac/allow");
    assert_eq!(rego["result"], "boolean");
    assert_eq!(rego["builtins"], json!([]));
    assert!(rego["data"].as_str().unwrap().starts_with("sha256:"));
    let address = |name: &str| rego[name].as_u64().unwrap();
    assert!(0 < address("data_address") && address("data_address") < address("heap_base"), "{rego}");
    let shown = good(&["inspect", text(&out)]);
    assert!(shown.contains("rego        rule app/rbac/allow, result boolean\n"), "{shown}");
    assert!(shown.contains(" of OPA, ABI 1.3\n"), "{shown}");

    let service = site.start();
    for (user, allowed) in [("alice", true), ("eve", true), ("mallory", false)] {
        let input = json!({"user": user, "action": "read", "type": "dog"}).to_string();
        let outcome = service.ask("acme", "gate", input.as_bytes()).outcome;
        let expected = if allowed { Outcome::Allow } else { Outcome::Deny { reason: "denied".into() } };
        assert_eq!(outcome, expected, "{user}");
    }
}

#[test]
fn a_folder_with_rego_needs_an_opa_and_an_entrypoint() {
    let desk = tempfile::tempdir().unwrap();
    let policy = desk.path().join("policy");
    std::fs::create_dir(&policy).unwrap();
    std::fs::copy(folder().join("policies/rbac.rego"), policy.join("rbac.rego")).unwrap();
    std::fs::copy(folder().join("policies/rbac.json"), policy.join("data.json")).unwrap();
    let out = desk.path().join("gate.tar");
    let said = bad(&build(text(&policy), text(&out), &[]), &[]);
    assert!(said.contains("nothing says which rule decides; say `entrypoint = \"package/rule\"`"), "{said}");

    std::fs::write(policy.join("policy.toml"), "entrypoint = \"app/rbac/allow\"\nresult = \"boolean\"\n")
        .unwrap();
    let nowhere = [("PATH", text(desk.path()))];
    let said = bad(&build(text(&policy), text(&out), &[]), &nowhere);
    assert!(said.contains("there is no \"opa\""), "{said}");
    assert!(said.contains("install `opa`") && said.contains("OPA_BIN"), "{said}");
    assert!(said.contains("opa build -t wasm -e app/rbac/allow"), "{said}");
    let said = bad(&build(text(&policy), text(&out), &[]), &[("OPA_BIN", "/bin/false")]);
    assert!(said.contains("opa does not compile it"), "{said}");
    assert!(!out.exists());

    let Some(opa) = std::env::var_os("OPA_BIN") else {
        println!("OPA_BIN is not set: nothing is compiled");
        return;
    };
    let output = portcullis(&build(text(&policy), text(&out), &[]), &[("OPA_BIN", opa.to_str().unwrap())]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(good(&["inspect", text(&out)]).contains("rule app/rbac/allow, result boolean"));
}

#[test]
fn a_manifest_says_nothing_that_it_does_not_mean() {
    let desk = tempfile::tempdir().unwrap();
    let (manifest, out) = (desk.path().join("policy.toml"), desk.path().join("gate.tar"));
    let bundle = folder().join("policies/rbac.tar.gz");
    let with = |text_of: &str| {
        std::fs::write(&manifest, text_of).unwrap();
        build(text(&bundle), text(&out), &["--manifest", text(&manifest)])
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for (wrong, why) in [
        ("entry = \"x\"", "unknown field `entry`"),
        ("result = \"maybe\"", "unknown variant `maybe`"),
        ("entrypoint = \"app/rbac/deny\"", "entrypoint \"app/rbac/deny\" is not in the module"),
        ("document = \"nowhere.json\"", "nowhere.json"),
    ] {
        let arguments = with(wrong);
        let said = bad(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        assert!(said.contains(why), "{wrong}: {said}");
    }
    let arguments = with("entrypoint = \"app/rbac/allow\"\nresult = \"boolean\"");
    good(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    // A component is no policy in Rego.
    let component = desk.path().join("hash.wasm");
    std::fs::write(&component, crate::support::component("hash")).unwrap();
    let said = bad(&build(text(&component), text(&out), &["--entrypoint", "x"]), &[]);
    assert!(said.contains("an entrypoint is for policies in Rego"), "{said}");
    let data = folder().join("policies/rbac.json");
    let said = bad(&build(text(&component), text(&out), &["--document", text(&data)]), &[]);
    assert!(said.contains("it does not export \"prepare\""), "{said}");
}
