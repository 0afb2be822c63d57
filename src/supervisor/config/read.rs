//! From the tree to [`Config`]: what the values mean, and what they mean together.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::places::{self, Owners};
use super::plans::Plans;
use super::values::{grantable_id, mode, path as path_value, role_id, socket_path, trust_path};
use super::{
    Config, ConfigErrors, Frontend, Identity, Registry, SecretFile, Service, Surroundings, TenantConfig,
    TrustFile,
};
use super::{builder, distinct, plans, tenants};
use crate::document::values::{boolean, duration, number};
use crate::document::{self, Complaints, DocumentErrors, Found, Section};
use crate::wire::control::{Isolation, SecretText};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// More would not fit the process table's message (see [`crate::wire::control::CONTROL_MAX`]).
const CLASSES_MAX: usize = 64;
/// What an assignment is made for (see [`crate::wire::control::ASSIGNMENT_MAX`]).
const TENANTS_MAX: usize = 10_000;

/// What the configuration itself says that a tenant's file has to agree with.
#[derive(Default)]
pub(super) struct Known<'d> {
    pub(super) classes: Vec<Found<&'d str>>,
    /// As each is called in the file.
    pub(super) identities: Vec<(String, Found<Identity>)>,
    pub(super) plans: Plans,
}

pub(super) fn config(path: &Path, text: &str, around: &Surroundings) -> Result<Config, ConfigErrors> {
    match look(path, text, around)? {
        (config, Ok(())) => Ok(config),
        (_, Err(errors)) => Err(errors),
    }
}

/// What can be made of it, and what is wrong with it.
pub(super) fn look(
    path: &Path,
    text: &str,
    around: &Surroundings,
) -> Result<(Config, Result<(), ConfigErrors>), ConfigErrors> {
    look_with(path, text, around, None).0
}

/// The same, and what would be wrong with a tenant's file of that path and text.
#[allow(clippy::type_complexity, reason = "what `look` returns, and one more")]
pub(super) fn look_with(
    path: &Path,
    text: &str,
    around: &Surroundings,
    candidate: Option<(&Path, &str)>,
) -> (Result<(Config, Result<(), ConfigErrors>), ConfigErrors>, Option<ConfigErrors>) {
    let (errors, refused) = (RefCell::new(Vec::new()), RefCell::new(None));
    let looked = document::read(path, text, |document, complaints| {
        let reader = Reader::new(complaints, around);
        let (config, known, found) = reader.config(document);
        errors.replace(found);
        if let Some((path, text)) = candidate {
            refused.replace(tenants::one(path, text, around, &known).err());
        }
        config
    });
    let of_tenants = DocumentErrors::together(errors.into_inner());
    let with = |errors: ConfigErrors| {
        let all = std::iter::once(errors).chain(of_tenants.clone()).collect();
        DocumentErrors::together(all).unwrap_or_else(|| DocumentErrors::whole_file(path, String::new()))
    };
    let looked = match looked {
        Ok((config, Ok(()))) => Ok((config, of_tenants.map_or(Ok(()), Err))),
        Ok((config, Err(errors))) => Ok((config, Err(with(errors)))),
        Err(errors) => Err(with(errors)),
    };
    let mut refused = refused.into_inner();
    if let (Some((path, text)), Ok((config, _)), None) = (candidate, &looked, &refused) {
        refused = tenants::room(&config.filed, path, text).err();
    }
    (looked, refused)
}

/// Complains about everything that is wrong, and gives back what is whole.
pub(super) struct Reader<'r, 'd> {
    pub(super) complaints: &'d Complaints,
    pub(super) around: &'r Surroundings,
    pub(super) owners: Owners,
}

impl<'r, 'd> Reader<'r, 'd> {
    pub(super) fn new(complaints: &'d Complaints, around: &'r Surroundings) -> Self {
        Self { complaints, around, owners: Owners { uid: around.uid } }
    }
}

