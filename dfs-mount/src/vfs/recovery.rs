//! What a crash left: the lock of each file that was being written is taken over, and what
//! is new in it is published where the file has not moved on, or kept as a recoverable version.
//!
//! Nothing is decided here about bytes ([`crate::cache::restore`]), and nothing leaves the journal
//! before it is elsewhere: a crash during recovery is one more crash.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dfs_common::api::directory::{Birth, CloseSession, Make, Resolve, Versions};
use dfs_common::api::lock::{End, TakeOver};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::clients::commit::NewVersion;
use dfs_common::ids::{InodeId, SessionId, Token, Version};
use dfs_common::name::Text;
use dfs_common::{Error, ErrorKind, Result};
use tokio::time::sleep;

use super::commit::EndCommit;
use super::leases::Stamp;
use super::locks::{Held, Wait};
use super::node::Node;
use super::open::OPENING;
use super::{Caller, Vfs};
use crate::cache::Content;
use crate::cache::content::Plan;
use crate::cache::record::{Begun, Left};
use crate::cache::restore::restore;
use crate::failpoint;

/// Between two attempts while servers are away.
const RETRY: Duration = Duration::from_secs(2);

/// True where the same may succeed later, without anybody having decided otherwise.
fn may_succeed_later(e: &Error) -> bool {
    e.kind().is_transient() || matches!(e.kind(), ErrorKind::SessionExpired | ErrorKind::NoSpace)
}

impl Vfs {
    /// Brings to its end what earlier mounts of this cache left; waits for servers that are away.
    pub async fn recover(self: Arc<Self>) {
        let left = self.shelf.left();
        let ours = |run: usize| left.runs[run].cluster == self.shelf.cluster();
        if left.runs.is_empty() {
            return;
        }
        failpoint::reach("recovery.begun");
        let files: Vec<(u64, &Left)> = left.files.iter().filter(|(_, l)| ours(l.run)).map(|(file, l)| (*file, l)).collect();
        let mut sessions: Vec<SessionId> = left.runs.iter().filter(|r| r.cluster == self.shelf.cluster()).map(|r| r.session).collect();
        sessions.dedup();
        let mut locks: Vec<(InodeId, Held)> = Vec::new();
        for session in sessions {
            let taken = self.insist("the locks of the session before", || self.take_over(session)).await;
            locks.extend(taken.into_iter().filter_map(|(ino, token)| self.adopt_lock(ino, token).map(|held| (ino, held))));
        }
        failpoint::reach("recovery.taken_over");
        self.give_back_done(&mut locks, |ino| files.iter().all(|(_, l)| l.begun.ino != ino)).await;
        for (n, (file, left)) in files.iter().enumerate() {
            self.insist(&left.begun.path, || self.recover_file(*file, left)).await;
            failpoint::reach("recovery.ended");
            self.give_back_done(&mut locks, |ino| files[n + 1..].iter().all(|(_, l)| l.begun.ino != ino)).await;
        }
        if let Err(e) = self.shelf.settle() {
            log::warn!("{e}");
        }
        failpoint::reach("recovery.settled");
    }

