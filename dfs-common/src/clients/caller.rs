//! One service behind one transport: JSON operations with replay, retry and deadline.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::behalf;
use super::steps::{self, Noted, Target};
use crate::api::directory::Granted;
use crate::api::{Operation, Packed};
use crate::ids::SessionId;
use crate::transport::Transport;
use crate::user::User;
use crate::wire::{Method, Replay, Request, Response};
use crate::{Error, ErrorKind, Result};

/// First pause before a retry; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Connections that may die unnoticed, one after the other, before a call fails.
const ATTEMPTS: u32 = 4;

/// A service that answers operations.
///
/// A mutation of a session carries a slot and a sequence number, and a retry carries the same ones, so
/// that it happens once however often the reply is lost. Everything else is safe to repeat. What is refused to the user
/// on whose behalf it is asked ([`behalf`]) is asked once more with all of the user's groups.
#[derive(Debug)]
pub struct Caller {
    transport: Arc<dyn Transport>,
    session: Mutex<Option<SessionId>>,
    timeout: Duration,
    slots: Slots,
}

impl Caller {
    /// `timeout` bounds each call, retries included.
    pub fn new(transport: Arc<dyn Transport>, timeout: Duration) -> Self {
        Self { transport, session: Mutex::new(None), timeout, slots: Slots::new() }
    }

    /// The session on whose behalf calls are made from now on.
    pub fn set_session(&self, session: SessionId) {
        *self.session.lock() = Some(session);
    }

    /// That session.
    pub fn session(&self) -> Option<SessionId> {
        *self.session.lock()
    }

    /// Whom it reaches, for messages.
    pub fn peer(&self) -> &str {
        self.transport.peer()
    }

    /// The limit of one call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Carries out `operation` within the timeout.
    pub async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        self.call_within(operation, self.timeout).await
    }

    /// The same with a limit of its own.
    pub async fn call_within<O: Operation>(&self, operation: &O, limit: Duration) -> Result<O::Reply> {
        self.exchange(operation, limit).await?.parse_json()
    }

    /// Carries out `operation`; with the answer, and with an error too, comes what leases it gives.
    pub async fn call_leased<O: Operation>(&self, operation: &O) -> (Result<O::Reply>, Option<Granted>) {
        leased(self.exchange(operation, self.timeout).await, Response::parse_json)
    }

    /// The same, with the answer in the form for programs where the service knows it.
    pub async fn call_leased_packed<O: Packed>(&self, operation: &O) -> (Result<O::Reply>, Option<Granted>) {
        let request = self.request(operation).packed(true);
        leased(self.exchange_request::<O>(request, self.timeout).await, Response::unpack::<O>)
    }

    async fn exchange<O: Operation>(&self, operation: &O, limit: Duration) -> Result<Response> {
        self.exchange_request::<O>(self.request(operation), limit).await
    }

    async fn exchange_request<O: Operation>(&self, mut request: Request, limit: Duration) -> Result<Response> {
        let deadline = Instant::now() + limit;
        loop {
            // Another user is another question: its answer must not be the stored one.
            let slot = self.slot::<O>(&request, deadline).await?;
            request.replay = slot.as_ref().map(Slot::replay);
            let reply = self.send_until(&request, deadline).await?;
            match more_groups(&request, &reply) {
                Some(user) => request.user = Some(user),
                None => return Ok(reply),
            }
        }
    }

    fn request<O: Operation>(&self, operation: &O) -> Request {
        Request::new(Method::Post, O::PATH).json(operation).session(self.session()).user(behalf::user())
    }

    /// The same, with one attempt: transient errors are the caller's to judge.
    pub async fn call_once<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        self.call_once_within(operation, self.timeout).await
    }

    /// One attempt with a limit of its own.
    pub async fn call_once_within<O: Operation>(&self, operation: &O, limit: Duration) -> Result<O::Reply> {
        let deadline = Instant::now() + limit;
        let mut request = self.request(operation);
        loop {
            let slot = self.slot::<O>(&request, deadline).await?;
            request.replay = slot.as_ref().map(Slot::replay);
            let _noted = self.note(&request);
            let Ok(reply) = timeout_at(deadline, self.send_once(&request)).await else { return Err(self.timed_out(&request, "no answer")) };
            let reply = reply?;
            match more_groups(&request, &reply) {
                Some(user) => request.user = Some(user),
                None => return reply.parse_json(),
            }
        }
    }

    /// The replay slot that `request` needs, if it does. All may be in use by requests that wait themselves.
    async fn slot<O: Operation>(&self, request: &Request, deadline: Instant) -> Result<Option<Slot<'_>>> {
        if !O::MUTATES || request.session.is_none() {
            return Ok(None);
        }
        match timeout_at(deadline, self.slots.take()).await {
            Ok(slot) => Ok(Some(slot)),
            Err(_) => Err(self.timed_out(request, "earlier requests are not answered yet")),
        }
    }

    fn note(&self, request: &Request) -> Noted {
        steps::note(|| Target::Answer { server: self.peer().to_owned(), resource: request.path.clone() })
    }

    /// Sends `request` again and again until somebody answers with something that is not transient, or the deadline.
    pub async fn send_until(&self, request: &Request, deadline: Instant) -> Result<Response> {
        let mut pause = FIRST_PAUSE;
        let noted = self.note(request);
        // A connection that has died unnoticed costs a part of the time, not all of it.
        let attempt = deadline.saturating_duration_since(Instant::now()) / ATTEMPTS;
        loop {
            let answered_by = deadline.min(Instant::now() + attempt);
            let problem = match timeout_at(answered_by, self.transport.send(request.clone())).await {
                Ok(Ok(reply)) => match transient(&reply) {
                    None => return Ok(reply),
                    Some(problem) => problem,
                },
                Ok(Err(e)) if e.kind().is_transient() => e,
                Ok(Err(e)) => return Err(e),
                Err(_) => Error::new(ErrorKind::TimedOut, "no answer"),
            };
            if Instant::now() + pause >= deadline {
                return Err(self.timed_out(request, problem.message()));
            }
            log::debug!("{} {}: {problem}; trying again", self.peer(), request.path);
            noted.failed(&problem);
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// One attempt, without a limit of its own; transient replies are errors.
    pub async fn send_once(&self, request: &Request) -> Result<Response> {
        let reply = self.transport.send(request.clone()).await?;
        match transient(&reply) {
            None => Ok(reply),
            Some(problem) => Err(problem),
        }
    }

    fn timed_out(&self, request: &Request, why: &str) -> Error {
        Error::new(ErrorKind::TimedOut, format!("{} did not answer {} in time: {why}", self.peer(), request.path))
    }
}

/// What `parse` makes of a reply, and the leases that came with it.
fn leased<T>(reply: Result<Response>, parse: impl FnOnce(Response) -> Result<T>) -> (Result<T>, Option<Granted>) {
    let granted = reply.as_ref().ok().and_then(Response::granted);
    (reply.and_then(parse), granted)
}

/// The user of `request` with groups that were not told, where that may get it another answer than the refusal in `reply`.
pub(super) fn more_groups(request: &Request, reply: &Response) -> Option<User> {
    if reply.is_refusal() { behalf::with_groups(request.user.as_ref()) } else { None }
}

/// The error in a reply that is worth another attempt.
fn transient(reply: &Response) -> Option<Error> {
    if reply.status < 500 {
        return None;
    }
    reply.clone().into_bytes().err().filter(|e| e.kind().is_transient())
}

/// The replay slots of a session: each is used by one mutation at a time, its sequence number rises.
#[derive(Debug)]
struct Slots {
    free: Mutex<Vec<(u16, u64)>>,
    permits: Semaphore,
}

impl Slots {
    fn new() -> Self {
        // Taken from the end, so a client that does one thing at a time uses one slot.
        Self { free: Mutex::new((0..Replay::SLOTS).rev().map(|slot| (slot, 0)).collect()), permits: Semaphore::new(usize::from(Replay::SLOTS)) }
    }

    async fn take(&self) -> Slot<'_> {
        let permit = self.permits.acquire().await.expect("never closed");
        let (slot, last) = self.free.lock().pop().expect("a permit stands for a free slot");
        Slot { slots: self, slot, sequence: last + 1, _permit: permit }
    }
}

