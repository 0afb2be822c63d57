use std::fs;
use std::sync::Arc;

use super::{Built, NotBuilt, Standing, SurveyError, Wanted};
use crate::artifact::{Digest, PublicKey, SealedBytes, SigningKey};
use crate::bundle::write::{self, NewAttachment};
use crate::bundle::{self, ATTACHED_LAYERS_MAX, ATTACHMENTS_MAX, Annotations, media};
use crate::ledger::{Order, Origin, Target, What};
use crate::registry::tests::{NEW_YEAR, World, key, sign, sound, trust};
use crate::signature::{self, Subject};
use crate::trust::Revokes;
use crate::wire::job::Job;

fn activate(policy: &str, bundle: Digest, accept_capabilities: bool) -> Order {
    let (tenant, policy) = key(policy);
    Order::Activate { tenant, policy, bundle, accept_capabilities }
}

fn rollback(policy: &str, version: u64) -> Order {
    let (tenant, policy) = key(policy);
    Order::Rollback { tenant, policy, to: Target::Version(version), reason: "too strict".into() }
}

fn bundles_kept(world: &World) -> usize {
    fs::read_dir(world.state_path().join("bundles")).unwrap().count()
}

#[test]
fn what_is_newer_becomes_active_and_what_is_older_does_not() {
    let mut world = World::with(&["gate"]);
    world.survey();
    assert_eq!(world.serves("gate"), None);
    assert!(world.why("gate").contains("nothing is in the store"), "{}", world.why("gate"));
    for version in [1, 2, 5, 9] {
        world.release("gate", version);
        world.survey();
        assert_eq!(world.serves("gate"), Some(version));
        assert_eq!(world.record("gate").floor, version);
    }
    world.release("gate", 4);
    world.survey();
    assert_eq!(world.serves("gate"), Some(9), "the last good one serves");
    assert!(world.why("gate").contains("version 4, and 9 was active already"), "{}", world.why("gate"));
    world.restart();
    world.survey();
    assert_eq!(world.serves("gate"), Some(9), "the floor is on the disk");
    let previous: Vec<u64> = world.record("gate").previous.iter().map(|entry| entry.version()).collect();
    assert_eq!(previous, [5, 2], "the newest two before it");
    assert_eq!(bundles_kept(&world), 3);
}

#[test]
fn two_bundles_of_one_version_are_told_apart() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 3);
    world.survey();
    let mut other = World::draft("gate", 3);
    other.source = b"something else".to_vec();
    world.deliver(other);
    world.survey();
    assert_eq!(world.serves("gate"), Some(3));
    assert!(world.why("gate").contains("needs a version of its own"), "{}", world.why("gate"));
    world.release("gate", 3);
    world.survey();
    assert_eq!(world.why("gate"), "", "control: the same one is no news");
}

#[test]
fn a_version_very_far_ahead_waits_for_somebody_who_means_it() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 7);
    world.survey();
    let far = 7 + (1 << 32) + 1;
    for version in [far, u64::MAX] {
        world.release("gate", version);
        world.survey();
        assert_eq!((world.serves("gate"), world.record("gate").floor), (Some(7), 7));
        assert!(world.why("gate").contains("very far ahead of 7"), "{}", world.why("gate"));
    }
    world.release("gate", far - 1);
    world.survey();
    assert_eq!(world.serves("gate"), Some(far - 1), "control: by itself, since it is near enough");
    let digest = world.release("gate", u64::MAX);
    world.order(&activate("gate", digest, false));
    world.survey();
    assert_eq!(world.serves("gate"), Some(u64::MAX), "somebody means it");
    // The first one may be any.
    let mut world = World::with(&["gate"]);
    world.release("gate", far);
    world.survey();
    assert_eq!(world.serves("gate"), Some(far));
}

#[test]
fn one_bad_policy_is_named_and_stops_nobody() {
    let mut world = World::with(&["a", "b", "c", "d", "e"]);
    for name in ["a", "b", "c", "d", "e"] {
        world.release(name, 1);
    }
    world.survey();
    for name in ["a", "b", "c", "d", "e"] {
        world.release(name, 2);
    }
    // Not signed by anybody who is known, another policy's, broken, gone.
    let stranger = SigningKey::generate_p256().unwrap();
    let path = world.bundle_path("a");
    world.deliver_at(World::draft("a", 2), &path, &[&stranger]);
    let path = world.bundle_path("b");
    world.deliver_at(World::draft("other", 2), &path, &[&world.release]);
    fs::write(world.bundle_path("c").join("index.json"), b"{}").unwrap();
    fs::remove_dir_all(world.bundle_path("d")).unwrap();
    world.survey();
    let serve: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|name| world.serves(name)).collect();
    assert_eq!(serve, [Some(1), Some(1), Some(1), Some(1), Some(2)]);
    assert!(world.why("a").contains("not trusted here"), "{}", world.why("a"));
    assert!(world.why("b").contains("bundle is policy \"other\", expected \"b\""), "{}", world.why("b"));
    assert!(world.why("c").contains("index.json"), "{}", world.why("c"));
    assert_eq!(world.why("d"), "", "what is gone from the store changes nothing");
    // Said once, not at every survey.
    let before = world.history().len();
    world.survey();
    assert_eq!(world.history().len(), before);
}

#[test]
fn another_tenants_bundle_is_refused() {
    let mut world = World::with(&["gate"]);
    let mut draft = World::draft("gate", 1);
    draft.tenant = crate::decision::Tenant::new("globex").unwrap();
    let path = world.bundle_path("gate");
    world.deliver_at(draft, &path, &[&world.release]);
    world.survey();
    assert_eq!(world.serves("gate"), None);
    assert!(world.why("gate").contains("bundle is for tenant \"globex\", expected \"acme\""));
    world.release("gate", 1);
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "control");
}

