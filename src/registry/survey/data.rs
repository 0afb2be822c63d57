//! Data that policies read: its table, opened and looked at; and which of it serves when a policy comes to its turn.

use std::sync::Arc;

use super::served::shelved;
use super::{Key, Served, Standing, Survey};
use crate::artifact::SealedBytes;
use crate::bundle::confidential::{LayerOf, decrypt};
use crate::bundle::{Descriptor, Kind, Layout, PolicyConfig};
use crate::ledger::Entry;
use crate::registry::state::State;
use crate::table::Table;

impl Survey {
    /// The data that a policy reads, all of it.
    ///
    /// # Errors
    /// When some of it does not serve: then the policy does not either.
    pub(super) fn data_of(
        &self,
        policy: &Key,
        config: &PolicyConfig,
    ) -> Result<Vec<(Key, Arc<Served>)>, String> {
        config.data.iter().map(|name| self.data(policy, name)).collect()
    }

    fn data(&self, (tenant, policy): &Key, name: &str) -> Result<(Key, Arc<Served>), String> {
        let unknown = || {
            format!(
                "policy \"{policy}\" reads data \"{name}\", which its tenant does not have: add it to `data` in \
                 [tenant.{tenant}] and deliver it"
            )
        };
        let key = (tenant.clone(), name.parse().map_err(|_| unknown())?);
        // Data comes before every policy, so it is known by now how it stands.
        match self.standings.get(&key) {
            Some(Standing::Serves(data)) if data.config.kind() == Kind::Data => {
                Ok((key, Arc::new((**data).clone())))
            }
            Some(Standing::Refused { kind: Kind::Data, why, .. }) => {
                Err(format!("policy \"{policy}\" reads data \"{name}\", which does not serve: {why}"))
            }
            _ => Err(unknown()),
        }
    }

    /// The plain table of a kept snapshot, in sealed memory.
    pub(super) fn table(&self, state: &State, entry: &Entry) -> Result<Arc<SealedBytes>, String> {
        if let Some(table) = self.shelf.get(&shelved(entry)) {
            return Ok(Arc::clone(table));
        }
        let layout = state.layout(entry.bundle).map_err(|error| error.to_string())?;
        let bundle = layout.read().map_err(|error| format!("kept bundle {}: {error}", entry.bundle))?;
        let table = self.plain(&layout, &bundle.source, LayerOf::Source(&entry.config))?;
        let bytes = table.to_vec().map_err(|error| error.to_string())?;
        Table::check(bytes).map_err(|error| error.to_string())?;
        Ok(table)
    }

