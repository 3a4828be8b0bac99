//! What an operation waits for at this moment: each wait of the clients is noted in the
//! [`Steps`] of the operation around it, if somebody watches that one.
//!
//! It knows nothing of operations; outside of [`observe`] noting does nothing. Invariant:
//! a step stands in the list exactly as long as its [`Noted`] lives, so that a future
//! which is dropped half way leaves nothing behind.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::ids::InodeId;

tokio::task_local! {
    static STEPS: Arc<Steps>;
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A server's answer.
    Answer {
        /// Its URL.
        server: String,
        /// The resource that was asked for.
        resource: String,
    },
    /// A write lock that somebody else has.
    Lock {
        /// URL of the lock service.
        server: String,
        /// The file.
        ino: InodeId,
    },
    /// Another operation of the same client.
    Here {
        /// Which, for a person.
        what: String,
    },
}

/// One wait.
#[derive(Clone, Debug)]
pub struct Step {
    /// For what.
    pub target: Target,
    /// Since when.
    pub since: Instant,
    /// Attempts so far.
    pub tries: u32,
    number: u64,
}

#[derive(Debug, Default)]
struct Inner {
    open: Vec<Step>,
    last_number: u64,
    problem: Option<String>,
}

/// The waits of one operation; it has several where it moves blocks in parallel.
#[derive(Debug, Default)]
pub struct Steps {
    inner: Mutex<Inner>,
}

impl Steps {
    /// The waits that are not over, the oldest first.
    pub fn open(&self) -> Vec<Step> {
        self.inner.lock().open.clone()
    }

    /// What went wrong last.
    pub fn problem(&self) -> Option<String> {
        self.inner.lock().problem.clone()
    }
}

/// `operation`, with what it waits for noted in `steps`.
pub fn observe<F: Future>(steps: Arc<Steps>, operation: F) -> impl Future<Output = F::Output> {
    STEPS.scope(steps, operation)
}

/// Notes a wait until the result is dropped.
pub fn note(target: impl FnOnce() -> Target) -> Noted {
    let noted = STEPS.try_with(|steps| {
        let mut inner = steps.inner.lock();
        inner.last_number += 1;
        let number = inner.last_number;
        inner.open.push(Step { target: target(), since: Instant::now(), tries: 1, number });
        (steps.clone(), number)
    });
    Noted(noted.ok())
}

/// A wait that is noted.
#[derive(Debug)]
pub struct Noted(Option<(Arc<Steps>, u64)>);

impl Noted {
    /// The attempt failed; another one follows, or nothing.
    pub fn failed(&self, problem: &Error) {
        let Some((steps, number)) = &self.0 else { return };
        let mut inner = steps.inner.lock();
        inner.problem = Some(problem.message().to_owned());
        if let Some(step) = inner.open.iter_mut().find(|step| step.number == *number) {
            step.tries += 1;
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some((steps, number)) = &self.0 {
            steps.inner.lock().open.retain(|step| step.number != *number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn answer() -> Target {
        Target::Answer { server: "http://s:1".into(), resource: "/x".into() }
    }

    #[tokio::test]
    async fn a_wait_is_noted_as_long_as_it_lasts() {
        let steps = Arc::new(Steps::default());
        let seen = steps.clone();
        observe(steps.clone(), async move {
            let first = note(answer);
            let second = note(|| Target::Here { what: "another open".into() });
            first.failed(&Error::new(ErrorKind::Unavailable, "refused"));
            let open = seen.open();
            assert_eq!(open.iter().map(|s| s.tries).collect::<Vec<_>>(), [2, 1]);
            assert_eq!(open[0].target, answer());
            drop(first);
            assert_eq!(seen.open().len(), 1);
            drop(second);
        })
        .await;
        assert!(steps.open().is_empty());
        assert_eq!(steps.problem().as_deref(), Some("refused"));
    }

    #[tokio::test]
    async fn what_is_dropped_half_way_leaves_nothing() {
        let steps = Arc::new(Steps::default());
        let mut waiting = Box::pin(observe(steps.clone(), async {
            let _noted = note(answer);
            std::future::pending::<()>().await;
        }));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        assert_eq!(steps.open().len(), 1);
        drop(waiting);
        assert!(steps.open().is_empty());
        // Nobody watches: nothing happens.
        note(answer).failed(&ErrorKind::Unavailable.into());
    }
}
