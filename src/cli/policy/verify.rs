//! `portcullis policy verify`

use std::cmp::Ordering;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::rebuild::{check_code, check_manifest, rebuild, terms};
use super::stored::{Stored, signer};
use crate::artifact::PublicKey;
use crate::bundle::diff::widenings;
use crate::bundle::{Kind, Platform, SecretKeys};
use crate::cli::files::FileError;
use crate::cli::terminal::{hanging, printable};
use crate::cli::trust::{class_of, read_trust};
use crate::cli::{CommandResult, files, output, units};
use crate::compile;
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::engine::{MadeFor, Metering};
use crate::signature::{Anchors, Evidence};
use crate::table::Table;
use crate::trust::{Candidate, REVOCATIONS_MAX, Revocations, TrustPolicy};

/// It is good, and would wait for an operator all the same.
const WOULD_BE_HELD_BACK: u8 = 2;
const EXIT_CODES: &str = "Exit codes: 0 good; 1 refused, or not checked at all, with the reason; 2 good, but it asks for \
                          more than --active does, so it would be held back; 64 the command line is wrong.";

/// Check a bundle as the registry does before anything of it runs
///
/// Each check is a line: layout, contents, machine code and manifest, names, version, signatures, trust policy, revocations.
/// What passes here with the service's own trust policy is accepted there.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Verify {
    /// The bundle, a folder or a tar
    bundle: PathBuf,
    /// The trust policy to hold it to
    #[arg(long, value_name = "FILE", required_unless_present = "keys", conflicts_with = "keys")]
    trust: Option<PathBuf>,
    /// Without a trust policy: a public key that is trusted; one good signature is enough. May be given more than once
    #[arg(long = "key", value_name = "PUB")]
    keys: Vec<PathBuf>,
    /// Who it has to decide for [default: whoever it says]
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Which policy or data it has to be [default: whichever it says]
    #[arg(long, visible_alias = "data", value_name = "NAME")]
    policy: Option<PolicyName>,
    /// The tenant's trust class, where the trust policy has rules for classes
    #[arg(long, value_name = "NAME", requires = "trust")]
    class: Option<TrustClass>,
    /// Refuse versions lower than this
    #[arg(long, value_name = "N", default_value_t = 0)]
    minimum_version: u64,
    /// The signed list of what was revoked
    #[arg(long, value_name = "FILE", requires = "trust")]
    revocations: Option<PathBuf>,
    /// The bundle that serves now: what is older does not follow it, and what asks for more waits for --accept-capabilities
    #[arg(long, value_name = "BUNDLE")]
    active: Option<PathBuf>,
    /// The file of the key that it is encrypted with, if it is confidential: without, what is in it is not looked at
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// Build the source again and compare its code, byte for byte
    #[arg(long)]
    rebuild: bool,
    /// As if it were this time, such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    said: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Failed,
    HeldBack,
    /// What others go by.
    Noted,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("verify {bundle:?}: refused by {} of {all} checks: {}", failed.len(), failed.join(", "))]
    Checks { bundle: PathBuf, failed: Vec<&'static str>, all: usize },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "verify {bundle:?}: the trust policy has rules for classes and none for tenant \"{tenant}\"; say its class with --class"
    )]
    Class { bundle: PathBuf, tenant: Tenant },
}

/// What it is held to.
enum Standard {
    Keys(Vec<PublicKey>),
    Trust(Box<TrustPolicy>),
}

impl Verify {
    pub(super) fn run(self) -> CommandResult {
        let standard = match &self.trust {
            Some(path) => Standard::Trust(Box::new(read_trust(path)?)),
            None => Standard::Keys(files::read_public_keys(&self.keys)?),
        };
        let list = self.revocations.as_ref().map(|path| files::read(path, REVOCATIONS_MAX)).transpose()?;
        let active = self.active.as_deref().map(Stored::open).transpose()?;
        let mut checks = Vec::new();
        let stored = match Stored::open(&self.bundle) {
            Ok(stored) => {
                let (bundle, blobs) = (&stored.bundle, stored.bundle.blobs().len());
                let (platforms, attached) = (bundle.compiled.len(), bundle.attachments.len());
                checks.push(ok(
                    "layout",
                    format!("{blobs} blobs, {platforms} platforms, {attached} attachments"),
                ));
                Some(stored)
            }
            Err(error) => {
                checks.push(failed("layout", error));
                None
            }
        };
        if let Some(stored) = &stored {
            let now = self.at.unwrap_or_else(Timestamp::now);
            self.check(stored, &standard, list.as_deref(), now, &mut checks)?;
            if let Some(active) = &active {
                checks.push(check_succession(active, stored));
                checks.push(check_widening(active, stored));
            }
        }
        self.report(stored.as_ref(), &checks)
    }