#[test]
fn the_store_going_away_changes_nothing() {
    let mut world = World::with(&["gate", "quota"]);
    world.release("gate", 1);
    world.release("quota", 7);
    world.survey();
    fs::remove_dir_all(world.home.path().join("store")).unwrap();
    for _ in 0..2 {
        world.survey();
        assert_eq!((world.serves("gate"), world.serves("quota")), (Some(1), Some(7)));
        world.restart();
    }
}

// ---- widening ----

#[test]
fn what_asks_for_more_waits_for_somebody_who_accepts_it() {
    let mut world = World::with(&["gate"]);
    let mut first = World::draft("gate", 1);
    first.imports = vec!["log".into()];
    world.deliver(first);
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "the first activation is no widening");
    let mut wider = World::draft("gate", 2);
    wider.imports = vec!["clock".into(), "log".into()];
    wider.limits.memory *= 2;
    let digest = world.deliver(wider.clone());
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    let why = world.why("gate");
    assert!(why.contains("import clock") && why.contains("limit memory (bytes) 4194304 -> 8388608"), "{why}");
    assert!(why.contains("--accept-capabilities"), "{why}");

    world.order(&activate("gate", digest, false));
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "an order that does not accept it is not enough");
    let order = world.order(&activate("gate", digest, true));
    world.survey();
    assert_eq!(world.serves("gate"), Some(2));
    assert_eq!(world.record("gate").active.as_ref().unwrap().order, Some(order));

    let mut narrower = World::draft("gate", 3);
    narrower.imports = vec!["clock".into()];
    world.deliver(narrower);
    world.survey();
    assert_eq!(world.serves("gate"), Some(3), "control: what asks for less needs nobody");
    wider.version = 4;
    world.deliver(wider);
    world.survey();
    assert_eq!(world.serves("gate"), Some(3), "what was accepted of one is not accepted of the next");
}

// ---- orders ----

#[test]
fn a_rollback_stays_until_something_newer_or_an_order_comes() {
    let mut world = World::with(&["gate"]);
    let mut digests = vec![];
    for version in [1, 2, 3] {
        digests.push(world.release("gate", version));
        world.survey();
    }
    let order = world.order(&rollback("gate", 2));
    world.survey();
    assert_eq!(world.serves("gate"), Some(2));
    assert_eq!(world.record("gate").floor, 3, "what may come by itself is no lower");
    let event = world.history().iter().find(|event| event.what == What::RolledBack).unwrap().clone();
    assert_eq!((event.version, event.order, event.why.as_str()), (Some(2), Some(order), "too strict"));
    for _ in 0..2 {
        world.survey();
        assert_eq!(world.serves("gate"), Some(2), "version 3 in the store does not come back by itself");
        assert!(world.why("gate").contains("rolled back from"), "{}", world.why("gate"));
        world.restart();
    }
    world.survey();
    world.order(&activate("gate", digests[2], false));
    world.survey();
    assert_eq!(world.serves("gate"), Some(3), "an order brings it back");
    world.order(&rollback("gate", 1));
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    world.release("gate", 4);
    world.survey();
    assert_eq!(world.serves("gate"), Some(4), "something newer comes by itself");
}

#[test]
fn what_is_in_the_store_at_a_rollback_is_left_there() {
    let mut world = World::with(&["gate"]);
    for version in [1, 2] {
        world.release("gate", version);
        world.survey();
    }
    world.order(&rollback("gate", 1));
    world.release("gate", 3);
    world.survey();
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "who goes back does not want what lies there");
    world.release("gate", 4);
    world.survey();
    assert_eq!(world.serves("gate"), Some(4));
}

#[test]
fn an_order_is_carried_out_exactly_once() {
    let mut world = World::with(&["gate"]);
    for version in [1, 2] {
        world.release("gate", version);
        world.survey();
    }
    let number = world.order(&rollback("gate", 1));
    let orders = world.state_path().join("orders");
    let kept = fs::read_dir(&orders).unwrap().next().unwrap().unwrap().path();
    let text = fs::read(&kept).unwrap();
    world.survey();
    assert!(!kept.exists(), "done");
    // Somebody, or a power cut, puts it there again.
    world.release("gate", 5);
    world.survey();
    assert_eq!(world.serves("gate"), Some(5));
    fs::write(&kept, text).unwrap();
    world.restart();
    world.survey();
    assert_eq!(world.serves("gate"), Some(5));
    assert!(!kept.exists());
    let rolled = world.history().iter().filter(|event| event.what == What::RolledBack).count();
    assert_eq!(rolled, 1);
    assert_eq!(world.order(&rollback("gate", 1)), number + 1, "no number is given twice");
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "control: an order of its own");
}

#[test]
fn orders_that_cannot_be_carried_out_are_refused_by_name_and_once() {
    let mut world = World::with(&["gate"]);
    let first = world.release("gate", 1);
    world.survey();
    let other = Digest::of(b"other");
    let cases = [
        (rollback("gate", 7), "version 7 is not kept"),
        (rollback("gate", 1), "active already"),
        (activate("gate", other, true), "active already"),
        (activate("nobody", other, true), "not configured"),
        (Order::Recover { reason: "why not".into() }, "the table is whole"),
        (activate("gate", first, true), "active already"),
    ];
    for (order, why) in cases {
        let number = world.order(&order);
        world.survey();
        let event = world.history().last().unwrap();
        assert_eq!((event.what, event.order), (What::OrderRefused, Some(number)), "{order:?}: {event:?}");
        assert!(event.why.contains(why), "{order:?}: {}", event.why);
        assert_eq!(world.serves("gate"), Some(1));
        let events = world.history().len();
        world.survey();
        assert_eq!(world.history().len(), events);
    }
    fs::write(world.state_path().join("orders/00000000000000000099.json"), b"{}").unwrap();
    world.survey();
    assert!(world.history().last().unwrap().why.contains("is not an order"));
    // The store has something else than what was ordered.
    world.release("gate", 2);
    let number = world.order(&activate("gate", other, true));
    assert_eq!(number, 100);
    world.survey();
    assert!(
        world.history().iter().any(|event| event.order == Some(100) && event.why.contains("the order names"))
    );
    assert_eq!(world.serves("gate"), Some(1));
    world.survey();
    assert_eq!(world.serves("gate"), Some(2), "control: by itself it may");
}

