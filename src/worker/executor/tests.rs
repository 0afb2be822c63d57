//! An executor on a thread of its own, asked over a socket as by a client.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use rand_chacha::rand_core::SeedableRng;

use super::*;
use crate::artifact::{Expected, SealedBytes, SigningKey, sign, verify};
use crate::decision::{Decision, Input, Outcome, PolicyName, Refusal, Tenant};
use crate::engine::{self, Granted};
use crate::wire::client::{CLIENT_FRAME_MAX, ClientFrame, Deadline, SERVER_FRAME_MAX, ServerFrame};
use crate::wire::control::TenantAssignment;
use crate::wire::frame;
use crate::worker::policies::Served;
use crate::worker::{samples, tally};

fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

fn gate() -> PolicyName {
    PolicyName::new("gate").unwrap()
}

/// One for all tests: a process ticks one engine.
fn engines() -> &'static engine::Engines {
    static ENGINES: OnceLock<engine::Engines> = OnceLock::new();
    ENGINES.get_or_init(samples::engines)
}

/// The tenant "spins" has a policy that never answers, "answers" one that does.
fn set() -> PolicySet {
    let key = SigningKey::generate_ed25519().unwrap();
    let mut set = PolicySet::new(tally::samples::accounts(), 1);
    for (slot, name, decide) in [(0, "spins", samples::SPINS), (1, "answers", samples::ANSWERS)] {
        let built = samples::built(decide);
        let signed = sign(&samples::statement(&built, tenant(name), gate()), &key).unwrap();
        let expected = Expected { tenant: &tenant(name), policy: &gate(), minimum_version: 0 };
        let code = SealedBytes::of(samples::code(&built)).unwrap();
        let artifact = verify(code, &signed, &[key.public_key()], &expected).unwrap();
        let policy = engine::load(engines(), &artifact, Granted::default()).unwrap();
        let assignment = TenantAssignment {
            tenant: tenant(name),
            slot,
            policies: vec![gate()],
            modules: vec![0],
            quotas: crate::accounts::Quotas::default(),
            weight: 1,
            max_deadline_us: 60_000_000,
            default_deadline_us: 60_000_000,
            ceiling: crate::artifact::Ceiling::MOST,
        };
        set.insert(&assignment, HashMap::from([(gate(), Arc::new(Served::new(Arc::new(policy), slot)))]));
    }
    set
}

struct Client {
    stream: UnixStream,
    received: BytesMut,
}

