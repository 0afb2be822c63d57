//! A registry that serves one bundle as it is asked to, honestly or not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use portcullis::artifact::Digest;
use portcullis::bundle::{cosign_tag, open_path};

/// What was asked for. Header names are in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Bytes(Vec<u8>),
    /// As long as announced, but the connection breaks after so many.
    Breaks(Vec<u8>, usize),
    /// No length, until the connection is closed.
    Unannounced(Vec<u8>),
    /// No length and no end.
    Endless,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Bytes(body.into()) }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match &self.body {
            Body::Bytes(bytes) => bytes.clone(),
            other => panic!("{other:?}"),
        }
    }
}

/// A bundle's objects, as a registry keeps them.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(crate) bundle: Digest,
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) tags: BTreeMap<String, Digest>,
    pub(crate) attached: Vec<serde_json::Value>,
}

impl Shelf {
    pub(crate) fn of(folder: &Path) -> Self {
        let layout = open_path(folder).unwrap();
        let bundle = layout.read().unwrap();
        let blobs = bundle.blobs();
        let read =
            |blob| (Digest::of(&layout.bytes(blob, 1 << 30).unwrap()), layout.bytes(blob, 1 << 30).unwrap());
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
        Self {
            bundle: bundle.digest(),
            blobs: blobs.iter().map(read).collect(),
            tags: BTreeMap::from([("v1".to_owned(), bundle.digest())]),
            attached: index["manifests"].as_array().unwrap()[1..].to_vec(),
        }
    }

    /// With its bytes as they are; returns its digest.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.blobs.insert(digest, bytes.to_vec());
        digest
    }

    pub(crate) fn json(&self, digest: &Digest) -> serde_json::Value {
        serde_json::from_slice(&self.blobs[digest]).unwrap()
    }

    /// The bundle index with something changed in it, under the tag.
    pub(crate) fn change_index(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut index = self.json(&self.bundle.clone());
        change(&mut index);
        self.bundle = self.put(index.to_string().as_bytes());
        self.tags.insert("v1".to_owned(), self.bundle);
    }

    pub(crate) fn honest(&self, request: &Request) -> Reply {
        let Some(rest) = request.path.strip_prefix("/v2/gate/") else { return Reply::new(404, "{}") };
        let (kind, name) = rest.split_once('/').unwrap();
        let (name, _) = name.split_once('?').unwrap_or((name, ""));
        let found = || {
            let digest = self.tags.get(name).copied().or_else(|| name.parse().ok())?;
            self.blobs.get(&digest)
        };
        match kind {
            "manifests" | "blobs" => match found() {
                Some(bytes) => ranged(request, bytes),
                None => Reply::new(404, r#"{"errors":[{"code":"NOT_FOUND","message":"not there"}]}"#),
            },
            "referrers" if name == self.bundle.to_string() => {
                let index = serde_json::json!({
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": self.attached,
                });
                Reply::new(200, index.to_string())
            }
            _ => Reply::new(404, "{}"),
        }
    }

    pub(crate) fn cosign_tag(&self) -> String {
        cosign_tag(self.bundle)
    }
}

fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let from = request
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) if from < bytes.len() => Reply::new(206, &bytes[from..])
            .with("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        _ => Reply::new(200, bytes),
    }
}

/// The server. What it was asked is in `asked`.
pub(crate) struct Fake {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    /// Answers what `lie` says, and honestly where it says nothing.
    pub(crate) fn start(
        shelf: Shelf,
        lie: impl Fn(&Request, &Shelf) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer =
            Arc::new(move |request: &Request| lie(request, &shelf).unwrap_or_else(|| shelf.honest(request)));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                thread::spawn(move || serve(stream.unwrap(), &*answer, &log));
            }
        });
        Self { port, asked }
    }

    pub(crate) fn honest(shelf: Shelf) -> Self {
        Self::start(shelf, |_, _| None)
    }

    pub(crate) fn reference(&self) -> String {
        format!("127.0.0.1:{}/gate:v1", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

/// One request; then the connection is closed, so that nothing of a lie is left for the next.
fn serve(stream: TcpStream, answer: &dyn Fn(&Request) -> Reply, log: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some(request) = read(&mut reader) else { return };
    log.lock().unwrap().push(request.clone());
    // Whoever has heard enough closes, which is an error here and what is wanted.
    let _ = write(stream, &request, answer(&request));
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

fn write(mut stream: TcpStream, request: &Request, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let announced = reply.headers.iter().any(|(name, _)| name == "content-length");
    let mut announce = |length: usize| {
        if !announced {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
    };
    let head_only = request.method == "HEAD";
    match reply.body {
        Body::Bytes(bytes) => {
            announce(bytes.len());
            stream.write_all(format!("{head}\r\n").as_bytes())?;
            if !head_only {
                stream.write_all(&bytes)?;
            }
        }
        Body::Breaks(bytes, after) => {
            announce(bytes.len());
            stream.write_all(format!("{head}\r\n").as_bytes())?;
            stream.write_all(&bytes[..after])?;
        }
        Body::Unannounced(bytes) => {
            stream.write_all(format!("{head}\r\n").as_bytes())?;
            stream.write_all(&bytes)?;
        }
        Body::Endless => {
            stream.write_all(format!("{head}\r\n").as_bytes())?;
            loop {
                stream.write_all(&[b'x'; 65536])?;
            }
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // Closing with bytes unread would take away what was sent.
    stream.read_to_end(&mut Vec::new()).map(drop)
}
