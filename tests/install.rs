//! `portcullis install` and `uninstall` as they are typed, below a directory. On a host with systemd they are tried in a
//! container.
//!
//! As root what is placed is root's; one test does the same as an ordinary user.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/copies.rs"]
mod copies;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use portcullis::artifact::Digest;

const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");
const MANIFEST: &str = "usr/lib/portcullis/manifest.json";
/// Nobody in particular.
const ORDINARY: u32 = 12345;
/// Longest that a service takes to start; only met when something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// All that is placed in an empty directory, with its mode.
const TABLE: &str = "\
755 etc
755 etc/portcullis
644 etc/portcullis/portcullis.toml
644 etc/portcullis/trust.toml
755 etc/systemd
755 etc/systemd/system
644 etc/systemd/system/portcullis-gateway.socket
644 etc/systemd/system/portcullis-operator.socket
644 etc/systemd/system/portcullis-telemetry.socket
644 etc/systemd/system/portcullis.service
644 etc/systemd/system/portcullis.socket
755 etc/sysusers.d
644 etc/sysusers.d/portcullis.conf
755 etc/tmpfiles.d
644 etc/tmpfiles.d/portcullis.conf
755 usr
755 usr/bin
755 usr/bin/portcullis
755 usr/lib
755 usr/lib/portcullis
644 usr/lib/portcullis/manifest.json
755 usr/share
755 usr/share/doc
755 usr/share/doc/portcullis
644 usr/share/doc/portcullis/attest.md
644 usr/share/doc/portcullis/bundle.md
644 usr/share/doc/portcullis/configuration.md
644 usr/share/doc/portcullis/data.md
644 usr/share/doc/portcullis/policies.md
644 usr/share/doc/portcullis/portcullis.example.toml
644 usr/share/doc/portcullis/systemd.md
644 usr/share/doc/portcullis/tenancy.md
644 usr/share/doc/portcullis/trust.md
";

/// Of every program that the crate has.
fn programs() -> Vec<String> {
    let sources = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin")).unwrap();
    let names = sources.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Where a program is installed.
fn place_of(program: &str) -> String {
    let directory = if program == "portcullis" { "usr/bin" } else { "usr/lib/portcullis" };
    format!("{directory}/{program}")
}

/// What every program of ours has in it somewhere.
fn mark(name: &str, version: &str) -> String {
    format!("portcullis program {name} {version}\n")
}

/// A file that begins as our programs do and says which version it is. It is only copied, never run.
fn program(version: &str, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    std::io::Read::read_exact(&mut fs::File::open(PORTCULLIS).unwrap(), &mut bytes).unwrap();
    bytes.extend_from_slice(format!("{version} {name}").as_bytes());
    bytes.extend_from_slice(mark(name, env!("CARGO_PKG_VERSION")).as_bytes());
    // The one that is placed last of the programs is the one that does not fit where little does.
    bytes.resize(if name == "portcullis-worker" { 100_000 } else { 1_000 }, 0);
    bytes
}

/// Programs to install, and a directory to install them in.
struct Site {
    directory: tempfile::TempDir,
    /// Who types the commands.
    uid: u32,
    command: PathBuf,
}

/// A path, without what leads to it, with its kind and mode, owner and content.
type Snapshot = BTreeMap<String, (String, u32, Vec<u8>)>;

impl Site {
    fn new() -> Self {
        Self::of(nix::unistd::geteuid().as_raw())
    }

    fn of(uid: u32) -> Self {
        let site = Self { directory: tempfile::tempdir().unwrap(), uid, command: PORTCULLIS.into() };
        // The umask of whoever runs the tests must not matter.
        for name in ["", "programs", "root"] {
            let path = site.directory.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            chown(&path, Some(uid), Some(uid)).unwrap();
        }
        site.ship("one");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn root(&self, name: &str) -> PathBuf {
        self.path("root").join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.root(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
    }

    /// Programs of that version are there to be installed.
    fn ship(&self, version: &str) {
        for name in programs() {
            self.put(&self.path("programs").join(&name), &program(version, &name), 0o755);
        }
    }

    fn put(&self, path: &Path, bytes: &[u8], mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chown(path, Some(self.uid), Some(self.uid)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.command);
        command.args(arguments).arg("--root").arg(self.path("root")).stdin(Stdio::null());
        if nix::unistd::geteuid().is_root() {
            command.uid(self.uid).gid(self.uid);
        }
        command
    }

    fn install(&self, more: &[&str]) -> Output {
        let from = self.path("programs");
        let arguments = ["install", "--systemd", "--from", from.to_str().unwrap()];
        self.command(&[&arguments, more].concat()).output().unwrap()
    }

    fn uninstall(&self, more: &[&str]) -> Output {
        self.command(&[&["uninstall"], more].concat()).output().unwrap()
    }

    fn snapshot(&self) -> Snapshot {
        fn walk(root: &Path, directory: &Path, found: &mut Snapshot) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                let content = match metadata {
                    ref link if link.is_symlink() => {
                        path.read_link().unwrap().into_os_string().into_encoded_bytes()
                    }
                    ref file if file.is_file() => fs::read(&path).unwrap(),
                    _ => Vec::new(),
                };
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, (format!("{:o}", metadata.mode()), metadata.uid(), content));
                if metadata.is_dir() {
                    walk(root, &path, found);
                }
            }
        }
        let mut found = Snapshot::new();
        walk(&self.path("root"), &self.path("root"), &mut found);
        found
    }
}

