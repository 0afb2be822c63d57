use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::rc::Rc;

use tempfile::TempDir;

use super::disk::Step;
use super::*;
use crate::artifact::Limits;
use crate::bundle::PolicyConfig;
use crate::decision::{PolicyName, Tenant};
use crate::ledger::{Code, Entry, HOST_KEY, Origin, Target, What};
use crate::signature::Evidence;

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

fn content(version: u64) -> Vec<u8> {
    format!("bundle of version {version}").into_bytes()
}

fn bundle(version: u64) -> Digest {
    Digest::of(&content(version))
}

fn entry(version: u64) -> Entry {
    let digest = bundle(version);
    let config = PolicyConfig {
        policy: PolicyName::new("gate").unwrap(),
        tenant: Tenant::new("acme").unwrap(),
        version,
        world: "w".into(),
        imports: vec![],
        exports: vec![],
        limits: Limits::default(),
        metrics: vec![],
        data: vec![],
        confidential: None,
        source: digest,
        compiled: vec![],
        rego: None,
        prepared: None,
    };
    let code = Code { cwasm: digest, origin: Origin::Bundle, wasmtime: "1".into(), engine: digest };
    Entry {
        bundle: digest,
        config,
        code,
        evidence: Evidence::default(),
        keys: digest,
        attached: vec![],
        order: None,
        since: 7,
    }
}

fn floor(table: &Table) -> u64 {
    table.policies.iter().map(|record| record.floor).max().unwrap_or(0)
}

/// Makes `version` the active one, without any before it.
fn activate(state: &mut State, version: u64) -> Result<(), StateError> {
    state.keep(bundle(version), |file| file.write_all(&content(version)))?;
    let mut table = state.table().clone();
    let entry = entry(version);
    let record = table.record_mut(&entry.config.tenant.clone(), &entry.config.policy.clone()).unwrap();
    record.floor = record.floor.max(version);
    record.active = Some(entry);
    table.latest += 1;
    state.commit(table, &BTreeSet::new())
}

fn active(state: &State) -> Option<u64> {
    state.table().policies.first().and_then(|record| record.active.as_ref()).map(Entry::version)
}

/// Everything a state names is there and is what it was.
fn is_whole(state: &State) {
    for entry in state.table().entries() {
        let kept = state.disk.read(&bundle_name(entry.bundle), 1 << 20).unwrap();
        assert_eq!(kept, content(entry.version()));
    }
}

// ---- a disk that loses what was not brought to it ----

type Inode = usize;

/// What was done to the directory, step by step, as a film that can be cut anywhere.
#[derive(Debug, Clone)]
enum Taken {
    Wrote(String, Vec<u8>),
    Synced(String),
    Renamed(String, String),
    Removed(String),
    MadeDirectory(String),
    SyncedDirectory(String),
}

/// A change of names that the disk may or may not have when power fails.
#[derive(Debug, Clone)]
enum Change {
    Link(String, Inode),
    Move(String, String, Inode),
    Unlink(String),
    Directory(String),
}

impl Change {
    /// On the disk once these were brought to it.
    fn directories(&self) -> BTreeSet<String> {
        let of = |name: &String| name.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned());
        match self {
            Self::Link(name, _) | Self::Unlink(name) | Self::Directory(name) => [of(name)].into(),
            Self::Move(from, to, _) => [of(from), of(to)].into(),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Image {
    names: BTreeMap<String, Inode>,
    directories: BTreeSet<String>,
}

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Link(name, inode) => drop(self.names.insert(name.clone(), *inode)),
            Change::Move(from, to, inode) => {
                self.names.remove(from);
                self.names.insert(to.clone(), *inode);
            }
            Change::Unlink(name) => drop(self.names.remove(name)),
            Change::Directory(name) => drop(self.directories.insert(name.clone())),
        }
    }
}

