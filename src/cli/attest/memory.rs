//! Mappings: nothing is writable and executable, and what is executable is what a file had when it was mapped.
//!
//! A page of a private mapping that somebody wrote to is not the file's any more: the kernel counts it as anonymous,
//! and goes on to do so when the mapping is made executable afterwards. So an executable mapping with an anonymous
//! (or swapped) page was written to, and one without was not, or has lost what was written.

use std::os::unix::fs::MetadataExt;

use super::descriptors::sealed;
use super::process::Subject;
use super::report::{Area, Findings, Verdict};
use super::view::{self, Unseen};
use crate::sandbox::Role;

/// Where a worker's policies are.
const POLICY: &str = "/memfd:portcullis-policy (deleted)";

/// One mapping of `/proc/<pid>/smaps`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    /// "7f00-7f10", in hexadecimal: also its name in `map_files`.
    range: String,
    /// `r-xp`.
    permissions: String,
    name: String,
    /// Kilobytes that are not the file's, in memory and swapped out.
    written: u64,
}

impl Mapping {
    fn may(&self, what: char) -> bool {
        self.permissions.contains(what)
    }
}

/// Compares each mapping with what is declared of all: no new code.
pub(super) fn check(subject: &Subject, findings: &mut Findings) {
    let mappings = match view::text(subject.pid, "smaps").and_then(|text| mappings(&text)) {
        Ok(mappings) => mappings,
        Err(unseen) => {
            return findings.add(Area::Memory, "mappings", Verdict::unseen(&unseen, "a list"));
        }
    };
    let both: Vec<String> = mappings
        .iter()
        .filter(|mapping| mapping.may('w') && mapping.may('x'))
        .map(|mapping| format!("{} {}", mapping.range, mapping.name).trim_end().to_owned())
        .collect();
    let found = if both.is_empty() { "none".to_owned() } else { both.join(", ") };
    findings.add(Area::Memory, "writable and executable", Verdict::compare(found, "none"));
    let stack = mappings.iter().find(|mapping| mapping.name == "[stack]");
    let stack =
        stack.map_or("not there", |stack| if stack.may('x') { "executable" } else { "not executable" });
    findings.add(Area::Memory, "stack", Verdict::compare(stack, "not executable"));
    for mapping in mappings.iter().filter(|mapping| mapping.may('x')) {
        executable(mapping, subject, findings);
    }
}

fn executable(mapping: &Mapping, subject: &Subject, findings: &mut Findings) {
    let pid = subject.pid;
    let name = if mapping.name.is_empty() { "anonymous memory" } else { mapping.name.as_str() };
    let mut add = |check: &str, verdict| {
        findings.add(
            Area::Memory,
            format!("{} {}: {check}", mapping.range, view::shown(name.as_ref())),
            verdict,
        );
    };
    let written = format!("{} kB", mapping.written);
    add("written to before or since", Verdict::compare(written, "0 kB"));
    if matches!(name, "[vdso]" | "[vsyscall]" | "[uprobes]") {
        // What somebody wrote to is a copy of their own, whatever it is called.
        if mapping.written == 0 {
            add("code is", Verdict::ok("the kernel's"));
        }
        return;
    }
    let shared = if mapping.may('s') { "shared" } else { "private" };
    add("private", Verdict::compare(shared, "private"));
    if name == POLICY && subject.role == Role::Worker {
        return add("sealed", sealed(&view::place(pid, &format!("map_files/{}", mapping.range))));
    }
    add("code is", origin(mapping, pid));
}

/// The role's program, or a library that only root can change. Looked at by the file that is mapped, not by its name.
fn origin(mapping: &Mapping, pid: i32) -> Verdict {
    let expected = "the program's, or a library's that only root can change";
    if !mapping.name.starts_with('/') {
        return Verdict::different("no file's", expected);
    }
    let look = |name: &str| {
        let path = view::place(pid, name);
        path.metadata().map_err(|error| Unseen::of(&path, &error))
    };
    let looked = look("exe").and_then(|exe| Ok((exe, look(&format!("map_files/{}", mapping.range))?)));
    let (exe, file) = match looked {
        Ok(looked) => looked,
        Err(unseen) => return Verdict::unseen(&unseen, expected),
    };
    if (exe.dev(), exe.ino()) == (file.dev(), file.ino()) {
        return Verdict::ok("the program's");
    }
    let (owner, mode) = (file.uid(), file.mode() & 0o7777);
    if mapping.name.ends_with(" (deleted)") {
        return Verdict::different(
            "a file's that was replaced or removed; restart after an upgrade",
            expected,
        );
    }
    if owner == 0 && mode & 0o022 == 0 && file.is_file() {
        return Verdict::ok("a library's that only root can change");
    }
    Verdict::different(&format!("a file's of uid {owner}, mode {mode:04o}"), expected)
}

