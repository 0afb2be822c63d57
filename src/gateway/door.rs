//! Where proxies come in: who they are, whether there is room, and which thread looks after them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::warn;

use super::desk::Room;
use crate::wire::gateway::{Listener, SocketKind};
use crate::wire::polled;

/// How long nobody is let in after accepting failed.
const PAUSE: Duration = Duration::from_millis(100);
/// The log is told of a listener this often at most: who connects must not be who decides how much is written.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// One listener, for all threads.
#[derive(Debug)]
pub(super) struct Hall {
    pub(super) listener: Arc<Listener>,
    socket: Arc<OwnedFd>,
    /// For what its connections hold.
    pub(super) room: Arc<Room>,
    /// One for each connection that there may be.
    seats: Arc<Semaphore>,
    told: Mutex<Told>,
}

/// What the log knows of a listener's troubles.
#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    /// Since then.
    untold: u64,
}

/// Who came in, and may stay.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) socket: OwnedFd,
    pub(super) hall: Arc<Hall>,
    /// Whose process connected, where the kernel says so.
    pub(super) peer: Option<u32>,
    pub(super) seat: Seat,
}

/// Counts one connection for as long as it lasts.
#[derive(Debug)]
pub(super) struct Seat {
    _of_hall: OwnedSemaphorePermit,
    floor: Arc<Floor>,
    thread: usize,
}

impl Hall {
    pub(super) fn new(listener: Listener, socket: OwnedFd, room: Arc<Room>) -> Arc<Self> {
        let seats = usize::try_from(listener.max_connections).unwrap_or(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            listener: Arc::new(listener),
            socket: Arc::new(socket),
            room,
            seats: Arc::new(Semaphore::new(seats.min(Semaphore::MAX_PERMITS))),
            told: Mutex::default(),
        })
    }

    /// One thread's view of it. Must be called within the runtime.
    pub(super) fn door(self: &Arc<Self>) -> io::Result<Door> {
        Ok(Door {
            watched: polled::watch(Arc::clone(&self.socket), Interest::READABLE)?,
            hall: Arc::clone(self),
        })
    }

    /// True where the log hears it.
    fn tell(&self, why: impl std::fmt::Display) -> bool {
        let untold = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if told.last.is_some_and(|last| now.saturating_duration_since(last) < TELL_EVERY) {
                told.untold = told.untold.saturating_add(1);
                return false;
            }
            told.last = Some(now);
            std::mem::take(&mut told.untold)
        };
        warn!(listener = self.listener.name.as_str(), %why, untold, "not everybody is let in");
        true
    }

    /// Who may stay, and on which thread.
    fn admit(
        self: &Arc<Self>,
        socket: OwnedFd,
        seat: OwnedSemaphorePermit,
        floor: &Arc<Floor>,
        here: usize,
    ) -> Option<Guest> {
        let peer = match self.listener.socket {
            SocketKind::Tcp => None,
            SocketKind::Unix => match getsockopt(&socket.as_fd(), sockopt::PeerCredentials) {
                Ok(credentials) => Some(credentials.uid()),
                // Gone already, or nobody that could be named.
                Err(_) => return None,
            },
        };
        let peers = &self.listener.peers;
        if let Some(uid) = peer.filter(|uid| !peers.is_empty() && !peers.contains(uid)) {
            self.tell(format_args!("UID {uid} is none of its peers"));
            return None;
        }
        let thread = floor.take(here);
        let seat = Seat { _of_hall: seat, floor: Arc::clone(floor), thread };
        Some(Guest { socket, hall: Arc::clone(self), peer, seat })
    }
}

impl Seat {
    /// Who looks after it.
    pub(super) fn thread(&self) -> usize {
        self.thread
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.floor.leave(self.thread);
    }
}

/// A listener as one thread sees it.
#[derive(Debug)]
pub(super) struct Door {
    watched: AsyncFd<Arc<OwnedFd>>,
    hall: Arc<Hall>,
}

