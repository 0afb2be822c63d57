//! Decisions of traces that a client records, on their way to the exporter: a ring in the class's accounts. Many threads of
//! several processes write, one process reads, and nobody waits: what is overwritten before it was read is lost, and
//! counted. Whoever writes may be hostile, or may have died in the middle: a record counts only if its number, its sum
//! and every value in it are what they have to be.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::layout::OutcomeKind;
use crate::decision::{DecisionId, Timing, TraceContext};

/// Spans that wait at most.
pub const SPANS: usize = 2048;
/// Numbers of one record.
const WORDS: usize = 17;
/// Longest that a decision can have taken, nanoseconds. Deadlines are far below that.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// One decision of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The client's.
    pub trace: TraceContext,
    pub decision: DecisionId,
    /// Its tenant's and its policy's places in the accounts.
    pub tenant: u32,
    pub module: u32,
    /// Of the code that was asked.
    pub digest: [u8; 32],
    pub outcome: OutcomeKind,
    /// Receipt, nanoseconds since 1970.
    pub start_ns: u64,
    /// From receipt to the answer, nanoseconds.
    pub took_ns: u64,
    pub timing: Timing,
}

#[derive(Debug)]
#[repr(C)]
pub struct SpanRing {
    /// Spans that were begun to be written, ever.
    begun: AtomicU64,
    records: [Record; SPANS],
}

