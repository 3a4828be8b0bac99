//! Missing copies: who shall make which, and when a file has enough again.
//!
//! A file is noted as under-replicated when it is published with fewer copies than
//! wanted, or when a sweep after a server's death finds it. Who makes the copy follows
//! from the state alone, so repeated orders go to the same server.

use std::ops::Bound;
use std::time::Duration;

use dfs_common::api::directory::{CopyOrder, Liveness, Orders, ReportCopy, VersionOf};
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, ServerId};
use dfs_common::{Error, ErrorKind, Result};

use super::change::Change;
use super::keys;
use super::placement::is_full;
use super::records::{Inode, Record, UnderReplicated, VersionRecord};
use super::servers::rows;
use super::tables::{Policy, Tables};
use crate::store::View;

/// Orders to drop in one answer.
const DROPS: usize = 4000;
/// Orders to copy in one answer.
const COPIES: usize = 100;
/// Files that one heartbeat, or one look at the repairs, goes through.
const SLICE: usize = 500;

/// What `server` shall do.
pub(crate) fn orders(view: &dyn View, tables: &mut Tables, policy: &Policy, server: ServerId, now: Duration) -> Result<Orders> {
    let (from, to) = keys::drop_orders(server);
    let drop = view.scan(&from, &to, DROPS)?.iter().map(|(key, _)| keys::dropped_version(key)).collect();
    let start = tables.servers.get(server).map_or(InodeId(0), |s| s.cursor);
    let slice: Vec<InodeId> = tables.under.range((Bound::Excluded(start), Bound::Unbounded)).take(SLICE).copied().collect();
    let mut copy = Vec::new();
    let mut cursor = if slice.len() < SLICE { InodeId(0) } else { slice[SLICE - 1] };
    for ino in slice {
        if let Some(order) = copy_order(view, tables, policy, server, ino, now)? {
            copy.push(order);
            if copy.len() == COPIES {
                cursor = ino;
                break;
            }
        }
    }
    if let Some(server) = tables.servers.get_mut(server) {
        server.cursor = cursor;
    }
    Ok(Orders { drop, copy, servers: rows(tables, now) })
}

fn copy_order(view: &dyn View, tables: &Tables, policy: &Policy, server: ServerId, ino: InodeId, now: Duration) -> Result<Option<CopyOrder>> {
    let (Some(inode), Some(missing)) = (view.get(&keys::inode(ino))?, view.get(&keys::under_replicated(ino))?) else { return Ok(None) };
    let (inode, UnderReplicated { missing }) = (Inode::decode(&inode)?, UnderReplicated::decode(&missing)?);
    let from = tables.servers.living(&inode.holders, now);
    let (Some(manifest), false) = (inode.manifest, from.is_empty()) else { return Ok(None) };
    if !makers(tables, policy, ino, &inode, &missing, now).contains(&server) {
        return Ok(None);
    }
    Ok(Some(CopyOrder { what: VersionOf { ino, version: inode.version }, manifest: BlockHash(manifest), from }))
}

/// The servers that shall make the copies which `inode` lacks: those that were meant to have them, then
/// any with room, in an order that differs from file to file (rendezvous hashing).
fn makers(tables: &Tables, policy: &Policy, ino: InodeId, inode: &Inode, missing: &[ServerId], now: Duration) -> Vec<ServerId> {
    let lacking = inode.wanted_copies(policy.copies).saturating_sub(tables.servers.living(&inode.holders, now).len());
    // A server that is only suspect may be back in a moment: nobody takes its place yet.
    let awaited = missing.iter().filter(|&&s| tables.servers.state(s, now) == Liveness::Suspect && inode.may_live_on(s)).count();
    let lacking = lacking.saturating_sub(awaited);
    let mut candidates: Vec<_> = tables
        .servers
        .iter()
        .filter(|(id, _)| tables.servers.is_alive(*id, now) && !inode.holders.contains(id))
        .filter(|(id, _)| inode.may_live_on(*id))
        .map(|(id, server)| ((!missing.contains(&id), is_full(server), mix(ino.0 ^ (u64::from(id.0) << 40))), id))
        .collect();
    candidates.sort_unstable();
    candidates.into_iter().take(lacking).map(|c| c.1).collect()
}

