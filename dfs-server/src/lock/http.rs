//! Translates requests to the lock service's operations; decides nothing.

use std::sync::Arc;

use dfs_common::api::lock::{Acquire, Cancel, End, Locks, PATHS, Release, Renew, Status};
use dfs_common::api::{Done, Operation};
use dfs_common::ids::SessionId;
use dfs_common::wire::{Method, Request, Response, Service};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::{BoxFuture, FutureExt, ready};

use super::LockService;

impl Service for LockService {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        if request.path == Acquire::PATH && request.method == Method::Post {
            return match parse::<Acquire>(&request, |a| Some(a.session)) {
                Ok(acquire) => self.acquire(acquire).map(|grant| Response::from(grant.map(|g| Response::json(&g)))).boxed(),
                Err(e) => ready(Response::error(&e)).boxed(),
            };
        }
        ready(Response::from(self.answer(&request))).boxed()
    }
}

impl LockService {
    /// Everything that needs no waiting.
    fn answer(&self, request: &Request) -> Result<Response> {
        if !PATHS.contains(&request.path.as_str()) {
            return Err(Error::new(ErrorKind::NotFound, "no such resource of the lock service"));
        }
        if request.method != Method::Post {
            return Err(Error::new(ErrorKind::Invalid, format!("{} takes POST", request.path)));
        }
        let done = |()| Response::json(&Done {});
        match request.path.as_str() {
            Cancel::PATH => self.cancel(&parse(request, |c: &Cancel| Some(c.session))?).map(done),
            Release::PATH => self.release(&parse(request, |r: &Release| Some(r.session))?).map(done),
            Renew::PATH => Ok(Response::json(&self.renew(&parse(request, |r: &Renew| Some(r.session))?))),
            End::PATH => self.end(&parse(request, |e: &End| Some(e.session))?).map(done),
            Locks::PATH => Ok(Response::json(&self.list(&parse(request, |_| None)?))),
            Status::PATH => parse::<Status>(request, |_| None).map(|_| Response::json(&self.status())),
            other => unreachable!("{other} is in the table and has no arm"),
        }
    }
}

/// The operation in the body, which must not speak for another session than the header names.
fn parse<O: Operation>(request: &Request, session: impl FnOnce(&O) -> Option<SessionId>) -> Result<O> {
    let operation: O = request.parse_json()?;
    match (session(&operation), request.session) {
        (Some(body), Some(header)) if body != header => {
            Err(Error::new(ErrorKind::Invalid, format!("the body speaks for session {body}, the header for session {header}")))
        }
        _ => Ok(operation),
    }
}
