//! This mount's write locks: one a file, shared by all its processes, and kept when nobody
//! uses it any more until somebody else wants it ([`super::recalls`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_common::clients::steps::{self, Target};
use dfs_common::clients::{Cluster, WriteLock};
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::interrupt::{ask_in_line, interruptible};
use super::node::Node;
use super::process::{Processes, is_descendant};
use super::recalls::Making;
use super::{Caller, Vfs};
use crate::turn::until;

/// How long a lock stays with a mount whose open was sent back to look the name up again, and how soon a close is heard of.
const GRACE: Duration = Duration::from_millis(50);

/// Between attempts to tell a service that was away what it must know.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// One file's lock, as this mount has it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) token: Option<Token>,
    /// Handles open for writing, and commits under way.
    pub(super) users: Vec<Held>,
    /// Opens that were sent back and are expected to return: the lock stays for them.
    expected: Vec<u64>,
    last_expected: u64,
    /// The highest token that was given back, or was about to be: an answer that is on its way must not bring it back.
    given_back: Token,
    /// It is just being given back.
    leaving: bool,
    /// Since when nobody uses it.
    pub(super) idle_since: Option<Instant>,
    /// The grant that others want: it goes back when nobody uses it.
    pub(super) wanted: Option<Token>,
    /// The lock service knows of it; of the lock that came with a new file it need not.
    pub(super) registered: bool,
    /// A lock that could not be given back; it is tried again, and before this mount asks for the lock anew.
    unreleased: Option<Token>,
    /// Requests that nobody waits for and the service has not been told of.
    abandoned: Vec<u64>,
    /// When and how the service failed to answer last: who waited meanwhile fails alike.
    failed: Option<(Instant, Error)>,
}

impl Slot {
    fn is_idle(&self) -> bool {
        self.token.is_none() && !self.leaving && self.unreleased.is_none() && self.abandoned.is_empty()
    }

    /// Ends a use, if losing the lock has not ended it before.
    fn leave(&mut self, held: Held) {
        if let Some(at) = self.users.iter().position(|user| *user == held) {
            self.users.swap_remove(at);
        }
    }

    /// A grant that this mount does not use and will not.
    pub(super) fn refuse(&mut self, token: Token) {
        self.given_back = self.given_back.max(token);
    }

    /// Nobody uses it, and nobody is about to.
    pub(super) fn is_unused(&self) -> bool {
        self.users.is_empty() && self.expected.is_empty()
    }

    /// True where others want what this mount has.
    pub(super) fn is_wanted(&self) -> bool {
        self.token.is_some() && self.token == self.wanted
    }

    fn is_used_by(&self, process: u32) -> bool {
        self.users.iter().any(|user| user.process == process)
    }
}

/// A slot, for a moment at a time, and the turn of those who ask the service, which may take long.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    pub(super) slot: Mutex<Slot>,
    pub(super) asking: tokio::sync::Mutex<()>,
    /// Who asks waits in the service's queue.
    waiting: AtomicBool,
    left: Notify,
}

impl Guarded {
    /// The turn to ask the service, when no other operation of this mount has it.
    async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        if let Ok(turn) = self.asking.try_lock() {
            return turn;
        }
        let _noted = steps::note(|| Target::Here { what: "another process of this mount that takes the write lock".to_owned() });
        self.asking.lock().await
    }

    /// Returns once nothing is being given back.
    async fn nothing_leaves(&self) {
        until(&self.left, || !self.slot.lock().leaving).await;
    }

    /// Uses a lock that the service has granted. False where it was given back before its answer was heard.
    fn take(&self, token: Token, process: u32) -> bool {
        let mut slot = self.slot.lock();
        if token <= slot.given_back {
            return false;
        }
        slot.token = slot.token.max(Some(token));
        slot.users.push(Held { token, process });
        slot.abandoned.clear();
        (slot.registered, slot.idle_since) = (true, None);
        true
    }
}

#[derive(Debug, Default)]
pub(crate) struct Locks {
    pub(super) slots: Mutex<HashMap<InodeId, Arc<Guarded>>>,
    pub(super) making: Making,
    pub(super) processes: Processes,
}

/// How an open wants its lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// Not at all: `WouldBlock`.
    Never,
    /// So long, then `Busy`; `None`: as long as it takes.
    Until(Option<Duration>),
}

/// A file whose write lock is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lockable {
    pub(crate) ino: InodeId,
    /// See [`Layout::fresh`](dfs_common::attributes::Layout::fresh).
    pub(crate) fresh: Option<SessionId>,
}

