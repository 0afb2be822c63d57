//! What was found, as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Serialize;

use super::process::Subject;
use super::view::Unseen;
use crate::cli::terminal::{paragraph, printable, table};
use crate::sandbox::Mismatch;
use crate::wire::control::{Isolation, ProcessState};

/// What a check is about: the table's columns, and the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Area {
    Processes,
    Threads,
    Descriptors,
    Memory,
    Limits,
    Surroundings,
    Files,
}

impl Area {
    fn name(self) -> &'static str {
        match self {
            Self::Processes => "processes",
            Self::Threads => "threads",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Limits => "limits",
            Self::Surroundings => "surroundings",
            Self::Files => "files",
        }
    }
}

/// How one check came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(super) enum Verdict {
    AsDeclared {
        found: String,
    },
    Different {
        found: String,
        expected: String,
    },
    /// `to_anybody`: no user of this machine could see it.
    NotVisible {
        why: String,
        to_anybody: bool,
    },
}

impl Verdict {
    /// Declared if both read the same.
    pub(super) fn compare(found: impl Display, expected: impl Display) -> Self {
        let (found, expected) = (found.to_string(), expected.to_string());
        if found == expected { Self::ok(&found) } else { Self::different(&found, &expected) }
    }

    pub(super) fn ok(found: &str) -> Self {
        Self::AsDeclared { found: printable(found) }
    }

    pub(super) fn different(found: &str, expected: &str) -> Self {
        Self::Different { found: printable(found), expected: printable(expected) }
    }

    /// Hidden from this user; another might see it.
    pub(super) fn hidden(why: impl Into<String>) -> Self {
        Self::NotVisible { why: why.into(), to_anybody: false }
    }

    /// The kernel shows it to nobody.
    pub(super) fn invisible(why: impl Into<String>) -> Self {
        Self::NotVisible { why: why.into(), to_anybody: true }
    }

    /// Nothing to compare `expected` with.
    pub(super) fn unseen(unseen: &Unseen, expected: &str) -> Self {
        match unseen {
            Unseen::Hidden(why) => Self::hidden(why.clone()),
            Unseen::Gone => Self::different("it is gone", expected),
            Unseen::Odd(why) => Self::different(why, expected),
        }
    }

    pub(super) fn of(checked: Result<(), Mismatch>, as_declared: &str) -> Self {
        match checked {
            Ok(()) => Self::ok(as_declared),
            Err(mismatch) => {
                Self::different(&format!("{} {}", mismatch.field, mismatch.found), &mismatch.expected)
            }
        }
    }
}

/// One check and how it came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// "worker retail", or "service" for what no process of it is about.
    pub(super) subject: String,
    pub(super) pid: Option<i32>,
    pub(super) area: Area,
    pub(super) check: String,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

/// Findings as they come, all of one subject.
#[derive(Debug)]
pub(super) struct Findings {
    subject: String,
    pid: Option<i32>,
    pub(super) list: Vec<Finding>,
}

impl Findings {
    pub(super) fn of(subject: &Subject) -> Self {
        Self { subject: subject.title(), pid: Some(subject.pid), list: Vec::new() }
    }

    pub(super) fn of_service() -> Self {
        Self { subject: "service".to_owned(), pid: None, list: Vec::new() }
    }

    pub(super) fn add(&mut self, area: Area, check: impl Into<String>, verdict: Verdict) {
        // Some have names in them that processes chose.
        let (subject, pid, check) = (self.subject.clone(), self.pid, printable(&check.into()));
        self.list.push(Finding { subject, pid, area, check, verdict });
    }

    /// Compares what was seen, or says why it was not.
    pub(super) fn seen<T: Display>(
        &mut self,
        area: Area,
        check: impl Into<String>,
        seen: Result<T, Unseen>,
        expected: impl Display,
    ) {
        let verdict = match seen {
            Ok(found) => Verdict::compare(found, expected),
            Err(unseen) => Verdict::unseen(&unseen, &expected.to_string()),
        };
        self.add(area, check, verdict);
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: String,
    pub(super) supervisor_pid: i32,
    pub(super) isolation: Isolation,
    /// Who looked: what is visible depends on it.
    pub(super) seen_as_uid: u32,
    pub(super) processes: Vec<Row>,
    pub(super) summary: Summary,
    pub(super) findings: Vec<Finding>,
}

/// One process of the service.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) subject: String,
    pub(super) generation: u64,
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) state: ProcessState,
}

