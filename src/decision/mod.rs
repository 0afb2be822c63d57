//! The vocabulary: what is asked, what is answered, and the names of those who ask.
//!
//! These types cross process boundaries, so their serde shape is the protocol (`docs/protocol.md`): adding a variant
//! goes at the end, and nothing is reordered.

mod id;
mod obligations;
mod trace;

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

pub use id::{DecisionId, InvalidDecisionId};
pub(crate) use obligations::at_most;
pub use obligations::{ENTRIES_MAX, HEADER_NAME_MAX, HeaderValue, Metadatum, Obligations, Unfit};
pub use trace::{InvalidTraceContext, TraceContext};

use crate::artifact::Digest;

/// Longest tenant, trust class or policy name, in bytes.
pub const NAME_MAX: usize = 64;

/// A name is not one: empty, too long, or with a character outside `a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name {name:?}: {why}")]
pub struct InvalidName {
    name: String,
    why: &'static str,
}

fn check_name(name: &str) -> Result<(), InvalidName> {
    let refuse = |why| Err(InvalidName { name: name.chars().take(NAME_MAX + 8).collect(), why });
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > NAME_MAX {
        return refuse("is longer than 64 bytes");
    }
    // Names become file names: a leading dot would be "..", a hidden or a temporary file.
    if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return refuse("must start with a letter a-z or a digit");
    }
    if !name.bytes().all(legal) {
        return refuse("may only have a-z, 0-9, '.', '_' and '-'");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes a name of 1 to [`NAME_MAX`] bytes out of `a-z 0-9 . _ -` that starts with a letter or a digit.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                check_name(name).map(|()| Self(name.into()))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(&name)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Who a policy decides for.
    Tenant
}
name! {
    /// Tenants that may share a process: one UID, one cache, one worker at a time.
    TrustClass
}
name! {
    /// A policy, by the name its signed statement carries.
    PolicyName
}

/// What a policy is asked about. Strings and bytes borrow from the frame they arrived in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input<'a> {
    #[serde(borrow)]
    Http(HttpRequest<'a>),
    /// Bytes that only the policy understands, and what they claim to be (a media type, or empty).
    Opaque {
        content_type: &'a str,
        #[serde(serialize_with = "in_one_piece")]
        bytes: &'a [u8],
    },
}

/// One HTTP request as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest<'a> {
    pub method: &'a str,
    pub scheme: &'a str,
    pub host: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// Without the question mark; `None` if there was no question mark.
    pub query: Option<&'a str>,
    #[serde(borrow)]
    pub headers: Vec<Header<'a>>,
    #[serde(serialize_with = "in_one_piece_if_any")]
    pub body: Option<&'a [u8]>,
    #[serde(borrow)]
    pub source: Peer<'a>,
    #[serde(borrow)]
    pub destination: Peer<'a>,
    /// What the proxy says beyond HTTP, in its order: "tls.sni", "route.name". A name may come twice.
    #[serde(borrow)]
    pub attributes: Vec<Attribute<'a>>,
}

/// One thing the proxy knows of a request, by a name of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute<'a> {
    pub name: &'a str,
    pub value: &'a str,
}

/// One header line; the value is bytes, as HTTP has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header<'a> {
    pub name: &'a str,
    #[serde(serialize_with = "in_one_piece")]
    pub value: &'a [u8],
}

/// One end of the proxied connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer<'a> {
    pub address: Address,
    /// 0 where the address has none.
    pub port: u16,
    /// Who the proxy has authenticated there (a SPIFFE id, a certificate's subject), if anyone.
    pub principal: Option<&'a str>,
}

/// A network address as the proxy saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// A Unix socket, or not known.
    #[default]
    Unknown,
    Ipv4([u8; 4]),
    Ipv6([u8; 16]),
}

/// Serde takes a `&[u8]` for a list and writes it number by number. This way the bytes on the wire are the same, and
/// get there in one copy.
pub(crate) struct InOnePiece<'a>(pub(crate) &'a [u8]);

impl Serialize for InOnePiece<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

pub(crate) fn in_one_piece<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

fn in_one_piece_if_any<S: Serializer>(bytes: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.map(InOnePiece).serialize(serializer)
}

/// The answer to one request: the outcome and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "a decision that is not looked at is not enforced"]
pub struct Decision {
    pub outcome: Outcome,
    /// What the proxy has to do besides letting through or not. Empty when refused.
    pub obligations: Obligations,
    pub cache: CacheHint,
    /// SHA-256 of the `.cwasm` that decided; `None` when no policy was reached.
    pub digest: Option<Digest>,
    pub timing: Timing,
    /// What it is called in logs and traces; every decision of a worker has one.
    pub id: Option<DecisionId>,
}

impl Decision {
    /// A refusal that no policy had a part in.
    pub fn refused(refusal: Refusal) -> Self {
        Self {
            outcome: Outcome::Refused(refusal),
            obligations: Obligations::default(),
            cache: CacheHint::default(),
            digest: None,
            timing: Timing::default(),
            id: None,
        }
    }
}

/// Only one variant opens the gate. There is no default and no conversion from `bool` on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "an outcome that is not looked at is not enforced"]
pub enum Outcome {
    Allow,
    /// The policy said no.
    Deny {
        reason: String,
    },
    /// No policy said anything that counts: the gate stays down, and this is why.
    Refused(Refusal),
}

