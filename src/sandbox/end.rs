//! How a sealed process ends.

/// Ends this process at once with `code`, whether it is sealed or not.
///
/// A return from main is not for a sealed process: std's own tidying up (signal stacks) makes calls that no profile has,
/// so a role that had done all its work would still die of SIGSYS.
#[expect(unsafe_code, reason = "std has no way out without its tidying up")]
pub fn end(code: u8) -> ! {
    // JUSTIFICATION: `std::process::exit` tidies up too.
    // SAFETY: ends the process; nothing runs after it, and nothing is left half done in memory that others share.
    unsafe { nix::libc::_exit(i32::from(code)) }
}
