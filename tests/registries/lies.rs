//! A registry that lies. Each lie is refused in a sentence with the object, the cause and the way out, leaves nothing where
//! anybody would take it for a policy, and with the lie taken away the same pull succeeds.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use portcullis::artifact::Digest;
use serde_json::json;

use crate::desk::{CODE_BYTES, Desk, contents};
use crate::fake::{Body, Fake, Reply, Request, Shelf};

/// Pulls from a registry that lies, then from one that does not. Returns what was said of the lie.
#[track_caller]
fn refused(code: i32, lie: impl Fn(&Request, &Shelf) -> Option<Reply> + Send + Sync + 'static) -> String {
    let desk = Desk::new();
    let shelf = Shelf::of(&desk.path("gate"));
    refused_from(&desk, shelf, code, lie)
}

#[track_caller]
fn refused_from(
    desk: &Desk,
    shelf: Shelf,
    code: i32,
    lie: impl Fn(&Request, &Shelf) -> Option<Reply> + Send + Sync + 'static,
) -> String {
    let error = desk.bad(&pull(&Fake::start(shelf, lie)), code);
    assert_eq!(desk.in_store(), [""; 0], "{error}");
    honest(desk);
    error
}

/// The control: the same pull, from a registry that is honest.
#[track_caller]
fn honest(desk: &Desk) {
    desk.good(&pull(&Fake::honest(Shelf::of(&desk.path("gate")))));
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
}

fn pull(fake: &Fake) -> String {
    format!("pull {} --plain-http --store store", fake.reference())
}

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

/// The largest blob: code, for which a partial answer matters.
fn is_code(request: &Request, shelf: &Shelf) -> bool {
    let digest =
        request.path.strip_prefix("/v2/gate/blobs/").and_then(|digest| digest.parse::<Digest>().ok());
    digest.is_some_and(|digest| shelf.blobs.get(&digest).is_some_and(|bytes| bytes.len() == CODE_BYTES))
}

fn is_manifest_by_digest(request: &Request) -> bool {
    request.path.starts_with("/v2/gate/manifests/sha256:")
}

fn is_tag(request: &Request) -> bool {
    request.path == "/v2/gate/manifests/v1"
}

#[test]
fn other_bytes_than_the_digest_says() {
    let error = refused(1, |request, shelf| {
        is_code(request, shelf).then(|| {
            let mut bytes = shelf.honest(request).bytes();
            bytes[1000] ^= 1;
            Reply::new(200, bytes)
        })
    });
    says(&error, &["get blob sha256:", "digest is sha256:", "expected sha256:", "nothing of them was kept"]);
}

#[test]
fn shorter_or_longer_than_the_descriptor_says() {
    for length in [0, CODE_BYTES - 1, CODE_BYTES + 1, 1 << 20] {
        let error = refused(1, move |request, shelf| {
            is_code(request, shelf).then(|| {
                let mut bytes = shelf.honest(request).bytes();
                bytes.resize(length, 0);
                Reply::new(200, bytes)
            })
        });
        says(
            &error,
            &[
                "get blob sha256:",
                &format!("announces {length} bytes, expected {CODE_BYTES}"),
                "lies about its length",
            ],
        );
    }
}

/// Not even read to its end.
#[test]
fn a_blob_without_an_end_is_cut_off() {
    for body in [Body::Endless, Body::Unannounced(vec![7; CODE_BYTES + 1])] {
        let error = refused(1, move |request, shelf| {
            is_code(request, shelf).then(|| Reply::new(200, "").body(body.clone()))
        });
        says(&error, &["get blob sha256:", &format!("more than {CODE_BYTES} bytes, cut off there")]);
    }
}

#[test]
fn a_truncated_download_is_kept_and_resumed() {
    let desk = Desk::new();
    let shelf = Shelf::of(&desk.path("gate"));
    for body in [
        |bytes: Vec<u8>| Body::Breaks(bytes, 100_000),
        // Without a length the end looks like any other.
        |bytes: Vec<u8>| Body::Unannounced(bytes[..100_000].to_vec()),
    ] {
        let error = desk.bad(
            &pull(&Fake::start(shelf.clone(), move |request, shelf| {
                is_code(request, shelf).then(|| Reply::new(200, "").body(body(shelf.honest(request).bytes())))
            })),
            75,
        );
        says(&error, &["get blob sha256:", "run the same command again", "is kept in \"store/.pull-"]);
        assert_eq!(fs::metadata(desk.part()).unwrap().len(), 100_000);
        assert_eq!(desk.in_store(), [""; 0]);
    }
}

