//! A change of one tenant's state, one step after the other:
//!
//! ```text
//! intent      .unfinished says what is to be done, with whom
//! add         <tenant>.toml appears, pending: its name is taken
//! the file    in its new state
//! reload      the service reads all of it again
//! outcome     accepted: done. Refused: the file is failed (or active again, where it was to be suspended); the service
//!             goes on with what it had. Accepted, but its class would not start with it: the file is failed (or stays
//!             suspended, which it is for who comes new). Another class that does not follow is only told of
//! end         .unfinished is removed
//! ```
//!
//! Each step is on the disk before the next is taken, and can be taken again: whatever a command left unfinished, the next one
//! goes on from the state that the file is in. A removal that is not over keeps nobody from their work: its tombstone is there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::directory::{Directory, DirectoryError, Intent, Operation, intent};
use super::file;
use crate::cli::operator::{OperatorError, ask_status};
use crate::cli::policy::service::{Where, configuration, surroundings};
use crate::cli::reload::{ReloadError, reload};
use crate::decision::{Tenant, TrustClass};
use crate::supervisor::config::{self, Config, ConfigErrors, FiledTenant, TenantState};

/// The configuration, and how the service hears of a change.
#[derive(Debug, Args)]
pub(super) struct Reach {
    #[command(flatten)]
    pub(super) place: Where,
    /// The operators' socket [default: $PORTCULLIS_OPERATOR_SOCKET, or the configuration's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How many seconds to wait until it is done
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u32,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TenantError {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error(
        "{path:?} has no `tenants` in [service]: say there which directory has tenants' files, and restart the service"
    )]
    NoDirectory { path: PathBuf },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("nothing was changed: {0}")]
    NotThere(#[source] OperatorError),
    #[error("{0}; the next `portcullis tenant` command that changes something takes it up")]
    Unknown(#[source] ReloadError),
    #[error("{0}")]
    Refused(String),
    #[error("read {path:?}: {why}")]
    File { path: PathBuf, why: String },
    #[error("print what became of it: {0}")]
    Print(#[from] std::io::Error),
}

impl TenantError {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::NotThere(_) | Self::Unknown(_) => 3,
            _ => 1,
        }
    }
}

/// How a change ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The service does what the file says.
    Done {
        /// The reload's number; 0 if there was none.
        reload: u64,
        /// Why others do not follow that reload, if so.
        warning: Option<String>,
    },
    /// The service refused, and goes on with what it had.
    Refused(String),
    /// The configuration is in force, but the tenant's own class would not start with it and goes on with what it had.
    Behind(String),
    /// Nothing had been written yet when it was interrupted, or somebody has removed the tenant since.
    TakenBack,
}

impl Outcome {
    /// It was so before.
    pub(super) const AS_BEFORE: Self = Self::Done { reload: 0, warning: None };
}

/// The directory, locked, and the service that reads it.
pub(super) struct Change {
    pub(super) directory: Directory,
    pub(super) config: Config,
    /// What another command had left unfinished, and how that ended now.
    pub(super) before: Option<(Intent, Outcome)>,
    config_path: PathBuf,
    directory_path: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) patience: Duration,
}

impl Reach {
    /// Locks the directory and finishes what was begun before. The service has to be there, or nothing is changed.
    pub(super) fn begin(&self) -> Result<Change, TenantError> {
        let config = configuration(&self.place.config)?;
        let directory_path = directory_of(&self.place.config, &config)?;
        let socket = self.socket(&config);
        let patience = Duration::from_secs(self.timeout.into());
        let directory = Directory::lock(&directory_path, patience)?;
        ask_status(&socket).map_err(TenantError::NotThere)?;
        let config_path = self.place.config.clone();
        let mut change =
            Change { directory, config, before: None, config_path, directory_path, socket, patience };
        if let Some(unfinished) = intent(&change.directory_path)? {
            let outcome = match change.carry_on(&unfinished) {
                // Its tombstone is there for every reload to come.
                Err(error @ (TenantError::Refused(_) | TenantError::Unknown(_)))
                    if unfinished.operation == Operation::Remove =>
                {
                    Outcome::Refused(error.to_string())
                }
                outcome => outcome?,
            };
            change.before = Some((unfinished, outcome));
        }
        // Whoever held the lock may have changed it.
        change.config = configuration(&change.config_path)?;
        Ok(change)
    }

    fn socket(&self, config: &Config) -> PathBuf {
        let named = self.socket.clone();
        named
            .or_else(|| std::env::var_os("PORTCULLIS_OPERATOR_SOCKET").map(PathBuf::from))
            .unwrap_or_else(|| config.service.operator_socket.clone())
    }
}

pub(super) fn directory_of(path: &Path, config: &Config) -> Result<PathBuf, TenantError> {
    let directory = config.service.tenants.clone();
    directory.ok_or_else(|| TenantError::NoDirectory { path: path.to_owned() })
}

impl Change {
    /// What is known of a tenant that has a file.
    pub(super) fn filed(&self, tenant: &Tenant) -> Option<&FiledTenant> {
        self.config.filed.iter().find(|one| one.name == *tenant)
    }

    /// It has a file, whatever is in it.
    pub(super) fn known(&self, tenant: &Tenant) -> Result<String, TenantError> {
        if let Some(text) = self.directory.read(tenant)? {
            return Ok(text);
        }
        let path = &self.config_path;
        Err(TenantError::Refused(if self.config.tenants.iter().any(|one| one.name == *tenant) {
            let file = self.directory.file_of(tenant);
            format!(
                "tenant {tenant} is in {path:?}: change [tenant.{tenant}] there, or move it into {file:?}"
            )
        } else {
            format!("there is no tenant {tenant}; `portcullis tenant list` shows who there is")
        }))
    }

