//! The profiles in `sandbox/<arch>/<role>.json`, compiled and applied to every thread at once.

use seccompiler::{BpfProgram, TargetArch};

use super::{Role, SealError};

#[cfg(target_arch = "x86_64")]
mod profiles {
    pub(super) const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;
    pub(super) const SUPERVISOR: &str = include_str!("../../sandbox/x86_64/supervisor.json");
    pub(super) const SPAWNER: &str = include_str!("../../sandbox/x86_64/spawner.json");
    pub(super) const FRONTEND: &str = include_str!("../../sandbox/x86_64/frontend.json");
    pub(super) const WORKER: &str = include_str!("../../sandbox/x86_64/worker.json");
    pub(super) const REGISTRY: &str = include_str!("../../sandbox/x86_64/registry.json");
    pub(super) const BUILDER: &str = include_str!("../../sandbox/x86_64/builder.json");
    pub(super) const EXPORTER: &str = include_str!("../../sandbox/x86_64/exporter.json");
    pub(super) const GATEWAY: &str = include_str!("../../sandbox/x86_64/gateway.json");
    pub(super) const FETCHER: &str = include_str!("../../sandbox/x86_64/fetcher.json");
}

#[cfg(target_arch = "aarch64")]
mod profiles {
    pub(super) const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::aarch64;
    pub(super) const SUPERVISOR: &str = include_str!("../../sandbox/aarch64/supervisor.json");
    pub(super) const SPAWNER: &str = include_str!("../../sandbox/aarch64/spawner.json");
    pub(super) const FRONTEND: &str = include_str!("../../sandbox/aarch64/frontend.json");
    pub(super) const WORKER: &str = include_str!("../../sandbox/aarch64/worker.json");
    pub(super) const REGISTRY: &str = include_str!("../../sandbox/aarch64/registry.json");
    pub(super) const BUILDER: &str = include_str!("../../sandbox/aarch64/builder.json");
    pub(super) const EXPORTER: &str = include_str!("../../sandbox/aarch64/exporter.json");
    pub(super) const GATEWAY: &str = include_str!("../../sandbox/aarch64/gateway.json");
    pub(super) const FETCHER: &str = include_str!("../../sandbox/aarch64/fetcher.json");
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("there are no seccomp profiles for this architecture: write sandbox/<arch>/<role>.json first");

pub(super) const fn profile(role: Role) -> &'static str {
    match role {
        Role::Supervisor => profiles::SUPERVISOR,
        Role::Spawner => profiles::SPAWNER,
        Role::Frontend => profiles::FRONTEND,
        Role::Worker => profiles::WORKER,
        Role::Registry => profiles::REGISTRY,
        Role::Builder => profiles::BUILDER,
        Role::Exporter => profiles::EXPORTER,
        Role::Gateway => profiles::GATEWAY,
        Role::Fetcher => profiles::FETCHER,
    }
}

/// How many filters a role's profile is: spawner and fetcher have a second one, for calls that are refused and not deadly.
pub(super) const fn filters(role: Role) -> u32 {
    match role {
        Role::Spawner | Role::Fetcher => 2,
        Role::Supervisor
        | Role::Frontend
        | Role::Worker
        | Role::Registry
        | Role::Builder
        | Role::Exporter
        | Role::Gateway => 1,
    }
}

/// Puts the role's profile on every thread of this process. It cannot be taken off again.
pub(super) fn apply(role: Role) -> Result<(), SealError> {
    for program in compile(role, profile(role), profiles::ARCH)? {
        seccompiler::apply_filter_all_threads(&program).map_err(|error| match error {
            seccompiler::Error::ThreadSync(thread) => SealError::ThreadSync { role, thread },
            source => SealError::Seccomp { role, source },
        })?;
    }
    Ok(())
}

