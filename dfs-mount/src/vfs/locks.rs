//! This mount's write locks: one a file, shared by all its processes.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_common::clients::Cluster;
use dfs_common::clients::steps::{self, Target};
use dfs_common::ids::{InodeId, Token};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::interrupt::interruptible;
use super::{Caller, Vfs};

/// How long a lock stays with a mount whose open was sent back to look the name up again.
const GRACE: Duration = Duration::from_millis(50);

/// Between attempts to tell a service that was away what it must know.
const RETRY: Duration = Duration::from_secs(2);
/// How long an interrupted caller is kept for that.
const CANCEL_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Slot {
    token: Option<Token>,
    /// Handles open for writing, and commits under way.
    users: u32,
    /// Opens that were sent back and are expected to return: the lock stays for them.
    expected: Vec<u64>,
    last_expected: u64,
    /// A lock that could not be given back; it is tried again, unless it is taken before.
    unreleased: Option<Token>,
    /// When and how the service failed to answer last: who waited meanwhile fails alike.
    failed: Option<(Instant, Error)>,
}

/// A slot and whether somebody waits in it for the service, which may take long; all else under the lock is short.
#[derive(Debug, Default)]
struct Guarded {
    slot: tokio::sync::Mutex<Slot>,
    waiting: AtomicBool,
}

impl Guarded {
    /// The slot, when no other operation of this mount has it.
    async fn enter(&self) -> tokio::sync::MutexGuard<'_, Slot> {
        if let Ok(slot) = self.slot.try_lock() {
            return slot;
        }
        let _noted = steps::note(|| Target::Here { what: "another process of this mount that takes or gives back the write lock".to_owned() });
        self.slot.lock().await
    }
}

#[derive(Debug, Default)]
pub(crate) struct Locks {
    slots: Mutex<HashMap<InodeId, Arc<Guarded>>>,
}

/// How an open wants its lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// Not at all: `WouldBlock`.
    Never,
    /// So long, then `Busy`; `None`: as long as it takes.
    Until(Option<Duration>),
}

impl Locks {
    fn slot(&self, ino: InodeId) -> Arc<Guarded> {
        self.slots.lock().entry(ino).or_default().clone()
    }

    /// Drops slots that nobody uses.
    fn tidy(&self, ino: InodeId) {
        let mut slots = self.slots.lock();
        // Two: the table's reference and the caller's.
        if slots.get(&ino).is_some_and(|s| Arc::strong_count(s) <= 2 && s.slot.try_lock().is_ok_and(|s| s.token.is_none() && s.users == 0)) {
            slots.remove(&ino);
        }
    }
}

impl Vfs {
    /// Takes this mount's write lock of `ino` for one more user, waiting its turn; gives it back with [`Vfs::unlock`].
    pub(crate) async fn lock(&self, ino: InodeId, caller: Caller, wait: Wait) -> Result<Token> {
        let guarded = self.locks.slot(ino);
        let result = self.lock_slot(&guarded, ino, caller, wait).await;
        if result.is_err() {
            self.locks.tidy(ino);
        }
        result
    }

    async fn lock_slot(&self, guarded: &Arc<Guarded>, ino: InodeId, caller: Caller, wait: Wait) -> Result<Token> {
        let start = Instant::now();
        let mut held = match wait {
            // What this mount does with the lock itself, such as giving it back, is no reason to refuse.
            Wait::Never if guarded.waiting.load(Ordering::Relaxed) => return Err(ErrorKind::WouldBlock.into()),
            Wait::Never => guarded.enter().await,
            // Another process of this mount waits for the lock: it is first, and shares what it gets.
            Wait::Until(limit) => {
                interruptible(caller, async {
                    match limit {
                        None => Ok(guarded.enter().await),
                        Some(limit) => tokio::time::timeout(limit, guarded.enter()).await.map_err(|_| busy(ino)),
                    }
                })
                .await??
            }
        };
        if let Some(token) = held.token {
            held.users += 1;
            return Ok(token);
        }
        if let Some((at, problem)) = &held.failed
            && *at > start
        {
            return Err(problem.clone());
        }
        let limit = match wait {
            Wait::Never => Some(Duration::ZERO),
            Wait::Until(limit) => limit.map(|l| l.saturating_sub(start.elapsed())),
        };
        let _waiting = Flag::raise(&guarded.waiting, limit != Some(Duration::ZERO));
        let acquired = self.acquire(guarded, ino, caller, limit).await;
        held.failed = acquired.as_ref().err().filter(|e| e.kind().is_transient()).map(|e| (Instant::now(), e.clone()));
        let token = acquired.map_err(|e| match (e.kind(), wait) {
            // The wait was used up behind another process of this mount.
            (ErrorKind::WouldBlock, Wait::Until(_)) => busy(ino),
            _ => e,
        })?;
        held.token = Some(token);
        held.unreleased = None;
        held.users = 1;
        Ok(token)
    }

