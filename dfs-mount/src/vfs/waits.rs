//! The operations that wait at this moment, for whoever asks why something hangs.
//!
//! It owns the list; what each of them waits for is noted by the clients (and by
//! [`crate::turn`]) in the operation's own [`Steps`]. What is answered at once never
//! stands here. Invariant: an operation leaves the list before its caller is answered.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_common::Result;
use dfs_common::clients::behalf::Behalf;
use dfs_common::clients::steps::{self, Step, Steps, Target};
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::name;
use futures_util::future::Either;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Vfs;
use super::interrupt::{Signals, given_up_on};
use super::node::ROOT_ID;
use super::process::process_of;

/// Directories above a file that are named at the most.
const DEPTH: usize = 64;

/// What is known of an operation before it begins.
#[derive(Clone, Debug)]
pub struct About {
    /// As the kernel calls it.
    pub operation: &'static str,
    /// The thread that asked; 0 for the mount itself, and where the caller has no number here.
    pub pid: u32,
    /// On behalf of which user and group; `None`: the mount itself.
    pub user: Option<(u32, u32)>,
    /// The kernel's id of the node: the file's, or the directory's where there is a name. 0: the whole mount.
    pub node: u64,
    /// The name in that directory.
    pub name: Option<Vec<u8>>,
    /// Which pending signals end it. It must be safe to drop half way then.
    pub given_up_on: Signals,
}

/// One operation.
#[derive(Debug)]
pub struct Wait {
    about: About,
    since: Instant,
    steps: Arc<Steps>,
}

impl Wait {
    /// It begins now.
    pub fn begin(about: About) -> Arc<Self> {
        Arc::new(Self { about, since: Instant::now(), steps: Arc::default() })
    }

    /// Notes what `operation` waits for.
    pub fn observe<F: Future>(&self, operation: F) -> impl Future<Output = F::Output> + use<F> {
        steps::observe(self.steps.clone(), operation)
    }

    /// Lets `operation` ask on behalf of the user.
    pub fn on_behalf<F: Future>(&self, operation: F) -> impl Future<Output = F::Output> + use<F> {
        match self.about.user {
            Some((uid, gid)) => Either::Left(Behalf::of_thread(uid, gid, self.about.pid).scope(operation)),
            None => Either::Right(operation),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Waits {
    last: AtomicU64,
    /// By number, so in the order in which they began to wait.
    open: Mutex<BTreeMap<u64, Arc<Wait>>>,
}

impl Waits {
    /// `wait` could not be answered at once. It stands in the list until the result is dropped.
    pub fn enter(self: &Arc<Self>, wait: Arc<Wait>) -> Entered {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let (pid, signals) = (wait.about.pid, wait.about.given_up_on);
        self.open.lock().insert(number, wait);
        Entered { waits: self.clone(), number, pid, signals }
    }

    /// Carries out what the mount does by itself, visibly.
    pub(crate) async fn watch<T>(self: &Arc<Self>, operation: &'static str, node: u64, work: impl Future<Output = T>) -> T {
        let wait = Wait::begin(About { operation, pid: 0, user: None, node, name: None, given_up_on: Signals::None });
        let work = wait.observe(work);
        let _entered = self.enter(wait);
        work.await
    }
}

/// An operation in the list.
#[derive(Debug)]
pub struct Entered {
    waits: Arc<Waits>,
    number: u64,
    pid: u32,
    signals: Signals,
}

impl Entered {
    /// The operation's result, or `Interrupted` where its caller gave up.
    pub async fn finish<T>(self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        given_up_on(self.signals, self.pid, operation).await?
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.waits.open.lock().remove(&self.number);
    }
}

/// One step of a waiting operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    /// For what.
    #[serde(flatten)]
    pub target: Target,
    /// For so long, in milliseconds.
    pub since_ms: u64,
    /// Attempts so far.
    pub tries: u32,
}

/// One waiting operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingRow {
    /// As the kernel calls it.
    pub operation: String,
    /// The process that asked; 0 for the mount itself.
    pub pid: u32,
    /// Its program.
    pub program: String,
    /// The thread of that process.
    pub thread: u32,
    /// The inode: the file's, or the directory's where there is a name.
    pub ino: Option<InodeId>,
    /// The name in that directory.
    pub name: Option<String>,
    /// The path inside of the mount, as far as it is known.
    pub path: Option<String>,
    /// For so long, in milliseconds.
    pub since_ms: u64,
    /// What for; several where blocks are moved in parallel, none where it is the mount's own disk.
    pub steps: Vec<StepRow>,
    /// What went wrong last.
    pub problem: Option<String>,
}

/// The mount in numbers.
#[derive(Clone, Debug)]
pub struct Census {
    /// At the directory service.
    pub session: SessionId,
    /// The lock service's URL.
    pub lock_url: String,
    /// How long leases are believed without another answer.
    pub believed: Duration,
    /// Inodes that the kernel refers to.
    pub nodes: usize,
    /// Open files and directories.
    pub open: usize,
}

impl Vfs {
    /// The list of waiting operations.
    pub fn waits(&self) -> &Arc<Waits> {
        &self.waits
    }

