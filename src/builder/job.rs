//! What a builder is asked to do, and what it answers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::cache::{Cache, CacheError, Recalled};
use super::trial::{self, TrialError};
use super::{BuilderError, cut};
use crate::artifact::{ARTIFACT_MAX, Ceiling, Digest, Limits, Mapped, NotCounted, SealError, SealedBytes};
use crate::bundle::{Platform, PolicyConfig};
use crate::compile::{self, BuildError, Built, SOURCE_MAX, Terms};
use crate::engine::{Engines, MadeFor, Metering, Target, Unfit, WORLD, World};
use crate::wire::job::{Job, Report};

/// Longest reason that is reported, bytes: one screen.
const WHY_MAX: usize = 4096;

/// What there is to do a job with.
pub(super) struct Workshop {
    /// For one instance of a policy, with the memory of the class.
    pub(super) engines: Arc<Engines>,
    pub(super) cache: Cache,
    /// Largest linear memory of an instance of this class, bytes.
    pub(super) memory: u32,
    /// Largest code, bytes.
    pub(super) output: u64,
}

/// Why a policy is no good, or why the job cannot be done.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("job came with {found} descriptors, expected {expected}")]
    Descriptors { found: usize, expected: usize },
    #[error("take source: {0}")]
    Source(#[source] SealError),
    #[error("take code: {0}")]
    Code(#[source] SealError),
    #[error("map source: {0}")]
    Map(#[from] io::Error),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("check policy: its manifest names world {0:?}, which is not served; build it against {WORLD:?}")]
    NoWorld(String),
    #[error(
        "check policy: it implements world \"{found}\", its manifest says {said:?}; build and sign it again"
    )]
    World { found: World, said: String },
    #[error("check policy: it imports {0:?}, which its manifest does not name; build and sign it again")]
    Import(String),
    #[error("check policy: it starts with {needs} {what}, its manifest has a limit of {limit}; raise that")]
    Limit { what: &'static str, needs: u64, limit: u32 },
    #[error(
        "check policy: its memory may have {limit} bytes, the class gives an instance {memory}, and it starts with {needs}; raise `memory` of the class or the tenant"
    )]
    Class { needs: u64, limit: u32, memory: u32 },
    #[error("check policy: it starts with {needs} table elements, here it may have {limit}")]
    Tables { needs: u64, limit: u32 },
    #[error("check policy: {0}")]
    NotCounted(#[from] NotCounted),
    #[error("compile policy for {0}: the compiler gave no code")]
    Nothing(Target),
    #[error("compile policy: its code takes {found} bytes, at most {limit} are kept; raise builder.output")]
    Output { found: usize, limit: u64 },
    #[error("look at code: {0}")]
    Unfit(#[from] Unfit),
    #[error("seal code: {0}")]
    Seal(#[from] SealError),
    #[error("try policy: {0}")]
    Trial(#[from] TrialError),
    #[error("take digests: {0}")]
    Digests(#[source] SealError),
    #[error("take digests: {0} bytes are no whole number of them")]
    DigestBytes(usize),
    #[error("keep code: {0}")]
    Keep(#[from] CacheError),
    #[error("clear cache: {0}")]
    Clear(#[source] CacheError),
}

/// Who reports go to.
type Tell<'a> = dyn Fn(&Report, Option<BorrowedFd<'_>>) -> Result<(), BuilderError> + 'a;

/// What a manifest says of how the source is to be read.
fn terms(manifest: &PolicyConfig) -> Result<Terms, Refused> {
    let world = World::named(&manifest.world).ok_or_else(|| Refused::NoWorld(manifest.world.clone()))?;
    Ok(Terms { world: Some(world), metering: Metering::of(&manifest.limits) })
}

impl Workshop {
    /// Does it and reports. An error is one of reporting: everything that is wrong with the job or the policy is a report.
    pub(super) fn carry_out(
        &self,
        job: Job,
        descriptors: Vec<OwnedFd>,
        tell: impl Fn(&Report, Option<BorrowedFd<'_>>) -> Result<(), BuilderError>,
    ) -> Result<(), BuilderError> {
        let done = match job {
            Job::Check { manifest, ceiling } => {
                self.check(&manifest, &ceiling, descriptors).map(|()| (Report::Sound, None))
            }
            Job::Compile { manifest, ceiling } => self
                .compile(&manifest, &ceiling, descriptors)
                .map(|code| (Report::Compiled { cwasm: code.digest() }, Some(code))),
            Job::Recall { cwasm } => return self.recall(&cwasm, &tell),
            Job::Clear => self.clear(descriptors).map(|()| (Report::Cleared, None)),
        };
        match done {
            Ok((report, code)) => tell(&report, code.as_ref().map(AsFd::as_fd)),
            Err(refused) => {
                tell(&Report::Refused { why: cut(&refused.to_string(), WHY_MAX).to_owned() }, None)
            }
        }
    }

    /// What a signer compiled is believed to come from the source: that is what the signature says. Whether it is a policy,
    /// asks for no more than it may and runs here is looked at.
    fn check(
        &self,
        manifest: &PolicyConfig,
        ceiling: &Ceiling,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Refused> {
        let [source, code] = <[OwnedFd; 2]>::try_from(descriptors)
            .map_err(|found| Refused::Descriptors { found: found.len(), expected: 2 })?;
        let source = SealedBytes::from_fd(source, SOURCE_MAX).map_err(Refused::Source)?;
        let code = SealedBytes::from_fd(code, ARTIFACT_MAX).map_err(Refused::Code)?;
        // Where it lies: with its data in it, it can be as large as all memory that a job has by default.
        let source = Mapped::new(&source)?;
        let built = compile::check_here(&source, terms(manifest)?)?;
        self.within(manifest, ceiling, &built)?;
        MadeFor::read(&code)?.check(Metering::of(&manifest.limits))?;
        Ok(trial::decides(&self.engines, manifest, &built, code, self.ceiling(ceiling))?)
    }

    fn compile(
        &self,
        manifest: &PolicyConfig,
        ceiling: &Ceiling,
        descriptors: Vec<OwnedFd>,
    ) -> Result<SealedBytes, Refused> {
        let [source] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|found| Refused::Descriptors { found: found.len(), expected: 1 })?;
        let source = SealedBytes::from_fd(source, SOURCE_MAX).map_err(Refused::Source)?;
        let source = Mapped::new(&source)?;
        let target = Target::host();
        // What is refused anyway is not compiled first.
        let terms = terms(manifest)?;
        self.within(manifest, ceiling, &compile::check_here(&source, terms)?)?;
        let built = compile::build_here(&source, terms, &[target])?;
        let bytes = built.code_for(Platform::host()).ok_or(Refused::Nothing(target))?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > self.output.min(ARTIFACT_MAX as u64) {
            return Err(Refused::Output { found: bytes.len(), limit: self.output });
        }
        let code = SealedBytes::of(bytes)?;
        trial::decides(&self.engines, manifest, &built, code.try_clone()?, self.ceiling(ceiling))?;
        // What is confidential lies on no disk in plain.
        if manifest.confidential.is_none() {
            self.cache.keep(code.digest(), bytes)?;
        }
        Ok(code)
    }

    /// It asks for nothing that its manifest does not say, and fits into what its class gives.
    fn within(&self, manifest: &PolicyConfig, ceiling: &Ceiling, built: &Built) -> Result<(), Refused> {
        if built.world.name() != manifest.world {
            let (found, said) = (built.world, manifest.world.clone());
            return Err(Refused::World { found, said });
        }
        if let Some(import) = built.imports.iter().find(|import| !manifest.imports.contains(import)) {
            return Err(Refused::Import(import.clone()));
        }
        let Limits { memory, table_elements, .. } = manifest.limits;
        for (what, needs, limit) in [
            ("bytes of memory", built.memory, memory),
            ("table elements", built.table_elements, table_elements),
        ] {
            if needs > limit.into() {
                return Err(Refused::Limit { what, needs, limit });
            }
        }
        let given = manifest.limits.within(&self.ceiling(ceiling))?;
        if built.memory > given.memory.into() {
            return Err(Refused::Class { needs: built.memory, limit: memory, memory: given.memory });
        }
        if built.table_elements > given.table_elements.into() {
            let (needs, limit) = (built.table_elements, given.table_elements);
            return Err(Refused::Tables { needs, limit });
        }
        Ok(())
    }

    /// An instance has no more memory than its class's pool, whatever else is said.
    fn ceiling(&self, ceiling: &Ceiling) -> Ceiling {
        ceiling.and(&Ceiling { memory: self.memory, ..Ceiling::MOST })
    }

    fn clear(&self, descriptors: Vec<OwnedFd>) -> Result<(), Refused> {
        let [digests] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|found| Refused::Descriptors { found: found.len(), expected: 1 })?;
        let digests = SealedBytes::from_fd(digests, ARTIFACT_MAX).map_err(Refused::Digests)?;
        let digests = Mapped::new(&digests)?;
        let (whole, rest) = digests.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(Refused::DigestBytes(digests.len()));
        }
        let wanted: Vec<Digest> = whole.iter().map(|bytes| Digest::from_bytes(*bytes)).collect();
        self.cache.check().and_then(|()| self.cache.clear(&wanted)).map_err(Refused::Clear)
    }

    fn recall(&self, wanted: &[Digest], tell: &Tell<'_>) -> Result<(), BuilderError> {
        let lost = |cwasm, why: &str, corrupt| {
            if corrupt {
                tracing::warn!(%cwasm, why, "code in the cache was not whole");
            }
            tell(&Report::Lost { cwasm, why: cut(why, WHY_MAX).to_owned(), corrupt }, None)
        };
        if let Err(error) = self.cache.check() {
            let why = error.to_string();
            return wanted.iter().try_for_each(|cwasm| lost(*cwasm, &why, false));
        }
        for &cwasm in wanted {
            match self.cache.recall(cwasm) {
                Ok(Recalled::Whole(code)) => tell(&Report::Recalled { cwasm }, Some(code.as_fd()))?,
                Ok(Recalled::Missing) => lost(cwasm, "it is not in the cache", false)?,
                Ok(Recalled::Corrupt(why)) => lost(cwasm, &why, true)?,
                Err(error) => lost(cwasm, &error.to_string(), false)?,
            }
        }
        self.cache.sweep(wanted);
        Ok(())
    }
}
