//! The shell over real sockets: what a role may rely on.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::credentials::ClusterToken;
use dfs_common::transport::{Http1, Transport};
use dfs_common::wire::{Method, Request, Response, Service};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;

/// Echoes the body; `/panic` panics, `/wait` answers when the server stops, `/form` says whether the answer may be packed.
#[derive(Debug)]
struct Echo(watch::Receiver<bool>);

impl Service for Echo {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        let mut stop = self.0.clone();
        async move {
            match request.path.as_str() {
                "/panic" => panic!("asked to"),
                "/wait" => stopped(&mut stop).await,
                "/form" => return Response::json(&request.packed),
                _ => {}
            }
            Response::bytes(200, request.body)
        }
        .boxed()
    }
}

const SECRET: &str = "0123456789abcdef";

struct Server {
    url: String,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

async fn start(host: &str) -> Server {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    let token = ClusterToken::new(SECRET).unwrap();
    let task = tokio::spawn(run(listener, token.into(), Arc::new(Echo(stopping.clone())), stopping));
    Server { url: format!("http://{address}"), stop, task }
}

impl Server {
    fn client(&self) -> Http1 {
        Http1::new(&self.url, &ClusterToken::new(SECRET).unwrap()).unwrap()
    }

    /// Sends `text` as it is and returns everything that comes back.
    async fn raw(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut reply)).await.unwrap().unwrap();
        String::from_utf8(reply).unwrap()
    }
}

#[tokio::test]
async fn bodies_go_both_ways_and_a_panic_is_one_reply() {
    let server = start("127.0.0.1").await;
    let client = server.client();
    for size in [0, 1, 70_000, 5 << 20] {
        let body = vec![7u8; size];
        let reply = client.send(Request::new(Method::Put, "/x").body(body.clone())).await.unwrap();
        assert_eq!((reply.status, reply.body.len()), (200, size));
    }
    assert_eq!(client.send(Request::new(Method::Get, "/panic")).await.unwrap().status, 500);
    assert_eq!(client.send(Request::new(Method::Get, "/x")).await.unwrap().status, 200);
}

#[tokio::test]
async fn ipv6_works() {
    let server = start("::1").await;
    assert_eq!(server.client().send(Request::new(Method::Get, "/x")).await.unwrap().status, 200);
}

#[tokio::test]
async fn without_credentials_nothing_is_read() {
    let server = start("127.0.0.1").await;
    for authorization in ["", "Authorization: Bearer 0123456789abcdeX\r\n", "Authorization: Basic eDp5\r\n"] {
        // The body is announced and never sent: the answer must not wait for it.
        let reply = server.raw(&format!("PUT /x HTTP/1.1\r\nHost: a\r\n{authorization}Content-Length: 1000\r\n\r\n")).await;
        assert!(reply.starts_with("HTTP/1.1 401"), "{reply}");
        assert!(reply.contains("\"code\":\"unauthenticated\""), "{reply}");
    }
}

#[tokio::test]
async fn what_is_malformed_gets_a_4xx() {
    let server = start("127.0.0.1").await;
    let head = |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\n{rest}\r\n");
    for (request, status) in [
        (head("PATCH /x", ""), 405),
        (head("GET /x", "dfs-session: x\r\n"), 400),
        (head("GET /x", "dfs-replay: 1\r\n"), 400),
        (head("PUT /x", "Content-Length: 999999999999\r\n"), 413),
    ] {
        let reply = server.raw(&request).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{request} {reply}");
        assert!(reply.contains("{\"code\":"), "{reply}");
    }
    assert!(server.raw("nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn a_chunked_body_is_bounded() {
    let server = start("127.0.0.1").await;
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
    let head = format!("PUT /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    assert!(server.raw(&format!("{head}{chunk}0\r\n\r\n")).await.starts_with("HTTP/1.1 200"));
    assert!(server.raw(&format!("{head}{chunk}{chunk}1\r\nx\r\n")).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_stop_lets_what_is_under_way_finish() {
    let mut server = start("127.0.0.1").await;
    let client = server.client();
    let mut waiting = Box::pin(client.send(Request::new(Method::Get, "/wait")));
    let other = server.client();
    tokio::select! {
        _ = &mut waiting => panic!("answered before the stop"),
        reply = other.send(Request::new(Method::Get, "/x")) => assert_eq!(reply.unwrap().status, 200),
    }
    server.stop.send(true).unwrap();
    assert_eq!(waiting.await.unwrap().status, 200);
    tokio::time::timeout(Duration::from_secs(5), &mut server.task).await.unwrap().unwrap();
    assert!(server.client().send(Request::new(Method::Get, "/x")).await.is_err());
}

#[tokio::test]
async fn the_form_of_an_answer_is_asked_for_by_accept() {
    let server = start("127.0.0.1").await;
    let client = server.client();
    for packed in [false, true] {
        let reply = client.send(Request::new(Method::Get, "/form").packed(packed)).await.unwrap();
        assert_eq!(reply.parse_json::<bool>().unwrap(), packed);
    }
    for (accept, packed) in [
        ("accept: */*\r\n", false),
        ("accept: application/json, application/vnd.dfs.packed-1\r\n", true),
        ("accept: text/html\r\naccept: application/vnd.dfs.packed-1\r\n", true),
        ("accept: application/vnd.dfs.packed-2\r\n", false),
    ] {
        let head = format!("GET /form HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n{accept}connection: close\r\n\r\n");
        assert!(server.raw(&head).await.ends_with(&packed.to_string()), "{accept}");
    }
}
