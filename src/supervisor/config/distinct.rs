//! What no two may share: roles their UIDs and GIDs, classes their caches, policies and data their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Identity;
use crate::decision::PolicyName;
use crate::document::{Complaints, Found};

/// Each role by itself, as a class or the frontend is called in the file.
pub(super) fn identities(complaints: &Complaints, identities: &[(String, Found<Identity>)]) {
    let (mut uids, mut gids) = (BTreeMap::new(), BTreeMap::new());
    let mut in_file_order: Vec<_> = identities.iter().collect();
    in_file_order.sort_by_key(|(_, identity)| identity.at);
    for (role, Found { value, at }) in in_file_order {
        if let Some(other) = uids.insert(value.uid, role) {
            complaints.add(*at, format!("uid: {role} has the same UID as {other}, {}", value.uid));
        }
        if let Some(other) = gids.insert(value.gid, role) {
            complaints.add(*at, format!("gid: {role} has the same GID as {other}, {}", value.gid));
        }
    }
}

/// Each class's, and the registry's own directory.
pub(super) fn caches(complaints: &Complaints, caches: &mut [Found<PathBuf>], state: Option<&Path>) {
    caches.sort_by_key(|cache| cache.at);
    for (index, cache) in caches.iter().enumerate() {
        if caches.iter().take(index).any(|earlier| earlier.value == cache.value) {
            complaints.add(cache.at, format!("cache: {:?} is another class's cache too", cache.value));
        }
        if state == Some(&cache.value) {
            complaints.add(cache.at, format!("cache: {:?} is the registry's state too", cache.value));
        }
    }
}

/// One tenant's policies and data lie side by side in the store, and people call them by one name.
pub(super) fn names(complaints: &Complaints, policies: &[Found<PolicyName>], data: &[Found<PolicyName>]) {
    for one in data {
        if policies.iter().any(|policy| policy.value == one.value) {
            let name = &one.value;
            complaints.add(one.at, format!("data: \"{name}\" is the name of a policy of this tenant"));
        }
    }
}
