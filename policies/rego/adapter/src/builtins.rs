//! What OPA imports: functions by their number, which one of the adapters in a row knows.

use core::cell::Cell;

use rego_builtins::{Builtin, Host, Value};

#[cfg(feature = "policy")]
use crate::bindings::portcullis::policy::data;
use crate::bindings::portcullis::policy::{clock, log, random};
use crate::opa::{self, Address};

/// The adapter behind this one. Behind the last one is nothing, and a call there ends the decision.
mod next {
    #[link(wasm_import_module = "next")]
    unsafe extern "C" {
        pub(super) fn opa_builtin0(number: usize, context: usize) -> usize;
        pub(super) fn opa_builtin1(number: usize, context: usize, one: usize) -> usize;
        pub(super) fn opa_builtin2(number: usize, context: usize, one: usize, two: usize) -> usize;
        pub(super) fn opa_builtin3(
            number: usize,
            context: usize,
            one: usize,
            two: usize,
            three: usize,
        ) -> usize;
        pub(super) fn opa_builtin4(
            number: usize,
            context: usize,
            one: usize,
            two: usize,
            three: usize,
            four: usize,
        ) -> usize;
    }
}

/// What was settled when the policy was built.
struct Settled {
    /// By their number in OPA's module.
    builtins: Cell<&'static [Option<Builtin>]>,
    /// What random numbers of this decision come from.
    seed: Cell<Option<[u8; 16]>>,
}

// SAFETY: the world has no threads.
unsafe impl Sync for Settled {}

static SETTLED: Settled = Settled { builtins: Cell::new(&[]), seed: Cell::new(None) };

/// Called by the builder with the names of those of OPA's builtins that are this adapter's, one a line, by their number;
/// other lines are empty. Gives the number of one that is unknown, or -1.
#[unsafe(no_mangle)]
extern "C" fn rego_bind(names: *const u8, len: usize) -> isize {
    // SAFETY: the builder wrote so many bytes there.
    let names = unsafe { core::slice::from_raw_parts(names, len) };
    let names = core::str::from_utf8(names).unwrap_or("?");
    let builtins: Vec<Option<Builtin>> = names.split('\n').map(rego_builtins::find).collect();
    let unknown =
        names.split('\n').zip(&builtins).position(|(name, found)| !name.is_empty() && found.is_none());
    SETTLED.builtins.set(builtins.leak());
    unknown.map_or(-1, |number| isize::try_from(number).unwrap_or(-1))
}

/// As many as the host gives at once.
#[cfg(feature = "policy")]
const ENTRIES: u32 = 1000;

struct World;

impl Host for World {
    fn now_ns(&self) -> u64 {
        clock::now()
    }

    fn seed(&self) -> [u8; 16] {
        SETTLED.seed.get().unwrap_or_else(|| {
            let seed = u128::from(random::get_u64()) << 64 | u128::from(random::get_u64());
            SETTLED.seed.set(Some(seed.to_le_bytes()));
            seed.to_le_bytes()
        })
    }

    fn log(&self, line: &str) {
        log::write(log::Level::Info, line);
    }

    #[cfg(feature = "policy")]
    fn data(&self, key: &str) -> Option<Vec<u8>> {
        data::get(key)
    }

    #[cfg(feature = "policy")]
    fn entries(&self, prefix: &str, after: Option<&str>) -> Vec<(String, Vec<u8>)> {
        let entries = data::entries(prefix, after, ENTRIES);
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
    }
}

/// None if it is somebody else's.
fn call<const N: usize>(number: usize, arguments: [Address; N]) -> Option<Address> {
    let builtin = SETTLED.builtins.get().get(number)?.as_ref()?;
    let arguments: Option<Vec<Value>> = arguments.iter().map(|address| opa::value_at(*address)).collect();
    match arguments.map(|arguments| builtin.call(&World, &arguments)) {
        Some(Ok(result)) => Some(opa::value(&result)),
        // Undefined.
        _ => Some(0),
    }
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin0(number: usize, context: usize) -> Address {
    call(number, []).unwrap_or_else(|| {
        // SAFETY: numbers, handed on as they came.
        unsafe { next::opa_builtin0(number, context) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin1(number: usize, context: usize, one: Address) -> Address {
    call(number, [one]).unwrap_or_else(|| {
        // SAFETY: as above.
        unsafe { next::opa_builtin1(number, context, one) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin2(number: usize, context: usize, one: Address, two: Address) -> Address {
    call(number, [one, two]).unwrap_or_else(|| {
        // SAFETY: as above.
        unsafe { next::opa_builtin2(number, context, one, two) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin3(
    number: usize,
    context: usize,
    one: Address,
    two: Address,
    three: Address,
) -> Address {
    call(number, [one, two, three]).unwrap_or_else(|| {
        // SAFETY: as above.
        unsafe { next::opa_builtin3(number, context, one, two, three) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin4(
    number: usize,
    context: usize,
    one: Address,
    two: Address,
    three: Address,
    four: Address,
) -> Address {
    call(number, [one, two, three, four]).unwrap_or_else(|| {
        // SAFETY: as above.
        unsafe { next::opa_builtin4(number, context, one, two, three, four) }
    })
}
