//! The door: accepts connections, and stands still for a moment when there is no descriptor left for one.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// How long nobody is accepted after accepting failed, unless a descriptor becomes free before.
const PAUSE: Duration = Duration::from_millis(100);

/// One listening socket.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    shut_until: Option<Instant>,
    warned: bool,
}

impl Door {
    /// Must be called within the runtime.
    pub(super) fn new(listener: StdUnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, shut_until: None, warned: false })
    }

    /// The next connection. May be dropped and called again without losing one.
    pub(super) async fn next(&mut self) -> UnixStream {
        loop {
            if let Some(until) = self.shut_until {
                sleep_until(until).await;
                self.shut_until = None;
            }
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.warned = false;
                    return stream;
                }
                // The client was gone before we came.
                Err(error) if is(&error, Errno::ECONNABORTED) => {}
                // EMFILE, ENFILE, ENOMEM: trying again at once would only burn the processor.
                Err(error) => {
                    if !std::mem::replace(&mut self.warned, true) {
                        warn!(%error, "cannot accept; waiting");
                    }
                    self.shut_until = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// A descriptor has become free: no need to wait any longer.
    pub(super) fn reopen(&mut self) {
        self.shut_until = None;
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(errno)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as Client;
    use std::process::Command;

    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use tokio::time::timeout;

    use super::*;

    const CHILD: &str = "PORTCULLIS_TEST_WITHOUT_DESCRIPTORS";

    /// In a process of its own, because the limit of descriptors is a process's.
    #[test]
    fn without_descriptors_the_door_waits_and_opens_again() {
        if std::env::var_os(CHILD).is_some() {
            return run_out_of_descriptors();
        }
        let name = "frontend::accept::tests::without_descriptors_the_door_waits_and_opens_again";
        let test = std::env::current_exe().unwrap();
        let output =
            Command::new(test).args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
    }

    #[tokio::main(flavor = "current_thread")]
    async fn run_out_of_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("door");
        let mut door = Door::new(StdUnixListener::bind(&path).unwrap()).unwrap();
        let _clients: Vec<Client> = (0..40).map(|_| Client::connect(&path).unwrap()).collect();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let next_free = std::fs::File::open("/dev/null").unwrap();
        let limit = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&next_free)).unwrap() + 3;
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();

        let mut accepted = Vec::new();
        while let Ok(stream) = timeout(3 * PAUSE, door.next()).await {
            accepted.push(stream);
        }
        assert!(!accepted.is_empty() && accepted.len() < 40, "{} accepted", accepted.len());
        assert!(door.warned && door.shut_until.is_some(), "it stands still, it does not spin");

        accepted.pop();
        door.reopen();
        accepted.push(door.next().await);
        // And without being told, too.
        assert!(timeout(PAUSE / 2, door.next()).await.is_err());
        accepted.pop();
        door.next().await;
    }
}
