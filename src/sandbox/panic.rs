//! A panic is one line on stderr and SIGABRT. No backtrace: it would open files, which a sealed process dies of.

use std::io::Write;
use std::panic::PanicHookInfo;

use super::Role;

/// From now on a panic on any thread of this process writes one line to stderr and aborts. Works under every profile.
pub fn install_panic_hook(role: Role) {
    std::panic::set_hook(Box::new(move |info| {
        let line = describe(role, info);
        // Nobody is left to tell if stderr is gone.
        let _ = std::io::stderr().write_all(line.as_bytes());
        std::process::abort();
    }));
}

fn describe(role: Role, info: &PanicHookInfo<'_>) -> String {
    let what = info.payload_as_str().unwrap_or("a value that is not text");
    let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
    format!("portcullis-{role}: panic{place}: {}\n", what.escape_debug())
}
