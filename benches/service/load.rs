//! Load from many connections at once, and what it cost the processes under it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One question and its answer, over one connection. Panics if the answer is not the one expected.
pub(super) trait Exchange: Send {
    fn exchange(&mut self);
}

/// An exchange in two, so that one thread can have several under way.
pub(super) trait Halves: AsFd {
    fn send(&mut self);
    /// The whole answer; called when some of it is there.
    fn receive(&mut self);
}

/// What one run of closed loops came to.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Processor time of the servers for each exchange, microseconds.
    pub(super) cpu_us: f64,
    pub(super) per_second: f64,
    /// Microseconds, ascending.
    pub(super) latencies_us: Vec<f64>,
}

impl Load {
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        percentile(&self.latencies_us, percent)
    }
}

/// Every peer asks, waits for the answer, and asks again, each on its own thread. `servers` are the processes whose
/// time counts.
pub(super) fn closed_loop(peers: &mut [impl Exchange], servers: &[i32], duration: Duration) -> Load {
    paced_loop(peers, servers, duration, Duration::ZERO)
}

/// The same with a pause before each question, which does not count as part of its latency.
pub(super) fn paced_loop(
    peers: &mut [impl Exchange],
    servers: &[i32],
    duration: Duration,
    pause: Duration,
) -> Load {
    measured(servers, duration, |until| {
        thread::scope(|scope| {
            let threads: Vec<_> = peers
                .iter_mut()
                .map(|peer| scope.spawn(move || exchange_until(peer, until, pause)))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    })
}

/// A closed loop on each connection too, but all by one thread that waits for whichever answer comes first, as a proxy's
/// worker does with its connections.
pub(super) fn event_loop(peers: &mut [impl Halves], servers: &[i32], duration: Duration) -> Load {
    measured(servers, duration, |until| {
        let mut latencies = Vec::with_capacity(1 << 17);
        let mut sent: Vec<Option<Instant>> = peers.iter().map(|_| None).collect();
        for (peer, sent) in peers.iter_mut().zip(&mut sent) {
            *sent = Some(Instant::now());
            peer.send();
        }
        while sent.iter().any(Option::is_some) {
            let mut ready: Vec<PollFd<'_>> =
                peers.iter().map(|peer| PollFd::new(peer.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut ready, PollTimeout::NONE).unwrap();
            let ready: Vec<bool> = ready.iter().map(|one| one.any().unwrap()).collect();
            for ((peer, sent), ready) in peers.iter_mut().zip(&mut sent).zip(ready) {
                let Some(before) = sent.filter(|_| ready) else { continue };
                peer.receive();
                let after = Instant::now();
                latencies.push((after - before).as_secs_f64() * 1e6);
                *sent = (after < until).then_some(after);
                if sent.is_some() {
                    peer.send();
                }
            }
        }
        latencies
    })
}

/// What `load` came to, which gives latencies in microseconds.
fn measured(servers: &[i32], duration: Duration, load: impl FnOnce(Instant) -> Vec<f64>) -> Load {
    let cpu_before = cpu_ns(servers);
    let start = Instant::now();
    let mut latencies_us = load(start + duration);
    let elapsed = start.elapsed();
    let cpu = cpu_ns(servers) - cpu_before;
    latencies_us.sort_by(f64::total_cmp);
    let count = latencies_us.len() as f64;
    Load { cpu_us: cpu as f64 / 1e3 / count, per_second: count / elapsed.as_secs_f64(), latencies_us }
}

fn exchange_until(peer: &mut impl Exchange, until: Instant, pause: Duration) -> Vec<f64> {
    let mut latencies = Vec::with_capacity(1 << 17);
    let mut before = Instant::now();
    while before < until {
        if !pause.is_zero() {
            thread::sleep(pause);
            before = Instant::now();
        }
        peer.exchange();
        let after = Instant::now();
        latencies.push((after - before).as_secs_f64() * 1e6);
        before = after;
    }
    latencies
}

/// A thread that only sleeps: how late it wakes is what this machine did to everybody, whatever the service does.
pub(super) struct Sleeper {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Sleeper {
    pub(super) fn start() -> Self {
        const NAP: Duration = Duration::from_millis(1);
        let over = Arc::<AtomicBool>::default();
        let told = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut latest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let before = Instant::now();
                thread::sleep(NAP);
                latest = latest.max(before.elapsed().saturating_sub(NAP));
            }
            latest
        });
        Self { over, thread }
    }

    /// Says how late it woke at worst.
    pub(super) fn stop(self) -> String {
        self.over.store(true, Ordering::Relaxed);
        let latest = self.thread.join().unwrap();
        format!("a thread that only sleeps woke up to {:.1} ms late", latest.as_secs_f64() * 1e3)
    }
}

/// Of ascending numbers; the nearest rank.
pub(super) fn percentile(ascending: &[f64], percent: f64) -> f64 {
    assert!(!ascending.is_empty(), "nothing was measured");
    let rank = (percent / 100.0 * ascending.len() as f64).ceil() as usize;
    ascending[rank.clamp(1, ascending.len()) - 1]
}

/// Processor time of every thread these processes have, user and system, nanoseconds.
///
/// The scheduler's own figures, which are exact for threads that sleep; `stat` counts in steps of 10 ms. A thread that
/// ends takes its time along: no server here ends one while its connections are open.
pub(super) fn cpu_ns(pids: &[i32]) -> u64 {
    let of_thread = |path: std::path::PathBuf| -> u64 {
        let text = std::fs::read_to_string(path.join("schedstat"))
            .unwrap_or_else(|error| panic!("read {path:?}/schedstat: {error}"));
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let of_process = |pid: &i32| -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap_or_else(|error| panic!("process {pid} is gone: {error}"));
        tasks.map(|task| of_thread(task.unwrap().path())).sum()
    };
    pids.iter().map(of_process).sum()
}
