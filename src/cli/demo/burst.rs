//! Many short questions, on one connection for each tenant, one after the other: how long does one take?

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::event::{Burst, Unexpected, micros};
use super::scene::Scene;
use super::script::{self, Ask};
use super::service::PATIENCE;
use super::signals::Signals;
use super::{DemoError, GRACE};
use crate::client::{Settings, blocking};

/// Times that are kept of each connection; more would only take memory.
const KEPT: usize = 1 << 21;

/// What one connection saw.
#[derive(Debug, Default)]
struct Seen {
    times_ns: Vec<u64>,
    wrong: u64,
}

/// Asks for so long, or until somebody wants the demo to end.
pub(super) fn run(scene: &Scene, lasting: Duration, signals: &Signals) -> Result<Burst, DemoError> {
    let asks = script::short();
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (seen, waited) = thread::scope(|scope| {
        let threads: Vec<_> = asks.iter().map(|ask| scope.spawn(|| closed_loop(scene, ask, &stop))).collect();
        let waited = wait(signals, start + lasting);
        stop.store(true, Ordering::Relaxed);
        let seen: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        (seen, waited)
    });
    waited?;
    let took = start.elapsed();
    let seen = seen.into_iter().collect::<Result<Vec<_>, DemoError>>()?;

    let mut times: Vec<u64> = seen.iter().flat_map(|seen| &seen.times_ns).copied().collect();
    times.sort_unstable();
    let decisions = u64::try_from(times.len()).unwrap_or(u64::MAX);
    let wrong: u64 = seen.iter().map(|seen| seen.wrong).sum();
    let micros = micros(took);
    Ok(Burst {
        connections: seen.len(),
        decisions,
        micros,
        per_second: decisions.saturating_mul(1_000_000).checked_div(micros).unwrap_or(0),
        p50_ns: percentile(&times, 50),
        p99_ns: percentile(&times, 99),
        unexpected: Unexpected::where_not([
            (wrong == 0, "expected every answer of the burst to be allow"),
            (seen.len() == asks.len() && decisions > 0, "expected answers on every connection"),
        ]),
    })
}

fn wait(signals: &Signals, until: Instant) -> Result<(), DemoError> {
    while Instant::now() < until {
        if signals.wait(None, Some(until)).map_err(DemoError::Signals)?.stop {
            return Err(DemoError::Interrupted);
        }
    }
    Ok(())
}

/// The next question when the last one is answered.
fn closed_loop(scene: &Scene, ask: &Ask, stop: &AtomicBool) -> Result<Seen, DemoError> {
    let prepared = ask.prepare()?;
    let settings = Settings { grace: GRACE, ..Settings::default() };
    let mut client = blocking::Client::with_settings(scene.socket(), settings);
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) && seen.times_ns.len() < KEPT {
        let start = Instant::now();
        let answer = prepared.ask(&mut client, PATIENCE);
        seen.times_ns.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        seen.wrong += u64::from(!ask.is_as_expected(&answer));
    }
    Ok(seen)
}

/// Of sorted times: `percent` in a hundred are not above it.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = sorted.len().saturating_mul(percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_seen() {
        let times: Vec<u64> = (1..=100).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 99)), (50, 99));
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99)), (7, 7));
        assert_eq!(percentile(&[1, 9], 99), 9);
        assert_eq!(percentile(&[], 99), 0);
    }
}
