//! The one owner of everything about connections: it learns what was greeted, returned and lost, and decides where each
//! connection goes.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::grant::{Grant, Grants};
use super::handover::{Outgoing, Transfer};
use super::hello::{Greeting, Outcome, say_farewell, say_welcome};
use super::peer::{Connection, Peer};
use super::routes::{LinkId, News, Routes, What};
use super::table::{Entry, Table};
use super::takeback::{End, Returned, WorkerMisbehaved, check};
use crate::decision::{Quota, TrustClass};
use crate::wire::client::Farewell;
use crate::wire::control::TenantGrant;
use crate::wire::operator::FrontendCounters;

/// How long a connection without a worker is kept: long enough for a dead worker to be replaced.
const HELD_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Switchboard {
    grants: Grants,
    table: Table,
    seats: HashMap<TrustClass, u32>,
    pub(super) routes: Routes,
    /// Without a worker for now, oldest first.
    held: VecDeque<Held>,
    counters: FrontendCounters,
    draining: bool,
}

#[derive(Debug)]
struct Held {
    transfer: Transfer,
    until: Instant,
}

/// How many connections there may be.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) connections: u32,
    pub(super) connections_per_uid: u32,
    /// What each class's worker has descriptors for.
    pub(super) of_classes: HashMap<TrustClass, u32>,
}

impl Switchboard {
    pub(super) fn new(tenants: Vec<TenantGrant>, limits: Limits, news: mpsc::Sender<News>) -> Self {
        Self {
            grants: Grants::new(tenants),
            table: Table::new(limits.connections, limits.connections_per_uid),
            seats: limits.of_classes,
            routes: Routes::new(news),
            held: VecDeque::new(),
            counters: FrontendCounters::default(),
            draining: false,
        }
    }

    /// Who may ask for whom has changed. Connections that a worker has keep what they were granted until they are
    /// carried over.
    pub(super) fn reassign(&mut self, tenants: Vec<TenantGrant>, limits: Limits) {
        self.grants = Grants::new(tenants);
        self.table.set_limits(limits.connections, limits.connections_per_uid);
        self.seats = limits.of_classes;
    }

    /// Whether a worker has it, or is to get it.
    pub(super) fn knows(&self, connection: &Connection) -> bool {
        self.table.knows(connection.cookie)
    }

    /// Somebody has connected. If there is a seat it is taken, and [`Self::greeted`] must follow.
    pub(super) fn arrived(&mut self, peer: Peer) -> Result<(), Farewell> {
        self.counters.accepted += 1;
        self.table.seat(peer.uid).map_err(|quota| {
            self.counters.refused += 1;
            Farewell::Quota(quota)
        })
    }

    /// Greeting has ended, one way or the other.
    pub(super) fn greeted(&mut self, greeting: Greeting) {
        let Greeting { peer, outcome } = greeting;
        match outcome {
            Outcome::Gone => self.table.leave(peer.uid),
            Outcome::Refused => {
                self.counters.refused += 1;
                self.table.leave(peer.uid);
            }
            Outcome::Greeted(connection, tenant) => match self.hand_over(connection, &tenant) {
                Ok(()) => self.counters.handed_over += 1,
                Err((connection, farewell)) => {
                    say_farewell(&connection.socket, farewell);
                    self.counters.refused += 1;
                    self.table.leave(peer.uid);
                }
            },
        }
    }

    fn hand_over(&mut self, connection: Connection, tenant: &str) -> Result<(), (Connection, Farewell)> {
        if self.draining {
            return Err((connection, Farewell::ShuttingDown));
        }
        let Grant { class, tenants } =
            match self.grants.for_tenant(tenant, connection.peer, &groups(&connection)) {
                Ok(grant) => grant,
                Err(farewell) => return Err((connection, farewell)),
            };
        // The worker has descriptors for so many: one more would not arrive, and its loss would be ours to explain.
        if self.table.of_class(&class) >= self.seats.get(&class).copied().unwrap_or(u32::MAX) {
            return Err((connection, Farewell::Quota(Quota::Connections)));
        }
        let Some((id, link)) = self.routes.current(&class) else {
            return Err((connection, Farewell::Unavailable));
        };
        let Some(room) = link.room() else {
            warn!(%class, generation = link.generation, "worker does not take its connections");
            return Err((connection, Farewell::Unavailable));
        };
        if !say_welcome(&connection.socket, class.clone(), link.generation) {
            return Err((connection, Farewell::Unavailable));
        }
        let (cookie, peer) = (connection.cookie, connection.peer);
        let transfer = Transfer { connection, class: class.clone(), tenants, unread: Vec::new(), room };
        match link.send(Outgoing::Adopt(transfer)) {
            Ok(()) => {
                self.table.enter(cookie, Entry { peer, class, link: Some(id) });
                Ok(())
            }
            Err(Outgoing::Adopt(transfer)) => Err((transfer.connection, Farewell::Unavailable)),
            // What comes back is what was given.
            Err(Outgoing::Status { .. }) => Ok(()),
        }
    }

