//! What a request's target asks for, in OPA's words.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::answer::Refused;

/// What is served.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Health,
    Data { version: Version, path: Cow<'a, str>, wishes: Wishes, input: Option<String> },
}

/// Of the API: in the first one the body is the input, and the answer is the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V0,
    V1,
}

/// What an answer shall have besides the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) pretty: bool,
    pub(super) metrics: bool,
    pub(super) provenance: bool,
    /// How the result came about.
    pub(super) explanation: bool,
}

/// What OPA's clients may look for, and why it is not here.
const NOT_SERVED: [(&str, &str); 8] = [
    ("/v1/policies", "policies come in signed bundles; portcullis status lists those that are served"),
    ("/v1/query", "a policy answers the one question that it was compiled for"),
    ("/v1/compile", "a policy answers the one question that it was compiled for"),
    ("/v1/batch", "one question a request"),
    ("/v1/config", "the operator has it"),
    ("/v1/status", "portcullis status has it"),
    ("/metrics", "the exporter has them"),
    ("/health", "of a service's health there is one kind, /health"),
];

impl<'a> Route<'a> {
    pub(super) fn of(method: &str, target: &'a str) -> Result<Self, Refused> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path == "/health" {
            return only(method, &["GET"], "the service's health is only read").map(|()| Self::Health);
        }
        let (version, path) = match path {
            // The server's own choice of a decision, by the name that it has where nobody names another.
            "/" => (Version::V0, Some("system/main")),
            "/v1/data" | "/v1/data/" => (Version::V1, None),
            "/v0/data" | "/v0/data/" => (Version::V0, None),
            _ => match (path.strip_prefix("/v1/data/"), path.strip_prefix("/v0/data/")) {
                (Some(path), _) => (Version::V1, Some(path)),
                (_, Some(path)) => (Version::V0, Some(path)),
                _ => return Err(not_served(path)),
            },
        };
        let methods: &[&str] = if version == Version::V1 { &["GET", "POST"] } else { &["POST"] };
        only(method, methods, "data is not written here: it comes in signed snapshots")?;
        let path = path.ok_or_else(|| {
            Refused::parameter(
                "all of data at once is not served; name a path that the listener has in its paths",
            )
        })?;
        let (wishes, input) = wishes(query)?;
        Ok(Self::Data { version, path: decoded(path), wishes, input })
    }
}

fn not_served(path: &str) -> Refused {
    let below =
        |api: &str| path.strip_prefix(api).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match NOT_SERVED.iter().find(|(api, _)| below(api)) {
        Some((api, why)) => Refused::not_found(format!("{api} is not served here: {why}")),
        None => Refused::not_found("nothing is served here; decisions are below /v1/data"),
    }
}

fn only(method: &str, methods: &'static [&'static str], why: &str) -> Result<(), Refused> {
    if methods.contains(&method) { Ok(()) } else { Err(Refused::method(methods, why)) }
}

/// Part by part, so that a slash that is a part's own is none between two.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let parts = path.split('/').map(|part| match percent_decode_str(part).decode_utf8() {
        Ok(decoded) if !decoded.contains('/') => decoded,
        // What is left of it is no path's.
        _ => Cow::Borrowed(part),
    });
    Cow::Owned(parts.collect::<Vec<_>>().join("/"))
}

