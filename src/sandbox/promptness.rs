//! How soon the kernel gives a thread the processor that has something to do again.
//!
//! Linux's scheduler (EEVDF; kernels from 6.12 on) lets each thread say how long its slices are. Over time that gives it no
//! more of the processor and no less, but when it wakes up it goes before a thread with longer slices at once, instead of
//! after what is left of that one's. Executors and the gateway's threads have the shortest there are, so they go before other
//! programs of the machine.
//! Between two busy classes, whose slices are equally short, only a tenth of a millisecond of each is not interrupted; who
//! wakes up in it waits for the kernel's next tick, as before.
//!
//! Older kernels take the call and leave the slices as they are. It is made before the seal; no sealed process may.

use nix::errno::Errno;
use nix::libc;
use tracing::info;

/// The shortest the kernel has, nanoseconds.
const SHORT_NS: u64 = 100_000;

/// Gives the calling thread short slices, and leaves its priority as it is.
///
/// Where they cannot be set (another scheduling policy, a filter around the service, as our unit for systemd has one) they stay as
/// they are: that is slower beside a busy neighbour, and nothing else.
pub fn ask_for_short_slices() {
    if let Err(error) = read().and_then(|present| set(&present)) {
        info!(%error, "sched_setattr: slices stay as they are; beside a busy class or program decisions may wait longer");
    }
}

/// JUSTIFICATION: neither std nor nix has sched_setattr and sched_getattr.
#[expect(unsafe_code, reason = "sched_setattr has no safe wrapper")]
fn set(present: &libc::sched_attr) -> nix::Result<()> {
    // Any but the usual policy (SCHED_OTHER) is somebody's decision.
    if present.sched_policy != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let wanted = libc::sched_attr { sched_nice: present.sched_nice, sched_runtime: SHORT_NS, ..usual()? };
    // SAFETY: the kernel reads `size` bytes of a struct of that size, which outlives the call; the thread is this one.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) }).map(drop)
}

#[expect(unsafe_code, reason = "sched_getattr has no safe wrapper")]
fn read() -> nix::Result<libc::sched_attr> {
    let mut present = usual()?;
    let size = present.size;
    // SAFETY: the kernel writes no more than `size` bytes of a struct of that size, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut present, size, 0) };
    Errno::result(result).map(|_| present)
}

fn usual() -> nix::Result<libc::sched_attr> {
    Ok(libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).map_err(|_| Errno::EINVAL)?,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether this kernel lets a thread say how long its slices are.
    fn has_slices() -> bool {
        let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>());
        let mut next = || numbers.next().and_then(Result::ok).expect("a version");
        (next(), next()) >= (6, 12)
    }

    #[test]
    fn slices_become_short_and_the_priority_stays() {
        let before = read().expect("sched_getattr");
        ask_for_short_slices();
        let after = read().expect("sched_getattr");
        assert_eq!(after.sched_nice, before.sched_nice);
        assert_eq!(after.sched_runtime, if has_slices() { SHORT_NS } else { before.sched_runtime });
    }
}
