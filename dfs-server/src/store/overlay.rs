//! A view with changes above it that are not committed yet.
//!
//! Requests that wait together are prepared one after the other, each above what the
//! ones before it decided, and then committed as one batch. An overlay knows nothing
//! of engines; dropped, it leaves no trace.

use std::collections::BTreeMap;
use std::ops::Bound;

use dfs_common::Result;

use super::{Key, Value, View};

/// Pending changes above another view.
pub struct Overlay<'a> {
    below: &'a dyn View,
    changes: BTreeMap<Key, Option<Value>>,
}

impl std::fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("changes", &self.changes.len()).finish_non_exhaustive()
    }
}

impl<'a> Overlay<'a> {
    /// No change yet above `below`.
    pub fn new(below: &'a dyn View) -> Self {
        Self { below, changes: BTreeMap::new() }
    }

    /// Sets `key`.
    pub fn put(&mut self, key: Key, value: Value) {
        self.changes.insert(key, Some(value));
    }

    /// Removes `key`; no error where it is absent.
    pub fn delete(&mut self, key: Key) {
        self.changes.insert(key, None);
    }

    /// Takes over the changes of an overlay that lay above this one.
    pub fn absorb(&mut self, changes: BTreeMap<Key, Option<Value>>) {
        if self.changes.is_empty() {
            self.changes = changes;
        } else {
            self.changes.extend(changes);
        }
    }

    /// The changes, for a [`super::Batch`].
    pub fn into_changes(self) -> BTreeMap<Key, Option<Value>> {
        self.changes
    }
}

impl View for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.below.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = || self.changes.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        if range().next().is_none() {
            return self.below.scan(from, to, limit);
        }
        // Each deletion in the range may hide one pair below.
        let hidden = range().filter(|change| change.1.is_none()).count();
        let below = self.below.scan(from, to, limit.saturating_add(hidden))?;
        let mut merged: BTreeMap<Key, Value> = below.into_iter().collect();
        for (key, change) in range() {
            match change {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }
}
