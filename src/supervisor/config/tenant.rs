//! One tenant: `[tenant.<name>]`, or its own file.

use std::time::Duration;

use super::read::{Known, Reader, plain};
use super::values::grantable_id;
use super::{TenantConfig, ceilings, distinct};
use crate::decision::{PolicyName, TrustClass};
use crate::document::values::{duration, name, number, text};
use crate::document::{Found, Section};

const MICROSECOND: Duration = Duration::from_micros(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);

/// No tenant's name.
const OTHER: &str = "other";

impl<'d> Reader<'_, 'd> {
    /// Who has read it asks for no other key of it.
    pub(super) fn tenant(
        &self,
        title: Found<&str>,
        section: &mut Section<'d>,
        known: &Known<'_>,
    ) -> Option<TenantConfig> {
        let Known { classes, identities, plans } = known;
        let tenant_name = self.look(title.at, title.value.parse().map_err(|why| format!("{why}")));
        if title.value == OTHER {
            self.complain(
                title.at,
                format!("{OTHER}: telemetry calls so whoever is beyond its limit of tenants"),
            );
        }
        let class = section.required("class", name::<TrustClass>);
        let policies = section.list("policies", name);
        let data = section.list("data", name::<PolicyName>).unwrap_or_default();
        let (uids, gids) = (section.list("uids", grantable_id), section.list("gids", grantable_id));
        let plan = plans.of(self.complaints, section.optional("plan", text));
        let weight = section.defaulted("weight", plan.weight, number(1..=1000));
        let longest = duration(100 * MICROSECOND..=MINUTE);
        let max = section.defaulted("max_deadline", 100 * MILLISECOND, &longest);
        let default = section.optional("default_deadline", &longest);
        let ceiling = ceilings::read(section, &ceilings::MOST);
        if policies.is_none() {
            section.missing("policies");
        }
        if uids.is_none() && gids.is_none() {
            section.missing("uids\" or \"gids");
        }

        distinct::names(self.complaints, policies.as_deref().unwrap_or_default(), &data);
        if let Some(class) = &class
            && !classes.iter().any(|title| title.value == class.value.as_str())
        {
            self.complain(class.at, format!("class: there is no [class.{}]", class.value));
        }
        if self.distinct() {
            for uid in uids.iter().flatten() {
                if let Some((role, _)) = identities.iter().find(|(_, role)| role.value.uid == uid.value) {
                    let message = format!("uids: {} is the UID of {role}, which may not ask", uid.value);
                    self.complain(uid.at, message);
                }
            }
        }
        if let (Some(max), Some(default)) = (&max, &default)
            && default.value > max.value
        {
            let message = format!("default_deadline: is longer than max_deadline, {:?}", max.value);
            self.complain(default.at, message);
        }
        let max_deadline = max?.value;
        Some(TenantConfig {
            name: tenant_name?,
            class: class?.value,
            policies: plain(policies?),
            data: plain(data),
            uids: plain(uids.unwrap_or_default()),
            gids: plain(gids.unwrap_or_default()),
            weight: weight?.value,
            max_deadline,
            default_deadline: default.map_or((20 * MILLISECOND).min(max_deadline), |found| found.value),
            ceiling: ceiling?,
            plan: plan.name.clone(),
            quotas: plan.quotas.clone(),
        })
    }
}
