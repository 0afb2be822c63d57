//! Makes a policy of our world of a module that `opa build -t wasm` made.
//!
//! `src/compile/rego` of the project merges both into one module with one memory: this code is moved to where OPA's data
//! ends, and takes all its memory from OPA's allocator. What is done once (resolving names, parsing data) is done when
//! the policy is built; the memory as it is then is what every instance starts with.
//!
//! It is built several times: once with the feature `policy`, which every policy is merged with, and once for each family
//! of builtins that needs large crates. They stand in a row, and each hands on what it does not know.
//!
//! 1. [`opa`]: what both sides call of OPA's module.
//! 2. [`builtins`]: what OPA imports and finds here.
//! 3. [`policy`]: the request as the input document, and the result as a decision.
#![cfg(target_arch = "wasm32")]

mod builtins;
mod heap;
mod opa;
#[cfg(feature = "policy")]
mod policy;

mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "policy",
        disable_run_ctors_once_workaround: true,
        generate_all,
    });
    #[cfg(feature = "policy")]
    export!(Policy with_types_in self);

    #[cfg(feature = "policy")]
    use super::policy::Policy;
}