    fn check(
        &self,
        stored: &Stored,
        standard: &Standard,
        list: Option<&[u8]>,
        now: Timestamp,
        checks: &mut Vec<Check>,
    ) -> Result<(), Refused> {
        checks.push(match stored.check_blobs() {
            Ok(()) => {
                ok("contents", format!("{}, each blob has its digest", units::show_bytes(stored.size())))
            }
            Err(error) => failed("contents", error),
        });
        let secrets = self.secret.as_deref().map(files::read_secrets).transpose()?;
        match (stored.bundle.config.kind(), &stored.bundle.config.confidential, &secrets) {
            (_, Some(id), None) => checks.push(Check {
                check: "confidential",
                verdict: Verdict::Noted,
                said: vec![format!("encrypted with key {id}, and not looked into (give --secret)")],
            }),
            (Kind::Data, _, secrets) => checks.push(check_table(stored, secrets.as_ref())),
            (Kind::Policy, confidential, secrets) => {
                checks.push(check_policy(stored, secrets.as_ref()));
                // What it says of itself is read where it lies; the registry has it in plain.
                if confidential.is_none() {
                    checks.push(check_machine_code(stored));
                }
            }
        }
        checks.push(self.check_names(stored));
        checks.push(self.check_version(stored));
        let anchors = match standard {
            Standard::Keys(keys) => Anchors { keys: keys.clone(), ..Anchors::default() },
            Standard::Trust(policy) => policy.anchors(),
        };
        let evidence = stored.evidence(&anchors);
        match standard {
            Standard::Keys(_) => checks.push(check_keys(&evidence)),
            Standard::Trust(policy) => {
                checks.push(check_signatures(&evidence, policy));
                let revoked = match list.map(|list| Revocations::none().verify(list, policy, now)) {
                    None => Revocations::none(),
                    Some(Ok(revoked)) => {
                        let (version, entries) = (revoked.version(), revoked.len());
                        checks.push(ok("revocations", format!("version {version}, {entries} entries")));
                        revoked
                    }
                    Some(Err(error)) => {
                        checks.push(failed("revocations", error));
                        Revocations::none()
                    }
                };
                checks.push(self.check_trust(stored, policy, &evidence, &revoked, now)?);
            }
        }
        if self.rebuild {
            checks.push(match rebuild(stored, secrets.as_ref()) {
                Ok(()) => ok("rebuilt", "its source builds to exactly this code"),
                Err(error) => failed("rebuilt", error),
            });
        }
        Ok(())
    }

    fn check_names(&self, stored: &Stored) -> Check {
        let config = &stored.bundle.config;
        let mut wrong = Vec::new();
        if let Some(expected) = self.tenant.as_ref().filter(|expected| **expected != config.tenant) {
            wrong.push(format!("bundle is for tenant \"{}\", expected \"{expected}\"", config.tenant));
        }
        if let Some(expected) = self.policy.as_ref().filter(|expected| **expected != config.policy) {
            wrong.push(format!("bundle is for policy \"{}\", expected \"{expected}\"", config.policy));
        }
        let said = format!("{} {} for tenant {}", config.kind().name(), config.policy, config.tenant);
        if wrong.is_empty() { ok("names", said) } else { all_failed("names", wrong) }
    }

    fn check_version(&self, stored: &Stored) -> Check {
        let (found, minimum) = (stored.bundle.config.version, self.minimum_version);
        if found < minimum {
            let said = format!(
                "bundle has version {found}, at least {minimum} is needed: older versions are not loaded"
            );
            return failed("version", said);
        }
        ok("version", found)
    }

