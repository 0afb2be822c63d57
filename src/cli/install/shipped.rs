//! What an installation consists of: programs from beside this one, and texts that are part of it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::root::resolve;
use super::tree::{TreeError, digest_of};
use crate::artifact::Digest;
use crate::cli::pages::{Page, pages};
use crate::sandbox::Role;

/// Programs that nobody types the names of.
pub(super) const PROGRAMS: &str = "/usr/lib/portcullis";
/// The one that people type.
const COMMAND: &str = "portcullis";
/// What is on the host and in no package: units, users, directories.
pub(super) const SYSUSERS: &str = include_str!("../../../systemd/portcullis.sysusers");
pub(super) const TMPFILES: &str = include_str!("../../../systemd/portcullis.tmpfiles");
/// The name of both, as systemd-sysusers and systemd-tmpfiles want to hear it.
pub(super) const CONF: &str = "portcullis.conf";

const DOCUMENTS: &str = "/usr/share/doc/portcullis";
const UNITS: [(&str, &str); 3] = [
    ("portcullis.socket", include_str!("../../../systemd/portcullis.socket")),
    ("portcullis-operator.socket", include_str!("../../../systemd/portcullis-operator.socket")),
    ("portcullis.service", include_str!("../../../systemd/portcullis.service")),
];
const TEXTS: [(&str, &str); 13] = [
    ("/usr/share/doc/portcullis/bundle.md", include_str!("../../../docs/bundle.md")),
    ("/usr/share/doc/portcullis/data.md", include_str!("../../../docs/data.md")),
    ("/usr/share/doc/portcullis/trust.md", include_str!("../../../docs/trust.md")),
    ("/usr/share/doc/portcullis/policies.md", include_str!("../../../docs/policies.md")),
    ("/usr/share/doc/portcullis/configuration.md", include_str!("../../../docs/configuration.md")),
    ("/usr/share/doc/portcullis/tenancy.md", include_str!("../../../docs/tenancy.md")),
    ("/usr/share/doc/portcullis/systemd.md", include_str!("../../../docs/systemd.md")),
    ("/usr/share/doc/portcullis/attest.md", include_str!("../../../docs/attest.md")),
    (
        "/usr/share/doc/portcullis/portcullis.example.toml",
        include_str!("../../../docs/portcullis.example.toml"),
    ),
    // No units that are enabled with the others: who has telemetry or a gateway enables them.
    (
        "/etc/systemd/system/portcullis-telemetry.socket",
        include_str!("../../../systemd/portcullis-telemetry.socket"),
    ),
    (
        "/etc/systemd/system/portcullis-gateway.socket",
        include_str!("../../../systemd/portcullis-gateway.socket"),
    ),
    ("/etc/sysusers.d/portcullis.conf", SYSUSERS),
    ("/etc/tmpfiles.d/portcullis.conf", TMPFILES),
];
const CONFIGURATION: [(&str, &str); 2] = [
    ("/etc/portcullis/trust.toml", include_str!("../../../systemd/trust.toml")),
    ("/etc/portcullis/portcullis.toml", include_str!("../../../systemd/portcullis.toml")),
];

/// One step of looking through a program, bytes.
const READ_AT_ONCE: u64 = 1 << 20;

/// Why a program cannot be installed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShippedError {
    #[error("find the programs: {0}")]
    Here(#[source] io::Error),
    #[error("make the manual pages: {0}")]
    Pages(#[source] io::Error),
    #[error(
        "open program {path:?}: {source}; all of them are expected in one directory, say which with --from"
    )]
    Open { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Way(#[from] TreeError),
    #[error("open program {path:?}: {why}")]
    Unfit { path: PathBuf, why: String },
}

/// What kind of thing it is, which decides what happens where it is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Replaced; what was there before is kept as the previous one.
    Program,
    /// Replaced unless the administrator changed it.
    Text,
    /// Left alone if anything is there.
    Configuration,
}

/// A file to be.
#[derive(Debug)]
pub(super) struct Shipped {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) digest: Digest,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Program(File),
    Text(Cow<'static, [u8]>),
}

impl Shipped {
    pub(super) fn mode(&self) -> u32 {
        if self.kind == Kind::Program { 0o755 } else { 0o644 }
    }

    /// From its first byte.
    pub(super) fn content(&self) -> io::Result<Box<dyn Read + '_>> {
        match &self.content {
            Content::Program(file) => {
                let mut file = file;
                file.rewind()?;
                Ok(Box::new(file))
            }
            Content::Text(text) => Ok(Box::new(Cursor::new(text.as_ref()))),
        }
    }

    fn text(path: &str, text: &'static str, kind: Kind) -> Self {
        Self::of(path.into(), Cow::Borrowed(text.as_bytes()), kind)
    }

    /// What the program gives itself.
    fn page(page: Page) -> Self {
        Self::of(page.path, Cow::Owned(page.text), Kind::Text)
    }

    fn of(path: PathBuf, text: Cow<'static, [u8]>, kind: Kind) -> Self {
        Self { path, kind, digest: Digest::of(&text), content: Content::Text(text) }
    }
}

