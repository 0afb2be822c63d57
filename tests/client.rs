#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says no by panicking"
)]
//! The clients against a service that a test plays: answers out of order, silence, garbage, and ends of every kind.

mod fake_service;

use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fake_service::{FakeService, Peer, denied, text, welcome_to};
use portcullis::client::{
    Breach, Client, ClientError, Deadline, Ending, Input, Settings, blocking, is_allowed,
};
use portcullis::decision::{
    Decision, HeaderValue, Obligations, Outcome, PolicyName, Refusal, Tenant, TraceContext,
};
use portcullis::wire::client::{ClientFrame, Farewell, ServerFrame, Violation};
use portcullis::wire::frame::{self, DecodeError};

/// Long enough that no test meets it unless something is wrong.
const SOON: Deadline = Deadline::Budget { us: 20_000_000 };

fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

fn policy() -> PolicyName {
    PolicyName::new("echo").unwrap()
}

fn asking(text: &str) -> Input<'_> {
    Input::Opaque { content_type: "text/plain", bytes: text.as_bytes() }
}

fn reason(result: Result<Decision, ClientError>) -> String {
    assert!(!is_allowed(&result));
    match result.unwrap().outcome {
        Outcome::Deny { reason } => reason,
        other => panic!("not the echo: {other:?}"),
    }
}

async fn ask(client: &Client, of: &str, text: &str) -> Result<Decision, ClientError> {
    client.decide(&tenant(of), &policy(), SOON, &asking(text)).await
}

fn trace() -> TraceContext {
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap()
}

/// Answers one question, and gives the trace it came with.
fn echo_and_trace(peer: &mut Peer) -> Option<TraceContext> {
    let bytes = peer.frame().expect("no question came");
    let ClientFrame::Decide { id, trace, .. } = frame::decode(&bytes).unwrap() else { panic!("no question") };
    peer.echo(id, "");
    trace
}

