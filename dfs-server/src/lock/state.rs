//! Locks, queues and leases as pure state: functions of (state, now, request) that return
//! [`Effects`]: rows to persist and waiting connections to answer.
//!
//! Time is milliseconds on any scale that does not go back. Invariants: a file has at
//! most one holder; of those that stayed in a queue the first gets the next grant; every
//! grant has a higher token than all before it, and no token at or above the reserved
//! mark is granted before a higher mark is among the effects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dfs_common::api::lock::{Acquire, Cancel, Holder, LockRow, Owner, Release, Waiter};
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Places in the queue of one file.
pub(super) const MAX_QUEUE: usize = 10_000;
/// Files that are locked at once.
const MAX_LOCKS: usize = 1_000_000;
/// Rows of one listing.
const MAX_ROWS: usize = 10_000;
/// Bytes of a host's or a program's name.
const MAX_NAME: usize = 256;
/// Tokens that one stored high-water mark covers.
const TOKEN_STEP: u64 = 1024;
/// A grant for a place whose connection is gone passes on after this long.
pub(super) const OFFER_MS: u64 = 5_000;

/// One waiting connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Connection(pub(super) u64);

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holding {
    session: SessionId,
    request: u64,
    owner: Owner,
    token: Token,
    since: u64,
    /// Until when a grant that nobody has heard of is kept; `None` once it was answered.
    offered_until: Option<u64>,
}

/// Who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    session: SessionId,
    request: u64,
    owner: Owner,
    since: u64,
    deadline: u64,
    #[serde(skip)]
    connection: Option<Connection>,
}

impl PartialEq<(SessionId, u64)> for Place {
    fn eq(&self, other: &(SessionId, u64)) -> bool {
        (self.session, self.request) == *other
    }
}

#[derive(Clone, Debug, Default)]
struct Lock {
    holder: Option<Holding>,
    /// By place number, which rises.
    queue: BTreeMap<u64, Place>,
}

#[derive(Clone, Debug)]
struct Session {
    seen: u64,
    /// When the session's timer looks again.
    timer: u64,
    files: BTreeSet<InodeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lease(SessionId),
    Place(InodeId, u64),
    Offer(InodeId, Token),
}

/// What the driver must do after a step: persist, then answer.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Files whose holder changed.
    pub(super) holders: BTreeSet<InodeId>,
    /// Places that came or went.
    pub(super) places: BTreeSet<(InodeId, u64)>,
    /// The reserved token changed.
    pub(super) tokens: bool,
    /// Connections that stop waiting.
    pub(super) answers: Vec<(Connection, Result<Token>)>,
}

impl Effects {
    /// Adds what `other` names.
    pub(super) fn absorb(&mut self, other: Effects) {
        self.holders.extend(other.holders);
        self.places.extend(other.places);
        self.tokens |= other.tokens;
        self.answers.extend(other.answers);
    }
}

/// What became of a request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acquired {
    Granted(Token),
    /// The connection is answered later.
    Waiting,
}

/// All locks.
#[derive(Debug)]
pub(super) struct State {
    lease_ms: u64,
    locks: BTreeMap<InodeId, Lock>,
    /// Sessions that hold or wait for something.
    sessions: HashMap<SessionId, Session>,
    timers: BTreeSet<(u64, Timer)>,
    waiters: u64,
    last_place: u64,
    last_token: Token,
    reserved: Token,
}

impl State {
    /// No locks; every token up to `reserved` may have been granted before.
    pub(super) fn new(lease_ms: u64, reserved: Token) -> Self {
        Self {
            lease_ms,
            locks: BTreeMap::new(),
            sessions: HashMap::new(),
            timers: BTreeSet::new(),
            waiters: 0,
            last_place: 0,
            last_token: reserved,
            reserved,
        }
    }

