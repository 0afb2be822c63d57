//! UUIDs: random ones, and what is written in others.

use crate::arguments::Arguments;
use crate::encoding::hex;
use crate::numbers::draw;
use crate::value::Value;
use crate::{Answer, Builtin, Capability, Failure, Host, pure, with};

pub(crate) const FUNCTIONS: &[Builtin] =
    &[with(Capability::Random, "uuid.rfc4122", 1, rfc4122), pure("uuid.parse", 1, parse)];

/// From 1582 to 1970, in units of 100 nanoseconds.
const GREGORIAN: i128 = 122_192_928_000_000_000;

/// The same UUID for the same argument, as long as the decision lasts.
fn rfc4122(host: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let mut bytes = draw(host, &[b"uuid.rfc4122", arguments.get(0)?.to_string().as_bytes()]);
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    let digits = hex(&bytes);
    let parts =
        [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| digits.get(from..to).unwrap_or(""));
    Ok(parts.join("-").into())
}

fn bytes(text: &str) -> Option<[u8; 16]> {
    let text = match text.len() {
        45 if text.get(..9)?.eq_ignore_ascii_case("urn:uuid:") => text.get(9..)?,
        38 => text.get(1..37)?,
        _ => text,
    };
    let digits: String = match text.len() {
        36 => {
            let dashes = [8, 13, 18, 23].iter().all(|at| text.as_bytes().get(*at) == Some(&b'-'));
            dashes.then(|| text.replace('-', "")).filter(|digits| digits.len() == 32)?
        }
        32 => text.to_owned(),
        _ => return None,
    };
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

fn parse(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let bytes = bytes(arguments.string(0)?).ok_or_else(|| Failure::new("invalid UUID"))?;
    let [t0, t1, t2, t3, t4, t5, version, t7, clock, low, node @ ..] = bytes;
    let variant = match clock {
        0x80..=0xbf => "RFC4122",
        0xc0..=0xdf => "Microsoft",
        0xe0.. => "Future",
        _ => "Reserved",
    };
    let number = version >> 4;
    let mut fields = vec![("version", i64::from(number).into()), ("variant", variant.into())];
    if number == 1 || number == 2 {
        let low_time = u32::from_be_bytes([t0, t1, t2, t3]);
        let time = i128::from(low_time)
            | i128::from(u16::from_be_bytes([t4, t5])) << 32
            | i128::from(u16::from_be_bytes([version & 0x0f, t7])) << 48;
        let mac = match node[0] & 3 {
            3 => "local:multicast",
            1 => "global:multicast",
            2 => "local:unicast",
            _ => "global:unicast",
        };
        let node: Vec<String> = node.iter().map(|byte| format!("{byte:02x}")).collect();
        fields.push(("time", ((time - GREGORIAN) * 100).into()));
        fields.push(("nodeid", node.join("-").into()));
        fields.push(("macvariables", mac.into()));
        fields.push(("clocksequence", i64::from(u16::from_be_bytes([clock & 0x3f, low])).into()));
        if number == 2 {
            let domain = match low {
                0 => "Person".to_owned(),
                1 => "Group".to_owned(),
                2 => "Org".to_owned(),
                other => format!("Domain{other}"),
            };
            fields.push(("id", i64::from(low_time).into()));
            fields.push(("domain", domain.into()));
        }
    }
    Ok(Value::object(fields))
}
