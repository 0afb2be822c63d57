//! Against Debian's docker-registry, which has no referrers API.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use portcullis::artifact::Digest;
use portcullis::bundle::{Platform, media};

use crate::cutting::cut;
use crate::desk::{CODE_BYTES, Desk, contents, names};
use crate::ports::free_port;

/// A registry that runs, with its files.
struct Registry {
    child: Child,
    port: u16,
    files: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        Self::with(|_| String::new())
    }

    /// With more settings, which may name files that are put in its directory.
    fn with(settings: impl FnOnce(&Path) -> String) -> Self {
        let files = tempfile::tempdir().unwrap();
        let port = free_port();
        let settings = settings(files.path());
        let (http, rest) = settings.split_once('|').unwrap_or((settings.as_str(), ""));
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}{rest}",
            files.path().join("data").display()
        );
        let path = files.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("start docker-registry: {error}; apt-get install docker-registry")
            });
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap().contains("listening on")), "it ended");
        // Somebody has to read it, or it blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port, files }
    }

    fn reference(&self) -> String {
        format!("127.0.0.1:{}/policies/gate:v1", self.port)
    }

    /// Where it keeps the bytes of a digest.
    fn file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string().trim_start_matches("sha256:").to_owned();
        self.files.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_bundle_goes_to_a_registry_and_comes_back_byte_for_byte() {
    let (desk, registry) = (Desk::new(), Registry::start());
    let reference = registry.reference();
    let pushed = desk.good(&format!("push gate {reference} --plain-http"));
    let bundle = desk.read("gate");
    assert_eq!(pushed["bundle"], bundle.digest().to_string());
    assert_eq!((&pushed["attachments"], &pushed["reused"]), (&2.into(), &0.into()));
    assert!(pushed["sent"].as_u64().unwrap() > 3 * CODE_BYTES as u64);

    let pulled = desk.good(&format!("pull {reference} --plain-http --store store"));
    assert_eq!(
        (&pulled["tenant"], &pulled["policy"], &pulled["version"]),
        (&"acme".into(), &"gate".into(), &1.into())
    );
    assert_eq!((&pulled["path"], &pulled["attachments"]), (&"store/acme/gate".into(), &2.into()));
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
    assert_eq!(names(&desk.path("store")), ["acme"]);
    // Whoever reads the store may be another user.
    for (path, mode) in [("store/acme/gate", 0o755), ("store/acme/gate/index.json", 0o644)] {
        let metadata = fs::metadata(desk.path(path)).unwrap();
        assert_eq!(
            (metadata.permissions().mode() & 0o7777, metadata.uid()),
            (mode, nix::unistd::geteuid().as_raw())
        );
    }

    // By its digest, to a tar; and again over what is there.
    let by_digest = reference.replace(":v1", &format!("@{}", bundle.digest()));
    desk.good(&format!("pull {by_digest} --plain-http --out gate.tar"));
    assert_eq!(desk.read("gate.tar"), bundle);
    desk.good(&format!("pull {reference} --plain-http --store store --tenant acme --policy gate"));
    assert_eq!(desk.read("store/acme/gate"), bundle);
}

#[test]
fn what_is_there_is_not_sent_again_and_what_others_attached_stays() {
    let (desk, registry) = (Desk::new(), Registry::start());
    let reference = registry.reference();
    let first = desk.good(&format!("push gate {reference} --plain-http"));
    // Somebody else signs a copy of their own, and pushes it.
    desk.good(&format!("pull {reference} --plain-http --out theirs"));
    desk.attach("theirs", media::SIGSTORE_BUNDLE, b"{\"signature\":\"theirs\"}");
    let theirs = desk.good(&format!("push theirs {reference} --plain-http"));
    assert!(theirs["sent"].as_u64().unwrap() < 10_000, "{theirs}");
    assert!(theirs["reused"].as_u64().unwrap() > 3 * CODE_BYTES as u64, "{theirs} after {first}");
    // We sign ours, which lacks theirs.
    desk.attach("gate", media::SIGSTORE_BUNDLE, b"{\"signature\":\"ours\"}");
    desk.good(&format!("push gate {reference} --plain-http"));
    let all = desk.good(&format!("pull {reference} --plain-http --store store"));
    assert_eq!(all["attachments"], 4);
    let kept: Vec<_> = desk.read("store/acme/gate").attachments.into_iter().map(|one| one.manifest).collect();
    for one in desk.read("gate").attachments.iter().chain(&desk.read("theirs").attachments) {
        assert!(kept.contains(&one.manifest));
    }
}