/// The finalizer of SplitMix64: spreads numbers that lie side by side.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A server made a copy. One that is no longer wanted becomes an order to drop.
pub(crate) fn report_copy(change: &mut Change<'_>, request: &ReportCopy) -> Result<()> {
    let ReportCopy { server, what } = *request;
    if change.tables.servers.get(server).is_none() {
        return Err(Error::new(ErrorKind::NotFound, format!("file server {server} is not registered")));
    }
    let key = keys::version(what);
    let Some(value) = change.view.get(&key)? else {
        change.view.put(keys::drop_order(server, what), Vec::new());
        return Ok(());
    };
    let mut record = VersionRecord::decode(&value)?;
    if !record.holders.contains(&server) {
        record.holders.push(server);
        change.view.put(key, record.encode());
    }
    // An order to drop it may be left from an earlier life of the same copy.
    change.view.delete(keys::drop_order(server, what));
    let inode = change.load(what.ino)?;
    if inode.version != what.version || inode.holders.contains(&server) {
        return Ok(());
    }
    let now = change.now.clock;
    let placement = repaired_placement(change, &inode, server);
    let inode = change.edit(what.ino, |inode| {
        inode.holders.push(server);
        inode.placement = placement;
    })?;
    if change.tables.servers.living(&inode.holders, now).len() >= inode.wanted_copies(change.policy.copies) {
        change.set_missing(what.ino, None)?;
    }
    Ok(())
}

/// The placement without dead servers and with the one that has just got a copy, if there is a place.
fn repaired_placement(change: &Change<'_>, inode: &Inode, server: ServerId) -> Vec<ServerId> {
    if inode.placement.contains(&server) {
        return inode.placement.clone();
    }
    let mut placement = change.tables.servers.living(&inode.placement, change.now.clock);
    if placement.len() < inode.wanted_copies(change.policy.copies) {
        placement.push(server);
    }
    placement
}

/// Forgets those of the under-replicated files behind `from` that have enough copies, because a server is
/// back. Returns where to go on; `None` at the end.
pub(crate) fn settle(change: &mut Change<'_>, from: InodeId) -> Result<Option<InodeId>> {
    let slice: Vec<InodeId> = change.tables.under.range((Bound::Excluded(from), Bound::Unbounded)).take(SLICE).copied().collect();
    for &ino in &slice {
        let Some(value) = change.view.get(&keys::inode(ino))? else {
            change.set_missing(ino, None)?;
            continue;
        };
        let inode = Inode::decode(&value)?;
        if has_enough(change, &inode) {
            change.set_missing(ino, None)?;
        }
    }
    Ok(if slice.len() < SLICE { None } else { slice.last().copied() })
}

/// Notes files behind `from` that lack living copies. Returns where to go on; `None` at the end.
pub(crate) fn sweep(change: &mut Change<'_>, from: InodeId) -> Result<Option<InodeId>> {
    let mut start = keys::inode(from);
    start.push(0);
    let rows = change.view.scan(&start, &keys::table(b'i').1, SLICE)?;
    for (key, value) in &rows {
        let (ino, inode) = (InodeId(keys::number_of(key)), Inode::decode(value)?);
        if inode.version.0 > 0 && !change.tables.under.contains(&ino) && !has_enough(change, &inode) {
            change.set_missing(ino, Some(UnderReplicated { missing: Vec::new() }))?;
        }
    }
    Ok(rows.last().filter(|_| rows.len() == SLICE).map(|(key, _)| InodeId(keys::number_of(key))))
}

fn has_enough(change: &Change<'_>, inode: &Inode) -> bool {
    change.tables.servers.living(&inode.holders, change.now.clock).len() >= inode.wanted_copies(change.policy.copies)
}
