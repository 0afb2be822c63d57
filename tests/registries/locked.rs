//! The fetcher as the kernel sees it while it waits for a registry that does not answer.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use crate::desk::Desk;
use crate::fake::{Fake, Shelf};

#[test]
fn the_fetcher_is_locked_in_before_it_hears_the_registry() {
    let desk = Desk::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut command =
        desk.command(&format!("pull localhost:{port}/gate:v1 --plain-http --store store --quiet"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // It has looked up a name, and has sent what it wants to know.
    let (mut stream, _) = listener.accept().unwrap();
    let mut asked = [0; 4];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"GET ");

    let fetcher = child_of(child.id());
    let tasks = fs::read_dir(format!("/proc/{fetcher}/task")).unwrap();
    let threads: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    assert_eq!(threads.len(), 2);
    for thread in threads {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.unwrap_or_else(|| panic!("no {name}")).to_owned()
        };
        assert_eq!((field("Seccomp"), field("NoNewPrivs")), ("2".into(), "1".into()));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        let uid = field("Uid");
        let uids: Vec<_> = uid.split('\t').collect();
        assert!(uids.iter().all(|uid| *uid == uids[0]), "{uid}");
        if nix::unistd::geteuid().is_root() {
            assert_ne!(uids[0], "0", "the process with the network is root");
            assert_eq!((field("CapBnd").as_str(), field("Groups").trim()), ("0000000000000000", ""));
        }
    }
    assert_eq!(fs::read(format!("/proc/{fetcher}/environ")).unwrap_or_default(), b"");
    // The control: the command that started it has none of this.
    let command = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    assert!(command.contains("Seccomp:\t0") && command.contains("NoNewPrivs:\t0"), "{command}");

    // It does not outlive the command: the connection ends.
    child.kill().unwrap();
    child.wait().unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap_or_default();
    assert_eq!(desk.in_store(), [""; 0]);
}

/// Root does not write where somebody else can move things around, and nobody else becomes anybody.
#[test]
fn root_pulls_as_the_owner_of_the_destination() {
    const OWNER: u32 = 12345;
    let desk = Desk::new();
    let fake = Fake::honest(Shelf::of(&desk.path("gate")));
    let pull = format!("pull {} --plain-http --store store", fake.reference());
    if !nix::unistd::geteuid().is_root() {
        assert!(desk.bad(&format!("{pull} --user nobody"), 1).contains("only root can become somebody else"));
        return;
    }
    let error = desk.bad(&format!("{pull} --user 0"), 1);
    assert!(error.contains("must not be root"), "{error}");
    assert!(desk.bad(&format!("{pull} --user there-is-no-such-user"), 1).contains("there is no such user"));
    desk.good(&format!("{pull} --user {OWNER}"));
    assert_eq!(fs::metadata(desk.path("store/acme/gate/index.json")).unwrap().uid(), 0);
    fs::remove_dir_all(desk.path("store/acme")).unwrap();

    // Credentials are read before: nobody else can read those of root.
    fs::set_permissions(desk.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(desk.path("docker"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(desk.path("store"), Some(OWNER), Some(OWNER)).unwrap();
    let error = desk.bad(&format!("{pull} --user nobody"), 1);
    assert!(error.contains("belongs to uid 12345, and is only written as that user"), "{error}");
    desk.good(&pull);
    for path in ["store/acme", "store/acme/gate", "store/acme/gate/index.json"] {
        assert_eq!(fs::metadata(desk.path(path)).unwrap().uid(), OWNER, "{path}");
    }
    // A tenant's folder that is somebody else's.
    std::os::unix::fs::chown(desk.path("store"), Some(0), Some(0)).unwrap();
    let error = desk.bad(&pull, 1);
    assert!(error.contains("it belongs to uid 12345; pull as that user"), "{error}");
}

/// The account that an installation makes for it, and where there is none the one that has nothing.
#[test]
fn started_by_root_the_fetcher_is_the_account_made_for_it() {
    const ACCOUNT: u32 = 64_321;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root becomes somebody else; run the tests with sudo");
        return;
    }
    let fetches_as = || {
        let desk = Desk::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut command =
            desk.command(&format!("pull 127.0.0.1:{port}/gate:v1 --plain-http --store store --quiet"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", child_of(child.id()))).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
        line.split('\t').next().unwrap().parse::<u32>().unwrap()
    };
    // In a mount namespace of its own; unshare is per thread.
    let ended = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        let none: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("passwd");
        let put = |more: &str| {
            let users_of_the_machine = fs::read_to_string("/etc/passwd").unwrap();
            let others = users_of_the_machine.lines().filter(|line| !line.starts_with("portcullis-fetcher:"));
            fs::write(&users, others.map(|line| format!("{line}\n")).collect::<String>() + more).unwrap();
            mount(Some(&users), "/etc/passwd", none, MsFlags::MS_BIND, none).unwrap();
        };
        put("");
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
        assert_eq!(fetches_as(), nobody, "control");
        nix::mount::umount("/etc/passwd").unwrap();
        put(&format!("portcullis-fetcher:x:{ACCOUNT}:{ACCOUNT}::/:/usr/sbin/nologin\n"));
        assert_eq!(fetches_as(), ACCOUNT);
        nix::mount::umount("/etc/passwd").unwrap();
    });
    if let Err(panic) = ended.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_fetcher_is_started_by_the_command_and_by_nobody_else() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_portcullis-fetcher")).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not started by portcullis policy"));
}

fn child_of(parent: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.split_whitespace().next().expect("a child").parse().unwrap()
}
