//! From requests to operations and from results to replies, and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dfs_common::api::directory::*;
use dfs_common::api::{Done, Operation};
use dfs_common::ids::SessionId;
use dfs_common::wire::{Method, Request, Response, Service};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::BoxFuture;

use super::Directory;
use super::state::{self, Change};
use super::writer::Terms;
use crate::store::View;

/// The most inodes or versions that one request names.
const LIST_MAX: usize = 65_536;

impl Service for Directory {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        Box::pin(async move { self.answer(request).await.into() })
    }
}

impl Directory {
    async fn answer(&self, request: Request) -> Result<Response> {
        match self.requests.lock().get_mut(request.path.as_str()) {
            Some(count) => *count += 1,
            None => return Err(Error::new(ErrorKind::NotFound, format!("no resource {}", request.path))),
        }
        if request.method != Method::Post {
            return Err(Error::new(ErrorKind::Invalid, format!("{} takes POST, not {}", request.path, request.method.as_str())));
        }
        if let Some(session) = request.session {
            self.touch(session);
        }
        match request.path.as_str() {
            Lookup::PATH => self.read(&request, state::lookup),
            GetAttributes::PATH => self.read(&request, state::get_attributes),
            Resolve::PATH => self.read(&request, state::resolve),
            List::PATH => self.read(&request, state::list),
            ReadLink::PATH => self.read(&request, state::read_link),
            GetXattr::PATH => self.read(&request, state::get_xattr),
            ListXattrs::PATH => self.read(&request, state::list_xattrs),
            Versions::PATH => self.read(&request, state::versions),
            HeldVersions::PATH => self.read(&request, state::held_versions),
            Make::PATH => self.mutate(&request, state::make).await,
            Link::PATH => self.mutate(&request, state::link).await,
            Remove::PATH => self.mutate(&request, state::remove).await,
            Rename::PATH => self.mutate(&request, state::rename).await,
            SetAttributes::PATH => self.mutate(&request, state::set_attributes).await,
            SetXattr::PATH => self.mutate(&request, state::set_xattr).await,
            RemoveXattr::PATH => self.mutate(&request, state::remove_xattr).await,
            Place::PATH => self.mutate(&request, state::place).await,
            Publish::PATH => self.publish(&request).await,
            Sync::PATH => self.sync(request.parse_json()?).await,
            _ => self.answer_of_cluster(&request).await,
        }
    }

    /// Sessions, file servers, numbers.
    async fn answer_of_cluster(&self, request: &Request) -> Result<Response> {
        match request.path.as_str() {
            OpenSession::PATH => self.open_session(request.parse_json()?).await,
            RenewSession::PATH => self.renew_session(request.parse_json()?).await,
            CloseSession::PATH => self.close_session(request.parse_json()?).await,
            Sessions::PATH => request.parse_json::<Sessions>().map(|_| Response::json(&self.sessions())),
            RegisterServer::PATH => self.register(request.parse_json()?).await,
            Heartbeat::PATH => self.heartbeat(request.parse_json()?).await,
            ReportCopy::PATH => self.report_copy(request.parse_json()?).await,
            Servers::PATH => request.parse_json::<Servers>().map(|_| Response::json(&state::rows(&self.tables.lock(), self.now().clock))),
            StatFs::PATH => request.parse_json::<StatFs>().map(|_| {
                let status = state::statfs(&self.tables.lock(), self.config.copies, self.now().clock);
                Response::json(&status)
            }),
            Status::PATH => request.parse_json::<Status>().map(|_| Response::json(&self.status())),
            other => Err(Error::new(ErrorKind::NotFound, format!("no resource {other}"))),
        }
    }

    fn read<O: Operation>(&self, request: &Request, read: fn(&dyn View, &O) -> Result<O::Reply>) -> Result<Response> {
        let operation = request.parse_json()?;
        let reply = read(&*self.store.snapshot(), &operation)?;
        Ok(Response::json(&reply))
    }

