//! Printing: JSON for programs, lines for people, colour only on a terminal.

use std::io::{self, IsTerminal};

use super::DemoError;
use super::event::{Answered, Burst, Ending, Event, Keeping, Process, Signed, Started, Summary, Tampered};
use crate::cli::output;
use crate::cli::terminal::{paragraph, printable, table};
use crate::sandbox::privileges::SERVICE_NEEDS;
use crate::wire::control::Isolation;

/// The label and one column for each process: supervisor, spawner, frontend, two workers.
const COLUMNS: usize = 6;

/// Where events go, and how many of their expectations were not met.
#[derive(Debug)]
pub(super) struct Show {
    json: bool,
    colour: bool,
    section: &'static str,
    unexpected: usize,
}

/// What a text looks like on a terminal (SGR parameters).
#[derive(Debug, Clone, Copy)]
enum Ink {
    Heading,
    Quiet,
    Good,
    Denied,
    Refused,
    Alarm,
}

impl Ink {
    fn parameters(self) -> &'static str {
        match self {
            Self::Heading => "1",
            Self::Quiet => "2",
            Self::Good => "32",
            Self::Denied => "33",
            Self::Refused => "35",
            Self::Alarm => "1;31",
        }
    }
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let colour = !json && io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        Self { json, colour, section: "", unexpected: 0 }
    }

    /// How much was not as expected so far.
    pub(super) fn unexpected(&self) -> usize {
        self.unexpected
    }

    /// Prints an event, and what about it was not as expected.
    pub(super) fn event(&mut self, event: &Event) -> Result<(), DemoError> {
        let text = self.compose(event).map_err(DemoError::Print)?;
        output::text(format_args!("{text}")).map_err(DemoError::Print)
    }

    fn compose(&mut self, event: &Event) -> io::Result<String> {
        let unexpected = event.unexpected();
        self.unexpected += unexpected.len();
        if self.json {
            return Ok(serde_json::to_string(event)? + "\n");
        }
        let mut text = String::new();
        let section = section(event);
        if section != self.section {
            self.section = section;
            text += &format!("\n{}\n", self.paint(Ink::Heading, section));
        }
        text += &self.for_people(event);
        for complaint in unexpected {
            text += &self.paint(Ink::Alarm, &format!("    UNEXPECTED: {complaint}"));
            text.push('\n');
        }
        Ok(text)
    }

    fn for_people(&self, event: &Event) -> String {
        match event {
            Event::Start { dir, uid, key_id, .. } => {
                let key = key_id.get(..12).unwrap_or(key_id);
                format!(
                    "  everything lies in {}, made by uid {uid}\n  all is signed with key {key}\n",
                    dir.display()
                )
            }
            Event::Policy(signed) => policy(signed),
            Event::Ready(started) => ready(started),
            Event::Connected { tenant, class, micros } => format!(
                "  {tenant} is in trust class {class}: greeted, handed to its worker, answered in {micros} us\n"
            ),
            Event::Decision(answered) => self.decision(answered),
            Event::Tampered(tampered) => self.tampered(tampered),
            Event::Burst(burst) => self.burst(burst),
            Event::Processes { processes, isolation } => self.processes(processes, *isolation),
            Event::Summary(summary) => self.summary(summary),
            Event::Keeping(keeping) => keep(keeping),
            Event::Stopped { dir } => {
                format!("  the service has stopped in order, {} is removed\n", dir.display())
            }
        }
    }

    fn decision(&self, answered: &Answered) -> String {
        let (word, ink) = match answered.outcome {
            Ending::Allowed => ("allowed", Ink::Good),
            Ending::Denied => ("denied", Ink::Denied),
            Ending::TimedOut => ("timed out", Ink::Refused),
            Ending::Trapped => ("trapped", Ink::Refused),
            Ending::Refused => ("refused", Ink::Refused),
            Ending::NoAnswer => ("no answer", Ink::Alarm),
        };
        let status = answered.status.map_or(String::new(), |status| format!("{status} "));
        let digest = answered.digest.map_or("-".to_owned(), |digest| digest.short());
        let question = self.paint(Ink::Quiet, answered.question);
        let (tenant, policy) = (answered.tenant, answered.policy);
        let micros = format!("{} us", answered.micros);
        let line = self.line(word, ink, (tenant, policy), &digest, &micros);
        format!("  {question}\n{line}  {status}{}\n", printable(&answered.reason))
    }

    fn tampered(&self, tampered: &Tampered) -> String {
        let names = (tampered.tenant, tampered.policy);
        let micros = format!("{} us", tampered.reload_micros);
        let mut text = format!(
            "  {}\n",
            self.paint(
                Ink::Quiet,
                &format!("byte {} of {}/{} changed in the store; reload", tampered.byte, names.0, names.1)
            )
        );
        if let Some(why) = &tampered.refused {
            text += &self.line("refused", Ink::Refused, names, &tampered.stored.short(), &micros);
            text += "  see `portcullis status`:\n";
            text += &paragraph("      ", &printable(why));
        }
        if let Some(serving) = tampered.serving {
            let generation =
                tampered.generation.map_or(String::new(), |number| format!("generation {number}"));
            text += &self.line("serving", Ink::Good, names, &serving.short(), "");
            text += &format!("  last good, {generation}\n");
        }
        text
    }

    /// Outcome, policy, digest and time, in columns.
    fn line(&self, word: &str, ink: Ink, (tenant, policy): (&str, &str), digest: &str, time: &str) -> String {
        let word = self.paint(ink, &format!("{word:<9}"));
        let name = format!("{tenant}/{policy}");
        format!("    {word}  {name:<17}  {digest:<12}  {time:>9}")
    }

    fn burst(&self, burst: &Burst) -> String {
        format!(
            "  {} questions on {} connections in {}.{} s, each asked when the last was answered:\n  \
             {} a second; p50 {}, p99 {} from asking to the answer\n",
            burst.decisions,
            burst.connections,
            burst.micros / 1_000_000,
            burst.micros / 100_000 % 10,
            burst.per_second,
            time(burst.p50_ns),
            time(burst.p99_ns),
        )
    }

    fn processes(&self, processes: &[Process], isolation: Isolation) -> String {
        let head = row("", processes, |process| match &process.class {
            Some(class) => format!("{} {class}", process.role),
            None => process.role.clone(),
        });
        let rows = [
            row("pid", processes, |process| process.pid.to_string()),
            row("UID", processes, |process| process.uid.to_string()),
            row("CapEff", processes, |process| process.cap_eff.clone()),
            row("CapBnd", processes, |process| process.cap_bnd.clone()),
            row("NoNewPrivs", processes, |process| process.no_new_privs.to_string()),
            row("Seccomp", processes, |process| process.seccomp.to_string()),
            row("filters", processes, |process| process.seccomp_filters.to_string()),
            row("threads", processes, |process| process.threads.to_string()),
            row("Landlock", processes, |process| match process.landlock_proven_threads {
                Some(proven) => format!("{proven} of {}", process.threads),
                None => "not visible".to_owned(),
            }),
            row("open files", processes, |process| {
                process.open_files.map_or("not visible".to_owned(), |count| count.to_string())
            }),
        ];
        let mut text = table(2, head.each_ref().map(String::as_str), &rows);
        text += &paragraph(
            "  ",
            "Seccomp and NoNewPrivs hold for every thread; frontend and workers have a filter of their own besides \
             the spawner's. /proc does not show Landlock: so many threads tried to open a file and failed.",
        );
        match isolation {
            Isolation::DistinctUids => {
                let names = SERVICE_NEEDS.map(|capability| capability.to_string()).join(", ");
                text += &paragraph(
                    "  ",
                    &format!(
                        "Supervisor and spawner share {names}: one can end processes, the other can start them. \
                         Nobody else has any capability."
                    ),
                );
                text += &self.paint(Ink::Good, "  isolation: frontend and workers have UIDs of their own");
            }
            Isolation::SharedUid => {
                text += &paragraph(
                    "  ",
                    "Without privilege CapBnd cannot be emptied; under NoNewPrivs nothing in it can be had.",
                );
                text += &self.paint(
                    Ink::Alarm,
                    "  ISOLATION IS WEAK: ALL PROCESSES SHARE ONE UID, since the demo was not started\n  as root. \
                     Every other wall stands; start it as root to see this one too.",
                );
            }
        }
        text + "\n"
    }

    fn summary(&self, summary: &Summary) -> String {
        let verdict = if summary.ok {
            self.paint(Ink::Good, &format!("  all {} answers were as expected", summary.decisions))
        } else {
            self.paint(
                Ink::Alarm,
                &format!("  {} THINGS WERE NOT AS EXPECTED, see above", summary.unexpected),
            )
        };
        format!(
            "{verdict}; p50 {}, p99 {}\n{}",
            time(summary.p50_ns),
            time(summary.p99_ns),
            paragraph(
                "  ",
                "Next: run `portcullis demo --keep` and ask it yourself, or put a policy of your own behind it as \
                 the README's quick start shows.",
            )
        )
    }

    fn paint(&self, ink: Ink, text: &str) -> String {
        if self.colour { format!("\u{1b}[{}m{text}\u{1b}[0m", ink.parameters()) } else { text.to_owned() }
    }
}