/// One use of a file's write lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) token: Token,
    /// The process; 0 for this mount itself.
    pub(crate) process: u32,
}

impl Locks {
    pub(super) fn slot(&self, ino: InodeId) -> Arc<Guarded> {
        self.slots.lock().entry(ino).or_default().clone()
    }

    /// Ends a reference to a slot; drops the slot where nobody else has one, and there is nothing in it.
    pub(super) fn tidy(&self, ino: InodeId, guarded: Arc<Guarded>) {
        let mut slots = self.slots.lock();
        drop(guarded);
        if slots.get(&ino).is_some_and(|s| Arc::strong_count(s) == 1 && s.slot.lock().is_idle()) {
            slots.remove(&ino);
        }
    }
}

impl Vfs {
    /// Takes this mount's write lock of `ino` for one more user, waiting its turn; gives it back with [`Vfs::unlock`].
    ///
    /// Processes of this mount share the lock. But where other clients wait for it, a process that does not have the file
    /// open for writing yet, nor was started by one that does, waits behind them.
    pub(crate) async fn lock(&self, file: Lockable, caller: Caller, wait: Wait) -> Result<Held> {
        let (process, program) = self.locks.processes.of(caller.pid);
        let guarded = self.locks.slot(file.ino);
        let result = self.lock_slot(&guarded, file, (process, &program), caller, wait).await;
        if result.is_err() {
            self.locks.tidy(file.ino, guarded);
        }
        result
    }

    /// The lock of a file that this mount has just made, which came with it.
    pub(super) fn keep_fresh(&self, ino: InodeId) {
        let guarded = self.locks.slot(ino);
        let mut slot = guarded.slot.lock();
        if slot.is_idle() && slot.users.is_empty() && slot.given_back < Token::FRESH {
            (slot.token, slot.idle_since) = (Some(Token::FRESH), Some(Instant::now()));
        }
    }

    /// Who has the lock where the service has not heard of the file.
    fn maker(&self, guarded: &Guarded, file: Lockable) -> Option<SessionId> {
        // What this session was given with the file it has for as long as it has not let it go.
        file.fresh.filter(|maker| *maker != self.cluster.id() || guarded.slot.lock().token == Some(Token::FRESH))
    }

    async fn lock_slot(&self, guarded: &Arc<Guarded>, file: Lockable, who: (u32, &str), caller: Caller, wait: Wait) -> Result<Held> {
        let (ino, start) = (file.ino, Instant::now());
        if let Some(held) = self.share(guarded, file, who).await? {
            return Ok(held);
        }
        let _turn = match wait {
            // What this mount does with the lock itself, such as giving it back, is no reason to refuse.
            Wait::Never if guarded.waiting.load(Ordering::Relaxed) => return Err(ErrorKind::WouldBlock.into()),
            Wait::Never => guarded.turn().await,
            // Another process of this mount waits for the lock: it is first, and shares what it gets.
            Wait::Until(limit) => {
                interruptible(caller, async {
                    match limit {
                        None => Ok(guarded.turn().await),
                        Some(limit) => tokio::time::timeout(limit, guarded.turn()).await.map_err(|_| busy(ino)),
                    }
                })
                .await??
            }
        };
        if let Some((at, problem)) = &guarded.slot.lock().failed
            && *at > start
        {
            return Err(problem.clone());
        }
        loop {
            if let Some(held) = self.share(guarded, file, who).await? {
                return Ok(held);
            }
            let limit = match wait {
                Wait::Never => Some(Duration::ZERO),
                Wait::Until(limit) => limit.map(|l| l.saturating_sub(start.elapsed())),
            };
            let _waiting = Flag::raise(&guarded.waiting, limit != Some(Duration::ZERO));
            let acquired = self.acquire(guarded, file, who, caller, limit).await;
            guarded.slot.lock().failed = acquired.as_ref().err().filter(|e| e.kind().is_transient()).map(|e| (Instant::now(), e.clone()));
            let token = acquired.map_err(|e| match (e.kind(), wait) {
                // The wait was used up behind another process of this mount.
                (ErrorKind::WouldBlock, Wait::Until(_)) => busy(ino),
                _ => e,
            })?;
            if guarded.take(token, who.0) {
                return Ok(Held { token, process: who.0 });
            }
            // The answer to this request and the release have crossed.
            self.cluster.release_lock(ino, token).await?;
        }
    }

