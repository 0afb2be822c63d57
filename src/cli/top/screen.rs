//! Two samples as a picture of 80 columns: nothing else goes in, and nothing but text comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::sample::{Buckets, ClassSample, Sample, TenantSample};
use crate::cli::terminal::printable;

/// Columns of a terminal that nobody has widened.
const WIDTH: usize = 80;
/// Classes that have a line.
const CLASSES: usize = 5;
/// Kinds of refusal that have a name in the last line.
const KINDS: usize = 6;

/// All tenants without series of their own, of whatever class.
const OTHER: &str = "other";

/// What the configuration gives a tenant.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) class: String,
    pub(super) weight: u32,
}

/// What is shown.
#[derive(Debug)]
pub(super) struct View<'v> {
    /// Tenants at most.
    pub(super) rows: usize,
    pub(super) expected: &'v BTreeMap<String, Expected>,
}

/// What a tenant did between two samples, by the second.
#[derive(Debug)]
struct Row<'s> {
    name: &'s str,
    class: Option<&'s str>,
    weight: Option<u32>,
    decisions: f64,
    refused: BTreeMap<&'s str, f64>,
    /// Processors.
    cpu: f64,
    concurrent: f64,
    /// Microseconds.
    p99: Option<f64>,
}

impl View<'_> {
    pub(super) fn screen(&self, time: &str, passed: Duration, before: &Sample, now: &Sample) -> String {
        let seconds = passed.as_secs_f64().max(1e-3);
        let nothing = TenantSample::default();
        let mut rows: Vec<Row<'_>> = now
            .tenants
            .iter()
            .map(|(name, of)| self.row(name, seconds, before.tenants.get(name).unwrap_or(&nothing), of))
            .collect();
        // Busy ones first; the same order where nobody is.
        rows.sort_by(|a, b| {
            b.cpu.total_cmp(&a.cpu).then(b.decisions.total_cmp(&a.decisions)).then(a.name.cmp(b.name))
        });
        let mut lines = vec![header(time, passed, &rows)];
        lines.extend(now.classes.iter().take(CLASSES).map(|(name, class)| of_class(name, class)));
        if now.classes.len() > CLASSES {
            lines.push(format!("and {} more classes", now.classes.len().saturating_sub(CLASSES)));
        }
        lines.push(String::new());
        lines.push(format!(
            "{:<16} {:<8} {:>6} {:>6} {:>5} {:>5} {:>4} {:>5}  {}",
            "TENANT", "CLASS", "DEC/S", "P99", "CPU", "SHARE", "DUE", "CONC", "REFUSED/S"
        ));
        lines.extend(rows.iter().take(self.rows).map(|row| line(row, &rows)));
        if rows.len() > self.rows {
            lines.push(format!("and {} more", rows.len().saturating_sub(self.rows)));
        }
        if rows.iter().any(|row| row.name == OTHER) {
            lines.push(format!(
                "SHARE and DUE are of tenants with series of their own; {OTHER} is all the rest"
            ));
        }
        lines.push(String::new());
        lines.push(refusals(&rows));
        lines.iter().map(|line| format!("{}\n", cut(line, WIDTH).trim_end())).collect()
    }

    fn row<'s>(
        &'s self,
        name: &'s str,
        seconds: f64,
        before: &TenantSample,
        now: &'s TenantSample,
    ) -> Row<'s> {
        let rates = |before: &BTreeMap<String, f64>, now: &'s BTreeMap<String, f64>| {
            let of = |(kind, count): (&'s String, &f64)| {
                let grown = grown(before.get(kind).copied().unwrap_or(0.0), *count);
                (kind.as_str(), grown / seconds)
            };
            now.iter().map(of).collect::<BTreeMap<&str, f64>>()
        };
        let outcomes = rates(&before.outcomes, &now.outcomes);
        // Which quota says more than that it was one.
        let quotas = rates(&before.quotas, &now.quotas);
        let apart = |kind: &str| !matches!(kind, "allow" | "deny") && (kind != "quota" || quotas.is_empty());
        let refused = outcomes.iter().filter(|(kind, _)| apart(kind)).chain(&quotas);
        let expected = self.expected.get(name);
        Row {
            name,
            class: expected.map(|of| of.class.as_str()),
            weight: expected.map(|of| of.weight),
            decisions: outcomes.values().sum(),
            refused: refused.filter(|(_, rate)| **rate > 0.0).map(|(kind, rate)| (*kind, *rate)).collect(),
            cpu: grown(before.cpu_seconds, now.cpu_seconds) / seconds,
            concurrent: now.concurrent,
            p99: quantile(&before.latency, &now.latency, 0.99),
        }
    }
}