    async fn mutate<O: Operation>(&self, request: &Request, mutate: fn(&mut Change<'_>, &O) -> Result<O::Reply>) -> Result<Response> {
        if request.replay.is_some() && request.session.is_none() {
            return Err(Error::new(ErrorKind::Invalid, "a replay number belongs to a session, and none is named"));
        }
        let terms = Terms { session: request.session, replay: request.replay, durable: false };
        self.submit_operation(terms, request.parse_json()?, mutate).await.map(Response::raw_json)
    }

    async fn submit_operation<O: Operation>(
        &self,
        terms: Terms,
        operation: O,
        mutate: fn(&mut Change<'_>, &O) -> Result<O::Reply>,
    ) -> Result<Vec<u8>> {
        self.submit(terms, move |change| mutate(change, &operation).map(|reply| json(&reply))).await
    }

    /// For a primary on behalf of a session. Repeating it is safe by itself, so it needs no replay.
    async fn publish(&self, request: &Request) -> Result<Response> {
        let publish: Publish = request.parse_json()?;
        self.touch(publish.session);
        let terms = Terms { durable: publish.durable, ..Terms::default() };
        self.submit_operation(terms, publish, state::publish).await.map(Response::raw_json)
    }

    /// A commit for the disk takes all earlier ones along.
    async fn sync(&self, _: Sync) -> Result<Response> {
        self.submit(Terms { durable: true, ..Terms::default() }, |_| Ok(json(&Done {}))).await.map(Response::raw_json)
    }

    fn touch(&self, session: SessionId) {
        // Reads of an expired session are answered; its mutations and renewals are told.
        let _ = self.tables.lock().touch(session, self.now().clock);
    }

    async fn open_session(&self, client: OpenSession) -> Result<Response> {
        let reply = Session {
            session: SessionId(0),
            lease_ms: self.config.lease.as_millis() as u64,
            cluster: self.cluster.clone(),
            lock_url: self.config.lock_url.clone(),
            block_bits: self.config.block_bits,
            copies: self.config.copies,
        };
        let opened = self.submit(Terms::default(), move |change| {
            let session = state::open_session(change, &client)?;
            Ok(json(&Session { session, ..reply }))
        });
        opened.await.map(Response::raw_json)
    }

    async fn renew_session(&self, RenewSession { session, released }: RenewSession) -> Result<Response> {
        self.tables.lock().touch(session, self.now().clock)?;
        check_length("released", released.len())?;
        if !released.is_empty() {
            self.submit(Terms::default(), move |change| state::release(change, session, &released).map(|()| Vec::new())).await?;
        }
        let (orphans, more) = self.tables.lock().next_orphans(session, Renewed::MAX_ORPHANS);
        Ok(Response::json(&Renewed { orphans, more }))
    }

    async fn close_session(&self, CloseSession { session }: CloseSession) -> Result<Response> {
        self.end_session(session).await?;
        Ok(Response::json(&Done {}))
    }

    fn sessions(&self) -> Vec<SessionRow> {
        let now = self.now();
        let tables = self.tables.lock();
        let rows = tables.sessions.iter().map(|(&session, live)| SessionRow {
            session,
            client: live.record.client.clone(),
            idle_ms: now.clock.saturating_sub(live.seen).as_millis() as u64,
            age_ms: (now.wall.0.saturating_sub(live.record.opened.0).max(0) / 1_000_000) as u64,
            leases: 0,
        });
        rows.collect()
    }

    async fn register(&self, request: RegisterServer) -> Result<Response> {
        log::info!("file server '{}' registers with {}", request.name, request.url);
        let (cluster, heartbeat_ms) = (self.cluster.clone(), self.config.heartbeat.as_millis() as u64);
        let registered = self.submit(Terms::default(), move |change| {
            let server = state::register(change, &request)?;
            Ok(json(&Registered { server, cluster, heartbeat_ms }))
        });
        registered.await.map(Response::raw_json)
    }

    async fn heartbeat(&self, request: Heartbeat) -> Result<Response> {
        check_length("dropped", request.dropped.len())?;
        state::heard(&mut self.tables.lock(), &request, self.now().clock)?;
        let Heartbeat { server, dropped, .. } = request;
        if !dropped.is_empty() {
            self.submit(Terms::default(), move |change| state::confirm_dropped(change, server, &dropped).map(|()| Vec::new())).await?;
        }
        let now = self.now().clock;
        // Tables before the store, as the writer locks them.
        let mut tables = self.tables.lock();
        let orders = state::orders(&*self.store.snapshot(), &mut tables, &self.policy, server, now)?;
        Ok(Response::json(&orders))
    }

    async fn report_copy(&self, request: ReportCopy) -> Result<Response> {
        self.submit(Terms::default(), move |change| state::report_copy(change, &request).map(|()| Vec::new())).await?;
        Ok(Response::json(&Done {}))
    }

    fn status(&self) -> DirectoryStatus {
        let requests = self.requests.lock().iter().filter(|(_, count)| **count > 0).map(|(path, count)| ((*path).to_owned(), *count)).collect();
        let tables = self.tables.lock();
        DirectoryStatus {
            cluster: self.cluster.clone(),
            program: format!("dfs-server {}", env!("CARGO_PKG_VERSION")),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            revision: self.revision.load(Ordering::Relaxed),
            inodes: tables.inodes,
            orphans: tables.orphans,
            sessions: tables.sessions.len() as u64,
            leases: 0,
            events: 0,
            under_replicated: tables.under.len() as u64,
            requests,
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("wire types serialize")
}

fn check_length(field: &str, length: usize) -> Result<()> {
    if length > LIST_MAX {
        return Err(Error::new(ErrorKind::TooBig, format!("{field} has {length} items, at most {LIST_MAX} are taken at a time")));
    }
    Ok(())
}
