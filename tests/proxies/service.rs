//! The service behind the proxy: it answers everybody, and writes down what reached it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::exchange::dechunked;

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrived {
    pub(crate) method: String,
    /// As it stood in the request line.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Arrived {
    pub(crate) fn all<'a>(&'a self, name: &str) -> Vec<&'a str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The one value of a header; none too if there are several.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        let [value] = self.all(name)[..] else { return None };
        Some(value)
    }
}

pub(crate) struct Shop {
    pub(crate) port: u16,
    arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl Shop {
    pub(crate) fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let arrived = Arc::<Mutex<Vec<Arrived>>>::default();
        let seen = Arc::clone(&arrived);
        // It ends with the test program.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(&stream.unwrap(), &seen));
            }
        });
        Self { port, arrived }
    }

    /// What arrived since the last time.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        std::mem::take(&mut self.arrived.lock().unwrap())
    }
}

fn serve(stream: &TcpStream, arrived: &Mutex<Vec<Arrived>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            if reader.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let mut first = lines.first()?.split(' ').map(str::to_owned);
        let mut request = Arrived { method: first.next()?, target: first.next()?, ..Arrived::default() };
        for line in &lines[1..] {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        request.body = body(&mut reader, &request)?;
        let (head, body) = (request.method == "HEAD", lines.join("\n"));
        let close = request.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
            || lines[0].ends_with("HTTP/1.0");
        // Before the answer: whoever has that finds the request here.
        arrived.lock().unwrap().push(request);
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
        if !head {
            answer += &body;
        }
        let mut stream = stream;
        stream.write_all(answer.as_bytes()).ok()?;
        if close {
            return None;
        }
    }
}

fn body(reader: &mut impl BufRead, request: &Arrived) -> Option<Vec<u8>> {
    if request.one("transfer-encoding").is_some() {
        let mut bytes = Vec::new();
        loop {
            let some = reader.fill_buf().ok()?;
            if some.is_empty() {
                return None;
            }
            let before = bytes.len();
            bytes.extend_from_slice(some);
            if let Some((body, rest)) = dechunked(&bytes) {
                let used = bytes.len() - rest.len() - before;
                reader.consume(used);
                return Some(body);
            }
            let used = bytes.len() - before;
            reader.consume(used);
        }
    }
    let length = request.one("content-length").map_or(Some(0), |length| length.parse().ok())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}
