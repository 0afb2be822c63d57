//! Clients that a gateway brings.

use super::*;
use crate::wire::gateway::{VISIT_MAX, Visit};

struct Gateway(Polled<Visit, ()>);

impl Gateway {
    async fn of(service: &Service, generation: u64) -> Self {
        let (theirs, ours) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let visits = ToChild::Visits { uid: uid(), generation };
        service.control.send(&visits, Some(theirs.as_fd())).await.unwrap();
        service.settled().await;
        Self(Polled::new(ours).unwrap())
    }

    async fn brings(&self, socket: &Client) {
        let visit = Visit { tenant: Tenant::new("acme").unwrap() };
        self.0.send(&visit, Some(socket.as_fd())).await.unwrap();
    }
}

async fn said(service: &Service) -> FromChild {
    let mut buffer = Vec::new();
    let received = tokio::time::timeout(PATIENCE, service.control.receive(&mut buffer)).await;
    received.expect("a word").unwrap().expect("not the end").0
}

/// Connections that hold a place; the worker's status comes behind all that it said before.
async fn open(service: &Service, worker: &Worker) -> u64 {
    let (status, ()) = tokio::join!(service.status(), async {
        let (ToWorker::Status { nonce }, None) = worker.next().await else { panic!("not a status") };
        worker.say(FromWorker::Status { nonce, part: worker_status("gold", 1), last: true }).await;
    });
    status.frontend.open
}

#[tokio::test]
async fn whom_a_gateway_brings_goes_to_its_class() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 4).await;
    let gateway = Gateway::of(&service, 1).await;
    for _ in 0..3 {
        let (mut kept, sent) = Client::pair().unwrap();
        gateway.brings(&sent).await;
        drop(sent);
        let adopted = worker.adopted().await;
        assert_eq!((adopted.uid, adopted.tenants[0].as_str()), (uid(), "acme"));
        assert_eq!(blocking(move || read_welcome(&mut kept)).await, ("gold".to_owned(), 4));
    }
    assert_eq!(open(&service, &worker).await, 3);
}

#[tokio::test]
async fn who_brings_a_connection_twice_is_cut_and_its_worker_keeps_it() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let gateway = Gateway::of(&service, 7).await;
    let (_kept, sent) = Client::pair().unwrap();
    gateway.brings(&sent).await;
    let adopted = worker.adopted().await;
    gateway.brings(&sent).await;
    assert_eq!(said(&service).await, FromChild::GatewayCut { generation: 7 });
    assert!(gateway.0.receive(&mut Vec::new()).await.unwrap().is_none(), "its channel has ended");

    // What it was after: that the first one's end is no connection of the worker's.
    worker.say(FromWorker::Closed { cookie: adopted.cookie }).await;
    let _client = service.client(&hello("acme")).await;
    worker.adopted().await;
    assert_eq!(open(&service, &worker).await, 1, "it counted once");
}

#[tokio::test]
async fn who_has_left_may_not_be_taken_for_one_that_is_here() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let gateway = Gateway::of(&service, 1).await;
    let (_kept, sent) = Client::pair().unwrap();
    for _ in 0..2 {
        gateway.brings(&sent).await;
        let Adopted { cookie, socket, .. } = worker.adopted().await;
        drop(socket);
        worker.say(FromWorker::Closed { cookie }).await;
        // The frontend has heard it: it answers after it.
        assert_eq!(open(&service, &worker).await, 0);
    }
}

#[tokio::test]
async fn who_brings_nonsense_is_cut_and_others_are_not() {
    let service = Service::start(assignment());
    let worker = service.route("gold", 1).await;
    let (first, second) = (Gateway::of(&service, 1).await, Gateway::of(&service, 2).await);
    let Gateway(channel) = first;
    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let visit = Visit { tenant: Tenant::new("acme").unwrap() };
    channel.send(&visit, Some(datagram.as_fd())).await.unwrap();
    assert_eq!(said(&service).await, FromChild::GatewayCut { generation: 1 });
    let (_kept, sent) = Client::pair().unwrap();
    second.brings(&sent).await;
    worker.adopted().await;
}