/// A counter that is lower than it was has begun anew.
fn grown(before: f64, now: f64) -> f64 {
    if now >= before { now - before } else { now }
}

/// Where in its bucket it lies is not known: as far as if they lay evenly.
fn quantile(before: &Buckets, now: &Buckets, part: f64) -> Option<f64> {
    let began_anew = before.len() != now.len()
        || before.iter().zip(now).any(|(before, now)| before.0 != now.0 || before.1 > now.1);
    let counts: Vec<(f64, f64)> = if began_anew {
        now.clone()
    } else {
        before.iter().zip(now).map(|(before, now)| (now.0, now.1 - before.1)).collect()
    };
    let all = counts.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let wanted = all * part;
    let (mut start, mut below) = (0.0, 0.0);
    for (end, count) in counts {
        if count >= wanted {
            // Beyond the last end there is only that end to tell.
            return Some(if end.is_infinite() {
                start
            } else {
                start + (end - start) * (wanted - below) / (count - below)
            });
        }
        (start, below) = (end, count);
    }
    None
}

fn header(time: &str, passed: Duration, rows: &[Row<'_>]) -> String {
    let decisions: f64 = rows.iter().map(|row| row.decisions).sum();
    let refused: f64 = rows.iter().flat_map(|row| row.refused.values()).sum();
    let cpu: f64 = rows.iter().map(|row| row.cpu).sum();
    format!(
        "portcullis {time}, over {:.1} s: {} decisions/s, {} refused/s, {cpu:.2} cpus",
        passed.as_secs_f64(),
        count(decisions),
        count(refused)
    )
}

fn of_class(name: &str, class: &ClassSample) -> String {
    let ClassSample { generation, queued, instances, instances_max, connections } = class;
    format!(
        "class {:<12} gen {:<5} queued {:<5} instances {:<9} connections {}",
        cut(&printable(name), 12),
        generation,
        queued,
        format!("{instances}/{instances_max}"),
        connections
    )
}

fn line(row: &Row<'_>, all: &[Row<'_>]) -> String {
    // A class's processor time is divided among those who want any.
    let class: Vec<&Row<'_>> = all.iter().filter(|one| one.class == row.class && one.cpu > 0.0).collect();
    let used: f64 = class.iter().map(|one| one.cpu).sum();
    let weights: f64 = class.iter().filter_map(|one| one.weight).map(f64::from).sum();
    // Whose class is not known has no others to be compared with.
    let share = if used > 0.0 && row.class.is_some() { percent(row.cpu / used) } else { "-".to_owned() };
    let due = match row.weight {
        Some(weight) if row.cpu > 0.0 && weights > 0.0 => percent(f64::from(weight) / weights),
        _ => "-".to_owned(),
    };
    let refused: f64 = row.refused.values().sum();
    let most = row.refused.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(kind, _)| printable(kind));
    format!(
        "{:<16} {:<8} {:>6} {:>6} {:>5.2} {share:>5} {due:>4} {:>5}  {}",
        cut(&printable(row.name), 16),
        cut(&printable(row.class.unwrap_or("-")), 8),
        count(row.decisions),
        row.p99.map_or_else(|| "-".to_owned(), time),
        row.cpu,
        count(row.concurrent),
        most.map_or_else(String::new, |most| format!("{} {most}", count(refused))),
    )
}