/// The heading an event belongs under.
fn section(event: &Event) -> &'static str {
    match event {
        Event::Start { .. } | Event::Policy(_) => {
            "Keys, policies out of their components, a configuration for two tenants"
        }
        Event::Ready(_) | Event::Connected { .. } => "The service",
        Event::Decision(_) | Event::Tampered(_) => "Questions, and the answers that the client gets",
        Event::Burst(_) => "Many questions",
        Event::Processes { .. } => "The processes as the kernel sees them",
        Event::Summary(_) => "Summary",
        Event::Keeping(_) => "Left running until Ctrl-C",
        Event::Stopped { .. } => "The end",
    }
}

fn policy(signed: &Signed) -> String {
    format!(
        "  {:<17}  {}  {:>4} KB of machine code, built in {} ms\n",
        format!("{}/{}", signed.tenant, signed.policy),
        signed.digest.short(),
        signed.bytes / 1000,
        signed.build_micros / 1000,
    )
}

fn ready(started: &Started) -> String {
    format!(
        "  ready after {} ms: supervisor pid {}\n  listens at {}\n",
        started.micros / 1000,
        started.supervisor_pid,
        started.socket.display()
    )
}

fn keep(keeping: &Keeping) -> String {
    let mut text = format!(
        "  questions  {}\n  operators  {}\n  log        {}\n\n",
        keeping.socket.display(),
        keeping.operator_socket.display(),
        keeping.log.display()
    );
    for example in &keeping.examples {
        text += &format!("{example}\n");
    }
    text
}

