//! The same through reqwest, for everything that is not the hot path: the command
//! line, registrations, heartbeats.

use futures_util::future::BoxFuture;

use super::Transport;
use crate::credentials::ClusterToken;
use crate::wire::{MAX_BODY, META_HEADER, Method, Request, Response};
use crate::{Error, ErrorKind, Result};

/// One server, reached through a shared reqwest client.
#[derive(Debug)]
pub struct Plain {
    client: reqwest::Client,
    url: String,
    token: ClusterToken,
}

impl Plain {
    /// For `http://host:port`.
    pub fn new(url: &str, token: &ClusterToken) -> Result<Self> {
        // The same check of the URL's form as on the hot path.
        super::Http1::new(url, token)?;
        let client = reqwest::Client::builder()
            .connect_timeout(std::time::Duration::from_secs(5))
            .no_proxy()
            .tcp_nodelay(true)
            .build()
            .map_err(|e| Error::new(ErrorKind::Internal, format!("HTTP client: {e}")))?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), token: token.clone() })
    }

    fn unavailable(&self, error: &reqwest::Error) -> Error {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = cause.to_string();
            source = cause.source();
        }
        Error::new(ErrorKind::Unavailable, format!("{}: {text}", self.url))
    }

    async fn exchange(&self, request: Request) -> Result<Response> {
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Put => reqwest::Method::PUT,
            Method::Post => reqwest::Method::POST,
            Method::Delete => reqwest::Method::DELETE,
        };
        let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        let mut builder = self.client.request(method, format!("{}{}{query}", self.url, request.path)).header("authorization", self.token.header());
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        let reply = builder.body(request.body).send().await.map_err(|e| self.unavailable(&e))?;
        let status = reply.status().as_u16();
        let text = |name: &str| reply.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (content_type, meta) = (super::content_type(text("content-type").as_deref()), text(META_HEADER));
        if reply.content_length().is_some_and(|len| len > MAX_BODY as u64) {
            return Err(Error::new(ErrorKind::TooBig, format!("{}: the reply is over {MAX_BODY} bytes", self.url)));
        }
        let body = reply.bytes().await.map_err(|e| self.unavailable(&e))?;
        Ok(Response { status, content_type, meta, body })
    }
}

impl Transport for Plain {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response>> {
        Box::pin(self.exchange(request))
    }

    fn peer(&self) -> &str {
        &self.url
    }
}
