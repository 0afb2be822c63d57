//! The policies of this process: taken from the registry, verified once more, loaded. Before sealing, and never again.
//!
//! They come as sealed memory, so this process opens no file: not the store's, which others write, nor a cache. The
//! registry says which policy each is; the host's signature says so too, and that is what counts.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::policies::{PolicySet, Served};
use crate::accounts::{ClassAccount, Map};
use crate::artifact::{
    ARTIFACT_MAX, Artifact, Ceiling, Expected, KeyError, PublicKey, SealError, SealedBytes, VerifyError,
    verify, verify_data,
};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{self, Data, Engines, Granted, Policy, Snapshot, SnapshotError};
use crate::table::TABLE_MAX;
use crate::wire::channel::{Channel, ReceiveError, Received};
use crate::wire::control::{TenantAssignment, WorkerAssignment};
use crate::wire::operator::{DataServing, PolicyStatus, Serving};
use crate::wire::supply::{FromRegistry, ToRegistry};

/// Where policies come from.
pub(super) type Supply = Channel<ToRegistry, FromRegistry>;

/// Longest silence of the registry. The supervisor does not wait forever either; this way the log says for whom.
const SILENCE_MAX: Duration = Duration::from_secs(50);

/// Longest reason why newer data is held back that a status shows, characters.
const HELD_BACK_MAX: usize = 100;

/// What there is to serve, and what became of every policy that was assigned.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) set: PolicySet,
    pub(super) statuses: Vec<PolicyStatus>,
}

/// Why nothing can be loaded at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("read key of this host: {0}")]
    Key(#[from] KeyError),
    #[error("take policies from the registry: {0}")]
    Receive(#[from] ReceiveError),
    #[error("take policies from the registry: it is gone before all were named")]
    Gone,
    #[error("take policies from the registry: it was silent for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("take policies from the registry: {0}")]
    Wait(#[source] Errno),
    #[error("take policies from the registry: it named policy \"{policy}\" of tenant \"{tenant}\" twice")]
    Twice { tenant: Tenant, policy: PolicyName },
    #[error(
        "take policies from the registry: policy \"{policy}\" of tenant \"{tenant}\" came without its code"
    )]
    NoCode { tenant: Tenant, policy: PolicyName },
    #[error("take policies from the registry: it withdrew a policy before all were named")]
    TooEarly,
    #[error(
        "take policies from the registry: data \"{data}\" of tenant \"{tenant}\" came twice, or without its table"
    )]
    Data { tenant: Tenant, data: PolicyName },
}

/// Why one policy is not loaded.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Load(#[from] engine::LoadError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("data \"{data}\", which it reads, {why}")]
    Data { data: String, why: String },
}

/// Takes and loads every policy of the assignment, and writes down how long each took. A policy that cannot be loaded is
/// reported, not an error.
pub(super) fn load(
    engines: &Engines,
    assignment: &WorkerAssignment,
    supply: &Supply,
    accounts: &Arc<Map<ClassAccount>>,
) -> Result<Loaded, LoadError> {
    let keys = [PublicKey::from_pem(&assignment.host_key)?];
    let mut loading = Loading {
        engines,
        keys: &keys,
        ceilings: ceilings(assignment),
        data: BTreeMap::new(),
        named: assigned(assignment),
        accounts,
    };
    let mut buffer = Vec::new();
    loop {
        let (message, code) = next(supply, &mut buffer)?;
        match (message, code) {
            (FromRegistry::Data { tenant, data, signed, held_back }, table) => {
                loading.take_data((tenant, data), &signed, table, held_back)?;
            }
            (FromRegistry::Policy { tenant, policy, signed, held_back }, Some(code)) => {
                loading.take(tenant, policy, &signed, code, held_back)?;
            }
            (FromRegistry::Policy { tenant, policy, .. }, None) => {
                return Err(LoadError::NoCode { tenant, policy });
            }
            (FromRegistry::Refused { tenant, policy, why }, _) => loading.refuse(tenant, policy, why)?,
            (FromRegistry::Complete, _) => return Ok(loading.complete(assignment)),
            (FromRegistry::Withdraw { .. }, _) => return Err(LoadError::TooEarly),
        }
    }
}

/// Whom a policy is of, and its name.
type Key = (Tenant, PolicyName);

