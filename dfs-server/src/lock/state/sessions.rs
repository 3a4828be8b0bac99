//! Which sessions have something here, and until when each of them is believed to live.
//!
//! A session is known for as long as it holds or waits for something; its lease ends so
//! long after its last request. What it has is the business of the others.

use std::collections::{BTreeSet, HashMap};

use dfs_common::ids::{InodeId, SessionId};

/// Which half of the state a session has something in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Write,
    Range,
}

/// So many sessions are remembered without a look at whether they live.
const TIDY: usize = 1024;

#[derive(Clone, Debug)]
struct Session {
    seen: u64,
    /// When the session's timer looks again.
    timer: u64,
    has: BTreeSet<(Kind, InodeId)>,
}

/// The leases.
#[derive(Debug)]
pub(super) struct Sessions {
    lease_ms: u64,
    sessions: HashMap<SessionId, Session>,
    timers: BTreeSet<(u64, SessionId)>,
    /// When each session was heard of last, also those that have nothing; `None` of one that has ended.
    heard: HashMap<SessionId, Option<u64>>,
    /// [`Sessions::heard`] is tidied when it is as large as this.
    tidy_at: usize,
    /// Before this nobody knows who lives.
    since: u64,
}

impl Sessions {
    pub(super) fn new(lease_ms: u64) -> Self {
        Self { lease_ms, sessions: HashMap::new(), timers: BTreeSet::new(), heard: HashMap::new(), tidy_at: TIDY, since: 0 }
    }

    /// The service has just started: sessions that live will be heard of within a lease.
    pub(super) fn begin(&mut self, now: u64) {
        self.since = now;
    }

    /// Whether the session may live: it was heard of within a lease, or nobody can know.
    pub(super) fn may_live(&self, now: u64, session: SessionId) -> bool {
        let heard = self.heard.get(&session).copied().unwrap_or(Some(0));
        heard.is_some_and(|heard| now < heard.max(self.since) + self.lease_ms)
    }

    /// The session has ended by its own word.
    pub(super) fn ended(&mut self, session: SessionId) {
        self.heard.insert(session, None);
    }

    /// How long a session lives without a request.
    pub(super) fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// A session was heard of.
    pub(super) fn touch(&mut self, now: u64, session: SessionId) {
        self.heard.insert(session, Some(now));
        if self.heard.len() >= self.tidy_at {
            let lease = self.lease_ms;
            // One that has ended is told from one that was not heard of yet as long as that matters.
            self.heard.retain(|_, heard| now < heard.unwrap_or(self.since) + lease);
            self.tidy_at = (self.heard.len() * 2).max(TIDY);
        }
        if let Some(state) = self.sessions.get_mut(&session) {
            state.seen = now;
        }
    }

    /// The session has something on `ino` from now on.
    pub(super) fn add(&mut self, now: u64, session: SessionId, kind: Kind, ino: InodeId) {
        let (lease, timers) = (self.lease_ms, &mut self.timers);
        let entry = self.sessions.entry(session).or_insert_with(|| {
            timers.insert((now + lease, session));
            Session { seen: now, timer: now + lease, has: BTreeSet::new() }
        });
        entry.has.insert((kind, ino));
    }

    /// The session has nothing of that kind on `ino` any more; one that has nothing at all is forgotten.
    pub(super) fn remove(&mut self, session: SessionId, kind: Kind, ino: InodeId) {
        let Some(state) = self.sessions.get_mut(&session) else { return };
        state.has.remove(&(kind, ino));
        if state.has.is_empty() {
            self.timers.remove(&(state.timer, session));
            self.sessions.remove(&session);
        }
    }

    /// The files on which the session has something of that kind.
    pub(super) fn files(&self, session: SessionId, kind: Kind) -> Vec<InodeId> {
        let all = (kind, InodeId(0))..=(kind, InodeId(u64::MAX));
        self.sessions.get(&session).map_or_else(Vec::new, |state| state.has.range(all).map(|(_, ino)| *ino).collect())
    }

    /// A session whose lease is over. What it has must be taken from it before the next call.
    pub(super) fn expired(&mut self, now: u64) -> Option<SessionId> {
        while let Some(&(at, session)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, session));
            let Some(state) = self.sessions.get_mut(&session) else { continue };
            let until = state.seen + self.lease_ms;
            if until <= now {
                return Some(session);
            }
            state.timer = until;
            self.timers.insert((until, session));
        }
        None
    }

    /// Nobody could renew anything for `gap`.
    pub(super) fn forgive(&mut self, gap: u64) {
        // Timers that are due look at this, and are set anew.
        self.sessions.values_mut().for_each(|session| session.seen += gap);
        self.heard.values_mut().flatten().for_each(|heard| *heard += gap);
    }

    /// When [`Sessions::expired`] looks again.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|t| t.0)
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.sessions.len(), self.timers.len())
    }

    #[cfg(test)]
    pub(super) fn has(&self, session: SessionId, kind: Kind, ino: InodeId) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.has.contains(&(kind, ino)))
    }
}
