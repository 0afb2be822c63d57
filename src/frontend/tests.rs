//! The whole event loop, unsealed, between real sockets: the test is the supervisor, the workers and the clients.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream as Client;
use std::path::PathBuf;

use bytes::BytesMut;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::task::{JoinHandle, spawn_blocking};

mod visits;

use super::*;
use crate::decision::{Quota, Tenant, TrustClass};
use crate::wire::client::{
    ClientFrame, Deadline, Farewell, HELLO_MAX, PROTOCOL_VERSION, ServerFrame, Violation,
};
use crate::wire::control::{ASSIGNMENT_MAX, Isolation, ProcessTable, TenantGrant};
use crate::wire::frame::{self, PREFIX};
use crate::wire::handover::{Cookie, FromWorker, HANDOVER_MAX, ToWorker, UNREAD_CHUNK};
use crate::wire::operator::{
    OperatorReply, OperatorRequest, Status, Untold, UntoldWhy, WorkerCounters, WorkerStatus,
};

/// Longer than any test takes.
const FOREVER_MS: u32 = 600_000;
/// A test that waits this long waits for something that will not come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    directory: tempfile::TempDir,
    control: Polled<ToChild, FromChild>,
    frontend: JoinHandle<Result<(), FrontendError>>,
}

struct Worker(Polled<FromWorker, ToWorker>);

fn uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

fn grant(tenant: &str, class: &str, uids: &[u32], gids: &[u32]) -> TenantGrant {
    TenantGrant {
        tenant: Tenant::new(tenant).unwrap(),
        class: TrustClass::new(class).unwrap(),
        uids: uids.to_vec(),
        gids: gids.to_vec(),
    }
}

fn assignment() -> FrontendAssignment {
    FrontendAssignment {
        uid: uid(),
        gid: 0,
        isolation: Isolation::SharedUid,
        tenants: vec![
            grant("acme", "gold", &[uid()], &[]),
            grant("apex", "gold", &[uid()], &[]),
            grant("crow", "iron", &[uid()], &[]),
            grant("other", "gold", &[4242], &[4343]),
        ],
        operators: vec![],
        hello_timeout_ms: FOREVER_MS,
        max_connections: 20_000,
        max_connections_per_uid: 20_000,
        classes: vec![],
    }
}

impl Service {
    fn start(assignment: FrontendAssignment) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listen = |name| UnixListener::bind(directory.path().join(name)).unwrap();
        let (ours, theirs) = Channel::pair(CONTROL_MAX).unwrap();
        let frontend = Frontend::new(assignment, listen("clients"), listen("operators"), 77).unwrap();
        for name in ["", "clients", "operators"] {
            let path = directory.path().join(name);
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        let frontend = tokio::spawn(frontend.run(theirs));
        let service = Self { directory, control: Polled::new(ours).unwrap(), frontend };
        service.tell(&ToChild::Serve);
        service
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn tell(&self, message: &ToChild) {
        self.control.try_send(message).unwrap();
    }

    /// Returns when the frontend has heeded everything that was told before.
    async fn settled(&self) {
        self.tell(&ToChild::Ping { nonce: 5 });
        let answer = self.control.receive(&mut Vec::new()).await.unwrap().unwrap();
        assert_eq!(answer.0, FromChild::Pong { nonce: 5 });
    }

    async fn route(&self, class: &str, generation: u64) -> Worker {
        let (theirs, ours) = Channel::<ToWorker, FromWorker>::pair(HANDOVER_MAX).unwrap();
        let route = ToChild::Route { class: TrustClass::new(class).unwrap(), generation };
        self.control.send(&route, Some(theirs.as_fd())).await.unwrap();
        self.settled().await;
        Worker(Polled::new(ours).unwrap())
    }

    async fn reassign(&self, assignment: &FrontendAssignment) {
        let mut memfd = std::fs::File::from(memfd_create("a", MFdFlags::empty()).unwrap());
        memfd.write_all(&frame::encode(assignment, ASSIGNMENT_MAX).unwrap()).unwrap();
        self.control.send(&ToChild::Reassign, Some(memfd.as_fd())).await.unwrap();
        self.settled().await;
    }

    /// A connection on which these bytes were sent.
    async fn client(&self, bytes: &[u8]) -> Client {
        let path = self.path("clients");
        let bytes = bytes.to_vec();
        blocking(move || {
            let mut client = Client::connect(path).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            match client.write_all(&bytes) {
                // Refused at the door, before it could write; the farewell is there to be read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written.unwrap(),
            }
            client
        })
        .await
    }

    async fn status(&self) -> Status {
        let path = self.path("operators");
        match blocking(move || ask_status(Client::connect(path).unwrap())).await {
            OperatorReply::Status(status) => status,
            OperatorReply::NotPermitted => panic!("not permitted"),
        }
    }
}

impl Worker {
    async fn next(&self) -> (ToWorker, Option<OwnedFd>) {
        self.receive().await.expect("a message, not the end")
    }

    async fn receive(&self) -> Option<(ToWorker, Option<OwnedFd>)> {
        let mut buffer = Vec::new();
        let received = tokio::time::timeout(PATIENCE, self.0.receive(&mut buffer)).await;
        received.expect("a message or the end").unwrap()
    }

