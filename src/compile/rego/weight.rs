//! What a document takes in OPA's memory, before it is parsed there.

use std::slice::Iter;

/// Of each kind of value, bytes, with what the allocator adds and what growing leaves behind: measured with modules of OPA 1.9.0.
const CONSTANT: u64 = 12;
const NUMBER: u64 = 88;
const STRING: u64 = 42;
/// Of each byte of a string.
const BYTE: u64 = 2;
const ARRAY: u64 = 26;
const OBJECT: u64 = 102;
/// Of each member: an array keeps its indexes as numbers.
const ITEM: u64 = 107;
const ENTRY: u64 = 40;

/// Bytes, as a rule. The text has been checked to be JSON, which nests no deeper than 127.
pub(super) fn parsed(json: &[u8]) -> u64 {
    let (mut sum, mut bytes) = (0_u64, json.iter());
    // Which of the containers around this place are objects, the innermost last.
    let mut objects = 0_u128;
    // A container has begun, and it is not known yet whether there is anything in it; and so a number.
    let (mut begun, mut number) = (false, false);
    while let Some(byte) = bytes.next() {
        let member = if objects & 1 == 1 { ENTRY } else { ITEM };
        let first = begun && !byte.is_ascii_whitespace() && !matches!(byte, b']' | b'}');
        begun &= byte.is_ascii_whitespace();
        if first || *byte == b',' {
            sum = sum.saturating_add(member);
        }
        let in_number = matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        sum = sum.saturating_add(match byte {
            _ if in_number && !number => NUMBER,
            b'"' => STRING.saturating_add(text(&mut bytes).saturating_mul(BYTE)),
            b'{' | b'[' => {
                begun = true;
                objects = objects << 1 | u128::from(*byte == b'{');
                if *byte == b'{' { OBJECT } else { ARRAY }
            }
            b'}' | b']' => {
                objects >>= 1;
                0
            }
            b'n' | b't' | b'f' => {
                // Their letters are no values.
                let rest = if *byte == b'f' { 3 } else { 2 };
                bytes.nth(rest);
                CONSTANT
            }
            _ => 0,
        });
        number = in_number;
    }
    sum
}

/// Bytes of a string that has begun, up to its end.
fn text(bytes: &mut Iter<'_, u8>) -> u64 {
    let mut len = 0_u64;
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => break,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
        len = len.saturating_add(1);
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_counts_once_and_what_is_in_strings_not_at_all() {
        for (json, expected) in [
            ("null", CONSTANT),
            (r#""a\"[1,{\\""#, STRING + 7 * BYTE),
            ("[ ]", ARRAY),
            (" [ -1.5e+7 , 2]", ARRAY + 2 * (ITEM + NUMBER)),
            ("[true,false,null,0]", ARRAY + 4 * ITEM + 3 * CONSTANT + NUMBER),
            ("[[],{}]", 2 * ARRAY + 2 * ITEM + OBJECT),
            (r#"{"k":[1], "l":{}}"#, 2 * OBJECT + 2 * (ENTRY + STRING + BYTE) + ARRAY + ITEM + NUMBER),
        ] {
            assert_eq!(parsed(json.as_bytes()), expected, "{json}");
        }
    }
}