/// The same registry on the same port, so that it is the same reference.
#[test]
fn only_the_rest_of_a_blob_is_asked_for() {
    let (desk, fake) = broken_off();
    desk.good(&pull(&fake));
    let asked = fake.asked();
    let ranges: Vec<_> = asked.iter().filter_map(|request| request.headers.get("range")).collect();
    assert_eq!(ranges, ["bytes=100000-"]);
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
    assert_eq!(desk.partial(), None);
}

/// What is there already is hashed from its first byte.
#[test]
fn a_part_that_was_changed_on_the_disk_is_noticed_and_begun_anew() {
    let (desk, fake) = broken_off();
    let part = fs::File::options().write(true).open(desk.part()).unwrap();
    part.write_all_at(b"x", 0).unwrap();
    let output = desk.run(&pull(&fake));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    says(&said, &["what an earlier try left is wrong, begun anew"]);
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
}

#[test]
fn a_whole_blob_that_was_changed_on_the_disk_is_fetched_again() {
    let (desk, fake) = broken_off();
    let blobs = desk.partial().unwrap().join("blobs/sha256");
    let whole = crate::desk::names(&blobs).into_iter().find(|name| !name.ends_with(".part")).unwrap();
    fs::write(blobs.join(&whole), "{}").unwrap();
    // And links in the way of others, which are not followed.
    let victim = desk.path("victim");
    fs::write(&victim, "mine").unwrap();
    let part = desk.part();
    fs::remove_file(&part).unwrap();
    std::os::unix::fs::symlink(&victim, &part).unwrap();
    desk.good(&pull(&fake));
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
}

#[test]
fn a_registry_that_knows_no_ranges_or_gives_others_is_read_from_the_start() {
    for answer in [
        |bytes: &[u8]| Reply::new(200, bytes),
        |bytes: &[u8]| Reply::new(206, &bytes[5..]).with("content-range", "bytes 5-299999/300000"),
        |bytes: &[u8]| Reply::new(206, &bytes[100_000..]),
    ] {
        let (desk, fake) = broken_off_then(move |request, bytes| {
            request.headers.contains_key("range").then(|| answer(bytes))
        });
        desk.good(&pull(&fake));
        assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
    }
}

fn broken_off() -> (Desk, Fake) {
    broken_off_then(|_, _| None)
}

/// A pull that broke off after 100,000 bytes of the first code, and the registry, which has mended its ways.
fn broken_off_then(then: impl Fn(&Request, &[u8]) -> Option<Reply> + Send + Sync + 'static) -> (Desk, Fake) {
    let desk = Desk::new();
    let times = AtomicUsize::new(0);
    let fake = Fake::start(Shelf::of(&desk.path("gate")), move |request, shelf| {
        if !is_code(request, shelf) {
            return None;
        }
        let whole = Request { headers: Default::default(), ..request.clone() };
        let bytes = shelf.honest(&whole).bytes();
        match times.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Reply::new(200, "").body(Body::Breaks(bytes, 100_000))),
            _ => then(request, &bytes),
        }
    });
    desk.bad(&pull(&fake), 75);
    assert_eq!(fs::metadata(desk.part()).unwrap().len(), 100_000);
    (desk, fake)
}

#[test]
fn an_index_that_is_not_the_digest_asked_for() {
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    let wanted = shelf.bundle;
    shelf.change_index(|index| index["annotations"] = json!({"x": "y"}));
    let other = shelf.blobs[&shelf.bundle].clone();
    shelf.blobs.insert(wanted, other);
    let fake = Fake::honest(shelf);
    let by_digest = format!("pull 127.0.0.1:{}/gate@{wanted} --plain-http --store store", fake.port);
    let error = desk.bad(&by_digest, 1);
    says(
        &error,
        &[
            "get 127.0.0.1:",
            "digest is sha256:",
            &format!("expected {wanted}"),
            "serves other bytes than it says",
        ],
    );
    assert_eq!((desk.in_store(), desk.partial()), (vec![], None));
    let fake = Fake::honest(Shelf::of(&desk.path("gate")));
    desk.good(&format!("pull 127.0.0.1:{}/gate@{wanted} --plain-http --store store", fake.port));
}

