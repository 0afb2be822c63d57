//! The table and the JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::subject::cores;

/// All that was measured in one run, and where.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    quick: bool,
    /// Cargo's directory for it: `release` if it is optimised.
    profile: String,
    cores: usize,
    cpu: String,
    kernel: String,
    root: bool,
    /// One-minute load average when it began: what else was going on.
    load_before: f64,
    pub(super) rows: Vec<Row>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) what: String,
    pub(super) unit: &'static str,
    pub(super) reach: Option<Reach>,
    /// What is held against `reach`.
    pub(super) value: f64,
    /// Smallest and largest of the rounds.
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) verdict: Verdict,
    pub(super) detail: String,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reach {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Pass,
    Miss,
    /// Nothing is asked of it.
    Shown,
    /// Could not be measured.
    Failed,
}

/// Smallest, median and largest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Spread {
    pub(super) fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut samples: Vec<f64> = samples.into_iter().collect();
        samples.sort_by(f64::total_cmp);
        let (low, high) = (samples[0], samples[samples.len() - 1]);
        let middle = samples.len() / 2;
        let median = match samples.len() % 2 {
            0 => f64::midpoint(samples[middle - 1], samples[middle]),
            _ => samples[middle],
        };
        Self { low, median, high }
    }
}

pub(super) fn median(samples: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(samples).median
}

impl Row {
    pub(super) fn new(name: &str, what: impl Into<String>, unit: &'static str, spread: Spread) -> Self {
        let Spread { low, median, high } = spread;
        let (name, what) = (name.to_owned(), what.into());
        Self {
            name,
            what,
            unit,
            reach: None,
            value: median,
            low,
            high,
            verdict: Verdict::Shown,
            detail: String::new(),
        }
    }

    /// Judged by this instead of the median of the rounds.
    pub(super) fn judged_by(mut self, value: f64) -> Self {
        self.value = value;
        self
    }

    pub(super) fn reach(mut self, reach: Reach) -> Self {
        let good = match reach {
            Reach::AtMost(most) => self.value <= most,
            Reach::AtLeast(least) => self.value >= least,
        };
        self.reach = Some(reach);
        self.verdict = if good { Verdict::Pass } else { Verdict::Miss };
        self
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Could not be measured.
    pub(super) fn failed(name: &str) -> Self {
        let nothing = Spread { low: f64::NAN, median: f64::NAN, high: f64::NAN };
        Self { verdict: Verdict::Failed, ..Self::new(name, "could not be measured; see above", "", nothing) }
    }

    pub(super) fn is_failure(&self) -> bool {
        self.verdict == Verdict::Failed
    }
}

impl Report {
    pub(super) fn new(quick: bool) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let uname = nix::sys::utsname::uname().unwrap();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            quick,
            profile: profile().unwrap_or_default(),
            cores: cores(),
            cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            root: nix::unistd::geteuid().is_root(),
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            rows: Vec::new(),
        }
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        let identity = if self.root { "distinct UIDs" } else { "one UID" };
        writeln!(
            text,
            "\nportcullis {} · {} · {} cores · Linux {} · {identity} · load average {} before",
            self.version, self.cpu, self.cores, self.kernel, self.load_before
        )
        .unwrap();
        if self.profile != "release" {
            writeln!(text, "\n**Not an optimised build: nothing here is worth quoting.**").unwrap();
        }
        if self.quick {
            writeln!(text, "\n**Quick run: too short to quote.**").unwrap();
        }
        text.push_str(
            "\n| what | reach | measured | smallest to largest | | in detail |\n|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let reach = match row.reach {
                Some(Reach::AtMost(most)) => format!("<= {}", shown(most, row.unit)),
                Some(Reach::AtLeast(least)) => format!(">= {}", shown(least, row.unit)),
                None => String::new(),
            };
            let verdict = match row.verdict {
                Verdict::Pass => "PASS",
                Verdict::Miss => "MISS",
                Verdict::Shown => "",
                Verdict::Failed => "FAILED",
            };
            let (value, low, high) =
                (shown(row.value, row.unit), shown(row.low, row.unit), shown(row.high, row.unit));
            let Row { what, detail, .. } = row;
            writeln!(text, "| {what} | {reach} | {value} | {low} to {high} | {verdict} | {detail} |")
                .unwrap();
        }
        text
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap() + "\n"
    }
}

/// This program is `target/<profile>/deps/service-<hash>`.
fn profile() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    Some(program.parent()?.parent()?.file_name()?.to_str()?.to_owned())
}

/// Three digits that matter.
fn shown(value: f64, unit: &str) -> String {
    if value.is_nan() {
        return "-".to_owned();
    }
    let digits = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}
