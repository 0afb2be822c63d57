//! Properties of the decoder at every wall: it takes what was sent, refuses what was not, never panics, and never makes
//! much room for what only claims to be large.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says no by panicking"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Debug;

use bytes::BytesMut;
use portcullis::artifact::Digest;
use portcullis::decision::{
    Address, Attribute, CacheHint, CacheScope, Decision, DecisionId, Header, HeaderValue, HttpRequest, Input,
    Metadatum, Obligations, Outcome, Peer, PolicyName, Quota, Refusal, Stage, Tenant, Timing, TraceContext,
    TrapKind, TrustClass,
};
use portcullis::wire::client::{
    CLIENT_FRAME_MAX, ClientFrame, Deadline, Farewell, HELLO_MAX, PROTOCOL_VERSION, SERVER_FRAME_MAX,
    ServerFrame, Violation,
};
use portcullis::wire::control::{
    AskedReload, BuilderAssignment, CONTROL_MAX, FromChild, FrontendAssignment, Isolation, Process,
    ProcessState, ProcessTable, Ready, RegistryAssignment, ToChild, WorkerAssignment,
};
use portcullis::wire::frame::{self, DecodeError, PREFIX};
use portcullis::wire::gateway::Visit;
use portcullis::wire::handover::{Cookie, FromWorker, HANDOVER_MAX, ToWorker};
use portcullis::wire::job::{Job, Report};
use portcullis::wire::operator::{
    DataServing, FrontendCounters, OPERATOR_REPLY_MAX, OPERATOR_REQUEST_MAX, OperatorReply, OperatorRequest,
    PolicyStatus, Serving, Status, Untold, UntoldWhy, WorkerCounters, WorkerStatus,
};
use portcullis::wire::spawner::{FromSpawner, Order, SpawnerAssignment};
use portcullis::wire::supply::FromRegistry;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// Counts what this thread has allocated and not given back, and the most that ever was.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // Fails while the thread ends, when nothing is measured any more.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + change);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// JUSTIFICATION: only an allocator sees what is allocated.
#[expect(unsafe_code, reason = "the allocator's trait is unsafe")]
// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old and the new may be there at the same time.
        count(size.cast_signed());
        // SAFETY: the caller keeps the contract.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        count(-layout.size().cast_signed());
        moved
    }
}

/// The most bytes that were allocated at once during `work`, above what there was before.
fn most_allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    MOST.set(before);
    let result = work();
    (result, (MOST.get() - before).unsigned_abs())
}

/// Decodes as every type that crosses a wall.
fn decode_as_everything(bytes: &[u8]) {
    macro_rules! decode_as {
        ($($message:ty),+) => {$({
            let (decoded, most) = most_allocated(|| frame::decode::<$message>(bytes));
            // An element of a list may be one byte here and 60 in memory, and lists grow by doubling; besides that,
            // serde makes room for a megabyte on a list's word.
            assert!(most <= (2 << 20) + 256 * bytes.len(), "{most} bytes for {}", bytes.len());
            if let Ok(message) = decoded {
                // What was taken can be said again, and means the same.
                let again = frame::encode(&message, usize::MAX).unwrap();
                assert_eq!(frame::decode::<$message>(&again).as_ref(), Ok(&message));
            }
        })+};
    }
    decode_as!(
        ClientFrame<'_>,
        ServerFrame,
        Input<'_>,
        ToChild,
        FromChild,
        FrontendAssignment,
        WorkerAssignment,
        RegistryAssignment,
        BuilderAssignment,
        Order,
        FromSpawner,
        SpawnerAssignment
    );
    decode_as!(ToWorker, FromWorker, OperatorRequest, OperatorReply, FromRegistry, Job, Report, Visit);
}