    async fn adopted(&self) -> Adopted {
        match self.next().await {
            (ToWorker::Adopt { cookie, uid, tenants, unread }, Some(socket)) => Adopted {
                cookie,
                socket: socket.into(),
                uid,
                tenants: tenants.iter().map(|tenant| tenant.as_str().to_owned()).collect(),
                unread,
            },
            other => panic!("{other:?}"),
        }
    }

    async fn say(&self, message: FromWorker) {
        self.0.send(&message, None).await.unwrap();
    }

    async fn give_back(&self, cookie: Cookie, socket: &impl AsFd, unread: &[u8]) {
        let announced = u32::try_from(unread.len()).unwrap();
        self.0.send(&FromWorker::Return { cookie, unread: announced }, Some(socket.as_fd())).await.unwrap();
        for chunk in unread.chunks(UNREAD_CHUNK) {
            self.say(FromWorker::Unread(chunk.to_vec())).await;
        }
    }

    /// The frontend has closed this worker's channel.
    async fn is_cut(&self) -> bool {
        self.receive().await.is_none()
    }
}

struct Adopted {
    cookie: Cookie,
    socket: Client,
    uid: u32,
    tenants: Vec<String>,
    unread: u32,
}

/// Blocking calls go beside the event loop under test.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap()
}

fn framed(message: &ClientFrame<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    frame::encode_frame(message, &mut bytes, 1 << 20).unwrap();
    bytes.to_vec()
}

fn hello(tenant: &str) -> Vec<u8> {
    framed(&ClientFrame::Hello { version: PROTOCOL_VERSION, tenant })
}

fn decide(id: u64) -> Vec<u8> {
    framed(&ClientFrame::Decide {
        id,
        tenant: "acme",
        policy: "p",
        deadline: Deadline::Default,
        trace: None,
        input: b"x",
    })
}

fn read_one(client: &mut Client) -> Vec<u8> {
    let mut prefix = [0; PREFIX];
    client.read_exact(&mut prefix).unwrap();
    let mut body = vec![0; u32::from_be_bytes(prefix) as usize];
    client.read_exact(&mut body).unwrap();
    body
}

/// The class and the generation that a client is welcomed with.
fn read_welcome(client: &mut Client) -> (String, u64) {
    match frame::decode(&read_one(client)) {
        Ok(ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation }) => {
            (class.as_str().to_owned(), generation)
        }
        other => panic!("{other:?}"),
    }
}

/// All that comes behind the Welcome until the end.
async fn rest_of(mut client: Client) -> Vec<u8> {
    blocking(move || {
        read_welcome(&mut client);
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        bytes
    })
    .await
}

/// The farewell, and nothing after it.
fn read_farewell(client: &mut Client) -> Farewell {
    let body = read_one(client);
    let Ok(ServerFrame::Farewell(farewell)) = frame::decode(&body) else { panic!("{body:?}") };
    match client.read(&mut [0; 1]) {
        Ok(0) => farewell,
        // There was more of ours to read when it was closed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => farewell,
        more => panic!("{more:?} after {farewell:?}"),
    }
}

async fn farewell(mut client: Client) -> Farewell {
    blocking(move || read_farewell(&mut client)).await
}

/// The one frame that comes, if it is none of welcome.
async fn farewell_unless_welcome(mut client: Client) -> Option<Farewell> {
    match frame::decode(&blocking(move || read_one(&mut client)).await) {
        Ok(ServerFrame::Welcome { .. }) => None,
        Ok(ServerFrame::Farewell(farewell)) => Some(farewell),
        other => panic!("{other:?}"),
    }
}

async fn farewell_after_welcome(mut client: Client) -> Farewell {
    blocking(move || {
        read_welcome(&mut client);
        read_farewell(&mut client)
    })
    .await
}

fn ask_status(mut operator: Client) -> OperatorReply {
    let mut request = BytesMut::new();
    frame::encode_frame(&OperatorRequest::Status, &mut request, 64).unwrap();
    // A refusal may have closed it already.
    let _ = operator.write_all(&request);
    frame::decode(&read_one(&mut operator)).unwrap()
}

fn read_exactly(socket: &mut Client, length: usize) -> Vec<u8> {
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_greeted_connection_goes_to_its_class_with_all_that_was_sent_behind_the_hello() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let behind: Vec<u8> = (0..200).flat_map(decide).collect();
    let client = service.client(&[hello("apex"), behind.clone()].concat()).await;

    let mut adopted = worker.adopted().await;
    assert_eq!((adopted.uid, adopted.unread), (uid(), 0));
    assert_eq!(adopted.tenants, ["apex", "acme"], "of this class, what the peer may ask for");
    let length = behind.len();
    let mut socket = adopted.socket.try_clone().unwrap();
    assert_eq!(blocking(move || read_exactly(&mut socket, length)).await, behind, "byte for byte");

    // From here worker and client talk; nobody else has the connection, so that its end is seen.
    adopted.socket.write_all(b"answer").unwrap();
    drop(adopted);
    assert_eq!(rest_of(client).await, b"answer");
}

