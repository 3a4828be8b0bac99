//! What goes by policy: rows of the past and removed inodes after their time, old
//! versions after theirs, files in RECOVERED; and the oldest of all that while a file
//! server is short of space.
//!
//! Each call does a bounded step. The time comes in, as everywhere here.

use std::collections::BTreeMap;

use dfs_common::Result;
use dfs_common::api::directory::{Remove, VersionOf};
use dfs_common::attributes::Timestamp;
use dfs_common::ids::{InodeId, RECOVERED, ServerId, Version};
use dfs_common::name::Name;
use serde::{Deserialize, Serialize};

use super::change::{Change, find};
use super::keys::{self, KeyRange};
use super::past::{forget, kept_by};
use super::placement::reserve;
use super::records::{Inode, PastName, Record, VersionRecord};
use super::remove::remove;
use super::tables::{Moment, Policy, Tables};
use crate::store::{Key, View};

/// Rows that one step drops …
const STEP: usize = 100;
/// … and that it looks at.
const SLICE: usize = 1000;

/// What is older goes; `None`: nothing goes by age.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    removed: Timestamp,
    superseded: Option<Timestamp>,
    recovered: Option<Timestamp>,
}

impl Limits {
    /// As `policy` says at the time `now`.
    pub(crate) fn new(policy: &Policy, now: Timestamp) -> Self {
        let before = |age: std::time::Duration| Timestamp(now.0.saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)));
        let unless_zero = |age: std::time::Duration| (!age.is_zero()).then(|| before(age));
        Self {
            removed: before(policy.keep.removed),
            superseded: unless_zero(policy.keep.versions_for),
            recovered: unless_zero(policy.keep.recovered),
        }
    }

    /// The keys, in order of time, of rows of the past and of old versions that are over their time.
    fn ranges(&self) -> (KeyRange, Option<KeyRange>) {
        let removed = (keys::table(b't').0, keys::past_time(self.removed, u64::MAX));
        let none = VersionOf { ino: InodeId(0), version: Version(0) };
        (removed, self.superseded.map(|limit| (keys::table(b'w').0, keys::superseded(limit, none))))
    }
}

