//! What the directory keeps in memory beside the store: who was heard of when, which
//! orphans wait for whom, which files lack copies, and the numbers not yet handed out.
//!
//! All of it is rebuilt from the store at start; times start anew, so that a restart
//! costs nobody a session or a server's good name.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use dfs_common::attributes::Timestamp;
use dfs_common::ids::{InodeId, RECOVERED, ServerId, SessionId};
use dfs_common::{Error, ErrorKind, Result};

use super::aware::Aware;
use super::keys::{self, KeyRange};
use super::open::Open;
use super::records::{Number, Orphan, Record, ServerRecord, SessionRecord};
use super::servers::Servers;
use crate::store::{Key, Overlay, Value, View};

/// Rows per read while the tables are built.
const LOAD_PAGE: usize = 4096;
/// Numbers that one stored mark covers.
const RESERVE: u64 = 1024;

/// New files below a path go to certain servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// From the root; symlinks on the way are not followed.
    pub path: String,
    /// Names of file servers.
    pub servers: Vec<String>,
}

/// What is kept of the past, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Versions of each file, the current one included; at least 1.
    pub versions: u32,
    /// Of these, the ones that ceased to be current longer ago go; zero: they do not go by age.
    pub versions_for: Duration,
    /// Removed files, and what names led to; zero: neither is kept.
    pub removed: Duration,
    /// Recovered files, since they were last changed; zero: until somebody removes them.
    pub recovered: Duration,
    /// Percent of each file server's disk that old versions and removed files leave free, up to 90; 0: they take what they get.
    pub free_percent: u32,
}

impl Default for Keep {
    /// Enough to come back from a holiday; space counts for more.
    fn default() -> Self {
        let days = |count: u64| Duration::from_secs(count * 24 * 3600);
        Self { versions: 100, versions_for: days(30), removed: days(7), recovered: days(30), free_percent: 10 }
    }
}

/// What an administrator decides.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) copies: u32,
    pub(crate) keep: Keep,
    pub(crate) pins: Vec<Pin>,
}

/// Now: for people, and for leases.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moment {
    pub(crate) wall: Timestamp,
    /// Since the service started; never goes back.
    pub(crate) clock: Duration,
}

/// Hands out numbers that were never handed out before, a stored mark ahead of them.
#[derive(Debug)]
pub(crate) struct Counter {
    name: &'static str,
    next: u64,
    reserved: u64,
}

impl Counter {
    fn load(view: &dyn View, name: &'static str, first: u64) -> Result<Self> {
        let mark = view.get(&keys::counter(name))?.map(|v| Number::decode(&v)).transpose()?;
        let next = mark.map_or(first, |n| n.0);
        Ok(Self { name, next, reserved: next })
    }

    /// Moves the stored mark where fewer than `count` numbers are left below it. The new mark takes effect with [`Counter::reserved`].
    pub(crate) fn reserve(&self, count: u64, overlay: &mut Overlay<'_>) -> u64 {
        if self.reserved - self.next.min(self.reserved) >= count {
            return self.reserved;
        }
        let mark = self.next + count + RESERVE;
        overlay.put(keys::counter(self.name), Number(mark).encode());
        mark
    }

    /// The mark is stored.
    pub(crate) fn reserved(&mut self, mark: u64) {
        self.reserved = mark;
    }

    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }
}

/// A live session.
#[derive(Debug)]
pub(crate) struct LiveSession {
    pub(crate) record: SessionRecord,
    pub(crate) seen: Duration,
    /// The last orphan it was told of: the next listing goes on behind it.
    pub(crate) cursor: InodeId,
}

/// The tables.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) inode_ids: Counter,
    pub(crate) session_ids: Counter,
    /// Numbers of rows of the past, in the order in which they come.
    pub(crate) past_ids: Counter,
    pub(crate) sessions: BTreeMap<SessionId, LiveSession>,
    /// Which of them may have an inode open.
    pub(crate) aware: Aware,
    /// Which orphans wait for whom.
    pub(crate) open: Open,
    /// Sessions that expired, and when: their replies are kept for a while.
    pub(crate) expired: BTreeMap<SessionId, Timestamp>,
    pub(crate) servers: Servers,
    /// Files whose current version lacks copies.
    pub(crate) under: BTreeSet<InodeId>,
    /// Those that a name leads to or a session has open, and the two without a name.
    pub(crate) inodes: u64,
    pub(crate) orphans: u64,
    /// Removed inodes that nobody has open and that the policy keeps.
    pub(crate) kept: u64,
}

impl Tables {
    /// Reads them from `view`; everybody counts as heard of at `now`.
    pub(crate) fn load(view: &dyn View, heartbeat: Duration, now: Duration) -> Result<Self> {
        let mut tables = Self {
            inode_ids: Counter::load(view, "inode", RECOVERED.0 + 1)?,
            session_ids: Counter::load(view, "session", 1)?,
            past_ids: Counter::load(view, "past", 1)?,
            sessions: BTreeMap::new(),
            aware: Aware::new(),
            open: Open::default(),
            expired: BTreeMap::new(),
            servers: Servers::new(heartbeat),
            under: BTreeSet::new(),
            inodes: 0,
            orphans: 0,
            kept: 0,
        };
        each(view, keys::table(b'i'), |_, _| {
            tables.inodes += 1;
            Ok(())
        })?;
        each(view, keys::table(b's'), |key, value| {
            let live = LiveSession { record: SessionRecord::decode(value)?, seen: now, cursor: InodeId(0) };
            let session = SessionId(keys::number_of(key));
            tables.aware.survive(session);
            tables.sessions.insert(session, live);
            Ok(())
        })?;
        each(view, keys::table(b'e'), |key, value| {
            tables.expired.insert(SessionId(keys::number_of(key)), Timestamp(Number::decode(value)?.0.cast_signed()));
            Ok(())
        })?;
        each(view, keys::table(b'o'), |key, value| {
            let ino = InodeId(keys::number_of(key));
            let orphan = Orphan::decode(value)?;
            if orphan.sessions.is_empty() {
                tables.kept += 1;
                tables.inodes -= 1;
            } else {
                tables.orphans += 1;
                tables.open.insert(ino, &orphan);
            }
            Ok(())
        })?;
        each(view, keys::table(b'u'), |key, _| {
            tables.under.insert(InodeId(keys::number_of(key)));
            Ok(())
        })?;
        each(view, keys::table(b'n'), |key, value| {
            tables.servers.insert(keys::server_of(key), ServerRecord::decode(value)?, now);
            Ok(())
        })?;
        Ok(tables)
    }

