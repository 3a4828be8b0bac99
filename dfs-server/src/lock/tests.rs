//! The service over real sockets, with a store that outlives it and a directory service
//! that answers as it is told to.

use dfs_common::api::directory::Fence;
use dfs_common::api::lock::{
    Acquire, Break, CancelRange, End, Family, Grant, LockRange, LockStatus, Locks, Mode, Owner, RangeOwner, Ranges, Release, Renew, Span, Status,
    TakeOver, TestRange, UnlockRange,
};
use dfs_common::api::{Done, Operation};
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::SessionId;
use dfs_common::transport::{Http1, InProcess};
use dfs_common::wire::{Method, Request, Response, Service};
use futures_util::future::{BoxFuture, ready};
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

/// A directory service that fences, or answers an error.
#[derive(Debug, Default)]
struct Directory {
    fails: Mutex<Option<ErrorKind>>,
    asked: Mutex<Vec<Fence>>,
    fenced: Mutex<Vec<Fence>>,
}

impl Service for Directory {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        assert_eq!(request.path, Fence::PATH);
        let fence: Fence = request.parse_json().unwrap();
        self.asked.lock().push(fence.clone());
        Box::pin(ready(match *self.fails.lock() {
            Some(kind) => Response::error(&kind.into()),
            None => {
                self.fenced.lock().push(fence);
                Response::json(&Done {})
            }
        }))
    }
}

async fn start(store: Arc<dyn Store>) -> Server {
    start_with(store, Arc::default(), Config::default()).await
}

async fn start_with(store: Arc<dyn Store>, directory: Arc<Directory>, config: Config) -> Server {
    let service = LockService::open(&config, store, Arc::new(InProcess::new(directory, "directory service"))).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let token = ClusterToken::new(SECRET).unwrap();
    let (stop, stopping) = watch::channel(false);
    let tasks = vec![
        tokio::spawn(service.clone().run(stopping.clone())),
        tokio::spawn(crate::shell::run(listener, token.clone().into(), service.clone(), stopping)),
    ];
    Server { service, client: Arc::new(Http1::new(&url, &token).unwrap()), url, stop, tasks }
}

impl Server {
    async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        self.client.send(Request::new(Method::Post, O::PATH).json(operation)).await?.parse_json()
    }

    fn later<O: Operation>(&self, operation: O) -> JoinHandle<Result<O::Reply>> {
        let client = self.client.clone();
        tokio::spawn(async move { client.send(Request::new(Method::Post, O::PATH).json(&operation)).await?.parse_json() })
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
        }
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
    Acquire { session: SessionId(session), ino: InodeId(5), request: 1, owner, wait_ms, unaware: false, fresh: None }
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
    server.stop().await;
    let server = start(store).await;
    let third = server.later(acquire(3, 60_000));
    server.until(|s| s.waiters == 2).await;
    let second = server.later(acquire(2, 60_000));
    server.call(&Release { session: SessionId(1), ino: InodeId(5), token: first.token }).await.unwrap();
    assert!(second.await.unwrap().unwrap().token > first.token);
    assert!(!third.is_finished());
}

fn short() -> Config {
    Config { lease: Duration::from_millis(100) }
}

/// A file with a holder that vanishes and one that waits; returns the first token.
async fn vanishing(server: &Server) -> (Token, JoinHandle<Result<Grant>>) {
    let first = server.call(&acquire(1, 0)).await.unwrap();
    let waiter = server.later(acquire(2, 60_000));
    server.until(|s| s.waiters == 1).await;
    (first.token, waiter)
}

async fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_directory_service_knows_of_a_lost_holder_before_the_next_grant() {
    let directory = Arc::new(Directory::default());
    let server = start_with(Arc::new(MemoryStore::default()), directory.clone(), Config::default()).await;
    let (first, waiter) = vanishing(&server).await;
    server.call(&Break { ino: InodeId(5), token: Some(first), fresh: None }).await.unwrap();
    let second = waiter.await.unwrap().unwrap().token;
    let fenced = directory.fenced.lock().clone();
    assert!(fenced.len() == 1 && fenced[0].ino == InodeId(5) && fenced[0].token > first && fenced[0].token <= second, "{fenced:?}");
    let missing = server.call(&Break { ino: InodeId(6), token: None, fresh: None }).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn while_the_directory_service_is_away_nobody_gets_a_lost_holders_lock() {
    let directory = Arc::new(Directory::default());
    *directory.fails.lock() = Some(ErrorKind::Unavailable);
    let server = start_with(Arc::new(MemoryStore::default()), directory.clone(), short()).await;
    server.call(&acquire(1, 0)).await.unwrap();
    server.until(|s| s.fencing == 1).await;
    until(|| directory.asked.lock().len() > 2).await;
    assert_eq!(server.call(&acquire(2, 0)).await.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(server.call(&acquire(2, 20)).await.unwrap_err().kind(), ErrorKind::Busy);
    assert!(server.call(&Locks::default()).await.unwrap()[0].fencing);
    *directory.fails.lock() = None;
    server.until(|s| s.fencing == 0 && s.locks == 0).await;
    server.call(&acquire(2, 0)).await.unwrap();
}

#[tokio::test]
async fn a_file_that_does_not_exist_any_more_needs_no_fence() {
    let directory = Arc::new(Directory::default());
    *directory.fails.lock() = Some(ErrorKind::NotFound);
    let server = start_with(Arc::new(MemoryStore::default()), directory, short()).await;
    server.call(&acquire(1, 0)).await.unwrap();
    server.until(|s| s.locks == 0).await;
}

#[tokio::test]
async fn a_restart_in_between_goes_on_with_fencing() {
    let (store, directory): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::default()), Arc::new(Directory::default()));
    *directory.fails.lock() = Some(ErrorKind::Internal);
    let server = start_with(store.clone(), directory.clone(), Config::default()).await;
    let (first, waiter) = vanishing(&server).await;
    let breaker = server.later(Break { ino: InodeId(5), token: None, fresh: None });
    server.until(|s| s.fencing == 1).await;
    until(|| !directory.asked.lock().is_empty()).await;
    server.stop().await;
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(breaker.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    let asked = directory.asked.lock()[0].clone();
    let server = start_with(store, directory.clone(), Config::default()).await;
    assert_eq!(server.service.status().fencing, 1);
    let waiter = server.later(acquire(2, 60_000));
    *directory.fails.lock() = None;
    let second = waiter.await.unwrap().unwrap().token;
    assert!(second >= asked.token && asked.token > first);
    assert_eq!(*directory.fenced.lock(), [asked]);
}

#[tokio::test]
async fn a_mount_that_comes_back_takes_over_what_it_held() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let server = start(store.clone()).await;
    let token = server.call(&acquire(1, 0)).await.unwrap().token;
    let taken = server.call(&TakeOver { session: SessionId(9), from: SessionId(1) }).await.unwrap();
    assert_eq!(taken.locks, [(InodeId(5), token)]);
    server.stop().await;
    let server = start(store).await;
    let rows = server.call(&Locks::default()).await.unwrap();
    assert_eq!((rows[0].holder.session, rows[0].holder.token), (SessionId(9), token));
    assert_eq!(server.call(&TakeOver { session: SessionId(9), from: SessionId(9) }).await.unwrap_err().kind(), ErrorKind::Invalid);
}

fn owner(session: u64) -> RangeOwner {
    RangeOwner { session: SessionId(session), family: Family::Posix, number: 77 }
}

fn lock_range(session: u64, wait_ms: u64) -> LockRange {
    let process = Owner { host: "h".to_owned(), pid: session as u32, program: "p".to_owned() };
    LockRange { ino: InodeId(5), owner: owner(session), span: Span { first: 0, last: 9 }, mode: Mode::Exclusive, request: 1, process, wait_ms }
}