#[tokio::test]
async fn a_client_is_told_its_class_before_a_worker_of_it_has_the_connection() {
    let service = Service::start(assignment());
    let gold = service.route("gold", 7).await;
    let iron = service.route("iron", 3).await;
    for (tenant, worker, welcome) in [("acme", &gold, ("gold", 7)), ("crow", &iron, ("iron", 3))] {
        let mut client = service.client(&hello(tenant)).await;
        let adopted = worker.adopted().await;
        // What a worker that lies says comes behind what is true, where clients take it for a broken protocol.
        let mut lie = BytesMut::new();
        let class = TrustClass::new("lead").unwrap();
        let said = ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation: 1 };
        frame::encode_frame(&said, &mut lie, 1 << 20).unwrap();
        (&adopted.socket).write_all(&lie).unwrap();
        let told = blocking(move || (read_welcome(&mut client), read_welcome(&mut client))).await;
        assert_eq!(told, ((welcome.0.to_owned(), welcome.1), ("lead".to_owned(), 1)));
    }
}

#[tokio::test]
async fn a_hello_may_come_byte_by_byte() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let mut client = service.client(b"").await;
    for byte in hello("acme") {
        client.write_all(&[byte]).unwrap();
        service.settled().await;
    }
    assert_eq!(worker.adopted().await.tenants, ["acme", "apex"]);
}

#[tokio::test]
async fn each_bad_beginning_is_answered_with_its_farewell() {
    use Farewell::{NotPermitted, Protocol, Unavailable, Version};
    let service = Service::start(assignment());
    let _worker = service.route("gold", 1).await;
    let prefixed = |length: u32, body: &[u8]| [&length.to_be_bytes(), body].concat();
    let too_long = u32::try_from(HELLO_MAX + 1).unwrap();
    let cases = [
        ("length 0", prefixed(0, b""), Protocol(Violation::Empty)),
        ("over the cap", prefixed(too_long, b"x"), Protocol(Violation::TooLong)),
        ("all ones", prefixed(u32::MAX, b"x"), Protocol(Violation::TooLong)),
        ("unknown variant", prefixed(1, &[0x7f]), Protocol(Violation::Malformed)),
        (
            "trailing byte",
            [prefixed(8, &hello("acme")[PREFIX..]), vec![0]].concat(),
            Protocol(Violation::Malformed),
        ),
        ("no UTF-8", prefixed(4, &[0, 3, 1, 0xff]), Protocol(Violation::Malformed)),
        ("Decide before Hello", decide(1), Protocol(Violation::NotHello)),
        ("Ping before Hello", framed(&ClientFrame::Ping { nonce: 1 }), Protocol(Violation::NotHello)),
        (
            "other version",
            framed(&ClientFrame::Hello { version: 9, tenant: "acme" }),
            Version { theirs: 9, ours: PROTOCOL_VERSION },
        ),
        ("unknown tenant", hello("nope"), NotPermitted),
        ("no name at all", hello("../../etc"), NotPermitted),
        ("somebody else's tenant", hello("other"), NotPermitted),
        ("no worker for the class", hello("crow"), Unavailable),
    ];
    let count = cases.len() as u64;
    for (name, bytes, expected) in cases {
        assert_eq!(farewell(service.client(&bytes).await).await, expected, "{name}");
    }
    let counters = service.status().await.frontend;
    assert_eq!((counters.accepted, counters.refused, counters.open), (count, count, 0));
}

#[tokio::test]
async fn a_truncated_hello_is_answered_and_a_silent_end_is_not() {
    let service = Service::start(assignment());
    for cut in [2, PREFIX, PREFIX + 3] {
        let client = service.client(&hello("acme")[..cut]).await;
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(farewell(client).await, Farewell::Protocol(Violation::Malformed), "after {cut} bytes");
    }
    let mut client = service.client(b"").await;
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(blocking(move || client.read(&mut [0; 1]).unwrap()).await, 0);
}

#[tokio::test]
async fn who_does_not_finish_the_hello_in_time_is_told_and_closed() {
    let service = Service::start(FrontendAssignment { hello_timeout_ms: 30, ..assignment() });
    for sent in [0, 1, 9] {
        let client = service.client(&hello("acme")[..sent]).await;
        assert_eq!(farewell(client).await, Farewell::Timeout, "after {sent} bytes");
    }
}

#[tokio::test]
async fn connections_are_limited_by_uid_and_a_closed_one_makes_room() {
    let service = Service::start(FrontendAssignment { max_connections_per_uid: 2, ..assignment() });
    let worker = service.route("gold", 1).await;
    let _first = service.client(&hello("acme")).await;
    let adopted = worker.adopted().await;
    let _half_open = service.client(b"").await;
    let refused = service.client(&hello("acme")).await;
    assert_eq!(farewell(refused).await, Farewell::Quota(Quota::Connections));

    worker.say(FromWorker::Closed { cookie: adopted.cookie }).await;
    // The news travels beside the connection; ask until it has arrived.
    loop {
        let client = service.client(&hello("acme")).await;
        let Some(farewell) = farewell_unless_welcome(client).await else { break };
        assert_eq!(farewell, Farewell::Quota(Quota::Connections));
    }
    worker.adopted().await;
}

