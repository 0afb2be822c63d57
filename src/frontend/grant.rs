//! Who may ask for whom: the configuration's lists, and what follows from them for one peer.

use std::collections::HashMap;

use tracing::warn;

use super::peer::Peer;
use crate::decision::{NAME_MAX, Tenant, TrustClass};
use crate::wire::client::Farewell;
use crate::wire::control::TenantGrant;
use crate::wire::handover::HANDOVER_MAX;

/// Bytes of tenant names that one grant may have, each with its length; the rest of the message fits behind it.
const GRANT_MAX: usize = HANDOVER_MAX - 4 * NAME_MAX;

/// Everyone's grants.
#[derive(Debug, Default)]
pub(super) struct Grants {
    tenants: HashMap<Tenant, Granted>,
    classes: HashMap<TrustClass, Vec<Tenant>>,
}

#[derive(Debug)]
struct Granted {
    class: TrustClass,
    uids: Vec<u32>,
    gids: Vec<u32>,
}

/// What a peer is granted: one class, and of its tenants those it may ask for. Never empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) class: TrustClass,
    pub(super) tenants: Vec<Tenant>,
}

impl Grants {
    pub(super) fn new(tenants: Vec<TenantGrant>) -> Self {
        let mut grants = Self::default();
        for TenantGrant { tenant, class, mut uids, mut gids } in tenants {
            uids.sort_unstable();
            gids.sort_unstable();
            grants.classes.entry(class.clone()).or_default().push(tenant.clone());
            grants.tenants.insert(tenant, Granted { class, uids, gids });
        }
        grants
    }

    /// For a client that says it is here for `tenant`. Who may not ask for it is not told whether there is such a tenant.
    pub(super) fn for_tenant(&self, tenant: &str, peer: Peer, groups: &[u32]) -> Result<Grant, Farewell> {
        let granted = self.tenants.get_key_value(tenant).filter(|(_, granted)| granted.to(peer, groups));
        let (tenant, granted) = granted.ok_or(Farewell::NotPermitted)?;
        Ok(self.collect(&granted.class, Some(tenant), peer, groups))
    }

    /// For a connection that has been greeted before and belongs to `class`.
    pub(super) fn for_class(
        &self,
        class: &TrustClass,
        peer: Peer,
        groups: &[u32],
    ) -> Result<Grant, Farewell> {
        let grant = self.collect(class, None, peer, groups);
        if grant.tenants.is_empty() { Err(Farewell::NotPermitted) } else { Ok(grant) }
    }

    /// The tenant that was asked for comes first, so that it is among those that fit.
    fn collect(&self, class: &TrustClass, first: Option<&Tenant>, peer: Peer, groups: &[u32]) -> Grant {
        let others = self.classes.get(class).into_iter().flatten().filter(|tenant| {
            Some(*tenant) != first
                && self.tenants.get(*tenant).is_some_and(|granted| granted.to(peer, groups))
        });
        let mut room = GRANT_MAX;
        let mut tenants = Vec::new();
        for tenant in first.into_iter().chain(others) {
            let Some(left) = room.checked_sub(tenant.as_str().len() + 1) else {
                warn!(%class, uid = peer.uid, tenants = tenants.len(), "grant does not fit one message; the rest is refused");
                break;
            };
            room = left;
            tenants.push(tenant.clone());
        }
        Grant { class: class.clone(), tenants }
    }
}

impl Granted {
    fn to(&self, peer: Peer, groups: &[u32]) -> bool {
        let listed = |list: &[u32], id: u32| is_somebody(id) && list.binary_search(&id).is_ok();
        is_somebody(peer.uid)
            && (listed(&self.uids, peer.uid)
                || listed(&self.gids, peer.gid)
                || groups.iter().any(|gid| listed(&self.gids, *gid)))
    }
}

/// False for "nobody", which is also what the kernel shows for every ID that has no mapping here, and for "no ID".
fn is_somebody(id: u32) -> bool {
    const OVERFLOW_ID: u32 = 65_534;
    id != OVERFLOW_ID && id != u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    fn tenant(name: &str, class: &str, uids: &[u32], gids: &[u32]) -> TenantGrant {
        TenantGrant {
            tenant: Tenant::new(name).unwrap(),
            class: TrustClass::new(class).unwrap(),
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        }
    }

    fn names(grant: &Grant) -> Vec<&str> {
        grant.tenants.iter().map(Tenant::as_str).collect()
    }

    fn grants() -> Grants {
        Grants::new(vec![
            tenant("acme", "gold", &[1000], &[]),
            tenant("apex", "gold", &[1000, 1001], &[]),
            tenant("bolt", "gold", &[], &[70]),
            tenant("crow", "iron", &[1000], &[]),
        ])
    }

    #[test]
    fn a_grant_is_every_tenant_of_the_class_that_the_peer_may_ask_for() {
        let peer = Peer { uid: 1000, gid: 5 };
        let grant = grants().for_tenant("apex", peer, &[70]).unwrap();
        assert_eq!((grant.class.as_str(), names(&grant)), ("gold", vec!["apex", "acme", "bolt"]));
        let peer = Peer { uid: 1001, gid: 70 };
        assert_eq!(names(&grants().for_tenant("bolt", peer, &[]).unwrap()), ["bolt", "apex"]);
    }

    #[test]
    fn who_is_not_listed_is_refused() {
        let peer = Peer { uid: 1001, gid: 5 };
        assert_eq!(grants().for_tenant("acme", peer, &[]), Err(Farewell::NotPermitted));
        assert_eq!(grants().for_tenant("nope", peer, &[]), Err(Farewell::NotPermitted));
        assert_eq!(grants().for_tenant("Not A Name", peer, &[]), Err(Farewell::NotPermitted));
        assert_eq!(
            grants().for_class(&TrustClass::new("iron").unwrap(), peer, &[]),
            Err(Farewell::NotPermitted)
        );
    }

    #[test]
    fn nobody_is_never_granted() {
        let everyone = [65_534, u32::MAX, 7];
        let grants = Grants::new(vec![tenant("acme", "gold", &everyone, &everyone)]);
        assert!(grants.for_tenant("acme", Peer { uid: 7, gid: 0 }, &[]).is_ok(), "the control");
        assert!(grants.for_tenant("acme", Peer { uid: 8, gid: 7 }, &[]).is_ok(), "the control");
        for uid in [65_534, u32::MAX] {
            assert!(grants.for_tenant("acme", Peer { uid, gid: 7 }, &[7]).is_err());
            assert!(grants.for_tenant("acme", Peer { uid: 8, gid: uid }, &[uid]).is_err());
        }
    }

    #[test]
    fn a_grant_fits_one_message_and_has_the_tenant_asked_for() {
        let many = (0..3000).map(|i| tenant(&format!("{i:0>60}"), "gold", &[7], &[])).collect();
        let last = format!("{:0>60}", 2999);
        let grant = Grants::new(many).for_tenant(&last, Peer { uid: 7, gid: 7 }, &[]).unwrap();
        assert_eq!(grant.tenants[0].as_str(), last);
        assert!(frame::encode(&grant.tenants, HANDOVER_MAX - 2 * NAME_MAX).is_ok());
    }
}