/// How many of each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub(super) checks: usize,
    pub(super) as_declared: usize,
    pub(super) different: usize,
    pub(super) not_visible: usize,
    /// Of those, what no user could see.
    pub(super) not_visible_to_anybody: usize,
}

impl Summary {
    pub(super) fn of<'f>(findings: impl IntoIterator<Item = &'f Finding>) -> Self {
        let mut summary = Self::default();
        for finding in findings {
            summary.checks += 1;
            match finding.verdict {
                Verdict::AsDeclared { .. } => summary.as_declared += 1,
                Verdict::Different { .. } => summary.different += 1,
                Verdict::NotVisible { to_anybody, .. } => {
                    summary.not_visible += 1;
                    summary.not_visible_to_anybody += usize::from(to_anybody);
                }
            }
        }
        summary
    }

    /// A cell of the table. What nobody can see is no column's news; it is said below.
    fn cell(self) -> String {
        let hidden = self.not_visible - self.not_visible_to_anybody;
        match (self.different, hidden, self.as_declared) {
            (0, 0, 0) => "-".to_owned(),
            (0, 0, ok) => format!("{ok} ok"),
            (0, hidden, 0) => format!("{hidden} hidden"),
            (0, hidden, ok) => format!("{hidden}/{} hidden", hidden + ok),
            (different, ..) => format!("{different} DIFFER"),
        }
    }
}

impl Report {
    /// For a terminal of 80 columns.
    pub(super) fn for_people(&self) -> String {
        let mut text = format!(
            "portcullis {}, supervisor {}, seen as uid {}\n\n",
            printable(&self.version),
            self.supervisor_pid,
            self.seen_as_uid
        );
        text += &self.table();
        text += &self.differences();
        text += &self.not_visible();
        let Summary { checks, as_declared, different, not_visible, .. } = self.summary;
        text += &format!(
            "\n{checks} checks: {as_declared} as declared, {different} different, {not_visible} not visible\n"
        );
        text
    }

    fn table(&self) -> String {
        let cell = |pid: Option<i32>, area: Area| {
            let of_it = |finding: &&Finding| finding.pid == pid && finding.area == area;
            Summary::of(self.findings.iter().filter(of_it)).cell()
        };
        let columns = [Area::Threads, Area::Descriptors, Area::Memory, Area::Limits, Area::Surroundings];
        let rows: Vec<[String; 7]> = self
            .processes
            .iter()
            .map(|row| {
                let [threads, descriptors, memory, limits, around] =
                    columns.map(|area| cell(Some(row.pid), area));
                [row.subject.clone(), row.pid.to_string(), threads, descriptors, memory, limits, around]
            })
            .collect();
        let head = ["PROCESS", "PID", "THREADS", "OPEN", "MEMORY", "LIMITS", "AROUND"];
        let mut text = table(0, head, &rows);
        text += &paragraph("which processes there are:", &cell(None, Area::Processes));
        text += &paragraph("sockets, caches, configuration, programs:", &cell(None, Area::Files));
        text
    }

    fn differences(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            if let Verdict::Different { found, expected } = &finding.verdict {
                let who = match finding.pid {
                    Some(pid) => format!("{} ({pid}), {}", finding.subject, finding.area.name()),
                    None => finding.area.name().to_owned(),
                };
                text += &paragraph(
                    &format!("{who}:"),
                    &format!("{}: {found}, expected {expected}", finding.check),
                );
            }
        }
        if text.is_empty() { text } else { format!("\ndifferent\n{text}") }
    }

    /// One line for each reason, with how often it was met.
    fn not_visible(&self) -> String {
        let mut reasons: BTreeMap<(Area, String), usize> = BTreeMap::new();
        for finding in &self.findings {
            if let Verdict::NotVisible { why, .. } = &finding.verdict {
                let why = match finding.pid {
                    // The same of every process: one line for all of them.
                    Some(pid) => same_for_all(why, pid),
                    None => why.clone(),
                };
                *reasons.entry((finding.area, why)).or_default() += 1;
            }
        }
        if reasons.is_empty() {
            return String::new();
        }
        let lines = reasons
            .into_iter()
            .map(|((area, why), times)| paragraph(&format!("{} ({times}):", area.name()), &why));
        format!("\nnot visible\n{}", lines.collect::<String>())
    }
}