fn wishes(query: &str) -> Result<(Wishes, Option<String>), Refused> {
    let mut wishes = Wishes::default();
    let mut input = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // As OPA has it: a name alone is a yes.
        let is_yes = value.is_empty() || value.eq_ignore_ascii_case("true");
        match name {
            "pretty" => wishes.pretty |= is_yes,
            "metrics" | "instrument" => wishes.metrics |= is_yes,
            "provenance" => wishes.provenance |= is_yes,
            "explain" => wishes.explanation |= !matches!(value, "" | "off"),
            "input" => {
                let value = value.replace('+', " ");
                let value = percent_decode_str(&value).decode_utf8();
                let value = value.map_err(|_| Refused::parameter("input is not UTF-8"))?.into_owned();
                if input.replace(value).is_some() {
                    return Err(Refused::parameter("input comes more than once"));
                }
            }
            _ => {}
        }
    }
    Ok((wishes, input))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(method: &str, target: &str) -> Result<(Version, String), u16> {
        match Route::of(method, target) {
            Ok(Route::Data { version, path, .. }) => Ok((version, path.into_owned())),
            Ok(Route::Health) => panic!("health"),
            Err(refused) => Err(refused.status()),
        }
    }

    #[test]
    fn paths() {
        let v0 = |path: &str| Ok((Version::V0, path.to_owned()));
        let v1 = |path: &str| Ok((Version::V1, path.to_owned()));
        for (method, target, expected) in [
            ("POST", "/v1/data/a/b", v1("a/b")),
            ("GET", "/v1/data/a/b?pretty", v1("a/b")),
            ("POST", "/v0/data/a/b", v0("a/b")),
            ("POST", "/", v0("system/main")),
            ("POST", "/v1/data/a%62/c", v1("ab/c")),
            ("POST", "/v1/data/a%2fb", v1("a%2fb")),
            ("POST", "/v1/data/a/%ff", v1("a/%ff")),
            ("POST", "/v1/data/a/", v1("a/")),
            ("POST", "/v1/data//a", v1("/a")),
            ("POST", "/v1/data", Err(400)),
            ("GET", "/v1/data/?input=1", Err(400)),
            ("POST", "/v0/data", Err(400)),
            ("PUT", "/v1/data", Err(405)),
            ("PUT", "/v1/data/a", Err(405)),
            ("PATCH", "/v1/data/a", Err(405)),
            ("DELETE", "/v1/data/a", Err(405)),
            ("HEAD", "/v1/data/a", Err(405)),
            ("GET", "/v0/data/a", Err(405)),
            ("GET", "/", Err(405)),
            ("PUT", "/v1/policies/a", Err(404)),
            ("GET", "/v1/query?q=1", Err(404)),
            ("POST", "/v1/compile", Err(404)),
            ("POST", "/v1/batch/data/a", Err(404)),
            ("GET", "/health/live", Err(404)),
            ("GET", "/v1/dataa", Err(404)),
            ("GET", "/V1/data/a", Err(404)),
            ("GET", "/v1//data/a", Err(404)),
            ("POST", "/health", Err(405)),
        ] {
            assert_eq!(data(method, target), expected, "{method} {target}");
        }
        assert_eq!(Route::of("GET", "/health?bundles").unwrap(), Route::Health);
    }

    #[test]
    fn parameters() {
        let of = |query: &str| match Route::of("GET", &format!("/v1/data/a?{query}")) {
            Ok(Route::Data { wishes, input, .. }) => Ok((wishes, input)),
            Ok(Route::Health) => panic!("health"),
            Err(refused) => Err(refused.status()),
        };
        let none = Wishes::default();
        for (query, wishes) in [
            ("", none),
            ("pretty", Wishes { pretty: true, ..none }),
            ("pretty=true&metrics=TRUE", Wishes { pretty: true, metrics: true, ..none }),
            ("instrument=true", Wishes { metrics: true, ..none }),
            ("provenance=1", none),
            ("provenance=", Wishes { provenance: true, ..none }),
            ("explain=full", Wishes { explanation: true, ..none }),
            ("explain=off", none),
            ("strict-builtin-errors&unknown=true", none),
        ] {
            assert_eq!(of(query), Ok((wishes, None)), "{query}");
        }
        assert_eq!(of("input=%7B%22a%22:+1%7D&pretty=false"), Ok((none, Some("{\"a\": 1}".into()))));
        assert_eq!(of("input=1&input=2"), Err(400));
        assert_eq!(of("input=%ff"), Err(400));
    }

    proptest! {
        #[test]
        fn hostile_targets_never_panic(target in "/.{0,64}", method in "[A-Z]{1,8}") {
            let _ = Route::of(&method, &target);
            let _ = Route::of("POST", &format!("/v1/data{target}"));
        }
    }
}
