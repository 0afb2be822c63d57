//! One trust class: `[class.<name>]`.

use std::path::PathBuf;
use std::time::Duration;

use super::read::Reader;
use super::values::path as path_value;
use super::{Class, GroupLimits, Identity, ceilings, places};
use crate::decision::TrustClass;
use crate::document::values::{boolean, duration, number, size};
use crate::document::{Found, Section};
use crate::wire::client::BATCH_MAX;
use crate::wire::control::ClassLimits;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Threads that a worker has beside those that run policies, and some to spare.
const OTHER_THREADS: u64 = 4;
/// Of one class at one time: one serves, one is on its way, and a reload waits while so many drain.
const GENERATIONS: u64 = 6;

impl<'d> Reader<'_, 'd> {
    pub(super) fn class(
        &self,
        title: Found<&'d str>,
        mut section: Section<'d>,
        caches: &mut Vec<Found<PathBuf>>,
    ) -> Option<(Found<Identity>, Option<Class>)> {
        let name = self.look(title.at, TrustClass::new(title.value).map_err(|why| why.to_string()));
        let identity = self.identity(&mut section);
        let cache = section.required("cache", path_value);
        let cores = self.around.cores;
        let threads = section.defaulted("threads", cores, number(1..=cores));
        let ceiling = ceilings::read(&mut section, &ceilings::CLASS);
        let memory = ceiling.map(|ceiling| ceiling.memory);
        let instances = section.defaulted("instances", 64, number(1..=16384));
        // A tenant has half of a thread's part, and the largest batch has to fit there.
        let two_batches = u32::try_from(2 * BATCH_MAX).unwrap_or(u32::MAX);
        let for_threads = threads.map_or(1, |found| found.value).saturating_mul(two_batches);
        let queue = section.defaulted("queue", for_threads.clamp(1024, 1_000_000), number(1..=1_000_000));
        let pipeline = section.defaulted("pipeline", 256, number(1..=65536));
        let connections = section.defaulted("connections", 1024, number(1..=65536));
        let stack_zeroing = section.defaulted("stack_zeroing", true, boolean);
        let renew_after = section.defaulted(
            "renew_after",
            Duration::ZERO,
            duration(Duration::ZERO..=365 * 24 * 60 * MINUTE),
        );
        let renew_after_decisions = section.defaulted("renew_after_decisions", 0, number(0..=u64::MAX));
        let memory_max = section.optional("memory_max", size(16 << 20..=1 << 40));
        let tasks_max = section.optional("tasks_max", number(1..=1 << 22));
        section.finish();

        ceilings::room(self.complaints, instances.as_ref(), ceiling.as_ref());
        if let (Some(all), Some(one)) = (&queue, &pipeline)
            && one.value > all.value
            && one.at != title.at
        {
            self.complain(one.at, format!("pipeline: is more than queue, {}", all.value));
        }
        if let Some(Found { value, at }) = &renew_after
            && !value.is_zero()
            && *value < SECOND
        {
            self.complain(*at, "renew_after: is less than 1s; 0s means never".to_owned());
        }
        if let (Some(tasks), Some(threads)) = (&tasks_max, &threads) {
            let least = GENERATIONS * (u64::from(threads.value) + OTHER_THREADS);
            if tasks.value < least {
                let why =
                    format!("{GENERATIONS} generations of {} threads and {OTHER_THREADS}", threads.value);
                self.complain(
                    tasks.at,
                    format!("tasks_max: {} is less than {least}, {why} more", tasks.value),
                );
            }
        }
        caches.extend(cache.clone());
        let identity = identity?;
        let uid = identity.value.uid;
        let cache_inode = cache.as_ref().and_then(|cache| {
            self.look(cache.at, places::own_directory(&cache.value, "cache", uid, self.owners))
        });
        let class = || {
            let queue = queue?.value;
            let limits = ClassLimits {
                threads: threads?.value,
                memory: memory?,
                instances: instances?.value,
                queue,
                pipeline: pipeline?.value.min(queue),
                connections: connections?.value,
                stack_zeroing: stack_zeroing?.value,
                renew_after_decisions: renew_after_decisions?.value,
                renew_after_ms: u64::try_from(renew_after?.value.as_millis()).ok()?,
            };
            let group = GroupLimits {
                memory_max: memory_max.map(|found| found.value),
                tasks_max: tasks_max.map(|found| found.value),
            };
            Some(Class {
                name: name?,
                identity: identity.value,
                cache: cache?.value,
                cache_inode: cache_inode.unwrap_or_default(),
                limits,
                ceiling: ceiling?,
                group,
            })
        };
        Some((identity, class()))
    }
}