fn assigned(assignment: &WorkerAssignment) -> BTreeMap<Key, Option<Named>> {
    let of = |tenant: &Tenant, policy: &PolicyName| ((tenant.clone(), policy.clone()), None);
    let tenants = assignment.tenants.iter();
    tenants.flat_map(|one| one.policies.iter().map(|policy| of(&one.tenant, policy))).collect()
}

/// An instance has no more memory than its class's pool, whatever else is said.
fn ceilings(assignment: &WorkerAssignment) -> HashMap<Tenant, Ceiling> {
    let class = Ceiling { memory: assignment.limits.memory, ..Ceiling::MOST };
    let of = |one: &TenantAssignment| (one.tenant.clone(), one.ceiling.and(&class));
    assignment.tenants.iter().map(of).collect()
}

/// The next message, waited for.
fn next(supply: &Supply, buffer: &mut Vec<u8>) -> Result<(FromRegistry, Option<OwnedFd>), LoadError> {
    let until = Instant::now() + SILENCE_MAX;
    loop {
        match supply.receive(buffer)? {
            Received::Message(message, descriptor) => return Ok((message, descriptor)),
            Received::End => return Err(LoadError::Gone),
            Received::Nothing => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LoadError::Silent);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(supply.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(LoadError::Wait(errno)),
        }
    }
}

/// What the registry said of a policy, and what became of it here.
struct Named {
    policy: Option<Policy>,
    status: PolicyStatus,
}

struct Loading<'a> {
    engines: &'a Engines,
    keys: &'a [PublicKey],
    /// What each tenant's policies may have at most.
    ceilings: HashMap<Tenant, Ceiling>,
    /// What was mapped, or why not. A policy that was loaded keeps what it reads; the rest goes when all is loaded.
    data: BTreeMap<Key, Result<Mapped, String>>,
    /// All that are assigned; `None` while the registry has not named them.
    named: BTreeMap<Key, Option<Named>>,
    accounts: &'a Arc<Map<ClassAccount>>,
}

/// A snapshot that policies may read.
struct Mapped {
    snapshot: Arc<Snapshot>,
    serving: DataServing,
}

