//! The way to the service for one that opens no path: a pair of sockets, one end of which goes to the frontend.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::net::UnixStream;

use crate::client::Connect;
use crate::decision::Tenant;
use crate::wire::channel::Channel;
use crate::wire::gateway::{VISIT_MAX, Visit};

/// The channel to whichever frontend there is. It stays the same for this process's life: the supervisor gives the other end
/// to each frontend. Threads share it, since a message is sent whole.
#[derive(Debug)]
pub(super) struct Visits(Channel<Visit, ()>);

impl Visits {
    pub(super) fn new(channel: OwnedFd) -> Self {
        Self(Channel::new(channel, VISIT_MAX))
    }
}

impl Connect for Visits {
    /// Fails where no frontend takes what was sent before, or there is no descriptor left; whoever asked tries again.
    fn connect(&self, tenant: &Tenant) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = theirs.into_std()?;
        let visit = Visit { tenant: tenant.clone() };
        self.0.send(&visit, Some(theirs.as_fd())).map_err(io::Error::other)?;
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::{Client, ClientError, Deadline, Question, Settings};
    use crate::decision::{PolicyName, TrustClass};
    use crate::wire::channel::Received;
    use crate::wire::client::{Farewell, PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame};
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
        let client = Client::through(Arc::new(Visits::new(gateway.into())), Settings::default());
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
        // It has asked; and whoever ends the connection ends the question.
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
        let client = Client::through(Arc::new(Visits::new(gateway.into())), Settings::default());
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
}
