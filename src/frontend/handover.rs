//! Over to the worker: a connection's descriptor, what it may ask for and its unread bytes, in order, uninterrupted.

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;

use super::peer::Connection;
use crate::decision::{Tenant, TrustClass};
use crate::wire::channel::SendError;
use crate::wire::handover::{FromWorker, ToWorker, UNREAD_CHUNK};
use crate::wire::polled::Polled;

/// A connection on its way to a worker, whose client has its Welcome. Until its descriptor is sent it is ours.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) connection: Connection,
    pub(super) class: TrustClass,
    pub(super) tenants: Vec<Tenant>,
    pub(super) unread: Vec<u8>,
    /// Its place among those that wait: what bounds the queue, though the queue itself has no end.
    pub(super) room: OwnedSemaphorePermit,
}

/// What waits to be sent to one worker.
#[derive(Debug)]
pub(super) enum Outgoing {
    Adopt(Transfer),
    Status { nonce: u64 },
}

/// Sends what is queued, in order, and Drain when the queue is closed and empty. Returns only if the channel fails
/// while the worker lives; `under_way` then has what was not sent.
pub(super) async fn send_queued(
    channel: &Polled<ToWorker, FromWorker>,
    queue: &mut UnboundedReceiver<Outgoing>,
    under_way: &mut Option<Transfer>,
) -> SendError {
    loop {
        let next = queue.recv().await;
        let last = next.is_none();
        let sent = match next {
            Some(Outgoing::Adopt(transfer)) => {
                *under_way = Some(transfer);
                hand_over(channel, under_way).await
            }
            Some(Outgoing::Status { nonce }) => channel.send(&ToWorker::Status { nonce }, None).await,
            None => channel.send(&ToWorker::Drain, None).await,
        };
        match sent {
            Ok(()) if !last => {}
            // A worker that has closed its end may have returned connections before; those are still to be read, and
            // who reads them will come to the end.
            Ok(()) | Err(SendError::Closed) => return std::future::pending().await,
            Err(error) => return error,
        }
    }
}

async fn hand_over(
    channel: &Polled<ToWorker, FromWorker>,
    under_way: &mut Option<Transfer>,
) -> Result<(), SendError> {
    let Some(transfer) = under_way.as_ref() else { return Ok(()) };
    let adopt = ToWorker::Adopt {
        cookie: transfer.connection.cookie,
        uid: transfer.connection.peer.uid,
        tenants: transfer.tenants.clone(),
        // What is announced is what follows; at most `UNREAD_MAX`.
        unread: u32::try_from(transfer.unread.len()).unwrap_or(u32::MAX),
    };
    let socket = std::os::fd::AsFd::as_fd(&transfer.connection.socket);
    channel.send(&adopt, Some(socket)).await?;

    // From here it is the worker's. Our copy is closed at once, or its client would never see an end.
    let Some(Transfer { connection, unread, room, .. }) = under_way.take() else { return Ok(()) };
    drop(connection);
    for chunk in unread.chunks(UNREAD_CHUNK) {
        channel.send(&ToWorker::Unread(chunk.to_vec()), None).await?;
    }
    drop(room);
    Ok(())
}
