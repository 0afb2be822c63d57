//! What a policy runs in. The same code in the worker, the builder and the command line, so that limits cannot differ.

mod settings;

pub use settings::{WASMTIME_VERSION, WORLD, compiling_engine, settings_digest};
