//! The engine for tests and trials: a map in memory, gone with the process.
//!
//! It promises the order and atomicity of [`super::Store`], and no durability at all.

use std::collections::BTreeMap;
use std::ops::Bound;

use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::{Batch, Durability, Key, Store, Value, View};

/// A store that forgets everything when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pairs: BTreeMap<Key, Value>,
    revision: u64,
}

impl View for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        Ok(self.inner.lock().pairs.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let inner = self.inner.lock();
        let range = inner.pairs.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        Ok(range.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

impl Store for MemoryStore {
    fn commit(&self, batch: &Batch, _durability: Durability) -> Result<u64> {
        let mut inner = self.inner.lock();
        if batch.expected.iter().any(|(key, value)| inner.pairs.get(key) != value.as_ref()) {
            return Err(Error::new(ErrorKind::Conflict, "a row changed since it was read"));
        }
        for (key, value) in &batch.changes {
            match value {
                Some(value) => inner.pairs.insert(key.clone(), value.clone()),
                None => inner.pairs.remove(key),
            };
        }
        inner.revision += 1;
        Ok(inner.revision)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        Box::new(self)
    }
}
