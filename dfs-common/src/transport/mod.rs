//! How a request reaches a role: over HTTP/1.1 on the hot path ([`Http1`]), through
//! reqwest everywhere else ([`Plain`]), or by a direct call in one process ([`InProcess`]).
//!
//! A transport makes one attempt; retries and deadlines belong to the clients.

mod http1;
mod plain;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use http1::Http1;
pub use plain::Plain;

use crate::Result;
use crate::wire::{Request, Response, Service};

/// One attempt at one request.
///
/// `Err` means that no reply arrived: `Unavailable` where nobody answered or the connection broke, in
/// which case the request may or may not have been carried out. Error replies are `Ok`.
pub trait Transport: Send + Sync + std::fmt::Debug + 'static {
    /// Sends `request` and waits for the reply. Dropping the future abandons the request.
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response>>;

    /// Whom it reaches, for messages.
    fn peer(&self) -> &str;
}

/// Calls a role of the same process, without sockets.
#[derive(Clone)]
pub struct InProcess {
    service: Arc<dyn Service>,
    peer: String,
}

impl InProcess {
    /// Calls `service`; `peer` names it in messages.
    pub fn new(service: Arc<dyn Service>, peer: impl Into<String>) -> Self {
        Self { service, peer: peer.into() }
    }
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InProcess({})", self.peer)
    }
}

impl Transport for InProcess {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response>> {
        let reply = self.service.clone().handle(request);
        Box::pin(async move { Ok(reply.await) })
    }

    fn peer(&self) -> &str {
        &self.peer
    }
}

/// The content type of a reply as one of the constants of [`crate::wire`].
fn content_type(value: Option<&str>) -> &'static str {
    match value {
        Some(text) if text.starts_with(crate::wire::JSON) => crate::wire::JSON,
        Some(text) if text.starts_with("text/plain") => "text/plain",
        Some(crate::wire::PACKED) => crate::wire::PACKED,
        _ => crate::wire::BYTES,
    }
}
