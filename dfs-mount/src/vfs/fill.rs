//! Fetching what the cache file lacks: what a read or a write needs, at once and before
//! all else; the rest of a large file while it is open and already being read.

use std::sync::Arc;

use dfs_common::attributes::Entry;
use dfs_common::clients::steps::{self, Target};
use dfs_common::{ErrorKind, Result};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::Vfs;
use super::node::Node;
use super::rights::{opener, scope};
use crate::cache::Content;
use crate::cache::arriving::Claim;

/// Bytes of one fetch.
const FETCH: u64 = 4 << 20;
/// Of one fetch in the background: who reads along waits for no more than this.
const PIECE: u64 = 1 << 20;
/// Fetches under way for one file, for those who wait; and as many in the background.
const PARALLEL_FETCHES: usize = 3;
/// An open waits for a file of which no more than this is missing, and for no more.
pub(super) const AT_ONCE: u64 = 1 << 20;

impl Vfs {
    /// Fetches everything that is missing.
    pub(crate) async fn fill_all(&self, entry: &Entry, content: &Arc<Content>) -> Result<()> {
        let missing = content.missing();
        if missing.is_empty() { Ok(()) } else { self.fill(entry, content, missing).await }
    }

    /// Fetches `blocks`, unless they have arrived meanwhile.
    pub(super) async fn fill(&self, entry: &Entry, content: &Arc<Content>, blocks: Vec<u32>) -> Result<()> {
        let turn = content.fill.take("another download of the file").await?;
        turn.end(self.fill_alone(entry, content, blocks).await)
    }

    async fn fill_alone(&self, entry: &Entry, content: &Content, mut blocks: Vec<u32>) -> Result<()> {
        loop {
            blocks = content.base(&blocks).1;
            if blocks.is_empty() {
                return Ok(());
            }
            let claim = content.arriving.claim(&blocks);
            if claim.blocks.is_empty() {
                // On their way already. Should they not arrive, they can be claimed next time.
                let _noted = steps::note(|| Target::Here { what: "a download of the file in the background".to_owned() });
                content.arriving.landed(&blocks).await;
            } else {
                self.fetch_claimed(entry, content, &claim).await?;
            }
        }
    }

    async fn fetch_claimed(&self, entry: &Entry, content: &Content, claim: &Claim<'_>) -> Result<()> {
        let (manifest, missing) = content.base(&claim.blocks);
        let longest = (FETCH >> manifest.block_bits()) as u32;
        let fetches = runs(&missing, longest.max(1)).into_iter().map(|(first, last)| self.fetch_run(entry, content, first, last));
        stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES).try_collect().await
    }

    async fn fetch_run(&self, entry: &Entry, content: &Content, first: u32, last: u32) -> Result<()> {
        let ((version, manifest), mut entry) = (content.source(), entry.clone());
        // Servers keep earlier versions for a while, so one that was open before is still read as it was.
        entry.attributes.version = version;
        let bytes = match self.cluster.blocks(&entry, &manifest, first, last).await {
            // A version that only fsync made ends with the next one, which has most of its blocks.
            Err(gone) if gone.kind() == ErrorKind::Stale => {
                let (current, _) = self.ask_entry(entry.attributes.ino).await;
                match self.cluster.blocks(&current?, &manifest, first, last).await {
                    Err(e) if e.kind() == ErrorKind::Corrupt => return Err(gone),
                    other => other?,
                }
            }
            other => other?,
        };
        content.fetched(first, &bytes)
    }

    /// A read got what it needed: the rest of what is open for reading comes in the background, as long as it is open.
    pub(super) fn stream(self: &Arc<Self>, node: &Arc<Node>, content: &Arc<Content>) {
        if !content.arriving.begin_stream() {
            return;
        }
        let (vfs, node, content, opener) = (self.clone(), node.clone(), content.clone(), opener(node, false));
        let rest = async move {
            let fetches = join_all((0..PARALLEL_FETCHES).map(|_| vfs.fetch_along(&node, &content)));
            let results = vfs.waits.watch("fetch the rest", node.id, fetches).await;
            let problem = results.into_iter().find_map(Result::err);
            if let Some(e) = &problem {
                log::debug!("inode {}: the rest of it is fetched once it is read: {e}", node.ino);
            }
            content.arriving.end_stream(problem.is_some());
        };
        tokio::spawn(scope(opener.as_ref(), rest));
    }

    async fn fetch_along(&self, node: &Node, content: &Arc<Content>) -> Result<()> {
        loop {
            let entry = {
                let state = node.state.lock();
                if !state.content.as_ref().is_some_and(|open| Arc::ptr_eq(open, content)) {
                    return Ok(());
                }
                state.entry.clone()
            };
            let Some(claim) = content.claim_next(PIECE) else { return Ok(()) };
            self.fetch_claimed(&entry, content, &claim).await?;
        }
    }
}

/// Rising block numbers as runs (first, last) of at most `longest` blocks.
fn runs(blocks: &[u32], longest: u32) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &block in blocks {
        match runs.last_mut() {
            Some((first, last)) if *last + 1 == block && block - *first < longest => *last = block,
            _ => runs.push((block, block)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_whole_and_bounded() {
        assert_eq!(runs(&[0, 1, 2, 4, 5, 9], 2), [(0, 1), (2, 2), (4, 5), (9, 9)]);
        assert_eq!(runs(&[], 4), []);
    }
}
