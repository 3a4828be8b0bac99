//! The directory service: names, attributes, versions, sessions, file servers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Done, operations};
use crate::attributes::{Entry, FileKind, Timestamp};
use crate::block::BlockHash;
use crate::ids::{InodeId, ServerId, SessionId, Token, Version};
use crate::name::{Name, Text};

operations! {
    OpenSession => "/v1/directory/open-session", false, Session;
    RenewSession => "/v1/directory/renew-session", false, Renewed;
    CloseSession => "/v1/directory/close-session", false, Done;
    Sessions => "/v1/directory/sessions", false, Vec<SessionRow>;
    Lookup => "/v1/directory/lookup", false, Entry;
    GetAttributes => "/v1/directory/get-attributes", false, Entry;
    Resolve => "/v1/directory/resolve", false, Resolved;
    List => "/v1/directory/list", false, Page;
    ReadLink => "/v1/directory/read-link", false, Text;
    Make => "/v1/directory/make", true, Entry;
    Link => "/v1/directory/link", true, Entry;
    Remove => "/v1/directory/remove", true, Removed;
    Rename => "/v1/directory/rename", true, Renamed;
    SetAttributes => "/v1/directory/set-attributes", true, Entry;
    GetXattr => "/v1/directory/get-xattr", false, Text;
    ListXattrs => "/v1/directory/list-xattrs", false, Vec<Name>;
    SetXattr => "/v1/directory/set-xattr", true, Done;
    RemoveXattr => "/v1/directory/remove-xattr", true, Done;
    StatFs => "/v1/directory/statfs", false, FsStatus;
    Sync => "/v1/directory/sync", false, Done;
    Place => "/v1/directory/place", true, Entry;
    Publish => "/v1/directory/publish", true, Entry;
    Versions => "/v1/directory/versions", false, Vec<VersionRow>;
    RegisterServer => "/v1/directory/register-server", false, Registered;
    Heartbeat => "/v1/directory/heartbeat", false, Orders;
    ReportCopy => "/v1/directory/report-copy", false, Done;
    HeldVersions => "/v1/directory/held-versions", false, HeldPage;
    Servers => "/v1/directory/servers", false, Vec<ServerRow>;
    Status => "/v1/directory/status", false, DirectoryStatus;
}

/// Opens a session. Not tied to a [`crate::wire::Replay`]: a session that was opened twice expires unused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// The client's host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// Program and version, as in `dfs-mount 0.1.0`.
    pub program: String,
    /// Where it is mounted; empty for the command line.
    pub mountpoint: String,
}

/// A new session and what a client must know of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub session: SessionId,
    /// The session ends this many milliseconds after its last renewal.
    pub lease_ms: u64,
    /// The cluster's random name, 32 hex digits: a cache belongs to one cluster.
    pub cluster: String,
    /// URL of the lock service.
    pub lock_url: String,
    /// log2 of the block size for new files.
    pub block_bits: u8,
    /// Copies that each new file gets.
    pub copies: u32,
}

/// Keeps a session alive and settles which removed files it still has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewSession {
    /// The session.
    pub session: SessionId,
    /// Orphans from [`Renewed::orphans`] that this client does not have open (any more) and will not open again.
    #[serde(default)]
    pub released: Vec<InodeId>,
}

/// Answer to a renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// Removed inodes that wait for this session's word; at most [`Renewed::MAX_ORPHANS`], the rest comes next time.
    pub orphans: Vec<InodeId>,
    /// True where more orphans wait: renew again at once.
    pub more: bool,
}

impl Renewed {
    /// The most orphans in one answer.
    pub const MAX_ORPHANS: usize = 1000;
}

/// Ends a session: its orphans and stored replies go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseSession {
    /// The session.
    pub session: SessionId,
}

/// Lists live sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {}

/// One live session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Its id.
    pub session: SessionId,
    /// Who it is.
    #[serde(flatten)]
    pub client: OpenSession,
    /// Milliseconds since the last renewal.
    pub idle_ms: u64,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
}

/// Finds `name` in `parent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// A directory.
    pub parent: InodeId,
    /// The entry.
    pub name: Name,
}

/// Attributes and layout of an inode (orphans too).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetAttributes {
    /// The inode.
    pub ino: InodeId,
}

/// Walks a path from the root, for clients without a mount. Symlinks on the way are followed
/// (40 at most, EINVAL above), the last component's only with `follow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// The path; a leading slash is optional, `.`, `..` and repeated slashes work.
    pub path: Text,
    /// Whether a symlink in the last place is followed.
    pub follow: bool,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The last directory on the way.
    pub parent: InodeId,
    /// The last component; `None` for the root.
    pub name: Option<Name>,
    /// What is there; `None` where only the last component is missing.
    pub entry: Option<Entry>,
}