    /// `SessionExpired` where `session` is not live; otherwise it was heard of at `now`.
    pub(crate) fn touch(&mut self, session: SessionId, now: Duration) -> Result<()> {
        match self.sessions.get_mut(&session) {
            Some(live) => {
                live.seen = now;
                Ok(())
            }
            None => Err(Error::new(ErrorKind::SessionExpired, format!("session {session} is not known here or has expired"))),
        }
    }

    /// Sessions that were not heard of for `lease`.
    pub(crate) fn silent(&self, lease: Duration, now: Duration) -> Vec<SessionId> {
        self.sessions.iter().filter(|(_, live)| now.saturating_sub(live.seen) > lease).map(|(id, _)| *id).collect()
    }

    /// A session that expired before `limit`.
    pub(crate) fn expired_before(&self, limit: Timestamp) -> Option<SessionId> {
        self.expired.iter().find(|(_, at)| **at < limit).map(|(session, _)| *session)
    }

    /// A session that has ended and still has orphans to release, with at most `limit` of them.
    pub(crate) fn left_behind(&self, limit: usize) -> Option<(SessionId, Vec<InodeId>)> {
        let (session, waiting) = self.open.waiting.iter().find(|(id, _)| !self.sessions.contains_key(id))?;
        Some((*session, waiting.iter().take(limit).copied().collect()))
    }

    /// At most `limit` orphans that wait for `session`.
    pub(crate) fn orphans_of(&self, session: SessionId, limit: usize) -> Vec<InodeId> {
        self.open.waiting.get(&session).map(|inos| inos.iter().take(limit).copied().collect()).unwrap_or_default()
    }

    /// The next orphans that wait for `session`, behind those of the last call, and whether more follow.
    /// Goes round, so that files which stay open for long do not hide the others.
    pub(crate) fn next_orphans(&mut self, session: SessionId, limit: usize) -> (Vec<InodeId>, bool) {
        let (Some(live), Some(waiting)) = (self.sessions.get_mut(&session), self.open.waiting.get(&session)) else { return (Vec::new(), false) };
        let mut behind = waiting.range((Bound::Excluded(live.cursor), Bound::Unbounded)).copied();
        let page: Vec<InodeId> = behind.by_ref().take(limit).collect();
        let more = behind.next().is_some();
        live.cursor = page.last().filter(|_| more).copied().unwrap_or_default();
        (page, more)
    }

    /// Everybody was heard of `gap` later than noted: the service itself stood still so long.
    pub(crate) fn forgive(&mut self, gap: Duration) {
        self.sessions.values_mut().for_each(|live| live.seen += gap);
        self.servers.forgive(gap);
    }

    /// Takes over what a committed change did.
    pub(crate) fn apply(&mut self, effects: super::Effects, now: Duration) {
        self.inodes = self.inodes.saturating_add_signed(effects.inodes);
        self.orphans = self.orphans.saturating_add_signed(effects.orphans);
        self.kept = self.kept.saturating_add_signed(effects.kept);
        for (ino, orphan) in &effects.orphaned {
            self.open.insert(*ino, orphan);
        }
        for (ino, session) in effects.released {
            self.open.release(ino, session);
        }
        for ino in effects.settled.iter().chain(&effects.freed) {
            self.open.settle(*ino);
        }
        for (ino, lacks) in effects.under {
            if lacks {
                self.under.insert(ino)
            } else {
                self.under.remove(&ino)
            };
        }
        for ino in effects.freed {
            self.aware.forget(ino);
        }
        if let Some((session, record)) = effects.opened {
            self.aware.open(session, !record.client.mountpoint.is_empty());
            self.sessions.insert(session, LiveSession { record, seen: now, cursor: InodeId(0) });
        }
        if let Some(session) = effects.closed {
            self.sessions.remove(&session);
            self.aware.end(session);
        }
        if let Some((session, at)) = effects.expired {
            self.expired.insert(session, at);
        }
        if let Some(session) = effects.forgotten {
            self.expired.remove(&session);
        }
        if let Some((server, record)) = effects.registered {
            self.servers.insert(server, record, now);
        }
    }
}

/// Calls `with` for each pair of `range`, page by page.
fn each(view: &dyn View, (mut from, to): KeyRange, mut with: impl FnMut(&Key, &Value) -> Result<()>) -> Result<()> {
    loop {
        let page = view.scan(&from, &to, LOAD_PAGE)?;
        for (key, value) in &page {
            with(key, value)?;
        }
        match page.into_iter().nth(LOAD_PAGE - 1) {
            Some((mut last, _)) => {
                last.push(0);
                from = last;
            }
            None => return Ok(()),
        }
    }
}

/// The server ids of `names`; names that nobody registered are left out.
pub(super) fn named(servers: &Servers, names: &[String]) -> Vec<ServerId> {
    servers.iter().filter(|(_, s)| names.contains(&s.record.name)).map(|(id, _)| id).collect()
}
