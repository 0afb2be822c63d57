//! Every series there is, by name: out of the processes' table and the accounts of classes and registry.
//!
//! Whatever stands in an account, a worker that was taken over may have written it: it is a number, and no more is made
//! of it than a number. What all of them mean is in `docs/observability/README.md`.

mod service;
mod tenants;

use std::collections::BTreeMap;

use bytes::Bytes;

use self::tenants::Tenants;
use super::exposition::{Format, Page};
use super::serve::{Answer, What};
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
    classes: Vec<TrustClass>,
    tenants: Tenants,
    /// Where they are sent somewhere: by what became of them.
    spans: Option<[(&'static str, u64); 4]>,
}

impl Series {
    pub(super) fn new(accounts: &'static Accounts, assignment: &ExporterAssignment) -> Self {
        Self {
            accounts,
            processes: ProcessTable::default(),
            classes: assignment.classes.clone(),
            tenants: Tenants::new(assignment),
            spans: None,
        }
    }

    pub(super) fn processes(&mut self, table: ProcessTable) {
        self.processes = table;
    }

    pub(super) fn spans(&mut self, spans: [(&'static str, u64); 4]) {
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
        service::processes(&mut page, &self.processes);
        service::registry(&mut page, self.accounts);
        service::classes(&mut page, self.accounts);
        service::spans(&mut page, self.spans);
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
        let workers = self.classes.iter().map(|class| ("worker", Some(class)));
        let missing: Vec<String> = std::iter::once(("frontend", None))
            .chain(workers)
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

    #[test]
    fn it_is_well_once_the_frontend_and_every_class_serve() {
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
        let mut series = Series::new(Box::leak(Box::default()), &assignment);
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
