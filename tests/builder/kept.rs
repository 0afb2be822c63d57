//! The cache: what is not whole is noticed before it is used, removed and told of; and a disk that does not take any more is
//! a refusal.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use portcullis::artifact::{Digest, SealedBytes};
use portcullis::wire::control::BuildLimits;
use portcullis::wire::job::{Job, Report};

use crate::process::{Builder, Class, LIMITS, compile, give, identity};
use crate::{component, sealed};

/// A class whose cache has the code of `hash`.
fn with_code() -> (Class, SealedBytes, Digest, Vec<u8>) {
    let class = Class::new();
    let source = sealed(&component("hash"));
    let answers = class.ask(&compile(), &[&source]);
    let Report::Compiled { cwasm } = answers[0].report else { panic!("{answers:?}") };
    let code = fs::read(class.entry(cwasm)).unwrap();
    (class, source, cwasm, code)
}

fn recall(class: &Class, cwasm: Digest) -> Report {
    let mut answers = class.ask(&Job::Recall { cwasm: vec![cwasm] }, &[]);
    assert_eq!(answers.len(), 1);
    answers.remove(0).report
}

/// Writes an entry as a builder would have.
fn put(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    give(path);
}

#[test]
fn what_is_not_whole_is_noticed_removed_told_of_and_compiled_again() {
    let (class, source, cwasm, code) = with_code();
    let entry = class.entry(cwasm);
    let elsewhere = class.dir.path().join("elsewhere");
    put(&elsewhere, &code);
    type Damage<'a> = (&'a str, &'a str, Box<dyn Fn() + 'a>);
    let flip = |at: usize| {
        let (entry, mut changed) = (entry.clone(), code.clone());
        changed[at] ^= 0x10;
        Box::new(move || put(&entry, &changed))
    };
    let cut = |length: usize| {
        let (entry, code) = (entry.clone(), &code);
        Box::new(move || put(&entry, &code[..length]))
    };
    let damages: Vec<Damage<'_>> = vec![
        ("first byte", "have digest sha256:", flip(0)),
        ("middle byte", "have digest sha256:", flip(code.len() / 2)),
        ("last byte", "have digest sha256:", flip(code.len() - 1)),
        ("empty", "its 0 bytes have digest", cut(0)),
        ("half", "have digest sha256:", cut(code.len() / 2)),
        ("all but one byte", "have digest sha256:", cut(code.len() - 1)),
        ("longer", "have digest sha256:", Box::new(|| put(&entry, &[code.as_slice(), b"\0"].concat()))),
        (
            "sparse, 1 TiB",
            "bytes long, at most 67108864 are kept",
            Box::new(|| {
                put(&entry, b"");
                fs::OpenOptions::new().write(true).open(&entry).unwrap().set_len(1 << 40).unwrap();
            }),
        ),
        (
            "FIFO",
            "it is not a regular file",
            Box::new(|| {
                fs::remove_file(&entry).unwrap();
                mkfifo(&entry, Mode::from_bits_truncate(0o600)).unwrap();
                give(&entry);
            }),
        ),
        (
            "socket",
            "it is not a regular file",
            Box::new(|| {
                fs::remove_file(&entry).unwrap();
                drop(std::os::unix::net::UnixListener::bind(&entry).unwrap());
                give(&entry);
            }),
        ),
        (
            "link to the very code",
            "it is a symbolic link",
            Box::new(|| {
                fs::remove_file(&entry).unwrap();
                symlink(&elsewhere, &entry).unwrap();
            }),
        ),
        (
            "link to nothing",
            "it is a symbolic link",
            Box::new(|| {
                fs::remove_file(&entry).unwrap();
                symlink("nothing", &entry).unwrap();
            }),
        ),
        (
            "second name of a file",
            "has 2 names",
            Box::new(|| {
                fs::remove_file(&entry).unwrap();
                fs::hard_link(&elsewhere, &entry).unwrap();
            }),
        ),
        (
            "readable for others",
            "mode 0644",
            Box::new(|| {
                put(&entry, &code);
                fs::set_permissions(&entry, fs::Permissions::from_mode(0o644)).unwrap();
            }),
        ),
        (
            "nobody's to read",
            "it cannot be read",
            Box::new(|| {
                put(&entry, &code);
                fs::set_permissions(&entry, fs::Permissions::from_mode(0o000)).unwrap();
            }),
        ),
    ];
    for (name, expected, damage) in damages {
        // The control: it is whole before.
        assert_eq!(recall(&class, cwasm), Report::Recalled { cwasm }, "before {name}");
        damage();
        match recall(&class, cwasm) {
            Report::Lost { cwasm: lost, why, corrupt } => {
                assert_eq!((lost, corrupt), (cwasm, true), "{name}: {why}");
                assert!(why.contains(expected) && why.contains("it was removed"), "{name}: {why}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(class.names(), Vec::<String>::new(), "{name}");
        let missing = Report::Lost { cwasm, why: "it is not in the cache".into(), corrupt: false };
        assert_eq!(recall(&class, cwasm), missing, "{name}");
        let answers = class.ask(&compile(), &[&source]);
        assert_eq!(answers[0].report, Report::Compiled { cwasm }, "{name}");
    }
    assert_eq!(fs::read(&elsewhere).unwrap(), code, "what a link led to is not touched");
}

/// As root, which can make such a file: the class itself could not have.
#[test]
fn a_file_of_somebody_else_is_no_entry() {
    if !geteuid().is_root() {
        return;
    }
    let (class, _, cwasm, code) = with_code();
    put(&class.entry(cwasm), &code);
    assert_eq!(recall(&class, cwasm), Report::Recalled { cwasm }, "control");
    chown(class.entry(cwasm), Some(0), Some(0)).unwrap();
    assert!(matches!(recall(&class, cwasm), Report::Lost { corrupt: true, .. }));
    assert_eq!(class.names(), Vec::<String>::new());
}

#[test]
fn a_directory_in_the_place_of_an_entry_is_told_of_and_harms_nothing() {
    let (class, source, cwasm, _) = with_code();
    fs::remove_file(class.entry(cwasm)).unwrap();
    fs::create_dir(class.entry(cwasm)).unwrap();
    match recall(&class, cwasm) {
        Report::Lost { why, corrupt: true, .. } => assert!(why.contains("; remove it: "), "{why}"),
        other => panic!("{other:?}"),
    }
    let answers = class.ask(&compile(), &[&source]);
    assert!(answers[0].refused().contains("remove what is there"), "{answers:?}");
    assert_eq!(class.names().len(), 1, "no unfinished file is left: {:?}", class.names());
}

#[test]
fn what_nobody_asks_for_goes_and_what_a_neighbour_may_be_writing_stays() {
    let (class, _, cwasm, code) = with_code();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let put_aged = |name: &str, modified: SystemTime| {
        let path = class.cache().join(name);
        put(&path, &code);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    let other = format!("{}.cwasm", hex::encode([7; 32]));
    let neighbours = format!("{}.cwasm", hex::encode([8; 32]));
    put_aged(&other, old);
    put_aged(".left-behind.cwasm.4711.tmp", old);
    put_aged("from the future", SystemTime::now() + Duration::from_secs(86_400));
    put_aged(&neighbours, SystemTime::now());
    put_aged(".being-written.cwasm.4712.tmp", SystemTime::now());
    symlink("/etc/passwd", class.cache().join("link")).unwrap();
    // Wanted, however old.
    let wanted = class.entry(cwasm);
    fs::OpenOptions::new().write(true).open(&wanted).unwrap().set_modified(old).unwrap();
    assert_eq!(recall(&class, cwasm), Report::Recalled { cwasm });
    let mut left = vec![
        ".being-written.cwasm.4712.tmp".to_owned(),
        neighbours,
        "link".to_owned(),
        wanted.file_name().unwrap().to_str().unwrap().to_owned(),
    ];
    left.sort();
    // A link is as young as it was made; what it leads to is nobody's concern.
    assert_eq!(class.names(), left);
    assert!(Path::new("/etc/passwd").exists());
}

/// Where a tenant is removed, its code goes however young it is; what somebody is about to rename, and what no builder made, stays.
#[test]
fn a_cache_is_cleared_of_all_but_what_is_named() {
    let (class, _, cwasm, code) = with_code();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let put_aged = |name: &str, modified: SystemTime| {
        let path = class.cache().join(name);
        put(&path, &code);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    put_aged(&format!("{}.cwasm", hex::encode([7; 32])), old);
    put_aged(&format!("{}.cwasm", hex::encode([8; 32])), SystemTime::now());
    put_aged(".left-behind.cwasm.4711.tmp", old);
    put_aged(".being-written.cwasm.4712.tmp", SystemTime::now());
    symlink("/etc/passwd", class.cache().join("link")).unwrap();
    fs::create_dir(class.cache().join("nobodys")).unwrap();
    let clear = |named: &[u8]| {
        let answers = class.ask(&Job::Clear, &[&SealedBytes::of(named).unwrap()]);
        answers[0].report.clone()
    };
    assert!(matches!(clear(&[1; 33]), Report::Refused { .. }), "no whole number of digests");
    assert_eq!(class.names().len(), 7, "control");
    assert_eq!(clear(cwasm.as_bytes()), Report::Cleared);
    let mut left = vec![
        ".being-written.cwasm.4712.tmp".to_owned(),
        class.entry(cwasm).file_name().unwrap().to_str().unwrap().to_owned(),
        "nobodys".to_owned(),
    ];
    left.sort();
    assert_eq!(class.names(), left);
    assert_eq!(recall(&class, cwasm), Report::Recalled { cwasm }, "and is whole");
    assert_eq!(clear(&[]), Report::Cleared, "nothing is named");
    assert_eq!(class.names().len(), 2);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_cache_that_is_not_the_classs_own_is_refused_with_the_way_out() {
    let (class, source, cwasm, _) = with_code();
    let expect = |expected: &str| {
        let answers = class.ask(&compile(), &[&source]);
        assert!(answers[0].refused().contains(expected), "{answers:?}");
        match recall(&class, cwasm) {
            Report::Lost { why, corrupt: false, .. } => assert!(why.contains(expected), "{why}"),
            other => panic!("{other:?}"),
        }
    };
    fs::set_permissions(class.cache(), fs::Permissions::from_mode(0o755)).unwrap();
    expect("mode 0755, expected 0700; chmod 0700 it");
    fs::set_permissions(class.cache(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(recall(&class, cwasm), Report::Recalled { cwasm }, "control");
    if geteuid().is_root() {
        let (uid, ..) = identity();
        fs::set_permissions(class.cache(), fs::Permissions::from_mode(0o700)).unwrap();
        chown(class.cache(), Some(uid + 1), Some(uid + 1)).unwrap();
        expect(&format!("owned by uid {}, expected {uid}", uid + 1));
    }
}

/// Takes root: a file system of its own, which goes with this thread.
#[test]
fn a_disk_that_is_full_or_read_only_is_a_refusal() {
    if !geteuid().is_root() {
        return;
    }
    let class = Class::new();
    let source = sealed(&component("hash"));
    let (cache, (uid, gid, _)) = (class.cache(), identity());
    // Mounts of this thread and of what it starts, and of nobody else.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let options = |size: &str| format!("size={size},mode=0700,uid={uid},gid={gid}");
    mount(Some("tmpfs"), &cache, Some("tmpfs"), MsFlags::empty(), Some(options("16k").as_str())).unwrap();
    let answers = class.ask(&compile(), &[&source]);
    assert!(answers[0].refused().contains("make room on that file system"), "{answers:?}");
    assert_eq!(class.names(), Vec::<String>::new(), "what was begun is gone");

    let remount = MsFlags::MS_REMOUNT;
    mount(none, &cache, none, remount | MsFlags::MS_RDONLY, Some(options("16m").as_str())).unwrap();
    let answers = class.ask(&compile(), &[&source]);
    assert!(answers[0].refused().contains("mount it for writing"), "{answers:?}");

    // The control, and that neither left anything behind that would matter.
    mount(none, &cache, none, remount, Some(options("16m").as_str())).unwrap();
    let answers = class.ask(&compile(), &[&source]);
    let Report::Compiled { cwasm } = answers[0].report else { panic!("{answers:?}") };
    mount(none, &cache, none, remount | MsFlags::MS_RDONLY, Some(options("16m").as_str())).unwrap();
    assert_eq!(recall(&class, cwasm), Report::Recalled { cwasm }, "reading takes no writing");
}

/// The limit on files holds for the log as well, which may be one that is longer. Its lines are lost then, and no job is.
#[test]
fn a_log_that_is_longer_than_its_output_ends_no_builder() {
    let (class, _, cwasm, code) = with_code();
    let limits = BuildLimits { output: code.len() as u64, ..LIMITS };
    let path = class.dir.path().join("log");
    let log = fs::File::options().create(true).append(true).open(&path).unwrap();
    for length in [0, code.len() as u64 * 2] {
        log.set_len(length).unwrap();
        put(&class.entry(cwasm), &code[1..]);
        let builder = Builder::start_with_log(&class.cache(), limits, log.try_clone().unwrap().into());
        let (answers, status) = builder.unwrap().ask(&Job::Recall { cwasm: vec![cwasm] }, &[]);
        assert!(status.success(), "{status}");
        assert!(matches!(&answers[0].report, Report::Lost { corrupt: true, .. }), "{answers:?}");
        let written = fs::metadata(&path).unwrap().len() > length;
        assert_eq!(written, length == 0, "what it says is written as long as there is room");
    }
}

/// The limit is lower than when it was kept: told of, not a death by SIGXFSZ.
#[test]
fn code_that_is_longer_than_is_kept_now_is_lost() {
    let (class, _, cwasm, code) = with_code();
    let limits = BuildLimits { output: code.len() as u64 - 1, ..LIMITS };
    let (answers, status) = class.builder(limits).ask(&Job::Recall { cwasm: vec![cwasm] }, &[]);
    assert!(status.success(), "{status}");
    assert!(matches!(&answers[0].report, Report::Lost { corrupt: true, .. }), "{answers:?}");
}
