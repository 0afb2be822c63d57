//! What OPA's module exports and imports. Both sides have one memory; an address of the one is an address of the other.

use core::cell::Cell;
use core::ffi::CStr;
use core::ptr;

use rego_builtins::{Builtin, Host, parse_value, write_value};

use crate::bindings::portcullis::policy::{clock, log, random};
use crate::heap;

/// Address of a Rego value; 0 is undefined.
type Address = usize;

mod ffi {
    #[link(wasm_import_module = "opa")]
    unsafe extern "C" {
        pub(super) fn opa_malloc(size: usize) -> usize;
        pub(super) fn opa_json_parse(text: *const u8, len: usize) -> usize;
        pub(super) fn opa_json_dump(value: usize) -> usize;
        pub(super) fn opa_value_parse(text: *const u8, len: usize) -> usize;
        pub(super) fn opa_value_dump(value: usize) -> usize;
        pub(super) fn opa_eval_ctx_new() -> usize;
        pub(super) fn opa_eval_ctx_set_input(context: usize, value: usize);
        pub(super) fn opa_eval_ctx_set_data(context: usize, value: usize);
        pub(super) fn opa_eval_ctx_set_entrypoint(context: usize, entrypoint: usize);
        pub(super) fn opa_eval_ctx_get_result(context: usize) -> usize;
        pub(super) fn eval(context: usize) -> i32;
    }
}

/// What was settled when the policy was built.
struct Settled {
    data: Cell<Address>,
    entrypoint: Cell<usize>,
    /// By their number in OPA's module.
    builtins: Cell<&'static [Option<Builtin>]>,
    /// What random numbers of this decision come from.
    seed: Cell<Option<[u8; 16]>>,
}

// SAFETY: the world has no threads.
unsafe impl Sync for Settled {}

static SETTLED: Settled =
    Settled { data: Cell::new(0), entrypoint: Cell::new(0), builtins: Cell::new(&[]), seed: Cell::new(None) };

/// A block of OPA's heap that is never given back.
pub(crate) fn allocate(size: usize) -> Option<usize> {
    // SAFETY: OPA's allocator takes any size; 0 is no memory.
    let block = unsafe { ffi::opa_malloc(size) };
    // Where memory cannot grow OPA does not look, and gives out what is beyond its end.
    let end = block.checked_add(size)?;
    (block != 0 && end <= core::arch::wasm32::memory_size(0) << 16).then_some(block)
}

fn text_at(address: usize) -> &'static str {
    if address == 0 {
        return "";
    }
    // SAFETY: OPA's texts end with a zero, and nobody writes to them.
    let text = unsafe { CStr::from_ptr(ptr::with_exposed_provenance(address)) };
    text.to_str().unwrap_or_default()
}

/// Called by the builder: these are the document `data` and the entrypoint, by OPA's numbers.
#[unsafe(no_mangle)]
extern "C" fn rego_settle(data: usize, entrypoint: usize) {
    SETTLED.data.set(data);
    SETTLED.entrypoint.set(entrypoint);
}

/// Called by the builder with the names of OPA's builtins, one a line, by their number; lines may be empty. Gives the
/// number of one that is unknown, or -1.
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

/// The result of the policy for this input: JSON, an array of what there is. None if it could not be evaluated.
pub(crate) fn evaluate(input: &str) -> &'static str {
    // SAFETY: text and length are of one string.
    let input = unsafe { ffi::opa_json_parse(input.as_ptr(), input.len()) };
    if input == 0 {
        core::arch::wasm32::unreachable();
    }
    // SAFETY: a fresh context is given values that OPA made itself.
    let result = unsafe {
        let context = ffi::opa_eval_ctx_new();
        ffi::opa_eval_ctx_set_input(context, input);
        ffi::opa_eval_ctx_set_data(context, SETTLED.data.get());
        ffi::opa_eval_ctx_set_entrypoint(context, SETTLED.entrypoint.get());
        if ffi::eval(context) != 0 {
            core::arch::wasm32::unreachable();
        }
        ffi::opa_json_dump(ffi::opa_eval_ctx_get_result(context))
    };
    text_at(result)
}

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
}

fn call(number: usize, arguments: &[Address]) -> Address {
    let Some(Some(builtin)) = SETTLED.builtins.get().get(number) else { core::arch::wasm32::unreachable() };
    heap::scoped(|| {
        let value = |address: &Address| {
            // SAFETY: OPA gives addresses of its values.
            let text = text_at(unsafe { ffi::opa_value_dump(*address) });
            parse_value(text).ok()
        };
        let arguments: Option<Vec<_>> = arguments.iter().map(value).collect();
        let Some(Ok(result)) = arguments.map(|arguments| builtin.call(&World, &arguments)) else { return 0 };
        let text = write_value(&result);
        // SAFETY: text and length are of one string.
        unsafe { ffi::opa_value_parse(text.as_ptr(), text.len()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin0(number: usize, _: usize) -> Address {
    call(number, &[])
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin1(number: usize, _: usize, one: Address) -> Address {
    call(number, &[one])
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin2(number: usize, _: usize, one: Address, two: Address) -> Address {
    call(number, &[one, two])
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin3(number: usize, _: usize, one: Address, two: Address, three: Address) -> Address {
    call(number, &[one, two, three])
}

#[unsafe(no_mangle)]
extern "C" fn opa_builtin4(
    number: usize,
    _: usize,
    one: Address,
    two: Address,
    three: Address,
    four: Address,
) -> Address {
    call(number, &[one, two, three, four])
}

/// OPA gave up: two rules contradict each other, or its own code found something impossible.
#[unsafe(no_mangle)]
extern "C" fn opa_abort(_message: usize) -> ! {
    core::arch::wasm32::unreachable()
}

#[unsafe(no_mangle)]
extern "C" fn opa_println(_message: usize) {}
