//! The one writer: mutations that wait at the same time become one commit.
//!
//! A request queues its mutation, lets the others that are ready do the same, and then
//! whoever finds nobody committing commits whatever is queued (combining): the latency
//! of a direct call with the throughput of a writer thread. Each mutation is prepared
//! above the ones before it; one that fails contributes nothing. Replies are stored in
//! the batch of their mutation, which is what makes a retry get the first answer.

use std::sync::atomic::Ordering;

use dfs_common::ids::SessionId;
use dfs_common::wire::Replay;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Directory;
use super::state::records::{Record, StoredReply};
use super::state::{Change, Effects, Moment, Tables, keys};
use crate::store::{Batch, Durability, Overlay, View};

/// The most mutations of one commit: bounds how long the first of them waits.
const GROUP: usize = 256;

/// A mutation and its answer as JSON.
type Prepare = Box<dyn FnOnce(&mut Change<'_>) -> Result<Vec<u8>> + Send>;

/// On whose behalf, and how sure.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    pub(super) session: Option<SessionId>,
    pub(super) replay: Option<Replay>,
    pub(super) durable: bool,
}

struct Job {
    prepare: Prepare,
    terms: Terms,
    done: oneshot::Sender<Result<Vec<u8>>>,
}

/// What waits for the next commit.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Mutex<Vec<Job>>,
    /// Held while a group is prepared and committed.
    committing: Mutex<()>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("jobs", &self.jobs.lock().len()).finish_non_exhaustive()
    }
}

/// What one mutation came to.
struct Outcome {
    answer: Result<Vec<u8>>,
    /// False where the answer holds whatever becomes of the commit.
    in_commit: bool,
    done: oneshot::Sender<Result<Vec<u8>>>,
}

