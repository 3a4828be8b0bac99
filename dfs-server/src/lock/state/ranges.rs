//! Locks on ranges of bytes: flock(2) of whole files, fcntl(2) of ranges.
//!
//! Owners of one family exclude each other on a file, families do not see each other.
//! Who waits stands in line behind earlier waiters that want the same bytes ([`waits`]
//! says who is in whose way), and a place whose turn comes while nobody listens keeps
//! its turn for a moment. Nothing here is fenced: these locks are advisory.
//!
//! [`waits`]: super::waits

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dfs_common::api::lock::{CancelRange, Family, LockRange, Mode, Owner, RangeOwner, RangeRow, Span, TestRange, UnlockRange};
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::sessions::Kind;
use super::spans::{Piece, Spans};
use super::{Acquired, Connection, MAX_ROWS, NEWER, NO_TOKEN, OFFER_MS, Row, Step, check, invalid};

/// Pieces that are locked of one file.
pub(super) const MAX_PIECES: usize = 4096;
/// Waits on one file.
const MAX_QUEUE: usize = 512;
/// Pieces and waits of one session.
const MAX_OF_SESSION: u64 = 100_000;
/// Pieces and waits altogether.
const MAX_TOTAL: u64 = 1_000_000;

/// What an owner holds of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::lock) struct Held {
    process: Owner,
    pub(super) spans: Spans,
    last: Option<LastGrant>,
}

/// The grant that came last, as long as nothing else has happened: it can be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LastGrant {
    request: u64,
    span: Span,
    mode: Mode,
    /// What the owner had there before.
    before: Vec<Piece>,
}

/// Who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::lock) struct RangePlace {
    pub(super) owner: RangeOwner,
    pub(super) request: u64,
    process: Owner,
    pub(super) span: Span,
    pub(super) mode: Mode,
    since: u64,
    deadline: u64,
    #[serde(skip)]
    connection: Option<Connection>,
    /// Its turn has come, and nobody listens.
    #[serde(skip)]
    pub(super) offered: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) held: BTreeMap<RangeOwner, Held>,
    /// By place number, which rises.
    pub(super) queue: BTreeMap<u64, RangePlace>,
}

impl File {
    fn place_of(&self, owner: RangeOwner, request: u64) -> Option<u64> {
        self.queue.iter().find(|(_, p)| p.owner == owner && p.request == request).map(|(&number, _)| number)
    }

    fn pieces(&self) -> usize {
        self.held.values().map(|held| held.spans.len()).sum()
    }

    fn involves(&self, session: SessionId) -> bool {
        self.held.range(owners_of(session)).next().is_some() || self.queue.values().any(|p| p.owner.session == session)
    }
}

/// Where an owner has something.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts {
    pub(super) holds: BTreeSet<InodeId>,
    pub(super) waits: BTreeSet<(InodeId, u64)>,
}

/// All locks on ranges.
#[derive(Debug, Default)]
pub(in crate::lock) struct Ranges {
    pub(super) files: BTreeMap<InodeId, File>,
    pub(super) owners: HashMap<RangeOwner, Whereabouts>,
    /// Pieces and waits of each session.
    counts: HashMap<SessionId, u64>,
    timers: BTreeSet<(u64, InodeId, u64)>,
    pieces: u64,
    waiting: u64,
    last_place: u64,
}

fn owners_of(session: SessionId) -> std::ops::RangeInclusive<RangeOwner> {
    RangeOwner { session, family: Family::Flock, number: 0 }..=RangeOwner { session, family: Family::Posix, number: u64::MAX }
}

fn check_span(owner: RangeOwner, span: Span) -> Result<()> {
    match owner.family {
        _ if span.first > span.last || span.last > Span::END => Err(invalid("a range ends at or behind its beginning, below 2^63")),
        Family::Flock if span != Span::ALL => Err(invalid("flock locks the whole file")),
        _ => Ok(()),
    }
}