    /// Shares the lock that this mount has, if it has it and nobody else waits for it, or who asks must not wait behind others.
    async fn share(&self, guarded: &Arc<Guarded>, file: Lockable, (process, program): (u32, &str)) -> Result<Option<Held>> {
        let (held, belongs) = {
            let mut slot = guarded.slot.lock();
            let Some(token) = slot.token else { return Ok(None) };
            // A lock that nobody uses is anybody's here, until this mount hears that others want it.
            let is_kept = slot.users.is_empty() && !slot.is_wanted();
            let belongs = process == 0 || is_kept || slot.is_used_by(process) || !slot.expected.is_empty();
            // From now on the lock stays, whatever the others do.
            let held = Held { token, process };
            slot.users.push(held);
            slot.idle_since = None;
            (held, belongs)
        };
        if belongs {
            return Ok(Some(held));
        }
        let ino = file.ino;
        let lock = WriteLock { ino, request: self.cluster.next_lock_request(), pid: process, program, fresh: self.maker(guarded, file) };
        match self.cluster.share_lock(lock).await {
            Ok(token) if token == held.token => {
                guarded.slot.lock().registered = true;
                Ok(Some(held))
            }
            // The old one was lost, and nobody else had it since.
            Ok(token) => {
                guarded.slot.lock().leave(held);
                Ok(guarded.take(token, process).then_some(Held { token, process }))
            }
            // Its child, say a command of the shell that has the file open: it would wait for who waits for it.
            Err(e) if e.kind() == ErrorKind::WouldBlock && is_descendant(process, |parent| guarded.slot.lock().is_used_by(parent)) => Ok(Some(held)),
            // Nobody knows who waits. What is written is checked when it is published.
            Err(e) if e.kind().is_transient() => Ok(Some(held)),
            Err(e) => {
                self.leave(guarded, ino, held).await;
                if e.kind() == ErrorKind::WouldBlock { Ok(None) } else { Err(e) }
            }
        }
    }

    async fn acquire(&self, guarded: &Arc<Guarded>, file: Lockable, who: (u32, &str), caller: Caller, limit: Option<Duration>) -> Result<Token> {
        let ino = file.ino;
        guarded.nothing_leaves().await;
        settle(&self.cluster, guarded, ino).await?;
        let request = self.cluster.next_lock_request();
        let unaware = guarded.slot.lock().token.is_none();
        let lock = WriteLock { ino, request, pid: who.0, program: who.1, fresh: self.maker(guarded, file) };
        let ask = self.cluster.acquire_lock(lock, limit, unaware);
        ask_in_line(caller, ask, self.cluster.cancel_lock(ino, request), || self.abandon(guarded, ino, request)).await
    }

    /// Gives up a place in the queue whose open was dropped half way, or not answered.
    fn abandon(&self, guarded: &Arc<Guarded>, ino: InodeId, request: u64) {
        let (cluster, guarded) = (self.cluster.clone(), guarded.clone());
        guarded.slot.lock().abandoned.push(request);
        tokio::spawn(async move {
            settle_later(&cluster, &guarded, ino).await;
            // The request itself may reach a service that comes back only after the first cancellation.
            tokio::time::sleep(RETRY).await;
            if guarded.slot.lock().token.is_none() {
                let _ = cluster.cancel_lock(ino, request).await;
            }
        });
    }

    /// Uses a lock that this mount has by another way than asking for it. `None` where it was lost since.
    pub(super) fn adopt_lock(&self, ino: InodeId, token: Token) -> Option<Held> {
        self.locks.slot(ino).take(token, 0).then_some(Held { token, process: 0 })
    }

    /// Ends one use of the lock; after the last one it goes back to the service if others want it.
    pub(crate) async fn unlock(&self, ino: InodeId, held: Held) {
        let guarded = self.locks.slot(ino);
        self.leave(&guarded, ino, held).await;
        self.locks.tidy(ino, guarded);
    }

    /// Where others wait for the lock of `node`: returns once no close by the caller's process is on its way. close(2) returns before
    /// its end is heard of, and who opens the file again that soon would find the lock still in its own hands. What is not heard
    /// of by then is a mapping without a descriptor.
    pub(super) async fn hear_closes(&self, node: &Node, caller: Caller) {
        let Some(guarded) = self.locks.slots.lock().get(&node.ino).cloned() else { return };
        if guarded.slot.lock().is_wanted() {
            let (process, _) = self.locks.processes.of(caller.pid);
            let is_gone = || !guarded.slot.lock().is_used_by(process);
            if !is_gone() && !self.has_another_descriptor(caller.pid, node) {
                let _ = tokio::time::timeout(GRACE, until(&guarded.left, is_gone)).await;
            }
        }
        self.locks.tidy(node.ino, guarded);
    }

