//! How a role locks itself in, in this order, each step a value that only the step before can make:
//!
//! [`Given`] (checked what the supervisor left us: UID, no capabilities, no groups, limits)
//! -> [`Confined`] (not dumpable, no new privileges, Landlock)
//! -> [`Sealed`] (seccomp on every thread).
//!
//! Every serve loop takes [`Sealed`] by value, so a role that forgets its sandbox does not compile. There is no off
//! switch.
