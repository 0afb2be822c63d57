//! `[gateway]`: where proxies ask in their own protocols, and for whom. No such section, no such process.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::read::Reader;
use super::{Class, Config, FiledTenant, Frontend, Identity, Service, Telemetry, TenantConfig, TenantState};
use crate::decision::{PolicyName, Tenant};
use crate::document::values::number;
use crate::document::{Found, Section};
use crate::wire::control::{Isolation, TenantGrant};
use crate::wire::gateway::{Binding, GatewayAssignment, GatewayClass, LISTENERS_MAX, Listener, Speaks};

/// Cores for each thread, where the file says nothing, and the most threads: those that decide need the processors more, and who has
/// more to do at a time wakes others less often.
const CORES: u32 = 2;
const THREADS: u32 = 4;
/// Connections of one thread to one class that are in use, at most.
const CONNECTIONS: u32 = 4;
/// Questions under way on one connection, at most.
const PIPELINE_MAX: u32 = 256;
/// For each connection of a thread to a class: one, another that asks for the first time for another tenant of the class, and one of
/// a gateway that drains. Several tenants that are all asked for the first time are more for a moment; who finds no seat then
/// tries again.
const USUALLY: u32 = 3;

/// The gateway's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    pub identity: Identity,
    pub threads: u32,
    /// At least one; sorted by name.
    pub listeners: Vec<GatewayListener>,
}

/// One socket that proxies connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayListener {
    pub place: Place,
    pub listener: Listener,
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// With permission bits.
    Unix(PathBuf, u32),
    /// Of this machine alone.
    Tcp(SocketAddr),
}

/// As read, with the places in the file of what is still to be compared with the rest of it.
pub(super) struct Read {
    pub(super) identity: Option<Found<Identity>>,
    gateway: Option<Gateway>,
    section_at: usize,
    /// Of the listeners, in their order.
    at: Vec<usize>,
}

impl Gateway {
    /// Those it may ask for.
    pub(super) fn tenants(&self) -> BTreeSet<&Tenant> {
        self.listeners.iter().flat_map(|one| named(&one.listener.tenant)).collect()
    }

    /// Connections of each thread to that class: so many that all together can reach every thread of its worker.
    fn connections(&self, class: &Class) -> u32 {
        class.limits.threads.div_ceil(self.threads.max(1)).min(CONNECTIONS)
    }
}

impl GatewayListener {
    /// What an operator may not be aware of, if there is such.
    #[must_use]
    pub fn caution(&self) -> Option<String> {
        let Listener { name, tenant, .. } = &self.listener;
        match (&self.place, tenant) {
            (
                Place::Tcp(address),
                Binding::Header { name: what, among } | Binding::Context { key: what, among },
            ) if among.len() > 1 => Some(format!(
                "gateway.listener.{name}: every user of this machine reaches {address}, and asks for whichever of its {} \
                 tenants it names in {what}; make it a Unix socket, or a listener for each tenant",
                among.len()
            )),
            _ => None,
        }
    }
}

impl Config {
    /// What the gateway needs of it, if there is to be one.
    #[must_use]
    pub fn gateway_assignment(&self, isolation: Isolation) -> Option<GatewayAssignment> {
        let gateway = self.gateway.as_ref()?;
        let bound = gateway.tenants();
        let classes = self.classes.iter().filter_map(|class| {
            let of_it = self.tenants.iter().filter(|tenant| tenant.class == class.name);
            let of_it = of_it.map(|tenant| &tenant.name).filter(|name| bound.contains(name));
            let tenants: Vec<Tenant> = of_it.cloned().collect();
            let pipeline = class.limits.pipeline.clamp(1, PIPELINE_MAX);
            let connections = gateway.connections(class);
            let name = class.name.clone();
            (!tenants.is_empty()).then_some(GatewayClass { class: name, pipeline, connections, tenants })
        });
        Some(GatewayAssignment {
            uid: gateway.identity.uid,
            gid: gateway.identity.gid,
            isolation,
            threads: gateway.threads,
            classes: classes.collect(),
            listeners: gateway.listeners.iter().map(|one| one.listener.clone()).collect(),
        })
    }

