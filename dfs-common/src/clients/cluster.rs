//! A client's connection to a cluster: its session at the directory, the lock service,
//! the file servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::{Instant, sleep, timeout};

use super::steps::{self, Target};
use super::{Caller, Clock, Connect, Peers};
use crate::api::directory::{CloseSession, GetAttributes, OpenSession, RenewSession, Renewed, Session};
use crate::api::lock::{
    Acquire, Cancel, CancelRange, End, Family, Grant, InUse, LockRange, Mode, Owner, RangeOwner, RangeRow, Recalls, Release, Renew, Span, TestRange,
    UnlockRange,
};
use crate::api::{Done, Operation};
use crate::attributes::{Entry, Timestamp};
use crate::credentials::ClusterToken;
use crate::ids::{InodeId, SessionId, Token};
use crate::transport::{Http1, Plain, Transport};
use crate::wire::{Method, Request};
use crate::{Error, ErrorKind, Result};

/// A renewal takes this long before it counts as failed, however short the lease.
const MIN_RENEWAL: Duration = Duration::from_millis(500);

/// Whether others wait for a lock that is held is asked for so long at the most.
const SHARING: Duration = Duration::from_secs(1);

/// A write lock, and who asks for it.
#[derive(Clone, Copy, Debug)]
pub struct WriteLock<'a> {
    /// The file.
    pub ino: InodeId,
    /// Names this request.
    pub request: u64,
    /// The process, on this host.
    pub pid: u32,
    /// Its program.
    pub program: &'a str,
    /// See [`Acquire::fresh`].
    pub fresh: Option<SessionId>,
}

/// A lock that a program of this client asks for.
#[derive(Clone, Debug)]
pub struct RangeLock {
    /// The file.
    pub ino: InodeId,
    /// flock or fcntl.
    pub family: Family,
    /// The kernel's number of who asks.
    pub owner: u64,
    /// Which bytes.
    pub span: Span,
    /// Shared or exclusive; of no meaning where it is given up.
    pub mode: Mode,
    /// The process, on this host.
    pub pid: u32,
    /// Its program.
    pub program: String,
}

/// Every service of one cluster, on behalf of one session.
#[derive(Debug)]
pub struct Cluster {
    /// The directory service.
    pub directory: Caller,
    /// The lock service.
    pub lock: Caller,
    /// The file servers.
    pub peers: Peers,
    clock: Clock,
    session: RwLock<Session>,
    /// Which session the lock service has heard of, and when that was said to it last.
    known_to_lock: Mutex<Option<(SessionId, Instant)>>,
    client: OpenSession,
    next_request: AtomicU64,
    reopening: tokio::sync::Mutex<()>,
}

/// Transports for the hot path: one pool of connections a server. For mounts.
pub fn connect_http1(token: &ClusterToken) -> Connect {
    let token = token.clone();
    Arc::new(move |url| Ok(Arc::new(Http1::new(url, &token)?) as Arc<dyn Transport>))
}

/// Transports through reqwest. For the command line.
pub fn connect_plain(token: &ClusterToken) -> Connect {
    let token = token.clone();
    Arc::new(move |url| Ok(Arc::new(Plain::new(url, &token)?) as Arc<dyn Transport>))
}

impl Cluster {
    /// Opens a session at the directory at `url`. `timeout` bounds this and every later call.
    pub async fn open(url: &str, connect: Connect, client: OpenSession, timeout: Duration) -> Result<Self> {
        let directory = Caller::new(connect(url)?, timeout);
        let sent = std::time::Instant::now();
        let session = directory.call(&client).await?;
        let clock = Clock::new(session.now, sent);
        directory.set_session(session.session);
        let lock = Caller::new(connect(&session.lock_url)?, timeout);
        let peers = Peers::new(connect).within(timeout);
        peers.refresh(&directory).await?;
        // Requests of different runs of one client must differ; the session is new in each.
        Ok(Self {
            directory,
            lock,
            peers,
            clock,
            session: RwLock::new(session),
            known_to_lock: Mutex::default(),
            client,
            next_request: AtomicU64::new(1),
            reopening: tokio::sync::Mutex::default(),
        })
    }

