//! Somebody between the fetcher and a registry, who cuts connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

pub(crate) struct Between {
    pub(crate) port: u16,
    left: Arc<AtomicUsize>,
}

impl Between {
    pub(crate) fn stop_cutting(&self) {
        self.left.store(usize::MAX, Ordering::SeqCst);
    }
}

/// All connections end once the registry has answered so many bytes.
pub(crate) fn cut(to: u16, bytes: usize) -> Between {
    let left = Arc::new(AtomicUsize::new(bytes));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let budget = Arc::clone(&left);
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Write);
            });
            let budget = Arc::clone(&budget);
            thread::spawn(move || {
                let _ = pass(server, client, &budget);
            });
        }
    });
    Between { port, left }
}

fn pass(mut from: TcpStream, mut to: TcpStream, budget: &AtomicUsize) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer)?;
        let left = budget.load(Ordering::SeqCst);
        if count == 0 || left == 0 {
            return to.shutdown(std::net::Shutdown::Both);
        }
        let count = count.min(left);
        to.write_all(&buffer[..count])?;
        if left != usize::MAX {
            budget.store(left - count, Ordering::SeqCst);
        }
    }
}
