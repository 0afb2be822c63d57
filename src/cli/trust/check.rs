//! `portcullis trust check`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::{class_of, read_trust};
use crate::cli::policy::stored::{Stored, signer};
use crate::cli::terminal::{paragraph, printable};
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::decision::{Tenant, TrustClass};
use crate::trust::{Candidate, REVOCATIONS_MAX, Revocations};

/// Say everything that is wrong with a trust policy, each at its line and column
///
/// With --bundle also whether it would accept that bundle, and every reason why not.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Check {
    /// The trust policy
    trust: PathBuf,
    /// A bundle to hold to it; `portcullis policy verify` looks at more of it
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Who the bundle has to decide for [default: whoever it says]
    #[arg(long, value_name = "NAME", requires = "bundle")]
    tenant: Option<Tenant>,
    /// The tenant's trust class, where there are rules for classes
    #[arg(long, value_name = "NAME", requires = "bundle")]
    class: Option<TrustClass>,
    /// The signed list of what was revoked
    #[arg(long, value_name = "FILE")]
    revocations: Option<PathBuf>,
    /// As if it were this time, such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("check {trust:?}: it expired at {at}: look through it and move \"expires\"")]
    Expired { trust: PathBuf, at: Timestamp },
    #[error(
        "check {trust:?}: it has rules for classes and none for tenant \"{tenant}\"; say its class with --class"
    )]
    Class { trust: PathBuf, tenant: Tenant },
    #[error("check {trust:?}: it does not accept bundle {bundle:?}, for {reasons} reasons")]
    Bundle { trust: PathBuf, bundle: PathBuf, reasons: usize },
}

impl Check {
    pub(super) fn run(self) -> CommandResult {
        let policy = read_trust(&self.trust)?;
        let now = self.at.unwrap_or_else(Timestamp::now);
        let revoked = match &self.revocations {
            None => Revocations::none(),
            Some(path) => Revocations::none().verify(&files::read(path, REVOCATIONS_MAX)?, &policy, now)?,
        };
        let Some(path) = &self.bundle else {
            if let Some(at) = policy.expires().filter(|at| *at <= now) {
                return Err(Refused::Expired { trust: self.trust, at }.into());
            }
            if self.json {
                output::json(&json!({
                    "path": self.trust, "expires": policy.expires(), "may_revoke": policy.has_revocation(),
                    "revocations": revoked.version(),
                }))?;
            } else {
                let until =
                    policy.expires().map_or_else(|| "does not expire".into(), |at| format!("until {at}"));
                output::text(format_args!("good     {} ({until})\n", self.trust.display()))?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let stored = Stored::open(path)?;
        let config = &stored.bundle.config;
        let tenant = self.tenant.as_ref().unwrap_or(&config.tenant);
        let Some(class) = class_of(self.class.as_ref(), &policy, tenant) else {
            return Err(Refused::Class { trust: self.trust, tenant: tenant.clone() }.into());
        };
        let evidence = stored.evidence(&policy.anchors());
        let candidate = Candidate { tenant, class: &class, bundle: stored.bundle.digest(), config };
        let verdict = policy.evaluate(&candidate, &evidence, &revoked, now);
        let refusals: Vec<_> =
            verdict.as_ref().err().into_iter().flatten().map(ToString::to_string).collect();
        if self.json {
            let accepted = verdict.as_ref().ok();
            output::json(&json!({
                "path": self.trust, "bundle": stored.bundle.digest(), "accepted": accepted.is_some(),
                "rule": accepted.map(|accepted| &accepted.rule),
                "signers": accepted.map(|accepted| &accepted.signers),
                "built_by": accepted.and_then(|accepted| accepted.built_by.as_ref()),
                "until": accepted.and_then(|accepted| accepted.until),
                "refusals": refusals, "evidence": evidence,
            }))?;
        } else {
            let signed: String = evidence
                .signers
                .iter()
                .map(|who| format!("signed    {}\n", signer(who, policy.name_of(who))))
                .collect();
            let verdict = match &verdict {
                Ok(accepted) => {
                    let until = accepted.until.map_or(String::new(), |until| format!(", until {until}"));
                    format!("accepted  by {}{until}\n", printable(&accepted.rule))
                }
                Err(_) => refusals.iter().map(|why| paragraph("refused ", &printable(why))).collect(),
            };
            output::text(format_args!("bundle    {}\n{signed}{verdict}", stored.bundle.digest()))?;
        }
        match refusals.len() {
            0 => Ok(ExitCode::SUCCESS),
            reasons => Err(Refused::Bundle { trust: self.trust, bundle: path.clone(), reasons }.into()),
        }
    }
}