/// What a command said that worked.
#[track_caller]
fn good(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{}{error}", String::from_utf8_lossy(&output.stdout));
    assert!(error.is_empty(), "{error}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command said that did not.
#[track_caller]
fn bad(output: &Output, code: i32) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{}{error}", String::from_utf8_lossy(&output.stdout));
    error
}

fn expected_table() -> Vec<String> {
    let mut lines: Vec<String> = TABLE.lines().map(str::to_owned).collect();
    lines.extend(programs().iter().map(|name| format!("755 {}", place_of(name))));
    // Which pages there are is for the program to say.
    let pages = tempfile::tempdir().unwrap();
    let output = Command::new(PORTCULLIS).args(["man", "--completions", "--out"]).arg(pages.path()).output();
    good(&output.unwrap());
    for page in fs::read_dir(pages.path()).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        let folder = match name.as_str() {
            "portcullis" => "usr/share/bash-completion/completions",
            "portcullis.fish" => "usr/share/fish/vendor_completions.d",
            "_portcullis" => "usr/share/zsh/vendor-completions",
            _ => "usr/share/man/man1",
        };
        let folders = Path::new(folder).ancestors().filter(|above| !above.as_os_str().is_empty());
        lines.extend(folders.map(|above| format!("755 {}", above.display())));
        lines.push(format!("644 {folder}/{name}"));
    }
    lines.sort();
    lines.dedup();
    lines
}

