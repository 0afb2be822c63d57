//! How soon the kernel gives a thread the processor that has something to do again.
//!
//! Linux's scheduler (EEVDF; kernels from 6.12 on) lets each thread say how long its slices are. Over time that gives it no
//! more of the processor and no less, but when it wakes up it goes before a thread with longer slices at once, instead of
//! after what is left of that one's. So an executor has short slices as long as it comes to an end of what it has to do,
//! and the kernel's usual ones once it has been busy for some milliseconds on end: a class whose guests never end does not
//! keep another class's decisions waiting, nor do other programs of the machine.
//!
//! Older kernels take the call and leave the slices as they are.

use nix::errno::Errno;
use nix::libc;
use tracing::warn;

/// The shortest the kernel has, nanoseconds.
const SHORT_NS: u64 = 100_000;
/// The kernel's usual length.
const USUAL: u64 = 0;
/// Busy for longer than that on end: nobody waits for the first answer any more.
const PROMPT_FOR_NS: u64 = 3_000_000;

/// The calling thread's.
#[derive(Debug)]
pub(super) struct Promptness {
    /// As it was when the thread began: the call sets it too.
    nice: i32,
    prompt: bool,
    /// CLOCK_MONOTONIC: since when there has always been something to do; 0 where there is not.
    busy_since_ns: u64,
    /// Whoever changed this thread's priority from outside has taken that into their own hands.
    given_up: bool,
}

impl Promptness {
    /// For the calling thread, which has short slices from now on.
    ///
    /// Where slices cannot be set (another scheduling policy, a filter around the service) they stay as they are: that is
    /// slower beside a busy neighbour, and nothing else.
    pub(super) fn new() -> Self {
        let set = nice().and_then(|nice| set(nice, SHORT_NS).map(|()| nice));
        if let Err(error) = &set {
            warn!(%error, "the length of this thread's slices cannot be set; they stay as they are");
        }
        Self { nice: set.unwrap_or(0), prompt: true, busy_since_ns: 0, given_up: set.is_err() }
    }

    /// There is nothing to do; what comes next is to be seen at once.
    pub(super) fn idle(&mut self) {
        self.busy_since_ns = 0;
        self.switch(true);
    }

    /// There is something to do, at this time on CLOCK_MONOTONIC.
    pub(super) fn busy(&mut self, now_ns: u64) {
        if self.busy_since_ns == 0 {
            self.busy_since_ns = now_ns;
        } else if now_ns.saturating_sub(self.busy_since_ns) > PROMPT_FOR_NS {
            self.switch(false);
        }
    }

    fn switch(&mut self, prompt: bool) {
        if self.prompt == prompt || self.given_up {
            return;
        }
        self.prompt = prompt;
        if let Err(error) = set(self.nice, if prompt { SHORT_NS } else { USUAL }) {
            warn!(%error, "the length of this thread's slices can no longer be set; they stay as they are");
            self.given_up = true;
        }
    }
}

/// JUSTIFICATION: neither std nor nix has sched_setattr and sched_getattr.
#[expect(unsafe_code, reason = "sched_setattr has no safe wrapper")]
fn set(nice: i32, slice_ns: u64) -> nix::Result<()> {
    let attributes = libc::sched_attr { sched_nice: nice, sched_runtime: slice_ns, ..attributes()? };
    // SAFETY: the kernel reads `size` bytes of a struct of that size, which outlives the call; the thread is this one.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

fn nice() -> nix::Result<i32> {
    let attributes = read()?;
    if attributes.sched_policy == 0 { Ok(attributes.sched_nice) } else { Err(Errno::EOPNOTSUPP) }
}

#[expect(unsafe_code, reason = "sched_getattr has no safe wrapper")]
fn read() -> nix::Result<libc::sched_attr> {
    let mut attributes = attributes()?;
    let size = attributes.size;
    // SAFETY: the kernel writes no more than `size` bytes of a struct of that size, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    Errno::result(result).map(|_| attributes)
}

/// Of the policy that threads usually have (SCHED_OTHER), which is 0.
fn attributes() -> nix::Result<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).map_err(|_| Errno::EINVAL)?;
    Ok(libc::sched_attr {
        size,
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

    /// As the kernel has it for the calling thread, nanoseconds.
    fn slice() -> u64 {
        read().expect("sched_getattr").sched_runtime
    }

    /// Whether this kernel lets a thread say how long its slices are.
    fn has_slices() -> bool {
        let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>());
        let mut next = || numbers.next().and_then(Result::ok).expect("a version");
        (next(), next()) >= (6, 12)
    }

    #[test]
    fn slices_are_short_until_it_has_been_busy_for_long() {
        let usual = slice();
        let short = if has_slices() { SHORT_NS } else { usual };
        let mut thread = Promptness::new();
        assert_eq!(slice(), short);
        thread.busy(1);
        thread.busy(1 + PROMPT_FOR_NS);
        assert_eq!(slice(), short, "busy for no longer than that");
        thread.busy(2 + PROMPT_FOR_NS);
        assert_eq!(slice(), usual);
        thread.idle();
        assert_eq!(slice(), short);
        thread.busy(3 + PROMPT_FOR_NS);
        assert_eq!(slice(), short, "it began anew");
    }

    #[test]
    fn the_priority_stays_as_it_was() {
        let nice = nice().expect("nice");
        let mut thread = Promptness::new();
        thread.busy(1);
        thread.busy(2 + PROMPT_FOR_NS);
        assert_eq!(super::nice().expect("nice"), nice);
    }
}
