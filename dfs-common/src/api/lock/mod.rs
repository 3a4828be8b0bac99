//! The lock service: exclusive write locks of whole files, and the locks on files and
//! ranges of bytes that programs take themselves ([`ranges`]). First come, first served.

mod ranges;

pub use ranges::*;
use serde::{Deserialize, Serialize};

use super::{Done, operations};
use crate::ids::{InodeId, SessionId, Token};

operations! {
    Acquire => "/v1/lock/acquire", false, Grant;
    Cancel => "/v1/lock/cancel", false, Done;
    Release => "/v1/lock/release", false, Done;
    Renew => "/v1/lock/renew", false, LockLease;
    End => "/v1/lock/end", false, Done;
    Break => "/v1/lock/break", false, Done;
    Recalls => "/v1/lock/recalls", false, Recalled;
    InUse => "/v1/lock/in-use", false, Done;
    TakeOver => "/v1/lock/take-over", false, TakenOver;
    LockRange => "/v1/lock/lock-range", false, Done;
    CancelRange => "/v1/lock/cancel-range", false, Done;
    UnlockRange => "/v1/lock/unlock-range", false, Done;
    TestRange => "/v1/lock/test-range", false, Conflict;
    Locks => "/v1/lock/locks", false, Vec<LockRow>;
    Ranges => "/v1/lock/ranges", false, Vec<RangeRow>;
    Status => "/v1/lock/status", false, LockStatus;
}

/// Who asks, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Host name.
    pub host: String,
    /// The process that opened the file, on that host.
    pub pid: u32,
    /// Its program.
    pub program: String,
}

/// Takes the write lock of a file, or a place in its queue; the answer comes when it is granted.
///
/// `WouldBlock` with `wait_ms` 0 where it is in use ([`InUse`]) or others wait; a holder that does not say whether it uses it has
/// [`Acquire::IDLE_MS`] to give it back. `Busy` when the wait is over. A broken connection keeps the
/// place until the wait is over or the session expires; sending the same request again takes it up.
///
/// A session holds a lock once: another request of it gets the same token at once, unless others wait: then it stands
/// in line behind them, and has its turn when the session has released what it holds, or with the same token as soon as
/// nobody else is before it. Such an answer may cross a [`Release`]: a token that was given back is no grant; ask again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acquire {
    /// The session.
    pub session: SessionId,
    /// The file.
    pub ino: InodeId,
    /// Chosen by the client, the same when it asks again: its place in the queue. Below 2^64 - 1.
    pub request: u64,
    /// For people.
    pub owner: Owner,
    /// How long to wait in milliseconds; at most [`Acquire::MAX_WAIT_MS`].
    pub wait_ms: u64,
    /// True: the client knows of no grant that it uses. Should it have one all the same, whose answer or release got lost,
    /// it gets that at once, as it would wait for itself.
    #[serde(default)]
    pub unaware: bool,
    /// The session that made the file with its lock, as the directory service says. Where this service has not heard of the
    /// file, that session has the lock, with [`Token::FRESH`].
    #[serde(default)]
    pub fresh: Option<SessionId>,
}

impl Acquire {
    /// The longest wait of one request: one day.
    pub const MAX_WAIT_MS: u64 = 24 * 60 * 60 * 1000;

    /// How long a request that does not want to wait waits for a holder to say whether it uses the lock, in milliseconds.
    pub const IDLE_MS: u64 = 500;
}

/// A granted lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Higher than every token granted before.
    pub token: Token,
}

/// Gives up a place in the queue, or the lock if it has just been granted to that request and to no other one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// The session.
    pub session: SessionId,
    /// The file.
    pub ino: InodeId,
    /// The place.
    pub request: u64,
}

/// Gives a lock back. Repeating it is no error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The session.
    pub session: SessionId,
    /// The file.
    pub ino: InodeId,
    /// The grant that ends; a newer one of the same session stays.
    pub token: Token,
}

/// Keeps all locks and places of a session. Every other request of the session does so too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// The session.
    pub session: SessionId,
}

