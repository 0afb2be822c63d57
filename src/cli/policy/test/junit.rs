//! The report in the form that build servers read.

use std::time::Duration;

use quick_junit::{NonSuccessKind, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::report::{CaseReport, PolicyReport, Report};

/// One suite for each policy, one test case for each case.
pub(super) fn written(report: &Report) -> Result<String, SerializeError> {
    let mut junit = quick_junit::Report::new("portcullis policy test");
    junit.add_test_suites(report.policies.iter().map(suite));
    junit.to_string()
}

fn suite(policy: &PolicyReport) -> TestSuite {
    let mut suite = TestSuite::new(policy.name.as_str());
    suite.add_property(("file", policy.file.display().to_string().as_str()));
    suite.add_test_cases(policy.cases.iter().map(|case| test_case(policy, case)));
    suite
}

fn test_case(policy: &PolicyReport, case: &CaseReport) -> TestCase {
    let status = if case.passed {
        TestCaseStatus::success()
    } else {
        let lines: Vec<String> = case.differences.iter().map(ToString::to_string).collect();
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        let place = format!("{}:{}", policy.file.display(), case.line);
        status
            .set_type("difference")
            .set_message(format!("{place}: {}", lines.join("; ")))
            .set_description(lines.join("\n"));
        status
    };
    let mut written = TestCase::new(case.name.as_str(), status);
    let timing = case.timing;
    written
        .set_classname(policy.name.as_str())
        .set_time(Duration::from_nanos(timing.instantiate_ns.saturating_add(timing.run_ns)));
    if !case.log.is_empty() {
        let lines: Vec<String> = case.log.iter().map(|(level, line)| format!("{level}: {line}")).collect();
        written.set_system_out(lines.join("\n"));
    }
    written
}
