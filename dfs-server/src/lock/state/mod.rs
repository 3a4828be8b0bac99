//! All locks as pure state: functions of (state, now, request) that return [`Effects`]:
//! rows to persist, waiting connections to answer, files to fence at the directory service.
//!
//! [`writers`] are the write locks, [`fencing`] what becomes of one whose holder is
//! lost, [`ranges`] the locks that programs take themselves; [`sessions`] says who lives.
//! Time is milliseconds on any scale that does not go back.

mod fencing;
mod ranges;
mod recalls;
mod sessions;
mod spans;
mod waits;
mod writers;

use std::collections::BTreeSet;

use dfs_common::api::lock::{
    Acquire, Break, Cancel, CancelRange, InUse, LockRange, LockRow, Owner, RangeOwner, RangeRow, Recalls, Release, TakeOver, TakenOver, TestRange,
    UnlockRange,
};
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::{Error, ErrorKind, Result};

pub(in crate::lock) use self::fencing::Fencing;
pub(in crate::lock) use self::ranges::{Held, RangePlace};
pub(in crate::lock) use self::writers::{Holding, Place};
use self::{ranges::Ranges, sessions::Sessions, writers::Writers};

/// A grant for a place whose connection is gone passes on after this long.
const OFFER_MS: u64 = 5_000;
/// Rows of one listing.
const MAX_ROWS: usize = 10_000;
/// Bytes of a host's or a program's name.
const MAX_NAME: usize = 256;
/// The answer to a wait that has no token.
const NO_TOKEN: Token = Token(0);

/// What a connection hears when the same request comes on another one.
const NEWER: &str = "the same request came on a newer connection";

/// One waiting connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::lock) struct Connection(pub(in crate::lock) u64);

/// What a connection waits for.
#[derive(Clone, Debug)]
pub(in crate::lock) enum Waited {
    Write(Cancel),
    Range(CancelRange),
    Break(InodeId),
}

/// A stored row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lock) enum Row {
    /// The reserved token.
    Tokens,
    Holder(InodeId),
    Fencing(InodeId),
    Place(InodeId, u64),
    Range(InodeId, RangeOwner),
    RangePlace(InodeId, u64),
}

/// What the driver must do after a step: persist, then answer and fence.
#[derive(Debug, Default)]
pub(in crate::lock) struct Effects {
    /// Rows that came, went or changed.
    pub(in crate::lock) rows: BTreeSet<Row>,
    /// Connections that stop waiting, those for a write lock with its token.
    pub(in crate::lock) answers: Vec<(Connection, Result<Token>)>,
    /// Files of which the directory service must refuse commits with older tokens.
    pub(in crate::lock) fences: Vec<(InodeId, Token)>,
    /// Sessions that may hold something that others wait for.
    pub(in crate::lock) recalls: BTreeSet<SessionId>,
}

impl Effects {
    /// Adds what `other` names.
    pub(in crate::lock) fn absorb(&mut self, other: Effects) {
        self.rows.extend(other.rows);
        self.answers.extend(other.answers);
        self.fences.extend(other.fences);
        self.recalls.extend(other.recalls);
    }

    fn answer(&mut self, connection: Option<Connection>, kind: ErrorKind, message: impl Into<String>) {
        self.answers.extend(connection.map(|c| (c, Err(Error::new(kind, message)))));
    }
}

/// What became of a request that may have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lock) enum Acquired {
    /// Without a token (0) where there is none.
    Granted(Token),
    /// The connection is answered later.
    Waiting,
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// By its own word: nothing of it is under way.
    Said,
    /// It was not heard of: a commit of it may come yet.
    Vanished,
}

impl Ending {
    fn message(self) -> &'static str {
        match self {
            Self::Said => "the session has ended",
            Self::Vanished => "the session has expired",
        }
    }
}

/// One step: when, who lives, and what follows from it.
#[derive(Debug)]
struct Step<'a> {
    now: u64,
    sessions: &'a mut Sessions,
    effects: Effects,
}

/// All locks.
#[derive(Debug)]
pub(in crate::lock) struct State {
    sessions: Sessions,
    writers: Writers,
    ranges: Ranges,
}

impl State {
    /// No locks; every token up to `reserved` may have been granted before.
    pub(in crate::lock) fn new(lease_ms: u64, reserved: Token) -> Self {
        Self { sessions: Sessions::new(lease_ms), writers: Writers::new(reserved), ranges: Ranges::default() }
    }