/// Without the number, and without the kind of a namespace.
fn same_for_all(why: &str, pid: i32) -> String {
    let why = why.replace(&format!("/proc/{pid}/"), "/proc/<pid>/");
    match why.split_once("/ns/").and_then(|(before, after)| Some((before, after.split_once(':')?.1))) {
        Some((before, after)) => format!("{before}/ns/*:{after}"),
        None => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(pid: Option<i32>, area: Area, verdict: Verdict) -> Finding {
        Finding { subject: "worker retail".to_owned(), pid, area, check: "core".to_owned(), verdict }
    }

    fn report(findings: Vec<Finding>) -> Report {
        let subject = format!("worker {}", "x".repeat(64));
        Report {
            version: "0.1.0".to_owned(),
            supervisor_pid: 4_194_304,
            isolation: Isolation::DistinctUids,
            seen_as_uid: 0,
            processes: vec![Row {
                subject,
                generation: 1,
                pid: 4_194_303,
                uid: 61001,
                state: ProcessState::Serving,
            }],
            summary: Summary::of(&findings),
            findings,
        }
    }

    #[test]
    fn differences_are_never_hidden_by_what_is_as_declared_and_lines_fit() {
        let pid = Some(4_194_303);
        let report = report(vec![
            finding(pid, Area::Limits, Verdict::compare(0, 0)),
            finding(pid, Area::Limits, Verdict::compare("1", "0")),
            finding(
                pid,
                Area::Memory,
                Verdict::hidden("/proc/4194303/smaps: Permission denied (os error 13)"),
            ),
            finding(
                pid,
                Area::Memory,
                Verdict::hidden("/proc/4194303/smaps: Permission denied (os error 13)"),
            ),
            finding(pid, Area::Threads, Verdict::compare(0, 0)),
            finding(pid, Area::Threads, Verdict::invisible("Landlock")),
            finding(pid, Area::Surroundings, Verdict::compare(0, 0)),
            finding(pid, Area::Surroundings, Verdict::hidden("cwd")),
        ]);
        let text = report.for_people();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "1 DIFFER",
            "2 hidden",
            "1/2 hidden",
            "core: 1, expected 0",
            "memory (2): /proc/<pid>/smaps: Permission denied",
            "8 checks: 3 as declared, 1 different, 4 not visible",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert_eq!(report.summary.not_visible_to_anybody, 1);
    }

    #[test]
    fn what_processes_say_cannot_drive_the_terminal() {
        let report =
            report(vec![finding(None, Area::Processes, Verdict::different("\u{1b}[2J", "nothing\n"))]);
        let text = report.for_people();
        assert!(text.contains("\\u{1b}[2J") && !text.contains('\u{1b}'), "{text}");
        let mut findings = Findings::of_service();
        findings.add(Area::Memory, "memfd:\u{1b}[2J", Verdict::hidden("x"));
        assert_eq!(findings.list[0].check, "memfd:\\u{1b}[2J");
    }

    #[test]
    fn gone_and_odd_are_differences_and_hidden_is_not_visible() {
        let verdict = |unseen| Verdict::unseen(&unseen, "x");
        assert!(matches!(verdict(Unseen::Gone), Verdict::Different { .. }));
        assert!(matches!(verdict(Unseen::Odd("?".to_owned())), Verdict::Different { .. }));
        assert!(matches!(
            verdict(Unseen::Hidden("?".to_owned())),
            Verdict::NotVisible { to_anybody: false, .. }
        ));
    }

    #[test]
    fn machines_get_one_flat_object_for_each_finding() {
        let json = serde_json::to_value(finding(Some(7), Area::Limits, Verdict::compare(1, 0))).unwrap();
        let expected = serde_json::json!({
            "subject": "worker retail", "pid": 7, "area": "limits", "check": "core",
            "verdict": "different", "found": "1", "expected": "0"
        });
        assert_eq!(json, expected);
    }
}
