//! Locks that programs take: flock(2) on a file, fcntl(2) on ranges of its bytes.
//!
//! They exclude each other across clients, and nothing else: who holds none may read and
//! write. The two families do not see each other, as on a local file system. All end
//! with the session that holds them.

use serde::{Deserialize, Serialize};

use super::Owner;
use crate::ids::{InodeId, SessionId};

/// Which call a lock belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// flock(2): the whole file. A new mode replaces the old one.
    Flock,
    /// fcntl(2): ranges that are split and merged; a wait that would close a circle is refused.
    Posix,
}

/// How much a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Only exclusive locks of others.
    Shared,
    /// Every lock of others.
    Exclusive,
}

/// Bytes of a file, both ends included; `last` is [`Span::END`] where the range goes on for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// The first byte.
    pub first: u64,
    /// The last byte, not before the first.
    pub last: u64,
}

impl Span {
    /// The last byte that a file can have.
    pub const END: u64 = i64::MAX as u64;
    /// Every byte.
    pub const ALL: Self = Self { first: 0, last: Self::END };
}

/// Who holds a lock: within a session, the kernel's number of the open file (flock) or of the process (fcntl).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeOwner {
    /// The session.
    pub session: SessionId,
    /// flock or fcntl.
    pub family: Family,
    /// The kernel's number.
    pub number: u64,
}

/// Locks a range, replacing what the owner holds there; the answer comes when it is granted. flock gives up the old lock
/// before it takes the new one, and so may lose it.
///
/// `WouldBlock` with `wait_ms` 0 where others hold it, `Busy` when the wait is over, `Deadlock` where the wait would
/// never end. Waiters are served in order; one whose range is free does not wait for others' ranges. A broken connection
/// keeps the place; sending the same request again takes it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockRange {
    /// The file.
    pub ino: InodeId,
    /// Who.
    pub owner: RangeOwner,
    /// Which bytes.
    pub span: Span,
    /// Shared or exclusive.
    pub mode: Mode,
    /// Chosen by the client, the same when it asks again.
    pub request: u64,
    /// For people, and for F_GETLK.
    pub process: Owner,
    /// How long to wait in milliseconds; at most [`super::Acquire::MAX_WAIT_MS`].
    pub wait_ms: u64,
}

/// Gives up a wait, or the lock if it has just been granted to that request: where nothing else has happened to this
/// owner on the file since, what it held before is back (flock: nothing).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelRange {
    /// The file.
    pub ino: InodeId,
    /// Who.
    pub owner: RangeOwner,
    /// The wait.
    pub request: u64,
}

/// Unlocks a range. What the owner does not hold there is no error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlockRange {
    /// The file.
    pub ino: InodeId,
    /// Who.
    pub owner: RangeOwner,
    /// Which bytes.
    pub span: Span,
}

/// Asks who is in the way of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestRange {
    /// The file.
    pub ino: InodeId,
    /// Who would lock.
    pub owner: RangeOwner,
    /// Which bytes.
    pub span: Span,
    /// Shared or exclusive.
    pub mode: Mode,
}

/// Answer to [`TestRange`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The first lock in the way; none: it would be granted.
    pub lock: Option<RangeRow>,
}

/// Lists locks on files and ranges, and who waits for them, in order of inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranges {
    /// Only this file's.
    #[serde(default)]
    pub ino: Option<InodeId>,
}

/// A lock on a range, or a wait for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRow {
    /// The file.
    pub ino: InodeId,
    /// Who.
    pub owner: RangeOwner,
    /// Which bytes.
    pub span: Span,
    /// Shared or exclusive.
    pub mode: Mode,
    /// For people.
    pub process: Owner,
    /// Milliseconds since the grant, or since the request.
    pub age_ms: u64,
    /// It waits.
    #[serde(default)]
    pub waits: bool,
}
