//! The engines of a process: one for what nearly every policy asks for, and one more for each other stack, and for code that
//! counts, once a policy asks for it.
//!
//! wasmtime gives a stack to an engine, not to an instance, and code that counts its instructions is other code. An engine costs
//! address space and little else: its pool takes memory when instances run in it. There are never more than ten.

use std::sync::{Mutex, MutexGuard, PoisonError};

use wasmtime::Engine;

use super::settings::{Metering, PoolLimits, serving_engine};
use crate::artifact::Limits;

/// Runs what others compiled.
#[derive(Debug)]
pub struct Engines {
    pool: PoolLimits,
    /// Whether memories are reset by PAGEMAP_SCAN.
    pagemap_scan: bool,
    made: Mutex<Vec<Made>>,
}

#[derive(Debug)]
struct Made {
    stack: u32,
    metering: Metering,
    engine: Engine,
}

impl Engines {
    /// With the ordinary one. Must be called while `/proc/self/pagemap` can be opened: before the process is made
    /// non-dumpable, and before Landlock.
    ///
    /// # Errors
    /// When the pool finds no room.
    pub fn new(pool: PoolLimits) -> wasmtime::Result<Self> {
        let Limits { stack, .. } = Limits::default();
        let metering = Metering::Off;
        let (engine, pagemap_scan) = match serving_engine(&pool, stack, metering, true) {
            Ok(engine) => (engine, true),
            Err(_) => (serving_engine(&pool, stack, metering, false)?, false),
        };
        let made = Mutex::new(vec![Made { stack, metering, engine }]);
        Ok(Self { pool, pagemap_scan, made })
    }

    /// Whether fresh instances are reset by PAGEMAP_SCAN (Linux 6.7 and newer): five times cheaper than without.
    #[must_use]
    pub fn pagemap_scan(&self) -> bool {
        self.pagemap_scan
    }

    /// Makes all there can be, for who has to know his policy's limits later. Those that are not there yet do without
    /// PAGEMAP_SCAN, which would open a file for each.
    ///
    /// # Errors
    /// When the pool finds no room.
    pub fn make_all(&self) -> wasmtime::Result<()> {
        for stack in Limits::STACKS {
            for fuel in [None, Some(0)] {
                self.make(&Limits { stack, fuel, ..Limits::default() }, false)?;
            }
        }
        Ok(())
    }

    /// The one for these limits, made if it is not there yet.
    ///
    /// # Errors
    /// When the pool finds no room.
    pub fn of(&self, limits: &Limits) -> wasmtime::Result<Engine> {
        self.make(limits, self.pagemap_scan)
    }

    fn make(&self, limits: &Limits, pagemap_scan: bool) -> wasmtime::Result<Engine> {
        let (stack, metering) = (limits.stack, Metering::of(limits));
        let mut made = self.made();
        if let Some(there) = made.iter().find(|one| (one.stack, one.metering) == (stack, metering)) {
            return Ok(there.engine.clone());
        }
        let engine = serving_engine(&self.pool, stack, metering, pagemap_scan)?;
        made.push(Made { stack, metering, engine: engine.clone() });
        Ok(engine)
    }

    /// All there are by now, the ordinary one first.
    #[must_use]
    pub fn all(&self) -> Vec<Engine> {
        self.made().iter().map(|one| one.engine.clone()).collect()
    }

    fn made(&self) -> MutexGuard<'_, Vec<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Ceiling, INSTANCE_SPACE};

    #[test]
    fn an_engine_is_made_once_for_each_kind_of_policy() {
        let pool = PoolLimits { instances: 1, memory: 1 << 20, stack_zeroing: false };
        let engines = Engines::new(pool).unwrap();
        let ordinary = engines.of(&Limits::default()).unwrap();
        assert_eq!(engines.all().len(), 1);
        assert!(Engine::same(&ordinary, &engines.all()[0]));
        for stack in Limits::STACKS {
            for fuel in [None, Some(1), Some(2)] {
                engines.of(&Limits { stack, fuel, ..Limits::default() }).unwrap();
            }
        }
        assert_eq!(engines.all().len(), 10);
        engines.make_all().unwrap();
        assert_eq!(engines.all().len(), 10);
        assert!(Engine::same(&ordinary, &engines.of(&Limits::default()).unwrap()));
    }

    /// Of this process, bytes. Other tests take of it at the same time, so little that it does not show.
    fn address_space() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
    }

    #[test]
    fn an_engine_reserves_what_the_supervisor_reckons_with_and_all_have_room() {
        let (before, instances) = (address_space(), 4000);
        let engine = serving_engine(
            &PoolLimits { instances, memory: 1 << 30, stack_zeroing: false },
            1 << 20,
            Metering::Fuel,
            false,
        );
        let reserved = address_space() - before;
        drop(engine.unwrap());
        let reckoned = u64::from(instances) * INSTANCE_SPACE;
        // 31.5 TiB; stacks and tables are the rest.
        assert!((reckoned..reckoned / 50 * 51).contains(&reserved), "{reserved}, reckoned {reckoned}");

        // All that the policies of a class can ask for, with as many instances as the configuration lets it have. Here, since
        // a process has room for that once, even where another test has taken a little in the middle meanwhile.
        let instances = u32::try_from(Ceiling::MOST.instances_max()).unwrap();
        let pool = PoolLimits { instances, memory: 1 << 30, stack_zeroing: true };
        Engines::new(pool).unwrap().make_all().unwrap();
    }
}
