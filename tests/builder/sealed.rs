//! A builder as the kernel sees it, waiting for its job.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::getpid;
use portcullis::sandbox::Role;
use portcullis::sandbox::witness::{Expected, look, own_filters};

use crate::process::{Class, LIMITS, identity};

#[test]
fn a_builder_is_sealed_limited_and_holds_nothing_but_its_channels() {
    let builder = Class::new().builder(LIMITS);
    let (uid, gid, isolation) = identity();
    let filters = own_filters().unwrap() + Role::Builder.filters();
    let expected = Expected { role: Role::Builder, uid, gid, isolation, filters };
    let pid = i32::try_from(builder.pid()).unwrap();
    let witnessed = look(pid, &expected).unwrap();
    assert_eq!((witnessed.threads, builder.ready.landlock_proven_threads), (2, 2));
    assert!(builder.ready.landlock_abi >= 6);
    // The control: the same look at this process finds no seal.
    look(getpid().as_raw(), &expected).unwrap_err();

    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
        line[name.len()..].split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(limit("Max cpu time"), "30 31");
    assert_eq!(limit("Max data size"), "1073741824 1073741824");
    assert_eq!(limit("Max file size"), "67108864 67108864");
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max open files"), "64 64");

    // Takes root: it is not dumpable, so its own user may not look either.
    if nix::unistd::geteuid().is_root() {
        let open: BTreeMap<i32, String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                (number, fs::read_link(path).unwrap().display().to_string())
            })
            .collect();
        let kinds: Vec<String> = open
            .iter()
            .filter(|(number, _)| **number > 2)
            .map(|(_, path)| path.split(['[', '(']).next().unwrap().trim().to_owned())
            .collect();
        assert_eq!(kinds, ["socket:", format!("/proc/{pid}/pagemap").as_str(), "socket:"], "{open:?}");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"", "no environment");
    }
    let (answers, status) = builder.dismiss();
    assert!(status.success() && answers.is_empty(), "{status}");
}
