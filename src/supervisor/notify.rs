//! What systemd is told (sd_notify(3)), where there is a systemd.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::log::say;

/// The way to the service manager; all of it does nothing where there is none.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Notifier {
    /// From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. Connects at once, since the sandbox allows no connecting.
    pub(super) fn from_environment(now: Instant) -> io::Result<Self> {
        let socket = match std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) {
            Some(address) => Some(connect(&address)?),
            None => None,
        };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(|usec| {
            // systemd asks for less than half of its limit.
            Watchdog { every: Duration::from_micros(usec) / 3, next: now }
        });
        Ok(Self { socket, watchdog })
    }

    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    pub(super) fn reloading(&self) {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic.as_micros()));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub(super) fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}", status.replace('\n', "; ")));
    }

    /// Says that all is well if that is due; returns when it will be next.
    pub(super) fn all_is_well(&mut self, now: Instant) -> Option<Instant> {
        let watchdog = self.watchdog.as_mut()?;
        let due = now >= watchdog.next;
        if due {
            watchdog.next = now + watchdog.every;
        }
        let next = watchdog.next;
        if due {
            self.tell("WATCHDOG=1");
        }
        Some(next)
    }

    fn tell(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(why) = socket.send(message.as_bytes())
        {
            say!("notify service manager of {message:?}: {why}");
        }
    }
}

/// `@name` is an abstract address, anything else a path.
fn connect(address: &OsString) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match address.as_bytes().split_first() {
        Some((b'@', name)) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(address)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(listener: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = listener.recv(&mut buffer).expect("receive");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    }

    #[test]
    fn messages_reach_paths_and_abstract_addresses() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("notify");
        let name = format!("portcullis-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("name");
        for (listener, address) in [
            (UnixDatagram::bind(&path).expect("bind"), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).expect("bind"), format!("@{name}").into()),
        ] {
            let notifier = Notifier { socket: Some(connect(&address).expect("connect")), watchdog: None };
            notifier.ready();
            assert_eq!(received(&listener), "READY=1");
            notifier.reloading();
            let message = received(&listener);
            let usec = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("form");
            assert!(usec.parse::<u64>().expect("number") > 0);
            notifier.status("one\ntwo");
            assert_eq!(received(&listener), "STATUS=one; two");
        }
    }

    #[test]
    fn the_watchdog_is_fed_when_due_and_not_before() {
        let start = Instant::now();
        let every = Duration::from_millis(100);
        let mut notifier = Notifier { socket: None, watchdog: Some(Watchdog { every, next: start }) };
        assert_eq!(notifier.all_is_well(start), Some(start + every));
        assert_eq!(notifier.all_is_well(start + every / 2), Some(start + every), "not due");
        assert_eq!(notifier.all_is_well(start + every * 5), Some(start + every * 6), "no catching up");
        let mut without = Notifier { socket: None, watchdog: None };
        assert_eq!(without.all_is_well(start), None);
    }
}
