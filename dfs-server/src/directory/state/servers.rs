//! File servers: registration, heartbeats, how well each is, space.
//!
//! A server's name and address are stored; its space and when it was last heard of live
//! in memory, because the next heartbeat brings them again.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_common::api::directory::{FsStatus, Heartbeat, Liveness, RegisterServer, ServerRow, VersionOf};
use dfs_common::ids::{InodeId, ServerId};
use dfs_common::{Error, ErrorKind, Result};

use super::change::Change;
use super::keys;
use super::records::{Record, ServerRecord};
use super::tables::Tables;
use crate::store::View;

/// Heartbeats that may be missing before nothing new is placed on a server …
const SUSPECT_AFTER: u32 = 3;
/// … and before its copies do not count any more.
const DEAD_AFTER: u32 = 10;
/// The most bytes of a server's name or address.
const TEXT_MAX: usize = 255;

/// One registered server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) record: ServerRecord,
    pub(crate) heard: Duration,
    /// Files placed here lately, which its reported use does not show yet.
    pub(crate) recent: u64,
    /// Files for which it was named first lately.
    pub(crate) primaries: u64,
    /// Where the next search for missing copies starts.
    pub(crate) cursor: InodeId,
    /// Whether the last look found it dead.
    pub(crate) was_dead: bool,
}

/// Every registered server.
#[derive(Debug)]
pub(crate) struct Servers {
    rows: BTreeMap<ServerId, Server>,
    heartbeat: Duration,
}

impl Servers {
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self { rows: BTreeMap::new(), heartbeat }
    }

    pub(crate) fn insert(&mut self, id: ServerId, record: ServerRecord, now: Duration) {
        self.rows.insert(id, Server { record, heard: now, recent: 0, primaries: 0, cursor: InodeId(0), was_dead: false });
    }

    pub(crate) fn get(&self, id: ServerId) -> Option<&Server> {
        self.rows.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ServerId) -> Option<&mut Server> {
        self.rows.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ServerId, &Server)> {
        self.rows.iter().map(|(id, server)| (*id, server))
    }

    pub(crate) fn state(&self, id: ServerId, now: Duration) -> Liveness {
        let Some(server) = self.rows.get(&id) else { return Liveness::Dead };
        let idle = now.saturating_sub(server.heard);
        if idle < self.heartbeat * SUSPECT_AFTER {
            Liveness::Alive
        } else if idle < self.heartbeat * DEAD_AFTER {
            Liveness::Suspect
        } else {
            Liveness::Dead
        }
    }

    pub(crate) fn is_alive(&self, id: ServerId, now: Duration) -> bool {
        self.state(id, now) == Liveness::Alive
    }

    /// Those of `servers` whose copies count.
    pub(crate) fn living(&self, servers: &[ServerId], now: Duration) -> Vec<ServerId> {
        servers.iter().copied().filter(|&s| self.state(s, now) != Liveness::Dead).collect()
    }

    /// Every server was heard of `gap` later than noted.
    pub(crate) fn forgive(&mut self, gap: Duration) {
        self.rows.values_mut().for_each(|server| server.heard += gap);
    }

    /// Servers that became dead since the last call, or were heard of again: (id, is dead).
    pub(crate) fn transitions(&mut self, now: Duration) -> Vec<(ServerId, bool)> {
        let states: Vec<_> = self.rows.keys().map(|&id| (id, self.state(id, now) == Liveness::Dead)).collect();
        let changed = states.into_iter().filter(|&(id, dead)| self.rows.get(&id).is_some_and(|s| s.was_dead != dead)).collect::<Vec<_>>();
        for &(id, dead) in &changed {
            if let Some(server) = self.rows.get_mut(&id) {
                server.was_dead = dead;
            }
        }
        changed
    }
}

/// Registers a server, or its new address. Returns its id.
pub(crate) fn register(change: &mut Change<'_>, request: &RegisterServer) -> Result<ServerId> {
    let RegisterServer { name, store, url, capacity, used } = request;
    check(request)?;
    let (from, to) = keys::table(b'n');
    let mut known = None;
    let mut last = ServerId(0);
    for (key, value) in change.view.scan(&from, &to, usize::MAX)? {
        let (id, record) = (keys::server_of(&key), ServerRecord::decode(&value)?);
        last = id;
        if record.store == *store {
            known = Some(id);
        } else if record.name == *name {
            return Err(Error::new(ErrorKind::Exists, format!("another data directory is registered as '{name}'")));
        }
    }
    let id = known.unwrap_or(ServerId(last.0 + 1));
    let record = ServerRecord { name: name.clone(), store: store.clone(), url: url.clone(), capacity: *capacity, used: *used };
    change.view.put(keys::server(id), record.encode());
    change.effects.registered = Some((id, record));
    Ok(id)
}