/// Records what is done to a directory.
fn film(state_path: &Path, disk: &Disk) -> Rc<RefCell<Vec<Taken>>> {
    let taken = Rc::new(RefCell::new(Vec::new()));
    let (film, path) = (Rc::clone(&taken), state_path.to_owned());
    disk.after_each_step(Some(Box::new(move |step| {
        let step = match *step {
            Step::Wrote(name) => Taken::Wrote(name.into(), fs::read(path.join(name)).unwrap()),
            Step::Synced(name) => Taken::Synced(name.into()),
            Step::Renamed(from, to) => Taken::Renamed(from.into(), to.into()),
            Step::Removed(name) => Taken::Removed(name.into()),
            Step::MadeDirectory(name) => Taken::MadeDirectory(name.into()),
            Step::SyncedDirectory(name) => Taken::SyncedDirectory(name.into()),
        };
        film.borrow_mut().push(step);
        Ok(())
    })));
    taken
}

fn snapshot(path: &Path) -> (Image, Vec<Vec<u8>>) {
    let (mut image, mut contents) = (Image::default(), Vec::new());
    let mut walk = vec![String::new()];
    while let Some(below) = walk.pop() {
        for found in fs::read_dir(path.join(&below)).unwrap() {
            let found = found.unwrap();
            let name = found.file_name().into_string().unwrap();
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            if found.file_type().unwrap().is_dir() {
                image.directories.insert(name.clone());
                walk.push(name);
            } else {
                image.names.insert(name, contents.len());
                contents.push(fs::read(found.path()).unwrap());
            }
        }
    }
    (image, contents)
}

/// Every disk there may be when power fails after some step: contents that were not brought to the disk are lost, whole or
/// in part; names that were not are there or not, in every combination. Returns how many there were.
fn every_power_cut(
    (before, contents): (Image, Vec<Vec<u8>>),
    film: &[Taken],
    mut check: impl FnMut(&Path, &str),
) -> usize {
    let mut looked_at = 0;
    for cut in 0..=film.len() {
        let (mut durable, mut names) = (before.clone(), before.names.clone());
        let mut contents = contents.clone();
        let mut synced: Vec<bool> = vec![true; contents.len()];
        let mut pending: Vec<(Change, BTreeSet<String>)> = Vec::new();
        for step in &film[..cut] {
            let change = match step {
                Taken::Wrote(name, bytes) => {
                    names.insert(name.clone(), contents.len());
                    contents.push(bytes.clone());
                    synced.push(false);
                    Some(Change::Link(name.clone(), contents.len() - 1))
                }
                Taken::Synced(name) => {
                    synced[names[name]] = true;
                    None
                }
                Taken::Renamed(from, to) => {
                    let inode = names.remove(from).unwrap();
                    names.insert(to.clone(), inode);
                    Some(Change::Move(from.clone(), to.clone(), inode))
                }
                Taken::Removed(name) => {
                    names.remove(name);
                    Some(Change::Unlink(name.clone()))
                }
                Taken::MadeDirectory(name) => Some(Change::Directory(name.clone())),
                Taken::SyncedDirectory(directory) => {
                    for (_, open) in &mut pending {
                        open.remove(directory);
                    }
                    // In order: what is on the disk for certain is taken out of what is not.
                    let (done, left) = pending.into_iter().partition(|(_, open)| open.is_empty());
                    pending = left;
                    let done: Vec<(Change, BTreeSet<String>)> = done;
                    done.iter().for_each(|(change, _)| durable.apply(change));
                    None
                }
            };
            if let Some(change) = change {
                let open = change.directories();
                pending.push((change, open));
            }
        }
        assert!(pending.len() <= 8, "{pending:?}: too many names at the mercy of the disk");
        for chosen in 0..1_u32 << pending.len() {
            for part in [0, 1, 2] {
                let mut image = durable.clone();
                for (at, (change, _)) in pending.iter().enumerate() {
                    if chosen >> at & 1 == 1 {
                        image.apply(change);
                    }
                }
                let disk = directory();
                for name in &image.directories {
                    fs::DirBuilder::new().mode(0o700).create(disk.path().join(name)).unwrap();
                }
                let mut lost = false;
                for (name, inode) in &image.names {
                    let whole = &contents[*inode];
                    let kept = if synced[*inode] { whole.len() } else { whole.len() * part / 2 };
                    lost |= kept < whole.len();
                    let path = disk.path().join(name);
                    if !path.parent().unwrap().exists() {
                        continue;
                    }
                    let mut file =
                        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
                    file.write_all(&whole[..kept]).unwrap();
                }
                looked_at += 1;
                check(
                    disk.path(),
                    &format!("after {:?}, names {chosen:b}, part {part}", &film[..cut].last()),
                );
                if !lost && part == 0 && !synced.contains(&false) {
                    break;
                }
            }
        }
    }
    looked_at
}