#[tokio::test]
async fn ten_thousand_half_open_connections_are_held_and_others_are_served() {
    let limit = raise_descriptor_limit();
    let many = usize::try_from(limit.saturating_sub(1500) / 2).unwrap().min(10_000);
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let path = service.path("clients");
    let half_open: Vec<Client> = blocking(move || {
        (0..many)
            .map(|i| {
                let mut client = Client::connect(&path).unwrap();
                client.write_all(&hello("acme")[..i % 8]).unwrap();
                client
            })
            .collect()
    })
    .await;

    let _client = service.client(&hello("acme")).await;
    worker.adopted().await;
    assert_eq!(open_connections(&service, &worker).await, many as u64 + 1);

    // What one of them costs besides its descriptor.
    let (stream, _other) = UnixStream::pair().unwrap();
    let (_sender, closing) = watch::channel(false);
    let peer = Peer::of(&stream).unwrap();
    let cost = size_of_val(&greet(stream, peer, Duration::ZERO, closing));
    assert!(cost < 4096, "{cost} bytes for a connection that has said nothing");

    // Each was held, and each is told.
    service.tell(&ToChild::Drain);
    let told = blocking(move || {
        half_open
            .into_iter()
            .map(|mut client| read_farewell(&mut client))
            .filter(|f| *f == Farewell::ShuttingDown)
            .count()
    });
    assert_eq!(told.await, many);
}

/// What the frontend counts as open, with the worker answering the status that this needs.
async fn open_connections(service: &Service, worker: &Worker) -> u64 {
    let (status, ()) = tokio::join!(service.status(), async {
        let (ToWorker::Status { nonce }, None) = worker.next().await else { panic!("not a status") };
        worker.say(FromWorker::Status { nonce, part: worker_status("gold", 1), last: true }).await;
    });
    status.frontend.open
}

fn raise_descriptor_limit() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for wanted in [32_768.max(hard), hard] {
        if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
            return wanted;
        }
    }
    soft
}