impl Directory {
    /// Commits a mutation, together with others that wait, and returns its answer. A future that is dropped
    /// leaves the mutation in the queue.
    pub(super) async fn submit(&self, terms: Terms, prepare: impl FnOnce(&mut Change<'_>) -> Result<Vec<u8>> + Send + 'static) -> Result<Vec<u8>> {
        let (done, mut answer) = oneshot::channel();
        self.queue.jobs.lock().push(Job { prepare: Box::new(prepare), terms, done });
        tokio::task::yield_now().await;
        // Who was committed by somebody else meanwhile leaves the queue to those who came later: they gather there.
        if let Ok(answer) = answer.try_recv() {
            return answer;
        }
        self.commit_queued();
        answer.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the mutation was given up, see the log")))
    }

    fn commit_queued(&self) {
        loop {
            // Whoever commits looks at the queue once more when it is done, so nothing is left behind.
            let Some(guard) = self.queue.committing.try_lock() else { return };
            let group: Vec<Job> = {
                let mut jobs = self.queue.jobs.lock();
                let count = jobs.len().min(GROUP);
                jobs.drain(..count).collect()
            };
            if !group.is_empty() {
                self.commit(group);
            }
            drop(guard);
            if self.queue.jobs.lock().is_empty() {
                return;
            }
        }
    }

    fn commit(&self, group: Vec<Job>) {
        let now = self.now();
        let mut tables = self.tables.lock();
        let snapshot = self.store.snapshot();
        let mut pending = Overlay::new(&*snapshot);
        let count = group.len() as u64;
        let inode_mark = tables.inode_ids.reserve(count, &mut pending);
        let session_mark = tables.session_ids.reserve(count, &mut pending);
        let (mut outcomes, mut effects) = (Vec::with_capacity(group.len()), Vec::new());
        let mut durability = Durability::Process;
        for Job { prepare, terms, done } in group {
            let (answer, prepared) = self.prepare(prepare, terms, &mut tables, &pending, now);
            let in_commit = prepared.is_some();
            if let Some((changes, effect)) = prepared {
                pending.absorb(changes);
                effects.push(effect);
                if terms.durable {
                    durability = Durability::Disk;
                }
            }
            outcomes.push(Outcome { answer, in_commit, done });
        }
        let changes = pending.into_changes();
        drop(snapshot);
        let nothing = changes.is_empty() && durability == Durability::Process;
        let result = if nothing { Ok(()) } else { self.write(changes, durability) };
        if result.is_ok() {
            tables.inode_ids.reserved(inode_mark);
            tables.session_ids.reserved(session_mark);
            effects.into_iter().for_each(|effect| tables.apply(effect, now.clock));
        }
        drop(tables);
        for Outcome { answer, in_commit, done } in outcomes {
            let answer = match &result {
                Err(e) if in_commit => Err(e.clone()),
                _ => answer,
            };
            // Nobody waits any more where the client has gone.
            let _ = done.send(answer);
        }
    }

    fn write(&self, changes: Changes, durability: Durability) -> Result<()> {
        let batch = Batch { changes, ..Batch::default() };
        let revision = self.store.commit(&batch, durability).inspect_err(|e| log::error!("commit of {} rows: {e}", batch.changes.len()))?;
        self.revision.store(revision, Ordering::Relaxed);
        Ok(())
    }

    /// The answer of one mutation, with its rows and effects where it has any.
    fn prepare(&self, prepare: Prepare, terms: Terms, tables: &mut Tables, below: &Overlay<'_>, now: Moment) -> (Result<Vec<u8>>, Prepared) {
        let slot = match Self::admit(terms, tables, below, now) {
            Ok(Admission::Execute(slot)) => slot,
            Ok(Admission::Answered(answer)) => return (answer, None),
            Err(e) => return (Err(e), None),
        };
        let mut change = Change::new(below, tables, &self.policy, now);
        let answer = prepare(&mut change);
        let Change { view, effects, .. } = change;
        let (mut changes, effects) = match &answer {
            Ok(_) => (view.into_changes(), effects),
            Err(_) => Default::default(),
        };
        if let Some((key, sequence)) = slot
            && let Some(outcome) = to_store(&answer)
        {
            changes.insert(key, Some(StoredReply { sequence, outcome }.encode()));
        }
        let prepared = answer.is_ok() || !changes.is_empty();
        (answer, prepared.then_some((changes, effects)))
    }

    /// Whether a mutation is carried out or was before.
    fn admit(terms: Terms, tables: &mut Tables, view: &dyn View, now: Moment) -> Result<Admission> {
        let Some(session) = terms.session else { return Ok(Admission::Execute(None)) };
        tables.touch(session, now.clock)?;
        let Some(Replay { slot, sequence }) = terms.replay else { return Ok(Admission::Execute(None)) };
        let key = keys::reply(session, slot);
        let Some(value) = view.get(&key)? else { return Ok(Admission::Execute(Some((key, sequence)))) };
        let stored = StoredReply::decode(&value)?;
        if sequence < stored.sequence {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("mutation {sequence} of slot {slot} comes after {} was carried out", stored.sequence),
            ));
        }
        if sequence > stored.sequence {
            return Ok(Admission::Execute(Some((key, sequence))));
        }
        Ok(Admission::Answered(
            stored.outcome.map_err(|(code, message)| Error::new(ErrorKind::from_code(&code).unwrap_or(ErrorKind::Internal), message)),
        ))
    }
}

type Changes = std::collections::BTreeMap<crate::store::Key, Option<crate::store::Value>>;
type Prepared = Option<(Changes, Effects)>;

enum Admission {
    /// With the row for the reply and the sequence number, if it is to be stored.
    Execute(Option<(crate::store::Key, u64)>),
    Answered(Result<Vec<u8>>),
}

/// What a retry shall get; nothing where trying again may well have another result.
fn to_store(answer: &Result<Vec<u8>>) -> Option<Result<Vec<u8>, (String, String)>> {
    match answer {
        Ok(body) => Some(Ok(body.clone())),
        Err(e) if e.kind().is_transient() || matches!(e.kind(), ErrorKind::Internal | ErrorKind::Corrupt) => None,
        Err(e) => Some(Err((e.kind().code().to_owned(), e.message().to_owned()))),
    }
}
