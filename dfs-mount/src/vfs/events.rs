//! Hearing what others are about to change: claims leases, waits for events, clears the
//! kernel's caches, and acknowledges by asking for the next.
//!
//! The kernel's copy of a name is cleared under the lock of its directory, which an
//! operation in flight there holds while it waits for the directory service, which may
//! wait for this acknowledgement. So clearing names is bounded in time, on a thread of
//! its own; when it takes longer, everything that the kernel keeps is made old at once,
//! which waits for nobody.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dfs_common::api::directory::{ClaimLeases, EventBatch, Events};
use dfs_common::{Error, ErrorKind, Result};
use tokio::time::{sleep, timeout};

use super::Vfs;
use super::coherence::{Clear, Clearing, Forgetting};
use super::node::Node;

/// First pause after a failure; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long clearing names may wait for operations in flight.
const CLEAR_LIMIT: Duration = Duration::from_millis(10);
/// For so long the kernel keeps no names of a directory where it had to wait.
const CONTENDED: Duration = Duration::from_secs(1);
/// The longest that a kernel keeps names which cannot be made to forget all of them at once.
pub(super) const UNFORGETTING: Duration = Duration::from_secs(1);
/// The answer to a request for events may be this much later than the wait that was asked for.
const ANSWER_SLACK: Duration = Duration::from_secs(2);

/// The kernel's caches of this mount. Errors: `NotFound` where it keeps no such thing.
pub trait KernelCache: Send + Sync + std::fmt::Debug {
    /// Attributes of a node. Waits for nobody.
    fn forget_attributes(&self, id: u64) -> io::Result<()>;
    /// The listing of a directory. Waits for nobody.
    fn forget_listing(&self, id: u64) -> io::Result<()>;
    /// A name in a directory, known or absent: thrown away, else looked up with the next use. Waits for operations in flight in
    /// that directory.
    fn forget_entry(&self, directory: u64, name: &[u8], drops: bool) -> io::Result<()>;
    /// Every name. Waits for nobody.
    fn forget_all(&self) -> io::Result<()>;
    /// Nodes that nobody uses, with their names. Waits for nobody.
    fn prune(&self, ids: &[u64]) -> io::Result<()>;
    /// Lets opens be served from `file` itself, by the number that this returns. Errors: `PermissionDenied` without CAP_SYS_ADMIN.
    fn back(&self, file: &File) -> io::Result<u32>;
    /// Such a number is not used any more.
    fn end_backing(&self, number: u32) -> io::Result<()>;
}