impl Loading<'_> {
    /// Maps a snapshot, once for all who read it.
    fn take_data(
        &mut self,
        key: Key,
        signed: &[u8],
        table: Option<OwnedFd>,
        held_back: Option<String>,
    ) -> Result<(), LoadError> {
        let (Some(table), false) = (table, self.data.contains_key(&key)) else {
            return Err(LoadError::Data { tenant: key.0, data: key.1 });
        };
        let (tenant, name) = &key;
        let mapped = self.map(&key, signed, table, held_back).map_err(|error| error.to_string());
        match &mapped {
            Ok(mapped) => {
                let DataServing { version, bundle, .. } = &mapped.serving;
                tracing::info!(%tenant, data = %name, version, %bundle, "data mapped")
            }
            Err(why) => {
                tracing::error!(%tenant, data = %name, why, "data refused; no policy that reads it serves")
            }
        }
        self.data.insert(key, mapped);
        Ok(())
    }

    fn map(
        &self,
        (tenant, name): &Key,
        signed: &[u8],
        table: OwnedFd,
        held_back: Option<String>,
    ) -> Result<Mapped, Refused> {
        let table = SealedBytes::from_fd(table, TABLE_MAX)?;
        let verified = verify_data(table, signed, self.keys, (tenant, name))?;
        let (version, bundle) = (verified.statement().version, verified.statement().bundle);
        // All of it is in `portcullis policy list`; several of these go with each policy.
        let held_back = held_back.map(|why| why.chars().take(HELD_BACK_MAX).collect());
        let serving = DataServing { data: name.clone(), version, bundle, held_back };
        Ok(Mapped { snapshot: Arc::new(Snapshot::map(verified)?), serving })
    }

    /// What a policy reads: its own tenant's, by the names in the statement about it, and all of it.
    fn data_of(
        &self,
        tenant: &Tenant,
        artifact: &Artifact,
    ) -> Result<(Option<Arc<Data>>, Vec<DataServing>), Refused> {
        let (mut layers, mut serving) = (Vec::new(), Vec::new());
        for name in &artifact.statement().data {
            let refused = |why: &str| Refused::Data { data: name.clone(), why: why.to_owned() };
            let name = name.parse().map_err(|_| refused("has a name that no data has"))?;
            match self.data.get(&(tenant.clone(), name)) {
                Some(Ok(mapped)) => {
                    layers.push(Arc::clone(&mapped.snapshot));
                    serving.push(mapped.serving.clone());
                }
                Some(Err(why)) => return Err(refused(&format!("is refused: {why}"))),
                None => return Err(refused("did not come")),
            }
        }
        Ok(((!layers.is_empty()).then(|| Arc::new(Data::layers(layers))), serving))
    }

    fn take(
        &mut self,
        tenant: Tenant,
        name: PolicyName,
        signed: &[u8],
        code: OwnedFd,
        held_back: Option<String>,
    ) -> Result<(), LoadError> {
        let Some(key) = self.expected(tenant, name)? else { return Ok(()) };
        let (tenant, name) = key.clone();
        let began = Instant::now();
        let named = match self.load_one(&tenant, &name, signed, code) {
            Ok((policy, serving)) => {
                self.accounts.aot_load.record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
                if let Some(why) = &held_back {
                    tracing::warn!(%tenant, policy = %name, why, "a newer policy is held back; this one serves");
                }
                let status = PolicyStatus {
                    tenant,
                    policy: name,
                    serving: Some(serving),
                    held_back,
                    refused: None,
                    metrics: BTreeMap::new(),
                    metrics_dropped: 0,
                };
                Named { policy: Some(policy), status }
            }
            Err(why) => refused(tenant, name, why.to_string()),
        };
        self.named.insert(key, Some(named));
        Ok(())
    }

    fn refuse(&mut self, tenant: Tenant, policy: PolicyName, why: String) -> Result<(), LoadError> {
        if let Some(key) = self.expected(tenant, policy)? {
            let (tenant, policy) = key.clone();
            self.named.insert(key, Some(refused(tenant, policy, why)));
        }
        Ok(())
    }

    /// `None` for a policy that is not assigned: where a reload did not start here, the registry is ahead of this
    /// process, and its new policies are none of ours.
    fn expected(&self, tenant: Tenant, policy: PolicyName) -> Result<Option<Key>, LoadError> {
        let key = (tenant, policy);
        match self.named.get(&key) {
            Some(None) => Ok(Some(key)),
            Some(Some(_)) => Err(LoadError::Twice { tenant: key.0, policy: key.1 }),
            None => {
                tracing::warn!(tenant = %key.0, policy = %key.1, "a policy that is not assigned is left alone");
                Ok(None)
            }
        }
    }

    fn load_one(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
        signed: &[u8],
        code: OwnedFd,
    ) -> Result<(Policy, Serving), Refused> {
        let code = SealedBytes::from_fd(code, ARTIFACT_MAX)?;
        // Which version may serve is for the registry to say; that it said so is in the signature.
        let artifact = verify(code, signed, self.keys, &Expected { tenant, policy, minimum_version: 0 })?;
        let (data, read) = self.data_of(tenant, &artifact)?;
        let serving = serving(&artifact, read);
        let ceiling = self.ceilings.get(tenant).copied().unwrap_or_default();
        let granted = Granted { ceiling, data };
        Ok((engine::load(self.engines, &artifact, granted)?, serving))
    }

    fn complete(mut self, assignment: &WorkerAssignment) -> Loaded {
        let mut set = PolicySet::new(Arc::clone(self.accounts), assignment.generation);
        let mut statuses = Vec::new();
        for tenant in &assignment.tenants {
            let mut policies = HashMap::new();
            let modules = tenant.modules.iter().copied().chain(std::iter::repeat(u32::MAX));
            for (name, module) in tenant.policies.iter().zip(modules) {
                let key = (tenant.tenant.clone(), name.clone());
                let Named { policy, status } = self.named.remove(&key).flatten().unwrap_or_else(|| {
                    let why =
                        "the registry does not know it: the configuration it has is another one".to_owned();
                    refused(key.0, key.1, why)
                });
                if let Some(policy) = policy {
                    policies.insert(name.clone(), Arc::new(Served::new(Arc::new(policy), module)));
                }
                statuses.push(status);
            }
            set.insert(tenant, policies);
        }
        Loaded { set, statuses }
    }
}

