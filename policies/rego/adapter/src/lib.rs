//! Makes a policy of our world of a module that `opa build -t wasm` made.
//!
//! `src/compile/rego` of the project merges both into one module with one memory: this code is moved to where OPA's data
//! ends, and takes all its memory from OPA's allocator. What is done once (resolving names, parsing data) is done when
//! the policy is built; the memory as it is then is what every instance starts with.
//!
//! 1. [`opa`]: what OPA's module exports, and what it imports and finds here.
//! 2. [`input`]: the request as the input document.
//! 3. [`outcome`]: the result as a decision.
#![cfg(target_arch = "wasm32")]

mod heap;
mod input;
mod opa;
mod outcome;

mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "policy",
        std_feature,
        disable_run_ctors_once_workaround: true,
        generate_all,
    });
    export!(Policy with_types_in self);

    use super::Policy;
}

use bindings::portcullis::policy::types::{Decision, Request};

struct Policy;

impl bindings::Guest for Policy {
    fn decide(request: Request) -> Decision {
        outcome::decision(opa::evaluate(&input::document(&request)))
    }
}
