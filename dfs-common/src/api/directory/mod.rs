//! The directory service: [`names`] and attributes, versions ([`content`]), client
//! [`sessions`], file [`servers`], what is kept of the [`past`], and its own state.

mod content;
mod leases;
mod names;
mod packed;
mod past;
mod servers;
mod sessions;

use std::collections::BTreeMap;

pub use content::*;
pub use leases::*;
pub use names::*;
pub use past::*;
use serde::{Deserialize, Serialize};
pub use servers::*;
pub use sessions::*;

use super::{Done, operations};
use crate::attributes::Entry;
use crate::name::{Name, Text};

operations! {
    OpenSession => "/v1/directory/open-session", false, Session;
    RenewSession => "/v1/directory/renew-session", false, Renewed;
    CloseSession => "/v1/directory/close-session", false, Done;
    ClaimLeases => "/v1/directory/claim-leases", false, Claimed;
    Events => "/v1/directory/events", false, EventBatch;
    Waits => "/v1/directory/waits", false, Vec<WaitRow>;
    Sessions => "/v1/directory/sessions", false, Vec<SessionRow>;
    Lookup => "/v1/directory/lookup", false, Entry;
    GetAttributes => "/v1/directory/get-attributes", false, Entry;
    Access => "/v1/directory/access", false, Done;
    Resolve => "/v1/directory/resolve", false, Resolved;
    List => "/v1/directory/list", false, Page;
    ReadLink => "/v1/directory/read-link", false, Text;
    Make => "/v1/directory/make", true, Made;
    Link => "/v1/directory/link", true, Made;
    Remove => "/v1/directory/remove", true, Removed;
    Rename => "/v1/directory/rename", true, Renamed;
    SetAttributes => "/v1/directory/set-attributes", true, Entry;
    Accessed => "/v1/directory/accessed", false, Done;
    GetXattr => "/v1/directory/get-xattr", false, Text;
    ListXattrs => "/v1/directory/list-xattrs", false, Vec<Name>;
    SetXattr => "/v1/directory/set-xattr", true, Entry;
    RemoveXattr => "/v1/directory/remove-xattr", true, Entry;
    StatFs => "/v1/directory/statfs", false, FsStatus;
    Sync => "/v1/directory/sync", false, Done;
    Place => "/v1/directory/place", true, Entry;
    Publish => "/v1/directory/publish", true, Entry;
    Versions => "/v1/directory/versions", false, Vec<VersionRow>;
    Fence => "/v1/directory/fence", false, Done;
    NameHistory => "/v1/directory/name-history", false, Vec<PastRow>;
    Removals => "/v1/directory/removals", false, RemovalPage;
    Undelete => "/v1/directory/undelete", true, Made;
    RegisterServer => "/v1/directory/register-server", false, Registered;
    Heartbeat => "/v1/directory/heartbeat", false, Orders;
    ReportCopy => "/v1/directory/report-copy", false, Done;
    HeldVersions => "/v1/directory/held-versions", false, HeldPage;
    Servers => "/v1/directory/servers", false, Vec<ServerRow>;
    Status => "/v1/directory/status", false, DirectoryStatus;
}

/// Space and inodes of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatFs {}

/// What `df` shows: what a user can store in so many copies as are configured, each on another server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStatus {
    /// Bytes that fit onto the disks of all servers that are not dead.
    pub capacity: u64,
    /// Bytes that still fit onto those that are alive.
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// Waits until everything that was answered before is on the directory's disk (fsync of a directory).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sync {}

/// The directory service in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {}

/// Answer to [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryStatus {
    /// The cluster's name.
    pub cluster: String,
    /// Program version.
    pub program: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Revision of the last commit.
    pub revision: u64,
    /// Inodes in use: with a name, or open somewhere.
    pub inodes: u64,
    /// Removed inodes that some session still has open.
    pub orphans: u64,
    /// Removed inodes that nobody has open and that are kept, by policy, for their undeletion.
    pub kept: u64,
    /// Live sessions.
    pub sessions: u64,
    /// Leases that they hold.
    pub leases: u64,
    /// Events sent since the start.
    pub events: u64,
    /// Files with fewer copies than they should have.
    pub under_replicated: u64,
    /// Requests answered, by resource.
    pub requests: BTreeMap<String, u64>,
}
