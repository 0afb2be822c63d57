//! What each worker gets, and later what it must stop to use. A worker that does not read makes nobody wait: what it has not
//! taken stays in its queue.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::setting::Key;
use super::survey::{Served, Standing};
use crate::artifact::SealedBytes;
use crate::decision::TrustClass;
use crate::wire::channel::{Channel, Received, SendError};
use crate::wire::supply::{FromRegistry, SUPPLY_MAX, ToRegistry};

/// Longest reason that is sent, bytes: a message has a limit, and people read it.
const WHY_MAX: usize = 4096;

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
        for ((tenant, policy), standing) in standings {
            let (tenant, policy) = (tenant.clone(), policy.clone());
            match standing {
                Standing::Serves(served) if served.class == class => {
                    supplied.insert((tenant.clone(), policy.clone()), served.clone());
                    let held_back = served.held_back.as_deref().map(shortened);
                    let signed = served.signed.clone();
                    let message = FromRegistry::Policy { tenant, policy, signed, held_back };
                    queue.push_back(Parcel { message, code: Some(Arc::clone(&served.code)) });
                }
                Standing::Refused { class: of, why } if *of == class => {
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

fn shortened(why: &str) -> String {
    if why.len() <= WHY_MAX {
        return why.to_owned();
    }
    let end = (0..=WHY_MAX).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", why.get(..end).unwrap_or_default())
}