impl Ranges {
    pub(super) fn lock(&mut self, step: &mut Step<'_>, request: &LockRange, connection: Connection) -> Result<Acquired> {
        let &LockRange { ino, owner, span, mode, .. } = request;
        check(owner.session, ino, &request.process, request.wait_ms)?;
        check_span(owner, span)?;
        let place = self.files.get(&ino).and_then(|file| file.place_of(owner, request.request));
        let held = self.held(ino, owner);
        if place.is_none() && held.is_some_and(|held| held.spans.covers(span, mode)) {
            return Ok(Acquired::Granted(NO_TOKEN));
        }
        // flock(2): a conversion gives up the old lock first. Where that leaves others only less in the way, it cannot fail.
        let weaker = owner.family == Family::Flock && mode == Mode::Shared && held.is_some();
        if owner.family == Family::Flock && place.is_none() && held.is_some() && !weaker {
            self.write(step, ino, owner, Held::default());
            self.serve(step, ino);
        }
        if weaker || !self.is_blocked(ino, owner, span, mode, place, request.wait_ms > 0) {
            self.room(ino, owner, span)?;
            if let Some(place) = place {
                let older = self.remove_place(step, ino, place).and_then(|p| p.connection);
                step.effects.answer(older, ErrorKind::Interrupted, NEWER);
            }
            self.grant(step, ino, owner, request.request, &request.process, (span, mode));
            self.serve(step, ino);
            return Ok(Acquired::Granted(NO_TOKEN));
        }
        if request.wait_ms == 0 {
            let kind = if place.is_some() { ErrorKind::Busy } else { ErrorKind::WouldBlock };
            let problem = Error::new(kind, self.held_by(step.now, ino, owner, span, mode));
            if let Some(place) = place {
                let older = self.remove_place(step, ino, place).and_then(|p| p.connection);
                step.effects.answer(older, ErrorKind::Interrupted, NEWER);
                self.serve(step, ino);
            }
            return Err(problem);
        }
        let deadline = step.now + request.wait_ms;
        if let Some(number) = place {
            self.take_up(step, ino, number, deadline, connection);
            return Ok(Acquired::Waiting);
        }
        if owner.family == Family::Posix && self.would_never_end(ino, owner, span, mode) {
            let why = self.held_by(step.now, ino, owner, span, mode);
            return Err(Error::new(ErrorKind::Deadlock, format!("{why}, and waits for this owner")));
        }
        if self.files.get(&ino).is_some_and(|file| file.queue.len() >= MAX_QUEUE) {
            return Err(Error::new(ErrorKind::TooMany, format!("{MAX_QUEUE} others wait for ranges of inode {ino}")));
        }
        self.room(ino, owner, span)?;
        let (process, since) = (request.process.clone(), step.now);
        let connection = Some(connection);
        let place = RangePlace { owner, request: request.request, process, span, mode, since, deadline, connection, offered: false };
        self.last_place += 1;
        let number = self.last_place;
        self.enqueue(step, ino, number, place);
        step.effects.rows.insert(Row::RangePlace(ino, number));
        // One who holds something now waits: those who wait only out of courtesy may have to go first.
        for ino in self.files_of_those_before(ino, number) {
            self.serve(step, ino);
        }
        Ok(Acquired::Waiting)
    }

    pub(super) fn cancel(&mut self, step: &mut Step<'_>, request: &CancelRange) {
        let &CancelRange { ino, owner, request } = request;
        if let Some(number) = self.files.get(&ino).and_then(|file| file.place_of(owner, request)) {
            let connection = self.remove_place(step, ino, number).and_then(|p| p.connection);
            step.effects.answer(connection, ErrorKind::Interrupted, "the wait was cancelled");
            return self.serve(step, ino);
        }
        let Some(mut held) = self.held(ino, owner).cloned() else { return };
        let Some(last) = held.last.take_if(|last| last.request == request) else { return };
        held.spans.clear(last.span);
        for piece in last.before {
            // Others may share what was ours alone since.
            let mode = if last.mode == Mode::Shared { Mode::Shared } else { piece.mode };
            held.spans.set(Piece { mode, ..piece });
        }
        self.write(step, ino, owner, held);
        self.serve(step, ino);
    }

    pub(super) fn unlock(&mut self, step: &mut Step<'_>, request: &UnlockRange) -> Result<()> {
        let &UnlockRange { ino, owner, span } = request;
        check(owner.session, ino, &Owner::default(), 0)?;
        check_span(owner, span)?;
        let Some(mut held) = self.held(ino, owner).cloned() else { return Ok(()) };
        let before = held.spans.len();
        held.spans.clear(span);
        held.last = None;
        if held.spans.len() > before {
            // fcntl(2) fails alike when a hole makes two locks of one and there is no room.
            self.room(ino, owner, span)?;
        }
        self.write(step, ino, owner, held);
        self.serve(step, ino);
        Ok(())
    }

