//! The ordered key-value seam below every role's state.
//!
//! An engine stores byte keys in byte order and applies a batch atomically. It knows
//! nothing of inodes or locks; roles know nothing of SQL. Engines: [`memory`] for
//! tests, [`sqlite`] embedded. A distributed one (etcd) fits the same trait.

#[cfg(test)]
mod conformance;
mod log;
pub mod memory;
pub mod overlay;
pub mod sqlite;

use std::collections::BTreeMap;
use std::fmt::Debug;

use dfs_common::Result;

pub use memory::MemoryStore;
pub use overlay::Overlay;
pub use sqlite::SqliteStore;

/// A key.
pub type Key = Vec<u8>;
/// A value.
pub type Value = Vec<u8>;

/// What a finished commit must survive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The process being killed.
    #[default]
    Process,
    /// Loss of power: the disk has it.
    Disk,
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Keys with their new values; `None` deletes.
    pub changes: BTreeMap<Key, Option<Value>>,
    /// Keys with the values that they must still have; `None`: absent. Checked before anything changes.
    pub expected: BTreeMap<Key, Option<Value>>,
}

/// What state logic reads from: an engine, or one with a batch that is not committed yet above it.
pub trait View {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Value>>;

    /// Pairs with `from <= key < to` in byte order, at most `limit`.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>>;
}

impl<V: View + ?Sized> View for &V {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        (**self).get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        (**self).scan(from, to, limit)
    }
}

/// An engine.
pub trait Store: View + Send + Sync + Debug + 'static {
    /// Applies `batch` atomically and returns the revision of this commit: higher than every one before, across
    /// restarts. `Conflict` where an expectation does not hold; then nothing has changed. With [`Durability::Disk`]
    /// all earlier commits are on the disk as well, also where the batch is empty.
    fn commit(&self, batch: &Batch, durability: Durability) -> Result<u64>;

    /// The state as it is now, for several reads in a row, which are cheaper that way and see the same state.
    /// Drop it before the next commit and before any await: meanwhile an engine may hold up all others.
    fn snapshot(&self) -> Box<dyn View + '_>;
}
