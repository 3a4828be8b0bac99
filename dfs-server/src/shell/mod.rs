//! The HTTP server that every role stands behind: hyper's bare http1 connections.
//!
//! It owns sockets, credentials, limits, time limits and draining, and translates bytes
//! to [`wire::Request`] and back. It knows no resource of any role. Nothing of a
//! request is looked at, and no body read, before the credentials were checked.

mod connection;
mod credentials;
mod router;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_common::wire::{MAX_BODY, Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub use credentials::{ClientToken, Credentials};
pub use router::Router;

/// Connections that are served at once; the next ones wait in the kernel's queue. A mount has one that waits for
/// events and one or two more; each takes about 18 KiB.
const MAX_CONNECTIONS: usize = 16_384;
/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests under way may take once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bodies up to this many bytes need no share of the memory for large ones.
const SMALL_BODY: usize = 64 << 10;
/// The most bytes of a body that comes without its length.
const MAX_UNSIZED_BODY: usize = 2 << 20;

/// What the connections of one server share.
struct Shared {
    credentials: Credentials,
    service: Arc<dyn Service>,
    /// Memory for large bodies in KiB, apart for clients (requests of a session) and other servers: a server that
    /// handles a client's request may wait for another server, so these two must not wait for one another.
    client_memory: Semaphore,
    server_memory: Semaphore,
    requests: AtomicU64,
}

impl Shared {
    fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }
}

/// Serves `service` on `listener` until `shutdown` turns true; then accepts nothing more, lets requests
/// under way finish for up to ten seconds, and returns.
pub async fn run(listener: TcpListener, credentials: Credentials, service: Arc<dyn Service>, mut shutdown: watch::Receiver<bool>) {
    let memory = || Semaphore::new((MAX_BODY >> 10) + 1);
    let shared = Arc::new(Shared { credentials, service, client_memory: memory(), server_memory: memory(), requests: AtomicU64::new(1) });
    let limit = Arc::new(Semaphore::new(connections_at_once()));
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            permit = limit.clone().acquire_owned() => permit.expect("never closed"),
            () = stopped(&mut shutdown) => break,
        };
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = stopped(&mut shutdown) => break,
        };
        let (shared, shutdown) = (shared.clone(), shutdown.clone());
        connections.spawn(async move {
            serve(stream, shared, shutdown).await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
        log::warn!("requests were still under way {} s after the stop; dropping them", DRAIN_TIMEOUT.as_secs());
    }
}

/// Half of the descriptors at the most: with all of them taken by clients nothing could be read or stored for any.
fn connections_at_once() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.map_or(MAX_CONNECTIONS, |all| MAX_CONNECTIONS.min(usize::try_from(all / 2).unwrap_or(usize::MAX)))
}

/// Waits until `shutdown` is true or its sender is gone.
pub async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that nobody can say so any more, which is a stop too.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(e) => {
                // Out of descriptors, or a client that went away again: neither may end the server.
                log::warn!("accept: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, mut shutdown: watch::Receiver<bool>) {
    if let Err(e) = stream.set_nodelay(true) {
        log::debug!("TCP_NODELAY: {e}");
    }
    let service = hyper::service::service_fn(move |request| connection::answer(shared.clone(), request));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut shutdown) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = result {
        log::debug!("connection ended: {e}");
    }
}

#[cfg(test)]
mod tests;