    /// A new generation serves the class. Connections that waited for one go there first.
    pub(super) fn route(&mut self, class: TrustClass, generation: u64, channel: OwnedFd) {
        if self.draining {
            return;
        }
        if let Err(error) = self.routes.open(class.clone(), generation, channel) {
            warn!(%class, generation, %error, "route cannot be opened");
            return;
        }
        info!(%class, generation, "route");
        let (waited, others) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.transfer.class == class);
        self.held = others;
        for Held { transfer, .. } in waited {
            self.carry_over(transfer);
        }
    }

    /// What a worker's channel brought, except for its status.
    pub(super) fn hear(&mut self, link: LinkId, what: What) {
        let heard = match (what, self.routes.get(link)) {
            (What::Ended { end, unsent }, _) => {
                self.ended(link, end, unsent);
                Ok(())
            }
            (_, None) => Ok(()),
            (_, Some(known)) if known.is_cut() => Ok(()),
            (What::Returned(_), Some(known)) if !known.is_draining() => Err(WorkerMisbehaved::NotDraining),
            (What::Returned(returned), Some(_)) => self.returned(link, returned),
            (What::Closed(cookie), Some(_)) => match self.table.owned_by(link, cookie) {
                Some(_) => {
                    self.table.forget(cookie);
                    Ok(())
                }
                None => Err(WorkerMisbehaved::NotItsOwn),
            },
            (What::Drained, Some(known)) => {
                info!(class = %known.class, generation = known.generation, "worker drained");
                let lost = self.table.forget_all_of(link);
                if lost > 0 {
                    warn!(class = %known.class, generation = known.generation, lost, "worker kept connections");
                }
                Ok(())
            }
            (What::Status { .. }, Some(_)) => Err(WorkerMisbehaved::Status),
        };
        if let Err(misbehaved) = heard {
            self.misbehaved(link, &misbehaved);
        }
    }

    /// The worker's channel is closed; a worker without one has nothing to live for, and the supervisor replaces it.
    pub(super) fn misbehaved(&mut self, link: LinkId, how: &WorkerMisbehaved) {
        if let Some(link) = self.routes.get(link) {
            warn!(class = %link.class, generation = link.generation, why = %how, "worker misbehaved");
        }
        self.routes.cut(link);
    }

    fn returned(&mut self, link: LinkId, returned: Returned) -> Result<(), WorkerMisbehaved> {
        let Returned { cookie, descriptor, unread, room } = returned;
        let (connection, class) = check(&self.table, link, cookie, descriptor)?;
        self.table.assign(cookie, None);
        self.carry_over(Transfer { connection, class, tenants: Vec::new(), unread, room });
        Ok(())
    }

    fn ended(&mut self, id: LinkId, end: End, unsent: Vec<Transfer>) {
        let Some(link) = self.routes.remove(id) else { return };
        let (class, generation) = (link.class, link.generation);
        // These it never had.
        for transfer in &unsent {
            self.table.assign(transfer.connection.cookie, None);
        }
        let lost = self.table.forget_all_of(id);
        match end {
            End::Misbehaved(why) => warn!(%class, generation, %why, lost, "worker misbehaved"),
            End::Failed(error) => warn!(%class, generation, %error, lost, "channel to worker failed"),
            End::Gone if lost > 0 => warn!(%class, generation, lost, "worker gone with its connections"),
            End::Gone => info!(%class, generation, "worker gone"),
        }
        for transfer in unsent {
            self.carry_over(transfer);
        }
    }

    /// Gives a connection that has no owner to the class's current worker, with what its peer may ask for now.
    fn carry_over(&mut self, mut transfer: Transfer) {
        if self.draining {
            return self.dismiss(transfer.connection, Farewell::ShuttingDown);
        }
        let connection = &transfer.connection;
        match self.grants.for_class(&transfer.class, connection.peer, &groups(connection)) {
            Ok(grant) => transfer.tenants = grant.tenants,
            Err(farewell) => return self.dismiss(transfer.connection, farewell),
        }
        let cookie = connection.cookie;
        let unsent = match self.routes.current(&transfer.class) {
            Some((id, link)) => match link.send(Outgoing::Adopt(transfer)) {
                Ok(()) => {
                    self.table.assign(cookie, Some(id));
                    self.counters.carried_over += 1;
                    return;
                }
                Err(unsent) => unsent,
            },
            None => Outgoing::Adopt(transfer),
        };
        if let Outgoing::Adopt(transfer) = unsent {
            self.held.push_back(Held { transfer, until: Instant::now() + HELD_FOR });
        }
    }

    fn dismiss(&mut self, connection: Connection, farewell: Farewell) {
        say_farewell(&connection.socket, farewell);
        self.counters.refused += 1;
        self.table.forget(connection.cookie);
    }

    /// When [`Self::expire`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.held.front().map(|held| held.until)
    }

    /// Sends away who has waited too long for a worker.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(held) = self.held.pop_front_if(|held| held.until <= now) {
            debug!(class = %held.transfer.class, "no worker came");
            self.dismiss(held.transfer.connection, Farewell::Unavailable);
        }
    }

    /// Nothing new from now on. Workers get all that is queued to them, then Drain.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.routes.drain_all();
        for held in std::mem::take(&mut self.held) {
            self.dismiss(held.transfer.connection, Farewell::ShuttingDown);
        }
    }

    /// Whether draining has come to its end.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.routes.is_empty()
    }

    pub(super) fn counters(&self) -> FrontendCounters {
        FrontendCounters { open: u64::from(self.table.open()), ..self.counters }
    }
}

/// Fewer groups mean fewer rights, so a kernel that does not tell is no reason to fail.
fn groups(connection: &Connection) -> Vec<u32> {
    connection.groups().unwrap_or_else(|error| {
        debug!(%error, "peer's groups are not known");
        Vec::new()
    })
}