/// In the order in which they are applied: what is refused first, since the profile proper has no call for a filter.
///
/// Every program begins by killing calls of another architecture; x32 has numbers of its own, which match no rule.
fn compile(role: Role, profile: &str, arch: TargetArch) -> Result<Vec<BpfProgram>, SealError> {
    let refused = |why| SealError::Profile { role, why };
    let mut programs = seccompiler::compile_from_json(profile.as_bytes(), arch)
        .map_err(|error| refused(error.to_string()))?;
    let program = programs
        .remove(role.name())
        .ok_or_else(|| refused(format!("the file has no filter named \"{role}\"")))?;
    let refusals = programs.remove(&format!("{role}-refuses"));
    if let Some(name) = programs.keys().next() {
        return Err(refused(format!("the file has a filter named {name:?}, which nothing applies")));
    }
    let compiled: Vec<_> = refusals.into_iter().chain([program]).collect();
    if u32::try_from(compiled.len()) == Ok(filters(role)) {
        Ok(compiled)
    } else {
        Err(refused(format!("the file has {} filters, expected {}", compiled.len(), filters(role))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;

    /// Distinct system calls, the limits of the project: a worker and a frontend hold what a client or a policy wrote.
    /// The spawner's includes all that its children need, since a filter is inherited (`sandbox/README.md`).
    const AT_MOST: [(Role, usize); 9] = [
        (Role::Worker, 25),
        (Role::Frontend, 20),
        (Role::Supervisor, 30),
        (Role::Spawner, 85),
        (Role::Registry, 27),
        (Role::Builder, 35),
        (Role::Exporter, 25),
        (Role::Gateway, 25),
        (Role::Fetcher, 48),
    ];

    const FILES: [(TargetArch, Role, &str); 18] = [
        (TargetArch::x86_64, Role::Spawner, include_str!("../../sandbox/x86_64/spawner.json")),
        (TargetArch::aarch64, Role::Spawner, include_str!("../../sandbox/aarch64/spawner.json")),
        (TargetArch::x86_64, Role::Supervisor, include_str!("../../sandbox/x86_64/supervisor.json")),
        (TargetArch::x86_64, Role::Frontend, include_str!("../../sandbox/x86_64/frontend.json")),
        (TargetArch::x86_64, Role::Worker, include_str!("../../sandbox/x86_64/worker.json")),
        (TargetArch::x86_64, Role::Registry, include_str!("../../sandbox/x86_64/registry.json")),
        (TargetArch::x86_64, Role::Builder, include_str!("../../sandbox/x86_64/builder.json")),
        (TargetArch::x86_64, Role::Exporter, include_str!("../../sandbox/x86_64/exporter.json")),
        (TargetArch::x86_64, Role::Gateway, include_str!("../../sandbox/x86_64/gateway.json")),
        (TargetArch::x86_64, Role::Fetcher, include_str!("../../sandbox/x86_64/fetcher.json")),
        (TargetArch::aarch64, Role::Supervisor, include_str!("../../sandbox/aarch64/supervisor.json")),
        (TargetArch::aarch64, Role::Frontend, include_str!("../../sandbox/aarch64/frontend.json")),
        (TargetArch::aarch64, Role::Worker, include_str!("../../sandbox/aarch64/worker.json")),
        (TargetArch::aarch64, Role::Registry, include_str!("../../sandbox/aarch64/registry.json")),
        (TargetArch::aarch64, Role::Builder, include_str!("../../sandbox/aarch64/builder.json")),
        (TargetArch::aarch64, Role::Exporter, include_str!("../../sandbox/aarch64/exporter.json")),
        (TargetArch::aarch64, Role::Gateway, include_str!("../../sandbox/aarch64/gateway.json")),
        (TargetArch::aarch64, Role::Fetcher, include_str!("../../sandbox/aarch64/fetcher.json")),
    ];

    fn rules(role: Role, text: &str) -> Vec<Value> {
        let file: Value = serde_json::from_str(text).expect("JSON");
        file[role.name()]["filter"].as_array().expect("filter").clone()
    }

    fn calls(role: Role, text: &str) -> BTreeSet<String> {
        rules(role, text).iter().map(|rule| rule["syscall"].as_str().expect("name").to_owned()).collect()
    }

    #[test]
    fn every_profile_compiles_on_any_machine() {
        for (arch, role, text) in FILES {
            let programs = compile(role, text, arch).expect("compile");
            assert!(programs.last().expect("a program").len() > 10, "{arch:?} {role}");
        }
    }

    #[test]
    fn what_is_not_listed_kills_the_process() {
        for (arch, role, text) in FILES {
            let file: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(file[role.name()]["mismatch_action"], "kill_process", "{arch:?} {role}");
            assert_eq!(file[role.name()]["match_action"], "allow", "{arch:?} {role}");
        }
    }

    /// Whoever starts processes could give them namespaces by a call whose flags no filter sees.
    #[test]
    fn what_a_filter_cannot_judge_is_refused_to_the_spawner() {
        for (arch, role, text) in FILES {
            let file: Value = serde_json::from_str(text).expect("JSON");
            let refuses = &file[format!("{role}-refuses")];
            assert_eq!(refuses.is_object(), filters(role) == 2, "{arch:?} {role}");
            if role == Role::Fetcher {
                assert_eq!(refuses["match_action"]["errno"], nix::libc::EACCES, "{arch:?}");
                assert_eq!(refuses["filter"][0]["syscall"], "socket", "{arch:?}");
            }
            if role == Role::Spawner {
                assert_eq!(refuses["match_action"]["errno"], nix::libc::ENOSYS, "{arch:?}");
                assert_eq!(refuses["filter"][0]["syscall"], "clone3", "{arch:?}");
            }
        }
    }

    #[test]
    fn every_rule_has_a_reason() {
        for (arch, role, text) in FILES {
            let rules = rules(role, text);
            assert!(!rules.is_empty());
            for rule in rules {
                let reason = rule["comment"].as_str().unwrap_or_default();
                let reason = match role {
                    // Whose need it is, since the children live under this filter too.
                    Role::Spawner => ["own: ", "children: ", "both: "]
                        .iter()
                        .find_map(|whose| reason.strip_prefix(whose))
                        .unwrap_or_default(),
                    _ => reason,
                };
                assert!(reason.len() > 5, "{arch:?} {role}: no reason at {rule}");
                for condition in rule["args"].as_array().into_iter().flatten() {
                    assert!(
                        condition["comment"].is_string(),
                        "{arch:?} {role}: no reason in {condition} of {rule}"
                    );
                }
            }
        }
    }

    /// seccompiler drops a rule without conditions silently if the same call has one with conditions, and keeps two
    /// equal ones: neither is what the reader of the file sees.
    #[test]
    fn no_rule_is_shadowed_or_said_twice() {
        for (arch, role, text) in FILES {
            let mut seen: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for rule in rules(role, text) {
                let call = rule["syscall"].as_str().expect("name").to_owned();
                let others = seen.entry(call.clone()).or_default();
                assert!(!others.contains(&rule["args"]), "{arch:?} {role}: {call} said twice");
                others.push(rule["args"].clone());
                let open = others.iter().filter(|args| args.is_null()).count();
                assert!(
                    open == 0 || others.len() == 1,
                    "{arch:?} {role}: {call} with and without conditions"
                );
            }
        }
    }

    #[test]
    fn rules_are_in_alphabetical_order() {
        for (arch, role, text) in FILES {
            let names: Vec<_> = rules(role, text).iter().map(|rule| rule["syscall"].to_string()).collect();
            assert!(names.is_sorted(), "{arch:?} {role}");
        }
    }

    #[test]
    fn roles_stay_within_their_number_of_system_calls() {
        for (arch, role, text) in FILES {
            let (_, most) = AT_MOST.iter().find(|(of, _)| *of == role).expect("limit");
            let calls = calls(role, text);
            assert!(calls.len() <= *most, "{arch:?} {role}: {} calls", calls.len());
        }
    }

    /// A sealed process can make no executable page, no process, no new privilege, and but for the spawner and those that
    /// have files to read, no descriptor from a path. A builder runs what it compiled, once.
    #[test]
    fn sealed_roles_have_no_way_to_files_processes_or_code() {
        let never = [
            "clone",
            "clone3",
            "fork",
            "vfork",
            "execve",
            "execveat",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "prctl",
            "seccomp",
            "capset",
            "setuid",
            "setresuid",
            "setgroups",
            "socket",
            "connect",
            "bind",
            "io_uring_setup",
            "bpf",
            "userfaultfd",
            "perf_event_open",
            "unshare",
            "setns",
            "mount",
            "keyctl",
            "pkey_mprotect",
            "shmat",
            "remap_file_pages",
            "personality",
            "creat",
            "open_by_handle_at",
        ];
        let not_even_reading = ["open", "openat", "openat2", "memfd_create"];
        for (arch, role, text) in FILES.into_iter().filter(|(_, role, _)| *role != Role::Spawner) {
            let calls = calls(role, text);
            let reads = matches!(role, Role::Supervisor | Role::Registry | Role::Builder | Role::Fetcher);
            let strict = if reads { &[][..] } else { &not_even_reading };
            // The one with a network, and the one that brings traces to a collector, where there is one.
            let network = |call: &&&str| match role {
                Role::Fetcher => ["socket", "connect", "bind"].contains(call),
                Role::Exporter => ["socket", "connect"].contains(call),
                _ => false,
            };
            for call in never.iter().chain(strict).filter(|call| !network(call)) {
                assert!(!calls.contains(*call), "{arch:?} {role} allows {call}");
            }
            assert_eq!(calls.contains("kill"), role == Role::Supervisor, "{arch:?} {role}: kill");
            for rule in rules(role, text).into_iter().filter(|_| role != Role::Builder) {
                if ["mmap", "mprotect"].contains(&rule["syscall"].as_str().expect("name")) {
                    let no_exec = rule["args"].as_array().expect("conditions").iter().any(|condition| {
                        condition["index"] == 2 && condition["op"]["masked_eq"] == 4 && condition["val"] == 0
                    });
                    assert!(no_exec, "{arch:?} {role}: {rule} does not forbid PROT_EXEC");
                }
            }
        }
    }

    /// The sockets proxies connect to are the next gateway's too.
    #[test]
    fn a_gateway_makes_no_listener_deaf() {
        for (arch, role, text) in FILES.into_iter().filter(|(_, role, _)| *role == Role::Gateway) {
            let shutdown: Vec<_> =
                rules(role, text).into_iter().filter(|rule| rule["syscall"] == "shutdown").collect();
            let condition = &shutdown[0]["args"][0];
            assert_eq!((shutdown.len(), &condition["index"]), (1, &Value::from(0)), "{arch:?}");
            assert_eq!(condition["op"], "gt", "{arch:?}");
            assert_eq!(condition["val"], crate::wire::control::fd::GATEWAY_LAST, "{arch:?}");
        }
    }

    /// The spawner's filter is inherited, so whatever it lacks its children cannot do either.
    #[test]
    fn the_spawner_allows_every_call_of_its_children() {
        let children = |role: &Role| !matches!(role, Role::Supervisor | Role::Spawner | Role::Fetcher);
        for (arch, role, text) in FILES.into_iter().filter(|(_, role, _)| children(role)) {
            let (_, _, above) = FILES
                .iter()
                .find(|(of, role, _)| (*of as u8, *role) == (arch as u8, Role::Spawner))
                .expect("file");
            let missing: Vec<_> =
                calls(role, text).difference(&calls(Role::Spawner, above)).cloned().collect();
            assert!(missing.is_empty(), "{arch:?}: the spawner lacks {missing:?} of {role}");
        }
    }

    #[test]
    fn a_file_without_the_roles_filter_is_refused() {
        let error = compile(Role::Worker, profile(Role::Frontend), profiles::ARCH).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "compile seccomp profile of worker: the file has no filter named \"worker\""
        );
        assert!(matches!(compile(Role::Worker, "{}", profiles::ARCH), Err(SealError::Profile { .. })));
    }
}