/// Until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockLease {
    /// Locks and places of the session end this many milliseconds after its last request.
    pub lease_ms: u64,
    /// Locks that the session holds.
    pub held: u64,
}

/// Releases everything that a session holds or waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The session.
    pub session: SessionId,
}

/// Takes a write lock from its holder, whose later commits are refused: the directory service knows the new token
/// before this returns. The first in line gets the lock. `NotFound` where nobody holds it, `Unavailable` while the
/// directory service does not answer; the lock then passes on as soon as it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Break {
    /// The file.
    pub ino: InodeId,
    /// Only this grant: repeating it, or being late with it, takes the lock from nobody else, and is no error.
    #[serde(default)]
    pub token: Option<Token>,
    /// As in [`Acquire::fresh`].
    #[serde(default)]
    pub fresh: Option<SessionId>,
}

/// Waits until somebody wants locks that the session holds: whoever does not use such a lock gives it back then. The answer has
/// all of these but those that are `known`; it is empty when the wait is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recalls {
    /// The session.
    pub session: SessionId,
    /// Locks, with their tokens, that the client knows to be wanted, and will give back; at most [`Recalls::MAX_KNOWN`].
    pub known: Vec<(InodeId, Token)>,
    /// How long to wait in milliseconds; at most [`Acquire::MAX_WAIT_MS`].
    pub wait_ms: u64,
}

impl Recalls {
    /// The most locks that a client names as known, and that one answer names.
    pub const MAX_KNOWN: usize = 10_000;
}

/// Answer to [`Recalls`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalled {
    /// Locks of the session that others wait for, with their tokens.
    pub wanted: Vec<(InodeId, Token)>,
}

/// A holder says that it uses a lock that others want. Those of them that do not want to wait go away, and people see who uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InUse {
    /// The session.
    pub session: SessionId,
    /// The file.
    pub ino: InodeId,
    /// The grant.
    pub token: Token,
    /// For people.
    pub owner: Owner,
}

/// A client that comes back after a crash takes over what its earlier session held, with the same tokens. Places in
/// queues and locks on ranges of the earlier session end: the programs that wanted them are gone. The answer has all
/// that the session took over and still holds, so that asking again loses nothing; it is empty where there is nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeOver {
    /// The new session.
    pub session: SessionId,
    /// The session that ended with the crash.
    pub from: SessionId,
}

/// What was taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// Write locks, with their tokens.
    pub locks: Vec<(InodeId, Token)>,
}

/// Lists locks with their queues, in order of inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locks {
    /// Only this file's.
    #[serde(default)]
    pub ino: Option<InodeId>,
}

/// One lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRow {
    /// The file.
    pub ino: InodeId,
    /// Who has it, or had it until it was lost.
    pub holder: Holder,
    /// Who waits, first in line first.
    pub queue: Vec<Waiter>,
    /// The holder is lost, and nobody gets the lock before the directory service refuses what the holder may still send.
    #[serde(default)]
    pub fencing: bool,
}

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The session.
    pub session: SessionId,
    /// For people.
    pub owner: Owner,
    /// The grant.
    pub token: Token,
    /// Milliseconds since the grant.
    pub age_ms: u64,
}

/// Who waits for a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// The session.
    pub session: SessionId,
    /// For people.
    pub owner: Owner,
    /// Milliseconds since the request.
    pub age_ms: u64,
}

/// The lock service in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {}

/// Answer to [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockStatus {
    /// Program version.
    pub program: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Locks held or being fenced.
    pub locks: u64,
    /// Places in queues of write locks.
    pub waiters: u64,
    /// Locks on files and ranges that programs hold.
    #[serde(default)]
    pub ranges: u64,
    /// Waits for these.
    #[serde(default)]
    pub range_waiters: u64,
    /// Locks of vanished holders that wait for the directory service to know.
    #[serde(default)]
    pub fencing: u64,
    /// The highest token granted.
    pub last_token: Token,
}
