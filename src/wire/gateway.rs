//! What the gateway is told, and how it reaches the frontend.
//!
//! The gateway opens no path and connects to nothing: for each connection to the service it makes a pair of connected
//! sockets and sends one of them over a channel that the supervisor gave both. The kernel names the gateway as that
//! socket's peer, so the frontend asks the same of it as of everybody: who is it, and may it ask for that tenant.

use serde::{Deserialize, Serialize};

use super::control::Isolation;
use crate::decision::{PolicyName, Tenant, TrustClass};

/// Gateway to frontend, with a connected stream socket as the descriptor: a client that has greeted. What comes over the socket
/// begins with the Welcome, or with why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// Whose trust class the connection is for.
    pub tenant: Tenant,
}

/// Largest message on that channel, bytes.
pub const VISIT_MAX: usize = 128;

/// Most listeners: each is a descriptor that the process is started with.
pub const LISTENERS_MAX: usize = 16;

/// What the gateway needs to know. Fixed for its life: a reload that changes it starts another process, and this one drains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayAssignment {
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    /// Threads that serve; each takes from every listener.
    pub threads: u32,
    /// Those of the tenants that its listeners name.
    pub classes: Vec<GatewayClass>,
    /// In the order of their sockets, which begin at [`super::control::fd::GATEWAY_FIRST`].
    pub listeners: Vec<Listener>,
}

/// A trust class that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayClass {
    pub class: TrustClass,
    /// Questions that may be under way there on one connection.
    pub pipeline: u32,
    /// Connections of each thread.
    pub connections: u32,
    /// Whom is asked for there. Where there are several, none has more than half of the places.
    pub tenants: Vec<Tenant>,
}

/// One socket that proxies connect to: what is spoken there, and for whom is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// For messages.
    pub name: String,
    pub socket: SocketKind,
    /// UIDs that may connect, as the kernel names them; empty: whoever the socket's mode lets in. Unix sockets only.
    pub peers: Vec<u32>,
    pub speaks: Speaks,
    pub tenant: Binding<Tenant>,
    pub policy: Binding<PolicyName>,
    /// Longest time for a decision, and the time for one where the proxy names none; microseconds.
    pub deadline_us: u32,
    pub max_connections: u32,
    /// Longest body that is taken, bytes. A longer one is refused, never cut.
    pub max_body: u32,
    /// Whether an answer also tells which code decided and how long it took. Some proxies hand an answer's headers on to
    /// whoever asked them.
    pub details: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketKind {
    Unix,
    Tcp,
}

/// The protocol of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speaks {
    /// Envoy's `envoy.service.auth.v3.Authorization`, gRPC over HTTP/2 without TLS.
    EnvoyGrpc,
    /// HTTP/1.1: the status is the decision. nginx auth_request, Caddy and Traefik forward_auth, Envoy's HTTP form.
    Http(HttpForm),
    /// HAProxy's SPOP 2.0.
    Spoe,
    /// OPA's REST API. A path below `/v1/data`, with `/` between its parts and none around, and the policy it means; where
    /// none fits, the listener's policy binding is not asked: the path is unknown.
    Opa { paths: Vec<(String, PolicyName)> },
}

/// How an HTTP request tells what it is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpForm {
    pub original: Original,
    /// The header in which the proxy names the client's address, lower case. Without it the source is not known.
    pub client_address: Option<String>,
    /// The header in which the proxy names its time limit in milliseconds, lower case. It can only shorten.
    pub timeout_ms: Option<String>,
}

/// Where the original request's method, scheme, host and target stand. The listener says it; what a request has elsewhere is
/// a header like any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Original {
    /// The request's own, its path without this prefix (Envoy's `path_prefix`; may be empty).
    Own { prefix: String },
    /// `x-original-method`, `-uri`, `-host`, `-proto`, all of them: of one that may be missing nobody could tell whether the
    /// proxy's client put it there. As nginx is told to send them.
    XOriginal,
    /// `x-forwarded-method`, `-proto`, `-host`, `-uri`. As Caddy and Traefik send them.
    XForwarded,
    /// `x-original-method`, and all else in `x-original-url`: `https://shop.example/a?b`. As ingress-nginx sends them, to
    /// oauth2-proxy and others.
    XOriginalUrl,
}

/// Who or what it is asked for. Never from anything an end user sends, unless the operator maps it: [`Binding::Header`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binding<T> {
    Fixed(T),
    /// By the UID of the process that connected. Unix sockets only.
    Peer(Vec<(u32, T)>),
    /// By what the proxy's own configuration says: a key of Envoy's `context_extensions`, an argument of SPOE.
    Context {
        key: String,
        among: Vec<T>,
    },
    /// By a header, lower case, that the proxy has to set or remove on every request.
    Header {
        name: String,
        among: Vec<T>,
    },
}