#[tokio::test]
async fn a_worker_that_does_not_read_costs_its_own_clients_only_and_a_bounded_queue() {
    raise_descriptor_limit();
    let service = Service::start(assignment());
    let gold = service.route("gold", 1).await;
    let iron = service.route("iron", 1).await;
    let path = service.path("clients");
    let many = 3000;
    let clients: Vec<Client> = blocking(move || {
        (0..many)
            .map(|_| {
                let mut client = Client::connect(&path).unwrap();
                client.write_all(&hello("acme")).unwrap();
                client
            })
            .collect()
    })
    .await;
    // A connection of another class is not behind them.
    let _other = service.client(&hello("crow")).await;
    iron.adopted().await;

    // Retired, it still gets all that was queued for it, then Drain.
    let _successor = service.route("gold", 2).await;
    let mut adopted = Vec::new();
    let drained = loop {
        match gold.next().await {
            (ToWorker::Adopt { .. }, Some(socket)) => adopted.push(socket),
            (last, None) => break last,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(drained, ToWorker::Drain);
    assert!(adopted.len() < many, "the queue has an end");
    assert!(adopted.len() >= 1024, "and takes a burst: {}", adopted.len());
    let taken = adopted.len();
    drop(adopted);
    let (refused, closed) = blocking(move || {
        let mut ends = (0, 0);
        for mut client in clients {
            match frame::decode(&read_one(&mut client)) {
                Ok(ServerFrame::Welcome { .. }) => ends.1 += 1,
                Ok(ServerFrame::Farewell(Farewell::Unavailable)) => ends.0 += 1,
                other => panic!("{other:?}"),
            }
            assert!(!matches!(client.read(&mut [0; 1]), Ok(1..)), "and that is all");
        }
        ends
    })
    .await;
    assert_eq!((refused, closed), (many - taken, taken), "each was either taken or told");
}

#[tokio::test]
async fn a_new_generation_takes_over_and_gets_what_comes_back_with_its_bytes_first() {
    let service = Service::start(assignment());
    let old = service.route("gold", 1).await;
    let client = service.client(&hello("acme")).await;
    let first = old.adopted().await;
    let new = service.route("gold", 2).await;
    assert_eq!(old.next().await.0, ToWorker::Drain);

    let unread: Vec<u8> = (0..=255).cycle().take(3 * UNREAD_CHUNK + 17).collect();
    old.give_back(first.cookie, &first.socket, &unread).await;
    drop(first);
    old.say(FromWorker::Drained).await;

    let mut second = new.adopted().await;
    assert_eq!((second.unread as usize, second.uid), (unread.len(), uid()));
    assert_eq!(second.tenants, ["acme", "apex"]);
    let mut bytes = Vec::new();
    while bytes.len() < unread.len() {
        let (ToWorker::Unread(chunk), None) = new.next().await else { panic!("unread bytes first") };
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes, unread);

    second.socket.write_all(b"still here").unwrap();
    drop(second);
    assert_eq!(rest_of(client).await, b"still here", "welcomed once; one owner, no copy left behind");

    // New clients meet the new generation.
    let mut client = service.client(&hello("acme")).await;
    assert_eq!(new.adopted().await.unread, 0);
    assert_eq!(blocking(move || read_welcome(&mut client)).await, ("gold".to_owned(), 2));
}

#[tokio::test]
async fn many_connections_with_much_unread_come_over_while_the_new_worker_is_slow() {
    let service = Service::start(assignment());
    let old = service.route("gold", 1).await;
    // Together three times what may be between two workers.
    let each: usize = 1 << 20;
    let mut clients = Vec::new();
    let mut adopted = Vec::new();
    for _ in 0..24 {
        clients.push(service.client(&hello("acme")).await);
        adopted.push(old.adopted().await);
    }
    let new = service.route("gold", 2).await;
    assert_eq!(old.next().await.0, ToWorker::Drain);
    let give_back = async {
        for (i, adopted) in adopted.into_iter().enumerate() {
            old.give_back(adopted.cookie, &adopted.socket, &vec![u8::try_from(i).unwrap(); each]).await;
        }
    };
    let take = async {
        for i in 0..24_u8 {
            assert_eq!(new.adopted().await.unread as usize, each);
            let mut left = each;
            while left > 0 {
                let (ToWorker::Unread(chunk), None) = new.next().await else { panic!("unread bytes") };
                assert!(chunk.iter().all(|byte| *byte == i), "of this connection, in order");
                left -= chunk.len();
            }
        }
    };
    tokio::join!(give_back, take);
}

#[tokio::test]
async fn a_connection_that_comes_back_waits_for_the_next_generation() {
    let service = Service::start(assignment());
    let old = service.route("gold", 1).await;
    let _client = service.client(&hello("acme")).await;
    let adopted = old.adopted().await;
    let dies = service.route("gold", 2).await;
    assert_eq!(old.next().await.0, ToWorker::Drain);
    drop(dies);
    // A Hello meets nobody: only now is it certain that the frontend knows.
    while farewell(service.client(&hello("acme")).await).await != Farewell::Unavailable {}
    old.give_back(adopted.cookie, &adopted.socket, b"abc").await;
    drop(old);
    let new = service.route("gold", 3).await;
    let again = new.adopted().await;
    assert_eq!((again.cookie, again.unread), (adopted.cookie, 3));
    assert_eq!(new.next().await.0, ToWorker::Unread(b"abc".to_vec()));
}

#[tokio::test]
async fn who_waits_too_long_for_a_worker_is_told() {
    let (sender, mut news) = mpsc::channel(NEWS_MAX);
    let limits = limits(&assignment());
    let mut board = Switchboard::new(assignment().tenants, limits, sender);
    let (theirs, worker) = Channel::<ToWorker, FromWorker>::pair(HANDOVER_MAX).unwrap();
    board.route(TrustClass::new("gold").unwrap(), 1, theirs.into());
    let (mut client, ours) = Client::pair().unwrap();
    let connection = peer::Connection::of(ours.into()).unwrap();
    let peer = connection.peer;
    board.arrived(peer).unwrap();
    board.greeted(Greeting { peer, outcome: hello::Outcome::Greeted(connection, "acme".to_owned()) });
    // Gone before it got anything: the connection is still ours.
    drop(worker);
    let News { link, what } = news.recv().await.unwrap();
    assert!(matches!(&what, What::Ended { unsent, .. } if unsent.len() == 1), "{what:?}");
    board.hear(link, what);

    let until = board.next_deadline().unwrap();
    board.expire(until - Duration::from_millis(1));
    assert_eq!(board.counters().open, 1, "still held");
    board.expire(until);
    // Whether it was welcomed before the end of the channel was noticed is not certain.
    let told = match frame::decode(&read_one(&mut client)) {
        Ok(ServerFrame::Welcome { .. }) => read_farewell(&mut client),
        Ok(ServerFrame::Farewell(farewell)) => farewell,
        other => panic!("{other:?}"),
    };
    assert_eq!(told, Farewell::Unavailable);
    assert_eq!((board.counters().open, board.next_deadline()), (0, None));
}

#[tokio::test]
async fn a_peer_that_lost_its_grant_is_sent_away_when_it_comes_back() {
    let service = Service::start(assignment());
    let old = service.route("gold", 1).await;
    let client = service.client(&hello("acme")).await;
    let adopted = old.adopted().await;
    let tenants = vec![grant("acme", "gold", &[4242], &[])];
    service.reassign(&FrontendAssignment { tenants, ..assignment() }).await;
    let _new = service.route("gold", 2).await;
    assert_eq!(old.next().await.0, ToWorker::Drain);
    old.give_back(adopted.cookie, &adopted.socket, b"").await;
    drop(adopted);
    assert_eq!(farewell_after_welcome(client).await, Farewell::NotPermitted);
    assert_eq!(farewell(service.client(&hello("acme")).await).await, Farewell::NotPermitted);
    assert_eq!(farewell(service.client(&hello("apex")).await).await, Farewell::NotPermitted);
}

/// Two workers of two classes with a client each; the gold one is to drain.
async fn two_classes() -> (Service, [Worker; 2], [Adopted; 2], [Client; 2]) {
    let service = Service::start(assignment());
    let (gold, iron) = (service.route("gold", 1).await, service.route("iron", 1).await);
    let clients = [service.client(&hello("acme")).await, service.client(&hello("crow")).await];
    let adopted = [gold.adopted().await, iron.adopted().await];
    service.route("gold", 2).await;
    assert_eq!(gold.next().await.0, ToWorker::Drain);
    (service, [gold, iron], adopted, clients)
}

#[tokio::test]
async fn a_return_before_drain_ends_the_worker() {
    let (_service, [_, iron], [_, crow], _clients) = two_classes().await;
    iron.give_back(crow.cookie, &crow.socket, b"").await;
    assert!(iron.is_cut().await);
}

#[tokio::test]
async fn a_return_of_another_workers_connection_ends_the_worker() {
    let (service, [gold, iron], [acme, crow], _clients) = two_classes().await;
    gold.give_back(crow.cookie, &crow.socket, b"").await;
    assert!(gold.is_cut().await);
    drop(acme);
    // The other class keeps its connection and goes on.
    let _client = service.client(&hello("crow")).await;
    iron.adopted().await;
    let successor = service.route("iron", 2).await;
    assert_eq!(iron.next().await.0, ToWorker::Drain);
    iron.give_back(crow.cookie, &crow.socket, b"").await;
    assert_eq!(successor.adopted().await.cookie, crow.cookie, "the control");
}

#[tokio::test]
async fn a_return_of_another_descriptor_ends_the_worker() {
    for forged in ["another connection", "the other end of a pair", "no socket"] {
        let (_service, [gold, _iron], [acme, crow], _clients) = two_classes().await;
        let (ours, _theirs) = Client::pair().unwrap();
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        match forged {
            "another connection" => gold.give_back(acme.cookie, &crow.socket, b"").await,
            "no socket" => gold.give_back(acme.cookie, &reader, b"").await,
            _ => gold.give_back(acme.cookie, &ours, b"").await,
        }
        assert!(gold.is_cut().await, "{forged}");
    }
}

#[tokio::test]
async fn a_worker_that_breaks_the_protocol_is_ended() {
    /// One message, and whether it comes with the worker's own connection.
    type Said = (FromWorker, bool);
    type Lie = fn(Cookie) -> Vec<Said>;
    fn returned(cookie: Cookie, unread: u32) -> FromWorker {
        FromWorker::Return { cookie, unread }
    }
    // With their true name, so that nothing but the one thing is wrong.
    let cases: [(&str, Lie); 10] = [
        ("a return without descriptor", |own| vec![(returned(own, 0), false)]),
        ("a descriptor with something else", |_| vec![(FromWorker::Drained, true)]),
        ("too much unread", |own| vec![(returned(own, 2 << 20), true)]),
        ("more unread than announced", |own| {
            vec![(returned(own, 2), true), (FromWorker::Unread(vec![1, 2, 3]), false)]
        }),
        ("empty unread", |own| vec![(returned(own, 2), true), (FromWorker::Unread(vec![]), false)]),
        ("something between", |own| vec![(returned(own, 2), true), (FromWorker::Drained, false)]),
        ("unread of nothing", |_| vec![(FromWorker::Unread(vec![1]), false)]),
        ("closed what is not its own", |_| vec![(FromWorker::Closed { cookie: Cookie(u64::MAX) }, false)]),
        ("a status that nobody asked for", |_| {
            vec![(FromWorker::Status { nonce: 1, part: worker_status("gold", 1), last: true }, false)]
        }),
        ("more after Drained", |_| vec![(FromWorker::Drained, false), (FromWorker::Drained, false)]),
    ];
    for (name, messages) in cases {
        let (_service, [gold, _iron], [acme, _crow], _clients) = two_classes().await;
        for (message, with_descriptor) in messages(acme.cookie) {
            let descriptor = with_descriptor.then(|| acme.socket.as_fd());
            gold.0.send(&message, descriptor).await.unwrap();
        }
        assert!(gold.is_cut().await, "{name}");
    }
}

#[tokio::test]
async fn a_dead_workers_connections_are_forgotten_and_its_class_is_unavailable_until_the_next() {
    let service = Service::start(FrontendAssignment { max_connections_per_uid: 1, ..assignment() });
    let worker = service.route("gold", 1).await;
    let client = service.client(&hello("acme")).await;
    drop(worker.adopted().await);
    drop(worker);
    assert_eq!(rest_of(client).await, b"", "closed, and so denied");
    loop {
        match farewell(service.client(&hello("acme")).await).await {
            Farewell::Unavailable => break,
            // Its seat is not free yet.
            farewell => assert_eq!(farewell, Farewell::Quota(Quota::Connections)),
        }
    }
    let next = service.route("gold", 2).await;
    let _client = service.client(&hello("acme")).await;
    next.adopted().await;
}

#[tokio::test]
async fn draining_tells_everyone_and_ends_when_the_workers_have() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let greeted = service.client(&hello("acme")).await;
    let adopted = worker.adopted().await;
    let half_open = service.client(b"\0").await;
    // Accepted, not merely waiting at the door.
    while open_connections(&service, &worker).await < 2 {}

    service.tell(&ToChild::Drain);
    assert_eq!(farewell(half_open).await, Farewell::ShuttingDown);
    assert_eq!(worker.next().await.0, ToWorker::Drain);
    let path = service.path("clients");
    assert!(blocking(move || Client::connect(path)).await.is_err(), "nobody listens any more");
    assert!(!service.frontend.is_finished(), "the worker has not finished");
    worker.give_back(adopted.cookie, &adopted.socket, b"a request nobody will answer").await;
    drop(adopted);
    assert_eq!(farewell_after_welcome(greeted).await, Farewell::ShuttingDown);
    worker.say(FromWorker::Drained).await;
    drop(worker);
    service.frontend.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_supervisor_there_is_no_frontend() {
    let service = Service::start(assignment());
    service.settled().await;
    drop(service.control);
    assert!(matches!(service.frontend.await.unwrap(), Err(FrontendError::SupervisorGone)));
}

#[tokio::test]
async fn nobody_is_accepted_before_serve() {
    let directory = tempfile::tempdir().unwrap();
    let listen = |name| UnixListener::bind(directory.path().join(name)).unwrap();
    let (ours, theirs) = Channel::pair(CONTROL_MAX).unwrap();
    let (clients, operators) = (listen("clients"), listen("operators"));
    let frontend = Frontend::new(assignment(), clients, operators, 1).unwrap();
    tokio::spawn(frontend.run(theirs));
    let service =
        Service { directory, control: Polled::new(ours).unwrap(), frontend: tokio::spawn(async { Ok(()) }) };
    let worker = service.route("gold", 1).await;
    let _client = service.client(&hello("acme")).await;
    service.settled().await;
    let early = tokio::time::timeout(Duration::from_millis(50), worker.next()).await;
    assert!(early.is_err(), "{early:?}");
    service.tell(&ToChild::Serve);
    worker.adopted().await;
}

fn worker_status(class: &str, generation: u64) -> WorkerStatus {
    WorkerStatus {
        class: TrustClass::new(class).unwrap(),
        generation,
        pagemap_scan: true,
        stack_zeroing: true,
        counters: WorkerCounters { allowed: 7, ..Default::default() },
        policies: vec![],
    }
}

#[tokio::test]
async fn status_has_the_processes_the_counters_and_each_current_worker() {
    let service = Service::start(assignment());
    let gold = service.route("gold", 1).await;
    let iron = service.route("iron", 4).await;
    service.tell(&ToChild::Processes(ProcessTable { reloads: 3, ..Default::default() }));
    let _client = service.client(&hello("acme")).await;
    gold.adopted().await;

    let (status, ()) = tokio::join!(service.status(), async {
        let (ToWorker::Status { nonce }, None) = gold.next().await else { panic!("not a status") };
        // In two parts; what it says of its own name does not count.
        gold.say(FromWorker::Status { nonce, part: worker_status("gold", 1), last: false }).await;
        gold.say(FromWorker::Status { nonce, part: worker_status("iron", 9), last: true }).await;
    });
    assert_eq!((status.supervisor_pid, status.processes.reloads), (77, 3));
    assert_eq!((status.frontend.accepted, status.frontend.handed_over, status.frontend.open), (1, 1, 1));
    let shown: Vec<_> =
        status.workers.iter().map(|w| (w.class.as_str(), w.generation, w.counters.allowed)).collect();
    assert_eq!(shown, [("gold", 1, 7), ("gold", 1, 7)]);
    let iron_class = TrustClass::new("iron").unwrap();
    let silent = Untold { class: iron_class, generation: 4, why: UntoldWhy::NoAnswer };
    assert_eq!(status.untold, [silent], "nothing is told of the silent one");

    // One that owes an answer is not asked again, and its late answer is no offence.
    let (ToWorker::Status { nonce }, None) = iron.next().await else { panic!("not a status") };
    iron.say(FromWorker::Status { nonce, part: worker_status("iron", 4), last: true }).await;
    let _client = service.client(&hello("crow")).await;
    iron.adopted().await;
}

#[tokio::test]
async fn a_status_is_of_one_moment_and_not_of_one_before_the_question() {
    let service = Service::start(assignment());
    let first = service.route("gold", 1).await;
    let shown = |status: &Status| (status.processes.reloads, status.workers[0].generation);
    let (early, ()) = tokio::join!(service.status(), async {
        let (ToWorker::Status { nonce }, None) = first.next().await else { panic!("not a status") };
        // A reload ends while the worker of before it has the word.
        let second = service.route("gold", 2).await;
        service.tell(&ToChild::Processes(ProcessTable { reloads: 1, ..Default::default() }));
        service.settled().await;
        let (late, ()) = tokio::join!(service.status(), async {
            first.say(FromWorker::Status { nonce, part: worker_status("gold", 1), last: true }).await;
            let (ToWorker::Status { nonce }, None) = second.next().await else { panic!("not a status") };
            second.say(FromWorker::Status { nonce, part: worker_status("gold", 2), last: true }).await;
        });
        assert_eq!(shown(&late), (1, 2), "who asks when it has ended");
    });
    assert_eq!(shown(&early), (0, 1), "who asked before");
}

#[tokio::test]
async fn a_status_without_an_end_ends_the_worker_and_still_answers() {
    let service = Service::start(assignment());
    let gold = service.route("gold", 1).await;
    let (status, ()) = tokio::join!(service.status(), async {
        let (ToWorker::Status { nonce }, None) = gold.next().await else { panic!("not a status") };
        let endless = FromWorker::Status { nonce, part: worker_status("gold", 1), last: false };
        while gold.0.send(&endless, None).await.is_ok() {}
    });
    assert!(
        status.workers.len() <= crate::wire::handover::STATUS_PARTS_MAX,
        "{} parts",
        status.workers.len()
    );
}

/// Credentials belong to a thread; glibc's functions change them for all of them, these do it for one.
#[expect(unsafe_code, reason = "per-thread credentials have no safe interface")]
fn become_in_this_thread(uid: u32, gid: u32, groups: &[u32]) {
    use nix::libc::{SYS_setgroups, SYS_setresgid, SYS_setresuid, syscall};
    // SAFETY: the kernel reads as many groups as there are in the slice.
    assert_eq!(unsafe { syscall(SYS_setgroups, groups.len(), groups.as_ptr()) }, 0);
    // SAFETY: takes three integers.
    assert_eq!(unsafe { syscall(SYS_setresgid, gid, gid, gid) }, 0);
    // SAFETY: takes three integers.
    assert_eq!(unsafe { syscall(SYS_setresuid, uid, uid, uid) }, 0);
}

/// Does something as somebody else, in a thread of its own.
async fn as_peer<T: Send + 'static>(
    uid: u32,
    gid: u32,
    groups: &'static [u32],
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let thread = std::thread::spawn(move || {
        become_in_this_thread(uid, gid, groups);
        work()
    });
    blocking(move || thread.join().unwrap()).await
}

#[tokio::test]
async fn real_peers_get_what_their_uid_and_groups_are_granted_and_nobody_gets_nothing() {
    if uid() != 0 {
        return; // Only root can be somebody else.
    }
    let mut everyone = assignment();
    everyone.tenants.push(grant("open", "gold", &[65_534, 4242], &[65_534]));
    let service = Service::start(everyone);
    let worker = service.route("gold", 1).await;
    let greet_as = |uid, gid, groups, tenant: &'static str| {
        let path = service.path("clients");
        as_peer(uid, gid, groups, move || {
            let mut client = Client::connect(path).unwrap();
            client.write_all(&hello(tenant)).unwrap();
            client
        })
    };
    for (uid, gid, groups) in [(4242, 1, &[][..]), (1, 4343, &[]), (1, 1, &[9, 4343])] {
        let _client = greet_as(uid, gid, groups, "other").await;
        let adopted = worker.adopted().await;
        assert_eq!((adopted.uid, adopted.tenants[0].as_str()), (uid, "other"));
    }
    for (uid, gid, groups) in [(1, 1, &[9][..]), (65_534, 4343, &[4343]), (65_534, 65_534, &[65_534])] {
        for tenant in ["other", "open"] {
            let client = greet_as(uid, gid, groups, tenant).await;
            assert_eq!(farewell(client).await, Farewell::NotPermitted, "{uid} {gid} {groups:?} {tenant}");
        }
    }
}