/// Encodes, decodes, compares; then spoils the bytes in every way that must be refused, and in ways that may not panic.
fn round_trip<'a, T>(message: &T, max: usize, bytes: &'a mut BytesMut, spoil: &[(usize, u8)])
where
    T: Deserialize<'a> + Serialize + Debug + PartialEq,
{
    frame::encode_frame(message, bytes, max).unwrap();
    let mut changed = bytes.to_vec();
    let bytes: &'a [u8] = bytes;
    assert_eq!(frame::frame_length(bytes, max), Ok(Some(bytes.len() - PREFIX)));
    let body = &bytes[PREFIX..];
    assert_eq!(frame::decode::<T>(body).as_ref(), Ok(message));
    assert_eq!(frame::encode(message, max).unwrap(), body);
    for cut in (0..body.len()).rev().take(40) {
        assert_eq!(frame::decode::<T>(&body[..cut]), Err(DecodeError::Malformed), "cut to {cut}");
    }
    for (position, value) in spoil {
        let position = PREFIX + position % body.len();
        changed[position] ^= value;
        decode_as_everything(&changed[PREFIX..]);
    }
}

fn refuses_trailing<T>(message: &T, trailing: &[u8])
where
    T: for<'a> Deserialize<'a> + Serialize + Debug + PartialEq,
{
    let mut bytes = frame::encode(message, usize::MAX).unwrap();
    bytes.extend_from_slice(trailing);
    assert_eq!(frame::decode::<T>(&bytes), Err(DecodeError::Trailing(trailing.len())));
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9._-]{0,63}"
}

fn tenant() -> impl Strategy<Value = Tenant> {
    name().prop_map(|name| Tenant::new(&name).unwrap())
}

fn class() -> impl Strategy<Value = TrustClass> {
    name().prop_map(|name| TrustClass::new(&name).unwrap())
}

fn policy() -> impl Strategy<Value = PolicyName> {
    name().prop_map(|name| PolicyName::new(&name).unwrap())
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

fn text() -> impl Strategy<Value = String> {
    any::<String>()
}

fn deadline() -> impl Strategy<Value = Deadline> {
    prop_oneof![
        Just(Deadline::Default),
        any::<u32>().prop_map(|us| Deadline::Budget { us }),
        any::<u64>().prop_map(|ns| Deadline::Absolute { ns }),
    ]
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        Just(Address::Unknown),
        any::<[u8; 4]>().prop_map(Address::Ipv4),
        any::<[u8; 16]>().prop_map(Address::Ipv6),
    ]
}

fn stage() -> impl Strategy<Value = Stage> {
    prop::sample::select(vec![Stage::Receipt, Stage::Queue, Stage::Instantiate, Stage::Run, Stage::Reply])
}

fn quota() -> impl Strategy<Value = Quota> {
    prop::sample::select(Quota::ALL.to_vec())
}

fn trap() -> impl Strategy<Value = TrapKind> {
    prop::sample::select(vec![
        TrapKind::Unreachable,
        TrapKind::OutOfBounds,
        TrapKind::Stack,
        TrapKind::Memory,
        TrapKind::Arithmetic,
        TrapKind::IndirectCall,
        TrapKind::Abi,
        TrapKind::Other,
        TrapKind::Fuel,
        TrapKind::HostCalls,
    ])
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let refusal = prop_oneof![
        stage().prop_map(Refusal::Deadline),
        (quota(), any::<u32>()).prop_map(|(which, retry_after_ms)| Refusal::Quota { which, retry_after_ms }),
        trap().prop_map(Refusal::Trap),
        text().prop_map(Refusal::InvalidOutput),
        prop::sample::select(vec![
            Refusal::UnknownPolicy,
            Refusal::UnknownTenant,
            Refusal::NotPermitted,
            Refusal::Overloaded,
            Refusal::Unavailable,
            Refusal::Cancelled,
            Refusal::Revoked,
        ]),
        text().prop_map(Refusal::BadRequest),
        (text(), text()).prop_map(|(reason, detail)| Refusal::PolicyFailed { reason, detail }),
    ];
    prop_oneof![
        Just(Outcome::Allow),
        text().prop_map(|reason| Outcome::Deny { reason }),
        refusal.prop_map(Outcome::Refused),
    ]
}

