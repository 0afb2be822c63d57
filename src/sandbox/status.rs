//! `/proc/<pid>/task/<tid>/status`: what the kernel says of one thread, and what must be true of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::wire::control::Isolation;

/// The file is about 1.5 KB; many supplementary groups make it longer.
const STATUS_MAX: u64 = 1 << 20;

/// Why the state of a thread could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("read \"{path}\": {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("read \"{path}\": no field {field}, or not in the form proc(5) gives it")]
    Field { path: PathBuf, field: &'static str },
}

/// One field of a thread's or process's state that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
pub struct Mismatch {
    pub field: &'static str,
    pub found: String,
    pub expected: String,
}

impl Mismatch {
    pub(super) fn new(field: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        Self { field, found: found.to_string(), expected: expected.to_string() }
    }
}

/// What the rest of the sandbox needs of a status file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    /// The letter: R, S, D, T, Z, ..
    pub(crate) state: char,
    /// A process that has ended has none.
    pub(crate) umask: Option<u32>,
    pub(crate) parent: i32,
    /// Who traces it; 0 for nobody.
    pub(crate) tracer: i32,
    /// Real, effective, saved, filesystem.
    pub(crate) uid: [u32; 4],
    pub(crate) gid: [u32; 4],
    groups: Vec<u32>,
    inheritable: u64,
    permitted: u64,
    pub(crate) effective: u64,
    pub(crate) bounding: u64,
    ambient: u64,
    pub(crate) no_new_privs: u32,
    pub(crate) seccomp: u32,
    /// How many filters are in force, inherited ones included.
    pub(crate) seccomp_filters: u32,
    /// Bit n - 1 is signal n.
    signals_ignored: u64,
}

impl Status {
    /// Of the calling thread.
    pub(crate) fn of_this_thread() -> Result<Self, StatusError> {
        Self::read(Path::new("/proc/thread-self/status"))
    }