fn table(snapshot: &Snapshot) -> Vec<String> {
    let line = |(path, (mode, ..)): (&String, &(String, u32, Vec<u8>))| {
        format!("{} {path}", &mode[mode.len() - 3..])
    };
    let mut lines: Vec<String> = snapshot.iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn an_installation_is_what_the_table_says_and_leaves_nothing() {
    let site = Site::new();
    let said = good(&site.install(&[]));
    assert!(said.trim_end().lines().last().unwrap().starts_with("next: systemctl --root="), "{said}");
    let installed = site.snapshot();
    assert_eq!(table(&installed), expected_table());
    assert!(installed.values().all(|(_, uid, _)| *uid == site.uid), "{installed:#?}");
    for name in programs() {
        assert_eq!(site.read(&place_of(&name)), program("one", &name));
    }
    let manifest: serde_json::Value = serde_json::from_slice(&site.read(MANIFEST)).unwrap();
    for placed in manifest["files"].as_array().unwrap() {
        let content = site.read(placed["path"].as_str().unwrap().trim_start_matches('/'));
        assert_eq!(placed["digests"], serde_json::json!([Digest::of(&content)]), "{placed}");
    }

    let said = good(&site.uninstall(&["--purge"]));
    assert!(said.ends_with("nothing of it is left\n"), "{said}");
    assert_eq!(site.snapshot(), Snapshot::new());
}

#[test]
fn what_was_there_before_is_there_afterwards() {
    let site = Site::new();
    for (path, mode) in
        [("etc/fstab", 0o600), ("etc/systemd/system/ssh.service", 0o644), ("usr/bin/true", 0o755)]
    {
        site.put(&site.root(path), path.as_bytes(), mode);
    }
    fs::create_dir_all(site.root("usr/lib/empty")).unwrap();
    let before = site.snapshot();
    good(&site.install(&[]));
    assert_ne!(site.snapshot(), before);
    good(&site.uninstall(&["--purge"]));
    assert_eq!(site.snapshot(), before);
}

#[test]
fn as_an_ordinary_user_it_works_in_a_directory_of_ones_own_and_nowhere_else() {
    let own = nix::unistd::geteuid();
    let mut site = Site::of(if own.is_root() { ORDINARY } else { own.as_raw() });
    if own.is_root() {
        // The repository may lie where nobody else may go.
        site.command = site.path("portcullis");
        copies::copy_program(Path::new(PORTCULLIS), &site.command);
    }
    good(&site.install(&[]));
    let installed = site.snapshot();
    assert_eq!(table(&installed), expected_table());
    assert!(installed.values().all(|(_, uid, _)| *uid == site.uid), "{installed:#?}");
    good(&site.uninstall(&["--purge"]));
    assert_eq!(site.snapshot(), Snapshot::new());

    let mut host = Command::new(&site.command);
    host.args(["install", "--systemd", "--from"]).arg(site.path("programs"));
    if own.is_root() {
        host.uid(site.uid).gid(site.uid);
    }
    let error = bad(&host.output().unwrap(), 1);
    assert!(error.contains("install into \"/\": not root; run it as root"), "{error}");
    if own.is_root() {
        // Root's things are not an ordinary user's, and the other way round.
        let root = Site { uid: 0, command: PORTCULLIS.into(), ..site };
        // The directory above both, the one that programs are in, and a program.
        for (owned, expected) in [
            ("", "\": owned by uid"),
            ("programs", "programs\": owned by uid"),
            ("programs/portcullis", "programs/portcullis\": owned by uid"),
        ] {
            let error = bad(&root.install(&[]), 1);
            assert!(error.contains(&format!("{expected} {ORDINARY}, expected 0;")), "{error}");
            chown(root.path(owned), Some(0), Some(0)).unwrap();
        }
        root.ship("one");
        let error = bad(&root.install(&[]), 1);
        assert!(error.contains(&format!("owned by uid {ORDINARY}, expected 0; chown it")), "{error}");
    }
}

#[test]
fn what_was_changed_stays_and_is_named() {
    let site = Site::new();
    good(&site.install(&[]));
    let (unit, configuration) = ("etc/systemd/system/portcullis.socket", "etc/portcullis/portcullis.toml");
    for path in [unit, configuration] {
        site.put(&site.root(path), b"# mine", 0o644);
    }
    // An upgrade leaves both alone.
    site.ship("two");
    let said = good(&site.install(&[]));
    assert!(said.contains(&format!("left alone: /{unit} was changed here")), "{said}");
    assert_eq!(site.read(unit), b"# mine");
    assert_eq!(site.read(configuration), b"# mine");

    let said = good(&site.uninstall(&[]));
    assert!(said.contains(&format!("left alone: /{unit} was changed since")), "{said}");
    assert!(
        said.contains(&format!("left alone: /{configuration} is the configuration; --purge removes it")),
        "{said}"
    );
    assert!(said.ends_with("everything else is gone\n"), "{said}");
    let left: Vec<String> = site.snapshot().into_keys().filter(|path| !site.root(path).is_dir()).collect();
    assert_eq!(left, [configuration, "etc/portcullis/trust.toml", unit]);
}

#[test]
fn a_text_that_is_new_is_placed_beside_one_that_was_changed() {
    let site = Site::new();
    good(&site.install(&[]));
    let path = "etc/sysusers.d/portcullis.conf";
    let ours = site.read(path);
    // As if an earlier version had placed another text, and somebody had added a line to that.
    let manifest = String::from_utf8(site.read(MANIFEST)).unwrap();
    let manifest = manifest.replace(&Digest::of(&ours).to_string(), &Digest::of(b"earlier").to_string());
    site.put(&site.root(MANIFEST), manifest.as_bytes(), 0o644);
    site.put(&site.root(path), b"earlier, and a line", 0o644);
    let said = good(&site.install(&[]));
    assert!(said.contains(&format!("the new one is /{path}.new")), "{said}");
    assert_eq!(site.read(path), b"earlier, and a line");
    assert_eq!(site.read(&format!("{path}.new")), ours);
    let again = site.snapshot();
    good(&site.install(&[]));
    assert_eq!(site.snapshot(), again);
    // Once it is taken over it is not needed any more.
    site.put(&site.root(path), &ours, 0o644);
    good(&site.install(&[]));
    assert!(!site.root(&format!("{path}.new")).exists());
    good(&site.uninstall(&["--purge"]));
    assert_eq!(site.snapshot(), Snapshot::new());
}

#[test]
fn an_upgrade_keeps_what_it_replaces_and_can_be_taken_back() {
    let site = Site::new();
    let previous = |name: &str| format!("usr/lib/portcullis/previous/{name}");
    good(&site.install(&[]));
    good(&site.install(&[]));
    assert!(!site.root("usr/lib/portcullis/previous").exists(), "nothing was replaced");
    site.ship("two");
    good(&site.install(&[]));
    for name in programs() {
        assert_eq!(site.read(&place_of(&name)), program("two", &name));
        assert_eq!(site.read(&previous(&name)), program("one", &name));
    }
    // The same again is no upgrade: what can be gone back to is still the one before.
    good(&site.install(&[]));
    assert_eq!(site.read(&previous("portcullis")), program("one", "portcullis"));

    let back = site.root("usr/lib/portcullis/previous");
    good(&site.command(&["install", "--systemd", "--from", back.to_str().unwrap()]).output().unwrap());
    for name in programs() {
        assert_eq!(site.read(&place_of(&name)), program("one", &name));
        assert_eq!(site.read(&previous(&name)), program("two", &name));
    }
    good(&site.uninstall(&["--purge"]));
    assert_eq!(site.snapshot(), Snapshot::new());
}

/// A file that is open, as a running service has its programs, stays what it was.
#[test]
fn an_upgrade_does_not_touch_what_runs() {
    let site = Site::new();
    good(&site.install(&[]));
    let mut open = fs::File::open(site.root(&place_of("portcullis-worker"))).unwrap();
    site.ship("two");
    good(&site.install(&[]));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut bytes).unwrap();
    assert_eq!(bytes, program("one", "portcullis-worker"));
}