#[test]
fn a_newer_bundle_takes_the_place_of_the_older_at_once() {
    let (desk, registry) = (Desk::new(), Registry::start());
    let reference = registry.reference();
    let pull = format!("pull {reference} --plain-http --store store");
    desk.good(&format!("push gate {reference} --plain-http"));
    desk.good(&pull);
    let before = fs::metadata(desk.path("store/acme/gate")).unwrap().ino();
    let newer = desk.make("newer", 2);
    desk.good(&format!("push newer {reference} --plain-http"));
    desk.good(&pull);
    assert_eq!(desk.read("store/acme/gate"), newer);
    assert_ne!(fs::metadata(desk.path("store/acme/gate")).unwrap().ino(), before);
    assert_eq!(names(&desk.path("store/acme")), ["gate"]);
}

#[test]
fn a_pull_that_breaks_off_is_gone_on_with() {
    let (desk, registry) = (Desk::new(), Registry::start());
    desk.good(&format!("push gate {} --plain-http", registry.reference()));
    // Through somebody who cuts the connection that has brought so much.
    let between = cut(registry.port, CODE_BYTES + 100_000);
    let pull = format!("pull 127.0.0.1:{}/policies/gate:v1 --plain-http --store store", between.port);
    let error = desk.bad(&pull, 75);
    assert!(
        error.contains("run the same command again") && error.contains("kept in \"store/.pull-"),
        "{error}"
    );
    assert_eq!(desk.in_store(), [""; 0]);
    let part = fs::metadata(desk.part()).unwrap().len();
    assert!(part > 0, "nothing was kept");

    between.stop_cutting();
    let pulled = desk.good(&pull);
    assert!(pulled["reused"].as_u64().unwrap() >= part, "{pulled}");
    assert!(pulled["received"].as_u64().unwrap() < 3 * CODE_BYTES as u64, "{pulled}");
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
    assert_eq!(desk.partial(), None);
}