    /// Until it is done or will never be.
    async fn insist<T: Default, F: Future<Output = Result<T>>>(&self, what: &str, attempt: impl Fn() -> F) -> T {
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(e) if may_succeed_later(&e) => log::warn!("recovery of {what}: {e}; trying again"),
                Err(e) => {
                    log::error!("recovery of {what}: {e}");
                    return T::default();
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Takes over what `from` held, and ends it, so that nobody waits for its lease.
    async fn take_over(&self, from: SessionId) -> Result<Vec<(InodeId, Token)>> {
        let taken = match self.cluster.lock.call(&TakeOver { session: self.cluster.id(), from }).await {
            Ok(taken) => taken.locks,
            Err(e) if may_succeed_later(&e) => return Err(e),
            Err(e) => {
                log::info!("session {from}: {e}; it has no locks to take over");
                Vec::new()
            }
        };
        self.cluster.directory.call(&CloseSession { session: from }).await?;
        self.cluster.lock.call(&End { session: from }).await?;
        Ok(taken)
    }

    /// Gives back those locks that were taken over and for which nothing is left to do.
    async fn give_back_done(&self, locks: &mut Vec<(InodeId, Held)>, is_done: impl Fn(InodeId) -> bool) {
        for (ino, held) in locks.extract_if(.., |(ino, _)| is_done(*ino)) {
            self.unlock(ino, held).await;
        }
    }

    async fn recover_file(&self, file: u64, left: &Left) -> Result<()> {
        let ino = left.begun.ino;
        let path = self.shelf.writing_path(ino, file);
        if !path.exists() {
            // It was published, removed or set aside, and the record of that did not come to be written.
            return self.shelf.recovered_file(file);
        }
        let known = left.clone();
        let restored = tokio::task::spawn_blocking(move || restore(&path, &known)).await;
        let content = Arc::new(restored.map_err(|e| Error::new(ErrorKind::Internal, format!("restoring: {e}")))??);
        self.shelf.note_again(&content, file);
        failpoint::reach("recovery.restored");
        if !content.is_changed() {
            self.shelf.discard(&content);
            return Ok(());
        }
        let is_whole = self.shelf.left().runs[left.run].boot == self.shelf.run().boot;
        let published = if is_whole {
            self.on_behalf_of_owner(left.begun.owned, self.publish_recovered(&left.begun, &content)).await
        } else {
            Err(Error::new(ErrorKind::Corrupt, "the machine was restarted: some of what was written may not have reached its disk"))
        };
        match published {
            Ok(version) => {
                self.stats.recovered.fetch_add(1, Ordering::Relaxed);
                log::warn!(
                    "{} (inode {ino}) was being written when this cache's last mount ended; it is published as version {version}",
                    left.begun.path
                );
                failpoint::reach("recovery.published");
                self.shelf.put_back(ino, &content)
            }
            Err(e) if may_succeed_later(&e) => Err(e),
            Err(e) => self.keep(&content, (ino, left.begun.path.clone(), left.begun.owned), &e),
        }
    }

    /// Publishes `content`, if its file is as it was when it was opened; returns the version.
    async fn publish_recovered(&self, begun: &Begun, content: &Arc<Content>) -> Result<Version> {
        let ino = begun.ino;
        let (mut entry, mut stamp) = self.ask_entry(ino).await;
        if content.version() == Version(0) && entry.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) && self.tell_of_recovered(begun).await? {
            (entry, stamp) = self.ask_entry(ino).await;
        }
        let removed = || Error::new(ErrorKind::Stale, "the file was removed");
        let entry = entry.map_err(|e| if e.kind() == ErrorKind::NotFound { removed() } else { e })?;
        if entry.attributes.nlink == 0 {
            return Err(removed());
        }
        let told = self.telling().introduce(&entry, &stamp, None);
        let node = told.node().expect("an inode has a node").clone();
        let published = {
            // Who opens it meanwhile opens what comes of this.
            let _no_opens = node.opening.take_anyway(OPENING).await;
            self.publish_alone(&node, content).await
        };
        self.forget(node.id, 1);
        published
    }

    /// Tells of a file that was made here and that nobody was told of. False where that is not so: it was removed.
    async fn tell_of_recovered(&self, begun: &Begun) -> Result<bool> {
        let Begun { ino, path, owned, .. } = begun;
        let path = Text(path.clone().into_bytes());
        let resolved = match self.cluster.directory.call(&Resolve { path, follow: false }).await {
            Err(e) if may_succeed_later(&e) => return Err(e),
            other => other.ok(),
        };
        let Some((parent, name)) = resolved.and_then(|found| found.name.filter(|_| found.entry.is_none()).map(|name| (found.parent, name))) else {
            return Ok(false);
        };
        let make = Make {
            uid: owned.uid,
            gid: owned.gid,
            birth: Some(Birth { ino: *ino, first: InodeId(0), at: self.now() }),
            ..Make::new(parent, name, FileKind::File, owned.mode)
        };
        match self.cluster.directory.call(&make).await {
            Ok(_) => Ok(true),
            Err(e) if may_succeed_later(&e) => Err(e),
            Err(e) => {
                log::info!("{}: {e}", begun.path);
                Ok(false)
            }
        }
    }

    async fn publish_alone(&self, node: &Arc<Node>, content: &Arc<Content>) -> Result<Version> {
        let (begun, now) = (content.clone(), self.now());
        let plan = tokio::task::spawn_blocking(move || begun.begin_commit(now, false)).await;
        let plan = plan.map_err(|e| Error::new(ErrorKind::Internal, format!("hashing: {e}")))??.expect("changed content has something to commit");
        let mut guard = EndCommit { content, published: None };
        let (entry, is_written) = {
            let state = node.state.lock();
            (state.entry.clone(), state.writers > 0)
        };
        let version = match self.published_before(&entry, &plan).await? {
            Some(version) => version,
            None => {
                let held = self.lock(node.lockable(), Caller::default(), Wait::Never).await.map_err(|e| match e.kind() {
                    ErrorKind::WouldBlock => Error::new(ErrorKind::Busy, "another client has the write lock"),
                    _ => e,
                })?;
                let published = if is_written || entry.attributes.version != plan.base {
                    Err(Error::new(
                        ErrorKind::Conflict,
                        format!("version {} is current by now, and this was built on {}", entry.attributes.version, plan.base),
                    ))
                } else {
                    self.publish_plan(node, content, &plan, &entry, held.token).await
                };
                self.unlock(node.ino, held).await;
                published?
            }
        };
        guard.published = Some((version, plan, false));
        Ok(version)
    }

    /// The version, where the crash came after the publication.
    async fn published_before(&self, entry: &Entry, plan: &Plan) -> Result<Option<Version>> {
        if entry.attributes.version <= plan.base {
            return Ok(None);
        }
        let hash = plan.manifest.hash();
        let kept = self.cluster.directory.call(&Versions { ino: entry.attributes.ino }).await?;
        Ok(kept.iter().find(|row| row.version > plan.base && row.manifest == hash).map(|row| row.version))
    }

    async fn publish_plan(&self, node: &Arc<Node>, content: &Arc<Content>, plan: &Plan, entry: &Entry, token: Token) -> Result<Version> {
        let new = NewVersion {
            ino: node.ino,
            token,
            base: plan.base,
            base_manifest: Some(&plan.base_manifest),
            manifest: &plan.manifest,
            mtime: plan.mtime,
            durable: false,
            interim: false,
            goes_on: false,
            set: None,
            make: None,
        };
        let claim = self.leases.lock().claim();
        let (entry, granted) = self.cluster.commit(&new, &entry.layout.placement, content.as_ref()).await?;
        let version = entry.attributes.version;
        self.changed(node, entry, &Stamp::of(claim, granted));
        self.forget_attributes(node.id);
        self.uncover(node).await;
        Ok(version)
    }
}
