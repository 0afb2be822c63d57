//! Commands that write, and power that fails between any two of their writes: what is there is the old or the new, as a whole,
//! and the same command does its work afterwards. What is in the registry's own directory is cut in `src/registry/state/`.
#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test that cannot go on has failed"
)]
#![allow(clippy::print_stdout, reason = "how many cuts there were")]

mod cutting;

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::process::Command;

use cutting::run;
use portcullis::bundle::{Bundle, open_path};
use portcullis::trust::RevocationList;

const POLICY: &str = r#"(module
    (memory (export "memory") 2)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "decide") (param i32) (result i32) (i32.const 512)))"#;

/// A directory with a key, a policy and two bundles of it, as a folder and as a tar.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let work = desk.work();
        fs::create_dir(&work).unwrap();
        fs::write(work.join("gate.wat"), POLICY).unwrap();
        desk.good("policy keygen --out k");
        for bundle in ["gate", "gate.tar"] {
            desk.good(&build(1, bundle));
        }
        desk
    }

    /// Where commands work. A copy of it is what there is before the power is there again.
    fn work(&self) -> std::path::PathBuf {
        self.0.path().join("work")
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(arguments.split(' ')).current_dir(self.work()).env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn good(&self, arguments: &str) {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Cuts a command at every place. `state` says what somebody who comes then finds.
    fn cut_everywhere<T: PartialEq + Debug>(&self, arguments: &str, state: impl Fn(&Path) -> T) {
        let before = self.0.path().join("before");
        let work = self.work();
        let restore = || {
            fs::remove_dir_all(&work).unwrap();
            copy(&before, &work);
        };
        copy(&work, &before);
        let old = state(&work);
        let whole = run(&self.command(arguments), &work, None);
        assert_eq!(whole.code, Some(0), "{arguments}");
        assert_eq!(whole.careless, Vec::<String>::new(), "{arguments}");
        let new = state(&work);
        assert_ne!(old, new, "{arguments} changes nothing");
        assert!(whole.changes > 3, "{arguments}: {} changes seen", whole.changes);
        let (mut were_old, mut were_new) = (0, 0);
        for cut in 0..whole.changes {
            restore();
            assert_eq!(run(&self.command(arguments), &work, Some(cut)).code, None, "it ended before");
            let found = state(&work);
            if found != old {
                assert_eq!(found, new, "{arguments}, cut before change {cut}: neither old nor new");
                were_new += 1;
                continue;
            }
            were_old += 1;
            // What was left behind is in nobody's way.
            self.good(arguments);
            assert_eq!(state(&work), new, "{arguments}, cut before change {cut}, then done");
        }
        println!("{arguments}: {} cuts, {were_old} times the old, {were_new} times the new", whole.changes);
        assert!(were_old > 0 && were_new > 0, "{arguments}: one of the two was never met");
    }
}

fn build(version: u64, bundle: &str) -> String {
    format!(
        "policy build gate.wat --tenant acme --policy gate --version {version} --no-code --no-sbom -o {bundle}"
    )
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

/// The bundle as a reader finds it, every digest checked.
fn read(path: &Path) -> Bundle {
    let layout = open_path(path).unwrap();
    let bundle = layout.read().unwrap();
    layout.check_blobs(&bundle).unwrap();
    bundle
}

#[test]
fn a_power_cut_during_build_leaves_the_old_bundle_or_the_new_one() {
    for bundle in ["gate", "gate.tar"] {
        let desk = Desk::new();
        desk.cut_everywhere(&build(2, bundle), |work| read(&work.join(bundle)));
    }
}

#[test]
fn a_power_cut_while_something_is_attached_leaves_the_old_bundle_or_the_new_one() {
    for bundle in ["gate", "gate.tar"] {
        let desk = Desk::new();
        let attest = format!("policy attest {bundle} --key k --builder-id https://ci.example.test/runner");
        desk.cut_everywhere(&attest, |work| read(&work.join(bundle)));
    }
}

#[test]
fn a_power_cut_leaves_the_old_revocation_list_or_the_new_one() {
    let desk = Desk::new();
    let revoke = |what: &str| {
        format!("policy revoke --bundle sha256:{} --reason x --sign-key k --list list.json", what.repeat(64))
    };
    desk.good(&revoke("1"));
    desk.cut_everywhere(&revoke("2"), |work| {
        let list = RevocationList::peek(&fs::read(work.join("list.json")).unwrap()).unwrap();
        (list.version, list.revoked.into_iter().map(|revoked| revoked.what).collect::<Vec<_>>())
    });
}

#[test]
fn a_power_cut_during_rotation_leaves_the_old_trust_policy_or_the_new_one() {
    let desk = Desk::new();
    desk.good("policy keygen --out k2");
    desk.good("trust new --key release=k.pub -o trust.toml");
    desk.cut_everywhere("trust rotate trust.toml --signer release --new k2.pub --overlap 30d", |work| {
        let text = fs::read_to_string(work.join("trust.toml")).unwrap();
        // When the old key's time is over is different each time.
        text.lines().filter(|line| !line.starts_with("not_after")).map(str::to_owned).collect::<Vec<_>>()
    });
}

/// The control: what writes without care is told of, and a cut through it leaves neither.
#[test]
fn the_cuts_find_what_is_written_in_place_or_not_brought_to_the_disk() {
    let home = tempfile::tempdir().unwrap();
    let dd = |of: &str, more: &str| {
        let mut command = Command::new("sh");
        let script = format!("dd if=/dev/zero of={of} bs=10 count=3 status=none {more}");
        command.args(["-c", &script]).current_dir(home.path());
        command
    };
    fs::write(home.path().join("file"), "old").unwrap();
    let in_place = run(&dd("file", ""), home.path(), None);
    assert_eq!(in_place.code, Some(0));
    assert!(in_place.careless.iter().any(|what| what.contains("file")), "{:?}", in_place.careless);
    let lengths: Vec<u64> = (0..in_place.changes)
        .map(|cut| {
            fs::write(home.path().join("file"), "old").unwrap();
            assert_eq!(run(&dd("file", ""), home.path(), Some(cut)).code, None);
            fs::metadata(home.path().join("file")).unwrap().len()
        })
        .collect();
    assert!(lengths.contains(&10) && lengths.contains(&20), "{lengths:?}");
    // Written beside, renamed, and not synced; then synced, but for the directory; then with care.
    let renamed = |more: &str, then: &str| {
        fs::write(home.path().join("new"), "old").unwrap();
        let mut command = dd(".new.tmp", more);
        let script = command.get_args().last().unwrap().to_str().unwrap().to_owned();
        command = Command::new("sh");
        command.args(["-c", &format!("{script} && mv .new.tmp new {then}")]).current_dir(home.path());
        run(&command, home.path(), None).careless
    };
    assert!(renamed("", "").iter().any(|what| what.contains("when")), "contents");
    let names = renamed("conv=fsync", "");
    assert!(!names.is_empty() && names.iter().all(|what| what.contains("at the end")), "{names:?}");
    assert_eq!(renamed("conv=fsync", "&& sync ."), Vec::<String>::new());
}
