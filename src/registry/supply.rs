//! What each worker gets, and later what it must stop to use. A worker that does not read makes nobody wait: what it has not
//! taken stays in its queue.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::setting::Key;
use super::survey::{Served, Standing, shortened};
use crate::artifact::SealedBytes;
use crate::decision::TrustClass;
use crate::wire::channel::{Channel, Received, SendError};
use crate::wire::supply::{FromRegistry, SUPPLY_MAX, ToRegistry};

/// Every worker that lives, as far as its supply channel does.
#[derive(Debug, Default)]
pub(super) struct Supplies(Vec<Line>);

/// One worker.
#[derive(Debug)]
struct Line {
    class: TrustClass,
    generation: u64,
    channel: Channel<FromRegistry, ToRegistry>,
    queue: VecDeque<Parcel>,
    /// What it decides with, and has not been told to stop.
    supplied: BTreeMap<Key, Served>,
    gone: bool,
}

#[derive(Debug)]
struct Parcel {
    message: FromRegistry,
    code: Option<Arc<SealedBytes>>,
}

impl Supplies {
    /// A new worker: everything of its class goes there, a policy a message.
    pub(super) fn add(
        &mut self,
        (class, generation): (TrustClass, u64),
        socket: OwnedFd,
        standings: &BTreeMap<Key, Standing>,
    ) {
        let (mut queue, mut supplied) = (VecDeque::new(), BTreeMap::new());
        // First what is read.
        let policies = standings.values().filter_map(|standing| match standing {
            Standing::Serves(served) if served.class == class => Some(&served.reads),
            Standing::Serves(_) | Standing::Refused { .. } => None,
        });
        let data: BTreeMap<&Key, &Arc<Served>> = policies.flatten().map(|(key, data)| (key, data)).collect();
        for ((tenant, name), data) in data {
            let message = FromRegistry::Data {
                tenant: tenant.clone(),
                data: name.clone(),
                signed: data.signed.clone(),
                held_back: data.held_back.as_deref().map(shortened),
            };
            queue.push_back(Parcel { message, code: Some(Arc::clone(&data.code)) });
        }
        for ((tenant, policy), standing) in standings.iter().filter(|(_, standing)| standing.is_policy()) {
            let (tenant, policy) = (tenant.clone(), policy.clone());
            match standing {
                Standing::Serves(served) if served.class == class => {
                    supplied.insert((tenant.clone(), policy.clone()), (**served).clone());
                    let held_back = served.held_back.as_deref().map(shortened);
                    let signed = served.signed.clone();
                    let message = FromRegistry::Policy { tenant, policy, signed, held_back };
                    queue.push_back(Parcel { message, code: Some(Arc::clone(&served.code)) });
                }
                Standing::Refused { class: of, why, .. } if *of == class => {
                    let message = FromRegistry::Refused { tenant, policy, why: shortened(why) };
                    queue.push_back(Parcel { message, code: None });
                }
                Standing::Serves(_) | Standing::Refused { .. } => {}
            }
        }
        queue.push_back(Parcel { message: FromRegistry::Complete, code: None });
        let channel = Channel::new(socket, SUPPLY_MAX);
        let mut line = Line { class, generation, channel, queue, supplied, gone: false };
        line.send();
        self.0.push(line);
    }

    /// Has every worker stop what does not hold any more; says how many are told.
    pub(super) fn withdraw(&mut self, holds: impl Fn(&Key, &Served) -> Result<(), String>) -> usize {
        let mut told = 0_usize;
        for line in &mut self.0 {
            let (class, generation) = (&line.class, line.generation);
            let queue = &mut line.queue;
            line.supplied.retain(|key, served| {
                let Err(why) = holds(key, served) else { return true };
                let (tenant, policy) = key.clone();
                tracing::warn!(%tenant, %policy, version = served.config.version, %class, generation, why, "withdrawn from worker");
                told = told.saturating_add(1);
                match queue.iter_mut().find(|parcel| parcel.is_of(key)) {
                    // It was not sent yet.
                    Some(parcel) => {
                        let message = FromRegistry::Refused { tenant, policy, why: shortened(&why) };
                        *parcel = Parcel { message, code: None };
                    }
                    None => {
                        let message = FromRegistry::Withdraw { tenant, policy, cwasm: served.code.digest() };
                        queue.push_back(Parcel { message, code: None });
                    }
                }
                false
            });
            line.send();
        }
        told
    }

    /// Sends what waits, and forgets workers that are gone.
    pub(super) fn go_on(&mut self, buffer: &mut Vec<u8>) {
        for line in &mut self.0 {
            line.listen(buffer);
            line.send();
        }
        self.0.retain(|line| !line.gone);
    }

    /// Each worker's channel, and whether something waits to be sent there.
    pub(super) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.0.iter().map(|line| (line.channel.as_fd(), !line.queue.is_empty()))
    }
}

impl Line {
    fn send(&mut self) {
        while let Some(parcel) = self.queue.front() {
            match self.channel.send(&parcel.message, parcel.code.as_deref().map(AsFd::as_fd)) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(SendError::Full) => return,
                Err(SendError::Closed) => return self.end(),
                Err(error) => {
                    tracing::error!(class = %self.class, generation = self.generation, %error, "supply worker");
                    return self.end();
                }
            }
        }
    }

    /// It has nothing to say, but its end.
    fn listen(&mut self, buffer: &mut Vec<u8>) {
        match self.channel.receive(buffer) {
            Ok(Received::Nothing) => {}
            Ok(Received::End) => self.end(),
            Ok(Received::Message(said, _)) => match said {},
            Err(error) => {
                tracing::warn!(class = %self.class, generation = self.generation, %error, "worker misbehaved");
                self.end();
            }
        }
    }

    fn end(&mut self) {
        self.gone = true;
        self.queue.clear();
    }
}

