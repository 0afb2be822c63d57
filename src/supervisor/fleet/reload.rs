//! What a reload changes of the fleet, and when it is over.

use super::Fleet;
use crate::decision::TrustClass;
use crate::supervisor::books::BooksFull;
use crate::supervisor::config::Config;
use crate::supervisor::control_groups::ControlGroupError;
use crate::supervisor::log::say;
use crate::wire::control::AskedReload;
use crate::wire::spawner::Part;

/// Of an error in the process table, bytes: it shares a message with the table.
const ERROR_MAX: usize = 2048;

/// How a reload ended.
#[derive(Debug)]
pub(in crate::supervisor) enum Ended {
    /// Nothing has changed.
    Refused(String),
    Adopted(Adopted),
}

/// The configuration is in force. Whether everybody follows is another question.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Adopted {
    /// Who would not start with it.
    behind: Vec<TrustClass>,
    errors: Vec<String>,
}

impl Ended {
    pub(in crate::supervisor) fn error(&self) -> Option<String> {
        match self {
            Self::Refused(why) => Some(why.clone()),
            Self::Adopted(Adopted { errors, .. }) => (!errors.is_empty()).then(|| errors.join("; ")),
        }
    }
}

impl Fleet {
    /// Limits of classes as `config` has them, or as they were.
    pub(in crate::supervisor) fn set_limits(&mut self, config: &Config) -> Result<(), ControlGroupError> {
        self.groups.set(config).inspect_err(|_| {
            let _ = self.groups.set(&self.current.config);
        })
    }

    /// Gives a place in the accounts to everybody that `config` names.
    pub(in crate::supervisor) fn enter(&mut self, config: &Config) -> Result<(), BooksFull> {
        self.books.enter(config)
    }

    /// Limits of classes as they are in force.
    pub(in crate::supervisor) fn restore_limits(&self) {
        if let Err(why) = self.groups.set(&self.current.config) {
            say!("{why}");
        }
    }

    /// Counts a reload that ended, which somebody had asked for if it `began` (CLOCK_MONOTONIC, nanoseconds) with reading
    /// the configuration.
    pub(in crate::supervisor) fn reloaded(&mut self, ended: Ended, began: Option<u64>) {
        self.reloads = self.reloads.saturating_add(1);
        self.last_reload_error = ended.error().map(|error| {
            let end = (0..=ERROR_MAX.min(error.len())).rev().find(|end| error.is_char_boundary(*end));
            error.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
        });
        if let Some(began_ns) = began {
            let (number, error) = (self.reloads, self.last_reload_error.clone());
            let (adopted, behind) = match ended {
                Ended::Refused(_) => (false, Vec::new()),
                Ended::Adopted(Adopted { behind, .. }) => (true, behind),
            };
            self.asked = Some(Box::new(AskedReload { number, began_ns, error, adopted, behind }));
        }
        self.changed = true;
    }

    /// `None` until the frontend and every class are done with the present edition; then what would not start.
    pub(in crate::supervisor) fn settled(&self) -> Option<Adopted> {
        let epoch = self.current.epoch;
        self.find(|child| child.part == Part::Frontend && child.is_serving() && child.epoch() >= epoch)?;
        let (mut adopted, mut unwell) = (Adopted::default(), None);
        for lineage in &self.classes {
            match lineage.settled(epoch, self.living(&lineage.part)) {
                Some(Ok(())) => {}
                Some(Err(why)) => {
                    adopted.errors.push(format!("{}: {why}", lineage.part));
                    if let Part::Worker(class) = &lineage.part {
                        adopted.behind.push(class.clone());
                    }
                }
                // Nobody can start without one. Once it is back what is outdated is replaced all the same.
                None => unwell = Some(self.registry_unwell()?),
            }
        }
        if let Err(why) = self.gateway_settled(epoch)? {
            adopted.errors.push(format!("{}: {why}", Part::Gateway));
        }
        adopted.errors.extend(unwell.map(|why| format!("registry: {why}")));
        Some(adopted)
    }
}
