//! What a new policy consists of, for each language: the files of `policies/template`, which is one policy in all of them.

/// Path in the project, mode, text.
pub(super) type File = (&'static str, u32, &'static str);

/// The word that becomes the policy's name in every file.
pub(super) const NAME: &str = "policy-name";

/// What policies are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Language {
    Rust,
    Go,
    Js,
    Python,
    C,
    #[value(name = "assemblyscript")]
    AssemblyScript,
    Rego,
}

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../../policies/template/", $path))
    };
}

/// The same for every language.
const COMMON: [File; 4] = [
    (".gitignore", 0o644, template!("gitignore")),
    ("cases.json", 0o644, template!("cases.json")),
    ("sign.sh", 0o755, template!("sign.sh")),
    ("test.sh", 0o755, template!("test.sh")),
];
const README: &str = template!("README.md");
const WIT: &str = include_str!("../../../policies/wit/policy.wit");

const RUST: &[File] = &[
    ("Cargo.lock", 0o644, template!("rust/Cargo.lock")),
    ("Cargo.toml", 0o644, template!("rust/Cargo.toml")),
    ("build.sh", 0o755, template!("rust/build.sh")),
    ("src/lib.rs", 0o644, template!("rust/src/lib.rs")),
    ("guest/Cargo.toml", 0o644, include_str!("../../../policies/guest/Cargo.toml")),
    ("guest/src/lib.rs", 0o644, include_str!("../../../policies/guest/src/lib.rs")),
    ("guest/src/heap.rs", 0o644, include_str!("../../../policies/guest/src/heap.rs")),
    ("wit/policy.wit", 0o644, WIT),
];
const GO: &[File] = &[
    ("build.sh", 0o755, template!("go/build.sh")),
    ("go.mod", 0o644, template!("go/go.mod")),
    ("policy.go", 0o644, template!("go/policy.go")),
    ("portcullis/host.go", 0o644, template!("go/portcullis/host.go")),
    ("portcullis/portcullis.go", 0o644, template!("go/portcullis/portcullis.go")),
    ("portcullis/wasm.go", 0o644, template!("go/portcullis/wasm.go")),
    ("requirements.txt", 0o644, template!("go/requirements.txt")),
];
const JS: &[File] = &[
    ("build.sh", 0o755, template!("js/build.sh")),
    ("componentize.js", 0o644, template!("js/componentize.js")),
    ("package-lock.json", 0o644, template!("js/package-lock.json")),
    ("package.json", 0o644, template!("js/package.json")),
    ("policy.js", 0o644, template!("js/policy.js")),
    ("portcullis.js", 0o644, template!("js/portcullis.js")),
    ("wit/deps/portcullis/policy.wit", 0o644, WIT),
    ("wit/world.wit", 0o644, template!("js/wit/world.wit")),
];
const PYTHON: &[File] = &[
    ("app.py", 0o644, template!("python/app.py")),
    ("build.sh", 0o755, template!("python/build.sh")),
    ("policy.py", 0o644, template!("python/policy.py")),
    ("portcullis.py", 0o644, template!("python/portcullis.py")),
    ("requirements.txt", 0o644, template!("python/requirements.txt")),
    ("wit/deps/portcullis/policy.wit", 0o644, WIT),
    ("wit/world.wit", 0o644, template!("python/wit/world.wit")),
];
const C: &[File] = &[
    ("build.sh", 0o755, template!("c/build.sh")),
    ("policy.c", 0o644, template!("c/policy.c")),
    ("portcullis.c", 0o644, template!("c/portcullis.c")),
    ("portcullis.h", 0o644, template!("c/portcullis.h")),
    ("requirements.txt", 0o644, template!("c/requirements.txt")),
];
const ASSEMBLYSCRIPT: &[File] = &[
    ("assembly/policy.ts", 0o644, template!("assemblyscript/assembly/policy.ts")),
    ("assembly/portcullis.ts", 0o644, template!("assemblyscript/assembly/portcullis.ts")),
    ("assembly/world.ts", 0o644, template!("assemblyscript/assembly/world.ts")),
    ("build.sh", 0o755, template!("assemblyscript/build.sh")),
    ("package-lock.json", 0o644, template!("assemblyscript/package-lock.json")),
    ("package.json", 0o644, template!("assemblyscript/package.json")),
];
const REGO: &[File] = &[
    ("build.sh", 0o755, template!("rego/build.sh")),
    ("policy/data.json", 0o644, template!("rego/policy/data.json")),
    ("policy/policy.rego", 0o644, template!("rego/policy/policy.rego")),
    ("policy/policy.toml", 0o644, template!("rego/policy/policy.toml")),
];

