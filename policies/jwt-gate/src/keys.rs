//! The keys whose word counts. To change them, change this table, rebuild, and sign the new version of the policy.

pub(crate) struct Key {
    /// What a token's `kid` must be, exactly.
    pub(crate) kid: &'static str,
    pub(crate) public: PublicKey,
}

pub(crate) enum PublicKey {
    /// An uncompressed SEC1 point, for ES256. Compressed, it would cost a square root a request.
    P256([u8; 65]),
    Ed25519([u8; 32]),
}

/// TEST KEYS: their private halves are in `fixtures/`, for all to see.
const KEYS: &[Key] = &[
    Key {
        kid: "es256-2026-a",
        public: PublicKey::P256(hex("04e60b32c088ceb3a3ef408976aa2230559bc0059128ec0949c524ebe43fd299d2\
             599343b61efff834c0f5619ad5ac6e72f5aced7f5c966680fb892444ee8aa94b")),
    },
    Key {
        kid: "ed25519-2026-b",
        public: PublicKey::Ed25519(hex("2a921b403571db2a1b4e71515019618d2df86765bd60cdcb1598e37711ee511f")),
    },
];

pub(crate) fn find(kid: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.kid == kid)
}

/// Read while compiling: a digit too few or a letter that is none does not build.
#[expect(clippy::indexing_slicing, reason = "evaluated while compiling, where out of bounds is an error")]
const fn hex<const LEN: usize>(text: &str) -> [u8; LEN] {
    let digits = text.as_bytes();
    assert!(digits.len() == 2 * LEN, "wrong number of hex digits");
    let mut bytes = [0; LEN];
    let mut at = 0;
    while at < LEN {
        bytes[at] = nibble(digits[2 * at]) << 4 | nibble(digits[2 * at + 1]);
        at += 1;
    }
    bytes
}

const fn nibble(digit: u8) -> u8 {
    assert!(matches!(digit, b'0'..=b'9' | b'a'..=b'f'), "not a hex digit");
    if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 }
}
