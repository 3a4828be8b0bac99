//! What clients ask for: each operation changes the state, persists that, and waits where
//! it must.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::api::lock::{
    Acquire, Break, Cancel, CancelRange, Conflict, End, Grant, InUse, LockLease, LockRange, LockRow, LockStatus, Locks, RangeRow, Ranges, Recalled,
    Recalls, Release, Renew, TakeOver, TakenOver, TestRange, UnlockRange,
};
use dfs_common::ids::Token;
use dfs_common::{Error, ErrorKind, Result};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::state::{Acquired, Connection, Effects, State, Waited};
use super::{LockService, restarting};

/// How long the answer to a break waits for the directory service.
const BREAK_WAIT: Duration = Duration::from_secs(5);

impl LockService {
    pub(super) async fn acquire(self: Arc<Self>, request: Acquire) -> Result<Grant> {
        let Acquire { session, ino, request: number, .. } = request;
        let waited = Waited::Write(Cancel { session, ino, request: number });
        let token = self.wait(waited, |state, now, connection| state.acquire(now, &request, connection)).await?;
        Ok(Grant { token })
    }

    pub(super) async fn lock_range(self: Arc<Self>, request: LockRange) -> Result<()> {
        let LockRange { ino, owner, request: number, .. } = request;
        let waited = Waited::Range(CancelRange { ino, owner, request: number });
        self.wait(waited, |state, now, connection| state.lock_range(now, &request, connection)).await?;
        Ok(())
    }

    pub(super) async fn break_lock(self: Arc<Self>, request: Break) -> Result<()> {
        let directory = self.directory.peer().to_owned();
        let broken = self.wait(Waited::Break(request.ino), |state, now, connection| state.break_lock(now, &request, connection));
        match timeout(BREAK_WAIT, broken).await {
            Ok(result) => result.map(|_| ()),
            Err(_) => {
                let why = format!("{directory} does not answer; the lock of inode {} passes on as soon as it does", request.ino);
                Err(Error::new(ErrorKind::Unavailable, why))
            }
        }
    }

    /// Carries out `ask`, and waits for the answer where it is not there at once.
    async fn wait(self: Arc<Self>, waited: Waited, ask: impl FnOnce(&mut State, u64, Connection) -> (Result<Acquired>, Effects)) -> Result<Token> {
        let (waiting, receiver) = {
            let mut inner = self.inner.lock();
            let connection = Connection(inner.next_connection);
            inner.next_connection += 1;
            let (sender, receiver) = oneshot::channel();
            inner.waiting.insert(connection, (waited.clone(), sender));
            let now = self.clock.now_ms();
            let (acquired, effects) = ask(&mut inner.state, now, connection);
            if let Err(e) = inner.settle(now, effects) {
                inner.waiting.remove(&connection);
                let undone = inner.state.give_up(now, &waited, connection);
                inner.unsaved.absorb(undone);
                return Err(e);
            }
            self.fence_asked.notify_one();
            match acquired {
                Ok(Acquired::Waiting) if !inner.stopping => {}
                other => {
                    inner.waiting.remove(&connection);
                    return match other? {
                        Acquired::Granted(token) => Ok(token),
                        Acquired::Waiting => Err(restarting()),
                    };
                }
            }
            (Waiting { service: self.clone(), waited, connection }, receiver)
        };
        self.changed.notify_one();
        let answer = receiver.await.unwrap_or_else(|_| Err(restarting()));
        drop(waiting);
        answer
    }

    /// Waits until others want something that the session holds, and it does not know that.
    pub(super) async fn recalls(self: Arc<Self>, request: Recalls) -> Result<Recalled> {
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms.min(Acquire::MAX_WAIT_MS));
        let asked = {
            let mut inner = self.inner.lock();
            let wanted = inner.state.wanted(self.clock.now_ms(), &request)?;
            if !wanted.is_empty() || request.wait_ms == 0 {
                return Ok(Recalled { wanted });
            }
            if inner.stopping {
                return Err(restarting());
            }
            let (sender, asked) = oneshot::channel();
            // An older request of the session, whose connection is dead, ends with this.
            inner.recalling.insert(request.session, sender);
            asked
        };
        match timeout_at(deadline, asked).await {
            // What the client knows may be something else by now: where this is empty it asks again.
            Ok(Ok(())) | Err(_) => Ok(Recalled { wanted: self.inner.lock().state.wanted(self.clock.now_ms(), &request)? }),
            // A newer request has taken its place, or the service stops.
            Ok(Err(_)) => Err(restarting()),
        }
    }

    pub(super) fn in_use(&self, request: &InUse) -> Result<()> {
        self.change(|state, now| state.in_use(now, request))?
    }

    pub(super) fn cancel(&self, request: &Cancel) -> Result<()> {
        self.change(|state, now| ((), state.cancel(now, request)))
    }

    pub(super) fn release(&self, request: &Release) -> Result<()> {
        self.change(|state, now| ((), state.release(now, request)))
    }

    pub(super) fn end(&self, request: &End) -> Result<()> {
        self.change(|state, now| ((), state.end(now, request.session)))
    }

    pub(super) fn take_over(&self, request: &TakeOver) -> Result<TakenOver> {
        self.change(|state, now| state.take_over(now, request))?
    }

    pub(super) fn cancel_range(&self, request: &CancelRange) -> Result<()> {
        self.change(|state, now| ((), state.cancel_range(now, request)))
    }

    pub(super) fn unlock_range(&self, request: &UnlockRange) -> Result<()> {
        self.change(|state, now| state.unlock_range(now, request))?
    }

    pub(super) fn test_range(&self, request: &TestRange) -> Result<Conflict> {
        let lock = self.inner.lock().state.test_range(self.clock.now_ms(), request)?;
        Ok(Conflict { lock })
    }

    pub(super) fn renew(&self, request: &Renew) -> LockLease {
        let mut inner = self.inner.lock();
        let held = inner.state.renew(self.clock.now_ms(), request.session);
        LockLease { lease_ms: inner.state.lease_ms(), held }
    }

    pub(super) fn list(&self, request: &Locks) -> Vec<LockRow> {
        self.inner.lock().state.list(self.clock.now_ms(), request.ino)
    }

    pub(super) fn list_ranges(&self, request: &Ranges) -> Vec<RangeRow> {
        self.inner.lock().state.list_ranges(self.clock.now_ms(), request.ino)
    }

    pub(super) fn status(&self) -> LockStatus {
        let inner = self.inner.lock();
        let (writers, ranges) = (inner.state.writers(), inner.state.ranges());
        LockStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.clock.start.elapsed().as_millis() as u64,
            locks: writers.locks(),
            waiters: writers.waiters(),
            ranges: ranges.pieces(),
            range_waiters: ranges.waiting(),
            fencing: writers.fencing(),
            last_token: writers.last_token(),
        }
    }

    /// A change that need not wait.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State, u64) -> (T, Effects)) -> Result<T> {
        let mut inner = self.inner.lock();
        let now = self.clock.now_ms();
        let (answer, effects) = change(&mut inner.state, now);
        let saved = inner.settle(now, effects);
        drop(inner);
        self.changed.notify_one();
        self.fence_asked.notify_one();
        saved.map(|()| answer)
    }
}

/// A connection that waits; when it is dropped before the answer, its place stays without a connection.
struct Waiting {
    service: Arc<LockService>,
    waited: Waited,
    connection: Connection,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.service.inner.lock();
        if inner.waiting.remove(&self.connection).is_some() {
            inner.state.disconnected(&self.waited, self.connection);
        }
    }
}
