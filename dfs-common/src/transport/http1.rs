//! HTTP/1.1 for the hot path: a pool of idle connections, a request in one write, a reply
//! into one buffer. httparse reads the head; a general client would build its maps and
//! hand the pieces around, which costs as much as what the servers do for a small file.
//!
//! Who asks moves the bytes: the request leaves within the first poll, on the caller's thread.

use std::io::{ErrorKind as IoKind, IoSlice, Write};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Transport;
use crate::credentials::ClusterToken;
use crate::wire::{MAX_BODY, META_HEADER, Request, Response};
use crate::{Error, ErrorKind, Result};

/// Idle connections that are kept.
const MAX_IDLE: usize = 64;
/// The longest head of a reply: leases come in it.
const MAX_HEAD: usize = 1 << 20;
/// Headers of a reply.
const MAX_HEADERS: usize = 32;
/// So much is read at a time while the length is not known.
const PIECE: usize = 8 << 10;
/// Of an answer whose length is expected.
const ROOM_FOR_HEAD: usize = 1 << 10;
/// What the kernel maps at a time, at least.
const MEMORY_PAGE: usize = 4 << 10;
/// Not the whole declared length at once: memory follows what has arrived.
const MAX_RESERVED: usize = 2 << 20;

/// What stands in the head of a reply.
struct Head {
    /// Bytes of it.
    len: usize,
    status: u16,
    content_type: &'static str,
    meta: Option<String>,
    body: Length,
    /// The server ends the connection.
    close: bool,
}

/// How long the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Known(usize),
    Chunked,
    /// It ends with the connection.
    UntilEnd,
}

impl Head {
    /// Of the reply at the start of `bytes`; `None` where that is not all of it.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(len) = parsed.parse(bytes).map_err(|e| format!("not a reply in HTTP/1.1: {e}"))? else { return Ok(None) };
        let status = parsed.code.unwrap_or_default();
        let (mut content_type, mut meta, mut declared, mut chunked) = (None, None, None, false);
        // HTTP/1.0 closes unless it says otherwise; a connection that is kept for nothing is found out later.
        let mut close = parsed.version == Some(0);
        for header in parsed.headers.iter() {
            let text = || std::str::from_utf8(header.value).ok().map(str::trim);
            if header.name.eq_ignore_ascii_case("content-length") {
                let length = text().and_then(|text| text.parse().ok()).ok_or("a content-length that is no number")?;
                if declared.replace(length).is_some_and(|other: usize| other != length) {
                    return Err("two lengths".to_owned());
                }
            } else if header.name.eq_ignore_ascii_case("content-type") {
                content_type = text();
            } else if header.name.eq_ignore_ascii_case(META_HEADER) {
                meta = text().map(str::to_owned);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = true;
                if !text().is_some_and(|text| text.eq_ignore_ascii_case("chunked")) {
                    return Err("a transfer encoding other than chunked".to_owned());
                }
            } else if header.name.eq_ignore_ascii_case("connection") {
                close |= text().is_some_and(|text| text.eq_ignore_ascii_case("close"));
            }
        }
        let body = match (chunked, declared) {
            _ if status == 204 || status == 304 || status < 200 => Length::Known(0),
            (true, _) => Length::Chunked,
            (false, Some(length)) => Length::Known(length),
            (false, None) => Length::UntilEnd,
        };
        if matches!(body, Length::Known(length) if length > MAX_BODY) {
            return Err(format!("a body of more than {MAX_BODY} bytes"));
        }
        let close = close || body == Length::UntilEnd;
        Ok(Some(Self { len, status, content_type: super::content_type(content_type), meta, body, close }))
    }
}

/// A connection, and what has arrived on it and is not taken yet.
struct Connection {
    stream: TcpStream,
    arrived: BytesMut,
}