#[test]
fn several_orders_for_one_policy_are_carried_out_in_their_order() {
    let mut world = World::with(&["gate"]);
    let mut last = None;
    for version in [1, 2, 3] {
        last = Some(world.release("gate", version));
        world.survey();
    }
    world.order(&rollback("gate", 2));
    world.order(&rollback("gate", 1));
    world.order(&activate("gate", last.unwrap(), false));
    world.survey();
    assert_eq!(world.serves("gate"), Some(3));
    let events: Vec<_> = world.happened("gate").into_iter().skip(3).collect();
    assert_eq!(
        events,
        [(What::RolledBack, Some(2)), (What::RolledBack, Some(1)), (What::Activated, Some(3)),]
    );
}

#[test]
fn nobody_goes_back_to_what_was_revoked() {
    let mut world = World::with(&["gate"]);
    let first = world.release("gate", 1);
    world.survey();
    world.release("gate", 2);
    world.survey();
    world.revoke(Revokes::Digest(first));
    world.order(&rollback("gate", 1));
    world.survey();
    assert_eq!(world.serves("gate"), Some(2));
    let refused = world.history().iter().find(|event| event.what == What::OrderRefused).unwrap();
    assert!(refused.why.contains("was revoked"), "{}", refused.why);
}

// ---- revoked, expired, no longer trusted ----

#[test]
fn what_is_revoked_stops_and_nothing_older_takes_its_place() {
    for by_key in [false, true] {
        let mut world = World::with(&["gate", "quota"]);
        let other = SigningKey::generate_p256().unwrap();
        world.assignment.trust.text = trust(&[("release", &world.release), ("other", &other)]);
        world.release("gate", 1);
        world.release("quota", 1);
        world.survey();
        let path = world.bundle_path("gate");
        let digest = world.deliver_at(World::draft("gate", 2), &path, &[&other]);
        world.survey();
        assert_eq!(world.serves("gate"), Some(2), "control");
        world.revoke(if by_key { Revokes::Key(other.public_key().id()) } else { Revokes::Digest(digest) });
        world.survey();
        assert_eq!((world.serves("gate"), world.serves("quota")), (None, Some(1)));
        assert!(world.why("gate").contains("revoked"), "{}", world.why("gate"));
        // Neither without the store nor after a restart, nor with an older list.
        fs::remove_dir_all(world.home.path().join("store")).unwrap();
        world.restart();
        world.survey();
        assert_eq!((world.serves("gate"), world.serves("quota")), (None, Some(1)));
        fs::create_dir(world.home.path().join("store")).unwrap();
        world.release("gate", 3);
        world.survey();
        assert_eq!(world.serves("gate"), Some(3), "a good newer one serves");
        let happened = world.happened("gate");
        assert!(happened.contains(&(What::Withdrawn, Some(2))), "{happened:?}");
    }
}

#[test]
fn a_revocation_list_never_goes_back() {
    let mut world = World::with(&["gate"]);
    let digest = world.release("gate", 1);
    world.survey();
    world.revoke(Revokes::Digest(Digest::of(b"nothing")));
    let path = world.home.path().join("store/revocations.json");
    let older = fs::read(&path).unwrap();
    world.revoke(Revokes::Digest(digest));
    world.survey();
    assert_eq!(world.serves("gate"), None, "control");
    for list in [Some(older.as_slice()), None, Some(b"{}")] {
        match list {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        world.survey();
        assert_eq!(world.serves("gate"), None);
        world.restart();
        world.survey();
        assert_eq!(world.serves("gate"), None);
    }
    assert_eq!(world.state.as_ref().unwrap().table().revocations.as_ref().unwrap().version, 2);
}

/// Who may write to the store may put anything in the list's place.
#[test]
fn what_is_no_plain_file_in_the_lists_place_is_left_and_waited_for_by_nobody() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    let mut world = World::with(&["gate"]);
    let digest = world.release("gate", 1);
    world.survey();
    world.revoke(Revokes::Digest(digest));
    let (list, aside) = (world.home.path().join("store/revocations.json"), world.home.path().join("aside"));
    fs::rename(&list, &aside).unwrap();
    let mode = Mode::from_bits_truncate(0o644);
    for what in ["link", "FIFO", "folder", "1 TiB", "socket", "device", "nothing"] {
        match what {
            "link" => std::os::unix::fs::symlink(&aside, &list).unwrap(),
            "FIFO" => nix::unistd::mkfifo(&list, mode).unwrap(),
            "folder" => fs::create_dir(&list).unwrap(),
            "1 TiB" => fs::File::create(&list).unwrap().set_len(1 << 40).unwrap(),
            "socket" => drop(std::os::unix::net::UnixListener::bind(&list).unwrap()),
            // /dev/zero: whoever reads it never comes to an end.
            "device" if nix::unistd::geteuid().is_root() => {
                mknod(&list, SFlag::S_IFCHR, mode, makedev(1, 5)).unwrap();
            }
            _ => fs::write(&list, b"").unwrap(),
        }
        world.survey();
        assert_eq!(world.serves("gate"), Some(1), "{what}");
        fs::remove_file(&list).or_else(|_| fs::remove_dir(&list)).unwrap();
    }
    fs::rename(&aside, &list).unwrap();
    world.survey();
    assert_eq!(world.serves("gate"), None, "control: the list itself");
}

