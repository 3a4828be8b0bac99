//! Numbers that a session has reserved for files which it makes where it alone may, and
//! tells of later. Each is used once: a file that is gone does not come back.

use dfs_common::api::directory::{Birth, Make, Reservation};
use dfs_common::attributes::Timestamp;
use dfs_common::ids::InodeId;
use dfs_common::{Error, ErrorKind, Result};

use super::acl;
use super::change::Change;
use super::keys;
use super::placement::place_new;
use super::records::{Inode, Record, Reserved};
use super::xattr::load_acl;
use crate::store::View;

const SGID: u32 = 0o2000;
/// How long reservations are known, in nanoseconds: a client that comes back later has lost the numbers that it did not use.
const KEPT: i64 = 7 * 24 * 3600 * 1_000_000_000;
/// Old rows that go with one reservation.
const SWEEP: usize = 4;

/// Reserves numbers in a directory; none where a new file's attributes depend on more than who makes it.
pub(super) fn reserve(change: &mut Change<'_>, parent: InodeId, directory: &Inode, count: u32) -> Result<Option<Reservation>> {
    let count = count.min(Make::MAX_RESERVED);
    if count == 0 || directory.mode & SGID != 0 || load_acl(&change.view, parent, directory, acl::DEFAULT)?.is_some() {
        return Ok(None);
    }
    sweep(change)?;
    let placements = (0..count).map(|_| place_new(change, parent).map(|(placement, _)| placement)).collect::<Result<Vec<_>>>()?;
    if placements.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    let first = InodeId(change.tables.inode_ids.take());
    (1..count).for_each(|_| {
        change.tables.inode_ids.take();
    });
    let row = Reserved { at: change.now.wall, parent, count, left: u64::MAX >> (u64::BITS - count) };
    change.view.put(keys::reserved(first), row.encode());
    Ok(Some(Reservation { first, placements }))
}

/// Uses a number for a file in `parent`. Returns when the file was made, by the service's own clock.
pub(super) fn use_number(change: &mut Change<'_>, parent: InodeId, birth: &Birth) -> Result<Timestamp> {
    let unknown = || Error::new(ErrorKind::Invalid, format!("inode {} was not reserved in directory {parent}, or too long ago", birth.ino));
    let first = if birth.first.0 == 0 { find(change, birth.ino)?.ok_or_else(unknown)? } else { birth.first };
    let key = keys::reserved(first);
    let mut row = change.view.get(&key)?.map(|value| Reserved::decode(&value)).transpose()?.ok_or_else(unknown)?;
    // Elsewhere they would be in the way of whoever made something there.
    let is_here = |at: &u64| row.parent == parent && *at < u64::from(row.count);
    let at = birth.ino.0.checked_sub(first.0).filter(is_here).ok_or_else(unknown)?;
    if row.left & (1 << at) == 0 {
        return Err(Error::new(ErrorKind::NotFound, format!("inode {} was made before, and is gone", birth.ino)));
    }
    row.left &= !(1 << at);
    // A row of which nothing is left says that its numbers were used, not that there were none.
    change.view.put(key, row.encode());
    Ok(birth.at.max(row.at).min(change.now.wall))
}

/// The first number of the reservation that may have `ino`.
fn find(change: &Change<'_>, ino: InodeId) -> Result<Option<InodeId>> {
    let from = keys::reserved(InodeId(ino.0.saturating_sub(u64::from(Make::MAX_RESERVED) - 1)));
    let to = keys::reserved(InodeId(ino.0.saturating_add(1)));
    let rows = change.view.scan(&from, &to, Make::MAX_RESERVED as usize)?;
    Ok(rows.last().map(|(key, _)| InodeId(keys::number_of(key))))
}

/// Drops the oldest rows, if they are too old.
fn sweep(change: &mut Change<'_>) -> Result<()> {
    let (from, to) = keys::table(b'b');
    for (key, value) in change.view.scan(&from, &to, SWEEP)? {
        if change.now.wall.0 - Reserved::decode(&value)?.at.0 > KEPT {
            change.view.delete(key);
        }
    }
    Ok(())
}
