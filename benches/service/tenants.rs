//! Very many tenants in one class, each with a policy of its own.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use portcullis::client::{Deadline, Question};
use portcullis::decision::Outcome;

use crate::Plan;
use crate::load::percentile;
use crate::report::{Reach, Row, Spread};
use crate::support::{PATIENCE, Service, Site, draft, policy, tenant, write_signed};

const POLICY: &str = "gate";
/// One of about 20 KB of machine code; it denies what is no HTTP request, which is a decision like another.
const SOURCE: &str = "since-0.1";
const DEADLINE: Deadline = Deadline::Budget { us: 1_000_000 };

/// Open files that the worker needs at least, one for each policy, and that the service would like.
const OPEN_FILES: [u64; 2] = [10_600, 65_536];

pub(super) fn measure(plan: &Plan) -> Vec<Row> {
    let count = plan.tenants;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let [least, wanted] = OPEN_FILES;
    // Root may raise it, unless it lacks CAP_SYS_RESOURCE.
    if setrlimit(Resource::RLIMIT_NOFILE, wanted.max(hard), wanted.max(hard)).is_err() {
        assert!(
            hard >= least,
            "the limit of open files is {hard}, and {least} are needed; ulimit -Hn {wanted}"
        );
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    let names: Vec<String> = (0..count).map(name).collect();
    let mut site = Site::new().class("one", "");
    let mut code = 0;
    for (number, name) in names.iter().enumerate() {
        let mut draft = draft(SOURCE, name, POLICY, 1);
        // Machine code that is nobody else's: a loader looks at no byte behind the last section.
        draft.compiled[0].cwasm.extend_from_slice(&(number as u64).to_le_bytes());
        code += draft.compiled[0].cwasm.len();
        write_signed(draft, &site.bundle(name, POLICY), &site.key);
        site = site.tenant_of(name, "one", &[POLICY], "");
    }
    let before = shmem_mb();
    let began = Instant::now();
    // Every one of them is looked at by a builder the first time.
    let service = site.start_within(Duration::from_secs(1800));
    let first = began.elapsed();
    let again = Instant::now();
    let service = service.into_site().start_within(PATIENCE);
    let again = again.elapsed();
    let resident = resident(&service, before);
    let hot = latencies(&service, plan, |_| 0);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let uniform = latencies(&service, plan, |_| random.below(count));
    let p50 = |of: &[f64]| percentile(of, 50.0);
    let of =
        format!("{count} tenants in one class, a policy of {:.0} KB each", code as f64 / count as f64 / 1e3);
    vec![
        Row::new(
            "tenants/memory",
            format!("resident memory of the service with {of}"),
            "MB",
            one(resident.0),
        )
        .reach(Reach::AtMost(600.0))
        .detail(format!(
            "{}; first start {:.0} s, the next {:.1} s",
            resident.1,
            first.as_secs_f64(),
            again.as_secs_f64()
        )),
        Row::new(
            "tenants/uniform",
            format!("p50 of a decision of any of {of}, against always the same one"),
            "x",
            one(p50(&uniform) / p50(&hot)),
        )
        .reach(Reach::AtMost(6.0))
        .detail(format!(
            "p50 {:.0} against {:.0} us, p99 {:.0} against {:.0}; {} questions each",
            p50(&uniform),
            p50(&hot),
            percentile(&uniform, 99.0),
            percentile(&hot, 99.0),
            hot.len()
        )),
    ]
}

/// Short: what one connection may ask for is told in one message, and all of them have to fit.
fn name(number: usize) -> String {
    format!("{number:04}")
}

fn one(value: f64) -> Spread {
    Spread { low: value, median: value, high: value }
}

/// Of all processes of the service, megabytes: what they share counts once. Memory files count whether mapped or not: all
/// there are now that were not there before.
fn resident(service: &Service, before: f64) -> (f64, String) {
    let status = service.status();
    let (mut own, mut detail) = (0.0, Vec::new());
    for process in &status.processes.processes {
        let path = format!("/proc/{}/smaps_rollup", process.pid);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}; start as root"));
        let field = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1e3
        };
        let of_this = field("Pss:") - field("Pss_Shmem:");
        own += of_this;
        detail.push(format!("{} {of_this:.0}", process.role));
    }
    let memory_files = shmem_mb() - before;
    let detail = format!("{memory_files:.0} MB in memory files, {own:.0} MB else: {}", detail.join(", "));
    (own + memory_files, detail)
}

fn shmem_mb() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Shmem:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1e3
}

/// One question at a time on one connection, microseconds, ascending.
fn latencies(service: &Service, plan: &Plan, mut which: impl FnMut(usize) -> usize) -> Vec<f64> {
    let mut connection = service.connect(&name(0));
    let question = Question::opaque("", b"");
    let policy = policy(POLICY);
    let until = Instant::now() + plan.round * 4;
    let mut latencies = Vec::new();
    for turn in 0.. {
        if Instant::now() >= until {
            break;
        }
        let tenant = tenant(&name(which(turn)));
        let asked = Instant::now();
        connection.send(&tenant, &policy, DEADLINE, question.input()).unwrap();
        connection.flush().unwrap();
        let (_, decision) = connection.receive().unwrap();
        latencies.push(asked.elapsed().as_secs_f64() * 1e6);
        assert!(!matches!(decision.outcome, Outcome::Refused(_)), "{decision:?}");
    }
    latencies.sort_by(f64::total_cmp);
    latencies
}

/// xorshift
struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % count as u64) as usize
    }
}
