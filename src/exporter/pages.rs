//! Pages of numbers: when they are put together, and how many there may be at one time. Whoever asks, however often and
//! from however many connections, takes a small share of one processor, and memory for a few pages.

use std::time::Duration;

use tokio::time::Instant;

use super::exposition::Format;
use super::serve::Answer;

/// From one time that numbers are put together to the next, at least.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// And at most: scrapers give up after ten seconds.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How many times as long as they took nothing is done: decisions have the processor meanwhile.
const SHARE: u32 = 10;
/// Pages of one format that somebody may be reading when another is made.
const READ_MAX: usize = 2;
/// Where as many are read, who asks gets the youngest, up to this age. A reader's time is over soon afterwards.
const AGE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Pages {
    due: Option<Instant>,
    read: Vec<Made>,
}

#[derive(Debug)]
struct Made {
    format: Format,
    at: Instant,
    answer: Answer,
}

impl Pages {
    /// The next may be put together then; `None`: nothing is in the way.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A page of `now`, or where others are still being read, the youngest of them.
    pub(super) fn page(&mut self, format: Format, now: Instant, make: impl FnOnce() -> Answer) -> Answer {
        // Nobody else has it any more.
        self.read.retain(|one| !one.answer.body.is_unique());
        let of_it = self.read.iter().filter(|one| one.format == format);
        let (read, youngest) = (of_it.clone().count(), of_it.max_by_key(|one| one.at));
        if let Some(youngest) = youngest
            && read >= READ_MAX
            && now.saturating_duration_since(youngest.at) < AGE_MAX
        {
            return youngest.answer.clone();
        }
        let answer = make();
        self.read.push(Made { format, at: now, answer: answer.clone() });
        answer
    }

    /// All who waited have their answers.
    pub(super) fn made(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began);
        self.due = Some(ended + took.saturating_mul(SHARE).clamp(PAUSE_MIN, PAUSE_MAX));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(text: &str) -> Answer {
        Answer { well: true, content_type: "", body: Bytes::from(text.to_owned()) }
    }

    #[test]
    fn numbers_are_put_together_in_a_small_share_of_the_time() {
        let (mut pages, began) = (Pages::default(), Instant::now());
        assert_eq!(pages.due(), None);
        for (took, pause) in [(0, 100), (5, 100), (170, 1700), (5_000, 5_000)] {
            let ended = began + Duration::from_millis(took);
            pages.made(began, ended);
            assert_eq!(pages.due(), Some(ended + Duration::from_millis(pause)), "{took} ms");
        }
    }

    #[test]
    fn however_many_read_there_are_few_pages() {
        let (mut pages, began) = (Pages::default(), Instant::now());
        let mut reading = Vec::new();
        // One every 100 ms, none of which reads it within ten seconds.
        for turn in 0..200_u32 {
            let now = began + Duration::from_millis(100) * turn;
            let page = pages.page(Format::Text, now, || answer(&format!("{turn}")));
            let made: u32 = std::str::from_utf8(&page.body).unwrap().parse().unwrap();
            assert!(turn - made < 50, "it is no older than AGE_MAX");
            reading.push(page);
            if reading.len() > 100 {
                reading.remove(0);
            }
            let mut different: Vec<&Bytes> = reading.iter().map(|page| &page.body).collect();
            different.dedup();
            assert!(different.len() <= 4, "turn {turn}: {different:?}");
        }
        // The other format's are counted by themselves.
        let now = began + Duration::from_secs(20);
        assert_eq!(pages.page(Format::OpenMetrics, now, || answer("open")).body, "open");
    }

    #[test]
    fn who_reads_at_once_gets_the_numbers_of_now() {
        let (mut pages, now) = (Pages::default(), Instant::now());
        for turn in 0..10 {
            let page = pages.page(Format::Text, now, || answer(&format!("{turn}")));
            assert_eq!(page.body, format!("{turn}"));
            drop(page);
            assert!(pages.read.len() <= 1);
        }
    }
}
