//! A network: an address and how many of its leading bits count.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy)]
pub(crate) enum Network {
    V4 { base: u32, prefix: u32 },
    V6 { base: u128, prefix: u32 },
}

/// The IPv4 network `base/prefix`.
pub(crate) const fn v4(base: [u8; 4], prefix: u32) -> Network {
    let base = u32::from_be_bytes(base);
    assert!(prefix <= 32, "an IPv4 prefix has at most 32 bits");
    assert!(base & mask_v4(prefix) == base, "bits are set outside the prefix");
    Network::V4 { base, prefix }
}

/// The IPv6 network `base/prefix`.
pub(crate) const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u32) -> Network {
    let base = Ipv6Addr::new(a, b, c, d, e, f, g, h).to_bits();
    assert!(prefix <= 128, "an IPv6 prefix has at most 128 bits");
    assert!(base & mask_v6(prefix) == base, "bits are set outside the prefix");
    assert!(base >> 32 != 0xffff, "a mapped IPv4 address is compared as IPv4: write it as one");
    Network::V6 { base, prefix }
}

impl Network {
    pub(crate) fn holds(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4 { base, prefix }, IpAddr::V4(address)) => address.to_bits() & mask_v4(prefix) == base,
            (Self::V6 { base, prefix }, IpAddr::V6(address)) => address.to_bits() & mask_v6(prefix) == base,
            _ => false,
        }
    }
}

/// As people write it.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4 { base, prefix } => write!(f, "{}/{prefix}", Ipv4Addr::from_bits(base)),
            Self::V6 { base, prefix } => write!(f, "{}/{prefix}", Ipv6Addr::from_bits(base)),
        }
    }
}

/// A shift by the full width is none, in Rust an error.
const fn mask_v4(prefix: u32) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

const fn mask_v6(prefix: u32) -> u128 {
    if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) }
}