#[test]
fn a_power_cut_leaves_the_old_state_or_the_new_one() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 1).unwrap();
    let before = snapshot(home.path());
    let film = film(home.path(), &state.disk);
    activate(&mut state, 2).unwrap();
    is_whole(&state);
    let film = film.borrow().clone();
    assert!(film.len() > 8, "{film:?}");

    let mut seen = BTreeMap::new();
    let looked_at = every_power_cut(before, &film, |path, when| {
        let state = State::open(path).unwrap_or_else(|error| panic!("{when}: {error}"));
        is_whole(&state);
        assert_eq!(Some(floor(state.table())), active(&state), "{when}: never mixed");
        *seen.entry(active(&state).unwrap()).or_insert(0) += 1;
    });
    // Both are met, or the cuts were at the wrong places.
    assert!(seen.len() == 2 && seen.contains_key(&1) && seen.contains_key(&2), "{seen:?}");
    println!("{looked_at} disks after a power cut: {seen:?}");
}

/// The same cuts through a commit that writes the table in place, as one would without knowing better.
#[test]
fn the_power_cuts_find_what_is_not_brought_to_the_disk() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 1).unwrap();
    let before = snapshot(home.path());
    let film = film(home.path(), &state.disk);
    activate(&mut state, 2).unwrap();
    let careless: Vec<Taken> =
        film.borrow().iter().filter(|step| !matches!(step, Taken::Synced(_))).cloned().collect();
    let mut broken = 0;
    every_power_cut(before, &careless, |path, _| broken += usize::from(State::open(path).is_err()));
    assert!(broken > 0, "a table that was never synced is lost in some of them");
}

#[test]
fn a_power_cut_in_the_first_start_is_a_first_start_again() {
    let home = directory();
    let disk = Disk::open(home.path()).unwrap();
    let before = snapshot(home.path());
    let film = film(home.path(), &disk);
    let state = begin::open(disk).unwrap();
    assert_eq!(state.table().revision, 0);
    let film = film.borrow().clone();
    let looked_at = every_power_cut(before, &film, |path, when| {
        let mut state = State::open(path).unwrap_or_else(|error| panic!("{when}: {error}"));
        activate(&mut state, 1).unwrap_or_else(|error| panic!("{when}: {error}"));
        drop(state);
        assert_eq!(active(&State::open(path).unwrap()), Some(1), "{when}");
    });
    assert!(looked_at > 20, "{looked_at}");
}

#[test]
fn a_power_cut_while_it_begins_anew_does_not_lose_the_order() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 5).unwrap();
    drop(state);
    fs::write(home.path().join(TABLE), b"broken\n").unwrap();
    let order = Order::Recover { reason: "the disk died".into() };
    let name = format!("{ORDERS}/{}", order_name(1));
    fs::write(home.path().join(&name), order.to_bytes().unwrap()).unwrap();
    let disk = Disk::open(home.path()).unwrap();
    let before = snapshot(home.path());
    let film = film(home.path(), &disk);
    begin::open(disk).unwrap();
    let film = film.borrow().clone();
    let looked_at = every_power_cut(before, &film, |path, when| {
        let state = State::open(path).unwrap_or_else(|error| panic!("{when}: {error}"));
        let history = &state.table().history;
        assert!(
            history.iter().any(|event| event.what == What::Recovered && event.order == Some(1)),
            "{when}"
        );
        assert_eq!((state.table().orders, active(&state)), (1, None), "{when}");
        assert!(state.orders().unwrap().is_empty(), "{when}");
    });
    assert!(looked_at > 20, "{looked_at}");
}

