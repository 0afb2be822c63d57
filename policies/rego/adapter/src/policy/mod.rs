//! The world's `decide`.
//!
//! 1. [`input`]: the request as the input document.
//! 2. [`outcome`]: the result as a decision.

mod input;
mod outcome;

use core::cell::Cell;

use crate::bindings::Guest;
use crate::bindings::portcullis::policy::types::{Decision, Failure, Request};
use crate::opa::{Address, text_at};
use outcome::Mapping;

mod ffi {
    #[link(wasm_import_module = "opa")]
    unsafe extern "C" {
        pub(super) fn opa_json_parse(text: *const u8, len: usize) -> usize;
        pub(super) fn opa_json_dump(value: usize) -> usize;
        pub(super) fn opa_eval_ctx_new() -> usize;
        pub(super) fn opa_eval_ctx_set_input(context: usize, value: usize);
        pub(super) fn opa_eval_ctx_set_data(context: usize, value: usize);
        pub(super) fn opa_eval_ctx_set_entrypoint(context: usize, entrypoint: usize);
        pub(super) fn opa_eval_ctx_get_result(context: usize) -> usize;
        pub(super) fn eval(context: usize) -> i32;
    }
}

pub(crate) struct Policy;

impl Guest for Policy {
    fn decide(request: Request) -> Result<Decision, Failure> {
        let results = evaluate(&input::document(&request))?;
        outcome::decision(results, SETTLED.mapping.get())
    }
}

/// What was settled when the policy was built.
struct Settled {
    data: Cell<Address>,
    entrypoint: Cell<usize>,
    mapping: Cell<Mapping>,
    /// What was found first of this decision: rules that contradict each other.
    conflict: Cell<Option<Conflict>>,
}

/// Where it is and what it is; texts are addresses of OPA's.
#[derive(Clone, Copy)]
struct Conflict {
    file: usize,
    row: usize,
    column: usize,
    reason: usize,
}

// SAFETY: the world has no threads.
unsafe impl Sync for Settled {}

static SETTLED: Settled = Settled {
    data: Cell::new(0),
    entrypoint: Cell::new(0),
    mapping: Cell::new(Mapping::Any),
    conflict: Cell::new(None),
};

/// Called by the builder: these are the document `data` and the entrypoint, by OPA's numbers, and what its result has to be.
#[unsafe(no_mangle)]
extern "C" fn rego_settle(data: usize, entrypoint: usize, mapping: usize) {
    SETTLED.data.set(data);
    SETTLED.entrypoint.set(entrypoint);
    SETTLED.mapping.set(match mapping {
        1 => Mapping::Boolean,
        2 => Mapping::Object,
        3 => Mapping::Envoy,
        _ => Mapping::Any,
    });
}

/// The result of the policy for this input: JSON, an array of what there is.
fn evaluate(input: &str) -> Result<&'static str, Failure> {
    let failure = |reason: &str, detail: &str| Failure { reason: reason.into(), detail: detail.into() };
    // SAFETY: text and length are of one string.
    let input = unsafe { ffi::opa_json_parse(input.as_ptr(), input.len()) };
    if input == 0 {
        return Err(failure("input", "OPA does not read the input document"));
    }
    // SAFETY: a fresh context is given values that OPA made itself.
    let result = unsafe {
        let context = ffi::opa_eval_ctx_new();
        ffi::opa_eval_ctx_set_input(context, input);
        ffi::opa_eval_ctx_set_data(context, SETTLED.data.get());
        ffi::opa_eval_ctx_set_entrypoint(context, SETTLED.entrypoint.get());
        let code = ffi::eval(context);
        // Whatever came of it afterwards is no answer.
        if let Some(Conflict { file, row, column, reason }) = SETTLED.conflict.get() {
            let detail = format!("{}:{row}:{column}: {}", text_at(file), text_at(reason));
            return Err(failure("conflict", &detail));
        }
        if code != 0 {
            return Err(failure("evaluation", "OPA does not evaluate the policy"));
        }
        ffi::opa_json_dump(ffi::opa_eval_ctx_get_result(context))
    };
    Ok(text_at(result))
}

/// Two rules contradict each other: OPA's code calls this, as the builder left it, and goes on with undefined.
#[unsafe(no_mangle)]
extern "C" fn rego_conflict(file: usize, row: usize, column: usize, reason: usize) {
    if SETTLED.conflict.get().is_none() {
        SETTLED.conflict.set(Some(Conflict { file, row, column, reason }));
    }
}

/// OPA gave up: its own code found something impossible, or there is no memory left.
#[unsafe(no_mangle)]
extern "C" fn opa_abort(_message: usize) -> ! {
    core::arch::wasm32::unreachable()
}

#[unsafe(no_mangle)]
extern "C" fn opa_println(_message: usize) {}
