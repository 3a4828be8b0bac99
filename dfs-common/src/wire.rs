//! One request and one reply as every role handles them, free of any HTTP crate:
//! the shell in dfs-server and the transports here translate from and to bytes.
//!
//! Bodies are bounded (no request carries more than a few blocks), so they are whole
//! in memory; what is larger travels as several requests.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};

use crate::api::Packed;
use crate::ids::SessionId;
use crate::user::{Origin, User};
use crate::{Error, ErrorKind, Result};

/// The most bytes in the body of one request or reply: a batch of blocks, or the largest manifest.
pub const MAX_BODY: usize = 66 << 20;
/// Names the session that a request belongs to.
pub const SESSION_HEADER: &str = "dfs-session";
/// `SLOT.SEQUENCE` of a mutation, see [`Replay`].
pub const REPLAY_HEADER: &str = "dfs-replay";
/// On whose behalf the request is made, see [`User`].
pub const USER_HEADER: &str = "dfs-user";
/// Small JSON beside a raw body.
pub const META_HEADER: &str = "dfs-meta";
/// What form an answer may have, as in RFC 9110: [`PACKED`], where there is one, or else JSON.
pub const ACCEPT_HEADER: &str = "accept";
/// Range of a read, as in RFC 9110.
pub const RANGE_HEADER: &str = "range";

/// HTTP methods in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are the methods of HTTP")]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    /// As in the request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }
}

/// Which answer a retried mutation must get: the client's slot, and the number of the
/// mutation in that slot. A slot has one mutation under way at a time, so a service
/// stores one reply a slot (NFSv4.1's session slots, RFC 8881 section 2.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Replay {
    /// 0 to [`Replay::SLOTS`] - 1.
    pub slot: u16,
    /// Rises by one with each mutation in the slot.
    pub sequence: u64,
}

impl Replay {
    /// Mutations that one session may have under way at once.
    pub const SLOTS: u16 = 128;

    fn parse(text: &str) -> Option<Self> {
        let (slot, sequence) = text.split_once('.')?;
        let slot = slot.parse().ok().filter(|&s| s < Self::SLOTS)?;
        Some(Self { slot, sequence: sequence.parse().ok()? })
    }
}

impl std::fmt::Display for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.slot, self.sequence)
    }
}

