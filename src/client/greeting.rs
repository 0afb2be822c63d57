//! The first two frames of a connection: Hello and Welcome.

use bytes::BytesMut;

use super::{Breach, ClientError};
use crate::decision::{Tenant, TrustClass};
use crate::wire::client::{ClientFrame, HELLO_MAX, PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame};
use crate::wire::frame;

/// What the service said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) class: TrustClass,
    pub(super) generation: u64,
}

/// The Hello frame for a tenant, with its length.
pub(super) fn hello(tenant: &Tenant) -> Result<BytesMut, ClientError> {
    let mut bytes = BytesMut::with_capacity(HELLO_MAX);
    let hello = ClientFrame::Hello { version: PROTOCOL_VERSION, tenant: tenant.as_str() };
    frame::encode_frame(&hello, &mut bytes, HELLO_MAX).map_err(|_| ClientError::TooLong)?;
    Ok(bytes)
}

/// Takes the Welcome off the front of what has arrived; `None` if it is not there yet.
pub(super) fn welcome(incoming: &mut BytesMut) -> Result<Option<Welcome>, ClientError> {
    let Some(bytes) = frame::next_frame(incoming, SERVER_FRAME_MAX)? else { return Ok(None) };
    match frame::decode(&bytes)? {
        ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation } => {
            Ok(Some(Welcome { class, generation }))
        }
        ServerFrame::Welcome { version, .. } => Err(ClientError::Protocol(Breach::Version(version))),
        ServerFrame::Farewell(farewell) => Err(ClientError::Farewell(farewell)),
        ServerFrame::Decision { .. } | ServerFrame::Decisions { .. } | ServerFrame::Pong { .. } => {
            Err(ClientError::Protocol(Breach::NotWelcome))
        }
    }
}
