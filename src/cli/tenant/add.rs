//! `portcullis tenant add`

use std::process::ExitCode;

use clap::Args;

use super::EXIT_CODES;
use super::change::{Change, Reach, TenantError};
use super::file::quoted;
use super::states::report;
use crate::cli::{CommandResult, complain};
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::supervisor::config::TenantState;

/// Put a tenant in place, and have the service serve it
///
/// Writes its file into the directory that `tenants` of [service] names, reloads, and waits. A service that refuses it goes on as
/// before, and the file says why. What is not said here has its default; every key is in docs/configuration.md. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Add {
    /// Its name, which nobody ever had
    #[arg(value_name = "NAME")]
    tenant: Tenant,
    /// Its trust class: with whom it may share a process
    #[arg(long, value_name = "NAME")]
    class: TrustClass,
    /// A policy that decides for it; may be given several times
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<PolicyName>,
    /// A data snapshot that its policies read; may be given several times
    #[arg(long, value_name = "NAME")]
    data: Vec<PolicyName>,
    /// A UID that may ask for it; may be given several times
    #[arg(long = "uid", value_name = "UID", required_unless_present = "gids")]
    uids: Vec<u32>,
    /// A GID that may ask for it; may be given several times
    #[arg(long = "gid", value_name = "GID")]
    gids: Vec<u32>,
    /// Its plan: what it may use [default: the plan "default", if there is one]
    #[arg(long, value_name = "NAME")]
    plan: Option<String>,
    /// Its share of the processor against others [default: its plan's]
    #[arg(long, value_name = "1..1000")]
    weight: Option<u32>,
    /// Longest a decision may take: "100ms"
    #[arg(long, value_name = "TIME")]
    max_deadline: Option<String>,
    /// Where the client says nothing: "20ms"
    #[arg(long, value_name = "TIME")]
    default_deadline: Option<String>,
    /// Any other key of its table: memory=2MiB; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Add {
    pub(super) fn run(self) -> CommandResult {
        self.add().or_else(|error| complain(&error, error.exit_code()))
    }

    fn add(&self) -> Result<ExitCode, TenantError> {
        let change = self.reach.begin()?;
        let text = self.text();
        self.is_free(&change)?;
        change.judge(&self.tenant, &text)?;
        let outcome = change.put(&self.tenant, &text)?;
        report(&change, &self.tenant, &outcome, self.json)
    }

    /// Nobody has the name, nor had it.
    fn is_free(&self, change: &Change) -> Result<(), TenantError> {
        let (tenant, path) = (&self.tenant, change.directory.file_of(&self.tenant));
        let taken = |why: String| Err(TenantError::Refused(why));
        if change.config.tenants.iter().any(|one| one.name == *tenant) && change.filed(tenant).is_none() {
            return taken(format!("tenant {tenant} is in the configuration already"));
        }
        match change.filed(tenant).map(|one| one.state) {
            Some(TenantState::Removed) => taken(format!(
                "tenant {tenant} was removed ({path:?} says so), and a name is never used again: choose another name"
            )),
            Some(state) => taken(format!("tenant {tenant} is there already, {state}: see {path:?}")),
            None if change.directory.read(tenant)?.is_some() => {
                taken(format!("{path:?} is there, and makes no sense: mend or remove it"))
            }
            None => Ok(()),
        }
    }

    /// As an operator would write it.
    fn text(&self) -> String {
        let names = |key: &str, names: &[PolicyName]| {
            let names: Vec<String> = names.iter().map(|name| quoted(name.as_str())).collect();
            format!("{key} = [{}]\n", names.join(", "))
        };
        let ids = |key: &str, ids: &[u32]| {
            if ids.is_empty() { String::new() } else { format!("{key} = {ids:?}\n") }
        };
        let text = |key: &str, text: &Option<String>| {
            text.as_ref().map(|text| format!("{key} = {}\n", quoted(text))).unwrap_or_default()
        };
        let mut lines = format!("state = \"active\"\nclass = {}\n", quoted(self.class.as_str()));
        lines += &names("policies", &self.policies);
        if !self.data.is_empty() {
            lines += &names("data", &self.data);
        }
        lines += &ids("uids", &self.uids);
        lines += &ids("gids", &self.gids);
        lines += &text("plan", &self.plan);
        lines += &self.weight.map(|weight| format!("weight = {weight}\n")).unwrap_or_default();
        lines += &text("max_deadline", &self.max_deadline);
        lines += &text("default_deadline", &self.default_deadline);
        lines + &self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>()
    }
}

/// A number as it is, anything else as text.
fn setting(written: &str) -> Result<(String, String), String> {
    let (key, value) = written.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
        return Err("expected a key of a-z and _ before the =".to_owned());
    }
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    Ok((key.to_owned(), if is_number { value.to_owned() } else { quoted(value) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_one_value_and_nothing_more() {
        let said = |text: &str| setting(text).map(|(key, value)| format!("{key} = {value}"));
        assert_eq!(said("memory=2MiB").unwrap(), "memory = \"2MiB\"");
        assert_eq!(said("host_calls=10").unwrap(), "host_calls = 10");
        assert_eq!(said("memory=1\"\nuids = [0]").unwrap(), "memory = \"1\\\"\\nuids = [0]\"");
        for wrong in ["memory", "=1", "a\nb=1", "a.b=1", "[x]=1"] {
            assert!(setting(wrong).is_err(), "{wrong:?}");
        }
    }
}