#[test]
fn a_disk_that_fails_at_any_step_leaves_the_old_table() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 1).unwrap();
    let steps = {
        let film = film(home.path(), &state.disk);
        activate(&mut state, 2).unwrap();
        film.borrow().len()
    };
    let mut refused = 0;
    for failing in 0..steps {
        let version = active(&state).unwrap();
        let mut left = failing;
        state.disk.after_each_step(Some(Box::new(move |_| {
            left = left.checked_sub(1).ok_or_else(|| io::Error::from(ErrorKind::StorageFull))?;
            Ok(())
        })));
        let result = activate(&mut state, version + 1);
        state.disk.after_each_step(None);
        if let Err(error) = result {
            refused += 1;
            let text = error.to_string();
            assert!(text.starts_with("state: ") && text.contains("no storage space"), "{text}");
            assert_eq!(active(&state), Some(version), "memory, step {failing}");
            // The name may have been changed and not been brought to the disk: then either may be there.
            let there = active(&State::open(home.path()).unwrap()).unwrap();
            assert!(there == version || there == version + 1, "step {failing}: {there}");
        }
        activate(&mut state, version + 2).unwrap();
        is_whole(&state);
        assert_eq!(active(&State::open(home.path()).unwrap()), Some(version + 2));
    }
    assert!(refused > 5, "{refused} of {steps}");
}

#[test]
fn a_full_disk_leaves_the_old_table() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting a small file system takes root; run the tests with sudo");
        return;
    }
    // In a mount namespace of its own, so that nothing is left behind; unshare is per thread.
    std::thread::spawn(|| {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let home = directory();
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), home.path(), Some("tmpfs"), flags, Some("size=64k,mode=0700")).unwrap();
        let mut state = State::open(home.path()).unwrap();
        activate(&mut state, 1).unwrap();
        let error = state.keep(bundle(2), |file| file.write_all(&vec![7; 1 << 20])).unwrap_err();
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert!(!state.has(bundle(2)), "nothing half written is taken for a bundle");
        fs::write(home.path().join("ballast"), vec![0; 30 << 10]).unwrap();
        while fs::OpenOptions::new()
            .append(true)
            .open(home.path().join("ballast"))
            .and_then(|mut file| file.write_all(&[0; 512]))
            .is_ok()
        {}
        let error = activate(&mut state, 2).unwrap_err();
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert_eq!(active(&state), Some(1));
        assert_eq!(active(&State::open(home.path()).unwrap()), Some(1));
        // Control: with room it goes.
        fs::remove_file(home.path().join("ballast")).unwrap();
        activate(&mut state, 2).unwrap();
        // A file system that became read-only is the same.
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(None::<&str>, home.path(), None::<&str>, flags, None::<&str>).unwrap();
        let error = activate(&mut state, 3).unwrap_err();
        assert!(error.to_string().contains("Read-only file system"), "{error}");
        assert_eq!(active(&state), Some(2));
        assert_eq!(active(&State::open(home.path()).unwrap()), Some(2), "it can be read");
        // The state holds its directory.
        nix::mount::umount2(home.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn every_changed_byte_of_the_table_is_refused() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 1).unwrap();
    let path = home.path().join(TABLE);
    let bytes = fs::read(&path).unwrap();
    let key = state.key().public_key();
    Table::from_bytes(&bytes, &key).expect("control");
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80, 0x20] {
            let mut changed = bytes.clone();
            changed[at] ^= bit;
            assert!(Table::from_bytes(&changed, &key).is_err(), "byte {at} ^ {bit:#x}");
        }
    }
    for end in 0..bytes.len() {
        assert!(Table::from_bytes(&bytes[..end], &key).is_err(), "cut at {end}");
    }
    assert!(Table::from_bytes(&[bytes.as_slice(), b"\n"].concat(), &key).is_err());
    println!("{} changes of {} bytes refused", bytes.len() * 4, bytes.len());
}