    pub(crate) fn read(path: &Path) -> Result<Self, StatusError> {
        // `take` keeps std from asking for the file's size first: one system call less to allow.
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(STATUS_MAX).read_to_string(&mut text))
            .map_err(|source| StatusError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|field| StatusError::Field { path: path.to_owned(), field })
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let value = |field: &'static str| {
            text.lines()
                .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
                .map(str::trim)
                .ok_or(field)
        };
        let number = |field| value(field)?.parse::<u32>().map_err(|_| field);
        let mask = |field| u64::from_str_radix(value(field)?, 16).map_err(|_| field);
        let list = |field| -> Result<Vec<u32>, &'static str> {
            value(field)?.split_whitespace().map(|id| id.parse().map_err(|_| field)).collect()
        };
        let octal = |text: &str| u32::from_str_radix(text, 8).map_err(|_| "Umask");
        let four = |field| list(field)?.try_into().map_err(|_| field);
        Ok(Self {
            state: value("State")?.chars().next().ok_or("State")?,
            umask: value("Umask").ok().map(octal).transpose()?,
            parent: number("PPid")?.try_into().map_err(|_| "PPid")?,
            tracer: number("TracerPid")?.try_into().map_err(|_| "TracerPid")?,
            uid: four("Uid")?,
            gid: four("Gid")?,
            groups: list("Groups")?,
            inheritable: mask("CapInh")?,
            permitted: mask("CapPrm")?,
            effective: mask("CapEff")?,
            bounding: mask("CapBnd")?,
            ambient: mask("CapAmb")?,
            no_new_privs: number("NoNewPrivs")?,
            seccomp: number("Seccomp")?,
            seccomp_filters: number("Seccomp_filters")?,
            signals_ignored: mask("SigIgn")?,
        })
    }

    /// All four UIDs and GIDs, and no supplementary groups. Without the privilege to change them, the groups are
    /// whatever the user who started the service has.
    pub(crate) fn expect_identity(&self, uid: u32, gid: u32, isolation: Isolation) -> Result<(), Mismatch> {
        expect("Uid", &self.uid, &[uid; 4])?;
        expect("Gid", &self.gid, &[gid; 4])?;
        match isolation {
            Isolation::DistinctUids => expect("Groups", &self.groups[..], &[]),
            Isolation::SharedUid => Ok(()),
        }
    }

    /// Those of `held` and no others; none where the service was started without. The bounding set cannot be emptied
    /// without CAP_SETPCAP, so it counts only where there was that privilege.
    pub(crate) fn expect_capabilities(&self, held: u64, isolation: Isolation) -> Result<(), Mismatch> {
        let held = match isolation {
            Isolation::DistinctUids => held,
            Isolation::SharedUid => 0,
        };
        expect_mask("CapInh", self.inheritable, 0)?;
        expect_mask("CapPrm", self.permitted, held)?;
        expect_mask("CapEff", self.effective, held)?;
        expect_mask("CapAmb", self.ambient, 0)?;
        match isolation {
            Isolation::DistinctUids => expect_mask("CapBnd", self.bounding, held),
            Isolation::SharedUid => Ok(()),
        }
    }

    /// No new privileges, and exactly so many seccomp filters: inherited ones say nothing of whether it is sealed.
    pub(crate) fn expect_sealed(&self, filters: u32) -> Result<(), Mismatch> {
        if self.no_new_privs != 1 {
            return Err(Mismatch::new("NoNewPrivs", self.no_new_privs, 1));
        }
        if self.seccomp != 2 {
            return Err(Mismatch::new("Seccomp", self.seccomp, 2));
        }
        if self.seccomp_filters != filters {
            return Err(Mismatch::new("Seccomp_filters", self.seccomp_filters, filters));
        }
        Ok(())
    }

    /// For attest. What a process was born with, until it seals itself: none but those of `held`, perhaps fewer. As for
    /// [`Self::expect_capabilities`], the bounding set counts only where it can be emptied.
    #[cfg(feature = "compiler")]
    pub(crate) fn expect_capabilities_within(&self, held: u64, isolation: Isolation) -> Result<(), Mismatch> {
        let (held, bounding) = match isolation {
            Isolation::DistinctUids => (held, self.bounding),
            Isolation::SharedUid => (0, 0),
        };
        for (field, found) in [
            ("CapInh", self.inheritable),
            ("CapPrm", self.permitted),
            ("CapEff", self.effective),
            ("CapBnd", bounding),
            ("CapAmb", self.ambient),
        ] {
            expect_mask(field, found & !held, 0)?;
        }
        Ok(())
    }

    /// For attest. At least the filters it was born under.
    #[cfg(feature = "compiler")]
    pub(crate) fn expect_filtered(&self, filters: u32) -> Result<(), Mismatch> {
        self.expect_sealed(self.seccomp_filters.max(filters))
    }

    /// An abort must end the process by SIGABRT; were that ignored, abort would go on to calls no profile allows.
    pub(crate) fn expect_abort_works(&self) -> Result<(), Mismatch> {
        let bit = 1 << (nix::libc::SIGABRT - 1);
        expect_mask("SigIgn (SIGABRT)", self.signals_ignored & bit, 0)
    }
}

fn expect(field: &'static str, found: &[u32], expected: &[u32]) -> Result<(), Mismatch> {
    if found == expected {
        return Ok(());
    }
    Err(Mismatch::new(field, format!("{found:?}"), format!("{expected:?}")))
}

