//! The lock service: exclusive write locks, first come first served.

use serde::{Deserialize, Serialize};

use super::{Done, operations};
use crate::ids::{InodeId, SessionId, Token};

operations! {
    Acquire => "/v1/lock/acquire", false, Grant;
    Cancel => "/v1/lock/cancel", false, Done;
    Release => "/v1/lock/release", false, Done;
    Renew => "/v1/lock/renew", false, LockLease;
    End => "/v1/lock/end", false, Done;
    Locks => "/v1/lock/locks", false, Vec<LockRow>;
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
/// `WouldBlock` with `wait_ms` 0 where it is taken, `Busy` when the wait is over. A session holds a
/// lock once: asking again while it holds it answers the same token. A broken connection keeps the
/// place until the wait is over or the session expires; sending the same request again takes it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acquire {
    /// The session.
    pub session: SessionId,
    /// The file.
    pub ino: InodeId,
    /// Chosen by the client, the same when it asks again: its place in the queue.
    pub request: u64,
    /// For people.
    pub owner: Owner,
    /// How long to wait in milliseconds; at most [`Acquire::MAX_WAIT_MS`].
    pub wait_ms: u64,
}

impl Acquire {
    /// The longest wait of one request: one day.
    pub const MAX_WAIT_MS: u64 = 24 * 60 * 60 * 1000;
}

/// A granted lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Higher than every token granted before.
    pub token: Token,
}

/// Gives up a place in the queue, or the lock if it has just been granted to that request.
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
    /// Who has it.
    pub holder: Holder,
    /// Who waits, first in line first.
    pub queue: Vec<Waiter>,
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
    /// Locks held.
    pub locks: u64,
    /// Places in queues.
    pub waiters: u64,
    /// The highest token granted.
    pub last_token: Token,
}
