//! What people read: tables and paragraphs for 80 columns, and texts that others wrote.

/// Columns of a terminal that nobody has widened.
const WIDTH: usize = 80;
/// Between two columns.
const GAP: usize = 2;
/// A column is not cut below this.
const NARROWEST: usize = 8;

/// Lines of a table, each indented by `indent`. Columns in which all texts are numbers are aligned to the right and
/// never cut; where it is too wide, the widest others are, with a `~` at the end of each text that lost something.
pub(super) fn table<const N: usize>(indent: usize, head: [&str; N], rows: &[[String; N]]) -> String {
    let column = |n: usize| rows.iter().filter_map(move |row| row.get(n));
    let mut widths: Vec<usize> = (0..N)
        .map(|n| {
            column(n).map(|text| text.chars().count()).chain(head.get(n).map(|h| h.len())).max().unwrap_or(0)
        })
        .collect();
    let numeric: Vec<bool> =
        (0..N).map(|n| column(n).all(|text| text.bytes().all(|b| b.is_ascii_digit() || b == b'-'))).collect();
    let room = WIDTH.saturating_sub(indent + GAP * N.saturating_sub(1));
    while widths.iter().sum::<usize>() > room {
        let texts = widths.iter_mut().zip(&numeric).filter(|(_, numeric)| !**numeric);
        match texts.map(|(width, _)| width).max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => break,
        }
    }
    let line = |texts: [&str; N]| {
        let cells = texts.iter().zip(&widths).zip(&numeric).map(|((text, width), numeric)| {
            let text = cut(text, *width);
            if *numeric { format!("{text:>width$}") } else { format!("{text:<width$}") }
        });
        let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
        format!("{}{}\n", " ".repeat(indent), line.trim_end())
    };
    let rows = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(head)).chain(rows).collect()
}

/// A text over as many lines as it takes, the first after `first`, the others indented.
pub(super) fn paragraph(first: &str, text: &str) -> String {
    wrap(first, first.chars().take_while(|c| *c == ' ').count() + 2, text)
}

/// The same, with the others under the first word of the text: for columns.
pub(super) fn hanging(first: &str, text: &str) -> String {
    wrap(first, first.chars().count(), text)
}

fn wrap(first: &str, indent: usize, text: &str) -> String {
    let indent = " ".repeat(indent);
    let mut lines = String::new();
    let mut line = first.to_owned();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH && line.trim() != "" {
            lines.push_str(line.trim_end());
            lines.push('\n');
            line.clone_from(&indent);
        }
        if !line.ends_with(' ') && !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines + line.trim_end() + "\n"
}

/// A text that a policy, a peer or a file wrote, so that it cannot drive the terminal.
pub(super) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => printable.push(c),
            _ => printable.extend(c.escape_debug()),
        }
    }
    printable
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['~']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_tables_are_cut_and_narrow_ones_are_not() {
        let rows = [["a".repeat(64), "b".repeat(64), "7".to_owned()]];
        let text = table(2, ["TENANT", "POLICY", "VERSION"], &rows);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("~"), "{text}");
        let rows = [["acme".to_owned(), "gate".to_owned(), "7".to_owned()]];
        assert_eq!(
            table(0, ["TENANT", "POLICY", "VERSION"], &rows),
            "TENANT  POLICY  VERSION\nacme    gate          7\n"
        );
    }

    #[test]
    fn texts_of_others_cannot_drive_the_terminal() {
        assert_eq!(printable("a \"b\" \\ é\n\u{1b}[2J\u{202e}"), "a \"b\" \\ é\\n\\u{1b}[2J\\u{202e}");
    }

    #[test]
    fn paragraphs_wrap() {
        let text = paragraph("  refused:", &"word ".repeat(40));
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(
            text.starts_with("  refused: word word")
                && text.lines().skip(1).all(|l| l.starts_with("    word"))
        );
    }
}