    fn step<T>(&mut self, now: u64, run: impl FnOnce(&mut Writers, &mut Ranges, &mut Step<'_>) -> T) -> (T, Effects) {
        let mut step = Step { now, sessions: &mut self.sessions, effects: Effects::default() };
        let result = run(&mut self.writers, &mut self.ranges, &mut step);
        (result, step.effects)
    }

    /// Takes the write lock, or a place in its queue on behalf of `connection`.
    pub(in crate::lock) fn acquire(&mut self, now: u64, request: &Acquire, connection: Connection) -> (Result<Acquired>, Effects) {
        self.sessions.touch(now, request.session);
        self.step(now, |writers, _, step| writers.acquire(step, request, connection))
    }

    /// Gives up a place, or the grant that this request was given.
    pub(in crate::lock) fn cancel(&mut self, now: u64, request: &Cancel) -> Effects {
        self.sessions.touch(now, request.session);
        self.step(now, |writers, _, step| writers.cancel(step, request)).1
    }

    /// Ends a grant, if it is still the current one.
    pub(in crate::lock) fn release(&mut self, now: u64, request: &Release) -> Effects {
        self.sessions.touch(now, request.session);
        self.step(now, |writers, _, step| writers.release(step, request)).1
    }

    /// Takes a lock from its holder; `connection` is answered when the directory service knows.
    pub(in crate::lock) fn break_lock(&mut self, now: u64, request: &Break, connection: Connection) -> (Result<Acquired>, Effects) {
        self.step(now, |writers, _, step| writers.break_lock(step, request, connection))
    }

    /// The directory service refuses commits of `ino` with older tokens than this.
    pub(in crate::lock) fn fenced(&mut self, now: u64, ino: InodeId, token: Token) -> Effects {
        self.step(now, |writers, _, step| writers.fenced(step, ino, token)).1
    }

    /// What others want of the session's locks, but for what it knows.
    pub(in crate::lock) fn wanted(&mut self, now: u64, request: &Recalls) -> Result<Vec<(InodeId, Token)>> {
        if request.wait_ms > Acquire::MAX_WAIT_MS || request.known.len() > Recalls::MAX_KNOWN || request.session.0 == 0 {
            return Err(invalid(format!("a wait has at most {} ms, and names at most {} locks", Acquire::MAX_WAIT_MS, Recalls::MAX_KNOWN)));
        }
        self.sessions.touch(now, request.session);
        Ok(self.writers.wanted(&self.sessions, request))
    }

    /// A holder uses a lock that others want.
    pub(in crate::lock) fn in_use(&mut self, now: u64, request: &InUse) -> (Result<()>, Effects) {
        self.sessions.touch(now, request.session);
        self.step(now, |writers, _, step| writers.in_use(step, request))
    }

    /// Gives a session what another one held, which ends.
    pub(in crate::lock) fn take_over(&mut self, now: u64, request: &TakeOver) -> (Result<TakenOver>, Effects) {
        self.sessions.touch(now, request.session);
        self.step(now, |writers, ranges, step| {
            let taken = writers.take_over(step, request)?;
            ranges.drop_session(step, request.from, "another session has taken over");
            Ok(taken)
        })
    }

    /// Keeps what a session has; returns how many write locks it holds.
    pub(in crate::lock) fn renew(&mut self, now: u64, session: SessionId) -> u64 {
        self.sessions.touch(now, session);
        self.writers.held_by_session(&self.sessions, session)
    }

    /// Releases everything that a session holds or waits for.
    pub(in crate::lock) fn end(&mut self, now: u64, session: SessionId) -> Effects {
        self.sessions.ended(session);
        self.step(now, |writers, ranges, step| drop_session(writers, ranges, step, session, Ending::Said)).1
    }

    /// Takes a lock on a range, or a place in the queue.
    pub(in crate::lock) fn lock_range(&mut self, now: u64, request: &LockRange, connection: Connection) -> (Result<Acquired>, Effects) {
        self.sessions.touch(now, request.owner.session);
        self.step(now, |_, ranges, step| ranges.lock(step, request, connection))
    }

    /// Gives up a wait for a range, or what it was granted.
    pub(in crate::lock) fn cancel_range(&mut self, now: u64, request: &CancelRange) -> Effects {
        self.sessions.touch(now, request.owner.session);
        self.step(now, |_, ranges, step| ranges.cancel(step, request)).1
    }

    /// Unlocks a range.
    pub(in crate::lock) fn unlock_range(&mut self, now: u64, request: &UnlockRange) -> (Result<()>, Effects) {
        self.sessions.touch(now, request.owner.session);
        self.step(now, |_, ranges, step| ranges.unlock(step, request))
    }

    /// The first lock in the way.
    pub(in crate::lock) fn test_range(&mut self, now: u64, request: &TestRange) -> Result<Option<RangeRow>> {
        self.sessions.touch(now, request.owner.session);
        self.ranges.test(now, request)
    }

    /// Locks on ranges and waits for them, in order of inode.
    pub(in crate::lock) fn list_ranges(&self, now: u64, only: Option<InodeId>) -> Vec<RangeRow> {
        self.ranges.list(now, only)
    }

    /// The connection of a wait is gone; the place stays.
    pub(in crate::lock) fn disconnected(&mut self, waited: &Waited, connection: Connection) {
        match waited {
            Waited::Write(place) => self.writers.disconnected(place, connection),
            Waited::Range(place) => self.ranges.disconnected(place, connection),
            Waited::Break(ino) => self.writers.stops_waiting_for_fence(*ino, connection),
        }
    }

    /// What was asked for is not wanted any more. A break goes on.
    pub(in crate::lock) fn give_up(&mut self, now: u64, waited: &Waited, connection: Connection) -> Effects {
        match waited {
            Waited::Write(place) => self.cancel(now, place),
            Waited::Range(place) => self.cancel_range(now, place),
            Waited::Break(ino) => {
                self.writers.stops_waiting_for_fence(*ino, connection);
                Effects::default()
            }
        }
    }

    /// Ends leases, waits and offers whose time is over.
    pub(in crate::lock) fn tick(&mut self, now: u64) -> Effects {
        let expire = |writers: &mut Writers, ranges: &mut Ranges, step: &mut Step<'_>| {
            while let Some(session) = step.sessions.expired(now) {
                drop_session(writers, ranges, step, session, Ending::Vanished);
            }
            writers.tick(step);
            ranges.tick(step);
        };
        self.step(now, expire).1
    }

