//! Leases: who is told of what before it changes, and who waits for whom.

use std::future::Future;

use tokio::task::JoinHandle;

use super::*;

/// A mount as the service sees it: it claims its leases and asks for events when a test says so.
pub(super) struct Mount {
    pub(super) client: Client,
    pub(super) seen: u64,
}

impl Mount {
    pub(super) async fn new(directory: &Arc<Directory>) -> Self {
        let mut mount = Self::unclaimed(directory).await;
        mount.claim(0, &[]).await;
        mount
    }

    pub(super) async fn unclaimed(directory: &Arc<Directory>) -> Self {
        let mut client = Client { directory: directory.clone(), session: None, sequence: AtomicU64::new(0) };
        let open = OpenSession { host: "here".to_owned(), pid: 7, program: "test".to_owned(), mountpoint: "/mnt".to_owned() };
        client.session = Some(client.call(&open).await.unwrap().session);
        Self { client, seen: 0 }
    }

    pub(super) fn session(&self) -> SessionId {
        self.client.session.unwrap()
    }

    pub(super) async fn claim(&mut self, revision: u64, held: &[InodeId]) -> Claimed {
        let claimed = self.client.call(&ClaimLeases { session: self.session(), revision, held: held.to_vec() }).await.unwrap();
        self.seen = claimed.event;
        claimed
    }

    /// Asks for events and acknowledges those that were seen.
    pub(super) fn ask(&self, wait_ms: u64) -> impl Future<Output = Result<EventBatch>> + Send + 'static {
        let request = Request::new(Method::Post, Events::PATH).json(&Events { session: self.session(), after: self.seen, wait_ms });
        let reply = self.client.directory.clone().handle(request);
        async move { reply.await.parse_json() }
    }

    /// The next events, which the next request will acknowledge.
    pub(super) async fn events(&mut self) -> Vec<Event> {
        let batch = self.ask(10_000).await.unwrap();
        self.seen = batch.events.last().map_or(self.seen, |event| event.number);
        batch.events
    }

    pub(super) async fn acknowledge(&self) {
        assert_eq!(self.ask(0).await.unwrap().events, []);
    }

    pub(super) async fn leased<O: Operation>(&self, operation: &O) -> (Result<O::Reply>, Option<Granted>) {
        let request = Request::new(Method::Post, O::PATH).json(operation).session(self.client.session);
        let reply = self.client.directory.clone().handle(request).await;
        let granted = reply.meta.as_deref().map(|meta| serde_json::from_str(meta).unwrap());
        (reply.parse_json(), granted)
    }

    /// Reads attributes and returns what was granted.
    pub(super) async fn stat(&self, ino: InodeId) -> Granted {
        self.leased(&GetAttributes { ino }).await.1.unwrap()
    }
}

pub(super) fn chmod(ino: InodeId, mode: u32) -> SetAttributes {
    SetAttributes { mode: Some(mode), ..SetAttributes::none(ino) }
}

/// Sends a request that has to wait, and returns when it does.
pub(super) async fn start<O: Operation>(client: &Client, operation: O) -> Waiting<O::Reply>
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

pub(super) struct Waiting<T>(JoinHandle<Result<T>>);

impl<T> Waiting<T> {
    /// Whether it still waits once everything that can happen has happened.
    pub(super) async fn waits(&self) -> bool {
        // Time stands still until nothing else can be done.
        tokio::time::sleep(Duration::from_millis(1)).await;
        !self.0.is_finished()
    }

    /// The client hangs up.
    pub(super) async fn give_up(self) {
        self.0.abort();
        assert!(!self.waits().await);
    }

    pub(super) async fn end(self) -> Result<T> {
        tokio::time::timeout(Duration::from_secs(5), self.0).await.expect("nothing is left to wait for").unwrap()
    }
}

pub(super) fn at(events: &[Event]) -> Vec<(InodeId, Option<String>, bool)> {
    events.iter().map(|e| (e.ino, e.name.as_ref().map(ToString::to_string), e.over)).collect()
}