#[test]
fn a_key_that_is_no_longer_trusted_takes_what_it_signed_with_it_and_comes_back_with_it() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 1);
    world.survey();
    let trusted = world.assignment.trust.text.clone();
    let other = SigningKey::generate_ed25519().unwrap();
    world.assignment.trust.text = trust(&[("other", &other)]);
    fs::remove_dir_all(world.home.path().join("store")).unwrap();
    world.survey();
    assert_eq!(world.serves("gate"), None, "though nobody can read it from the store again");
    world.restart();
    world.survey();
    assert_eq!(world.serves("gate"), None);
    world.assignment.trust.text = trusted;
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    let happened: Vec<_> =
        world.happened("gate").into_iter().filter(|(what, _)| *what != What::Rebuilt).collect();
    assert_eq!(happened, [(What::Activated, Some(1)), (What::Withdrawn, Some(1)), (What::Restored, Some(1))]);
}

#[test]
fn what_expired_does_not_come_back_with_a_clock_that_is_set_back() {
    let mut world = World::with(&["gate"]);
    let pem = world.release.public_key().to_pem().unwrap();
    world.assignment.trust.text = format!(
        "[signer.release]\nkey = \"\"\"\n{pem}\"\"\"\nnot_after = 2026-02-01T00:00:00Z\n[default]\nall_of = [\"release\"]\n"
    );
    world.release("gate", 1);
    let findings = world.survey();
    let Standing::Serves(served) = &findings.standings[&key("gate")] else { panic!("control: it serves") };
    assert_eq!(served.until.unwrap().to_string(), "2026-02-01T00:00:00Z");
    world.wall.set(NEW_YEAR + 40 * 86_400);
    world.survey();
    assert_eq!(world.serves("gate"), None);
    for wall in [NEW_YEAR, 0] {
        world.wall.set(wall);
        world.survey();
        assert_eq!(world.serves("gate"), None);
        world.restart();
        world.survey();
        assert_eq!(world.serves("gate"), None, "the table knows how late it was");
    }
}

#[test]
fn a_bundle_that_is_signed_again_outlives_its_first_key() {
    let mut world = World::with(&["gate"]);
    let digest = world.release("gate", 1);
    world.survey();
    let next = SigningKey::generate_p256().unwrap();
    sign(&world.bundle_path("gate"), &next);
    // The overlap: both are trusted.
    world.assignment.trust.text = trust(&[("release", &world.release), ("next", &next)]);
    world.survey();
    assert_eq!(world.record("gate").active.as_ref().unwrap().attached.len(), 2);
    // The end of it, and the store has gone meanwhile.
    fs::remove_dir_all(world.home.path().join("store")).unwrap();
    world.assignment.trust.text = trust(&[("next", &next)]);
    world.restart();
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    let active = world.record("gate").active.clone().unwrap();
    assert_eq!((active.bundle, active.evidence.signers.len()), (digest, 1));
    assert!(!world.happened("gate").iter().any(|(what, _)| *what == What::Withdrawn));
    // Control: without the second signature it ends.
    world.assignment.trust.text = trust(&[("third", &SigningKey::generate_ed25519().unwrap())]);
    world.survey();
    assert_eq!(world.serves("gate"), None);
}

/// As cosign attached signatures before there were sigstore bundles: under a tag, without a subject.
#[test]
fn a_bundle_that_cosign_signed_in_its_older_form_becomes_active() {
    use base64ct::Encoding as _;

    let mut world = World::with(&["gate"]);
    let path = world.bundle_path("gate");
    let bundle = world.deliver_at(World::draft("gate", 1), &path, &[]);
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(path.join("blobs/sha256").join(hex::encode(digest.as_bytes())), bytes).unwrap();
        format!(r#""digest":"{digest}","size":{}"#, bytes.len())
    };
    let attach = |signer: &SigningKey| {
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":""}},"image":{{"docker-manifest-digest":"{bundle}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = base64ct::Base64::encode_string(&signer.sign(payload.as_bytes()));
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{}}},"layers":[{{"mediaType":"{}",{},"annotations":{{"dev.cosignproject.cosign/signature":"{signature}"}}}}]}}"#,
            crate::bundle::media::OCI_MANIFEST,
            put(b"{}"),
            crate::bundle::media::COSIGN_SIMPLE_SIGNING,
            put(payload.as_bytes()),
        );
        put(manifest.as_bytes());
        crate::bundle::write::finish(&path, bundle, &[Digest::of(manifest.as_bytes())]).unwrap();
    };
    attach(&SigningKey::generate_p256().unwrap());
    world.survey();
    assert_eq!(world.serves("gate"), None, "control: by a stranger");
    attach(&world.release);
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "{}", world.why("gate"));
    // It is kept with it.
    fs::remove_dir_all(world.home.path().join("store")).unwrap();
    world.restart();
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
}

#[test]
fn what_strangers_attach_to_an_active_bundle_is_not_kept() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 1);
    world.survey();
    for _ in 0..20 {
        sign(&world.bundle_path("gate"), &SigningKey::generate_ed25519().unwrap());
    }
    world.survey();
    assert_eq!(world.record("gate").active.as_ref().unwrap().attached.len(), 1);
    assert_eq!(world.serves("gate"), Some(1));
}

// ---- builders ----