    fn check_trust(
        &self,
        stored: &Stored,
        policy: &TrustPolicy,
        evidence: &Evidence,
        revoked: &Revocations,
        now: Timestamp,
    ) -> Result<Check, Refused> {
        let config = &stored.bundle.config;
        let tenant = self.tenant.as_ref().unwrap_or(&config.tenant);
        let class = class_of(self.class.as_ref(), policy, tenant);
        let Some(class) = &class else {
            return Err(Refused::Class { bundle: self.bundle.clone(), tenant: tenant.clone() });
        };
        let candidate = Candidate { tenant, class, bundle: stored.bundle.digest(), config };
        Ok(match policy.evaluate(&candidate, evidence, revoked, now) {
            Ok(accepted) => {
                let mut said = format!("{} is kept by {}", accepted.rule, accepted.signers.join(", "));
                if let Some(built_by) = accepted.built_by {
                    said += &format!("; built as {built_by} says");
                }
                if let Some(until) = accepted.until {
                    said += &format!("; until {until}");
                }
                ok("trust", said)
            }
            Err(refusals) => all_failed("trust", refusals.iter().map(ToString::to_string).collect()),
        })
    }

    fn report(&self, stored: Option<&Stored>, checks: &[Check]) -> CommandResult {
        let refused: Vec<_> =
            checks.iter().filter(|check| check.verdict == Verdict::Failed).map(|check| check.check).collect();
        let held_back = checks.iter().any(|check| check.verdict == Verdict::HeldBack);
        if self.json {
            let config = stored.map(|stored| &stored.bundle.config);
            output::json(&json!({
                "path": self.bundle, "bundle": stored.map(|stored| stored.bundle.digest()),
                "good": refused.is_empty(), "held_back": held_back,
                "tenant": config.map(|config| &config.tenant), "policy": config.map(|config| &config.policy),
                "version": config.map(|config| config.version), "checks": checks,
            }))?;
        } else {
            let digest = stored.map(|stored| format!("bundle        {}\n", stored.bundle.digest()));
            let lines: String = checks.iter().map(Check::for_people).collect();
            output::text(format_args!("{}{lines}", digest.unwrap_or_default()))?;
        }
        if !refused.is_empty() {
            let bundle = self.bundle.clone();
            return Err(Refused::Checks { bundle, failed: refused, all: checks.len() }.into());
        }
        Ok(if held_back { ExitCode::from(WOULD_BE_HELD_BACK) } else { ExitCode::SUCCESS })
    }
}

impl Check {
    fn for_people(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Failed => "FAILED",
            Verdict::HeldBack => "WIDENS",
            Verdict::Noted => "-",
        };
        let lines = self.said.iter().zip(std::iter::once(self.check).chain(std::iter::repeat("")));
        lines
            .map(|(said, name)| {
                let verdict = if name.is_empty() { "" } else { verdict };
                hanging(&format!("{name:<13} {verdict:<7}"), &printable(said))
            })
            .collect()
    }
}

fn ok(check: &'static str, said: impl ToString) -> Check {
    Check { check, verdict: Verdict::Ok, said: vec![said.to_string()] }
}

fn failed(check: &'static str, why: impl ToString) -> Check {
    all_failed(check, vec![why.to_string()])
}

fn all_failed(check: &'static str, said: Vec<String>) -> Check {
    Check { check, verdict: Verdict::Failed, said }
}

/// Is its source a policy, and does it ask for exactly what the manifest says?
fn check_table(stored: &Stored, secrets: Option<&SecretKeys>) -> Check {
    match stored.table(secrets).map_err(|error| error.to_string()).and_then(|bytes| {
        let table = Table::check(bytes).map_err(|error| error.to_string())?;
        Ok(format!(
            "{} entries, {}",
            table.len(),
            units::show_bytes(u64::try_from(table.size()).unwrap_or(u64::MAX))
        ))
    }) {
        Ok(said) => ok("table", said),
        Err(why) => failed("table", why),
    }
}

