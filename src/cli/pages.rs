//! `portcullis man` and `portcullis completions`: made from the command line itself, so that they cannot say anything else.
//!
//! Nothing of it is kept in the repository: `portcullis install` and the package write what the program gives.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_complete::aot::{Bash, Fish, Generator, Zsh};
use clap_mangen::Man;

use super::{CommandResult, command_line, output};
use crate::artifact::store;

/// Where each shell looks for what a system's programs bring along.
const COMPLETIONS: [(&str, Shell); 3] = [
    ("/usr/share/bash-completion/completions/portcullis", Shell::Bash),
    ("/usr/share/fish/vendor_completions.d/portcullis.fish", Shell::Fish),
    ("/usr/share/zsh/vendor-completions/_portcullis", Shell::Zsh),
];
const MAN1: &str = "/usr/share/man/man1";

/// Write the manual pages, one for each command
///
/// `portcullis install` and the package bring them along; this is for whoever packages or reads them in another way:
/// `man -l DIR/portcullis-policy-build.1`. With --completions also what shells complete from, as the package has it.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where to write them; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Write what bash, fish and zsh complete from as well
    #[arg(long)]
    completions: bool,
}

/// Print what a shell completes commands and options from
///
/// For bash: `portcullis completions bash > ~/.local/share/bash-completion/completions/portcullis`
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Known,
}

/// The shells whose completion is installed.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, thiserror::Error)]
enum PagesError {
    #[error("make directory {path:?}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("write {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("make a manual page: {0}")]
    Render(#[source] io::Error),
}

pub(super) fn run_man(args: &ManArgs) -> CommandResult {
    let out = &args.out;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(out)
        .map_err(|source| PagesError::Directory { path: out.clone(), source })?;
    let mut pages = pages().map_err(PagesError::Render)?;
    pages.retain(|page| args.completions || page.path.starts_with(MAN1));
    for page in &pages {
        let path = out.join(page.path.file_name().unwrap_or_default());
        store::replace(&path, &page.text, 0o644).map_err(|source| PagesError::Write { path, source })?;
    }
    output::text(format_args!("written  {} files in {}\n", pages.len(), out.display()))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_completions(args: &CompletionsArgs) -> CommandResult {
    let text = match args.shell {
        Known::Bash => completion(Bash),
        Known::Zsh => completion(Zsh),
        Known::Fish => completion(Fish),
    };
    output::text(format_args!("{}", String::from_utf8_lossy(&text)))?;
    Ok(ExitCode::SUCCESS)
}

/// A file that belongs to the program, and where it goes on a system.
pub(super) struct Page {
    pub(super) path: PathBuf,
    pub(super) text: Vec<u8>,
}

/// All of them, sorted by path: the same program always gives the same bytes.
pub(super) fn pages() -> io::Result<Vec<Page>> {
    let mut command = command_line().disable_help_subcommand(true);
    command.build();
    let mut pages = COMPLETIONS
        .into_iter()
        .map(|(path, shell)| Page { path: path.into(), text: completion(shell) })
        .collect();
    manual(&command, &mut pages)?;
    pages.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(pages)
}

fn manual(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        manual(below, pages)?;
    }
    let man = Man::new(command.clone()).manual("Portcullis").source(env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    man.render(&mut text)?;
    pages.push(Page { path: PathBuf::from(MAN1).join(man.get_filename()), text });
    Ok(())
}

fn completion(shell: impl Generator) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "portcullis", &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_names() -> Vec<String> {
        let name = |page: Page| page.path.file_name().unwrap().to_str().unwrap().to_owned();
        pages().unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn every_command_has_its_page() {
        let names = file_names();
        for command in ["", "-decide", "-policy", "-policy-build", "-policy-revoke", "-trust-check", "-man"] {
            assert!(names.contains(&format!("portcullis{command}.1")), "{command} is not in {names:?}");
        }
        for shell in ["portcullis", "portcullis.fish", "_portcullis"] {
            assert!(names.contains(&shell.to_owned()), "{shell} is not in {names:?}");
        }
    }

    #[test]
    fn pages_say_what_help_says_and_always_the_same() {
        let text = |pages: Vec<Page>| {
            let page = pages.into_iter().find(|page| page.path.ends_with("portcullis-policy-build.1"));
            String::from_utf8(page.unwrap().text).unwrap()
        };
        let page = text(pages().unwrap());
        assert!(page.starts_with(".ie") || page.contains(".TH"), "{page}");
        for said in [env!("CARGO_PKG_VERSION"), "platform", "Exit codes"] {
            assert!(page.contains(said), "{said} is not in {page}");
        }
        assert_eq!(page, text(pages().unwrap()));
    }

    #[test]
    fn shells_complete_the_commands_of_today() {
        for (path, shell) in COMPLETIONS {
            let text = String::from_utf8(completion(shell)).unwrap();
            for word in ["policy", "rollback", "accept-capabilities", "linux/arm64"] {
                assert!(text.contains(word), "{word} is not in {path}");
            }
        }
    }
}