    /// What the directory said when the session was opened.
    pub fn session(&self) -> Session {
        self.session.read().clone()
    }

    /// The time, by the directory service's clock, and never less than before.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// An answer that has just come shows that the directory service's clock stood at `service` or later.
    pub fn reached(&self, service: Timestamp) {
        self.clock.reached(service);
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.session.read().session
    }

    /// How long an open for writing waits for its turn by the cluster's rules, if they say so for the file at `path`: `Some(None)`:
    /// as long as it takes.
    pub fn lock_wait(&self, path: impl FnOnce() -> String) -> Option<Option<Duration>> {
        let session = self.session.read();
        if session.lock_waits.is_empty() {
            return None;
        }
        let path = path();
        let rule = session.lock_waits.iter().filter(|rule| rule.covers(&path)).max_by_key(|rule| rule.path.len())?;
        Some(rule.wait_ms.map(Duration::from_millis))
    }

    /// Whether root has no rights at the servers, by this client's token.
    pub fn is_squashed(&self) -> bool {
        self.session.read().squash.is_some()
    }

    /// log2 of the block size of new files.
    pub fn block_bits(&self) -> u8 {
        self.session.read().block_bits
    }

    /// Opens another session after `expired` has, unless that was done already. Locks of the old one are lost; a commit under them is
    /// refused where somebody else has published since. `Stale` where the URL now leads to another cluster.
    pub async fn reopen(&self, expired: SessionId) -> Result<()> {
        let _one_at_a_time = self.reopening.lock().await;
        if self.id() != expired {
            return Ok(());
        }
        let sent = std::time::Instant::now();
        let session = self.directory.call(&self.client).await?;
        self.clock.hear(session.now, sent);
        if session.cluster != self.session.read().cluster {
            return Err(Error::new(ErrorKind::Stale, format!("{} is another cluster now", self.directory.peer())));
        }
        self.directory.set_session(session.session);
        *self.session.write() = session;
        Ok(())
    }

    /// Renews the session at both services, at the lock service where that is due; `released` are orphans that this client has
    /// let go. Where one of them does not answer, the other one has been told all the same, and this ends in time for the
    /// next renewal.
    pub async fn renew(&self, released: Vec<InodeId>) -> Result<Renewed> {
        let session = self.id();
        let limit = Duration::from_millis(self.session.read().lease_ms / 4).clamp(MIN_RENEWAL, self.directory.timeout().max(MIN_RENEWAL));
        let directory = RenewSession { session, released };
        let at_directory = async {
            let sent = std::time::Instant::now();
            let renewed = self.directory.call_within(&directory, limit).await?;
            self.clock.hear(renewed.now, sent);
            Ok::<_, Error>(renewed)
        };
        let (renewed, kept) = tokio::join!(at_directory, self.renew_locks_if_due(session, limit));
        let renewed = renewed?;
        kept?;
        Ok(renewed)
    }

    /// Orphans are reported more often than the lock service has to hear of a session.
    async fn renew_locks_if_due(&self, session: SessionId, limit: Duration) -> Result<()> {
        let enough = Duration::from_millis(self.session.read().lease_ms / 12);
        match *self.known_to_lock.lock() {
            Some((known, said)) if known == session && said.elapsed() < enough => return Ok(()),
            _ => {}
        }
        self.renew_locks(session, limit).await
    }

    async fn renew_locks(&self, session: SessionId, limit: Duration) -> Result<()> {
        let said = Instant::now();
        self.lock.call_within(&Renew { session }, limit).await?;
        *self.known_to_lock.lock() = Some((session, said));
        Ok(())
    }

