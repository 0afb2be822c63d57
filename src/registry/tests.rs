//! A registry without its processes: a store and a state of real files, keys, a wall clock that a test moves, and builders that
//! say what a test has them say.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tempfile::TempDir;

use super::clock::Clock;
use super::revoked::InForce;
use super::setting::{Key, Setting};
use super::state::State;
use super::survey::{
    Before, Built, Findings, NotBuilt, Progress, Shelf, Standing, Survey, SurveyError, Unsound, Wanted,
};
use crate::artifact::{Digest, Limits, SealedBytes, SigningKey};
use crate::bundle::write::{self, NewAttachment};
use crate::bundle::{self, Annotations, Draft};
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::engine::WORLD;
use crate::ledger::{self, Event, Order, Record};
use crate::signature::{self, Subject};
use crate::trust::{RevocationList, Revokes};
use crate::wire::control::{Isolation, RegistryAssignment, RegistryClass, RegistryTenant, TrustText};
use crate::wire::job::Job;

/// What a builder is asked, in a few words, and what it answers.
pub(super) type Builder<'a> = &'a mut dyn FnMut(&Wanted) -> Result<Built, NotBuilt>;

pub(super) struct World {
    pub(super) home: TempDir,
    pub(super) state: Option<State>,
    pub(super) wall: Rc<Cell<u64>>,
    pub(super) assignment: RegistryAssignment,
    pub(super) release: SigningKey,
    unsound: Unsound,
    serial: u64,
    in_force: Option<InForce>,
    findings: Option<Findings>,
    /// What builders were asked for, in order.
    pub(super) asked: Vec<&'static str>,
}

/// 2026-01-01, a Thursday.
pub(super) const NEW_YEAR: u64 = 1_767_225_600;

pub(super) fn key(policy: &str) -> Key {
    (Tenant::new("acme").unwrap(), PolicyName::new(policy).unwrap())
}

/// Whoever is asked finds everything good, and compiles to what can be told from the source.
pub(super) fn sound(wanted: &Wanted) -> Result<Built, NotBuilt> {
    Ok(match &wanted.job {
        Job::Check { .. } => Built::Sound,
        Job::Compile { .. } => {
            let source = wanted.descriptors[0].to_vec().unwrap();
            Built::Compiled(Arc::new(SealedBytes::of(&[b"compiled ", source.as_slice()].concat()).unwrap()))
        }
        Job::Recall { cwasm } => {
            let lost = cwasm.iter().map(|digest| (*digest, "code was not in the cache".to_owned()));
            Built::Recalled { found: vec![], lost: lost.collect() }
        }
        Job::Clear => Built::Cleared,
    })
}