/// Breaks a good state, which must then be refused with a sentence that has `says` in it and the way out.
fn refused(breaks: impl FnOnce(&Path), says: &str) {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 5).unwrap();
    drop(state);
    State::open(home.path()).expect("control");
    breaks(home.path());
    let error = State::open(home.path()).expect_err(says).to_string();
    assert!(error.contains(says), "{error}");
    if error.contains("table") || error.contains("host.key") {
        let hints = ["portcullis trust recover", "chmod", "chown", "put the file itself there"];
        let hint = hints.iter().any(|hint| error.contains(hint));
        assert!(hint, "{error}");
    }
    // Again the same: it does not heal by being looked at.
    State::open(home.path()).expect_err("still broken");
}

#[test]
fn a_lost_or_corrupt_state_is_not_begun_anew() {
    refused(|home| fs::remove_file(home.join(TABLE)).unwrap(), "table.json\" is not there");
    refused(|home| fs::remove_file(home.join(HOST_KEY)).unwrap(), "host.key\" is not there");
    refused(|home| fs::write(home.join(TABLE), b"").unwrap(), "cut off");
    refused(
        |home| {
            fs::remove_file(home.join(TABLE)).unwrap();
            fs::remove_file(home.join(HOST_KEY)).unwrap();
        },
        "host.key\" is not there",
    );
    refused(|home| fs::write(home.join(HOST_KEY), b"x").unwrap(), "expected PEM");
    refused(
        |home| {
            let other = directory();
            State::open(other.path()).unwrap();
            fs::copy(other.path().join(HOST_KEY), home.join(HOST_KEY)).unwrap();
        },
        "not by this host's key",
    );
    refused(
        |home| {
            let other = directory();
            State::open(other.path()).unwrap();
            fs::copy(other.path().join(TABLE), home.join(TABLE)).unwrap();
        },
        "not by this host's key",
    );
}

#[test]
fn a_directory_of_others_is_not_used() {
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    refused(|home| chmod(home, 0o750), "mode 0750, expected 0700");
    refused(|home| chmod(&home.join(HOST_KEY), 0o640), "mode 0640, expected 0600");
    refused(
        |home| {
            fs::rename(home.join(TABLE), home.join("t")).unwrap();
            std::os::unix::fs::symlink("t", home.join(TABLE)).unwrap();
        },
        "table.json\": is not a regular file",
    );
    refused(
        |home| fs::hard_link(home.join(TABLE), home.join("t")).unwrap(),
        "not a regular file of one name",
    );
    if nix::unistd::geteuid().is_root() {
        let chown = |path: &Path| std::os::unix::fs::chown(path, Some(4711), None).unwrap();
        refused(|home| chown(home), "owned by uid 4711, expected 0");
        refused(|home| chown(&home.join(TABLE)), "owned by uid 4711, expected 0");
    }
}

#[test]
fn beginning_anew_takes_an_operators_word_and_is_written_down() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 5).unwrap();
    let key = state.key().public_key();
    drop(state);
    fs::write(home.path().join(TABLE), b"broken").unwrap();
    State::open(home.path()).expect_err("control: not by itself");
    let order = Order::Rollback {
        tenant: Tenant::new("acme").unwrap(),
        policy: PolicyName::new("gate").unwrap(),
        to: Target::Version(1),
        reason: String::new(),
    };
    crate::ledger::place(home.path(), &order).unwrap();
    State::open(home.path()).expect_err("control: not by another order");
    let order = Order::Recover { reason: "backup was lost".into() };
    assert_eq!(crate::ledger::place(home.path(), &order).unwrap(), 2);

    let mut state = State::open(home.path()).unwrap();
    assert_eq!(state.key().public_key(), key, "a good key stays");
    assert_eq!((floor(state.table()), state.table().orders), (0, 2));
    let event = &state.table().history[0];
    assert_eq!((event.what, event.why.as_str(), event.order), (What::Recovered, "backup was lost", Some(2)));
    assert!(!state.has(bundle(5)), "what only the lost table named is gone");
    assert_eq!(
        fs::read(home.path().join(format!("lost-{TABLE}"))).unwrap(),
        b"broken",
        "for whoever looks into it"
    );
    assert!(state.orders().unwrap().is_empty(), "carried out once");
    activate(&mut state, 1).unwrap();
    assert_eq!(crate::ledger::read(home.path()).unwrap(), *state.table());
}

