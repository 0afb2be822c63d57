//! A registry and builders that do as they are told: the registry by the trust policy, one order a line, a builder by the
//! name of the policy in its job.
//!
//! | order | |
//! |---|---|
//! | `build CLASS POLICY` | has that done and surveys when it has ended; what the supervisor says of it is why it refuses |
//! | `refuse WHY` | refuses |
//! | `die` | ends instead of answering |
//! | `stale` | refuses if it is what the registry is started with, not if it is told later |
//! | `news` | says that something has changed, once, after it surveyed |
//! | `twice`, `serial`, `flood`, `no-key`, `ready` | misbehaves |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use portcullis::artifact::{Ceiling, Digest};
use portcullis::bundle::PolicyConfig;
use portcullis::decision::{PolicyName, Tenant, TrustClass};
use portcullis::sandbox::{Given, Role, check_inherited, install_panic_hook, settle_allocator};
use portcullis::wire::channel::{Channel, Received};
use portcullis::wire::control::{
    BuilderAssignment, CONTROL_MAX, FromChild, Ready, RegistryAssignment, ToChild, fd,
};
use portcullis::wire::frame;
use portcullis::wire::job::{JOB_MAX, Job, Report};
use portcullis::wire::supply::{FromRegistry, SUPPLY_MAX, ToRegistry};

use crate::children::{Control, assignment, exit, inherited, seal};

pub(crate) const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n";
/// A registry with this in its state does not start.
pub(crate) const BROKEN: &str = "broken";
/// What the service gives out at one time.
const AT_ONCE: usize = 2;