/// One page of a directory in byte order of names, attributes included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The directory.
    pub ino: InodeId,
    /// Entries behind this name; `None` from the start.
    #[serde(default)]
    pub after: Option<Name>,
    /// At most this many, 1 to [`List::MAX_LIMIT`].
    pub limit: u32,
}

impl List {
    /// The most entries of one page.
    pub const MAX_LIMIT: u32 = 4096;
}

/// Entries of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The directory's parent (itself for the root).
    pub parent: InodeId,
    /// The entries, without `.` and `..`.
    pub entries: Vec<PageEntry>,
    /// True where nothing follows.
    pub end: bool,
}

/// One entry of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageEntry {
    /// Its name.
    pub name: Name,
    /// What it leads to.
    #[serde(flatten)]
    pub entry: Entry,
}

/// The target of a symlink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadLink {
    /// The symlink.
    pub ino: InodeId,
}

/// Creates an entry of any type: create, mkdir, mknod, symlink. `Exists` where the name is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Make {
    /// The directory.
    pub parent: InodeId,
    /// The new name.
    pub name: Name,
    /// The new inode's type.
    pub kind: FileKind,
    /// Permission bits, umask already applied, 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory has sgid: then the directory's group is taken, and sgid for a new directory.
    pub gid: u32,
    /// For devices.
    #[serde(default)]
    pub rdev: u32,
    /// For symlinks: 1 to 4095 bytes.
    #[serde(default)]
    pub target: Option<Text>,
}

/// Gives an inode that is no directory another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The inode.
    pub ino: InodeId,
    /// Where the new name goes.
    pub parent: InodeId,
    /// The new name.
    pub name: Name,
}

/// Removes a name: unlink, or with `directory` rmdir.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// The directory.
    pub parent: InodeId,
    /// The name.
    pub name: Name,
    /// True for rmdir (`NotDirectory` for anything else), false for unlink (`IsDirectory` for a directory).
    pub directory: bool,
}

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The inode behind the name, with its new link count. At 0 it is an orphan that the
    /// removing session, too, has to release by [`RenewSession`].
    pub entry: Entry,
}

/// What a rename does with an existing target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RenameMode {
    /// Replaces it, as rename(2).
    #[default]
    Replace,
    /// `Exists`, as RENAME_NOREPLACE.
    NoReplace,
    /// Swaps the two, as RENAME_EXCHANGE.
    Exchange,
}

/// Moves an entry, in one atomic step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// From this directory …
    pub parent: InodeId,
    /// … this name …
    pub name: Name,
    /// … to this directory …
    pub new_parent: InodeId,
    /// … under this name.
    pub new_name: Name,
    /// What happens to an existing target.
    #[serde(default)]
    pub mode: RenameMode,
}

/// What a rename did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// The moved inode.
    pub entry: Entry,
    /// The inode that was at the target before, with its new link count.
    pub replaced: Option<Entry>,
}

/// Changes attributes; `None` leaves one as it is. Sizes change by publishing, never here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAttributes {
    /// The inode.
    pub ino: InodeId,
    /// Permission bits.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Owner.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group.
    #[serde(default)]
    pub gid: Option<u32>,
    /// Last access.
    #[serde(default)]
    pub atime: Option<Timestamp>,
    /// Last change of content.
    #[serde(default)]
    pub mtime: Option<Timestamp>,
}

impl SetAttributes {
    /// No change yet.
    pub fn none(ino: InodeId) -> Self {
        Self { ino, mode: None, uid: None, gid: None, atime: None, mtime: None }
    }
}

/// The value of an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its full name (`user.comment`).
    pub name: Name,
}

/// The names of all extended attributes, in byte order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListXattrs {
    /// The inode.
    pub ino: InodeId,
}

/// When an extended attribute may be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XattrMode {
    /// Always.
    #[default]
    Set,
    /// Only where it is new (XATTR_CREATE), else `Exists`.
    Create,
    /// Only where it exists (XATTR_REPLACE), else `NoAttribute`.
    Replace,
}

/// Sets an extended attribute; values up to 65,536 bytes, 1,000 attributes and 1 MiB in all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its full name.
    pub name: Name,
    /// The value.
    pub value: Text,
    /// When.
    #[serde(default)]
    pub mode: XattrMode,
}

/// Removes an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its full name.
    pub name: Name,
}

/// Space and inodes of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatFs {}

/// What `df` shows. Bytes are divided by the number of copies: what a user can still store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStatus {
    /// Usable bytes of all live file servers.
    pub capacity: u64,
    /// Of these, free.
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// Waits until everything that was answered before is on the directory's disk (fsync of a directory).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sync {}

