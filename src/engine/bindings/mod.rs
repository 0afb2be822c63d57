//! The host's side of the world, generated: one module for each version that is served.
//!
//! What 0.1 lacks of today's is little, so everything beyond here speaks 1.0, and 0.1 is translated at the edge.

pub(super) mod v0_1;
pub(super) mod v1_0;

use v0_1::portcullis::policy::types as old;
use v1_0::portcullis::policy::types as new;

impl From<old::Decision> for new::Decision {
    fn from(old::Decision { verdict, obligations, cache }: old::Decision) -> Self {
        Self {
            verdict: match verdict {
                old::Verdict::Allow => new::Verdict::Allow,
                old::Verdict::Deny(reason) => new::Verdict::Deny(reason),
            },
            obligations: new::Obligations {
                status: obligations.status,
                headers_set: headers(obligations.headers_set),
                headers_append: headers(obligations.headers_append),
                headers_remove: obligations.headers_remove,
                body: obligations.body,
                metadata: obligations
                    .metadata
                    .into_iter()
                    .map(|old::Metadatum { key, value }| new::Metadatum { key, value })
                    .collect(),
            },
            cache: new::CacheHint {
                ttl_ms: cache.ttl_ms,
                scope: match cache.scope {
                    old::CacheScope::Request => new::CacheScope::Request,
                    old::CacheScope::Client => new::CacheScope::Client,
                    old::CacheScope::Path => new::CacheScope::Path,
                },
            },
        }
    }
}

fn headers(headers: Vec<old::HeaderResult>) -> Vec<new::HeaderResult> {
    headers.into_iter().map(|old::HeaderResult { name, value }| new::HeaderResult { name, value }).collect()
}