/// Each is one change to a directory that could be installed into, and what is said of it.
#[test]
fn links_and_what_others_can_write_are_refused_and_nothing_is_done() {
    type Trap = fn(&Site);
    let traps: [(&str, Trap, &str); 12] = [
        (
            "a directory is a link",
            |site| {
                fs::create_dir_all(site.path("elsewhere/portcullis")).unwrap();
                fs::create_dir_all(site.root("usr")).unwrap();
                symlink(site.path("elsewhere"), site.root("usr/lib")).unwrap();
            },
            "usr/lib\": it is a symbolic link, and none is followed",
        ),
        (
            "a directory is a link out of the tree",
            |site| symlink("/etc", site.root("etc")).unwrap(),
            "root/etc\": it is a symbolic link",
        ),
        (
            "a program is a link",
            |site| {
                fs::create_dir_all(site.root("usr/bin")).unwrap();
                symlink("/bin/true", site.root("usr/bin/portcullis")).unwrap();
            },
            "usr/bin/portcullis\": it is a symbolic link",
        ),
        (
            "a unit is masked",
            |site| {
                fs::create_dir_all(site.root("etc/systemd/system")).unwrap();
                symlink("/dev/null", site.root("etc/systemd/system/portcullis.service")).unwrap();
            },
            "portcullis.service\": it is a symbolic link",
        ),
        (
            "the manifest is a link",
            |site| {
                fs::create_dir_all(site.root("usr/lib/portcullis")).unwrap();
                symlink("/etc/passwd", site.root(MANIFEST)).unwrap();
            },
            "manifest.json\": it is a symbolic link",
        ),
        (
            "others may write a directory",
            |site| {
                fs::create_dir_all(site.root("usr/lib")).unwrap();
                fs::set_permissions(site.root("usr"), fs::Permissions::from_mode(0o775)).unwrap();
            },
            "root/usr\": others may write it (mode 0775); chmod go-w",
        ),
        (
            "others may write the root",
            |site| fs::set_permissions(site.path("root"), fs::Permissions::from_mode(0o777)).unwrap(),
            "root\": others may write it (mode 0777)",
        ),
        (
            "others may write what is above the root",
            |site| fs::set_permissions(site.path(""), fs::Permissions::from_mode(0o757)).unwrap(),
            "others may write it (mode 0757)",
        ),
        (
            "somebody else's program",
            |site| site.put(&site.root("usr/bin/portcullis"), b"mine", 0o755),
            "usr/bin/portcullis\": there is a file that was not installed by this; move it away",
        ),
        (
            "a directory in a file's place",
            |site| fs::create_dir_all(site.root("etc/tmpfiles.d/portcullis.conf")).unwrap(),
            "portcullis.conf\": it is a directory, expected a file",
        ),
        (
            "the package is there",
            |site| {
                let list = "/.\n/usr/lib/portcullis\n/usr/lib/portcullis/portcullis-worker\n";
                site.put(&site.root("var/lib/dpkg/info/portcullis.list"), list.as_bytes(), 0o644);
            },
            "install over the package \"portcullis\"",
        ),
        (
            "the package was removed and not purged",
            |site| {
                let list = "/.\n/etc\n/etc/portcullis\n/etc/portcullis/portcullis.toml\n";
                site.put(&site.root("var/lib/dpkg/info/portcullis.list"), list.as_bytes(), 0o644);
            },
            "even after apt remove; apt purge it first",
        ),
    ];
    for (what, set, expected) in traps {
        let site = Site::new();
        set(&site);
        let before = site.snapshot();
        let output = site.install(&[]);
        let error = bad(&output, 1);
        assert!(error.contains(expected), "{what}: {error}");
        assert!(output.stdout.is_empty(), "{what}");
        assert_eq!(site.snapshot(), before, "{what}");
    }
}

/// The programs that are built, and not only what a test made up, say what they are.
#[test]
fn the_programs_as_built_are_installed() {
    let site = Site::new();
    let arguments = ["install", "--systemd", "--dry-run"];
    let said = good(&site.command(&arguments).output().unwrap());
    for name in programs() {
        assert!(said.contains(&format!("would place /{} (0755)\n", place_of(&name))), "{said}");
    }
}

/// Whoever may read a directory may lock it.
#[test]
fn only_another_installation_keeps_an_installation_out() {
    let site = Site::new();
    let lock = |path: &Path| {
        let file = fs::File::open(path).unwrap();
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap()
    };
    let held = lock(&site.path("root"));
    good(&site.install(&[]));
    drop(held);
    let before = site.snapshot();
    let path = site.root(".portcullis-install.lock");
    assert!(!path.exists());
    site.put(&path, b"", 0o600);
    let held = lock(&path);
    let error = bad(&site.uninstall(&["--purge"]), 1);
    assert!(error.contains("another install or uninstall is at work there; wait for it"), "{error}");
    drop(held);
    assert_eq!(site.snapshot().len(), before.len() + 1);
    // One that somebody who was killed left behind is nobody's.
    good(&site.uninstall(&["--purge"]));
    assert_eq!(site.snapshot(), Snapshot::new());
}

