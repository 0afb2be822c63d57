//! Every series there is, by name: out of the processes' table and the accounts of classes and registry.
//!
//! Whatever stands in an account, a worker that was taken over may have written it: it is a number, and no more is made
//! of it than a number. What all of them mean is in `docs/observability/README.md`.

mod service;
mod tenants;

use std::collections::BTreeMap;

use bytes::Bytes;

use self::service::Restarts;
use self::tenants::Tenants;
use super::exposition::{Format, Page};
use super::serve::{Answer, What};
use super::traces::Spans;
use crate::accounts::{ClassAccount, Map, RegistryAccount};
use crate::decision::TrustClass;
use crate::wire::control::{ExporterAssignment, ProcessState, ProcessTable};

/// The shared memory, mapped to be read.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) classes: BTreeMap<TrustClass, Map<ClassAccount>>,
    pub(super) registry: Option<Map<RegistryAccount>>,
}

/// All that can be told.
#[derive(Debug)]
pub(super) struct Series {
    accounts: &'static Accounts,
    processes: ProcessTable,
    /// Those of roles and classes of which nobody lives now, too: what has happened has happened.
    restarts: Restarts,
    classes: Vec<TrustClass>,
    tenants: Tenants,
    /// Where they are sent somewhere: by what became of them.
    spans: Option<Spans>,
}

impl Series {
    pub(super) fn new(accounts: &'static Accounts, assignment: &ExporterAssignment) -> Self {
        Self {
            accounts,
            processes: ProcessTable::default(),
            restarts: service::serving(&assignment.classes)
                .map(|(role, class)| ((role.to_owned(), class.cloned()), 0))
                .collect(),
            classes: assignment.classes.clone(),
            tenants: Tenants::new(assignment),
            spans: None,
        }
    }

    pub(super) fn processes(&mut self, table: ProcessTable) {
        for process in &table.processes {
            let known = self.restarts.entry((process.role.clone(), process.class.clone())).or_default();
            *known = process.restarts.max(*known);
        }
        self.processes = table;
    }

    pub(super) fn spans(&mut self, spans: Spans) {
        self.spans = Some(spans);
    }

    pub(super) fn reassign(&mut self, assignment: &ExporterAssignment) {
        self.tenants.reassign(assignment);
    }

