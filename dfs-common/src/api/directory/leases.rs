//! Leases: what a session may believe without asking, until an event says otherwise.
//!
//! A session with a mountpoint that has claimed its leases ([`ClaimLeases`]) holds one on every inode
//! that an answer told it of: on attributes, version and extended attributes, on a symlink's target
//! and, for a directory, on its entries and on what is absent in it. Which inodes an answer covers
//! follows from the operation:
//!
//! | operation | inodes |
//! |---|---|
//! | lookup | the directory and, where the name exists, what it leads to |
//! | get-attributes, read-link, get-xattr, list-xattrs, set-attributes, set-xattr, remove-xattr, publish | the inode |
//! | list | the directory and the inodes of the page |
//! | make, link | the directory and the inode |
//! | remove | the directory and, while it has other names, the inode |
//! | rename | both directories, the moved inode and, while it has a name, the replaced one |
//!
//! [`Granted`] travels with the answer (errors too) in the header [`crate::wire::META_HEADER`].

use serde::{Deserialize, Serialize};

use crate::ids::{InodeId, SessionId};
use crate::name::Name;

/// What an answer's leases are worth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The answer is as of this number: events on its inodes with a higher number make it old.
    pub event: u64,
    /// Inodes of this answer on which no lease was given, because somebody is about to change them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<InodeId>,
    /// A directory that the session has to itself: until it acknowledges an event of that directory, nobody else is told its attributes,
    /// or what is in there, so it may make files and tell of them later, at the latest before it acknowledges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<InodeId>,
    /// True where it gives no lease at all. Numbers still count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nothing: bool,
}

/// Starts a session's leases: after it was opened, and again after `Unclaimed`. What it held before and does not name is given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimLeases {
    /// The session; one without a mountpoint holds no leases (`Invalid`).
    pub session: SessionId,
    /// The revision of the last [`EventBatch`] or [`Claimed`], or 1 where none came; 0 for a client that begins: with nothing held, and no
    /// inode known from an earlier session. Of a removed file only sessions are asked that may know of it.
    #[serde(default)]
    pub revision: u64,
    /// Inodes on which leases were held, also by an earlier session of this client, and that the client still has as
    /// they were then. At most [`ClaimLeases::MAX_HELD`].
    #[serde(default)]
    pub held: Vec<InodeId>,
}

impl ClaimLeases {
    /// The most leases that are claimed, and that a session holds.
    pub const MAX_HELD: usize = 100_000;
}

/// Answer to a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Events will have higher numbers.
    pub event: u64,
    /// The revision of the namespace.
    pub revision: u64,
    /// Of the inodes in [`ClaimLeases::held`], those that have changed since, or may have. On the others there are leases again.
    pub lost: Vec<InodeId>,
}

/// Waits for events, acknowledges those up to `after`, and renews the session. One is under way at a time: an earlier one is answered at once.
///
/// `Unclaimed` where the service does not know of this session's leases (it was restarted): claim them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// The session.
    pub session: SessionId,
    /// All events up to this number have taken effect: the client answers nobody from what they made old.
    pub after: u64,
    /// How long the answer may wait for the next event, at most [`Events::MAX_WAIT_MS`].
    pub wait_ms: u64,
}

impl Events {
    /// The longest wait.
    pub const MAX_WAIT_MS: u64 = 60_000;
    /// The most events of one answer.
    pub const MAX_EVENTS: usize = 1024;
}

/// Answer to [`Events`]: what is about to change, in rising order of numbers; none where the wait is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventBatch {
    /// The events behind [`Events::after`].
    pub events: Vec<Event>,
    /// The revision of the namespace.
    pub revision: u64,
}

/// Something that the session has a lease on is about to change, or the lease is over. The change is made once all
/// who hold a lease have acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; gaps are normal.
    pub number: u64,
    /// The inode: its attributes change.
    pub ino: InodeId,
    /// For a directory whose entries change: which name. The lease on all others, and on what is absent, stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// True where the lease ends with this event. Where it does not (directories), attributes are as old as the event says, and leased again with the next answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over: bool,
}

/// Lists mutations that wait for acknowledgements, for `dfs why`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waits {}

/// One mutation that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitRow {
    /// The operation's resource.
    pub operation: String,
    /// Who asked for it; `None` for a client without a session.
    pub session: Option<SessionId>,
    /// What it changes.
    pub inodes: Vec<InodeId>,
    /// Who has not acknowledged yet. Empty while the service waits, after a restart, for earlier sessions to claim their leases.
    pub waits_for: Vec<SessionId>,
    /// For so long, in milliseconds.
    pub since_ms: u64,
}