#[test]
fn a_manifest_that_does_not_match_its_digest_or_its_length() {
    let error = refused(1, |request, _| is_manifest_by_digest(request).then(|| Reply::new(200, "{}")));
    says(&error, &["get manifest sha256:", "digest is sha256:", "expected sha256:"]);
    let error = refused(1, |request, shelf| {
        is_manifest_by_digest(request).then(|| {
            let mut bytes = shelf.honest(request).bytes();
            bytes.push(b' ');
            Reply::new(200, bytes)
        })
    });
    says(&error, &["get manifest sha256:", "bytes, cut off there"]);
    let error = refused(1, |request, _| {
        is_tag(request).then(|| {
            let index = r#"{"schemaVersion":2,"manifests":[]}"#;
            Reply::new(200, index).with("docker-content-digest", Digest::of(b"another").to_string())
        })
    });
    says(&error, &["digest is sha256:", &Digest::of(b"another").to_string()]);
}

#[test]
fn a_tag_that_moves_meanwhile_changes_nothing() {
    let desk = Desk::new();
    let first = Shelf::of(&desk.path("gate"));
    desk.make("newer", 2);
    let mut both = Shelf::of(&desk.path("newer"));
    both.blobs.extend(first.blobs.clone());
    let (old, times) = (first.bundle, AtomicUsize::new(0));
    let attached = first.attached.clone();
    let fake = Fake::start(both, move |request, shelf| {
        if request.path == format!("/v2/gate/referrers/{old}") {
            let index = json!({"schemaVersion": 2, "manifests": attached});
            return Some(Reply::new(200, index.to_string()));
        }
        // From the second time on it is the newer one.
        (is_tag(request) && times.fetch_add(1, Ordering::SeqCst) == 0)
            .then(|| Reply::new(200, shelf.blobs[&old].clone()))
    });
    assert_eq!(desk.good(&pull(&fake))["version"], 1);
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
    assert_eq!(desk.good(&pull(&fake))["version"], 2);
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("newer")));

    // And where the old manifests went with the tag, nothing is mixed.
    let error = refused(1, |request, _| is_manifest_by_digest(request).then(|| Reply::new(404, "{}")));
    says(&error, &["get manifest sha256:", "answers 404", "check the repository, and the tag or digest"]);
}

#[test]
fn a_huge_manifest_is_cut_off() {
    let error = refused(1, |request, _| {
        is_tag(request).then(|| {
            Reply::new(200, "").with("content-length", (1_u64 << 40).to_string()).body(Body::Endless)
        })
    });
    says(&error, &["get 127.0.0.1:", "more than 16384 bytes, cut off there"]);
    let error = refused(1, |request, _| is_tag(request).then(|| Reply::new(200, "").body(Body::Endless)));
    says(&error, &["more than 16384 bytes, cut off there"]);
    // Huge by what is said of it: not asked for at all.
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    shelf.change_index(|index| index["manifests"][0]["size"] = (1_u64 << 40).into());
    let error = refused_from(&desk, shelf, 1, |_, _| None);
    says(&error, &["manifest sha256:", "more than 16384 bytes"]);
    // What it says of an error has an end too.
    let error = refused(75, |request, _| is_tag(request).then(|| Reply::new(500, "").body(Body::Endless)));
    says(&error, &["answers 500", "run the same command again"]);
}

