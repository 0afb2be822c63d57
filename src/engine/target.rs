//! Which processors machine code is for: named here, never taken from the machine that happens to compile.
//!
//! One [`Target`] for each platform is what bundles carry ([`Target::of`]). Where the processor lacks something of it, the
//! host compiles the policy's source itself for the best target that it can run ([`Target::host`]).

use crate::bundle::Platform;

/// A processor, as a platform and the instructions beyond its first generation that code may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// x86-64-v2: processors since 2009, and the generic models of virtual machines. Newer extensions (AVX2, BMI) made no
    /// policy faster when we measured.
    Amd64V2,
    /// The first 64-bit processors, and models that pretend to be one: SSE2, which is all that the compiler takes.
    Amd64V1,
    /// Armv8.0-A.
    Arm64,
}

/// An instruction set extension: what the compiler calls it, and how people and std do.
type Extension = (&'static str, &'static str);

const V2: &[Extension] = &[
    ("has_cmpxchg16b", "cmpxchg16b"),
    ("has_popcnt", "popcnt"),
    ("has_sse3", "sse3"),
    ("has_ssse3", "ssse3"),
    ("has_sse41", "sse4.1"),
    ("has_sse42", "sse4.2"),
];

impl Target {
    /// Every target there is; of one platform, the best first.
    pub const ALL: [Self; 3] = [Self::Amd64V2, Self::Amd64V1, Self::Arm64];

    /// What every processor of this platform runs.
    const LEAST: Self = match Platform::host() {
        Platform::LinuxAmd64 => Self::Amd64V1,
        Platform::LinuxArm64 => Self::Arm64,
    };

    /// What code for this platform is compiled for where nobody knows the host.
    #[must_use]
    pub const fn of(platform: Platform) -> Self {
        match platform {
            Platform::LinuxAmd64 => Self::Amd64V2,
            Platform::LinuxArm64 => Self::Arm64,
        }
    }

    /// The best one that this processor can run.
    #[must_use]
    pub fn host() -> Self {
        let mut here = Self::ALL.into_iter().filter(|target| target.platform() == Platform::host());
        here.find(|target| target.missing_here().is_empty()).unwrap_or(Self::LEAST)
    }

    #[must_use]
    pub const fn platform(self) -> Platform {
        match self {
            Self::Amd64V2 | Self::Amd64V1 => Platform::LinuxAmd64,
            Self::Arm64 => Platform::LinuxArm64,
        }
    }

    /// As people write it: "x86-64-v2".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64V2 => "x86-64-v2",
            Self::Amd64V1 => "x86-64",
            Self::Arm64 => "armv8.0-a",
        }
    }

    /// What a processor of this platform needs for it and this one does not have.
    #[must_use]
    pub fn missing_here(self) -> Vec<&'static str> {
        self.extensions().iter().map(|(_, name)| *name).filter(|name| !is_here(name)).collect()
    }

    const fn extensions(self) -> &'static [Extension] {
        match self {
            Self::Amd64V2 => V2,
            Self::Amd64V1 | Self::Arm64 => &[],
        }
    }

    /// Sets the triple and every extension of a compiler's configuration. A triple that is named takes no extension from
    /// this machine, so what is not listed is off.
    #[cfg(feature = "compiler")]
    #[expect(unsafe_code, reason = "wasmtime has no safe way to name a processor's extensions")]
    pub(super) fn set(self, config: &mut wasmtime::Config) -> wasmtime::Result<()> {
        config.target(match self.platform() {
            Platform::LinuxAmd64 => "x86_64-unknown-linux-gnu",
            Platform::LinuxArm64 => "aarch64-unknown-linux-gnu",
        })?;
        for (flag, _) in self.extensions() {
            // JUSTIFICATION: the alternative is what the compiling machine has, which no other build could repeat.
            // SAFETY: unsound are flags that make code for which this process is not made, or that the processor lacks. These
            // are instruction set extensions only, and wasmtime refuses to load code with one that is not there.
            unsafe { config.cranelift_flag_enable(flag) };
        }
        Ok(())
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.platform(), self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn is_here(extension: &str) -> bool {
    match extension {
        "cmpxchg16b" => is_x86_feature_detected!("cmpxchg16b"),
        "popcnt" => is_x86_feature_detected!("popcnt"),
        "sse3" => is_x86_feature_detected!("sse3"),
        "ssse3" => is_x86_feature_detected!("ssse3"),
        "sse4.1" => is_x86_feature_detected!("sse4.1"),
        "sse4.2" => is_x86_feature_detected!("sse4.2"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn is_here(_extension: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_target_is_the_best_that_runs_here() {
        let host = Target::host();
        assert_eq!(host.platform(), Platform::host());
        assert_eq!(host.missing_here(), Vec::<&str>::new());
        let of_platform: Vec<Target> =
            Target::ALL.into_iter().filter(|target| target.platform() == Platform::host()).collect();
        let better = of_platform.iter().take_while(|target| **target != host);
        assert!(better.into_iter().all(|target| !target.missing_here().is_empty()));
        // Each asks for less than the one before it, or it would never be chosen.
        for pair in of_platform.windows(2) {
            assert!(pair[1].extensions().iter().all(|extension| pair[0].extensions().contains(extension)));
            assert!(pair[1].extensions().len() < pair[0].extensions().len());
        }
    }

    /// A name that std does not know would never be there, and the target never used.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_extension_is_looked_for_under_its_name() {
        let source = include_str!("target.rs");
        for (_, name) in V2 {
            assert!(
                source.contains(&format!("\"{name}\" => is_x86_feature_detected!(\"{name}\")")),
                "{name}"
            );
        }
        assert!(!is_here("no such thing"));
    }

    #[test]
    fn a_target_is_named_for_people() {
        assert_eq!(Target::of(Platform::LinuxAmd64).to_string(), "linux/amd64 (x86-64-v2)");
        assert_eq!(Target::of(Platform::LinuxArm64).to_string(), "linux/arm64 (armv8.0-a)");
    }
}
