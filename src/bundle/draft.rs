//! A bundle in the making: from source, machine code and what is known of them to blobs and their digests. The same input
//! always gives the same bytes.

use std::collections::BTreeMap;

use super::confidential::{ConfidentialError, LayerOf, SecretKey, encrypt};
use super::config::DataConfig;
use super::form::FormError;
use super::manifest::{Index, Manifest};
use super::{
    Bundle, CONFIG_MAX, Compiled, CompiledFor, Descriptor, Kind, Platform, PolicyConfig, PreparedConfig,
    RegoConfig, SOURCE_MAX, form, media,
};
use crate::artifact::{ARTIFACT_MAX, Digest, Limits};
use crate::decision::{PolicyName, Tenant};
use crate::engine::METRICS_MAX;

/// All that goes into a bundle.
#[derive(Debug, Clone)]
pub struct Draft {
    pub policy: PolicyName,
    pub tenant: Tenant,
    pub version: u64,
    /// The WIT world, "portcullis:policy@1.0.0".
    pub world: String,
    /// In any order.
    pub imports: Vec<String>,
    /// In any order.
    pub exports: Vec<String>,
    pub limits: Limits,
    /// In any order.
    pub metrics: Vec<String>,
    /// In any order.
    pub data: Vec<String>,
    /// The component as its author built it.
    pub source: Vec<u8>,
    /// In any order; may be empty.
    pub compiled: Vec<DraftCompiled>,
    /// Where it is a policy in Rego.
    pub rego: Option<RegoConfig>,
    /// Where it did something before.
    pub prepared: Option<PreparedConfig>,
}

/// All that goes into the bundle of a data snapshot.
#[derive(Debug, Clone)]
pub struct DataDraft {
    pub name: PolicyName,
    pub tenant: Tenant,
    pub version: u64,
    /// What [`crate::table::Builder::build`] gives.
    pub table: Vec<u8>,
}

/// Machine code for one platform.
#[derive(Debug, Clone)]
pub struct DraftCompiled {
    pub platform: Platform,
    pub cwasm: Vec<u8>,
    /// In full, "48.0.8".
    pub wasmtime: String,
    /// [`crate::engine::settings_digest`]
    pub engine: Digest,
}

/// A bundle in memory, to be written with [`super::write::create`].
#[derive(Debug, Clone)]
pub struct Assembled {
    /// As it will be read.
    pub bundle: Bundle,
    pub(super) blobs: BTreeMap<Digest, Vec<u8>>,
}