fn obligations() -> impl Strategy<Value = Obligations> {
    let header =
        || (text(), some_bytes()).prop_map(|(name, value)| HeaderValue { name, value: value.into() });
    let metadatum = (text(), text()).prop_map(|(key, value)| Metadatum { key, value });
    (
        option::of(any::<u16>()),
        vec(header(), 0..3),
        vec(header(), 0..3),
        vec(text(), 0..3),
        option::of(some_bytes()),
        vec(metadatum, 0..3),
    )
        .prop_map(|(status, headers_set, headers_append, headers_remove, body, metadata)| Obligations {
            status,
            headers_set,
            headers_append,
            headers_remove,
            body: body.map(Into::into),
            metadata,
        })
}

fn trace() -> impl Strategy<Value = Option<TraceContext>> {
    // Ids that happen to be zero are none.
    any::<([u8; 16], [u8; 8], u8)>()
        .prop_map(|(trace, parent, flags)| TraceContext::new(trace, parent, flags).ok())
}

fn decision() -> impl Strategy<Value = Decision> {
    let scope = prop::sample::select(vec![CacheScope::Request, CacheScope::Client, CacheScope::Path]);
    let (digest, id) = (option::of(any::<[u8; 32]>()), option::of(any::<[u8; 16]>()));
    (outcome(), obligations(), any::<u32>(), scope, (digest, id), any::<[u64; 4]>()).prop_map(
        |(outcome, obligations, ttl_ms, scope, (digest, id), [queue_ns, instantiate_ns, run_ns, host_ns])| {
            Decision {
                outcome,
                obligations,
                cache: CacheHint { ttl_ms, scope },
                digest: digest.map(Digest::from_bytes),
                timing: Timing { queue_ns, instantiate_ns, run_ns, host_ns },
                id: id.map(DecisionId::from_random),
            }
        },
    )
}

fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let violation = prop::sample::select(vec![
        Violation::Empty,
        Violation::TooLong,
        Violation::Malformed,
        Violation::HelloTwice,
        Violation::NotHello,
        Violation::DuplicateId,
        Violation::BatchSize,
        Violation::Input,
    ]);
    let farewell = prop_oneof![
        any::<(u16, u16)>().prop_map(|(theirs, ours)| Farewell::Version { theirs, ours }),
        quota().prop_map(Farewell::Quota),
        violation.prop_map(Farewell::Protocol),
        prop::sample::select(vec![
            Farewell::UnknownTenant,
            Farewell::NotPermitted,
            Farewell::Unavailable,
            Farewell::Timeout,
            Farewell::ShuttingDown,
        ]),
    ];
    prop_oneof![
        (any::<u16>(), class(), any::<u64>()).prop_map(|(version, class, generation)| ServerFrame::Welcome {
            version,
            class,
            generation
        }),
        (any::<u64>(), decision()).prop_map(|(id, decision)| ServerFrame::Decision { id, decision }),
        (any::<u64>(), vec(decision(), 0..4))
            .prop_map(|(id, decisions)| ServerFrame::Decisions { id, decisions }),
        any::<u64>().prop_map(|nonce| ServerFrame::Pong { nonce }),
        farewell.prop_map(ServerFrame::Farewell),
    ]
}

fn ready() -> impl Strategy<Value = Ready> {
    any::<(u32, u32, bool, u32, u32)>().prop_map(
        |(loaded, refused, pagemap_scan, landlock_abi, landlock_proven_threads)| Ready {
            loaded,
            refused,
            pagemap_scan,
            landlock_abi,
            landlock_proven_threads,
        },
    )
}

