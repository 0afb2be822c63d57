//! What a connection costs that is open and says nothing.

use crate::Plan;
use crate::report::{Row, Spread};
use crate::subject::{TENANT, hashing, role};
use crate::wire::Wire;

/// Anonymous memory of worker and frontend, before and after many connections were opened and each decided once. The
/// kernel's part of a socket is not in it.
pub(super) fn idle_connection(plan: &Plan) -> Vec<Row> {
    let service = hashing("");
    let pids = [role(&service, "worker"), role(&service, "frontend")].concat();
    // What the first connections bring about is not theirs.
    let warm: Vec<Wire> = (0..8).map(|_| Wire::to_service(&service, TENANT)).collect();
    let before = anonymous(&pids);
    let idle: Vec<Wire> = (0..plan.idle_connections).map(|_| Wire::to_service(&service, TENANT)).collect();
    let after = anonymous(&pids);
    let each = |pid: usize| (after[pid] as f64 - before[pid] as f64) / idle.len() as f64;
    let total: f64 = (0..pids.len()).map(each).sum();
    let detail = format!(
        "worker {:.2}, frontend {:.2}; {} connections; worker without them {:.1} MiB",
        each(0),
        each(1),
        idle.len(),
        before[0] as f64 / 1024.0
    );
    drop(warm);
    let spread = Spread { low: total, median: total, high: total };
    vec![Row::new("memory", "memory of an idle connection, all processes", "KiB", spread).detail(detail)]
}

/// Kilobytes, for each process.
fn anonymous(pids: &[i32]) -> Vec<u64> {
    let of = |pid: &i32| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    pids.iter().map(of).collect()
}
