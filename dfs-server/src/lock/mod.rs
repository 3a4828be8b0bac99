//! The lock service: exclusive write locks of files, and the locks that programs take
//! themselves; first come, first served.
//!
//! It owns holders, queues and fencing tokens, and refuses to know names, versions or
//! what a client does with a lock. [`state`] decides, purely; [`store`] persists what
//! changed before anybody hears of it; [`fence`] tells the directory service of lost
//! holders; [`http`] translates; [`operations`] and this module drive them: they have the
//! clock and the waiting connections.
//!
//! Invariants: a grant leaves the process only after the row that records it was
//! committed, and a token reaches the directory service only after the mark above it was.

mod fence;
mod http;
mod operations;
mod state;
mod store;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dfs_common::clients::Caller;
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::transport::Transport;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use self::state::{Connection, Effects, State, Waited};
use crate::shell::stopped;
use crate::store::Store;

/// A look that comes this much late means that the whole service stood still, so that nobody could renew anything.
const STALL_MS: u64 = 1000;
/// The longest pause between two looks at the deadlines.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The limit of a call to the directory service.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(10);

/// What an operator sets.
#[derive(Clone, Debug)]
pub struct Config {
    /// Locks and places of a session end this long after its last request.
    pub lease: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { lease: Duration::from_secs(30) }
    }
}

/// The service.
#[derive(Debug)]
pub struct LockService {
    inner: Mutex<Inner>,
    clock: Clock,
    directory: Caller,
    /// A deadline may have come closer.
    changed: Notify,
    /// There may be something to fence.
    fence_asked: Notify,
}

#[derive(Debug)]
struct Inner {
    state: State,
    store: Arc<dyn Store>,
    waiting: HashMap<Connection, (Waited, oneshot::Sender<Result<Token>>)>,
    next_connection: u64,
    /// Sessions that wait to hear what others want of their locks.
    recalling: HashMap<SessionId, oneshot::Sender<()>>,
    /// Rows that a failed commit left behind.
    unsaved: Effects,
    /// What the directory service must be told.
    fences: VecDeque<(InodeId, Token)>,
    stopping: bool,
}

/// Milliseconds since 1970 that never go back while the process lives, so that ages survive a restart.
#[derive(Debug)]
struct Clock {
    start: Instant,
    start_unix_ms: u64,
}

impl Clock {
    fn new() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_unix_ms: unix.as_millis() as u64 }
    }

    fn now_ms(&self) -> u64 {
        self.start_unix_ms + self.start.elapsed().as_millis() as u64
    }
}

impl LockService {
    /// Restores holders and queues from `store`; every session gets a fresh lease. `directory` reaches the directory service.
    pub fn open(config: &Config, store: Arc<dyn Store>, directory: Arc<dyn Transport>) -> Result<Arc<Self>> {
        let clock = Clock::new();
        let mut state = store::load(&*store, config.lease.as_millis() as u64, clock.now_ms())?;
        let (writers, ranges) = (state.writers(), state.ranges());
        log::info!(
            "lock service: {} locks ({} to be fenced), {} waiters, {} locks on ranges restored",
            writers.locks(),
            writers.fencing(),
            writers.waiters(),
            ranges.pieces()
        );
        let resumed = state.resume(clock.now_ms());
        let mut inner = Inner {
            state,
            store,
            waiting: HashMap::new(),
            next_connection: 1,
            recalling: HashMap::new(),
            unsaved: Effects::default(),
            fences: VecDeque::new(),
            stopping: false,
        };
        inner.settle(clock.now_ms(), resumed)?;
        let directory = Caller::new(directory, DIRECTORY_TIMEOUT);
        Ok(Arc::new(Self { inner: Mutex::new(inner), clock, directory, changed: Notify::new(), fence_asked: Notify::new() }))
    }

    /// Ends leases and waits in time, until `shutdown`; then every waiting client is told to come back.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        tokio::select! {
            () = fence::run(self.clone()) => {}
            () = self.keep_time() => {}
            () = stopped(&mut shutdown) => {}
        }
        let mut inner = self.inner.lock();
        inner.stopping = true;
        // Dropped senders answer `Unavailable`; the places stay and are taken up after the restart.
        inner.waiting.clear();
        inner.recalling.clear();
    }

    /// Looks at the deadlines in time; never returns.
    async fn keep_time(&self) {
        let mut last = self.clock.now_ms();
        let mut expected = last;
        loop {
            let pause = {
                let mut inner = self.inner.lock();
                let now = self.clock.now_ms();
                if now > expected + STALL_MS {
                    log::warn!("the service stood still for {} ms; leases are extended by that", now - expected);
                    inner.state.forgive(now - last);
                }
                last = now;
                let effects = inner.state.tick(now);
                if let Err(e) = inner.settle(now, effects) {
                    log::error!("lock service: {e}");
                }
                let pause = inner.state.next_deadline().map_or(MAX_PAUSE, |at| Duration::from_millis(at.saturating_sub(now).max(1))).min(MAX_PAUSE);
                expected = now + pause.as_millis() as u64;
                pause
            };
            self.fence_asked.notify_one();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// What to tell the directory service next.
    fn next_fence(&self) -> Option<(InodeId, Token)> {
        self.inner.lock().fences.pop_front()
    }

    /// What is under way is told once more, which does no harm.
    fn ask_all_fences(&self) {
        let mut inner = self.inner.lock();
        let all = inner.state.fences();
        inner.fences.extend(all);
    }

    /// The directory service could not be told.
    fn ask_fence(&self, ino: InodeId, token: Token) {
        self.inner.lock().fences.push_back((ino, token));
    }

    /// The directory service knows.
    fn fenced(&self, ino: InodeId, token: Token) {
        log::info!("inode {ino} is fenced: commits with a token below {token} are refused");
        // Unsaved, it is fenced once more after a restart, which changes nothing.
        if let Err(e) = self.change(|state, now| ((), state.fenced(now, ino, token))) {
            log::error!("lock service: {e}");
        }
    }
}

fn restarting() -> Error {
    Error::new(ErrorKind::Unavailable, "the lock service is stopping; your place in the queue is kept")
}

impl Inner {
    /// Persists what changed, then tells those who wait. Where the store refuses, they hear that instead of their
    /// grant, which is taken back: nobody has heard of it.
    fn settle(&mut self, now: u64, effects: Effects) -> Result<()> {
        self.unsaved.absorb(effects);
        let answers = std::mem::take(&mut self.unsaved.answers);
        for session in std::mem::take(&mut self.unsaved.recalls) {
            self.recalling.remove(&session).map(|waiting| waiting.send(()));
        }
        let saved = store::save(&*self.store, &self.state, &self.unsaved);
        if saved.is_ok() {
            self.fences.extend(std::mem::take(&mut self.unsaved).fences);
        }
        for (connection, answer) in answers {
            let Some((waited, sender)) = self.waiting.remove(&connection) else { continue };
            let answer = match (answer, &saved) {
                (Ok(_), Err(e)) => {
                    let undone = self.state.give_up(now, &waited, connection);
                    self.unsaved.absorb(undone);
                    Err(e.clone())
                }
                (answer, _) => answer,
            };
            // A receiver that is gone takes the grant up by asking again.
            let _ = sender.send(answer);
        }
        saved
    }
}

#[cfg(test)]
mod tests;