#[test]
fn blobs_that_are_said_to_be_huge_are_not_asked_for() {
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    let manifest =
        shelf.json(&shelf.bundle.clone())["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let mut changed = shelf.json(&manifest);
    changed["layers"][0]["size"] = (1_u64 << 40).into();
    let text = changed.to_string();
    let digest = shelf.put(text.as_bytes());
    shelf.change_index(|index| {
        index["manifests"][0]["digest"] = digest.to_string().into();
        index["manifests"][0]["size"] = text.len().into();
    });
    shelf.attached.clear();
    let error = refused_from(&desk, shelf, 1, |request, _| {
        assert!(!request.headers.contains_key("range"));
        None
    });
    says(&error, &["blob sha256:", "more than 1073741824 bytes"]);
}

#[test]
fn one_blob_with_two_lengths() {
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    shelf.change_index(|index| {
        let mut again = index["manifests"][0].clone();
        again["size"] = 7.into();
        index["manifests"].as_array_mut().unwrap().push(again);
    });
    let error = refused_from(&desk, shelf, 1, |_, _| None);
    says(&error, &["manifest sha256:", "it is named with", "and with 7 bytes"]);
}

#[test]
fn redirects_go_in_circles_to_other_hosts_or_nowhere() {
    let to = |target: String| {
        move |request: &Request, shelf: &Shelf| {
            is_code(request, shelf).then(|| Reply::new(307, "").with("location", target.clone()))
        }
    };
    let error = refused(1, |request, shelf| {
        is_code(request, shelf).then(|| Reply::new(307, "").with("location", request.path.clone()))
    });
    says(&error, &["get blob sha256:", "sends it on to http://127.0.0.1:", "after 5 others before"]);

    // Somebody else, who hears nothing at all: neither the question nor what we are.
    let other =
        Arc::new(Fake::start(Shelf::of(&Desk::new().path("gate")), |_, _| Some(Reply::new(200, "x"))));
    for (target, why) in [
        (format!("http://127.0.0.1:{}/x", other.port), "only TLS is taken from there"),
        (format!("https://127.0.0.1:{}/x", other.port), "a port that the fetcher may not connect to"),
        ("https://user:secret@localhost/x".to_owned(), "has credentials in it"),
        ("ftp://localhost/x".to_owned(), "which is ftp: only TLS"),
        ("file:///etc/passwd".to_owned(), "which is file: only TLS"),
        ("http://[".to_owned(), "which is no URL"),
    ] {
        let error = refused(1, to(target));
        says(&error, &["get blob sha256:", why, "pull from a registry that serves it itself"]);
        assert!(!error.contains("secret"), "{error}");
    }
    assert_eq!(other.asked().len(), 0);
    let error = refused(1, |request, shelf| is_code(request, shelf).then(|| Reply::new(302, "")));
    says(&error, &["sends it on to nowhere, without a location"]);

    // The control: at the registry itself a redirect is followed.
    let desk = Desk::new();
    let fake = Fake::start(Shelf::of(&desk.path("gate")), |request, shelf| {
        let moved = request.path.replace("/blobs/", "/blobs/moved/");
        match request.path.strip_prefix("/v2/gate/blobs/moved/") {
            Some(name) => {
                let at_home = Request { path: format!("/v2/gate/blobs/{name}"), ..request.clone() };
                Some(shelf.honest(&at_home))
            }
            None => is_code(request, shelf).then(|| Reply::new(307, "").with("location", moved)),
        }
    });
    desk.good(&pull(&fake));
}

/// Nothing is unpacked, so a bomb stays as small as it is.
#[test]
fn compressed_answers_are_refused() {
    for encoding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
        let error = refused(1, move |request, shelf| {
            is_code(request, shelf)
                .then(|| Reply::new(200, shelf.honest(request).bytes()).with("content-encoding", encoding))
        });
        says(&error, &["get blob sha256:", &format!("encoded as {encoding}"), "only plain bytes are taken"]);
    }
    let error = refused(1, |request, _| {
        is_tag(request).then(|| Reply::new(200, "x").with("content-encoding", "gzip"))
    });
    says(&error, &["encoded as gzip"]);
}