    /// A layer in sealed memory, opened if it is encrypted. Nothing of it is written anywhere else.
    pub(super) fn plain(
        &self,
        layout: &Layout,
        blob: &Descriptor,
        layer: LayerOf<'_>,
    ) -> Result<Arc<SealedBytes>, String> {
        let sealed = layout.sealed(blob).map_err(|error| error.to_string())?;
        let Some(id) = &layer.config().confidential else { return Ok(Arc::new(sealed)) };
        let keys = self.setting.secrets.as_ref().map_err(Clone::clone)?;
        decrypt(keys, id, layer, &sealed).map(Arc::new).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::artifact::{Digest, PublicKey, verify_data};
    use crate::bundle::{DataDraft, Draft, SecretKey};
    use crate::decision::{PolicyName, Tenant};
    use crate::ledger::{Order, Target, What};
    use crate::registry::tests::{World, key, sign};
    use crate::table::Builder;
    use crate::trust::Revokes;
    use crate::wire::control::{RegistryTenant, SecretText};

    fn table(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = Builder::default();
        for (key, value) in entries {
            builder.add(*key, *value).unwrap();
        }
        builder.build()
    }

    /// A tenant with one policy and one snapshot, which nobody has delivered yet.
    fn world() -> World {
        let mut world = World::with(&["gate"]);
        world.assignment.tenants[0].data = vec![key("prices").1];
        world
    }

    fn deliver(world: &World, version: u64, bytes: Vec<u8>, secret: Option<&SecretKey>) -> Digest {
        let (tenant, name) = key("prices");
        let assembled = DataDraft { name, tenant, version, table: bytes }.assemble(secret).unwrap();
        let path = world.bundle_path("prices");
        crate::bundle::write::create(&assembled, &path).unwrap();
        sign(&path, &world.release);
        assembled.digest()
    }

    fn prices(world: &World, version: u64) -> Digest {
        deliver(world, version, table(&[("eur", &version.to_string())]), None)
    }

    /// A policy that reads it.
    fn reader(version: u64) -> Draft {
        Draft { data: vec!["prices".into()], ..World::draft("gate", version) }
    }

    /// The version of the data that a policy is given.
    fn reads(world: &World) -> Option<u64> {
        match world.standing("gate") {
            Standing::Serves(served) => Some(served.reads[0].1.config.version),
            Standing::Refused { .. } => None,
        }
    }

    fn served(world: &World, name: &str) -> Served {
        match world.standing(name) {
            Standing::Serves(served) => (**served).clone(),
            Standing::Refused { why, .. } => panic!("{why}"),
        }
    }

    #[test]
    fn data_becomes_active_like_a_policy_and_the_last_good_one_serves() {
        let mut world = world();
        prices(&world, 1);
        world.deliver(reader(1));
        world.survey();
        assert_eq!(
            (world.serves("prices"), world.serves("gate"), reads(&world)),
            (Some(1), Some(1), Some(1))
        );
        prices(&world, 2);
        world.survey();
        assert_eq!(reads(&world), Some(2), "the policy is the same, what it reads is newer");
        assert_eq!(world.asked, ["compile"], "and nothing was built for it");
        // Older, not signed by anybody who is known, no table, broken.
        prices(&world, 1);
        world.survey();
        assert!(
            world.why("prices").contains("version 1, and 2 was active already"),
            "{}",
            world.why("prices")
        );
        deliver(&world, 3, b"portcullis-table, or so it says".to_vec(), None);
        world.survey();
        assert!(world.why("prices").contains("data is no table"), "{}", world.why("prices"));
        let mut lies = table(&[("eur", "3")]);
        lies[48] = 200;
        deliver(&world, 3, lies, None);
        world.survey();
        assert!(
            world.why("prices").contains("its key ends at 200, expected 1 to 3"),
            "{}",
            world.why("prices")
        );
        fs::write(world.bundle_path("prices").join("index.json"), b"{}").unwrap();
        world.survey();
        assert_eq!((world.serves("prices"), reads(&world)), (Some(2), Some(2)), "the last good one");
        world.restart();
        world.survey();
        assert_eq!(reads(&world), Some(2), "from the state");
        fs::remove_dir_all(world.bundle_path("prices")).unwrap();
        prices(&world, 3);
        world.survey();
        assert_eq!(reads(&world), Some(3), "control");
        let what: Vec<_> =
            world.happened("prices").into_iter().filter(|(what, _)| *what == What::Activated).collect();
        assert_eq!(what, [1, 2, 3].map(|version| (What::Activated, Some(version))));
    }

    #[test]
    fn what_is_sent_is_what_this_host_signed_for_that_tenant() {
        let mut world = world();
        prices(&world, 1);
        world.survey();
        let served = served(&world, "prices");
        let key_of_host =
            PublicKey::from_pem(&world.state.as_ref().unwrap().key().public_key().to_pem().unwrap());
        let (tenant, name) = key("prices");
        let sealed = served.code.try_clone().unwrap();
        let verified =
            verify_data(sealed, &served.signed, &[key_of_host.unwrap()], (&tenant, &name)).unwrap();
        assert_eq!((verified.statement().version, verified.statement().bundle), (1, served.bundle));
        assert_eq!(verified.bytes().to_vec().unwrap(), table(&[("eur", "1")]));
    }

    #[test]
    fn a_policy_whose_data_is_missing_does_not_serve_and_a_newer_one_does_not_take_its_place() {
        let mut world = world();
        world.deliver(reader(1));
        world.survey();
        assert_eq!(world.serves("gate"), None);
        let why = world.why("gate");
        assert!(
            why.contains("reads data \"prices\", which does not serve: nothing is in the store"),
            "{why}"
        );
        prices(&world, 1);
        world.survey();
        assert_eq!(world.serves("gate"), Some(1), "control");
        // A newer one that wants more waits, and the one before serves.
        let more = Draft { data: vec!["costs".into(), "prices".into()], ..World::draft("gate", 2) };
        let digest = world.deliver(more);
        world.survey();
        assert_eq!(world.serves("gate"), Some(1));
        assert!(world.why("gate").contains("data costs"), "wider: {}", world.why("gate"));
        let (tenant, policy) = key("gate");
        world.order(&Order::Activate { tenant, policy, bundle: digest, accept_capabilities: true });
        world.survey();
        assert_eq!(world.serves("gate"), Some(1));
        assert!(world.why("gate").contains("add it to `data` in [tenant.acme]"), "{}", world.why("gate"));
        // No longer configured: nothing to read.
        world.assignment.tenants[0].data.clear();
        world.survey();
        assert_eq!(world.serves("gate"), None);
    }

    #[test]
    fn a_bundle_of_the_other_kind_is_neither() {
        let mut world = world();
        world.release("prices", 1);
        let (tenant, name) = key("gate");
        let data = DataDraft { name, tenant, version: 1, table: table(&[]) }.assemble(None).unwrap();
        crate::bundle::write::create(&data, &world.bundle_path("gate")).unwrap();
        sign(&world.bundle_path("gate"), &world.release);
        world.survey();
        assert_eq!((world.serves("gate"), world.serves("prices")), (None, None));
        assert!(world.why("gate").contains("bundle is data, expected policy"), "{}", world.why("gate"));
        assert!(world.why("prices").contains("bundle is policy, expected data"), "{}", world.why("prices"));
    }

    #[test]
    fn data_that_is_revoked_takes_its_policies_with_it_and_a_rollback_brings_them_back() {
        let mut world = world();
        prices(&world, 1);
        world.deliver(reader(1));
        world.survey();
        let bundle = prices(&world, 2);
        world.survey();
        let in_a_worker = served(&world, "gate");
        assert_eq!(reads(&world), Some(2));
        world.revoke(Revokes::Digest(bundle));
        let findings = world.survey();
        // What is at work already is withdrawn, by the same rules.
        let revoked = &findings.in_force.list;
        let why = in_a_worker.is_not_revoked(revoked).unwrap_err();
        assert!(why.contains("was revoked"), "{why}");
        let now = crate::registry::clock::timestamp(crate::registry::tests::NEW_YEAR);
        let class = in_a_worker.class.clone();
        let why = in_a_worker.holds(&findings.setting, &key("gate"), &class, (revoked, now)).unwrap_err();
        assert!(why.contains("data \"prices\", which it reads:") && why.contains("was revoked"), "{why}");
        assert_eq!(
            (world.serves("prices"), world.serves("gate")),
            (None, None),
            "nothing older in its place"
        );
        assert!(world.why("gate").contains("which does not serve:"), "{}", world.why("gate"));
        let (tenant, policy) = key("prices");
        let to = Target::Version(1);
        world.order(&Order::Rollback { tenant, policy, to, reason: "prices were wrong".into() });
        world.survey();
        assert_eq!((world.serves("prices"), reads(&world)), (Some(1), Some(1)));
    }

    #[test]
    fn what_is_confidential_is_plain_in_sealed_memory_and_nowhere_else() {
        let canary = "a canary that nobody may read on a disk";
        let (secret, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let mut world = world();
        deliver(&world, 1, table(&[("key", canary)]), Some(&secret));
        let source = Draft { source: canary.as_bytes().to_vec(), compiled: vec![], ..reader(1) };
        let policy = source.assemble_confidential(&secret).unwrap();
        crate::bundle::write::create(&policy, &world.bundle_path("gate")).unwrap();
        sign(&world.bundle_path("gate"), &world.release);
        world.survey();
        assert!(
            world
                .why("prices")
                .contains(&format!("encrypted with key {}, and there is no key here", secret.id()))
        );
        world.assignment.secret = Some(SecretText(other.to_text().to_string()));
        world.survey();
        assert!(
            world.why("prices").contains(&format!("here is only {}", other.id())),
            "{}",
            world.why("prices")
        );
        assert_eq!(world.serves("gate"), None);
        world.assignment.secret = Some(SecretText(format!("{}{}", *other.to_text(), *secret.to_text())));
        world.survey();
        assert_eq!((world.serves("prices"), world.serves("gate")), (Some(1), Some(1)));
        let opened = served(&world, "prices").code.to_vec().unwrap();
        let contains = |bytes: &[u8]| bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
        assert!(contains(&opened), "control: it is there in sealed memory");
        assert!(
            contains(&served(&world, "gate").code.to_vec().unwrap()),
            "control: the builder had the source"
        );
        let mut looked_at = 0;
        let mut folders = vec![world.home.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => {
                        looked_at += 1;
                        assert!(!contains(&fs::read(&path).unwrap()), "{}", path.display());
                    }
                }
            }
        }
        assert!(looked_at > 10, "{looked_at} files in store and state");
        world.restart();
        world.survey();
        assert_eq!(served(&world, "prices").code.to_vec().unwrap(), opened, "again, from the state");
        // In plain, it would have been found.
        deliver(&world, 2, table(&[("key", canary)]), None);
        let blobs = fs::read_dir(world.bundle_path("prices").join("blobs/sha256")).unwrap();
        assert!(blobs.into_iter().any(|blob| contains(&fs::read(blob.unwrap().path()).unwrap())), "control");
    }

