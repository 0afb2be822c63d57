//! How far a transfer is: bars where somebody watches, a line for each object where it is written down.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::artifact::Digest;
use crate::cli::terminal::printable;
use crate::wire::fetch::FromFetcher;

/// Of an object: its kind, its digest, a bar.
const BAR: &str = "{prefix:10} {msg} [{bar:24}] {bytes:>10} / {total_bytes:<10} {bytes_per_sec}";

/// Shows what the fetcher says.
pub(in crate::cli::policy) struct Progress {
    show: Show,
}

enum Show {
    Nothing,
    Lines(BTreeMap<Digest, (String, u64, u64)>),
    Bars(MultiProgress, BTreeMap<Digest, ProgressBar>),
}

impl Progress {
    pub(super) fn start(quiet: bool) -> Self {
        let show = if quiet {
            Show::Nothing
        } else if io::stderr().is_terminal() {
            Show::Bars(MultiProgress::new(), BTreeMap::new())
        } else {
            Show::Lines(BTreeMap::new())
        };
        Self { show }
    }

    pub(super) fn show(&mut self, said: &FromFetcher) {
        match (&mut self.show, said) {
            (Show::Lines(objects), FromFetcher::Begins { what, digest, size, have }) => {
                objects.insert(*digest, (printable(what), *size, *have));
            }
            (Show::Lines(objects), FromFetcher::Finished { digest }) => {
                if let Some((what, size, had)) = objects.remove(digest) {
                    let had =
                        if had > 0 { format!(", {} there already", HumanBytes(had)) } else { String::new() };
                    line(&format!("{what:10} {digest} {}{had}", HumanBytes(size)));
                }
            }
            (Show::Lines(_), FromFetcher::Note(note)) => line(&printable(note)),
            (Show::Bars(all, bars), FromFetcher::Begins { what, digest, size, have }) => {
                let bar = all.add(ProgressBar::new(*size));
                if let Ok(style) = ProgressStyle::with_template(BAR) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(printable(what));
                bar.set_message(digest.short());
                bar.set_position(*have);
                bars.insert(*digest, bar);
            }
            (Show::Bars(_, bars), FromFetcher::Progress { digest, have }) => {
                if let Some(bar) = bars.get(digest) {
                    bar.set_position(*have);
                }
            }
            (Show::Bars(_, bars), FromFetcher::Finished { digest }) => {
                if let Some(bar) = bars.remove(digest) {
                    bar.set_position(bar.length().unwrap_or_default());
                    bar.abandon();
                }
            }
            (Show::Bars(all, _), FromFetcher::Note(note)) => {
                // A terminal that is gone has nobody to tell.
                let _ = all.println(printable(note));
            }
            _ => {}
        }
    }

    /// What was not finished stays as it is.
    pub(super) fn end(&mut self) {
        if let Show::Bars(_, bars) = &mut self.show {
            bars.values().for_each(ProgressBar::abandon);
            bars.clear();
        }
    }
}

fn line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