fn refusals(rows: &[Row<'_>]) -> String {
    let kinds: BTreeSet<&str> = rows.iter().flat_map(|row| row.refused.keys().copied()).collect();
    let rate = |kind: &str| rows.iter().filter_map(|row| row.refused.get(kind)).sum::<f64>();
    let mut kinds: Vec<(&str, f64)> = kinds.into_iter().map(|kind| (kind, rate(kind))).collect();
    if kinds.is_empty() {
        return "refused/s: nothing".to_owned();
    }
    kinds.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let others: f64 = kinds.iter().skip(KINDS).map(|(_, rate)| rate).sum();
    let mut shown: Vec<String> = kinds
        .iter()
        .take(KINDS)
        .map(|(kind, rate)| format!("{} {}", printable(kind), count(*rate)))
        .collect();
    if others > 0.0 {
        shown.push(format!("others {}", count(others)));
    }
    format!("refused/s: {}", shown.join(", "))
}

/// In four or five characters.
fn count(value: f64) -> String {
    match value {
        value if value >= 999_500.0 => format!("{:.1}M", value / 1e6),
        value if value >= 9_999.5 => format!("{:.1}k", value / 1e3),
        value if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

fn time(microseconds: f64) -> String {
    match microseconds {
        us if us >= 999_500.0 => format!("{:.1}s", us / 1e6),
        us if us >= 99_950.0 => format!("{:.0}ms", us / 1e3),
        us if us >= 999.5 => format!("{:.1}ms", us / 1e3),
        us => format!("{us:.0}us"),
    }
}

fn percent(part: f64) -> String {
    format!("{:.0}%", part * 100.0)
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['~']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = include_str!("fixtures/before.txt");
    const NOW: &str = include_str!("fixtures/now.txt");
    const SCREEN: &str = include_str!("fixtures/screen.txt");

    fn expected() -> BTreeMap<String, Expected> {
        let one =
            |name: &str, class: &str, weight| (name.to_owned(), Expected { class: class.to_owned(), weight });
        [
            one("acme", "one", 5),
            one("globex", "one", 1),
            one("initech", "one", 2),
            one("a-tenant-with-a-name-of-many-letters", "secluded", 1),
        ]
        .into()
    }

    fn screen(rows: usize, before: &str, now: &str) -> String {
        let view = View { rows, expected: &expected() };
        let passed = Duration::from_secs(2);
        view.screen("12:00:02 UTC", passed, &Sample::read(before), &Sample::read(now))
    }

    #[test]
    fn two_samples_make_this_picture() {
        let found = screen(14, BEFORE, NOW);
        assert_eq!(found, SCREEN, "found:\n{found}");
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_and_rows_are_limited() {
        let found = screen(2, BEFORE, NOW);
        assert!(found.lines().all(|line| line.chars().count() <= WIDTH), "{found}");
        assert!(found.contains("\nand 3 more\n"), "{found}");
        let wide = NOW.replace("requests\"", &format!("{}\"", "x".repeat(200)));
        assert!(screen(14, BEFORE, &wide).lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn others_have_no_share_and_classes_are_limited() {
        let busy = "wasm_tenant_cpu_seconds_total{tenant=\"other\"} 1\n";
        let found = screen(14, "", busy);
        let other = found.lines().find(|line| line.starts_with("other ")).unwrap();
        assert!(other.contains(" 0.50 ") && !other.contains('%'), "{found}");
        let classes: String =
            (0..64).map(|number| format!("portcullis_queue_depth{{class=\"c{number}\"}} 1\n")).collect();
        let found = screen(14, "", &classes);
        assert!(found.lines().count() < 24 && found.contains("\nand 59 more classes\n"), "{found}");
    }

    #[test]
    fn a_service_that_began_anew_is_no_negative_rate() {
        let found = screen(14, NOW, BEFORE);
        assert!(!found.contains("-1") && !found.contains("NaN") && !found.contains("inf"), "{found}");
        assert!(screen(14, "", "").contains("0 decisions/s"));
        // What a name does to a terminal it does not do here.
        let lie = NOW.replace("globex", "\u{1b}[2J");
        assert!(!screen(14, "", &lie).contains('\u{1b}'));
    }

    #[test]
    fn a_quantile_lies_in_its_bucket() {
        let zero = vec![(1.0, 0.0), (2.0, 0.0), (4.0, 0.0), (f64::INFINITY, 0.0)];
        let now = vec![(1.0, 0.0), (2.0, 90.0), (4.0, 100.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&zero, &now, 0.9), Some(2.0));
        assert_eq!(quantile(&zero, &now, 0.95), Some(3.0));
        assert_eq!(quantile(&now, &now, 0.99), None, "nothing was decided");
        let beyond = vec![(1.0, 0.0), (2.0, 0.0), (4.0, 0.0), (f64::INFINITY, 5.0)];
        assert_eq!(quantile(&zero, &beyond, 0.99), Some(4.0));
        assert_eq!(quantile(&vec![], &now, 0.9), Some(2.0), "a tenant that was not there before");
    }

    #[test]
    fn numbers_stay_short() {
        let counts = [0.0, 0.5, 9.0, 999.0, 9_999.0, 9_999.6, 123_456.0, 999_600.0, 12_345_678.0];
        assert_eq!(counts.map(count), ["0", "0.5", "9", "999", "9999", "10.0k", "123.5k", "1.0M", "12.3M"]);
        assert_eq!(
            [0.0, 999.0, 999.6, 12_345.0, 123_456.0, 2_500_000.0].map(time),
            ["0us", "999us", "1.0ms", "12.3ms", "123ms", "2.5s"]
        );
    }
}
