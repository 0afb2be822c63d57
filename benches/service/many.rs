//! A service with very many policies, each with code of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use portcullis::artifact::Limits;
use portcullis::bundle::Draft;
use portcullis::compile::{self, Terms};

use crate::Plan;
use crate::life::first_decision;
use crate::report::{Reach, Row, Spread};
use crate::subject::TENANT;
use crate::support::{Site, draft, policy, tenant, write_signed};

/// The first start has each policy looked at by a builder.
const PATIENCE: Duration = Duration::from_secs(600);
/// What they are made from, in turn; the first one allows.
const COMPONENTS: [&str; 10] = [
    "hash",
    "jwt-gate",
    "ip-allowlist",
    "rate-class",
    "hostile/selective",
    "hostile/canary",
    "hostile/trap",
    "hostile/grow",
    "hostile/div-zero",
    "hostile/recurse",
];

/// From before the supervisor is started until the last of its policies has decided. All of them are active already, as after
/// any start but the first.
pub(super) fn ready(plan: &Plan) -> Vec<Row> {
    let (count, _) = plan.many;
    let start =
        format!("start of the service with {count} policies, all active before, to a decision of the last");
    vec![
        row(plan, "many", &start, signed_code),
        row(
            plan,
            "many/compiled",
            &format!("{start}; each compiled on this host, the cache warm"),
            source_only,
        ),
    ]
}

fn row(plan: &Plan, name: &str, what: &str, draft: fn(&str, usize) -> Draft) -> Row {
    let (count, starts) = plan.many;
    let names: Vec<String> = (0..count).map(|number| format!("p{number:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let site = Site::new().class("one", "").tenant_of(TENANT, "one", &names, "");
    for (number, name) in names.iter().rev().enumerate() {
        write_signed(draft(name, number), &site.bundle(TENANT, name), &site.key);
    }
    site.make_state();
    fs::write(site.path("portcullis.toml"), site.config()).unwrap();
    let last = [*names.last().unwrap()];
    let first = first_decision(&site, &last, PATIENCE);
    let all = format!("serving={count} refused=0 rebuilt=0 ");
    let times = (0..starts).map(|_| {
        let time = first_decision(&site, &last, PATIENCE).as_secs_f64();
        let log = fs::read_to_string(site.path("log")).unwrap();
        assert!(log.lines().any(|line| line.contains("surveyed") && line.contains(&all)), "{log}");
        time
    });
    let times = Spread::of(times);
    let detail = format!(
        "{starts} starts; {:.0} MiB of bundles are kept; the first start, with a builder for each, {:.0} s",
        bytes_below(&site.path("state/bundles")) as f64 / f64::from(1 << 20),
        first.as_secs_f64(),
    );
    Row::new(name, what, "s", times).reach(Reach::AtMost(1.5)).detail(detail)
}

/// With machine code that is nobody else's: a loader looks at no byte behind the last section.
fn signed_code(name: &str, number: usize) -> Draft {
    let mut draft = draft(COMPONENTS[number % COMPONENTS.len()], TENANT, name, 1);
    draft.compiled[0].cwasm.extend_from_slice(&(number as u64).to_le_bytes());
    draft
}

/// Without machine code, from a source that is nobody else's: one more string among its data.
fn source_only(name: &str, number: usize) -> Draft {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/hostile/canary.wat");
    let text = fs::read_to_string(path).unwrap();
    let (head, tail) = text.split_once("  (func").unwrap();
    let text = format!("{head}  (data (i32.const 3000) \"{number}\")\n  (func{tail}");
    let source = wat::parse_str(text).unwrap();
    let built = compile::build(&source, Terms::default(), &[]).unwrap();
    built.draft(source, tenant(TENANT), policy(name), 1, Limits::default())
}

fn bytes_below(folder: &Path) -> u64 {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}
