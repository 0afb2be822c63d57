//! `portcullis tenant list` and `show`: as it is written down, without asking the service.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::change::TenantError;
use super::directory::{file_of, intent};
use crate::cli::policy::service::{Where, configuration};
use crate::cli::terminal::{paragraph, printable, table};
use crate::cli::{CommandResult, EXIT_CODES, complain, output};
use crate::decision::Tenant;
use crate::supervisor::config::{Config, FiledTenant, TenantConfig, TenantState};

/// Show all tenants: what state each is in, its class and its plan
///
/// Those with a file of their own and those of the configuration. Says what an interrupted command has left unfinished.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct List {
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = ["pending", "active", "suspended", "failed", "removed"])]
    state: Option<String>,
    #[command(flatten)]
    place: Where,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show one tenant: everything that is written down of it
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Show {
    /// The tenant
    #[arg(value_name = "NAME")]
    tenant: Tenant,
    #[command(flatten)]
    place: Where,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One of them, from wherever it is.
struct Row<'c> {
    name: &'c Tenant,
    state: TenantState,
    filed: Option<&'c FiledTenant>,
    config: Option<&'c TenantConfig>,
}

impl List {
    pub(super) fn run(self) -> CommandResult {
        self.list().or_else(|error| complain(&error, error.exit_code()))
    }

    fn list(&self) -> Result<ExitCode, TenantError> {
        let config = configuration(&self.place.config)?;
        let mut rows = rows(&config);
        rows.retain(|row| self.state.as_deref().is_none_or(|state| state == row.state.word()));
        let unfinished = unfinished(&config)?;
        if self.json {
            let tenants: Vec<Value> = rows.iter().map(Row::json).collect();
            output::json(&json!({ "tenants": tenants, "unfinished": unfinished.map(|(json, _)| json) }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let shown: Vec<[String; 6]> = rows.iter().map(Row::columns).collect();
        let text = match shown.is_empty() {
            true => "no tenants\n".to_owned(),
            false => table(0, ["TENANT", "STATE", "CLASS", "PLAN", "WEIGHT", "POLICIES"], &shown),
        };
        output::text(format_args!("{text}{}", unfinished.map(|(_, text)| text).unwrap_or_default()))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    pub(super) fn run(self) -> CommandResult {
        self.show().or_else(|error| complain(&error, error.exit_code()))
    }

    fn show(&self) -> Result<ExitCode, TenantError> {
        let config = configuration(&self.place.config)?;
        let rows = rows(&config);
        let row = rows.iter().find(|row| *row.name == self.tenant).ok_or_else(|| {
            TenantError::Refused(format!(
                "there is no tenant {}; `portcullis tenant list` shows who there is",
                self.tenant
            ))
        })?;
        let unfinished = unfinished(&config)?;
        if self.json {
            let mut said = row.json();
            if let (Value::Object(fields), Some((json, _))) = (&mut said, &unfinished) {
                fields.insert("unfinished".to_owned(), json.clone());
            }
            output::json(&said)?;
        } else {
            let text = row.lines() + &unfinished.map(|(_, text)| text).unwrap_or_default();
            output::text(format_args!("{text}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn rows(config: &Config) -> Vec<Row<'_>> {
    let filed = config.filed.iter().map(|one| Row {
        name: &one.name,
        state: one.state,
        filed: Some(one),
        config: one.tenant.as_ref(),
    });
    let has_file = |name: &Tenant| config.filed.binary_search_by(|one| one.name.cmp(name)).is_ok();
    let others = config.tenants.iter().filter(|one| !has_file(&one.name)).map(|one| Row {
        name: &one.name,
        state: TenantState::Active,
        filed: None,
        config: Some(one),
    });
    let mut rows: Vec<Row<'_>> = filed.chain(others).collect();
    rows.sort_by_key(|row| row.name);
    rows
}

/// What a command has begun, if it has not ended.
fn unfinished(config: &Config) -> Result<Option<(Value, String)>, TenantError> {
    let Some(directory) = &config.service.tenants else { return Ok(None) };
    let Some(intent) = intent(directory)? else { return Ok(None) };
    let (verb, path) = (intent.operation.word(), file_of(directory, &intent.tenant));
    let text = format!(
        "{verb} of tenant {} ({}) is under way, or was interrupted: the next add, suspend, resume or remove takes it up",
        intent.tenant,
        path.display()
    );
    Ok(Some((json!(intent), paragraph("unfinished", &text))))
}

impl Row<'_> {
    fn class(&self) -> Option<String> {
        let filed = self.filed.and_then(|one| one.class.as_ref());
        self.config.map(|one| &one.class).or(filed).map(ToString::to_string)
    }

    fn columns(&self) -> [String; 6] {
        let none = || "-".to_owned();
        let of = |show: &dyn Fn(&TenantConfig) -> String| self.config.map_or_else(none, show);
        [
            self.name.to_string(),
            self.state.to_string(),
            self.class().unwrap_or_else(none),
            of(&|one| one.plan.clone().unwrap_or_else(none)),
            of(&|one| one.weight.to_string()),
            of(&|one| one.policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ]
    }

    fn json(&self) -> Value {
        let config = self.config.map(|one| {
            json!({
                "policies": one.policies, "data": one.data, "uids": one.uids, "gids": one.gids,
                "plan": one.plan, "weight": one.weight,
                "max_deadline_us": u64::try_from(one.max_deadline.as_micros()).unwrap_or(u64::MAX),
                "default_deadline_us": u64::try_from(one.default_deadline.as_micros()).unwrap_or(u64::MAX),
            })
        });
        json!({
            "tenant": self.name, "state": self.state, "class": self.class(),
            "file": self.filed.map(|one| one.path.display().to_string()),
            "cause": self.filed.and_then(|one| one.cause.clone()),
            "served_with": config,
        })
    }

    fn lines(&self) -> String {
        let names = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        let mut text = format!("{}: {}\n", self.name, self.state);
        if let Some(cause) = self.filed.and_then(|one| one.cause.as_deref()) {
            text += &paragraph("  cause    ", &printable(cause));
        }
        let file = self.filed.map_or_else(
            || format!("the configuration, [tenant.{}]", self.name),
            |one| one.path.display().to_string(),
        );
        text += &format!("  written in {file}\n");
        if let Some(class) = self.class() {
            text += &format!("  class      {class}\n");
        }
        if let Some(one) = self.config {
            let shown =
                |names: &[crate::decision::PolicyName]| names.iter().map(ToString::to_string).collect();
            let ids = |ids: &[u32]| ids.iter().map(ToString::to_string).collect();
            text += &paragraph("  policies  ", &names(shown(&one.policies)));
            if !one.data.is_empty() {
                text += &paragraph("  data      ", &names(shown(&one.data)));
            }
            text += &paragraph("  uids      ", &names(ids(&one.uids)));
            if !one.gids.is_empty() {
                text += &paragraph("  gids      ", &names(ids(&one.gids)));
            }
            text += &format!("  plan       {}\n", one.plan.as_deref().unwrap_or("none"));
            text += &format!("  weight     {}\n", one.weight);
            text += &format!("  deadlines  {:?}, at most {:?}\n", one.default_deadline, one.max_deadline);
        }
        text
    }
}
