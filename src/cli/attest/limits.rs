//! Resource limits, soft and hard.

use super::Expectations;
use super::process::Subject;
use super::report::{Area, Findings, Verdict};
use super::view::{self, Unseen};
use crate::sandbox::{ConfiguredLimit, Declared, LimitName, LimitValue};
use crate::wire::control::Isolation;

/// Compares `/proc/<pid>/limits` with the role's file.
pub(super) fn check(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let Some(declared) = expected.declared(subject.role) else { return };
    compare(&view::text(subject.pid, "limits"), declared, expected.isolation, findings);
}

fn compare(
    text: &Result<String, Unseen>,
    declared: &Declared,
    isolation: Isolation,
    findings: &mut Findings,
) {
    for limit in &declared.limits {
        let name = name(limit.limit);
        let found = match text {
            Ok(text) => pair(text, name).ok_or_else(|| Unseen::Odd(format!("no \"{name}\" in limits"))),
            Err(unseen) => Err(unseen.clone()),
        };
        match limit.value {
            LimitValue::Number(number) => {
                findings.seen(Area::Limits, name, found.map(said), format!("{number} soft, {number} hard"));
            }
            // Where the UID is everybody's, its number of processes is nobody's to limit.
            LimitValue::FromConfiguration(ConfiguredLimit::Processes)
                if isolation == Isolation::SharedUid => {}
            LimitValue::FromConfiguration(_) => {
                let expected = "a number, the same soft and hard";
                let verdict = match found {
                    Ok((soft, hard)) if soft == hard && soft.parse::<u64>().is_ok() => Verdict::ok(&soft),
                    Ok(pair) => Verdict::different(&said(pair), expected),
                    Err(unseen) => Verdict::unseen(&unseen, expected),
                };
                findings.add(Area::Limits, name, verdict);
            }
        }
    }
}

fn said((soft, hard): (String, String)) -> String {
    format!("{soft} soft, {hard} hard")
}

/// As the kernel calls it there.
fn name(limit: LimitName) -> &'static str {
    match limit {
        LimitName::Core => "Max core file size",
        LimitName::Cpu => "Max cpu time",
        LimitName::Data => "Max data size",
        LimitName::Fsize => "Max file size",
        LimitName::Memlock => "Max locked memory",
        LimitName::Msgqueue => "Max msgqueue size",
        LimitName::Nice => "Max nice priority",
        LimitName::Nofile => "Max open files",
        LimitName::Nproc => "Max processes",
        LimitName::Rtprio => "Max realtime priority",
    }
}

/// The soft and the hard limit of that name.
fn pair(text: &str, name: &str) -> Option<(String, String)> {
    let mut values = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    Some((values.next()?.to_owned(), values.next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Role;

    const TEXT: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max core file size        0                    unlimited            bytes     
Max open files            1282                 1282                 files     
Max nice priority         0                    0                    
Max realtime priority     0                    
";

    #[test]
    fn limits_are_read_by_name() {
        let of = |limit| pair(TEXT, name(limit)).map(said);
        assert_eq!(of(LimitName::Core).as_deref(), Some("0 soft, unlimited hard"));
        assert_eq!(of(LimitName::Nofile).as_deref(), Some("1282 soft, 1282 hard"));
        assert_eq!(of(LimitName::Nice).as_deref(), Some("0 soft, 0 hard"));
        assert_eq!(of(LimitName::Rtprio), None, "cut off");
        assert_eq!(of(LimitName::Memlock), None, "not there");
    }

    fn differences(text: &str) -> Vec<String> {
        let declared = Declared::of(Role::Worker).unwrap();
        let mut findings = Findings::of_service();
        compare(&Ok(text.to_owned()), &declared, Isolation::DistinctUids, &mut findings);
        assert_eq!(findings.list.len(), declared.limits.len());
        let different =
            findings.list.into_iter().filter(|one| matches!(one.verdict, Verdict::Different { .. }));
        different.map(|one| one.check).collect()
    }

    /// Each limit of a worker, a little more or not to be found.
    #[test]
    fn every_limit_that_differs_is_named() {
        let names = Declared::of(Role::Worker).unwrap().limits;
        let names: Vec<&str> = names.iter().map(|limit| name(limit.limit)).collect();
        let line = |of: &str, changed: &str| match of.starts_with("Max open") || of == "Max processes" {
            true if of == changed => format!("{of}  100  1282  x\n"),
            true => format!("{of}  1282  1282  x\n"),
            false if of == changed => format!("{of}  0  unlimited  x\n"),
            false => format!("{of}  0  0  x\n"),
        };
        let text = |changed: &str| names.iter().map(|of| line(of, changed)).collect::<String>();
        assert_eq!(differences(&text("none")), [""; 0]);
        for changed in &names {
            assert_eq!(differences(&text(changed)), [*changed]);
            assert_eq!(differences(&text("none").replace(changed, "Max something else")), [*changed]);
        }
    }

    #[test]
    fn the_kernel_has_a_limit_of_every_name() {
        let own = i32::try_from(std::process::id()).unwrap();
        let text = view::text(own, "limits").unwrap();
        use LimitName::{Core, Cpu, Data, Fsize, Memlock, Msgqueue, Nice, Nofile, Nproc, Rtprio};
        for limit in [Core, Cpu, Data, Fsize, Memlock, Msgqueue, Nice, Nofile, Nproc, Rtprio] {
            assert!(pair(&text, name(limit)).is_some(), "{limit:?}");
        }
    }
}
