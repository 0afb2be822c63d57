//! The way to the service for one that opens no path: a pair of sockets, one end of which goes to the frontend.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::net::UnixStream;

use crate::client::{Connect, Pipeline};
use crate::decision::{Tenant, TrustClass};
use crate::wire::channel::Channel;
use crate::wire::gateway::{GatewayClass, VISIT_MAX, Visit};

/// The channel to whichever frontend there is. It stays the same for this process's life: the supervisor gives the other end
/// to each frontend. Threads share it, since a message is sent whole.
#[derive(Debug)]
pub(super) struct Visits {
    channel: Channel<Visit, ()>,
    classes: Vec<GatewayClass>,
}

impl Visits {
    pub(super) fn new(channel: OwnedFd, classes: Vec<GatewayClass>) -> Self {
        Self { channel: Channel::new(channel, VISIT_MAX), classes }
    }
}

impl Connect for Visits {
    /// Fails where no frontend takes what was sent before, or there is no descriptor left; whoever asked tries again.
    fn connect(&self, tenant: &Tenant) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = theirs.into_std()?;
        let visit = Visit { tenant: tenant.clone() };
        self.channel.send(&visit, Some(theirs.as_fd())).map_err(io::Error::other)?;
        Ok(ours)
    }

    /// A class that a reload has brought meanwhile is asked one question at a time: the next gateway knows it.
    fn pipeline(&self, class: &TrustClass) -> Pipeline {
        let known = self.classes.iter().find(|one| one.class == *class);
        known.map_or(Pipeline { questions: 1, shared: true }, |one| Pipeline {
            questions: usize::try_from(one.pipeline).unwrap_or(usize::MAX),
            shared: one.tenants.len() > 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::{Client, ClientError, Deadline, Question, Settings};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::decision::{Decision, PolicyName, Refusal};
    use crate::wire::channel::Received;
    use crate::wire::client::{
        CLIENT_FRAME_MAX, ClientFrame, Farewell, PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame,
    };
    use crate::wire::frame;

    fn told(socket: OwnedFd, said: &ServerFrame) -> std::os::unix::net::UnixStream {
        let mut bytes = bytes::BytesMut::new();
        frame::encode_frame(said, &mut bytes, SERVER_FRAME_MAX).unwrap();
        let mut stream = std::os::unix::net::UnixStream::from(socket);
        io::Write::write_all(&mut stream, &bytes).unwrap();
        stream
    }

    #[tokio::test]
    async fn a_client_asks_over_what_the_frontend_was_sent() {
        let (frontend, gateway) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let client = Client::through(Arc::new(Visits::new(gateway.into(), Vec::new())), Settings::default());
        let (tenant, policy) = (Tenant::new("acme").unwrap(), PolicyName::new("gate").unwrap());
        let question = Question::http("GET", "http", "a", "/");
        let asked = {
            let (client, tenant) = (client.clone(), tenant.clone());
            tokio::spawn(async move { client.ping(&tenant, std::time::Duration::from_secs(20)).await })
        };
        let mut buffer = Vec::new();
        let (visit, socket) = loop {
            match frontend.receive(&mut buffer).unwrap() {
                Received::Message(visit, socket) => break (visit, socket.unwrap()),
                Received::Nothing => tokio::task::yield_now().await,
                Received::End => panic!("the channel is closed"),
            }
        };
        assert_eq!(visit.tenant, tenant, "that is all the greeting there is");
        let class = TrustClass::new("one").unwrap();
        let welcome = ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation: 1 };
        let stream = told(socket, &welcome);
        stream.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 1, "it asks");
        // Whoever ends the connection ends the question.
        drop(stream);
        assert!(matches!(asked.await.unwrap(), Err(ClientError::Closed(_))));

        drop(frontend);
        let deadline = Deadline::in_(std::time::Duration::from_millis(20));
        let alone = client.decide(&tenant, &policy, deadline, question.input()).await;
        assert!(alone.is_err(), "{alone:?}");
    }

    #[tokio::test]
    async fn what_the_frontend_says_instead_is_heard() {
        let (frontend, gateway) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let client = Client::through(Arc::new(Visits::new(gateway.into(), Vec::new())), Settings::default());
        let tenant = Tenant::new("acme").unwrap();
        let asked =
            tokio::spawn(async move { client.ping(&tenant, std::time::Duration::from_secs(20)).await });
        let mut buffer = Vec::new();
        let socket = loop {
            match frontend.receive(&mut buffer).unwrap() {
                Received::Message(_, socket) => break socket.unwrap(),
                _ => tokio::task::yield_now().await,
            }
        };
        drop(told(socket, &ServerFrame::Farewell(Farewell::NotPermitted)));
        let error = asked.await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Farewell(Farewell::NotPermitted)), "{error}");
    }

    /// The worker's side of the next connection, and the ids that are asked there.
    struct Worker {
        stream: tokio::net::UnixStream,
        incoming: bytes::BytesMut,
    }

    impl Worker {
        async fn of(frontend: &Channel<(), Visit>, class: &str) -> Self {
            let mut buffer = Vec::new();
            let socket = loop {
                match frontend.receive(&mut buffer).unwrap() {
                    Received::Message(_, socket) => break socket.unwrap(),
                    _ => tokio::task::yield_now().await,
                }
            };
            let class = TrustClass::new(class).unwrap();
            let welcome = ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation: 1 };
            let stream = told(socket, &welcome);
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            Self { stream, incoming: bytes::BytesMut::new() }
        }

        /// The tenant and the id of the next question.
        async fn asked(&mut self) -> (String, u64) {
            loop {
                if let Some(bytes) = frame::next_frame(&mut self.incoming, CLIENT_FRAME_MAX).unwrap() {
                    match frame::decode(&bytes).unwrap() {
                        ClientFrame::Decide { id, tenant, .. } => return (tenant.to_owned(), id),
                        ClientFrame::Cancel { .. } => continue,
                        other => panic!("{other:?}"),
                    }
                }
                assert_ne!(self.stream.read_buf(&mut self.incoming).await.unwrap(), 0);
            }
        }

        async fn answers(&mut self, id: u64) {
            let mut bytes = bytes::BytesMut::new();
            let decision = Decision::refused(Refusal::Unavailable);
            let answer = ServerFrame::Decision { id, decision };
            frame::encode_frame(&answer, &mut bytes, SERVER_FRAME_MAX).unwrap();
            self.stream.write_all(&bytes).await.unwrap();
        }
    }

    fn ask(client: &Client, of: &str) -> tokio::task::JoinHandle<Result<Decision, ClientError>> {
        let (client, tenant) = (client.clone(), Tenant::new(of).unwrap());
        tokio::spawn(async move {
            let policy = PolicyName::new("gate").unwrap();
            let deadline = Deadline::in_(std::time::Duration::from_secs(60));
            client.decide(&tenant, &policy, deadline, Question::http("GET", "http", "a", "/").input()).await
        })
    }

    fn of_class(pipeline: u32, tenants: &[&str]) -> (Channel<(), Visit>, Client) {
        let (frontend, gateway) = Channel::<(), Visit>::pair(VISIT_MAX).unwrap();
        let tenants = tenants.iter().map(|name| Tenant::new(name).unwrap()).collect();
        let class =
            GatewayClass { class: TrustClass::new("one").unwrap(), pipeline, connections: 1, tenants };
        let visits = Arc::new(Visits::new(gateway.into(), vec![class]));
        (frontend, Client::through(visits, Settings::default()))
    }

    #[tokio::test]
    async fn slow_questions_of_one_tenant_leave_places_to_another() {
        let (frontend, client) = of_class(4, &["acme", "globex"]);
        let slow: Vec<_> = (0..8).map(|_| ask(&client, "acme")).collect();
        let mut worker = Worker::of(&frontend, "one").await;
        let mut ids = Vec::new();
        for _ in 0..2 {
            let (tenant, id) = worker.asked().await;
            assert_eq!(tenant, "acme");
            ids.push(id);
        }
        // Six of them wait, and the other's question comes before them. It greets for itself first, and uses what there is.
        let other = ask(&client, "globex");
        drop(Worker::of(&frontend, "one").await);
        let (tenant, id) = worker.asked().await;
        assert_eq!(tenant, "globex");
        worker.answers(id).await;
        let _ = other.await.unwrap().unwrap();
        // Nobody waits any more for these, and still they have their places until they are answered.
        for task in &slow {
            task.abort();
        }
        let again: Vec<_> = (0..2).map(|_| ask(&client, "acme")).collect();
        let third = ask(&client, "globex");
        let (tenant, id) = worker.asked().await;
        assert_eq!(tenant, "globex");
        worker.answers(id).await;
        let _ = third.await.unwrap().unwrap();
        for id in ids {
            worker.answers(id).await;
        }
        for task in again {
            let (tenant, id) = worker.asked().await;
            assert_eq!(tenant, "acme");
            worker.answers(id).await;
            drop(task);
        }
    }

    #[tokio::test]
    async fn a_tenant_alone_in_its_class_has_all_the_places_and_no_more() {
        let (frontend, client) = of_class(4, &["acme"]);
        let all: Vec<_> = (0..8).map(|_| ask(&client, "acme")).collect();
        let mut worker = Worker::of(&frontend, "one").await;
        let mut under_way = Vec::new();
        for _ in 0..4 {
            under_way.push(worker.asked().await.1);
        }
        // As many again, one for each that is answered.
        for id in under_way {
            worker.answers(id).await;
            let next = worker.asked().await.1;
            worker.answers(next).await;
        }
        for task in all {
            let _ = task.await.unwrap().unwrap();
        }
    }
}
