//! What the linker has to be told so that the builder can move an adapter to where there is room for it.

use std::env;

fn main() {
    // Twice what a guest's native stack takes: a recursion without end is stopped by that one, not by what lies below.
    // The families are called on the same stack, and have none.
    let stack = if env::var_os("CARGO_FEATURE_POLICY").is_some() { 524_288 } else { 16 };
    println!("cargo::rustc-link-arg-cdylib=-zstack-size={stack}");
    // Which bytes are addresses.
    println!("cargo::rustc-link-arg-cdylib=--emit-relocs");
    println!("cargo::rerun-if-changed=build.rs");
}
