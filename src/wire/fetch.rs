//! `portcullis policy push | pull` <-> the fetcher, which is its child. The command trusts nothing that the fetcher says
//! but names that are checked as they are decoded, digests, numbers, and texts that it escapes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::artifact::Digest;
use crate::bundle::Reference;
use crate::wire::control::Isolation;

/// Largest message, bytes: a task with a long token in it.
pub const FETCH_MAX: usize = 64 << 10;
/// Most objects of one bundle: manifests, blobs, and what is attached.
pub const OBJECTS_MAX: usize = 512;
/// The descriptors a fetcher is started with, besides 2 (the command's standard error).
pub mod fd {
    /// SOCK_SEQPACKET to the command.
    pub const CHANNEL: i32 = 0;
    /// Pull: the folder that everything goes to. Push: /dev/null.
    pub const FOLDER: i32 = 1;
    /// Nothing is at this number or above it.
    pub const FIRST_FREE: i32 = 3;
}

/// What the command tells the fetcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToFetcher {
    /// First, and once. Descriptor: the file with the certificates that are believed, if not the system's.
    Task(Box<Task>),
    /// Push: an object and, as descriptor, its bytes. In the order in which they are to be sent.
    Object(Object),
    /// Push: that was the last one.
    NoMore,
}

/// What to do, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Who the fetcher is to become before it hears a byte from the network.
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    /// The command's process: its fetcher ends with it.
    pub command: i32,
    pub action: Action,
    pub reference: Reference,
    /// Without TLS. Whether that may be is the command's to decide.
    pub plain_http: bool,
    pub credentials: Credentials,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Pull,
    Push,
}

/// What the registry is told about who asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credentials {
    Anonymous,
    Password {
        user: String,
        secret: String,
    },
    /// Exchanged for an access token (OAuth 2 refresh token).
    Identity {
        token: String,
    },
    /// Sent as it is.
    Access {
        token: String,
    },
}

/// Without the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Password { user, .. } => write!(f, "Password({user:?})"),
            Self::Identity { .. } => f.write_str("Identity"),
            Self::Access { .. } => f.write_str("Access"),
        }
    }
}

/// Something of a bundle that is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub digest: Digest,
    pub size: u64,
    pub kind: ObjectKind,
}

/// What it is to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    Blob,
    /// By its digest, or under a tag of its own.
    Manifest {
        media_type: String,
        tag: Option<String>,
    },
    /// A manifest whose `subject` is the bundle, with its descriptor's JSON for a list of referrers.
    Attached {
        media_type: String,
        descriptor: String,
    },
    /// The bundle's index: last, and under the reference's tag.
    Bundle {
        media_type: String,
    },
}

/// What the fetcher says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromFetcher {
    /// Locked in. What comes from here on was said with the network in reach.
    Ready,
    /// An object begins; `have` of its bytes are there already.
    Begins { what: String, digest: Digest, size: u64, have: u64 },
    /// So many of its bytes are there now.
    Progress { digest: Digest, have: u64 },
    /// It is there, whole and with its digest.
    Finished { digest: Digest },
    /// Something a person may want to know.
    Note(String),
    /// The last message of a pull.
    Pulled(Pulled),
    /// The last message of a push.
    Pushed { bundle: Digest, sent: u64, reused: u64 },
    /// The last message of what failed. `again`: with what is there already, another try may do.
    Failed { why: String, again: bool },
}

/// What is in the folder now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    pub bundle: Digest,
    /// Manifests of signatures, provenance and the like.
    pub attached: Vec<Digest>,
    /// Bytes that came over the network, and that were there from an earlier try.
    pub received: u64,
    pub reused: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_in_debug_texts() {
        let password = Credentials::Password { user: "ann".into(), secret: "hunter2".into() };
        let shown = [
            password,
            Credentials::Identity { token: "hunter2".into() },
            Credentials::Access { token: "hunter2".into() },
        ]
        .map(|credentials| format!("{credentials:?}"));
        assert_eq!(shown, ["Password(\"ann\")", "Identity", "Access"]);
    }
}
