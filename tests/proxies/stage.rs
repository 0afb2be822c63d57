//! A whole stage for one proxy: the service with a gateway, the proxy before it, the shop behind it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::artifact::Limits;
use portcullis::wire::control::ProcessState;
use tempfile::TempDir;

use crate::doors::{Door, Ports};
use crate::exchange::{Address, Response};
use crate::programs::Running;
use crate::service::Shop;
use crate::support::{self, FRONTEND_UID, PATIENCE, Service, Site, built, component, is_root, write_signed};

/// Where examples have their sockets.
pub(crate) const SOCKETS: &str = "/run/portcullis/gateway";
/// The gateway's UID as root; after all that `support` gives away.
const GATEWAY_UID: u32 = FRONTEND_UID + 17;

/// A directory that everybody may pass through: proxies drop their privileges.
pub(crate) fn open_directory() -> TempDir {
    let dir = TempDir::with_prefix("portcullis-proxies-").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Tenants `acme` with policies `gate`, which does what the path says below `/do/`, and `roles`; and `globex`, whose `gate` lets GET
/// through and nothing else. With these tables of listeners.
pub(crate) fn site(listeners: &str) -> Site {
    site_with("", listeners)
}

/// The same with more lines of `[gateway]`.
pub(crate) fn site_with(gateway: &str, listeners: &str) -> Site {
    let mut site = Site::new().class("web", "");
    // Whoever is late is so by the listener's limit, or by the proxy's.
    let limits = Limits { deadline_us: 60_000_000, ..Limits::default() };
    for (tenant, policies) in [
        ("acme", &[("gate", "hostile/selective"), ("roles", "template/rego/policy")][..]),
        ("globex", &[("gate", "since-0.1")][..]),
    ] {
        for (policy, made_of) in policies {
            let (source, name) = (component(made_of), support::policy(policy));
            let draft = built(made_of).draft(source, support::tenant(tenant), name, 1, limits);
            write_signed(draft, &site.bundle(tenant, policy), &site.key);
        }
        let names: Vec<&str> = policies.iter().map(|(policy, _)| *policy).collect();
        writeln!(
            site.tables,
            "[tenant.{tenant}]\nclass = \"web\"\npolicies = {names:?}\nuids = [{}]\n\
             max_deadline = \"60s\"\ndefault_deadline = \"2s\"\n",
            nix::unistd::geteuid()
        )
        .unwrap();
    }
    let identity =
        if is_root() { format!("uid = {GATEWAY_UID}\ngid = {GATEWAY_UID}\n") } else { String::new() };
    writeln!(site.tables, "[gateway]\n{identity}{gateway}\n{listeners}").unwrap();
    site
}

/// The process of that role that serves.
pub(crate) fn pid(service: &Service, role: &str) -> Pid {
    let processes = service.processes();
    let found = processes
        .iter()
        .find(|process| process.role == role && process.state == ProcessState::Serving)
        .unwrap_or_else(|| panic!("no {role} serves: {processes:?}"));
    Pid::from_raw(found.pid)
}

pub(crate) struct Stage {
    pub(crate) door: &'static Door,
    service: Option<Service>,
    pub(crate) shop: Shop,
    pub(crate) address: Address,
    pub(crate) proxy: Running,
    _dir: TempDir,
}

impl Stage {
    pub(crate) fn set(door: &'static Door) -> Self {
        let (dir, shop) = (open_directory(), Shop::open());
        let ports = Ports::before(&shop);
        let listeners = door.render("gateway.toml", dir.path(), ports);
        let service = site(&listeners).start();
        let proxy = start(door, dir.path(), ports);
        Self { door, service: Some(service), shop, address: Address::Tcp(ports.web), proxy, _dir: dir }
    }

    pub(crate) fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Option<Response> {
        self.address.get(path, &[])
    }

    /// To whoever serves in that role; its predecessor may be on its way out.
    pub(crate) fn signal(&self, role: &str, signal: Signal) -> Pid {
        let patience = Instant::now() + PATIENCE;
        loop {
            let pid = pid(self.service(), role);
            match kill(pid, signal) {
                Ok(()) => return pid,
                Err(error) => assert!(Instant::now() < patience, "signal {role}: {error}"),
            }
        }
    }

    /// Stops the service in order, and starts it again from the same directory.
    pub(crate) fn restart(&mut self) {
        let site = self.service.take().unwrap().into_site();
        // In order: nobody does what its profile forbids, not even at the end.
        let said = fs::read_to_string(site.path("log")).unwrap();
        assert!(!said.contains("SIGSYS"), "{said}");
        self.service = Some(site.start());
    }
}

/// Starts the proxy with the files of its example, and waits until it listens.
pub(crate) fn start(door: &Door, dir: &Path, ports: Ports) -> Running {
    start_with(door, dir, ports, str::to_owned)
}

/// The same with another configuration: `edit` makes it of the example's first file.
pub(crate) fn start_with(
    door: &Door,
    dir: &Path,
    ports: Ports,
    edit: impl FnOnce(&str) -> String,
) -> Running {
    for file in door.files {
        fs::write(dir.join(file), door.render(file, dir, ports)).unwrap();
    }
    let first = dir.join(door.files[0]);
    let edited = edit(&fs::read_to_string(&first).unwrap());
    fs::write(first, edited).unwrap();
    let mut proxy = Running::start(door.name, door.command(dir), &dir.join("log"));
    proxy.until(|| std::net::TcpStream::connect(("127.0.0.1", ports.web)).is_ok());
    let knows = || Address::Tcp(ports.web).get("/", &[]).is_some_and(|response| response.status != 404);
    if door.learns_late {
        proxy.until(knows);
    }
    proxy
}

/// Replaces what has to be there.
pub(crate) fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in {text}");
    text.replace(from, to)
}
