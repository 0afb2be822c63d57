//! The command line of a program that people rarely start by hand.

use std::ffi::OsString;
use std::path::PathBuf;

pub(super) const USAGE: &str = "\
usage: portcullis-supervisor --config PATH [--check]

  --config PATH  the configuration (see docs/configuration.md)
  --check        say what is wrong with it, and start nothing
  --help, --version
";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    Run { config: PathBuf, check: bool },
    Help,
    Version,
}

/// Takes the arguments after the program's name.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, String> {
    let mut arguments = arguments.into_iter();
    let (mut config, mut check) = (None, false);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(Arguments::Help),
            Some("--version" | "-V") => return Ok(Arguments::Version),
            Some("--check") if !check => check = true,
            Some("--config") if config.is_none() => {
                let path = arguments.next().filter(|path| !path.is_empty());
                config = Some(path.ok_or("--config: expected a path after it")?.into());
            }
            Some("--check" | "--config") => return Err(format!("{}: given twice", argument.display())),
            _ => return Err(format!("unexpected argument {argument:?}")),
        }
    }
    config.map(|config| Arguments::Run { config, check }).ok_or_else(|| "--config PATH is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Arguments, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn what_is_meant_is_understood() {
        let run = |check| Ok(Arguments::Run { config: "/x".into(), check });
        assert_eq!(parsed(&["--config", "/x"]), run(false));
        assert_eq!(parsed(&["--check", "--config", "/x"]), run(true));
        assert_eq!(parsed(&["--help"]), Ok(Arguments::Help));
        assert_eq!(parsed(&["-V"]), Ok(Arguments::Version));
    }

    #[test]
    fn anything_else_is_a_usage_error() {
        for wrong in [
            &[][..],
            &["--check"],
            &["--config"],
            &["--config", ""],
            &["--config", "/x", "--config", "/y"],
            &["--config", "/x", "more"],
            &["--no-sandbox", "--config", "/x"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
