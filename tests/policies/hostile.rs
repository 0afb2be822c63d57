//! That each hostile guest does what its name says, so that a test which survives it has survived something.

use wasmtime::Trap;

use crate::component;
use crate::guest::types::Verdict;
use crate::guest::{Decision, Failed, Guest, imports, opaque};

fn guest(name: &str) -> Guest {
    Guest::new(&component(&format!("hostile/{name}"))).unwrap()
}

fn answer(name: &str, input: &[u8]) -> wasmtime::Result<Decision> {
    guest(name).ask(&opaque(input), 0)
}

#[track_caller]
fn assert_trap(name: &str, trap: Trap) {
    let error = answer(name, b"x").expect_err(name);
    assert_eq!(error.downcast_ref::<Trap>(), Some(&trap), "{name}: {error:?}");
}

#[test]
fn spinners_spin_until_their_time_ends() {
    for name in ["spin", "spin-fill", "spin-copy"] {
        let error = guest(name).ask_and_interrupt(&opaque(b"x")).expect_err(name);
        assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::Interrupt), "{name}: {error:?}");
    }
    let error = guest("selective").ask_and_interrupt(&opaque(b"spin")).expect_err("spin");
    assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::Interrupt));
}

#[test]
fn trappers_trap_in_their_own_way() {
    assert_trap("trap", Trap::UnreachableCodeReached);
    assert_trap("div-zero", Trap::IntegerDivisionByZero);
    assert_trap("recurse", Trap::StackOverflow);
    assert_trap("grow", Trap::MemoryOutOfBounds);
    assert_trap("out-of-bounds", Trap::MemoryOutOfBounds);
    assert_trap("bad-call", Trap::IndirectCallToNull);
}

#[test]
fn liars_break_the_abi() {
    let liar = guest("lie-lengths");
    for how in b"pahrwnudsUof" {
        let error = liar.ask(&opaque(&[*how]), 0).expect_err(&char::from(*how).to_string());
        assert_eq!(error.downcast_ref::<Trap>(), None, "{}: {error:?}", char::from(*how));
    }
}

#[test]
fn huge_output_is_huge() {
    let huge = guest("huge-output");
    let body = huge.ask(&opaque(b"b"), 0).unwrap().obligations.body.unwrap();
    assert_eq!(body.len(), 3 << 20);
    match huge.ask(&opaque(b"r"), 0).unwrap().verdict {
        Verdict::Deny(reason) => assert_eq!(reason.len(), 3 << 20),
        Verdict::Allow => panic!("allowed"),
    }
    // 300 GB: wasmtime's own limit on what it lifts from a guest must be what ends it here.
    let error = huge.ask(&opaque(b"x"), 0).expect_err("300 GB");
    assert_eq!(error.downcast_ref::<Trap>(), None, "{error:?}");
}

#[test]
fn bad_headers_are_bad() {
    let bad = guest("bad-headers");
    let obligations = |how: &[u8]| bad.ask(&opaque(how), 0).unwrap().obligations;
    let header = |how: &[u8]| {
        let set = obligations(how).headers_set;
        assert_eq!(set.len(), 1);
        (set[0].name.clone(), set[0].value.clone())
    };
    assert_eq!(obligations(b"s").status, Some(999));
    assert_eq!(obligations(b"z").status, Some(0));
    assert_eq!(header(b"n").0, "x bad");
    assert_eq!(header(b"e").0, "");
    assert_eq!(header(b"N").1, b"a\0b");
    assert_eq!(header(b"U").1, b"caf\xe9");
    assert_eq!(obligations(b"r").headers_remove, ["x-good\r\nx-admin"]);
    assert_eq!(header(b"x"), ("x-good".into(), b"yes\r\nx-admin: true".to_vec()));
}

#[test]
fn the_canary_sings_only_of_what_it_finds() {
    let canary = guest("canary");
    for _ in 0..3 {
        let decision = canary.ask(&opaque(&[0xc5; 4096]), 0).unwrap();
        assert!(matches!(decision.verdict, Verdict::Allow), "{:?}", decision.verdict);
        assert_eq!(decision.obligations.metadata[0].key, "canary");
        assert_eq!(decision.obligations.metadata[0].value, "clean");
    }
    // The control: what lies beyond the input's page is looked at.
    let decision = canary.ask(&opaque(&[0xc5; 0x18000]), 0).unwrap();
    assert!(
        matches!(&decision.verdict, Verdict::Deny(reason) if reason == "memory"),
        "{:?}",
        decision.verdict
    );
}

