//! WASI for policies of languages whose standard library asks for it: stand-ins of ours, put into the component while it
//! is built. What is left imports the world and nothing else, so no worker links any WASI.
//!
//! | what a guest asks for | what it gets |
//! |---|---|
//! | files, directories | none is open, none can be opened |
//! | arguments, environment | none |
//! | sockets | refused |
//! | any clock | the world's `clock`: when the request came in, standing still |
//! | random numbers | the world's `random`, seeded for the request |
//! | standard output and standard error | lines of the world's `log`, info and warn |
//! | standard input | at its end |
//! | to sleep, to wait for something | refused: time does not pass |
//! | to exit | a trap |
//!
//! Only what a guest really imports is put in, and only what that needs of the world is imported: a policy whose clock
//! stands behind WASI has `clock` in its manifest like any other. A component has to import that itself.
//!
//! [`preview1`] is one core module between the guest's own and the world, for guests that are core modules; [`preview2`] puts
//! the same into components, where [`answers`] has what each function does. [`started`] does what a language does before the
//! first call where the policy is built.

mod answers;
pub(super) mod preview1;
pub(super) mod preview2;
mod read;
pub(super) mod started;
