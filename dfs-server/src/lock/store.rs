//! Persists locks: a row a holder, a row a place in a queue, and the token high-water mark.
//!
//! Keys: `h` inode; `q` inode, place; `t`. Numbers are big endian, so a scan returns
//! queues in order. Values are postcard after a format byte.

use dfs_common::ids::{InodeId, Token};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Serialize, de::DeserializeOwned};

use super::state::{Effects, Holding, Place, State};
use crate::store::{Batch, Durability, Store};

const FORMAT: u8 = 1;
const TOKENS: &[u8] = b"t";
/// Rows of one page while loading.
const PAGE: usize = 1000;

fn holder_key(ino: InodeId) -> Vec<u8> {
    [b"h".as_slice(), &ino.0.to_be_bytes()].concat()
}

fn place_key(ino: InodeId, place: u64) -> Vec<u8> {
    [b"q".as_slice(), &ino.0.to_be_bytes(), &place.to_be_bytes()].concat()
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT]).expect("rows serialize")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let corrupt = |why: String| Error::new(ErrorKind::Corrupt, format!("lock database: {why}"));
    match bytes.split_first() {
        Some((&FORMAT, row)) => postcard::from_bytes(row).map_err(|e| corrupt(e.to_string())),
        Some((format, _)) => Err(corrupt(format!("a row of format {format}, which this program does not know"))),
        None => Err(corrupt("an empty row".to_owned())),
    }
}

fn number(bytes: &[u8]) -> Result<u64> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| Error::new(ErrorKind::Corrupt, "lock database: a key of a wrong length"))
}

/// Writes the rows that `effects` names as they are in `state` now.
pub(super) fn save(store: &dyn Store, state: &State, effects: &Effects) -> Result<()> {
    let mut batch = Batch::default();
    for &ino in &effects.holders {
        batch.changes.insert(holder_key(ino), state.holder(ino).map(encode));
    }
    for &(ino, place) in &effects.places {
        batch.changes.insert(place_key(ino, place), state.place(ino, place).map(encode));
    }
    if effects.tokens {
        batch.changes.insert(TOKENS.to_vec(), Some(encode(&state.reserved())));
    }
    if batch.changes.is_empty() {
        return Ok(());
    }
    store.commit(&batch, Durability::Process).map(|_| ()).map_err(|e| e.context("lock database"))
}

/// The state as it was saved.
pub(super) fn load(store: &dyn Store, lease_ms: u64, now: u64) -> Result<State> {
    let reserved = store.get(TOKENS)?.map_or(Ok(Token(0)), |row| decode(&row))?;
    let mut state = State::new(lease_ms, reserved);
    each(store, b"h", b"i", |key, row| {
        let holder: Holding = decode(row)?;
        state.restore_holder(now, InodeId(number(&key[1..])?), holder);
        Ok(())
    })?;
    each(store, b"q", b"r", |key, row| {
        let place: Place = decode(row)?;
        let (ino, number_in_queue) = key[1..].split_at_checked(8).unwrap_or_default();
        state.restore_place(now, InodeId(number(ino)?), number(number_in_queue)?, place);
        Ok(())
    })?;
    Ok(state)
}

fn each(store: &dyn Store, from: &[u8], to: &[u8], mut row: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let mut from = from.to_vec();
    loop {
        let page = store.scan(&from, to, PAGE)?;
        for (key, value) in &page {
            row(key, value)?;
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => from = [last.as_slice(), &[0]].concat(),
            _ => return Ok(()),
        }
    }
}