fn process() -> impl Strategy<Value = Process> {
    let state =
        prop::sample::select(vec![ProcessState::Starting, ProcessState::Serving, ProcessState::Draining]);
    (text(), option::of(class()), any::<(u64, i32, u32, u32, u32)>(), state, option::of(ready())).prop_map(
        |(role, class, (generation, pid, uid, threads, restarts), state, ready)| Process {
            role,
            class,
            generation,
            pid,
            uid,
            state,
            threads,
            restarts,
            ready,
        },
    )
}

fn process_table() -> impl Strategy<Value = ProcessTable> {
    let isolation = prop::sample::select(vec![Isolation::DistinctUids, Isolation::SharedUid]);
    let asked = (any::<u64>(), any::<u64>(), option::of(text()), any::<bool>(), vec(class(), 0..3)).prop_map(
        |(number, began_ns, error, adopted, behind)| AskedReload { number, began_ns, error, adopted, behind },
    );
    (isolation, any::<u64>(), option::of(text()), option::of(asked), vec(process(), 0..3)).prop_map(
        |(isolation, reloads, last_reload_error, asked, processes)| ProcessTable {
            isolation,
            reloads,
            last_reload_error,
            asked: asked.map(Box::new),
            processes,
        },
    )
}

fn to_child() -> impl Strategy<Value = ToChild> {
    prop_oneof![
        Just(ToChild::Serve),
        any::<u64>().prop_map(|nonce| ToChild::Ping { nonce }),
        Just(ToChild::Drain),
        (class(), any::<u64>()).prop_map(|(class, generation)| ToChild::Route { class, generation }),
        process_table().prop_map(ToChild::Processes),
        Just(ToChild::Reassign),
        (class(), any::<u64>()).prop_map(|(class, generation)| ToChild::Supply { class, generation }),
        any::<u64>().prop_map(|serial| ToChild::Builder { serial }),
        (any::<u32>(), any::<u64>()).prop_map(|(uid, generation)| ToChild::Visits { uid, generation }),
        (any::<u64>(), text()).prop_map(|(serial, why)| ToChild::NoBuilder { serial, why }),
    ]
}

fn from_child() -> impl Strategy<Value = FromChild> {
    prop_oneof![
        ready().prop_map(FromChild::Ready),
        any::<u64>().prop_map(|nonce| FromChild::Pong { nonce }),
        Just(FromChild::Renew),
        text().prop_map(|why| FromChild::Failed { why }),
        (text(), option::of(text()))
            .prop_map(|(host_key, refused)| FromChild::Surveyed { host_key, refused }),
        (any::<u64>(), class()).prop_map(|(serial, class)| FromChild::Build { serial, class }),
        Just(FromChild::Changed),
        any::<u64>().prop_map(|generation| FromChild::GatewayCut { generation }),
    ]
}

fn to_worker() -> impl Strategy<Value = ToWorker> {
    prop_oneof![
        (any::<(u64, u32, u32)>(), vec(tenant(), 0..4)).prop_map(|((cookie, uid, unread), tenants)| {
            ToWorker::Adopt { cookie: Cookie(cookie), uid, tenants, unread }
        }),
        some_bytes().prop_map(ToWorker::Unread),
        Just(ToWorker::Drain),
        any::<u64>().prop_map(|nonce| ToWorker::Status { nonce }),
    ]
}