#[tokio::test]
async fn status_is_for_operators() {
    if uid() != 0 {
        return; // Only root can be somebody else.
    }
    let service = Service::start(FrontendAssignment { operators: vec![4242], ..assignment() });
    let ask_as = |uid| {
        let path = service.path("operators");
        as_peer(uid, uid, &[], move || ask_status(Client::connect(path).unwrap()))
    };
    assert!(matches!(ask_as(4242).await, OperatorReply::Status(_)));
    assert_eq!(ask_as(4243).await, OperatorReply::NotPermitted);
}

#[tokio::test]
async fn descriptors_that_a_client_attaches_are_thrown_away() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let client = service.client(b"").await;
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let raw = [writer.as_raw_fd(); 200];
    let greeting = hello("acme");
    sendmsg::<UnixAddr>(
        client.as_raw_fd(),
        &[IoSlice::new(&greeting)],
        &[ControlMessage::ScmRights(&raw)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    drop(writer);
    worker.adopted().await;
    // The end of the pipe is seen only if no copy of its other end is left anywhere.
    assert_eq!(blocking(move || nix::unistd::read(&reader, &mut [0; 1]).unwrap()).await, 0);
}

#[tokio::test]
async fn an_operator_that_says_nothing_or_nonsense_is_closed() {
    let service = Service::start(assignment());
    for nonsense in [&[0, 0, 0, 0][..], &[0, 0, 1, 0], &[0, 0, 0, 1, 9]] {
        let path = service.path("operators");
        let end = blocking(move || {
            let mut operator = Client::connect(path).unwrap();
            operator.write_all(nonsense).unwrap();
            operator.read(&mut [0; 1]).unwrap_or(0)
        });
        assert_eq!(end.await, 0, "{nonsense:?}");
    }
    assert!(service.status().await.workers.is_empty(), "the control");
}
