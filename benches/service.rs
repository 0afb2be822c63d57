//! What a decision costs and how long it takes, as ratios within one run: absolute figures drift with the machine, so
//! every figure of the service stands beside what the same machine does at the same time without it.
//!
//! `cargo bench --bench service [-- --quick] [-- --json FILE] [-- only=NAME,NAME]`; `docs/benchmarks.md` says how to
//! read it. Measured is the real service, started as `tests/` start it: a supervisor with all its processes, sealed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that cannot measure fails by panicking, and it writes to a terminal"
)]

#[path = "service/activation.rs"]
mod activation;
#[path = "service/bare.rs"]
mod bare;
#[path = "service/cost.rs"]
mod cost;
#[path = "service/echo.rs"]
mod echo;
#[path = "service/gateway.rs"]
mod gateway;
#[path = "service/hostile.rs"]
mod hostile;
#[path = "service/latency.rs"]
mod latency;
#[path = "service/life.rs"]
mod life;
#[path = "service/load.rs"]
mod load;
#[path = "service/loading.rs"]
mod loading;
#[path = "service/many.rs"]
mod many;
#[path = "service/memory.rs"]
mod memory;
#[path = "service/noise.rs"]
mod noise;
#[path = "service/opa.rs"]
mod opa;
#[path = "service/pipelined.rs"]
mod pipelined;
#[path = "service/rego.rs"]
mod rego;
#[path = "service/report.rs"]
mod report;
#[path = "service/revocation.rs"]
mod revocation;
#[path = "service/share.rs"]
mod share;
#[path = "service/subject.rs"]
mod subject;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "service/tenants.rs"]
mod tenants;
#[path = "service/typed.rs"]
mod typed;
#[path = "service/wire.rs"]
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use report::{Report, Row};

/// How much is measured.
#[derive(Debug, Clone)]
struct Plan {
    /// Each round measures every side once, in turn, so that all of them meet the same disturbances.
    rounds: usize,
    /// How long one side is measured in one round.
    round: Duration,
    starts: usize,
    reloads: usize,
    idle_connections: usize,
    /// How often one policy is loaded.
    loads: usize,
    /// How many policies there are where there are many, and how often the service starts with them.
    many: (usize, usize),
    revocations: usize,
    activations: usize,
    /// How many tenants there are where there are many.
    tenants: usize,
}

impl Plan {
    fn full() -> Self {
        Self {
            rounds: 7,
            round: Duration::from_secs(1),
            starts: 15,
            reloads: 20,
            idle_connections: 500,
            loads: 2000,
            many: (1000, 7),
            revocations: 40,
            activations: 15,
            tenants: 10_000,
        }
    }

    /// Enough to see that it works; not enough to quote.
    fn quick() -> Self {
        Self {
            rounds: 3,
            round: Duration::from_millis(250),
            starts: 3,
            reloads: 3,
            idle_connections: 100,
            loads: 50,
            many: (50, 2),
            revocations: 4,
            activations: 3,
            tenants: 50,
        }
    }
}

type Measure = fn(&Plan) -> Vec<Row>;

/// What can be measured, in the order of the table.
const PARTS: [(&str, Measure); 21] = [
    ("cpu", cost::per_decision),
    ("latency", latency::one_connection),
    ("pipelined", pipelined::per_second),
    ("deadline", hostile::deadline),
    ("neighbour", hostile::neighbour),
    ("start", life::start),
    ("reload", life::reload),
    ("load", loading::one_policy),
    ("many", many::ready),
    ("revocation", revocation::takes_effect),
    ("activation", activation::under_load),
    ("stack-zeroing", cost::stack_zeroing),
    ("memory", memory::idle_connection),
    ("opa", opa::compared),
    ("typed", typed::compared),
    ("rego", rego::instances),
    ("rego-opa", rego::compared),
    ("noise", noise::measure),
    ("share", share::measure),
    ("tenants", tenants::measure),
    ("gateway", gateway::compared),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == echo::ROLE) {
        return echo::serve(&arguments);
    }
    let options = Options::parse(&arguments).unwrap_or_else(|why| {
        eprintln!("{why}\nusage: cargo bench --bench service -- [--quick] [--json FILE] [only=NAME,NAME]");
        eprintln!("names: {}", PARTS.map(|(name, _)| name).join(", "));
        std::process::exit(64);
    });
    let mut report = Report::new(options.quick);
    let plan = if options.quick { Plan::quick() } else { Plan::full() };
    for (name, measure) in PARTS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("measuring: {name}");
        match catch_unwind(AssertUnwindSafe(|| measure(&plan))) {
            Ok(rows) => report.rows.extend(rows),
            Err(_) => report.rows.push(Row::failed(name)),
        }
    }
    print!("{}", report.markdown());
    if let Some(path) = options.json {
        std::fs::write(&path, report.json()).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
    }
    // A figure that is missed is a finding; a part that could not be measured is an error.
    std::process::exit(i32::from(report.rows.iter().any(Row::is_failure)));
}

#[derive(Debug, Default)]
struct Options {
    quick: bool,
    json: Option<PathBuf>,
    only: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // What cargo says to every benchmark.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--json" => options.json = Some(arguments.next().ok_or("--json: which file?")?.into()),
                other => match other.strip_prefix("only=") {
                    Some(names) => options.only.extend(names.split(',').map(str::to_owned)),
                    None => return Err(format!("unknown argument {other:?}")),
                },
            }
        }
        match options.only.iter().find(|only| !PARTS.iter().any(|(name, _)| name == only)) {
            Some(unknown) => Err(format!("only={unknown}: no such part")),
            None => Ok(options),
        }
    }
}
