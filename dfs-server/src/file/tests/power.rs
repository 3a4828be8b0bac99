//! What a loss of power leaves of versions that were acknowledged as durable: the worst case, in which disks have what was waited
//! for and nothing else, and what came after a version that is dropped.

use std::sync::Weak;

use dfs_common::api::Operation;
use dfs_common::api::directory::Publish;
use futures_util::future::BoxFuture;

use super::*;
use crate::file::blocks::Check;

type Servers = Arc<Mutex<Vec<Weak<FileServer>>>>;

/// The way to the directory, on which every durable version is stopped that one of its holders may still lose.
#[derive(Debug)]
struct Watched {
    inner: Http1,
    servers: Servers,
}

impl Transport for Watched {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Response>> {
        if request.path == Publish::PATH {
            let publish: Publish = request.parse_json().unwrap();
            let servers: Vec<_> = self.servers.lock().iter().filter_map(Weak::upgrade).collect();
            let holders = servers.iter().filter(|server| publish.holders.contains(&server.id().unwrap()));
            let safe = holders.filter(|server| server.storage.journal.is_on_disk()).count();
            assert!(publish.durable && safe == publish.holders.len(), "{safe} of {} disks have it", publish.holders.len());
        }
        self.inner.send(request)
    }

    fn peer(&self) -> &str {
        self.inner.peer()
    }
}

impl Bench {
    /// Ends server `n` and everything that it has open.
    async fn end(&mut self, n: usize) -> u16 {
        self.kill(n).await;
        let old = self.files.remove(n);
        let is_gone = async || (Arc::strong_count(&old.server), Arc::strong_count(&old.server.storage)) == (1, 1);
        until("the old server is gone", is_gone).await;
        old.port
    }

    /// Server `n`, on whose way to the directory it is seen that what is published is durable, and on the disks of `servers`.
    async fn start_watched(&mut self, n: usize, port: u16, servers: &Servers) {
        let directory = Watched { inner: self.to_directory(), servers: servers.clone() };
        self.start_unflushed(n, port, Arc::new(directory)).await;
        servers.lock().push(Arc::downgrade(&self.files[n].server));
    }

    fn to_directory(&self) -> Http1 {
        Http1::new(&url(self.directory.port), &token()).unwrap()
    }

    /// Server `n`, which flushes nothing on its own.
    async fn start_unflushed(&mut self, n: usize, port: u16, directory: Arc<dyn Transport>) {
        let data = self.data(n);
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let store = Arc::new(SqliteStore::open(&data.join("index.db")).unwrap());
        let config = Config { name: format!("file-{n}"), url: url(port), data, capacity: None, min_copies: self.min_copies, always_sync: false };
        let server = FileServer::open(config, store, directory, connect_http1(&token())).unwrap();
        let mut running = Running { port, stop: watch::Sender::new(false), tasks: JoinSet::new() };
        running.tasks.spawn(crate::shell::run(listener, token().into(), server.clone(), running.stop.subscribe()));
        let (mut stop, talking) = (running.stop.subscribe(), heartbeat::serve_directory(server.clone()));
        running.tasks.spawn(async move {
            tokio::select! { () = talking => {}, () = stopped(&mut stop) => {} }
        });
        until("registered", async || server.id().is_ok()).await;
        self.files.insert(n, File { server, running: Some(running), port });
    }

    fn data(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("file-{n}"))
    }
}

#[tokio::test]
async fn what_is_durable_is_on_the_disks_of_all_copies_before_the_directory_hears_of_it() {
    let mut bench = Bench::start(2, 2, 2).await;
    let servers = Servers::default();
    for n in 0..2 {
        let port = bench.end(n).await;
        std::fs::copy(bench.data(n).join("index.db"), bench.data(n).join("before")).unwrap();
        bench.start_watched(n, port, &servers).await;
    }
    let mut written = Vec::new();
    for (n, len) in [5_000_000, 0, 2, 4096, 65_536, 200_000, 300_002].into_iter().enumerate() {
        let mut entry = bench.create(&format!("f{n}")).await;
        for seed in [1, 2] {
            entry = bench.write(&entry, &content(len, seed)).await.unwrap();
            let what = VersionOf { ino: entry.attributes.ino, version: entry.attributes.version };
            written.push((what, bench.client.manifest(&entry).await.unwrap(), content(len, seed)));
        }
    }
    for n in 0..2 {
        let storage = bench.files[0].server.storage.clone();
        // The disk lacks these, and every row.
        let (lost, rows) = (storage.files.all_unflushed(), storage.index.versions());
        assert!(rows == 14 && !lost.is_empty(), "{rows} rows");
        drop(storage);
        bench.end(0).await;
        let data = bench.data(n);
        for hash in lost.hashes() {
            std::fs::write(data.join("blocks").join(&hash.to_string()[..2]).join(hash.to_string()), b"").unwrap();
        }
        for name in ["index.db-wal", "index.db-shm", "index.db-log-0", "index.db-log-1"] {
            let _ = std::fs::remove_file(data.join(name));
        }
        std::fs::rename(data.join("before"), data.join("index.db")).unwrap();
        let storage = Storage::open(&data, Arc::new(SqliteStore::open(&data.join("index.db")).unwrap()), None).unwrap();
        for (what, manifest, expected) in &written {
            let claims = storage.index.claims(*what).unwrap();
            assert_eq!(claims.iter().map(|claim| claim.0).collect::<Vec<_>>(), [manifest.hash()], "{what:?} on server {n}");
            let mut found = vec![0; expected.len()];
            assert_eq!(storage.read_into(manifest, 0, &mut found, Check::Hash).unwrap(), []);
            assert!(found == *expected);
        }
    }
}

#[tokio::test]
async fn a_version_is_dropped_when_the_disk_has_what_came_after_it() {
    let mut bench = Bench::keeping(1, 1, 1, 1).await;
    let port = bench.end(0).await;
    bench.start_unflushed(0, port, Arc::new(bench.to_directory())).await;
    let server = bench.files[0].server.id().unwrap();
    let storage = bench.files[0].server.storage.clone();
    let is_here = |what: VersionOf| !storage.index.claims(what).unwrap().is_empty();
    let flush_all = async || storage.flush().map(|()| !storage.has_unflushed()).unwrap();
    let what = |entry: &Entry| VersionOf { ino: entry.attributes.ino, version: entry.attributes.version };
    // A manifest in its row, and one that is a block: by fsync the journal has both.
    for (name, len) in [("small", 70_000), ("large", 700_000)] {
        let entry = bench.create(name).await;
        let old = bench.write(&entry, &content(len, 1)).await.unwrap();
        let new = bench.write(&old, &content(len + 1, 2)).await.unwrap();
        until("the order to drop has come", async || storage.is_waited_for()).await;
        assert!(is_here(what(&old)) && bench.read_from(server, &old).await.unwrap() == content(len, 1), "{name}");
        // A flush that fails, then one that does not.
        storage.flush_begins();
        let number = storage.flush_begins();
        assert!(is_here(what(&old)));
        storage.flush().unwrap();
        storage.flush_ends(number);
        until("it is dropped", async || !is_here(what(&old))).await;
        assert!(is_here(what(&new)) && bench.read_from(server, &new).await.unwrap() == content(len + 1, 2));
        // With nothing to be flushed nobody waits.
        until("all is flushed", flush_all).await;
        storage.flushed().await;
    }
    let entry = bench.create("on no disk").await;
    let old = bench.write(&entry, &content(700_001, 1)).await.unwrap();
    bench.write(&old, &content(700_001, 2)).await.unwrap();
    until("what no disk has goes at once", async || !is_here(what(&old))).await;
}