fn assert_cancel(peer: &mut Peer, expected: u64) {
    let bytes = peer.frame().expect("no Cancel came");
    assert_eq!(frame::decode::<ClientFrame<'_>>(&bytes), Ok(ClientFrame::Cancel { id: expected }));
}

mod asynchronous {
    use super::*;

    #[tokio::test]
    async fn answers_out_of_order_find_their_questions() {
        let service = FakeService::start(|listener| {
            let (mut peer, asked_for) = Peer::welcome(listener, "retail");
            assert_eq!(asked_for, "acme");
            let mut questions: Vec<_> = (0..3).map(|_| peer.question()).collect();
            questions.reverse();
            for (id, text) in questions {
                peer.echo(id, &text);
            }
        });
        let client = Client::new(service.socket());
        let (one, two, three) = tokio::join!(
            ask(&client, "acme", "one"),
            ask(&client, "acme", "two"),
            ask(&client, "acme", "three")
        );
        assert_eq!([reason(one), reason(two), reason(three)], ["one", "two", "three"]);
        service.finish();
    }

    #[tokio::test]
    async fn a_question_takes_its_trace_along_and_no_other_question_does() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            for expected in [None, Some(trace()), None] {
                assert_eq!(echo_and_trace(&mut peer), expected);
            }
        });
        let client = Client::new(service.socket());
        reason(ask(&client, "acme", "").await);
        reason(ask(&client.traced(trace()), "acme", "").await);
        reason(ask(&client, "acme", "").await);
        service.finish();
    }

    #[tokio::test]
    async fn only_an_allow_from_the_service_is_allowed() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            for outcome in [Outcome::Allow, Outcome::Refused(Refusal::Overloaded)] {
                let (id, _) = peer.question();
                peer.send(&ServerFrame::Decision { id, decision: Decision { outcome, ..denied("") } });
            }
        });
        let client = Client::new(service.socket());
        assert!(is_allowed(&ask(&client, "acme", "").await));
        assert!(!is_allowed(&ask(&client, "acme", "").await));
        service.finish();
    }

    #[tokio::test]
    async fn one_connection_serves_every_tenant_of_a_class() {
        let service = FakeService::start(|listener| {
            let (mut retail, _) = Peer::welcome(listener, "retail");
            let (id, text) = retail.question();
            retail.echo(id, &text);
            // The second tenant's connection turns out to be of the same class: closed, and the first is used.
            let (mut again, asked_for) = Peer::welcome(listener, "retail");
            assert_eq!(asked_for, "bolt");
            assert_eq!(again.frame(), None);
            let (id, text) = retail.question();
            retail.echo(id, &text);
            // Another class has its own, and the first stays open.
            let (mut bank, _) = Peer::welcome(listener, "bank");
            let (id, text) = bank.question();
            bank.echo(id, &text);
            let (id, text) = retail.question();
            retail.echo(id, &text);
        });
        let client = Client::new(service.socket());
        assert_eq!(reason(ask(&client, "acme", "a").await), "a");
        assert_eq!(reason(ask(&client, "bolt", "b").await), "b");
        assert_eq!(reason(ask(&client, "coin", "c").await), "c");
        assert_eq!(reason(ask(&client, "bolt", "d").await), "d");
        service.finish();
    }

    #[tokio::test]
    async fn a_tenant_whose_class_has_changed_is_looked_for_anew() {
        let service = FakeService::start(moved);
        let client = Client::new(service.socket());
        let refused = ask(&client, "acme", "a").await.unwrap();
        assert_eq!(refused.outcome, Outcome::Refused(Refusal::NotPermitted));
        assert_eq!(reason(ask(&client, "acme", "b").await), "b");
        assert_eq!(reason(ask(&client, "acme", "c").await), "c");
        service.finish();
    }

    #[tokio::test]
    async fn questions_at_once_open_one_connection() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            for _ in 0..8 {
                let (id, text) = peer.question();
                peer.echo(id, &text);
            }
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "a second connection was opened");
        });
        let client = Client::new(service.socket());
        let asked: Vec<_> = (0..8)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move { reason(ask(&client, "acme", &n.to_string()).await) })
            })
            .collect();
        for (n, task) in asked.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), n.to_string());
        }
        service.finish();
    }

    #[tokio::test]
    async fn what_was_written_is_never_asked_again() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            peer.question();
            peer.question();
            drop(peer);
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            assert_eq!(text, "after");
            peer.echo(id, &text);
            assert_eq!(peer.frame(), None);
        });
        let client = Client::new(service.socket());
        let (one, two) = tokio::join!(ask(&client, "acme", "one"), ask(&client, "acme", "two"));
        for lost in [one, two] {
            assert!(!is_allowed(&lost));
            assert!(matches!(lost, Err(ClientError::Closed(Ending::Peer))), "{lost:?}");
        }
        assert_eq!(reason(ask(&client, "acme", "after").await), "after");
        drop(client);
        service.finish();
    }

    #[tokio::test]
    async fn a_connection_that_takes_nothing_is_replaced_under_a_question() {
        let service = FakeService::start(|listener| {
            let mut first = Peer::accept(listener);
            first.hello();
            first.stream.shutdown(Shutdown::Read).unwrap();
            first.send(&welcome_to("retail"));
            let (mut next, _) = Peer::welcome(listener, "retail");
            let (id, text) = next.question();
            next.echo(id, &text);
        });
        let client = Client::new(service.socket());
        assert_eq!(reason(ask(&client, "acme", "kept").await), "kept");
        service.finish();
    }

    #[tokio::test]
    async fn an_unavailable_class_is_tried_again_until_the_deadline() {
        let service = FakeService::start(|listener| {
            for _ in 0..2 {
                let mut peer = Peer::accept(listener);
                peer.hello();
                peer.send(&ServerFrame::Farewell(Farewell::Unavailable));
            }
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            peer.echo(id, &text);
        });
        let client = Client::new(service.socket());
        assert_eq!(reason(ask(&client, "acme", "up").await), "up");
        service.finish();
    }

    #[tokio::test]
    async fn a_tenant_that_is_not_granted_is_an_error_and_not_tried_again_at_once() {
        let service = FakeService::start(|listener| {
            let mut peer = Peer::accept(listener);
            peer.hello();
            peer.send(&ServerFrame::Farewell(Farewell::NotPermitted));
            assert_eq!(peer.frame(), None);
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "asked again");
        });
        let settings = Settings { retry_first: Duration::from_secs(60), ..Settings::default() };
        let client = Client::with_settings(service.socket(), settings);
        for _ in 0..3 {
            let refused = ask(&client, "acme", "").await;
            assert!(matches!(refused, Err(ClientError::Farewell(Farewell::NotPermitted))), "{refused:?}");
        }
        service.finish();
    }

    #[tokio::test]
    async fn nobody_at_the_socket_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("none.sock");
        let client = Client::new(&socket);
        let deadline = Deadline::in_(Duration::from_secs(1));
        let error = client.decide(&tenant("acme"), &policy(), deadline, &asking("")).await.unwrap_err();
        assert!(matches!(&error, ClientError::Connect { socket: named, .. } if *named == socket), "{error}");
        assert!(error.to_string().starts_with("connect to \"/"), "{error}");
    }

    #[tokio::test]
    async fn a_farewell_reaches_those_who_wait() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            peer.question();
            peer.send(&ServerFrame::Farewell(Farewell::Protocol(Violation::Input)));
        });
        let client = Client::new(service.socket());
        let ended = ask(&client, "acme", "").await;
        assert!(
            matches!(ended, Err(ClientError::Farewell(Farewell::Protocol(Violation::Input)))),
            "{ended:?}"
        );
        service.finish();
    }

    #[tokio::test]
    async fn silence_ends_with_the_deadline_and_a_cancel() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            peer.echo(id, &text);
            let (silent, text) = peer.question();
            assert_cancel(&mut peer, silent);
            // A late answer to it disturbs nobody.
            peer.echo(silent, &text);
            let (id, text) = peer.question();
            peer.echo(id, &text);
        });
        let settings = Settings { grace: Duration::from_millis(1), ..Settings::default() };
        let client = Client::with_settings(service.socket(), settings);
        assert_eq!(reason(ask(&client, "acme", "first").await), "first");
        let deadline = Deadline::in_(Duration::from_millis(500));
        let late = client.decide(&tenant("acme"), &policy(), deadline, &asking("late")).await;
        assert!(matches!(late, Err(ClientError::Deadline)), "{late:?}");
        assert_eq!(reason(ask(&client, "acme", "next").await), "next");
        service.finish();
    }

    #[tokio::test]
    async fn dropping_the_future_cancels() {
        let (arrived, has_arrived) = tokio::sync::oneshot::channel();
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, _) = peer.question();
            arrived.send(()).unwrap();
            assert_cancel(&mut peer, id);
            peer.send(&ServerFrame::Decision { id, decision: Decision::refused(Refusal::Cancelled) });
            let (id, text) = peer.question();
            peer.echo(id, &text);
        });
        let client = Client::new(service.socket());
        tokio::select! {
            answer = ask(&client, "acme", "given up") => panic!("answered: {answer:?}"),
            arrived = has_arrived => arrived.unwrap(),
        }
        assert_eq!(reason(ask(&client, "acme", "next").await), "next");
        service.finish();
    }

    #[tokio::test]
    async fn a_full_pipeline_waits_for_its_turn() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (first, text) = peer.question();
            peer.stream.set_nonblocking(true).unwrap();
            assert!(std::io::Read::read(&mut peer.stream, &mut [0]).is_err(), "two were under way");
            peer.stream.set_nonblocking(false).unwrap();
            peer.echo(first, &text);
            let (second, text) = peer.question();
            peer.echo(second, &text);
        });
        let client = Client::with_settings(service.socket(), Settings { pipeline: 1, ..Settings::default() });
        let (one, two) = tokio::join!(ask(&client, "acme", "one"), ask(&client, "acme", "two"));
        assert_eq!([reason(one), reason(two)], ["one", "two"]);
        service.finish();
    }

    #[tokio::test]
    async fn a_service_that_stops_answering_loses_the_connection() {
        let service = FakeService::start(|listener| {
            let (mut silent, _) = Peer::welcome(listener, "retail");
            let (id, text) = silent.question();
            silent.echo(id, &text);
            let (id, _) = silent.question();
            assert_cancel(&mut silent, id);
            assert_eq!(silent.frame(), None);
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            peer.echo(id, &text);
        });
        let settings = Settings {
            pipeline: 1,
            grace: Duration::from_millis(1),
            patience: Duration::from_millis(1),
            ..Settings::default()
        };
        let client = Client::with_settings(service.socket(), settings);
        assert_eq!(reason(ask(&client, "acme", "first").await), "first");
        for _ in 0..2 {
            let deadline = Deadline::in_(Duration::from_millis(500));
            let late = client.decide(&tenant("acme"), &policy(), deadline, &asking("")).await;
            assert!(matches!(late, Err(ClientError::Deadline)), "{late:?}");
        }
        assert_eq!(reason(ask(&client, "acme", "next").await), "next");
        service.finish();
    }

    #[tokio::test]
    async fn a_batch_comes_back_whole_and_in_order() {
        let service = FakeService::start(batch_service);
        let client = Client::new(service.socket());
        let inputs = [asking("a"), asking("b"), asking("c")];
        let decisions = client.decide_batch(&tenant("acme"), &policy(), SOON, &inputs).await.unwrap();
        assert_eq!(decisions.into_iter().map(|d| reason(Ok(d))).collect::<Vec<_>>(), ["a", "b", "c"]);
        let none = client.decide_batch(&tenant("acme"), &policy(), SOON, &[]).await;
        assert!(matches!(none, Err(ClientError::BatchSize(0))), "{none:?}");
        let many = vec![asking(""); 257];
        let many = client.decide_batch(&tenant("acme"), &policy(), SOON, &many).await;
        assert!(matches!(many, Err(ClientError::BatchSize(257))), "{many:?}");
        client.ping(&tenant("acme"), Duration::from_secs(20)).await.unwrap();
        service.finish();
    }

    #[tokio::test]
    async fn a_question_above_the_frame_limit_harms_nobody() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            peer.echo(id, &text);
        });
        let client = Client::new(service.socket());
        let huge = "x".repeat(1 << 20);
        let error = ask(&client, "acme", &huge).await.unwrap_err();
        assert!(matches!(error, ClientError::TooLong), "{error}");
        assert_eq!(reason(ask(&client, "acme", "small").await), "small");
        service.finish();
    }

    #[tokio::test]
    async fn garbage_ends_the_connection_and_is_never_an_answer() {
        for (bytes, breach) in garbage() {
            let service = FakeService::start(move |listener| {
                let (mut peer, _) = Peer::welcome(listener, "retail");
                peer.question();
                peer.raw(&bytes);
                assert_eq!(peer.frame(), None, "the client kept the connection");
            });
            let client = Client::new(service.socket());
            match ask(&client, "acme", "").await {
                Err(ClientError::Protocol(got)) => assert_eq!(got, breach),
                // Whoever waits for the very answer that was wrong learns that the connection is over.
                other => panic!("{breach:?}: {other:?}"),
            }
            drop(client);
            service.finish();
        }
    }

    #[tokio::test]
    async fn a_welcome_of_another_version_is_refused() {
        let service = FakeService::start(|listener| {
            let mut peer = Peer::accept(listener);
            peer.hello();
            // Version 2, class "retail", generation 1.
            peer.raw(b"\0\0\0\x0a\x00\x02\x06retail\x01");
            assert_eq!(peer.frame(), None);
        });
        let client = Client::new(service.socket());
        let error = ask(&client, "acme", "").await.unwrap_err();
        assert!(matches!(error, ClientError::Protocol(Breach::Version(2))), "{error}");
        service.finish();
    }

    #[test]
    fn a_runtime_that_ends_leaves_a_client_that_works_in_the_next() {
        let service = FakeService::start(|listener| {
            for _ in 0..2 {
                let (mut peer, _) = Peer::welcome(listener, "retail");
                let (id, text) = peer.question();
                peer.echo(id, &text);
                assert_eq!(peer.frame(), None);
            }
        });
        let client = Client::new(service.socket());
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            assert_eq!(runtime.block_on(async { reason(ask(&client, "acme", "x").await) }), "x");
        }
        drop(client);
        service.finish();
    }
}

