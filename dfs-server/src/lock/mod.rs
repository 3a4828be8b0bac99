//! The lock service: exclusive write locks of files, first come first served.
//!
//! It owns holders, queues and fencing tokens, and refuses to know names, versions or
//! what a client does with a lock. [`state`] decides, purely; [`store`] persists what
//! changed before anybody hears of it; [`http`] translates; this module drives them:
//! it has the clock and the waiting connections.
//!
//! Invariant: a grant leaves the process only after the row that records it was committed.

mod http;
mod state;
mod store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dfs_common::api::lock::{Acquire, Cancel, End, Grant, LockLease, LockRow, LockStatus, Locks, Release, Renew};
use dfs_common::ids::Token;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use self::state::{Acquired, Connection, Effects, State};
use crate::shell::stopped;
use crate::store::Store;

/// A look that comes this much late means that the whole service stood still, so that nobody could renew anything.
const STALL_MS: u64 = 1000;
/// The longest pause between two looks at the deadlines.
const MAX_PAUSE: Duration = Duration::from_secs(1);

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
    /// A deadline may have come closer.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    state: State,
    store: Arc<dyn Store>,
    waiting: HashMap<Connection, oneshot::Sender<Result<Token>>>,
    next_connection: u64,
    /// Rows that a failed commit left behind.
    unsaved: Effects,
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
    /// Restores holders and queues from `store`; every session gets a fresh lease.
    pub fn open(config: &Config, store: Arc<dyn Store>) -> Result<Arc<Self>> {
        let clock = Clock::new();
        let state = store::load(&*store, config.lease.as_millis() as u64, clock.now_ms())?;
        log::info!("lock service: {} locks and {} waiters restored", state.locks(), state.waiters());
        let inner = Inner { state, store, waiting: HashMap::new(), next_connection: 1, unsaved: Effects::default(), stopping: false };
        Ok(Arc::new(Self { inner: Mutex::new(inner), clock, changed: Notify::new() }))
    }

    /// Ends leases and waits in time, until `shutdown`; then every waiting client is told to come back.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
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
                if let Err(e) = inner.settle(effects) {
                    log::error!("lock service: {e}");
                }
                let pause = inner.state.next_deadline().map_or(MAX_PAUSE, |at| Duration::from_millis(at.saturating_sub(now).max(1))).min(MAX_PAUSE);
                expected = now + pause.as_millis() as u64;
                pause
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.notified() => {}
                () = stopped(&mut shutdown) => break,
            }
        }
        let mut inner = self.inner.lock();
        inner.stopping = true;
        // Dropped senders answer `Unavailable`; the places stay and are taken up after the restart.
        inner.waiting.clear();
    }

    async fn acquire(self: Arc<Self>, request: Acquire) -> Result<Grant> {
        let (waiting, receiver) = {
            let mut inner = self.inner.lock();
            let connection = Connection(inner.next_connection);
            inner.next_connection += 1;
            let (acquired, effects) = inner.state.acquire(self.clock.now_ms(), &request, connection);
            if let Err(e) = inner.settle(effects) {
                let Acquire { session, ino, request, .. } = request;
                let undone = inner.state.cancel(self.clock.now_ms(), &Cancel { session, ino, request });
                inner.unsaved.absorb(undone);
                return Err(e);
            }
            match acquired? {
                Acquired::Granted(token) => return Ok(Grant { token }),
                Acquired::Waiting if inner.stopping => return Err(restarting()),
                Acquired::Waiting => {}
            }
            let (sender, receiver) = oneshot::channel();
            inner.waiting.insert(connection, sender);
            (Waiting { service: self.clone(), request, connection }, receiver)
        };
        self.changed.notify_one();
        let token = receiver.await.unwrap_or_else(|_| Err(restarting()));
        drop(waiting);
        token.map(|token| Grant { token })
    }

    fn cancel(&self, request: &Cancel) -> Result<()> {
        self.change(|state, now| state.cancel(now, request))
    }

    fn release(&self, request: &Release) -> Result<()> {
        self.change(|state, now| state.release(now, request))
    }

    fn end(&self, request: &End) -> Result<()> {
        self.change(|state, now| state.end(now, request.session))
    }

    fn renew(&self, request: &Renew) -> LockLease {
        let mut inner = self.inner.lock();
        let held = inner.state.renew(self.clock.now_ms(), request.session);
        LockLease { lease_ms: inner.state.lease_ms(), held }
    }

    fn list(&self, request: &Locks) -> Vec<LockRow> {
        self.inner.lock().state.list(self.clock.now_ms(), request.ino)
    }

    fn status(&self) -> LockStatus {
        let inner = self.inner.lock();
        LockStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.clock.start.elapsed().as_millis() as u64,
            locks: inner.state.locks(),
            waiters: inner.state.waiters(),
            last_token: inner.state.last_token(),
            ranges: 0,
            fencing: 0,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State, u64) -> Effects) -> Result<()> {
        let mut inner = self.inner.lock();
        let effects = change(&mut inner.state, self.clock.now_ms());
        let result = inner.settle(effects);
        drop(inner);
        self.changed.notify_one();
        result
    }
}

fn restarting() -> Error {
    Error::new(ErrorKind::Unavailable, "the lock service is stopping; your place in the queue is kept")
}

impl Inner {
    /// Persists what changed, then tells those who wait. Where the store refuses, they hear that instead of their
    /// grant, which passes on when nobody takes it up.
    fn settle(&mut self, effects: Effects) -> Result<()> {
        self.unsaved.absorb(effects);
        let answers = std::mem::take(&mut self.unsaved.answers);
        let saved = store::save(&*self.store, &self.state, &self.unsaved);
        if saved.is_ok() {
            self.unsaved = Effects::default();
        }
        for (connection, answer) in answers {
            let Some(sender) = self.waiting.remove(&connection) else { continue };
            let answer = match &saved {
                Ok(()) => answer,
                Err(e) => Err(e.clone()),
            };
            // A receiver that is gone takes the grant up by asking again, or it passes on.
            let _ = sender.send(answer);
        }
        saved
    }
}

/// A connection that waits; when it is dropped before the answer, its place stays without a connection.
struct Waiting {
    service: Arc<LockService>,
    request: Acquire,
    connection: Connection,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.service.inner.lock();
        if inner.waiting.remove(&self.connection).is_some() {
            inner.state.disconnected(self.request.ino, self.request.session, self.request.request, self.connection);
        }
    }
}

#[cfg(test)]
mod tests;
