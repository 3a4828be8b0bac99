//! The mount's control socket: whoever connects gets one JSON document about the mount,
//! and the end.
//!
//! Its name is abstract and follows from the mount's device number, so that `dfs why`
//! finds it in /proc/self/mountinfo and touches neither the mount, which may hang, nor a
//! file. Only root and who mounted are answered; who asks checks the same of who answers,
//! because anybody may take an abstract name. It takes no commands.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::sync::Arc;
use std::time::Duration;

use dfs_common::ids::SessionId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::mountinfo::Row;
use crate::system;
use crate::vfs::Vfs;
use crate::vfs::waits::WaitingRow;

/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest document that is read.
const MAX_REPORT: u64 = 16 << 20;

/// What a mount says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The directory service's URL.
    pub source: String,
    /// The lock service's.
    pub lock_url: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Its session at the directory service.
    pub session: SessionId,
    /// The driver's process.
    pub pid: u32,
    /// Program and version.
    pub program: String,
    /// So long, in milliseconds, it goes on believing what is leased without an answer of the directory service.
    pub believed_ms: u64,
    /// Inodes that the kernel refers to.
    pub nodes: u64,
    /// Open files and directories.
    pub open: u64,
    /// Files that a crash had left and that were published.
    pub recovered: u64,
    /// Files that could not be published and were kept.
    pub set_aside: u64,
    /// Recoverable versions that were brought to the cluster.
    pub uploaded: u64,
    /// What waits, the longest first.
    pub waits: Vec<WaitingRow>,
}

fn address(device: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("dfs-mount/{device}"))
}

/// The socket of the mount with this device number.
pub(crate) fn listen(device: &str) -> io::Result<StdListener> {
    let listener = StdListener::bind_addr(&address(device)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers whoever connects, as long as the mount lives.
pub(crate) async fn serve(listener: StdListener, vfs: Arc<Vfs>, source: String, mountpoint: String) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return log::warn!("control socket: {e}"),
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                log::debug!("control socket: {e}");
                sleep(LIMIT).await;
                continue;
            }
        };
        let own = system::user().0;
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == own => {}
            Ok(peer) => {
                log::warn!("control socket: user {} has no business here", peer.uid());
                continue;
            }
            Err(e) => {
                log::warn!("control socket: {e}");
                continue;
            }
        }
        let report = report(&vfs, source.clone(), mountpoint.clone());
        tokio::spawn(timeout(LIMIT, answer(stream, report)));
    }
}

fn report(vfs: &Vfs, source: String, mountpoint: String) -> Report {
    let census = vfs.census();
    Report {
        source,
        mountpoint,
        lock_url: census.lock_url,
        session: census.session,
        pid: std::process::id(),
        program: concat!("dfs-mount ", env!("CARGO_PKG_VERSION")).to_owned(),
        believed_ms: census.believed.as_millis() as u64,
        nodes: census.nodes as u64,
        open: census.open as u64,
        recovered: vfs.stats().recovered(),
        set_aside: vfs.stats().set_aside(),
        uploaded: vfs.stats().uploaded(),
        waits: vfs.waiting(),
    }
}

async fn answer(mut stream: UnixStream, report: Report) -> io::Result<()> {
    let mut document = serde_json::to_vec(&report).expect("a report serializes");
    document.push(b'\n');
    stream.write_all(&document).await?;
    stream.shutdown().await
}

/// Asks the driver behind a mount.
pub(crate) async fn ask(mount: &Row) -> io::Result<Report> {
    match timeout(LIMIT, ask_unbounded(mount)).await {
        Ok(report) => report,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("its driver did not answer within {} s", LIMIT.as_secs()))),
    }
}

async fn ask_unbounded(mount: &Row) -> io::Result<Report> {
    // Connecting to a local socket does not wait while its queue has room.
    let stream = StdStream::connect_addr(&address(&mount.device)?)?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let server = stream.peer_cred()?.uid();
    if server != 0 && mount.user.is_some_and(|user| user != server) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {server} answers in the name of the mount")));
    }
    let mut document = Vec::new();
    (&mut stream).take(MAX_REPORT).read_to_end(&mut document).await?;
    if document.is_empty() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "only root and who mounted it may ask"));
    }
    serde_json::from_slice(&document).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("its answer: {e}")))
}
