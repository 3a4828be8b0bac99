//! The conversation with the directory: registration, heartbeats, and the orders that
//! come back with them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_common::api::directory::{CopyOrder, Heartbeat, Liveness, Orders, RegisterServer, Registered, VersionOf};
use dfs_common::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{FileServer, blocking};

/// Between two attempts to register.
const RETRY: Duration = Duration::from_millis(500);
/// One attempt of a heartbeat or a registration.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Between two complete comparisons with the directory …
const RECONCILE_INTERVAL: Duration = Duration::from_secs(3600);
/// … but the second one follows soon: rows that were young at the start, the journal's among them, no longer are.
const SECOND_RECONCILE: Duration = Duration::from_secs(90);
/// Copies made at the same time.
const PARALLEL_COPIES: usize = 4;
/// Settings in the index: this data directory's random name, and the cluster that it belongs to.
const STORE: &str = "store";
const CLUSTER: &str = "cluster";

/// Registers, again and again if need be, and sends heartbeats; never returns.
pub(super) async fn serve_directory(server: Arc<FileServer>) {
    let reconciling = server.clone();
    let reconcile = async move {
        reconcile_once(&reconciling).await;
        tokio::time::sleep(SECOND_RECONCILE).await;
        loop {
            reconcile_once(&reconciling).await;
            tokio::time::sleep(RECONCILE_INTERVAL).await;
        }
    };
    let heartbeats = async {
        let copies = Arc::new(Semaphore::new(PARALLEL_COPIES));
        let mut last_problem = String::new();
        loop {
            match register(&server).await {
                Ok(registered) => {
                    last_problem.clear();
                    send_heartbeats(&server, &registered, &copies).await;
                }
                Err(e) => {
                    // Once a problem, not twice a second.
                    if last_problem != e.message() {
                        log::warn!("registration at {}: {e}", server.directory.peer());
                        last_problem = e.message().to_owned();
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    futures_util::future::join(reconcile, heartbeats).await;
}

/// One complete comparison, then the blocks that no row names. Repeated until the directory answers.
async fn reconcile_once(server: &Arc<FileServer>) {
    loop {
        let result = match server.id() {
            Ok(_) => server.reconcile().await,
            Err(e) => Err(e),
        };
        match result {
            Ok(()) => break,
            Err(e) => {
                log::debug!("reconciling: {e}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    let storage = server.storage.clone();
    match blocking(move || storage.sweep()).await {
        Ok(()) => log::info!("what earlier processes left here is looked through"),
        Err(e) => log::error!("looking for blocks without a version: {e}"),
    }
}

async fn register(server: &FileServer) -> Result<Registered> {
    let index = &server.storage.index;
    let store = match index.setting(STORE)? {
        Some(name) => name,
        None => {
            let name = random_name()?;
            index.set(STORE, &name)?;
            name
        }
    };
    let request = RegisterServer {
        name: server.config.name.clone(),
        store,
        url: server.config.url.clone(),
        capacity: server.storage.capacity(),
        used: server.storage.used(),
    };
    let registered = server.directory.call_within(&request, ATTEMPT).await?;
    match index.setting(CLUSTER)? {
        // Reconciling with another cluster's directory would drop everything.
        Some(cluster) if cluster != registered.cluster => {
            let message = format!(
                "{} holds data of cluster {cluster}, the directory is that of cluster {}: give one of them its own data directory",
                server.config.data.display(),
                registered.cluster
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Some(_) => {}
        None => index.set(CLUSTER, &registered.cluster)?,
    }
    if server.id.lock().replace(registered.server) != Some(registered.server) {
        log::info!("registered as file server {} ({})", registered.server, server.config.name);
    }
    Ok(registered)
}

fn random_name() -> Result<String> {
    use std::io::Read;
    let mut random = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random));
    read.map_err(|e| Error::from_io(&e, "/dev/urandom"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Until the directory does not know this server any more.
async fn send_heartbeats(server: &Arc<FileServer>, registered: &Registered, copies: &Arc<Semaphore>) {
    let interval = Duration::from_millis(registered.heartbeat_ms.max(10));
    let (mut drops, mut failing) = (Drops::default(), false);
    loop {
        let (start, mut busy) = (Instant::now(), false);
        drops.look();
        let (capacity, used) = (server.storage.capacity(), server.storage.used());
        let beat = Heartbeat { server: registered.server, capacity, used, dropped: drops.gone.clone() };
        match server.directory.call_within(&beat, ATTEMPT).await {
            Ok(orders) => {
                if std::mem::take(&mut failing) {
                    log::info!("{} answers again", server.directory.peer());
                }
                drops.gone.clear();
                busy = drops.begin(server, &orders.drop) || !orders.copy.is_empty();
                obey(server, orders, copies);
                server.settle_doubts().await;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => return,
            Err(e) => {
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("heartbeat to {}: {e}", server.directory.peer());
                }
            }
        }
        // More orders may wait behind these: ask soon, but not at once, so that a busy directory breathes.
        let pause = if busy { interval / 4 } else { interval };
        tokio::time::sleep(pause.saturating_sub(start.elapsed()).max(Duration::from_millis(1))).await;
    }
}

/// Orders to drop, each of which is repeated until the directory has heard that it was carried out.
#[derive(Default)]
struct Drops {
    under_way: HashSet<VersionOf>,
    tasks: JoinSet<(Vec<VersionOf>, Result<()>)>,
    /// What the directory shall hear of.
    gone: Vec<VersionOf>,
}

impl Drops {
    /// Begins with those of `versions` that are new; true where there are any.
    fn begin(&mut self, server: &Arc<FileServer>, versions: &[VersionOf]) -> bool {
        let new: Vec<VersionOf> = versions.iter().copied().filter(|what| self.under_way.insert(*what)).collect();
        let any = !new.is_empty();
        if any {
            let server = server.clone();
            self.tasks.spawn(async move {
                let result = server.drop_versions(&new).await;
                (new, result)
            });
        }
        any
    }

    /// Takes note of those that have ended.
    fn look(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Ok((versions, result)) => {
                    for what in &versions {
                        self.under_way.remove(what);
                    }
                    match result {
                        Ok(()) => self.gone.extend(versions),
                        Err(e) => log::error!("dropping versions: {e}"),
                    }
                }
                // Nobody knows which: all of them may be ordered again.
                Err(e) => {
                    log::error!("dropping versions: {e}");
                    self.under_way.clear();
                }
            }
        }
    }
}

/// Takes over addresses and starts copies.
fn obey(server: &Arc<FileServer>, orders: Orders, copies: &Arc<Semaphore>) {
    if let Err(e) = server.peers.update(&orders.servers) {
        log::warn!("addresses of file servers: {e}");
    }
    let dead: HashSet<_> = orders.servers.iter().filter(|row| row.state == Liveness::Dead).map(|row| row.server).collect();
    server.unreachable.lock().dead = dead;
    for order in orders.copy {
        start_copy(server, order, copies);
    }
}

/// Makes a copy in the background, once, however often it is ordered meanwhile.
fn start_copy(server: &Arc<FileServer>, order: CopyOrder, copies: &Arc<Semaphore>) {
    if !server.copying.lock().insert(order.what) {
        return;
    }
    let (server, copies) = (server.clone(), copies.clone());
    tokio::spawn(async move {
        let _turn = copies.acquire().await.expect("never closed");
        let what = order.what;
        if let Err(e) = server.carry_out(order).await {
            log::warn!("copy of version {} of inode {}: {e}", what.version, what.ino);
        }
        server.copying.lock().remove(&what);
    });
}