    /// What waits now, the longest first.
    pub fn waiting(&self) -> Vec<WaitingRow> {
        let open: Vec<Arc<Wait>> = self.waits.open.lock().values().cloned().collect();
        let mut rows: Vec<WaitingRow> = open.iter().map(|wait| self.row(wait)).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.since_ms));
        rows
    }

    fn row(&self, wait: &Wait) -> WaitingRow {
        let About { operation, pid: thread, node, name, .. } = &wait.about;
        let (pid, program) = if *thread == 0 { (0, "dfs-mount".to_owned()) } else { process_of(*thread) };
        let name = name.as_deref().map(name::encode);
        let step = |step: Step| StepRow { target: step.target, since_ms: step.since.elapsed().as_millis() as u64, tries: step.tries };
        WaitingRow {
            operation: (*operation).to_owned(),
            pid,
            program,
            thread: *thread,
            ino: self.nodes.get(*node).map(|node| node.ino),
            path: self.path_of(*node).map(|path| match &name {
                Some(name) => format!("{}/{name}", path.trim_end_matches('/')),
                None => path,
            }),
            name,
            since_ms: wait.since.elapsed().as_millis() as u64,
            steps: wait.steps.open().into_iter().map(step).collect(),
            problem: wait.steps.problem(),
        }
    }

    /// A path by which the kernel came to a node, if it still knows one.
    fn path_of(&self, id: u64) -> Option<String> {
        let mut node = self.nodes.get(id)?;
        let mut names = Vec::new();
        while node.id != ROOT_ID {
            let (directory, name) = node.state.lock().places.first().cloned()?;
            names.push(name::encode(name.as_bytes()));
            if names.len() > DEPTH {
                return None;
            }
            node = self.nodes.current(directory)?;
        }
        names.reverse();
        Some(format!("/{}", names.join("/")))
    }

    /// The mount in numbers.
    pub fn census(&self) -> Census {
        Census {
            session: self.cluster.id(),
            lock_url: self.cluster.lock.peer().to_owned(),
            believed: self.leases.lock().believed_for(Instant::now()),
            nodes: self.nodes.all().len(),
            open: self.handles.count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::ErrorKind;

    use super::*;

    fn about() -> About {
        About { operation: "getattr", pid: 0, user: None, node: 1, name: None, given_up_on: Signals::Ending }
    }

    #[tokio::test]
    async fn an_operation_stands_in_the_list_until_it_is_answered() {
        let waits = Arc::new(Waits::default());
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        let wait = Wait::begin(about());
        let operation = wait.observe(async move {
            let _noted = steps::note(|| Target::Here { what: "x".into() });
            let _ = answered.await;
            Ok::<u32, dfs_common::Error>(7)
        });
        let mut waiting = Box::pin(waits.enter(wait).finish(operation));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        let listed: Vec<Arc<Wait>> = waits.open.lock().values().cloned().collect();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].steps.open()[0].target, Target::Here { what: "x".into() });
        answer.send(()).unwrap();
        assert_eq!(waiting.await.unwrap(), 7);
        assert!(waits.open.lock().is_empty() && listed[0].steps.open().is_empty());
    }

    #[tokio::test]
    async fn one_that_fails_or_is_dropped_leaves_too() {
        let waits = Arc::new(Waits::default());
        let failed = waits.enter(Wait::begin(about())).finish(async { Err::<(), _>(ErrorKind::TimedOut.into()) });
        assert_eq!(failed.await.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(waits.enter(Wait::begin(about())));
        assert!(waits.open.lock().is_empty());
    }
}
