//! Back from the worker: what it returns, closes and reports. Everything a worker says is taken for a lie until the
//! kernel or our own table confirms it: whoever runs policies may have been taken over by one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::peer::Connection;
use super::routes::{LinkId, News, What};
use super::table::Table;
use crate::decision::TrustClass;
use crate::wire::channel::ReceiveError;
use crate::wire::handover::{Cookie, FromWorker, ToWorker, UNREAD_MAX};
use crate::wire::polled::Polled;

/// What returned connections of one class may take between two workers, in units of [`UNIT`] bytes: 8 MiB. The old
/// worker is read no further until the new one has taken enough.
pub(super) const RETURNS_MAX: usize = 1024;
const UNIT: usize = 8 * 1024;

/// What only a worker that is broken, or somebody else's, does. It loses its channel.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerMisbehaved {
    #[error(transparent)]
    Channel(ReceiveError),
    #[error("sent a descriptor with something else, or a return without one")]
    Descriptor,
    #[error("announced {0} unread bytes, at most {UNREAD_MAX} are taken")]
    TooMuchUnread(u32),
    #[error("sent unread bytes that it had not announced, or something else before all it had announced")]
    Unread,
    #[error("returned a connection before it was to drain")]
    NotDraining,
    #[error("returned or closed a connection that is not its own")]
    NotItsOwn,
    #[error("returned a descriptor that is not the connection it claims to be")]
    Forged,
    #[error("sent a status that nobody asked for, or one without an end")]
    Status,
    #[error("went on after saying that nothing is left")]
    AfterDrained,
}

/// How reading a worker ended.
#[derive(Debug)]
pub(super) enum End {
    /// It closed its end, or died.
    Gone,
    Misbehaved(WorkerMisbehaved),
    /// Our side failed.
    Failed(std::io::Error),
}

/// A connection that came back whole.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) cookie: Cookie,
    pub(super) descriptor: OwnedFd,
    pub(super) unread: Vec<u8>,
    pub(super) room: OwnedSemaphorePermit,
}

/// Reads what the worker sends until its end, puts returned connections together and passes everything on as news.
pub(super) async fn receive_all(
    link: LinkId,
    channel: &Polled<ToWorker, FromWorker>,
    news: &mpsc::Sender<News>,
    returns: &Arc<Semaphore>,
) -> End {
    let mut buffer = Vec::new();
    let mut drained = false;
    loop {
        let (message, descriptor) = match next(channel, &mut buffer).await {
            Ok(received) => received,
            Err(end) => return end,
        };
        if drained {
            return End::Misbehaved(WorkerMisbehaved::AfterDrained);
        }
        let what = match (message, descriptor) {
            (FromWorker::Return { cookie, unread }, Some(descriptor)) => {
                match put_together(channel, &mut buffer, returns, cookie, unread, descriptor).await {
                    Ok(returned) => What::Returned(returned),
                    Err(end) => return end,
                }
            }
            (FromWorker::Return { .. }, None) | (_, Some(_)) => {
                return End::Misbehaved(WorkerMisbehaved::Descriptor);
            }
            (FromWorker::Unread(_), None) => return End::Misbehaved(WorkerMisbehaved::Unread),
            (FromWorker::Closed { cookie }, None) => What::Closed(cookie),
            (FromWorker::Drained, None) => {
                drained = true;
                What::Drained
            }
            (FromWorker::Status { nonce, part, last }, None) => What::Status { nonce, part, last },
        };
        if news.send(News { link, what }).await.is_err() {
            return End::Gone;
        }
    }
}

/// A return and the bytes that belong to it. Memory is set aside before anything is collected.
async fn put_together(
    channel: &Polled<ToWorker, FromWorker>,
    buffer: &mut Vec<u8>,
    returns: &Arc<Semaphore>,
    cookie: Cookie,
    announced: u32,
    descriptor: OwnedFd,
) -> Result<Returned, End> {
    let misbehaved = |what| Err(End::Misbehaved(what));
    let Some(length) = usize::try_from(announced).ok().filter(|length| *length <= UNREAD_MAX) else {
        return misbehaved(WorkerMisbehaved::TooMuchUnread(announced));
    };
    let units = u32::try_from(1 + length / UNIT).map_err(failed)?;
    let room = Arc::clone(returns).acquire_many_owned(units).await.map_err(failed)?;
    let mut unread = Vec::with_capacity(length);
    while unread.len() < length {
        match next(channel, buffer).await? {
            (FromWorker::Unread(chunk), None)
                if !chunk.is_empty() && chunk.len() <= length - unread.len() =>
            {
                unread.extend_from_slice(&chunk);
            }
            _ => return misbehaved(WorkerMisbehaved::Unread),
        }
    }
    Ok(Returned { cookie, descriptor, unread, room })
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> End {
    End::Failed(std::io::Error::other(error))
}

async fn next(
    channel: &Polled<ToWorker, FromWorker>,
    buffer: &mut Vec<u8>,
) -> Result<(FromWorker, Option<OwnedFd>), End> {
    match channel.receive(buffer).await {
        Ok(Some(received)) => Ok(received),
        Ok(None) => Err(End::Gone),
        Err(ReceiveError::Io(error)) => Err(End::Failed(error)),
        Err(error) => Err(End::Misbehaved(WorkerMisbehaved::Channel(error))),
    }
}

/// Whether the descriptor is what the worker says: the connection of that name, which we gave to this very worker, with
/// the peer it had then.
pub(super) fn check(
    table: &Table,
    link: LinkId,
    cookie: Cookie,
    descriptor: OwnedFd,
) -> Result<(Connection, TrustClass), WorkerMisbehaved> {
    let entry = table.owned_by(link, cookie).ok_or(WorkerMisbehaved::NotItsOwn)?;
    let connection = Connection::of(descriptor).map_err(|_| WorkerMisbehaved::Forged)?;
    if connection.cookie != cookie || connection.peer != entry.peer {
        return Err(WorkerMisbehaved::Forged);
    }
    Ok((connection, entry.class.clone()))
}
