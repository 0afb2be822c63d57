//! Building a bundle's source again: the only way to know that its machine code comes from it.

use super::stored::{Stored, StoredError};
use crate::artifact::{Digest, Limits};
use crate::bundle::confidential::{ConfidentialError, LayerOf, encrypt};
use crate::bundle::{CompiledFor, Kind, Platform, PolicyConfig, SecretKeys};
use crate::compile::{self, BuildError, Built, Terms};
use crate::engine::{MadeFor, Metering, Target, WASMTIME_VERSION, WORLD, World, settings_digest_of};
use crate::table::{Table, TableError};

/// Why what is in a bundle is not what its source gives.
#[derive(Debug, thiserror::Error)]
pub(super) enum RebuildError {
    #[error(transparent)]
    Stored(#[from] StoredError),
    #[error("build its source again: {0}")]
    Build(#[from] BuildError),
    #[error(
        "its code for {platform} was compiled with wasmtime {found:?}, this is {WASMTIME_VERSION}, which makes other code; \
         build it again with this program, or vouch for what a key signed before with --resign --signed-by PUB"
    )]
    Wasmtime { platform: Platform, found: String },
    #[error(
        "its code for {platform} was compiled with engine settings {found}, these are {expected}; build it again with \
         this program, or vouch for what a key signed before with --resign --signed-by PUB"
    )]
    Engine { platform: Platform, found: Digest, expected: Digest },
    #[error(
        "its code for {platform} has digest {found}, its source builds to {built}; build it again, with this program"
    )]
    Code { platform: Platform, found: Digest, built: Digest },
    #[error("it says that it {what} {said:?}, its source {found:?}; build it again, with this program")]
    Manifest { what: &'static str, said: Vec<String>, found: Vec<String> },
    #[error("its manifest names world {found:?}, which is not known here; build it against {WORLD:?}")]
    NoWorld { found: String },
    #[error(
        "it says that it implements world {said:?}, its source \"{found}\"; build it again, with this program"
    )]
    World { said: String, found: World },
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Confidential(#[from] ConfidentialError),
}

/// A policy that could not even start within its own limits.
#[derive(Debug, thiserror::Error)]
#[error("it starts with {needs} {what}, its limit would be {limit}; raise {option}")]
pub(super) struct LimitError {
    what: &'static str,
    needs: u64,
    limit: u32,
    option: &'static str,
}

/// Compiles the source for each platform of the bundle and compares, byte for byte. Data is not compiled: it is looked at as
/// whoever maps it does.
pub(super) fn rebuild(stored: &Stored, secrets: Option<&SecretKeys>) -> Result<(), RebuildError> {
    let config = &stored.bundle.config;
    if config.kind() == Kind::Data {
        Table::check(stored.table(secrets)?)?;
        return Ok(());
    }
    // Said first, since everything else follows from it.
    for compiled in &config.compiled {
        check_compiler(compiled, Metering::of(&config.limits))?;
    }
    let platforms: Vec<Platform> = config.compiled.iter().map(|compiled| compiled.platform).collect();
    let built = compile::build(&stored.source(secrets)?, terms(config)?, &platforms)?;
    check_manifest(config, &built)?;
    for CompiledFor { platform, cwasm: found, .. } in &config.compiled {
        let plain = built.code_for(*platform).unwrap_or_default();
        let built = match &config.confidential {
            None => Digest::of(plain),
            // The same code, encrypted again, is the same bytes.
            Some(id) => {
                let key = secrets.unwrap_or(&SecretKeys::default()).named(id)?.clone();
                Digest::of(&encrypt(&key, LayerOf::Code(config, *platform), plain)?)
            }
        };
        if built != *found {
            return Err(RebuildError::Code { platform: *platform, found: *found, built });
        }
    }
    Ok(())
}

/// What a manifest says of how its source is to be read.
pub(super) fn terms(config: &PolicyConfig) -> Result<Terms, RebuildError> {
    let world = World::named(&config.world);
    let world = world.ok_or_else(|| RebuildError::NoWorld { found: config.world.clone() })?;
    Ok(Terms { world: Some(world), metering: Metering::of(&config.limits) })
}

/// Is the manifest what the source asks for? Without compiling it.
pub(super) fn check_manifest(config: &PolicyConfig, built: &Built) -> Result<(), RebuildError> {
    if config.world != built.world.name() {
        return Err(RebuildError::World { said: config.world.clone(), found: built.world });
    }
    for (what, said, found) in
        [("imports", &config.imports, &built.imports), ("exports", &config.exports, &built.exports)]
    {
        if said != found {
            return Err(RebuildError::Manifest { what, said: said.clone(), found: found.clone() });
        }
    }
    Ok(check_limits(&config.limits, built)?)
}

pub(super) fn check_limits(limits: &Limits, built: &Built) -> Result<(), LimitError> {
    for (what, needs, limit, option) in [
        ("bytes of memory", built.memory, limits.memory, "--memory"),
        ("table elements", built.table_elements, limits.table_elements, "--table-elements"),
    ] {
        if needs > limit.into() {
            return Err(LimitError { what, needs, limit, option });
        }
    }
    Ok(())
}

fn check_compiler(compiled: &CompiledFor, metering: Metering) -> Result<(), RebuildError> {
    let CompiledFor { platform, wasmtime, engine, .. } = compiled;
    if wasmtime != WASMTIME_VERSION {
        return Err(RebuildError::Wasmtime { platform: *platform, found: wasmtime.clone() });
    }
    let expected = settings_digest_of(Target::of(*platform), metering);
    if *engine != expected {
        return Err(RebuildError::Engine { platform: *platform, found: *engine, expected });
    }
    Ok(())
}

/// What code says of itself has to be what the manifest says of it.
pub(super) fn check_code(declared: &CompiledFor, found: &MadeFor) -> Result<(), String> {
    let CompiledFor { platform, wasmtime, engine, .. } = declared;
    if found.platform != Some(*platform) {
        let found = found.platform.map_or_else(|| "another machine".to_owned(), |found| found.to_string());
        return Err(format!("the code for {platform} is code for {found}"));
    }
    if found.wasmtime != *wasmtime {
        let (found, said) = (&found.wasmtime, wasmtime);
        return Err(format!(
            "the code for {platform} is from wasmtime {found:?}, its manifest says {said:?}"
        ));
    }
    if found.settings != *engine {
        let found = found.settings;
        return Err(format!(
            "the code for {platform} has engine settings {found}, its manifest says {engine}"
        ));
    }
    Ok(())
}
