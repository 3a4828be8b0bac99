//! Which servers get a file: pinned ones for a subtree, else the live ones with the
//! least used share of their space.
//!
//! What was placed since a server's last report counts as used, so that a burst of new
//! files spreads. Servers without room are taken last, not never: the commit decides.

use std::time::Duration;

use dfs_common::api::directory::Place;
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::ids::{InodeId, ROOT, ServerId};
use dfs_common::{Error, ErrorKind, Result};

use super::change::{Change, find, load};
use super::is_top;
use super::servers::{Server, Servers};
use super::tables::named;

/// What a file counts for until its server reports real numbers, in bytes.
const RECENT_FILE: u64 = 64 << 10;
/// A disk with less than this free, or an eighth of a small one, has no room.
const RESERVE: u64 = 64 << 20;

/// True where new files go elsewhere if they can.
pub(super) fn is_full(server: &Server) -> bool {
    let capacity = server.record.capacity;
    capacity.saturating_sub(server.record.used) < reserve(capacity).max(1)
}

/// Bytes of a disk of this size below which it has no room.
pub(super) fn reserve(capacity: u64) -> u64 {
    RESERVE.min(capacity / 8).max(capacity / 100)
}

/// At most `count` live servers that `allowed` lets pass, best first.
fn choose(servers: &Servers, count: usize, now: Duration, allowed: impl Fn(ServerId) -> bool) -> Vec<ServerId> {
    let rank = |server: &Server| {
        let used = u128::from(server.record.used) + u128::from(server.recent) * u128::from(RECENT_FILE);
        (is_full(server), (used << 32) / u128::from(server.record.capacity.max(1)))
    };
    let mut candidates: Vec<_> =
        servers.iter().filter(|(id, _)| servers.is_alive(*id, now) && allowed(*id)).map(|(id, server)| (rank(server), id)).collect();
    candidates.sort_unstable();
    let mut chosen: Vec<ServerId> = candidates.into_iter().take(count).map(|c| c.1).collect();
    // A primary reads and sends besides storing, so that role is spread as well.
    chosen.sort_by_key(|id| servers.get(*id).map(|server| (is_full(server), server.primaries)));
    chosen
}

fn note(servers: &mut Servers, placement: &[ServerId]) {
    for (at, id) in placement.iter().enumerate() {
        if let Some(server) = servers.get_mut(*id) {
            server.recent += 1;
            server.primaries += u64::from(at == 0);
        }
    }
}

/// Servers for a new file in `parent` (none where none is alive) and those that a pin allows (none: any).
pub(super) fn place_new(change: &mut Change<'_>, parent: InodeId) -> Result<(Vec<ServerId>, Vec<ServerId>)> {
    let pin = pinned(change, parent)?;
    let allowed = |id: ServerId| pin.is_empty() || pin.contains(&id);
    let placement = choose(&change.tables.servers, change.policy.copies as usize, change.now.clock, allowed);
    note(&mut change.tables.servers, &placement);
    Ok((placement, pin))
}

/// Names servers again for a file whose commit failed.
pub(crate) fn place(change: &mut Change<'_>, request: &Place) -> Result<Entry> {
    let inode = change.load(request.ino)?;
    if inode.kind != FileKind::File {
        return Err(Error::new(ErrorKind::Invalid, format!("inode {} is no file", request.ino)));
    }
    let (servers, now) = (&change.tables.servers, change.now.clock);
    let usable = |id: ServerId| servers.is_alive(id, now) && !request.avoid.contains(&id) && inode.may_live_on(id);
    let mut placement: Vec<ServerId> = Vec::new();
    if inode.version.0 > 0 {
        // Holders first: the primary must have the version that the next one builds on.
        placement.extend(inode.placement.iter().filter(|&&id| inode.holders.contains(&id) && usable(id)));
        let others = inode.holders.iter().filter(|&&id| usable(id) && !inode.placement.contains(&id));
        placement.extend(others);
        if placement.is_empty() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("no holder of version {} of inode {} is alive and not to be avoided", inode.version, request.ino),
            ));
        }
    }
    let copies = (change.policy.copies as usize).max(1);
    let more = choose(servers, copies, now, |id| usable(id) && !placement.contains(&id));
    placement.extend(more);
    placement.truncate(copies);
    if placement.is_empty() {
        return Err(Error::new(ErrorKind::Unavailable, format!("no file server is left for inode {}", request.ino)));
    }
    if placement == inode.placement {
        return Ok(inode.entry(request.ino));
    }
    note(&mut change.tables.servers, &placement);
    Ok(change.edit(request.ino, |inode| inode.placement = placement)?.entry(request.ino))
}

/// The servers of the nearest pin above `parent`, itself included; none where nothing pins it, or only to
/// names that no server has registered yet.
fn pinned(change: &Change<'_>, parent: InodeId) -> Result<Vec<ServerId>> {
    if change.policy.pins.is_empty() {
        return Ok(Vec::new());
    }
    let mut pins = Vec::with_capacity(change.policy.pins.len());
    for pin in &change.policy.pins {
        let mut at = Some(ROOT);
        for component in pin.path.split('/').filter(|c| !c.is_empty()) {
            at = match at {
                Some(directory) => find(&change.view, directory, component.as_bytes())?,
                None => None,
            };
        }
        pins.push((at, pin));
    }
    let mut at = parent;
    loop {
        if let Some((_, pin)) = pins.iter().find(|(place, _)| *place == Some(at)) {
            return Ok(named(&change.tables.servers, &pin.servers));
        }
        if is_top(at) {
            return Ok(Vec::new());
        }
        at = load(&change.view, at)?.parent;
    }
}