/// Names the servers for a file's next commit again, because one of them did not answer the client.
/// A file with content keeps a holder of its current version as its primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The file.
    pub ino: InodeId,
    /// Servers that the client could not use.
    pub avoid: Vec<ServerId>,
}

/// Publishes a version; sent by the primary once the copies exist. The new version is `base` + 1.
/// `Conflict` where `base` is not current, `Fenced` where `token` is older than one that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The file.
    pub ino: InodeId,
    /// The session that holds the write lock: who the version is by.
    pub session: SessionId,
    /// The write lock's token.
    pub token: Token,
    /// The version that this one was built on.
    pub base: Version,
    /// The new content.
    pub manifest: BlockHash,
    /// Its length in bytes.
    pub size: u64,
    /// Its bytes without holes.
    pub stored: u64,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// Servers that hold it, the primary first.
    pub holders: Vec<ServerId>,
    /// Servers that should hold it and do not yet.
    #[serde(default)]
    pub missing: Vec<ServerId>,
    /// True: the reply waits until the directory's disk has it (fsync).
    #[serde(default)]
    pub durable: bool,
}

/// The kept versions of a file, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// The file.
    pub ino: InodeId,
}

/// One kept version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// Its number.
    pub version: Version,
    /// Its content.
    pub manifest: BlockHash,
    /// Bytes.
    pub size: u64,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// When it was published, by the directory's clock.
    pub published: Timestamp,
    /// Host and program that wrote it.
    pub by: String,
    /// Servers that hold it.
    pub holders: Vec<ServerId>,
}

/// A file server announces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterServer {
    /// A name for people and pins, unique in the cluster.
    pub name: String,
    /// A random name of its data directory, 32 hex digits: the same directory gets the same id again.
    pub store: String,
    /// Where others reach it.
    pub url: String,
    /// Bytes of its disk that blocks may use, used ones included.
    pub capacity: u64,
    /// Bytes of blocks.
    pub used: u64,
}

/// A file server's place in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its id.
    pub server: ServerId,
    /// The cluster's name.
    pub cluster: String,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
}

/// A file server is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// The server.
    pub server: ServerId,
    /// Bytes that blocks may use, used ones included.
    pub capacity: u64,
    /// Bytes of blocks.
    pub used: u64,
    /// Versions from [`Orders::drop`] that are gone.
    #[serde(default)]
    pub dropped: Vec<VersionOf>,
}

/// One version of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionOf {
    /// The file.
    pub ino: InodeId,
    /// The version.
    pub version: Version,
}

/// What the directory wants from a file server. `NotFound` for an unknown id: register again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Versions that are no longer alive; repeated until reported as dropped. At most 1,000 a time.
    pub drop: Vec<VersionOf>,
    /// Versions to copy from another server. At most 100 a time.
    pub copy: Vec<CopyOrder>,
    /// Addresses of all servers that are known.
    pub servers: Vec<ServerRow>,
}

/// A missing copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOrder {
    /// The file and the version.
    #[serde(flatten)]
    pub what: VersionOf,
    /// Its content.
    pub manifest: BlockHash,
    /// Servers that have it.
    pub from: Vec<ServerId>,
}

/// A file server has made the copy that it was ordered to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportCopy {
    /// The server.
    pub server: ServerId,
    /// What it now holds.
    pub what: VersionOf,
}

/// The live versions that a server should hold, in order of inode and version: what it compares itself with at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldVersions {
    /// The server.
    pub server: ServerId,
    /// Versions behind this one; `None` from the start.
    #[serde(default)]
    pub after: Option<VersionOf>,
    /// Only this inode.
    #[serde(default)]
    pub ino: Option<InodeId>,
}

/// One page of [`HeldVersions`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPage {
    /// Version and manifest.
    pub versions: Vec<(VersionOf, BlockHash)>,
    /// Continue behind this one; `None` where nothing follows.
    pub next: Option<VersionOf>,
}

/// Lists file servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Servers {}

/// How well a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// Heartbeats arrive.
    Alive,
    /// Three are missing: nothing new is placed there.
    Suspect,
    /// Ten are missing: its copies do not count.
    Dead,
}

/// One file server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRow {
    /// Its id.
    pub server: ServerId,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub url: String,
    /// How well it is.
    pub state: Liveness,
    /// Bytes that blocks may use.
    pub capacity: u64,
    /// Bytes of blocks.
    pub used: u64,
    /// Milliseconds since the last heartbeat.
    pub idle_ms: u64,
}

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
    /// Inodes in use.
    pub inodes: u64,
    /// Removed inodes that some session still has open.
    pub orphans: u64,
    /// Live sessions.
    pub sessions: u64,
    /// Files with fewer copies than they should have.
    pub under_replicated: u64,
    /// Requests answered, by resource.
    pub requests: BTreeMap<String, u64>,
}