    async fn acquire(&self, guarded: &Arc<Guarded>, ino: InodeId, caller: Caller, limit: Option<Duration>) -> Result<Token> {
        let request = self.cluster.next_lock_request();
        let (pid, program) = process_of(caller.pid);
        let mut abandoned = CancelOnDrop { cluster: Some(self.cluster.clone()), guarded: guarded.clone(), ino, request };
        let result = match interruptible(caller, self.cluster.acquire_lock(ino, request, pid, &program, limit)).await {
            Ok(result) => result,
            Err(interrupted) => {
                // The grant may be on its way: giving up the place gives it back too. A service that does not answer is told later.
                if matches!(tokio::time::timeout(CANCEL_LIMIT, self.cluster.cancel_lock(ino, request)).await, Ok(Ok(()))) {
                    abandoned.cluster = None;
                }
                return Err(interrupted);
            }
        };
        // A request without an answer may yet be carried out.
        if !result.as_ref().is_err_and(|e| e.kind().is_transient()) {
            abandoned.cluster = None;
        }
        result
    }

    /// Ends one use of the lock; the last one gives it back to the service.
    pub(crate) async fn unlock(&self, ino: InodeId) {
        let guarded = self.locks.slot(ino);
        {
            let mut held = guarded.enter().await;
            held.users -= 1;
            self.give_back_if_unused(&guarded, ino, &mut held).await;
        }
        self.locks.tidy(ino);
    }

    /// As [`Vfs::unlock`], but the lock stays a little: the caller was told to look the name up again and to come back.
    pub(crate) async fn unlock_later(self: &Arc<Self>, ino: InodeId) {
        let guarded = self.locks.slot(ino);
        let mut held = guarded.slot.lock().await;
        held.users -= 1;
        held.last_expected += 1;
        let expected = held.last_expected;
        held.expected.push(expected);
        drop(held);
        let vfs = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            {
                let mut held = guarded.slot.lock().await;
                held.expected.retain(|e| *e != expected);
                vfs.give_back_if_unused(&guarded, ino, &mut held).await;
            }
            vfs.locks.tidy(ino);
        });
    }

    /// An open has its lock: if one was expected, this is taken for it.
    pub(crate) async fn arrived(&self, ino: InodeId) {
        let guarded = self.locks.slot(ino);
        guarded.slot.lock().await.expected.pop();
    }

    async fn give_back_if_unused(&self, guarded: &Arc<Guarded>, ino: InodeId, held: &mut Slot) {
        if held.users > 0 || !held.expected.is_empty() {
            return;
        }
        let Some(token) = held.token.take() else { return };
        if let Err(e) = self.cluster.release_lock(ino, token).await {
            log::warn!("the write lock of inode {ino} was not given back: {e}");
            if e.kind().is_transient() {
                held.unreleased = Some(token);
                let (cluster, waits, guarded) = (self.cluster.clone(), self.waits.clone(), guarded.clone());
                // This session would hold it for ever.
                tokio::spawn(async move { waits.watch("give back the write lock", ino.0, release_later(&cluster, &guarded, ino, token)).await });
            }
        }
    }
}

async fn release_later(cluster: &Cluster, guarded: &Guarded, ino: InodeId, token: Token) {
    loop {
        tokio::time::sleep(RETRY).await;
        let mut held = guarded.slot.lock().await;
        // Taken again meanwhile, it is the same lock.
        if held.unreleased != Some(token) {
            return;
        }
        if !cluster.release_lock(ino, token).await.is_err_and(|e| e.kind().is_transient()) {
            held.unreleased = None;
            return;
        }
    }
}

/// Takes back a request for a lock that nobody waits for any more, however long the service is away.
async fn cancel_later(cluster: &Cluster, guarded: &Guarded, ino: InodeId, request: u64) {
    let mut told = 0;
    // Twice: the request itself may reach a service that comes back only after the first cancellation.
    while told < 2 {
        {
            let held = guarded.slot.lock().await;
            // Somebody else here has the lock by now: the service counts it as one with this request.
            if held.token.is_some() {
                return;
            }
            match cluster.cancel_lock(ino, request).await {
                Err(e) if e.kind().is_transient() => {}
                _ => told += 1,
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// True for as long as this lives.
struct Flag<'a>(&'a AtomicBool);

impl<'a> Flag<'a> {
    fn raise(flag: &'a AtomicBool, raised: bool) -> Self {
        flag.store(raised, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Gives up a place in the queue whose open was dropped half way, or not answered.
struct CancelOnDrop {
    cluster: Option<Arc<Cluster>>,
    guarded: Arc<Guarded>,
    ino: InodeId,
    request: u64,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(cluster) = self.cluster.take() {
            let (guarded, ino, request) = (self.guarded.clone(), self.ino, self.request);
            tokio::spawn(async move { cancel_later(&cluster, &guarded, ino, request).await });
        }
    }
}

fn busy(ino: InodeId) -> Error {
    Error::new(ErrorKind::Busy, format!("inode {ino} is still locked by another writer"))
}

/// The process behind a thread and its program, for whoever asks who holds a lock.
pub(super) fn process_of(thread: u32) -> (u32, String) {
    // The first lines hold both; reading on costs as much as a request.
    let mut buffer = [0; 256];
    let read = std::fs::File::open(format!("/proc/{thread}/status")).and_then(|mut file| file.read(&mut buffer)).unwrap_or(0);
    let status = String::from_utf8_lossy(&buffer[..read]);
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let process = value("Tgid:").and_then(|id| id.parse().ok()).unwrap_or(thread);
    (process, value("Name:").unwrap_or("").chars().take(64).collect())
}