impl Outcome {
    /// True for [`Outcome::Allow`] and nothing else.
    #[must_use]
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// Why there is no decision. Never to be confused with [`Outcome::Deny`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("deadline passed ({0})")]
    Deadline(Stage),
    #[error("quota exceeded: {which}, retry after {retry_after_ms} ms")]
    Quota { which: Quota, retry_after_ms: u32 },
    #[error("policy trapped: {0}")]
    Trap(TrapKind),
    #[error("policy returned invalid output: {0}")]
    InvalidOutput(String),
    #[error("unknown policy")]
    UnknownPolicy,
    #[error("unknown tenant")]
    UnknownTenant,
    #[error("this connection may not ask for that tenant")]
    NotPermitted,
    #[error("overloaded")]
    Overloaded,
    #[error("unavailable")]
    Unavailable,
    #[error("bad request: {0}")]
    BadRequest(String),
    #[error("cancelled by the client")]
    Cancelled,
    /// Its policy was withdrawn: revoked or expired.
    #[error("policy was withdrawn")]
    Revoked,
    /// It says itself that it could not decide.
    #[error("policy failed: {reason}: {detail}")]
    PolicyFailed {
        /// What kind, for counting: 1 to 64 bytes of `a-z 0-9 - _ .`.
        reason: String,
        /// For people.
        detail: String,
    },
}

/// Where a request was when its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Before it was read: in the socket's buffer or on its way.
    Receipt,
    Queue,
    Instantiate,
    Run,
    /// The policy had answered, too late.
    Reply,
}

/// Which budget of a tenant or a peer is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quota {
    /// Requests in progress on one connection.
    Pipeline,
    /// Open connections of one UID.
    Connections,
    /// Requests of one tenant that wait.
    Queue,
    /// Requests of one tenant, a second.
    Requests,
    /// Processor time of one tenant's guests.
    Cpu,
    /// Requests of one tenant under way at once.
    Concurrent,
    /// Memory of one tenant's instances together.
    Memory,
    /// Bytes of one tenant's requests.
    BytesIn,
    /// Bytes of the answers to one tenant.
    BytesOut,
    /// Calls of a host function by one tenant's guests, a second or in one decision.
    HostCalls,
    /// How long a request of one tenant waits for its turn.
    Wait,
}

impl Quota {
    /// Every one, each at its place.
    pub const ALL: [Self; 11] = [
        Self::Pipeline,
        Self::Connections,
        Self::Queue,
        Self::Requests,
        Self::Cpu,
        Self::Concurrent,
        Self::Memory,
        Self::BytesIn,
        Self::BytesOut,
        Self::HostCalls,
        Self::Wait,
    ];
}

/// What a guest did that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrapKind {
    Unreachable,
    /// Memory or table access out of bounds.
    OutOfBounds,
    Stack,
    /// Asked for more memory or table than its limit, then gave up.
    Memory,
    /// Division by zero, integer overflow, bad conversion.
    Arithmetic,
    /// A null or mistyped indirect call.
    IndirectCall,
    /// Broke the canonical ABI: a pointer, length, discriminant or string that is not one.
    Abi,
    /// Something this list has no name for.
    Other,
    /// Executed as many instructions as it may; only where its manifest has such a limit.
    Fuel,
    /// Called host functions more often than it may.
    HostCalls,
}

/// How long the same answer may be given to the same question. The sidecar itself never caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheHint {
    /// Milliseconds; 0 means: do not cache.
    pub ttl_ms: u32,
    pub scope: CacheScope,
}

/// For whom a cached answer holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheScope {
    /// Only for exactly this request.
    #[default]
    Request,
    /// For everything this client (source and credentials) asks on this path.
    Client,
    /// For every client on this path.
    Path,
}

/// Where the time went, in nanoseconds of wall-clock time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    pub queue_ns: u64,
    pub instantiate_ns: u64,
    /// In the guest, including slices in which other guests ran.
    pub run_ns: u64,
    /// In host functions, a part of `run_ns`.
    pub host_ns: u64,
}

macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
    };
}
words!(Stage { Receipt => "receipt", Queue => "queue", Instantiate => "instantiate", Run => "run", Reply => "reply" });
words!(Quota {
    Pipeline => "pipeline", Connections => "connections", Queue => "queue", Requests => "requests", Cpu => "cpu",
    Concurrent => "concurrent", Memory => "memory", BytesIn => "bytes_in", BytesOut => "bytes_out",
    HostCalls => "host_calls", Wait => "wait",
});
words!(TrapKind {
    Unreachable => "unreachable", OutOfBounds => "out of bounds", Stack => "stack", Memory => "memory",
    Arithmetic => "arithmetic", IndirectCall => "indirect call", Abi => "abi", Other => "other",
    Fuel => "fuel", HostCalls => "host calls",
});
words!(CacheScope { Request => "request", Client => "client", Path => "path" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_file_names_and_nothing_else() {
        for good in ["a", "jwt-gate", "acme.corp_1", "0"] {
            assert_eq!(Tenant::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".a", "-a", "A", "a/b", "a b", "a\0", "é", &"a".repeat(65)] {
            assert!(Tenant::new(bad).is_err(), "{bad:?} was taken for a name");
        }
    }

    #[test]
    fn only_allow_is_allow() {
        assert!(Outcome::Allow.is_allow());
        assert!(!Outcome::Deny { reason: String::new() }.is_allow());
        assert!(!Outcome::Refused(Refusal::Unavailable).is_allow());
    }
}