    /// Whether the service could serve a tenant whose file says this.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn judge(&self, tenant: &Tenant, text: &str) -> Result<(), TenantError> {
        let path = self.directory.file_of(tenant);
        let (_, refused) = config::look_with(&self.config_path, &surroundings(), (&path, text))?;
        refused.map_or(Ok(()), |errors| Err(errors.into()))
    }

    /// Says on the disk what is to be done, and does it.
    pub(super) fn carry_out(&self, operation: Operation, tenant: &Tenant) -> Result<Outcome, TenantError> {
        let intent = Intent { operation, tenant: tenant.clone() };
        self.directory.begin(&intent)?;
        self.carry_on(&intent)
    }

    /// The same for who puts a new file there, which is pending first.
    pub(super) fn put(&self, tenant: &Tenant, text: &str) -> Result<Outcome, TenantError> {
        let intent = Intent { operation: Operation::Add, tenant: tenant.clone() };
        self.directory.begin(&intent)?;
        let pending = self.in_state(tenant, text, TenantState::Pending, None)?;
        self.directory.write(tenant, &pending)?;
        self.carry_on(&intent)
    }

    /// Goes on from wherever it is.
    fn carry_on(&self, intent: &Intent) -> Result<Outcome, TenantError> {
        let tenant = &intent.tenant;
        let outcome = match intent.operation {
            Operation::Add | Operation::Resume => self.serve(tenant)?,
            Operation::Suspend => self.suspend(tenant)?,
            Operation::Remove => self.remove(tenant)?,
        };
        self.directory.end()?;
        Ok(outcome)
    }

    /// Its file, unless there is none, or a tombstone: somebody may have put that there since the command was interrupted.
    fn read(&self, tenant: &Tenant) -> Result<Option<String>, TenantError> {
        let removed =
            |text: &String| file::said(text, "state").as_deref() == Some(TenantState::Removed.word());
        Ok(self.directory.read(tenant)?.filter(|text| !removed(text)))
    }

    fn serve(&self, tenant: &Tenant) -> Result<Outcome, TenantError> {
        let Some(text) = self.read(tenant)? else { return Ok(Outcome::TakenBack) };
        let active = self.in_state(tenant, &text, TenantState::Active, None)?;
        self.directory.write(tenant, &active)?;
        let outcome = self.reload(&active)?;
        if let Outcome::Refused(why) | Outcome::Behind(why) = &outcome {
            let failed = self.in_state(tenant, &active, TenantState::Failed, Some(why))?;
            self.directory.write(tenant, &failed)?;
        }
        Ok(outcome)
    }

    fn suspend(&self, tenant: &Tenant) -> Result<Outcome, TenantError> {
        let Some(text) = self.read(tenant)? else { return Ok(Outcome::TakenBack) };
        let suspended = self.in_state(tenant, &text, TenantState::Suspended, None)?;
        self.directory.write(tenant, &suspended)?;
        let outcome = self.reload(&suspended)?;
        if matches!(outcome, Outcome::Refused(_)) {
            // It is served: the file says so.
            let active = self.in_state(tenant, &suspended, TenantState::Active, None)?;
            self.directory.write(tenant, &active)?;
        }
        Ok(outcome)
    }

    /// The name is used up from the first step on, whatever the service says.
    fn remove(&self, tenant: &Tenant) -> Result<Outcome, TenantError> {
        let class = self.filed(tenant).and_then(|one| one.class.as_ref());
        let tombstone = file::tombstone(class);
        self.directory.write(tenant, &tombstone)?;
        match self.reload(&tombstone)? {
            // It is still served: this is not over.
            Outcome::Behind(why) => Err(TenantError::Refused(format!(
                "tenant {tenant} is removed, and new connections are refused, but its class did not start without it, and those \
                 that are open go on: {why}; mend that, and type the same again"
            ))),
            Outcome::Refused(why) => Err(TenantError::Refused(format!(
                "tenant {tenant} is removed, but the service refused to reload and still serves it: {why}; mend that, and \
                 type the same again"
            ))),
            outcome => Ok(outcome),
        }
    }

    /// On account of a tenant whose file says this.
    fn reload(&self, text: &str) -> Result<Outcome, TenantError> {
        match reload(&self.socket, self.patience) {
            Ok(status) => {
                let reload = status.processes.asked.map_or(0, |asked| asked.number);
                Ok(Outcome::Done { reload, warning: None })
            }
            Err(ReloadError::Refused(why)) => Ok(Outcome::Refused(why)),
            Err(ReloadError::Partly { number, why, behind }) => {
                let class = file::said(text, "class");
                // Of whom the class is not known, it may be any.
                let is_its = |one: &TrustClass| class.as_ref().is_none_or(|class| one.as_str() == class);
                Ok(if behind.iter().any(is_its) {
                    Outcome::Behind(why)
                } else {
                    Outcome::Done { reload: number, warning: Some(why) }
                })
            }
            Err(error) => Err(TenantError::Unknown(error)),
        }
    }

    fn in_state(
        &self,
        tenant: &Tenant,
        text: &str,
        state: TenantState,
        cause: Option<&str>,
    ) -> Result<String, TenantError> {
        file::in_state(text, state, cause)
            .map_err(|why| TenantError::File { path: self.directory.file_of(tenant), why })
    }
}
