//! The report in the form that build servers read: JUnit's XML, as Jenkins and GitLab describe it.

use std::fmt::Write as _;

use super::report::{CaseReport, PolicyReport, Report};

/// One suite for each policy, one test case for each case.
pub(super) fn written(report: &Report) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let (tests, failures) = (report.passed + report.failed, report.failed);
    // Writing to a string does not fail.
    let _ = writeln!(
        xml,
        "<testsuites name=\"portcullis policy test\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\">"
    );
    for policy in &report.policies {
        suite(&mut xml, policy);
    }
    xml + "</testsuites>\n"
}

fn suite(xml: &mut String, policy: &PolicyReport) {
    let failures = policy.cases.iter().filter(|case| !case.passed).count();
    let _ = writeln!(
        xml,
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"0\" time=\"{}\">",
        escaped(&policy.name),
        policy.cases.len(),
        seconds(policy.cases.iter().map(took).sum())
    );
    for case in &policy.cases {
        test_case(xml, policy, case);
    }
    xml.push_str("  </testsuite>\n");
}

fn test_case(xml: &mut String, policy: &PolicyReport, case: &CaseReport) {
    let (name, class, file) =
        (escaped(&case.name), escaped(&policy.name), escaped(&policy.file.display().to_string()));
    let (line, time) = (case.line, seconds(took(case)));
    let _ = write!(
        xml,
        "    <testcase name=\"{name}\" classname=\"{class}\" file=\"{file}\" line=\"{line}\" time=\"{time}\""
    );
    if case.passed && case.log.is_empty() {
        xml.push_str("/>\n");
        return;
    }
    xml.push_str(">\n");
    if !case.passed {
        let lines: Vec<String> = case.differences.iter().map(ToString::to_string).collect();
        let (message, text) = (escaped(&lines.join("; ")), escaped(&lines.join("\n")));
        let _ = writeln!(xml, "      <failure type=\"difference\" message=\"{message}\">{text}</failure>");
    }
    if !case.log.is_empty() {
        let lines: Vec<String> = case.log.iter().map(|(level, line)| format!("{level}: {line}")).collect();
        let _ = writeln!(xml, "      <system-out>{}</system-out>", escaped(&lines.join("\n")));
    }
    xml.push_str("    </testcase>\n");
}

fn took(case: &CaseReport) -> u64 {
    case.timing.instantiate_ns.saturating_add(case.timing.run_ns)
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// What a case or a policy says can be anything; XML cannot.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            // As they are they would become spaces in an attribute.
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_break_out_and_times_are_seconds() {
        assert_eq!(
            escaped("<a b=\"&\">\n\u{1b}\u{7f}"),
            "&lt;a b=&quot;&amp;&quot;&gt;&#10;\u{fffd}\u{fffd}"
        );
        assert_eq!(seconds(1_000_002_500), "1.000002500");
    }
}
