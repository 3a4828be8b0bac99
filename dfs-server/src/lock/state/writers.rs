//! Write locks and their queues: exclusive, of whole files, first come first served.
//!
//! Invariants: a lock that is known has either a holder or is being fenced; of those
//! that stayed in a queue the first gets the next grant; every grant has a higher token
//! than all before it, and no token at or above the reserved mark is handed out before a
//! higher mark is among the effects.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use dfs_common::api::lock::{Acquire, Cancel, Holder, LockRow, Owner, Release, Waiter};
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::fencing::Fencing;
use super::sessions::{Kind, Sessions};
use super::{Acquired, Connection, Effects, Ending, MAX_ROWS, NEWER, OFFER_MS, Row, Step, check, invalid};

/// Places in the queue of one file.
pub(super) const MAX_QUEUE: usize = 10_000;
/// Files that are locked at once.
const MAX_LOCKS: usize = 1_000_000;
/// Makers' locks that are remembered as given back; of others the maker is asked.
const MAX_GIVEN_BACK: usize = 65_536;
/// Requests that one grant remembers.
const MAX_REQUESTS: usize = 16;
/// Tokens that one stored high-water mark covers.
const TOKEN_STEP: u64 = 1024;
/// Stands for requests that are not remembered; a grant that has it cannot be cancelled, only released.
pub(super) const ANY_REQUEST: u64 = u64::MAX;

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::lock) struct Holding {
    pub(super) session: SessionId,
    pub(super) request: u64,
    owner: Owner,
    pub(super) token: Token,
    since: u64,
    /// Until when a grant that nobody has heard of is kept; `None` once it was answered.
    pub(super) offered_until: Option<u64>,
    /// Later requests of the session that share the grant. Last in the row: earlier programs did not write it.
    also: Vec<u64>,
    /// The holder was asked to give it back and has said that it uses it.
    #[serde(skip)]
    in_use: bool,
}

impl Holding {
    /// The lock that `maker` was given with the file, whose programs are not known here.
    pub(super) fn fresh(maker: SessionId, now: u64) -> Self {
        let owner = Owner::default();
        Self { session: maker, request: ANY_REQUEST, owner, token: Token::FRESH, since: now, offered_until: None, also: Vec::new(), in_use: false }
    }

    /// The holder says that it uses the lock. True where its row changes: nobody knew by whom.
    pub(super) fn use_by(&mut self, owner: &Owner) -> bool {
        self.in_use = true;
        let unknown = self.owner == Owner::default();
        if unknown {
            self.owner = owner.clone();
        }
        unknown
    }

    fn is_for(&self, request: u64) -> bool {
        self.request == request || self.also.contains(&request)
    }

    /// One more request shares the grant; false where it did before.
    fn share(&mut self, request: u64) -> bool {
        let request = if self.also.len() < MAX_REQUESTS { request } else { ANY_REQUEST };
        let new = !self.is_for(request);
        if new {
            self.also.push(request);
        }
        new
    }

    /// One request less; false where it was the last one.
    fn unshare(&mut self, request: u64) -> bool {
        self.also.retain(|r| *r != request);
        if self.request == request {
            match self.also.is_empty() {
                true => return false,
                false => self.request = self.also.remove(0),
            }
        }
        true
    }

    /// The grant goes to another session, which never asked for it.
    pub(super) fn hand_over(&mut self, session: SessionId) {
        self.session = session;
        self.request = ANY_REQUEST;
        self.also.clear();
    }
}

/// Who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::lock) struct Place {
    pub(super) session: SessionId,
    pub(super) request: u64,
    owner: Owner,
    since: u64,
    deadline: u64,
    #[serde(skip)]
    pub(super) connection: Option<Connection>,
    /// It waits only to hear whether the holder uses the lock.
    #[serde(skip)]
    pub(super) impatient: bool,
}