impl Door {
    /// The next who may stay. May be dropped and called again without losing one.
    pub(super) async fn next(&self, floor: &Arc<Floor>, here: usize) -> Guest {
        loop {
            let Ok(mut guard) = self.watched.readable().await else {
                // The runtime ends.
                std::future::pending::<()>().await;
                continue;
            };
            let seat = self.seat().await;
            // All threads wait for the same socket: what one was woken for another may have taken.
            match SockRef::from(&*self.hall.socket).accept() {
                Ok((socket, _)) => {
                    if let Some(guest) = self.hall.admit(socket.into(), seat, floor, here) {
                        return guest;
                    }
                    // Whoever connects again and again has no claim to this thread.
                    yield_now().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if gone(&error) => yield_now().await,
                // EMFILE, ENFILE, ENOMEM: trying again at once would only burn the processor.
                Err(error) => {
                    self.hall.tell(&error);
                    drop(guard);
                    drop(seat);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Who comes while there is none waits where the kernel keeps those that connect.
    async fn seat(&self) -> OwnedSemaphorePermit {
        let seats = &self.hall.seats;
        if let Ok(seat) = Arc::clone(seats).try_acquire_owned() {
            return seat;
        }
        self.hall.tell(format_args!(
            "there are max_connections, {}: others wait",
            self.hall.listener.max_connections
        ));
        match Arc::clone(seats).acquire_owned().await {
            Ok(seat) => seat,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// It was gone before we came.
fn gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::ENETDOWN))
}

/// The threads, by how many connections each has.
#[derive(Debug)]
pub(super) struct Floor(Vec<Desks>);

#[derive(Debug)]
struct Desks {
    taken: AtomicU32,
    guests: mpsc::UnboundedSender<Guest>,
}

impl Floor {
    /// With a way for guests to each of so many threads. There are never more under way than all listeners together let in.
    pub(super) fn new(threads: usize) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<Guest>>) {
        let desk = |_| {
            let (guests, arriving) = mpsc::unbounded_channel();
            (Desks { taken: AtomicU32::new(0), guests }, arriving)
        };
        let (desks, arriving): (Vec<_>, Vec<_>) = (0..threads).map(desk).unzip();
        (Arc::new(Self(desks)), arriving)
    }

    /// The thread that gets one more: the one that accepted it, unless another has fewer.
    fn take(&self, here: usize) -> usize {
        let taken = |desk: &Desks| desk.taken.load(Ordering::Relaxed);
        let own = self.0.get(here).map_or(u32::MAX, taken);
        let least = self.0.iter().map(taken).enumerate().min_by_key(|(_, taken)| *taken);
        let thread = least.filter(|(_, taken)| *taken < own).map_or(here, |(thread, _)| thread);
        if let Some(desk) = self.0.get(thread) {
            desk.taken.fetch_add(1, Ordering::Relaxed);
        }
        thread
    }

    fn leave(&self, thread: usize) {
        if let Some(desk) = self.0.get(thread) {
            desk.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// To the thread that looks after it. One that drains takes nobody: the connection is closed.
    pub(super) fn send(&self, guest: Guest) {
        if let Some(desk) = self.0.get(guest.seat.thread()) {
            let _ = desk.guests.send(guest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::decision::{PolicyName, Tenant};
    use crate::wire::gateway::{Binding, Speaks};

    fn listener(peers: Vec<u32>, max_connections: u32) -> Listener {
        Listener {
            name: "envoy".to_owned(),
            socket: SocketKind::Unix,
            peers,
            speaks: Speaks::EnvoyGrpc,
            tenant: Binding::Fixed(Tenant::new("acme").unwrap()),
            policy: Binding::Fixed(PolicyName::new("gate").unwrap()),
            deadline_us: 50_000,
            max_connections,
            max_body: 1024,
            details: false,
        }
    }

    struct Place {
        directory: tempfile::TempDir,
        hall: Arc<Hall>,
    }

    impl Place {
        fn new(listener: Listener) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = UnixListener::bind(directory.path().join("s")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { directory, hall: Hall::new(listener, socket.into(), Room::new(0)) }
        }

        fn connect(&self) -> UnixStream {
            UnixStream::connect(self.directory.path().join("s")).unwrap()
        }
    }

    fn own() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// Comes when the other side has closed it.
    async fn closed(stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
        assert_eq!(read.unwrap(), 0);
    }

    /// Comes when somebody waits for a place.
    async fn waits(hall: &Hall) {
        while hall.told.lock().unwrap().last.is_none() {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn only_peers_stay_and_the_kernel_says_who_they_are() {
        for (peers, stays) in [(vec![], true), (vec![own(), 7], true), (vec![own() + 1], false)] {
            let place = Place::new(listener(peers, 8));
            let (floor, _) = Floor::new(1);
            let door = place.hall.door().unwrap();
            let proxy = place.connect();
            tokio::select! {
                guest = door.next(&floor, 0) => assert!(stays && guest.peer == Some(own())),
                () = closed(proxy.try_clone().unwrap()) => assert!(!stays),
            }
        }
    }

    #[tokio::test]
    async fn whoever_is_too_many_waits_and_a_place_becomes_free() {
        let place = Place::new(listener(vec![], 2));
        let (floor, _) = Floor::new(1);
        let door = place.hall.door().unwrap();
        let (_first, _second) = (place.connect(), place.connect());
        let (one, _two) = (door.next(&floor, 0).await, door.next(&floor, 0).await);
        let third = place.connect();
        tokio::select! {
            guest = door.next(&floor, 0) => panic!("{guest:?}"),
            () = waits(&place.hall) => {}
        }
        drop(one);
        let guest = door.next(&floor, 0).await;
        assert_eq!(place.hall.seats.available_permits(), 0);
        drop(guest);
        closed(third).await;
        assert_eq!(place.hall.seats.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_place_that_becomes_free_on_one_thread_another_takes() {
        let place = Place::new(listener(vec![], 1));
        let (floor, _) = Floor::new(2);
        let door = place.hall.door().unwrap();
        let (_first, _second) = (place.connect(), place.connect());
        let one = door.next(&floor, 0).await;
        let (hall, floor) = (Arc::clone(&place.hall), Arc::clone(&floor));
        let other = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { hall.door().unwrap().next(&floor, 1).await })
        });
        waits(&place.hall).await;
        drop(one);
        assert_eq!(other.join().unwrap().peer, Some(own()));
    }

    /// One thread, as it is for those whom it serves.
    #[tokio::test]
    async fn who_is_turned_away_again_and_again_keeps_nobody_waiting() {
        let place = Place::new(listener(vec![own() + 1], 8));
        let (floor, _) = Floor::new(1);
        let door = place.hall.door().unwrap();
        let proxies: Vec<_> = (0..64).map(|_| place.connect()).collect();
        let closed = |mut proxy: &UnixStream| {
            proxy.set_nonblocking(true).unwrap();
            std::io::Read::read(&mut proxy, &mut [0]).is_ok()
        };
        let others = async {
            loop {
                yield_now().await;
                match proxies.iter().filter(|proxy| closed(proxy)).count() {
                    0 => {}
                    turned_away => break turned_away,
                }
            }
        };
        tokio::select! {
            biased;
            guest = door.next(&floor, 0) => panic!("{guest:?}"),
            turned_away = others => assert!(turned_away < proxies.len(), "all of them first"),
        }
    }

    #[tokio::test]
    async fn the_log_is_told_once_in_a_while_whoever_comes_between() {
        let place = Place::new(listener(vec![], 8));
        assert!(place.hall.tell("first"));
        assert!(!place.hall.tell("second") && !place.hall.tell("third"));
        let mut told = place.hall.told.lock().unwrap();
        assert_eq!(told.untold, 2);
        told.last = told.last.and_then(|last| last.checked_sub(TELL_EVERY));
        drop(told);
        assert!(place.hall.tell("fourth"));
        assert_eq!(place.hall.told.lock().unwrap().untold, 0);
    }

    #[tokio::test]
    async fn connections_are_spread_over_threads() {
        let place = Place::new(listener(vec![], 64));
        let (floor, _) = Floor::new(3);
        let door = place.hall.door().unwrap();
        let proxies: Vec<_> = (0..6).map(|_| place.connect()).collect();
        let mut guests = Vec::new();
        for _ in &proxies {
            // One thread accepts all of them.
            guests.push(door.next(&floor, 1).await);
        }
        let mut threads: Vec<_> = guests.iter().map(|guest| guest.seat.thread()).collect();
        assert_eq!(threads.first(), Some(&1), "who accepted it has it");
        threads.sort_unstable();
        assert_eq!(threads, [0, 0, 1, 1, 2, 2]);
        drop(guests);
        assert!(floor.0.iter().all(|desk| desk.taken.load(Ordering::Relaxed) == 0));
    }
}