fn mappings(text: &str) -> Result<Vec<Mapping>, Unseen> {
    let mut mappings: Vec<Mapping> = Vec::new();
    let odd = |line: &str| Unseen::Odd(format!("smaps: {}", view::shown(line.as_ref())));
    for line in text.lines() {
        if let Some(mapping) = head(line) {
            mappings.push(mapping);
            continue;
        }
        let Some((field, value)) = line.split_once(':') else { return Err(odd(line)) };
        if !matches!(field, "Anonymous" | "Swap") {
            continue;
        }
        let kilobytes = value.trim().strip_suffix("kB").and_then(|value| value.trim().parse::<u64>().ok());
        let (Some(mapping), Some(kilobytes)) = (mappings.last_mut(), kilobytes) else {
            return Err(odd(line));
        };
        mapping.written = mapping.written.saturating_add(kilobytes);
    }
    // A process that has ended has no memory, and that is all its file says.
    if mappings.is_empty() { Err(Unseen::Gone) } else { Ok(mappings) }
}

/// "557fe5bc5000-557fe6671000 r-xp 004a6000 fe:00 5670744      /usr/bin/x".
fn head(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let range = fields.next()?;
    let (from, to) = range.split_once('-')?;
    for end in [from, to] {
        u64::from_str_radix(end, 16).ok()?;
    }
    let permissions = fields.next().filter(|permissions| permissions.len() == 4)?;
    let (_offset, _device, _inode) = (fields.next()?, fields.next()?, fields.next()?);
    let name = fields.next().unwrap_or_default().trim_start();
    // In map_files the numbers have no zeros in front.
    let range = format!("{}-{}", trimmed(from), trimmed(to));
    Some(Mapping { range, permissions: permissions.to_owned(), name: name.to_owned(), written: 0 })
}

fn trimmed(number: &str) -> &str {
    let without = number.trim_start_matches('0');
    if without.is_empty() { "0" } else { without }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-00401000 r-xp 004a6000 fe:00 5670744                    /usr/bin/a b (deleted)
Size:                  4 kB
Anonymous:             8 kB
Swap:                  4 kB
VmFlags: rd ex mr mw me
7ffc1000-7ffc2000 rw-p 00000000 00:00 0 
Anonymous:             8 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn mappings_are_read_with_what_was_written_to_them() {
        let read = mappings(TEXT).unwrap();
        let short: Vec<_> =
            read.iter().map(|m| (m.range.as_str(), m.name.as_str(), m.may('x'), m.written)).collect();
        assert_eq!(
            short,
            [
                ("400000-401000", "/usr/bin/a b (deleted)", true, 12),
                ("7ffc1000-7ffc2000", "", false, 8),
                ("ffffffffff600000-ffffffffff601000", "[vsyscall]", true, 0),
            ]
        );
    }

    #[test]
    fn the_kernels_code_is_the_kernels_until_somebody_writes_to_it() {
        let own = i32::try_from(std::process::id()).unwrap();
        let subject = Subject {
            role: Role::Worker,
            class: None,
            generation: 1,
            pid: own,
            uid: 0,
            state: crate::wire::control::ProcessState::Serving,
            threads: None,
            ready: None,
        };
        let differences = |name: &str, written| {
            let mapping = Mapping {
                range: "1000-2000".to_owned(),
                permissions: "r-xp".to_owned(),
                name: name.to_owned(),
                written,
            };
            let mut findings = Findings::of_service();
            executable(&mapping, &subject, &mut findings);
            let different =
                |one: &&crate::cli::attest::report::Finding| matches!(one.verdict, Verdict::Different { .. });
            let ok = findings.list.iter().any(|one| one.check.ends_with("code is"));
            (findings.list.iter().filter(different).count(), ok)
        };
        for name in ["[vdso]", "[vsyscall]", "[uprobes]"] {
            assert_eq!(differences(name, 0), (0, true), "{name}");
            assert_eq!(differences(name, 4), (1, false), "{name}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_odd_and_nothing_is_gone() {
        assert_eq!(mappings(""), Err(Unseen::Gone));
        for broken in ["Anonymous: 8 kB\n", "no colon\n", "1-2 r-xp 0 0 0\nAnonymous: eight kB\n"] {
            assert!(matches!(mappings(broken), Err(Unseen::Odd(_))), "{broken}");
        }
        for no_head in ["x-2 r-xp 0 0 0 ", "1-2 r-x 0 0 0 ", "1-2 r-xp 0 0", "1 r-xp 0 0 0"] {
            assert_eq!(head(no_head), None, "{no_head}");
        }
    }
}
