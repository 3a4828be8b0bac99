//! Persists locks: a row a holder, a row a lock that is being fenced, a row a place in a
//! queue, a row an owner of ranges on a file, and the token high-water mark.
//!
//! Keys: `h` inode; `f` inode; `q` inode, place; `r` inode, session, family, number; `w`
//! inode, place; `t`. Numbers are big endian, so a scan returns queues in order. Values
//! are postcard after a format byte.

use dfs_common::api::lock::{Family, RangeOwner};
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Serialize, de::DeserializeOwned};

use super::state::{Effects, Holding, Row, State};
use crate::store::{Batch, Durability, Store};

const FORMAT: u8 = 1;
/// A holder's row: it ends with the requests that share the grant, which rows of format 1 do not have.
const HOLDER_FORMAT: u8 = 2;
const TOKENS: &[u8] = b"t";
/// Rows of one page while loading.
const PAGE: usize = 1000;

fn key(row: Row) -> Vec<u8> {
    let numbers = |kind: u8, numbers: &[u64]| [vec![kind], numbers.iter().flat_map(|n| n.to_be_bytes()).collect()].concat();
    match row {
        Row::Tokens => TOKENS.to_vec(),
        Row::Holder(ino) => numbers(b'h', &[ino.0]),
        Row::Fencing(ino) => numbers(b'f', &[ino.0]),
        Row::Place(ino, place) => numbers(b'q', &[ino.0, place]),
        Row::Range(ino, owner) => numbers(b'r', &[ino.0, owner.session.0, family_number(owner.family), owner.number]),
        Row::RangePlace(ino, place) => numbers(b'w', &[ino.0, place]),
    }
}

fn value(row: Row, state: &State) -> Option<Vec<u8>> {
    match row {
        Row::Tokens => Some(encode(FORMAT, &state.writers().reserved())),
        Row::Holder(ino) => state.writers().holder(ino).map(|row| encode(HOLDER_FORMAT, row)),
        Row::Fencing(ino) => state.writers().fencing_of(ino).map(|row| encode(FORMAT, row)),
        Row::Place(ino, place) => state.writers().place(ino, place).map(|row| encode(FORMAT, row)),
        Row::Range(ino, owner) => state.ranges().held(ino, owner).map(|row| encode(FORMAT, row)),
        Row::RangePlace(ino, place) => state.ranges().place(ino, place).map(|row| encode(FORMAT, row)),
    }
}

fn family_number(family: Family) -> u64 {
    match family {
        Family::Flock => 0,
        Family::Posix => 1,
    }
}

fn encode<T: Serialize>(format: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![format]).expect("rows serialize")
}

fn corrupt(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("lock database: {why}"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match bytes.split_first() {
        Some((&FORMAT, row)) => postcard::from_bytes(row).map_err(corrupt),
        Some((format, _)) => Err(corrupt(format!("a row of format {format}, which this program does not know"))),
        None => Err(corrupt("an empty row")),
    }
}

fn decode_holder(bytes: &[u8]) -> Result<Holding> {
    match bytes.split_first() {
        // An empty list behind it makes one of ours.
        Some((&FORMAT, _)) => decode(&[bytes, &[0]].concat()),
        Some((&HOLDER_FORMAT, row)) => postcard::from_bytes(row).map_err(corrupt),
        _ => decode(bytes),
    }
}

/// The numbers of a key behind its kind.
fn numbers<const N: usize>(key: &[u8]) -> Result<[u64; N]> {
    let wrong = || corrupt("a key of a wrong length");
    let (parts, rest) = key.get(1..).ok_or_else(wrong)?.as_chunks::<8>();
    let parts: &[[u8; 8]; N] = parts.try_into().map_err(|_| wrong())?;
    if rest.is_empty() { Ok(parts.map(u64::from_be_bytes)) } else { Err(wrong()) }
}

/// Writes the rows that `effects` names as they are in `state` now.
pub(super) fn save(store: &dyn Store, state: &State, effects: &Effects) -> Result<()> {
    if effects.rows.is_empty() {
        return Ok(());
    }
    let changes = effects.rows.iter().map(|&row| (key(row), value(row, state))).collect();
    let batch = Batch { changes, ..Batch::default() };
    store.commit(&batch, Durability::Process).map(|_| ()).map_err(|e| e.context("lock database"))
}

/// The state as it was saved.
pub(super) fn load(store: &dyn Store, lease_ms: u64, now: u64) -> Result<State> {
    let reserved = store.get(TOKENS)?.map_or(Ok(Token(0)), |row| decode(&row))?;
    let mut state = State::new(lease_ms, reserved);
    each(store, b'h', |key, row| {
        let [ino] = numbers(key)?;
        state.restore_holder(now, InodeId(ino), decode_holder(row)?);
        Ok(())
    })?;
    each(store, b'f', |key, row| {
        let [ino] = numbers(key)?;
        state.restore_fencing(InodeId(ino), decode(row)?);
        Ok(())
    })?;
    each(store, b'q', |key, row| {
        let [ino, place] = numbers(key)?;
        state.restore_place(now, InodeId(ino), place, decode(row)?);
        Ok(())
    })?;
    each(store, b'r', |key, row| {
        let [ino, session, family, number] = numbers(key)?;
        let family = if family == family_number(Family::Flock) { Family::Flock } else { Family::Posix };
        state.restore_range(now, InodeId(ino), RangeOwner { session: SessionId(session), family, number }, decode(row)?);
        Ok(())
    })?;
    each(store, b'w', |key, row| {
        let [ino, place] = numbers(key)?;
        state.restore_range_place(now, InodeId(ino), place, decode(row)?);
        Ok(())
    })?;
    Ok(state)
}

fn each(store: &dyn Store, kind: u8, mut row: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let (mut from, to) = (vec![kind], [kind + 1]);
    loop {
        let page = store.scan(&from, &to, PAGE)?;
        for (key, value) in &page {
            row(key, value)?;
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => from = [last.as_slice(), &[0]].concat(),
            _ => return Ok(()),
        }
    }
}
