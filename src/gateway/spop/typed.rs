//! What SPOP's payloads are made of: variable-length integers, strings, and data that say their type.

use bytes::{BufMut, BytesMut};

/// Bytes that are not what they have to be; says what is wrong with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// A value and its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typed<'a> {
    /// HAProxy's word for "that is not there".
    Null,
    Bool(bool),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Ipv4([u8; 4]),
    Ipv6([u8; 16]),
    /// Of no encoding.
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

/// The lower half of the first byte.
const TYPE: u8 = 0x0f;
/// The upper half of a boolean's.
const TRUE: u8 = 0x10;
/// From here on an integer needs more than one byte.
const ONE_BYTE: u64 = 240;

/// Takes one thing after the other off the front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*first)
    }

    /// The first byte's upper four bits are set where more follow; each of those has its highest set where yet more do. They
    /// are added, not put together, so that no number can be written in two ways.
    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = u128::from(self.byte()?);
        if value < u128::from(ONE_BYTE) {
            return u64::try_from(value).map_err(|_| Malformed("an integer is too large"));
        }
        let mut shift = 4;
        loop {
            let byte = self.byte()?;
            value += u128::from(byte) << shift;
            if byte < 0x80 {
                return u64::try_from(value).map_err(|_| Malformed("an integer is too large"));
            }
            shift += 7;
            if shift > u64::BITS {
                return Err(Malformed("an integer is too large"));
            }
        }
    }

    /// A length, and that many bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.varint()?).map_err(|_| Malformed("a string is too long"))?;
        let (string, rest) = self.0.split_at_checked(length).ok_or(Malformed("a string ends too early"))?;
        self.0 = rest;
        Ok(string)
    }

    pub(super) fn typed(&mut self) -> Result<Typed<'a>, Malformed> {
        let first = self.byte()?;
        let (kind, flags) = (first & TYPE, first & !TYPE);
        if kind == 1 {
            return match flags {
                0 => Ok(Typed::Bool(false)),
                TRUE => Ok(Typed::Bool(true)),
                _ => Err(Malformed("a boolean has flags that mean nothing")),
            };
        }
        if flags != 0 {
            return Err(Malformed("a value has flags that mean nothing"));
        }
        let range = Malformed("an integer is out of its type's range");
        Ok(match kind {
            0 => Typed::Null,
            2 => Typed::Int32(i32::try_from(self.varint()?.cast_signed()).map_err(|_| range)?),
            3 => Typed::Uint32(u32::try_from(self.varint()?).map_err(|_| range)?),
            4 => Typed::Int64(self.varint()?.cast_signed()),
            5 => Typed::Uint64(self.varint()?),
            6 => Typed::Ipv4(self.array()?),
            7 => Typed::Ipv6(self.array()?),
            8 => Typed::Text(self.string()?),
            9 => Typed::Binary(self.string()?),
            _ => return Err(Malformed("a value is of no known type")),
        })
    }
}

pub(super) fn put_varint(out: &mut BytesMut, value: u64) {
    let byte = |value: u64, high: u64| u8::try_from((value | high) & 0xff).unwrap_or(u8::MAX);
    if value < ONE_BYTE {
        return out.put_u8(byte(value, 0));
    }
    out.put_u8(byte(value, ONE_BYTE));
    let mut rest = (value - ONE_BYTE) >> 4;
    while rest >= 0x80 {
        out.put_u8(byte(rest, 0x80));
        rest = (rest - 0x80) >> 7;
    }
    out.put_u8(byte(rest, 0));
}

pub(super) fn put_string(out: &mut BytesMut, string: &[u8]) {
    put_varint(out, string.len() as u64);
    out.put_slice(string);
}

