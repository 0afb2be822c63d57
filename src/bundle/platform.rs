//! Which machines code is for, in OCI's words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::artifact::Architecture;

/// A machine that policies are compiled for. Written "linux/amd64" and "linux/arm64".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Platform {
    LinuxAmd64,
    LinuxArm64,
}

/// A platform that nothing is compiled for here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not known; known are linux/amd64 and linux/arm64")]
pub struct UnknownPlatform(String);

impl Platform {
    pub const ALL: [Self; 2] = [Self::LinuxAmd64, Self::LinuxArm64];

    /// The one this process runs on.
    #[must_use]
    pub const fn host() -> Self {
        match Architecture::host() {
            Architecture::X86_64 => Self::LinuxAmd64,
            Architecture::Aarch64 => Self::LinuxArm64,
        }
    }

    /// OCI's `architecture`; its `os` is "linux".
    #[must_use]
    pub const fn oci_architecture(self) -> &'static str {
        match self {
            Self::LinuxAmd64 => "amd64",
            Self::LinuxArm64 => "arm64",
        }
    }

    #[must_use]
    pub const fn architecture(self) -> Architecture {
        match self {
            Self::LinuxAmd64 => Architecture::X86_64,
            Self::LinuxArm64 => Architecture::Aarch64,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.oci_architecture())
    }
}

impl FromStr for Platform {
    type Err = UnknownPlatform;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|platform| platform.to_string() == text)
            .ok_or_else(|| UnknownPlatform(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Platform {
    type Error = UnknownPlatform;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}
