//! What every policy here is built on: the bindings of the world, an allocator that never frees, a panic that traps.
//!
//! A policy implements [`Policy`] and names itself with [`export!`]. It runs once and is thrown away with its memory, so
//! nothing here gives memory back.

#![no_std]

extern crate alloc;

#[cfg(target_arch = "wasm32")]
mod heap;

/// Generated from `policies/wit/policy.wit`.
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "policy",
        std_feature,
        pub_export_macro: true,
        default_bindings_module: "guest::bindings",
        disable_run_ctors_once_workaround: true,
        generate_all,
    });
}

pub use bindings::Guest as Policy;
pub use bindings::export;
pub use bindings::portcullis::policy::types::{
    Address, Attribute, CacheHint, CacheScope, Decision, Failure, Header, HttpRequest, Metadatum,
    Obligations, Opaque, Peer, Request, Verdict,
};
pub use bindings::portcullis::policy::{clock, data, log, metric, random};

/// What a policy returns: a decision, or why there is none.
pub type Answer = Result<Decision, Failure>;

use alloc::string::String;
use alloc::vec::Vec;

impl Decision {
    /// Lets the request through, with nothing else to do and nothing to cache.
    #[must_use]
    pub fn allow() -> Self {
        Self::new(Verdict::Allow, None)
    }

    /// Stops the request. `status` is what the client should see, `reason` what the operator should.
    #[must_use]
    pub fn deny(status: u16, reason: &str) -> Self {
        Self::new(Verdict::Deny(reason.into()), Some(status))
    }

    fn new(verdict: Verdict, status: Option<u16>) -> Self {
        Self {
            verdict,
            obligations: Obligations {
                status,
                headers_set: Vec::new(),
                headers_append: Vec::new(),
                headers_remove: Vec::new(),
                body: None,
                metadata: Vec::new(),
            },
            cache: CacheHint { ttl_ms: 0, scope: CacheScope::Request },
        }
    }

    #[must_use]
    pub fn set_header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.obligations.headers_set.push(Header { name: name.into(), value: value.into() });
        self
    }

    #[must_use]
    pub fn remove_header(mut self, name: &str) -> Self {
        self.obligations.headers_remove.push(name.into());
        self
    }

    #[must_use]
    pub fn metadata(mut self, key: &str, value: impl Into<String>) -> Self {
        self.obligations.metadata.push(Metadatum { key: key.into(), value: value.into() });
        self
    }

    #[must_use]
    pub fn cache(mut self, ttl_ms: u32, scope: CacheScope) -> Self {
        self.cache = CacheHint { ttl_ms, scope };
        self
    }
}

impl Failure {
    /// The policy cannot decide, and the request is refused. `reason` is for counting (a-z 0-9 - _ . only), `detail` for people.
    #[must_use]
    pub fn new(reason: &str, detail: impl Into<String>) -> Self {
        Self { reason: reason.into(), detail: detail.into() }
    }
}

impl HttpRequest {
    /// Every value of the attribute `name`.
    pub fn attribute<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.attributes
            .iter()
            .filter(move |attribute| attribute.name == name)
            .map(|attribute| &*attribute.value)
    }

    /// Every value of the header `name`, whatever the case it was sent in.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| &*header.value)
    }

    /// True if the path is `prefix` or lies below it, segment by segment: `/a` covers `/a` and `/a/b`, not `/ab`.
    #[must_use]
    pub fn is_under(&self, prefix: &str) -> bool {
        match self.path.strip_prefix(prefix) {
            Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'),
            None => false,
        }
    }
}
