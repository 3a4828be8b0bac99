//! From requests to operations and from results to replies, and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dfs_common::api::directory::*;
use dfs_common::api::{Done, Operation};
use dfs_common::attributes::Timestamp;
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::user::User;
use dfs_common::wire::{Method, Request, Response, Service};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::BoxFuture;

use super::Directory;
use super::leases::{Author, Block, Inner};
use super::state::{self, Affected, Change, End, Guarded, Leased, Tables, Tells};
use super::writer::{Answer, Reply, Terms};
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
            Lookup::PATH => self.read_leased(&request, state::lookup).await,
            GetAttributes::PATH => self.read_leased(&request, state::get_attributes).await,
            Resolve::PATH => self.resolve(&request).await,
            Access::PATH => state::access(&*self.store.snapshot(), &request.parse_json()?, request.user.as_ref()).map(|done| Response::json(&done)),
            List::PATH => self.read_leased_as(&request, state::list, if request.packed { Response::packed::<List> } else { Response::json }).await,
            ReadLink::PATH => self.read_leased(&request, state::read_link).await,
            GetXattr::PATH => self.read_leased(&request, state::get_xattr).await,
            ListXattrs::PATH => self.read_leased(&request, state::list_xattrs).await,
            NameHistory::PATH => self.read(&request, state::name_history),
            Removals::PATH => self.removals(&request).await,
            Versions::PATH => self.read(&request, state::versions),
            HeldVersions::PATH => self.read(&request, state::held_versions),
            Make::PATH => self.mutate(&request, state::make).await,
            Link::PATH => self.mutate(&request, state::link).await,
            Remove::PATH => self.mutate(&request, state::remove).await,
            Undelete::PATH => self.mutate(&request, state::undelete).await,
            Rename::PATH => self.mutate(&request, state::rename).await,
            SetAttributes::PATH => self.mutate(&request, state::set_attributes).await,
            SetXattr::PATH => self.mutate(&request, state::set_xattr).await,
            RemoveXattr::PATH => self.mutate(&request, state::remove_xattr).await,
            Place::PATH => self.place(&request).await,
            Publish::PATH => self.publish(&request).await,
            Accessed::PATH => self.accessed(request.parse_json()?).await,
            Fence::PATH => self.fence(request.parse_json()?).await,
            Sync::PATH => self.sync(request.parse_json()?).await,
            _ => self.answer_of_cluster(&request).await,
        }
    }

    /// Sessions, file servers, numbers.
    async fn answer_of_cluster(&self, request: &Request) -> Result<Response> {
        match request.path.as_str() {
            OpenSession::PATH => self.open_session(request).await,
            RenewSession::PATH => self.renew_session(request.parse_json()?).await,
            CloseSession::PATH => self.close_session(request.parse_json()?).await,
            ClaimLeases::PATH => self.claim_leases(request.parse_json()?).await,
            Events::PATH => self.events(request.parse_json()?).await,
            Waits::PATH => request.parse_json::<Waits>().map(|_| Response::json(&self.leasing.waits())),
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

    /// Reads what nobody holds leases on.
    fn read<O: Guarded + Tells>(&self, request: &Request, read: fn(&dyn View, &O) -> Result<O::Reply>) -> Result<Response> {
        let operation: O = request.parse_json()?;
        let mut tables = self.tables.lock();
        let reply = state::read_as(&*self.store.snapshot(), request.user.as_ref(), &operation, read)?;
        tell(&mut tables, request.session, &operation.inodes(&reply));
        Ok(Response::json(&reply))
    }

    /// For clients without leases.
    async fn resolve(&self, request: &Request) -> Result<Response> {
        let resolve: Resolve = request.parse_json()?;
        let author = Author { operation: Resolve::PATH, session: request.session };
        let walk = |view: &dyn View| {
            let found = state::resolve(view, &resolve, request.user.as_ref());
            let inodes = found.iter().flat_map(|found| [Some(found.parent), found.entry.as_ref().map(|entry| entry.attributes.ino)]);
            let inodes = inodes.flatten().collect();
            (found, inodes)
        };
        let (found, ()) = self.read_told(author, walk, |_, _| ()).await?;
        found.map(|found| Response::json(&found))
    }

    /// Read in slices, between which others have their turn.
    async fn removals(&self, request: &Request) -> Result<Response> {
        let operation: Removals = request.parse_json()?;
        let mut page = RemovalPage::default();
        state::check(&*self.store.snapshot(), request.user.as_ref(), &operation)?;
        let mut from = Some(state::removals_from(&*self.store.snapshot(), &operation)?);
        while let Some(at) = from {
            {
                let mut tables = self.tables.lock();
                let before = page.rows.len();
                from = state::removals(&*self.store.snapshot(), &operation, &mut page, &at)?;
                let inodes: Vec<InodeId> = page.rows[before..].iter().map(|row| row.entry.attributes.ino).collect();
                tell(&mut tables, request.session, &inodes);
            }
            tokio::task::yield_now().await;
        }
        Ok(Response::json(&page))
    }

    /// Reads, and grants the session a lease on what it is told. Both under one lock: a change comes before both or after.
    async fn read_leased<O: Leased + Guarded>(&self, request: &Request, read: fn(&dyn View, &O) -> Result<O::Reply>) -> Result<Response> {
        self.read_leased_as(request, read, Response::json).await
    }

    /// The same, with the answer in the form that `respond` gives it.
    async fn read_leased_as<O: Leased + Guarded>(
        &self,
        request: &Request,
        read: fn(&dyn View, &O) -> Result<O::Reply>,
        respond: fn(&O::Reply) -> Response,
    ) -> Result<Response> {
        let operation: O = request.parse_json()?;
        let author = Author { operation: O::PATH, session: request.session };
        let ask = |view: &dyn View| {
            let answer = state::read_as(view, request.user.as_ref(), &operation, read);
            let inodes = operation.inodes(&answer);
            (answer, inodes)
        };
        let grant = |leasing: &mut Inner, inodes: &[InodeId]| leasing.leases.grant(request.session?, inodes, false, |_| false, self.now().clock);
        let (answer, granted) = self.read_told(author, ask, grant).await?;
        let response = answer.map(|reply| respond(&reply)).into();
        Ok(with_leases(response, granted.as_ref()))
    }

    /// Reads, once those who have directories of the answer to themselves have told what they made there; `read` says which inodes the
    /// answer tells of. `then` comes under the same lock.
    async fn read_told<T, U>(
        &self,
        author: Author,
        read: impl Fn(&dyn View) -> (T, Vec<InodeId>),
        then: impl Fn(&mut Inner, &[InodeId]) -> U,
    ) -> Result<(T, U)> {
        let mut block: Option<Block> = None;
        loop {
            let (told, pending) = {
                let mut tables = self.tables.lock();
                let mut leasing = self.leasing.lock();
                let (answer, inodes) = read(&*self.store.snapshot());
                let untold = leasing.leases.exclusive_of_others(&inodes, author.session);
                if untold.is_empty() {
                    if let Some(block) = block {
                        block.release(&mut leasing);
                    }
                    tell(&mut tables, author.session, &inodes);
                    let then = then(&mut leasing, &inodes);
                    return Ok((answer, then));
                }
                let untold = untold.into_iter().map(|ino| Affected { ino, name: None, over: false }).collect();
                self.leasing.tell(&mut leasing, block.take(), untold, author, self.now().clock)
            };
            self.leasing.acknowledged(author, &told, pending).await?;
            block = Some(told);
        }
    }

    async fn mutate<O: Leased + Guarded>(&self, request: &Request, mutate: fn(&mut Change<'_>, &O) -> Result<O::Reply>) -> Result<Response> {
        let terms = Terms { author: Some(Author { operation: O::PATH, session: request.session }), ..terms(request)? };
        self.submit_leased(terms, request.user.clone(), request.parse_json()?, mutate).await
    }

    async fn submit_leased<O: Leased + Guarded>(
        &self,
        terms: Terms,
        user: Option<User>,
        operation: O,
        mutate: fn(&mut Change<'_>, &O) -> Result<O::Reply>,
    ) -> Result<Response> {
        let terms = Terms { numbers: operation.numbers(), ..terms };
        let prepare = move |change: &mut Change<'_>| {
            state::check(&change.view, user.as_ref(), &operation)?;
            change.user.clone_from(&user);
            let answer = mutate(change, &operation);
            let (inodes, exclusive) = (operation.inodes(&answer), operation.exclusive(&answer));
            answer.map(|reply| Reply { body: json(&reply), inodes, exclusive })
        };
        let Answer { body, granted } = self.submit(terms, prepare).await?;
        Ok(with_leases(Response::raw_json(body), granted.as_ref()))
    }

    /// For a primary on behalf of a session. Repeating it is safe by itself, so it needs no replay.
    async fn publish(&self, request: &Request) -> Result<Response> {
        let publish: Publish = request.parse_json()?;
        self.touch(publish.session);
        let author = Author { operation: Publish::PATH, session: Some(publish.session) };
        let terms = Terms { durable: publish.durable, author: Some(author), ..Terms::default() };
        self.submit_leased(terms, request.user.clone(), publish, state::publish).await
    }

    /// Where a file's next commit goes is advice, on which nobody holds a lease.
    async fn place(&self, request: &Request) -> Result<Response> {
        let (terms, user, operation) = (terms(request)?, request.user.clone(), request.parse_json()?);
        let place = move |change: &mut Change<'_>| {
            state::check(&change.view, user.as_ref(), &operation)?;
            state::place(change, &operation).map(|entry| Reply { body: json(&entry), inodes: vec![operation.ino], exclusive: None })
        };
        Ok(Response::raw_json(self.submit(terms, place).await?.body))
    }

    /// For the lock service. Repeating it changes nothing.
    async fn fence(&self, fence: Fence) -> Result<Response> {
        self.submit_json(Terms::default(), move |change| state::fence(change, &fence).map(|()| Done {})).await
    }

    /// Repeating it changes nothing, and nobody's lease depends on it.
    async fn accessed(&self, accessed: Accessed) -> Result<Response> {
        let count = accessed.times.len();
        if count == 0 {
            return Err(Error::new(ErrorKind::Invalid, "no inode was accessed"));
        }
        if count > Accessed::MAX {
            return Err(Error::new(ErrorKind::TooBig, format!("at most {} inodes at a time, not {count}", Accessed::MAX)));
        }
        self.submit_json(Terms::default(), move |change| state::accessed(change, &accessed).map(|()| Done {})).await
    }

    /// A commit for the disk takes all earlier ones along.
    async fn sync(&self, _: Sync) -> Result<Response> {
        self.submit_json(Terms { durable: true, ..Terms::default() }, |_| Ok(Done {})).await
    }

    /// A change that concerns no lease.
    async fn submit_json<T: serde::Serialize>(
        &self,
        terms: Terms,
        prepare: impl Fn(&mut Change<'_>) -> Result<T> + Send + 'static,
    ) -> Result<Response> {
        let answer = self.submit(terms, move |change| prepare(change).map(|reply| json(&reply).into())).await?;
        Ok(Response::raw_json(answer.body))
    }

    async fn claim_leases(&self, request: ClaimLeases) -> Result<Response> {
        if request.held.len() > ClaimLeases::MAX_HELD {
            return Err(Error::new(ErrorKind::TooBig, format!("at most {} leases are claimed, not {}", ClaimLeases::MAX_HELD, request.held.len())));
        }
        let mut tables = self.tables.lock();
        tables.touch(request.session, self.now().clock)?;
        if tables.sessions.get(&request.session).is_none_or(|live| live.record.client.mountpoint.is_empty()) {
            return Err(Error::new(ErrorKind::Invalid, format!("session {} has no mountpoint, so it holds no leases", request.session)));
        }
        let (begins, next) = (request.revision == 0 && request.held.is_empty(), InodeId(tables.inode_ids.next()));
        tables.aware.claim(request.session, begins, next);
        // With the tables locked: the session must not end in between.
        Ok(Response::json(&self.leasing.claim(&request, || self.revision.load(Ordering::Relaxed))))
    }

    async fn events(&self, request: Events) -> Result<Response> {
        if request.wait_ms > Events::MAX_WAIT_MS {
            return Err(Error::new(ErrorKind::Invalid, format!("a wait has at most {} ms, not {}", Events::MAX_WAIT_MS, request.wait_ms)));
        }
        self.tables.lock().touch(request.session, self.now().clock)?;
        let (events, revision) = self.leasing.events(&request, || self.revision.load(Ordering::Relaxed)).await?;
        Ok(Response::json(&EventBatch { events, revision }))
    }

    fn touch(&self, session: SessionId) {
        // Reads of an expired session are answered; its mutations and renewals are told.
        let _ = self.tables.lock().touch(session, self.now().clock);
    }

    async fn open_session(&self, request: &Request) -> Result<Response> {
        let client: OpenSession = request.parse_json()?;
        let reply = Session {
            session: SessionId(0),
            lease_ms: self.config.lease.as_millis() as u64,
            cluster: self.cluster.clone(),
            lock_url: self.config.lock_url.clone(),
            block_bits: self.config.block_bits,
            copies: self.config.copies,
            lock_waits: self.config.lock_waits.clone(),
            now: Timestamp::default(),
            squash: request.origin.limits().squash,
        };
        let open = move |change: &mut Change<'_>| {
            let session = state::open_session(change, &client)?;
            Ok(Session { session, now: change.now.wall, ..reply.clone() })
        };
        self.submit_json(Terms::default(), open).await
    }

    async fn renew_session(&self, RenewSession { session, released }: RenewSession) -> Result<Response> {
        self.tables.lock().touch(session, self.now().clock)?;
        check_length("released", released.len())?;
        if !released.is_empty() {
            self.submit(Terms::default(), move |change| state::release(change, session, &released).map(|()| Reply::default())).await?;
        }
        let (orphans, more) = self.tables.lock().next_orphans(session, Renewed::MAX_ORPHANS);
        Ok(Response::json(&Renewed { orphans, more, now: self.now().wall }))
    }

    async fn close_session(&self, CloseSession { session }: CloseSession) -> Result<Response> {
        self.end_session(session, End::Closed).await?;
        Ok(Response::json(&Done {}))
    }

    fn sessions(&self) -> Vec<SessionRow> {
        let now = self.now();
        let tables = self.tables.lock();
        let leasing = self.leasing.lock();
        let rows = tables.sessions.iter().map(|(&session, live)| SessionRow {
            session,
            client: live.record.client.clone(),
            idle_ms: now.clock.saturating_sub(live.seen).as_millis() as u64,
            age_ms: (now.wall.0.saturating_sub(live.record.opened.0).max(0) / 1_000_000) as u64,
            leases: leasing.leases.count_of(session),
        });
        rows.collect()
    }

    async fn register(&self, request: RegisterServer) -> Result<Response> {
        log::info!("file server '{}' registers with {}", request.name, request.url);
        let (cluster, heartbeat_ms) = (self.cluster.clone(), self.config.heartbeat.as_millis() as u64);
        let register = move |change: &mut Change<'_>| {
            let server = state::register(change, &request)?;
            Ok(Registered { server, cluster: cluster.clone(), heartbeat_ms })
        };
        self.submit_json(Terms::default(), register).await
    }

    async fn heartbeat(&self, request: Heartbeat) -> Result<Response> {
        check_length("dropped", request.dropped.len())?;
        state::heard(&mut self.tables.lock(), &request, self.now().clock)?;
        let Heartbeat { server, dropped, .. } = request;
        if !dropped.is_empty() {
            self.submit(Terms::default(), move |change| state::confirm_dropped(change, server, &dropped).map(|()| Reply::default())).await?;
        }
        let now = self.now().clock;
        let orders = {
            // Tables before the store, as the writer locks them.
            let mut tables = self.tables.lock();
            state::orders(&*self.store.snapshot(), &mut tables, &self.policy, server, now)?
        };
        if !orders.drop.is_empty() {
            // Where the power failed before, they would be alive again.
            self.sync(Sync {}).await?;
        }
        Ok(Response::json(&orders))
    }

    async fn report_copy(&self, request: ReportCopy) -> Result<Response> {
        self.submit_json(Terms::default(), move |change| state::report_copy(change, &request).map(|()| Done {})).await
    }

    fn status(&self) -> DirectoryStatus {
        let requests = self.requests.lock().iter().filter(|(_, count)| **count > 0).map(|(path, count)| ((*path).to_owned(), *count)).collect();
        let tables = self.tables.lock();
        let (leases, events) = self.leasing.lock().leases.counts();
        DirectoryStatus {
            cluster: self.cluster.clone(),
            program: format!("dfs-server {}", env!("CARGO_PKG_VERSION")),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            revision: self.revision.load(Ordering::Relaxed),
            inodes: tables.inodes,
            orphans: tables.orphans,
            kept: tables.kept,
            sessions: tables.sessions.len() as u64,
            leases,
            events,
            under_replicated: tables.under.len() as u64,
            requests,
        }
    }
}

/// Notes that `session` is told of `inodes`. Who names none has nothing open. The tables are locked since
/// before these were read: so a removal comes before the answer, or knows of it.
fn tell(tables: &mut Tables, session: Option<SessionId>, inodes: &[InodeId]) {
    if let Some(session) = session {
        tables.aware.tell(session, inodes);
    }
}

/// Whose mutation it is, and whether it was carried out before.
fn terms(request: &Request) -> Result<Terms> {
    if request.replay.is_some() && request.session.is_none() {
        return Err(Error::new(ErrorKind::Invalid, "a replay number belongs to a session, and none is named"));
    }
    Ok(Terms { session: request.session, replay: request.replay, ..Terms::default() })
}

fn with_leases(response: Response, granted: Option<&Granted>) -> Response {
    Response { meta: granted.map(|granted| serde_json::to_string(granted).expect("wire types serialize")), ..response }
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
