//! One process: its runtime, its signals, systemd, and the tasks of the roles in it.
//!
//! It knows how roles start and stop together, and nothing of what they do.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::Service;
use dfs_common::{Error, ErrorKind, Result};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::url;
use crate::shell::{self, Credentials};

/// Threads for large bodies and flushes.
const BLOCKING_THREADS: usize = 8;
/// How long the roles may take to stop, requests under way included.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs `start` to its end on the one thread that all roles of the process share.
pub fn block_on<F: Future<Output = Result<()>>>(start: F) -> Result<()> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|e| Error::from_io(&e, "runtime"))?;
    let result = runtime.block_on(start);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Connections and block files are descriptors; the usual soft limit of 1,024 is for programs that use select(2).
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(e) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        log::debug!("limit of open files: {e}");
    }
}

/// Listens on `host` and `port` (0: any); returns the port too.
pub async fn listen(host: &str, port: u16) -> Result<(TcpListener, u16)> {
    let problem = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AddrInUse => Error::new(ErrorKind::Unavailable, format!("{} is taken: another program listens there", url(host, port))),
        _ => Error::new(ErrorKind::Unavailable, format!("listening on {}: {e}", url(host, port))),
    };
    let listener = TcpListener::bind((host, port)).await.map_err(problem)?;
    let port = listener.local_addr().map_err(problem)?.port();
    Ok((listener, port))
}

/// The tasks of the roles.
#[derive(Debug)]
pub struct Roles {
    credentials: Credentials,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Roles {
    /// None yet; their servers accept `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, stop: watch::Sender::new(false), tasks: JoinSet::new() }
    }

    /// Answers requests on `listener` with `service`.
    pub fn serve(&mut self, listener: TcpListener, service: Arc<dyn Service>) {
        if let Ok(address) = listener.local_addr() {
            log::info!("listening on http://{address}");
        }
        self.tasks.spawn(shell::run(listener, self.credentials.clone(), service, self.stop.subscribe()));
    }

    /// Runs a role's own work, which ends when the receiver turns true.
    pub fn work<F: Future<Output = ()> + Send + 'static>(&mut self, work: impl FnOnce(watch::Receiver<bool>) -> F) {
        self.tasks.spawn(work(self.stop.subscribe()));
    }

    /// Tells systemd that the process is ready, waits for SIGTERM or SIGINT, and stops the roles.
    pub async fn until_stopped(mut self) -> Result<()> {
        let signals = |kind| signal(kind).map_err(|e| Error::from_io(&e, "signals"));
        let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
        notify(NotifyState::Ready);
        if let Some(limit) = sd_notify::watchdog_enabled() {
            // On the same thread as the roles: if they hang, this does.
            tokio::spawn(async move {
                loop {
                    notify(NotifyState::Watchdog);
                    tokio::time::sleep(limit / 3).await;
                }
            });
        }
        let failed = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = self.tasks.join_next() => ended,
        };
        log::info!("stopping");
        notify(NotifyState::Stopping);
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            log::warn!("a role did not stop within {} s", STOP_TIMEOUT.as_secs());
        }
        match failed {
            None => Ok(()),
            Some(Ok(())) => Err(Error::new(ErrorKind::Internal, "a role ended by itself")),
            Some(Err(e)) => Err(Error::new(ErrorKind::Internal, format!("a role ended: {e}"))),
        }
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        log::debug!("systemd: {e}");
    }
}
