//! What the exporter tells at one moment, as far as it is shown. Lines that are not understood are none of ours.

use std::collections::BTreeMap;

/// Ends of a histogram's buckets, microseconds, and how many lie at or below each.
pub(super) type Buckets = Vec<(f64, f64)>;

/// One tenant, or `other`: all beyond those that have series of their own.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TenantSample {
    /// By outcome.
    pub(super) outcomes: BTreeMap<String, f64>,
    /// By quota.
    pub(super) quotas: BTreeMap<String, f64>,
    pub(super) cpu_seconds: f64,
    pub(super) concurrent: f64,
    pub(super) memory_pages: f64,
    pub(super) latency: Buckets,
}

/// One class.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ClassSample {
    pub(super) generation: f64,
    pub(super) queued: f64,
    pub(super) instances: f64,
    pub(super) instances_max: f64,
    pub(super) connections: f64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) tenants: BTreeMap<String, TenantSample>,
    pub(super) classes: BTreeMap<String, ClassSample>,
}

impl Sample {
    pub(super) fn read(text: &str) -> Self {
        let mut sample = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, labels, value)) = series(line) {
                sample.take(name, &labels, value);
            }
        }
        sample
    }

    fn take(&mut self, name: &str, labels: &BTreeMap<&str, String>, value: f64) {
        let label = |key: &str| labels.get(key).filter(|value| !value.is_empty()).cloned();
        if let Some(tenant) = label("tenant") {
            let of = self.tenants.entry(tenant).or_default();
            match (name, label("outcome"), label("reason"), label("le")) {
                ("portcullis_decisions_total", Some(outcome), ..) => {
                    of.outcomes.insert(outcome, value);
                }
                ("wasm_tenant_quota_rejected_total", _, Some(reason), _) => {
                    of.quotas.insert(reason, value);
                }
                ("wasm_tenant_cpu_seconds_total", ..) => of.cpu_seconds = value,
                ("wasm_tenant_concurrent_calls", ..) => of.concurrent = value,
                ("wasm_tenant_memory_pages", ..) => of.memory_pages = value,
                ("portcullis_decision_latency_microseconds_bucket", .., Some(le)) => {
                    of.latency.push((number(&le).unwrap_or(f64::INFINITY), value));
                }
                _ => {}
            }
        } else if let Some(class) = label("class") {
            let role = label("role");
            let is_worker = role.as_deref().is_none_or(|role| role == "worker");
            let known = [
                "portcullis_generation",
                "portcullis_queue_depth",
                "portcullis_instances",
                "wasm_instance_pool_size",
                "portcullis_connections",
            ];
            if !is_worker || !known.contains(&name) {
                return;
            }
            let of = self.classes.entry(class).or_default();
            match name {
                "portcullis_generation" => of.generation = value,
                "portcullis_queue_depth" => of.queued = value,
                "portcullis_instances" => of.instances = value,
                "wasm_instance_pool_size" => of.instances_max = value,
                _ => of.connections = value,
            }
        }
    }
}

/// `name{label="value",...} number`, and maybe an exemplar behind it.
fn series(line: &str) -> Option<(&str, BTreeMap<&str, String>, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at_checked(end)?;
    let mut labels = BTreeMap::new();
    if let Some(after) = rest.strip_prefix('{') {
        rest = after;
        while !rest.starts_with('}') {
            let (key, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key, value);
            rest = after;
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.split_whitespace().next()?;
    Some((name, labels, number(value)?))
}

/// Up to the closing quote, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at.saturating_add(1)..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

fn number(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    (!value.is_nan()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_taken_and_the_rest_is_left() {
        let sample = Sample::read(concat!(
            "# TYPE portcullis_decisions counter\n",
            "portcullis_decisions_total{tenant=\"acme\",outcome=\"allow\"} 12\n",
            "wasm_tenant_cpu_seconds_total{tenant=\"a\\\"b\\\\c\\nd\"} 0.5\n",
            "portcullis_decision_latency_microseconds_bucket{tenant=\"acme\",le=\"64.0\"} 3 # {decision_id=\"ab\"} 60.0\n",
            "portcullis_decision_latency_microseconds_bucket{tenant=\"acme\",le=\"+Inf\"} 4\n",
            "portcullis_generation{role=\"worker\",class=\"one\"} 7\n",
            "portcullis_generation{role=\"frontend\",class=\"\"} 9\n",
            "portcullis_queue_depth{class=\"one\"} 5\n",
            "wasm_tenant_concurrent_calls{tenant=\"acme\"} NaN\n",
            "broken{tenant=\"acme\n",
            "broken{tenant=\"acme\"\n",
            "broken{\n{} \n =\n",
        ));
        let acme = &sample.tenants["acme"];
        assert_eq!(acme.outcomes["allow"], 12.0);
        assert_eq!(acme.latency, [(64.0, 3.0), (f64::INFINITY, 4.0)]);
        assert_eq!(sample.tenants["a\"b\\c\nd"].cpu_seconds, 0.5);
        assert_eq!((sample.classes["one"].generation, sample.classes["one"].queued), (7.0, 5.0));
        assert_eq!((sample.tenants.len(), sample.classes.len()), (2, 1));
    }
}