/// Everything, in the order in which it is placed: units last, so that none names what is not there yet.
pub(super) fn shipped(from: Option<&Path>) -> Result<Vec<Shipped>, ShippedError> {
    let mut all = programs(from)?;
    all.extend(TEXTS.map(|(path, text)| Shipped::text(path, text, Kind::Text)));
    all.extend(pages().map_err(ShippedError::Pages)?.into_iter().map(Shipped::page));
    all.extend(CONFIGURATION.map(|(path, text)| Shipped::text(path, text, Kind::Configuration)));
    all.extend(
        UNITS.map(|(name, text)| Shipped::text(&format!("/etc/systemd/system/{name}"), text, Kind::Text)),
    );
    Ok(all)
}

/// The sockets before the service that takes them.
pub(super) fn units() -> [&'static str; 3] {
    UNITS.map(|(name, _)| name)
}

/// The name of every program there is: one for people, one for each role.
pub(super) fn program_names() -> impl Iterator<Item = String> {
    let roles = Role::ALL.into_iter().map(|role| format!("{COMMAND}-{role}"));
    std::iter::once(COMMAND.to_owned()).chain(roles)
}

/// The directories that systemd-tmpfiles makes, each after the one it is in.
pub(super) fn directories() -> Vec<PathBuf> {
    let made = TMPFILES.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("d")).then(|| words.next()).flatten()
    });
    // The documents' directory is nobody else's either.
    let all: BTreeSet<PathBuf> = made.chain([PROGRAMS, DOCUMENTS]).map(PathBuf::from).collect();
    all.into_iter().collect()
}

fn programs(from: Option<&Path>) -> Result<Vec<Shipped>, ShippedError> {
    let own = Path::new("/proc/self/exe");
    // Whoever owns this very program is trusted with the others too.
    let trusted = own.metadata().map_err(ShippedError::Here)?.uid();
    let machine = machine(&mut File::open(own).map_err(ShippedError::Here)?).map_err(ShippedError::Here)?;
    let here = own.read_link().map_err(ShippedError::Here)?;
    let from = resolve(from.or_else(|| here.parent()).unwrap_or(Path::new("/")), &[trusted])?;
    program_names()
        .map(|name| {
            let path =
                if name == COMMAND { format!("/usr/bin/{name}") } else { format!("{PROGRAMS}/{name}") };
            let (file, digest) = program(&find(&from, &name)?, &name, trusted, machine)?;
            Ok(Shipped { path: path.into(), kind: Kind::Program, digest, content: Content::Program(file) })
        })
        .collect()
}

/// Beside the others, or where an installation has them: `/usr/bin/portcullis` can install what it was installed with.
fn find(from: &Path, name: &str) -> Result<PathBuf, TreeError> {
    let beside = from.join(name);
    let installed = Path::new(PROGRAMS).join(name);
    if from == Path::new("/usr/bin") && !beside.exists() && installed.exists() {
        return Ok(resolve(Path::new(PROGRAMS), &[])?.join(name));
    }
    Ok(beside)
}

fn program(path: &Path, name: &str, trusted: u32, machine: [u8; 20]) -> Result<(File, Digest), ShippedError> {
    let failed = |source| ShippedError::Open { path: path.into(), source };
    let unfit = |why| Err(ShippedError::Unfit { path: path.into(), why });
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let own = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() {
        return unfit("not a regular file".to_owned());
    }
    if ![0, own, trusted].contains(&owner) {
        let expected = if own == 0 { "0".to_owned() } else { format!("{own} or 0") };
        return unfit(format!("owned by uid {owner}, expected {expected}; chown it, or take another copy"));
    }
    if mode & 0o022 != 0 {
        return unfit(format!("others may write it (mode {mode:04o}); chmod go-w {}", path.display()));
    }
    if self::machine(&mut file).ok() != Some(machine) {
        return unfit("not a program for the machine that this one is for".to_owned());
    }
    // Which program it is, and of which version, is written in it: the units and texts are those of this one.
    let version = env!("CARGO_PKG_VERSION");
    let mark = format!("portcullis program {name} {version}\n");
    if !contains(&mut file, mark.as_bytes()).map_err(failed)? {
        return unfit(format!(
            "not the program {name} of version {version}; to install another version, use the portcullis beside it"
        ));
    }
    file.rewind().map_err(failed)?;
    let digest = digest_of(&mut file).map_err(failed)?;
    Ok((file, digest))
}

