//! The text of a tenant's file: made, and changed without losing what an operator wrote into it.

use toml::de::DeTable;

use crate::decision::TrustClass;
use crate::supervisor::config::TenantState;

/// Longest cause that is written down, bytes.
const CAUSE_MAX: usize = 2000;

/// A text as TOML has it in quotes.
pub(super) fn quoted(text: &str) -> String {
    // JSON's escapes are TOML's, but for one character that TOML does not have in strings.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// What is left of a tenant whose name is used up.
pub(super) fn tombstone(class: Option<&TrustClass>) -> String {
    let class = class.map(|class| format!("class = {}\n", quoted(class.as_str()))).unwrap_or_default();
    format!("# This name is never used again: do not remove this file.\nstate = \"removed\"\n{class}")
}

/// The same file in another state, and why it is in that one.
///
/// # Errors
/// It is not TOML.
pub(super) fn in_state(text: &str, state: TenantState, cause: Option<&str>) -> Result<String, String> {
    let table = DeTable::parse(text).map_err(|error| error.message().to_owned())?;
    let cause = cause.map(|cause| format!("cause = {}", quoted(shortened(cause))));
    let (mut edits, mut first) = (Vec::new(), String::new());
    match table.get_ref().get("state") {
        Some(value) => edits.push((value.span(), quoted(state.word()))),
        None => first += &format!("state = {}\n", quoted(state.word())),
    }
    match (table.get_ref().get_key_value("cause"), cause) {
        (Some((key, value)), cause) => {
            // Its line goes with it, unless something else is in that.
            let mut end = value.span().end;
            if cause.is_none() && text.get(end..).is_some_and(|rest| rest.starts_with('\n')) {
                end = end.saturating_add(1);
            }
            edits.push((key.span().start..end, cause.unwrap_or_default()));
        }
        (None, Some(cause)) => first += &format!("{cause}\n"),
        (None, None) => {}
    }
    edits.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    let mut text = text.to_owned();
    for (span, new) in edits {
        if text.get(span.clone()).is_none() {
            return Err("its keys have no place".to_owned());
        }
        text.replace_range(span, &new);
    }
    text.insert_str(0, &first);
    DeTable::parse(&text).map_err(|error| error.message().to_owned())?;
    Ok(text)
}

/// What is written at a key, if that is text.
pub(super) fn said(text: &str, key: &str) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    table.get_ref().get(key)?.get_ref().as_str().map(str::to_owned)
}

fn shortened(cause: &str) -> &str {
    let end = (0..=CAUSE_MAX.min(cause.len())).rev().find(|end| cause.is_char_boundary(*end));
    cause.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use TenantState::{Active, Failed, Suspended};

    #[test]
    fn what_an_operator_wrote_stays() {
        let text = "# ours\nclass = \"a\" # shared\nstate = \"active\" # since May\nuids = [1]\n";
        let failed = in_state(text, Failed, Some("no \"such\"\n\u{7f}class")).unwrap();
        assert_eq!(
            failed,
            "cause = \"no \\\"such\\\"\\n\\u007fclass\"\n# ours\nclass = \"a\" # shared\nstate = \"failed\" # since May\nuids = [1]\n"
        );
        assert_eq!(in_state(&failed, Active, None).unwrap(), text);
        let twice = in_state(&failed, Failed, Some("another")).unwrap();
        assert!(twice.starts_with("cause = \"another\"\n# ours\n"), "{twice}");
        assert_eq!(in_state("uids = [1]\n", Suspended, None).unwrap(), "state = \"suspended\"\nuids = [1]\n");
        assert!(in_state("state = = 1", Active, None).is_err());
        let long = in_state("", Failed, Some(&"\u{20ac}".repeat(10_000))).unwrap();
        assert!(long.len() < CAUSE_MAX + 40, "{}", long.len());
    }
}
