//! One request on a connection: credentials, head, body, handler, reply, access log.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use dfs_common::user::Origin;
use dfs_common::wire::{ACCEPT_HEADER, MAX_BODY, META_HEADER, Method, RANGE_HEADER, REPLAY_HEADER, Request, Response, SESSION_HEADER, USER_HEADER};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue};
use tokio::sync::SemaphorePermit;

use super::credentials::admit;
use super::{BODY_TIMEOUT, MAX_UNSIZED_BODY, SMALL_BODY, Shared};

/// The headers that become part of a [`Request`].
const HEADERS: [&str; 5] = [SESSION_HEADER, REPLAY_HEADER, USER_HEADER, META_HEADER, RANGE_HEADER];

type Reply = hyper::Response<Full<Bytes>>;

/// Answers one request; every failure is a reply.
pub(super) async fn answer(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Reply, Infallible> {
    let authorization = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let Some(origin) = shared.credentials.origin(authorization) else {
        let error = Error::new(ErrorKind::Unauthenticated, "credentials are missing or wrong");
        // The unread body would have to be skipped before the next request, so the connection ends here.
        return Ok(reply(Response::error(&error), true));
    };
    let (start, id) = (Instant::now(), shared.next_request());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (response, close) = match read(&shared, request, origin).await {
        Ok((request, _memory)) => (handle(&shared, request, id).await, false),
        Err(refusal) => (refusal, true),
    };
    log::debug!("request {id} {method} {path} {} {} us", response.status, start.elapsed().as_micros());
    Ok(reply(response, close))
}

/// The whole request, and the share of memory that its body has.
async fn read(shared: &Shared, request: hyper::Request<Incoming>, origin: Origin) -> Result<(Request, Option<SemaphorePermit<'_>>), Response> {
    let (head, body) = request.into_parts();
    let method = match head.method {
        hyper::Method::GET => Method::Get,
        hyper::Method::PUT => Method::Put,
        hyper::Method::POST => Method::Post,
        hyper::Method::DELETE => Method::Delete,
        other => {
            let error = Error::new(ErrorKind::Invalid, format!("method {other} is not used here; GET, PUT, POST and DELETE are"));
            return Err(Response { status: 405, ..Response::error(&error) });
        }
    };
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::new(method, target);
    for name in HEADERS {
        let mut values = head.headers.get_all(name).iter();
        let Some(value) = values.next() else { continue };
        if values.next().is_some() {
            return Err(refuse(ErrorKind::Invalid, format!("header {name} stands twice")));
        }
        let value = value.to_str().map_err(|_| refuse(ErrorKind::Invalid, format!("header {name} is not ASCII")))?;
        request.set_header(name, value).map_err(|e| Response::error(&e))?;
    }
    for value in head.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
        request.set_header(ACCEPT_HEADER, value).map_err(|e| Response::error(&e))?;
    }
    admit(&mut request, origin).map_err(|e| Response::error(&e))?;
    let declared = body.size_hint().exact();
    let limit = declared.map_or(MAX_UNSIZED_BODY, |length| usize::try_from(length).unwrap_or(usize::MAX));
    if limit > MAX_BODY {
        return Err(refuse(ErrorKind::TooBig, format!("a body has at most {MAX_BODY} bytes")));
    }
    let memory = if request.session.is_some() { &shared.client_memory } else { &shared.server_memory };
    let receive = async {
        let share = match limit > SMALL_BODY {
            true => Some(memory.acquire_many(limit.div_ceil(1024) as u32).await.expect("never closed")),
            false => None,
        };
        collect(body, limit).await.map(|body| (body, share))
    };
    match tokio::time::timeout(BODY_TIMEOUT, receive).await {
        Ok(Ok((body, share))) => Ok((request.body(body), share)),
        Ok(Err(e)) => Err(Response::error(&e)),
        Err(_) => Err(Response { status: 408, ..refuse(ErrorKind::TimedOut, format!("the body took longer than {} s", BODY_TIMEOUT.as_secs())) }),
    }
}

fn refuse(kind: ErrorKind, message: String) -> Response {
    Response::error(&Error::new(kind, message))
}

/// The body, of which more than `limit` bytes are an error.
async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes> {
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Error::new(ErrorKind::Invalid, format!("body: {e}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        if first.len() + rest.len() + piece.len() > limit {
            return Err(Error::new(ErrorKind::TooBig, format!("a body without Content-Length has at most {MAX_UNSIZED_BODY} bytes")));
        }
        // Most bodies are one piece, which is then not copied.
        if rest.is_empty() && first.is_empty() {
            first = piece;
            continue;
        }
        if rest.is_empty() {
            // Not the whole declared length at once: memory follows what has arrived.
            rest.reserve(limit.min(2 << 20));
            rest.extend_from_slice(&first);
            first = Bytes::new();
        }
        rest.extend_from_slice(&piece);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Calls the role; a panic there is one failed request, not a dead server.
async fn handle(shared: &Shared, request: Request, id: u64) -> Response {
    match AssertUnwindSafe(async { shared.service.clone().handle(request).await }).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            log::error!("request {id}: a defect: {}", text.unwrap_or("panic"));
            refuse(ErrorKind::Internal, format!("request {id} met a defect in the server; its log says more"))
        }
    }
}

fn reply(response: Response, close: bool) -> Reply {
    let mut reply = hyper::Response::new(Full::new(response.body));
    *reply.status_mut() = hyper::StatusCode::from_u16(response.status).expect("roles answer with valid statuses");
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(response.content_type));
    if let Some(meta) = response.meta.and_then(|m| HeaderValue::from_str(&m).ok()) {
        headers.insert(META_HEADER, meta);
    }
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    reply
}
