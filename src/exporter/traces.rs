//! Spans on their way from the accounts to a collector. What a worker wrote is believed to be of its own class and no
//! further: a span whose tenant or policy has no such place in that class goes nowhere.

use std::collections::BTreeMap;

use super::series::Accounts;
use crate::accounts::SpanReader;
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::engine::realtime_ns;
use crate::otlp::{Sender, Told};
use crate::wire::control::ExporterAssignment;

/// Spans of one class that are taken in one go: whoever scrapes meanwhile does not wait for long.
const AT_ONCE: usize = 512;

/// By class and the places that spans have.
type Names = BTreeMap<(TrustClass, u32, u32), (Tenant, PolicyName)>;

/// Spans by what became of them.
#[derive(Debug)]
pub(super) struct Spans {
    pub(super) handed_over: [(&'static str, u64); 3],
    /// By class: how many it says it has written is a worker's word, and must not cover up what others lost.
    pub(super) lost: Vec<(TrustClass, u64)>,
}

pub(super) struct Traces {
    sender: Sender,
    readers: BTreeMap<TrustClass, SpanReader>,
    names: Names,
    /// Spans of somebody who is not there, or not any more, by class.
    nameless: BTreeMap<TrustClass, u64>,
}

impl Traces {
    /// From now on: what was before nobody waits for.
    pub(super) fn new(sender: Sender, accounts: &Accounts, assignment: &ExporterAssignment) -> Self {
        let classes = accounts.classes.iter();
        let readers = classes.map(|(class, account)| (class.clone(), SpanReader::new(&account.spans)));
        Self { sender, readers: readers.collect(), names: names(assignment), nameless: BTreeMap::new() }
    }

    pub(super) fn reassign(&mut self, assignment: &ExporterAssignment) {
        self.names = names(assignment);
    }

    /// Hands over what has come since the last time.
    pub(super) fn collect(&mut self, accounts: &Accounts) {
        let now_ns = realtime_ns();
        for (class, reader) in &mut self.readers {
            let Some(account) = accounts.classes.get(class) else { continue };
            for span in reader.take(&account.spans, now_ns, AT_ONCE) {
                match self.names.get(&(class.clone(), span.tenant, span.module)) {
                    Some((tenant, policy)) => self.sender.put(Told {
                        span,
                        class: class.as_str().into(),
                        tenant: tenant.as_str().into(),
                        policy: policy.as_str().into(),
                    }),
                    None => {
                        let nameless = self.nameless.entry(class.clone()).or_default();
                        *nameless = nameless.saturating_add(1);
                    }
                }
            }
        }
    }

    pub(super) fn told(&self) -> Spans {
        let sent = self.sender.sent();
        let lost = self.readers.iter().map(|(class, reader)| {
            let nameless = self.nameless.get(class).copied().unwrap_or_default();
            (class.clone(), reader.lost().saturating_add(nameless))
        });
        Spans {
            handed_over: [("sent", sent.sent()), ("dropped", sent.dropped()), ("failed", sent.failed())],
            lost: lost.collect(),
        }
    }
}

fn names(assignment: &ExporterAssignment) -> Names {
    let tenants = assignment.tenants.iter();
    tenants
        .flat_map(|tenant| {
            tenant.modules.iter().map(|(policy, module)| {
                let places = (tenant.class.clone(), tenant.slot, *module);
                (places, (tenant.tenant.clone(), policy.clone()))
            })
        })
        .collect()
}
