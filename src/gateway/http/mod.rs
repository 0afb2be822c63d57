//! HTTP/1.1 where the status is the decision.

use tokio::io::{AsyncRead, AsyncWrite};

use super::desk::Desk;

/// Serves one connection, until it ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(_stream: S, _desk: Desk) {}