#[test]
fn what_a_builder_finds_no_good_is_held_back_and_not_built_again_by_itself() {
    let mut world = World::with(&["bomb", "gate"]);
    let mut no = |wanted: &super::Wanted| match &wanted.job {
        Job::Compile { manifest, .. } if manifest.policy.as_str() == "bomb" => {
            Err(NotBuilt { why: "builder killed by SIGXCPU".into(), lasting: true })
        }
        _ => sound(wanted),
    };
    let bomb = world.release("bomb", 1);
    world.release("gate", 1);
    world.survey_with(&mut no).unwrap();
    assert_eq!((world.serves("bomb"), world.serves("gate")), (None, Some(1)));
    assert!(world.why("bomb").contains("SIGXCPU"), "{}", world.why("bomb"));
    assert_eq!(bundles_kept(&world), 1, "what is no good is not kept");
    world.asked.clear();
    world.survey_with(&mut no).unwrap();
    assert!(world.asked.is_empty(), "{:?}", world.asked);
    assert!(world.why("bomb").contains("SIGXCPU"));
    world.order(&activate("bomb", bomb, false));
    world.survey();
    assert_eq!(
        (world.asked.as_slice(), world.serves("bomb")),
        (&["compile"][..], Some(1)),
        "who asks gets it built again"
    );
}

#[test]
fn a_bomb_is_not_tried_again_by_a_registry_that_starts_anew() {
    let mut world = World::with(&["bomb"]);
    let mut no = |_: &super::Wanted| Err(NotBuilt { why: "builder killed by SIGXCPU".into(), lasting: true });
    let bomb = world.release("bomb", 1);
    world.survey_with(&mut no).unwrap();
    assert_eq!(world.asked, ["compile"], "control");
    for _ in 0..2 {
        world.restart();
        world.asked.clear();
        world.survey_with(&mut no).unwrap();
        assert!(world.asked.is_empty(), "{:?}", world.asked);
        assert!(world.why("bomb").contains("SIGXCPU"), "{}", world.why("bomb"));
    }
    // Another bundle, and an operator's word, are tried.
    world.release("bomb", 2);
    world.survey_with(&mut no).unwrap();
    assert_eq!(world.asked, ["compile"]);
    world.restart();
    world.release("bomb", 1);
    world.order(&activate("bomb", bomb, false));
    world.survey();
    assert_eq!(world.serves("bomb"), Some(1));
    assert_eq!(world.record("bomb").held_back, None);
}

#[test]
fn a_builder_that_there_was_not_is_asked_for_again() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 1);
    let mut none =
        |_: &super::Wanted| Err(NotBuilt { why: "no builder: out of processes".into(), lasting: false });
    world.survey_with(&mut none).unwrap();
    assert!(world.why("gate").contains("out of processes"));
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
}

#[test]
fn what_a_cache_lost_is_compiled_again_from_the_kept_source_and_counted() {
    let mut world = World::with(&["gate", "quota"]);
    world.release("gate", 1);
    world.release("quota", 1);
    world.survey();
    assert_eq!(world.record("gate").active.as_ref().unwrap().code.origin, Origin::Builder);
    fs::remove_dir_all(world.home.path().join("store")).unwrap();
    world.restart();
    world.asked.clear();
    let mut remembered = vec![];
    let mut cache = |wanted: &super::Wanted| match &wanted.job {
        Job::Recall { cwasm } => {
            remembered.push(cwasm.clone());
            let good = b"compiled source of quota 1";
            let found = vec![Arc::new(SealedBytes::of(good).unwrap())];
            let lost = cwasm.iter().filter(|digest| **digest != Digest::of(good));
            let why = "code was broken in the cache: it has another digest";
            Ok(Built::Recalled { found, lost: lost.map(|digest| (*digest, why.into())).collect() })
        }
        _ => sound(wanted),
    };
    let rebuilt = world.survey_with(&mut cache).unwrap().rebuilt;
    assert_eq!((world.serves("gate"), world.serves("quota"), rebuilt), (Some(1), Some(1), 1));
    assert_eq!(world.asked, ["recall", "compile"]);
    assert_eq!(remembered[0].len(), 2);
    let event = world.history().last().unwrap();
    assert_eq!(event.what, What::Rebuilt);
    assert!(event.why.contains("was broken in the cache"), "{}", event.why);
    let counted = |world: &World| (world.record("gate").rebuilt, world.record("quota").rebuilt);
    assert_eq!(counted(&world), (1, 0), "and it is known how often");
    world.asked.clear();
    world.survey();
    assert!(world.asked.is_empty(), "what is in memory is not asked for: {:?}", world.asked);
}

#[test]
fn a_cache_that_cannot_be_asked_does_not_stop_what_can_be_built() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 1);
    world.survey();
    world.restart();
    let mut dead = |wanted: &super::Wanted| match &wanted.job {
        Job::Recall { .. } => Err(NotBuilt { why: "builder was killed".into(), lasting: true }),
        _ => sound(wanted),
    };
    world.survey_with(&mut dead).unwrap();
    assert_eq!(world.serves("gate"), Some(1));
    world.restart();
    let mut all_dead = |_: &super::Wanted| Err(NotBuilt { why: "builder was killed".into(), lasting: true });
    world.survey_with(&mut all_dead).unwrap();
    assert_eq!(world.serves("gate"), None);
    assert_eq!(world.record("gate").active.as_ref().unwrap().version(), 1, "it is still the active one");
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
}

// ---- the whole of it ----

#[test]
fn a_wrong_trust_policy_changes_nothing_at_all() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 1);
    world.survey();
    let revision = world.state.as_ref().unwrap().table().revision;
    world.assignment.trust.text.push_str("\n[defalt]\n");
    let Err(SurveyError::Trust(errors)) = world.survey_with(&mut sound) else { panic!("refused") };
    assert!(errors.to_string().starts_with("trust.toml:"), "{errors}");
    assert_eq!(world.state.as_ref().unwrap().table().revision, revision);
}

