//! Which worker serves which class now, and those that are on their way out.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::handover::{Outgoing, Transfer, send_queued};
use super::takeback::{End, RETURNS_MAX, Returned, receive_all};
use crate::decision::TrustClass;
use crate::wire::channel::{Channel, SendError};
use crate::wire::handover::{Cookie, FromWorker, HANDOVER_MAX, ToWorker};
use crate::wire::operator::WorkerStatus;
use crate::wire::polled::Polled;

/// New connections that may wait for one worker to take them.
const FRESH_MAX: usize = 1024;

/// Names the channel to one worker process; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LinkId(pub(super) u64);

/// Something a worker's channel brought.
#[derive(Debug)]
pub(super) struct News {
    pub(super) link: LinkId,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Returned(Returned),
    Closed(Cookie),
    Drained,
    Status {
        nonce: u64,
        part: WorkerStatus,
        last: bool,
    },
    /// The last of a channel, with the connections that the worker was to get and did not.
    Ended {
        end: End,
        unsent: Vec<Transfer>,
    },
}

/// All channels to workers.
#[derive(Debug)]
pub(super) struct Routes {
    links: HashMap<LinkId, Link>,
    current: HashMap<TrustClass, LinkId>,
    /// One for each class there has been, so that no class can use up another's.
    returns: HashMap<TrustClass, Arc<Semaphore>>,
    news: mpsc::Sender<News>,
    last: u64,
}

/// The channel to one worker.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) class: TrustClass,
    pub(super) generation: u64,
    /// `None`: nothing more is queued, and Drain follows what is.
    queue: Option<mpsc::UnboundedSender<Outgoing>>,
    fresh: Arc<Semaphore>,
    /// Dropped to end it from our side.
    cut: Option<oneshot::Sender<()>>,
    /// The status it was asked for and has not given completely, and how many parts it has given.
    pub(super) asked: Option<u64>,
    pub(super) parts: usize,
}

impl Routes {
    pub(super) fn new(news: mpsc::Sender<News>) -> Self {
        Self { links: HashMap::new(), current: HashMap::new(), returns: HashMap::new(), news, last: 0 }
    }

    /// From now on the worker at the other end of `channel` serves the class. The one before is drained, in order.
    pub(super) fn open(&mut self, class: TrustClass, generation: u64, channel: OwnedFd) -> io::Result<()> {
        let channel = Polled::new(Channel::new(channel, HANDOVER_MAX))?;
        self.last += 1;
        let id = LinkId(self.last);
        let returns =
            self.returns.entry(class.clone()).or_insert_with(|| Arc::new(Semaphore::new(RETURNS_MAX)));
        let (queue, queued) = mpsc::unbounded_channel();
        let (cut, is_cut) = oneshot::channel();
        tokio::spawn(run(id, channel, queued, self.news.clone(), Arc::clone(returns), is_cut));
        let link = Link {
            class: class.clone(),
            generation,
            queue: Some(queue),
            fresh: Arc::new(Semaphore::new(FRESH_MAX)),
            cut: Some(cut),
            asked: None,
            parts: 0,
        };
        self.links.insert(id, link);
        let before = self.current.insert(class, id);
        if let Some(before) = before.and_then(|before| self.links.get_mut(&before)) {
            before.queue = None;
        }
        Ok(())
    }

    /// Who serves this class.
    pub(super) fn current(&self, class: &TrustClass) -> Option<(LinkId, &Link)> {
        let id = *self.current.get(class)?;
        Some((id, self.links.get(&id)?))
    }

    /// Every worker that serves a class.
    pub(super) fn each_current(&mut self) -> impl Iterator<Item = (LinkId, &mut Link)> {
        let current = &self.current;
        self.links
            .iter_mut()
            .filter(|(id, link)| current.get(&link.class) == Some(*id))
            .map(|(id, link)| (*id, link))
    }

    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        self.links.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.get_mut(&id)
    }

    /// Nothing more for anyone: all are drained.
    pub(super) fn drain_all(&mut self) {
        self.current.clear();
        for link in self.links.values_mut() {
            link.queue = None;
        }
    }

    /// Ends a channel; its [`What::Ended`] follows.
    pub(super) fn cut(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.cut = None;
            if self.current.get(&link.class) == Some(&id) {
                self.current.remove(&link.class);
            }
        }
    }

    /// The channel has ended.
    pub(super) fn remove(&mut self, id: LinkId) -> Option<Link> {
        self.cut(id);
        self.links.remove(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

impl Link {
    /// A place for one new connection, if the worker keeps up.
    pub(super) fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.fresh).try_acquire_owned().ok()
    }

    /// Queues it, or gives it back if the channel has ended.
    pub(super) fn send(&self, outgoing: Outgoing) -> Result<(), Outgoing> {
        match &self.queue {
            Some(queue) => queue.send(outgoing).map_err(|unsent| unsent.0),
            None => Err(outgoing),
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.queue.is_none()
    }

    /// Whether it was ended from our side: what it still brings does not count.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_none()
    }
}

/// Looks after one channel until its end.
async fn run(
    link: LinkId,
    channel: Polled<ToWorker, FromWorker>,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    news: mpsc::Sender<News>,
    returns: Arc<Semaphore>,
    is_cut: oneshot::Receiver<()>,
) {
    let mut under_way = None;
    let end = tokio::select! {
        end = receive_all(link, &channel, &news, &returns) => end,
        error = send_queued(&channel, &mut queue, &mut under_way) => match error {
            SendError::Io(error) => End::Failed(error),
            error => End::Failed(io::Error::other(error)),
        },
        _ = is_cut => End::Gone,
    };
    // The worker sees the end of its channel.
    drop(channel);
    queue.close();
    let mut unsent: Vec<Transfer> = under_way.into_iter().collect();
    while let Ok(outgoing) = queue.try_recv() {
        if let Outgoing::Adopt(transfer) = outgoing {
            unsent.push(transfer);
        }
    }
    // If nobody listens any more, the process is about to exit.
    let _ = news.send(News { link, what: What::Ended { end, unsent } }).await;
}