#[test]
fn names_that_are_paths() {
    // As digest.
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    shelf.change_index(|index| index["manifests"][0]["digest"] = "sha256:../../../../etc/passwd".into());
    let error = refused_from(&desk, shelf, 1, |_, _| None);
    says(&error, &["it is no OCI index", "expected \\\"sha256:\\\" and 64 hex digits"]);

    // As tenant: in the one config that all manifests have.
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    let replace = |shelf: &mut Shelf, old: &str, new: &str| {
        // A config with another name, and manifests with another config, and an index with other manifests.
        let index = shelf.json(&shelf.bundle.clone());
        let mut renamed = Vec::new();
        for entry in index["manifests"].as_array().unwrap() {
            let digest: Digest = entry["digest"].as_str().unwrap().parse().unwrap();
            let mut manifest = String::from_utf8(shelf.blobs[&digest].clone()).unwrap();
            let config: serde_json::Value = shelf.json(&digest)["config"].clone();
            let config_digest: Digest = config["digest"].as_str().unwrap().parse().unwrap();
            let text = String::from_utf8(shelf.blobs[&config_digest].clone()).unwrap().replace(old, new);
            let changed = shelf.put(text.as_bytes());
            manifest = manifest.replace(&config_digest.to_string(), &changed.to_string());
            manifest = manifest
                .replace(&format!("\"size\":{}}}", config["size"]), &format!("\"size\":{}}}", text.len()));
            renamed.push((
                digest,
                shelf.put(manifest.as_bytes()),
                manifest.len(),
                entry["size"].as_u64().unwrap(),
            ));
        }
        let mut text = String::from_utf8(shelf.blobs[&shelf.bundle].clone()).unwrap();
        for (old, new, size, before) in renamed {
            text =
                text.replace(&format!("\"{old}\",\"size\":{before}"), &format!("\"{new}\",\"size\":{size}"));
        }
        shelf.bundle = shelf.put(text.as_bytes());
        shelf.tags.insert("v1".into(), shelf.bundle);
        shelf.attached.clear();
    };
    replace(&mut shelf, "\"tenant\":\"acme\"", "\"tenant\":\"../../../tmp/x\"");
    let error = refused_from(&desk, shelf, 1, |_, _| None);
    says(&error, &["name \\\"../../../tmp/x\\\"", "must start with a letter a-z or a digit"]);

    // The control: the same change with a name that is one goes to that tenant.
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    replace(&mut shelf, "\"tenant\":\"acme\"", "\"tenant\":\"globex\"");
    let fake = Fake::honest(shelf);
    let error = desk.bad(&format!("{} --tenant acme", pull(&fake)), 1);
    says(&error, &["the bundle is for tenant \"globex\", expected \"acme\"", "nothing was put in place"]);
    assert_eq!(desk.in_store(), [""; 0]);
    let error = desk.bad(&format!("{} --policy other", pull(&fake)), 1);
    says(&error, &["is for policy \"gate\", expected \"other\""]);
    assert_eq!(desk.good(&pull(&fake))["path"], "store/globex/gate");
}

#[test]
fn annotations_that_are_paths() {
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    shelf.change_index(|index| {
        index["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": "../../../tmp/x",
            "org.opencontainers.image.title": "/etc/passwd"});
    });
    shelf.attached.clear();
    let error = refused_from(&desk, shelf, 1, |_, _| None);
    says(&error, &["portcullis: "]);
}