#[test]
fn a_kept_bundle_that_was_changed_is_noticed_and_put_back_from_the_store() {
    let mut world = World::with(&["gate"]);
    let digest = world.release("gate", 1);
    world.survey();
    let kept = world.state_path().join("bundles").join(format!("{}.tar", hex::encode(digest.as_bytes())));
    let whole = fs::read(&kept).unwrap();
    let mut changed = whole.clone();
    let at = changed.windows(9).position(|window| window == b"source of").unwrap();
    changed[at] ^= 1;
    fs::write(&kept, &changed).unwrap();
    world.restart();
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "what the store has is the same bundle");
    assert_eq!(fs::read(&kept).unwrap(), whole);
    fs::write(&kept, &changed).unwrap();
    fs::remove_dir_all(world.home.path().join("store")).unwrap();
    world.restart();
    world.survey();
    assert_eq!(world.serves("gate"), None);
    assert!(world.why("gate").contains("it was changed"), "{}", world.why("gate"));
}

#[test]
fn a_floor_outlives_its_policy_in_the_configuration() {
    let mut world = World::with(&["gate"]);
    world.release("gate", 5);
    world.survey();
    let all = std::mem::take(&mut world.assignment.tenants);
    world.survey();
    world.release("gate", 2);
    world.restart();
    world.assignment.tenants = all;
    world.survey();
    assert_eq!((world.serves("gate"), world.record("gate").floor), (Some(5), 5));
}

#[test]
fn what_serves_is_signed_with_the_hosts_key() {
    let mut world = World::with(&["gate"]);
    let bundle = world.release("gate", 1);
    world.survey();
    let Standing::Serves(served) = world.standing("gate").clone() else { panic!("serves") };
    let host = world.state.as_ref().unwrap().key().public_key();
    let (tenant, policy) = key("gate");
    let verify = |key: &PublicKey| {
        let expected = crate::artifact::Expected { tenant: &tenant, policy: &policy, minimum_version: 1 };
        let code = served.code.try_clone().unwrap();
        crate::artifact::verify(code, &served.signed, std::slice::from_ref(key), &expected)
    };
    let artifact = verify(&host).unwrap();
    assert_eq!(artifact.statement().bundle, bundle);
    verify(&world.release.public_key()).expect_err("not with anybody else's");
}

// ---- races and sizes ----

/// Somebody swaps good and bad bundles under the reader's hands.
#[test]
fn a_hundred_thousand_renames_show_the_old_bundle_or_the_new_one() {
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

    use crate::bundle::{Ownership, open_policy};
    use crate::registry::setting::Setting;
    use crate::registry::{clock::timestamp, evidence};
    use crate::trust::Revocations;

    const ROUNDS: u32 = 100_000;
    let world = World::with(&["gate"]);
    let stranger = SigningKey::generate_ed25519().unwrap();
    let aside = world.home.path().join("store/aside");
    fs::create_dir(&aside).unwrap();
    let old = world.deliver_at(World::draft("gate", 1), &aside.join("0"), &[&world.release]);
    let new = world.deliver_at(World::draft("gate", 2), &aside.join("1"), &[&world.release]);
    // Signed by a stranger; a changed byte of the source; another bundle's index; a link; something that is no folder.
    world.deliver_at(World::draft("gate", 3), &aside.join("2"), &[&stranger]);
    world.deliver_at(World::draft("gate", 4), &aside.join("3"), &[&world.release]);
    let blobs = aside.join("3/blobs/sha256");
    for blob in fs::read_dir(&blobs).unwrap() {
        let path = blob.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    world.deliver_at(World::draft("gate", 5), &aside.join("4"), &[&world.release]);
    fs::copy(aside.join("0/index.json"), aside.join("4/index.json")).unwrap();
    std::os::unix::fs::symlink("../aside/0", aside.join("5")).unwrap();
    fs::write(aside.join("6"), b"").unwrap();
    let place = world.bundle_path("gate");
    world.deliver_at(World::draft("gate", 1), &place, &[&world.release]);

    let setting = Setting::new(world.assignment.clone()).unwrap();
    let store = fs::File::open(world.home.path().join("store")).unwrap();
    let ownership = Ownership::of(&store).unwrap();
    let (tenant, policy) = key("gate");
    let class = setting.class(&key("gate")).unwrap().clone();
    let done = AtomicBool::new(false);
    let mut seen = std::collections::BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 12_345_u64;
            for _ in 0..ROUNDS {
                number =
                    number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let other = aside.join((number >> 33).rem_euclid(7).to_string());
                renameat2(AT_FDCWD, &other, AT_FDCWD, &place, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let accepted = || {
                let layout =
                    open_policy(&store, &tenant, &policy, &ownership).map_err(|error| error.to_string())?;
                let bundle = layout.read().map_err(|error| error.to_string())?;
                let said =
                    evidence::of(&layout, &bundle, &setting.anchors).map_err(|error| error.to_string())?;
                let about = (bundle.digest(), &bundle.config);
                let rules = (&Revocations::none(), timestamp(NEW_YEAR));
                setting.judge(&key("gate"), &class, about, &said, rules)?;
                let source = layout.bytes(&bundle.source, 1 << 20).map_err(|error| error.to_string())?;
                Ok::<_, String>((bundle.digest(), bundle.config.version, source))
            };
            let found = match accepted() {
                Ok((digest, version, source)) => {
                    assert_eq!(digest, if version == 1 { old } else { new });
                    assert_eq!(source, format!("source of gate {version}").into_bytes());
                    version
                }
                Err(_) => 0,
            };
            *seen.entry(found).or_insert(0_u32) += 1;
        }
    });
    println!("{ROUNDS} renames, read meanwhile (0: refused): {seen:?}");
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "each of the three was met");
}

