//! The service over real sockets and a store that outlives it.

use dfs_common::api::Operation;
use dfs_common::api::lock::{Owner, Status};
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::transport::{Http1, Transport};
use dfs_common::wire::{Method, Request};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::store::memory::MemoryStore;

const SECRET: &str = "0123456789abcdef";

struct Server {
    service: Arc<LockService>,
    client: Arc<Http1>,
    url: String,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

async fn start(store: Arc<dyn Store>) -> Server {
    let service = LockService::open(&Config::default(), store).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let token = ClusterToken::new(SECRET).unwrap();
    let (stop, stopping) = watch::channel(false);
    let tasks = vec![
        tokio::spawn(service.clone().run(stopping.clone())),
        tokio::spawn(crate::shell::run(listener, token.clone(), service.clone(), stopping)),
    ];
    Server { service, client: Arc::new(Http1::new(&url, &token).unwrap()), url, stop, tasks }
}

impl Server {
    async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        self.client.send(Request::new(Method::Post, O::PATH).json(operation)).await?.parse_json()
    }

    fn later(&self, operation: Acquire) -> JoinHandle<Result<Grant>> {
        let client = self.client.clone();
        tokio::spawn(async move { client.send(Request::new(Method::Post, Acquire::PATH).json(&operation)).await?.parse_json() })
    }

    async fn until(&self, what: impl Fn(&LockStatus) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !what(&self.call(&Status {}).await.unwrap()) {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
    }
}

fn acquire(session: u64, wait_ms: u64) -> Acquire {
    let owner = Owner { host: "h".to_owned(), pid: 1, program: "p".to_owned() };
    Acquire { session: SessionId(session), ino: InodeId(5), request: 1, owner, wait_ms, shares: false }
}

#[tokio::test]
async fn a_release_answers_the_waiter() {
    let server = start(Arc::new(MemoryStore::default())).await;
    let first = server.call(&acquire(1, 0)).await.unwrap();
    let problem = server.call(&acquire(2, 0)).await.unwrap_err();
    assert_eq!(problem.kind(), ErrorKind::WouldBlock);
    assert!(problem.message().contains("on h"), "{problem}");
    let waiter = server.later(acquire(2, 60_000));
    server.until(|s| s.waiters == 1).await;
    server.call(&Release { session: SessionId(1), ino: InodeId(5), token: first.token }).await.unwrap();
    assert!(waiter.await.unwrap().unwrap().token > first.token);
    let rows = server.call(&Locks::default()).await.unwrap();
    assert_eq!((rows.len(), rows[0].holder.session, rows[0].queue.len()), (1, SessionId(2), 0));
    assert_eq!(server.call(&Renew { session: SessionId(2) }).await.unwrap().held, 1);
}

#[tokio::test]
async fn a_short_wait_ends_in_time() {
    let server = start(Arc::new(MemoryStore::default())).await;
    server.call(&acquire(1, 0)).await.unwrap();
    assert_eq!(server.call(&acquire(2, 20)).await.unwrap_err().kind(), ErrorKind::Busy);
    server.call(&End { session: SessionId(1) }).await.unwrap();
    assert_eq!(server.service.status().locks, 0);
}

#[tokio::test]
async fn a_client_that_hangs_up_keeps_its_place_for_its_next_connection() {
    use tokio::io::AsyncWriteExt;
    let server = start(Arc::new(MemoryStore::default())).await;
    let first = server.call(&acquire(1, 0)).await.unwrap();
    let mut raw = tokio::net::TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    let body = serde_json::to_string(&acquire(2, 60_000)).unwrap();
    let head = format!("POST {} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: {}\r\n\r\n", Acquire::PATH, body.len());
    raw.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    server.until(|s| s.waiters == 1).await;
    drop(raw);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !server.service.inner.lock().waiting.is_empty() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert_eq!(server.service.status().waiters, 1);
    let third = server.later(acquire(3, 60_000));
    server.until(|s| s.waiters == 2).await;
    server.call(&Release { session: SessionId(1), ino: InodeId(5), token: first.token }).await.unwrap();
    let second = server.call(&acquire(2, 60_000)).await.unwrap();
    assert!(second.token > first.token && !third.is_finished());
}

#[tokio::test]
async fn a_restart_ends_waits_at_once_and_keeps_places() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let server = start(store.clone()).await;
    let first = server.call(&acquire(1, 0)).await.unwrap();
    let waiter = server.later(acquire(2, 60_000));
    server.until(|s| s.waiters == 1).await;
    server.stop.send(true).unwrap();
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    for task in server.tasks {
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }
    let server = start(store).await;
    let third = server.later(acquire(3, 60_000));
    server.until(|s| s.waiters == 2).await;
    let second = server.later(acquire(2, 60_000));
    server.call(&Release { session: SessionId(1), ino: InodeId(5), token: first.token }).await.unwrap();
    assert!(second.await.unwrap().unwrap().token > first.token);
    assert!(!third.is_finished());
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let server = start(Arc::new(MemoryStore::default())).await;
    let send = |request: Request| server.client.send(request);
    for (request, status) in [
        (Request::new(Method::Post, "/v1/lock/nothing"), 404),
        (Request::new(Method::Get, Status::PATH), 400),
        (Request::new(Method::Post, Status::PATH).body("{\"x\":1}"), 400),
        (Request::new(Method::Post, Acquire::PATH).body("nonsense"), 400),
        (Request::new(Method::Post, Acquire::PATH).json(&acquire(1, 0)).session(Some(SessionId(2))), 400),
    ] {
        assert_eq!(send(request.clone()).await.unwrap().status, status, "{request:?}");
    }
    assert_eq!(server.service.status().locks, 0);
}
