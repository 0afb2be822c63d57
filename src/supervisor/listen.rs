//! The two sockets people connect to, those of telemetry and those that proxies connect to: taken from systemd, or bound here. The supervisor never
//! accepts on them.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, getsockname, getsockopt,
    setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};

use super::config::{Config, GatewayListener, Place, Telemetry};
use super::log::say;
use crate::otlp::Collector;
use crate::wire::channel::take_inherited;

/// Anybody may connect to the operators' socket; who gets an answer is decided by UID.
const OPERATOR_SOCKET_MODE: u32 = 0o666;
/// Names of the sockets in a `.socket` unit (FileDescriptorName=).
const CLIENTS: &str = "decide";
const OPERATORS: &str = "operator";
/// Of both kinds that telemetry has: a unit gives one name to all of its sockets.
const SCRAPERS: &str = "telemetry";
/// Of those that proxies connect to; which is which says its address.
const PROXIES: &str = "gateway";
/// The first descriptor that systemd passes (sd_listen_fds(3)).
const LISTEN_FDS_START: i32 = 3;

/// Why there is nothing to listen on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenError {
    #[error("bind socket {path:?}: {source}")]
    Bind { path: PathBuf, source: io::Error },
    #[error("bind socket {0:?}: somebody listens there; is the service running already?")]
    InUse(PathBuf),
    #[error("bind socket {0:?}: something that is no socket stands there; move it away")]
    NotASocket(PathBuf),
    #[error("listen on {address}: {source}; see who has that port (`ss -ltnp`), or name another")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("take socket {name:?} from systemd: {why}")]
    Inherited { name: String, why: String },
}

/// All sockets, listening and not blocking.
#[derive(Debug)]
pub(super) struct Sockets {
    clients: Socket,
    operators: Socket,
    scrapers: Option<Scrapers>,
    /// In the order of the gateway's listeners.
    proxies: Vec<Socket>,
}

/// Where telemetry is asked for.
#[derive(Debug)]
struct Scrapers {
    unix: Socket,
    tcp: Option<OwnedFd>,
}

#[derive(Debug)]
struct Socket {
    descriptor: OwnedFd,
    /// What to remove at the end; `None` if it is systemd's.
    bound: Option<Bound>,
}

/// A socket file as we made it.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Sockets {
    /// Takes what systemd passed, binds the rest.
    pub(super) fn open(config: &Config) -> Result<Self, ListenError> {
        let service = &config.service;
        let mut inherited = inherited()?;
        let clients = open(&mut inherited, CLIENTS, &service.socket, service.socket_mode)?;
        let operators = open(&mut inherited, OPERATORS, &service.operator_socket, OPERATOR_SOCKET_MODE)?;
        // No telemetry is no reason not to decide.
        let scrapers = config.telemetry.as_ref().and_then(|telemetry| {
            let without = |why: ListenError| say!("WARNING: {why}; there is no telemetry until a restart");
            Scrapers::open(telemetry, &mut inherited).map_err(without).ok()
        });
        let listeners = config.gateway.iter().flat_map(|gateway| &gateway.listeners);
        for caution in listeners.clone().filter_map(GatewayListener::caution) {
            say!("WARNING: {caution}");
        }
        let proxies = listeners.map(|one| open_for_proxies(&mut inherited, one)).collect::<Result<_, _>>()?;
        let (unasked, strange): (Vec<_>, Vec<_>) =
            inherited.into_iter().partition(|(name, _)| [SCRAPERS, PROXIES].contains(&name.as_str()));
        if unasked.iter().any(|(name, _)| name == PROXIES) {
            say!(
                "WARNING: systemd has a socket for proxies that no gateway.listener names; nobody answers there"
            );
        }
        if unasked.iter().any(|(name, _)| name == SCRAPERS) {
            say!(
                "WARNING: systemd has a socket for telemetry that [telemetry] does not name; nobody answers there"
            );
        }
        match strange.into_iter().next() {
            None => Ok(Self { clients, operators, scrapers, proxies }),
            Some((name, _)) => {
                let why = format!(
                    "expected FileDescriptorName={CLIENTS} or {OPERATORS}, each once, {SCRAPERS} or {PROXIES}"
                );
                Err(ListenError::Inherited { name, why })
            }
        }
    }

    pub(super) fn clients(&self) -> BorrowedFd<'_> {
        self.clients.descriptor.as_fd()
    }

    pub(super) fn operators(&self) -> BorrowedFd<'_> {
        self.operators.descriptor.as_fd()
    }

    /// Telemetry's Unix socket, and its TCP socket: whether there are such.
    pub(super) fn scrapers(&self) -> Option<(BorrowedFd<'_>, Option<BorrowedFd<'_>>)> {
        let scrapers = self.scrapers.as_ref()?;
        Some((scrapers.unix.descriptor.as_fd(), scrapers.tcp.as_ref().map(AsFd::as_fd)))
    }

    /// Those that proxies connect to, in the order of the gateway's listeners.
    pub(super) fn proxies(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.proxies.iter().map(|socket| socket.descriptor.as_fd())
    }

    fn bound(&self) -> impl Iterator<Item = &Bound> {
        let scrapers = self.scrapers.as_ref().map(|scrapers| &scrapers.unix);
        [&self.clients, &self.operators]
            .into_iter()
            .chain(scrapers)
            .chain(&self.proxies)
            .filter_map(|socket| socket.bound.as_ref())
    }

    /// The directories in which [`Sockets::remove`] has something to do.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        self.bound().filter_map(|bound| bound.path.parent().map(Path::to_owned)).collect()
    }

    /// Removes what was bound here, unless somebody else has put something in its place.
    pub(super) fn remove(&self) {
        for bound in self.bound() {
            let ours = fs::symlink_metadata(&bound.path)
                .is_ok_and(|now| (now.dev(), now.ino()) == (bound.device, bound.inode));
            if ours && let Err(why) = fs::remove_file(&bound.path) {
                say!("remove socket {:?}: {why}", bound.path);
            }
        }
    }
}