    pub(super) fn test(&self, now: u64, request: &TestRange) -> Result<Option<RangeRow>> {
        let &TestRange { ino, owner, span, mode } = request;
        check(owner.session, ino, &Owner::default(), 0)?;
        check_span(owner, span)?;
        let Some(file) = self.files.get(&ino) else { return Ok(None) };
        let first = file.in_the_way(owner, span, mode).min_by_key(|(_, _, piece)| piece.first);
        Ok(first.map(|(owner, held, piece)| held.row(now, ino, owner, piece)))
    }

    pub(super) fn list(&self, now: u64, only: Option<InodeId>) -> Vec<RangeRow> {
        let (from, to) = (only.unwrap_or(InodeId(0)), only.unwrap_or(InodeId(u64::MAX)));
        let rows = |(&ino, file): (&InodeId, &File)| {
            let held = file.held.iter().flat_map(|(&owner, held)| held.spans.pieces().iter().map(move |piece| held.row(now, ino, owner, piece)));
            let waits = file.queue.values().map(|p| RangeRow {
                ino,
                owner: p.owner,
                span: p.span,
                mode: p.mode,
                process: p.process.clone(),
                age_ms: now.saturating_sub(p.since),
                waits: true,
            });
            held.chain(waits).collect::<Vec<_>>()
        };
        self.files.range(from..=to).flat_map(rows).take(MAX_ROWS).collect()
    }

    pub(super) fn disconnected(&mut self, waited: &CancelRange, connection: Connection) {
        let Some(file) = self.files.get_mut(&waited.ino) else { return };
        let mine = |p: &&mut RangePlace| p.owner == waited.owner && p.request == waited.request;
        if let Some(place) = file.queue.values_mut().find(mine).filter(|p| p.connection == Some(connection)) {
            place.connection = None;
        }
    }

    /// Ends waits whose time is over, and turns that nobody took.
    pub(super) fn tick(&mut self, step: &mut Step<'_>) {
        while let Some(&(_, ino, number)) = self.timers.first().filter(|(at, ..)| *at <= step.now) {
            let Some(place) = self.remove_place(step, ino, number) else { continue };
            let message = self.held_by(step.now, ino, place.owner, place.span, place.mode);
            step.effects.answer(place.connection, ErrorKind::Busy, message);
            self.serve(step, ino);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|t| t.0)
    }

    /// Ends all locks and waits of a session.
    pub(super) fn drop_session(&mut self, step: &mut Step<'_>, session: SessionId, why: &str) {
        let files = step.sessions.files(session, Kind::Range);
        for &ino in &files {
            let Some(file) = self.files.get(&ino) else { continue };
            let places: Vec<u64> = file.queue.iter().filter(|(_, p)| p.owner.session == session).map(|(&number, _)| number).collect();
            let owners: Vec<RangeOwner> = file.held.range(owners_of(session)).map(|(&owner, _)| owner).collect();
            for number in places {
                let connection = self.remove_place(step, ino, number).and_then(|p| p.connection);
                step.effects.answer(connection, ErrorKind::SessionExpired, why);
            }
            for owner in owners {
                self.write(step, ino, owner, Held::default());
            }
        }
        for ino in files {
            self.serve(step, ino);
        }
    }

    /// Pieces that are locked.
    pub(in crate::lock) fn pieces(&self) -> u64 {
        self.pieces
    }

    /// Places in queues.
    pub(in crate::lock) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// The row of an owner.
    pub(in crate::lock) fn held(&self, ino: InodeId, owner: RangeOwner) -> Option<&Held> {
        self.files.get(&ino)?.held.get(&owner)
    }

    /// The row of a place.
    pub(in crate::lock) fn place(&self, ino: InodeId, number: u64) -> Option<&RangePlace> {
        self.files.get(&ino)?.queue.get(&number)
    }

