//! Rows that are committed many at a time: what the journal notes need not be in the database before its answer.
//!
//! It owns what is left for later, and shows it as if it were committed; whose rows these are it does not know. A row that
//! is left for later ends with the process: whoever leaves it sees to it that it is made again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use dfs_common::Result;
use parking_lot::Mutex;

use crate::store::{Batch, Durability, Key, Overlay, Store, Value, View};

/// Keys with their new values; `None` deletes.
pub(super) type Changes = BTreeMap<Key, Option<Value>>;

/// So many rows are committed together, which holds up others for about a millisecond.
const MOST: usize = 256;

/// When a change is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Before the answer, with what was left for later.
    Now(Durability),
    /// With others.
    Later,
}

/// Rows of a store, and those that will be.
#[derive(Debug)]
pub(super) struct Behind {
    store: Arc<dyn Store>,
    /// Held from reading to committing what follows from it.
    changing: Mutex<()>,
    /// Changed only by who holds that.
    later: Mutex<Changes>,
}

impl Behind {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, changing: Mutex::default(), later: Mutex::default() }
    }

    /// Makes the changes that `make` decides on, from rows that nobody changes meanwhile; returns what else it says.
    pub(super) fn change<T>(&self, when: When, make: impl FnOnce(&dyn View) -> Result<(Changes, T)>) -> Result<T> {
        let _changing = self.changing.lock();
        match when {
            When::Now(durability) => {
                let (changes, answer) = make(self)?;
                self.commit(changes, durability)?;
                Ok(answer)
            }
            When::Later => {
                // One lock of the database for all that is read.
                let (changes, answer) = make(&Above { later: &self.later, below: &*self.store.snapshot() })?;
                let mut later = self.later.lock();
                later.extend(changes);
                let is_full = later.len() >= MOST;
                drop(later);
                if is_full && let Err(e) = self.commit(Changes::new(), Durability::Process) {
                    log::error!("index: {e}");
                }
                Ok(answer)
            }
        }
    }

    /// Returns when the disk has what is committed.
    pub(super) fn sync(&self) -> Result<()> {
        self.store.commit(&Batch::default(), Durability::Disk).map(|_| ())
    }

    /// Commits `changes` with what was left for later, which where that fails stays so.
    fn commit(&self, changes: Changes, durability: Durability) -> Result<()> {
        let mut batch = Batch { changes: self.later.lock().clone(), ..Batch::default() };
        batch.changes.extend(changes);
        if !batch.changes.is_empty() {
            self.store.commit(&batch, durability)?;
            self.later.lock().clear();
        }
        Ok(())
    }
}

impl View for Behind {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        Above { later: &self.later, below: &*self.store }.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        Above { later: &self.later, below: &*self.store }.scan(from, to, limit)
    }
}

/// What is left for later above what is committed. What is committed between two looks has the same value in both.
struct Above<'a> {
    later: &'a Mutex<Changes>,
    below: &'a dyn View,
}

impl View for Above<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        let later = self.later.lock().get(key).cloned();
        later.map_or_else(|| self.below.get(key), Ok)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        let later = if from < to {
            self.later.lock().range::<[u8], _>(range).map(|(key, value)| (key.clone(), value.clone())).collect()
        } else {
            Changes::new()
        };
        let mut view = Overlay::new(self.below);
        view.absorb(later);
        view.scan(from, to, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn put(behind: &Behind, when: When, key: &str, value: Option<&str>) {
        let change = |_: &dyn View| Ok((Changes::from([(key.into(), value.map(Into::into))]), ()));
        behind.change(when, change).unwrap();
    }

    #[test]
    fn what_is_left_for_later_is_seen_at_once_and_committed_with_what_is_not() {
        let store = Arc::new(MemoryStore::default());
        let behind = Behind::new(store.clone());
        let now = When::Now(Durability::Process);
        put(&behind, now, "a", Some("1"));
        for (key, value) in [("a", None), ("b", Some("2")), ("c", Some("3"))] {
            put(&behind, When::Later, key, value);
        }
        let seen = |view: &dyn View| view.scan(b"a", b"z", 2).unwrap().into_iter().map(|row| row.0).collect::<Vec<_>>().concat();
        assert_eq!((seen(&behind), behind.get(b"a").unwrap(), seen(&*store)), (b"bc".to_vec(), None, b"a".to_vec()));
        behind.change(When::Later, |view| Ok((Changes::new(), assert_eq!(seen(view), b"bc")))).unwrap();
        put(&behind, now, "c", Some("4"));
        assert_eq!((seen(&*store), store.get(b"c").unwrap()), (b"bc".to_vec(), Some(b"4".to_vec())));
        assert!(behind.later.lock().is_empty());
    }

    #[test]
    fn many_are_committed_together() {
        let store = Arc::new(MemoryStore::default());
        let behind = Behind::new(store.clone());
        for n in 0..MOST {
            assert!(store.scan(&[], &[0xff], 1).unwrap().is_empty());
            put(&behind, When::Later, &n.to_string(), Some(""));
        }
        assert_eq!(store.scan(&[], &[0xff], MOST + 1).unwrap().len(), MOST);
    }
}