impl Client {
    fn ask(&mut self, id: u64, tenant: &str) {
        let input = frame::encode(&Input::Opaque { content_type: "", bytes: b"" }, 100).unwrap();
        let question = ClientFrame::Decide {
            id,
            tenant,
            policy: "gate",
            deadline: Deadline::Default,
            trace: None,
            input: &input,
        };
        let mut bytes = BytesMut::new();
        frame::encode_frame(&question, &mut bytes, CLIENT_FRAME_MAX).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn next(&mut self) -> (u64, Decision) {
        loop {
            if let Some(frame) = frame::next_frame(&mut self.received, SERVER_FRAME_MAX).unwrap() {
                match frame::decode(&frame).unwrap() {
                    ServerFrame::Decision { id, decision } => return (id, decision),
                    other => panic!("{other:?}"),
                }
            }
            let mut bytes = [0; 4096];
            let length = self.stream.read(&mut bytes).expect("an answer in time");
            assert_ne!(length, 0, "the connection stays");
            self.received.extend_from_slice(&bytes[..length]);
        }
    }
}

/// To be made on the thread that runs it.
fn executor(set: Arc<PolicySet>, shared: Arc<Shared>) -> Executor {
    let capacity = Capacity {
        instances: 4,
        instances_per_tenant: 1,
        queue: 64,
        queue_per_tenant: 64,
        pipeline: 64,
        executors: 1,
    };
    let parts = Parts {
        shared,
        steward: Arc::new(Mailbox::new().unwrap()),
        watchdog: Arc::new(Mailbox::new().unwrap()),
        shares: Arc::new(Shares::new(set.weights())),
        set,
        capacity,
        ticker: Ticker::new(&engines().all()).unwrap(),
        seeds: ChaCha20Rng::from_seed([7; 32]),
    };
    Executor::new(parts).unwrap()
}

fn shared() -> Arc<Shared> {
    Arc::new(Shared {
        mailbox: Mailbox::new().unwrap(),
        tickets: Tickets::default(),
        counters: Counters::default(),
        step_began_ns: 0.into(),
        ticking: false.into(),
    })
}

/// A client that may ask for both tenants.
fn connect(shared: &Shared) -> Client {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    shared.mailbox.put(ToExecutor::Adopt(Adopted {
        outbound: Arc::new(Outbound::new(theirs.into())),
        cookie: Cookie(1),
        grant: [true, true].into(),
        unread: Vec::new(),
    }));
    Client { stream: ours, received: BytesMut::new() }
}

/// An executor that runs, and a client of it.
fn start(set: &Arc<PolicySet>) -> (Arc<Shared>, Client) {
    let shared = shared();
    let (set, its) = (Arc::clone(set), Arc::clone(&shared));
    // It ends with the process: an executor never leaves its loop.
    std::thread::spawn(move || executor(set, its).run());
    let client = connect(&shared);
    (shared, client)
}

/// One connection is full of frames before every round, and was there first: another one has its turn all the same.
#[test]
fn who_always_has_something_to_read_does_not_keep_others_from_being_read() {
    let shared = shared();
    let mut executor = executor(Arc::new(set()), Arc::clone(&shared));
    let mut flooding = connect(&shared);
    flooding.stream.set_nonblocking(true).unwrap();
    let mut pings = BytesMut::new();
    (0..5_000).for_each(|nonce| {
        frame::encode_frame(&ClientFrame::Ping { nonce }, &mut pings, CLIENT_FRAME_MAX).unwrap();
    });
    let mut unsent = 0;
    let mut other = connect(&shared);
    let mut events = [EpollEvent::empty(); EVENTS];
    for id in 0..20 {
        let (mut read, mut answered, mut rounds) = (false, false, 0);
        assert!(executor.tasks.is_empty(), "{id}: who floods asks nothing");
        other.ask(id, "answers");
        // It is read soon, whatever time passes. How many slices the answer takes depends on what the machine leaves of each.
        while rounds < 4 || !answered {
            assert!(rounds < 1_000, "{id}: no answer");
            while let Ok(sent) = flooding.stream.write(&pings[unsent..]) {
                unsent = (unsent + sent) % pings.len();
            }
            executor.round(&mut events).unwrap();
            while flooding.stream.read(&mut [0; 4096]).is_ok() {}
            other.stream.set_nonblocking(true).unwrap();
            answered |= other.stream.read(&mut [0; 4096]).is_ok();
            other.stream.set_nonblocking(false).unwrap();
            read |= answered || !executor.tasks.is_empty();
            rounds += 1;
            assert!(read || rounds < 4, "{id}: not read");
        }
    }
}

/// Whoever is answered before its guest has ended has the instance until that is done away with, and then nothing.
#[test]
fn what_is_given_up_is_done_away_with_and_paid_for() {
    let shared = shared();
    let mut executor = executor(Arc::new(set()), Arc::clone(&shared));
    let mut client = connect(&shared);
    let mut events = [EpollEvent::empty(); EVENTS];
    client.ask(1, "spins");
    while executor.schedule.instances() == 0 {
        executor.round(&mut events).unwrap();
    }
    let mut cancel = BytesMut::new();
    frame::encode_frame(&ClientFrame::Cancel { id: 1 }, &mut cancel, CLIENT_FRAME_MAX).unwrap();
    client.stream.write_all(&cancel).unwrap();
    let first = |executor: &Executor| executor.tasks.iter().any(|(_, task)| task.seat.flow == 0);
    while first(&executor) || !executor.remains.is_empty() {
        executor.round(&mut events).unwrap();
    }
    assert_eq!(executor.schedule.instances(), 0);
    let (id, decision) = client.next();
    assert_eq!((id, decision.outcome), (1, Outcome::Refused(Refusal::Cancelled)));

    // There is one instance for each tenant: the next one gets it. What a connection leaves goes with it.
    client.ask(2, "spins");
    client.ask(3, "spins");
    while executor.schedule.instances() == 0 {
        executor.round(&mut events).unwrap();
    }
    drop(client);
    while !executor.tasks.is_empty() || !executor.remains.is_empty() {
        executor.round(&mut events).unwrap();
    }
    assert_eq!((executor.schedule.instances(), executor.schedule.len()), (0, 0));
    let (_, spins) = executor.set.tenant("spins").unwrap();
    let gauges = &executor.set.column().unwrap().tenants[spins.meter.slot() as usize];
    assert_eq!((gauges.memory.get(), gauges.concurrent.get()), (0, 0));
}

/// What is refused at admission is an answer as any other.
#[test]
fn refusals_count_among_the_bytes_of_answers() {
    let set = Arc::new(set());
    let shared = shared();
    let mut executor = executor(Arc::clone(&set), Arc::clone(&shared));
    let mut client = connect(&shared);
    let (_, answers) = set.tenant("answers").unwrap();
    assert!(set.withdraw(&tenant("answers"), &gate(), answers.policy("gate").unwrap().digest()));
    client.ask(1, "answers");
    executor.round(&mut [EpollEvent::empty(); EVENTS]).unwrap();
    assert_eq!(client.next().1.outcome, Outcome::Refused(Refusal::Revoked));
    assert!(answers.meter.account().unwrap().egress_bytes.get() > 0);
}

/// One runs, two wait for its instance, and all three are answered once; what comes later is not begun. Nobody else is
/// touched.
#[test]
fn what_is_asked_of_a_withdrawn_policy_is_refused_wherever_it_is() {
    let set = Arc::new(set());
    let (shared, mut client) = start(&set);
    for id in 1..=3 {
        client.ask(id, "spins");
    }
    client.ask(4, "answers");
    let (id, decision) = client.next();
    assert_eq!(id, 4, "the others have not been answered, and their turns have begun");
    assert!(!matches!(decision.outcome, Outcome::Refused(_)), "{decision:?}");

    let (_, spins) = set.tenant("spins").unwrap();
    let digest = spins.policy("gate").unwrap().digest();
    assert!(set.withdraw(&tenant("spins"), &gate(), digest));
    shared.mailbox.put(ToExecutor::Withdrawn);
    let mut answered = Vec::new();
    let mut names = std::collections::BTreeSet::from([decision.id]);
    for _ in 1..=3 {
        let (id, decision) = client.next();
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Revoked), "{id}");
        assert_eq!(decision.digest, Some(digest), "whose right it was is said");
        answered.push(id);
        names.insert(decision.id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3]);
    assert!(names.len() == 4 && !names.contains(&None), "each has a name of its own: {names:?}");

    client.ask(5, "spins");
    assert_eq!(client.next().1.outcome, Outcome::Refused(Refusal::Revoked), "not begun");
    client.ask(6, "answers");
    let (id, decision) = client.next();
    assert_eq!(id, 6, "nothing is answered twice");
    assert!(!matches!(decision.outcome, Outcome::Refused(_)), "{decision:?}");
}

/// Nobody has told the executor yet: what a policy says after it was withdrawn does not count all the same.
#[test]
fn what_a_withdrawn_policy_has_under_way_does_not_outlive_its_slice() {
    let set = Arc::new(set());
    let (_shared, mut client) = start(&set);
    client.ask(1, "spins");
    client.ask(2, "answers");
    assert_eq!(client.next().0, 2);
    let (_, spins) = set.tenant("spins").unwrap();
    assert!(set.withdraw(&tenant("spins"), &gate(), spins.policy("gate").unwrap().digest()));
    // A spinning guest is seen to at the end of its slice.
    let (id, decision) = client.next();
    assert_eq!((id, decision.outcome), (1, Outcome::Refused(Refusal::Revoked)));
}