/// A request, after the credentials were checked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path without the query, always starting with `/`.
    pub path: String,
    /// What follows the `?`, undecoded; empty for none.
    pub query: String,
    /// The sender's session.
    pub session: Option<SessionId>,
    /// Set on mutations that must happen once.
    pub replay: Option<Replay>,
    /// On whose behalf; `None` for a server, and a client that does not say, which has the rights of root.
    pub user: Option<User>,
    /// Whose credentials it came with. No header says so.
    pub origin: Origin,
    /// Content of [`META_HEADER`].
    pub meta: Option<String>,
    /// Content of [`RANGE_HEADER`].
    pub range: Option<String>,
    /// The answer may come in the form for programs ([`ACCEPT_HEADER`]).
    pub packed: bool,
    /// About so many bytes are going to be answered, as far as who asks can tell. No header says so.
    pub expected: usize,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        let path = path.into();
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path.to_owned(), query.to_owned()),
            None => (path, String::new()),
        };
        Self {
            method,
            path,
            query,
            session: None,
            replay: None,
            user: None,
            origin: Origin::default(),
            meta: None,
            range: None,
            packed: false,
            expected: 0,
            body: Bytes::new(),
        }
    }

    /// With `body` as it is.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// With `value` as a JSON body.
    #[must_use]
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Self {
        self.body(serde_json::to_vec(value).expect("wire types serialize"))
    }

    /// With `value` as JSON in [`META_HEADER`] (kept to ASCII, as headers must be).
    #[must_use]
    pub fn meta<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.meta = Some(printable(serde_json::to_string(value).expect("wire types serialize")));
        self
    }

    /// On behalf of `session`.
    #[must_use]
    pub fn session(mut self, session: Option<SessionId>) -> Self {
        self.session = session;
        self
    }

    /// On behalf of `user`.
    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// With an answer in the form for programs, where there is one.
    #[must_use]
    pub fn packed(mut self, packed: bool) -> Self {
        self.packed = packed;
        self
    }

    /// Reads `first..=last` in bytes.
    #[must_use]
    pub fn range(mut self, first: u64, last: u64) -> Self {
        self.range = Some(format!("bytes={first}-{last}"));
        self.expecting(last.saturating_sub(first).saturating_add(1) as usize)
    }

    /// With an answer of about `len` bytes.
    #[must_use]
    pub fn expecting(mut self, len: usize) -> Self {
        self.expected = len;
        self
    }

    /// The body as JSON; `Invalid` names what is wrong.
    pub fn parse_json<T: DeserializeOwned>(&self) -> Result<T> {
        parse(&self.body, "body")
    }

    /// [`META_HEADER`] as JSON.
    pub fn parse_meta<T: DeserializeOwned>(&self) -> Result<T> {
        let meta = self.meta.as_deref().ok_or_else(|| Error::new(ErrorKind::Invalid, format!("header {META_HEADER} is missing")))?;
        parse(meta.as_bytes(), META_HEADER)
    }

    /// The value of `key` in the query, undecoded (ids and numbers need no decoding).
    pub fn query_value(&self, key: &str) -> Option<&str> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == key).map(|pair| pair.1)
    }

    /// Sets session, replay, user, meta, range or the form of the answer from a header's lower-case name; others are ignored.
    pub fn set_header(&mut self, name: &str, value: &str) -> Result<()> {
        let bad = |what: &str| Error::new(ErrorKind::Invalid, format!("header {name}: {what}"));
        match name {
            SESSION_HEADER => self.session = Some(value.parse().map_err(|_| bad("a session is a number"))?),
            REPLAY_HEADER => self.replay = Some(Replay::parse(value).ok_or_else(|| bad("expected SLOT.SEQUENCE"))?),
            USER_HEADER => self.user = Some(value.parse().map_err(|e: Error| e.context(format!("header {name}")))?),
            META_HEADER => self.meta = Some(value.to_owned()),
            RANGE_HEADER => self.range = Some(value.to_owned()),
            ACCEPT_HEADER => self.packed |= value.split(',').any(|form| form.trim() == PACKED),
            _ => {}
        }
        Ok(())
    }

    /// The headers that [`Request::set_header`] reads back.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        [
            self.session.map(|s| (SESSION_HEADER, s.to_string())),
            self.replay.map(|r| (REPLAY_HEADER, r.to_string())),
            self.user.as_ref().map(|u| (USER_HEADER, u.to_string())),
            self.meta.clone().map(|m| (META_HEADER, m)),
            self.range.clone().map(|r| (RANGE_HEADER, r)),
            self.packed.then(|| (ACCEPT_HEADER, PACKED.to_owned())),
        ]
        .into_iter()
        .flatten()
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        let text = e.to_string();
        // A name that is too long fails while it is parsed; its kind must reach the caller.
        let kind = if text.starts_with(ErrorKind::NameTooLong.code()) { ErrorKind::NameTooLong } else { ErrorKind::Invalid };
        Error::new(kind, format!("{what}: {text}"))
    })
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// `application/json`, `application/octet-stream`, `text/plain` or [`PACKED`].
    pub content_type: &'static str,
    /// Content of [`META_HEADER`].
    pub meta: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// Content type of JSON.
pub const JSON: &str = "application/json";
/// Content type of raw bytes.
pub const BYTES: &str = "application/octet-stream";
/// Content type of an answer in the form for programs: postcard of shapes whose every change gets another number here.
pub const PACKED: &str = "application/vnd.dfs.packed-1";