fn check_policy(stored: &Stored, secrets: Option<&SecretKeys>) -> Check {
    let config = &stored.bundle.config;
    let source = match stored.source(secrets) {
        Ok(source) => source,
        Err(error) => return failed("policy", error),
    };
    let terms = match terms(config) {
        Ok(terms) => terms,
        Err(error) => return failed("policy", error),
    };
    // Reading what somebody wrote recurses; see `compile::STACK`.
    let built = thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(compile::STACK);
        let thread = thread.spawn_scoped(scope, || compile::check_here(&source, terms)).ok()?;
        thread.join().ok()
    });
    match built {
        None => failed("policy", "its source cannot be looked at: no thread, or a crash; please report it"),
        Some(Err(error)) => failed("policy", error),
        Some(Ok(built)) => match check_manifest(config, &built) {
            Err(error) => failed("policy", error),
            Ok(()) if config.imports.is_empty() => ok("policy", "imports nothing"),
            Ok(()) => ok("policy", format!("imports {}", config.imports.join(", "))),
        },
    }
}

/// Is the code for what the manifest says, and is there some for this host?
fn check_machine_code(stored: &Stored) -> Check {
    let metering = Metering::of(&stored.bundle.config.limits);
    let (mut said, mut wrong) = (Vec::new(), Vec::new());
    for compiled in &stored.bundle.compiled {
        let Some((declared, _)) = stored.bundle.compiled_for(compiled.platform) else { continue };
        let made_for = match stored.layout.sealed(&compiled.cwasm) {
            Ok(code) => MadeFor::read(&code).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let fits = made_for.and_then(|made_for| {
            check_code(declared, &made_for)?;
            Ok(made_for)
        });
        match fits {
            Ok(made_for) if compiled.platform == Platform::host() => {
                said.push(match made_for.check(metering) {
                    Ok(()) => format!("{} (runs here)", compiled.platform),
                    Err(why) => format!("{} (this host would compile the source: {why})", compiled.platform),
                })
            }
            Ok(_) => said.push(compiled.platform.to_string()),
            Err(why) => wrong.push(why),
        }
    }
    if stored.bundle.compiled_for(Platform::host()).is_none() {
        said.push(format!("none for {}: hosts like this one compile the source", Platform::host()));
    }
    if wrong.is_empty() { ok("machine code", said.join(", ")) } else { all_failed("machine code", wrong) }
}

fn check_keys(evidence: &Evidence) -> Check {
    if evidence.signers.is_empty() {
        let mut said = vec!["no key that was named has signed it".to_owned()];
        said.extend(evidence.disregarded.iter().cloned());
        return all_failed("signatures", said);
    }
    let signers: Vec<_> = evidence.signers.iter().map(|who| signer(who, None)).collect();
    ok("signatures", format!("good, by {}", signers.join(", ")))
}

/// What holds; whether that is enough is the trust policy's to say.
fn check_signatures(evidence: &Evidence, policy: &TrustPolicy) -> Check {
    let mut said: Vec<_> =
        evidence.signers.iter().map(|who| format!("good, by {}", signer(who, policy.name_of(who)))).collect();
    said.extend(
        evidence
            .provenance
            .iter()
            .map(|built| format!("provenance, by {}", signer(&built.signer, policy.name_of(&built.signer)))),
    );
    if said.is_empty() {
        said.push("nobody whom the trust policy names has signed it".to_owned());
    }
    said.extend(evidence.disregarded.iter().map(|why| format!("disregarded: {why}")));
    Check { check: "signatures", verdict: Verdict::Noted, said }
}

fn check_succession(active: &Stored, stored: &Stored) -> Check {
    let (before, after) = (active.bundle.config.version, stored.bundle.config.version);
    let said = match after.cmp(&before) {
        _ if active.bundle.digest() == stored.bundle.digest() => {
            return ok("succession", "it is what serves now");
        }
        Ordering::Greater => return ok("succession", format!("version {before} -> {after}")),
        Ordering::Less => {
            format!(
                "bundle has version {after}, and {before} serves: older versions do not come back by themselves"
            )
        }
        Ordering::Equal => {
            format!(
                "bundle has version {after}, as what serves now has: what differs needs a version of its own"
            )
        }
    };
    failed("succession", said)
}

fn check_widening(active: &Stored, stored: &Stored) -> Check {
    let widenings = widenings(&active.bundle.config, &stored.bundle.config);
    if widenings.is_empty() {
        return ok("capabilities", "asks for no more than what serves now");
    }
    let said = widenings.iter().map(|change| super::diff::line(change).trim().to_owned()).collect();
    Check { check: "capabilities", verdict: Verdict::HeldBack, said }
}