/// Waits until one of them has something; says which have.
fn wait(descriptors: &[BorrowedFd<'_>]) -> Vec<bool> {
    let mut watched: Vec<_> = descriptors.iter().map(|one| PollFd::new(*one, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => return watched.iter().map(|one| one.any().unwrap_or(false)).collect(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

struct Registry {
    control: Control,
    orders: Vec<String>,
    serial: u64,
    /// What is being built: without a channel until the builder has come.
    jobs: BTreeMap<u64, (String, Option<Channel<Job, Report>>)>,
    /// Why it will refuse.
    refused: Vec<String>,
    surveying: bool,
    told_news: bool,
    /// Kept open: their end is the registry's.
    supplies: Vec<Channel<FromRegistry, ToRegistry>>,
}

pub(crate) fn registry() -> Infallible {
    install_panic_hook(Role::Registry);
    settle_allocator();
    check_inherited(Role::Registry).expect("what was agreed on");
    let control = Control::new(inherited(fd::CONTROL), CONTROL_MAX);
    let assignment: RegistryAssignment = assignment();
    let given =
        Given::check(Role::Registry, assignment.uid, assignment.gid, assignment.isolation).expect("given");
    if std::path::Path::new(&assignment.state).join(BROKEN).exists() {
        control.send(&FromChild::Failed { why: "the state is broken".into() }, None).expect("send");
        exit(1);
    }
    let _sealed = seal(given, &control);
    let mut registry = Registry {
        control,
        orders: orders(&assignment),
        serial: 0,
        jobs: BTreeMap::new(),
        refused: Vec::new(),
        surveying: false,
        told_news: false,
        supplies: Vec::new(),
    };
    let mut buffer = Vec::new();
    loop {
        let channels = registry.jobs.values().filter_map(|(_, channel)| channel.as_ref());
        let watched: Vec<_> =
            std::iter::once(registry.control.as_fd()).chain(channels.map(AsFd::as_fd)).collect();
        wait(&watched);
        registry.hear_builders(&mut buffer);
        registry.heed(&mut buffer);
        registry.answer();
    }
}

fn orders(assignment: &RegistryAssignment) -> Vec<String> {
    assignment.trust.text.lines().map(ToOwned::to_owned).collect()
}

impl Registry {
    fn say(&self, message: &FromChild) {
        self.control.send(message, None).expect("send");
    }

    fn ordered(&self, what: &str) -> bool {
        self.orders.iter().any(|order| order == what)
    }

    fn heed(&mut self, buffer: &mut Vec<u8>) {
        match self.control.receive(buffer).expect("receive") {
            Received::Message(ToChild::Serve, None) => {
                if self.ordered("stale") {
                    self.refused.push("expired".to_owned());
                }
                self.survey();
            }
            Received::Message(ToChild::Reassign, Some(memfd)) => {
                let mut bytes = vec![0; 1 << 16];
                let length = nix::sys::uio::pread(&memfd, &mut bytes, 0).expect("read");
                self.orders = orders(&frame::decode(&bytes[..length]).expect("decode"));
                self.survey();
            }
            Received::Message(ToChild::Ping { nonce }, None) => self.say(&FromChild::Pong { nonce }),
            Received::Message(ToChild::Supply { .. }, Some(worker)) => {
                let worker = Channel::new(worker, SUPPLY_MAX);
                // It may have been ended by now.
                worker.send(&FromRegistry::Complete, None).ok();
                self.supplies.push(worker);
            }
            Received::Message(ToChild::Builder { serial }, Some(builder)) => {
                let builder = Channel::<Job, Report>::new(builder, JOB_MAX);
                let (policy, channel) = self.jobs.get_mut(&serial).expect("asked for");
                let (tenant, policy) = (Tenant::new("acme").expect("name"), PolicyName::new(policy));
                let source = Digest::of(b"source");
                let manifest = PolicyConfig::plain(tenant, policy.expect("name"), 1, source);
                let job = Job::Compile { manifest: Box::new(manifest), ceiling: Ceiling::MOST };
                builder.send(&job, None).expect("send");
                *channel = Some(builder);
                if self.jobs.values().filter(|(_, channel)| channel.is_some()).count() > AT_ONCE {
                    self.refused.push("too many builders at once".to_owned());
                }
            }
            Received::Message(ToChild::NoBuilder { serial, why }, None) => {
                let (policy, _) = self.jobs.remove(&serial).expect("asked for");
                self.refused.push(format!("{policy}: {why}"));
            }
            Received::Message(ToChild::Drain, _) | Received::End => exit(0),
            Received::Nothing => {}
            Received::Message(other, descriptor) => panic!("{other:?} with {descriptor:?}"),
        }
    }

    fn survey(&mut self) {
        self.surveying = true;
        for order in self.orders.clone() {
            let words: Vec<_> = order.split(' ').collect();
            match words[..] {
                ["build", class, policy] => {
                    self.serial += 1;
                    self.jobs.insert(self.serial, (policy.to_owned(), None));
                    let class = TrustClass::new(class).expect("name");
                    self.say(&FromChild::Build { serial: self.serial, class });
                }
                ["refuse", ..] => self.refused.push(order["refuse ".len()..].to_owned()),
                ["die"] => exit(3),
                ["serial"] => {
                    for serial in [2, 1] {
                        self.say(&FromChild::Build { serial, class: TrustClass::new("a").expect("name") });
                    }
                }
                ["flood"] => {
                    for _ in 0..1000 {
                        self.control.send(&FromChild::Changed, None).ok();
                    }
                    poll(&mut [], PollTimeout::NONE).expect("poll");
                }
                ["no-key"] => self.say(&FromChild::Surveyed { host_key: "none".into(), refused: None }),
                ["ready"] => self.say(&FromChild::Ready(Ready {
                    loaded: 0,
                    refused: 0,
                    pagemap_scan: false,
                    landlock_abi: 7,
                    landlock_proven_threads: 1,
                })),
                _ => {}
            }
        }
    }

    /// A report is the end of a job; the end without one will be explained.
    fn hear_builders(&mut self, buffer: &mut Vec<u8>) {
        self.jobs.retain(|_, (_, channel)| {
            let Some(builder) = channel else { return true };
            match builder.receive(buffer).expect("receive") {
                Received::Message(Report::Sound, None) => return false,
                Received::End => *channel = None,
                Received::Nothing => {}
                other => panic!("{other:?}"),
            }
            true
        });
    }

    fn answer(&mut self) {
        if !self.surveying || !self.jobs.is_empty() {
            return;
        }
        self.surveying = false;
        let refused = std::mem::take(&mut self.refused);
        let refused = (!refused.is_empty()).then(|| refused.join("; "));
        let surveyed = FromChild::Surveyed { host_key: KEY.to_owned(), refused };
        self.say(&surveyed);
        if self.ordered("twice") {
            self.say(&surveyed);
        }
        if self.ordered("news") && !self.told_news {
            self.told_news = true;
            self.say(&FromChild::Changed);
        }
    }
}

pub(crate) fn builder() -> Infallible {
    install_panic_hook(Role::Builder);
    settle_allocator();
    check_inherited(Role::Builder).expect("what was agreed on");
    let control = Control::new(inherited(fd::CONTROL), CONTROL_MAX);
    let assignment: BuilderAssignment = assignment();
    let registry = Channel::<Report, Job>::new(inherited(fd::FIRST), JOB_MAX);
    let given =
        Given::check(Role::Builder, assignment.uid, assignment.gid, assignment.isolation).expect("given");
    let _sealed = seal(given, &control);
    let mut buffer = Vec::new();
    loop {
        let has = wait(&[control.as_fd(), registry.as_fd()]);
        if has[0] && !matches!(control.receive(&mut buffer), Ok(Received::Message(ToChild::Serve, None))) {
            exit(0);
        }
        if has[1] {
            match registry.receive(&mut buffer).expect("receive") {
                Received::Message(Job::Compile { manifest, .. }, None) => {
                    work(manifest.policy.as_str());
                    registry.send(&Report::Sound, None).expect("report");
                }
                other => panic!("{other:?}"),
            }
            exit(0);
        }
    }
}

fn work(policy: &str) {
    match policy {
        "sleep" => {
            poll(&mut [], PollTimeout::NONE).expect("poll");
        }
        "burn" => {
            let mut n = 0_u64;
            loop {
                n = std::hint::black_box(n.wrapping_add(1));
            }
        }
        "eat" => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        "write" => {
            let file = memfd_create(c"portcullis-policy", MFdFlags::MFD_CLOEXEC).expect("memfd");
            while nix::unistd::write(&file, &[0; 1 << 16]).is_ok() {}
        }
        "crash" => exit(7),
        _ => {}
    }
}
