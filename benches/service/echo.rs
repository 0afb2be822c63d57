//! The floor of everything with a socket: a process that reads a request's bytes and writes a decision's bytes, with a
//! blocking thread for each connection, and does nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use crate::subject::{TENANT, request};
use crate::support::Service;
use crate::wire::{ID_AT, Wire};

/// First argument of the process that echoes.
pub(super) const ROLE: &str = "echo-server";

/// The echoing process; ended when dropped.
pub(super) struct Echo {
    child: Child,
    dir: TempDir,
}

impl Echo {
    /// Answers requests of the benchmark's size with a decision that `service` gave.
    pub(super) fn like(service: &Service) -> Self {
        let mut wire = Wire::to_service(service, TENANT);
        // Its timings take as many bytes as a warm decision's do.
        for _ in 0..200 {
            wire.ask();
        }
        let dir = TempDir::with_prefix("portcullis-echo-").unwrap();
        std::fs::write(dir.path().join("reply"), wire.ask()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([ROLE, &request(TENANT, 1).len().to_string()])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        Self { child, dir }
    }

    pub(super) fn connect(&self) -> Wire {
        Wire::to_echo(&self.dir.path().join("socket"))
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The echoing process's main: the length of a request, and the directory with the reply and the socket.
pub(super) fn serve(arguments: &[String]) {
    let [_, length, dir] = arguments else { panic!("{ROLE} LENGTH DIRECTORY") };
    let (length, dir) = (length.parse().unwrap(), PathBuf::from(dir));
    let reply = std::fs::read(dir.join("reply")).unwrap();
    let listener = UnixListener::bind(dir.join("socket")).unwrap();
    println!("ready");
    for stream in listener.incoming() {
        let (stream, reply) = (stream.unwrap(), reply.clone());
        thread::spawn(move || echo(stream, length, &reply));
    }
}

fn echo(mut stream: UnixStream, length: usize, reply: &[u8]) {
    let mut buffer = vec![0; 64 << 10];
    let mut outgoing = Vec::new();
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..]) {
            Ok(0) | Err(_) => return,
            Ok(read) => have += read,
        }
        let mut at = 0;
        outgoing.clear();
        while have - at >= length {
            let start = outgoing.len();
            outgoing.extend_from_slice(reply);
            outgoing[start + ID_AT] = buffer[at + ID_AT];
            at += length;
        }
        buffer.copy_within(at..have, 0);
        have -= at;
        if stream.write_all(&outgoing).is_err() {
            return;
        }
    }
}
