//! The directory of tenants: `<tenant>.toml`, each with the keys of `[tenant.<name>]` and the state that it is in.
//!
//! Only what is active is served, so only of an active tenant every value has to make sense: what an operator has suspended, or
//! what failed to come about, is in nobody's way. A name that was removed is used up: its file stays.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::places::{self, Owners};
use super::read::{Known, Reader};
use super::{ConfigErrors, Surroundings, TenantConfig};
use crate::decision::{Tenant, TrustClass};
use crate::document::values::text;
use crate::document::{self, Complaints, Found};

/// Most bytes of all files together: as much as the configuration itself may have.
const ALL_MAX: usize = 16 << 20;
/// Longest cause that is shown, bytes.
const CAUSE_MAX: usize = 4096;
/// What a tenant's file ends with.
pub const EXTENSION: &str = ".toml";

/// Where a tenant is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantState {
    /// Its name is taken; it is not served yet.
    Pending,
    /// The only state in which it is served.
    Active,
    Suspended,
    /// The service refused it.
    Failed,
    /// Its name is used up.
    Removed,
}

impl TenantState {
    /// As it is written in the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Failed => "failed",
            Self::Removed => "removed",
        }
    }

    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let written = text(value)?;
        let all = [Self::Pending, Self::Active, Self::Suspended, Self::Failed, Self::Removed];
        all.into_iter().find(|state| state.word() == written).ok_or_else(|| {
            format!("{written:?} is no state; expected pending, active, suspended, failed or removed")
        })
    }
}

impl fmt::Display for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A tenant that has a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiledTenant {
    pub name: Tenant,
    pub path: PathBuf,
    pub state: TenantState,
    /// As far as it is written down.
    pub class: Option<TrustClass>,
    /// Why it is in that state, if somebody wrote it down.
    pub cause: Option<String>,
    /// What it would be served with. There always is one if it is active.
    pub tenant: Option<TenantConfig>,
}

/// All files of a directory.
#[derive(Debug, Default)]
pub(super) struct Filed {
    pub(super) tenants: Vec<FiledTenant>,
    pub(super) errors: Vec<ConfigErrors>,
}

/// Reads each file once. What is wrong with one says nothing of the others.
pub(super) fn read(directory: &Path, names: &[String], around: &Surroundings, known: &Known<'_>) -> Filed {
    let mut filed = Filed::default();
    let mut room = ALL_MAX;
    for file in names {
        let path = directory.join(file);
        let said = places::tenant(&path, Owners { uid: around.uid });
        match said.map_err(|why| ConfigErrors::whole_file(&path, why)).and_then(|text| {
            room = room.checked_sub(text.len()).ok_or_else(|| {
                let why = format!("all tenants' files together have more than {ALL_MAX} bytes");
                ConfigErrors::whole_file(&path, why)
            })?;
            one(&path, &text, around, known)
        }) {
            Ok(tenant) => filed.tenants.push(tenant),
            Err(errors) => filed.errors.push(errors),
        }
    }
    // "a-b.toml" comes before "a.toml".
    filed.tenants.sort_by(|a, b| a.name.cmp(&b.name));
    filed
}

/// Whether there is room for one more file, or for another text in one that is there.
pub(super) fn room(filed: &[FiledTenant], path: &Path, text: &str) -> Result<(), ConfigErrors> {
    let others = || filed.iter().filter(|one| one.path != path);
    let most = places::TENANT_FILES_MAX;
    let full = if others().count() >= most {
        format!(
            "there are {most} files of tenants already, and no more are read; names that are used up have one too"
        )
    } else {
        // What cannot be looked at is said elsewhere.
        let sizes = others()
            .map(|one| one.path.metadata().map_or(0, |of| usize::try_from(of.len()).unwrap_or(usize::MAX)));
        let all = sizes.fold(text.len(), usize::saturating_add);
        if all <= ALL_MAX {
            return Ok(());
        }
        format!("all tenants' files together would have {all} bytes, at most {ALL_MAX} are read")
    };
    Err(ConfigErrors::whole_file(path, full))
}

/// One file's text.
pub(super) fn one(
    path: &Path,
    text: &str,
    around: &Surroundings,
    known: &Known<'_>,
) -> Result<FiledTenant, ConfigErrors> {
    let tenant_name = named(path).map_err(|why| ConfigErrors::whole_file(path, why))?;
    let (tenant, said) = document::read(path, text, |document, complaints| {
        let reader = Reader::new(complaints, around);
        let state = document.required("state", TenantState::read)?.value;
        let cause = document.optional("cause", cause);
        if state != TenantState::Active {
            // Judged when it is to be active again.
            let class = document.written("class").and_then(|class| class.parse().ok());
            document.leave_rest();
            return Some((state, class, cause, None));
        }
        let title = Found { value: tenant_name.as_str(), at: 0 };
        let tenant = reader.tenant(title, document, known)?;
        Some((state, Some(tenant.class.clone()), cause, Some(tenant)))
    })?;
    said?;
    let (state, class, cause, tenant) = tenant;
    let cause = cause.map(|cause| cause.value);
    Ok(FiledTenant { name: tenant_name, path: path.to_owned(), state, class, cause, tenant })
}

fn cause(value: &DeValue<'_>) -> Result<String, String> {
    let written = text(value)?;
    if written.len() > CAUSE_MAX {
        return Err(format!("is longer than {CAUSE_MAX} bytes"));
    }
    Ok(written.to_owned())
}

/// Whose file it is.
fn named(path: &Path) -> Result<Tenant, String> {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(name) = file.strip_suffix(EXTENSION) else {
        return Err("is no tenant's file; expected <tenant>.toml".to_owned());
    };
    name.parse().map_err(|why| format!("is no tenant's file: {why}"))
}

/// A name has one place, and one that is used up has none. Complains in the configuration, at the tenants' tables there.
pub(super) fn once(complaints: &Complaints, tables: &[Found<String>], filed: &[FiledTenant]) {
    let files: BTreeMap<&str, &FiledTenant> = filed.iter().map(|one| (one.name.as_str(), one)).collect();
    for table in tables {
        let Some(file) = files.get(table.value.as_str()) else { continue };
        let (name, path) = (&table.value, &file.path);
        complaints.add(
            table.at,
            match file.state {
                TenantState::Removed => format!(
                    "tenant \"{name}\" was removed ({path:?} says so), and a name is never used again; choose another name"
                ),
                _ => format!("tenant \"{name}\" is also in {path:?}; keep one of the two"),
            },
        );
    }
}
