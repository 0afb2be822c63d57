//! From a message of the registry to a policy that can decide: what a worker does for each of its policies before it is
//! sealed, by the same functions and in the same order.

use std::os::fd::OwnedFd;
use std::time::Instant;

use portcullis::artifact::{
    self, ARTIFACT_MAX, Artifact, Digest, Expected, PublicKey, SealedBytes, SigningKey,
};
use portcullis::engine::{self, Engines, Granted, Policy, PoolLimits};
use portcullis::wire::channel::{Channel, Received};
use portcullis::wire::supply::{FromRegistry, SUPPLY_MAX, ToRegistry};

use crate::Plan;
use crate::load::percentile;
use crate::report::{Reach, Row, Spread, median};
use crate::subject::TENANT;
use crate::support::{built, code, policy, statement, tenant};

/// The smallest and the largest of the example policies.
const POLICIES: [&str; 2] = ["hash", "jwt-gate"];
/// Of a class with default settings.
const MEMORY: u32 = 4 << 20;

/// Verification and load of one policy, again and again, each time beside the bare hashing of the same bytes.
pub(super) fn one_policy(plan: &Plan) -> Vec<Row> {
    let limits = PoolLimits { instances: 64, memory: MEMORY, stack_zeroing: true };
    let serving = Engines::new(limits).unwrap();
    POLICIES.iter().flat_map(|name| rows(name, &serving, plan)).collect()
}

fn rows(name: &str, serving: &Engines, plan: &Plan) -> Vec<Row> {
    let supplied = Supplied::new(name);
    let size = format!("{:.0} KiB of code", supplied.code.len() as f64 / 1024.0);
    // Caches, the allocator and the engine's own tables.
    for _ in 0..plan.loads / 10 {
        supplied.load(serving);
    }
    let (mut load_ms, mut verify_ms, mut hash_ms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.loads {
        let (verified, loaded) = supplied.load(serving);
        verify_ms.push(verified);
        load_ms.push(loaded);
        let began = Instant::now();
        assert_eq!(Digest::of(&supplied.code), supplied.digest);
        hash_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    load_ms.sort_by(f64::total_cmp);
    let detail = format!(
        "p99 {:.3} ms of {}; of it {:.3} ms until it is verified",
        percentile(&load_ms, 99.0),
        plan.loads,
        median(verify_ms),
    );
    // The extremes say more about the machine.
    let spread = Spread {
        low: percentile(&load_ms, 1.0),
        median: percentile(&load_ms, 50.0),
        high: percentile(&load_ms, 99.0),
    };
    let hash = median(hash_ms);
    let ratio = spread.median / hash;
    vec![
        Row::new(
            &format!("load/{name}"),
            format!("verification and load of one policy, {size}, p50"),
            "ms",
            spread,
        )
        .reach(Reach::AtMost(1.0))
        .detail(detail),
        Row::new(
            &format!("load/{name}/hash"),
            format!("the same against SHA-256 over the same {size}"),
            "x",
            Spread { low: ratio, median: ratio, high: ratio },
        )
        .detail(format!("{hash:.3} ms to hash")),
    ]
}

/// A policy at both ends of a supply channel.
struct Supplied {
    name: &'static str,
    registry: Channel<FromRegistry, ToRegistry>,
    worker: Channel<ToRegistry, FromRegistry>,
    message: FromRegistry,
    keys: [PublicKey; 1],
    sealed: SealedBytes,
    code: Vec<u8>,
    digest: Digest,
}

impl Supplied {
    fn new(name: &str) -> Self {
        let name = POLICIES.into_iter().find(|one| *one == name).unwrap();
        let (registry, worker) = Channel::pair(SUPPLY_MAX).unwrap();
        let (built, key) = (built(name), SigningKey::generate_ed25519().unwrap());
        let (tenant, policy) = (tenant(TENANT), policy(name));
        let signed = artifact::sign(&statement(&built, &tenant, &policy, 1), &key).unwrap();
        let message = FromRegistry::Policy { tenant, policy, signed, held_back: None };
        let code = code(&built).to_vec();
        let sealed = SealedBytes::of(&code).unwrap();
        let digest = Digest::of(&code);
        Self { name, registry, worker, message, keys: [key.public_key()], sealed, code, digest }
    }

    /// Milliseconds from the message in the socket until the artifact is verified, and until the policy can decide. Giving
    /// it back is not in them: no worker does.
    fn load(&self, serving: &Engines) -> (f64, f64) {
        self.registry.send(&self.message, Some(self.sealed.as_fd())).unwrap();
        let mut buffer = Vec::new();
        let began = Instant::now();
        let artifact = self.verified(&mut buffer);
        let verified = began.elapsed();
        let policy: Policy = engine::load(serving, &artifact, Granted::default()).unwrap();
        let loaded = began.elapsed();
        assert_eq!(policy.digest(), self.digest, "{}", self.name);
        (verified.as_secs_f64() * 1e3, loaded.as_secs_f64() * 1e3)
    }

    fn verified(&self, buffer: &mut Vec<u8>) -> Artifact {
        let (tenant, policy, signed, code): (_, _, _, OwnedFd) = match self.worker.receive(buffer).unwrap() {
            Received::Message(FromRegistry::Policy { tenant, policy, signed, .. }, Some(code)) => {
                (tenant, policy, signed, code)
            }
            other => panic!("{other:?}"),
        };
        let code = SealedBytes::from_fd(code, ARTIFACT_MAX).unwrap();
        let expected = Expected { tenant: &tenant, policy: &policy, minimum_version: 0 };
        artifact::verify(code, &signed, &self.keys, &expected).unwrap()
    }
}