impl Connection {
    /// True where the other side has neither closed it nor said something unasked.
    fn is_open(&self) -> bool {
        let mut byte = [0];
        self.arrived.is_empty() && matches!(self.stream.try_read(&mut byte), Err(e) if e.kind() == IoKind::WouldBlock)
    }

    async fn write(&mut self, head: &[u8], body: &[u8]) -> std::io::Result<()> {
        let (mut head, mut body) = (head, body);
        while !head.is_empty() || !body.is_empty() {
            let pieces = [IoSlice::new(head), IoSlice::new(body)];
            let written = self.stream.write_vectored(&pieces[usize::from(head.is_empty())..]).await?;
            if written == 0 {
                return Err(IoKind::WriteZero.into());
            }
            let of_head = written.min(head.len());
            (head, body) = (&head[of_head..], &body[written - of_head..]);
        }
        Ok(())
    }

    /// Makes room for an answer of about `expected` bytes, while the server is at work: memory that was never used is mapped and
    /// cleared by the kernel page by page, which takes longer than receiving what comes into it.
    fn make_room(&mut self, expected: usize) {
        if expected > PIECE {
            self.arrived.reserve(expected.min(MAX_RESERVED) + ROOM_FOR_HEAD);
            self.arrived.spare_capacity_mut().iter_mut().step_by(MEMORY_PAGE).for_each(|byte| _ = byte.write(0));
        }
    }

    /// Waits for more; false at the end of the connection.
    async fn read(&mut self, about: usize) -> Result<bool, String> {
        self.arrived.reserve(about);
        self.stream.read_buf(&mut self.arrived).await.map(|read| read > 0).map_err(|e| e.to_string())
    }

    async fn read_some(&mut self, about: usize) -> Result<(), String> {
        if self.read(about).await? { Ok(()) } else { Err("the connection was closed".to_owned()) }
    }

    async fn head(&mut self) -> Result<Head, String> {
        loop {
            if let Some(head) = Head::parse(&self.arrived)? {
                self.arrived.advance(head.len);
                // What only says that the request is being looked at.
                if head.status >= 200 {
                    return Ok(head);
                }
            } else if self.arrived.len() > MAX_HEAD {
                return Err(format!("a head of more than {MAX_HEAD} bytes"));
            } else {
                self.read_some(PIECE).await?;
            }
        }
    }

    async fn body(&mut self, length: Length) -> Result<Bytes, String> {
        match length {
            Length::Known(length) => self.exactly(length).await,
            Length::Chunked => self.chunks().await,
            Length::UntilEnd => {
                while self.arrived.len() <= MAX_BODY {
                    if !self.read(PIECE).await? {
                        return Ok(self.arrived.split().freeze());
                    }
                }
                Err(format!("a body of more than {MAX_BODY} bytes"))
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Result<Bytes, String> {
        while self.arrived.len() < length {
            self.read_some((length - self.arrived.len()).min(MAX_RESERVED)).await?;
        }
        Ok(self.arrived.split_to(length).freeze())
    }

    /// As something between here and the server may send it.
    async fn chunks(&mut self) -> Result<Bytes, String> {
        let mut body = BytesMut::new();
        loop {
            let (line, size) = loop {
                match httparse::parse_chunk_size(&self.arrived).map_err(|_| "a chunk without its size".to_owned())? {
                    httparse::Status::Complete((line, size)) => break (line, size as usize),
                    httparse::Status::Partial => self.read_some(PIECE).await?,
                }
            };
            self.arrived.advance(line);
            if body.len().saturating_add(size) > MAX_BODY {
                return Err(format!("a body of more than {MAX_BODY} bytes"));
            }
            if size == 0 {
                // Trailers up to an empty line.
                loop {
                    let line = self.line().await?;
                    if line.is_empty() {
                        return Ok(body.freeze());
                    }
                }
            }
            body.extend_from_slice(&self.exactly(size).await?);
            if !self.line().await?.is_empty() {
                return Err("a chunk that is longer than its size".to_owned());
            }
        }
    }

    /// Up to the next end of a line, which is left out.
    async fn line(&mut self) -> Result<Bytes, String> {
        loop {
            if let Some(end) = self.arrived.windows(2).position(|two| two == b"\r\n") {
                let line = self.arrived.split_to(end + 2);
                return Ok(line.freeze().slice(..end));
            }
            if self.arrived.len() > MAX_HEAD {
                return Err("a line without an end".to_owned());
            }
            self.read_some(PIECE).await?;
        }
    }
}

/// A pool of connections to one server. Must be used within one tokio runtime.
pub struct Http1 {
    url: String,
    authority: String,
    /// The lines that every request has.
    common: String,
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
        if host.is_empty() || authority.contains(['/', '?', '@']) || !is_visible(authority) || port.parse::<u16>().is_err() {
            return Err(invalid());
        }
        let header = token.header();
        if !is_line(&header) {
            return Err(invalid());
        }
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            authority: authority.to_owned(),
            common: format!("host: {authority}\r\nauthorization: {header}\r\n"),
            idle: Mutex::new(Vec::new()),
        })
    }