#[test]
fn what_wants_too_much_is_not_linked() {
    let error = Guest::new(&component("hostile/import-wasi")).err().expect("linked");
    assert!(format!("{error:#}").contains("wasi:cli/environment@0.2.0"), "{error:#}");
    assert!(!imports(&component("hostile/selective")).iter().any(|import| import.starts_with("wasi:")));
}

#[test]
fn selective_does_what_it_is_told() {
    let selective = guest("selective");
    let ask = |word: &str| selective.ask(&opaque(word.as_bytes()), 1_767_225_600);
    let allowed = |word: &str| {
        let decision = ask(word).unwrap();
        assert!(matches!(decision.verdict, Verdict::Allow), "{word}: {:?}", decision.verdict);
        decision
    };
    let denied = |word: &str| match ask(word).unwrap().verdict {
        Verdict::Deny(reason) => reason,
        Verdict::Allow => panic!("{word}: allowed"),
    };
    let metadata = |word: &str| -> Vec<String> {
        allowed(word)
            .obligations
            .metadata
            .into_iter()
            .map(|entry| format!("{}={}", entry.key, entry.value))
            .collect()
    };

    allowed("allow");
    assert_eq!(denied("deny"), "told to");
    assert_eq!(denied("deny:because"), "because");
    assert_eq!(metadata("number:4711"), ["number=4711"]);
    assert_eq!(metadata("text:a:b"), ["text=a:b"]);
    assert_eq!(allowed("echo:hello").obligations.body.unwrap(), b"hello");
    assert_eq!(allowed("size:100000").obligations.body.unwrap().len(), 100_000);
    assert_eq!(allowed("many:3").obligations.headers_append.len(), 3);
    assert_eq!(allowed("cache:250").cache.ttl_ms, 250);
    assert_eq!(ask("status:418").unwrap().obligations.status, Some(418));
    assert_eq!(allowed("header:x-a=b").obligations.headers_set[0].value, b"b");
    assert_eq!(metadata("clock"), ["now=1767225600000000000", "again=1767225600000000000"]);
    assert_eq!(metadata("random"), ["first=1", "second=2", "bytes=0707070707070707"]);
    assert_eq!(metadata("random-bytes:4096"), ["len=4096"]);
    assert_eq!(metadata("memory:1000000"), ["bytes=1000000"]);
    assert_eq!(metadata("work:1000").len(), 1);
    assert_eq!(metadata("stack:10"), ["depth=10"]);
    assert_eq!(metadata("clock-flood:3"), ["now=1767225600000000000"]);
    assert_eq!(allowed("data:one").obligations.body.unwrap(), b"1");
    assert_eq!(denied("data:two"), "no such key");
    assert_eq!(metadata("entries:a/>a/b"), ["a/a/b3="]);
    let error = ask("fail:no-data=gone").expect_err("fail");
    let failed = error.downcast_ref::<Failed>().expect("said so itself");
    assert_eq!((failed.reason.as_str(), failed.detail.as_str()), ("no-data", "gone"));
    assert!(denied("nonsense").contains("nonsense"));
    for word in ["trap", "memory:8000000"] {
        let error = ask(word).expect_err(word);
        assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::UnreachableCodeReached), "{word}");
    }
    let (_, host) = selective.ask_and_look(&opaque(b"log:a line"), 0);
    assert_eq!(host.log, ["a line"]);
    let (_, host) = selective.ask_and_look(&opaque(b"metric:hits=2"), 0);
    assert_eq!(host.log, ["hits+2"]);
    let (_, host) = selective.ask_and_look(&opaque(b"metric-flood:40"), 0);
    assert_eq!(host.log.len(), 40);
    let (_, host) = selective.ask_and_look(&opaque(b"log-flood:20"), 0);
    assert_eq!((host.log.len(), host.log[19].len()), (20, 4096));
}
