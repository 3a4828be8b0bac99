//! The service as its clients see it, in one process and without sockets.

mod acl;
mod aware;
mod bench;
mod births;
mod claims;
mod cluster;
mod coherent;
mod durable;
mod events;
mod exclusive;
mod model;
mod namespace;
mod owners;
mod past;
mod rights;
mod sessions;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_common::api::Operation;
use dfs_common::api::directory::*;
use dfs_common::attributes::{Attributes, Entry, FileKind, Timestamp};
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, ROOT, ServerId, SessionId, Token, Version};
use dfs_common::name::{Name, Text};
use dfs_common::wire::{JSON, Method, PACKED, Replay, Request, Service};
use dfs_common::{ErrorKind, Result};

use super::{Config, Directory, Keep};
use crate::store::{MemoryStore, Store};

/// Of the past nothing is kept by time, so that what goes is gone; [`past`] keeps it.
pub(super) fn config() -> Config {
    Config {
        copies: 2,
        keep: Keep { versions: 3, versions_for: Duration::ZERO, removed: Duration::ZERO, recovered: Duration::ZERO, free_percent: 0 },
        lease: Duration::from_secs(30),
        heartbeat: Duration::from_secs(1),
        lock_url: "http://lock".to_owned(),
        pins: Vec::new(),
        lock_waits: Vec::new(),
        block_bits: 18,
        invalidate: true,
    }
}

/// Removed files are kept for an hour.
pub(super) fn keeping() -> Config {
    let mut config = config();
    config.keep.removed = Duration::from_secs(3600);
    config
}

/// A service and, once [`Client::open_session`] was called, a session at it.
pub(super) struct Client {
    pub(super) directory: Arc<Directory>,
    pub(super) session: Option<SessionId>,
    sequence: AtomicU64,
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl Client {
    pub(super) fn new() -> Self {
        Self::with(config(), Arc::new(MemoryStore::default()))
    }

    pub(super) fn with(config: Config, store: Arc<dyn Store>) -> Self {
        Self { directory: Directory::open(config, store).unwrap(), session: None, sequence: AtomicU64::new(0) }
    }

    /// The service ends and starts again with another configuration.
    pub(super) fn restart(&mut self, config: Config) {
        self.directory = Directory::open(config, self.directory.store.clone()).unwrap();
    }

    /// Goes on with a service that keeps nothing of the past.
    pub(super) async fn forget_the_past(&mut self) {
        self.restart(config());
        self.directory.tidy(&mut Default::default()).await.unwrap();
    }

    /// Another client of the same service.
    pub(super) fn other(&self) -> Self {
        Self { directory: self.directory.clone(), session: None, sequence: AtomicU64::new(0) }
    }

    pub(super) async fn open_session(&mut self) -> SessionId {
        let client = OpenSession { host: "here".to_owned(), pid: 7, program: "test".to_owned(), mountpoint: String::new() };
        let session = self.call(&client).await.unwrap().session;
        self.session = Some(session);
        session
    }

    pub(super) async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        self.call_as(operation, self.next_replay().filter(|_| O::MUTATES)).await
    }

    fn next_replay(&self) -> Option<Replay> {
        self.session.map(|_| Replay { slot: 0, sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1 })
    }

    pub(super) async fn call_as<O: Operation>(&self, operation: &O, replay: Option<Replay>) -> Result<O::Reply> {
        let mut request = Request::new(Method::Post, O::PATH).json(operation).session(self.session);
        request.replay = replay;
        self.directory.clone().handle(request).await.parse_json()
    }

    pub(super) async fn make(&self, parent: InodeId, text: &str, kind: FileKind) -> Result<Entry> {
        let target = (kind == FileKind::Symlink).then(|| Text(b"somewhere".to_vec()));
        self.call(&Make { uid: 1, gid: 2, target, ..Make::new(parent, name(text), kind, 0o755) }).await.map(|made| made.entry)
    }

    pub(super) async fn file(&self, parent: InodeId, text: &str) -> InodeId {
        self.make(parent, text, FileKind::File).await.unwrap().attributes.ino
    }

    pub(super) async fn dir(&self, parent: InodeId, text: &str) -> InodeId {
        self.make(parent, text, FileKind::Directory).await.unwrap().attributes.ino
    }

    pub(super) async fn attributes(&self, ino: InodeId) -> Result<Entry> {
        self.call(&GetAttributes { ino }).await
    }

    pub(super) async fn nlink(&self, ino: InodeId) -> u32 {
        self.attributes(ino).await.unwrap().attributes.nlink
    }

    pub(super) async fn lookup(&self, parent: InodeId, text: &str) -> Result<Entry> {
        self.call(&Lookup { parent, name: name(text) }).await
    }

    pub(super) async fn remove(&self, parent: InodeId, text: &str, directory: bool) -> Result<Removed> {
        self.call(&Remove { parent, name: name(text), directory }).await
    }

