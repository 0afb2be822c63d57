//! Why a bundle may not become active: each a sentence that says the way out.

use jiff::Timestamp;

use super::NotSigned;
use crate::artifact::Digest;
use crate::decision::{Tenant, TrustClass};

/// One reason against a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("trust policy expired at {at}: look through it and move \"expires\"")]
    PolicyExpired { at: Timestamp },
    #[error("bundle is for tenant \"{found}\", expected \"{expected}\": build it for that tenant")]
    Tenant { found: Tenant, expected: Tenant },
    #[error("bundle has version {found}, the trust policy wants at least {minimum}: deliver a newer one")]
    Version { found: u64, minimum: u64 },
    #[error("{what} {digest} was revoked on {date}: {reason:?}; deliver a version without it")]
    Revoked { what: &'static str, digest: Digest, reason: String, date: Timestamp },
    #[error(
        "revocation list has version {found} (0: there is none), the trust policy wants at least {minimum}: deliver it to \
         the store"
    )]
    Revocations { found: u64, minimum: u64 },
    #[error("trust policy has no rule for tenant \"{tenant}\" or class \"{class}\": add one, or a [default]")]
    NoRule { tenant: Tenant, class: TrustClass },
    #[error("{rule} trusts nobody: name signers in all_of or any_of")]
    NobodyTrusted { rule: String },
    #[error("{rule} needs signer \"{signer}\", and {why}: sign the bundle with its key")]
    Missing { rule: String, signer: String, why: NotSigned },
    #[error("{rule} needs {minimum} signers of its any_of, and {found} count ({}): have more of them sign", missing_list(.missing))]
    TooFew { rule: String, minimum: usize, found: usize, missing: Vec<(String, NotSigned)> },
    #[error("{rule} needs provenance by {}, and {}", signers.join(" or "), misfit_list(.against))]
    Provenance { rule: String, signers: Vec<String>, against: Vec<String> },
    #[error("policy imports \"{import}\", and {rule} allows {}: build it without, or allow it in capabilities", allowed_list(.allowed))]
    Capability { rule: String, import: String, allowed: Vec<String> },
    #[error("policy asks for {asks} {what}, and {rule} allows {most}: build it with less, or raise limits")]
    Limit { rule: String, what: &'static str, asks: u64, most: u64 },
    #[error(
        "policy does not count its instructions, and {rule} allows {most}: build it with --fuel, or raise limits"
    )]
    NotCounted { rule: String, most: u64 },
}

fn missing_list(missing: &[(String, NotSigned)]) -> String {
    let each = missing.iter().map(|(name, why)| format!("\"{name}\": {why}"));
    each.collect::<Vec<_>>().join("; ")
}

fn misfit_list(against: &[String]) -> String {
    if against.is_empty() {
        return "none is attached: `portcullis policy attest` makes it".to_owned();
    }
    format!("{}: build it as the rule says", against.join("; "))
}

fn allowed_list(allowed: &[String]) -> String {
    if allowed.is_empty() { "no capabilities".to_owned() } else { format!("only {}", allowed.join(", ")) }
}
