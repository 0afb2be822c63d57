//! The benchmark's policy: reads every byte it is given, allows, and shows by a hash that it has.

#![no_std]

extern crate alloc;

use alloc::string::String;

use guest::{Answer, Decision, Policy, Request};

struct Hash;

impl Policy for Hash {
    fn decide(request: Request) -> Answer {
        Ok(match request {
            Request::Opaque(input) => Decision::allow().metadata("fnv1a", hex(fnv1a(&input.bytes))),
            Request::Http(_) => Decision::deny(400, "expected opaque bytes"),
        })
    }
}

guest::export!(Hash);

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn hex(number: u64) -> String {
    (0..16).rev().filter_map(|digit| char::from_digit(((number >> (4 * digit)) & 15) as u32, 16)).collect()
}