    /// The service itself stood still for `gap`: no session could renew anything meanwhile.
    pub(in crate::lock) fn forgive(&mut self, gap: u64) {
        self.sessions.forgive(gap);
    }

    /// When [`State::tick`] has something to do.
    pub(in crate::lock) fn next_deadline(&self) -> Option<u64> {
        [self.sessions.next_deadline(), self.writers.next_deadline(), self.ranges.next_deadline()].into_iter().flatten().min()
    }

    /// Write locks with their queues, in order of inode.
    pub(in crate::lock) fn list(&self, now: u64, only: Option<InodeId>) -> Vec<LockRow> {
        self.writers.list(now, only)
    }

    /// The write locks, for numbers and rows.
    pub(in crate::lock) fn writers(&self) -> &Writers {
        &self.writers
    }

    /// The locks on ranges, for numbers and rows.
    pub(in crate::lock) fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// How long a session lives without a request.
    pub(in crate::lock) fn lease_ms(&self) -> u64 {
        self.sessions.lease_ms()
    }

    /// Takes over a stored holder.
    pub(in crate::lock) fn restore_holder(&mut self, now: u64, ino: InodeId, holder: Holding) {
        self.step(now, |writers, _, step| writers.restore_holder(step, ino, holder));
    }

    /// Takes over a lock that was being fenced.
    pub(in crate::lock) fn restore_fencing(&mut self, ino: InodeId, fencing: Fencing) {
        self.writers.restore_fencing(ino, fencing);
    }

    /// Takes over a stored place, whose connection is gone.
    pub(in crate::lock) fn restore_place(&mut self, now: u64, ino: InodeId, number: u64, place: Place) {
        self.step(now, |writers, _, step| writers.restore_place(step, ino, number, place));
    }

    /// Takes over what an owner holds of a file.
    pub(in crate::lock) fn restore_range(&mut self, now: u64, ino: InodeId, owner: RangeOwner, held: Held) {
        self.step(now, |_, ranges, step| ranges.restore_held(step, ino, owner, held));
    }

    /// Takes over a stored wait for a range, whose connection is gone.
    pub(in crate::lock) fn restore_range_place(&mut self, now: u64, ino: InodeId, number: u64, place: RangePlace) {
        self.step(now, |_, ranges, step| ranges.restore_place(step, ino, number, place));
    }

    /// What the directory service must still be told.
    pub(in crate::lock) fn fences(&self) -> Vec<(InodeId, Token)> {
        self.writers.fences()
    }

    /// All rows are restored: what was under way goes on.
    pub(in crate::lock) fn resume(&mut self, now: u64) -> Effects {
        self.sessions.begin(now);
        self.step(now, |writers, ranges, step| {
            step.effects.fences = writers.fences();
            ranges.resume(step);
        })
        .1
    }
}

fn drop_session(writers: &mut Writers, ranges: &mut Ranges, step: &mut Step<'_>, session: SessionId, ending: Ending) {
    writers.drop_session(step, session, ending);
    ranges.drop_session(step, session, ending.message());
}

/// What every request that waits must keep to.
fn check(session: SessionId, ino: InodeId, owner: &Owner, wait_ms: u64) -> Result<()> {
    if wait_ms > Acquire::MAX_WAIT_MS {
        return Err(invalid(format!("a wait has at most {} ms", Acquire::MAX_WAIT_MS)));
    }
    if owner.host.len() > MAX_NAME || owner.program.len() > MAX_NAME {
        return Err(invalid(format!("host and program have at most {MAX_NAME} bytes")));
    }
    if ino.0 == 0 || session.0 == 0 {
        return Err(invalid("inode and session are numbers above 0"));
    }
    Ok(())
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

#[cfg(test)]
mod fencing_tests;
#[cfg(test)]
mod range_tests;
#[cfg(test)]
mod recall_tests;
#[cfg(test)]
mod tests;