#[test]
fn a_demand_for_credentials_that_never_ends() {
    let desk = Desk::new();
    let config = |host: &str| {
        let text = json!({"auths": {host: {"username": "ann", "password": "hunter2"}}});
        fs::write(desk.path("docker/config.json"), text.to_string()).unwrap();
    };
    let shelf = Shelf::of(&desk.path("gate"));
    let basic = Fake::start(shelf.clone(), |_, _| {
        Some(Reply::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""))
    });
    config(&format!("127.0.0.1:{}", basic.port));
    let error = desk.bad(&pull(&basic), 1);
    says(&error, &["does not accept the password of \"ann\"", "docker login again"]);
    assert!(!error.contains("hunter2"));
    assert_eq!(basic.asked().len(), 2);

    // A token that is given out and then not accepted.
    let bearer = Fake::start(shelf.clone(), |request, _| {
        let host = &request.headers["host"];
        Some(match request.path.as_str() {
            path if path.starts_with("/token") => Reply::new(200, r#"{"token":"abc"}"#),
            _ => Reply::new(401, "{}")
                .with("www-authenticate", format!("Bearer realm=\"http://{host}/token\",service=\"s\"")),
        })
    });
    config(&format!("127.0.0.1:{}", bearer.port));
    let error = desk.bad(&pull(&bearer), 1);
    says(&error, &["does not accept the password of \"ann\""]);
    let asked = bearer.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        asked[1].path.starts_with("/token?service=s&scope=repository%3Agate%3Apull"),
        "{}",
        asked[1].path
    );
    assert!(asked[1].headers["authorization"].starts_with("Basic "));
    assert_eq!(asked[2].headers["authorization"], "Bearer abc");
    assert_eq!((desk.in_store(), desk.partial()), (vec![], None));

    // The control: a registry that accepts its own token.
    let accepts = Fake::start(shelf, |request, _| {
        let host = &request.headers["host"];
        if request.path.starts_with("/token") {
            return Some(Reply::new(200, r#"{"access_token":"abc"}"#));
        }
        let known = request.headers.get("authorization").is_some_and(|value| value == "Bearer abc");
        (!known).then(|| {
            Reply::new(401, "{}").with("www-authenticate", format!("Bearer realm=\"http://{host}/token\""))
        })
    });
    config(&format!("127.0.0.1:{}", accepts.port));
    desk.good(&pull(&accepts));
}

#[test]
fn credentials_are_given_to_nobody_else() {
    let desk = Desk::new();
    let shelf = Shelf::of(&desk.path("gate"));
    let other = Fake::start(shelf.clone(), |_, _| Some(Reply::new(200, r#"{"token":"abc"}"#)));
    for (realm, why) in [
        (format!("http://127.0.0.1:{}/token", other.port), "only TLS is taken from there"),
        ("ftp://localhost/token".to_owned(), "only TLS"),
        ("token".to_owned(), "it sends for a token to \"token\""),
    ] {
        let fake = Fake::start(shelf.clone(), move |_, _| {
            Some(Reply::new(401, "{}").with("www-authenticate", format!("Bearer realm=\"{realm}\"")))
        });
        let config = json!({"auths": {format!("127.0.0.1:{}", fake.port): {"username": "ann", "password": "hunter2"}}});
        fs::write(desk.path("docker/config.json"), config.to_string()).unwrap();
        let error = desk.bad(&pull(&fake), 1);
        says(&error, &[why, "no credentials were sent there"]);
        assert!(fake.asked().iter().all(|request| !request.headers.contains_key("authorization")));
    }
    assert_eq!(other.asked().len(), 0);
    for token in ["{}", r#"{"token":"a\nb"}"#, "not json", r#"{"token":7}"#] {
        let fake = Fake::start(shelf.clone(), move |request, _| {
            let host = &request.headers["host"];
            Some(match request.path.as_str() {
                path if path.starts_with("/token") => Reply::new(200, token),
                _ => Reply::new(401, "{}")
                    .with("www-authenticate", format!("Bearer realm=\"http://{host}/token\"")),
            })
        });
        let error = desk.bad(&pull(&fake), 1);
        says(&error, &["token"]);
    }
    fs::write(desk.path("docker/config.json"), "{}").unwrap();
    honest(&desk);
}

#[test]
fn attachments_that_belong_to_something_else() {
    let desk = Desk::new();
    desk.make("other", 9);
    let other = Shelf::of(&desk.path("other"));
    let mut shelf = Shelf::of(&desk.path("gate"));
    shelf.blobs.extend(other.blobs.clone());
    let (ours, theirs) = (shelf.bundle, other.bundle);
    let mut listed = shelf.attached.clone();
    listed.push(other.attached[0].clone());
    shelf.attached = listed;
    let error = refused_from(&desk, shelf.clone(), 1, |_, _| None);
    says(
        &error,
        &[
            "attachment sha256:",
            &format!("attached to {theirs}, expected {ours}"),
            "lists what belongs to another",
        ],
    );

    // The same where the list is a tag.
    let tag = ours.to_string().replace(':', "-");
    let desk = Desk::new();
    let error = refused_from(&desk, shelf.clone(), 1, move |request, shelf| {
        let index = json!({"schemaVersion": 2, "manifests": shelf.attached});
        match request.path.as_str() {
            path if path.contains("/referrers/") => Some(Reply::new(404, "404 page not found")),
            path if path.ends_with(&format!("/manifests/{tag}")) => Some(Reply::new(200, index.to_string())),
            _ => None,
        }
    });
    says(&error, &["attachment sha256:", "lists what belongs to another"]);

    // Something that belongs to nothing: the bundle's own manifest.
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    let mut manifest = shelf.json(&shelf.bundle.clone())["manifests"][0].clone();
    manifest.as_object_mut().unwrap().remove("platform");
    shelf.attached.push(manifest);
    let error = refused_from(&desk, shelf, 1, |_, _| None);
    says(&error, &["it is attached to nothing, expected sha256:"]);

    // Under cosign's tag: something that is no signature.
    let desk = Desk::new();
    let mut shelf = Shelf::of(&desk.path("gate"));
    let manifest =
        shelf.json(&shelf.bundle.clone())["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    shelf.tags.insert(shelf.cosign_tag(), manifest);
    let error = refused_from(&desk, shelf, 1, |_, _| None);
    says(&error, &["sha256:"]);
}

#[test]
fn a_list_of_attachments_without_an_end() {
    let error = refused(1, |request, _| {
        request.path.contains("/referrers/").then(|| {
            Reply::new(200, r#"{"schemaVersion":2,"manifests":[]}"#)
                .with("link", format!("<{}>; rel=\"next\"", request.path))
        })
    });
    says(&error, &["list what is attached to sha256:", "16 pages of them"]);
    let error = refused(1, |request, _| {
        request.path.contains("/referrers/").then(|| {
            Reply::new(200, r#"{"schemaVersion":2,"manifests":[]}"#)
                .with("link", "<https://localhost/v2/gate/referrers/x>; rel=\"next\"")
        })
    });
    says(&error, &["which is not at the registry"]);
    // The control: two pages.
    let desk = Desk::new();
    let fake = Fake::start(Shelf::of(&desk.path("gate")), |request, shelf| {
        let page = |attached: &[serde_json::Value]| {
            Reply::new(200, json!({"schemaVersion": 2, "manifests": attached}).to_string())
        };
        match request.path.as_str() {
            path if path.ends_with("?last=1") => Some(page(&shelf.attached[1..])),
            path if path.contains("/referrers/") => {
                Some(page(&shelf.attached[..1]).with("link", format!("<{path}?last=1>; rel=\"next\"")))
            }
            _ => None,
        }
    });
    assert_eq!(desk.good(&pull(&fake))["attachments"], 2);
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
}

#[test]
fn what_a_registry_says_cannot_drive_the_terminal() {
    let error = refused(1, |request, _| {
        is_tag(request).then(|| {
            let text = "\u{1b}]0;owned\u{7}\u{1b}[2J\nportcullis: pulled".to_owned() + &"x".repeat(5000);
            Reply::new(403, json!({"errors": [{"code": "DENIED", "message": text}]}).to_string())
        })
    });
    says(&error, &["answers 403 (DENIED: ", "these credentials may not do this"]);
    assert!(!error.contains('\u{1b}') && error.lines().count() == 1 && error.len() < 1000, "{error:?}");
}

#[test]
fn what_is_no_bundle_is_not_put_in_a_store() {
    for text in [
        "",
        "not json",
        "[]",
        r#"{"schemaVersion":1,"manifests":[]}"#,
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
        r#"{"schemaVersion":2,"manifests":[]}"#,
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}"#,
    ] {
        let error = refused(1, move |request, _| is_tag(request).then(|| Reply::new(200, text)));
        says(&error, &["portcullis: "]);
    }
}

/// Something else is at the place already, or the way there is somebody else's.
#[test]
fn nothing_but_a_bundle_is_replaced() {
    let desk = Desk::new();
    let fake = Fake::honest(Shelf::of(&desk.path("gate")));
    fs::create_dir_all(desk.path("store/acme/gate/precious")).unwrap();
    let error = desk.bad(&pull(&fake), 1);
    says(&error, &["store/acme/gate"]);
    assert!(desk.path("store/acme/gate/precious").exists());
    fs::remove_dir_all(desk.path("store/acme/gate")).unwrap();
    fs::write(desk.path("store/acme/gate.tar"), "").unwrap();
    let error = desk.bad(&pull(&fake), 1);
    says(&error, &["store/acme/gate.tar", "remove one"]);
    fs::remove_file(desk.path("store/acme/gate.tar")).unwrap();
    desk.good(&pull(&fake));
    assert_eq!(contents(&desk.path("store/acme/gate")), contents(&desk.path("gate")));
}

#[test]
fn a_push_is_not_sent_somewhere_else() {
    let desk = Desk::new();
    let other = Fake::start(Shelf::of(&desk.path("gate")), |_, _| Some(Reply::new(201, "")));
    let port = other.port;
    for location in [format!("http://127.0.0.1:{port}/upload"), "http://[".to_owned()] {
        let fake = Fake::start(Shelf::of(&desk.path("gate")), move |request, _| {
            Some(match request.method.as_str() {
                "POST" => Reply::new(202, "").with("location", location.clone()),
                _ => Reply::new(404, ""),
            })
        });
        let error = desk.bad(&format!("push gate {} --plain-http", fake.reference()), 1);
        says(&error, &["send blob sha256:", "sends it on to "]);
    }
    assert_eq!(other.asked().len(), 0);
    // A registry that stores something else than it was sent.
    let fake = Fake::start(Shelf::of(&desk.path("gate")), |request, _| {
        Some(match request.method.as_str() {
            "POST" => Reply::new(202, "").with("location", "/v2/gate/blobs/uploads/1"),
            "PUT" if request.path.contains("/manifests/") => {
                Reply::new(201, "").with("docker-content-digest", Digest::of(b"another").to_string())
            }
            "PUT" => {
                assert!(request.path.ends_with(&Digest::of(&request.body).to_string().replace(':', "%3A")));
                Reply::new(201, "")
            }
            _ => Reply::new(404, ""),
        })
    });
    let error = desk.bad(&format!("push gate {} --plain-http", fake.reference()), 1);
    says(&error, &["send manifest sha256:", "stored other bytes than it was sent"]);
}

/// A registry with the referrers API says so with each attachment, and gets no list under a tag.
#[test]
fn the_referrers_api_is_used_where_there_is_one() {
    for kept in [true, false] {
        let desk = Desk::new();
        let fake = Fake::start(Shelf::of(&desk.path("gate")), move |request, _| {
            Some(match request.method.as_str() {
                "POST" => Reply::new(202, "").with("location", "/v2/gate/blobs/uploads/1"),
                "PUT" if kept && String::from_utf8_lossy(&request.body).contains("\"subject\"") => {
                    Reply::new(201, "").with("oci-subject", "x")
                }
                "PUT" => Reply::new(201, ""),
                _ => Reply::new(404, ""),
            })
        });
        let output = desk.run(&format!("push gate {} --plain-http --quiet", fake.reference()));
        let lists = fake.asked().into_iter().filter(|request| request.path.contains("/manifests/sha256-"));
        if kept {
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(lists.count(), 0);
            let last = fake.asked().pop().unwrap();
            assert_eq!((last.method.as_str(), last.path.as_str()), ("PUT", "/v2/gate/manifests/v1"));
        } else {
            // It never has what was written, as if others wrote over it each time.
            assert_eq!(output.status.code(), Some(1));
            says(&String::from_utf8_lossy(&output.stderr), &["list attachments under sha256-", "push again"]);
            assert!(lists.count() >= 4);
            assert!(
                !fake.asked().iter().any(|request| request.path.ends_with("/manifests/v1")),
                "tagged before"
            );
        }
    }
}

#[test]
fn without_tls_only_on_this_machine() {
    let desk = Desk::new();
    let error = desk.bad("pull registry.example:5000/gate:v1 --plain-http --store store", 1);
    says(&error, &["--plain-http is for registries on this machine only", "--insecure-plain-http"]);
    for wrong in [
        "pull gate:v1 --store store",
        "pull localhost/gate --store store",
        "pull localhost/../gate:v1 --store store",
    ] {
        let output = desk.run(wrong);
        assert_eq!(output.status.code(), Some(64), "{wrong}");
    }
    // TLS is what is spoken where nothing is said: a registry without it is not understood.
    let fake = Fake::honest(Shelf::of(&desk.path("gate")));
    let error = desk.bad(&format!("pull {} --store store", fake.reference()), 75);
    says(&error, &["get 127.0.0.1:"]);
    assert_eq!(fake.asked().len(), 0);
}
