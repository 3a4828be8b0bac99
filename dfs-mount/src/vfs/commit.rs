//! Publishing changes: at flush, fsync, and once more at release.

use std::sync::Arc;

use dfs_common::attributes::Entry;
use dfs_common::clients::commit::NewVersion;
use dfs_common::{Error, ErrorKind, Result};

use super::leases::Stamp;
use super::locks::Wait;
use super::node::Node;
use super::{Caller, Vfs, now};
use crate::cache::Content;
use crate::cache::content::Plan;

/// Hashing up to this many bytes of changes is done at once, more on another thread.
const HASH_INLINE: u64 = 1 << 20;

impl Vfs {
    /// Publishes what has changed in `content`; with `durable` the disks of all copies have it when this returns.
    pub(crate) async fn commit(&self, node: &Arc<Node>, content: &Arc<Content>, durable: bool) -> Result<()> {
        // What has no name is read only by those who have it open here; it ends with them.
        if !content.needs_commit(durable) || node.state.lock().removed {
            return Ok(());
        }
        let turn = content.commit.take("another upload of the file").await?;
        turn.end(self.commit_alone(node, content, durable).await)
    }

    async fn commit_alone(&self, node: &Arc<Node>, content: &Arc<Content>, durable: bool) -> Result<()> {
        let plan = if content.size() <= HASH_INLINE {
            content.begin_commit(now(), durable)?
        } else {
            let content = content.clone();
            let begun = tokio::task::spawn_blocking(move || content.begin_commit(now(), durable)).await;
            begun.map_err(|e| Error::new(ErrorKind::Internal, format!("hashing: {e}")))??
        };
        let Some(plan) = plan else { return Ok(()) };
        // Whatever happens below, writers must be let on again.
        let mut guard = EndCommit { content, published: None };
        let (entry, stamp) = match self.publish(node, content, &plan, durable).await {
            Err(e) if e.kind() == ErrorKind::NotFound && self.is_gone(node).await => {
                // Removed by others, and let go in our name after this client was cut off: as above.
                node.state.lock().removed = true;
                return Ok(());
            }
            other => other?,
        };
        guard.published = Some((entry.attributes.version, plan, durable));
        drop(guard);
        let version = entry.attributes.version;
        self.changed(node, entry, &stamp);
        {
            let mut state = node.state.lock();
            state.told = version;
            state.pages = Some(version);
        }
        self.forget_attributes(node.id);
        self.uncover(node).await;
        Ok(())
    }

    /// Whether the inode does not exist any more.
    async fn is_gone(&self, node: &Node) -> bool {
        matches!(self.ask_entry(node.ino).await, (Err(e), _) if e.kind() == ErrorKind::NotFound)
    }

    async fn publish(&self, node: &Arc<Node>, content: &Arc<Content>, plan: &Plan, durable: bool) -> Result<(Entry, Stamp)> {
        // Shares the lock that the writing handle holds; the service is not asked.
        let held = self.lock(node.ino, Caller::default(), Wait::Until(Some(self.cluster.directory.timeout()))).await?;
        let mut placement = node.state.lock().entry.layout.placement.clone();
        // A server that has what was copied makes the better primary: nothing need be sent to it.
        let origin = content.origin();
        placement.sort_by_key(|server| !origin.contains(server));
        let new = NewVersion {
            ino: node.ino,
            token: held.token,
            base: plan.base,
            base_manifest: Some(&plan.base_manifest),
            manifest: &plan.manifest,
            mtime: plan.mtime,
            durable,
            // fsync: the program goes on writing, or closes without another version.
            interim: durable,
        };
        let claim = self.leases.lock().claim();
        let published = self.cluster.commit(&new, &placement, content.as_ref()).await;
        self.unlock(node.ino, held).await;
        published.map(|(entry, granted)| (entry, Stamp::of(claim, granted)))
    }
}

/// Ends a commit on every way out.
struct EndCommit<'a> {
    content: &'a Content,
    published: Option<(dfs_common::ids::Version, Plan, bool)>,
}

impl Drop for EndCommit<'_> {
    fn drop(&mut self) {
        let published = self.published.as_ref();
        self.content.end_commit(published.map(|(version, plan, durable)| (*version, &plan.manifest, *durable)));
    }
}