    async fn leave(&self, guarded: &Arc<Guarded>, ino: InodeId, held: Held) {
        guarded.slot.lock().leave(held);
        guarded.left.notify_waiters();
        self.give_back_if_unused(guarded, ino).await;
    }

    /// A commit under `token` was refused: whoever uses it has lost the lock, and the next open asks for it anew.
    pub(super) fn lose_lock(&self, ino: InodeId, token: Token) {
        let guarded = self.locks.slot(ino);
        let mut slot = guarded.slot.lock();
        slot.users.retain(|user| user.token > token);
        slot.token = slot.token.filter(|held| *held > token);
        slot.given_back = slot.given_back.max(token);
    }

    /// As [`Vfs::unlock`], but the lock stays a little: the caller was told to look the name up again and to come back.
    pub(crate) async fn unlock_later(self: &Arc<Self>, ino: InodeId, held: Held) {
        let guarded = self.locks.slot(ino);
        let expected = {
            let mut slot = guarded.slot.lock();
            slot.leave(held);
            slot.last_expected += 1;
            let expected = slot.last_expected;
            slot.expected.push(expected);
            expected
        };
        let vfs = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            guarded.slot.lock().expected.retain(|e| *e != expected);
            vfs.give_back_if_unused(&guarded, ino).await;
            vfs.locks.tidy(ino, guarded);
        });
    }

    /// An open has its lock: if one was expected, this is taken for it.
    pub(crate) fn arrived(&self, ino: InodeId) {
        self.locks.slot(ino).slot.lock().expected.pop();
    }

    async fn give_back_if_unused(&self, guarded: &Arc<Guarded>, ino: InodeId) {
        let is_wanted = {
            let mut slot = guarded.slot.lock();
            if slot.is_unused() && slot.token.is_some() {
                slot.idle_since.get_or_insert_with(Instant::now);
            }
            slot.is_wanted()
        };
        if is_wanted {
            self.give_back(guarded, ino).await;
        }
    }

    /// Gives the lock back, unless it is in use.
    pub(super) async fn give_back(&self, guarded: &Arc<Guarded>, ino: InodeId) {
        let token = {
            let mut slot = guarded.slot.lock();
            if !slot.is_unused() {
                return;
            }
            let Some(token) = slot.token.take() else { return };
            (slot.given_back, slot.idle_since) = (token, None);
            if !std::mem::take(&mut slot.registered) {
                // Nobody else has heard of it.
                return;
            }
            slot.leaving = true;
            token
        };
        let _leaving = Leaving(guarded.clone());
        if let Err(e) = self.cluster.release_lock(ino, token).await {
            log::warn!("the write lock of inode {ino} was not given back: {e}");
            if e.kind().is_transient() {
                guarded.slot.lock().unreleased = Some(token);
                let (cluster, waits, guarded) = (self.cluster.clone(), self.waits.clone(), guarded.clone());
                // This session would hold it for ever.
                tokio::spawn(async move { waits.watch("give back the write lock", ino.0, settle_later(&cluster, &guarded, ino)).await });
            }
        }
    }
}

/// Tells the service what it must know before this mount asks for the lock again: that it was given back, and which
/// requests nobody waits for any more.
async fn settle(cluster: &Cluster, guarded: &Guarded, ino: InodeId) -> Result<()> {
    let (unreleased, abandoned) = {
        let slot = guarded.slot.lock();
        (slot.unreleased, slot.abandoned.clone())
    };
    let transient = |result: &Result<()>| result.as_ref().is_err_and(|e| e.kind().is_transient());
    if let Some(token) = unreleased {
        let told = cluster.release_lock(ino, token).await;
        if transient(&told) {
            return told;
        }
        let mut slot = guarded.slot.lock();
        slot.unreleased = slot.unreleased.filter(|t| *t != token);
    }
    for request in abandoned {
        let told = cluster.cancel_lock(ino, request).await;
        if transient(&told) {
            return told;
        }
        guarded.slot.lock().abandoned.retain(|r| *r != request);
    }
    Ok(())
}

/// The same, however long the service is away.
async fn settle_later(cluster: &Cluster, guarded: &Guarded, ino: InodeId) {
    loop {
        tokio::time::sleep(RETRY).await;
        if settle(cluster, guarded, ino).await.is_ok() {
            return;
        }
    }
}

/// The lock is being given back.
struct Leaving(Arc<Guarded>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.slot.lock().leaving = false;
        self.0.left.notify_waiters();
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

fn busy(ino: InodeId) -> Error {
    Error::new(ErrorKind::Busy, format!("inode {ino} is still locked by another writer"))
}
