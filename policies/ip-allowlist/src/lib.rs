//! Lets requests through from listed networks only, by the address the proxy accepted the connection from.
//!
//! Headers such as `x-forwarded-for` are not looked at: whoever sends a request can write them.

#![no_std]

extern crate alloc;

mod network;

use alloc::string::ToString;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guest::{Address, Answer, CacheScope, Decision, Policy, Request};

use crate::network::{Network, v4, v6};

/// Who may come in. A network with bits set outside its prefix does not compile.
const ALLOWED: &[Network] = &[
    v4([10, 0, 0, 0], 8),
    v4([192, 0, 2, 0], 24),
    v4([198, 51, 100, 64], 26),
    v4([203, 0, 113, 7], 32),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    v6([0xfd00, 0x7067, 0, 0, 0, 0, 0, 0], 48),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
];

/// Who may not, though a network above holds them.
const BARRED: &[Network] =
    &[v4([10, 66, 0, 0], 16), v4([192, 0, 2, 255], 32), v6([0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0], 48)];

/// The lists only change with the policy itself.
const CACHE_MS: u32 = 60_000;

struct IpAllowlist;

impl Policy for IpAllowlist {
    fn decide(request: Request) -> Answer {
        Ok(answer(&request))
    }
}

guest::export!(IpAllowlist);

fn answer(request: &Request) -> Decision {
    let Request::Http(request) = request else {
        return Decision::deny(400, "expected an http request");
    };
    let Some(address) = address(&request.source.address) else {
        return Decision::deny(403, "source address unknown");
    };
    if BARRED.iter().any(|network| network.holds(address)) {
        return Decision::deny(403, "source address barred");
    }
    match ALLOWED.iter().find(|network| network.holds(address)) {
        Some(network) => {
            Decision::allow().metadata("network", network.to_string()).cache(CACHE_MS, CacheScope::Client)
        }
        None => Decision::deny(403, "source address not listed"),
    }
}

/// The address, with `::ffff:a.b.c.d` as what it is: an IPv4 peer on a dual-stack socket.
fn address(address: &Address) -> Option<IpAddr> {
    match *address {
        Address::Unknown => None,
        Address::Ipv4((a, b, c, d)) => Some(Ipv4Addr::new(a, b, c, d).into()),
        Address::Ipv6((a, b, c, d, e, f, g, h)) => Some(Ipv6Addr::new(a, b, c, d, e, f, g, h).to_canonical()),
    }
}
