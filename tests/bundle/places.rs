//! Where a bundle lies is written to by others: what is no plain file of a trusted owner, or lies elsewhere, is refused; at once,
//! since nothing that never answers is waited for.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use portcullis::artifact::Digest;
use portcullis::bundle::write;
use portcullis::bundle::{Bundle, BundleError, Ownership, Refusal, open, open_policy};
use portcullis::decision::{PolicyName, Tenant};

use super::{blob_path, draft, read_whole, written};

/// A store with one bundle, `acme/allow-acme`.
struct Store {
    dir: tempfile::TempDir,
    bundle: Bundle,
}

impl Store {
    fn new(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "owners and devices need root: run with sudo");
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("acme")).unwrap();
        let path = written(&dir.path().join("acme"), name);
        let bundle = super::read_path(&path).unwrap();
        Self { dir, bundle }
    }

    fn open(&self) -> Result<Bundle, BundleError> {
        let store = File::open(self.dir.path()).unwrap();
        let ownership = Ownership::of(&store).unwrap();
        let (tenant, policy) = (Tenant::new("acme").unwrap(), PolicyName::new("allow-acme").unwrap());
        read_whole(&open_policy(&store, &tenant, &policy, &ownership)?)
    }

    fn tenant(&self) -> PathBuf {
        self.dir.path().join("acme")
    }

    fn path(&self) -> PathBuf {
        self.tenant().join("allow-acme")
    }

    fn tar(&self) -> PathBuf {
        self.tenant().join("allow-acme.tar")
    }

    fn code(&self) -> PathBuf {
        blob_path(&self.path(), self.bundle.compiled[0].cwasm.digest)
    }
}

/// Moves something aside, so that something else can have its name.
fn aside(path: &Path) -> PathBuf {
    let elsewhere = path.parent().unwrap().join("elsewhere");
    fs::rename(path, &elsewhere).unwrap();
    elsewhere
}

fn device(path: &Path) {
    aside(path);
    // /dev/zero: whoever reads it never comes to an end.
    mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o644), makedev(1, 5)).unwrap();
}

fn fifo(path: &Path) {
    aside(path);
    mkfifo(path, Mode::from_bits_truncate(0o644)).unwrap();
}

fn socket(path: &Path) {
    // Names of sockets are short; the store's is not.
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    fs::remove_file(path).unwrap();
    fs::rename(dir.path().join("s"), path).unwrap();
    drop(listener);
}

fn link(path: &Path) {
    let elsewhere = aside(path);
    symlink(elsewhere, path).unwrap();
}

fn hard_link(path: &Path) {
    fs::hard_link(path, path.parent().unwrap().join("second")).unwrap();
}

fn sparse(path: &Path) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
}

fn owner(path: &Path) {
    chown(path, Some(12_345), None).unwrap();
}

fn mode(path: &Path) {
    let mode = fs::metadata(path).unwrap().permissions().mode();
    fs::set_permissions(path, Permissions::from_mode(mode | 0o020)).unwrap();
}

type Harm = (&'static str, fn(&Store), &'static str);

