//! Translates requests to the lock service's operations; decides nothing.

use std::sync::Arc;

use dfs_common::api::lock::{
    Acquire, Break, Cancel, CancelRange, End, InUse, LockRange, Locks, PATHS, Ranges, Recalls, Release, Renew, Status, TakeOver, TestRange,
    UnlockRange,
};
use dfs_common::api::{Done, Operation};
use dfs_common::ids::SessionId;
use dfs_common::wire::{Method, Request, Response, Service};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::{BoxFuture, FutureExt, ready};

use super::LockService;

impl Service for LockService {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        let answer = match (request.path.as_str(), request.method) {
            (Acquire::PATH, Method::Post) => parse(&request, |a: &Acquire| Some(a.session)).map(|a| self.acquire(a).map(json).boxed()),
            (Recalls::PATH, Method::Post) => parse(&request, |r: &Recalls| Some(r.session)).map(|r| self.recalls(r).map(json).boxed()),
            (LockRange::PATH, Method::Post) => parse(&request, |l: &LockRange| Some(l.owner.session)).map(|l| self.lock_range(l).map(done).boxed()),
            (Break::PATH, Method::Post) => parse(&request, |_| None).map(|b| self.break_lock(b).map(done).boxed()),
            _ => Ok(ready(Response::from(self.answer(&request))).boxed()),
        };
        answer.unwrap_or_else(|e| ready(Response::error(&e)).boxed())
    }
}

fn json<T: serde::Serialize>(result: Result<T>) -> Response {
    Response::from(result.map(|reply| Response::json(&reply)))
}

fn done(result: Result<()>) -> Response {
    json(result.map(|()| Done {}))
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
            InUse::PATH => self.in_use(&parse(request, |i: &InUse| Some(i.session))?).map(done),
            End::PATH => self.end(&parse(request, |e: &End| Some(e.session))?).map(done),
            TakeOver::PATH => Ok(Response::json(&self.take_over(&parse(request, |t: &TakeOver| Some(t.session))?)?)),
            CancelRange::PATH => self.cancel_range(&parse(request, |c: &CancelRange| Some(c.owner.session))?).map(done),
            UnlockRange::PATH => self.unlock_range(&parse(request, |u: &UnlockRange| Some(u.owner.session))?).map(done),
            TestRange::PATH => Ok(Response::json(&self.test_range(&parse(request, |t: &TestRange| Some(t.owner.session))?)?)),
            Locks::PATH => Ok(Response::json(&self.list(&parse(request, |_| None)?))),
            Ranges::PATH => Ok(Response::json(&self.list_ranges(&parse(request, |_| None)?))),
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