impl PartialEq<(SessionId, u64)> for Place {
    fn eq(&self, other: &(SessionId, u64)) -> bool {
        (self.session, self.request) == *other
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Lock {
    pub(super) holder: Option<Holding>,
    pub(super) fencing: Option<Fencing>,
    /// By place number, which rises.
    pub(super) queue: BTreeMap<u64, Place>,
}

impl Lock {
    /// Who has it, or had it until it was lost.
    fn last_holder(&self) -> Option<&Holding> {
        self.holder.as_ref().or(self.fencing.as_ref().map(|f| &f.former))
    }

    fn place_of(&self, session: SessionId, request: u64) -> Option<u64> {
        self.queue.iter().find(|(_, place)| **place == (session, request)).map(|(&number, _)| number)
    }

    fn involves(&self, session: SessionId) -> bool {
        self.holder.as_ref().is_some_and(|h| h.session == session) || self.queue.values().any(|place| place.session == session)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Place(InodeId, u64),
    Offer(InodeId, Token),
}

/// All write locks.
#[derive(Debug)]
pub(in crate::lock) struct Writers {
    pub(super) locks: BTreeMap<InodeId, Lock>,
    timers: BTreeSet<(u64, Timer)>,
    /// Files whose maker has given the lock back that came with them, as far as it is remembered.
    pub(super) given_back: HashSet<InodeId>,
    waiters: u64,
    pub(super) fencing: u64,
    last_place: u64,
    last_token: Token,
    reserved: Token,
}

impl Writers {
    pub(super) fn new(reserved: Token) -> Self {
        // The makers of files have that one.
        let reserved = reserved.max(Token::FRESH);
        let (locks, timers, given_back) = (BTreeMap::new(), BTreeSet::new(), HashSet::new());
        Self { locks, timers, given_back, waiters: 0, fencing: 0, last_place: 0, last_token: reserved, reserved }
    }

    pub(super) fn acquire(&mut self, step: &mut Step<'_>, request: &Acquire, connection: Connection) -> Result<Acquired> {
        check(request.session, request.ino, &request.owner, request.wait_ms)?;
        if request.request == ANY_REQUEST {
            return Err(invalid(format!("a request's number is below {ANY_REQUEST}")));
        }
        let (ino, who) = (request.ino, (request.session, request.request));
        if !self.locks.contains_key(&ino) && self.locks.len() >= MAX_LOCKS {
            return Err(Error::new(ErrorKind::TooMany, format!("{MAX_LOCKS} files are locked")));
        }
        self.hear_of_maker(step, ino, request.fresh);
        let Some(lock) = self.locks.get_mut(&ino) else {
            return Ok(Acquired::Granted(self.grant(step, ino, who, request.owner.clone(), None)));
        };
        let place = lock.place_of(request.session, request.request);
        if let Some(holder) = lock.holder.as_ref().filter(|h| h.session == request.session) {
            // Once others wait, an open on the holder's own mount stands in line behind them.
            let next = lock.queue.values().next().is_none_or(|first| *first == who);
            if next || holder.is_for(request.request) || request.unaware {
                let token = self.share(step, ino, request.request);
                if let Some(place) = place {
                    let older = self.leave(step, ino, place);
                    step.effects.answer(older, ErrorKind::Interrupted, NEWER);
                }
                return Ok(Acquired::Granted(token));
            }
        }
        let queued = lock.queue.len();
        let impatient = request.wait_ms == 0;
        // Whoever holds it may not use it: that it is asked for, unless others were first.
        let asks = queued == 0 && lock.holder.as_ref().is_none_or(|h| h.session != request.session && !h.in_use);
        if impatient && !asks {
            let kind = if place.is_some() { ErrorKind::Busy } else { ErrorKind::WouldBlock };
            let problem = Error::new(kind, self.held_by(step.now, ino));
            if let Some(place) = place {
                let older = self.leave(step, ino, place);
                step.effects.answer(older, ErrorKind::Interrupted, NEWER);
            }
            return Err(problem);
        }
        // A session that does not renew meanwhile is not to be lost by it.
        let deadline = step.now + if impatient { Acquire::IDLE_MS.min(step.sessions.lease_ms() / 2) } else { request.wait_ms };
        match place {
            Some(number) => self.take_up(step, ino, number, deadline, connection),
            None if queued >= MAX_QUEUE => {
                return Err(Error::new(ErrorKind::TooMany, format!("{MAX_QUEUE} others wait for inode {ino}")));
            }
            None => {
                let (session, owner) = (request.session, request.owner.clone());
                let place = Place { session, request: request.request, owner, since: step.now, deadline, connection: Some(connection), impatient };
                self.last_place += 1;
                self.enqueue(step, ino, self.last_place, place);
                step.effects.rows.insert(Row::Place(ino, self.last_place));
            }
        }
        Ok(Acquired::Waiting)
    }

    pub(super) fn cancel(&mut self, step: &mut Step<'_>, request: &Cancel) {
        let Some(lock) = self.locks.get_mut(&request.ino) else { return };
        if let Some(number) = lock.place_of(request.session, request.request) {
            let connection = self.leave(step, request.ino, number);
            return step.effects.answer(connection, ErrorKind::Interrupted, "the wait was cancelled");
        }
        let granted = |h: &&mut Holding| h.session == request.session && h.is_for(request.request) && request.request != ANY_REQUEST;
        let Some(holder) = lock.holder.as_mut().filter(granted) else { return };
        step.effects.rows.insert(Row::Holder(request.ino));
        // Others of the session may use the grant by now.
        if !holder.unshare(request.request) {
            self.pass_on(step, request.ino);
        }
    }

    pub(super) fn release(&mut self, step: &mut Step<'_>, request: &Release) {
        if self.holder(request.ino).is_some_and(|h| h.session == request.session && h.token == request.token) {
            self.pass_on(step, request.ino);
        }
    }

    /// How many locks a session holds.
    pub(super) fn held_by_session(&self, sessions: &Sessions, session: SessionId) -> u64 {
        let holds = |ino: &&InodeId| self.holder(**ino).is_some_and(|h| h.session == session);
        sessions.files(session, Kind::Write).iter().filter(holds).count() as u64
    }

    pub(super) fn disconnected(&mut self, waited: &Cancel, connection: Connection) {
        let Some(lock) = self.locks.get_mut(&waited.ino) else { return };
        if let Some(place) = lock.queue.values_mut().find(|place| **place == (waited.session, waited.request)) {
            // A newer connection may have taken the place up meanwhile.
            if place.connection == Some(connection) {
                place.connection = None;
            }
        }
    }

    /// Ends waits and offers whose time is over.
    pub(super) fn tick(&mut self, step: &mut Step<'_>) {
        while let Some(&(at, timer)) = self.timers.first().filter(|(at, _)| *at <= step.now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Place(ino, number) => {
                    let message = self.held_by(step.now, ino);
                    let kind = if self.place(ino, number).is_some_and(|p| p.impatient) { ErrorKind::WouldBlock } else { ErrorKind::Busy };
                    let connection = self.leave(step, ino, number);
                    step.effects.answer(connection, kind, message);
                }
                Timer::Offer(ino, token) => {
                    // Nobody ever heard of this token: no commit can carry it, and nothing needs fencing.
                    if self.holder(ino).is_some_and(|h| h.token == token && h.offered_until.is_some()) {
                        self.pass_on(step, ino);
                    }
                }
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|t| t.0)
    }

    pub(super) fn list(&self, now: u64, only: Option<InodeId>) -> Vec<LockRow> {
        let from = only.unwrap_or(InodeId(0));
        let to = only.unwrap_or(InodeId(u64::MAX));
        let row = |(&ino, lock): (&InodeId, &Lock)| {
            let holder = lock.last_holder()?;
            let age = |since: u64| now.saturating_sub(since);
            let holder = Holder { session: holder.session, owner: holder.owner.clone(), token: holder.token, age_ms: age(holder.since) };
            let queue = lock.queue.values().map(|p| Waiter { session: p.session, owner: p.owner.clone(), age_ms: age(p.since) }).collect();
            Some(LockRow { ino, holder, queue, fencing: lock.fencing.is_some() })
        };
        self.locks.range(from..=to).filter_map(row).take(MAX_ROWS).collect()
    }

    /// Locks held or being fenced.
    pub(in crate::lock) fn locks(&self) -> u64 {
        self.locks.len() as u64
    }

    /// Places in queues.
    pub(in crate::lock) fn waiters(&self) -> u64 {
        self.waiters
    }

    /// Locks that nobody gets before the directory service knows.
    pub(in crate::lock) fn fencing(&self) -> u64 {
        self.fencing
    }

    /// The highest token handed out.
    pub(in crate::lock) fn last_token(&self) -> Token {
        self.last_token
    }

    /// The mark that must be stored: no token above it was handed out.
    pub(in crate::lock) fn reserved(&self) -> Token {
        self.reserved
    }

    /// The row of a holder.
    pub(in crate::lock) fn holder(&self, ino: InodeId) -> Option<&Holding> {
        self.locks.get(&ino)?.holder.as_ref()
    }

    /// The row of a place.
    pub(in crate::lock) fn place(&self, ino: InodeId, number: u64) -> Option<&Place> {
        self.locks.get(&ino)?.queue.get(&number)
    }

    pub(super) fn restore_holder(&mut self, step: &mut Step<'_>, ino: InodeId, mut holder: Holding) {
        if let Some(until) = holder.offered_until.as_mut() {
            *until = step.now + OFFER_MS;
            self.timers.insert((*until, Timer::Offer(ino, holder.token)));
        }
        step.sessions.add(step.now, holder.session, Kind::Write, ino);
        self.locks.entry(ino).or_default().holder = Some(holder);
    }

    pub(super) fn restore_place(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64, place: Place) {
        self.last_place = self.last_place.max(number);
        self.enqueue(step, ino, number, place);
    }

    /// A token above all others.
    pub(super) fn next_token(&mut self, effects: &mut Effects) -> Token {
        self.last_token = Token(self.last_token.0 + 1);
        if self.last_token > self.reserved {
            self.reserved = Token(self.last_token.0 + TOKEN_STEP);
            effects.rows.insert(Row::Tokens);
        }
        self.last_token
    }

    fn grant(&mut self, step: &mut Step<'_>, ino: InodeId, who: (SessionId, u64), owner: Owner, offered_until: Option<u64>) -> Token {
        let token = self.next_token(&mut step.effects);
        if let Some(until) = offered_until {
            self.timers.insert((until, Timer::Offer(ino, token)));
        }
        let lock = self.locks.entry(ino).or_default();
        assert!(lock.holder.is_none() && lock.fencing.is_none(), "a lock that is granted is free");
        let (session, request) = who;
        lock.holder = Some(Holding { session, request, owner, token, since: step.now, offered_until, also: Vec::new(), in_use: false });
        if !lock.queue.is_empty() {
            step.effects.recalls.insert(session);
        }
        step.sessions.add(step.now, session, Kind::Write, ino);
        step.effects.rows.insert(Row::Holder(ino));
        token
    }

    /// The holder's session uses its grant for one more request, and so has heard of it.
    fn share(&mut self, step: &mut Step<'_>, ino: InodeId, request: u64) -> Token {
        let holder = self.locks.get_mut(&ino).and_then(|lock| lock.holder.as_mut()).expect("a lock that is shared has a holder");
        let offer = holder.offered_until.take();
        if holder.share(request) || offer.is_some() {
            step.effects.rows.insert(Row::Holder(ino));
        }
        if let Some(until) = offer {
            self.timers.remove(&(until, Timer::Offer(ino, holder.token)));
        }
        holder.token
    }

    /// Those first in line who belong to the holder's session need not wait any longer: nobody else is before them.
    pub(super) fn share_with_own(&mut self, step: &mut Step<'_>, ino: InodeId) {
        while let Some(lock) = self.locks.get(&ino) {
            let (Some(holder), Some((&number, first))) = (&lock.holder, lock.queue.first_key_value()) else { return };
            let (session, request, Some(connection)) = (first.session, first.request, first.connection) else { return };
            if session != holder.session {
                return;
            }
            let token = self.share(step, ino, request);
            self.remove_place(step, ino, number);
            step.effects.answers.push((connection, Ok(token)));
        }
    }

    /// Takes the lock from its holder without a word to anybody.
    pub(super) fn take_holder(&mut self, step: &mut Step<'_>, ino: InodeId) -> Option<Holding> {
        let old = self.locks.get_mut(&ino)?.holder.take()?;
        step.effects.rows.insert(Row::Holder(ino));
        if let Some(until) = old.offered_until {
            self.timers.remove(&(until, Timer::Offer(ino, old.token)));
        }
        if old.token == Token::FRESH {
            if self.given_back.len() >= MAX_GIVEN_BACK {
                self.given_back.clear();
            }
            self.given_back.insert(ino);
        }
        self.forget_file(step, old.session, ino);
        Some(old)
    }

    /// An offer that another session takes over is one that was heard of.
    pub(super) fn end_offer(&mut self, ino: InodeId) {
        let Some(holder) = self.locks.get_mut(&ino).and_then(|lock| lock.holder.as_mut()) else { return };
        if let Some(until) = holder.offered_until.take() {
            self.timers.remove(&(until, Timer::Offer(ino, holder.token)));
        }
    }

    /// Ends the current grant and gives the lock to the first in line.
    fn pass_on(&mut self, step: &mut Step<'_>, ino: InodeId) {
        self.take_holder(step, ino);
        self.grant_to_first(step, ino);
    }

    /// Gives a lock that nobody has to the first in line.
    pub(super) fn grant_to_first(&mut self, step: &mut Step<'_>, ino: InodeId) {
        let Some(lock) = self.locks.get(&ino) else { return };
        let Some((&number, _)) = lock.queue.first_key_value() else {
            self.locks.remove(&ino);
            return;
        };
        let Some(place) = self.pop_place(step, ino, number) else { return };
        let offered_until = place.connection.is_none().then_some(step.now + OFFER_MS);
        let token = self.grant(step, ino, (place.session, place.request), place.owner, offered_until);
        if let Some(connection) = place.connection {
            step.effects.answers.push((connection, Ok(token)));
        }
        self.share_with_own(step, ino);
    }

    fn enqueue(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64, place: Place) {
        self.waiters += 1;
        self.timers.insert((place.deadline, Timer::Place(ino, number)));
        step.sessions.add(step.now, place.session, Kind::Write, ino);
        let lock = self.locks.entry(ino).or_default();
        step.effects.recalls.extend(lock.holder.as_ref().map(|h| h.session).filter(|holder| *holder != place.session));
        lock.queue.insert(number, place);
    }

    /// Gives a place another connection and another deadline.
    fn take_up(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64, deadline: u64, connection: Connection) {
        let Some(place) = self.locks.get_mut(&ino).and_then(|lock| lock.queue.get_mut(&number)) else { return };
        self.timers.remove(&(place.deadline, Timer::Place(ino, number)));
        self.timers.insert((deadline, Timer::Place(ino, number)));
        place.deadline = deadline;
        let old = place.connection.replace(connection);
        step.effects.answer(old, ErrorKind::Interrupted, NEWER);
        step.effects.rows.insert(Row::Place(ino, number));
    }

    /// Takes a place out of its queue. Its session stays known: it may have its turn.
    fn pop_place(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64) -> Option<Place> {
        let place = self.locks.get_mut(&ino)?.queue.remove(&number)?;
        self.waiters -= 1;
        self.timers.remove(&(place.deadline, Timer::Place(ino, number)));
        step.effects.rows.insert(Row::Place(ino, number));
        Some(place)
    }

    /// Somebody does not wait any more.
    fn remove_place(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64) -> Option<Place> {
        let place = self.pop_place(step, ino, number)?;
        self.forget_file(step, place.session, ino);
        Some(place)
    }

    /// The same, which may end the wait of others, too; returns the connection.
    pub(super) fn leave(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64) -> Option<Connection> {
        let place = self.remove_place(step, ino, number)?;
        self.share_with_own(step, ino);
        place.connection
    }

    /// Takes `ino` off a session that neither holds nor waits for it any more.
    pub(super) fn forget_file(&mut self, step: &mut Step<'_>, session: SessionId, ino: InodeId) {
        if !self.locks.get(&ino).is_some_and(|lock| lock.involves(session)) {
            step.sessions.remove(session, Kind::Write, ino);
        }
    }

    /// Takes a session out of the queue of a file.
    pub(super) fn leave_all(&mut self, step: &mut Step<'_>, session: SessionId, ino: InodeId, why: &str) {
        let Some(lock) = self.locks.get(&ino) else { return };
        let places: Vec<u64> = lock.queue.iter().filter(|(_, place)| place.session == session).map(|(&number, _)| number).collect();
        for number in places {
            let place = self.remove_place(step, ino, number);
            step.effects.answer(place.and_then(|p| p.connection), ErrorKind::SessionExpired, why);
        }
    }

    pub(super) fn drop_session(&mut self, step: &mut Step<'_>, session: SessionId, ending: Ending) {
        for ino in step.sessions.files(session, Kind::Write) {
            // Places first, so that the lock does not pass to the session that ends.
            self.leave_all(step, session, ino, ending.message());
            match self.holder(ino).filter(|h| h.session == session) {
                // A commit may be under way, unless nobody ever heard of the token.
                Some(holder) if ending == Ending::Vanished && holder.offered_until.is_none() => self.fence(step, ino),
                Some(_) => self.pass_on(step, ino),
                None => self.share_with_own(step, ino),
            }
        }
    }

    pub(super) fn held_by(&self, now: u64, ino: InodeId) -> String {
        let Some(lock) = self.locks.get(&ino) else { return format!("inode {ino} is locked") };
        let Some(Holding { session, owner, since, .. }) = lock.last_holder() else { return format!("inode {ino} is locked") };
        let seconds = now.saturating_sub(*since) / 1000;
        let who = format!("{} (pid {}) on {}, session {session}", owner.program, owner.pid, owner.host);
        match &lock.fencing {
            None => format!("inode {ino} is locked by {who}, for {seconds} s"),
            Some(_) => format!("inode {ino} was locked by {who}, which is lost; the directory service does not know yet"),
        }
    }

    #[cfg(test)]
    pub(super) fn timers(&self) -> usize {
        self.timers.len()
    }
}