mod on_threads {
    use super::*;

    fn ask(client: &mut blocking::Client, of: &str, text: &str) -> Result<Decision, ClientError> {
        client.decide(&tenant(of), &policy(), SOON, &asking(text))
    }

    #[test]
    fn one_connection_serves_every_tenant_of_a_class() {
        let service = FakeService::start(|listener| {
            let (mut retail, _) = Peer::welcome(listener, "retail");
            let (id, text) = retail.question();
            retail.echo(id, &text);
            let (mut again, asked_for) = Peer::welcome(listener, "retail");
            assert_eq!(asked_for, "bolt");
            assert_eq!(again.frame(), None);
            for _ in 0..2 {
                let (id, text) = retail.question();
                retail.echo(id, &text);
            }
        });
        let mut client = blocking::Client::new(service.socket());
        assert_eq!(reason(ask(&mut client, "acme", "a")), "a");
        assert_eq!(reason(ask(&mut client, "bolt", "b")), "b");
        assert_eq!(reason(ask(&mut client, "acme", "c")), "c");
        service.finish();
    }

    #[test]
    fn a_tenant_whose_class_has_changed_is_looked_for_anew() {
        let service = FakeService::start(moved);
        let mut client = blocking::Client::new(service.socket());
        let refused = ask(&mut client, "acme", "a").unwrap();
        assert_eq!(refused.outcome, Outcome::Refused(Refusal::NotPermitted));
        assert_eq!(reason(ask(&mut client, "acme", "b")), "b");
        assert_eq!(reason(ask(&mut client, "acme", "c")), "c");
        service.finish();
    }