impl Scrapers {
    fn open(telemetry: &Telemetry, inherited: &mut Vec<(String, OwnedFd)>) -> Result<Self, ListenError> {
        let tcp = telemetry.listen.map(|address| {
            let given = inherited.iter().position(|(name, one)| {
                name == SCRAPERS && family(one).is_some_and(|family| family != AddressFamily::Unix)
            });
            match given {
                Some(index) => {
                    let (name, descriptor) = inherited.swap_remove(index);
                    check_listens(&name, &descriptor)?;
                    check_address(&name, address, descriptor)
                }
                None => listen(address),
            }
        });
        if let Some(collector) = &telemetry.otlp
            && let Some(why) = unreachable(collector, |family| {
                socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop)
            })
        {
            say!("WARNING: {why}");
        }
        let unix = open(inherited, SCRAPERS, &telemetry.socket, telemetry.socket_mode)?;
        let without =
            |why: &ListenError| say!("WARNING: {why}; telemetry is on its Unix socket alone until a restart");
        let tcp = tcp.and_then(|listening| listening.inspect_err(without).ok());
        Ok(Self { unix, tcp })
    }
}

/// Why no span will get to the collector: what its unit forbids the service, `try_one` is told as the exporter will be.
fn unreachable(
    collector: &Collector,
    try_one: impl FnOnce(AddressFamily) -> nix::Result<()>,
) -> Option<String> {
    let address = collector.address();
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let errno = try_one(family).err()?;
    Some(format!(
        "make a socket for the collector of traces at {address}: {errno}; every span will be lost: let the service have that \
         network (docs/systemd.md has the drop-in), or take `otlp` out of [telemetry]"
    ))
}

/// Takes it from what systemd passed, or binds it. A gateway without one of its sockets would be one that an operator relies on
/// and that is not there: that is said at once.
fn open_for_proxies(
    inherited: &mut Vec<(String, OwnedFd)>,
    listener: &GatewayListener,
) -> Result<Socket, ListenError> {
    let is_it = |one: &OwnedFd| match &listener.place {
        Place::Unix(path, _) => {
            let address = getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(one)).ok();
            address.as_ref().and_then(UnixAddr::path) == Some(path.as_path())
        }
        Place::Tcp(address) => {
            let socket = one.try_clone().map(TcpListener::from);
            socket.and_then(|socket| socket.local_addr()).is_ok_and(|there| there == *address)
        }
    };
    let given = inherited.iter().position(|(name, one)| name == PROXIES && is_it(one));
    let given = given.map(|index| inherited.swap_remove(index));
    match (&listener.place, given) {
        (Place::Unix(path, _), Some((name, descriptor))) => {
            check_inherited(&name, path, &descriptor)?;
            Ok(Socket { descriptor, bound: None })
        }
        (Place::Unix(path, mode), None) => bind(path, *mode),
        (Place::Tcp(address), given) => {
            let descriptor = match given {
                Some((name, descriptor)) => {
                    check_listens(&name, &descriptor)?;
                    check_address(&name, *address, descriptor)?
                }
                None => listen(*address)?,
            };
            // Connections have it from whom they came to: an answer of two packets would wait for the first to be acknowledged.
            setsockopt(&descriptor, sockopt::TcpNoDelay, &true)
                .map_err(|errno| ListenError::Tcp { address: *address, source: errno.into() })?;
            Ok(Socket { descriptor, bound: None })
        }
    }
}

