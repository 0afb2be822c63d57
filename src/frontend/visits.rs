//! Clients that a gateway brings: it opens no path, so it makes a pair of sockets, keeps one and sends us the other, with the
//! tenant it would have greeted for.
//!
//! Only sockets that it made itself count, by the kernel's word. A connection that somebody else has with the gateway would
//! otherwise ask with that one's rights.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{SockType, getsockopt, sockopt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::consume_budget;
use tokio::time::sleep;
use tracing::{info, warn};

use super::peer::Connection;
use crate::decision::Tenant;
use crate::wire::channel::{Channel, ReceiveError};
use crate::wire::gateway::{VISIT_MAX, Visit};
use crate::wire::polled::Polled;

/// Visitors on their way to the switchboard; a gateway that brings more waits.
const VISITORS_MAX: usize = 16;
/// How long a gateway is not heard after a descriptor of its was lost: others have to close theirs first.
const PAUSE: Duration = Duration::from_millis(100);

/// A client that has been greeted already.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) connection: Connection,
    pub(super) tenant: Tenant,
    /// Whoever brought it waits for this. Dropped where nobody is taken any more.
    pub(super) judged: oneshot::Sender<Judged>,
}

/// What only the table of connections knows of a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    New,
    /// A worker has that connection already, or is to get it.
    Twice,
}

/// How hearing a gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It is gone, or we drain.
    Gone,
    /// It is heard no more, and may live on.
    Cut { generation: u64 },
}