impl<'d> Reader<'_, 'd> {
    /// What can be made of it, what tenants' files go by, and what is wrong with those.
    fn config(&self, document: &mut Section<'d>) -> (Option<Config>, Known<'d>, Vec<ConfigErrors>) {
        let (mut known, mut errors) = (Known::default(), Vec::new());
        let config = self.whole(document, &mut known, &mut errors);
        (config, known, errors)
    }

    fn whole(
        &self,
        document: &mut Section<'d>,
        known: &mut Known<'d>,
        errors: &mut Vec<ConfigErrors>,
    ) -> Option<Config> {
        let mut secret = None;
        let registry = match document.section("registry") {
            Some(mut section) => {
                let identity = self.identity(&mut section);
                let path = section.optional("secret", trust_path(self.around.credentials.as_deref()));
                secret = path.map(|path| {
                    let text =
                        self.look(path.at, places::secret(&path.value, self.owners)).unwrap_or_default();
                    SecretFile { path: path.value, text: SecretText(text) }
                });
                section.finish();
                identity
            }
            None if self.distinct() => {
                document.missing("[registry]");
                None
            }
            None => Some(self.own_identity(0)),
        };
        let builder = builder::read(self.complaints, document.section("builder"));
        let mut directory = None;
        let service = required_section(document, "service")
            .map(|section| self.service(section, registry, &mut directory));
        let frontend = match document.section("frontend") {
            Some(section) => self.frontend(section),
            None if self.distinct() => {
                document.missing("[frontend]");
                None
            }
            None => Some((self.own_identity(0), Frontend::with_defaults(self.own_identity(0)))),
        };
        let mut classes = Vec::new();
        let Known { classes: class_names, identities, plans } = known;
        let mut caches = Vec::new();
        if let Some((identity, _)) = &frontend {
            identities.push(("[frontend]".to_owned(), *identity));
        }
        if let Some(identity) = &registry {
            identities.push(("[registry]".to_owned(), *identity));
        }
        let telemetry = document.section("telemetry").map(|section| (section.at(), self.telemetry(section)));
        if let Some((_, (Some(identity), _))) = &telemetry {
            identities.push(("[telemetry]".to_owned(), *identity));
        }
        let gateway = document.section("gateway").map(|section| self.gateway(section));
        if let Some(identity) = gateway.as_ref().and_then(|gateway| gateway.identity) {
            identities.push(("[gateway]".to_owned(), identity));
        }
        let sections = document.sections("class");
        if sections.is_empty() {
            document.missing("[class.<name>]");
        }
        if let Some((at, _)) = sections.get(CLASSES_MAX) {
            self.complain(at.at, format!("more than {CLASSES_MAX} classes"));
        }
        for (title, section) in sections {
            class_names.push(title);
            if let Some((identity, class)) = self.class(title, section, &mut caches) {
                identities.push((format!("[class.{}]", title.value), identity));
                classes.extend(class);
            }
        }
        if self.distinct() {
            distinct::identities(self.complaints, identities);
        }

        *plans = plans::read(self.complaints, document);
        let sections = document.sections("tenant");
        if let Some((at, _)) = sections.get(TENANTS_MAX) {
            self.complain(at.at, format!("more than {TENANTS_MAX} tenants"));
        }
        let tables: Vec<Found<String>> =
            sections.iter().map(|(title, _)| Found { value: title.value.to_owned(), at: title.at }).collect();
        let mut tenants = sections
            .into_iter()
            .map(|(title, mut section)| {
                let tenant = self.tenant(title, &mut section, known);
                section.finish();
                tenant
            })
            .collect::<Vec<_>>();
        let mut filed = Vec::new();
        if let Some((directory, names)) = &directory {
            let read = tenants::read(&directory.value, names, self.around, known);
            tenants::once(self.complaints, &tables, &read.tenants);
            (filed, *errors) = (read.tenants, read.errors);
            tenants.extend(filed.iter().filter_map(|one| one.tenant.clone()).map(Some));
            if tenants.len() > TENANTS_MAX && tables.len() <= TENANTS_MAX {
                self.complain(
                    directory.at,
                    format!("tenants: more than {TENANTS_MAX} are active, with those in here"),
                );
            }
        }
        let service = service?;
        let state = service.as_ref().map(|service| service.state.as_path());
        distinct::caches(self.complaints, &mut caches, state);
        classes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut tenants = tenants.into_iter().collect::<Option<Vec<_>>>()?;
        tenants.sort_by(|a: &TenantConfig, b| a.name.cmp(&b.name));
        plans::reserved(self.complaints, &classes, &tenants, &known.classes);
        if let (Some((at, (_, Some(telemetry)))), Some(service)) = (&telemetry, &service) {
            self.telemetry_apart(*at, telemetry, service);
        }
        let telemetry = match telemetry {
            None => None,
            Some((_, (_, telemetry))) => Some(telemetry?),
        };
        let gateway = match gateway {
            None => None,
            Some(gateway) => {
                let (service, telemetry) = (service.as_ref(), telemetry.as_ref());
                if let Some((_, frontend)) = &frontend {
                    self.gateway_has_seats(&gateway, frontend, &classes, &tenants, &filed);
                }
                Some(self.gateway_fits(gateway, service, telemetry, &tenants, &filed)?)
            }
        };
        let registry = Registry { identity: registry?.value, secret };
        Some(Config {
            service: service?,
            frontend: frontend?.1,
            registry,
            builder: builder?,
            telemetry,
            gateway,
            classes,
            tenants,
            filed,
        })
    }

    fn service(
        &self,
        mut section: Section<'d>,
        registry: Option<Found<Identity>>,
        files: &mut Option<(Found<PathBuf>, Vec<String>)>,
    ) -> Option<Service> {
        let socket = section.required("socket", socket_path);
        let socket_mode = section.defaulted("socket_mode", 0o666, mode);
        let operator_socket = section.required("operator_socket", socket_path);
        let operators = section.list("operators", grantable_id).unwrap_or_default();
        let store = section.required("store", path_value);
        let state = section.required("state", path_value);
        let trust = section.required("trust", trust_path(self.around.credentials.as_deref()));
        let tenants = section.optional("tenants", path_value);
        let keep_previous = section.defaulted("keep_previous", 3, number(0..=100));
        let require = section.defaulted("require_distinct_uids", self.around.systemd, boolean);
        let drain = section.defaulted("drain", 5 * SECOND, duration(10 * MILLISECOND..=10 * MINUTE));
        let answer =
            section.defaulted("answer_within", 100 * MILLISECOND, duration(20 * MILLISECOND..=MINUTE));
        section.finish();

        for socket in [&socket, &operator_socket].into_iter().flatten() {
            self.look(socket.at, places::socket_directory(&socket.value, self.owners));
        }
        if let (Some(clients), Some(operators)) = (&socket, &operator_socket)
            && clients.value == operators.value
        {
            self.complain(operators.at, "operator_socket: is the same as socket".to_owned());
        }
        let store_inode =
            store.as_ref().and_then(|store| self.look(store.at, places::store(&store.value, self.owners)));
        if let Some(Found { value: true, at }) = require
            && !self.distinct()
        {
            let how = "start as root or with CAP_SETUID, CAP_SETGID, CAP_SETPCAP and CAP_KILL, or say \
                       require_distinct_uids = false";
            let why = "require_distinct_uids: all processes would share one UID, for want of privilege";
            self.complain(at, format!("{why}; {how}"));
        }
        let state_inode = state.as_ref().zip(registry).and_then(|(state, registry)| {
            let looked = places::own_directory(&state.value, "state", registry.value.uid, self.owners);
            self.look(state.at, looked)
        });
        let mut tenants_inode = None;
        if let Some(directory) = tenants.clone()
            && let Some((inode, names)) =
                self.look(directory.at, places::tenants(&directory.value, self.owners))
        {
            (tenants_inode, *files) = (Some(inode), Some((directory, names)));
        }
        let trust = trust.map(|trust| {
            let text = self.look(trust.at, places::trust(&trust.value, self.owners)).unwrap_or_default();
            TrustFile { path: trust.value, text }
        });
        Some(Service {
            socket: socket?.value,
            socket_mode: socket_mode?.value,
            operator_socket: operator_socket?.value,
            operators: plain(operators),
            store: store?.value,
            store_inode: store_inode.unwrap_or_default(),
            state: state?.value,
            state_inode: state_inode.unwrap_or_default(),
            trust: trust?,
            tenants: tenants.map(|found| found.value),
            tenants_inode: tenants_inode.unwrap_or_default(),
            keep_previous: keep_previous?.value,
            require_distinct_uids: require?.value,
            drain: drain?.value,
            answer_within: answer?.value,
        })
    }

    fn frontend(&self, mut section: Section<'d>) -> Option<(Found<Identity>, Frontend)> {
        let identity = self.identity(&mut section);
        let timeout = section.defaulted("hello_timeout", SECOND, duration(MILLISECOND..=MINUTE));
        let connections = section.defaulted("max_connections", 4096, number(1..=65536));
        let per_uid = section.optional("max_connections_per_uid", number(1..=65536));
        section.finish();
        if let (Some(all), Some(one)) = (&connections, &per_uid)
            && one.value > all.value
        {
            let message = format!("max_connections_per_uid: is more than max_connections, {}", all.value);
            self.complain(one.at, message);
        }
        let (identity, connections) = (identity?, connections?.value);
        let frontend = Frontend {
            identity: identity.value,
            hello_timeout: timeout?.value,
            max_connections: connections,
            max_connections_per_uid: per_uid.map(|found| found.value),
        };
        Some((identity, frontend))
    }

    /// The role's own UID and GID; without privilege, ours, whatever the file says.
    pub(super) fn identity(&self, section: &mut Section<'d>) -> Option<Found<Identity>> {
        let (uid, gid) = if self.distinct() {
            (section.required("uid", role_id), section.required("gid", role_id))
        } else {
            (section.optional("uid", role_id), section.optional("gid", role_id))
        };
        if !self.distinct() {
            return Some(self.own_identity(0));
        }
        let (uid, gid) = (uid?, gid?);
        if uid.value == self.around.uid {
            self.complain(uid.at, format!("uid: {} is the supervisor's own", uid.value));
        }
        Some(Found { value: Identity { uid: uid.value, gid: gid.value }, at: uid.at })
    }

    pub(super) fn distinct(&self) -> bool {
        self.around.isolation == Isolation::DistinctUids
    }

    fn own_identity(&self, at: usize) -> Found<Identity> {
        Found { value: Identity { uid: self.around.uid, gid: self.around.gid }, at }
    }

    pub(super) fn look<T>(&self, at: usize, looked: Result<T, String>) -> Option<T> {
        looked.map_err(|why| self.complain(at, why)).ok()
    }

    pub(super) fn complain(&self, at: usize, message: String) {
        self.complaints.add(at, message);
    }
}

impl Frontend {
    fn with_defaults(identity: Found<Identity>) -> Self {
        Self {
            identity: identity.value,
            hello_timeout: SECOND,
            max_connections: 4096,
            max_connections_per_uid: None,
        }
    }
}

fn required_section<'d>(document: &mut Section<'d>, name: &'static str) -> Option<Section<'d>> {
    let section = document.section(name);
    if section.is_none() {
        document.missing(name);
    }
    section
}

pub(super) fn plain<T>(list: Vec<Found<T>>) -> Vec<T> {
    list.into_iter().map(|found| found.value).collect()
}