fn row(label: &str, processes: &[Process], text: impl Fn(&Process) -> String) -> [String; COLUMNS] {
    std::array::from_fn(|column| match column.checked_sub(1) {
        None => label.to_owned(),
        Some(index) => processes.get(index).map(&text).unwrap_or_default(),
    })
}

/// A short time, to a tenth of a microsecond.
fn time(ns: u64) -> String {
    format!("{}.{} us", ns / 1000, ns / 100 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Digest;
    use crate::cli::demo::event::Unexpected;

    fn process(role: &str, class: Option<&str>) -> Process {
        Process {
            role: role.to_owned(),
            class: class.map(str::to_owned),
            pid: 4_194_304,
            uid: 4_000_000_000,
            cap_eff: "0".to_owned(),
            cap_bnd: "1ffffffffff".to_owned(),
            no_new_privs: 1,
            seccomp: 2,
            seccomp_filters: 3,
            threads: 12,
            landlock_proven_threads: Some(12),
            landlock_abi: Some(7),
            open_files: None,
            unexpected: Unexpected::default(),
        }
    }

    fn plain() -> Show {
        Show { json: false, colour: false, section: "", unexpected: 0 }
    }

    #[test]
    fn the_table_fits_80_columns_and_says_what_is_weak() {
        let processes = [
            process("supervisor", None),
            process("spawner", None),
            process("frontend", None),
            process("worker", Some("shared")),
            process("worker", Some("alone")),
        ];
        let text = plain().processes(&processes, Isolation::SharedUid);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("WEAK") && text.contains("worker alone") && !text.contains('~'), "{text}");
        assert!(text.contains("12 of 12") && text.contains("1ffffffffff"), "{text}");
        let text = plain().processes(&processes, Isolation::DistinctUids);
        assert!(!text.contains("WEAK") && text.contains("CAP_SETUID"), "{text}");
    }

    #[test]
    fn what_is_not_as_expected_is_counted() {
        let answered = |unexpected: Vec<String>| {
            Event::Decision(Answered {
                outcome: Ending::Allowed,
                expected: Ending::Denied,
                tenant: "acme",
                class: "shared",
                policy: "jwt-gate",
                question: "GET /",
                digest: Some(Digest::of(b"x")),
                id: None,
                status: None,
                reason: "\u{1b}[2J".to_owned(),
                micros: 7,
                timing: None,
                unexpected: Unexpected(unexpected),
            })
        };
        let mut show = plain();
        let text = show.compose(&answered(vec![])).unwrap();
        assert_eq!((show.unexpected(), text.contains("UNEXPECTED")), (0, false));
        assert!(!text.contains('\u{1b}'), "a policy drives the terminal: {text:?}");
        let text = show.compose(&answered(vec!["expected denied".to_owned()])).unwrap();
        assert_eq!((show.unexpected(), text.contains("UNEXPECTED: expected denied")), (1, true));
    }
}