fn expect_mask(field: &'static str, found: u64, expected: u64) -> Result<(), Mismatch> {
    if found == expected {
        return Ok(());
    }
    Err(Mismatch::new(field, format!("{found:#x}"), format!("{expected:#x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Name:\tportcullis-work\nUmask:\t0077\nState:\tS (sleeping)\nTgid:\t12\nPid:\t14\nPPid:\t1\nTracerPid:\t0\n\
        Uid:\t61001\t61001\t61001\t61001\nGid:\t61001\t61001\t61001\t61001\nFDSize:\t64\nGroups:\t \nThreads:\t3\n\
        SigIgn:\t0000000000001000\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
        CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n\
        Seccomp:\t2\nSeccomp_filters:\t2\n";

    fn sealed() -> Status {
        Status::parse(TEXT).expect("parse")
    }

    #[test]
    fn a_sealed_thread_is_as_expected() {
        let status = sealed();
        assert_eq!((status.state, status.umask, status.parent, status.tracer), ('S', Some(0o077), 1, 0));
        status.expect_identity(61001, 61001, Isolation::DistinctUids).expect("identity");
        status.expect_capabilities(0, Isolation::DistinctUids).expect("capabilities");
        status.expect_sealed(2).expect("sealed");
        status.expect_sealed(3).expect_err("only with what it inherited");
        status.expect_abort_works().expect("abort");
    }

    /// Every line that matters, changed: somebody must notice, and name it.
    #[test]
    fn each_field_that_differs_is_named() {
        let cases = [
            ("Uid:\t61001\t61001\t61001\t61001", "Uid:\t61001\t61001\t61001\t0", "Uid"),
            ("Gid:\t61001\t61001", "Gid:\t61001\t0", "Gid"),
            ("Groups:\t \n", "Groups:\t27 \n", "Groups"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000000001", "CapInh"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t00000000000000c0", "CapPrm"),
            ("CapEff:\t0000000000000000", "CapEff:\t00000000000000c0", "CapEff"),
            ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000001", "CapBnd"),
            ("CapAmb:\t0000000000000000", "CapAmb:\t0000000000000080", "CapAmb"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("Seccomp:\t2", "Seccomp:\t0", "Seccomp"),
            ("Seccomp_filters:\t2", "Seccomp_filters:\t1", "Seccomp_filters"),
            ("SigIgn:\t0000000000001000", "SigIgn:\t0000000000000020", "SigIgn (SIGABRT)"),
        ];
        for (from, to, field) in cases {
            assert!(TEXT.contains(from), "{from}");
            let status = Status::parse(&TEXT.replace(from, to)).expect("parse");
            let mismatch = status
                .expect_identity(61001, 61001, Isolation::DistinctUids)
                .and_then(|()| status.expect_capabilities(0, Isolation::DistinctUids))
                .and_then(|()| status.expect_sealed(2))
                .and_then(|()| status.expect_abort_works())
                .expect_err(field);
            assert_eq!(mismatch.field, field);
        }
    }

    #[test]
    fn what_is_held_is_held_exactly() {
        let text = ["CapPrm", "CapEff", "CapBnd"].iter().fold(TEXT.to_owned(), |text, set| {
            text.replace(&format!("{set}:\t0000000000000000"), &format!("{set}:\t00000000000001c0"))
        });
        let status = Status::parse(&text).expect("parse");
        status.expect_capabilities(0x1c0, Isolation::DistinctUids).expect("three");
        for held in [0, 0x1e0, 0x180] {
            assert!(status.expect_capabilities(held, Isolation::DistinctUids).is_err(), "{held:x}");
        }
        assert!(status.expect_capabilities(0x1c0, Isolation::SharedUid).is_err());
        assert!(sealed().expect_capabilities(0x1c0, Isolation::DistinctUids).is_err());
    }

    #[test]
    fn a_missing_or_malformed_field_is_an_error() {
        for line in TEXT.lines() {
            let field = line.split(':').next().expect("name");
            let cut = Status::parse(&TEXT.replace(line, "X:\t1"));
            match field {
                "Name" | "Umask" | "Tgid" | "Pid" | "FDSize" | "Threads" => {
                    cut.expect("not needed");
                }
                needed => assert_eq!(cut.expect_err("needed"), needed),
            }
        }
        assert_eq!(Status::parse(&TEXT.replace("Seccomp:\t2", "Seccomp:\ttwo")), Err("Seccomp"));
        assert_eq!(Status::parse(&TEXT.replace("Umask:\t0077", "Umask:\t0088")), Err("Umask"));
        assert_eq!(Status::parse(&TEXT.replace("61001\nGid", "61001\t7\nGid")), Err("Uid"));
    }

    #[test]
    fn this_thread_can_be_read() {
        let status = Status::of_this_thread().expect("status");
        assert_eq!(status.uid[0], nix::unistd::getuid().as_raw());
    }
}