impl World {
    /// One tenant with these policies, in one class.
    pub(super) fn with(policies: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        for (name, mode) in [("state", 0o700), ("store", 0o755)] {
            fs::create_dir(home.path().join(name)).unwrap();
            fs::set_permissions(home.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let text = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        let class = TrustClass::new("web").unwrap();
        let release = SigningKey::generate_ed25519().unwrap();
        let assignment = RegistryAssignment {
            uid: 0,
            gid: 0,
            isolation: Isolation::SharedUid,
            store: text("store"),
            state: text("state"),
            trust: TrustText { path: "trust.toml".into(), text: trust(&[("release", &release)]) },
            tenants: vec![RegistryTenant {
                slot: 0,
                tenant: key("x").0,
                class: class.clone(),
                policies: policies.iter().map(|name| key(name).1).collect(),
                ceiling: crate::artifact::Ceiling::MOST,
                data: vec![],
            }],
            classes: vec![RegistryClass { class, memory: 64 << 20 }],
            keep_previous: 2,
            secret: None,
            removed: vec![],
        };
        Self {
            home,
            state: None,
            wall: Rc::new(Cell::new(NEW_YEAR)),
            assignment,
            release,
            unsound: Unsound::new(),
            serial: 0,
            in_force: None,
            findings: None,
            asked: vec![],
        }
    }

    pub(super) fn state_path(&self) -> PathBuf {
        self.home.path().join("state")
    }

    pub(super) fn bundle_path(&self, policy: &str) -> PathBuf {
        let folder = self.home.path().join("store/acme");
        fs::create_dir_all(&folder).unwrap();
        folder.join(policy)
    }

    /// A bundle that has no code for any host, so that each compiles it.
    pub(super) fn draft(policy: &str, version: u64) -> Draft {
        let (tenant, name) = key(policy);
        Draft {
            policy: name,
            tenant,
            version,
            world: WORLD.into(),
            imports: vec![],
            exports: vec!["decide".into()],
            limits: Limits::default(),
            metrics: vec![],
            data: vec![],
            source: format!("source of {policy} {version}").into_bytes(),
            compiled: vec![],
            rego: None,
            prepared: None,
        }
    }

    /// Puts a bundle into the store in place of what is there, signed by the release key. Its digest.
    pub(super) fn deliver(&self, draft: Draft) -> Digest {
        let path = self.bundle_path(draft.policy.as_str());
        self.deliver_at(draft, &path, &[&self.release])
    }

    pub(super) fn deliver_at(&self, draft: Draft, path: &Path, signers: &[&SigningKey]) -> Digest {
        let assembled = draft.assemble().unwrap();
        write::create(&assembled, path).unwrap();
        for signer in signers {
            sign(path, signer);
        }
        assembled.digest()
    }

    /// Version `version` of a policy, delivered.
    pub(super) fn release(&self, policy: &str, version: u64) -> Digest {
        self.deliver(Self::draft(policy, version))
    }

    /// Signs a newer revocation list.
    pub(super) fn revoke(&self, what: Revokes) {
        let path = self.home.path().join("store/revocations.json");
        let before = match fs::read(&path) {
            Ok(bytes) => RevocationList::peek(&bytes).unwrap(),
            Err(_) => RevocationList { version: 0, revoked: vec![] },
        };
        let date = super::clock::timestamp(self.wall.get());
        fs::write(path, before.and(what, "leaked", date).sign(&self.release).unwrap()).unwrap();
    }

    pub(super) fn order(&self, order: &Order) -> u64 {
        ledger::place(&self.state_path(), order).unwrap()
    }

    /// Looks at everything, with builders that find everything good.
    pub(super) fn survey(&mut self) -> &Findings {
        self.survey_with(&mut sound).unwrap()
    }

    pub(super) fn survey_with(&mut self, builder: Builder<'_>) -> Result<&Findings, SurveyError> {
        let state = self.state.get_or_insert_with(|| State::open(&self.home.path().join("state")).unwrap());
        let clock = Clock::on(&self.wall, state.table().latest);
        let in_force = self.in_force.take().unwrap_or_else(|| InForce::kept(state.table()).unwrap());
        let found = self.findings.take().map(|findings| (findings.shelf, findings.cleared));
        let (shelf, cleared) = found.unwrap_or_default();
        let (unsound, serial) = (self.unsound.clone(), self.serial);
        let before = Before { in_force, shelf, unsound, serial, cleared };
        let setting = Setting::new(self.assignment.clone())?;
        let mut survey = Survey::begin(setting, state, &clock, before)?;
        loop {
            let progress = survey.step(state);
            let wanted = survey.wanted();
            match progress {
                Progress::Done => break,
                Progress::Waits | Progress::More => {}
            }
            for wanted in wanted {
                self.asked.push(match wanted.job {
                    Job::Check { .. } => "check",
                    Job::Compile { .. } => "compile",
                    Job::Recall { .. } => "recall",
                    Job::Clear => "clear",
                });
                let result = builder(&wanted);
                survey.built(state, wanted.serial, result);
            }
        }
        self.serial = survey.serial();
        let findings = survey.finish(state).map_err(|unwritten| unwritten.error)?;
        self.in_force = Some(findings.in_force.clone());
        self.unsound = findings.unsound.clone();
        Ok(self.findings.insert(findings))
    }

    /// The process ends and another one begins: what is not on the disk is gone.
    pub(super) fn restart(&mut self) {
        self.state = None;
        self.findings = None;
        self.in_force = None;
        self.unsound.clear();
    }

    /// The code in memory.
    pub(super) fn shelf(&self) -> Shelf {
        self.findings.as_ref().unwrap().shelf.clone()
    }

    pub(super) fn standing(&self, policy: &str) -> &Standing {
        &self.findings.as_ref().unwrap().standings[&key(policy)]
    }

    /// The version that serves.
    pub(super) fn serves(&self, policy: &str) -> Option<u64> {
        match self.standing(policy) {
            Standing::Serves(served) => Some(served.config.version),
            Standing::Refused { .. } => None,
        }
    }

    /// Why the policy, or what is in the store for it, does not serve.
    pub(super) fn why(&self, policy: &str) -> String {
        match self.standing(policy) {
            Standing::Serves(served) => served.held_back.clone().unwrap_or_default(),
            Standing::Refused { why, .. } => why.clone(),
        }
    }

    pub(super) fn record(&self, policy: &str) -> &Record {
        let (tenant, name) = key(policy);
        self.state.as_ref().unwrap().table().record(&tenant, &name).unwrap()
    }

    pub(super) fn history(&self) -> &[Event] {
        &self.state.as_ref().unwrap().table().history
    }

    pub(super) fn happened(&self, policy: &str) -> Vec<(ledger::What, Option<u64>)> {
        let of = |event: &&Event| event.policy.as_ref().is_some_and(|name| name.as_str() == policy);
        self.history().iter().filter(of).map(|event| (event.what, event.version)).collect()
    }
}

/// A rule in which each of these is enough, and may revoke.
pub(super) fn trust(signers: &[(&str, &SigningKey)]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (name, key) in signers {
        let pem = key.public_key().to_pem().unwrap();
        writeln!(text, "[signer.{name}]\nkey = \"\"\"\n{pem}\"\"\"\n").unwrap();
    }
    let names: Vec<&str> = signers.iter().map(|(name, _)| *name).collect();
    writeln!(
        text,
        "[default]\nany_of = {{ minimum = 1, signers = {names:?} }}\ncapabilities = [\"clock\", \"data\", \"log\", \"metric\", \"random\"]\n\n\
         [revocation]\nsigners = {names:?}"
    )
    .unwrap();
    text
}

pub(super) fn sign(path: &Path, signer: &SigningKey) {
    let bundle = bundle::open_path(path).unwrap().read().unwrap();
    let signed = signature::sign(&Subject::of(&bundle.index_bytes), signer).unwrap();
    let attachment = NewAttachment::one(signature::sigstore::MEDIA_TYPE, signed, Annotations::default());
    write::attach(path, &attachment, |_| false).unwrap();
}