#[test]
fn what_is_damaged_on_the_registrys_disk_is_refused() {
    let (desk, registry) = (Desk::new(), Registry::start());
    let reference = registry.reference();
    let pull = format!("pull {reference} --plain-http --store store");
    desk.good(&format!("push gate {reference} --plain-http"));
    let bundle = desk.read("gate");
    let fallback = fs::read_to_string(registry.files.path().join(format!(
        "data/docker/registry/v2/repositories/policies/gate/_manifests/tags/{}/current/link",
        bundle.digest().to_string().replace(':', "-")
    )));
    assert!(fallback.is_ok(), "what is attached is not listed under a tag");
    for blob in bundle.blobs() {
        let path = registry.file(&blob.digest);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(&path, &bad).unwrap();
        // The registry notices some of it itself, and says so in its own way.
        let output = desk.run(&format!("{pull} --quiet"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(0), "{} was taken", blob.digest);
        assert!(error.starts_with("portcullis: get "), "{error}");
        assert_eq!(desk.in_store(), [""; 0], "{error}");
        fs::write(&path, &good).unwrap();
        // Or what was good is there the next time, and is not asked for.
        if let Some(partial) = desk.partial() {
            fs::remove_dir_all(partial).unwrap();
        }
    }
    desk.good(&pull);
    assert_eq!(desk.read("store/acme/gate"), bundle);
}

#[test]
fn credentials_come_from_the_docker_config_and_from_helpers() {
    let registry = Registry::with(|files| {
        let made = Command::new("htpasswd")
            .args(["-Bbn", "ann", "hunter2"])
            .output()
            .unwrap_or_else(|error| panic!("run htpasswd: {error}; apt-get install apache2-utils"));
        fs::write(files.join("htpasswd"), made.stdout).unwrap();
        format!("|auth:\n  htpasswd:\n    realm: test\n    path: {}\n", files.join("htpasswd").display())
    });
    let desk = Desk::new();
    let host = format!("127.0.0.1:{}", registry.port);
    let push = format!("push gate {} --plain-http", registry.reference());
    let config = |text: String| fs::write(desk.path("docker/config.json"), text).unwrap();

    let error = desk.bad(&push, 1);
    assert!(error.contains("does not accept anonymous requests; docker login"), "{error}");
    let auth = |pair: &str| {
        let encoded = base64(pair);
        format!(r#"{{"auths":{{"{host}":{{"auth":"{encoded}"}}}}}}"#)
    };
    config(auth("ann:wrong"));
    let error = desk.bad(&push, 1);
    assert!(error.contains("does not accept the password of \"ann\"") && !error.contains("wrong"), "{error}");
    config(auth("ann:hunter2"));
    desk.good(&push);
    desk.good(&format!("pull {} --plain-http --store store", registry.reference()));

    // A helper, which is a program of the user's and not the fetcher's.
    config(format!(r#"{{"credHelpers":{{"{host}":"portcullis-test"}}}}"#));
    let helper = desk.path("docker-credential-portcullis-test");
    let script = format!(
        "#!/bin/sh\nread -r host\n[ \"$1 $host\" = \"get {host}\" ] || exit 1\necho '{{\"ServerURL\":\"\",\"Username\":\"ann\",\"Secret\":\"hunter2\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let with_helper = || -> Output {
        let path = format!("{}:{}", helper.parent().unwrap().display(), std::env::var("PATH").unwrap());
        desk.command(&push).env("PATH", path).output().unwrap()
    };
    let output = with_helper();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(&helper, "#!/bin/sh\necho 'the keyring is locked'\nexit 1\n").unwrap();
    let output = with_helper();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("docker-credential-portcullis-test") && error.contains("the keyring is locked"),
        "{error}"
    );
}

#[test]
fn tls_is_the_default_and_an_authority_of_ones_own_is_named() {
    let openssl = |files: &Path, arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(files)
            .output()
            .unwrap_or_else(|error| panic!("run openssl: {error}; apt-get install openssl"));
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let authority = |files: &Path, name: &str| {
        openssl(
            files,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ),
        );
    };
    let registry = Registry::with(|files| {
        authority(files, "ours");
        authority(files, "other");
        openssl(
            files,
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=registry -keyout registry.key -out registry.csr",
        );
        fs::write(files.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        openssl(
            files,
            "x509 -req -in registry.csr -CA ours.pem -CAkey ours.key -CAcreateserial -days 2 -extfile names -out registry.pem",
        );
        let file = |name: &str| files.join(name).display().to_string();
        format!("  tls:\n    certificate: {}\n    key: {}\n|", file("registry.pem"), file("registry.key"))
    });
    let desk = Desk::new();
    let ca = |name: &str| registry.files.path().join(name).display().to_string();
    // By name too: names are looked up by the sealed process.
    for host in ["127.0.0.1", "localhost"] {
        let reference = format!("{host}:{}/policies/gate:v1", registry.port);
        let error = desk.bad(&format!("push gate {reference}"), 75);
        assert!(error.contains("give the registry's authority with --ca"), "{error}");
        let error = desk.bad(&format!("push gate {reference} --ca {}", ca("other.pem")), 75);
        assert!(error.contains("certificate"), "{error}");
        let error = desk.bad(&format!("push gate {reference} --ca {}", ca("names")), 1);
        assert!(error.contains("--ca takes a file with one or more in PEM"), "{error}");
        desk.good(&format!("push gate {reference} --ca {}", ca("ours.pem")));
        let pulled = format!("{host}.out");
        desk.good(&format!("pull {reference} --ca {} --out {pulled}", ca("ours.pem")));
        assert_eq!(contents(&desk.path(&pulled)), contents(&desk.path("gate")));
    }
}

/// Others read what we pushed, and what they copy is what we pull.
#[test]
fn skopeo_reads_and_copies_what_was_pushed() {
    let (desk, registry) = (Desk::new(), Registry::start());
    let reference = registry.reference();
    desk.good(&format!("push gate {reference} --plain-http"));
    let bundle = desk.read("gate");
    let skopeo = |arguments: &str| {
        let output = Command::new("skopeo")
            .args(arguments.split(' '))
            .output()
            .unwrap_or_else(|error| panic!("run skopeo: {error}; apt-get install skopeo"));
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(skopeo(&format!("inspect --raw --tls-verify=false docker://{reference}")), bundle.index_bytes);
    let copied = desk.path("skopeo");
    skopeo(&format!(
        "--insecure-policy copy --preserve-digests --override-arch arm64 --src-tls-verify=false docker://{reference} oci:{}:v1",
        copied.display()
    ));
    let compiled = bundle.compiled_for(Platform::LinuxArm64).unwrap().1;
    for blob in [&compiled.manifest, &compiled.cwasm, &bundle.config_blob] {
        let name = blob.digest.to_string().replace(':', "/");
        assert_eq!(Digest::of(&fs::read(copied.join("blobs").join(name)).unwrap()), blob.digest);
    }
    // Of all of it this version writes the index anew, without its type: another digest, and no bundle.
    let second = reference.replace("gate:v1", "copy:v1");
    skopeo(&format!(
        "--insecure-policy copy --all --src-tls-verify=false --dest-tls-verify=false docker://{reference} docker://{second}"
    ));
    let index = skopeo(&format!("inspect --raw --tls-verify=false docker://{second}"));
    if index == bundle.index_bytes {
        desk.good(&format!("pull {second} --plain-http --out copied"));
    } else {
        let error = desk.bad(&format!("pull {second} --plain-http --out copied"), 1);
        assert!(error.contains("bundle index has artifact type None"), "{error}");
    }
}

fn base64(text: &str) -> String {
    use std::io::Write;
    let mut child =
        Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