    fn unavailable(&self, error: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{}: {error}", self.url))
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|e| self.unavailable(e))?;
        stream.set_nodelay(true).map_err(|e| self.unavailable(e))?;
        Ok(Connection { stream, arrived: BytesMut::new() })
    }

    /// An idle connection that is still open.
    fn take_idle(&self) -> Option<Connection> {
        loop {
            let connection = self.idle.lock().pop()?;
            if connection.is_open() {
                return Some(connection);
            }
        }
    }

    /// The head of `request`. `Invalid` where something in it would end a line.
    fn head(&self, request: &Request) -> Result<Vec<u8>> {
        let invalid = |what: &str| Err(Error::new(ErrorKind::Invalid, format!("request: {what} with characters that do not belong there")));
        if !request.path.starts_with('/') || !is_visible(&request.path) || !is_visible(&request.query) {
            return invalid("a path");
        }
        let mut head = Vec::with_capacity(512);
        let mark = if request.query.is_empty() { "" } else { "?" };
        let (method, path, query, common) = (request.method.as_str(), &request.path, &request.query, &self.common);
        let length = request.body.len();
        write!(head, "{method} {path}{mark}{query} HTTP/1.1\r\n{common}content-length: {length}\r\n").expect("memory");
        for (name, value) in request.headers() {
            if !is_line(&value) {
                return invalid(name);
            }
            write!(head, "{name}: {value}\r\n").expect("memory");
        }
        head.extend_from_slice(b"\r\n");
        Ok(head)
    }

    /// The reply, and whether the connection can take another request.
    async fn exchange(&self, connection: &mut Connection, request: &Request) -> Result<(Response, bool)> {
        let head = self.head(request)?;
        let written = connection.write(&head, &request.body).await;
        connection.make_room(request.expected);
        let head = match (written, connection.head().await) {
            (Ok(()), head) => head.map_err(|e| self.unavailable(e))?,
            // Who refuses a request need not read all of it.
            (Err(_), Ok(head)) => Head { close: true, ..head },
            (Err(e), Err(_)) => return Err(self.unavailable(e)),
        };
        let body = connection.body(head.body).await.map_err(|e| self.unavailable(e))?;
        Ok((Response { status: head.status, content_type: head.content_type, meta: head.meta, body }, !head.close))
    }
}