/// `sequence` is 2n + 1 while span n is written, and 2n + 2 when it is there.
#[derive(Debug)]
#[repr(C)]
struct Record {
    sequence: AtomicU64,
    sum: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl SpanRing {
    /// Puts a span in. One that meets another writer at its place, a whole ring later, is lost.
    pub fn put(&self, span: &Span) {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let Some(record) = self.record(number) else { return };
        let (writing, written) = sequences(number);
        let before = record.sequence.load(Ordering::Relaxed);
        // Whoever is at it since a whole ring ago has died, or was stopped: the sum tells what comes of it.
        if before >= writing && before.wrapping_sub(writing) < u64::MAX / 2 {
            return;
        }
        if record.sequence.compare_exchange(before, writing, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        fence(Ordering::Release);
        let words = span.words();
        for (place, word) in record.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        record.sum.store(sum(number, &words), Ordering::Relaxed);
        record.sequence.store(written, Ordering::Release);
    }

    fn record(&self, number: u64) -> Option<&Record> {
        self.records.get(usize::try_from(number.checked_rem(SPANS as u64)?).ok()?)
    }
}

const fn sequences(number: u64) -> (u64, u64) {
    let doubled = number.wrapping_mul(2);
    (doubled.wrapping_add(1), doubled.wrapping_add(2))
}

/// Two halves of different records have another sum; who means harm can make it right, and then harms its own spans.
fn sum(number: u64, words: &[u64; WORDS]) -> u64 {
    words.iter().fold(number ^ 0x9e37_79b9_7f4a_7c15, |sum, word| {
        (sum.rotate_left(23) ^ word).wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// Where a reader of a ring is.
#[derive(Debug, Default)]
pub struct SpanReader {
    next: u64,
    /// It was not there when it was last asked for.
    waited_for: Option<u64>,
    /// Spans that were written and cannot be had: overwritten, torn, or not what a span can be.
    lost: u64,
}

impl SpanReader {
    /// Begins with what is written from now on.
    #[must_use]
    pub fn new(ring: &SpanRing) -> Self {
        Self { next: ring.begun.load(Ordering::Acquire), ..Self::default() }
    }

    /// Spans that were lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes what is there, oldest first, `most` at once. `now_ns`: nanoseconds since 1970.
    pub fn take(&mut self, ring: &SpanRing, now_ns: u64, most: usize) -> Vec<Span> {
        let begun = ring.begun.load(Ordering::Acquire);
        let waiting = begun.wrapping_sub(self.next);
        if waiting > u64::MAX / 2 {
            // Set back: only somebody who means harm does that.
            self.next = begun;
            return Vec::new();
        }
        if waiting > SPANS as u64 {
            let gone = waiting - SPANS as u64;
            self.lose(gone);
            self.next = self.next.wrapping_add(gone);
        }
        let mut spans = Vec::new();
        while self.next != begun && spans.len() < most {
            match read(ring, self.next, now_ns) {
                Found::Span(span) => spans.push(*span),
                // Once more, the next time; then its writer has given up, or died.
                Found::NotYet if self.waited_for != Some(self.next) => {
                    self.waited_for = Some(self.next);
                    break;
                }
                Found::NotYet | Found::Gone => self.lose(1),
            }
            self.next = self.next.wrapping_add(1);
        }
        spans
    }

    fn lose(&mut self, count: u64) {
        self.lost = self.lost.saturating_add(count);
    }
}

enum Found {
    Span(Box<Span>),
    NotYet,
    Gone,
}

fn read(ring: &SpanRing, number: u64, now_ns: u64) -> Found {
    let Some(record) = ring.record(number) else { return Found::Gone };
    let (_, written) = sequences(number);
    let before = record.sequence.load(Ordering::Acquire);
    if before != written {
        // What is older is still to be overwritten.
        return if before.wrapping_sub(written) > u64::MAX / 2 { Found::NotYet } else { Found::Gone };
    }
    let words = record.words.each_ref().map(|word| word.load(Ordering::Relaxed));
    let told = record.sum.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    let whole = record.sequence.load(Ordering::Relaxed) == written && told == sum(number, &words);
    match Span::from_words(&words, now_ns).filter(|_| whole) {
        Some(span) => Found::Span(Box::new(span)),
        None => Found::Gone,
    }
}

impl Span {
    fn words(&self) -> [u64; WORDS] {
        let [trace_high, trace_low] = pair(self.trace.trace_id());
        let [id_high, id_low] = pair(self.decision.as_bytes());
        let (first, second) = self.digest.split_at(16);
        let [a, b] = pair(first);
        let [c, d] = pair(second);
        let Timing { queue_ns, instantiate_ns, run_ns, host_ns } = self.timing;
        [
            trace_high,
            trace_low,
            u64::from_be_bytes(*self.trace.parent_id()),
            id_high,
            id_low,
            u64::from(self.tenant) << 32 | u64::from(self.module),
            a,
            b,
            c,
            d,
            u64::from(self.trace.flags()) << 32 | self.outcome as u64,
            self.start_ns,
            self.took_ns,
            queue_ns,
            instantiate_ns,
            run_ns,
            host_ns,
        ]
    }

    /// `None` if no decision can have been like that.
    fn from_words(words: &[u64; WORDS], now_ns: u64) -> Option<Self> {
        let &[
            trace_high,
            trace_low,
            parent,
            id_high,
            id_low,
            places,
            a,
            b,
            c,
            d,
            flags_and_outcome,
            start_ns,
            took_ns,
            queue_ns,
            instantiate_ns,
            run_ns,
            host_ns,
        ] = words;
        let flags = u8::try_from(flags_and_outcome >> 32).ok()?;
        let trace = TraceContext::new(bytes(trace_high, trace_low), parent.to_be_bytes(), flags).ok()?;
        let outcome = usize::try_from(flags_and_outcome & u64::from(u32::MAX)).ok()?;
        let (first, second) = (bytes(a, b), bytes(c, d));
        let mut digest = [0; 32];
        digest.iter_mut().zip(first.into_iter().chain(second)).for_each(|(to, from)| *to = from);
        let stages = queue_ns.checked_add(instantiate_ns)?.checked_add(run_ns)?;
        let possible = took_ns <= LONGEST_NS
            && stages <= took_ns
            && host_ns <= run_ns
            && start_ns.abs_diff(now_ns) <= 2 * LONGEST_NS
            && trace.is_sampled();
        possible.then_some(Self {
            trace,
            decision: DecisionId::from_bytes(bytes(id_high, id_low)).ok()?,
            tenant: u32::try_from(places >> 32).ok()?,
            module: u32::try_from(places & u64::from(u32::MAX)).ok()?,
            digest,
            outcome: *OutcomeKind::ALL.get(outcome)?,
            start_ns,
            took_ns,
            timing: Timing { queue_ns, instantiate_ns, run_ns, host_ns },
        })
    }
}

/// 16 bytes as two numbers.
fn pair(bytes: &[u8]) -> [u64; 2] {
    let half = |at: usize| bytes.iter().skip(at).take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    [half(0), half(8)]
}

fn bytes(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::ClassAccount;
    use crate::accounts::map::Map;
    use crate::accounts::map::tests::fresh;

    const NOW: u64 = 1_700_000_000_000_000_000;

    fn span(number: u64) -> Span {
        Span {
            trace: TraceContext::new([7; 16], [9; 8], 1).unwrap(),
            decision: DecisionId::from_random((u128::from(number) << 64 | 1).to_be_bytes()),
            tenant: 3,
            module: u32::MAX,
            digest: std::array::from_fn(|at| u8::try_from(at).unwrap()),
            outcome: OutcomeKind::Deny,
            start_ns: NOW + number,
            took_ns: 100,
            timing: Timing { queue_ns: 10, instantiate_ns: 20, run_ns: 70, host_ns: 70 },
        }
    }

    fn account() -> Map<ClassAccount> {
        fresh()
    }

    #[test]
    fn what_was_put_in_comes_out_in_order_and_once() {
        let account = account();
        let ring = &account.spans;
        let mut reader = SpanReader::new(ring);
        assert!(reader.take(ring, NOW, 10).is_empty());
        let spans: Vec<Span> = (0..5).map(span).collect();
        spans.iter().for_each(|span| ring.put(span));
        assert_eq!(reader.take(ring, NOW, 2), spans[..2]);
        assert_eq!(reader.take(ring, NOW, 10), spans[2..]);
        assert!(reader.take(ring, NOW, 10).is_empty());
        assert_eq!(reader.lost(), 0);
        assert!(
            SpanReader::new(ring).take(ring, NOW, 10).is_empty(),
            "who comes later hears what comes later"
        );
    }

    #[test]
    fn what_is_overwritten_is_counted() {
        let account = account();
        let ring = &account.spans;
        let mut reader = SpanReader::new(ring);
        let count = SPANS as u64 + 300;
        (0..count).for_each(|number| ring.put(&span(number)));
        let taken = reader.take(ring, NOW, usize::MAX);
        assert_eq!((taken.len(), reader.lost()), (SPANS, 300));
        assert_eq!((taken[0], taken[SPANS - 1]), (span(300), span(count - 1)));
    }

    #[test]
    fn a_writer_that_died_costs_its_own_span_alone() {
        let account = account();
        let ring = &account.spans;
        let mut reader = SpanReader::new(ring);
        ring.put(&span(0));
        // As far as it came.
        let dead = ring.begun.fetch_add(1, Ordering::Relaxed);
        ring.record(dead).unwrap().sequence.store(sequences(dead).0, Ordering::Relaxed);
        ring.put(&span(2));
        assert_eq!(reader.take(ring, NOW, 10), [span(0)]);
        assert_eq!(reader.take(ring, NOW, 10), [span(2)], "it was waited for once");
        assert_eq!(reader.lost(), 1);
        // A ring later its place is used again.
        (3..=dead + SPANS as u64).for_each(|number| ring.put(&span(number)));
        let taken = reader.take(ring, NOW, usize::MAX);
        assert_eq!((taken.len(), reader.lost()), (SPANS - 1, 1));
    }

    #[test]
    fn nothing_that_cannot_have_been_is_taken() {
        let account = account();
        let ring = &account.spans;
        let mut reader = SpanReader::new(ring);
        // Each number of a record, put to the extremes, with the sum made right: no panic, and nothing absurd.
        let mut put = 0;
        for place in 0..WORDS {
            for value in [0, 1, u64::MAX, u64::MAX / 2, NOW, 1 << 32, 1 << 40] {
                let number = ring.begun.load(Ordering::Relaxed);
                ring.put(&span(1));
                let record = ring.record(number).unwrap();
                record.words[place].store(value, Ordering::Relaxed);
                let words = record.words.each_ref().map(|word| word.load(Ordering::Relaxed));
                record.sum.store(sum(number, &words), Ordering::Relaxed);
                put += 1;
            }
        }
        let taken = reader.take(ring, NOW, usize::MAX);
        assert_eq!(taken.len() as u64 + reader.lost(), put);
        assert!(reader.lost() > 0 && !taken.is_empty());
        for span in taken {
            let Timing { queue_ns, instantiate_ns, run_ns, host_ns } = span.timing;
            assert!(queue_ns + instantiate_ns + run_ns <= span.took_ns && host_ns <= run_ns);
            assert!(span.took_ns <= LONGEST_NS && span.start_ns.abs_diff(NOW) <= 2 * LONGEST_NS);
            assert!(span.trace.is_sampled());
        }
        // Without the sum made right nothing is.
        ring.put(&span(1));
        let last = ring.record(put).unwrap();
        last.words[5].store(0, Ordering::Relaxed);
        assert!(reader.take(ring, NOW, 10).is_empty());
        for begun in [0, u64::MAX, u64::MAX / 2, 1] {
            ring.begun.store(begun, Ordering::Relaxed);
            let _ = reader.take(ring, NOW, usize::MAX);
        }
    }

    #[test]
    fn no_torn_span_comes_out_however_many_write() {
        let account = account();
        let ring = &account.spans;
        let mut reader = SpanReader::new(ring);
        let (writers, each) = (3, 20_000_u64);
        let mut taken = 0;
        std::thread::scope(|scope| {
            let writing: Vec<_> = (0..writers)
                .map(|writer| {
                    scope.spawn(move || {
                        (0..each).for_each(|turn| ring.put(&span(writer * each + turn)));
                    })
                })
                .collect();
            while !writing.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                for found in reader.take(ring, NOW, usize::MAX) {
                    assert_eq!(found, span(found.start_ns - NOW));
                    taken += 1;
                }
            }
        });
        // What a writer gave up on is waited for once each.
        for _ in 0..=SPANS {
            taken += reader.take(ring, NOW, usize::MAX).len() as u64;
        }
        assert_eq!(taken + reader.lost(), writers * each);
        assert!(taken > 0);
    }
}
