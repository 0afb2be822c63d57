//! A bundle, a store, and the commands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use portcullis::artifact::{Digest, Limits};
use portcullis::bundle::write::{self, NewAttachment};
use portcullis::bundle::{Annotations, Bundle, Draft, DraftCompiled, Platform, media, open_path};

/// Machine code, as far as anybody looks here: some pages of bytes that are not all the same.
pub(crate) const CODE_BYTES: usize = 300_000;

/// A directory with a bundle `gate` in it, an empty `store`, and a docker config with nothing in it.
pub(crate) struct Desk(tempfile::TempDir);

impl Desk {
    pub(crate) fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.make("gate", 1);
        for folder in ["store", "docker"] {
            fs::create_dir(desk.path(folder)).unwrap();
        }
        fs::write(desk.path("docker/config.json"), "{}").unwrap();
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A bundle of policy "gate" for tenant "acme", with a signature and a list of parts attached.
    pub(crate) fn make(&self, name: &str, version: u64) -> Bundle {
        let code = |seed: u64| {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(version);
            let next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u8
            };
            std::iter::repeat_with(next).take(CODE_BYTES).collect::<Vec<u8>>()
        };
        let compiled = |platform, seed| DraftCompiled {
            platform,
            cwasm: code(seed),
            wasmtime: "48.0.8".into(),
            engine: Digest::of(b"settings"),
        };
        let draft = Draft {
            policy: "gate".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            version,
            world: "portcullis:policy@0.1.0".into(),
            imports: vec!["clock".into()],
            exports: vec!["decide".into()],
            limits: Limits::default(),
            metrics: vec![],
            data: vec![],
            source: code(3),
            compiled: vec![compiled(Platform::LinuxAmd64, 1), compiled(Platform::LinuxArm64, 2)],
            rego: None,
            prepared: None,
        };
        write::create(&draft.assemble().unwrap(), &self.path(name)).unwrap();
        self.attach(name, media::SIGSTORE_BUNDLE, b"{\"signature\":1}");
        self.attach(name, media::SBOM, b"{\"parts\":[]}")
    }

    pub(crate) fn attach(&self, name: &str, kind: &str, bytes: &[u8]) -> Bundle {
        let new = NewAttachment::one(kind, bytes.to_vec(), Annotations::default());
        write::attach(&self.path(name), &new, |_| false).unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> Bundle {
        let layout = open_path(&self.path(name)).unwrap();
        let bundle = layout.read().unwrap();
        layout.check_blobs(&bundle).unwrap();
        bundle
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .arg("policy")
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .env("DOCKER_CONFIG", self.path("docker"));
        command
    }

    pub(crate) fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn good(&self, arguments: &str) -> serde_json::Value {
        let output = self.run(&format!("{arguments} --json"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command that fails says last, in one line.
    pub(crate) fn bad(&self, arguments: &str, code: i32) -> String {
        let output = self.run(&format!("{arguments} --quiet"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {error}");
        assert!(output.stdout.is_empty(), "{arguments}");
        assert!(error.starts_with("portcullis: "), "{error}");
        error
    }

    /// What the registry role would find in the store.
    pub(crate) fn in_store(&self) -> Vec<String> {
        names(&self.path("store")).into_iter().filter(|name| !name.starts_with('.')).collect()
    }

    /// What pulls have left in the store to be gone on with.
    pub(crate) fn partial(&self) -> Option<PathBuf> {
        let names = names(&self.path("store"));
        names.into_iter().find(|name| name.starts_with(".pull-")).map(|name| self.path("store").join(name))
    }

    /// The one blob that is not whole yet.
    pub(crate) fn part(&self) -> PathBuf {
        let blobs = self.partial().expect("a partial folder").join("blobs/sha256");
        let mut parts = names(&blobs).into_iter().filter(|name| name.ends_with(".part"));
        let part = parts.next().expect("a part");
        assert_eq!(parts.next(), None);
        blobs.join(part)
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file below a folder, with its bytes.
pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(top: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for name in names(folder) {
            let path = folder.join(name);
            if path.is_dir() {
                walk(top, &path, found);
            } else {
                found.insert(path.strip_prefix(top).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}
