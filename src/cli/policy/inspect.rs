//! `portcullis policy inspect`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::artifact::envelope::Envelope;
use crate::artifact::{PublicKey, SIGNED_STATEMENT_MAX, Statement, check_signature, peek};
use crate::cli::{CommandResult, output, units};

/// Show what a signed statement says, trusted or not
///
/// Without --key nothing is checked: it shows what somebody claims. With --key it also says whether one of those keys
/// signed it. Whether a worker would load it is what `verify` says.
#[derive(Debug, Args)]
pub(in crate::cli) struct Inspect {
    /// A .statement.json, or a .cwasm that has one beside it
    file: PathBuf,
    /// A public key to check the signature with; may be given more than once
    #[arg(long = "key", value_name = "PUB")]
    keys: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> CommandResult {
        let is_cwasm = self.file.extension().is_some_and(|extension| extension == "cwasm");
        let path = if is_cwasm { super::statement_beside(&self.file)? } else { self.file.clone() };
        let keys = super::read_public_keys(&self.keys)?;
        let envelope = Envelope::from_bytes(&super::read(&path, SIGNED_STATEMENT_MAX)?)
            .map_err(|error| format!("inspect {path:?}: signed statement {error}"))?;
        let statement = peek(&envelope).map_err(|error| format!("inspect {path:?}: {error}"))?;
        let digest = if is_cwasm { Some(super::read_sealed(&self.file)?.digest()) } else { None };

        let signature = signature_in_words(&envelope, &keys);
        let signers: Vec<_> = envelope.signatures.iter().map(|signature| &signature.key).collect();
        let matches = digest.map(|digest| digest == statement.cwasm);
        if self.json {
            output::json(&json!({
                "statement": statement, "signers": signers, "signature": signature, "cwasm_matches": matches,
            }))?;
        } else {
            let cwasm = match matches {
                Some(true) => "  (the file beside it)",
                Some(false) => "  (NOT the file beside it)",
                None => "",
            };
            output::text(format_args!("{}", describe(&statement, cwasm)))?;
            for signer in signers {
                output::text(format_args!("signer        {signer:?}\n"))?;
            }
            output::text(format_args!("signature     {signature}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn signature_in_words(envelope: &Envelope, keys: &[PublicKey]) -> String {
    if keys.is_empty() {
        return "not checked (give --key)".into();
    }
    match check_signature(envelope, keys) {
        Ok(key) => format!("good, by key {key}"),
        Err(error) => format!("NOT GOOD: {error}"),
    }
}

/// Names in a statement are names; other strings in it may be anything, so they are quoted.
fn describe(statement: &Statement, cwasm: &str) -> String {
    let limits = &statement.limits;
    let imports = statement.imports.iter().map(|import| format!("{import:?}")).collect::<Vec<_>>().join(", ");
    format!(
        "policy        {}\ntenant        {}\nversion       {}\ncwasm         {}{cwasm}\nsource        {}\n\
         architecture  {:?}\nwasmtime      {:?}\nengine        {}\nworld         {:?}\nimports       {}\n\
         limits        memory {}, {} table elements, output {}, deadline {}\n",
        statement.policy,
        statement.tenant,
        statement.version,
        statement.cwasm,
        statement.source,
        statement.architecture,
        statement.wasmtime,
        statement.engine,
        statement.world,
        if imports.is_empty() { "nothing" } else { &imports },
        units::show_bytes(limits.memory.into()),
        limits.table_elements,
        units::show_bytes(limits.output.into()),
        units::show_microseconds(limits.deadline_us),
    )
}