fn worker_status() -> impl Strategy<Value = WorkerStatus> {
    let data = (policy(), any::<(u64, [u8; 32])>(), option::of(text())).prop_map(
        |(data, (version, bundle), held_back)| DataServing {
            data,
            version,
            bundle: Digest::from_bytes(bundle),
            held_back,
        },
    );
    let serving = (any::<([u8; 32], u64, [u8; 32])>(), vec(data, 0..3)).prop_map(
        |((digest, version, bundle), data)| Serving {
            digest: Digest::from_bytes(digest),
            version,
            bundle: Digest::from_bytes(bundle),
            data,
        },
    );
    let policy = (tenant(), policy(), option::of(serving), option::of(text()), option::of(text())).prop_map(
        |(tenant, policy, serving, refused, held_back)| PolicyStatus {
            tenant,
            policy,
            serving,
            refused,
            metrics: held_back.iter().map(|name| (name.clone(), u64::MAX)).collect(),
            metrics_dropped: 300,
            held_back,
        },
    );
    (class(), any::<(u64, bool, bool)>(), any::<[u64; 10]>(), vec(policy, 0..3)).prop_map(
        |(class, (generation, pagemap_scan, stack_zeroing), n, policies)| WorkerStatus {
            class,
            generation,
            pagemap_scan,
            stack_zeroing,
            counters: WorkerCounters {
                connections: n[0],
                allowed: n[1],
                denied: n[2],
                refused_deadline: n[3],
                refused_trap: n[4],
                refused_invalid_output: n[5],
                refused_overloaded: n[6],
                refused_other: n[7],
                watchdog: n[8],
                refused_policy_failed: n[9],
            },
            policies,
        },
    )
}

fn from_worker() -> impl Strategy<Value = FromWorker> {
    prop_oneof![
        any::<(u64, u32)>()
            .prop_map(|(cookie, unread)| FromWorker::Return { cookie: Cookie(cookie), unread }),
        some_bytes().prop_map(FromWorker::Unread),
        any::<u64>().prop_map(|cookie| FromWorker::Closed { cookie: Cookie(cookie) }),
        Just(FromWorker::Drained),
        (any::<(u64, bool)>(), worker_status()).prop_map(|((nonce, last), part)| FromWorker::Status {
            nonce,
            part,
            last
        }),
    ]
}

fn operator_reply() -> impl Strategy<Value = OperatorReply> {
    let why = prop_oneof![Just(UntoldWhy::NoAnswer), Just(UntoldWhy::TooManyPolicies)];
    let untold =
        (class(), any::<u64>(), why).prop_map(|(class, generation, why)| Untold { class, generation, why });
    let workers = (vec(worker_status(), 0..3), vec(untold, 0..3));
    let status = (text(), any::<i32>(), process_table(), any::<[u64; 5]>(), workers).prop_map(
        |(version, supervisor_pid, processes, n, (workers, untold))| Status {
            version,
            supervisor_pid,
            processes,
            frontend: FrontendCounters {
                accepted: n[0],
                handed_over: n[1],
                carried_over: n[2],
                refused: n[3],
                open: n[4],
            },
            workers,
            untold,
        },
    );
    prop_oneof![status.prop_map(OperatorReply::Status), Just(OperatorReply::NotPermitted)]
}