    /// Takes the lock, or a place in its queue on behalf of `connection`.
    pub(super) fn acquire(&mut self, now: u64, request: &Acquire, connection: Connection) -> (Result<Acquired>, Effects) {
        let mut effects = Effects::default();
        let result = check(request).and_then(|()| {
            self.touch(now, request.session);
            self.acquire_checked(now, request, connection, &mut effects)
        });
        (result, effects)
    }

    fn acquire_checked(&mut self, now: u64, request: &Acquire, connection: Connection, effects: &mut Effects) -> Result<Acquired> {
        let (ino, who) = (request.ino, (request.session, request.request));
        let full = self.locks.len() >= MAX_LOCKS;
        let Some(lock) = self.locks.get_mut(&ino) else {
            if full {
                return Err(Error::new(ErrorKind::TooMany, format!("{MAX_LOCKS} files are locked")));
            }
            return Ok(Acquired::Granted(self.grant(now, ino, request.session, request.request, request.owner.clone(), None, effects)));
        };
        let place = lock.queue.iter().find(|(_, place)| **place == who).map(|(&number, _)| number);
        if let Some(holder) = lock.holder.as_mut().filter(|h| h.session == request.session) {
            let token = holder.token;
            // The grant now belongs to who asked last: an older request that is cancelled must not end it.
            if holder.request != request.request || holder.offered_until.is_some() {
                holder.request = request.request;
                if let Some(until) = holder.offered_until.take() {
                    self.timers.remove(&(until, Timer::Offer(ino, token)));
                }
                effects.holders.insert(ino);
            }
            if let Some(place) = place {
                self.leave(ino, place, effects);
            }
            return Ok(Acquired::Granted(token));
        }
        if request.wait_ms == 0 {
            let kind = if place.is_some() { ErrorKind::Busy } else { ErrorKind::WouldBlock };
            let problem = Error::new(kind, self.held_by(now, ino));
            if let Some(place) = place {
                self.leave(ino, place, effects);
            }
            return Err(problem);
        }
        let deadline = now + request.wait_ms;
        match place {
            Some(number) => self.take_up(ino, number, deadline, connection, effects),
            None if lock.queue.len() >= MAX_QUEUE => {
                return Err(Error::new(ErrorKind::TooMany, format!("{MAX_QUEUE} others wait for inode {ino}")));
            }
            None => {
                let (session, owner) = (request.session, request.owner.clone());
                let place = Place { session, request: request.request, owner, since: now, deadline, connection: Some(connection) };
                self.last_place += 1;
                self.enqueue(now, ino, self.last_place, place);
                effects.places.insert((ino, self.last_place));
            }
        }
        Ok(Acquired::Waiting)
    }

    /// Gives up a place, or the grant that this request was given.
    pub(super) fn cancel(&mut self, now: u64, request: &Cancel) -> Effects {
        let mut effects = Effects::default();
        self.touch(now, request.session);
        let who = (request.session, request.request);
        let Some(lock) = self.locks.get(&request.ino) else { return effects };
        if lock.holder.as_ref().is_some_and(|h| (h.session, h.request) == who) {
            self.pass_on(now, request.ino, &mut effects);
            return effects;
        }
        let place = lock.queue.iter().find(|(_, place)| **place == who).map(|(&number, _)| number);
        if let Some(connection) = place.and_then(|number| self.leave(request.ino, number, &mut effects)) {
            effects.answers.push((connection, Err(Error::new(ErrorKind::Interrupted, "the wait was cancelled"))));
        }
        effects
    }

    /// Ends a grant, if it is still the current one.
    pub(super) fn release(&mut self, now: u64, request: &Release) -> Effects {
        let mut effects = Effects::default();
        self.touch(now, request.session);
        let holder = self.locks.get(&request.ino).and_then(|lock| lock.holder.as_ref());
        if holder.is_some_and(|h| h.session == request.session && h.token == request.token) {
            self.pass_on(now, request.ino, &mut effects);
        }
        effects
    }

