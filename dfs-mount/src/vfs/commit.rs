//! Publishing changes: at flush, fsync, and once more at release.

use std::sync::Arc;
use std::time::Instant;

use dfs_common::api::directory::SetAttributes;
use dfs_common::attributes::Entry;
use dfs_common::clients::commit::NewVersion;
use dfs_common::ids::ServerId;
use dfs_common::{Error, ErrorKind, Result};

use super::leases::Stamp;
use super::locks::Wait;
use super::node::Node;
use super::{Caller, Vfs};
use crate::cache::Content;
use crate::cache::content::{Plan, set_aside};
use crate::failpoint;

/// Hashing up to this many bytes of changes is done at once, more on another thread …
const HASH_INLINE: u64 = 1 << 20;
/// … as is listing more than this many blocks.
const LIST_INLINE: usize = 4096;

/// Attempts to publish a file to which a mapping is stored again and again meanwhile.
const OVERTAKEN_MAX: u32 = 5;

impl Vfs {
    /// Publishes what has changed in `content`; with `durable` the disks of all copies have it when this returns.
    pub(crate) async fn commit(&self, node: &Arc<Node>, content: &Arc<Content>, durable: bool) -> Result<()> {
        if content.is_aside() {
            return Err(set_aside());
        }
        // What has no name is read only by those who have it open here; it ends with them.
        if !content.needs_commit(durable) || node.state.lock().removed {
            return self.tell(node).await;
        }
        let turn = content.commit.take("another upload of the file").await?;
        if content.is_aside() {
            return Err(set_aside());
        }
        let mut result = self.commit_alone(node, content, durable).await;
        for _ in 0..OVERTAKEN_MAX {
            // A store to a mapping came between the hash of its block and the sending.
            if !result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Invalid && content.is_mapped()) {
                break;
            }
            result = self.commit_alone(node, content, durable).await;
        }
        if let Err(e) = &result
            && is_lost(e.kind())
        {
            self.set_aside(node, content, e).await;
        }
        turn.end(result)?;
        self.tell(node).await
    }

    /// Tells of what no commit has told of: there was nothing to commit, or it was set meanwhile, or refused with the content.
    async fn tell(&self, node: &Node) -> Result<()> {
        if !node.state.lock().removed {
            self.give_birth(node).await?;
        }
        self.send_held_back(node).await
    }

    async fn commit_alone(&self, node: &Arc<Node>, content: &Arc<Content>, durable: bool) -> Result<()> {
        let (bytes, blocks) = content.commit_cost();
        let plan = if bytes <= HASH_INLINE && blocks <= LIST_INLINE {
            content.begin_commit(self.now(), durable)?
        } else {
            let (content, now) = (content.clone(), self.now());
            let begun = tokio::task::spawn_blocking(move || content.begin_commit(now, durable)).await;
            begun.map_err(|e| Error::new(ErrorKind::Internal, format!("hashing: {e}")))??
        };
        let Some(plan) = plan else { return Ok(()) };
        failpoint::reach("commit.begun");
        // Whatever happens below, writers must be let on again.
        let mut guard = EndCommit { content, published: None };
        let (entry, stamp, set) = match self.publish(node, content, &plan, durable).await {
            Err(e) if e.kind() == ErrorKind::NotFound && self.is_gone(node).await => {
                // Removed by others, and let go in our name after this client was cut off: as above, but nobody here knew.
                node.state.lock().removed = true;
                drop(guard);
                self.set_aside(node, content, &Error::new(e.kind(), "the file was removed while this client was cut off")).await;
                return Ok(());
            }
            other => other?,
        };
        failpoint::reach("commit.published");
        let was_written = content.was_written();
        guard.published = Some((entry.attributes.version, plan, durable));
        drop(guard);
        let version = entry.attributes.version;
        self.changed(node, entry, &stamp);
        Self::taken_along(node, set.as_ref());
        let has_forgotten = {
            let mut state = node.state.lock();
            state.kernel.was_told(version, Instant::now);
            // What is served from its cache file changes without the kernel's page cache.
            state.pages = state.backing.is_none().then_some(version);
            // With the write, and while the file is open for writing it is told of them for no time. A lease stands for the answers
            // on their way: those from before this commit are known to be old.
            was_written && state.leased
        };
        if !has_forgotten {
            self.forget_attributes(node.id);
        }
        self.uncover(node).await;
        failpoint::reach("commit.done");
        Ok(())
    }

    /// Whether the inode does not exist any more.
    async fn is_gone(&self, node: &Node) -> bool {
        matches!(self.ask_entry(node.ino).await, (Err(e), _) if e.kind() == ErrorKind::NotFound)
    }

    async fn publish(&self, node: &Arc<Node>, content: &Arc<Content>, plan: &Plan, durable: bool) -> Result<(Entry, Stamp, Option<SetAttributes>)> {
        let unborn = self.born_with(node).await?;
        let set = self.take_along(node).await?;
        // Shares the lock that the writing handle holds; the service is not asked.
        let held = self.lock(node.lockable(), Caller::default(), Wait::Until(Some(self.cluster.directory.timeout()))).await?;
        let placement = Self::placement(node, content);
        let mut new = NewVersion {
            ino: node.ino,
            token: held.token,
            base: plan.base,
            base_manifest: Some(&plan.base_manifest),
            manifest: &plan.manifest,
            mtime: plan.mtime,
            durable,
            // fsync: the program goes on writing, or closes without another version.
            interim: durable,
            goes_on: content.goes_on(),
            set: set.as_ref(),
            make: unborn.as_ref().map(|unborn| &unborn.make),
        };
        let (session, mut claim) = (self.cluster.id(), self.leases.lock().claim());
        let mut published = self.cluster.commit(&new, &placement, content.as_ref()).await;
        // Stopped or cut off for longer than a lease. Where nobody else has had the lock since, nothing is lost.
        if published.as_ref().is_err_and(|e| e.kind() == ErrorKind::SessionExpired) && self.reopen_session(session).await.is_ok() {
            claim = self.leases.lock().claim();
            published = self.cluster.commit(&new, &placement, content.as_ref()).await;
        }
        if new.make.is_some() && published.is_err() {
            // Nobody knows the file, so other servers cannot be named for it. By itself it has more chances.
            new.make = None;
            published = match self.give_birth(node).await {
                Ok(()) => self.cluster.commit(&new, &Self::placement(node, content), content.as_ref()).await,
                Err(e) => Err(e),
            };
        }
        if set.is_some() && published.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::Forbidden | ErrorKind::NotPermitted)) {
            // The content is not to be lost for its attributes' sake. These go by themselves, and are refused by themselves.
            new.set = None;
            published = self.cluster.commit(&new, &placement, content.as_ref()).await;
        }
        if published.as_ref().is_err_and(|e| e.kind() == ErrorKind::Fenced) {
            self.lose_lock(node.ino, held.token);
        }
        self.unlock(node.ino, held).await;
        let (set, is_new) = (new.set.cloned(), new.make.is_some());
        let (entry, granted) = published?;
        let stamp = Stamp::of(claim, granted);
        if let Some(unborn) = unborn.filter(|_| is_new) {
            self.born_with_content(node, &unborn, &entry, &stamp);
        }
        Ok((entry, stamp, set))
    }

    /// The servers for the next commit.
    fn placement(node: &Node, content: &Content) -> Vec<ServerId> {
        let mut placement = node.state.lock().entry.layout.placement.clone();
        // A server that has what was copied makes the better primary: nothing need be sent to it.
        let origin = content.origin();
        placement.sort_by_key(|server| !origin.contains(server));
        placement
    }
}

/// True where what was written will never be published under the lock that it was written under.
fn is_lost(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Fenced | ErrorKind::Conflict | ErrorKind::SessionExpired)
}

/// Ends a commit on every way out.
pub(super) struct EndCommit<'a> {
    pub(super) content: &'a Content,
    pub(super) published: Option<(dfs_common::ids::Version, Plan, bool)>,
}

impl Drop for EndCommit<'_> {
    fn drop(&mut self) {
        let published = self.published.as_ref();
        self.content.end_commit(published.map(|(version, plan, durable)| (*version, &plan.manifest, *durable)));
    }
}
