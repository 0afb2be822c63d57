//! A process without any sandbox: this test program, started again with a role's UID, doing nothing. What an intruder
//! tries in a sealed process is tried in it first, and it is what stands beside the service as "a process of the same
//! user".

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::unistd::Pid;

use crate::scene::wait_until;

/// The argument that makes this program one.
pub(crate) const ARGUMENT: &str = "--stand-in";

pub(crate) struct StandIn(Child);

impl StandIn {
    /// Starts one and waits until it waits for its end. The UID is all that is changed: root's keeps every capability.
    ///
    /// Until it is within read(2), not just on its way there: a copy of it made by vfork goes on where it was, and its
    /// original waits for the copy's end. Within the call, the copy is told by the answer, 0, that the input has ended; before
    /// it, it would wait for an end that only comes when the original is done.
    pub(crate) fn start(uid: u32) -> Self {
        Self::start_in(uid, Path::new("/"))
    }

    pub(crate) fn start_in(uid: u32, directory: &Path) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir(directory);
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().expect("start a stand-in");
        let mut there = [0];
        child.stdout.as_mut().expect("stdout").read_exact(&mut there).expect("the stand-in is there");
        let (call, waits) = (format!("/proc/{}/syscall", child.id()), format!("{} 0x0 ", libc::SYS_read));
        wait_until(
            || std::fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&waits)),
            "the stand-in waits for the end of its input",
        );
        Self(child)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).expect("pid"))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a stand-in does: wait for the end of its input.
pub(crate) fn stand() {
    // A copy of this process, made by an attempt to make one, may come by here without anybody listening.
    let _ = std::io::stdout().write_all(b"!").and_then(|()| std::io::stdout().flush());
    let _ = std::io::stdin().read(&mut [0]);
}
