//! Who vouches for a bundle: signatures and provenance in the forms that the ecosystem knows, over its digest.
//!
//! Whatever is attached to a bundle goes in, and [`Evidence`] comes out: which trusted keys (or identities) really
//! signed exactly this digest, and which of them say how it was built. Whether that is enough is [`crate::trust`]'s to say.

mod evidence;

pub use evidence::{Evidence, Provenance, Signer};
