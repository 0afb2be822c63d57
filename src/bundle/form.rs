//! One thing, one form: JSON of ours is compact, its fields come in one order, none is unknown and none comes twice. What
//! is read is written again and compared, so every changed byte is either refused here or means something else.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest cause that is shown, characters: it may quote what a stranger wrote.
const CAUSE_MAX: usize = 200;

/// JSON that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    #[error("is {len} bytes long, at most {max} are read")]
    TooLong { len: usize, max: usize },
    #[error("is not what it should be: {0}")]
    Malformed(String),
    #[error(
        "is not in its one exact form (compact, fields in order); build the bundle again, or pull it with `portcullis policy pull`"
    )]
    NotCanonical,
}

/// Reads what [`encode`] wrote, and nothing else.
pub(super) fn parse<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, FormError> {
    let value = parse_any(bytes, max)?;
    if encode(&value)? == bytes { Ok(value) } else { Err(FormError::NotCanonical) }
}

/// Reads JSON that other tools wrote, in whatever order: only for what is covered by a digest.
pub(super) fn parse_any<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, FormError> {
    if bytes.len() > max {
        return Err(FormError::TooLong { len: bytes.len(), max });
    }
    serde_json::from_slice(bytes).map_err(|error| malformed(&error))
}

/// The one form of a value.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FormError> {
    serde_json::to_vec(value).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> FormError {
    FormError::Malformed(error.to_string().escape_debug().take(CAUSE_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Descriptor;

    const ONE: &str = r#"{"mediaType":"a/b","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}"#;

    #[test]
    fn only_the_one_form_is_read() {
        let read = |text: &str| parse::<Descriptor>(text.as_bytes(), 400).map(|_| ());
        assert_eq!(read(ONE), Ok(()));
        let not_canonical = [
            ONE.replace("\":", "\": "),
            format!("{ONE}\n"),
            ONE.replace("a/b", "a\\/b"),
            ONE.replace(r#""size":2"#, r#""size":2,"artifactType":null"#),
            r#"{"size":2,"mediaType":"a/b","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}"#.into(),
            ONE.replace(r#""size":2"#, r#""size":2,"annotations":{}"#),
        ];
        for text in not_canonical {
            assert_eq!(read(&text), Err(FormError::NotCanonical), "{text}");
        }
        let malformed = [
            ("{".to_owned(), "EOF"),
            (format!("{ONE}{ONE}"), "trailing characters"),
            (ONE.replace("size", "sise"), "unknown field `sise`"),
            (ONE.replace(r#""size":2"#, r#""size":2,"size":2"#), "duplicate field `size`"),
            (ONE.replace(r#""size":2"#, r#""size":-2"#), "invalid value"),
            (ONE.replace(r#""size":2"#, r#""size":2,"annotations":{"a":"b","a":"b"}"#), "doubled key"),
            (ONE.replace("sha256:44", "sha256:4G"), "hex digits"),
        ];
        for (text, cause) in malformed {
            let error = read(&text).unwrap_err();
            assert!(
                matches!(&error, FormError::Malformed(found) if found.contains(cause)),
                "{text}: {error}"
            );
        }
        assert_eq!(
            parse::<Descriptor>(ONE.as_bytes(), 10).unwrap_err(),
            FormError::TooLong { len: ONE.len(), max: 10 }
        );
    }

    #[test]
    fn what_a_stranger_wrote_is_quoted_shortly_and_without_control_characters() {
        let text = format!("{{\"{}\":1}}", "\\u001b[2J\\n".repeat(200));
        let FormError::Malformed(cause) = parse::<Descriptor>(text.as_bytes(), 1 << 20).unwrap_err() else {
            panic!("malformed")
        };
        assert!(cause.len() <= CAUSE_MAX && !cause.contains('\u{1b}') && !cause.contains('\n'), "{cause}");
    }
}
