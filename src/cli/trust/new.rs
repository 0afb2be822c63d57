//! `portcullis trust new`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::artifact::PublicKey;
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::trust::TrustPolicy;

/// Start a trust policy from public keys
///
/// Each key becomes a signer, and a bundle of any tenant needs the signatures of all of them; what else can be said is in
/// the file as comments. Edit it, then `portcullis trust check`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct New {
    /// A signer's name and public key; may be given more than once
    #[arg(long = "key", value_name = "NAME=PUB", required = true, value_parser = named_key)]
    keys: Vec<(String, PathBuf)>,
    /// Where to write it; nothing may be there
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum NewError {
    #[error("write {0:?}: something is there already; remove it, or choose another name")]
    There(PathBuf),
}

impl New {
    pub(super) fn run(self) -> CommandResult {
        let paths: Vec<PathBuf> = self.keys.iter().map(|(_, path)| path.clone()).collect();
        let keys = files::read_public_keys(&paths)?;
        let names: Vec<&str> = self.keys.iter().map(|(name, _)| name.as_str()).collect();
        let text = starter(&names, &keys)?;
        // Names that are no names of signers, or the same key twice: the reader says it best.
        TrustPolicy::parse(&self.out, &text)?;
        if self.out.symlink_metadata().is_ok() {
            return Err(NewError::There(self.out).into());
        }
        files::write(&self.out, text.as_bytes())?;
        if self.json {
            let ids: Vec<_> = keys.iter().map(PublicKey::id).collect();
            output::json(&json!({ "path": self.out, "signers": names, "key_ids": ids }))?;
        } else {
            output::text(format_args!(
                "written  {}\nsigners  {}\nnext     portcullis trust check {}\n",
                self.out.display(),
                names.join(", "),
                self.out.display()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn named_key(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.into(), Path::new(path).into()))
        }
        _ => Err("expected a name and a file such as release=release.key.pub".into()),
    }
}

fn starter(names: &[&str], keys: &[PublicKey]) -> Result<String, crate::artifact::KeyError> {
    let mut text = String::from(
        "# Who may vouch for what. Whatever is not said here is not trusted. docs/trust.md explains every key.\n\
         # From this day on nothing in here holds: look through it before.\n\
         #expires = 2027-12-31T00:00:00Z\n",
    );
    for (name, key) in names.iter().zip(keys) {
        text += &format!("\n[signer.\"{}\"]\nkey = \"\"\"\n{}\"\"\"\n", name.escape_default(), key.to_pem()?);
    }
    let quoted: Vec<_> = names.iter().map(|name| format!("\"{}\"", name.escape_default())).collect();
    text += &format!(
        "\n# For each tenant that has no rule of its own, nor its class: [tenant.acme], [class.web].\n\
         [default]\n\
         # Each of them has to have signed.\n\
         all_of = [{signers}]\n\
         # Host interfaces that a policy may import: \"clock\", \"log\", \"random\".\n\
         capabilities = [\"clock\", \"data\", \"log\", \"metric\", \"random\"]\n\
         \n\
         # So many of several, instead of all_of or besides it.\n\
         #[default.any_of]\n\
         #minimum = 1\n\
         #signers = [{signers}]\n\
         \n\
         # What a policy may ask for, at most.\n\
         #[default.limits]\n\
         #memory = \"4MiB\"\n\
         #deadline = \"100ms\"\n\
         \n\
         # By whom and from what it has to be built, in the words of one of these signers: `portcullis policy attest`.\n\
         #[default.provenance]\n\
         #signers = [{signers}]\n\
         #builder = \"https://ci.example.test/runner\"\n\
         #repository = \"https://example.test/acme/*\"\n\
         #ref = \"refs/tags/*\"\n\
         \n\
         # Who may revoke keys, bundles and sources: `portcullis policy revoke`.\n\
         [revocation]\n\
         signers = [{signers}]\n",
        signers = quoted.join(", "),
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::SigningKey;

    /// Whoever takes the # away has to find something that is read.
    #[test]
    fn what_is_commented_out_is_right_as_well() {
        let key = SigningKey::generate_ed25519().unwrap().public_key();
        let text = starter(&["release"], &[key]).unwrap();
        let path = Path::new("trust.toml");
        TrustPolicy::parse(path, &text).unwrap();
        let all: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        // The same signer cannot count twice.
        let all = all.replacen("all_of = [\"release\"]\n", "", 1);
        let policy = TrustPolicy::parse(path, &all).unwrap_or_else(|errors| panic!("{errors}\n{all}"));
        assert!(policy.expires().is_some() && policy.has_revocation());
    }
}