/// True for what may stand in a target: neither spaces nor controls.
fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// True for what may stand in a header.
fn is_line(text: &str) -> bool {
    text.bytes().all(|byte| byte == b' ' || byte == b'\t' || byte.is_ascii_graphic())
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
            let mut connection = match self.take_idle() {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let (reply, goes_on) = self.exchange(&mut connection, &request).await?;
            doubt.0 = None;
            if goes_on {
                if reply.body.len() > PIECE {
                    // What is left of a buffer would keep all of it.
                    connection.arrived = BytesMut::new();
                }
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
        for bad in ["a:7400", "http://a", "https://a:1", "http://:1", "http://a:x", "http://a:1/x", "http://u@a:1", "http://a b:1", "http://a\r\n:1"]
        {
            assert_eq!(Http1::new(bad, &token).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    /// Answers each of `replies` to one connection, in the pieces that are given, and reads nothing but heads.
    async fn serve(replies: Vec<Vec<&'static str>>) -> Http1 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = ClusterToken::new("0123456789abcdef").unwrap();
        let http = Http1::new(&format!("http://{}", listener.local_addr().unwrap()), &token).unwrap();
        tokio::spawn(async move {
            for pieces in replies {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut request).await.unwrap();
                }
                assert!(request.starts_with(b"GET /v1/x?a=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{}", String::from_utf8_lossy(&request));
                for piece in pieces {
                    stream.write_all(piece.as_bytes()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        http
    }

    async fn answered(pieces: &[&'static str]) -> Result<Response> {
        serve(vec![pieces.to_vec()]).await.send(Request::new(crate::wire::Method::Get, "/v1/x?a=1")).await
    }

    #[tokio::test]
    async fn replies_in_every_form() {
        let forms: [&[&str]; 6] = [
            &["HTTP/1.1 200 OK\r\ncontent-length: 5\r\ndfs-meta: m\r\n\r\nhello"],
            &["HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 20", "0 OK\r\nContent-Length: 5\r\nDFS-Meta:  m \r\n\r\nhe", "llo"],
            &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ndfs-meta: m\r\n\r\n2\r\nhe\r\n", "3;x=y\r\nllo\r", "\n0\r\nt: 1\r\n\r\n"],
            &["HTTP/1.1 200 OK\r\ndfs-meta: m\r\n\r\nhel", "lo"],
            &["HTTP/1.0 200 OK\r\nconnection: close\r\ncontent-length: 5\r\ndfs-meta: m\r\n\r\nhello"],
            &["HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\ndfs-meta: m\r\n\r\nhello"],
        ];
        for pieces in forms {
            for expected in [0, 5, 3 << 20] {
                let request = Request::new(crate::wire::Method::Get, "/v1/x?a=1").expecting(expected);
                let reply = serve(vec![pieces.to_vec()]).await.send(request).await.unwrap();
                assert_eq!((reply.status, &reply.body[..], reply.meta.as_deref()), (200, &b"hello"[..], Some("m")), "{pieces:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_reply_is_an_error() {
        let forms: [&[&str]; 8] = [
            &["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell"],
            &["HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"],
            &["HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 4\r\n\r\nhello"],
            &["HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"],
            &["HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n"],
            &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffff\r\n"],
            &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n"],
            &["SSH-2.0-OpenSSH\r\n"],
        ];
        for pieces in forms {
            assert_eq!(answered(pieces).await.unwrap_err().kind(), ErrorKind::Unavailable, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_is_not_used_again() {
        let reply = vec!["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"];
        let http = serve(vec![reply.clone(), reply]).await;
        for _ in 0..2 {
            let request = Request::new(crate::wire::Method::Get, "/v1/x?a=1");
            assert_eq!(http.send(request).await.unwrap().status, 200);
            // The server ends each connection after one reply; that has to have been heard.
            while http.idle.lock().iter().any(Connection::is_open) {
                tokio::task::yield_now().await;
            }
        }
    }

    #[test]
    fn nothing_ends_a_line_early() {
        let http = Http1::new("http://a:1", &ClusterToken::new("0123456789abcdef").unwrap()).unwrap();
        let get = |target: &str| Request::new(crate::wire::Method::Get, target);
        for request in [get("/a b"), get("/a\r\nx: y"), get("/a?b\n"), get("a"), Request { meta: Some("x\r\ny".to_owned()), ..get("/") }] {
            assert_eq!(http.head(&request).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
