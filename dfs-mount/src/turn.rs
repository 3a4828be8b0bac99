//! Waiting for one another: a turn that operations on one file take one after the other,
//! and the wait until something is so.
//!
//! Where servers do not answer, an operation fails after its timeout. Those that waited
//! for it meanwhile must not each try for as long again: they share its failure. Who is
//! next in line waits visibly, as a step of its operation.

use std::time::Instant;

use dfs_common::clients::steps::{self, Target};
use dfs_common::{Error, Result};
use tokio::sync::{Mutex, MutexGuard, Notify, TryLockError};

/// When and how the last turn failed, if its servers did not answer.
type LastFailure = Option<(Instant, Error)>;

#[derive(Debug, Default)]
pub(crate) struct Turn {
    last: Mutex<LastFailure>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken<'a>(MutexGuard<'a, LastFailure>);

/// Waits until `is_so`; whoever makes it so calls [`Notify::notify_waiters`] of `changed` afterwards.
pub(crate) async fn until(changed: &Notify, is_so: impl Fn() -> bool) {
    loop {
        // Before the look, so that no change falls between the two.
        let next = changed.notified();
        if is_so() {
            return;
        }
        next.await;
    }
}

impl Turn {
    /// Waits for its turn; `what` says in which way the others are busy. Fails as the one before did, where that was waited for.
    pub(crate) async fn take(&self, what: &'static str) -> Result<Taken<'_>> {
        let asked = Instant::now();
        let taken = self.take_anyway(what).await;
        match &*taken.0 {
            Some((at, problem)) if *at > asked => Err(problem.clone()),
            _ => Ok(taken),
        }
    }

    /// Its turn at once, or an error where somebody has it.
    pub(crate) fn try_lock(&self) -> Result<Taken<'_>, TryLockError> {
        self.last.try_lock().map(Taken)
    }

    /// As [`Turn::take`], whatever became of the one before.
    pub(crate) async fn take_anyway(&self, what: &'static str) -> Taken<'_> {
        if let Ok(free) = self.try_lock() {
            return free;
        }
        let _noted = steps::note(|| Target::Here { what: what.to_owned() });
        Taken(self.last.lock().await)
    }
}

impl Taken<'_> {
    /// Remembers a failure for those who wait now.
    pub(crate) fn end<T>(mut self, result: Result<T>) -> Result<T> {
        *self.0 = result.as_ref().err().filter(|e| e.kind().is_transient()).map(|e| (Instant::now(), e.clone()));
        result
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn who_waited_shares_the_failure_and_who_comes_later_tries() {
        let turn = Turn::default();
        let first = turn.take("x").await.unwrap();
        let mut second = Box::pin(turn.take("x"));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        let failure: Result<()> = first.end(Err(ErrorKind::TimedOut.into()));
        assert!(failure.is_err());
        assert_eq!(second.await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(turn.take("x").await.is_ok());
    }

    #[tokio::test]
    async fn other_failures_are_the_own_ones() {
        let turn = Turn::default();
        let first = turn.take("x").await.unwrap();
        let mut second = Box::pin(turn.take("x"));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        let _: Result<()> = first.end(Err(ErrorKind::Stale.into()));
        assert!(second.await.is_ok());
    }
}