#[test]
fn a_link_to_the_root_is_followed_only_if_nobody_else_can_lead_it_elsewhere() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give a link away");
        return;
    }
    let site = Site::new();
    let link = site.path("link");
    symlink("./programs/../root", &link).unwrap();
    let install = || {
        let mut command = Command::new(PORTCULLIS);
        command.args(["install", "--systemd", "--from"]).arg(site.path("programs"));
        command.arg("--root").arg(&link).output().unwrap()
    };
    std::os::unix::fs::lchown(&link, Some(ORDINARY), Some(ORDINARY)).unwrap();
    let error = bad(&install(), 1);
    assert!(error.contains(&format!("link\": owned by uid {ORDINARY}, expected 0")), "{error}");
    assert_eq!(site.snapshot(), Snapshot::new());
    std::os::unix::fs::lchown(&link, Some(0), Some(0)).unwrap();
    // A directory that is only on the way counts as well.
    chown(site.path("programs"), Some(ORDINARY), Some(ORDINARY)).unwrap();
    let error = bad(&install(), 1);
    assert!(error.contains(&format!("programs\": owned by uid {ORDINARY}, expected 0")), "{error}");
    chown(site.path("programs"), Some(0), Some(0)).unwrap();
    good(&install());
    assert_eq!(table(&site.snapshot()), expected_table());
}

/// A file where a directory has to be made: what was made before that is known, and goes.
#[test]
fn a_first_installation_that_fails_leaves_nothing_that_cannot_be_taken_away() {
    let site = Site::new();
    let would = good(&site.install(&["--dry-run"]));
    let lines: Vec<&str> = would.lines().collect();
    let recorded = lines.iter().position(|line| line.starts_with("would record")).unwrap();
    let before: Vec<&str> = lines[..recorded].to_vec();
    assert_eq!(
        before,
        ["/usr", "/usr/lib", "/usr/lib/portcullis"].map(|path| format!("would make directory {path} (0755)"))
    );
}

#[test]
fn what_cannot_be_purged_is_named_and_keeps_nothing_else_here() {
    let site = Site::new();
    good(&site.install(&[]));
    fs::create_dir_all(site.path("disk/portcullis/shared")).unwrap();
    fs::create_dir_all(site.root("var")).unwrap();
    symlink(site.path("disk"), site.root("var/cache")).unwrap();
    let drop_in = "etc/systemd/system/portcullis.service.d";
    site.put(&site.root(drop_in).join("mine.conf"), b"[Service]\n", 0o644);
    let said = good(&site.uninstall(&["--purge"]));
    assert!(
        said.contains("left alone: use \"") && said.contains("var/cache\": it is a symbolic link"),
        "{said}"
    );
    assert!(
        said.contains(&format!("left alone: /{drop_in} has settings that were not installed by this")),
        "{said}"
    );
    assert!(said.ends_with("everything else is gone\n"), "{said}");
    let left: Vec<String> =
        site.snapshot().into_keys().filter(|path| !path.starts_with("etc/systemd")).collect();
    assert_eq!(left, ["etc", "var", "var/cache"]);
    assert!(site.path("disk/portcullis/shared").exists());
}

#[test]
fn what_is_mounted_in_a_cache_is_not_emptied() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let site = Site::new();
    good(&site.install(&[]));
    let (mounted, other) = (site.root("etc/portcullis/a place"), site.path("other"));
    fs::create_dir_all(&mounted).unwrap();
    site.put(&other.join("kept"), b"kept", 0o644);
    let mount = Command::new("mount").arg("--bind").args([&other, &mounted]).status();
    assert!(mount.unwrap().success(), "mount --bind needs CAP_SYS_ADMIN: sudo cargo test --test install");
    let before = site.snapshot();
    let refused = site.uninstall(&["--purge"]);
    let after = site.snapshot();
    assert!(Command::new("umount").arg(&mounted).status().unwrap().success());
    let error = bad(&refused, 1);
    assert!(error.contains("a place\"; unmount it") && error.contains("something is mounted at"), "{error}");
    assert_eq!(after, before);
    assert_eq!(fs::read(other.join("kept")).unwrap(), b"kept");
    good(&site.uninstall(&["--purge"]));
    assert_eq!(site.snapshot(), Snapshot::new());
}