/// Takes it from what systemd passed, or binds it.
fn open(
    inherited: &mut Vec<(String, OwnedFd)>,
    name: &str,
    path: &Path,
    mode: u32,
) -> Result<Socket, ListenError> {
    // Scrapers may have a TCP socket of the same name, before or behind it.
    let meant = |one: &OwnedFd| name != SCRAPERS || family(one) == Some(AddressFamily::Unix);
    match inherited.iter().position(|(n, one)| n == name && meant(one)) {
        Some(index) => {
            let (_, descriptor) = inherited.swap_remove(index);
            check_inherited(name, path, &descriptor)?;
            Ok(Socket { descriptor, bound: None })
        }
        None => bind(path, mode),
    }
}

fn listen(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map(OwnedFd::from).map_err(|source| ListenError::Tcp { address, source })
}

fn family(socket: &OwnedFd) -> Option<AddressFamily> {
    getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(socket)).ok()?.family()
}

fn check_address(name: &str, address: SocketAddr, socket: OwnedFd) -> Result<OwnedFd, ListenError> {
    let listener = TcpListener::from(socket);
    let refuse = |why: String| ListenError::Inherited { name: name.to_owned(), why };
    match listener.local_addr() {
        Ok(there) if there == address => {}
        there => return Err(refuse(format!("it listens on {there:?}, the configuration says {address}"))),
    }
    listener.set_nonblocking(true).map_err(|why| refuse(format!("make it non-blocking: {why}")))?;
    Ok(listener.into())
}

/// Binds under another name and renames: at no moment is there a socket with the wrong mode, or none where a stale one
/// was.
fn bind(path: &Path, mode: u32) -> Result<Socket, ListenError> {
    let failed = |source| ListenError::Bind { path: path.to_owned(), source };
    refuse_if_used(path)?;
    let making = path.with_file_name(format!(".{}", std::process::id()));
    match fs::remove_file(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&making);
    umask(before);
    let listener = listener.map_err(failed)?;
    let finish = || {
        listener.set_nonblocking(true)?;
        fs::set_permissions(&making, fs::Permissions::from_mode(mode))?;
        let made = fs::symlink_metadata(&making)?;
        fs::rename(&making, path)?;
        Ok(Bound { path: path.to_owned(), device: made.dev(), inode: made.ino() })
    };
    match finish() {
        Ok(bound) => Ok(Socket { descriptor: listener.into(), bound: Some(bound) }),
        Err(error) => {
            let _ = fs::remove_file(&making);
            Err(failed(error))
        }
    }
}

/// A socket nobody listens on is left over and may go; anything else stays.
fn refuse_if_used(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ListenError::Bind { path: path.to_owned(), source }),
        Ok(there) if !there.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ListenError::Bind { path: path.to_owned(), source }),
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
    }
}

/// The sockets of LISTEN_FDS with their names, if they are meant for this process.
fn inherited() -> Result<Vec<(String, OwnedFd)>, ListenError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let take = |index| {
        let name = names.next().unwrap_or_default().to_owned();
        match take_inherited(LISTEN_FDS_START.saturating_add_unsigned(index)) {
            Ok(descriptor) => Ok((name, descriptor)),
            Err(why) => Err(ListenError::Inherited { name, why: why.to_string() }),
        }
    };
    (0..passed()).map(take).collect()
}

/// The first descriptor that is neither standard input, output or error nor a socket that systemd passed.
pub(super) fn first_not_ours() -> RawFd {
    LISTEN_FDS_START.saturating_add_unsigned(passed())
}

/// How many sockets were passed to this process (sd_listen_fds(3)).
fn passed() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => 0,
    }
}

fn check_listens(name: &str, descriptor: &OwnedFd) -> Result<(), ListenError> {
    if getsockopt(descriptor, sockopt::SockType) != Ok(SockType::Stream)
        || getsockopt(descriptor, sockopt::AcceptConn) != Ok(true)
    {
        let why = "expected a listening stream socket (ListenStream=)".to_owned();
        return Err(ListenError::Inherited { name: name.to_owned(), why });
    }
    Ok(())
}

