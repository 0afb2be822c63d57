//! The power fails, or the disk is full, while a bundle is being pulled: what was in the store is there or the new one, as a
//! whole, and the same command goes on afterwards.

#[path = "../power_cuts/cutting.rs"]
mod power;

use std::fs;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::desk::{Desk, contents};
use crate::fake::{Fake, Shelf};
use power::run;

const PULL: &str = "--plain-http --store store --quiet";

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Of the command and of the fetcher, whichever is about to write.
#[test]
fn a_power_cut_during_pull_leaves_the_old_bundle_or_the_new_one() {
    if !is_root() {
        eprintln!("skipped: to see what the fetcher does takes root; run the tests with sudo");
        return;
    }
    let desk = Desk::new();
    let old = Fake::honest(Shelf::of(&desk.path("gate")));
    desk.make("newer", 2);
    let new = Fake::honest(Shelf::of(&desk.path("newer")));
    let store = desk.path("store");
    let pull = |fake: &Fake| desk.command(&format!("pull {} {PULL}", fake.reference()));
    let found = || desk.read("store/acme/gate").config.version;
    // The first time there is not even a tenant's folder.
    let whole = run(&pull(&old), &store, None);
    assert_eq!((whole.code, whole.careless), (Some(0), vec![]));
    assert_eq!(found(), 1);

    let before = desk.path("before");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = fs::remove_dir_all(to);
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&store, &before);
    let whole = run(&pull(&new), &store, None);
    assert_eq!((whole.code, whole.careless), (Some(0), vec![]));
    assert_eq!(found(), 2);
    let (mut were_old, mut were_new) = (0, 0);
    // Most are one more step of the same blob: each of the first and the last forty, and some of those between.
    let cuts: Vec<usize> =
        (0..whole.changes).filter(|cut| *cut < 40 || whole.changes - cut <= 40 || cut % 9 == 0).collect();
    for cut in &cuts {
        copy(&before, &store);
        let ended = run(&pull(&new), &store, Some(*cut));
        // Bytes come as the network brings them, so it may need fewer writes than before.
        assert!(ended.code.is_none() || ended.changes <= *cut, "{:?} before change {cut}", ended.code);
        match found() {
            1 => were_old += 1,
            2 => were_new += 1,
            other => panic!("version {other}"),
        }
        if cut % 10 == 0 {
            desk.good(&format!("pull {} --plain-http --store store", new.reference()));
            assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("newer")));
            assert_eq!(desk.partial(), None, "what was left is used and gone");
        }
    }
    println!("{} cuts of {}: {were_old} times the old, {were_new} times the new", cuts.len(), whole.changes);
    assert!(were_old > 0 && were_new > 0, "{were_old} {were_new}");
}

#[test]
fn a_full_disk_during_pull_leaves_the_old_bundle_and_is_gone_on_with() {
    if !is_root() {
        eprintln!("skipped: mounting a small file system takes root; run the tests with sudo");
        return;
    }
    // In a mount namespace of its own, so that nothing is left behind; unshare is per thread.
    let ended = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let desk = Desk::new();
        let store = desk.path("store");
        // A bundle is 900 kB: one and the half of another one go on it, then all of both.
        let disk = |flags, size: &str| {
            let options = format!("size={size},mode=0755");
            mount(Some("tmpfs"), &store, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
        };
        disk(MsFlags::empty(), "1500k");
        let old = Fake::honest(Shelf::of(&desk.path("gate")));
        desk.make("newer", 2);
        let new = Fake::honest(Shelf::of(&desk.path("newer")));
        // It is fetched, and then copied to its place.
        disk(MsFlags::MS_REMOUNT, "3m");
        desk.good(&format!("pull {} --plain-http --store store", old.reference()));
        disk(MsFlags::MS_REMOUNT, "1500k");
        let pull = format!("pull {} --plain-http --store store", new.reference());
        let output = desk.run(&format!("{pull} --quiet"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 75)), "{:?} {error}", output.status);
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
        disk(MsFlags::MS_REMOUNT, "8m");
        let pulled = desk.good(&pull);
        assert!(pulled["reused"].as_u64().unwrap() > 100_000, "{pulled}");
        assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("newer")));
        umount2(&store, MntFlags::MNT_DETACH).unwrap();
    });
    if let Err(panic) = ended.join() {
        std::panic::resume_unwind(panic);
    }
}
