//! A Rego policy in the engine of a worker, asked once in a fresh instance.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use portcullis::artifact::{Ceiling, Expected, Limits, SealedBytes, SigningKey, sign, verify};
use portcullis::bundle::Platform;
use portcullis::compile::{self, Rego, RegoBuilt, RegoError, RegoOptions, Terms};
use portcullis::decision::{Decision, Input, Outcome};
use portcullis::engine::{
    Call, Data, Engines, Granted, Policy, PoolLimits, Slice, evaluate, load, monotonic_ns,
};
use portcullis::wire::frame;

use crate::support::{self, policy, tenant};

/// When requests of these tests are received, nanoseconds since 1970.
pub(crate) const NOW: u64 = 1_700_000_000_123_456_789;
/// More than a class gives by default: some cases are large.
const MEMORY: u32 = 64 << 20;

pub(crate) fn built(
    module: &[u8],
    data: Option<&[u8]>,
    entrypoint: Option<&str>,
) -> Result<RegoBuilt, RegoError> {
    let rego = Rego::read(module, data)?;
    let options = RegoOptions { entrypoint: entrypoint.map(str::to_owned), ..RegoOptions::default() };
    compile::rego(&rego, &options)
}

/// A policy as a worker has it.
pub(crate) fn loaded(component: &[u8], memory: u32) -> Arc<Policy> {
    loaded_with(component, memory, None)
}

/// The same with data of its tenant.
pub(crate) fn loaded_with(component: &[u8], memory: u32, data: Option<Arc<Data>>) -> Arc<Policy> {
    let built = compile::build(component, Terms::default(), &[Platform::host()]).unwrap();
    let pool = PoolLimits { instances: 4, memory, stack_zeroing: true };
    let engines = Engines::new(pool).unwrap();
    let key = SigningKey::generate_ed25519().unwrap();
    let mut statement = support::statement(&built, &tenant("acme"), &policy("gate"), 1);
    statement.limits = Limits { memory, ..Limits::default() };
    let signed = sign(&statement, &key).unwrap();
    let expected = Expected { tenant: &tenant("acme"), policy: &policy("gate"), minimum_version: 0 };
    let sealed = SealedBytes::of(support::code(&built)).unwrap();
    let artifact = verify(sealed, &signed, &[key.public_key()], &expected).unwrap();
    let ceiling = Ceiling { memory, ..Ceiling::MOST };
    Arc::new(load(&engines, &artifact, Granted { ceiling, data }).unwrap())
}

pub(crate) fn policy_of(module: &[u8], data: Option<&[u8]>, entrypoint: Option<&str>) -> Arc<Policy> {
    loaded(&built(module, data, entrypoint).unwrap().component, MEMORY)
}

pub(crate) fn ask(policy: &Arc<Policy>, input: &Input<'_>) -> Decision {
    let input = frame::encode(input, 1 << 20).unwrap();
    let slice = Arc::new(Slice::default());
    slice.set_end(monotonic_ns() + 60_000_000_000);
    let call = Call { input: Bytes::from(input), clock_ns: NOW, seed: [7; 32], id: None };
    let mut evaluation = pin!(evaluate(Arc::clone(policy), call, slice, None));
    match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(evaluated) => evaluated.decision,
        Poll::Pending => panic!("nothing ticks here, so nothing yields"),
    }
}

/// Asks with a document as it is.
pub(crate) fn ask_document(policy: &Arc<Policy>, document: &str) -> Decision {
    ask(policy, &Input::Opaque { content_type: "application/json", bytes: document.as_bytes() })
}

/// What a policy that was wrapped for conformance gave for each name: the one member of the array in its metadata.
pub(crate) fn results(decision: &Decision) -> std::collections::BTreeMap<String, serde_json::Value> {
    assert_eq!(decision.outcome, Outcome::Allow, "{decision:?}");
    let metadata = &decision.obligations.metadata;
    metadata
        .iter()
        .map(|one| {
            let value: Vec<serde_json::Value> = serde_json::from_str(&one.value).unwrap();
            (one.key.clone(), value.into_iter().next().unwrap())
        })
        .collect()
}
