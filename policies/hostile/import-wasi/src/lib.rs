//! A policy in every respect, but for one import that the world does not have: `build` must refuse it by name.

#![no_std]

extern crate alloc;
extern crate guest as _;

use alloc::vec::Vec;

use bindings::portcullis::policy::types::{
    CacheHint, CacheScope, Decision, Failure, Obligations, Request, Verdict,
};
use bindings::wasi::cli::environment;

mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "portcullis:greedy/greedy",
        inline: "
            package portcullis:greedy;

            world greedy {
                include portcullis:policy/policy@1.0.0;
                import wasi:cli/environment@0.2.0;
            }

            package wasi:cli@0.2.0 {
                interface environment {
                    get-environment: func() -> list<tuple<string, string>>;
                }
            }
        ",
        std_feature,
        disable_run_ctors_once_workaround: true,
        generate_all,
    });
}

struct ImportWasi;

impl bindings::Guest for ImportWasi {
    fn decide(_: Request) -> Result<Decision, Failure> {
        let verdict = match environment::get_environment().first() {
            Some((key, _)) => Verdict::Deny(key.clone()),
            None => Verdict::Allow,
        };
        Ok(Decision {
            verdict,
            obligations: Obligations {
                status: None,
                headers_set: Vec::new(),
                headers_append: Vec::new(),
                headers_remove: Vec::new(),
                body: None,
                metadata: Vec::new(),
            },
            cache: CacheHint { ttl_ms: 0, scope: CacheScope::Request },
        })
    }
}

bindings::export!(ImportWasi with_types_in bindings);
