//! One decision: a fresh instance, the request in, the decision out.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::{Store, UpdateDeadline};

use super::bindings::v0_1::portcullis::policy::types as old;
use super::bindings::v1_0::portcullis::policy::types as new;
use super::host::Host;
use super::load::{Policy, Pre};
use super::outcome;
use super::slice::{Slice, monotonic_ns};
use super::watch::{FUEL, Watch};
use crate::accounts::{Memory, Meter};
use crate::decision::{
    Address, Attribute, Decision, DecisionId, Header, HttpRequest, Input, Outcome, Peer, Refusal, Timing,
};
use crate::wire::frame;

/// Most headers and attributes of one request: each is looked at on the guest's behalf, where no deadline is.
const HEADERS_MAX: usize = 1024;
const ATTRIBUTES_MAX: usize = 256;

/// One end of the connection, in the types of one version.
macro_rules! peer {
    ($types:ident, $peer:ident) => {{
        let Peer { address, port, principal } = $peer;
        let address = match *address {
            Address::Unknown => $types::Address::Unknown,
            Address::Ipv4([a, b, c, d]) => $types::Address::Ipv4((a, b, c, d)),
            Address::Ipv6(bytes) => {
                let [a, b, c, d, e, f, g, h] = std::net::Ipv6Addr::from(bytes).segments();
                $types::Address::Ipv6((a, b, c, d, e, f, g, h))
            }
        };
        $types::Peer { address, port: *port, principal: *principal }
    }};
}

/// What one evaluation needs to know besides its policy.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// A postcard-encoded [`Input`].
    pub input: Bytes,
    /// Time of receipt, nanoseconds since 1970: the guest's clock, which stands still.
    pub clock_ns: u64,
    /// Seed of the guest's random numbers.
    pub seed: [u8; 32],
    /// What the decision will be called, if it has a name.
    pub id: Option<DecisionId>,
}

/// How an evaluation ended.
#[derive(Debug)]
pub struct Evaluated {
    pub decision: Decision,
    /// The input did not decode: the client broke the protocol, no guest was run.
    pub malformed: bool,
    /// There was an instance that could be asked; what followed is the policy's doing.
    pub instantiated: bool,
    pub used: Used,
    /// Drop it when the reply is on its way: resetting a large memory takes longer than a small decision.
    pub residue: Residue,
}

/// What it took, of what is limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Linear memory at the end, bytes; it never shrinks, so that is the most.
    pub memory: usize,
    pub table_elements: usize,
    pub host_calls: u32,
    /// Instructions, where they are counted.
    pub fuel: Option<u64>,
}