pub(super) fn directory() -> Arc<Directory> {
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

#[tokio::test(start_paused = true)]
async fn an_event_on_a_name_leaves_the_lease_on_the_directory() {
    let directory = directory();
    let (mut holder, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let (answer, granted) = holder.leased(&Lookup { parent: ROOT, name: name("a") }).await;
    assert_eq!((kind(answer), granted.unwrap().nothing), (ErrorKind::NotFound, false), "an absence is leased too");
    for text in ["a", "b"] {
        let make = Make::new(ROOT, name(text), FileKind::File, 0);
        let change = start(&writer.client, make).await;
        assert_eq!(at(&holder.events().await), [(ROOT, Some(text.to_owned()), false)]);
        holder.acknowledge().await;
        change.end().await.unwrap();
    }
    // What fails changes nothing, so nobody is told.
    writer.client.make(ROOT, "a", FileKind::File).await.unwrap_err();
    assert_eq!(holder.client.status().await.events, 2);
    let rename = Rename { parent: ROOT, name: name("a"), new_parent: ROOT, new_name: name("c"), mode: RenameMode::Replace };
    let change = start(&writer.client, rename).await;
    let told = [(ROOT, Some("a".to_owned()), false), (ROOT, Some("c".to_owned()), false)];
    assert_eq!(at(&holder.events().await), told);
    holder.acknowledge().await;
    change.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn directories_keep_their_lease_until_they_are_removed() {
    let directory = directory();
    let (mut holder, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = writer.client.dir(ROOT, "d").await;
    holder.stat(ino).await;
    let change = start(&writer.client, chmod(ino, 0o700)).await;
    assert_eq!(at(&holder.events().await), [(ino, None, false)]);
    holder.acknowledge().await;
    change.end().await.unwrap();
    let change = start(&writer.client, Remove { parent: ROOT, name: name("d"), directory: true }).await;
    assert_eq!(at(&holder.events().await), [(ino, None, true)]);
    holder.acknowledge().await;
    change.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_is_granted_what_is_about_to_change() {
    let directory = directory();
    let (mut holder, writer, reader) = (Mount::new(&directory).await, Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = writer.client.file(ROOT, "f").await;
    holder.stat(ino).await;
    let change = start(&writer.client, chmod(ino, 0o600)).await;
    assert_eq!(reader.stat(ino).await.except, [ino]);
    assert_eq!(holder.stat(ino).await.except, [ino]);
    let (_, listed) = reader.leased(&List { ino: ROOT, after: None, limit: 10 }).await;
    assert_eq!(listed.unwrap().except, [ino], "of the directory there is a lease");
    holder.events().await;
    holder.acknowledge().await;
    change.end().await.unwrap();
    assert_eq!(reader.stat(ino).await.except, []);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_becomes_another_one_meanwhile_tells_those_too() {
    let directory = directory();
    let (mut first, mut second, writer) = (Mount::new(&directory).await, Mount::new(&directory).await, Mount::new(&directory).await);
    let nobody = writer.client.other();
    let moved = nobody.file(ROOT, "a").await;
    first.stat(moved).await;
    let rename = Rename { parent: ROOT, name: name("a"), new_parent: ROOT, new_name: name("b"), mode: RenameMode::Replace };
    let change = start(&writer.client, rename).await;
    // While it waits its target comes into being, and somebody looks at that.
    let replaced = nobody.file(ROOT, "b").await;
    assert_eq!(second.stat(replaced).await.except, []);
    assert_eq!(at(&first.events().await), [(moved, None, true)]);
    first.acknowledge().await;
    assert!(change.waits().await);
    assert_eq!(at(&second.events().await), [(replaced, None, true)]);
    second.acknowledge().await;
    let renamed = change.end().await.unwrap();
    assert_eq!(renamed.replaced.unwrap().attributes.ino, replaced);
    assert_eq!(first.client.status().await.events, 2, "nobody is told twice");
}

#[tokio::test(start_paused = true)]
async fn a_dead_holder_delays_a_change_by_its_remaining_lease() {
    let directory = directory();
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let (dead, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = writer.client.file(ROOT, "f").await;
    tokio::spawn(directory.clone().run(stopped));
    dead.stat(ino).await;
    let keep_writer = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            writer.client.call(&RenewSession { session: writer.session(), released: Vec::new() }).await.unwrap();
        }
    };
    let (start, change) = (tokio::time::Instant::now(), chmod(ino, 0o600));
    tokio::select! {
        changed = writer.client.call(&change) => changed.unwrap(),
        () = keep_writer => unreachable!(),
    };
    assert!(start.elapsed() > config().lease && start.elapsed() < config().lease + Duration::from_secs(1), "{:?}", start.elapsed());
    let (rows, waits) = (writer.client.call(&Sessions {}).await.unwrap(), writer.client.call(&Waits {}).await.unwrap());
    assert_eq!((rows.len(), waits.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_renews_and_does_not_acknowledge_is_ended_after_a_lease() {
    let directory = directory();
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let (deaf, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = writer.client.file(ROOT, "f").await;
    tokio::spawn(directory.clone().run(stopped));
    deaf.stat(ino).await;
    let renew = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for mount in [&deaf, &writer] {
                let _ = mount.client.call(&RenewSession { session: mount.session(), released: Vec::new() }).await;
            }
        }
    };
    let change = chmod(ino, 0o600);
    let limit = tokio::time::timeout(config().lease + Duration::from_secs(2), async {
        tokio::select! {
            changed = writer.client.call(&change) => changed.unwrap(),
            () = renew => unreachable!(),
        }
    });
    limit.await.expect("a lease is the limit");
    assert_eq!(kind(deaf.ask(0).await), ErrorKind::SessionExpired);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_given_up_leaves_nothing_behind() {
    let directory = directory();
    let (mut holder, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = writer.client.file(ROOT, "f").await;
    holder.stat(ino).await;
    let change = start(&writer.client, chmod(ino, 0o600)).await;
    change.give_up().await;
    assert_eq!(writer.client.call(&Waits {}).await.unwrap(), []);
    // A lease that was granted behind the event outlives it.
    assert_eq!(holder.stat(ino).await.except, []);
    assert_eq!(at(&holder.events().await), [(ino, None, true)]);
    holder.acknowledge().await;
    let change = start(&writer.client, chmod(ino, 0o640)).await;
    assert_eq!(at(&holder.events().await), [(ino, None, true)]);
    holder.acknowledge().await;
    assert_eq!(change.end().await.unwrap().attributes.mode, 0o640);
}

#[tokio::test(start_paused = true)]
async fn a_publish_tells_holders_and_leases_to_its_session() {
    let directory = directory();
    let (mut holder, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let server = writer.client.register("s").await;
    let ino = writer.client.file(ROOT, "f").await;
    holder.stat(ino).await;
    let publish = writer.client.version(ino, 0, &[server]);
    let primary = Client { session: None, ..writer.client.other() };
    let change = start(&primary, publish).await;
    assert_eq!(at(&holder.events().await), [(ino, None, true)]);
    holder.acknowledge().await;
    change.end().await.unwrap();
    // Sent by a server, for the session that it names.
    let request = Request::new(Method::Post, Publish::PATH).json(&writer.client.version(ino, 1, &[server]));
    let reply = directory.clone().handle(request).await;
    let granted: Granted = serde_json::from_str(reply.meta.as_deref().unwrap()).unwrap();
    assert!(!granted.nothing && granted.except.is_empty());
    let change = start(&holder.client, chmod(ino, 0o600)).await;
    let rows = primary.call(&Waits {}).await.unwrap();
    assert_eq!(rows[0].waits_for, [writer.session()]);
    assert!(change.waits().await);
}

#[tokio::test(start_paused = true)]
async fn answers_that_a_later_change_of_the_same_commit_made_old_give_no_lease() {
    let directory = directory();
    let (one, two) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let make = |text| Make::new(ROOT, name(text), FileKind::File, 0);
    let (a, b) = (make("a"), make("b"));
    let before = one.client.status().await.revision;
    let (first, second) = futures_util::future::join(one.leased(&a), two.leased(&b)).await;
    assert_eq!(one.client.status().await.revision, before + 1, "one commit");
    assert_eq!((first.1.unwrap().except, second.1.unwrap().except), (vec![ROOT], vec![]));
}

#[tokio::test(start_paused = true)]
async fn without_invalidation_nobody_is_told() {
    let directory = Directory::open(Config { invalidate: false, ..config() }, Arc::new(MemoryStore::default())).unwrap();
    let (holder, writer) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = writer.client.file(ROOT, "f").await;
    assert!(!holder.stat(ino).await.nothing);
    writer.client.call(&chmod(ino, 0o600)).await.unwrap();
    let status = writer.client.status().await;
    assert_eq!((status.events, status.leases), (0, 3));
}
