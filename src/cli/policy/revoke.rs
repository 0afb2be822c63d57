//! `portcullis policy revoke`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::service::{Reload, Service, ServiceError, Where};
use crate::artifact::{Digest, KeyId, PublicKey};
use crate::cli::files::{self, FileError};
use crate::cli::terminal::{paragraph, printable};
use crate::cli::{CommandResult, complain, output};
use crate::ledger::{Record, Table};
use crate::trust::{REVOCATIONS_MAX, RevocationError, RevocationList, Revocations, Revokes};

/// The list's name in a store.
const LIST: &str = "revocations.json";
const EXIT_CODES: &str = "Exit codes: 0 the list is in force, or written where no service was asked; 1 refused or failed, with \
                          the reason; 3 written, but not known whether it is in force; 64 the command line is wrong.";

/// Put a key, a bundle, a source or machine code out of service
///
/// Writes the next version of the signed revocation list and has the service take it: what rests on it stops deciding within
/// a second, and what is under way ends as refused. The trust policy's [revocation] says whose key may sign the list. Nothing
/// is ever taken off the list; a key that is revoked counts for nothing that it ever signed.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, group(clap::ArgGroup::new("what").required(true)))]
pub(in crate::cli) struct Revoke {
    /// A bundle, by its digest
    #[arg(long, value_name = "DIGEST", group = "what")]
    bundle: Option<Digest>,
    /// A source, by its digest: every bundle that was built from it
    #[arg(long, value_name = "DIGEST", group = "what")]
    source: Option<Digest>,
    /// Machine code, by its digest
    #[arg(long, value_name = "DIGEST", group = "what")]
    cwasm: Option<Digest>,
    /// A key, by its id (`portcullis policy inspect` shows it)
    #[arg(long, value_name = "ID", group = "what")]
    key_id: Option<KeyId>,
    /// A key, by its public half
    #[arg(long = "key", value_name = "PUB", group = "what")]
    public_key: Option<PathBuf>,
    /// Why; everybody who is refused is told
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The private key to sign the list with
    #[arg(long, value_name = "KEY")]
    sign_key: PathBuf,
    /// The list; made if it is not there, and nobody is told [default: the service's, in its store]
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    reload: Reload,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("revoke: list {path:?}: {source}")]
    List { path: PathBuf, source: RevocationError },
    #[error(
        "revoke: list {path:?}: the trust policy cannot be read here, and {source}; look who wrote it, and remove it or name it \
         with --list"
    )]
    NotKnown { path: PathBuf, source: RevocationError },
    #[error("revoke: the service's trust policy would not take it: {0}")]
    NotTaken(#[source] RevocationError),
    #[error("revoke: {what} is on the list already, since {since}: {reason}")]
    Already { what: String, since: Timestamp, reason: String },
    #[error(
        "revoke: version {version} is written to {path:?}, and the service goes by {in_force}; its log says why it did not \
         take it"
    )]
    NotInForce { path: PathBuf, version: u64, in_force: String },
    #[error("revoke: say what, with --bundle, --source, --cwasm, --key or --key-id")]
    Nothing,
    #[error("print what became of it: {0}")]
    Print(#[from] std::io::Error),
}

impl Refused {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Service(error) => error.exit_code(),
            _ => 1,
        }
    }
}

impl Revoke {
    pub(super) fn run(self) -> CommandResult {
        self.revoke().or_else(|error| complain(&error, error.exit_code()))
    }

    fn revoke(&self) -> Result<ExitCode, Refused> {
        let key = files::read_signing_key(&self.sign_key)?;
        let service = if self.list.is_some() { None } else { Some(self.place.find()?) };
        let path = match (&self.list, &service) {
            (Some(list), _) => list.clone(),
            (None, Some(service)) => service.config.service.store.join(LIST),
            (None, None) => LIST.into(),
        };
        let wrong = |source| Refused::List { path: path.to_owned(), source };
        let (before, known) = self.newest(&path, service.as_ref(), &key.public_key())?;
        let what = self.what()?;
        let entry = before.revoked.iter().find(|entry| entry.what == what);
        if let Some(entry) = entry {
            let reason = printable(&entry.reason);
            return Err(Refused::Already { what: what.to_string(), since: entry.date, reason });
        }
        let now = Timestamp::now();
        let whole_seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let next = before.and(what.clone(), &self.reason, whole_seconds);
        let signed = next.sign(&key).map_err(wrong)?;
        // Who may not revoke hears so before anything is written.
        if let Some(trust) = service.as_ref().and_then(|service| service.trust.as_ref()) {
            known.verify(&signed, trust, now).map_err(Refused::NotTaken)?;
        }
        files::write(&path, &signed)?;
        let out = match &service {
            Some(service) if !self.reload.no_reload => {
                Some(self.take_effect(service, &path, next.version)?)
            }
            _ => None,
        };
        self.report(&path, &what, next.version, out.as_deref())
    }

