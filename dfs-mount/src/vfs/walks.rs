//! Trees that are walked: once somebody lists the sub-directories of a directory one after
//! the other, the next ones are listed before they are asked for, several at a time.
//!
//! Everything here is a guess. What was listed ahead is used once, and only while the lease that came with it says that
//! nothing of the directory has changed since; otherwise it is as if nobody had asked.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dfs_common::Result;
use dfs_common::api::directory::{List, Page, PageEntry};
use dfs_common::clients::behalf;
use dfs_common::clients::steps::{self, Target};
use dfs_common::ids::InodeId;
use dfs_common::name::Name;
use futures_util::future::join;
use futures_util::stream::{self, StreamExt};
use lru::LruCache;
use parking_lot::Mutex;

use super::Vfs;
use super::leases::Stamp;
use super::node::Node;
use super::paging::PAGE;
use super::rights::scope;

/// Directories that are listed before they are asked for.
const AHEAD: usize = 8;
/// Of these, under way at a time.
const PARALLEL: usize = 4;
/// Pages that wait to be used: who goes down into a tree leaves some behind on each level.
const PAGES: NonZeroUsize = NonZeroUsize::new(16 * AHEAD).unwrap();
/// Entries of each of them, so that all together take 10 MiB at the most.
const ENTRIES: usize = PAGE / 4;
/// Directories whose sub-directories may be walked next.
const WALKS: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Sub-directories of one directory that are remembered.
const REMEMBERED: usize = 4096;
/// Sub-directories that may be passed over.
const SKIPPED: usize = 8;

/// An answer that is on its way as long as the lock is taken; `None` where it does not come.
type Slot = Arc<tokio::sync::Mutex<Option<Answer>>>;
type Taken = tokio::sync::OwnedMutexGuard<Option<Answer>>;
type Answer = (Result<Page>, Stamp);

/// Where trees are walked, and what was listed ahead.
#[derive(Debug)]
pub(super) struct Walks {
    walks: Mutex<LruCache<InodeId, Walk>>,
    pages: Mutex<LruCache<InodeId, Slot>>,
}

impl Default for Walks {
    fn default() -> Self {
        Self { walks: Mutex::new(LruCache::new(WALKS)), pages: Mutex::new(LruCache::new(PAGES)) }
    }
}

/// The sub-directories of one directory.
#[derive(Debug, Default)]
struct Walk {
    /// As they were listed, which is how most programs go through them, and as they are called.
    orders: [Vec<InodeId>; 2],
    /// Which of the orders somebody follows.
    follows: Option<usize>,
    /// How many in that order were listed, or passed over.
    listed: usize,
    /// How many were listed ahead.
    ahead: usize,
}

impl Walk {
    /// Somebody lists `ino`. Returns what shall be listed now: nothing as long as half of what was listed ahead is unused.
    fn next(&mut self, ino: InodeId) -> &[InodeId] {
        let following = self.follows.and_then(|order| {
            let next = self.orders[order].iter().skip(self.listed).take(SKIPPED).position(|following| *following == ino)?;
            Some((order, self.listed + next + 1))
        });
        let begun = || self.orders.iter().position(|order| order.first() == Some(&ino)).map(|order| (order, 1));
        let Some((order, listed)) = following.or_else(begun) else { return &[] };
        if following.is_none() {
            // Who lists the first again and again does not walk.
            if (self.follows, self.listed) == (Some(order), 1) {
                return &[];
            }
            self.ahead = 0;
        }
        (self.follows, self.listed) = (Some(order), listed);
        if self.ahead > listed + AHEAD / 2 {
            return &[];
        }
        let order = &self.orders[order];
        let (from, to) = (self.ahead.max(listed), (listed + AHEAD).min(order.len()));
        self.ahead = to;
        &order[from.min(to)..to]
    }
}

impl Walks {
    /// A page of `directory` was read, with these sub-directories; `goes_on` where it is not the first one.
    pub(super) fn listed<'a>(&self, directory: InodeId, sub_directories: impl Iterator<Item = &'a PageEntry>, goes_on: bool) {
        let mut found: Vec<&PageEntry> = sub_directories.collect();
        let mut walks = self.walks.lock();
        if !goes_on {
            walks.pop(&directory);
        }
        // A single one is no walk.
        if found.is_empty() || (found.len() == 1 && !goes_on) {
            return;
        }
        let walk = walks.get_or_insert_mut(directory, Walk::default);
        found.truncate(REMEMBERED - walk.orders[0].len().min(REMEMBERED));
        walk.orders[0].extend(found.iter().map(|row| row.entry.attributes.ino));
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        walk.orders[1].extend(found.iter().map(|row| row.entry.attributes.ino));
    }

    /// This mount has changed something in `directory`.
    pub(super) fn forget(&self, directory: InodeId) {
        self.pages.lock().pop(&directory);
    }
}

impl Vfs {
    /// The first page of a directory, which may have been listed ahead. What comes behind it is, from here on.
    pub(super) async fn first_page(self: &Arc<Self>, node: &Node) -> Answer {
        let slot = self.walks.pages.lock().pop(&node.ino);
        let Some(slot) = slot else {
            // What is asked for goes first.
            return join(self.page(node.ino, None, PAGE), async { self.list_ahead(node) }).await.0;
        };
        self.list_ahead(node);
        match self.listed_ahead(node, &slot).await {
            Some(answer) => answer,
            None => self.page(node.ino, None, PAGE).await,
        }
    }