fn serving(artifact: &Artifact, data: Vec<DataServing>) -> Serving {
    let statement = artifact.statement();
    Serving { digest: artifact.digest(), version: statement.version, bundle: statement.bundle, data }
}

fn refused(tenant: Tenant, policy: PolicyName, why: String) -> Named {
    tracing::error!(%tenant, %policy, why, "policy refused; nothing serves");
    let status = PolicyStatus {
        tenant,
        policy,
        serving: None,
        held_back: None,
        refused: Some(why),
        metrics: BTreeMap::new(),
        metrics_dropped: 0,
    };
    Named { policy: None, status }
}

#[cfg(feature = "compiler")]
#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::artifact::{DataStatement, Digest, SigningKey, Statement, sign, sign_data};
    use crate::compile::Built;
    use crate::decision::TrustClass;
    use crate::table::Builder;
    use crate::wire::control::{ClassLimits, Isolation};
    use crate::wire::supply::SUPPLY_MAX;
    use crate::worker::{samples, tally};

    fn built() -> &'static Built {
        static BUILT: OnceLock<Built> = OnceLock::new();
        BUILT.get_or_init(|| samples::built(samples::ANSWERS))
    }

    fn cwasm() -> &'static [u8] {
        samples::code(built())
    }

    fn tenant() -> Tenant {
        Tenant::new("acme").unwrap()
    }

    fn name(name: &str) -> PolicyName {
        PolicyName::new(name).unwrap()
    }

    /// A registry with its key, and a worker that is to have the policies "gate" and "other".
    struct Host {
        key: SigningKey,
        registry: Channel<FromRegistry, ToRegistry>,
        supply: Supply,
    }

    impl Host {
        fn new() -> Self {
            let (registry, supply) = Channel::pair(SUPPLY_MAX).unwrap();
            Self { key: SigningKey::generate_ed25519().unwrap(), registry, supply }
        }

        fn signed(&self, policy: &str, change: impl FnOnce(&mut Statement)) -> Vec<u8> {
            let mut statement = samples::statement(built(), tenant(), name(policy));
            change(&mut statement);
            sign(&statement, &self.key).unwrap()
        }

        fn say(&self, message: &FromRegistry) {
            self.registry.send(message, None).unwrap();
        }

        fn give_signed(&self, policy: &str, signed: Vec<u8>, code: &[u8], held_back: Option<&str>) {
            let code = SealedBytes::of(code).unwrap();
            let held_back = held_back.map(ToOwned::to_owned);
            let message = FromRegistry::Policy { tenant: tenant(), policy: name(policy), signed, held_back };
            self.registry.send(&message, Some(code.as_fd())).unwrap();
        }

        fn give(&self, policy: &str) {
            self.give_signed(policy, self.signed(policy, |_| {}), cwasm(), None);
        }

        fn refuse(&self, policy: &str, why: &str) {
            self.say(&FromRegistry::Refused { tenant: tenant(), policy: name(policy), why: why.to_owned() });
        }

        fn load(&self) -> Result<Loaded, LoadError> {
            let assignment = WorkerAssignment {
                class: TrustClass::new("a").unwrap(),
                generation: 1,
                uid: 1,
                gid: 1,
                isolation: Isolation::SharedUid,
                host_key: self.key.public_key().to_pem().unwrap(),
                tenants: vec![TenantAssignment {
                    tenant: tenant(),
                    slot: 0,
                    policies: vec![name("gate"), name("other")],
                    modules: vec![0],
                    quotas: crate::accounts::Quotas::default(),
                    weight: 1,
                    max_deadline_us: 1000,
                    default_deadline_us: 1000,
                    ceiling: Ceiling::MOST,
                }],
                slots: 1,
                limits: ClassLimits {
                    threads: 1,
                    memory: 4 << 20,
                    instances: 1,
                    queue: 1,
                    pipeline: 1,
                    connections: 1,
                    stack_zeroing: true,
                    renew_after_decisions: 0,
                    renew_after_ms: 0,
                },
            };
            load(&samples::engines(), &assignment, &self.supply, &tally::samples::accounts())
        }

        #[track_caller]
        fn refused(&self) -> String {
            self.load().expect_err("loaded").to_string()
        }
    }

    fn serves(loaded: &Loaded, policy: &str) -> bool {
        let (_, of) = loaded.set.tenant("acme").unwrap();
        of.policy(policy).is_some_and(|served| !served.is_withdrawn())
    }

    #[test]
    fn what_the_registry_gives_serves_and_what_it_refuses_does_not() {
        let host = Host::new();
        host.give_signed("gate", host.signed("gate", |_| {}), cwasm(), Some("8 is not signed"));
        host.refuse("other", "never delivered");
        host.say(&FromRegistry::Complete);
        let loaded = host.load().unwrap();
        assert!(serves(&loaded, "gate") && !serves(&loaded, "other"));
        let [gate, other] = loaded.statuses.as_slice() else { panic!("{loaded:?}") };
        let serving = gate.serving.as_ref().unwrap();
        assert_eq!((serving.version, serving.bundle), (7, Digest::of(b"bundle")));
        assert_eq!((gate.held_back.as_deref(), &gate.refused), (Some("8 is not signed"), &None));
        assert_eq!((&other.serving, other.refused.as_deref()), (&None, Some("never delivered")));
    }

    /// The registry is believed in nothing that the host's key does not say. Each of these is alone at fault: the other
    /// policy serves.
    #[test]
    fn a_policy_that_does_not_hold_is_named_and_the_others_serve() {
        let stranger = Host::new();
        let host = Host::new();
        let mut flipped = cwasm().to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        let cases: [(Vec<u8>, &[u8], &str); 5] = [
            (stranger.signed("gate", |_| {}), cwasm(), "which is not trusted here"),
            (host.signed("gate", |_| {}), &flipped, "it was changed after signing"),
            (host.signed("other", |_| {}), cwasm(), "statement is for policy \"other\""),
            (
                host.signed("gate", |statement| statement.tenant = Tenant::new("blue").unwrap()),
                cwasm(),
                "statement is for tenant \"blue\"",
            ),
            (
                host.signed("gate", |statement| statement.wasmtime = "48.0.7".into()),
                cwasm(),
                "compiled with wasmtime \"48.0.7\"",
            ),
        ];
        for (signed, code, why) in cases {
            host.give_signed("gate", signed, code, None);
            host.give("other");
            host.say(&FromRegistry::Complete);
            let loaded = host.load().unwrap();
            assert!(!serves(&loaded, "gate") && serves(&loaded, "other"), "{why}");
            let refused = loaded.statuses[0].refused.as_deref().unwrap();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn code_that_could_still_change_is_refused() {
        let host = Host::new();
        let file = nix::sys::memfd::memfd_create("t", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let signed = host.signed("gate", |_| {});
        let message =
            FromRegistry::Policy { tenant: tenant(), policy: name("gate"), signed, held_back: None };
        host.registry.send(&message, Some(file.as_fd())).unwrap();
        host.give("other");
        host.say(&FromRegistry::Complete);
        let loaded = host.load().unwrap();
        assert!(loaded.statuses[0].refused.as_deref().unwrap().contains("it could still change"));
        assert!(serves(&loaded, "other"));
    }

    #[test]
    fn what_is_not_assigned_is_left_alone_and_what_is_not_named_does_not_serve() {
        let host = Host::new();
        host.give("third");
        host.refuse("fourth", "no");
        host.give("gate");
        host.say(&FromRegistry::Complete);
        let loaded = host.load().unwrap();
        assert!(serves(&loaded, "gate") && !serves(&loaded, "third"));
        assert_eq!(loaded.statuses.len(), 2);
        let refused = loaded.statuses[1].refused.as_deref().unwrap();
        assert!(refused.starts_with("the registry does not know it"), "{refused}");
    }

    #[test]
    fn a_registry_that_breaks_the_agreement_starts_nobody() {
        let host = Host::new();
        host.give("gate");
        host.give("gate");
        assert!(host.refused().contains("named policy \"gate\" of tenant \"acme\" twice"));

        let host = Host::new();
        let signed = host.signed("gate", |_| {});
        host.say(&FromRegistry::Policy { tenant: tenant(), policy: name("gate"), signed, held_back: None });
        assert!(host.refused().contains("came without its code"));

        let host = Host::new();
        let cwasm = Digest::of(cwasm());
        host.say(&FromRegistry::Withdraw { tenant: tenant(), policy: name("gate"), cwasm });
        assert!(host.refused().contains("withdrew a policy before all were named"));

        let Host { key, registry, supply } = Host::new();
        let (other, _) = Channel::pair(SUPPLY_MAX).unwrap();
        drop(registry);
        assert!(Host { key, registry: other, supply }.refused().contains("it is gone before all were named"));
    }

    /// A table of one entry, signed as data of `of`, and sent as data of `tenant`.
    fn send_data(host: &Host, sent: (&Tenant, &str), of: &str, key: &SigningKey) {
        let mut table = Builder::default();
        table.add("key", of).unwrap();
        let table = SealedBytes::of(&table.build()).unwrap();
        let statement = DataStatement {
            data: name("prices"),
            tenant: Tenant::new(of).unwrap(),
            version: 3,
            bundle: Digest::of(b"bundle"),
            table: table.digest(),
        };
        let signed = sign_data(&statement, key).unwrap();
        let (tenant, data) = (sent.0.clone(), name(sent.1));
        let message = FromRegistry::Data { tenant, data, signed, held_back: None };
        host.registry.send(&message, Some(table.as_fd())).unwrap();
    }

    #[test]
    fn a_policy_reads_what_its_statement_names_of_its_own_tenant_or_does_not_serve() {
        let reads = |statement: &mut Statement| statement.data = vec!["prices".into()];
        let other = Tenant::new("globex").unwrap();
        let stranger = SigningKey::generate_ed25519().unwrap();
        type Given<'a> = Option<(&'a Tenant, &'a str, bool)>;
        let ours = tenant();
        let cases: [(Given<'_>, Option<&str>); 5] = [
            (Some((&ours, "acme", true)), None),
            (None, Some("did not come")),
            (Some((&other, "globex", true)), Some("did not come")),
            (Some((&ours, "globex", true)), Some("statement is for tenant \"globex\", expected \"acme\"")),
            (Some((&ours, "acme", false)), Some("not trusted here")),
        ];
        for (given, why) in cases {
            let host = Host::new();
            if let Some((sent, of, by_host)) = given {
                send_data(&host, (sent, "prices"), of, if by_host { &host.key } else { &stranger });
            }
            host.give_signed("gate", host.signed("gate", reads), cwasm(), None);
            host.give("other");
            host.say(&FromRegistry::Complete);
            let loaded = host.load().unwrap();
            assert!(serves(&loaded, "other"), "who reads nothing serves");
            let status = &loaded.statuses[0];
            match why {
                None => {
                    let read = &status.serving.as_ref().unwrap().data;
                    assert_eq!((read.len(), read[0].version, read[0].bundle), (1, 3, Digest::of(b"bundle")));
                    assert!(loaded.statuses[1].serving.as_ref().unwrap().data.is_empty());
                }
                Some(why) => {
                    let refused = status.refused.as_deref().unwrap();
                    assert!(
                        refused.contains("data \"prices\", which it reads,") && refused.contains(why),
                        "{refused}"
                    );
                }
            }
        }
        let host = Host::new();
        send_data(&host, (&ours, "prices"), "acme", &host.key);
        send_data(&host, (&ours, "prices"), "acme", &host.key);
        assert!(host.refused().contains("data \"prices\" of tenant \"acme\" came twice"));
    }

    #[test]
    fn a_policy_is_withdrawn_once_and_only_if_it_is_that_code() {
        let host = Host::new();
        host.give("gate");
        host.give("other");
        host.say(&FromRegistry::Complete);
        let Loaded { set, .. } = host.load().unwrap();
        let cwasm = Digest::of(cwasm());
        let (acme, gate) = (tenant(), name("gate"));
        assert!(!set.withdraw(&acme, &gate, Digest::of(b"other code")), "another digest");
        assert!(!set.withdraw(&Tenant::new("blue").unwrap(), &gate, cwasm), "another tenant's");
        assert!(!set.withdraw(&acme, &name("third"), cwasm), "another policy");
        let (_, of) = set.tenant("acme").unwrap();
        assert!(!of.policy("gate").unwrap().is_withdrawn(), "it has decided until now");
        assert!(set.withdraw(&acme, &gate, cwasm));
        assert!(of.policy("gate").unwrap().is_withdrawn());
        assert!(!of.policy("other").unwrap().is_withdrawn(), "the same code under another name");
        assert!(!set.withdraw(&acme, &gate, cwasm), "once");
    }
}