impl Vfs {
    /// Gives access to the kernel's caches: from here on it is told to keep what is leased.
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        match kernel.forget_all() {
            Ok(()) => self.kernel_forgets.store(true, Ordering::Relaxed),
            Err(e) => log::info!("this kernel (before Linux 6.16) cannot forget all names at once, so it keeps them for a second at the most: {e}"),
        }
        assert!(self.kernel.set(kernel).is_ok(), "one kernel, once");
    }

    /// Claims leases and takes in events, until the mount ends.
    pub async fn keep_leases(self: Arc<Self>) {
        let (mut after, mut pause) = (None, FIRST_PAUSE);
        while !self.ending.load(Ordering::Relaxed) {
            let session = self.cluster.id();
            let result = match after {
                None => {
                    let claimed = self.claim_leases().await;
                    if claimed.is_ok() {
                        // Nothing is this mount's alone any more. After a restart of the service this waits for others.
                        let vfs = self.clone();
                        tokio::spawn(async move { vfs.give_births(None).await });
                    }
                    claimed
                }
                Some(after) => self.next_events(after).await,
            };
            match result {
                Ok(number) => {
                    after = Some(number);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Err(e) if matches!(e.kind(), ErrorKind::Unclaimed | ErrorKind::Invalid) && after.is_some() => {
                    log::info!("leases are claimed again: {e}");
                    after = None;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::SessionExpired && !self.ending.load(Ordering::Relaxed) => {
                    after = None;
                    // A failure is logged there, and tried again here.
                    let _ = self.reopen_session(session).await;
                }
                Err(e) => log::debug!("events: {e}"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.cluster.session().lease_ms)
    }

    async fn claim_leases(&self) -> Result<u64> {
        let mut held = self.begin_claim();
        held.sort_unstable();
        held.dedup();
        held.truncate(ClaimLeases::MAX_HELD);
        let claim = ClaimLeases { session: self.cluster.id(), revision: self.revision.load(Ordering::Relaxed), held };
        let sent = Instant::now();
        let claimed = self.cluster.directory.call_once_within(&claim, self.cluster.directory.timeout()).await?;
        let clear = self.end_claim(claimed.event, &claim.held, &claimed.lost);
        self.clear(clear).await;
        self.revision.store(claimed.revision, Ordering::Relaxed);
        self.leases.lock().renewed(sent, self.lease());
        Ok(claimed.event)
    }

    /// Acknowledges `after`, waits for what comes next and takes it in. Returns its number.
    async fn next_events(&self, after: u64) -> Result<u64> {
        let wait = self.lease() / 6;
        let events = Events { session: self.cluster.id(), after, wait_ms: (wait.as_millis() as u64).clamp(1, Events::MAX_WAIT_MS) };
        let sent = Instant::now();
        // An answer that does not come in time is lost, with its connection.
        let limit = (wait + ANSWER_SLACK).min(wait.max(Duration::from_millis(100)) * 3);
        let EventBatch { events, revision } = self.cluster.directory.call_once_within(&events, limit).await?;
        self.leases.lock().renewed(sent, self.lease());
        let last = events.last().map_or(after, |event| event.number);
        if !events.is_empty() {
            let mut clear = self.take_in(&events);
            let births = std::mem::take(&mut clear.births);
            self.clear(clear).await;
            for directory in births {
                if let Err(e) = self.give_births(Some(directory)).await {
                    log::warn!("new files of inode {directory}: {e}");
                }
            }
        }
        self.revision.store(revision, Ordering::Relaxed);
        Ok(last)
    }

    /// Makes the kernel forget; what it is told meanwhile is told by those who have seen the events.
    async fn clear(&self, clear: Clear) {
        let Some(kernel) = self.kernel.get() else { return };
        for id in clear.listings {
            report(kernel.forget_listing(id));
        }
        let (mut entries, mut again) = (clear.entries, Vec::new());
        for node in clear.attributes {
            match kernel.forget_attributes(node.id) {
                // The kernel has just forgotten it, or was told of it a moment ago and has not taken that in. It does that
                // under the lock of the directory, where clearing the name waits for it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let telling = self.telling();
                    let is_directory = telling.clear_places(&node, &mut entries);
                    again.extend(is_directory.then(|| node.clone()));
                }
                result => report(result),
            }
            node.state.lock().kernel.has_forgotten(Instant::now());
        }
        self.forgotten.notify_waiters();
        self.clear_entries(entries).await;
        for node in again {
            report(kernel.forget_attributes(node.id));
        }
    }

    /// Waits until no order to forget the attributes of `node` is under way. The order itself waits for nobody.
    pub(crate) async fn until_forgotten(&self, node: &Node) {
        loop {
            let forgotten = self.forgotten.notified();
            if !node.state.lock().kernel.is_forgetting() {
                return;
            }
            forgotten.await;
        }
    }

    /// Where `node` is open and not leased, its names are looked up each time: it may be another node's by then.
    pub(crate) async fn uncover(&self, node: &Node) {
        let places = self.telling().unleased_places(node);
        self.clear_entries(places).await;
    }

    async fn clear_entries(&self, clearing: Clearing) {
        let places = clearing.places();
        let Some(kernel) = self.kernel.get().cloned().filter(|_| !places.is_empty()) else { return };
        let names: Vec<_> = places.iter().map(|(place, how)| (place.directory.id, place.name.clone(), *how == Forgetting::Drop)).collect();
        let mut thread = tokio::task::spawn_blocking(move || {
            for (directory, name, drops) in names {
                report(kernel.forget_entry(directory, name.as_bytes(), drops));
            }
        });
        if timeout(CLEAR_LIMIT, &mut thread).await.is_ok() {
            if places.iter().any(|(_, how)| *how == Forgetting::LookUpAll) {
                self.forget_all().await;
            }
            return;
        }
        log::debug!("operations in flight hold up an event: everything is looked up again");
        let until = Instant::now() + CONTENDED;
        places.iter().for_each(|(place, _)| place.directory.state.lock().entries.contend(until));
        self.forget_all().await;
    }

    /// When this returns the kernel looks up every name again.
    pub(crate) async fn forget_all(&self) {
        match self.kernel.get() {
            Some(kernel) if self.kernel_forgets.load(Ordering::Relaxed) => report(kernel.forget_all()),
            // It was told to keep no name for longer.
            _ => sleep(UNFORGETTING).await,
        }
    }

    /// The kernel shall read the listing of a directory anew.
    pub(super) fn forget_listing(&self, id: u64) {
        if let Some(kernel) = self.kernel.get() {
            report(kernel.forget_listing(id));
        }
    }

    /// The attributes that the kernel keeps of a node changed by what this mount did. The size it knows from the calls that did it,
    /// so no harm is done where it does not take in an answer meanwhile.
    pub(crate) fn forget_attributes(&self, id: u64) {
        if let Some(kernel) = self.kernel.get() {
            report(kernel.forget_attributes(id));
        }
    }
}

fn report(result: io::Result<()>) {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => log::warn!("clearing the kernel's cache: {}", Error::from_io(&e, "notification")),
        _ => {}
    }
}