    #[test]
    fn what_was_written_is_never_asked_again() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            peer.question();
            drop(peer);
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            assert_eq!(text, "after");
            peer.echo(id, &text);
        });
        let mut client = blocking::Client::new(service.socket());
        let lost = ask(&mut client, "acme", "lost");
        assert!(matches!(lost, Err(ClientError::Closed(Ending::Peer))), "{lost:?}");
        assert_eq!(reason(ask(&mut client, "acme", "after")), "after");
        service.finish();
    }

    /// The control for the test after it.
    #[test]
    fn a_connection_that_takes_nothing_fails_by_itself() {
        let service = FakeService::start(|listener| {
            let mut peer = Peer::accept(listener);
            peer.hello();
            peer.stream.shutdown(Shutdown::Read).unwrap();
            peer.send(&welcome_to("retail"));
        });
        let within = Duration::from_secs(20);
        let mut connection = blocking::Connection::open(service.socket(), &tenant("acme"), within).unwrap();
        connection.send(&tenant("acme"), &policy(), SOON, &asking("lost")).unwrap();
        for _ in 0..2 {
            let ended = connection.flush();
            assert!(matches!(ended, Err(ClientError::Closed(Ending::Peer))), "{ended:?}");
        }
        service.finish();
    }

    #[test]
    fn a_connection_that_takes_nothing_is_replaced_under_a_question() {
        let service = FakeService::start(|listener| {
            let mut first = Peer::accept(listener);
            first.hello();
            first.stream.shutdown(Shutdown::Read).unwrap();
            first.send(&welcome_to("retail"));
            let (mut next, _) = Peer::welcome(listener, "retail");
            let (id, text) = next.question();
            next.echo(id, &text);
        });
        let mut client = blocking::Client::new(service.socket());
        assert_eq!(reason(ask(&mut client, "acme", "kept")), "kept");
        service.finish();
    }

    #[test]
    fn a_connection_closed_between_questions_is_replaced() {
        let (close, closing) = mpsc::channel();
        let (closed, is_closed) = mpsc::channel();
        let service = FakeService::start(move |listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            peer.echo(id, &text);
            closing.recv().unwrap();
            peer.send(&ServerFrame::Farewell(Farewell::ShuttingDown));
            drop(peer);
            closed.send(()).unwrap();
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            peer.echo(id, &text);
        });
        let mut client = blocking::Client::new(service.socket());
        assert_eq!(reason(ask(&mut client, "acme", "a")), "a");
        close.send(()).unwrap();
        is_closed.recv().unwrap();
        assert_eq!(reason(ask(&mut client, "acme", "b")), "b");
        service.finish();
    }

    #[test]
    fn silence_ends_with_the_deadline_and_a_cancel() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (id, text) = peer.question();
            peer.echo(id, &text);
            let (silent, text) = peer.question();
            assert_cancel(&mut peer, silent);
            peer.echo(silent, &text);
            let (id, text) = peer.question();
            peer.echo(id, &text);
        });
        let settings = Settings { grace: Duration::from_millis(1), ..Settings::default() };
        let mut client = blocking::Client::with_settings(service.socket(), settings);
        assert_eq!(reason(ask(&mut client, "acme", "first")), "first");
        let deadline = Deadline::in_(Duration::from_millis(500));
        let late = client.decide(&tenant("acme"), &policy(), deadline, &asking("late"));
        assert!(matches!(late, Err(ClientError::Deadline)), "{late:?}");
        assert_eq!(reason(ask(&mut client, "acme", "next")), "next");
        service.finish();
    }

    #[test]
    fn a_batch_comes_back_whole_and_in_order() {
        let service = FakeService::start(batch_service);
        let mut client = blocking::Client::new(service.socket());
        let inputs = [asking("a"), asking("b"), asking("c")];
        let decisions = client.decide_batch(&tenant("acme"), &policy(), SOON, &inputs).unwrap();
        assert_eq!(decisions.into_iter().map(|d| reason(Ok(d))).collect::<Vec<_>>(), ["a", "b", "c"]);
        client.ping(&tenant("acme"), Duration::from_secs(20)).unwrap();
        service.finish();
    }

    #[test]
    fn garbage_ends_the_connection_and_is_never_an_answer() {
        for (bytes, breach) in garbage() {
            let service = FakeService::start(move |listener| {
                let (mut peer, _) = Peer::welcome(listener, "retail");
                peer.question();
                peer.raw(&bytes);
                assert_eq!(peer.frame(), None, "the client kept the connection");
            });
            let mut client = blocking::Client::new(service.socket());
            match ask(&mut client, "acme", "") {
                Err(ClientError::Protocol(got)) => assert_eq!(got, breach),
                other => panic!("{breach:?}: {other:?}"),
            }
            service.finish();
        }
    }

    #[test]
    fn a_question_takes_its_trace_along() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            for expected in [None, Some(trace()), None] {
                assert_eq!(echo_and_trace(&mut peer), expected);
            }
            let (mut peer, _) = Peer::welcome(listener, "retail");
            assert_eq!(echo_and_trace(&mut peer), Some(trace()));
        });
        let mut client = blocking::Client::new(service.socket());
        for trace in [None, Some(trace()), None] {
            client.set_trace(trace);
            reason(client.decide(&tenant("acme"), &policy(), SOON, &asking("")));
        }
        let within = Duration::from_secs(20);
        let mut connection = blocking::Connection::open(service.socket(), &tenant("acme"), within).unwrap();
        connection.set_trace(Some(trace()));
        connection.send(&tenant("acme"), &policy(), SOON, &asking("")).unwrap();
        connection.flush().unwrap();
        reason(connection.receive().map(|(_, decision)| decision));
        service.finish();
    }

    #[test]
    fn a_pipelined_connection_gives_answers_as_they_come() {
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            let (one, text_one) = peer.question();
            let bytes = peer.frame().unwrap();
            let ClientFrame::DecideBatch { id: batch, inputs, .. } = frame::decode(&bytes).unwrap() else {
                panic!("not a batch")
            };
            let decisions = inputs.iter().map(|input| denied(&text(input))).collect();
            let (three, text_three) = peer.question();
            assert_cancel(&mut peer, three);
            peer.echo(three, &text_three);
            peer.send(&ServerFrame::Decisions { id: batch, decisions });
            peer.echo(one, &text_one);
        });
        let within = Duration::from_secs(20);
        let mut connection = blocking::Connection::open(service.socket(), &tenant("acme"), within).unwrap();
        assert_eq!((connection.class().as_str(), connection.generation()), ("retail", 1));
        let one = connection.send(&tenant("acme"), &policy(), SOON, &asking("one")).unwrap();
        let batch =
            connection.send_batch(&tenant("acme"), &policy(), SOON, &[asking("two"), asking("2")]).unwrap();
        let three = connection.send(&tenant("acme"), &policy(), SOON, &asking("three")).unwrap();
        connection.cancel(three).unwrap();
        connection.flush().unwrap();
        let mut got = Vec::new();
        for _ in 0..4 {
            let (id, decision) = connection.receive().unwrap();
            got.push((id, reason(Ok(decision))));
        }
        let expected = [(three, "three"), (batch, "two"), (batch, "2"), (one, "one")];
        assert_eq!(got, expected.map(|(id, text)| (id, text.to_owned())));
        service.finish();
        let end = connection.receive_until(Some(Instant::now() + within));
        assert!(matches!(end, Err(ClientError::Closed(Ending::Peer))), "{end:?}");
    }

    #[test]
    fn full_buffers_both_ways_do_not_stop_each_other() {
        const QUESTIONS: usize = 1000;
        let service = FakeService::start(|listener| {
            let (mut peer, _) = Peer::welcome(listener, "retail");
            // Answers each question before it reads the next, and is stuck when its answers are not read.
            for _ in 0..QUESTIONS {
                let (id, text) = peer.question();
                peer.echo(id, &text);
            }
        });
        let within = Duration::from_secs(20);
        let mut connection = blocking::Connection::open(service.socket(), &tenant("acme"), within).unwrap();
        let text = "x".repeat(8 * 1024);
        for _ in 0..QUESTIONS {
            connection.send(&tenant("acme"), &policy(), SOON, &asking(&text)).unwrap();
        }
        connection.flush().unwrap();
        for _ in 0..QUESTIONS {
            assert_eq!(reason(connection.receive().map(|(_, decision)| decision)), text);
        }
        service.finish();
    }
}