fn check_inherited(name: &str, path: &Path, descriptor: &OwnedFd) -> Result<(), ListenError> {
    let refuse = |why: String| Err(ListenError::Inherited { name: name.to_owned(), why });
    check_listens(name, descriptor)?;
    let address = getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(descriptor)).ok();
    match address.as_ref().and_then(UnixAddr::path) {
        Some(there) if there == path => {}
        there => return refuse(format!("it listens on {there:?}, the configuration says {path:?}")),
    }
    // For all who have the socket, systemd included, which does not mind.
    match nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)) {
        Ok(_) => Ok(()),
        Err(errno) => refuse(format!("make it non-blocking: {errno}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// For one test at a time: whoever binds gives the whole process another umask meanwhile, and two at once may leave it so.
    fn place() -> (MutexGuard<'static, ()>, tempfile::TempDir, PathBuf) {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("decide.sock");
        (alone, directory, path)
    }

    #[test]
    fn a_socket_is_bound_with_its_mode_and_removed() {
        let (_alone, directory, path) = place();
        let socket = bind(&path, 0o640).expect("bind");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o640);
        UnixStream::connect(&path).expect("somebody listens");
        let operators = bind(&directory.path().join("o"), OPERATOR_SOCKET_MODE).expect("bind");
        let sockets = Sockets { clients: socket, operators, scrapers: None, proxies: Vec::new() };
        assert_eq!(sockets.directories(), [directory.path(), directory.path()]);
        sockets.remove();
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 0, "nothing is left");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let (_alone, _directory, path) = place();
        drop(UnixListener::bind(&path).expect("bind"));
        let socket = bind(&path, 0o600).expect("nobody listens on it");
        assert!(matches!(bind(&path, 0o600), Err(ListenError::InUse(_))));
        drop(socket);
        bind(&path, 0o600).expect("stale again");
    }

    #[test]
    fn what_is_no_socket_stays() {
        let (_alone, _directory, path) = place();
        fs::write(&path, "precious").expect("write");
        assert!(matches!(bind(&path, 0o600), Err(ListenError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("read"), "precious");
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let (_alone, directory, path) = place();
        let sockets = Sockets {
            clients: bind(&path, 0o600).expect("bind"),
            operators: bind(&directory.path().join("o"), 0o600).expect("bind"),
            scrapers: None,
            proxies: Vec::new(),
        };
        fs::remove_file(&path).expect("remove");
        // Kept busy, so that the successor does not get the same inode.
        fs::write(directory.path().join("filler"), "").expect("write");
        let _successor = UnixListener::bind(&path).expect("bind");
        sockets.remove();
        assert!(path.exists());
    }

    #[test]
    fn a_collector_that_the_service_has_no_network_for_is_warned_of() {
        for (collector, wanted) in
            [("http://127.0.0.1:4318", AddressFamily::Inet), ("http://[::1]:4318", AddressFamily::Inet6)]
        {
            let collector = collector.parse().expect("collector");
            let refused = unreachable(&collector, |family| {
                assert_eq!(family, wanted);
                Err(nix::errno::Errno::EAFNOSUPPORT)
            });
            let refused = refused.expect("a warning");
            assert!(refused.contains("EAFNOSUPPORT") && refused.contains("docs/systemd.md"), "{refused}");
            assert_eq!(unreachable(&collector, |_| Ok(())), None, "the control");
        }
    }

    #[test]
    fn scrapers_sockets_are_told_apart_by_their_families_in_any_order() {
        let (_alone, _directory, path) = place();
        let telemetry = |listen| Telemetry {
            listen,
            socket: path.clone(),
            socket_mode: 0o600,
            max_tenants: 1,
            otlp: None,
            identity: super::super::config::Identity { uid: 1, gid: 1 },
        };
        let tcp = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = tcp.local_addr().expect("address");
        let unix = UnixListener::bind(&path).expect("bind");
        let mut sockets = vec![(SCRAPERS.to_owned(), tcp.into()), (SCRAPERS.to_owned(), unix.into())];
        let again = |sockets: &[(String, OwnedFd)]| -> Vec<(String, OwnedFd)> {
            sockets.iter().map(|(name, one)| (name.clone(), one.try_clone().expect("copy"))).collect()
        };
        for _ in 0..2 {
            let mut inherited = again(&sockets);
            let scrapers = Scrapers::open(&telemetry(None), &mut inherited).expect("the Unix one");
            assert!(scrapers.unix.bound.is_none() && scrapers.tcp.is_none());
            assert_eq!(inherited.len(), 1, "the TCP one is nobody's");
            let mut inherited = again(&sockets);
            let scrapers = Scrapers::open(&telemetry(Some(address)), &mut inherited).expect("both");
            assert!(scrapers.unix.bound.is_none() && scrapers.tcp.is_some());
            sockets.reverse();
        }
    }

    #[test]
    fn an_inherited_socket_must_be_the_one_in_the_configuration() {
        let (_alone, directory, path) = place();
        let listener: OwnedFd = UnixListener::bind(&path).expect("bind").into();
        check_inherited(CLIENTS, &path, &listener).expect("the same");
        let error = check_inherited(CLIENTS, &directory.path().join("other"), &listener).expect_err("other");
        assert!(
            error.to_string().starts_with("take socket \"decide\" from systemd: it listens on"),
            "{error}"
        );
        let (stream, _peer) = UnixStream::pair().expect("pair");
        check_inherited(CLIENTS, &path, &stream.into()).expect_err("does not listen");
    }
}