    /// The page behind `after`, of `limit` entries at the most.
    pub(super) async fn page(&self, ino: InodeId, after: Option<Name>, limit: usize) -> Answer {
        if let Err(e) = self.give_births(Some(ino)).await {
            return (Err(e), Stamp::default());
        }
        self.ask_packed(&List { ino, after, limit: limit as u32 }).await
    }

    /// What was listed ahead, if nothing has changed since.
    async fn listed_ahead(&self, node: &Node, slot: &Slot) -> Option<Answer> {
        let (mut arrived, waited) = match slot.try_lock() {
            Ok(arrived) => (arrived, false),
            Err(_) => {
                let _noted = steps::note(|| Target::Here { what: "a listing that was asked for ahead".to_owned() });
                (slot.lock().await, true)
            }
        };
        let answer = arrived.take()?;
        let holds = match &answer.0 {
            Ok(_) => self.telling().still_holds(&answer.1, node.ino),
            // Servers that have not answered for so long are not asked for as long again.
            Err(e) => waited && e.kind().is_transient(),
        };
        holds.then_some(answer)
    }

    /// Somebody lists `node`: what comes behind it is listed, too, where that is how its directory is walked.
    fn list_ahead(self: &Arc<Self>, node: &Node) {
        let Some(parent) = node.state.lock().places.first().map(|place| place.0) else { return };
        // What comes without a lease could not be used.
        if !self.telling().believes() {
            return;
        }
        let next = match self.walks.walks.lock().get_mut(&parent) {
            Some(walk) => walk.next(node.ino).to_vec(),
            None => return,
        };
        let is_kept = |ino: &InodeId| self.nodes.current(*ino).is_some_and(|node| node.state.lock().entries.listing_kept);
        let mut pages = self.walks.pages.lock();
        let wanted = next.into_iter().filter(|ino| !is_kept(ino) && !pages.contains(ino)).collect::<Vec<_>>();
        let fetches = wanted.into_iter().map(|ino| {
            let slot = Slot::default();
            let taken = slot.clone().try_lock_owned().expect("nobody else has it yet");
            pages.put(ino, slot);
            (ino, taken)
        });
        let fetches: Vec<_> = fetches.collect();
        drop(pages);
        if fetches.is_empty() {
            return;
        }
        let (vfs, id, user) = (self.clone(), node.id, behalf::current().map(|user| user.to_keep(false)));
        let work = async move {
            let vfs = &vfs;
            let fetch = |(ino, mut slot): (InodeId, Taken)| async move { *slot = Some(vfs.page(ino, None, ENTRIES).await) };
            vfs.waits.watch("list ahead", id, stream::iter(fetches).for_each_concurrent(PARALLEL, fetch)).await;
        };
        tokio::spawn(scope(user.as_ref(), work));
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::attributes::{Attributes, Entry, FileKind, Layout};

    use super::*;

    fn inodes(range: std::ops::Range<u64>) -> Vec<InodeId> {
        range.map(InodeId).collect()
    }

    #[test]
    fn half_of_what_is_ahead_is_used_before_more_is_listed() {
        let mut walk = Walk { orders: [inodes(10..60), inodes(10..60)], ..Walk::default() };
        assert_eq!(walk.next(InodeId(20)), [], "nobody begins there");
        assert_eq!(walk.next(InodeId(10)), inodes(11..19));
        assert_eq!(walk.next(InodeId(10)), [], "to list it again is not to walk");
        for ino in 11..14 {
            assert_eq!(walk.next(InodeId(ino)), [], "{ino}");
        }
        assert_eq!(walk.next(InodeId(14)), inodes(19..23));
        // Some are passed over, and who comes back, or is elsewhere, does not go on.
        assert_eq!(walk.next(InodeId(20)), inodes(23..29));
        assert_eq!((walk.next(InodeId(16)).len(), walk.next(InodeId(50)).len()), (0, 0));
        for ino in 21..60 {
            walk.next(InodeId(ino));
        }
        assert_eq!((walk.ahead, walk.listed), (50, 50));
        assert_eq!(walk.next(InodeId(10)), inodes(11..19), "it begins anew");
    }

    #[test]
    fn whichever_order_is_begun_is_followed() {
        let walks = Walks::default();
        let row = |name: &str, ino| PageEntry {
            name: Name::new(name.as_bytes()).unwrap(),
            entry: Entry { attributes: Attributes::bare(InodeId(ino), FileKind::Directory), layout: Layout::default() },
        };
        let rows = [row("c", 5), row("a", 6), row("b", 7)];
        walks.listed(InodeId(1), rows.iter(), false);
        let next = |ino| walks.walks.lock().get_mut(&InodeId(1)).unwrap().next(InodeId(ino)).to_vec();
        assert_eq!(next(5), [InodeId(6), InodeId(7)]);
        walks.listed(InodeId(1), rows.iter(), false);
        assert_eq!(next(6), [InodeId(7), InodeId(5)]);
        walks.listed(InodeId(1), rows[..1].iter(), false);
        assert!(walks.walks.lock().get(&InodeId(1)).is_none(), "a single one");
    }
}
