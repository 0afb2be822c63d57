//! One decision of one policy in a fresh instance, with the least host that a guest can run on.

use std::sync::atomic::{AtomicBool, Ordering};

use portcullis::engine::{Metering, Target, compiling_engine};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store, StoreLimits, StoreLimitsBuilder};

mod bindings {
    wasmtime::component::bindgen!({ path: "policies/wit", world: "policy" });
}

pub(crate) use bindings::portcullis::policy::types;
pub(crate) use bindings::portcullis::policy::types::{Decision, Request};

/// What a guest that says it has failed ends in here.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) reason: String,
    pub(crate) detail: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl std::error::Error for Failed {}

use bindings::portcullis::policy::{clock, data, log, metric, random};
use bindings::{Policy, PolicyPre};

/// Memory a guest may have, bytes: what a class gets that says nothing.
const MEMORY: usize = 4 << 20;

/// What the host functions need, and what they saw.
pub(crate) struct Host {
    /// Seconds since 1970.
    clock: u64,
    random: u64,
    pub(crate) log: Vec<String>,
    limits: StoreLimits,
}

impl types::Host for Host {}

impl clock::Host for Host {
    fn now(&mut self) -> u64 {
        self.clock * 1_000_000_000
    }
}

impl log::Host for Host {
    fn write(&mut self, _: log::Level, message: String) {
        self.log.push(message);
    }
}

impl data::Host for Host {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        (key == "one").then(|| b"1".to_vec())
    }

    fn entries(&mut self, prefix: String, after: Option<String>, limit: u32) -> Vec<data::Entry> {
        let key = format!("{prefix}{}{limit}", after.unwrap_or_default());
        vec![data::Entry { key, value: Vec::new() }]
    }
}

impl metric::Host for Host {
    fn add(&mut self, name: String, value: u64) {
        self.log.push(format!("{name}+{value}"));
    }
}

impl random::Host for Host {
    fn get_u64(&mut self) -> u64 {
        self.random += 1;
        self.random
    }

    fn get_bytes(&mut self, len: u32) -> Vec<u8> {
        vec![7; len.min(4096) as usize]
    }
}

pub(crate) struct Guest {
    engine: Engine,
    policy: PolicyPre<Host>,
}

impl Guest {
    pub(crate) fn new(component: &[u8]) -> wasmtime::Result<Self> {
        Self::with_engine(compiling_engine(Target::host(), Metering::Off)?, component)
    }

    pub(crate) fn with_engine(engine: Engine, component: &[u8]) -> wasmtime::Result<Self> {
        let component = Component::new(&engine, component)?;
        let mut linker = Linker::new(&engine);
        Policy::add_to_linker::<_, HasSelf<_>>(&mut linker, |host: &mut Host| host)?;
        Ok(Self { policy: PolicyPre::new(linker.instantiate_pre(&component)?)?, engine })
    }

    /// Asks once, at `clock` seconds since 1970. There is no deadline: only for guests that answer or trap.
    pub(crate) fn ask(&self, request: &Request, clock: u64) -> wasmtime::Result<Decision> {
        self.ask_and_look(request, clock).0
    }

    /// The same, and what the host saw of it.
    pub(crate) fn ask_and_look(&self, request: &Request, clock: u64) -> (wasmtime::Result<Decision>, Host) {
        let limits = StoreLimitsBuilder::new().memory_size(MEMORY).build();
        let mut store = Store::new(&self.engine, Host { clock, random: 0, log: Vec::new(), limits });
        store.limiter(|host| &mut host.limits);
        store.set_epoch_deadline(1);
        let answer = self
            .policy
            .instantiate(&mut store)
            .and_then(|instance| instance.call_decide(&mut store, request))
            .and_then(|answer| {
                answer.map_err(|types::Failure { reason, detail }| Failed { reason, detail }.into())
            });
        (answer, store.into_data())
    }

    /// Asks once and ends the guest's time again and again until it has stopped.
    pub(crate) fn ask_and_interrupt(&self, request: &Request) -> wasmtime::Result<Decision> {
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stopped.load(Ordering::Acquire) {
                    self.engine.increment_epoch();
                    std::thread::yield_now();
                }
            });
            let answer = self.ask(request, 0);
            stopped.store(true, Ordering::Release);
            answer
        })
    }
}

pub(crate) fn opaque(bytes: &[u8]) -> Request {
    Request::Opaque(types::Opaque { content_type: String::new(), bytes: bytes.to_vec() })
}

/// The names of everything that a component imports.
pub(crate) fn imports(component: &[u8]) -> Vec<String> {
    let engine = compiling_engine(Target::host(), Metering::Off).unwrap();
    let component = Component::new(&engine, component).unwrap();
    component.component_type().imports(&engine).map(|(name, _)| name.to_owned()).collect()
}
