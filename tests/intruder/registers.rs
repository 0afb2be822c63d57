//! A thread's registers, by architecture: how a system call is asked for and answered.

pub(crate) use arch::{INSTRUCTION, place, prepare, result, settle, stack};
pub(crate) type Registers = nix::libc::user_regs_struct;

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::Registers;

    /// `syscall`
    pub(crate) const INSTRUCTION: &[u8] = &[0x0f, 0x05];

    /// What the kernel answers inwards when a call is to be made again: ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND and
    /// ERESTART_RESTARTBLOCK.
    const AGAIN: [i64; 4] = [-512, -513, -514, -516];

    /// A thread that was stopped within a call would be sent back into it on its way out of the kernel. Other calls come
    /// between, so what the kernel would do then is done here.
    pub(crate) fn settle(registers: &mut Registers) {
        let answer = registers.rax.cast_signed();
        if registers.orig_rax.cast_signed() >= 0 && AGAIN.contains(&answer) {
            registers.rip -= INSTRUCTION.len() as u64;
            registers.rax = if answer == AGAIN[3] {
                nix::libc::SYS_restart_syscall.cast_unsigned()
            } else {
                registers.orig_rax
            };
        }
        registers.orig_rax = u64::MAX;
    }

    pub(crate) fn place(registers: &Registers) -> u64 {
        registers.rip
    }

    pub(crate) fn stack(registers: &Registers) -> u64 {
        registers.rsp
    }

    pub(crate) fn prepare(registers: &mut Registers, instruction: u64, number: i64, arguments: [u64; 6]) {
        registers.rip = instruction;
        registers.rax = number.cast_unsigned();
        // Not within a call.
        registers.orig_rax = u64::MAX;
        let [a, b, c, d, e, f] = arguments;
        (registers.rdi, registers.rsi, registers.rdx) = (a, b, c);
        (registers.r10, registers.r8, registers.r9) = (d, e, f);
    }

    pub(crate) fn result(registers: &Registers) -> i64 {
        registers.rax.cast_signed()
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::Registers;

    /// `svc #0`
    pub(crate) const INSTRUCTION: &[u8] = &[0x01, 0x00, 0x00, 0xd4];

    /// This kernel has done it before a tracer sees the registers.
    pub(crate) fn settle(_: &mut Registers) {}

    pub(crate) fn place(registers: &Registers) -> u64 {
        registers.pc
    }

    pub(crate) fn stack(registers: &Registers) -> u64 {
        registers.sp
    }

    pub(crate) fn prepare(registers: &mut Registers, instruction: u64, number: i64, arguments: [u64; 6]) {
        registers.pc = instruction;
        registers.regs[..6].copy_from_slice(&arguments);
        registers.regs[8] = number.cast_unsigned();
    }

    pub(crate) fn result(registers: &Registers) -> i64 {
        registers.regs[0].cast_signed()
    }
}
