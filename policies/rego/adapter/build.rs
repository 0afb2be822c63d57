//! What the linker has to be told so that the builder can move the adapter to where there is room for it.

fn main() {
    // Twice what a guest's native stack takes: a recursion without end is stopped by that one, not by what lies below.
    println!("cargo::rustc-link-arg-cdylib=-zstack-size=524288");
    // Which bytes are addresses.
    println!("cargo::rustc-link-arg-cdylib=--emit-relocs");
    println!("cargo::rerun-if-changed=build.rs");
}
