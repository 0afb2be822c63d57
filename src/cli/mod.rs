//! What people type. One file per command; this one reads the command line, runs the command, and says what went wrong.

mod attest;
mod data;
mod decide;
mod demo;
mod files;
mod install;
mod operator;
mod output;
mod pages;
mod policy;
mod question;
mod reload;
mod status;
mod tenant;
mod terminal;
mod top;
mod trust;
mod units;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// The command line is not one (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// How a command ends: its exit code, or why it failed, which is exit code 1.
type CommandResult = Result<ExitCode, Box<dyn Error + Send + Sync>>;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed, with the reason on standard error; \
                          64 the command line is wrong.";

/// Portcullis: may this request go through?
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Decide(Box<decide::DecideArgs>),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    Attest(attest::AttestArgs),
    Reload(reload::ReloadArgs),
    /// Make, build, sign and look at policies; see and say which of them serve
    #[command(subcommand, after_help = EXIT_CODES)]
    Policy(Box<policy::Command>),
    /// Make data snapshots that policies read, and look into them
    #[command(subcommand, after_help = EXIT_CODES)]
    Data(data::Command),
    /// Who may vouch for policies: start, check and change trust policies
    #[command(subcommand, after_help = EXIT_CODES)]
    Trust(trust::Command),
    /// Tenants: put in place, suspended, removed without a trace
    #[command(subcommand, after_help = EXIT_CODES)]
    Tenant(tenant::Command),
    Install(install::InstallArgs),
    Uninstall(install::UninstallArgs),
    Completions(pages::CompletionsArgs),
    Man(pages::ManArgs),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Nothing to be done where not even the usage can be written.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match command_line.command {
        Command::Demo(args) => demo::run(&args),
        Command::Decide(args) => decide::run(&args).or_else(|error| complain(&error, error.exit_code())),
        Command::Status(args) => status::run(&args).or_else(|error| complain(&error, error.exit_code())),
        Command::Top(args) => top::run(&args),
        Command::Attest(args) => attest::run(&args).or_else(|error| complain(&error, error.exit_code())),
        Command::Reload(args) => reload::run(&args).or_else(|error| complain(&error, error.exit_code())),
        Command::Policy(command) => command.run(),
        Command::Data(command) => command.run(),
        Command::Trust(command) => command.run(),
        Command::Tenant(command) => command.run(),
        Command::Install(args) => install::run(&args),
        Command::Uninstall(args) => install::run_uninstall(&args),
        Command::Completions(args) => pages::run_completions(&args),
        Command::Man(args) => pages::run_man(&args),
    };
    result.unwrap_or_else(|error| {
        if !is_broken_pipe(&*error) {
            output::error(&chain(&*error));
        }
        ExitCode::FAILURE
    })
}

/// All commands and options, as clap knows them.
fn command_line() -> clap::Command {
    CommandLine::command()
}

/// For commands whose exit codes say more than that they failed.
fn complain(error: &dyn Error, code: u8) -> CommandResult {
    output::error(&chain(error));
    Ok(ExitCode::from(code))
}

/// An error and its causes in one line, each said once: many errors say their cause already.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// Whoever reads the output has stopped reading: nothing to complain about, but not a success either.
fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |cause: &&(dyn Error + 'static)| (*cause).source());
    causes.any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command_line().debug_assert();
    }

    /// For programs as well as for people, and nobody has to guess what an exit code means.
    #[test]
    fn everything_about_policies_has_json_and_says_its_exit_codes() {
        let line = command_line();
        let mut seen = Vec::new();
        for group in ["policy", "data", "trust", "tenant"] {
            let group = line.find_subcommand(group).unwrap();
            for command in group.get_subcommands() {
                let name = format!("{} {}", group.get_name(), command.get_name());
                let has_json = command.get_arguments().any(|argument| argument.get_long() == Some("json"));
                assert!(has_json, "{name} has no --json");
                for argument in command.get_arguments() {
                    assert!(
                        argument.get_help().is_some(),
                        "{name} does not say what {} is",
                        argument.get_id()
                    );
                }
                let codes = codes(command);
                assert!(
                    codes.contains(&"0".to_owned()) && codes.contains(&"64".to_owned()),
                    "{name}: {codes:?}"
                );
                for code in &codes {
                    assert!(documented(&name, code), "README.md does not say what {code} of {name} means");
                }
                seen.push(name);
            }
        }
        for name in ["policy build", "policy activate", "trust check", "trust rotate"] {
            assert!(seen.iter().any(|seen| seen == name), "{name} is not in {seen:?}");
        }
        assert!(
            !documented("policy diff", "75") && !documented("policy build", "2"),
            "the test sees nothing"
        );
    }

    /// Of the sentence under a command's help: `Exit codes: 0 done; 1 refused, with ..`.
    fn codes(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let sentence = help.strip_prefix("Exit codes: ").unwrap_or_default();
        let first = |part: &str| part.split_whitespace().next().unwrap_or_default().to_owned();
        sentence.split("; ").map(first).filter(|code| code.parse::<u8>().is_ok()).collect()
    }

    /// Whether the table of exit codes in README.md has that code, in the command's row or in that of all.
    fn documented(name: &str, code: &str) -> bool {
        let readme = include_str!("../../README.md");
        let (_, table) = readme.split_once("\n## Exit codes\n").unwrap();
        let table = table.split("\n## ").next().unwrap();
        let last = format!("`{}`", name.split_whitespace().next_back().unwrap());
        let rows = table.lines().filter(|line| line.starts_with("| "));
        let (own, others): (Vec<&str>, Vec<&str>) = rows.partition(|row| {
            let whom = row.split('|').nth(1).unwrap();
            whom.contains(&format!("`portcullis {name}`"))
                || (whom.contains("policy") && whom.contains(&last))
        });
        let general = |row: &&str| {
            row.starts_with("| all of them") || (own.is_empty() && row.starts_with("| the others"))
        };
        own.iter().copied().chain(others.into_iter().filter(general)).any(|row| {
            row.split('|')
                .nth(2)
                .unwrap()
                .split("; ")
                .any(|part| part.split_whitespace().next() == Some(code))
        })
    }

    #[derive(Debug, thiserror::Error)]
    #[error("open key: {0}")]
    struct Says(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("sign policy")]
    struct Silent(#[source] Says);

    #[test]
    fn a_cause_is_said_once() {
        let error = Silent(Says(io::Error::other("disk on fire")));
        assert_eq!(chain(&error), "sign policy: open key: disk on fire");
    }
}