#[test]
fn what_is_no_plain_file_of_a_trusted_owner_is_refused_in_a_folder() {
    let cases: &[Harm] = &[
        ("the folder is a link", |s| link(&s.path()), "is a link or lies behind one"),
        ("the tenant's folder is a link", |s| link(&s.tenant()), "is a link or lies behind one"),
        ("the blobs are behind a link", |s| link(&s.path().join("blobs")), "read blobs of bundle"),
        (
            "the blobs are behind another link",
            |s| link(&s.path().join("blobs/sha256")),
            "read blobs/sha256 of bundle",
        ),
        (
            "index.json is a link",
            |s| link(&s.path().join("index.json")),
            "read index.json of bundle \"acme/allow-acme\": is a link",
        ),
        ("a blob is a link", |s| link(&s.code()), "is a link or lies behind one"),
        (
            "a blob is a link to what never ends",
            |s| {
                fs::remove_file(s.code()).unwrap();
                symlink("/dev/zero", s.code()).unwrap()
            },
            "is a link or lies behind one",
        ),
        (
            "a blob is a magic link",
            |s| {
                fs::remove_file(s.code()).unwrap();
                symlink("/proc/self/exe", s.code()).unwrap()
            },
            "is a link or lies behind one",
        ),
        ("a blob has two names", |s| hard_link(&s.code()), "has 2 names (hard links)"),
        ("index.json has two names", |s| hard_link(&s.path().join("index.json")), "has 2 names (hard links)"),
        ("the folder is a FIFO", |s| fifo(&s.path()), "is a FIFO, expected a regular file"),
        (
            "index.json is a FIFO",
            |s| fifo(&s.path().join("index.json")),
            "is a FIFO, expected a regular file",
        ),
        ("a blob is a FIFO", |s| fifo(&s.code()), "is a FIFO, expected a regular file"),
        ("a blob is a device", |s| device(&s.code()), "is a character device, expected a regular file"),
        (
            "index.json is a device",
            |s| device(&s.path().join("index.json")),
            "is a character device, expected a regular file",
        ),
        ("a blob is a socket", |s| socket(&s.code()), "is a socket, expected a regular file"),
        (
            "a blob is a folder",
            |s| {
                fs::remove_file(s.code()).unwrap();
                fs::create_dir(s.code()).unwrap()
            },
            "is a folder, expected a regular file",
        ),
        (
            "the blobs are a file",
            |s| {
                aside(&s.path().join("blobs"));
                fs::write(s.path().join("blobs"), "").unwrap()
            },
            "is a regular file, expected a folder",
        ),
        (
            "index.json has 1 TiB",
            |s| sparse(&s.path().join("index.json")),
            "is 1099511627776 bytes long, at most 65536 are read",
        ),
        ("a blob has 1 TiB", |s| sparse(&s.code()), "is 1099511627776 bytes long, expected"),
        (
            "the bundle index has 1 TiB",
            |s| sparse(&blob_path(&s.path(), s.bundle.digest())),
            "is 1099511627776 bytes long, expected",
        ),
        (
            "a blob is cut short",
            |s| OpenOptions::new().write(true).open(s.code()).unwrap().set_len(9).unwrap(),
            "is 9 bytes long, expected",
        ),
        ("a blob is empty", |s| fs::write(s.code(), "").unwrap(), "is 0 bytes long, expected"),
        ("a blob is gone", |s| fs::remove_file(s.code()).unwrap(), "is not there"),
        (
            "index.json is gone",
            |s| fs::remove_file(s.path().join("index.json")).unwrap(),
            "read index.json of bundle \"acme/allow-acme\": is not there",
        ),
        (
            "the bundle is gone",
            |s| fs::remove_dir_all(s.path()).unwrap(),
            "open bundle \"acme/allow-acme\": is not there",
        ),
        (
            "somebody else owns the tenant's folder",
            |s| owner(&s.tenant()),
            "read acme of bundle \"acme/allow-acme\": owned by uid 12345, expected 0",
        ),
        (
            "somebody else owns the folder",
            |s| owner(&s.path()),
            "open bundle \"acme/allow-acme\": owned by uid 12345, expected 0",
        ),
        (
            "somebody else owns the blobs",
            |s| owner(&s.path().join("blobs")),
            "owned by uid 12345, expected 0",
        ),
        (
            "somebody else owns index.json",
            |s| owner(&s.path().join("index.json")),
            "owned by uid 12345, expected 0",
        ),
        ("somebody else owns a blob", |s| owner(&s.code()), "owned by uid 12345, expected 0"),
        (
            "others may write to the tenant's folder",
            |s| mode(&s.tenant()),
            "may be written by others (mode 0775)",
        ),
        ("others may write to the folder", |s| mode(&s.path()), "may be written by others (mode 0775)"),
        (
            "others may write to index.json",
            |s| mode(&s.path().join("index.json")),
            "may be written by others (mode 0664)",
        ),
        ("others may write to a blob", |s| mode(&s.code()), "may be written by others (mode 0664)"),
        (
            "there is a tar as well",
            |s| {
                written(&s.tenant(), "allow-acme.tar");
            },
            "is there twice, as a folder and as a tar",
        ),
    ];
    refused("allow-acme", cases);
}

#[test]
fn what_is_no_plain_file_of_a_trusted_owner_is_refused_as_a_tar() {
    let cases: &[Harm] = &[
        ("it is a link", |s| link(&s.tar()), "open bundle \"acme/allow-acme.tar\": is a link"),
        ("it has two names", |s| hard_link(&s.tar()), "has 2 names (hard links)"),
        ("it is a FIFO", |s| fifo(&s.tar()), "is a FIFO, expected a regular file"),
        ("it is a device", |s| device(&s.tar()), "is a character device, expected a regular file"),
        ("it is a socket", |s| socket(&s.tar()), "is a socket, expected a regular file"),
        ("it has 1 TiB", |s| sparse(&s.tar()), "is 1099511627776 bytes long, at most 4294967296 are read"),
        ("somebody else owns it", |s| owner(&s.tar()), "owned by uid 12345, expected 0"),
        ("others may write to it", |s| mode(&s.tar()), "may be written by others (mode 0664)"),
        ("it is empty", |s| fs::write(s.tar(), "").unwrap(), "has no end mark"),
        (
            "a folder has its name",
            |s| {
                fs::remove_file(s.tar()).unwrap();
                written(&s.tenant(), "x");
                fs::rename(s.tenant().join("x"), s.tar()).unwrap()
            },
            "open bundle \"acme/allow-acme\": is not there",
        ),
        (
            "it has a folder's name",
            |s| fs::rename(s.tar(), s.path()).unwrap(),
            "is a regular file, expected a folder, or a file with .tar",
        ),
    ];
    refused("allow-acme.tar", cases);
}

