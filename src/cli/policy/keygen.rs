//! `portcullis policy keygen`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::artifact::SigningKey;
use crate::cli::{CommandResult, EXIT_CODES, files, output};

/// Make a key pair to sign policies with
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Keygen {
    /// Where to write the private key; the public key goes to KEY.pub. Neither may exist
    #[arg(short, long, value_name = "KEY")]
    out: PathBuf,
    /// What kind of key
    #[arg(long, value_enum, default_value_t = Algorithm::Ed25519)]
    algorithm: Algorithm,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Algorithm {
    Ed25519,
    /// ECDSA on P-256 with SHA-256
    P256,
}

impl Keygen {
    pub(super) fn run(self) -> CommandResult {
        let key = match self.algorithm {
            Algorithm::Ed25519 => SigningKey::generate_ed25519(),
            Algorithm::P256 => SigningKey::generate_p256(),
        }?;
        let public = key.public_key();
        let mut public_path = self.out.clone().into_os_string();
        public_path.push(".pub");
        let public_path = PathBuf::from(public_path);

        files::create(&self.out, key.to_pem()?.as_bytes(), 0o600)?;
        if let Err(error) = files::create(&public_path, public.to_pem()?.as_bytes(), 0o644) {
            // It was made a moment ago, and half a key pair is of no use to anyone.
            let _ = fs::remove_file(&self.out);
            return Err(error.into());
        }
        if self.json {
            output::json(&json!({
                "key": self.out, "public_key": public_path, "key_id": public.id(),
                "algorithm": public.algorithm(),
            }))?;
        } else {
            output::text(format_args!(
                "private key  {}  (keep it secret)\npublic key   {}\nkey id       {}\n",
                self.out.display(),
                public_path.display(),
                public.id()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