/// What is left of the instance.
#[derive(Debug)]
pub struct Residue(#[expect(dead_code, reason = "held to be dropped later")] Option<Live>);

/// A store, and what its instance's memory counts for: that goes when the memory has gone, and not before.
#[derive(Debug)]
struct Live {
    store: Store<Host>,
    /// In the store until that is dropped.
    account: Option<Memory>,
}

impl Drop for Live {
    fn drop(&mut self) {
        // Fields are dropped in order.
        self.account = self.store.data_mut().account.take();
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Decides one request in a fresh instance of `policy`.
///
/// The future yields whenever `slice` is over and an epoch has passed; it knows no deadline: who polls it stops doing
/// so, and drops it, which frees the instance. It must be polled on the thread that `slice` belongs to. What the instance
/// takes is taken from `meter`.
pub async fn evaluate(
    policy: Arc<Policy>,
    call: Call,
    slice: Arc<Slice>,
    meter: Option<Arc<Meter>>,
) -> Evaluated {
    evaluate_watched(policy, call, slice, meter, None).await
}

/// The same, noted.
pub async fn evaluate_watched(
    policy: Arc<Policy>,
    call: Call,
    slice: Arc<Slice>,
    meter: Option<Arc<Meter>>,
    watch: Option<Arc<Watch>>,
) -> Evaluated {
    let (digest, id) = (Some(policy.digest()), call.id);
    let ended = |result: Result<_, Refusal>, timing, (malformed, instantiated), used, residue| {
        let (outcome, obligations, cache) = result
            .unwrap_or_else(|refusal| (Outcome::Refused(refusal), Default::default(), Default::default()));
        let decision = Decision { outcome, obligations, cache, digest, timing, id };
        Evaluated { decision, malformed, instantiated, used, residue }
    };
    let input: Input<'_> = match frame::decode(&call.input) {
        Ok(Input::Http(http)) if http.headers.len() > HEADERS_MAX => {
            let refusal = Refusal::BadRequest(format!("input: more than {HEADERS_MAX} headers"));
            return ended(Err(refusal), Timing::default(), (true, false), Used::default(), Residue(None));
        }
        Ok(Input::Http(http)) if http.attributes.len() > ATTRIBUTES_MAX => {
            let refusal = Refusal::BadRequest(format!("input: more than {ATTRIBUTES_MAX} attributes"));
            return ended(Err(refusal), Timing::default(), (true, false), Used::default(), Residue(None));
        }
        Ok(input) => input,
        Err(error) => {
            let refusal = Refusal::BadRequest(format!("input: {error}"));
            return ended(Err(refusal), Timing::default(), (true, false), Used::default(), Residue(None));
        }
    };

    let started = monotonic_ns();
    let mut timing = Timing::default();
    let Ok(store) = fresh_store(&policy, &call, slice, meter, watch) else {
        // Only an engine that does not count what is to be counted.
        return ended(Err(Refusal::Unavailable), timing, (false, false), Used::default(), Residue(None));
    };
    let mut live = Live { store, account: None };
    let store = &mut live.store;
    let (instantiated, result) = match &policy.pre {
        Pre::V0_1(pre) => match pre.instantiate_async(&mut *store).await {
            Err(error) => (false, Err(error)),
            Ok(instance) => {
                let run_ns = made(&mut timing, started);
                store.data().slice.made_one();
                let returned = with_old_request(&input, async |request| {
                    instance.call_decide(&mut *store, request).await
                })
                .await;
                timing.run_ns = monotonic_ns().saturating_sub(run_ns);
                // A policy of that world cannot say that it has failed.
                (true, returned.map(|decision| Ok(decision.into())))
            }
        },
        Pre::V1_0(pre) => match pre.instantiate_async(&mut *store).await {
            Err(error) => (false, Err(error)),
            Ok(instance) => {
                let run_ns = made(&mut timing, started);
                store.data().slice.made_one();
                let returned =
                    with_request(&input, async |request| instance.call_decide(&mut *store, request).await)
                        .await;
                timing.run_ns = monotonic_ns().saturating_sub(run_ns);
                (true, returned)
            }
        },
    };
    if !instantiated {
        made(&mut timing, started);
    }
    let result = match result {
        // Out of slots: admission counts them too, so this is a pool limit that one policy alone exceeds.
        Err(error) if error.is::<wasmtime::PoolConcurrencyLimitError>() => Err(Refusal::Overloaded),
        Err(error) => Err(outcome::from_error(&error, store.data().growth_refused, policy.limits())),
        Ok(Ok(decision)) => outcome::from_guest(decision),
        Ok(Err(failure)) => Err(outcome::from_failure(failure)),
    };
    timing.host_ns = store.data().host_ns;
    if let Some(watch) = store.data().watch.as_ref().filter(|watch| watch.counts()) {
        watch.ended(store.get_fuel().unwrap_or(FUEL));
    }
    let host = store.data();
    let used = Used {
        memory: host.memory_used,
        table_elements: host.table_elements_used,
        host_calls: host.host_calls,
        fuel: policy
            .limits()
            .fuel
            .and_then(|given| store.get_fuel().ok().map(|left| given.saturating_sub(left))),
    };
    ended(result, timing, (false, instantiated), used, Residue(Some(live)))
}

/// Notes how long making the instance took. Returns when that was.
fn made(timing: &mut Timing, started: u64) -> u64 {
    let now = monotonic_ns();
    timing.instantiate_ns = now.saturating_sub(started);
    now
}

fn fresh_store(
    policy: &Policy,
    call: &Call,
    slice: Arc<Slice>,
    meter: Option<Arc<Meter>>,
    watch: Option<Arc<Watch>>,
) -> wasmtime::Result<Store<Host>> {
    let limits = policy.limits();
    let host = Host {
        identity: Arc::clone(&policy.identity),
        slice,
        clock_ns: call.clock_ns,
        seed: call.seed,
        id: call.id,
        generator: None,
        log_lines: 0,
        metrics: Arc::clone(&policy.metrics),
        metric_calls: 0,
        data: watch.as_ref().and_then(|watch| watch.data()).or_else(|| policy.data.clone()),
        account: meter.as_ref().map(Meter::memory),
        memory: limits.memory as usize,
        table_elements: limits.table_elements as usize,
        memory_used: 0,
        table_elements_used: 0,
        growth_refused: false,
        host_calls: 0,
        host_calls_max: limits.host_calls,
        host_ns: 0,
        watch,
    };
    let mut store = Store::new(policy.pre.engine(), host);
    store.limiter(|host| host);
    if let Some(fuel) = limits.fuel {
        // Loading saw to it that the engine counts.
        let _ = store.set_fuel(fuel);
    }
    // What a guest may make the host copy or allocate in one go: strings and lists on their way out.
    store.set_hostcall_fuel(limits.output as usize);
    if let Some(watch) = store.data().watch.clone().filter(|watch| watch.counts()) {
        store.set_fuel(FUEL)?;
        // At once, and again at each place where a guest can be interrupted.
        store.set_epoch_deadline(0);
        store.epoch_deadline_callback(move |context| {
            let left = context.get_fuel()?;
            watch.look(&context, left).map(|()| UpdateDeadline::Continue(0))
        });
        return Ok(store);
    }
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|context| {
        Ok(if context.data().slice.is_over() {
            UpdateDeadline::Yield(1)
        } else {
            UpdateDeadline::Continue(1)
        })
    });
    Ok(store)
}

/// Lends the request to `call` in the shape the bindings want.
async fn with_request<T>(input: &Input<'_>, call: impl AsyncFnOnce(new::Request<'_>) -> T) -> T {
    match input {
        Input::Opaque { content_type, bytes } => {
            call(new::Request::Opaque(new::Opaque { content_type, bytes })).await
        }
        Input::Http(http) => {
            let HttpRequest {
                method,
                scheme,
                host,
                path,
                query,
                headers,
                body,
                source,
                destination,
                attributes,
            } = http;
            let headers: Vec<_> =
                headers.iter().map(|Header { name, value }| new::HeaderParam { name, value }).collect();
            let attributes: Vec<_> =
                attributes.iter().map(|Attribute { name, value }| new::Attribute { name, value }).collect();
            call(new::Request::Http(new::HttpRequest {
                method,
                scheme,
                host,
                path,
                query: *query,
                headers: &headers,
                body: *body,
                source: peer!(new, source),
                destination: peer!(new, destination),
                attributes: &attributes,
            }))
            .await
        }
    }
}

/// The same in the shape of the first world, which knows no attributes.
async fn with_old_request<T>(input: &Input<'_>, call: impl AsyncFnOnce(old::Request<'_>) -> T) -> T {
    match input {
        Input::Opaque { content_type, bytes } => {
            call(old::Request::Opaque(old::Opaque { content_type, bytes })).await
        }
        Input::Http(http) => {
            let HttpRequest { method, scheme, host, path, query, headers, body, source, destination, .. } =
                http;
            let headers: Vec<_> =
                headers.iter().map(|Header { name, value }| old::HeaderParam { name, value }).collect();
            call(old::Request::Http(old::HttpRequest {
                method,
                scheme,
                host,
                path,
                query: *query,
                headers: &headers,
                body: *body,
                source: peer!(old, source),
                destination: peer!(old, destination),
            }))
            .await
        }
    }
}
