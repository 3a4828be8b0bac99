//! Small files that are read one after the other in a directory's order: the next ones are
//! fetched before they are opened, several at a time, so that nobody waits for a round trip
//! a file.
//!
//! Everything here is a guess. What was fetched goes on the shelf as any closed file, and an open finds out, as always,
//! whether it is the version that it wants.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dfs_common::Result;
use dfs_common::attributes::FileKind;
use dfs_common::ids::InodeId;
use dfs_common::name::Name;
use futures_util::stream::{self, StreamExt};
use lru::LruCache;
use parking_lot::Mutex;

use super::Vfs;
use super::node::Node;
use super::open::OPENING;
use crate::cache::BlockMap;

/// Files that are fetched before they are opened.
const AHEAD: usize = 16;
/// Of these, under way at a time.
const PARALLEL: usize = 4;
/// Directories that are read in order at a time.
const DIRECTORIES: NonZeroUsize = NonZeroUsize::new(32).unwrap();
/// Names that may be passed over: directories, large files.
const SKIPPED: usize = 8;

/// Where somebody reads in order.
#[derive(Debug)]
pub(super) struct Readers(Mutex<LruCache<InodeId, Reader>>);

impl Default for Readers {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(DIRECTORIES)))
    }
}

/// One directory that is being read.
#[derive(Debug)]
struct Reader {
    /// What was opened last.
    last: Name,
    /// What follows, in order, once it is known that somebody reads on; as of then.
    following: Vec<InodeId>,
    /// How many of these were opened, or passed over.
    opened: usize,
    /// How many were fetched.
    fetched: usize,
}

impl Reader {
    fn new(last: Name) -> Self {
        Self { last, following: Vec::new(), opened: 0, fetched: 0 }
    }

    /// `ino` is opened. False where that is not what follows.
    fn goes_on(&mut self, ino: InodeId) -> bool {
        let next = self.following.iter().skip(self.opened).take(SKIPPED).position(|following| *following == ino);
        self.opened += next.map_or(0, |next| next + 1);
        next.is_some()
    }

    /// What shall be fetched now: nothing as long as half of what was fetched is still to be opened.
    fn next(&mut self) -> Vec<InodeId> {
        if self.fetched > self.opened + AHEAD / 2 {
            return Vec::new();
        }
        let (from, to) = (self.fetched.max(self.opened), (self.opened + AHEAD).min(self.following.len()));
        self.fetched = to.max(from);
        self.following[from..to.max(from)].to_vec()
    }
}

impl Vfs {
    /// A small file was opened for reading; `cold` where it had to be fetched.
    pub(super) fn read_in_order(self: &Arc<Self>, node: &Node, cold: bool) {
        // By whom the rest will be read, and whether they may, is not known: servers are asked on behalf of root.
        if self.cluster.is_squashed() {
            return;
        }
        let Some((directory, name)) = node.state.lock().places.first().cloned() else { return };
        let next = {
            let mut readers = self.readers.0.lock();
            let Some(reader) = readers.get_mut(&directory) else {
                if cold {
                    readers.put(directory, Reader::new(name));
                }
                return;
            };
            if reader.goes_on(node.ino) {
                reader.last = name;
            } else if !cold {
                return;
            } else if self.follows(directory, &reader.last, &name) {
                *reader = Reader { following: self.following(directory, &name), ..Reader::new(name) };
            } else {
                *reader = Reader::new(name);
                return;
            }
            reader.next()
        };
        if !next.is_empty() {
            let vfs = self.clone();
            tokio::spawn(async move {
                let vfs = &vfs;
                let fetch = |ino| async move {
                    if let Err(e) = vfs.fetch_ahead(ino).await {
                        log::debug!("reading ahead, inode {ino}: {e}");
                    }
                };
                stream::iter(next).for_each_concurrent(PARALLEL, fetch).await;
            });
        }
    }

    /// The names in `directory` that are known, behind `name`, in order.
    fn known_behind(&self, directory: InodeId, name: &Name) -> Vec<(Name, InodeId)> {
        self.nodes.current(directory).map(|node| node.state.lock().entries.behind(name)).unwrap_or_default()
    }

    fn follows(&self, directory: InodeId, last: &Name, name: &Name) -> bool {
        last < name && self.known_behind(directory, last).iter().take(SKIPPED).any(|(known, _)| known == name)
    }

    fn following(&self, directory: InodeId, name: &Name) -> Vec<InodeId> {
        self.known_behind(directory, name).into_iter().map(|(_, ino)| ino).collect()
    }

    async fn fetch_ahead(&self, ino: InodeId) -> Result<()> {
        let Some(node) = self.nodes.current(ino) else { return Ok(()) };
        // Who opens the file meanwhile waits, and finds it here.
        let Ok(_no_opens) = node.opening.try_lock() else { return Ok(()) };
        if node.kind() != FileKind::File || node.state.lock().opens > 0 || self.shelf.has(ino) {
            return Ok(());
        }
        let Some(entry) = self.telling().known_entry(&node) else { return Ok(()) };
        let work = async {
            let Some((manifest, bytes)) = self.cluster.small(&entry).await? else { return Ok(()) };
            let content = self.shelf.fresh(ino, false)?.become_content(entry.attributes.version, BlockMap::new(manifest, false), &bytes)?;
            self.shelf.put_back(ino, &content)
        };
        self.waits.watch(OPENING, node.id, work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_is_ahead_is_opened_before_more_is_fetched() {
        let inodes = |range: std::ops::Range<u64>| range.map(InodeId).collect::<Vec<_>>();
        let mut reader = Reader { following: inodes(10..60), ..Reader::new(Name::new(b"a").unwrap()) };
        assert_eq!(reader.next(), inodes(10..26));
        for ino in 10..17 {
            assert!(reader.goes_on(InodeId(ino)));
            assert_eq!(reader.next(), [], "{ino}");
        }
        assert!(reader.goes_on(InodeId(17)));
        assert_eq!(reader.next(), inodes(26..34));
        // Some are passed over, and who comes back does not go on.
        assert!(reader.goes_on(InodeId(24)) && !reader.goes_on(InodeId(20)) && !reader.goes_on(InodeId(50)));
        for ino in 25..60 {
            assert!(reader.goes_on(InodeId(ino)));
            reader.next();
        }
        assert_eq!((reader.fetched, reader.next()), (50, Vec::new()));
    }
}
