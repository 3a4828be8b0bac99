//! HTTP as bytes on a socket: typed calls for the tests' own questions, and raw
//! exchanges for what no client would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use dfs_common::api::Operation;
use dfs_common::error::ErrorBody;
use dfs_common::{Error, ErrorKind, Result};

/// The longest that any exchange may take: a server that says nothing for this long hangs.
pub const LIMIT: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Header lines.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Code and message of an error reply.
    pub fn error(&self) -> Option<ErrorBody> {
        serde_json::from_slice(&self.body).ok()
    }
}

fn unavailable(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, error.to_string())
}

/// Sends `bytes` to `url` and reads until the server closes or a whole reply is there.
///
/// `Unavailable` where no reply came back at all, `TimedOut` where the server stayed silent for [`LIMIT`].
pub fn exchange(url: &str, bytes: &[u8]) -> Result<Reply> {
    exchange_then(url, bytes, |_| {})
}

/// The same, closing this side after `bytes`: for what may look like the beginning of something longer.
pub fn exchange_closing(url: &str, bytes: &[u8]) -> Result<Reply> {
    exchange_then(url, bytes, |stream| {
        stream.shutdown(std::net::Shutdown::Write).ok();
    })
}

fn exchange_then(url: &str, bytes: &[u8], then: impl FnOnce(&TcpStream)) -> Result<Reply> {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).map_err(unavailable)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(unavailable)?;
    stream.set_write_timeout(Some(LIMIT)).map_err(unavailable)?;
    // A server may answer and close before it has read everything: what it said counts.
    let sent = stream.write_all(bytes);
    then(&stream);
    let mut received = Vec::new();
    let mut buffer = [0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(Error::new(ErrorKind::TimedOut, format!("{url} said nothing for {} s", LIMIT.as_secs())));
            }
            Err(_) => break,
        }
        if parse(&received).is_some() {
            break;
        }
    }
    parse(&received).ok_or_else(|| unavailable(format!("no reply ({} bytes, sending: {sent:?})", received.len())))
}

/// A complete reply with a content length.
fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body = &bytes[end + 4..];
    (status >= 200 && length.is_none_or(|n| body.len() >= n)).then(|| Reply { status, head, body: body.to_vec() })
}

/// A request with credentials and, unless empty, `headers` (whole lines).
pub fn request(method: &str, target: &str, token: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Bearer {token}\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Carries out `operation` at the role at `url`.
pub fn call<O: Operation>(url: &str, token: &str, operation: &O) -> Result<O::Reply> {
    call_as(url, token, "", operation)
}

/// The same with more `headers` (whole lines), such as who asks.
pub fn call_as<O: Operation>(url: &str, token: &str, headers: &str, operation: &O) -> Result<O::Reply> {
    let body = serde_json::to_vec(operation).map_err(unavailable)?;
    let reply = exchange(url, &request("POST", O::PATH, token, headers, &body))?;
    if reply.status == 200 {
        return serde_json::from_slice(&reply.body).map_err(|e| Error::new(ErrorKind::Corrupt, e.to_string()));
    }
    Err(reply.error().map_or_else(|| Error::new(ErrorKind::Internal, format!("status {} without a code", reply.status)), Error::from))
}