#[tokio::test]
async fn locks_on_ranges_wait_and_survive_a_restart() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let server = start(store.clone()).await;
    server.call(&lock_range(1, 0)).await.unwrap();
    let problem = server.call(&lock_range(2, 0)).await.unwrap_err();
    assert!(problem.kind() == ErrorKind::WouldBlock && problem.message().contains("(pid 1) on h"), "{problem}");
    let waiter = server.later(lock_range(2, 60_000));
    server.until(|s| (s.ranges, s.range_waiters) == (1, 1)).await;
    server.stop().await;
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    let server = start(store).await;
    let rows = server.call(&Ranges { ino: Some(InodeId(5)) }).await.unwrap();
    assert_eq!(rows.iter().map(|r| (r.owner, r.waits)).collect::<Vec<_>>(), [(owner(1), false), (owner(2), true)]);
    let test = TestRange { ino: InodeId(5), owner: owner(3), span: Span::ALL, mode: Mode::Shared };
    assert_eq!(server.call(&test).await.unwrap().lock.unwrap().process.pid, 1);
    let (waiter, given_up) = (server.later(lock_range(2, 60_000)), server.later(lock_range(3, 60_000)));
    server.until(|s| s.range_waiters == 2).await;
    server.call(&CancelRange { ino: InodeId(5), owner: owner(3), request: 1 }).await.unwrap();
    assert_eq!(given_up.await.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    server.call(&UnlockRange { ino: InodeId(5), owner: owner(1), span: Span::ALL }).await.unwrap();
    waiter.await.unwrap().unwrap();
    assert_eq!(server.call(&lock_range(1, 20)).await.unwrap_err().kind(), ErrorKind::Busy);
}

#[tokio::test]
async fn rows_of_the_program_before_are_read() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let server = start(store.clone()).await;
    let token = server.call(&acquire(1, 0)).await.unwrap().token;
    server.stop().await;
    let (key, mut row) = store.scan(b"h", b"i", 10).unwrap().remove(0);
    // Format 1 had no list of requests at the end, which is empty here.
    assert_eq!((row.remove(0), row.pop()), (2, Some(0)));
    row.insert(0, 1);
    let mut batch = crate::store::Batch::default();
    batch.changes.insert(key, Some(row));
    store.commit(&batch, crate::store::Durability::Process).unwrap();
    let server = start(store).await;
    assert_eq!(server.call(&Locks::default()).await.unwrap()[0].holder.token, token);
}

/// A store that can be full.
#[derive(Debug, Default)]
struct Full(MemoryStore, std::sync::atomic::AtomicBool);

impl crate::store::View for Full {
    fn get(&self, key: &[u8]) -> Result<Option<crate::store::Value>> {
        self.0.get(key)
    }
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(crate::store::Key, crate::store::Value)>> {
        self.0.scan(from, to, limit)
    }
}

impl Store for Full {
    fn commit(&self, batch: &crate::store::Batch, durability: crate::store::Durability) -> Result<u64> {
        match self.1.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(ErrorKind::NoSpace.into()),
            false => self.0.commit(batch, durability),
        }
    }
    fn snapshot(&self) -> Box<dyn crate::store::View + '_> {
        self.0.snapshot()
    }
}

#[tokio::test]
async fn a_grant_that_cannot_be_stored_is_no_grant() {
    let (store, directory) = (Arc::new(Full::default()), Arc::new(Directory::default()));
    let server = start_with(store.clone(), directory.clone(), Config::default()).await;
    let (first, waiter) = vanishing(&server).await;
    let range = server.call(&lock_range(1, 0)).await;
    assert!(range.is_ok());
    store.1.store(true, std::sync::atomic::Ordering::SeqCst);
    let release = Release { session: SessionId(1), ino: InodeId(5), token: first };
    assert_eq!(server.call(&release).await.unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(server.call(&Acquire { ino: InodeId(6), ..acquire(3, 0) }).await.unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(server.call(&Break { ino: InodeId(5), token: Some(first), fresh: None }).await.is_err());
    store.1.store(false, std::sync::atomic::Ordering::SeqCst);
    let later = server.call(&acquire(4, 60_000)).await.unwrap().token;
    assert!(later > first && directory.asked.lock().is_empty(), "what was not stored was told to nobody");
    assert_eq!(server.service.status().locks, 1);
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
        (Request::new(Method::Post, LockRange::PATH).json(&lock_range(1, 0)).session(Some(SessionId(2))), 400),
        (Request::new(Method::Get, Break::PATH), 400),
    ] {
        assert_eq!(send(request.clone()).await.unwrap().status, status, "{request:?}");
    }
    assert_eq!(server.service.status().locks, 0);
}