    pub(super) fn restore_held(&mut self, step: &mut Step<'_>, ino: InodeId, owner: RangeOwner, held: Held) {
        self.write(step, ino, owner, held);
    }

    pub(super) fn restore_place(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64, place: RangePlace) {
        self.last_place = self.last_place.max(number);
        self.enqueue(step, ino, number, place);
    }

    /// Turns that had come before a restart are offered anew.
    pub(super) fn resume(&mut self, step: &mut Step<'_>) {
        let files: Vec<InodeId> = self.files.iter().filter(|(_, file)| !file.queue.is_empty()).map(|(&ino, _)| ino).collect();
        for ino in files {
            self.serve(step, ino);
        }
    }

    /// Grants what nothing is in the way of any more, in order.
    fn serve(&mut self, step: &mut Step<'_>, ino: InodeId) {
        loop {
            let Some(file) = self.files.get(&ino) else { return };
            let numbers: Vec<u64> = file.queue.keys().copied().collect();
            let mut granted = false;
            for number in numbers {
                let Some(place) = self.place(ino, number) else { continue };
                if self.is_blocked(ino, place.owner, place.span, place.mode, Some(number), true) {
                    continue;
                }
                let Some(connection) = place.connection else {
                    self.offer(step, ino, number);
                    continue;
                };
                let Some(place) = self.pop_place(step, ino, number) else { continue };
                self.grant(step, ino, place.owner, place.request, &place.process, (place.span, place.mode));
                step.effects.answers.push((connection, Ok(NO_TOKEN)));
                granted = true;
            }
            // A grant may leave its owner with less than before, so that an earlier one has its turn.
            if !granted {
                return;
            }
        }
    }

    /// Keeps a turn for a place without a connection, for a moment.
    fn offer(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64) {
        let Some(place) = self.files.get_mut(&ino).and_then(|file| file.queue.get_mut(&number)) else { return };
        if !std::mem::replace(&mut place.offered, true) {
            self.timers.remove(&(place.deadline, ino, number));
            place.deadline = place.deadline.min(step.now + OFFER_MS);
            self.timers.insert((place.deadline, ino, number));
            step.effects.rows.insert(Row::RangePlace(ino, number));
        }
    }

    fn grant(&mut self, step: &mut Step<'_>, ino: InodeId, owner: RangeOwner, request: u64, process: &Owner, (span, mode): (Span, Mode)) {
        let mut held = self.held(ino, owner).cloned().unwrap_or_default();
        held.last = Some(LastGrant { request, span, mode, before: held.spans.within(span) });
        held.process = process.clone();
        held.spans.set(Piece { first: span.first, last: span.last, mode, since: step.now });
        self.write(step, ino, owner, held);
    }

    /// Replaces what an owner holds; without a piece it is forgotten.
    fn write(&mut self, step: &mut Step<'_>, ino: InodeId, owner: RangeOwner, held: Held) {
        step.effects.rows.insert(Row::Range(ino, owner));
        let (new, empty) = (held.spans.len() as u64, held.spans.is_empty());
        let file = self.files.entry(ino).or_default();
        let old = if empty { file.held.remove(&owner) } else { file.held.insert(owner, held) };
        let old = old.map_or(0, |held| held.spans.len() as u64);
        self.pieces = self.pieces + new - old;
        self.count(owner.session, new, old);
        let holds = &mut self.owners.entry(owner).or_default().holds;
        if empty {
            holds.remove(&ino);
            self.forget(step, owner, ino);
        } else {
            holds.insert(ino);
            step.sessions.add(step.now, owner.session, Kind::Range, ino);
        }
    }

    fn enqueue(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64, place: RangePlace) {
        let owner = place.owner;
        self.waiting += 1;
        self.count(owner.session, 1, 0);
        self.timers.insert((place.deadline, ino, number));
        self.owners.entry(owner).or_default().waits.insert((ino, number));
        self.files.entry(ino).or_default().queue.insert(number, place);
        step.sessions.add(step.now, owner.session, Kind::Range, ino);
    }

    /// Takes a place out of its queue. Its session stays known: it may have its turn.
    fn pop_place(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64) -> Option<RangePlace> {
        let place = self.files.get_mut(&ino)?.queue.remove(&number)?;
        self.waiting -= 1;
        self.count(place.owner.session, 0, 1);
        self.timers.remove(&(place.deadline, ino, number));
        if let Some(owner) = self.owners.get_mut(&place.owner) {
            owner.waits.remove(&(ino, number));
        }
        step.effects.rows.insert(Row::RangePlace(ino, number));
        Some(place)
    }

