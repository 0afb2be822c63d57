//! What may run here: verified, compiled where needed, signed for this host, handed to workers.
//!
//! ```text
//!  store (others write it)        state (this process alone)              workers
//!  <tenant>/<policy>[.tar] --read, verify--> bundles/  --sealed memory, host's signature--> supply channels
//!  revocations.json        --verify-------> table.json                                       (withdrawn later)
//!  orders of an operator   --once---------> history
//!                              ^ a builder's word on each, asked for through the supervisor
//! ```
//!
//! Nothing of the store is believed ([`survey`]); what is active is what the table says ([`state`]), and the table only changes
//! whole. A policy that is no good is named and held back, and stops nobody. Who is trusted can change while nothing else
//! does, so what is active is judged again each time: by a survey, when a revocation list comes ([`watch`]), and when
//! something expires ([`clock`]). What does not hold any more is withdrawn from every worker that has it ([`supply`]).
//! Nothing older serves in its place by itself: which version that should be is for an operator to say.

mod clock;
mod evidence;
mod jobs;
mod revoked;
mod serve;
mod setting;
mod state;
mod supply;
mod survey;
mod tally;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::accounts::{Access, Map, MapError, RegistryAccount};
use crate::sandbox::{self, Given, Places, Role, SealError, Sealed};
use crate::trust::RevocationError;
use crate::wire::channel::{Channel, SendError, take_inherited};
use crate::wire::control::{CONTROL_MAX, FromChild, Ready, fd};

use clock::Clock;
use serve::{Control, Registry, ServeError, read_assignment};
use state::{State, StateError};

/// Why a registry does not serve, or not any more.
#[derive(Debug, thiserror::Error)]
enum RegistryError {
    #[error("take what the supervisor left: {0}")]
    Inherited(#[source] io::Error),
    #[error("read assignment: {0}")]
    Assignment(#[source] io::Error),
    #[error(transparent)]
    Accounts(#[from] MapError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("state: the revocation list in the table is none: {0}")]
    Revocations(#[from] RevocationError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("tell supervisor: {0}")]
    Tell(#[from] SendError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// The program `portcullis-registry`. Started by the spawner, never by hand.
#[must_use]
pub fn main() -> ExitCode {
    sandbox::settle_allocator();
    sandbox::install_panic_hook(Role::Registry);
    crate::journal::start(Role::Registry.name());
    let control = match take_inherited(fd::CONTROL) {
        Ok(control) => Channel::new(control, CONTROL_MAX),
        Err(error) => {
            tracing::error!(%error, "not started by a supervisor");
            return ExitCode::from(64);
        }
    };
    match start(control).and_then(|(sealed, registry)| Ok(registry.serve(sealed)?)) {
        Ok(()) => sandbox::end(0),
        Err(error) => {
            tracing::error!(%error, "registry ends");
            sandbox::end(1)
        }
    }
}

/// Up to Ready. If something goes wrong, the supervisor is told what.
fn start(control: Control) -> Result<(Sealed, Registry), RegistryError> {
    let inherited = sandbox::check_inherited(Role::Registry).map_err(RegistryError::from);
    let prepared = inherited.and_then(|()| prepare_and_seal());
    match prepared {
        Ok((sealed, ready, parts)) => {
            control.send(&FromChild::Ready(ready), None)?;
            let (assignment, state, clock, account) = parts;
            Ok((sealed, Registry::new(control, assignment, state, clock, Some(account))?))
        }
        Err(error) => {
            // It may be gone itself.
            let _ = control.send(&FromChild::Failed { why: error.to_string() }, None);
            Err(error)
        }
    }
}

type Parts = (crate::wire::control::RegistryAssignment, State, Clock, &'static Map<RegistryAccount>);

fn prepare_and_seal() -> Result<(Sealed, Ready, Parts), RegistryError> {
    let memfd = take_inherited(fd::ASSIGNMENT).map_err(RegistryError::Inherited)?;
    let assignment = read_assignment(memfd).map_err(RegistryError::Assignment)?;
    let account = take_inherited(fd::ACCOUNTS).map_err(RegistryError::Inherited)?;
    // For good: once this process is sealed nothing is unmapped any more.
    let account = Box::leak(Box::new(Map::<RegistryAccount>::new(account, Access::Write)?));
    let given = Given::check(Role::Registry, assignment.uid, assignment.gid, assignment.isolation)?;
    // A state that is no good ends it here, with a sentence.
    let state = State::open(Path::new(&assignment.state))?;
    let clock = Clock::new(state.table().latest);
    let places = Places::default().with("store", &assignment.store).with("state", &assignment.state);
    let confined = given.confine(&places)?;
    let landlock_abi = confined.landlock_abi();
    sandbox::prove_landlock()?;
    let sealed = confined.seal()?;
    let ready =
        Ready { loaded: 0, refused: 0, pagemap_scan: false, landlock_abi, landlock_proven_threads: 1 };
    Ok((sealed, ready, (assignment, state, clock, account)))
}