    /// Makes the lock service know of this session before its first renewal, if it answers within `limit`.
    pub async fn appear(&self, limit: Duration) {
        if let Err(e) = self.renew_locks(self.id(), limit).await {
            log::debug!("the lock service has not heard of this session: {e}");
        }
    }

    /// Whether new files may come with their locks: the lock service, once it is asked about one, must know that this session
    /// lives. One that was not heard of for a lease is taken for dead.
    pub fn may_have_new_locks(&self) -> bool {
        let session = self.session.read();
        let known = *self.known_to_lock.lock();
        known.is_some_and(|(known, said)| known == session.session && said.elapsed() < Duration::from_millis(session.lease_ms / 2))
    }

    /// Ends the session: locks and orphans go at once instead of at the lease's end.
    pub async fn close(&self) -> Result<()> {
        let locks = self.lock.call(&End { session: self.id() }).await;
        self.directory.call(&CloseSession { session: self.id() }).await?;
        locks.map(|_| ())
    }

    /// Attributes and layout of `ino`, with its servers' addresses known afterwards.
    pub async fn entry(&self, ino: InodeId) -> Result<Entry> {
        let entry = self.directory.call(&GetAttributes { ino }).await?;
        self.learn(&entry).await?;
        Ok(entry)
    }

    /// Makes sure that every server in `entry`'s layout can be addressed.
    pub async fn learn(&self, entry: &Entry) -> Result<()> {
        if self.peers.knows(&entry.layout.placement) && self.peers.knows(&entry.layout.holders) {
            return Ok(());
        }
        self.peers.refresh(&self.directory).await
    }

    /// Takes the write lock of `ino`, waiting up to `wait` for its turn (`None`: as long as it takes).
    ///
    /// `WouldBlock` where `wait` is zero and it is taken, `Busy` when the wait is over. A future that is
    /// dropped before it is done leaves a place in the queue: call [`Cluster::cancel_lock`] with the same `request`.
    /// `unaware`: see [`Acquire::unaware`].
    pub async fn acquire_lock(&self, lock: WriteLock<'_>, wait: Option<Duration>, unaware: bool) -> Result<Token> {
        let grant: Grant = self.wait_in_line(lock.ino, wait, |wait_ms| self.acquire(lock, wait_ms, unaware)).await?;
        Ok(grant.token)
    }

    /// One more process uses a lock that this session holds; `WouldBlock` where others wait for it. Never takes long.
    pub async fn share_lock(&self, lock: WriteLock<'_>) -> Result<Token> {
        self.lock.call_once_within(&self.acquire(lock, 0, false), SHARING).await.map(|grant| grant.token)
    }

    fn acquire(&self, lock: WriteLock<'_>, wait_ms: u64, unaware: bool) -> Acquire {
        let WriteLock { ino, request, pid, program, fresh } = lock;
        Acquire { session: self.id(), ino, request, owner: self.owner(pid, program), wait_ms, unaware, fresh }
    }

    /// Waits for at most `wait` until others want locks of this session, other than `known`: which, with their tokens.
    pub async fn recalled_locks(&self, known: Vec<(InodeId, Token)>, wait: Duration, limit: Duration) -> Result<Vec<(InodeId, Token)>> {
        let recalls = Recalls { session: self.id(), known, wait_ms: wait.as_millis() as u64 };
        self.lock.call_once_within(&recalls, limit).await.map(|recalled| recalled.wanted)
    }

    /// Says that a process of this session uses a lock that others want.
    pub async fn lock_in_use(&self, ino: InodeId, token: Token, pid: u32, program: &str) -> Result<()> {
        let in_use = InUse { session: self.id(), ino, token, owner: self.owner(pid, program) };
        self.lock.call(&in_use).await.map(|_| ())
    }

    /// Takes a lock that a program asks for, with `wait` as in [`Cluster::acquire_lock`]. `request` names the wait.
    pub async fn lock_range(&self, lock: &RangeLock, request: u64, wait: Option<Duration>) -> Result<()> {
        let process = self.owner(lock.pid, &lock.program);
        let ask = |wait_ms| LockRange {
            ino: lock.ino,
            owner: self.range_owner(lock),
            span: lock.span,
            mode: lock.mode,
            request,
            process: process.clone(),
            wait_ms,
        };
        let Done {} = self.wait_in_line(lock.ino, wait, ask).await?;
        Ok(())
    }