/// Links that were put there after the installation.
#[test]
fn uninstalling_follows_no_link() {
    let site = Site::new();
    good(&site.install(&[]));
    let policies = site.path("elsewhere");
    fs::rename(site.root("etc/portcullis"), &policies).unwrap();
    symlink(&policies, site.root("etc/portcullis")).unwrap();
    let unit = "etc/systemd/system/portcullis.service";
    fs::rename(site.root(unit), site.path("unit")).unwrap();
    symlink(site.path("unit"), site.root(unit)).unwrap();
    let said = good(&site.uninstall(&["--purge"]));
    assert!(said.contains("portcullis.service\": it is a symbolic link, and none is followed"), "{said}");
    let left: Vec<String> = site.snapshot().into_keys().collect();
    assert_eq!(left, ["etc", "etc/systemd", "etc/systemd/system", unit]);
    assert!(policies.join("portcullis.toml").exists() && site.path("unit").exists());

    // The manifest itself is not read through one.
    let site = Site::new();
    good(&site.install(&[]));
    fs::rename(site.root("usr/lib/portcullis"), site.path("elsewhere")).unwrap();
    symlink(site.path("elsewhere"), site.root("usr/lib/portcullis")).unwrap();
    let before = site.snapshot();
    let error = bad(&site.uninstall(&["--purge"]), 1);
    assert!(error.contains("usr/lib/portcullis\": it is a symbolic link"), "{error}");
    assert_eq!(site.snapshot(), before);
}

#[test]
fn everything_in_the_way_is_said_at_once() {
    let site = Site::new();
    site.put(&site.root("usr/bin/portcullis"), b"mine", 0o755);
    site.put(&site.root("etc/passwd"), b"eve:x:61000:61000::/:/bin/sh\n", 0o644);
    site.put(&site.root("etc/tmpfiles.d/portcullis.conf"), b"mine", 0o646);
    let error = bad(&site.install(&[]), 1);
    assert!(error.starts_with("portcullis: 3 things are in the way, nothing was done:\n"), "{error}");
    for part in
        ["there is user \"eve\" with number 61000", "usr/bin/portcullis", "others may write it (mode 0646)"]
    {
        assert!(error.contains(part), "no {part} in {error}");
    }
}

#[test]
fn programs_that_do_not_fit_are_refused_by_name() {
    type Change = fn(&Site, &Path);
    let changes: [(Change, &str); 7] = [
        (
            |_, path| fs::remove_file(path).unwrap(),
            "No such file or directory (os error 2); all of them are expected",
        ),
        (|site, path| site.put(path, &program("one", "x"), 0o775), "others may write it (mode 0775)"),
        (
            |site, path| site.put(path, b"#!/bin/sh\nexec something-else\n", 0o755),
            "not a program for the machine",
        ),
        (
            |_, path| {
                fs::rename(path, path.with_extension("moved")).unwrap();
                symlink(path.with_extension("moved"), path).unwrap();
            },
            "Too many levels of symbolic links",
        ),
        (
            // One of the others, under this one's name.
            |site, path| {
                let names = programs();
                let other = names.iter().find(|name| path.file_name().unwrap() != name.as_str()).unwrap();
                site.put(path, &program("one", other), 0o755);
            },
            "not the program portcullis",
        ),
        (
            |site, path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let mut bytes = program("one", name);
                bytes.truncate(20);
                bytes.extend_from_slice(mark(name, "0.0.0").as_bytes());
                site.put(path, &bytes, 0o755);
            },
            "to install another version, use the portcullis beside it",
        ),
        (
            |_, path| {
                let above = path.parent().unwrap();
                fs::set_permissions(above, fs::Permissions::from_mode(0o777)).unwrap();
            },
            "programs\": others may write it (mode 0777)",
        ),
    ];
    for name in programs() {
        for (change, expected) in &changes {
            let site = Site::new();
            let path = site.path("programs").join(&name);
            change(&site, &path);
            let error = bad(&site.install(&[]), 1);
            let named = [path.as_path(), path.parent().unwrap()]
                .iter()
                .any(|path| error.contains(path.to_str().unwrap()));
            assert!(error.contains(expected) && named, "{error}");
            assert_eq!(site.snapshot(), Snapshot::new());
        }
    }
}

#[test]
fn a_dry_run_changes_nothing_and_says_the_same() {
    let site = Site::new();
    let steps = |said: &str| -> Vec<String> {
        let lines = said.lines().map(|line| line.trim_start_matches("would ").to_owned());
        lines.filter(|line| !line.starts_with("next:") && !line.starts_with("nothing ")).collect()
    };
    let would = good(&site.install(&["--dry-run"]));
    assert_eq!(site.snapshot(), Snapshot::new());
    assert!(
        would.lines().all(|line| line.starts_with("would ") || line == "nothing was done: --dry-run"),
        "{would}"
    );
    let did = good(&site.install(&[]));
    assert_eq!(steps(&would), steps(&did));
    let installed = site.snapshot();
    let would = good(&site.uninstall(&["--purge", "--dry-run"]));
    assert_eq!(site.snapshot(), installed);
    assert_eq!(steps(&would), steps(&good(&site.uninstall(&["--purge"]))));
}