fn check(request: &RegisterServer) -> Result<()> {
    let RegisterServer { name, store, url, .. } = request;
    let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
    if name.is_empty() || name.len() > TEXT_MAX || name.chars().any(char::is_control) {
        return invalid(format!("a server's name has 1 to {TEXT_MAX} printable bytes"));
    }
    if store.len() != 32 || !store.bytes().all(|b| b.is_ascii_hexdigit()) {
        return invalid("a store's name is 32 hex digits".to_owned());
    }
    if url.len() > TEXT_MAX || !(url.starts_with("http://") || url.starts_with("https://")) {
        return invalid(format!("a server's address is a http:// URL of at most {TEXT_MAX} bytes"));
    }
    Ok(())
}

/// Takes note of a heartbeat; `NotFound` for a server that is not registered.
pub(crate) fn heard(tables: &mut Tables, request: &Heartbeat, now: Duration) -> Result<()> {
    let server = tables
        .servers
        .get_mut(request.server)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("file server {} is not registered", request.server)))?;
    server.heard = now;
    (server.record.capacity, server.record.used) = (request.capacity, request.used);
    (server.recent, server.primaries) = (server.recent / 2, server.primaries / 2);
    Ok(())
}

/// Forgets orders to drop that were carried out.
pub(crate) fn confirm_dropped(change: &mut Change<'_>, server: ServerId, dropped: &[VersionOf]) -> Result<()> {
    for &what in dropped {
        let key = keys::drop_order(server, what);
        if change.view.get(&key)?.is_some() {
            change.view.delete(key);
        }
    }
    Ok(())
}

/// All servers as the wire shows them.
pub(crate) fn rows(tables: &Tables, now: Duration) -> Vec<ServerRow> {
    let row = |(id, server): (ServerId, &Server)| ServerRow {
        server: id,
        name: server.record.name.clone(),
        url: server.record.url.clone(),
        state: tables.servers.state(id, now),
        capacity: server.record.capacity,
        used: server.record.used,
        idle_ms: now.saturating_sub(server.heard).as_millis() as u64,
    };
    tables.servers.iter().map(row).collect()
}

/// Space for users: what can be stored with `copies` of everything, each on another server.
pub(crate) fn statfs(tables: &Tables, copies: u32, now: Duration) -> FsStatus {
    let (mut capacity, mut free) = (Vec::new(), Vec::new());
    for (id, server) in tables.servers.iter() {
        let ServerRecord { capacity: all, used, .. } = server.record;
        match tables.servers.state(id, now) {
            Liveness::Alive => free.push(all.saturating_sub(used)),
            // It has room, but nothing goes there before it is heard of again.
            Liveness::Suspect => free.push(0),
            Liveness::Dead => continue,
        }
        capacity.push(all);
    }
    let capacity = usable(capacity, copies);
    FsStatus { capacity, available: usable(free, copies).min(capacity), inodes: tables.inodes }
}

/// How much fits onto disks of these sizes in so many copies, no two of them on one disk; where there are fewer disks, in as many
/// copies as there are disks. That is the least of what fits where the largest 0, 1, 2… disks hold a copy of everything.
fn usable(mut disks: Vec<u64>, copies: u32) -> u64 {
    disks.sort_unstable();
    let copies = (copies.max(1) as usize).min(disks.len());
    let fits = |largest: usize| {
        let rest: u128 = disks[..disks.len() - largest].iter().map(|&disk| u128::from(disk)).sum();
        u64::try_from(rest / (copies - largest) as u128).unwrap_or(u64::MAX)
    };
    (0..copies).map(fits).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::usable;

    #[test]
    fn what_fits_is_bounded_by_the_copies_that_need_other_disks() {
        assert_eq!(usable(vec![100, 100, 100], 2), 150);
        assert_eq!(usable(vec![1000, 10, 20], 2), 30, "the large disk has a copy of all, the others share the second");
        assert_eq!(usable(vec![1000, 0], 2), 0);
        assert_eq!(usable(vec![500], 2), 500, "one copy is all there can be");
        assert_eq!(usable(vec![7, 9, 11], 1), 27);
        assert_eq!(usable(Vec::new(), 2), 0);
        assert_eq!(usable(vec![u64::MAX; 3], 1), u64::MAX);
    }
}
