//! Generated from `policies/wit/policy.wit`.

#![allow(unreachable_pub, reason = "generated")]
#![allow(missing_docs, reason = "generated; the documentation is in policy.wit")]

wasmtime::component::bindgen!({
    path: "policies/wit",
    world: "policy",
    imports: { default: trappable },
    exports: { default: async },
    ownership: Borrowing { duplicate_if_necessary: true },
});