#[test]
fn what_no_table_names_is_removed_and_what_one_names_is_not() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 1).unwrap();
    state.keep(bundle(9), |file| file.write_all(&content(9))).unwrap();
    assert!(state.has(bundle(9)) && state.has(bundle(1)));
    activate(&mut state, 2).unwrap();
    assert!(state.has(bundle(2)) && !state.has(bundle(9)) && !state.has(bundle(1)));
    // A table that names what is not there is never written.
    let mut table = state.table().clone();
    table.policies[0].active = Some(entry(3));
    table.policies[0].floor = 3;
    let error = state.commit(table, &BTreeSet::new()).unwrap_err();
    assert!(matches!(error, StateError::NotKept(digest) if digest == bundle(3)), "{error}");
    assert_eq!(active(&state), Some(2));
}

#[test]
fn no_table_lowers_what_only_grows() {
    let home = directory();
    let mut state = State::open(home.path()).unwrap();
    activate(&mut state, 5).unwrap();
    let good = state.table().clone();
    type Lower = fn(&mut Table);
    let lowering: [(&str, Lower); 4] = [
        ("the floor of policy \"gate\" of tenant \"acme\"", |table| table.policies[0].floor = 4),
        ("the floor of policy", |table| table.policies.clear()),
        ("the time", |table| table.latest -= 1),
        ("the version of the revocation list", |table| table.revocations = None),
    ];
    let mut known = good.clone();
    known.revocations = Some(crate::ledger::KnownRevocations { version: 3, signed: "x".into() });
    state.commit(known.clone(), &BTreeSet::new()).unwrap();
    for (what, lower) in lowering {
        let mut table = known.clone();
        lower(&mut table);
        let error = state.commit(table, &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("never happens"), "{error}");
    }
    state.commit(known, &BTreeSet::new()).expect("control");
}

#[test]
fn orders_are_read_by_number_and_bad_ones_are_named() {
    let home = directory();
    let state = State::open(home.path()).unwrap();
    let order = Order::Recover { reason: "a".into() };
    assert_eq!(crate::ledger::place(home.path(), &order).unwrap(), 1);
    assert_eq!(crate::ledger::place(home.path(), &order).unwrap(), 2);
    let orders = home.path().join(ORDERS);
    fs::write(orders.join(order_name(7)), b"{}\n").unwrap();
    fs::write(orders.join("readme.txt"), b"").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", orders.join(order_name(8))).unwrap();
    let found = state.orders().unwrap();
    let numbers: Vec<_> = found.iter().map(|found| (found.number, found.order.is_ok())).collect();
    assert_eq!(numbers, [(1, true), (2, true), (7, false), (8, false)]);
    assert_eq!(crate::ledger::place(home.path(), &order).unwrap(), 9, "no number twice");
}

#[test]
fn a_flood_of_refusals_does_not_wash_an_activation_out_of_the_history() {
    let home = directory();
    let state = State::open(home.path()).unwrap();
    let mut table = state.table().clone();
    let event = |what, why: String| crate::ledger::Event {
        at: 1,
        what,
        tenant: None,
        policy: None,
        bundle: None,
        version: None,
        order: None,
        why,
    };
    table.remember(event(What::Activated, "first".into()));
    for number in 0..2 * crate::ledger::HISTORY_MAX {
        table.remember(event(What::HeldBack, number.to_string()));
    }
    assert_eq!(table.history.len(), crate::ledger::HISTORY_MAX);
    assert_eq!(table.history[0].why, "first");
    for _ in 0..crate::ledger::HISTORY_MAX {
        table.remember(event(What::Activated, "later".into()));
    }
    assert!(table.history.iter().all(|event| event.why == "later"), "the oldest go in the end");
}
