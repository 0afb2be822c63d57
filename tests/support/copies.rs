//! Copies of programs that are run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Copies a program to where everybody may run it. By another process: a child that another test forks meanwhile would hold the
/// copy open for writing until it has become a program itself, and the kernel runs nothing that is open for writing.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "copy {from:?} to {to:?}: {copied}");
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}
