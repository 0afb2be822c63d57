//! Brings spans to a collector: in batches, one at a time, again with growing pauses where it makes sense. Whoever hands
//! spans over never waits: what does not fit is dropped, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::exchange::{Answer, post};
use super::{Collector, Told, encode};

/// Spans of one request.
const BATCH: usize = 512;
/// Spans that wait for the one that is under way.
const WAITING: usize = 8192;
/// How long a batch may grow from its first span on.
const GATHER: Duration = Duration::from_secs(1);
/// For one request, from connecting to the answer.
const WITHIN: Duration = Duration::from_secs(10);
/// Attempts of one batch.
const ATTEMPTS: u32 = 5;
/// The first pause between two of them; each is twice the one before.
const PAUSE: Duration = Duration::from_secs(1);

/// Spans by what became of them, since the start.
#[derive(Debug, Default)]
pub struct Sent {
    sent: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Sent {
    /// A collector took them.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// There was no room for them: the collector is too slow, or away.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// A collector refused them, or could not be reached often enough.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Where spans are handed over.
#[derive(Debug, Clone)]
pub struct Sender {
    waiting: mpsc::Sender<Told>,
    sent: Arc<Sent>,
}

impl Sender {
    /// Hands a span over, or drops it.
    pub fn put(&self, span: Told) {
        if self.waiting.try_send(span).is_err() {
            self.sent.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[must_use]
    pub fn sent(&self) -> &Sent {
        &self.sent
    }
}

/// Where to hand spans over, and what brings them to `collector`: a task that ends when all of the former are gone and
/// what they handed over is done with.
pub fn sender(collector: Collector) -> (Sender, impl Future<Output = ()> + Send) {
    with_pause(collector, PAUSE)
}

fn with_pause(collector: Collector, pause: Duration) -> (Sender, impl Future<Output = ()> + Send) {
    let (waiting, spans) = mpsc::channel(WAITING);
    let sent = Arc::new(Sent::default());
    (Sender { waiting, sent: Arc::clone(&sent) }, run(collector, spans, sent, pause))
}

async fn run(collector: Collector, mut spans: mpsc::Receiver<Told>, sent: Arc<Sent>, pause: Duration) {
    let mut reached = true;
    while let Some(first) = spans.recv().await {
        let mut batch = vec![first];
        let fill = async {
            while batch.len() < BATCH {
                match spans.recv().await {
                    Some(next) => batch.push(next),
                    None => break,
                }
            }
        };
        // What is there by then goes.
        let _ = timeout(GATHER, fill).await;
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let outcome = bring(&collector, &encode(&batch), pause).await;
        let counter = if outcome.is_ok() { &sent.sent } else { &sent.failed };
        counter.fetch_add(count, Ordering::Relaxed);
        // Once each time it changes: a collector that is away for a day is not a line a second.
        match &outcome {
            Ok(()) if !reached => tracing::info!(%collector, "spans are taken again"),
            Err(why) if reached => tracing::warn!(%collector, %why, spans = count, "spans are not taken"),
            Ok(()) | Err(_) => {}
        }
        reached = outcome.is_ok();
    }
}

/// Why a batch did not get there.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error("the collector answers with status {0}")]
    Refused(u16),
    #[error("after {ATTEMPTS} attempts: {0}")]
    Away(String),
}

async fn bring(collector: &Collector, body: &[u8], pause: Duration) -> Result<(), NotTaken> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        let wait = match timeout(WITHIN, post(collector, body)).await {
            Ok(Ok(Answer::Taken)) => return Ok(()),
            Ok(Ok(Answer::Refused { status })) => return Err(NotTaken::Refused(status)),
            Ok(Ok(Answer::Later { after })) => {
                last = "it asks to come later".to_owned();
                after
            }
            Ok(Err(error)) => {
                last = error.to_string();
                None
            }
            Err(_) => {
                last = "no answer in time".to_owned();
                None
            }
        };
        if attempt + 1 < ATTEMPTS {
            sleep(wait.unwrap_or_else(|| pause.saturating_mul(1 << attempt.min(8)))).await;
        }
    }
    Err(NotTaken::Away(last))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::accounts::OutcomeKind;
    use crate::otlp::encode::tests::told;

    /// Reads one request and answers it; gives its body.
    async fn answer(listener: &TcpListener, with: &str) -> Value {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut request, mut part) = (Vec::new(), [0; 4096]);
        loop {
            let length = stream.read(&mut part).await.unwrap();
            assert_ne!(length, 0, "a whole request");
            request.extend_from_slice(&part[..length]);
            let text = String::from_utf8_lossy(&request);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
                let body = serde_json::from_str(body).unwrap();
                stream.write_all(format!("HTTP/1.1 {with}\r\n\r\n").as_bytes()).await.unwrap();
                return body;
            }
        }
    }

    async fn fake() -> (TcpListener, Collector) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        (listener, collector)
    }

    fn spans(body: &Value) -> &Vec<Value> {
        body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap()
    }

    #[tokio::test]
    async fn spans_arrive_and_what_is_to_come_later_comes_again() {
        let (listener, collector) = fake().await;
        let (sender, task) = with_pause(collector, Duration::ZERO);
        let task = tokio::spawn(task);
        (1..=3).for_each(|number| sender.put(told(number, OutcomeKind::Allow)));
        let first = answer(&listener, "503 Busy\r\nretry-after: 0").await;
        let second = answer(&listener, "200 OK").await;
        assert_eq!(first, second);
        assert_eq!(spans(&second).len(), 3);
        assert_eq!(spans(&second)[0]["parentSpanId"], "b7ad6b7169203331", "the client's span");
        sender.put(told(4, OutcomeKind::Allow));
        answer(&listener, "400 Bad Request").await;
        let counts = Arc::clone(&sender.sent);
        drop(sender);
        task.await.unwrap();
        assert_eq!((counts.sent(), counts.failed(), counts.dropped()), (3, 1, 0));
    }

    #[tokio::test]
    async fn a_collector_that_is_away_holds_nobody_up() {
        let (listener, collector) = fake().await;
        // Its port answers with a reset.
        drop(listener);
        let (sender, task) = with_pause(collector, Duration::ZERO);
        (1..=3).for_each(|number| sender.put(told(number, OutcomeKind::Allow)));
        let counts = Arc::clone(&sender.sent);
        drop(sender);
        task.await;
        assert_eq!((counts.sent(), counts.failed()), (0, 3));
    }

    /// One that takes the connection and says nothing: what waits is bounded, and handing over returns at once.
    #[tokio::test]
    async fn a_collector_that_hangs_costs_spans_and_nothing_else() {
        let (_listener, collector) = fake().await;
        let (sender, task) = with_pause(collector, Duration::ZERO);
        let task = tokio::spawn(task);
        (0..2 * WAITING).for_each(|_| sender.put(told(1, OutcomeKind::Allow)));
        assert_eq!(sender.sent().dropped(), WAITING as u64);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