impl Parcel {
    fn is_of(&self, key: &Key) -> bool {
        matches!(&self.message, FromRegistry::Policy { tenant, policy, .. } if *tenant == key.0 && *policy == key.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Digest;
    use crate::bundle::Kind;
    use crate::registry::survey::WHY_MAX;
    use crate::registry::tests::{World, key};

    type Worker = Channel<ToRegistry, FromRegistry>;

    /// As many policies, of one class, that all serve.
    fn standings(count: usize) -> BTreeMap<Key, Standing> {
        let mut world = World::with(&["gate"]);
        world.release("gate", 1);
        world.survey();
        let one = world.standing("gate").clone();
        (0..count).map(|number| (key(&format!("p{number:04}")), one.clone())).collect()
    }

    fn class() -> TrustClass {
        TrustClass::new("web").unwrap()
    }

    fn worker(supplies: &mut Supplies, standings: &BTreeMap<Key, Standing>) -> Worker {
        let (ours, theirs) = Channel::<FromRegistry, ToRegistry>::pair(SUPPLY_MAX).unwrap();
        supplies.add((class(), 1), ours.into(), standings);
        theirs
    }

    /// What has arrived: `P` a policy with its code, `R` refused, `C` complete, `W` withdrawn.
    fn received(worker: &Worker) -> String {
        let (mut buffer, mut said) = (Vec::new(), String::new());
        loop {
            match worker.receive(&mut buffer) {
                Ok(Received::Message(message, code)) => said.push(match message {
                    FromRegistry::Policy { .. } => {
                        assert!(code.is_some());
                        'P'
                    }
                    FromRegistry::Data { .. } => {
                        assert!(code.is_some());
                        'D'
                    }
                    FromRegistry::Refused { .. } => 'R',
                    FromRegistry::Complete => 'C',
                    FromRegistry::Withdraw { .. } => 'W',
                }),
                Ok(Received::Nothing) => return said,
                other => panic!("{other:?} after {said}"),
            }
        }
    }

    #[test]
    fn a_worker_that_does_not_read_makes_nobody_wait() {
        let (standings, mut supplies) = (standings(2000), Supplies::default());
        let silent = worker(&mut supplies, &standings);
        let reads = worker(&mut supplies, &standings);
        let mut said = String::new();
        while !said.ends_with('C') {
            supplies.go_on(&mut Vec::new());
            said.push_str(&received(&reads));
        }
        assert_eq!(said, "P".repeat(2000) + "C");
        assert!(
            supplies.watched().any(|(_, waits)| waits),
            "control: it did not all fit into the silent one's"
        );
        let mut said = received(&silent);
        while !said.ends_with('C') {
            supplies.go_on(&mut Vec::new());
            said.push_str(&received(&silent));
        }
        assert_eq!(said, "P".repeat(2000) + "C", "it has lost nothing");
    }

    #[test]
    fn what_is_withdrawn_is_told_once_and_what_was_not_sent_yet_is_refused_instead() {
        let (standings, mut supplies) = (standings(2000), Supplies::default());
        let slow = worker(&mut supplies, &standings);
        let one = |key: &Key| key.1.as_str() == "p0000" || key.1.as_str() == "p1999";
        let no = |key: &Key, _: &Served| if one(key) { Err("revoked".to_owned()) } else { Ok(()) };
        assert_eq!(supplies.withdraw(no), 2);
        assert_eq!(supplies.withdraw(no), 0, "once");
        let mut said = received(&slow);
        while !said.ends_with('W') {
            supplies.go_on(&mut Vec::new());
            said.push_str(&received(&slow));
        }
        // The first was sent already, the last was not; nothing comes before everything was named.
        assert_eq!(said, "P".repeat(1999) + "RCW");
    }

    #[test]
    fn each_class_gets_its_own_and_why_the_others_are_not_there() {
        let mut standings = standings(2);
        let refused = Standing::Refused { class: class(), kind: Kind::Policy, why: "x".repeat(10 * WHY_MAX) };
        standings.insert(key("refused"), refused);
        let other = Standing::Refused {
            class: TrustClass::new("other").unwrap(),
            kind: Kind::Policy,
            why: String::new(),
        };
        standings.insert(key("anothers"), other);
        let mut supplies = Supplies::default();
        assert_eq!(received(&worker(&mut supplies, &standings)), "PPRC");
    }

    #[test]
    fn what_is_read_comes_once_before_all_who_read_it() {
        let mut standings = standings(3);
        let data = match &standings[&key("p0000")] {
            Standing::Serves(served) => Arc::new((**served).clone()),
            Standing::Refused { .. } => unreachable!(),
        };
        for name in ["p0001", "p0002"] {
            if let Some(Standing::Serves(served)) = standings.get_mut(&key(name)) {
                served.reads = vec![(key("prices"), Arc::clone(&data))];
            }
        }
        let missing = Standing::Refused { class: class(), kind: Kind::Data, why: "nothing is there".into() };
        standings.insert(key("costs"), missing);
        let mut supplies = Supplies::default();
        assert_eq!(received(&worker(&mut supplies, &standings)), "DPPPC");
    }

    #[test]
    fn a_worker_that_is_gone_is_forgotten() {
        let (standings, mut supplies) = (standings(1), Supplies::default());
        let here = worker(&mut supplies, &standings);
        drop(worker(&mut supplies, &standings));
        supplies.go_on(&mut Vec::new());
        assert_eq!(supplies.watched().count(), 1);
        supplies.withdraw(|_, served| {
            assert_ne!(served.code.digest(), Digest::of(b""));
            Err("revoked".into())
        });
        assert_eq!(received(&here), "PCW");
    }
}