/// No file may grow beyond a limit that only one of the programs exceeds: by an error, and by a signal, as a process
/// dies when the machine is switched off.
#[test]
fn what_was_cut_short_is_told_and_goes_on_or_back() {
    for (ignored, goes_on) in [(true, true), (true, false), (false, true), (false, false)] {
        let site = Site::new();
        good(&site.install(&[]));
        site.ship("two");
        let limited = |site: &Site| {
            let trap = if ignored { "trap '' XFSZ; " } else { "" };
            // Blocks of 512 bytes.
            let mut command = Command::new("sh");
            command.args(["-c", &format!("{trap}ulimit -f 100; exec \"$@\""), "sh", PORTCULLIS]);
            command.args(["install", "--systemd", "--from"]).arg(site.path("programs"));
            command.arg("--root").arg(site.path("root")).output().unwrap()
        };
        // The copy of the one before is cut short already; and when that is there, the new one itself.
        let output = limited(&site);
        if ignored {
            let error = bad(&output, 1);
            assert!(error.contains("place \"") && error.contains("File too large"), "{error}");
            assert!(error.contains("steps are done, the others are listed as \"not done\""), "{error}");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                said.contains("\nnot done: place /usr/lib/portcullis/portcullis-worker (0755)\n"),
                "{said}"
            );
        } else {
            assert!(!output.status.success());
        }
        // Whatever is there is one version or the other, as a whole.
        for name in programs() {
            let content = site.read(&place_of(&name));
            assert!(["one", "two"].iter().any(|version| content == program(version, &name)), "{name}");
        }
        if goes_on {
            good(&site.install(&[]));
            for name in programs() {
                assert_eq!(site.read(&place_of(&name)), program("two", &name));
                assert_eq!(site.read(&format!("usr/lib/portcullis/previous/{name}")), program("one", &name));
            }
        }
        good(&site.uninstall(&["--purge"]));
        assert_eq!(site.snapshot(), Snapshot::new());
    }
}

/// Half of the programs replaced, and then yet another version: what can be gone back to is the last whole one.
#[test]
fn an_upgrade_after_one_that_was_cut_short_keeps_the_last_whole_set() {
    let site = Site::new();
    good(&site.install(&[]));
    let first = site.read(MANIFEST);
    site.ship("two");
    good(&site.install(&[]));
    // As it is after the first program was replaced: the manifest still speaks of both.
    let mut manifest: serde_json::Value = serde_json::from_slice(&site.read(MANIFEST)).unwrap();
    let before: serde_json::Value = serde_json::from_slice(&first).unwrap();
    let old = before["files"].as_array().unwrap();
    for placed in manifest["files"].as_array_mut().unwrap() {
        if let Some(old) =
            old.iter().find(|old| old["path"] == placed["path"] && old["digests"] != placed["digests"])
        {
            placed["digests"] = serde_json::json!([old["digests"][0], placed["digests"][0]]);
        }
    }
    site.put(&site.root(MANIFEST), manifest.to_string().as_bytes(), 0o644);
    for name in programs().iter().skip(1) {
        site.put(&site.root(&place_of(name)), &program("one", name), 0o755);
    }
    site.ship("three");
    good(&site.install(&[]));
    for name in programs() {
        assert_eq!(site.read(&place_of(&name)), program("three", &name));
        assert_eq!(site.read(&format!("usr/lib/portcullis/previous/{name}")), program("one", &name));
    }
}

#[test]
fn without_a_manifest_nothing_is_removed() {
    let site = Site::new();
    site.put(&site.root("usr/bin/portcullis"), b"mine", 0o755);
    let before = site.snapshot();
    let error = bad(&site.uninstall(&["--purge"]), 1);
    assert!(
        error.contains("manifest.json\": no such file; `portcullis install` placed nothing here"),
        "{error}"
    );
    assert_eq!(site.snapshot(), before);
    let error = bad(&site.command(&["install"]).output().unwrap(), 64);
    assert!(error.contains("--systemd"), "{error}");
}

