//! Several file servers, a directory and a lock service over real sockets, through the
//! clients that mounts use.

use std::path::Path;

use bytes::Bytes;
use dfs_common::api::directory::{Birth, ClaimLeases, Granted, Make, OpenSession, Remove, Reservation, Versions};
use dfs_common::api::file::{BLOCKS, COMMIT, Commit, VERSIONS};
use dfs_common::attributes::{Entry, FileKind, Timestamp};
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::clients::Cluster;
use dfs_common::clients::cluster::connect_http1;
use dfs_common::clients::commit::{BlockSource, InMemory, NewVersion};
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::{ROOT, Token, Version};
use dfs_common::name::Name;
use dfs_common::patch::{Changed, Patch};
use dfs_common::transport::Http1;
use dfs_common::wire::{Method, Request, Response, Service};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::directory::{self, Directory};
use crate::lock::LockService;
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;

mod power;
mod reconciled;

const SECRET: &str = "0123456789abcdef";
const BITS: u8 = 16;

/// A role behind a socket.
struct Running {
    port: u16,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Running {
    async fn start(port: u16, service: Arc<dyn Service>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut running = Self { port, stop: watch::Sender::new(false), tasks: JoinSet::new() };
        running.tasks.spawn(crate::shell::run(listener, token().into(), service, running.stop.subscribe()));
        running
    }

    async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

fn token() -> ClusterToken {
    ClusterToken::new(SECRET).unwrap()
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

struct File {
    server: Arc<FileServer>,
    running: Option<Running>,
    port: u16,
}

struct Bench {
    dir: tempfile::TempDir,
    directory: Running,
    _lock: Running,
    files: Vec<File>,
    min_copies: u32,
    client: Cluster,
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Bench {
    async fn start(servers: usize, copies: u32, min_copies: u32) -> Self {
        Self::keeping(2, servers, copies, min_copies).await
    }

    /// With so many versions of each file.
    async fn keeping(versions: u32, servers: usize, copies: u32, min_copies: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let nobody = Arc::new(Http1::new(&url(1), &token()).unwrap());
        let lock = LockService::open(&crate::lock::Config::default(), Arc::new(MemoryStore::default()), nobody).unwrap();
        let lock = Running::start(0, lock).await;
        let config = directory::Config {
            copies,
            keep: directory::Keep { versions, removed: Duration::ZERO, ..directory::Keep::default() },
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_millis(50),
            lock_url: url(lock.port),
            pins: Vec::new(),
            lock_waits: Vec::new(),
            block_bits: BITS,
            invalidate: true,
        };
        let service = Directory::open(config, Arc::new(MemoryStore::default())).unwrap();
        let mut directory = Running::start(0, service.clone()).await;
        directory.tasks.spawn(service.run(directory.stop.subscribe()));
        let mut files = Vec::new();
        for n in 0..servers {
            files.push(start_file(dir.path(), n, 0, directory.port, min_copies).await);
        }
        for file in &files {
            until("registered", async || file.server.id().is_ok()).await;
        }
        let client = OpenSession { host: "h".into(), pid: 1, program: "test".into(), mountpoint: String::new() };
        let client = Cluster::open(&url(directory.port), connect_http1(&token()), client, Duration::from_secs(10)).await.unwrap();
        Self { dir, directory, _lock: lock, files, min_copies, client }
    }

    async fn kill(&mut self, n: usize) {
        self.files[n].running.take().unwrap().stop().await;
    }

    async fn restart(&mut self, n: usize) {
        if self.files[n].running.is_some() {
            self.kill(n).await;
        }
        let port = self.files[n].port;
        // The old server's index must be closed before it is opened again.
        let old = self.files.remove(n);
        until("the old server is gone", async || Arc::strong_count(&old.server) == 1).await;
        drop(old);
        let file = start_file(self.dir.path(), n, port, self.directory.port, self.min_copies).await;
        until("registered again", async || file.server.id().is_ok()).await;
        self.files.insert(n, file);
    }

    fn make(&self, name: &str) -> Make {
        Make::new(ROOT, Name::new(name.as_bytes()).unwrap(), FileKind::File, 0o644)
    }

    async fn create(&self, name: &str) -> Entry {
        self.client.directory.call(&self.make(name)).await.unwrap().entry
    }

    async fn write(&self, entry: &Entry, content: &[u8]) -> Result<Entry> {
        let source = InMemory { content: Bytes::copy_from_slice(content), block_bits: BITS };
        let manifest = source.manifest().unwrap();
        let version = NewVersion {
            ino: entry.attributes.ino,
            token: Token(1),
            base: entry.attributes.version,
            base_manifest: None,
            manifest: &manifest,
            mtime: Timestamp(1),
            durable: content.len().is_multiple_of(2),
            interim: false,
            goes_on: false,
            set: None,
            make: None,
        };
        self.client.commit(&version, &entry.layout.placement, &source).await.map(|published| published.0)
    }

    /// The content as one server gives it, in ranges.
    async fn read_from(&self, server: ServerId, entry: &Entry) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        while (content.len() as u64) < entry.attributes.size {
            let start = content.len() as u64;
            let path = format!("{VERSIONS}{}/{}/data", entry.attributes.ino, entry.attributes.version);
            let request = Request::new(Method::Get, path).range(start, start + (3 << 20) - 1);
            content.extend_from_slice(&self.client.peers.send(server, request).await?.into_bytes()?);
        }
        Ok(content)
    }

    fn server(&self, id: ServerId) -> usize {
        self.files.iter().position(|f| f.server.id().is_ok_and(|own| own == id)).unwrap()
    }

    async fn send(&self, n: usize, request: Request) -> Response {
        Http1::new(&url(self.files[n].port), &token()).unwrap().send(request).await.unwrap()
    }
}

async fn start_file(dir: &Path, n: usize, port: u16, directory: u16, min_copies: u32) -> File {
    let data = dir.join(format!("file-{n}"));
    std::fs::create_dir_all(&data).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let store = Arc::new(SqliteStore::open(&data.join("index.db")).unwrap());
    let config = Config { name: format!("file-{n}"), url: url(port), data, capacity: None, min_copies, always_sync: false };
    let transport = Arc::new(Http1::new(&url(directory), &token()).unwrap());
    let server = FileServer::open(config, store, transport, connect_http1(&token())).unwrap();
    let mut running = Running { port, stop: watch::Sender::new(false), tasks: JoinSet::new() };
    running.tasks.spawn(crate::shell::run(listener, token().into(), server.clone(), running.stop.subscribe()));
    running.tasks.spawn(server.clone().run(running.stop.subscribe()));
    File { server, running: Some(running), port }
}

fn content(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 7 + at / 65_536) as u8 ^ seed).collect()
}

#[tokio::test]
async fn every_holder_has_what_was_written() {
    let bench = Bench::start(3, 2, 2).await;
    for (n, len) in [0, 1, 4096, 65_536, 65_537, 300_001, 5_000_000].into_iter().enumerate() {
        let file = bench.create(&format!("f{n}")).await;
        let entry = bench.write(&file, &content(len, n as u8)).await.unwrap();
        assert_eq!((entry.layout.holders.len(), entry.attributes.size), (2, len as u64));
        for &holder in &entry.layout.holders {
            assert!(bench.read_from(holder, &entry).await.unwrap() == content(len, n as u8), "{len} bytes from {holder}");
        }
        let manifest = bench.client.manifest(&entry).await.unwrap();
        assert_eq!(manifest.size(), len as u64);
        let first = content(len.min(65_536), n as u8);
        assert_eq!(bench.client.beginning(&entry).await.unwrap(), (manifest, (len > 0).then(|| first.into())));
    }
}

#[tokio::test]
async fn a_replica_that_was_down_is_made_up_for() {
    let mut bench = Bench::start(2, 2, 1).await;
    let file = bench.create("f").await;
    let replica = bench.server(file.layout.placement[1]);
    bench.kill(replica).await;
    let data = content(2_000_000, 3);
    let entry = bench.write(&file, &data).await.unwrap();
    assert_eq!(entry.layout.holders, [file.layout.placement[0]]);
    bench.restart(replica).await;
    let ino = entry.attributes.ino;
    until("two holders", async || bench.client.entry(ino).await.unwrap().layout.holders.len() == 2).await;
    assert!(bench.read_from(file.layout.placement[1], &entry).await.unwrap() == data);
}

#[tokio::test]
async fn fewer_copies_than_asked_for_are_an_error() {
    let mut bench = Bench::start(2, 2, 2).await;
    let file = bench.create("f").await;
    let primary = bench.server(file.layout.placement[0]);
    bench.kill(bench.server(file.layout.placement[1])).await;
    let manifest = Manifest::new(BITS, 1, vec![(0, BlockHash::of(b"x"))]).unwrap();
    let body = [manifest.encode(), b"x".to_vec()].concat();
    let commit = Commit {
        ino: file.attributes.ino,
        session: bench.client.id(),
        token: Token(1),
        base: file.attributes.version,
        mtime: Timestamp(1),
        manifest_len: body.len() as u32 - 1,
        manifest_base: None,
        inline: vec![1],
        patches: Vec::new(),
        replicas: vec![file.layout.placement[1]],
        durable: false,
        interim: false,
        goes_on: false,
        set: None,
        make: None,
    };
    let reply = bench.send(primary, Request::new(Method::Post, COMMIT).meta(&commit).body(body)).await;
    assert_eq!(reply.into_bytes().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(bench.client.entry(file.attributes.ino).await.unwrap().attributes.version.0, 0);
    let storage = &bench.files[primary].server.storage;
    until("the block is collected", async || storage.blocks() == 0).await;
}

#[tokio::test]
async fn a_commit_makes_its_file() {
    let bench = Bench::start(2, 2, 2).await;
    let make = Make { reserve: 2, ..bench.make("f") };
    let made = bench.client.directory.call(&make).await.unwrap();
    let Reservation { first, placements } = made.reserved.unwrap();
    let source = InMemory { content: content(200_000, 3).into(), block_bits: BITS };
    let manifest = source.manifest().unwrap();
    let make = Make { lock: true, birth: Some(Birth { ino: first, first, at: Timestamp(0) }), ..bench.make("g") };
    let version = NewVersion {
        ino: first,
        token: Token::FRESH,
        base: Version(0),
        base_manifest: None,
        manifest: &manifest,
        mtime: Timestamp(1),
        durable: true,
        interim: false,
        goes_on: false,
        set: None,
        make: Some(&make),
    };
    let entry = bench.client.commit(&version, &placements[0], &source).await.unwrap().0;
    assert_eq!((entry.attributes.ino, entry.layout.placement.as_slice(), entry.layout.holders.len()), (first, placements[0].as_slice(), 2));
    assert_eq!(entry.layout.fresh, Some(bench.client.id()));
    for server in placements[0].clone() {
        assert!(bench.read_from(server, &entry).await.unwrap() == source.content);
    }
    // As after a lost answer; and where the name was taken meanwhile there is nothing.
    assert_eq!(bench.client.commit(&version, &placements[0], &source).await.unwrap().0, entry);
    let ino = InodeId(first.0 + 1);
    let taken = Make { birth: Some(Birth { ino, first, at: Timestamp(0) }), ..make.clone() };
    let refused = bench.client.commit(&NewVersion { ino, make: Some(&taken), ..version }, &placements[1], &source).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(bench.client.entry(ino).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn damage_is_repaired_from_another_holder() {
    let bench = Bench::start(2, 2, 2).await;
    let file = bench.create("f").await;
    let data = content(500_000, 9);
    let entry = bench.write(&file, &data).await.unwrap();
    let holder = entry.layout.holders[0];
    let storage = bench.files[bench.server(holder)].server.storage.clone();
    let manifest = bench.client.manifest(&entry).await.unwrap();
    let blocks = manifest.blocks();
    std::fs::write(storage.files.path(blocks[1].1), b"rubbish").unwrap();
    std::fs::remove_file(storage.files.path(blocks[2].1)).unwrap();
    std::fs::write(storage.files.path(manifest.hash()), b"rubbish").unwrap();
    bench.files[bench.server(holder)].server.manifests.lock().clear();
    assert!(bench.read_from(holder, &entry).await.unwrap() == data);
    for &(index, hash) in blocks {
        assert_eq!(storage.files.len(hash), Some(manifest.block_len(index) as u64));
    }
    assert_eq!(bench.files[bench.server(holder)].server.status().corrupt, 1);
}

#[tokio::test]
async fn what_a_reader_finds_damaged_is_mended() {
    let bench = Bench::start(2, 2, 2).await;
    let file = bench.create("f").await;
    let data = content(500_000, 9);
    let mut entry = bench.write(&file, &data).await.unwrap();
    let manifest = bench.client.manifest(&entry).await.unwrap();
    let last = manifest.blocks().len() as u32 - 1;
    entry.layout.holders.truncate(1);
    let server = &bench.files[bench.server(entry.layout.holders[0])].server;
    std::fs::write(server.storage.files.path(manifest.blocks()[1].1), content(65_536, 0)).unwrap();
    std::fs::remove_file(server.storage.files.path(manifest.blocks()[2].1)).unwrap();
    assert!(bench.client.blocks(&entry, &manifest, 0, last).await.unwrap() == data);
    assert_eq!(server.status().corrupt, 1);
    for &(_, hash) in manifest.blocks() {
        assert_eq!(BlockHash::of(&std::fs::read(server.storage.files.path(hash)).unwrap()), hash);
    }
}

#[tokio::test]
async fn damage_without_another_copy_is_an_error_and_never_wrong_bytes() {
    let bench = Bench::start(1, 1, 1).await;
    let file = bench.create("f").await;
    let entry = bench.write(&file, &content(200_000, 9)).await.unwrap();
    let manifest = bench.client.manifest(&entry).await.unwrap();
    let storage = &bench.files[0].server.storage;
    std::fs::write(storage.files.path(manifest.blocks()[1].1), content(65_536, 0)).unwrap();
    let problem = bench.read_from(entry.layout.holders[0], &entry).await.unwrap_err();
    assert_eq!(problem.kind(), ErrorKind::Corrupt);
    // It was taken away, so that nobody counts on it, and is missing now.
    assert_eq!(bench.client.blocks(&entry, &manifest, 1, 1).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(bench.client.beginning(&entry).await.unwrap().1.is_some());
    damage(storage, manifest.blocks()[0].1);
    assert_eq!(bench.client.beginning(&entry).await.unwrap(), (manifest, None));
}

#[tokio::test]
async fn versions_that_are_gone_are_collected() {
    let bench = Bench::start(2, 2, 1).await;
    let mut entry = bench.create("f").await;
    for n in 0..5 {
        entry = bench.write(&entry, &content(100_000, n)).await.unwrap();
    }
    let kept = bench.client.directory.call(&Versions { ino: entry.attributes.ino }).await.unwrap();
    assert_eq!(kept.len(), 2);
    for file in &bench.files {
        let storage = &file.server.storage;
        until("old versions are dropped", async || (storage.index.versions(), storage.blocks()) == (2, 4)).await;
    }
    bench.client.directory.call(&Remove { parent: ROOT, name: Name::new(b"f").unwrap(), directory: false }).await.unwrap();
    bench.client.renew(vec![entry.attributes.ino]).await.unwrap();
    for file in &bench.files {
        let storage = &file.server.storage;
        until("everything is collected", async || (storage.index.versions(), storage.blocks(), storage.used()) == (0, 0, 0)).await;
    }
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let mut bench = Bench::start(2, 2, 1).await;
    let mut entries = Vec::new();
    for n in 0..20u8 {
        let file = bench.create(&format!("f{n}")).await;
        entries.push(bench.write(&file, &content(usize::from(n) * 30_000, n)).await.unwrap());
    }
    let before: Vec<_> = bench.files.iter().map(|f| (f.server.storage.index.versions(), f.server.storage.used())).collect();
    for n in 0..2 {
        bench.restart(n).await;
    }
    for (file, before) in bench.files.iter().zip(before) {
        let storage = &file.server.storage;
        until("counted again", async || (storage.index.versions(), storage.used()) == before).await;
    }
    for (n, entry) in entries.iter().enumerate() {
        for &holder in &entry.layout.holders {
            assert!(bench.read_from(holder, entry).await.unwrap() == content(n * 30_000, n as u8));
        }
    }
}

#[tokio::test]
async fn a_commit_on_an_old_version_leaves_the_live_one_alone() {
    let bench = Bench::start(1, 1, 1).await;
    let file = bench.create("f").await;
    let entry = bench.write(&file, &content(70_001, 1)).await.unwrap();
    assert_eq!(bench.write(&file, &content(70_001, 2)).await.unwrap_err().kind(), ErrorKind::Conflict);
    let again = bench.write(&file, &content(70_001, 1)).await.unwrap();
    assert_eq!(again.attributes.version, entry.attributes.version, "a repeated commit is answered alike");
    assert!(bench.read_from(entry.layout.holders[0], &entry).await.unwrap() == content(70_001, 1));
    let storage = &bench.files[0].server.storage;
    until("the refused blocks are collected", async || (storage.index.versions(), storage.blocks()) == (1, 2)).await;
}

#[tokio::test]
async fn a_commit_hands_on_the_leases_that_publishing_gave() {
    let bench = Bench::start(1, 1, 1).await;
    let file = bench.create("f").await;
    let mount = OpenSession { host: "h".into(), pid: 2, program: "test".into(), mountpoint: "/mnt".into() };
    let session = bench.client.directory.call(&mount).await.unwrap().session;
    let claimed = bench.client.directory.call(&ClaimLeases { session, revision: 0, held: Vec::new() }).await.unwrap();
    let manifest = Manifest::new(BITS, 1, vec![(0, BlockHash::of(b"x"))]).unwrap();
    let commit = Commit {
        ino: file.attributes.ino,
        session,
        token: Token(1),
        base: file.attributes.version,
        mtime: Timestamp(1),
        manifest_len: manifest.encode().len() as u32,
        manifest_base: None,
        inline: vec![1],
        patches: Vec::new(),
        replicas: Vec::new(),
        durable: false,
        interim: false,
        goes_on: false,
        set: None,
        make: None,
    };
    let body = [manifest.encode(), b"x".to_vec()].concat();
    let reply = bench.send(0, Request::new(Method::Post, COMMIT).meta(&commit).body(body)).await;
    assert_eq!(reply.status, 200);
    let granted: Granted = serde_json::from_str(reply.meta.as_deref().unwrap()).unwrap();
    assert!(granted.event > claimed.event && !granted.nothing && granted.except.is_empty());
}

/// Finds a block to be damaged.
fn damage(storage: &Storage, hash: BlockHash) {
    std::fs::write(storage.files.path(hash), b"rubbish").unwrap();
    storage.discard(hash);
    assert_eq!(storage.files.len(hash), None);
}

/// Content that says what of it has changed.
struct Changing {
    all: InMemory,
    changed: HashMap<u32, Changed>,
}

impl BlockSource for Changing {
    fn read(&self, index: u32) -> Result<Bytes> {
        self.all.read(index)
    }

    fn changed(&self, index: u32) -> Option<Changed> {
        self.changed.get(&index).copied()
    }
}

impl Bench {
    /// Overwrites `data` at `at` with `bytes`, of which servers are told that only those in `said` (of the block) have changed.
    async fn overwrite(&self, entry: &Entry, data: &mut [u8], at: usize, bytes: &[u8], said: (u32, u32)) -> Entry {
        let base = self.client.manifest(entry).await.unwrap();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        let all = InMemory { content: Bytes::copy_from_slice(data), block_bits: BITS };
        let (index, manifest) = ((at >> BITS) as u32, all.manifest().unwrap());
        let changed = HashMap::from([(index, Changed { base: base.get(index), first: said.0, end: said.1 })]);
        let version = NewVersion {
            ino: entry.attributes.ino,
            token: Token(1),
            base: entry.attributes.version,
            base_manifest: Some(&base),
            manifest: &manifest,
            mtime: Timestamp(1),
            durable: false,
            interim: false,
            goes_on: false,
            set: None,
            make: None,
        };
        let entry = self.client.commit(&version, &entry.layout.placement, &Changing { all, changed }).await.unwrap().0;
        assert_eq!(entry.layout.holders.len(), 2);
        for &holder in &entry.layout.holders {
            assert!(self.read_from(holder, &entry).await.unwrap() == data, "from {holder}");
        }
        entry
    }
}

#[tokio::test]
async fn a_change_is_made_of_what_is_here_and_sent_whole_where_that_is_not() {
    let bench = Bench::start(2, 2, 2).await;
    let file = bench.create("f").await;
    let mut data = content(5_000_000, 1);
    let mut entry = bench.write(&file, &data).await.unwrap();
    entry = bench.overwrite(&entry, &mut data, 100, b"text", (100, 104)).await;
    // What the client says is not true: the hash tells.
    entry = bench.overwrite(&entry, &mut data, 200, b"text", (300, 304)).await;
    for server in [1, 0].map(|n| entry.layout.placement[n]) {
        let manifest = bench.client.manifest(&entry).await.unwrap();
        let storage = &bench.files[bench.server(server)].server.storage;
        damage(storage, manifest.get(1).unwrap());
        entry = bench.overwrite(&entry, &mut data, 65_536 + 9, &[server.0 as u8], (9, 10)).await;
        let manifest = bench.client.manifest(&entry).await.unwrap();
        damage(storage, manifest.hash());
        bench.files[bench.server(server)].server.manifests.lock().clear();
        entry = bench.overwrite(&entry, &mut data, 65_536 + 19, &[server.0 as u8], (19, 20)).await;
    }
}

#[tokio::test]
async fn a_patch_that_does_not_make_its_block_is_refused() {
    let bench = Bench::start(1, 1, 1).await;
    let file = bench.create("f").await;
    bench.write(&file, b"some content").await.unwrap();
    let patch = |base: &[u8], len| {
        let mut out = bytes::BytesMut::new();
        Patch { base: Some(BlockHash::of(base)), len, offset: 0, bytes: Bytes::from_static(b"more") }.encode(&mut out);
        out.freeze()
    };
    let post = async |name: &[u8], body: Bytes| {
        let path = format!("{BLOCKS}{}", BlockHash::of(name));
        bench.send(0, Request::new(Method::Post, path).body(body)).await.into_bytes().map_err(|e| e.kind())
    };
    assert!(post(b"more content", patch(b"some content", 12)).await.is_ok());
    assert_eq!(post(b"other", patch(b"some content", 12)).await, Err(ErrorKind::NotFound));
    assert_eq!(post(b"more content", patch(b"nothing", 12)).await, Err(ErrorKind::NotFound));
    for bad in [patch(b"some content", 3), patch(b"some content", 0), patch(b"some content", u32::MAX), Bytes::from_static(b"short")] {
        assert_eq!(post(b"more content", bad).await, Err(ErrorKind::Invalid));
    }
    let huge = Bytes::from(vec![0; dfs_common::block::MAX_BLOCK_SIZE + dfs_common::patch::HEADER + 1]);
    assert_eq!(post(b"more content", huge).await, Err(ErrorKind::TooBig));
}

#[tokio::test]
async fn bad_requests_change_nothing() {
    let bench = Bench::start(1, 1, 1).await;
    let hash = BlockHash::of(b"x");
    let commit = Commit {
        ino: InodeId(1),
        session: bench.client.id(),
        token: Token(1),
        base: dfs_common::ids::Version(u64::MAX),
        mtime: Timestamp(1),
        manifest_len: u32::MAX,
        manifest_base: None,
        inline: vec![u32::MAX; 3],
        patches: Vec::new(),
        replicas: Vec::new(),
        durable: false,
        interim: false,
        goes_on: false,
        set: None,
        make: None,
    };
    for (request, status) in [
        (Request::new(Method::Put, format!("{BLOCKS}{hash}")).body("y"), 400),
        (Request::new(Method::Put, format!("{BLOCKS}{hash}")), 400),
        (Request::new(Method::Put, format!("{BLOCKS}{hash}?replicas=x")).body("x"), 400),
        (Request::new(Method::Put, format!("{BLOCKS}../../etc/passwd")).body("x"), 400),
        (Request::new(Method::Get, format!("{BLOCKS}{hash}")), 404),
        (Request::new(Method::Delete, format!("{BLOCKS}{hash}")), 400),
        (Request::new(Method::Get, format!("{VERSIONS}1/1/data")), 404),
        (Request::new(Method::Get, format!("{VERSIONS}1/x/data")), 404),
        (Request::new(Method::Get, format!("{VERSIONS}1/1/other")), 404),
        (Request::new(Method::Post, COMMIT).meta(&commit).body("x"), 400),
        (Request::new(Method::Post, COMMIT).meta(&Commit { base: dfs_common::ids::Version(0), ..commit.clone() }).body("x"), 400),
        (Request::new(Method::Post, COMMIT).body("x"), 400),
        (Request::new(Method::Get, COMMIT), 400),
        (Request::new(Method::Get, "/v1/file/nothing"), 404),
    ] {
        let reply = bench.send(0, request.clone()).await;
        assert_eq!(reply.status, status, "{request:?}: {:?}", reply.body);
    }
    assert_eq!(bench.files[0].server.storage.blocks(), 0);
}
