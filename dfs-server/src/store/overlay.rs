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
        scan_above(&self.changes, from, to, limit, |from, limit| self.below.scan(from, to, limit))
    }
}

/// At most `limit` pairs with `from <= key < to`, where `changes` lie above what `below` has: that gives at most so many
/// pairs with `key < to` from a key on.
pub(super) fn scan_above(
    changes: &BTreeMap<Key, Option<Value>>,
    from: &[u8],
    to: &[u8],
    limit: usize,
    below: impl Fn(&[u8], usize) -> Result<Vec<(Key, Value)>>,
) -> Result<Vec<(Key, Value)>> {
    if from >= to {
        return Ok(Vec::new());
    }
    if changes.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).next().is_none() {
        return below(from, limit);
    }
    let (mut found, mut from, mut page) = (Vec::new(), from.to_vec(), limit);
    while found.len() < limit {
        let pairs = below(&from, page)?;
        // Where that is all there is, changes count up to the end, else up to the last pair.
        let last = if pairs.len() < page { None } else { pairs.last().map(|pair| pair.0.clone()) };
        let end = last.as_ref().map_or(Bound::Excluded(to), |last| Bound::Included(last.as_slice()));
        let above = changes.range::<[u8], _>((Bound::Included(from.as_slice()), end));
        merge(pairs, above, limit, &mut found);
        let Some(last) = last else { break };
        from = [last.as_slice(), &[0]].concat();
        // Deletions have hidden some, perhaps many more follow.
        page = page.saturating_mul(2);
    }
    Ok(found)
}

/// Adds pairs and what `changes` make of them to `found`, in order, until that has `limit`.
fn merge<'a>(pairs: Vec<(Key, Value)>, changes: impl Iterator<Item = (&'a Key, &'a Option<Value>)>, limit: usize, found: &mut Vec<(Key, Value)>) {
    let (mut pairs, mut changes) = (pairs.into_iter().peekable(), changes.peekable());
    while found.len() < limit {
        let changed = match (pairs.peek(), changes.peek()) {
            (None, None) => return,
            (Some((key, _)), Some((changed, _))) => *changed <= key,
            (pair, _) => pair.is_none(),
        };
        if !changed {
            found.extend(pairs.next());
        } else if let Some((key, value)) = changes.next() {
            pairs.next_if(|pair| pair.0 == *key);
            found.extend(value.clone().map(|value| (key.clone(), value)));
        }
    }
}