/// Answers a batch with the texts of its questions, then a ping.
/// The class that the tenant was in does not decide for it; the other does, over one connection.
fn moved(listener: &UnixListener) {
    let (mut before, _) = Peer::welcome(listener, "retail");
    let (id, _) = before.question();
    before.send(&ServerFrame::Decision { id, decision: Decision::refused(Refusal::NotPermitted) });
    let (mut now, _) = Peer::welcome(listener, "bank");
    for _ in 0..2 {
        let (id, text) = now.question();
        now.echo(id, &text);
    }
}

fn batch_service(listener: &UnixListener) {
    let (mut peer, _) = Peer::welcome(listener, "retail");
    let bytes = peer.frame().unwrap();
    let ClientFrame::DecideBatch { id, inputs, .. } = frame::decode(&bytes).unwrap() else {
        panic!("not a batch: {bytes:?}")
    };
    let decisions = inputs.iter().map(|input| denied(&text(input))).collect();
    peer.send(&ServerFrame::Decisions { id, decisions });
    let bytes = peer.frame().unwrap();
    let ClientFrame::Ping { nonce } = frame::decode(&bytes).unwrap() else { panic!("not a ping") };
    peer.send(&ServerFrame::Pong { nonce });
}

/// What a broken service could send to a client that has asked question 1, and what it is called.
fn garbage() -> Vec<(Vec<u8>, Breach)> {
    let frame_of = |message: &ServerFrame| {
        let mut bytes = bytes::BytesMut::new();
        frame::encode_frame(message, &mut bytes, 4 << 20).unwrap();
        bytes.to_vec()
    };
    let allow = Decision { outcome: Outcome::Allow, ..denied("") };
    let header = HeaderValue { name: "x-user".to_owned(), value: "me\r\nx-role: admin".into() };
    let smuggled = Obligations { headers_set: vec![header], ..Obligations::default() };
    let unfit = smuggled.check().unwrap_err();
    vec![
        (vec![0, 0, 0, 0], Breach::Frame(DecodeError::Empty)),
        (vec![0xff; 4], Breach::Frame(DecodeError::TooLong { length: 0xffff_ffff, max: 4 << 20 })),
        (vec![0, 0, 0, 1, 0x7f], Breach::Frame(DecodeError::Malformed)),
        (vec![0, 0, 0, 3, 3, 1, 0], Breach::Frame(DecodeError::Trailing(1))),
        (frame_of(&welcome_to("retail")), Breach::WelcomeTwice),
        (frame_of(&ServerFrame::Decision { id: 2, decision: allow.clone() }), Breach::NotAsked),
        (frame_of(&ServerFrame::Pong { nonce: 1 }), Breach::Mismatch),
        (frame_of(&ServerFrame::Decisions { id: 1, decisions: vec![allow.clone()] }), Breach::Mismatch),
        (
            frame_of(&ServerFrame::Decision { id: 1, decision: Decision { obligations: smuggled, ..allow } }),
            Breach::Obligations(unfit),
        ),
    ]
}
