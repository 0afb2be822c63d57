//! The versions of the world that policies implement. Each is served for good: a policy that was built and signed against
//! one goes on deciding, in one worker with policies of the others.

use super::host::Importable;

/// A version of `portcullis:policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum World {
    /// The first one: no attributes, no failures, no data, no counters.
    V0_1,
    V1_0,
}

/// The WIT world that policies are built against today, in full.
pub const WORLD: &str = World::LATEST.name();

impl World {
    /// Newest first.
    pub const ALL: [Self; 2] = [Self::V1_0, Self::V0_1];
    pub const LATEST: Self = Self::V1_0;

    /// As in a manifest: "portcullis:policy@1.0.0".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V0_1 => "portcullis:policy@0.1.0",
            Self::V1_0 => "portcullis:policy@1.0.0",
        }
    }

    /// The world of that name, if it is served.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|world| world.name() == name)
    }

    /// "1.0.0"
    #[must_use]
    pub fn version(self) -> &'static str {
        self.name().split_once('@').map_or("", |(_, version)| version)
    }

    /// The world as it was published.
    #[must_use]
    pub const fn wit(self) -> &'static str {
        match self {
            Self::V0_1 => include_str!("../../policies/wit/0.1/policy.wit"),
            Self::V1_0 => include_str!("../../policies/wit/policy.wit"),
        }
    }

    /// What a policy of it may import, sorted by name.
    #[must_use]
    pub const fn capabilities(self) -> &'static [Importable] {
        match self {
            Self::V0_1 => &[Importable::Clock, Importable::Log, Importable::Random],
            Self::V1_0 => &Importable::ALL,
        }
    }

    /// The name of a capability as components import it: "portcullis:policy/clock@1.0.0".
    #[must_use]
    pub fn interface(self, name: &str) -> String {
        format!("portcullis:policy/{name}@{}", self.version())
    }
}

impl std::fmt::Display for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_world_is_the_one_its_name_says_and_has_the_interfaces_that_are_granted() {
        for world in World::ALL {
            assert_eq!(World::named(world.name()), Some(world));
            assert!(world.wit().contains(&format!("\npackage {};\n", world.name())), "{world}");
            let mut interfaces: Vec<_> = world
                .wit()
                .lines()
                .filter_map(|line| line.strip_prefix("interface ")?.strip_suffix(" {"))
                .filter(|name| *name != "types")
                .collect();
            interfaces.sort_unstable();
            let granted: Vec<_> = world.capabilities().iter().map(|one| one.name()).collect();
            assert_eq!(interfaces, granted, "{world}");
        }
        assert_eq!(World::named("portcullis:policy@1.0.1"), None);
        assert_eq!(World::LATEST.interface("clock"), "portcullis:policy/clock@1.0.0");
    }

    /// What is published stays: whoever has to change one of these files makes another world instead.
    #[test]
    fn published_worlds_do_not_change() {
        let digest = |world: World| crate::artifact::Digest::of(world.wit().as_bytes()).to_string();
        assert_eq!(
            digest(World::V0_1),
            "sha256:b4f6902018eb9464d64bfb7ff3df17c987bc58129a3e32fd2ff90ec9f3ea548f"
        );
        assert_eq!(
            digest(World::V1_0),
            "sha256:49c52ec4ed4ea6469da85f1234a7f4a243d7f96e4ee5506f2cb55a7ad244290a"
        );
    }
}