    /// Keeps what a session has; returns how many locks it holds.
    pub(super) fn renew(&mut self, now: u64, session: SessionId) -> u64 {
        self.touch(now, session);
        let Some(state) = self.sessions.get(&session) else { return 0 };
        let holds = |ino: &&InodeId| self.locks.get(ino).and_then(|l| l.holder.as_ref()).is_some_and(|h| h.session == session);
        state.files.iter().filter(holds).count() as u64
    }

    /// Releases everything that a session holds or waits for.
    pub(super) fn end(&mut self, now: u64, session: SessionId) -> Effects {
        let mut effects = Effects::default();
        self.drop_session(now, session, "the session has ended", &mut effects);
        effects
    }

    /// The connection of a place is gone; the place stays.
    pub(super) fn disconnected(&mut self, ino: InodeId, session: SessionId, request: u64, connection: Connection) {
        let Some(lock) = self.locks.get_mut(&ino) else { return };
        if let Some(place) = lock.queue.values_mut().find(|place| **place == (session, request)) {
            // A newer connection may have taken the place up meanwhile.
            if place.connection == Some(connection) {
                place.connection = None;
            }
        }
    }

    /// Ends leases, waits and offers whose time is over.
    pub(super) fn tick(&mut self, now: u64) -> Effects {
        let mut effects = Effects::default();
        while let Some(&(at, timer)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Lease(session) => self.lease_timer(now, session, &mut effects),
                Timer::Place(ino, number) => {
                    let message = self.held_by(now, ino);
                    if let Some(connection) = self.leave(ino, number, &mut effects) {
                        effects.answers.push((connection, Err(Error::new(ErrorKind::Busy, message))));
                    }
                }
                Timer::Offer(ino, token) => {
                    let holder = self.locks.get(&ino).and_then(|l| l.holder.as_ref());
                    if holder.is_some_and(|h| h.token == token && h.offered_until.is_some()) {
                        self.pass_on(now, ino, &mut effects);
                    }
                }
            }
        }
        effects
    }

    /// The service itself stood still for `gap`: no session could renew anything meanwhile.
    pub(super) fn forgive(&mut self, gap: u64) {
        // Timers that are due look at this, and are set anew.
        self.sessions.values_mut().for_each(|session| session.seen += gap);
    }

    /// When [`State::tick`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|t| t.0)
    }

    /// Locks with their queues, in order of inode.
    pub(super) fn list(&self, now: u64, only: Option<InodeId>) -> Vec<LockRow> {
        let from = only.unwrap_or(InodeId(0));
        let to = only.unwrap_or(InodeId(u64::MAX));
        let row = |(&ino, lock): (&InodeId, &Lock)| {
            let holder = lock.holder.as_ref()?;
            let age = |since: u64| now.saturating_sub(since);
            let holder = Holder { session: holder.session, owner: holder.owner.clone(), token: holder.token, age_ms: age(holder.since) };
            let queue = lock.queue.values().map(|p| Waiter { session: p.session, owner: p.owner.clone(), age_ms: age(p.since) }).collect();
            Some(LockRow { ino, holder, queue })
        };
        self.locks.range(from..=to).filter_map(row).take(MAX_ROWS).collect()
    }

    /// Locks held.
    pub(super) fn locks(&self) -> u64 {
        self.locks.len() as u64
    }

    /// Places in queues.
    pub(super) fn waiters(&self) -> u64 {
        self.waiters
    }

    /// The highest token granted.
    pub(super) fn last_token(&self) -> Token {
        self.last_token
    }

    /// The mark that must be stored: no token above it was granted.
    pub(super) fn reserved(&self) -> Token {
        self.reserved
    }

    /// How long a session lives without a request.
    pub(super) fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// The row of a holder.
    pub(super) fn holder(&self, ino: InodeId) -> Option<&Holding> {
        self.locks.get(&ino)?.holder.as_ref()
    }

    /// The row of a place.
    pub(super) fn place(&self, ino: InodeId, number: u64) -> Option<&Place> {
        self.locks.get(&ino)?.queue.get(&number)
    }

    /// Takes over a stored holder.
    pub(super) fn restore_holder(&mut self, now: u64, ino: InodeId, mut holder: Holding) {
        if let Some(until) = holder.offered_until.as_mut() {
            *until = now + OFFER_MS;
            self.timers.insert((*until, Timer::Offer(ino, holder.token)));
        }
        self.session_entry(now, holder.session).files.insert(ino);
        self.locks.entry(ino).or_default().holder = Some(holder);
    }

    /// Takes over a stored place, whose connection is gone.
    pub(super) fn restore_place(&mut self, now: u64, ino: InodeId, number: u64, place: Place) {
        self.last_place = self.last_place.max(number);
        self.enqueue(now, ino, number, place);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a grant, which come from a request or from a place")]
    fn grant(
        &mut self,
        now: u64,
        ino: InodeId,
        session: SessionId,
        request: u64,
        owner: Owner,
        offered_until: Option<u64>,
        effects: &mut Effects,
    ) -> Token {
        let token = Token(self.last_token.0 + 1);
        self.last_token = token;
        if token > self.reserved {
            self.reserved = Token(token.0 + TOKEN_STEP);
            effects.tokens = true;
        }
        if let Some(until) = offered_until {
            self.timers.insert((until, Timer::Offer(ino, token)));
        }
        let lock = self.locks.entry(ino).or_default();
        assert!(lock.holder.is_none(), "a lock that is granted is free");
        lock.holder = Some(Holding { session, request, owner, token, since: now, offered_until });
        self.session_entry(now, session).files.insert(ino);
        effects.holders.insert(ino);
        token
    }

    /// Ends the current grant and gives the lock to the first in line.
    fn pass_on(&mut self, now: u64, ino: InodeId, effects: &mut Effects) {
        let Some(lock) = self.locks.get_mut(&ino) else { return };
        effects.holders.insert(ino);
        if let Some(old) = lock.holder.take() {
            if let Some(until) = old.offered_until {
                self.timers.remove(&(until, Timer::Offer(ino, old.token)));
            }
            self.forget_file(old.session, ino);
        }
        let Some(lock) = self.locks.get_mut(&ino) else { return };
        let Some((number, place)) = lock.queue.pop_first() else {
            self.locks.remove(&ino);
            return;
        };
        self.waiters -= 1;
        self.timers.remove(&(place.deadline, Timer::Place(ino, number)));
        effects.places.insert((ino, number));
        let offered_until = place.connection.is_none().then_some(now + OFFER_MS);
        let token = self.grant(now, ino, place.session, place.request, place.owner, offered_until, effects);
        if let Some(connection) = place.connection {
            effects.answers.push((connection, Ok(token)));
        }
    }

    fn enqueue(&mut self, now: u64, ino: InodeId, number: u64, place: Place) {
        self.waiters += 1;
        self.timers.insert((place.deadline, Timer::Place(ino, number)));
        self.session_entry(now, place.session).files.insert(ino);
        self.locks.entry(ino).or_default().queue.insert(number, place);
    }

    /// Gives a place another connection and another deadline.
    fn take_up(&mut self, ino: InodeId, number: u64, deadline: u64, connection: Connection, effects: &mut Effects) {
        let Some(place) = self.locks.get_mut(&ino).and_then(|lock| lock.queue.get_mut(&number)) else { return };
        self.timers.remove(&(place.deadline, Timer::Place(ino, number)));
        self.timers.insert((deadline, Timer::Place(ino, number)));
        place.deadline = deadline;
        if let Some(old) = place.connection.replace(connection) {
            effects.answers.push((old, Err(Error::new(ErrorKind::Interrupted, "the same request waits on a newer connection"))));
        }
        effects.places.insert((ino, number));
    }

    /// Removes a place; returns its connection.
    fn leave(&mut self, ino: InodeId, number: u64, effects: &mut Effects) -> Option<Connection> {
        let place = self.locks.get_mut(&ino)?.queue.remove(&number)?;
        self.waiters -= 1;
        self.timers.remove(&(place.deadline, Timer::Place(ino, number)));
        effects.places.insert((ino, number));
        self.forget_file(place.session, ino);
        place.connection
    }

    /// Takes `ino` off a session that neither holds nor waits for it any more.
    fn forget_file(&mut self, session: SessionId, ino: InodeId) {
        let involved = self.locks.get(&ino).is_some_and(|lock| {
            lock.holder.as_ref().is_some_and(|h| h.session == session) || lock.queue.values().any(|place| place.session == session)
        });
        let Some(state) = self.sessions.get_mut(&session) else { return };
        if !involved {
            state.files.remove(&ino);
        }
        if state.files.is_empty() {
            self.timers.remove(&(state.timer, Timer::Lease(session)));
            self.sessions.remove(&session);
        }
    }

    fn session_entry(&mut self, now: u64, session: SessionId) -> &mut Session {
        let (lease, timers) = (self.lease_ms, &mut self.timers);
        self.sessions.entry(session).or_insert_with(|| {
            timers.insert((now + lease, Timer::Lease(session)));
            Session { seen: now, timer: now + lease, files: BTreeSet::new() }
        })
    }

    /// A session that has something was heard of.
    fn touch(&mut self, now: u64, session: SessionId) {
        if let Some(state) = self.sessions.get_mut(&session) {
            state.seen = now;
        }
    }

    fn lease_timer(&mut self, now: u64, session: SessionId, effects: &mut Effects) {
        let Some(state) = self.sessions.get_mut(&session) else { return };
        let until = state.seen + self.lease_ms;
        if until > now {
            state.timer = until;
            self.timers.insert((until, Timer::Lease(session)));
            return;
        }
        self.drop_session(now, session, "the session has expired", effects);
    }

    fn drop_session(&mut self, now: u64, session: SessionId, why: &str, effects: &mut Effects) {
        let Some(files) = self.sessions.get(&session).map(|s| s.files.clone()) else { return };
        for ino in files {
            let Some(lock) = self.locks.get(&ino) else { continue };
            let places: Vec<u64> = lock.queue.iter().filter(|(_, place)| place.session == session).map(|(&number, _)| number).collect();
            let holds = lock.holder.as_ref().is_some_and(|h| h.session == session);
            // Places first, so that the lock does not pass to the session that ends.
            for number in places {
                if let Some(connection) = self.leave(ino, number, effects) {
                    effects.answers.push((connection, Err(Error::new(ErrorKind::SessionExpired, why))));
                }
            }
            if holds {
                self.pass_on(now, ino, effects);
            }
        }
    }

    fn held_by(&self, now: u64, ino: InodeId) -> String {
        match self.locks.get(&ino).and_then(|l| l.holder.as_ref()) {
            Some(Holding { session, owner, since, .. }) => {
                let seconds = now.saturating_sub(*since) / 1000;
                format!("inode {ino} is locked by {} (pid {}) on {}, session {session}, for {seconds} s", owner.program, owner.pid, owner.host)
            }
            None => format!("inode {ino} is locked"),
        }
    }
}

fn check(request: &Acquire) -> Result<()> {
    let invalid = |what: String| Err(Error::new(ErrorKind::Invalid, what));
    if request.wait_ms > Acquire::MAX_WAIT_MS {
        return invalid(format!("a wait has at most {} ms", Acquire::MAX_WAIT_MS));
    }
    if request.owner.host.len() > MAX_NAME || request.owner.program.len() > MAX_NAME {
        return invalid(format!("host and program have at most {MAX_NAME} bytes"));
    }
    if request.ino.0 == 0 || request.session.0 == 0 {
        return invalid("inode and session are numbers above 0".to_owned());
    }
    Ok(())
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