    /// Bundles may be anybody's to fetch: that is what encryption is for.
    #[test]
    fn stored_bytes_of_somebody_elses_data_open_nothing() {
        let canary = "a canary of the first tenant's";
        let secret = SecretKey::generate().unwrap();
        let mut world = world();
        world.assignment.secret = Some(SecretText(secret.to_text().to_string()));
        let (globex, theft) = (Tenant::new("globex").unwrap(), PolicyName::new("theft").unwrap());
        world.assignment.tenants.push(RegistryTenant {
            slot: 1,
            tenant: globex.clone(),
            data: vec![theft.clone()],
            policies: vec![],
            ..world.assignment.tenants[0].clone()
        });
        deliver(&world, 1, table(&[("key", canary)]), Some(&secret));
        world.survey();
        assert_eq!(world.serves("prices"), Some(1), "control: it is open, and in memory");

        let layout = crate::bundle::open_path(&world.bundle_path("prices")).unwrap();
        let stored = layout.bytes(&layout.read().unwrap().source, usize::MAX).unwrap();
        let stolen = DataDraft { name: theft.clone(), tenant: globex.clone(), version: 1, table: stored };
        let path = world.home.path().join("store/globex/theft");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::bundle::write::create(&stolen.assemble(None).unwrap(), &path).unwrap();
        sign(&path, &world.release);
        let findings = world.survey();
        match &findings.standings[&(globex, theft)] {
            Standing::Refused { why, .. } => assert!(why.contains("data is no table"), "{why}"),
            Standing::Serves(served) => panic!("{}", String::from_utf8_lossy(&served.code.to_vec().unwrap())),
        }
    }
}