    /// Who may ask for whom. The gateway may ask for those that its listeners name, and nobody else.
    pub(super) fn grants(&self) -> Vec<TenantGrant> {
        let bound = self.gateway.as_ref().map(Gateway::tenants).unwrap_or_default();
        let grant = |tenant: &TenantConfig| {
            let gateway = self.gateway.as_ref().filter(|_| bound.contains(&tenant.name));
            let gateway = gateway.map(|gateway| gateway.identity.uid);
            TenantGrant {
                tenant: tenant.name.clone(),
                class: tenant.class.clone(),
                uids: tenant.uids.iter().copied().chain(gateway).collect(),
                gids: tenant.gids.clone(),
            }
        };
        self.tenants.iter().map(grant).collect()
    }
}

/// Every tenant or policy that a binding may come to.
fn named<T>(binding: &Binding<T>) -> Vec<&T> {
    match binding {
        Binding::Fixed(one) => vec![one],
        Binding::Peer(of) => of.iter().map(|(_, one)| one).collect(),
        Binding::Context { among, .. } | Binding::Header { among, .. } => among.iter().collect(),
    }
}

fn policies(listener: &Listener) -> Vec<&PolicyName> {
    match &listener.speaks {
        Speaks::Opa { paths } => paths.iter().map(|(_, policy)| policy).collect(),
        _ => named(&listener.policy),
    }
}

/// What `next` changes of it that only a restart can change.
pub(super) fn fixed_parts_changed(old: Option<&Gateway>, new: Option<&Gateway>) -> Vec<String> {
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, None) => return Vec::new(),
        (Some(_), None) | (None, Some(_)) => return vec!["whether there is [gateway]".to_owned()],
    };
    let mut changed = Vec::new();
    if old.identity != new.identity {
        changed.push("gateway.uid or gid".to_owned());
    }
    let names =
        |gateway: &Gateway| gateway.listeners.iter().map(|one| one.listener.name.clone()).collect::<Vec<_>>();
    if names(old) != names(new) {
        changed.push("the set of gateway.listener".to_owned());
        return changed;
    }
    for (old, new) in old.listeners.iter().zip(&new.listeners) {
        if old.place != new.place {
            changed.push(format!("the socket of gateway.listener.{}", old.listener.name));
        }
    }
    changed
}