    /// The list to go on from, and the one in force. What lies in a service's store anybody may have put there who delivers to
    /// it: it is gone on from only if the service would take it, or it is by this very key. Whoever signed a list on top of
    /// another one's would vouch for that, and for what is not on it any more.
    fn newest(
        &self,
        path: &Path,
        service: Option<&Service>,
        key: &PublicKey,
    ) -> Result<(RevocationList, Revocations), Refused> {
        let wrong = |source| Refused::List { path: path.to_owned(), source };
        let Some(service) = service else {
            return match files::read(path, REVOCATIONS_MAX) {
                Ok(bytes) => Ok((RevocationList::peek(&bytes).map_err(wrong)?, Revocations::none())),
                Err(error) if error.is_missing() => Ok((RevocationList::default(), Revocations::none())),
                Err(error) => Err(error.into()),
            };
        };
        // A service that never ran has no table, and nothing in force.
        let known = service.table().ok().and_then(|table| table.revocations);
        let (in_force, known) = match &known {
            Some(known) => {
                let bytes = known.signed.as_bytes();
                (RevocationList::peek(bytes).map_err(wrong)?, Revocations::kept(bytes).map_err(wrong)?)
            }
            None => (RevocationList::default(), Revocations::none()),
        };
        let there = match files::read_strangers(path, REVOCATIONS_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                if !error.is_missing() {
                    output::error(&format!("{error}; it is replaced"));
                }
                return Ok((in_force, known));
            }
        };
        let good = match &service.trust {
            Some(trust) => known.verify(&there, trust, Timestamp::now()).map(drop),
            None => RevocationList::check_signed_by(&there, key),
        };
        let list = good.and_then(|()| RevocationList::peek(&there));
        match list {
            Ok(there) if there.version > in_force.version => Ok((there, known)),
            Ok(_) => Ok((in_force, known)),
            Err(error) if service.trust.is_some() => {
                output::error(&format!("list {path:?}: {error}; it is replaced"));
                Ok((in_force, known))
            }
            // It may be somebody's who may revoke, and what they revoked must not be lost.
            Err(source) => Err(Refused::NotKnown { path: path.to_owned(), source }),
        }
    }

    fn what(&self) -> Result<Revokes, Refused> {
        if let Some(path) = &self.public_key {
            return Ok(Revokes::Key(files::read_public_key(path)?.id()));
        }
        let key = self.key_id.clone().map(Revokes::Key);
        let digest = || self.bundle.or(self.source).or(self.cwasm).map(Revokes::Digest);
        key.or_else(digest).ok_or(Refused::Nothing)
    }

    /// Has the service take it; gives what is out of service now.
    fn take_effect(&self, service: &Service, path: &Path, version: u64) -> Result<Vec<Record>, Refused> {
        let in_force = |table: &Table| table.revocations.as_ref().map(|known| known.version);
        let taken = |table: &Table| in_force(table).is_some_and(|in_force| in_force >= version);
        let Some(table) = service.until(&self.reload, |table| taken(table).then(|| table.clone()))? else {
            let in_force = in_force(&service.table()?);
            let in_force = in_force.map_or_else(|| "none".to_owned(), |version| format!("version {version}"));
            return Err(Refused::NotInForce { path: path.to_owned(), version, in_force });
        };
        Ok(table.policies.into_iter().filter(|record| record.withdrawn.is_some()).collect())
    }

    fn report(
        &self,
        path: &Path,
        what: &Revokes,
        version: u64,
        out: Option<&[Record]>,
    ) -> Result<ExitCode, Refused> {
        if self.json {
            let out = out.map(|records| {
                let record = |record: &Record| {
                    json!({ "tenant": record.tenant, "policy": record.policy, "why": record.withdrawn })
                };
                records.iter().map(record).collect::<Vec<_>>()
            });
            output::json(&json!({
                "path": path, "revoked": what, "version": version, "in_force": out.is_some(), "out_of_service": out,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = format!("revoked   {what}\nlist      {} version {version}\n", path.display());
        match out {
            None => {
                text +=
                    "in force  when the service has it in its store and takes it: at once, or at a reload\n"
            }
            Some([]) => text += "in force  now; nothing that served rested on it\n",
            Some(records) => {
                text += "in force  now; out of service:\n";
                for Record { tenant, policy, withdrawn, .. } in records {
                    let why = withdrawn.as_deref().unwrap_or_default();
                    text += &paragraph(&format!("  {tenant}/{policy}:"), &printable(why));
                }
            }
        }
        output::text(format_args!("{text}"))?;
        Ok(ExitCode::SUCCESS)
    }
}
