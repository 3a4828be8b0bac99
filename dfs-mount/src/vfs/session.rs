//! What goes on between requests: renewing the session, letting go of removed files,
//! publishing everything at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dfs_common::ids::{InodeId, SessionId};
use dfs_common::{ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout};

use super::Vfs;
use crate::cache::record::Owned;

/// Removed files are reported together, so that `rm -r` does not cost a request a file.
const GATHER: Duration = Duration::from_millis(50);
/// A lock service that does not answer keeps nobody longer from going on without it.
const APPEARANCE: Duration = Duration::from_millis(500);

impl Vfs {
    /// Keeps the session alive; never returns.
    pub async fn keep_session(self: Arc<Self>) {
        let every = Duration::from_millis(self.cluster.session().lease_ms / 3).max(Duration::from_millis(100));
        let mut next = Instant::now() + every;
        loop {
            let reported = tokio::select! {
                () = self.release_soon.notified() => { sleep(GATHER).await; true }
                () = tokio::time::sleep_until(next) => false,
            };
            if !reported {
                next = Instant::now() + every;
            }
            let vfs = self.clone();
            // Nobody waits for it.
            tokio::task::spawn_blocking(move || vfs.shelf.sweep());
            self.renew().await;
            self.send_accesses_or_later().await;
        }
    }

    /// One renewal, and as many more as there are orphans to answer for.
    async fn renew(&self) {
        loop {
            let session = self.cluster.id();
            let released = std::mem::take(&mut *self.released.lock());
            match self.cluster.renew(released.clone()).await {
                Ok(renewed) => {
                    let closed: Vec<InodeId> = renewed.orphans.iter().copied().filter(|&ino| self.is_closed(ino)).collect();
                    // Orphans that are open here come again; only an answer moves the list on.
                    if closed.is_empty() {
                        return;
                    }
                    self.released.lock().extend(closed);
                }
                Err(e) => {
                    self.released.lock().extend(released);
                    log::warn!("renewing the session: {e}");
                    if e.kind() != ErrorKind::SessionExpired {
                        return;
                    }
                    if self.reopen_session(session).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Opens a session instead of `expired`: this client was stopped or cut off for longer than its lease.
    pub(crate) async fn reopen_session(&self, expired: SessionId) -> Result<()> {
        let reopened = self.cluster.reopen(expired).await;
        match &reopened {
            Ok(()) => {
                // The claim shall not look like that of a client which begins: files may be open from before.
                self.revision.fetch_max(1, Ordering::Relaxed);
                let files = self.ranges.forget();
                self.locks.drop_unused();
                let id = self.cluster.id();
                self.appear_to_lock_service().await;
                log::warn!(
                    "session {expired} has expired; session {id} is open instead. Write locks held before are lost, and programs' locks on {files} files"
                );
                if let Err(e) = self.shelf.note_session(id) {
                    log::warn!("{e}");
                }
            }
            Err(e) => log::error!("opening a new session: {e}"),
        }
        reopened
    }

    /// Before anything is made: new files come with their locks only once the lock service knows of the session.
    pub async fn appear_to_lock_service(&self) {
        self.cluster.appear(Duration::from_millis(self.cluster.session().lease_ms / 8).min(APPEARANCE)).await;
    }

    /// Whether a removed inode is not open here, so that it may go for good.
    fn is_closed(&self, ino: InodeId) -> bool {
        let open = self.nodes.all_of(ino).iter().any(|node| {
            let mut state = node.state.lock();
            state.removed = true;
            state.opens > 0 || state.writers > 0 || state.arriving > 0
        });
        let closed = !open && !self.handles.has_directory(ino);
        if closed {
            self.shelf.forget(ino);
        }
        closed
    }

    /// Tells the directory, soon, that a removed inode is not open here.
    pub(crate) fn let_go_if_closed(&self, ino: InodeId) {
        if self.is_closed(ino) {
            self.released.lock().push(ino);
            self.release_soon.notify_one();
        }
    }

    /// Publishes what is dirty, for at most `limit`. Returns what could not be published, in sentences; it stays in the
    /// cache directory, and the next mount of that publishes it.
    pub async fn publish_all(&self, limit: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        let mut kept = Vec::new();
        for node in self.nodes.all() {
            let Some(content) = node.state.lock().content.clone().filter(|c| c.needs_commit(false)) else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            let owned = Owned::from(&node.attributes());
            let problem = match timeout(left, self.on_behalf_of_owner(owned, self.commit(&node, &content, false))).await {
                Ok(Ok(())) => continue,
                Ok(Err(e)) => e.to_string(),
                Err(_) => "no time left".to_owned(),
            };
            let (path, file) = (self.nodes.path(&node), content.path());
            kept.push(format!("{path} (inode {}) was not published: {problem}. What was written is kept in {}", node.ino, file.display()));
        }
        kept.iter().for_each(|sentence| log::error!("{sentence}"));
        kept
    }

    /// Ends the session in order: publishes within `limit`, takes leave of the servers within `leave`. Returns what is left
    /// for the next mount of the cache directory, in sentences.
    pub async fn end(&self, limit: Duration, leave: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        if let Ok(Err(e)) = timeout(limit, self.give_births(None)).await {
            log::warn!("new files: {e}");
        }
        let mut kept = self.publish_all(deadline.saturating_duration_since(Instant::now())).await;
        let is_clean = kept.is_empty();
        self.ending.store(true, Ordering::Relaxed);
        let farewell = async {
            if self.upload_asides().await > 0 {
                log::warn!("recoverable versions stay in the cache directory");
            }
            self.send_accesses_or_later().await;
            if !self.released.lock().is_empty() {
                self.renew().await;
            }
            self.cluster.close().await
        };
        match timeout(leave, farewell).await {
            Ok(Ok(())) => {
                if let Err(e) = self.shelf.finish() {
                    log::warn!("{e}");
                }
            }
            Ok(Err(e)) => log::warn!("ending the session: {e}"),
            Err(_) => log::warn!("ending the session: no answer; it ends with its lease"),
        }
        let asides = self.shelf.asides();
        kept.extend(asides.iter().map(|a| format!("{} is kept in {} until it can be uploaded", a.note.path, a.path.display())));
        if is_clean && let Err(e) = self.shelf.save() {
            log::warn!("{e}");
        }
        kept
    }
}