/// Whether `mark` is somewhere in what can still be read.
fn contains(file: &mut File, mark: &[u8]) -> io::Result<bool> {
    let first = mark.first().copied().unwrap_or_default();
    let mut chunk = Vec::new();
    loop {
        // The end of the one before may be the beginning of it.
        let kept = chunk.len().min(mark.len().saturating_sub(1));
        chunk.drain(..chunk.len().saturating_sub(kept));
        if file.by_ref().take(READ_AT_ONCE).read_to_end(&mut chunk)? == 0 {
            return Ok(false);
        }
        let mut rest = chunk.as_slice();
        while let Some(at) = rest.iter().position(|byte| *byte == first) {
            let from = rest.get(at..).unwrap_or_default();
            if from.starts_with(mark) {
                return Ok(true);
            }
            rest = from.get(1..).unwrap_or_default();
        }
    }
}

/// What an ELF file says first of all: class, byte order, ABI, kind, machine.
fn machine(file: &mut File) -> io::Result<[u8; 20]> {
    let mut start = [0; 20];
    file.read_exact(&mut start)?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_repository(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    #[test]
    fn every_program_of_the_crate_is_installed() {
        let mut built: Vec<String> = std::fs::read_dir(in_repository("src/bin"))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        built.sort();
        let mut installed: Vec<String> = program_names().collect();
        installed.sort();
        assert_eq!(installed, built);
    }

    #[test]
    fn the_package_has_what_an_installation_has() {
        let cargo = std::fs::read_to_string(in_repository("Cargo.toml")).unwrap();
        let cargo: toml::Table = cargo.parse().unwrap();
        let deb = &cargo["package"]["metadata"]["deb"];
        // What `portcullis man --out target/man --completions` writes.
        let pages = pages().unwrap();
        let page_names = || pages.iter().map(|page| page.path.file_name().unwrap().to_str().unwrap());
        let mut packaged: Vec<(String, String)> = deb["assets"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|asset| {
                let part = |index: usize| asset[index].as_str().unwrap().to_owned();
                let (source, target, mode) = (part(0), part(1), part(2));
                let names: Vec<String> = match source.strip_prefix("target/man/") {
                    Some("*.1") => page_names().filter(|name| name.ends_with(".1")).map(Into::into).collect(),
                    Some(name) => {
                        assert!(page_names().any(|page| page == name), "{name} is not made");
                        vec![name.to_owned()]
                    }
                    None => vec![Path::new(&source).file_name().unwrap().to_str().unwrap().to_owned()],
                };
                let target = move |name: String| match target.strip_prefix('/').unwrap_or(&target) {
                    folder if folder.ends_with('/') => (format!("/{folder}{name}"), mode.clone()),
                    whole => (format!("/{whole}"), mode.clone()),
                };
                names.into_iter().map(target)
            })
            .collect();
        packaged.sort();
        // What is the administrator's in an installation by hand is the distribution's in a package.
        let mut expected: Vec<(String, String)> = program_names()
            .map(|name| match name.as_str() {
                COMMAND => (format!("/usr/bin/{name}"), "755".to_owned()),
                _ => (format!("{PROGRAMS}/{name}"), "755".to_owned()),
            })
            .collect();
        expected.extend(TEXTS.map(|(path, _)| (path.replace("/etc/", "/usr/lib/"), "644".to_owned())));
        expected.extend(pages.iter().map(|page| (page.path.to_str().unwrap().to_owned(), "644".to_owned())));
        expected.extend(UNITS.map(|(name, _)| (format!("/lib/systemd/system/{name}"), "644".to_owned())));
        expected.extend(CONFIGURATION.map(|(path, _)| (path.to_owned(), "644".to_owned())));
        expected.sort();
        // A package has more documents, which nothing needs.
        packaged.retain(|(path, mode)| {
            !path.starts_with(DOCUMENTS) || expected.contains(&(path.clone(), mode.clone()))
        });
        assert_eq!(packaged, expected);
        assert_eq!(
            deb["conf-files"].as_array().unwrap().as_slice(),
            [CONFIGURATION[1].0.into(), CONFIGURATION[0].0.into()]
        );
    }

    /// systemd-sysusers has not run yet when the package's scripts look who has the numbers.
    #[test]
    fn the_package_looks_for_the_users_of_the_list() {
        let users: Vec<String> = SYSUSERS
            .lines()
            .filter_map(|line| line.strip_prefix("u "))
            .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(":"))
            .collect();
        let script =
            |name: &str| std::fs::read_to_string(in_repository("systemd/debian").join(name)).unwrap();
        assert!(script("preinst").contains(&format!("\naccounts=\"{}\"\n", users.join(" "))), "{users:?}");
        let fixed: Vec<String> = users.into_iter().filter(|user| !user.ends_with('-')).collect();
        assert!(script("postinst").contains(&format!("\nfor account in {}; do\n", fixed.join(" "))));
    }

    #[test]
    fn directories_come_after_the_ones_they_are_in() {
        let all = directories();
        assert!(all.contains(&PathBuf::from("/var/cache/portcullis/shared")), "{all:?}");
        for (at, path) in all.iter().enumerate() {
            assert!(!all[..at].iter().any(|earlier| earlier.starts_with(path)), "{path:?} comes late");
        }
    }
}
