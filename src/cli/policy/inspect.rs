//! `portcullis policy inspect`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::stored::{Claim, Kind, Stored, signer};
use crate::artifact::Digest;
use crate::bundle::{self, PolicyConfig};
use crate::cli::terminal::printable;
use crate::cli::{CommandResult, EXIT_CODES, files, output, units};
use crate::engine::World;
use crate::signature::{Anchors, Evidence};

/// Show what is in a bundle, trusted or not
///
/// Whose it is, what it imports (and which functions of the host that lets it call) and exports, its limits, machine code, source, and what is attached. Without --key no
/// signature is checked: it shows what somebody claims. Whether it would be accepted is what `verify` says.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Inspect {
    /// The bundle, a folder or a tar
    bundle: PathBuf,
    /// A public key to check signatures with; may be given more than once
    #[arg(long = "key", value_name = "PUB")]
    keys: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> CommandResult {
        let keys = files::read_public_keys(&self.keys)?;
        let stored = Stored::open(&self.bundle)?;
        let claims = stored.claims();
        let checked = !keys.is_empty();
        let evidence = checked.then(|| stored.evidence(&Anchors { keys, ..Anchors::default() }));
        if self.json {
            let bundle = &stored.bundle;
            let code: Vec<_> = bundle
                .compiled
                .iter()
                .map(|code| json!({ "platform": code.platform, "cwasm": code.cwasm.digest, "bytes": code.cwasm.size }))
                .collect();
            let functions: BTreeMap<&str, Vec<&str>> = bundle
                .config
                .imports
                .iter()
                .map(|name| (name.as_str(), host_functions(&bundle.config, name)))
                .collect();
            output::json(&json!({
                "path": self.bundle, "bundle": bundle.digest(), "tar": stored.layout.is_tar(), "bytes": stored.size(),
                "config": bundle.config, "host_functions": functions, "code": code, "source": { "wasm": bundle.source.digest, "bytes": bundle.source.size },
                "attached": claims, "evidence": evidence,
            }))?;
        } else {
            output::text(format_args!("{}", for_people(&stored, &claims, evidence.as_ref())))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Names in a manifest are names; other texts in a bundle may be anything.
fn for_people(stored: &Stored, claims: &[Claim], evidence: Option<&Evidence>) -> String {
    let bundle = &stored.bundle;
    let form = if stored.layout.is_tar() { "tar" } else { "folder" };
    let mut text =
        format!("bundle      {}\n            {form}, {} bytes in all\n", bundle.digest(), stored.size());
    text += &describe(&bundle.config);
    text += &origin(&bundle.config, 12);
    let what = if bundle.config.kind() == bundle::Kind::Data { "table " } else { "source" };
    text += &format!("{what}      {} ({} bytes)\n", bundle.source.digest, bundle.source.size);
    for code in &bundle.compiled {
        let (platform, digest, size) = (code.platform, code.cwasm.digest, code.cwasm.size);
        text += &format!("code        {platform}: {digest} ({size} bytes)\n");
        if let Some((declared, _)) = bundle.compiled_for(platform) {
            let (wasmtime, engine) = (printable(&declared.wasmtime), declared.engine.short());
            text += &format!("            by wasmtime {wasmtime}, engine settings {engine}\n");
        }
    }
    if bundle.compiled.is_empty() && bundle.config.kind() == bundle::Kind::Policy {
        text += "code        none: each host compiles the source itself\n";
    }
    text += &claims.iter().map(Claim::for_people).collect::<String>();
    if claims.is_empty() {
        text += "attached    nothing: nobody has signed it\n";
    }
    match evidence {
        None => text += "signatures  not checked (give --key)\n",
        Some(evidence) => text += &show_evidence(evidence),
    }
    text
}

/// The capability manifest.
pub(super) fn describe(config: &PolicyConfig) -> String {
    let secret =
        config.confidential.as_ref().map_or_else(String::new, |id| format!("encrypted   with key {id}\n"));
    if config.kind() == bundle::Kind::Data {
        let (name, tenant, version) = (&config.policy, &config.tenant, config.version);
        return format!(
            "data        {name}\ntenant      {tenant}\nversion     {version}\nformat      {}\n{secret}",
            printable(&config.world)
        );
    }
    let limits = &config.limits;
    let imports: Vec<String> = config
        .imports
        .iter()
        .map(|name| match host_functions(config, name).join(", ") {
            functions if functions.is_empty() => name.clone(),
            functions => format!("{name} ({functions})"),
        })
        .collect();
    let list = |names: &[String]| match names {
        [] => "nothing".to_owned(),
        names => names.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", "),
    };
    format!(
        "policy      {}\ntenant      {}\nversion     {}\nworld       {}\nimports     {}\nexports     {}\n\
         {secret}limits      memory {}, {} table elements, output {}, deadline {}, stack {}, {} host calls, {}\n{}{}",
        config.policy,
        config.tenant,
        config.version,
        printable(&config.world),
        list(&imports),
        list(&config.exports),
        units::show_bytes(limits.memory.into()),
        limits.table_elements,
        units::show_bytes(limits.output.into()),
        units::show_microseconds(limits.deadline_us),
        units::show_bytes(limits.stack.into()),
        limits.host_calls,
        limits
            .fuel
            .map_or_else(|| "instructions not counted".to_owned(), |fuel| format!("{fuel} instructions")),
        named("metrics", &config.metrics),
        named("data", &config.data),
    )
}

/// A line for a list that is seldom there.
fn named(what: &str, names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| printable(name)).collect();
    if names.is_empty() { String::new() } else { format!("{what:<11} {}\n", names.join(", ")) }
}

