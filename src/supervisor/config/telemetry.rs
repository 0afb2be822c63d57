//! `[telemetry]`: where numbers are told, and to how many tenants each their own. No such section, no such process.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeValue;

use super::read::Reader;
use super::values::{mode, socket_path};
use super::{Config, Identity, Service, modules, places};
use crate::document::values::{number, text};
use crate::document::{Found, Section};
use crate::otlp::{Collector, InvalidCollector};
use crate::supervisor::books::Books;
use crate::wire::control::{ExporterAssignment, ExporterTenant, Isolation};

/// Nobody needs more series than a scraper can hold.
const TENANTS_MAX: u32 = 10_000;

/// The exporter's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    pub identity: Identity,
    pub socket: PathBuf,
    /// Permission bits: who may connect may read.
    pub socket_mode: u32,
    /// An address of this machine that only this machine reaches.
    pub listen: Option<SocketAddr>,
    /// Tenants with series of their own; the others are summed up.
    pub max_tenants: u32,
    /// Where spans go of decisions whose client records a trace.
    pub otlp: Option<Collector>,
}

impl Config {
    /// What the exporter needs of it, if there is to be one. `tcp`: it gets a TCP socket too.
    pub(in crate::supervisor) fn exporter_assignment(
        &self,
        books: &Books,
        isolation: Isolation,
        tcp: bool,
    ) -> Option<ExporterAssignment> {
        let telemetry = self.telemetry.as_ref()?;
        let tenants = self.tenants.iter().map(|tenant| ExporterTenant {
            tenant: tenant.name.clone(),
            class: tenant.class.clone(),
            slot: books.tenant(&tenant.name).unwrap_or(u32::MAX),
            modules: tenant.policies.iter().cloned().zip(modules(books, tenant)).collect(),
        });
        Some(ExporterAssignment {
            uid: telemetry.identity.uid,
            gid: telemetry.identity.gid,
            isolation,
            tcp,
            max_tenants: telemetry.max_tenants,
            otlp: telemetry.otlp.clone(),
            classes: self.classes.iter().map(|class| class.name.clone()).collect(),
            tenants: tenants.collect(),
        })
    }
}

/// What `next` changes of it that only a restart can change.
pub(super) fn fixed_parts_changed(old: Option<&Telemetry>, new: Option<&Telemetry>) -> Vec<String> {
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, None) => return Vec::new(),
        (Some(_), None) | (None, Some(_)) => return vec!["whether there is [telemetry]".to_owned()],
    };
    let compared = [
        (old.identity == new.identity, "telemetry.uid or gid"),
        (old.socket == new.socket, "telemetry.socket"),
        (old.socket_mode == new.socket_mode, "telemetry.socket_mode"),
        (old.listen == new.listen, "telemetry.listen"),
        (old.otlp == new.otlp, "telemetry.otlp"),
    ];
    compared.into_iter().filter(|(same, _)| !same).map(|(_, what)| what.to_owned()).collect()
}

impl<'d> Reader<'_, 'd> {
    pub(super) fn telemetry(&self, mut section: Section<'d>) -> (Option<Found<Identity>>, Option<Telemetry>) {
        let identity = self.identity(&mut section);
        let socket = section.required("socket", socket_path);
        let socket_mode = section.defaulted("socket_mode", 0o660, mode);
        let listen = section.optional("listen", own_address);
        let max_tenants = section.defaulted("max_tenants", 1000, number(0..=TENANTS_MAX));
        let otlp = section.optional("otlp", collector);
        section.finish();
        if let Some(socket) = &socket {
            self.look(socket.at, places::socket_directory(&socket.value, self.owners));
        }
        let telemetry = || {
            Some(Telemetry {
                identity: identity?.value,
                socket: socket?.value,
                socket_mode: socket_mode?.value,
                listen: listen.map(|found| found.value),
                max_tenants: max_tenants?.value,
                otlp: otlp.map(|found| found.value),
            })
        };
        (identity, telemetry())
    }

    /// No other socket's place.
    pub(super) fn telemetry_apart(&self, at: usize, telemetry: &Telemetry, service: &Service) {
        for (name, other) in [("socket", &service.socket), ("operator_socket", &service.operator_socket)] {
            if telemetry.socket == *other {
                self.complain(at, format!("[telemetry]: socket is the same as service.{name}"));
            }
        }
    }
}

fn collector(value: &DeValue<'_>) -> Result<Collector, String> {
    text(value)?.parse().map_err(|why: InvalidCollector| why.to_string())
}

/// Whoever reaches it reads it, without being asked who they are: so it is for this machine alone.
pub(super) fn own_address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let written = text(value)?;
    let address: SocketAddr = written.parse().map_err(|_| {
        format!("{written:?} is not an address and a port; write \"127.0.0.1:9464\" or \"[::1]:9464\"")
    })?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{written:?} can be reached from other machines; write \"127.0.0.1:{0}\" or \"[::1]:{0}\", and put a proxy \
             that asks who it is in front of it",
            address.port()
        ));
    }
    if address.port() == 0 {
        return Err(format!("{written:?} is any port; name one, such as 9464"));
    }
    Ok(address)
}