impl Response {
    /// 200 with JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Self {
        Self { status: 200, content_type: JSON, meta: None, body: serde_json::to_vec(value).expect("wire types serialize").into() }
    }

    /// 200 with JSON that was serialized before (a stored reply).
    pub fn raw_json(body: impl Into<Bytes>) -> Self {
        Self { status: 200, content_type: JSON, meta: None, body: body.into() }
    }

    /// Bytes with `status` 200 or 206.
    pub fn bytes(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: BYTES, meta: None, body: body.into() }
    }

    /// 200 with an answer of `O` in the form for programs.
    pub fn packed<O: Packed>(value: &O::Reply) -> Self {
        Self { status: 200, content_type: PACKED, meta: None, body: O::pack(value).into() }
    }

    /// The reply for `error`.
    pub fn error(error: &Error) -> Self {
        let body = serde_json::to_vec(&error.to_body()).expect("errors serialize").into();
        Self { status: error.kind().status(), content_type: JSON, meta: None, body }
    }

    /// The body as JSON, or the error that the reply carries.
    pub fn parse_json<T: DeserializeOwned>(self) -> Result<T> {
        let body = self.into_bytes()?;
        serde_json::from_slice(&body).map_err(|e| Error::new(ErrorKind::Corrupt, format!("reply: {e}")))
    }

    /// The answer of `O` in whichever form it came, or the error that the reply carries.
    pub fn unpack<O: Packed>(self) -> Result<O::Reply> {
        if self.content_type == PACKED { O::unpack(&self.into_bytes()?) } else { self.parse_json() }
    }

    /// Whether it says that the user has not the rights: others may be asked for, or groups be told.
    pub fn is_refusal(&self) -> bool {
        let kind = || self.clone().into_bytes().err().map(|e| e.kind());
        self.status == ErrorKind::Forbidden.status() && matches!(kind(), Some(ErrorKind::Forbidden | ErrorKind::NotPermitted))
    }

    /// What leases the reply gives, by its [`META_HEADER`].
    pub fn granted(&self) -> Option<crate::api::directory::Granted> {
        self.meta.as_deref().and_then(|meta| serde_json::from_str(meta).ok())
    }

    /// The body as bytes, or the error that the reply carries.
    pub fn into_bytes(self) -> Result<Bytes> {
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        match serde_json::from_slice::<crate::error::ErrorBody>(&self.body) {
            Ok(body) => Err(body.into()),
            Err(_) => Err(Error::new(ErrorKind::Internal, format!("HTTP status {} without a code", self.status))),
        }
    }
}

impl From<Result<Response>> for Response {
    fn from(result: Result<Response>) -> Self {
        result.unwrap_or_else(|e| Response::error(&e))
    }
}

/// One role's requests, whether they come from a socket or from the same process.
pub trait Service: Send + Sync + 'static {
    /// Answers one request; errors are replies too.
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response>;
}

/// The same JSON in printable ASCII, as headers are: what else there is stands in strings, where it can be escaped.
fn printable(json: String) -> String {
    let is_printable = |c: char| (' '..='~').contains(&c);
    if json.chars().all(is_printable) {
        return json;
    }
    let mut out = String::with_capacity(2 * json.len());
    for c in json.chars() {
        if is_printable(c) {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_printable_and_what_it_was() {
        for text in ["plain", "\"\\", "\u{e9}\u{7f}\n", "\u{1f600}"] {
            let meta = Request::new(Method::Post, "/v1/x").meta(text).meta.unwrap();
            assert!(meta.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{meta}");
            assert_eq!(serde_json::from_str::<String>(&meta).unwrap(), text);
        }
    }

    #[test]
    fn headers_go_both_ways() {
        let mut request = Request::new(Method::Get, "/v1/x?a=1&b=2").session(Some(SessionId(7))).range(0, 9).meta(&[1, 2]);
        request.replay = Some(Replay { slot: 3, sequence: 9 });
        request.user = Some(User { uid: 5, gid: 6, groups: Some(vec![7, 8]) });
        request.packed = true;
        let mut other = Request::new(Method::Get, "/v1/x");
        for (name, value) in request.headers() {
            other.set_header(name, &value).unwrap();
        }
        assert_eq!(
            (other.session, other.replay, other.user, other.meta, other.range, other.packed),
            (request.session, request.replay, request.user.clone(), request.meta.clone(), request.range.clone(), true)
        );
        assert_eq!((request.query_value("b"), request.query_value("c")), (Some("2"), None));
    }

    #[test]
    fn bad_headers_are_invalid() {
        let mut request = Request::new(Method::Get, "/");
        for (name, value) in [(SESSION_HEADER, "x"), (REPLAY_HEADER, "1"), (REPLAY_HEADER, "128.1"), (REPLAY_HEADER, "1.x"), (USER_HEADER, "root")] {
            assert_eq!(request.set_header(name, value).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn a_name_that_is_too_long_keeps_its_kind() {
        let request = Request::new(Method::Post, "/").json(&"x".repeat(256));
        assert_eq!(request.parse_json::<crate::name::Name>().unwrap_err().kind(), ErrorKind::NameTooLong);
    }
}
