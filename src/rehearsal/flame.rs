//! Where instructions went, as a picture: one SVG file that any browser shows, with no script in it. The width of a bar is
//! the instructions of a function and of all that it called; what called it is below it. The same counts always give the
//! same bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::coverage::shown_name;
use crate::engine::Notes;

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const ROW: f64 = 17.0;
const HEAD: f64 = 40.0;
/// Of one letter, about.
const LETTER: f64 = 6.6;
/// Bars that are narrower than this show nothing.
const NARROWEST: f64 = 0.2;

#[derive(Default)]
struct Node {
    total: u64,
    called: BTreeMap<String, Node>,
}

/// Draws what was counted. `title` is anybody's text.
#[must_use]
pub fn flame_graph(title: &str, notes: &Notes) -> String {
    let mut root = Node::default();
    for (stack, count) in &notes.stacks {
        root.total = root.total.saturating_add(*count);
        let mut node = &mut root;
        for place in stack {
            let name = notes.functions.get(*place).map(shown_name).unwrap_or_default();
            node = node.called.entry(name).or_default();
            node.total = node.total.saturating_add(*count);
        }
    }
    let rows = depth(&root);
    let height = HEAD + f64::from(rows) * ROW + 2.0 * MARGIN;
    let mut svg = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fdfdf8\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    let full = WIDTH - 2.0 * MARGIN;
    let mut page = Page { svg: &mut svg, total: root.total, bottom: height - MARGIN - ROW, full };
    page.draw("all", &root, 0, MARGIN);
    svg.push_str("</svg>\n");
    svg
}

struct Page<'a> {
    svg: &'a mut String,
    total: u64,
    bottom: f64,
    full: f64,
}

impl Page<'_> {
    fn draw(&mut self, name: &str, node: &Node, row: u32, x: f64) {
        let share = ratio(node.total, self.total);
        let width = share * self.full;
        if width < NARROWEST {
            return;
        }
        let y = self.bottom - f64::from(row) * ROW;
        let (colour, height) = (colour(name), ROW - 1.0);
        let (hint, percent) = (escaped(name), share * 100.0);
        // Writing to a string does not fail.
        let _ = write!(
            self.svg,
            "<g><title>{hint}: {} instructions, {percent:.2} %</title>\
             <rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height}\" rx=\"1\" fill=\"{colour}\"/>",
            node.total
        );
        let label = fitting(name, width);
        if !label.is_empty() {
            let (at, line) = (x + 3.0, y + 12.0);
            let _ = write!(self.svg, "<text x=\"{at:.2}\" y=\"{line:.1}\">{}</text>", escaped(&label));
        }
        self.svg.push_str("</g>\n");
        let mut left = x;
        for (name, called) in &node.called {
            self.draw(name, called, row + 1, left);
            left += ratio(called.total, self.total) * self.full;
        }
    }
}

fn depth(node: &Node) -> u32 {
    1 + node.called.values().map(depth).max().unwrap_or(0)
}

/// Nobody sees the digits that a large count loses.
fn ratio(part: u64, whole: u64) -> f64 {
    // Of a whole of nothing, nothing.
    let parts = u128::from(part) * 1_000_000_000 / u128::from(whole.max(1));
    f64::from(u32::try_from(parts).unwrap_or(u32::MAX)) / 1e9
}

/// As much of a name as there is room for.
fn fitting(name: &str, width: f64) -> String {
    let letters = (1..=name.chars().count()).take_while(|n| letters_width(*n) < width - 6.0).last();
    match letters {
        Some(all) if all == name.chars().count() => name.to_owned(),
        Some(some) if some > 3 => name.chars().take(some - 2).chain("..".chars()).collect(),
        _ => String::new(),
    }
}

fn letters_width(letters: usize) -> f64 {
    f64::from(u16::try_from(letters).unwrap_or(u16::MAX)) * LETTER
}

/// Warm, and always the same for a name.
fn colour(name: &str) -> String {
    let hash =
        name.bytes().fold(0xcbf2_9ce4_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("rgb({},{},{})", 205 + hash % 50, 90 + (hash >> 8) % 130, 40 + (hash >> 16) % 50)
}

/// A name is its author's: it must neither end an element nor be what XML does not have.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Function;

    fn notes() -> Notes {
        let function =
            |index: u32, name: &str| Function { module: String::new(), index, name: Some(name.to_owned()) };
        let functions = vec![function(1, "decide"), function(2, "a<b>&\"\u{1b}"), function(3, "leaf")];
        let stacks = [(vec![0], 25), (vec![0, 1], 50), (vec![0, 2], 25)].into();
        Notes { functions, stacks, ..Notes::default() }
    }

    /// Widths of the bars, by their hints.
    fn bars(svg: &str) -> BTreeMap<String, f64> {
        let titles = svg.split("<title>").skip(1);
        titles
            .map(|rest| {
                let (hint, rest) = rest.split_once("</title>").unwrap();
                let width = rest.split("width=\"").nth(1).unwrap().split('"').next().unwrap();
                (hint.to_owned(), width.parse().unwrap())
            })
            .collect()
    }

    #[test]
    fn a_bar_is_as_wide_as_what_it_and_its_callees_took() {
        let svg = flame_graph("title", &notes());
        let bars = bars(&svg);
        assert_eq!(bars["all: 100 instructions, 100.00 %"], 1180.0);
        assert_eq!(bars["decide: 100 instructions, 100.00 %"], 1180.0);
        assert_eq!(bars["leaf: 25 instructions, 25.00 %"], 295.0);
        assert_eq!(bars.len(), 4);
        assert_eq!(svg, flame_graph("title", &notes()), "the same counts, the same bytes");
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let svg = flame_graph("</svg><script>", &notes());
        assert_eq!(svg.matches("</svg>").count(), 1);
        assert!(!svg.contains("<script") && !svg.contains('\u{1b}'));
        assert!(svg.contains("a&lt;b&gt;&amp;&quot;\u{fffd}: 50 instructions"), "{svg}");
    }

    #[test]
    fn nothing_counted_is_a_picture_of_nothing() {
        let svg = flame_graph("t", &Notes::default());
        assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"));
    }
}