impl<'d> Reader<'_, 'd> {
    pub(super) fn gateway(&self, mut section: Section<'d>) -> Read {
        let section_at = section.at();
        let identity = self.identity(&mut section);
        let cores = self.around.cores;
        let threads = section.defaulted("threads", (cores / CORES).clamp(1, THREADS), number(1..=cores));
        let sections = section.sections("listener");
        if sections.is_empty() {
            section.missing("[gateway.listener.<name>]");
        }
        if let Some((title, _)) = sections.get(LISTENERS_MAX) {
            self.complain(title.at, format!("more than {LISTENERS_MAX} listeners"));
        }
        let listeners = sections.into_iter().map(|(title, section)| {
            let listener = self.listener(title, section)?;
            Some((title.at, listener))
        });
        let listeners: Option<Vec<_>> = listeners.collect::<Vec<_>>().into_iter().collect();
        section.finish();
        let mut listeners = listeners.unwrap_or_default();
        listeners.sort_by(|(_, a), (_, b)| a.listener.name.cmp(&b.listener.name));
        let (at, listeners): (Vec<_>, Vec<_>) = listeners.into_iter().unzip();
        let gateway = identity.zip(threads).filter(|_| !listeners.is_empty()).map(|(identity, threads)| {
            Gateway { identity: identity.value, threads: threads.value, listeners }
        });
        Read { identity, gateway, section_at, at }
    }

    /// A thread whose connection is refused would answer nobody, as long as the others keep theirs.
    pub(super) fn gateway_has_seats(
        &self,
        read: &Read,
        frontend: &Frontend,
        classes: &[Class],
        tenants: &[TenantConfig],
        filed: &[FiledTenant],
    ) {
        let Some(gateway) = &read.gateway else { return };
        let bound = gateway.tenants();
        let active = tenants.iter().filter(|one| bound.contains(&one.name)).map(|one| &one.class);
        // Who is suspended may come back, and the file has to be sound then too.
        let filed = filed.iter().filter(|one| bound.contains(&one.name) && one.state != TenantState::Removed);
        let asked: BTreeSet<_> = active.chain(filed.filter_map(|one| one.class.as_ref())).collect();
        let asked: Vec<&Class> = classes.iter().filter(|class| asked.contains(&class.name)).collect();
        let needs = |class: &Class| {
            let in_use = gateway.threads.saturating_mul(gateway.connections(class));
            in_use.saturating_mul(USUALLY)
        };
        let of_all = asked.iter().fold(0_u32, |sum, class| sum.saturating_add(needs(class)));
        let complain = |of: &str, has: u32, needed: u32| {
            if has < needed {
                let why = format!(
                    "gateway: its threads, {}, have up to {needed} connections there, one for each thread of a worker and \
                     {USUALLY} times as many while another gateway takes over, and {of} is {has}; raise it",
                    gateway.threads
                );
                self.complain(read.section_at, why);
            }
        };
        complain("frontend.max_connections_per_uid", frontend.of_one_uid(classes), of_all);
        for class in asked {
            complain(&format!("class.{}.connections", class.name), class.limits.connections, needs(class));
        }
    }

    /// Compares it with the rest of the file.
    pub(super) fn gateway_fits(
        &self,
        read: Read,
        service: Option<&Service>,
        telemetry: Option<&Telemetry>,
        tenants: &[TenantConfig],
        filed: &[FiledTenant],
    ) -> Option<Gateway> {
        let Read { gateway, at, .. } = read;
        let gateway = gateway?;
        let mut taken: Vec<(Place, String)> = Vec::new();
        let unix = |path: &PathBuf| Place::Unix(path.clone(), 0);
        if let Some(service) = service {
            taken.push((unix(&service.socket), "service.socket".to_owned()));
            taken.push((unix(&service.operator_socket), "service.operator_socket".to_owned()));
        }
        if let Some(telemetry) = telemetry {
            taken.push((unix(&telemetry.socket), "telemetry.socket".to_owned()));
            taken.extend(telemetry.listen.map(|listen| (Place::Tcp(listen), "telemetry.listen".to_owned())));
        }
        for (one, at) in gateway.listeners.iter().zip(at) {
            let Listener { name, tenant, .. } = &one.listener;
            let place = match &one.place {
                Place::Unix(path, _) => unix(path),
                tcp @ Place::Tcp(_) => tcp.clone(),
            };
            if let Some((_, other)) = taken.iter().find(|(other, _)| *other == place) {
                self.complain(at, format!("gateway.listener.{name}: its socket is the same as {other}"));
            }
            taken.push((place, format!("that of gateway.listener.{name}")));
            self.listener_fits(at, &one.listener, &named(tenant), tenants, filed);
        }
        Some(gateway)
    }

    /// Who is suspended or removed is in nobody's way: it is refused when it is asked for.
    fn listener_fits(
        &self,
        at: usize,
        listener: &Listener,
        bound: &[&Tenant],
        tenants: &[TenantConfig],
        filed: &[FiledTenant],
    ) {
        let (title, asked) = (format!("gateway.listener.{}", listener.name), policies(listener));
        let mut served = Vec::new();
        for tenant in bound {
            match tenants.iter().find(|one| one.name == **tenant) {
                Some(one) => served.push(one),
                None if filed.iter().any(|one| one.name == **tenant) => {}
                None => self.complain(at, format!("{title}: tenant: there is no tenant \"{tenant}\"")),
            }
        }
        for tenant in &served {
            if !asked.iter().any(|policy| tenant.policies.contains(policy)) {
                let why = format!("{title}: tenant \"{}\" has none of its policies", tenant.name);
                self.complain(at, why);
            }
        }
        for policy in asked {
            if !served.is_empty() && !served.iter().any(|tenant| tenant.policies.contains(policy)) {
                self.complain(at, format!("{title}: none of its tenants has a policy \"{policy}\""));
            }
        }
    }
}
