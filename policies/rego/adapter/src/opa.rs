//! What OPA's module exports. Both sides have one memory; an address of the one is an address of the other.

use core::ffi::CStr;
use core::ptr;

use rego_builtins::{Value, parse_value, write_value};

/// Address of a Rego value; 0 is undefined.
pub(crate) type Address = usize;

mod ffi {
    #[link(wasm_import_module = "opa")]
    unsafe extern "C" {
        pub(super) fn opa_malloc(size: usize) -> usize;
        pub(super) fn opa_value_parse(text: *const u8, len: usize) -> usize;
        pub(super) fn opa_value_dump(value: usize) -> usize;
    }
}

/// A block of OPA's heap that is never given back.
pub(crate) fn allocate(size: usize) -> Option<usize> {
    // SAFETY: OPA's allocator takes any size; 0 is no memory.
    let block = unsafe { ffi::opa_malloc(size) };
    // Where memory cannot grow OPA does not look, and gives out what is beyond its end.
    let end = block.checked_add(size)?;
    (block != 0 && end <= core::arch::wasm32::memory_size(0) << 16).then_some(block)
}

pub(crate) fn text_at(address: usize) -> &'static str {
    if address == 0 {
        return "";
    }
    // SAFETY: OPA's texts end with a zero, and nobody writes to them.
    let text = unsafe { CStr::from_ptr(ptr::with_exposed_provenance(address)) };
    text.to_str().unwrap_or_default()
}

/// None if it is nothing that we know.
pub(crate) fn value_at(address: Address) -> Option<Value> {
    // SAFETY: OPA gives addresses of its values.
    let text = text_at(unsafe { ffi::opa_value_dump(address) });
    parse_value(text).ok()
}

pub(crate) fn value(value: &Value) -> Address {
    let text = write_value(value);
    // SAFETY: text and length are of one string.
    unsafe { ffi::opa_value_parse(text.as_ptr(), text.len()) }
}