/// What makes no bundle.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    #[error("make bundle: code for {0} is there twice")]
    PlatformTwice(Platform),
    #[error("make bundle: the same code is there for two platforms")]
    CodeTwice,
    #[error("make bundle: the {what} is {len} bytes long, at most {max} are read again")]
    TooLong { what: &'static str, len: usize, max: usize },
    #[error("make bundle: the {what} is empty")]
    Empty { what: &'static str },
    #[error("make bundle: it reads {0} data snapshots, at most {max} are mapped", max = super::DATA_MAX)]
    TooMuchData(usize),
    #[error(
        "make bundle: it declares {0} metrics, or one that is not called as a counter may be; at most {METRICS_MAX} are \
         counted, of a-z 0-9 _ . -, a letter first"
    )]
    Metrics(usize),
    #[error("make bundle: {0}")]
    Form(#[from] FormError),
    #[error("make bundle: {0}")]
    Confidential(#[from] ConfidentialError),
}

impl Draft {
    /// Works out every digest.
    ///
    /// # Errors
    /// When it would be a bundle that is not read again.
    pub fn assemble(self) -> Result<Assembled, DraftError> {
        self.assemble_with(None)
    }

    /// The same, with source and machine code encrypted: for a policy that has secrets in it.
    ///
    /// # Errors
    /// When it would be a bundle that is not read again.
    pub fn assemble_confidential(self, key: &SecretKey) -> Result<Assembled, DraftError> {
        self.assemble_with(Some(key))
    }

    fn assemble_with(self, key: Option<&SecretKey>) -> Result<Assembled, DraftError> {
        check_length("source", &self.source, SOURCE_MAX)?;
        let mut compiled = self.compiled;
        compiled.sort_by_key(|code| code.platform);
        for code in &compiled {
            check_length("code", &code.cwasm, ARTIFACT_MAX)?;
        }
        let pairs = || compiled.iter().zip(compiled.iter().skip(1));
        if let Some((twice, _)) = pairs().find(|(one, next)| one.platform == next.platform) {
            return Err(DraftError::PlatformTwice(twice.platform));
        }
        if pairs().any(|(one, next)| one.cwasm == next.cwasm) {
            return Err(DraftError::CodeTwice);
        }
        let mut config = PolicyConfig {
            policy: self.policy,
            tenant: self.tenant,
            version: self.version,
            world: self.world,
            imports: sorted(self.imports),
            exports: sorted(self.exports),
            limits: self.limits,
            metrics: sorted(self.metrics),
            data: sorted(self.data),
            confidential: key.map(SecretKey::id),
            source: Digest::of(&self.source),
            compiled: Vec::new(),
            rego: self.rego,
            prepared: self.prepared,
        };
        if config.data.len() > super::DATA_MAX {
            return Err(DraftError::TooMuchData(config.data.len()));
        }
        if !config.has_bounded_metrics() {
            return Err(DraftError::Metrics(config.metrics.len()));
        }
        if let Some(key) = key {
            blind(key, &mut config);
        }
        let source = protect(key, LayerOf::Source(&config), self.source)?;
        for code in &mut compiled {
            let cwasm = std::mem::take(&mut code.cwasm);
            code.cwasm = protect(key, LayerOf::Code(&config, code.platform), cwasm)?;
        }
        config.source = Digest::of(&source);
        config.compiled = compiled
            .iter()
            .map(|code| CompiledFor {
                platform: code.platform,
                cwasm: Digest::of(&code.cwasm),
                wasmtime: code.wasmtime.clone(),
                engine: code.engine,
            })
            .collect();
        let code = compiled.into_iter().map(|code| (code.platform, code.cwasm));
        put_together(config, code, source)
    }
}

impl DataDraft {
    /// Works out every digest; with a key, the table is encrypted.
    ///
    /// # Errors
    /// When it would be a bundle that is not read again.
    pub fn assemble(self, key: Option<&SecretKey>) -> Result<Assembled, DraftError> {
        check_length("table", &self.table, crate::table::TABLE_MAX)?;
        let mut config = PolicyConfig::of_data(self.name, self.tenant, self.version);
        config.confidential = key.map(SecretKey::id);
        let table = protect(key, LayerOf::Source(&config), self.table)?;
        config.source = Digest::of(&table);
        put_together(config, std::iter::empty(), table)
    }
}

/// A digest of what is confidential would tell whoever guesses it that the guess is right. In its place is one that is made with
/// the key, and is the same for the same.
fn blind(key: &SecretKey, config: &mut PolicyConfig) {
    if let Some(rego) = &mut config.rego {
        rego.module = key.blinded(&rego.module);
        rego.data = rego.data.as_ref().map(|data| key.blinded(data));
    }
    if let Some(prepared) = &mut config.prepared {
        prepared.component = key.blinded(&prepared.component);
        prepared.data = prepared.data.as_ref().map(|data| key.blinded(data));
    }
}

/// A layer as it is stored.
fn protect(key: Option<&SecretKey>, layer: LayerOf<'_>, plain: Vec<u8>) -> Result<Vec<u8>, DraftError> {
    let Some(key) = key else { return Ok(plain) };
    let encrypted = encrypt(key, layer, &plain)?;
    check_length("encrypted layer", &encrypted, ARTIFACT_MAX)?;
    Ok(encrypted)
}

fn put_together(
    config: PolicyConfig,
    compiled: impl Iterator<Item = (Platform, Vec<u8>)>,
    source: Vec<u8>,
) -> Result<Assembled, DraftError> {
    let kind = config.kind();
    let mut blobs = Blobs::default();
    let bytes = match kind {
        Kind::Policy => form::encode(&config)?,
        Kind::Data => form::encode(&DataConfig::from(&config))?,
    };
    check_length("config", &bytes, CONFIG_MAX)?;
    let config_blob = blobs.add(media::config(kind), bytes);
    let mut manifests = Vec::new();
    let mut parts = Vec::new();
    for (platform, cwasm) in compiled {
        let cwasm = blobs.add(media::code(&config), cwasm);
        let manifest = Manifest::of(media::COMPILED, config_blob.clone(), vec![cwasm.clone()]);
        let manifest = blobs.add(media::OCI_MANIFEST, manifest.encode()?);
        parts.push(Compiled { platform, manifest: manifest.clone(), cwasm });
        manifests.push(manifest.with_platform(platform).with_artifact_type(media::COMPILED));
    }
    let source_type = media::source_manifest(kind);
    let source = blobs.add(media::source(&config), source);
    let manifest = Manifest::of(source_type, config_blob.clone(), vec![source.clone()]);
    let source_manifest = blobs.add(media::OCI_MANIFEST, manifest.encode()?);
    manifests.push(source_manifest.clone().with_artifact_type(source_type));
    let index_bytes = Index::of(Some(media::bundle(kind)), manifests).encode()?;
    let index = blobs.add(media::OCI_INDEX, index_bytes.clone());
    let attachments = Vec::new();
    let compiled = parts;
    let bundle =
        Bundle { index, index_bytes, config, config_blob, compiled, source_manifest, source, attachments };
    Ok(Assembled { bundle, blobs: blobs.0 })
}

impl Assembled {
    /// The bundle's.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.bundle.digest()
    }
}

/// Blobs by their digest.
#[derive(Default)]
pub(super) struct Blobs(pub(super) BTreeMap<Digest, Vec<u8>>);

impl Blobs {
    pub(super) fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::of(media_type, &bytes);
        self.0.insert(descriptor.digest, bytes);
        descriptor
    }
}

fn check_length(what: &'static str, bytes: &[u8], max: usize) -> Result<(), DraftError> {
    match bytes.len() {
        0 => Err(DraftError::Empty { what }),
        len if len > max => Err(DraftError::TooLong { what, len, max }),
        _ => Ok(()),
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names.dedup();
    names
}
