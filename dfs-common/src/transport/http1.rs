//! HTTP/1.1 over hyper's bare connections: a pool of idle ones, head and body in one
//! write, no layers. reqwest costs 120 us a request more on the hot path.
//!
//! Who asks drives the connection itself: the request leaves within the first poll, on the
//! caller's thread. A task for each connection would cost a wake-up of another thread.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::Transport;
use crate::credentials::ClusterToken;
use crate::wire::{MAX_BODY, META_HEADER, Request, Response};
use crate::{Error, ErrorKind, Result};

/// Idle connections that are kept.
const MAX_IDLE: usize = 64;

type Driver = Pin<Box<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

/// A connection, and what moves its bytes, which nobody does while it is idle.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

impl Connection {
    /// True where the other side has not closed it.
    async fn is_open(&mut self) -> bool {
        let driver = &mut self.driver;
        poll_fn(|context| Poll::Ready(driver.as_mut().poll(context).is_pending())).await && self.sender.is_ready()
    }
}

/// Carries out `exchange` on the connection that `driver` moves; `None` where that ends first.
async fn driven<T>(driver: &mut Driver, exchange: impl Future<Output = T>) -> Option<T> {
    let mut exchange = pin!(exchange);
    poll_fn(|context| {
        // What is asked for leaves at once, and what has arrived is looked at.
        if let Poll::Ready(done) = exchange.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        let end = driver.as_mut().poll(context);
        match (exchange.as_mut().poll(context), end) {
            (Poll::Ready(done), _) => Poll::Ready(Some(done)),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            (Poll::Pending, Poll::Ready(end)) => {
                log::debug!("a connection has ended: {end:?}");
                Poll::Ready(None)
            }
        }
    })
    .await
}

/// A pool of connections to one server. Must be used within one tokio runtime.
pub struct Http1 {
    url: String,
    authority: String,
    host: HeaderValue,
    authorization: HeaderValue,
    idle: Mutex<Vec<Connection>>,
}

impl std::fmt::Debug for Http1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Http1({})", self.url)
    }
}

impl Http1 {
    /// For `http://host:port`; `Invalid` for any other form.
    pub fn new(url: &str, token: &ClusterToken) -> Result<Self> {
        let invalid = || Error::new(ErrorKind::Invalid, format!("'{url}' is not of the form http://HOST:PORT"));
        let authority = url.strip_prefix("http://").ok_or_else(invalid)?.trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').ok_or_else(invalid)?;
        if host.is_empty() || authority.contains(['/', '?', '@']) || port.parse::<u16>().is_err() {
            return Err(invalid());
        }
        let mut authorization = HeaderValue::from_str(&token.header()).map_err(|_| invalid())?;
        authorization.set_sensitive(true);
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            authority: authority.to_owned(),
            host: HeaderValue::from_str(authority).map_err(|_| invalid())?,
            authorization,
            idle: Mutex::new(Vec::new()),
        })
    }

    fn unavailable(&self, error: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{}: {error}", self.url))
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|e| self.unavailable(e))?;
        stream.set_nodelay(true).map_err(|e| self.unavailable(e))?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(|e| self.unavailable(e))?;
        Ok(Connection { sender, driver: Box::pin(driver) })
    }

    /// An idle connection that is still open.
    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().pop()?;
            if connection.is_open().await {
                return Some(connection);
            }
        }
    }

    fn build(&self, request: &Request) -> Result<hyper::Request<Full<Bytes>>> {
        let invalid = |e: &dyn std::fmt::Display| Error::new(ErrorKind::Invalid, format!("request: {e}"));
        let target = if request.query.is_empty() { request.path.clone() } else { format!("{}?{}", request.path, request.query) };
        let mut builder = hyper::Request::builder()
            .method(request.method.as_str())
            .uri(target)
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.authorization.clone());
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        builder.body(Full::new(request.body.clone())).map_err(|e| invalid(&e))
    }

    async fn exchange(&self, Connection { sender, driver }: &mut Connection, request: &Request) -> Result<Response> {
        let request = self.build(request)?;
        let exchange = async {
            let reply = sender.send_request(request).await.map_err(|e| self.unavailable(e))?;
            let (head, body) = reply.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|e| self.unavailable(e))?.to_bytes();
            let text = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
            Ok(Response {
                status: head.status.as_u16(),
                content_type: super::content_type(text(CONTENT_TYPE.as_str())),
                meta: text(META_HEADER).map(str::to_owned),
                body,
            })
        };
        driven(driver, exchange).await.unwrap_or_else(|| Err(self.unavailable("the connection was closed")))
    }
}

/// While a request goes unanswered, idle connections are in doubt: dropped with this in place, it closes them. One that
/// is half open would cost the next request its whole time, too.
struct Doubt<'a>(Option<&'a Mutex<Vec<Connection>>>);

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(idle) = self.0 {
            idle.lock().clear();
        }
    }
}

impl Transport for Http1 {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response>> {
        Box::pin(async move {
            let mut doubt = Doubt(Some(&self.idle));
            let mut connection = match self.take_idle().await {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let reply = self.exchange(&mut connection, &request).await?;
            doubt.0 = None;
            // A connection that the server closes is found out later.
            if matches!(driven(&mut connection.driver, connection.sender.ready()).await, Some(Ok(()))) {
                let mut idle = self.idle.lock();
                if idle.len() < MAX_IDLE {
                    idle.push(connection);
                }
            }
            Ok(reply)
        })
    }

    fn peer(&self) -> &str {
        &self.url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let token = ClusterToken::new("0123456789abcdef").unwrap();
        assert_eq!(Http1::new("http://a:7400/", &token).unwrap().peer(), "http://a:7400");
        for bad in ["a:7400", "http://a", "https://a:1", "http://:1", "http://a:x", "http://a:1/x", "http://u@a:1"] {
            assert_eq!(Http1::new(bad, &token).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