/// An image of a whole system: users are made in it, and gone afterwards.
#[test]
fn users_and_directories_are_made_in_an_image() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make users");
        return;
    }
    let site = Site::new();
    let (users, groups) = ("root:x:0:0:root:/root:/bin/sh\n", "root:x:0:\n");
    site.put(&site.root("etc/passwd"), users.as_bytes(), 0o644);
    site.put(&site.root("etc/group"), groups.as_bytes(), 0o644);
    // Without them, or without systemd, the message has the command that installs it.
    let said = good(&site.install(&[]));
    assert!(said.contains("\nrun systemd-sysusers --root="), "{said}");
    let passwd = String::from_utf8(site.read("etc/passwd")).unwrap();
    assert!(passwd.contains("\nportcullis-shared:x:61001:61001:"), "{passwd}");
    assert!(passwd.contains("\nportcullis-frontend:x:61000:61000:"), "{passwd}");
    let mode = |path: &str| {
        let metadata = fs::metadata(site.root(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid())
    };
    assert_eq!(mode("var/cache/portcullis"), (0o711, 0));
    assert_eq!(mode("var/cache/portcullis/shared"), (0o700, 61_001));
    assert_eq!(mode("var/lib/portcullis/store"), (0o755, 0));
    assert_eq!(mode("var/lib/portcullis/state"), (0o700, 61_009));

    site.put(&site.root("var/lib/portcullis/store/acme/gate.tar"), b"policy", 0o644);
    good(&site.uninstall(&["--purge"]));
    assert_eq!(site.read("etc/passwd"), users.as_bytes());
    assert_eq!(site.read("etc/group"), groups.as_bytes());
    let ours: Vec<String> = site.snapshot().into_keys().filter(|path| path.contains("portcullis")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

/// What was there before stays, be it only the group of a user that was made.
#[test]
fn users_and_groups_that_were_there_before_stay() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make users");
        return;
    }
    let site = Site::new();
    let nobody = "portcullis-shared:x:61001:61001::/:/usr/sbin/nologin\n";
    let users = format!("root:x:0:0:root:/root:/bin/sh\n{nobody}");
    let groups = "root:x:0:\nnogroup:x:65534:\nportcullis:x:998:\nportcullis-shared:x:61001:\n";
    site.put(&site.root("etc/passwd"), users.as_bytes(), 0o644);
    site.put(&site.root("etc/group"), groups.as_bytes(), 0o644);
    // As Debian has it: userdel takes the group of that name along.
    site.put(&site.root("etc/login.defs"), b"USERGROUPS_ENAB yes\n", 0o644);
    good(&site.install(&[]));
    let passwd = String::from_utf8(site.read("etc/passwd")).unwrap();
    assert!(passwd.contains("\nportcullis:x:998:998:"), "{passwd}");
    good(&site.uninstall(&["--purge"]));
    assert_eq!(String::from_utf8(site.read("etc/passwd")).unwrap(), users);
    assert_eq!(String::from_utf8(site.read("etc/group")).unwrap(), groups);
}

/// What was just installed starts, and says why it lets nothing through.
#[test]
fn the_first_configuration_runs() {
    let site = Site::new();
    good(&site.install(&[]));
    let mut text = String::from_utf8(site.read("etc/portcullis/portcullis.toml")).unwrap();
    for (path, name) in [
        ("/run/portcullis", "run"),
        ("/var/lib/portcullis/store", "store"),
        ("/var/lib/portcullis/state", "state"),
        ("/etc/portcullis/trust.toml", "trust.toml"),
        ("/etc/portcullis/tenants.d", "tenants.d"),
        ("/var/cache/portcullis/shared", "cache"),
    ] {
        assert!(text.contains(&format!("\"{path}")), "{path} is not in it");
        text = text.replace(&format!("\"{path}"), &format!("\"{}", site.path(name).display()));
        if name == "trust.toml" {
            site.put(&site.path(name), &site.read("etc/portcullis/trust.toml"), 0o644);
            continue;
        }
        fs::create_dir(site.path(name)).unwrap();
        fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["cache", "state"] {
        fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    if nix::unistd::geteuid().is_root() {
        chown(site.path("cache"), Some(61_001), Some(61_001)).unwrap();
        chown(site.path("state"), Some(61_009), Some(61_009)).unwrap();
    } else {
        text = text.replace("[service]\n", "[service]\nrequire_distinct_uids = false\n");
    }
    // It is not about how long a busy machine stands still.
    let text = text.replace("[service]\n", "[service]\nanswer_within = \"10s\"\n");
    let configuration = site.path("portcullis.toml");
    site.put(&configuration, text.as_bytes(), 0o644);
    let supervisor = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-supervisor"));
        command.arg("--config").arg(&configuration).stdin(Stdio::null());
        command
    };
    let checked = supervisor().arg("--check").output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let notify = UnixDatagram::bind(site.path("run/notify.sock")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut running = supervisor().env("NOTIFY_SOCKET", site.path("run/notify.sock")).spawn().unwrap();
    let mut buffer = [0; 4096];
    loop {
        let length = notify.recv(&mut buffer).unwrap_or_else(|error| {
            running.kill().unwrap();
            panic!("it did not start: {error}")
        });
        if String::from_utf8_lossy(&buffer[..length]).contains("READY=1") {
            break;
        }
    }
    let ask = |command: &str, more: &[&str]| {
        let socket = if command == "status" { "run/operator.sock" } else { "run/decide.sock" };
        let mut ask = Command::new(PORTCULLIS);
        ask.arg(command).args(more).arg("--socket").arg(site.path(socket)).output().unwrap()
    };
    let status = ask("status", &[]);
    let decided = ask("decide", &["--tenant", "acme", "--policy", "gate", "--url", "https://shop.example/"]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(running.wait().unwrap().success());
    assert!(String::from_utf8_lossy(&status.stdout).contains("no policies"), "{status:?}");
    assert!(matches!(decided.status.code(), Some(2 | 3)), "{decided:?}");
}