    /// Gives up a wait of [`Cluster::lock_range`], or what it was granted meanwhile.
    pub async fn cancel_range(&self, lock: &RangeLock, request: u64) -> Result<()> {
        self.lock.call(&CancelRange { ino: lock.ino, owner: self.range_owner(lock), request }).await.map(|_| ())
    }

    /// Unlocks `lock.span`.
    pub async fn unlock_range(&self, lock: &RangeLock) -> Result<()> {
        self.lock.call(&UnlockRange { ino: lock.ino, owner: self.range_owner(lock), span: lock.span }).await.map(|_| ())
    }

    /// Who is in the way of `lock`.
    pub async fn test_range(&self, lock: &RangeLock) -> Result<Option<RangeRow>> {
        let test = TestRange { ino: lock.ino, owner: self.range_owner(lock), span: lock.span, mode: lock.mode };
        self.lock.call(&test).await.map(|conflict| conflict.lock)
    }

    fn range_owner(&self, lock: &RangeLock) -> RangeOwner {
        RangeOwner { session: self.id(), family: lock.family, number: lock.owner }
    }

    /// A process of this client, for people.
    fn owner(&self, pid: u32, program: &str) -> Owner {
        Owner { host: self.client.host.clone(), pid, program: program.to_owned() }
    }

    /// Sends `ask`, which names the milliseconds that it waits, until it is answered or the wait is over.
    async fn wait_in_line<O: Operation>(&self, ino: InodeId, wait: Option<Duration>, ask: impl Fn(u64) -> O) -> Result<O::Reply> {
        let start = Instant::now();
        let patience = self.lock.timeout();
        let noted = steps::note(|| Target::Lock { server: self.lock.peer().to_owned(), ino });
        let mut failing_since = None;
        loop {
            let left = wait.map_or(u64::MAX, |w| w.saturating_sub(start.elapsed()).as_millis() as u64).min(Acquire::MAX_WAIT_MS);
            let call = Request::new(Method::Post, O::PATH).json(&ask(left)).session(Some(self.id()));
            let is_wait = left > 0;
            match timeout(if is_wait { patience / 2 } else { patience }, self.lock.send_once(&call)).await {
                Ok(Ok(reply)) => return reply.parse_json(),
                Ok(Err(e)) if !e.kind().is_transient() => return Err(e),
                Ok(Err(e)) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > patience {
                        return Err(Error::new(ErrorKind::TimedOut, format!("lock of inode {ino}: {e}")));
                    }
                    noted.failed(&e);
                    sleep(Duration::from_millis(50)).await;
                }
                // The answer takes as long as the wait. That the service is there shows in another request, and the same
                // one sent again takes the place up, should its connection be dead.
                Err(_) if is_wait => {
                    let there = self.lock.call_within(&Renew { session: self.id() }, patience / 2).await;
                    there.map_err(|e| e.context(format!("lock of inode {ino}")))?;
                    failing_since = None;
                }
                Err(_) => return Err(Error::new(ErrorKind::TimedOut, format!("{} did not answer: lock of inode {ino}", self.lock.peer()))),
            }
        }
    }

    /// A number for one wait in a queue.
    pub fn next_lock_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives up a wait, or what it was granted meanwhile.
    pub async fn cancel_lock(&self, ino: InodeId, request: u64) -> Result<()> {
        self.lock.call(&Cancel { session: self.id(), ino, request }).await.map(|_| ())
    }

    /// Gives the lock back.
    pub async fn release_lock(&self, ino: InodeId, token: Token) -> Result<()> {
        self.lock.call(&Release { session: self.id(), ino, token }).await.map(|_| ())
    }
}