#[test]
fn a_thousand_policies_are_surveyed() {
    let names: Vec<String> = (0..1000).map(|number| format!("policy-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::with(&names);
    for name in &names {
        world.release(name, 1);
    }
    let began = std::time::Instant::now();
    world.survey();
    let first = began.elapsed();
    assert_eq!(bundles_kept(&world), 1000);
    let began = std::time::Instant::now();
    world.survey();
    let again = began.elapsed();
    let shelf = world.shelf();
    world.restart();
    let mut cache = |wanted: &super::Wanted| match &wanted.job {
        Job::Recall { cwasm } => {
            let found = cwasm.iter().map(|digest| shelf[digest].clone()).collect();
            Ok(Built::Recalled { found, lost: vec![] })
        }
        _ => panic!("nothing is built again"),
    };
    let began = std::time::Instant::now();
    world.survey_with(&mut cache).unwrap();
    let warm = began.elapsed();
    assert!(names.iter().all(|name| world.serves(name) == Some(1)));
    let table = fs::metadata(world.state_path().join("table.json")).unwrap().len();
    println!(
        "1000 policies: first {first:?}, again {again:?}, after a restart {warm:?}; table {table} bytes"
    );
}

// ---- a hostile store ----

/// Attaches bytes as a sigstore bundle, or as something else.
fn attach(world: &World, policy: &str, media_type: &str, bytes: Vec<u8>) {
    let attachment = NewAttachment::one(media_type, bytes, Annotations::default());
    write::attach(&world.bundle_path(policy), &attachment, |_| false).unwrap();
}

#[test]
fn copies_of_one_good_signature_do_not_drive_out_another() {
    let mut world = World::with(&["gate"]);
    let other = SigningKey::generate_p256().unwrap();
    let both = trust(&[("release", &world.release), ("other", &other)]).replace("minimum = 1", "minimum = 2");
    world.assignment.trust.text = both;
    world.release("gate", 1);
    sign(&world.bundle_path("gate"), &other);
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    // White space makes another attachment of the same signature: as many as a bundle may have.
    let bundle = bundle::open_path(&world.bundle_path("gate")).unwrap().read().unwrap();
    let signed = signature::sign(&Subject::of(&bundle.index_bytes), &world.release).unwrap();
    for spaces in 1..=ATTACHMENTS_MAX - 2 {
        attach(
            &world,
            "gate",
            media::SIGSTORE_BUNDLE,
            [signed.as_slice(), " ".repeat(spaces).as_bytes()].concat(),
        );
    }
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "{}", world.why("gate"));
    assert_eq!(
        world.record("gate").active.as_ref().unwrap().attached.len(),
        2,
        "none of them says anything new"
    );
    world.restart();
    // Other keys: everything is looked at again.
    let third = SigningKey::generate_ed25519().unwrap();
    let three = [("release", &world.release), ("other", &other), ("third", &third)];
    world.assignment.trust.text = trust(&three).replace("minimum = 1", "minimum = 2");
    world.survey();
    assert_eq!(world.serves("gate"), Some(1), "{}", world.why("gate"));
    // Control: what does say something new is taken, though there is no room for all.
    let path = world.bundle_path("gate");
    write::attach(
        &path,
        &NewAttachment::one(media::SIGSTORE_BUNDLE, vec![b' '], Annotations::default()),
        |_| true,
    )
    .unwrap();
    sign(&path, &third);
    world.survey();
    assert_eq!(world.record("gate").active.as_ref().unwrap().evidence.signers.len(), 3);
}

#[test]
fn what_says_nothing_of_trust_is_kept_only_as_far_as_it_is_small() {
    let kept = |world: &World| {
        let bundles = fs::read_dir(world.state_path().join("bundles")).unwrap();
        bundles.map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let mut world = World::with(&["gate"]);
    world.release("gate", 1);
    attach(&world, "gate", media::SBOM, br#"{"spdxVersion":"SPDX-2.3"}"#.to_vec());
    for number in 0..3 {
        attach(&world, "gate", "application/x-ballast", vec![number; 15 << 20]);
    }
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    assert_eq!(
        world.record("gate").active.as_ref().unwrap().attached.len(),
        2,
        "control: signature and list of parts"
    );
    assert!(kept(&world) < 1 << 20, "{} bytes", kept(&world));
}

#[test]
fn what_a_stranger_wrote_cannot_make_the_table_too_long() {
    let mut world = World::with(&["gate", "quota"]);
    world.release("quota", 1);
    // Each of them would be a sentence; nobody has signed it.
    let mut draft = World::draft("gate", 1);
    draft.imports = (0..5000).map(|number| format!("i{number}")).collect();
    let path = world.bundle_path("gate");
    world.deliver_at(draft, &path, &[]);
    // An unknown field is named in full.
    for policy in ["gate", "quota"] {
        for number in 0..8 {
            let field = format!("{number}{}", "x".repeat(200 << 10));
            attach(&world, policy, media::SIGSTORE_BUNDLE, format!("{{{field:?}:1}}").into_bytes());
        }
    }
    world.survey();
    assert_eq!((world.serves("gate"), world.serves("quota")), (None, Some(1)));
    assert!(world.why("gate").contains("i0"), "control: it is what is said of it");
    let table = fs::metadata(world.state_path().join("table.json")).unwrap().len();
    assert!(table < 64 << 10, "{table} bytes");
}

#[test]
fn a_version_that_nobody_vouches_for_keeps_nothing_out() {
    let mut world = World::with(&["gate"]);
    for version in [1, 2] {
        world.release("gate", version);
        world.survey();
    }
    let path = world.bundle_path("gate");
    let stranger = SigningKey::generate_ed25519().unwrap();
    world.deliver_at(World::draft("gate", u64::MAX), &path, &[&stranger]);
    world.order(&rollback("gate", 1));
    world.survey();
    assert_eq!((world.serves("gate"), world.record("gate").pinned), (Some(1), Some(2)));
    world.release("gate", 3);
    world.survey();
    assert_eq!(world.serves("gate"), Some(3));
}

#[test]
fn what_a_rollback_left_there_is_left_by_the_next_one_too() {
    let mut world = World::with(&["gate"]);
    for version in [1, 2, 3] {
        world.release("gate", version);
        world.survey();
    }
    world.release("gate", 5);
    world.order(&rollback("gate", 2));
    world.survey();
    assert_eq!((world.serves("gate"), world.record("gate").pinned), (Some(2), Some(5)));
    // It is out of the way while somebody goes back once more, and then there again.
    world.release("gate", 3);
    world.order(&rollback("gate", 1));
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    world.release("gate", 5);
    world.survey();
    assert_eq!(world.serves("gate"), Some(1));
    world.release("gate", 6);
    world.survey();
    assert_eq!(world.serves("gate"), Some(6), "control: what is newer comes by itself");
}

#[test]
fn of_what_is_attached_only_so_much_is_looked_at() {
    let mut world = World::with(&["gate"]);
    let third = SigningKey::generate_ed25519().unwrap();
    world.assignment.trust.text = trust(&[("release", &world.release), ("third", &third)]);
    world.release("gate", 1);
    world.survey();
    let path = world.bundle_path("gate");
    let bundle = || bundle::open_path(&path).unwrap().read().unwrap();
    let good = signature::sign(&Subject::of(&bundle().index_bytes), &third).unwrap();
    let attached = |layers: Vec<Vec<u8>>| {
        let layer = |bytes| write::NewLayer {
            media_type: media::SIGSTORE_BUNDLE.into(),
            bytes,
            annotations: Annotations::default(),
        };
        NewAttachment {
            artifact_type: media::SIGSTORE_BUNDLE.into(),
            layers: layers.into_iter().map(layer).collect(),
            annotations: Annotations::default(),
        }
    };
    // Each as much as one attachment may have.
    for number in 0..5 {
        let ballast = (0..ATTACHED_LAYERS_MAX).map(|layer| format!("ballast {number} {layer}").into_bytes());
        write::attach(&path, &attached(ballast.collect()), |_| false).unwrap();
    }
    // A good one behind all of them: they are read in the order of their digests.
    let mut last = None;
    for spaces in 1..1000 {
        let one = attached(vec![[good.as_slice(), " ".repeat(spaces).as_bytes()].concat()]);
        write::attach(&path, &one, |other| Some(other.manifest.digest) == last).unwrap();
        let all = bundle().attachments;
        let is_it = |other: &&bundle::Attachment| other.layers[0].size == (good.len() + spaces) as u64;
        last = all.iter().find(is_it).map(|other| other.manifest.digest);
        if all.last().map(|other| other.manifest.digest) == last {
            break;
        }
    }
    let signers = |world: &World| world.record("gate").active.as_ref().unwrap().evidence.signers.len();
    world.survey();
    assert_eq!((world.serves("gate"), signers(&world)), (Some(1), 1), "too far behind");
    // Control: with less in front of it, it is found.
    let with_ballast = |other: &bundle::Attachment| other.layers.len() > 1;
    let fewer = attached(vec![b"ballast".to_vec(), b"more".to_vec()]);
    write::attach(&path, &fewer, with_ballast).unwrap();
    world.survey();
    assert_eq!((world.serves("gate"), signers(&world)), (Some(1), 2));
}

/// What was compiled for it may lie in a cache although the table never had it.
#[test]
fn caches_are_cleared_of_a_tenant_of_whom_the_table_knows_nothing() {
    let mut world = World::with(&["gate"]);
    let acme = world.assignment.tenants.remove(0).tenant;
    world.survey();
    assert!(!world.asked.contains(&"clear"), "control");
    world.assignment.removed = vec![acme];
    let mut dies = |_: &Wanted| Err(NotBuilt { why: "killed".into(), lasting: false });
    world.survey_with(&mut dies).unwrap();
    for asked in [&["clear"][..], &["clear"], &[]] {
        assert_eq!(world.asked, asked);
        world.asked.clear();
        world.survey();
    }
}

/// What there was of a tenant goes, also from the classes' caches; if a cache cannot be cleared it is tried again.
#[test]
fn of_a_tenant_who_is_removed_nothing_is_kept() {
    let table = |world: &World| world.state.as_ref().unwrap().table().clone();
    let mut world = World::with(&["gate"]);
    world.release("gate", 1);
    world.survey();
    assert_eq!(table(&world).policies.len(), 1, "control");
    let acme = world.assignment.tenants.remove(0).tenant;
    world.survey();
    assert_eq!(table(&world).policies.len(), 1, "not configured is not removed");

    world.assignment.removed = vec![acme.clone()];
    world.asked.clear();
    let mut dies = |wanted: &Wanted| match wanted.job {
        Job::Clear => Err(NotBuilt { why: "killed".into(), lasting: false }),
        _ => sound(wanted),
    };
    world.survey_with(&mut dies).unwrap();
    assert_eq!(
        (table(&world).policies.len(), world.asked.as_slice()),
        (1, &["clear"][..]),
        "the cache has it still"
    );
    world.survey();
    let table = table(&world);
    assert!(table.policies.is_empty() && table.entries().next().is_none());
    let about: Vec<What> = table.history.iter().map(|event| event.what).collect();
    assert_eq!(about, [What::TenantRemoved]);
    assert_eq!(table.history[0].tenant.as_ref(), Some(&acme));
    assert_eq!(bundles_kept(&world), 0);
    world.asked.clear();
    world.survey();
    assert!(world.asked.is_empty(), "once is enough");
}
