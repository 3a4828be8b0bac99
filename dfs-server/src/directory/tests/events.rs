//! Leases: who is told of what before it changes, and who waits for whom.

use std::future::Future;

use tokio::task::JoinHandle;

use super::*;

/// A mount as the service sees it: it claims its leases and asks for events when a test says so.
struct Mount {
    client: Client,
    seen: u64,
}

impl Mount {
    async fn new(directory: &Arc<Directory>) -> Self {
        let mut mount = Self::unclaimed(directory).await;
        mount.claim(0, &[]).await;
        mount
    }

    async fn unclaimed(directory: &Arc<Directory>) -> Self {
        let mut client = Client { directory: directory.clone(), session: None, sequence: AtomicU64::new(0) };
        let open = OpenSession { host: "here".to_owned(), pid: 7, program: "test".to_owned(), mountpoint: "/mnt".to_owned() };
        client.session = Some(client.call(&open).await.unwrap().session);
        Self { client, seen: 0 }
    }

    fn session(&self) -> SessionId {
        self.client.session.unwrap()
    }

    async fn claim(&mut self, revision: u64, held: &[InodeId]) -> Claimed {
        let claimed = self.client.call(&ClaimLeases { session: self.session(), revision, held: held.to_vec() }).await.unwrap();
        self.seen = claimed.event;
        claimed
    }

    /// Asks for events and acknowledges those that were seen.
    fn ask(&self, wait_ms: u64) -> impl Future<Output = Result<EventBatch>> + Send + 'static {
        let request = Request::new(Method::Post, Events::PATH).json(&Events { session: self.session(), after: self.seen, wait_ms });
        let reply = self.client.directory.clone().handle(request);
        async move { reply.await.parse_json() }
    }

    /// The next events, which the next request will acknowledge.
    async fn events(&mut self) -> Vec<Event> {
        let batch = self.ask(10_000).await.unwrap();
        self.seen = batch.events.last().map_or(self.seen, |event| event.number);
        batch.events
    }

    async fn acknowledge(&self) {
        assert_eq!(self.ask(0).await.unwrap().events, []);
    }

    async fn leased<O: Operation>(&self, operation: &O) -> (Result<O::Reply>, Option<Granted>) {
        let request = Request::new(Method::Post, O::PATH).json(operation).session(self.client.session);
        let reply = self.client.directory.clone().handle(request).await;
        let granted = reply.meta.as_deref().map(|meta| serde_json::from_str(meta).unwrap());
        (reply.parse_json(), granted)
    }

    /// Reads attributes and returns what was granted.
    async fn stat(&self, ino: InodeId) -> Granted {
        self.leased(&GetAttributes { ino }).await.1.unwrap()
    }
}

fn chmod(ino: InodeId, mode: u32) -> SetAttributes {
    SetAttributes { mode: Some(mode), ..SetAttributes::none(ino) }
}

/// Sends a request that has to wait, and returns when it does.
async fn start<O: Operation>(client: &Client, operation: O) -> Waiting<O::Reply>
where
    O::Reply: 'static,
{
    let before = client.call(&Waits {}).await.unwrap().len();
    let mut request = Request::new(Method::Post, O::PATH).json(&operation).session(client.session);
    request.replay = client.next_replay();
    let reply = client.directory.clone().handle(request);
    let task = tokio::spawn(async move { reply.await.parse_json() });
    while client.call(&Waits {}).await.unwrap().len() == before {
        assert!(!task.is_finished(), "it does not wait");
        tokio::task::yield_now().await;
    }
    Waiting(task)
}

struct Waiting<T>(JoinHandle<Result<T>>);

impl<T> Waiting<T> {
    /// Whether it still waits once everything that can happen has happened.
    async fn waits(&self) -> bool {
        // Time stands still until nothing else can be done.
        tokio::time::sleep(Duration::from_millis(1)).await;
        !self.0.is_finished()
    }

    async fn end(self) -> Result<T> {
        tokio::time::timeout(Duration::from_secs(5), self.0).await.expect("nothing is left to wait for").unwrap()
    }
}

fn at(events: &[Event]) -> Vec<(InodeId, Option<String>, bool)> {
    events.iter().map(|e| (e.ino, e.name.as_ref().map(ToString::to_string), e.over)).collect()
}

fn directory() -> Arc<Directory> {
    Directory::open(config(), Arc::new(MemoryStore::default())).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_holder_is_told_before_the_change_returns() {
    let directory = directory();
    let (mut holder, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = writer.client.file(ROOT, "f").await;
    let granted = holder.stat(ino).await;
    assert_eq!((granted.except.as_slice(), granted.nothing), (&[][..], false));
    let change = start(&writer.client, chmod(ino, 0o600)).await;
    let events = holder.events().await;
    assert_eq!(at(&events), [(ino, None, true)]);
    assert!(events[0].number > granted.event);
    assert!(change.waits().await, "sent is not acknowledged");
    assert_eq!(holder.client.attributes(ino).await.unwrap().attributes.mode, 0o755, "and so it is not changed yet");
    holder.acknowledge().await;
    assert_eq!(change.end().await.unwrap().attributes.mode, 0o600);
    // Whoever has been told holds no lease any more, and is not asked again.
    writer.client.call(&chmod(ino, 0o640)).await.unwrap();
    assert_eq!(holder.client.status().await.events, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_session_tells_the_holders_too() {
    let directory = directory();
    let mut holder = Mount::new(&directory).await;
    let nobody = holder.client.other();
    let ino = nobody.file(ROOT, "f").await;
    holder.stat(ino).await;
    let change = start(&nobody, chmod(ino, 0o600)).await;
    assert_eq!(at(&holder.events().await), [(ino, None, true)]);
    holder.acknowledge().await;
    change.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_requester_is_not_told_and_others_are_not_held_up() {
    let directory = directory();
    let (one, two) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let nobody = one.client.other();
    let (f, g) = (nobody.file(ROOT, "f").await, nobody.file(ROOT, "g").await);
    one.stat(f).await;
    // Number after number: answers that were under way are known to be older.
    let first = one.leased(&chmod(f, 0o600)).await.1.unwrap();
    let second = one.leased(&chmod(f, 0o640)).await.1.unwrap();
    assert!(second.event > first.event && second.except.is_empty() && !second.nothing);
    let change = start(&two.client, chmod(f, 0o644)).await;
    two.client.call(&chmod(g, 0o600)).await.unwrap();
    nobody.file(ROOT, "h").await;
    assert!(change.waits().await);
    let waits = nobody.call(&Waits {}).await.unwrap();
    assert_eq!((waits[0].operation.as_str(), waits[0].session), (SetAttributes::PATH, two.client.session));
    assert_eq!((waits[0].inodes.as_slice(), waits[0].waits_for.as_slice()), (&[f][..], &[one.session()][..]));
    let rows = nobody.call(&Sessions {}).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.leases).collect::<Vec<_>>(), [1, 1]);
}
