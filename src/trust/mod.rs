//! The rules: whose signatures, which provenance, which capabilities are enough for a tenant or a class; and what has been
//! revoked. Pure: text and [`crate::signature::Evidence`] in, a verdict out. Only the registry (and people's
//! commands) parse these files.