struct Slot<'a> {
    slots: &'a Slots,
    slot: u16,
    sequence: u64,
    _permit: tokio::sync::SemaphorePermit<'a>,
}

impl Slot<'_> {
    fn replay(&self) -> Replay {
        Replay { slot: self.slot, sequence: self.sequence }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        // Before the permit goes: fields are dropped after this.
        self.slots.free.lock().push((self.slot, self.sequence));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::api::directory::{Remove, Status};
    use crate::ids::ROOT;
    use crate::name::Name;

    /// Fails `failures` times, then answers an error that is final; records replays.
    #[derive(Debug, Default)]
    struct Flaky {
        failures: AtomicU32,
        seen: Mutex<Vec<Option<Replay>>>,
    }

    impl Transport for Arc<Flaky> {
        fn send(&self, request: Request) -> BoxFuture<'_, Result<Response>> {
            self.seen.lock().push(request.replay);
            let fail = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            Box::pin(async move { if fail { Err(ErrorKind::Unavailable.into()) } else { Ok(Response::error(&ErrorKind::NotFound.into())) } })
        }
        fn peer(&self) -> &str {
            "flaky"
        }
    }

    fn remove() -> Remove {
        Remove { parent: ROOT, name: Name::new(b"x").unwrap(), directory: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_carries_the_same_number_and_the_next_call_a_higher_one() {
        let flaky = Arc::new(Flaky::default());
        let caller = Caller::new(Arc::new(flaky.clone()), Duration::from_secs(60));
        caller.set_session(SessionId(1));
        flaky.failures.store(3, Ordering::SeqCst);
        assert_eq!(caller.call(&remove()).await.unwrap_err().kind(), ErrorKind::NotFound);
        caller.call(&remove()).await.unwrap_err();
        let seen = flaky.seen.lock().clone();
        let replay = |sequence| Some(Replay { slot: 0, sequence });
        assert_eq!(seen, [replay(1), replay(1), replay(1), replay(1), replay(2)]);
    }

    /// Answers nothing on what stands for its first connection.
    #[derive(Debug, Default)]
    struct HalfOpen(AtomicU32);

    impl Transport for HalfOpen {
        fn send(&self, _request: Request) -> BoxFuture<'_, Result<Response>> {
            let silent = self.0.fetch_add(1, Ordering::SeqCst) == 0;
            Box::pin(async move { if silent { std::future::pending().await } else { Ok(Response::error(&ErrorKind::NotFound.into())) } })
        }
        fn peer(&self) -> &str {
            "half open"
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_died_unnoticed_leaves_time_for_another() {
        let caller = Caller::new(Arc::new(HalfOpen::default()), Duration::from_secs(60));
        let start = Instant::now();
        assert_eq!(caller.call(&remove()).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(start.elapsed() < Duration::from_secs(31), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_server_is_an_error_in_time() {
        let flaky = Arc::new(Flaky::default());
        flaky.failures.store(u32::MAX, Ordering::SeqCst);
        let caller = Caller::new(Arc::new(flaky.clone()), Duration::from_secs(2));
        let start = Instant::now();
        assert_eq!(caller.call(&Status {}).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() <= Duration::from_secs(2));
    }
}
