//! A policy in the engine of a worker.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use portcullis::artifact::{
    Architecture, Ceiling, Digest, Expected, Limits, SealedBytes, SigningKey, Statement, sign, verify,
};
use portcullis::bundle::{self, Platform, PolicyConfig};
use portcullis::compile::Built;
use portcullis::decision::{Decision, Input};
use portcullis::engine::{
    Call, Engines, Granted, Metering, Policy, PoolLimits, Slice, WASMTIME_VERSION, evaluate, load,
    monotonic_ns, settings_digest,
};
use portcullis::wire::frame;

/// A policy, ready to be asked.
pub(crate) struct Asked {
    policy: Arc<Policy>,
}

impl Asked {
    /// What was built for this host.
    pub(crate) fn of(built: &Built, limits: Limits) -> Self {
        let code = built.code_for(Platform::host()).unwrap();
        Self::signed(code, built.world.name(), &built.imports, limits)
    }

    /// This host's code of a bundle that is a folder, and what its manifest says.
    pub(crate) fn of_bundle(path: &Path) -> (Self, PolicyConfig) {
        let config = bundle::open_path(path).unwrap().read().unwrap().config;
        let code = config.compiled_for(Platform::host()).unwrap().cwasm;
        let digest = code.to_string();
        let blob = path.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
        let asked =
            Self::signed(&std::fs::read(blob).unwrap(), &config.world, &config.imports, config.limits);
        (asked, config)
    }

    fn signed(code: &[u8], world: &str, imports: &[String], limits: Limits) -> Self {
        let pool = PoolLimits { instances: 4, memory: limits.memory, stack_zeroing: true };
        let engines = Engines::new(pool).unwrap();
        let key = SigningKey::generate_ed25519().unwrap();
        let statement = Statement {
            policy: "gate".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            version: 1,
            bundle: Digest::of(b"no bundle"),
            cwasm: Digest::of(code),
            source: Digest::of(b"no source"),
            architecture: Architecture::host(),
            wasmtime: WASMTIME_VERSION.into(),
            engine: settings_digest(Metering::of(&limits)),
            world: world.into(),
            imports: imports.to_vec(),
            limits,
            metrics: Vec::new(),
            data: Vec::new(),
        };
        let signed = sign(&statement, &key).unwrap();
        let expected = Expected { tenant: &statement.tenant, policy: &statement.policy, minimum_version: 0 };
        let sealed = SealedBytes::of(code).unwrap();
        let artifact = verify(sealed, &signed, &[key.public_key()], &expected).unwrap();
        let granted = Granted { ceiling: Ceiling::MOST, data: None };
        Self { policy: Arc::new(load(&engines, artifact, granted).unwrap()) }
    }

    pub(crate) fn ask(&self, input: &Input<'_>, clock_ns: u64, seed: [u8; 32]) -> Decision {
        let input = frame::encode(input, 1 << 20).unwrap();
        let slice = Arc::new(Slice::default());
        slice.set_end(monotonic_ns() + 60_000_000_000);
        let call = Call { input: Bytes::from(input), clock_ns, seed };
        let mut evaluation = pin!(evaluate(Arc::clone(&self.policy), call, slice));
        match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(evaluated) => evaluated.decision,
            Poll::Pending => panic!("nothing ticks here, so nothing yields"),
        }
    }
}
