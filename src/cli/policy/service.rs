//! The service on this host: its configuration, what its registry has written down, and what its store has. For root, or
//! for whoever the registry runs as.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::stored::{Stored, StoredError, signer};
use crate::bundle::{Kind, Ownership, open_policy};
use crate::cli::reload::{ReloadError, reload};
use crate::decision::{PolicyName, Tenant};
use crate::ledger::{self, Entry, Event, LedgerError, Order, Origin, Record, Table};
use crate::supervisor::config::{self, Config, ConfigErrors, Surroundings};
use crate::trust::TrustPolicy;
use crate::wire::control::Isolation;

/// Where the configuration is, unless said otherwise.
const CONFIGURATION: &str = "/etc/portcullis/portcullis.toml";
/// Stands for a directory of which only the supervisor's environment knows the name.
const UNSEEN_CREDENTIALS: &str = "/proc/credentials-of-the-supervisor";

/// Where the service is.
#[derive(Debug, Args)]
pub(in crate::cli) struct Where {
    /// The configuration the service runs with
    #[arg(long, value_name = "PATH", default_value = CONFIGURATION)]
    pub(in crate::cli) config: PathBuf,
}

/// How the service hears of it.
#[derive(Debug, Args)]
pub(super) struct Reload {
    /// The operators' socket [default: $PORTCULLIS_OPERATOR_SOCKET, or the configuration's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How many seconds to wait until it is done
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u32,
    /// Leave it for the next `portcullis reload`, or the next start
    #[arg(long)]
    pub(super) no_reload: bool,
}

/// A service that was found.
pub(in crate::cli) struct Service {
    pub(in crate::cli) config: Config,
    /// For the names of signers; nothing where it cannot be read here.
    pub(super) trust: Option<TrustPolicy>,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ServiceError {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Stored(#[from] StoredError),
    #[error("open store {path:?}: {source}")]
    Store { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error(
        "order {number} was left, and the service has not carried it out; `portcullis policy history` tells what becomes of it"
    )]
    NotYet { number: u64 },
}

impl ServiceError {
    /// 3 where it is not known what the service did.
    #[must_use]
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Reload(error) => error.exit_code(),
            Self::NotYet { .. } => 3,
            _ => 1,
        }
    }
}

impl Where {
    /// The service as its configuration says, whatever state the files that it names are in.
    pub(in crate::cli) fn find(&self) -> Result<Service, ServiceError> {
        let config = configuration(&self.config)?;
        let trust = TrustPolicy::parse(&config.service.trust.path, &config.service.trust.text).ok();
        Ok(Service { config, trust })
    }
}

/// A configuration as it is written, whatever state the files that it names are in.
pub(in crate::cli) fn configuration(path: &Path) -> Result<Config, ConfigErrors> {
    let (config, _) = config::look(path, &surroundings())?;
    Ok(config)
}

/// Of who types a command, and reads what the service would read.
pub(in crate::cli) fn surroundings() -> Surroundings {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    Surroundings {
        isolation: if uid.is_root() { Isolation::DistinctUids } else { Isolation::SharedUid },
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        cores: std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
        systemd: false,
        credentials: Some(UNSEEN_CREDENTIALS.into()),
    }
}

impl Service {
    /// What the registry has written down.
    pub(super) fn table(&self) -> Result<Table, ServiceError> {
        Ok(ledger::read(&self.config.service.state)?)
    }

    /// The bundle that lies in the store for a policy.
    pub(super) fn delivered(&self, tenant: &Tenant, policy: &PolicyName) -> Result<Stored, ServiceError> {
        let path = &self.config.service.store;
        let failed = |source| ServiceError::Store { path: path.clone(), source };
        let store = File::open(path).map_err(failed)?;
        let ownership = Ownership::of(&store).map_err(failed)?;
        let layout = open_policy(&store, tenant, policy, &ownership).map_err(StoredError::from)?;
        Ok(Stored::read(layout)?)
    }

    /// Has the service look at everything again, and waits.
    pub(super) fn reload(&self, how: &Reload) -> Result<(), ServiceError> {
        let socket = how
            .socket
            .clone()
            .or_else(|| std::env::var_os("PORTCULLIS_OPERATOR_SOCKET").map(PathBuf::from))
            .unwrap_or_else(|| self.config.service.operator_socket.clone());
        reload(&socket, Duration::from_secs(how.timeout.into()))?;
        Ok(())
    }

    /// Leaves an order, has it carried out, and says what became of it; nothing where nobody was told.
    pub(super) fn order(&self, order: &Order, how: &Reload) -> Result<(u64, Option<Event>), ServiceError> {
        let number = ledger::place(&self.config.service.state, order)?;
        if how.no_reload {
            return Ok((number, None));
        }
        let event = self.until(how, |table| {
            table.history.iter().rev().find(|event| event.order == Some(number)).cloned()
        })?;
        event.map(|event| (number, Some(event))).ok_or(ServiceError::NotYet { number })
    }

    /// Reloads until the table shows what is looked for: twice, since the first reload that ends may be one that the service
    /// had begun of its own accord before it was asked.
    pub(super) fn until<T>(
        &self,
        how: &Reload,
        found: impl Fn(&Table) -> Option<T>,
    ) -> Result<Option<T>, ServiceError> {
        for _ in 0..2 {
            self.reload(how)?;
            if let Some(found) = found(&self.table()?) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    pub(super) fn signers(&self, entry: &Entry) -> String {
        let name = |who| signer(who, self.trust.as_ref().and_then(|trust| trust.name_of(who)));
        let signers: Vec<_> = entry.evidence.signers.iter().map(name).collect();
        if signers.is_empty() { "nobody who is still trusted".to_owned() } else { signers.join(", ") }
    }
}

pub(super) fn record<'t>(table: &'t Table, tenant: &Tenant, policy: &PolicyName) -> Option<&'t Record> {
    table.policies.iter().find(|record| record.tenant == *tenant && record.policy == *policy)
}

/// A time that the registry wrote down.
pub(super) fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| format!("{seconds} s after 1970"), |time| time.to_string())
}

/// A version of a policy, in aligned lines.
pub(super) fn describe(service: &Service, entry: &Entry) -> String {
    let kind = entry.config.kind();
    let what = match kind {
        Kind::Policy => "code     ",
        Kind::Data => "table    ",
    };
    let origin = match entry.code.origin {
        Origin::Bundle => "from the bundle",
        Origin::Builder => "compiled on this host",
    };
    format!(
        "  bundle    {}\n  {what} {} ({origin}{})\n  signed by {}\n  since     {}\n",
        entry.bundle,
        entry.code.cwasm,
        if entry.config.confidential.is_some() { ", encrypted" } else { "" },
        service.signers(entry),
        time(entry.since),
    )
}

/// What is typed in front of every command here.
pub(super) fn about(tenant: &Tenant, policy: &PolicyName) -> String {
    format!("policy {policy} for tenant {tenant}")
}