/// What a gateway did that it must not do: it loses its channel.
#[derive(Debug, thiserror::Error)]
enum GatewayMisbehaved {
    #[error("message without its descriptor")]
    NoDescriptor,
    #[error("descriptor is no connected stream socket: {0}")]
    NoSocket(#[source] io::Error),
    #[error("socket was made by UID {0}, not by the gateway")]
    NotItsOwn(u32),
    #[error("brought a connection that a worker has already")]
    Twice,
    #[error(transparent)]
    Channel(ReceiveError),
}

/// Where visitors of all gateways arrive.
pub(super) fn arrivals() -> (mpsc::Sender<Visitor>, mpsc::Receiver<Visitor>) {
    mpsc::channel(VISITORS_MAX)
}

/// Takes what the gateway of this UID brings, until its end.
pub(super) async fn receive(
    channel: OwnedFd,
    uid: u32,
    generation: u64,
    arrivals: mpsc::Sender<Visitor>,
) -> Left {
    let cut = Left::Cut { generation };
    let channel = match Polled::<(), Visit>::new(Channel::new(channel, VISIT_MAX)) {
        Ok(channel) => channel,
        Err(error) => {
            warn!(generation, %error, "channel of the gateway cannot be watched");
            return cut;
        }
    };
    match receive_all(&channel, uid, generation, &arrivals).await {
        Ok(()) => Left::Gone,
        Err(why) => {
            warn!(generation, %why, "gateway misbehaved");
            cut
        }
    }
}

async fn receive_all(
    channel: &Polled<(), Visit>,
    uid: u32,
    generation: u64,
    arrivals: &mpsc::Sender<Visitor>,
) -> Result<(), GatewayMisbehaved> {
    let mut buffer = Vec::new();
    let mut losing = false;
    loop {
        // Waiting for a channel that always has more is no waiting: others have to have their turn.
        consume_budget().await;
        let (Visit { tenant }, descriptor) = match channel.receive(&mut buffer).await {
            Ok(Some(received)) => received,
            Ok(None) => {
                info!(generation, "gateway gone");
                return Ok(());
            }
            // There was no descriptor left for it. Whoever waits at the other end sees its end.
            Err(ReceiveError::Lost) => {
                if !losing {
                    warn!(generation, "connections of the gateway are lost: too many descriptors are open");
                }
                losing = true;
                sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(GatewayMisbehaved::Channel(error)),
        };
        let connection = check(descriptor, uid)?;
        losing = false;
        let (judged, judgement) = oneshot::channel();
        if arrivals.send(Visitor { connection, tenant, judged }).await.is_err() {
            // Nobody there any more: we drain.
            return Ok(());
        }
        match judgement.await {
            Ok(Judged::New) => {}
            Ok(Judged::Twice) => return Err(GatewayMisbehaved::Twice),
            Err(_) => return Ok(()),
        }
    }
}

fn check(descriptor: Option<OwnedFd>, uid: u32) -> Result<Connection, GatewayMisbehaved> {
    let socket = descriptor.ok_or(GatewayMisbehaved::NoDescriptor)?;
    let of_what = getsockopt(&socket, sockopt::SockType).map_err(io::Error::from);
    match of_what.map_err(GatewayMisbehaved::NoSocket)? {
        SockType::Stream => {}
        other => {
            let why = io::Error::other(format!("it is {other:?}"));
            return Err(GatewayMisbehaved::NoSocket(why));
        }
    }
    let connection = Connection::of(socket).map_err(GatewayMisbehaved::NoSocket)?;
    if connection.peer.uid == uid {
        Ok(connection)
    } else {
        Err(GatewayMisbehaved::NotItsOwn(connection.peer.uid))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn own() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn acme() -> Visit {
        Visit { tenant: Tenant::new("acme").unwrap() }
    }

    /// A gateway's end, and where its visitors arrive.
    fn gateway(uid: u32) -> (Channel<Visit, ()>, mpsc::Receiver<Visitor>, tokio::task::JoinHandle<Left>) {
        let (ours, theirs) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let (arrivals, visitors) = arrivals();
        (theirs, visitors, tokio::spawn(receive(ours.into(), uid, 3, arrivals)))
    }

    const CUT: Left = Left::Cut { generation: 3 };

    #[tokio::test]
    async fn a_socket_that_the_gateway_made_is_a_visitor() {
        let (gateway, mut visitors, task) = gateway(own());
        for _ in 0..3 {
            let (_kept, sent) = UnixStream::pair().unwrap();
            gateway.send(&acme(), Some(sent.as_fd())).unwrap();
            let visitor = visitors.recv().await.unwrap();
            assert_eq!((visitor.tenant.as_str(), visitor.connection.peer.uid), ("acme", own()));
            visitor.judged.send(Judged::New).unwrap();
        }
        drop(gateway);
        assert_eq!(task.await.unwrap(), Left::Gone);
        assert!(visitors.recv().await.is_none());
    }

    #[tokio::test]
    async fn whoever_brings_one_that_is_here_loses_the_channel() {
        let (gateway, mut visitors, task) = gateway(own());
        let (_kept, sent) = UnixStream::pair().unwrap();
        for judged in [Judged::New, Judged::Twice] {
            gateway.send(&acme(), Some(sent.as_fd())).unwrap();
            visitors.recv().await.unwrap().judged.send(judged).unwrap();
        }
        assert_eq!(task.await.unwrap(), CUT);
        assert!(gateway.send(&acme(), Some(sent.as_fd())).is_err(), "the channel is closed");
    }

    #[tokio::test]
    async fn who_drains_judges_nobody() {
        let (gateway, mut visitors, task) = gateway(own());
        let (_kept, sent) = UnixStream::pair().unwrap();
        gateway.send(&acme(), Some(sent.as_fd())).unwrap();
        drop(visitors.recv().await.unwrap());
        assert_eq!(task.await.unwrap(), Left::Gone);
    }

    /// One thread, as in the frontend: whoever does not yield keeps everybody from going on.
    #[tokio::test]
    async fn whoever_floods_with_nonsense_loses_the_channel_and_keeps_nobody_from_going_on() {
        let (_kept, sent) = UnixStream::pair().unwrap();
        let (one, three) = (vec![sent.as_fd()], vec![sent.as_fd(); 3]);
        let long = "x".repeat(2 * VISIT_MAX);
        for (what, descriptors) in [("too long", &one), ("too many descriptors", &three)] {
            let (gateway, mut visitors, task) = gateway(own());
            let strange = Channel::<String, ()>::new(gateway.into(), 4 * VISIT_MAX);
            let said = if what == "too long" { long.clone() } else { "acme".to_owned() };
            let mut sent = 0;
            while strange.send_with(&said, descriptors).is_ok() {
                sent += 1;
            }
            assert!(sent > 1, "the control: {what}");
            assert_eq!(task.await.unwrap(), CUT, "{what}");
            assert!(visitors.recv().await.is_none(), "{what}");
        }
    }

    #[tokio::test]
    async fn whoever_brings_anything_else_loses_the_channel() {
        let (_kept, sent) = UnixStream::pair().unwrap();
        let (datagram, _other) = UnixDatagram::pair().unwrap();
        let (pipe, _end) = nix::unistd::pipe().unwrap();
        let bad = [
            ("none", own(), None),
            ("a datagram socket", own(), Some(datagram.as_fd())),
            ("a pipe", own(), Some(pipe.as_fd())),
            ("another's socket", own() + 1, Some(sent.as_fd())),
        ];
        for (what, uid, descriptor) in bad {
            let (gateway, mut visitors, task) = gateway(uid);
            gateway.send(&acme(), descriptor).unwrap();
            assert_eq!(task.await.unwrap(), CUT, "{what}");
            assert!(visitors.recv().await.is_none(), "{what}");
            assert!(gateway.send(&acme(), Some(sent.as_fd())).is_err(), "{what}: the channel is closed");
        }
    }

    #[tokio::test]
    async fn nonsense_loses_the_channel() {
        let (ours, theirs) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let (arrivals, mut visitors) = arrivals();
        let task = tokio::spawn(receive(ours.into(), own(), 3, arrivals));
        let (_kept, sent) = UnixStream::pair().unwrap();
        let strange = Channel::<String, ()>::new(theirs.into(), VISIT_MAX);
        strange.send(&"no name of a tenant!".to_owned(), Some(sent.as_fd())).unwrap();
        assert_eq!(task.await.unwrap(), CUT);
        assert!(visitors.recv().await.is_none());
    }
}