fn refused(name: &str, cases: &[Harm]) {
    for (what, harm, expected) in cases {
        let store = Store::new(name);
        store.open().expect("untouched it is read");
        harm(&store);
        let error = match store.open() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{what}: it was read"),
        };
        assert!(error.contains(expected), "{what}: {error}");
    }
    println!("{} kinds of harm, each refused", cases.len());
}

#[test]
fn a_deploy_user_that_owns_the_store_may_write_there() {
    let store = Store::new("allow-acme");
    let all = [
        store.tenant(),
        store.path(),
        store.path().join("index.json"),
        store.path().join("blobs"),
        store.path().join("blobs/sha256"),
        store.code(),
    ];
    for path in &all {
        chown(path, Some(12_345), None).unwrap();
    }
    assert!(store.open().is_err(), "the store is root's");
    chown(store.dir.path(), Some(12_345), None).unwrap();
    store.open().unwrap();
    // A store that a group writes to says so itself.
    all.iter().for_each(|path| mode(path));
    assert!(store.open().is_err(), "the store is its owner's only");
    mode(store.dir.path());
    store.open().unwrap();
    // Of two that are named, a third is none.
    let dir = File::open(store.dir.path()).unwrap();
    let name = Path::new("acme/allow-acme");
    let error = open(&dir, name, &Ownership::only(&[0, 1])).unwrap_err();
    assert!(matches!(error.why, Refusal::Owner { found: 12_345, .. }), "{error}");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let store = Store::new("allow-acme");
    let dir = File::open(store.dir.path()).unwrap();
    let inside = File::open(store.tenant()).unwrap();
    let anyone = Ownership::anyone();
    open(&dir, Path::new("acme/allow-acme"), &anyone).expect("by its name it is opened");
    let absolute = store.path();
    for name in
        ["", ".", "..", "../acme/allow-acme", "acme/../acme/allow-acme", "./acme", absolute.to_str().unwrap()]
    {
        let error = open(&inside, Path::new(name), &anyone).unwrap_err();
        assert!(matches!(error.why, Refusal::Name(_)), "{name:?}: {error}");
    }
}

/// Two good bundles and a link change places under one name, as fast as one thread can. Whatever is opened is one of the
/// two as a whole, or refused by name.
#[test]
fn a_name_that_changes_gives_one_bundle_or_the_other() {
    const ROUNDS: usize = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let digests: Vec<Digest> = [3, 4]
        .into_iter()
        .map(|version| {
            let path = at(&format!("v{version}"));
            write::create(&draft(version).assemble().unwrap(), &path).unwrap().digest()
        })
        .collect();
    symlink(at("v3"), at("link")).unwrap();
    fs::rename(at("v3"), at("b")).unwrap();
    let done = AtomicBool::new(false);
    let mut found = [0_usize; 3];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for name in ["v4", "link"] {
                    let exchange = RenameFlags::RENAME_EXCHANGE;
                    renameat2(AT_FDCWD, &at("b"), AT_FDCWD, &at(name), exchange).unwrap();
                }
            }
        });
        let store = File::open(dir.path()).unwrap();
        for _ in 0..ROUNDS {
            match open(&store, Path::new("b"), &Ownership::of(&store).unwrap()) {
                Ok(layout) => {
                    let bundle = read_whole(&layout).expect("what was opened is whole");
                    found[digests.iter().position(|digest| *digest == bundle.digest()).unwrap()] += 1;
                }
                Err(error) => {
                    assert!(matches!(error.why, Refusal::Link), "{error}");
                    found[2] += 1;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    println!(
        "{ROUNDS} rounds: version 3 {} times, version 4 {} times, a link {} times",
        found[0], found[1], found[2]
    );
    assert!(found[0] + found[1] > 0, "good bundles were among them");
}