/// Whether [`expire`] has something to do.
pub(crate) fn is_due(view: &dyn View, limits: &Limits) -> Result<bool> {
    let (removed, superseded) = limits.ranges();
    for (from, to) in std::iter::once(removed).chain(superseded) {
        if !view.scan(&from, &to, 1)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Drops some of what is over its time, the oldest first.
pub(crate) fn expire(change: &mut Change<'_>, limits: &Limits) -> Result<()> {
    let ((from, to), superseded) = limits.ranges();
    for (key, value) in change.view.scan(&from, &to, STEP)? {
        forget(change, key, &PastName::decode(&value)?)?;
    }
    let Some((from, to)) = superseded else { return Ok(()) };
    for (key, _) in change.view.scan(&from, &to, STEP)? {
        let version = keys::version(keys::superseded_version(&key));
        if let Some(value) = change.view.get(&version)? {
            change.drop_version(version, &VersionRecord::decode(&value)?);
        }
        change.view.delete(key);
    }
    Ok(())
}

/// Names in RECOVERED behind `after` that are over their time, and where to go on.
pub(crate) fn old_recovered(view: &dyn View, limits: &Limits, after: Option<&Name>) -> Result<(Vec<Name>, Option<Name>)> {
    let (mut from, to) = keys::dentries(RECOVERED);
    if let Some(after) = after {
        from = behind(&keys::dentry(RECOVERED, after.as_bytes()));
    }
    let mut old = Vec::new();
    let rows = view.scan(&from, &to, SLICE)?;
    for (key, _) in &rows {
        let name = Name::new(keys::name_of(key))?;
        if is_old(view, limits, &name)? {
            old.push(name);
        }
    }
    let next = rows.last().filter(|_| rows.len() == SLICE).map(|(key, _)| Name::new(keys::name_of(key))).transpose()?;
    Ok((old, next))
}

fn is_old(view: &dyn View, limits: &Limits, name: &Name) -> Result<bool> {
    let (Some(limit), Some(ino)) = (limits.recovered, find(view, RECOVERED, name.as_bytes())?) else { return Ok(false) };
    let Some(value) = view.get(&keys::inode(ino))? else { return Ok(false) };
    let inode = Inode::decode(&value)?;
    // A change of attributes starts its time anew, as a rename into the directory does.
    Ok(!inode.is_directory() && inode.ctime < limit)
}

/// Removes `name` from RECOVERED if it is still over its time.
pub(crate) fn expire_recovered(change: &mut Change<'_>, limits: &Limits, name: &Name) -> Result<()> {
    if is_old(&change.view, limits, name)? {
        remove(change, &Remove { parent: RECOVERED, name: name.clone(), directory: false })?;
    }
    Ok(())
}

/// A server that is short of space, and the bytes that history should give back there now; 0 while earlier
/// orders to drop are not carried out.
pub(crate) type Short = (ServerId, u64);

/// The live servers that have less free than history shall leave.
pub(crate) fn short_of_space(view: &dyn View, tables: &Tables, policy: &Policy, now: Moment) -> Result<Vec<Short>> {
    let mut short = Vec::new();
    for (id, server) in tables.servers.iter().filter(|(id, _)| policy.keep.free_percent > 0 && tables.servers.is_alive(*id, now.clock)) {
        let (capacity, used) = (server.record.capacity, server.record.used);
        let wanted = (capacity / 100).saturating_mul(u64::from(policy.keep.free_percent)).max(reserve(capacity));
        let free = capacity.saturating_sub(used);
        if used > 0 && free < wanted {
            let (from, to) = keys::drop_orders(id);
            let waits = !view.scan(&from, &to, 1)?.is_empty();
            short.push((id, if waits { 0 } else { wanted - free }));
        }
    }
    Ok(short)
}

/// How far the search for what can be given back has come: what lies before is gone, or elsewhere, or open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Relief {
    removed: Key,
    superseded: Key,
    /// Some files were passed over because they were open: they are worth another search.
    pub(crate) open: bool,
}

impl Default for Relief {
    fn default() -> Self {
        Self { removed: keys::table(b't').0, superseded: keys::table(b'w').0, open: false }
    }
}

/// Drops removed files, then old versions, the oldest first, until what they took on the servers of `short` is what is
/// wanted there. What takes no space there stays. Returns how far it came.
pub(crate) fn relieve(change: &mut Change<'_>, short: &[Short], from: &Relief) -> Result<Relief> {
    let mut wanted: BTreeMap<ServerId, u64> = short.iter().copied().filter(|(_, bytes)| *bytes > 0).collect();
    let mut at = from.clone();
    let mut dropped = 0;
    let rows = change.view.scan(&at.removed, &keys::table(b't').1, SLICE)?;
    let end = rows.len() < SLICE;
    for (key, value) in rows {
        if wanted.is_empty() || dropped == STEP {
            return Ok(at);
        }
        at.removed = behind(&key);
        let row = PastName::decode(&value)?;
        let Some(orphan) = kept_by(&change.view, keys::past_number(&key), row.ino)? else { continue };
        if !orphan.sessions.is_empty() {
            at.open = true;
        } else if takes_space(&change.view, row.ino, &mut wanted)? {
            forget(change, key, &row)?;
            dropped += 1;
        }
    }
    if !end {
        return Ok(at);
    }
    for (key, _) in change.view.scan(&at.superseded, &keys::table(b'w').1, SLICE)? {
        if wanted.is_empty() || dropped == STEP {
            break;
        }
        at.superseded = behind(&key);
        let version = keys::version(keys::superseded_version(&key));
        let Some(value) = change.view.get(&version)? else { continue };
        let record = VersionRecord::decode(&value)?;
        if subtract(&mut wanted, &record) {
            change.drop_version(version, &record);
            dropped += 1;
        }
    }
    Ok(at)
}

/// The first key that can come after `key`.
fn behind(key: &[u8]) -> Key {
    [key, &[0]].concat()
}

/// Whether some version of `ino` is on one of the servers in `wanted`, from which its bytes are taken then.
fn takes_space(view: &dyn View, ino: InodeId, wanted: &mut BTreeMap<ServerId, u64>) -> Result<bool> {
    let (from, to) = keys::versions(ino);
    let mut takes = false;
    for (_, value) in view.scan(&from, &to, usize::MAX)? {
        takes |= subtract(wanted, &VersionRecord::decode(&value)?);
    }
    Ok(takes)
}

/// Takes what a version counts for from its holders' wants; whether it is on one of these servers.
fn subtract(wanted: &mut BTreeMap<ServerId, u64>, record: &VersionRecord) -> bool {
    let mut takes = false;
    for holder in &record.holders {
        if let Some(bytes) = wanted.get_mut(holder) {
            takes = true;
            *bytes = bytes.saturating_sub(record.size);
            if *bytes == 0 {
                wanted.remove(holder);
            }
        }
    }
    takes
}