    pub(super) async fn rename(&self, from: (InodeId, &str), to: (InodeId, &str), mode: RenameMode) -> Result<Renamed> {
        self.call(&Rename { parent: from.0, name: name(from.1), new_parent: to.0, new_name: name(to.1), mode }).await
    }

    pub(super) async fn resolve(&self, path: &str, follow: bool) -> Result<Resolved> {
        self.call(&Resolve { path: Text(path.as_bytes().to_vec()), follow }).await
    }

    pub(super) async fn status(&self) -> DirectoryStatus {
        self.call(&Status {}).await.unwrap()
    }

    pub(super) async fn register(&self, text: &str) -> ServerId {
        let store = BlockHash::of(text.as_bytes()).to_string()[..32].to_owned();
        let url = format!("http://{text}");
        self.call(&RegisterServer { name: text.to_owned(), store, url, capacity: 1 << 40, used: 0 }).await.unwrap().server
    }

    pub(super) async fn heartbeat(&self, server: ServerId) -> Orders {
        self.call(&Heartbeat { server, capacity: 1 << 40, used: 0, dropped: Vec::new() }).await.unwrap()
    }

    /// A publish of something new on top of version `base`.
    pub(super) fn version(&self, ino: InodeId, base: u64, holders: &[ServerId]) -> Publish {
        Publish {
            ino,
            session: self.session.unwrap(),
            token: Token(base + 1),
            base: Version(base),
            manifest: BlockHash::of(&base.to_be_bytes()),
            size: 100 + base,
            stored: 50,
            mtime: Timestamp(1234),
            holders: holders.to_vec(),
            missing: Vec::new(),
            durable: false,
            interim: false,
            goes_on: false,
            set: None,
            make: None,
        }
    }
}

/// The kind of the error in `result`.
pub(super) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn every_resource_refuses_nonsense_without_a_panic_or_a_change() {
    let client = Client::new();
    let before = client.status().await;
    for &path in PATHS {
        for body in [&b""[..], b"{", b"[[]]", b"null", b"{\"unknown\":1}", b"\xff", b"{\"ino\":-1}", b"{\"ino\":18446744073709551616}"] {
            let reply = client.directory.clone().handle(Request::new(Method::Post, path).body(body)).await;
            assert_eq!(reply.status, 400, "{path} with {body:?}");
            assert_eq!(kind(reply.into_bytes()), ErrorKind::Invalid);
        }
        for method in [Method::Get, Method::Put, Method::Delete] {
            let reply = client.directory.clone().handle(Request::new(method, path)).await;
            assert_eq!(kind(reply.into_bytes()), ErrorKind::Invalid);
        }
    }
    let reply = client.directory.clone().handle(Request::new(Method::Post, "/v1/directory/nothing")).await;
    assert_eq!(kind(reply.into_bytes()), ErrorKind::NotFound);
    let after = client.status().await;
    assert_eq!((before.revision, before.inodes), (after.revision, after.inodes));
}

#[tokio::test]
async fn extreme_numbers_are_refused_or_harmless() {
    let mut client = Client::new();
    client.open_session().await;
    for ino in [0, 3, u64::MAX - 1, u64::MAX] {
        let ino = InodeId(ino);
        assert_eq!(kind(client.attributes(ino).await), ErrorKind::NotFound);
        assert_eq!(kind(client.make(ino, "x", FileKind::File).await), ErrorKind::NotFound);
        assert_eq!(kind(client.call(&List { ino, after: None, limit: 1 }).await), ErrorKind::NotFound);
        assert_eq!(kind(client.call(&Versions { ino }).await), ErrorKind::NotFound);
        assert_eq!(kind(client.call(&client.version(ino, 0, &[ServerId(1)])).await), ErrorKind::NotFound);
        let what = VersionOf { ino, version: Version(u64::MAX) };
        let held = client.call(&HeldVersions { server: ServerId(u32::MAX), after: Some(what), ino: None }).await.unwrap();
        assert_eq!(held, HeldPage::default());
    }
    let server = client.register("a").await;
    let ino = client.file(ROOT, "f").await;
    let mut publish = client.version(ino, 0, &[server]);
    publish.base = Version(u64::MAX);
    assert_eq!(kind(client.call(&publish).await), ErrorKind::Invalid);
    publish.base = Version(0);
    publish.size = u64::MAX;
    assert_eq!(kind(client.call(&publish).await), ErrorKind::FileTooLarge);
    publish.size = 0;
    assert_eq!(kind(client.call(&publish).await), ErrorKind::Invalid, "more stored than there is");
    client.call(&Heartbeat { server, capacity: u64::MAX, used: u64::MAX, dropped: Vec::new() }).await.unwrap();
    client.call(&StatFs {}).await.unwrap();
    client.make(ROOT, "g", FileKind::File).await.unwrap();
}