/// What it was made of, with so many columns for what each line is about. Nothing for a component as its author built it.
pub(super) fn origin(config: &PolicyConfig, columns: usize) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text += &format!("{name:<columns$}{}\n", printable(&value));
    };
    let data = |data: &Option<Digest>| data.map_or("none".to_owned(), |data| data.to_string());
    if let Some(rego) = &config.rego {
        line("rego", format!("rule {}, result {}", rego.entrypoint, rego.result));
        line("", format!("module {} of OPA, ABI {}", rego.module, rego.abi));
        line(
            "",
            format!("data {} at {:#x}, heap at {:#x}", data(&rego.data), rego.data_address, rego.heap_base),
        );
        let builtins = rego.builtins.join(", ");
        line("", format!("builtins {}", if builtins.is_empty() { "none" } else { &builtins }));
    }
    if let Some(prepared) = &config.prepared {
        line("prepared", format!("from {}, data {}", prepared.component, data(&prepared.data)));
        if !prepared.taken {
            line("", "not run: no snapshot can be taken of it, and its author allows that".to_owned());
        }
    }
    text
}

/// What the host does for a policy that imports this interface of its world. Nothing is known of another world.
fn host_functions(config: &PolicyConfig, interface: &str) -> Vec<&'static str> {
    let begins = format!("interface {interface} {{");
    let text = World::named(&config.world).map_or("", World::wit);
    let body = text.lines().skip_while(|line| *line != begins).skip(1).take_while(|line| *line != "}");
    let function = |line: &'static str| Some(line.trim().split_once(": func(")?.0);
    body.filter_map(function).collect()
}

impl Claim {
    fn for_people(&self) -> String {
        let by = match &self.key {
            Some(key) => format!(", says key {key}"),
            None => String::new(),
        };
        let mut text = match self.kind {
            Kind::Signature => format!("attached    signature{by}\n"),
            Kind::Provenance => format!("attached    provenance{by}\n"),
            Kind::Sbom => {
                format!("attached    sbom ({}, {} bytes)\n", printable(&self.artifact_type), self.size)
            }
            Kind::Other => format!("attached    {} ({} bytes)\n", printable(&self.artifact_type), self.size),
        };
        for (name, value) in [("builder", &self.builder), ("source", &self.source), ("commit", &self.commit)]
        {
            if let Some(value) = value {
                text += &format!("            {name} {}\n", printable(value));
            }
        }
        text
    }
}

fn show_evidence(evidence: &Evidence) -> String {
    let mut text: String =
        evidence.signers.iter().map(|who| format!("signatures  good, by {}\n", signer(who, None))).collect();
    for built in &evidence.provenance {
        text += &format!("provenance  good, by {}\n", signer(&built.signer, None));
    }
    for why in &evidence.disregarded {
        text += &format!("signatures  NOT GOOD: {}\n", printable(why));
    }
    if text.is_empty() { "signatures  none\n".to_owned() } else { text }
}
