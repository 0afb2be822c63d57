//! Does what its input says, so that one signed policy serves many tests. `README.md` one folder up lists the words.

#![no_std]

extern crate alloc;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::hint::black_box;

use guest::{CacheScope, Decision, Header, Policy, Request, clock, log, random};

struct Selective;

impl Policy for Selective {
    fn decide(request: Request) -> Decision {
        let Request::Opaque(input) = request else {
            return Decision::deny(400, "expected opaque bytes");
        };
        let Ok(input) = core::str::from_utf8(&input.bytes) else {
            return Decision::deny(400, "expected text");
        };
        let (word, argument) = input.split_once(':').unwrap_or((input, ""));
        obey(word, argument)
    }
}

guest::export!(Selective);

fn obey(word: &str, argument: &str) -> Decision {
    let number = || argument.parse::<u32>().unwrap_or(0);
    match word {
        "allow" => Decision::allow(),
        "deny" => Decision::deny(403, if argument.is_empty() { "told to" } else { argument }),
        "number" => Decision::allow().metadata("number", argument),
        "text" => Decision::allow().metadata("text", argument),
        "echo" => body(argument.as_bytes().to_vec()),
        "size" => body(vec![b'x'; number() as usize]),
        "many" => Decision { obligations: many(number()), ..Decision::allow() },
        "cache" => Decision::allow().cache(number(), CacheScope::Client),
        "status" => Decision::deny(argument.parse().unwrap_or(0), "told to"),
        "header" => {
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            Decision::allow().set_header(name, value)
        }
        "clock" => Decision::allow()
            .metadata("now", clock::now().to_string())
            .metadata("again", (work(100_000), clock::now()).1.to_string()),
        "random" => Decision::allow()
            .metadata("first", random::get_u64().to_string())
            .metadata("second", random::get_u64().to_string())
            .metadata("bytes", hex(&random::get_bytes(8))),
        "random-bytes" => Decision::allow().metadata("len", random::get_bytes(number()).len().to_string()),
        "log" => {
            log::write(log::Level::Info, argument);
            Decision::allow()
        }
        "log-flood" => {
            let line = "x".repeat(4096);
            (0..number()).for_each(|_| log::write(log::Level::Warn, &line));
            Decision::allow()
        }
        "work" => Decision::allow().metadata("work", work(number()).to_string()),
        "spin" => loop {
            work(1);
        },
        "trap" => core::arch::wasm32::unreachable(),
        "memory" => Decision::allow().metadata("bytes", touch(number() as usize).to_string()),
        _ => Decision::deny(400, &format!("unknown word {word:?}")),
    }
}

fn body(bytes: Vec<u8>) -> Decision {
    let mut decision = Decision::allow();
    decision.obligations.body = Some(bytes);
    decision
}

/// `count` headers to append, a header to remove and a metadatum for each.
fn many(count: u32) -> guest::Obligations {
    let mut obligations = Decision::allow().obligations;
    for each in 0..count {
        let name = format!("x-many-{each}");
        obligations.headers_append.push(Header { name: name.clone(), value: b"1".to_vec() });
        obligations.headers_remove.push(name.clone());
        obligations.metadata.push(guest::Metadatum { key: name, value: String::from("1") });
    }
    obligations
}

/// `steps` steps of a generator that the compiler cannot see through.
fn work(steps: u32) -> u32 {
    (0..steps).fold(1, |state: u32, _| black_box(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
}

/// Takes `bytes` of memory and writes to every page of it.
fn touch(bytes: usize) -> usize {
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = black_box(1));
    black_box(&memory).len()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
