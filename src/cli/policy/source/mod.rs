//! What a policy is made of: a component, a core module, what `opa build -t wasm` wrote, or a folder with Rego in it. What it
//! does before there is a request (parsing its data, `prepare`) is done here.

mod manifest;
mod opa;

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::bundle::{PreparedConfig, RegoConfig, RegoResult};
use crate::cli::files::{self, FileError};
use crate::compile::{
    self, ComponentizeError, DATA_MAX, PrepareError, Rego, RegoError, RegoOptions, SOURCE_MAX,
};
use crate::engine::World;
use manifest::{MANIFEST, Manifest, ManifestError, SnapshotRule};
use opa::OpaError;

/// What a policy's manifest says as well; the command line has the last word.
#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// TOML with the entrypoint, the result and the data of a policy [default: policy.toml in a folder with Rego]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Rule of a Rego policy that decides, as package/rule [default: the only entrypoint there is]
    #[arg(long, value_name = "RULE")]
    entrypoint: Option<String>,
    /// What the result of that rule has to be [default: any of them]
    #[arg(
        long,
        value_name = "RESULT",
        value_parser = PossibleValuesParser::new(["boolean", "object", "envoy"]).map(|name| named(&name))
    )]
    result: Option<RegoResult>,
    /// JSON that a Rego policy sees as data, instead of what its bundle has; or what a component's prepare is called with
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// The world of a core module that does not say so itself [default: what its imports name, or the newest]
    #[arg(long, value_name = "WORLD", value_parser = super::build::world)]
    pub(super) world: Option<World>,
}

fn named(name: &str) -> RegoResult {
    match name {
        "boolean" => RegoResult::Boolean,
        "object" => RegoResult::Object,
        "envoy" => RegoResult::Envoy,
        _ => RegoResult::Any,
    }
}

/// What is built, and how it became that.
#[derive(Debug)]
pub(super) struct Source {
    /// A component, or a core module that becomes one.
    pub(super) wasm: Vec<u8>,
    pub(super) rego: Option<RegoConfig>,
    pub(super) prepared: Option<PreparedConfig>,
}

/// Why nothing is built of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Opa(#[from] OpaError),
    #[error("build {path:?}: {source}")]
    Rego { path: PathBuf, source: RegoError },
    #[error("build {path:?}: {source}")]
    Componentize { path: PathBuf, source: ComponentizeError },
    #[error("build {path:?}: {source}")]
    Prepare { path: PathBuf, source: PrepareError },
    #[error("build {path:?}: {what} is for policies in Rego, and OPA did not compile this")]
    NotRego { path: PathBuf, what: &'static str },
    #[error(
        "build {path:?}: there is data, and nothing in it that would read it: it does not export \"prepare\""
    )]
    NoPrepare { path: PathBuf },
}

impl SourceArgs {
    /// Reads a policy, and makes of it what is shipped.
    pub(super) fn read(&self, path: &Path) -> Result<Source, SourceError> {
        let manifest = self.manifest(path)?;
        let bytes = if path.is_dir() {
            let entrypoint = manifest.entrypoint.as_deref();
            opa::build(path, entrypoint.ok_or_else(|| OpaError::NoEntrypoint { path: path.into() })?)?
        } else {
            files::read(path, SOURCE_MAX)?
        };
        let document = manifest.document.as_deref();
        if let (true, Some(len)) = (Rego::is_of_opa(&bytes), document.and_then(too_long)) {
            return Err(SourceError::Rego { path: path.into(), source: RegoError::TooMuchData { len } });
        }
        let data = document.map(|data| files::read(data, DATA_MAX)).transpose()?;
        if Rego::is_of_opa(&bytes) {
            rego(path, &bytes, data.as_deref(), manifest)
        } else {
            self.other(path, bytes, data, &manifest)
        }
    }

    /// What the manifest and the command line say together.
    fn manifest(&self, source: &Path) -> Result<Manifest, SourceError> {
        let beside = source.join(MANIFEST);
        let mut manifest = match &self.manifest {
            Some(path) => Manifest::read(path)?,
            None if beside.is_file() => Manifest::read(&beside)?,
            None => Manifest::default(),
        };
        manifest.entrypoint = self.entrypoint.clone().or(manifest.entrypoint);
        manifest.result = self.result.or(manifest.result);
        manifest.document = self.document.clone().or(manifest.document);
        Ok(manifest)
    }

    fn other(
        &self,
        path: &Path,
        bytes: Vec<u8>,
        data: Option<Vec<u8>>,
        manifest: &Manifest,
    ) -> Result<Source, SourceError> {
        for (what, given) in
            [("an entrypoint", manifest.entrypoint.is_some()), ("a result", manifest.result.is_some())]
        {
            if given {
                return Err(SourceError::NotRego { path: path.into(), what });
            }
        }
        let text = !bytes.starts_with(b"\0asm");
        let mut wasm = bytes;
        let of_build = [compile::asks_for_wasi, compile::is_prepared, compile::is_scattered];
        if text || of_build.iter().any(|is_needed| is_needed(&wasm)) {
            // A text form is nobody's build; what stands behind WASI and how modules are put together becomes part of what is
            // signed, and is not done by each host; and only a component is run for its `prepare`.
            let failed = |source| SourceError::Componentize { path: path.into(), source };
            wasm = compile::componentize_as(&wasm, self.world).map_err(failed)?;
        }
        if !compile::is_prepared(&wasm) {
            return match data {
                None => Ok(Source { wasm, rego: None, prepared: None }),
                Some(_) => Err(SourceError::NoPrepare { path: path.into() }),
            };
        }
        let optional = manifest.snapshot == SnapshotRule::Optional;
        let prepared = compile::prepare(&wasm, data.as_deref(), optional)
            .map_err(|source| SourceError::Prepare { path: path.into(), source })?;
        Ok(Source { wasm: prepared.component, rego: None, prepared: Some(prepared.config) })
    }
}

/// How long it is, if that is more than is read.
fn too_long(document: &Path) -> Option<usize> {
    let len = std::fs::metadata(document).ok().filter(|found| found.is_file())?.len();
    usize::try_from(len).ok().filter(|len| *len > DATA_MAX)
}

fn rego(path: &Path, bytes: &[u8], data: Option<&[u8]>, manifest: Manifest) -> Result<Source, SourceError> {
    let failed = |source| SourceError::Rego { path: path.into(), source };
    let policy = Rego::read(bytes, data).map_err(failed)?;
    let options =
        RegoOptions { entrypoint: manifest.entrypoint, result: manifest.result.unwrap_or_default() };
    let built = compile::rego(&policy, &options).map_err(failed)?;
    Ok(Source { wasm: built.component, rego: Some(built.config), prepared: None })
}
