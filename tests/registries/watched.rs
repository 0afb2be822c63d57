//! How far a transfer is: bars where somebody watches, lines where it is written down, nothing where nobody asked.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};

use crate::desk::Desk;
use crate::fake::{Fake, Shelf};

#[test]
fn bars_are_for_terminals_and_lines_for_files() {
    let desk = Desk::new();
    let fake = Fake::honest(Shelf::of(&desk.path("gate")));
    let pull = format!("pull {} --plain-http --store store", fake.reference());
    let size = Winsize { ws_row: 40, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    let mut command = desk.command(&pull);
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(Stdio::from(terminal.slave));
    let mut child = command.spawn().unwrap();
    // The other side of it stays open as long as the command has it.
    drop(command);
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    let mut master = File::from(terminal.master);
    // A terminal without anybody on its other side is an error to read.
    while let Ok(read @ 1..) = master.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..read]);
    }
    assert!(child.wait().unwrap().success());
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let bundle = desk.read("gate");
    let code = bundle.compiled[0].cwasm.digest;
    assert!(shown.contains(&code.short()) && shown.contains("[====="), "{shown:?}");
    assert!(shown.contains("292.97 KiB / 292.97 KiB"), "{shown:?}");
    assert!(shown.contains("\u{1b}["), "they move: {shown:?}");

    // Written down: a line for each object, and nothing that moves.
    std::fs::remove_dir_all(desk.path("store/acme")).unwrap();
    let written = String::from_utf8(desk.run(&pull).stderr).unwrap();
    assert!(!written.contains(['\u{1b}', '\r']), "{written:?}");
    for blob in bundle.blobs() {
        let lines = written.lines().filter(|line| line.contains(&blob.digest.to_string())).count();
        assert_eq!(lines, 1, "{}: {written}", blob.digest);
    }
    std::fs::remove_dir_all(desk.path("store/acme")).unwrap();
    let quiet = desk.run(&format!("{pull} --quiet"));
    assert_eq!((quiet.status.code(), quiet.stderr.as_slice()), (Some(0), &b""[..]));
}
