//! The rules of a profile one by one: each compiled by itself, as the whole is for the kernel, and asked whether it is
//! the one that allows a call.

use portcullis::sandbox::Role;
use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

/// One line of a profile.
pub(crate) struct Rule {
    /// The call, and the reasons of its conditions.
    pub(crate) name: String,
    program: BpfProgram,
}

/// All rules of a role.
pub(crate) fn of(role: Role) -> Vec<Rule> {
    let file: Value = serde_json::from_str(role.profile()).expect("JSON");
    let rules = file[role.name()]["filter"].as_array().expect("filter");
    rules.iter().map(rule).collect()
}

fn rule(json: &Value) -> Rule {
    let conditions = json["args"].as_array().into_iter().flatten();
    let reasons: Vec<&str> = conditions.filter_map(|condition| condition["comment"].as_str()).collect();
    let call = json["syscall"].as_str().expect("syscall");
    let name = if reasons.is_empty() { call.to_owned() } else { format!("{call} ({})", reasons.join("; ")) };
    let alone = json!({
        "rule": { "mismatch_action": "kill_process", "match_action": "allow", "filter": [json] }
    });
    let arch: TargetArch = std::env::consts::ARCH.try_into().expect("architecture");
    let mut programs = compile_from_json(alone.to_string().as_bytes(), arch).expect("compile");
    Rule { name, program: programs.remove("rule").expect("a program") }
}

impl Rule {
    /// Whether this rule allows a call.
    pub(crate) fn allows(&self, number: u64, arguments: &[u64; 6]) -> bool {
        const ALLOW: u32 = 0x7fff_0000;
        run(&self.program, &data(number, arguments)) == ALLOW
    }
}

/// `struct seccomp_data`: the call's number, the architecture, the instruction's address, the arguments.
fn data(number: u64, arguments: &[u64; 6]) -> [u8; 64] {
    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7;
    let mut data = [0; 64];
    data[..4].copy_from_slice(&number.to_le_bytes()[..4]);
    data[4..8].copy_from_slice(&ARCH.to_le_bytes());
    for (place, argument) in data[16..].chunks_exact_mut(8).zip(arguments) {
        place.copy_from_slice(&argument.to_le_bytes());
    }
    data
}

/// What the kernel does with a filter, for the few instructions that filters are made of.
fn run(program: &BpfProgram, data: &[u8; 64]) -> u32 {
    let (mut at, mut value) = (0, 0_u32);
    loop {
        let instruction = &program[at];
        let k = instruction.k;
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { instruction.jt } else { instruction.jf });
        match instruction.code {
            // Load a word of the data.
            0x20 => {
                let place = k as usize;
                value = u32::from_le_bytes(data[place..place + 4].try_into().expect("a word"));
            }
            0x54 => value &= k,
            0x05 => at += k as usize,
            0x15 => jump(value == k),
            0x25 => jump(value > k),
            0x35 => jump(value >= k),
            0x06 => return k,
            code => panic!("instruction {code:#x} is not one that the compiler of profiles makes"),
        }
    }
}

/// What a rule says yes to, it must; what it says no to, it must not: or nothing here would be found redundant.
pub(crate) fn a_rule_is_asked_as_the_kernel_asks_it() {
    let rules = of(Role::Worker);
    let allowing = |number: i64, arguments: [u64; 6]| -> Vec<&str> {
        let all = rules.iter().filter(|rule| rule.allows(number.cast_unsigned(), &arguments));
        all.map(|rule| rule.name.split(' ').next().expect("name")).collect()
    };
    let private = u64::from(nix::libc::MAP_PRIVATE.cast_unsigned());
    assert_eq!(allowing(nix::libc::SYS_mmap, [0, 4096, 3, private, 0, 0]), ["mmap"]);
    assert_eq!(allowing(nix::libc::SYS_mmap, [0, 4096, 7, private, 0, 0]), [""; 0]);
    assert_eq!(allowing(nix::libc::SYS_openat, [0; 6]), [""; 0]);
    assert_eq!(allowing(nix::libc::SYS_close, [4, 0, 0, 0, 0, 0]), ["close"]);
    assert_eq!(allowing(nix::libc::SYS_close, [3, 0, 0, 0, 0, 0]), [""; 0]);
    // 32 bits of an argument count where the rule says so, and only they.
    assert_eq!(allowing(nix::libc::SYS_close, [1 << 32 | 3, 0, 0, 0, 0, 0]), [""; 0]);
    assert_eq!(allowing(nix::libc::SYS_sendto, [9, 0, 0, 0, 0, 0]), ["sendto"]);
    assert_eq!(allowing(nix::libc::SYS_sendto, [9, 0, 0, 0, 1 << 40, 0]), [""; 0]);
}