/// Where to change a valid frame, and how.
fn spoiling() -> impl Strategy<Value = Vec<(usize, u8)>> {
    vec((any::<usize>(), 1..=u8::MAX), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..600)) {
        decode_as_everything(&bytes);
        for max in [0, 1, HELLO_MAX, CLIENT_FRAME_MAX, SERVER_FRAME_MAX, OPERATOR_REQUEST_MAX] {
            let mut buffer = BytesMut::from(bytes.as_slice());
            while let Ok(Some(frame)) = frame::next_frame(&mut buffer, max) {
                prop_assert!(!frame.is_empty() && frame.len() <= max);
                decode_as_everything(&frame);
            }
        }
    }

    /// Small numbers are what enums, options and lengths are made of: these get deeper than any random bytes.
    #[test]
    fn random_small_bytes_never_panic(bytes in vec(prop_oneof![0..12_u8, any::<u8>()], 0..200)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn decisions_and_questions_go_round(
        (id, deadline, trace) in (any::<u64>(), deadline(), trace()),
        (tenant, policy) in (text(), text()),
        inputs in vec(some_bytes(), 0..5),
        spoil in spoiling(),
    ) {
        let (tenant, policy) = (tenant.as_str(), policy.as_str());
        let first = inputs.first().map(Vec::as_slice).unwrap_or_default();
        let inputs = inputs.iter().map(Vec::as_slice).collect();
        for frame in [
            ClientFrame::Hello { version: PROTOCOL_VERSION, tenant },
            ClientFrame::Decide { id, tenant, policy, deadline, trace, input: first },
            ClientFrame::DecideBatch { id, tenant, policy, deadline, trace, inputs },
            ClientFrame::Cancel { id },
            ClientFrame::Ping { nonce: id },
        ] {
            let mut bytes = frame::encode(&frame, CLIENT_FRAME_MAX).unwrap();
            bytes.push(0);
            prop_assert_eq!(frame::decode::<ClientFrame<'_>>(&bytes), Err(DecodeError::Trailing(1)));
            round_trip(&frame, CLIENT_FRAME_MAX, &mut BytesMut::new(), &spoil);
        }
    }

    #[test]
    fn inputs_go_round(
        words in any::<[String; 6]>(),
        query in option::of(text()),
        headers in vec((text(), some_bytes()), 0..5),
        body in option::of(some_bytes()),
        peers in any::<[(u16, Option<String>); 2]>(),
        addresses in (address(), address()),
        attributes in vec((text(), text()), 0..3),
        spoil in spoiling(),
    ) {
        let [method, scheme, host, path, content_type, bytes] = &words;
        let opaque = Input::Opaque { content_type, bytes: bytes.as_bytes() };
        let [source, destination] = &peers;
        let http = Input::Http(HttpRequest {
            method,
            scheme,
            host,
            path,
            query: query.as_deref(),
            headers: headers.iter().map(|(name, value)| Header { name, value }).collect(),
            body: body.as_deref(),
            source: Peer { address: addresses.0, port: source.0, principal: source.1.as_deref() },
            destination: Peer { address: addresses.1, port: destination.0, principal: destination.1.as_deref() },
            attributes: attributes.iter().map(|(name, value)| Attribute { name, value }).collect(),
        });
        for input in [opaque, http] {
            round_trip(&input, CLIENT_FRAME_MAX, &mut BytesMut::new(), &spoil);
        }
    }

    #[test]
    fn answers_go_round(frame in server_frame(), trailing in vec(any::<u8>(), 1..9), spoil in spoiling()) {
        round_trip(&frame, SERVER_FRAME_MAX, &mut BytesMut::new(), &spoil);
        refuses_trailing(&frame, &trailing);
    }

    #[test]
    fn control_messages_go_round(
        to in to_child(),
        from in from_child(),
        trailing in vec(any::<u8>(), 1..9),
        spoil in spoiling(),
    ) {
        round_trip(&to, CONTROL_MAX, &mut BytesMut::new(), &spoil);
        round_trip(&from, CONTROL_MAX, &mut BytesMut::new(), &spoil);
        refuses_trailing(&to, &trailing);
        refuses_trailing(&from, &trailing);
    }

    #[test]
    fn handovers_go_round(
        to in to_worker(),
        from in from_worker(),
        trailing in vec(any::<u8>(), 1..9),
        spoil in spoiling(),
    ) {
        round_trip(&to, HANDOVER_MAX, &mut BytesMut::new(), &spoil);
        round_trip(&from, HANDOVER_MAX, &mut BytesMut::new(), &spoil);
        refuses_trailing(&to, &trailing);
        refuses_trailing(&from, &trailing);
    }

    #[test]
    fn operators_messages_go_round(reply in operator_reply(), spoil in spoiling()) {
        round_trip(&OperatorRequest::Status, OPERATOR_REQUEST_MAX, &mut BytesMut::new(), &spoil);
        round_trip(&reply, OPERATOR_REPLY_MAX, &mut BytesMut::new(), &spoil);
        refuses_trailing(&reply, &[0]);
    }

    /// However a stream of frames is cut into reads, the same frames come out.
    #[test]
    fn frames_survive_every_cutting(
        frames in vec(vec(any::<u8>(), 1..50), 1..20),
        cuts in vec(1..40_usize, 1..50),
    ) {
        let mut stream = Vec::new();
        for frame in &frames {
            stream.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
            stream.extend_from_slice(frame);
        }
        let mut rest = stream.as_slice();
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for cut in cuts.iter().cycle() {
            while let Some(frame) = frame::next_frame(&mut buffer, 64).unwrap() {
                got.push(frame.to_vec());
            }
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            buffer.extend_from_slice(piece);
            rest = later;
        }
        prop_assert_eq!(got, frames);
        prop_assert!(buffer.is_empty());
    }

    /// A length that is not allowed is refused as soon as its four bytes are there, and nothing is made room for.
    #[test]
    fn lengths_over_the_limit_are_refused_before_any_room_is_made(length in any::<u32>()) {
        for max in [HELLO_MAX, CLIENT_FRAME_MAX, SERVER_FRAME_MAX, OPERATOR_REQUEST_MAX, OPERATOR_REPLY_MAX] {
            let mut buffer = BytesMut::from(length.to_be_bytes().as_slice());
            let capacity = buffer.capacity();
            let (taken, most) = most_allocated(|| frame::next_frame(&mut buffer, max));
            let length = length as usize;
            let expected = match length {
                0 => Err(DecodeError::Empty),
                _ if length > max => Err(DecodeError::TooLong { length, max }),
                _ => Ok(None),
            };
            prop_assert_eq!(taken, expected);
            prop_assert_eq!(most, 0);
            prop_assert_eq!(buffer.capacity(), capacity);
        }
    }

    /// What does not fit is not sent, and leaves what was there before it.
    #[test]
    fn messages_over_the_limit_are_not_encoded(frame in server_frame(), max in 0..400_usize) {
        let mut buffer = BytesMut::from(b"before".as_slice());
        let whole = frame::encode(&frame, usize::MAX).unwrap();
        let outcome = frame::encode_frame(&frame, &mut buffer, max);
        prop_assert_eq!(outcome.is_ok(), whole.len() <= max);
        prop_assert_eq!(frame::encode(&frame, max).is_ok(), whole.len() <= max);
        let added = if outcome.is_ok() { PREFIX + whole.len() } else { 0 };
        prop_assert_eq!(&buffer[..6], b"before");
        prop_assert_eq!(buffer.len(), 6 + added);
    }
}

#[test]
fn the_allocator_counts() {
    let (kept, most) = most_allocated(|| vec![0_u8; 3 << 20]);
    assert!(most >= 3 << 20, "{most}");
    drop(kept);
}

/// Lists, strings and bytes that say they have 2^60 elements, or just more than there are.
#[test]
fn a_claimed_length_alone_gets_little_memory() {
    type Decode = fn(&[u8]) -> Result<(), DecodeError>;
    fn of<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(), DecodeError> {
        frame::decode::<T>(bytes).map(drop)
    }
    let bombs: &[(&str, Decode, &[u8])] = &[
        ("Hello.tenant", |bytes| of::<ClientFrame<'_>>(bytes), &[0, 1]),
        ("Decide.tenant", |bytes| of::<ClientFrame<'_>>(bytes), &[1, 1]),
        ("DecideBatch.inputs", |bytes| of::<ClientFrame<'_>>(bytes), &[2, 1, 0, 0, 0, 0]),
        ("Opaque.bytes", |bytes| of::<Input<'_>>(bytes), &[1, 0]),
        ("Http.headers", |bytes| of::<Input<'_>>(bytes), &[0, 0, 0, 0, 0, 0]),
        ("Decisions", |bytes| of::<ServerFrame>(bytes), &[2, 1]),
        ("Deny.reason", |bytes| of::<ServerFrame>(bytes), &[1, 1, 1]),
        ("Decision.headers_set", |bytes| of::<ServerFrame>(bytes), &[1, 1, 0, 0]),
        ("Decision.headers_remove", |bytes| of::<ServerFrame>(bytes), &[1, 1, 0, 0, 0, 0]),
        ("Decision.body", |bytes| of::<ServerFrame>(bytes), &[1, 1, 0, 0, 0, 0, 0, 1]),
        ("Decision.metadata", |bytes| of::<ServerFrame>(bytes), &[1, 1, 0, 0, 0, 0, 0, 0]),
        ("Processes", |bytes| of::<ToChild>(bytes), &[4, 0, 0, 0]),
        ("Failed.why", |bytes| of::<FromChild>(bytes), &[3]),
        ("Unread", |bytes| of::<ToWorker>(bytes), &[1]),
        ("Unread", |bytes| of::<FromWorker>(bytes), &[1]),
        (
            "Status.policies",
            |bytes| of::<FromWorker>(bytes),
            &[4, 1, 1, b'a', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        ("OperatorReply.version", |bytes| of::<OperatorReply>(bytes), &[0]),
        ("OperatorReply.workers", |bytes| of::<OperatorReply>(bytes), &[0; 13]),
    ];
    // 2^60, and 16,383.
    for claim in [&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10][..], &[0xff, 0x7f]] {
        for (name, decode, before) in bombs {
            // The control: with an honest 0 in its place, everything is as it should be but for the zeros at the end.
            let honest = decode(&[before, &[0; 300][..]].concat());
            assert!(matches!(honest, Err(DecodeError::Trailing(_))), "{name}: {honest:?}");
            let bomb = [before, claim, &[0; 300]].concat();
            let (taken, most) = most_allocated(|| decode(&bomb));
            assert_eq!(taken, Err(DecodeError::Malformed), "{name}");
            assert!(most <= (1 << 20) + (64 << 10), "{name}: {most} bytes");
        }
    }
}

/// The largest frames there may be, full of the elements that take the most memory for their bytes.
#[test]
fn a_full_frame_of_the_smallest_elements_stays_bounded() {
    let filled = |before: &[u8], each: usize, behind: usize, max: usize| {
        let count = (max - 64) / each;
        let claim = frame::encode(&count, 8).unwrap();
        [before, &claim, &vec![0; count * each + behind]].concat()
    };
    // Empty inputs: one byte each, 16 in memory, and the list they were taken from at the same time.
    let batch = filled(&[2, 1, 0, 0, 0, 0], 1, 0, CLIENT_FRAME_MAX);
    let (taken, most) = most_allocated(|| frame::decode::<ClientFrame<'_>>(&batch).is_ok());
    assert!(taken);
    assert!(most <= 32 * CLIENT_FRAME_MAX, "{most} bytes for a batch");
    let headers = filled(&[0, 0, 0, 0, 0, 0], 2, 8, CLIENT_FRAME_MAX);
    let (taken, most) = most_allocated(|| frame::decode::<Input<'_>>(&headers).is_ok());
    assert!(taken);
    assert!(most <= 32 * CLIENT_FRAME_MAX, "{most} bytes for an input");
    let metadata = filled(&[1, 1, 0, 0, 0, 0, 0, 0], 2, 8, SERVER_FRAME_MAX);
    let (taken, most) = most_allocated(|| frame::decode::<ServerFrame>(&metadata));
    assert_eq!(taken, Err(DecodeError::Malformed), "more of them than a decision may have");
    assert!(most <= 1 << 20, "{most} bytes for a decision");
    let decision = Decision { outcome: Outcome::Allow, ..Decision::refused(Refusal::Unavailable) };
    let smallest = frame::encode(&decision, 64).unwrap();
    assert!(smallest.iter().all(|byte| *byte == 0), "{smallest:?}");
    let decisions = filled(&[2, 1], smallest.len(), 0, SERVER_FRAME_MAX);
    let (taken, most) = most_allocated(|| frame::decode::<ServerFrame>(&decisions));
    assert_eq!(taken, Err(DecodeError::Malformed), "more of them than a batch has questions");
    assert!(most <= 1 << 20, "{most} bytes for a batch of decisions");
}