    pub(super) fn accounts(&self) -> &'static Accounts {
        self.accounts
    }

    pub(super) fn answer(&self, what: What) -> Answer {
        match what {
            What::Metrics(format) => Answer {
                well: true,
                content_type: format.content_type(),
                body: Bytes::from(self.page(format)),
            },
            What::Health => self.health(),
        }
    }

    fn page(&self, format: Format) -> String {
        let mut page = Page::new(format);
        service::processes(&mut page, &self.processes, &self.classes, &self.restarts);
        service::registry(&mut page, self.accounts);
        service::classes(&mut page, self.accounts);
        service::spans(&mut page, self.spans.as_ref());
        self.tenants.tell(&mut page, self.accounts);
        page.finish()
    }

    /// Whether questions are answered: the frontend serves, and a worker of every class.
    fn health(&self) -> Answer {
        let serves = |role: &str, class: Option<&TrustClass>| {
            self.processes.processes.iter().any(|process| {
                process.role == role
                    && process.class.as_ref() == class
                    && process.state == ProcessState::Serving
            })
        };
        let missing: Vec<String> = service::serving(&self.classes)
            .filter(|(role, class)| !serves(role, *class))
            .map(|(role, class)| match class {
                None => format!("no {role} serves\n"),
                Some(class) => format!("no {role} of class {class} serves\n"),
            })
            .collect();
        let body = if missing.is_empty() { "ok\n".to_owned() } else { missing.concat() };
        Answer {
            well: missing.is_empty(),
            content_type: "text/plain; charset=utf-8",
            body: Bytes::from(body),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::{Isolation, Process};

    fn process(role: &str, class: Option<&str>, state: ProcessState) -> Process {
        let class = class.map(|class| TrustClass::new(class).unwrap());
        let (generation, pid, uid, threads, restarts, ready) = (1, 1, 1, 1, 0, None);
        Process { role: role.to_owned(), class, generation, pid, uid, state, threads, restarts, ready }
    }

    /// Of classes `a` and `b`, and nobody who is told of yet.
    fn series() -> Series {
        let assignment = ExporterAssignment {
            uid: 1,
            gid: 1,
            isolation: Isolation::SharedUid,
            tcp: false,
            max_tenants: 1,
            otlp: None,
            classes: ["a", "b"].map(|class| TrustClass::new(class).unwrap()).to_vec(),
            tenants: Vec::new(),
        };
        Series::new(Box::leak(Box::default()), &assignment)
    }

    #[test]
    fn who_has_to_serve_and_does_not_is_told_as_nobody_and_restarts_are_not_forgotten() {
        let mut series = series();
        let told = |series: &Series, line: &str| {
            let page = series.page(Format::Text);
            assert!(page.lines().any(|one| one == line), "{line}: {page}");
        };
        for (role, class) in [("frontend", ""), ("worker", "a"), ("worker", "b")] {
            for state in ["starting", "serving", "draining"] {
                let labels = format!("role=\"{role}\",class=\"{class}\",state=\"{state}\"");
                told(&series, &format!("portcullis_processes{{{labels}}} 0"));
            }
            told(
                &series,
                &format!("portcullis_process_restarts_total{{role=\"{role}\",class=\"{class}\"}} 0"),
            );
        }
        let worker = Process { restarts: 3, ..process("worker", Some("b"), ProcessState::Serving) };
        series.processes(ProcessTable { processes: vec![worker], ..ProcessTable::default() });
        told(&series, "portcullis_processes{role=\"worker\",class=\"b\",state=\"serving\"} 1");
        series.processes(ProcessTable::default());
        told(&series, "portcullis_processes{role=\"worker\",class=\"b\",state=\"serving\"} 0");
        told(&series, "portcullis_process_restarts_total{role=\"worker\",class=\"b\"} 3");
    }

    #[test]
    fn one_class_does_not_cover_up_the_spans_that_another_has_lost() {
        let mut series = series();
        assert!(!series.page(Format::Text).contains("portcullis_spans"), "none are sent anywhere");
        let lost = [("a", u64::MAX), ("b", 3)].map(|(class, lost)| (TrustClass::new(class).unwrap(), lost));
        let handed_over = [("sent", 1), ("dropped", 0), ("failed", 0)];
        series.spans(Spans { handed_over, lost: lost.to_vec() });
        let page = series.page(Format::Text);
        for line in [
            "portcullis_spans_total{outcome=\"sent\"} 1",
            "portcullis_spans_total{outcome=\"lost\",class=\"b\"} 3",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}: {page}");
        }
    }

    #[test]
    fn it_is_well_once_the_frontend_and_every_class_serve() {
        let mut series = series();
        let health = |series: &Series| {
            let answer = series.answer(What::Health);
            (answer.well, String::from_utf8(answer.body.to_vec()).unwrap())
        };
        let nobody = "no frontend serves\nno worker of class a serves\nno worker of class b serves\n";
        assert_eq!(health(&series), (false, nobody.to_owned()));
        let mut table = ProcessTable {
            processes: vec![
                process("frontend", None, ProcessState::Serving),
                process("worker", Some("a"), ProcessState::Serving),
                process("worker", Some("b"), ProcessState::Starting),
            ],
            ..ProcessTable::default()
        };
        series.processes(table.clone());
        assert_eq!(health(&series), (false, "no worker of class b serves\n".to_owned()));
        table.processes.push(process("worker", Some("b"), ProcessState::Serving));
        series.processes(table);
        assert_eq!(health(&series), (true, "ok\n".to_owned()));
    }
}
