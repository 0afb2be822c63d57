//! Clients that a gateway brings: it opens no path, so it makes a pair of sockets, keeps one and sends us the other, with the
//! tenant it would have greeted for.
//!
//! Only sockets that it made itself count, by the kernel's word. A connection that somebody else has with the gateway would
//! otherwise ask with that one's rights.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::socket::{SockType, getsockopt, sockopt};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::peer::Connection;
use crate::decision::Tenant;
use crate::wire::channel::{Channel, ReceiveError};
use crate::wire::gateway::{VISIT_MAX, Visit};
use crate::wire::polled::Polled;

/// Visitors on their way to the switchboard; a gateway that brings more waits.
const VISITORS_MAX: usize = 16;

/// A client that has been greeted already.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) connection: Connection,
    pub(super) tenant: Tenant,
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
    #[error(transparent)]
    Channel(ReceiveError),
}

/// Where visitors of all gateways arrive.
pub(super) fn arrivals() -> (mpsc::Sender<Visitor>, mpsc::Receiver<Visitor>) {
    mpsc::channel(VISITORS_MAX)
}

/// Takes what the gateway of this UID brings, until its end.
pub(super) async fn receive(channel: OwnedFd, uid: u32, arrivals: mpsc::Sender<Visitor>) {
    let channel = match Polled::<(), Visit>::new(Channel::new(channel, VISIT_MAX)) {
        Ok(channel) => channel,
        Err(error) => return warn!(%error, "channel of the gateway cannot be watched"),
    };
    let mut buffer = Vec::new();
    loop {
        let visitor = match channel.receive(&mut buffer).await {
            Ok(None) => return info!("gateway gone"),
            Ok(Some((Visit { tenant }, descriptor))) => {
                check(descriptor, uid).map(|connection| Visitor { connection, tenant })
            }
            // There was no descriptor left for it. Whoever waits at the other end sees its end.
            Err(ReceiveError::Truncated(_)) => {
                warn!("a connection of the gateway is lost: too many descriptors are open");
                continue;
            }
            Err(error) => Err(GatewayMisbehaved::Channel(error)),
        };
        let sent = match visitor {
            Ok(visitor) => arrivals.send(visitor).await,
            Err(why) => return warn!(%why, "gateway misbehaved"),
        };
        if sent.is_err() {
            // Nobody there any more: we drain.
            return;
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
    fn gateway(uid: u32) -> (Channel<Visit, ()>, mpsc::Receiver<Visitor>, tokio::task::JoinHandle<()>) {
        let (ours, theirs) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let (arrivals, visitors) = arrivals();
        (theirs, visitors, tokio::spawn(receive(ours.into(), uid, arrivals)))
    }

    #[tokio::test]
    async fn a_socket_that_the_gateway_made_is_a_visitor() {
        let (gateway, mut visitors, task) = gateway(own());
        let (_kept, sent) = UnixStream::pair().unwrap();
        for _ in 0..3 {
            gateway.send(&acme(), Some(sent.as_fd())).unwrap();
            let visitor = visitors.recv().await.unwrap();
            assert_eq!((visitor.tenant.as_str(), visitor.connection.peer.uid), ("acme", own()));
        }
        drop(gateway);
        task.await.unwrap();
        assert!(visitors.recv().await.is_none());
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
            task.await.unwrap();
            assert!(visitors.recv().await.is_none(), "{what}");
            assert!(gateway.send(&acme(), Some(sent.as_fd())).is_err(), "{what}: the channel is closed");
        }
    }

    #[tokio::test]
    async fn nonsense_loses_the_channel() {
        let (ours, theirs) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let (arrivals, mut visitors) = arrivals();
        let task = tokio::spawn(receive(ours.into(), own(), arrivals));
        let (_kept, sent) = UnixStream::pair().unwrap();
        let strange = Channel::<String, ()>::new(theirs.into(), VISIT_MAX);
        strange.send(&"no name of a tenant!".to_owned(), Some(sent.as_fd())).unwrap();
        task.await.unwrap();
        assert!(visitors.recv().await.is_none());
    }
}