pub(super) fn put_typed(out: &mut BytesMut, value: Typed<'_>) {
    let (kind, integer) = match value {
        Typed::Null => return out.put_u8(0),
        Typed::Bool(is) => return out.put_u8(if is { 1 | TRUE } else { 1 }),
        Typed::Int32(integer) => (2, i64::from(integer).cast_unsigned()),
        Typed::Uint32(integer) => (3, u64::from(integer)),
        Typed::Int64(integer) => (4, integer.cast_unsigned()),
        Typed::Uint64(integer) => (5, integer),
        Typed::Ipv4(address) => {
            out.put_u8(6);
            return out.put_slice(&address);
        }
        Typed::Ipv6(address) => {
            out.put_u8(7);
            return out.put_slice(&address);
        }
        Typed::Text(bytes) => {
            out.put_u8(8);
            return put_string(out, bytes);
        }
        Typed::Binary(bytes) => {
            out.put_u8(9);
            return put_string(out, bytes);
        }
    };
    out.put_u8(kind);
    put_varint(out, integer);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: u64) -> BytesMut {
        let mut out = BytesMut::new();
        put_varint(&mut out, value);
        out
    }

    /// The bounds of the specification's table, and what HAProxy's own source makes of them.
    #[test]
    fn integers_have_the_lengths_of_the_table() {
        for (value, bytes) in [
            (0, &[0][..]),
            (239, &[239]),
            (240, &[240, 0]),
            (2287, &[255, 127]),
            (2288, &[240, 128, 0]),
            (264_431, &[255, 255, 127]),
            (264_432, &[240, 128, 128, 0]),
            (33_818_863, &[255, 255, 255, 127]),
            (33_818_864, &[240, 128, 128, 128, 0]),
        ] {
            assert_eq!(written(value), bytes, "{value}");
            assert_eq!(Reader(bytes).varint(), Ok(value));
        }
        assert_eq!(written(4_328_786_159).len(), 5);
        assert_eq!(written(4_328_786_160).len(), 6);
        assert_eq!(written(u64::MAX).len(), 10);
        assert_eq!(Reader(&written(u64::MAX)).varint(), Ok(u64::MAX));
    }

    #[test]
    fn an_integer_past_64_bits_or_without_an_end_is_none() {
        let too_large = Err(Malformed("an integer is too large"));
        let mut one_more = written(u64::MAX);
        *one_more.last_mut().unwrap() += 1;
        assert_eq!(Reader(&one_more).varint(), too_large);
        assert_eq!(Reader(&[0xff; 4096]).varint(), too_large);
        assert_eq!(Reader(&[0xff; 5]).varint(), Err(Malformed("it ends too early")));
    }

    #[test]
    fn a_string_that_claims_more_than_there_is_is_none() {
        let mut bytes = written(u64::MAX);
        bytes.put_slice(b"abc");
        assert!(Reader(&bytes).string().is_err());
        assert!(Reader(b"\x04abc").string().is_err());
        assert_eq!(Reader(b"\x03abc").string(), Ok(&b"abc"[..]));
    }

    #[test]
    fn types_that_are_reserved_and_flags_without_a_meaning_are_refused() {
        for first in 0..=u8::MAX {
            let bytes = [&[first][..], &[0; 17]].concat();
            let known = matches!(first, 0..=9 | 0x11);
            assert_eq!(Reader(&bytes).typed().is_ok(), known, "{first:#x}");
        }
    }

    #[test]
    fn an_integer_stays_within_its_type() {
        for (kind, value, is) in [
            (2, i64::from(i32::MIN), true),
            (2, i64::from(i32::MIN) - 1, false),
            (2, i64::from(i32::MAX) + 1, false),
            (3, i64::from(u32::MAX), true),
            (3, i64::from(u32::MAX) + 1, false),
            (3, -1, false),
            (4, i64::MIN, true),
            (5, -1, true),
        ] {
            let bytes = [&[kind][..], &written(value.cast_unsigned())].concat();
            assert_eq!(Reader(&bytes).typed().is_ok(), is, "{kind} {value}");
        }
    }

    fn any_typed(text: &[u8]) -> impl Strategy<Value = Typed<'_>> {
        prop_oneof![
            Just(Typed::Null),
            any::<bool>().prop_map(Typed::Bool),
            any::<i32>().prop_map(Typed::Int32),
            any::<u32>().prop_map(Typed::Uint32),
            any::<i64>().prop_map(Typed::Int64),
            any::<u64>().prop_map(Typed::Uint64),
            any::<[u8; 4]>().prop_map(Typed::Ipv4),
            any::<[u8; 16]>().prop_map(Typed::Ipv6),
            (0..=text.len()).prop_map(move |end| Typed::Text(&text[..end])),
            (0..=text.len()).prop_map(move |end| Typed::Binary(&text[..end])),
        ]
    }

    proptest! {
        #[test]
        fn an_integer_comes_back_and_nothing_is_left(value in any::<u64>(), small in 0_u64..5000) {
            for value in [value, small] {
                let out = written(value);
                let mut reader = Reader(&out);
                prop_assert_eq!(reader.varint(), Ok(value));
                prop_assert!(reader.is_empty());
            }
        }

        #[test]
        fn a_value_comes_back_with_its_type(values in prop::collection::vec(any_typed(&[b'x'; 3000]), 0..12)) {
            let mut out = BytesMut::new();
            for value in &values {
                put_typed(&mut out, *value);
            }
            let mut reader = Reader(&out);
            for value in values {
                prop_assert_eq!(reader.typed(), Ok(value));
            }
            prop_assert!(reader.is_empty());
        }

        /// Whatever reads as an integer is written just so: there are no two ways.
        #[test]
        fn hostile_bytes_are_refused_or_read_never_more(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader(&bytes);
            if let Ok(value) = reader.varint() {
                let taken = bytes.len() - reader.0.len();
                prop_assert_eq!(&written(value)[..], &bytes[..taken]);
            }
            let mut reader = Reader(&bytes);
            while reader.typed().is_ok() && !reader.is_empty() {}
        }
    }
}
