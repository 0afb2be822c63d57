//! What a NOTIFY says: messages, and in each of them named values. All of them together are one question.

use std::str::from_utf8;

use super::typed::{Malformed, Reader, Typed};

/// Most values of one NOTIFY. A message of HAProxy's can have 255.
const ARGUMENTS_MAX: usize = 512;

/// Everything a NOTIFY says, in its order; borrows from its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arguments<'a>(Vec<Argument<'a>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Argument<'a> {
    /// Empty where the operator gave it none.
    pub(super) name: &'a str,
    pub(super) value: Typed<'a>,
}

impl<'a> Arguments<'a> {
    /// Reads the payload of a NOTIFY.
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let mut all = Vec::new();
        while !reader.is_empty() {
            // The message's name says when HAProxy asks, not what.
            reader.string()?;
            for _ in 0..reader.byte()? {
                let name = from_utf8(reader.string()?).map_err(|_| Malformed("a name is not UTF-8"))?;
                all.push(Argument { name, value: reader.typed()? });
                if all.len() > ARGUMENTS_MAX {
                    return Err(Malformed("a NOTIFY has more than 512 arguments"));
                }
            }
        }
        Ok(Self(all))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Argument<'a>> {
        self.0.iter().copied()
    }

    /// The text that has this name, if there is one and not more.
    pub(super) fn only(&self, name: &str) -> Option<&'a str> {
        let mut named = self.0.iter().filter(|argument| argument.name == name);
        match (named.next()?.value, named.next()) {
            (Typed::Text(text), None) => from_utf8(text).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::super::script::notify;
    use super::*;

    #[test]
    fn several_messages_are_one_question() {
        let path = ("path", Typed::Text(b"/"));
        let src = ("src", Typed::Ipv4([192, 0, 2, 7]));
        let payload = notify(&[&[path], &[], &[src]]);
        let arguments = Arguments::read(&payload).unwrap();
        let named: Vec<_> = arguments.iter().map(|argument| (argument.name, argument.value)).collect();
        assert_eq!(named, [path, src]);
        assert_eq!(arguments.only("path"), Some("/"));
        assert_eq!(Arguments::read(b"").unwrap().iter().count(), 0);
    }

    #[test]
    fn what_comes_twice_is_not_the_only_one() {
        let one = ("tenant", Typed::Text(b"acme"));
        for (messages, only) in [
            (&[&[one][..]][..], Some("acme")),
            (&[&[one, one]], None),
            (&[&[one], &[("tenant", Typed::Text(b"globex"))]], None),
            (&[&[one], &[("tenant", Typed::Null)]], None),
            (&[&[("tenant", Typed::Binary(b"acme"))]], None),
            (&[&[("tenant", Typed::Text(b"acm\xff"))]], None),
            (&[&[("Tenant", Typed::Text(b"acme"))]], None),
        ] {
            assert_eq!(Arguments::read(&notify(messages)).unwrap().only("tenant"), only, "{messages:?}");
        }
    }

    #[test]
    fn what_is_no_list_of_messages() {
        let whole = notify(&[&[("path", Typed::Text(b"/"))]]);
        assert!(Arguments::read(&whole).is_ok());
        for end in 1..whole.len() {
            assert!(Arguments::read(&whole[..end]).is_err(), "cut at {end}");
        }
        assert!(Arguments::read(b"\x01m\x01\x01\xff\0").is_err(), "a name that is no text");
        let many = vec![("a", Typed::Null); 200];
        assert!(Arguments::read(&notify(&[&many, &many])).is_ok());
        assert!(Arguments::read(&notify(&[&many, &many, &many])).is_err());
        let mut trailing = BytesMut::from(&whole[..]);
        trailing.extend_from_slice(b"\x05");
        assert!(Arguments::read(&trailing).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Arguments::read(&bytes);
        }
    }
}
