//! Everything that a policy may use of the host.

#![no_std]

extern crate alloc;

use alloc::string::String;

use guest::{Answer, Decision, Failure, Policy, Request, clock, data, log, metric, random};

struct Gate;

impl Policy for Gate {
    fn decide(_: Request) -> Answer {
        let value = data::get("name");
        let found = data::entries("n", None, 10);
        metric::add("looked-up", 2);
        log::write(log::Level::Warn, "a line");
        match value {
            Some(value) if found.len() == 1 && clock::now() == 57 && random::get_u64() != random::get_u64() => {
                Ok(Decision::deny(403, &String::from_utf8_lossy(&value)))
            }
            _ => Err(Failure::new("host", "not as expected")),
        }
    }
}

guest::export!(Gate);