    /// Somebody does not wait any more.
    fn remove_place(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64) -> Option<RangePlace> {
        let place = self.pop_place(step, ino, number)?;
        self.forget(step, place.owner, ino);
        Some(place)
    }

    /// Gives a place another connection and another deadline.
    fn take_up(&mut self, step: &mut Step<'_>, ino: InodeId, number: u64, deadline: u64, connection: Connection) {
        let Some(place) = self.files.get_mut(&ino).and_then(|file| file.queue.get_mut(&number)) else { return };
        self.timers.remove(&(place.deadline, ino, number));
        self.timers.insert((deadline, ino, number));
        (place.deadline, place.offered) = (deadline, false);
        let older = place.connection.replace(connection);
        step.effects.answer(older, ErrorKind::Interrupted, NEWER);
        step.effects.rows.insert(Row::RangePlace(ino, number));
    }

    /// Drops what is empty after `owner` lost something on `ino`.
    fn forget(&mut self, step: &mut Step<'_>, owner: RangeOwner, ino: InodeId) {
        if self.owners.get(&owner).is_some_and(|o| o.holds.is_empty() && o.waits.is_empty()) {
            self.owners.remove(&owner);
        }
        let Some(file) = self.files.get(&ino) else { return };
        if !file.involves(owner.session) {
            step.sessions.remove(owner.session, Kind::Range, ino);
        }
        if file.held.is_empty() && file.queue.is_empty() {
            self.files.remove(&ino);
        }
    }

    fn count(&mut self, session: SessionId, new: u64, old: u64) {
        let count = self.counts.entry(session).or_default();
        *count = *count + new - old;
        if *count == 0 {
            self.counts.remove(&session);
        }
    }

    /// Whether a lock of `span` may make more pieces.
    fn room(&self, ino: InodeId, owner: RangeOwner, span: Span) -> Result<()> {
        let too_many = |what: String| Err(Error::new(ErrorKind::TooMany, what));
        // Whatever the owner has of the file becomes one piece.
        if span == Span::ALL && self.held(ino, owner).is_some() {
            return Ok(());
        }
        if self.files.get(&ino).is_some_and(|file| file.pieces() >= MAX_PIECES) {
            return too_many(format!("{MAX_PIECES} ranges of inode {ino} are locked"));
        }
        if self.counts.get(&owner.session).is_some_and(|n| *n >= MAX_OF_SESSION) {
            return too_many(format!("session {} has {MAX_OF_SESSION} locks on ranges", owner.session));
        }
        if self.pieces + self.waiting >= MAX_TOTAL {
            return too_many(format!("{MAX_TOTAL} ranges are locked"));
        }
        Ok(())
    }

    fn held_by(&self, now: u64, ino: InodeId, owner: RangeOwner, span: Span, mode: Mode) -> String {
        let Some((other, held, piece)) = self.files.get(&ino).and_then(|file| file.in_the_way(owner, span, mode).next()) else {
            return format!("others wait for a lock on inode {ino}");
        };
        let Owner { host, pid, program } = &held.process;
        let seconds = now.saturating_sub(piece.since) / 1000;
        let bytes = match other.family {
            Family::Flock => String::new(),
            Family::Posix => format!(" (bytes {} to {})", piece.first, piece.last),
        };
        format!("inode {ino}{bytes} is locked by {program} (pid {pid}) on {host}, session {}, for {seconds} s", other.session)
    }

    #[cfg(test)]
    pub(super) fn leftovers(&self) -> (usize, usize, usize, usize, u64, u64) {
        (self.files.len(), self.owners.len(), self.counts.len(), self.timers.len(), self.pieces, self.waiting)
    }
}

impl Held {
    fn row(&self, now: u64, ino: InodeId, owner: RangeOwner, piece: &Piece) -> RangeRow {
        let age_ms = now.saturating_sub(piece.since);
        RangeRow { ino, owner, span: piece.span(), mode: piece.mode, process: self.process.clone(), age_ms, waits: false }
    }
}
