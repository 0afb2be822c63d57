//! Numbers as scrapers read them: OpenMetrics 1.0, or the text format 0.0.4 of Prometheus for those who know no other.
//!
//! Written here, since the libraries for it keep the numbers themselves, and these are other processes'.

use std::fmt::{self, Write as _};

/// Which of the two a scraper gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What kind of numbers a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A number; counts stay whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    Count(u64),
    Real(f64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Real(real) => write!(f, "{real:?}"),
        }
    }
}

/// One bucket of a histogram.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bucket {
    /// Inclusive upper end, in the family's unit; infinite in the last.
    pub(super) le: f64,
    /// In this one alone.
    pub(super) count: u64,
    pub(super) exemplar: Option<Exemplar>,
}

/// One observation by name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Exemplar {
    /// Of the decision.
    pub(super) id: [u8; 16],
    /// In the family's unit.
    pub(super) value: f64,
}

/// Labels of one series, names first.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// What one scrape is answered with.
#[derive(Debug)]
pub(super) struct Page {
    text: String,
    format: Format,
}

impl Page {
    pub(super) const fn new(format: Format) -> Self {
        Self { text: String::new(), format }
    }

    /// A family and, by what is called on it, its series. Its name ends with its unit; a counter's is given without
    /// `_total`, which its series have.
    pub(super) fn family(
        &mut self,
        name: &'static str,
        kind: Kind,
        unit: Option<&str>,
        help: &str,
    ) -> Family<'_> {
        let suffix = if kind == Kind::Counter { "_total" } else { "" };
        let (of_family, word) = match (self.format, kind) {
            (Format::Text, Kind::Counter) => (suffix, "counter"),
            (Format::OpenMetrics, Kind::Counter) => ("", "counter"),
            (_, Kind::Gauge) => ("", "gauge"),
            (_, Kind::Histogram) => ("", "histogram"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# TYPE {name}{of_family} {word}");
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.text, "# HELP {name}{of_family} {}", Escaped(help));
        Family { page: self, name, suffix }
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// One family of a page, to be filled.
#[derive(Debug)]
pub(super) struct Family<'p> {
    page: &'p mut Page,
    name: &'static str,
    suffix: &'static str,
}

impl Family<'_> {
    pub(super) fn count(&mut self, labels: Labels<'_>, count: u64) {
        self.sample(self.suffix, labels, None, Value::Count(count));
    }

    pub(super) fn real(&mut self, labels: Labels<'_>, real: f64) {
        self.sample(self.suffix, labels, None, Value::Real(real));
    }

    /// `buckets` in the order of their ends, the last of which is infinite.
    pub(super) fn histogram(&mut self, labels: Labels<'_>, buckets: &[Bucket], sum: f64) {
        let mut up_to_here = 0_u64;
        for bucket in buckets {
            up_to_here = up_to_here.saturating_add(bucket.count);
            let le = if bucket.le.is_infinite() { "+Inf".to_owned() } else { format!("{:?}", bucket.le) };
            self.sample("_bucket", labels, Some(&le), Value::Count(up_to_here));
            if let (Format::OpenMetrics, Some(exemplar)) = (self.page.format, &bucket.exemplar) {
                // Behind its sample, on the same line.
                self.page.text.pop();
                let _ = writeln!(
                    self.page.text,
                    " # {{decision_id=\"{}\"}} {:?}",
                    hex::encode(exemplar.id),
                    exemplar.value
                );
            }
        }
        self.sample("_sum", labels, None, Value::Real(sum));
        self.sample("_count", labels, None, Value::Count(up_to_here));
    }

    fn sample(&mut self, suffix: &str, labels: Labels<'_>, le: Option<&str>, value: Value) {
        let text = &mut self.page.text;
        let _ = write!(text, "{}{suffix}", self.name);
        let all = labels.iter().copied().chain(le.map(|le| ("le", le)));
        let mut before = '{';
        for (name, value) in all {
            let _ = write!(text, "{before}{name}=\"{}\"", Escaped(value));
            before = ',';
        }
        if before == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

/// Text in which nothing can end a value or a line.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(format: Format) -> String {
        let mut page = Page::new(format);
        let mut calls = page.family("calls", Kind::Counter, None, "Calls\\that were made.");
        calls.count(&[("tenant", "a\"b\\c\nd"), ("module", "gate")], 3);
        page.family("busy_seconds", Kind::Counter, Some("seconds"), "Busy.").real(&[], 0.5);
        page.family("up", Kind::Gauge, None, "Up.").count(&[], 1);
        let exemplar = Some(Exemplar { id: [0xab; 16], value: 3.0 });
        let buckets = [
            Bucket { le: 2.0, count: 1, exemplar: None },
            Bucket { le: 4.0, count: 2, exemplar },
            Bucket { le: f64::INFINITY, count: 0, exemplar: None },
        ];
        let mut took = page.family("took_microseconds", Kind::Histogram, Some("microseconds"), "Took.");
        took.histogram(&[("stage", "run")], &buckets, 8.0);
        page.finish()
    }

    #[test]
    fn openmetrics_has_units_exemplars_and_an_end() {
        let expected = "\
# TYPE calls counter
# HELP calls Calls\\\\that were made.
calls_total{tenant=\"a\\\"b\\\\c\\nd\",module=\"gate\"} 3
# TYPE busy_seconds counter
# UNIT busy_seconds seconds
# HELP busy_seconds Busy.
busy_seconds_total 0.5
# TYPE up gauge
# HELP up Up.
up 1
# TYPE took_microseconds histogram
# UNIT took_microseconds microseconds
# HELP took_microseconds Took.
took_microseconds_bucket{stage=\"run\",le=\"2.0\"} 1
took_microseconds_bucket{stage=\"run\",le=\"4.0\"} 3 # {decision_id=\"abababababababababababababababab\"} 3.0
took_microseconds_bucket{stage=\"run\",le=\"+Inf\"} 3
took_microseconds_sum{stage=\"run\"} 8.0
took_microseconds_count{stage=\"run\"} 3
# EOF
";
        assert_eq!(page(Format::OpenMetrics), expected);
    }

    #[test]
    fn the_older_format_has_neither_and_names_counters_in_full() {
        let text = page(Format::Text);
        assert!(text.starts_with("# TYPE calls_total counter\n# HELP calls_total Calls"), "{text}");
        for absent in ["EOF", "UNIT", "decision_id"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert!(text.contains("took_microseconds_bucket{stage=\"run\",le=\"4.0\"} 3\n"), "{text}");
    }
}