impl Language {
    /// Every file of a project, the README last: who finds it finds a whole project.
    pub(super) fn files(self, name: &str) -> Vec<(&'static str, u32, String)> {
        let named = |(path, mode, text): &File| (*path, *mode, text.replace(NAME, name));
        let mut files: Vec<_> = self.own().iter().chain(&COMMON).map(named).collect();
        files.sort_unstable_by_key(|(path, ..)| *path);
        files.push(("README.md", 0o644, self.readme().replace(NAME, name)));
        files
    }

    fn own(self) -> &'static [File] {
        match self {
            Self::Rust => RUST,
            Self::Go => GO,
            Self::Js => JS,
            Self::Python => PYTHON,
            Self::C => C,
            Self::AssemblyScript => ASSEMBLYSCRIPT,
            Self::Rego => REGO,
        }
    }

    /// What is told of the language in the README: its files, and what has to be installed.
    fn readme(self) -> String {
        let (files, tools) = match self {
            Self::Rust => (
                "| `src/lib.rs` | the policy |\n\
                 | `guest/` | the bindings of the world, and an allocator for a life of one decision |\n\
                 | `wit/policy.wit` | the world: what a policy is asked, and what it may use |",
                "rustup target add wasm32-unknown-unknown\n\
                 # or: apt-get install rustc-web cargo-web rust-web-src lld",
            ),
            Self::Go => (
                "| `policy.go` | the policy |\n\
                 | `portcullis/` | what it is asked, what it answers, and what it may use of the host |",
                "pip install --require-hashes -r requirements.txt    # Go; any 1.24 or newer in PATH will do",
            ),
            Self::Js => (
                "| `policy.js` | the policy |\n\
                 | `portcullis.js` | answers made with one call |\n\
                 | `componentize.js` | puts it into an engine, SpiderMonkey |\n\
                 | `wit/` | the world, and what this policy asks for of it |",
                "npm ci --ignore-scripts                             # with Node.js 20 or newer",
            ),
            Self::Python => (
                "| `policy.py` | the policy |\n\
                 | `portcullis.py` | the types of the world, and answers made with one call |\n\
                 | `wit/` | the world, and what this policy asks for of it |",
                "pip install --require-hashes -r requirements.txt    # componentize-py, which has the interpreter",
            ),
            Self::C => (
                "| `policy.c` | the policy |\n\
                 | `portcullis.h`, `portcullis.c` | what it is asked, what it answers, and what it may use of the host |",
                "pip install --require-hashes -r requirements.txt    # zig's compiler; or name another in CC",
            ),
            Self::AssemblyScript => (
                "| `assembly/policy.ts` | the policy |\n\
                 | `assembly/portcullis.ts` | what it is asked, what it answers, and what it may use of the host |\n\
                 | `assembly/world.ts` | between the two and the host's memory |",
                "npm ci --ignore-scripts                             # with Node.js 20 or newer",
            ),
            Self::Rego => (
                "| `policy/policy.rego` | the policy |\n\
                 | `policy/data.json` | its data, which becomes part of it |\n\
                 | `policy/policy.toml` | which rule decides, and what its result has to be |",
                "opa version                                         # 1.0 or newer, in PATH or named by OPA_BIN",
            ),
        };
        README.replace("FILES-OF-THE-LANGUAGE", files).replace("TOOLS-OF-THE-LANGUAGE", tools)
    }
}
