//! The one writer: mutations that wait at the same time become one commit.
//!
//! A request queues its mutation, lets the others that are ready do the same, and then
//! whoever finds nobody committing commits whatever is queued (combining): the latency
//! of a direct call with the throughput of a writer thread. Each mutation is prepared
//! above the ones before it; one that fails contributes nothing. Replies are stored in
//! the batch of their mutation, which is what makes a retry get the first answer.
//!
//! What a mutation changes is known once it is prepared. Where somebody else holds a lease
//! on that, it is thrown away, they are told, and it is prepared again when they have
//! acknowledged, so that its wait holds up nobody. Where nobody does, all this costs a look.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use dfs_common::api::directory::Granted;
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::wire::Replay;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Directory;
use super::leases::{Author, Block, Inner};
use super::state::records::{Record, StoredReply};
use super::state::{Change, Changes, Effects, Moment, Tables, affected, inodes, is_untold, keys};
use crate::store::{Batch, Durability, Overlay, View};

/// The most mutations of one commit: bounds how long the first of them waits.
const GROUP: usize = 256;
/// How often a mutation is prepared again because it would by now change something that nobody was told of.
const TRIES: u32 = 32;

/// Looks at the state and changes it. Carried out again where others have to be told first.
type Prepare = Box<dyn Fn(&mut Change<'_>) -> Result<Reply> + Send>;

/// What a mutation answers.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// JSON.
    pub(super) body: Vec<u8>,
    /// The inodes that it tells of.
    pub(super) inodes: Vec<InodeId>,
    /// The directory that its session is to have to itself.
    pub(super) exclusive: Option<InodeId>,
}

impl From<Vec<u8>> for Reply {
    fn from(body: Vec<u8>) -> Self {
        Self { body, ..Self::default() }
    }
}

/// What a client is answered: JSON, and the leases that come with it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Vec<u8>,
    pub(super) granted: Option<Granted>,
}

/// On whose behalf, and how sure.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    pub(super) session: Option<SessionId>,
    pub(super) replay: Option<Replay>,
    pub(super) durable: bool,
    /// The most numbers of inodes that it takes, at least 1.
    pub(super) numbers: u64,
    /// Who makes the change, where those who hold leases have to be told of it.
    pub(super) author: Option<Author>,
}

struct Job {
    prepare: Prepare,
    terms: Terms,
    /// What has been told already.
    block: Option<Block>,
    done: oneshot::Sender<Done>,
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

/// What became of a job.
enum Done {
    Answered(Result<Answer>),
    /// Others had to be told first: once those in `pending` have acknowledged, it comes again.
    Told {
        prepare: Prepare,
        block: Block,
        pending: BTreeMap<SessionId, u64>,
    },
}

/// What one mutation came to before the commit.
#[expect(clippy::large_enum_variant, reason = "there is one for each mutation of a group, for the time of a commit")]
enum Outcome {
    /// It holds whatever becomes of the commit.
    Done(Done),
    InCommit {
        answer: Result<Reply>,
        terms: Terms,
        block: Option<Block>,
        changed: Vec<InodeId>,
        effects: Effects,
    },
}

impl Directory {
    /// Commits a mutation, together with others that wait, and returns its answer. Those who hold leases on what it
    /// changes have acknowledged before. A future that is dropped leaves the mutation in the queue, or gives up the wait.
    pub(super) async fn submit(&self, terms: Terms, prepare: impl Fn(&mut Change<'_>) -> Result<Reply> + Send + 'static) -> Result<Answer> {
        if let Some(author) = terms.author {
            self.leasing.after_grace(author).await?;
        }
        let (mut prepare, mut block): (Prepare, _) = (Box::new(prepare), None);
        for _ in 0..TRIES {
            match self.enqueue(terms, prepare, block).await {
                Done::Answered(answer) => return answer,
                Done::Told { prepare: again, block: told, pending } => {
                    let author = terms.author.expect("only who has to tell others tells them");
                    self.leasing.acknowledged(author, &told, pending).await?;
                    (prepare, block) = (again, Some(told));
                }
            }
        }
        Err(Error::new(ErrorKind::Unavailable, format!("what it would change was changed {TRIES} times while others were told")))
    }

    async fn enqueue(&self, terms: Terms, prepare: Prepare, block: Option<Block>) -> Done {
        let (done, mut outcome) = oneshot::channel();
        self.queue.jobs.lock().push(Job { prepare, terms, block, done });
        tokio::task::yield_now().await;
        // Who was committed by somebody else meanwhile leaves the queue to those who came later: they gather there.
        if let Ok(outcome) = outcome.try_recv() {
            return outcome;
        }
        self.commit_queued();
        let lost = || Done::Answered(Err(Error::new(ErrorKind::Internal, "the mutation was given up, see the log")));
        outcome.await.unwrap_or_else(|_| lost())
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
        let mut leasing = self.leasing.lock();
        let snapshot = self.store.snapshot();
        let mut pending = Overlay::new(&*snapshot);
        let count = group.len() as u64;
        let numbers = group.iter().map(|job| job.terms.numbers.max(1)).sum();
        let inode_mark = tables.inode_ids.reserve(numbers, &mut pending);
        let session_mark = tables.session_ids.reserve(count, &mut pending);
        // A rename may end two names.
        let past_mark = tables.past_ids.reserve(2 * count, &mut pending);
        let (mut outcomes, mut receivers) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        let mut durability = Durability::Process;
        for Job { prepare, terms, block, done } in group {
            let outcome = self.prepare(prepare, terms, block, &mut tables, &mut leasing, &mut pending, now);
            if terms.durable && matches!(outcome, Outcome::InCommit { .. }) {
                durability = Durability::Disk;
            }
            outcomes.push(outcome);
            receivers.push(done);
        }
        let changes = pending.into_changes();
        drop(snapshot);
        let nothing = changes.is_empty() && durability == Durability::Process;
        let result = if nothing { Ok(()) } else { self.write(changes, durability) };
        if result.is_ok() {
            tables.inode_ids.reserved(inode_mark);
            tables.session_ids.reserved(session_mark);
            tables.past_ids.reserved(past_mark);
        }
        let answers = self.settle(outcomes, &result, &mut tables, &mut leasing, now);
        drop(leasing);
        drop(tables);
        for (done, answer) in receivers.into_iter().zip(answers) {
            // Nobody waits any more where the client has gone.
            let _ = done.send(answer);
        }
    }

    /// After the commit: tables, leases, answers.
    fn settle(&self, mut outcomes: Vec<Outcome>, result: &Result<()>, tables: &mut Tables, leasing: &mut Inner, now: Moment) -> Vec<Done> {
        for outcome in &mut outcomes {
            let Outcome::InCommit { effects, .. } = outcome else { continue };
            let effects = std::mem::take(effects);
            if result.is_err() {
                continue;
            }
            if let Some(session) = effects.closed() {
                self.leasing.end(leasing, session);
            }
            tables.apply(effects, now.clock);
        }
        let revision = self.revision.load(Ordering::Relaxed);
        // What later mutations of the group changed is old in the answers to earlier ones.
        let mut later: Vec<InodeId> = Vec::new();
        let mut answers = Vec::with_capacity(outcomes.len());
        for outcome in outcomes.into_iter().rev() {
            let (answer, terms, block, changed) = match (outcome, result) {
                (Outcome::Done(done), _) => {
                    answers.push(done);
                    continue;
                }
                (Outcome::InCommit { .. }, Err(e)) => {
                    answers.push(Done::Answered(Err(e.clone())));
                    continue;
                }
                (Outcome::InCommit { answer, terms, block, changed, .. }, Ok(())) => (answer, terms, block, changed),
            };
            if let Some(block) = block {
                block.release(leasing);
            }
            leasing.leases.changed(revision, &changed);
            let session = terms.author.and_then(|author| author.session);
            let grant = |reply: &Reply, leasing: &mut Inner| {
                let session = session?;
                let mut granted = leasing.leases.grant(session, &reply.inodes, true, |ino| later.contains(&ino), now.clock)?;
                granted.exclusive = reply.exclusive.filter(|ino| leasing.leases.make_exclusive(*ino, session));
                Some(granted)
            };
            let answer = answer.map(|reply| Answer { granted: grant(&reply, leasing), body: reply.body });
            later.extend(changed);
            answers.push(Done::Answered(answer));
        }
        answers.reverse();
        answers
    }

    fn write(&self, changes: Changes, durability: Durability) -> Result<()> {
        let batch = Batch { changes, ..Batch::default() };
        let revision = self.store.commit(&batch, durability).inspect_err(|e| log::error!("commit of {} rows: {e}", batch.changes.len()))?;
        self.revision.store(revision, Ordering::Relaxed);
        Ok(())
    }

    /// Prepares one mutation above `below`, to which its rows are added; or tells those who hold leases on what it changes.
    #[expect(clippy::too_many_arguments, reason = "everything that a commit has locked")]
    fn prepare(
        &self,
        prepare: Prepare,
        terms: Terms,
        block: Option<Block>,
        tables: &mut Tables,
        leasing: &mut Inner,
        below: &mut Overlay<'_>,
        now: Moment,
    ) -> Outcome {
        let answered = |answer: Result<Reply>| {
            let answer = answer.map(|reply| Answer { body: reply.body, granted: None });
            Outcome::Done(Done::Answered(answer))
        };
        let slot = match Self::admit(terms, tables, below, now) {
            Ok(Admission::Execute(slot)) => slot,
            Ok(Admission::Answered(answer)) => return answered(answer.map(Reply::from)),
            Err(e) => return answered(Err(e)),
        };
        let mut change = Change::new(below, tables, &self.policy, now, terms.session);
        let answer = prepare(&mut change);
        // At once: a later mutation of this group may remove what it tells of.
        if let (Ok(reply), Some(session)) = (&answer, terms.session.or(terms.author.and_then(|author| author.session))) {
            change.tables.aware.tell(session, &reply.inodes);
        }
        let Change { view, effects, .. } = change;
        let (mut changes, effects) = match &answer {
            Ok(_) => (view.into_changes(), effects),
            Err(_) => Default::default(),
        };
        if let Some(author) = terms.author.filter(|_| self.leasing.invalidates) {
            let held = |ino| leasing.leases.is_held_by_others(ino, author.session);
            if is_untold(&changes, block.as_ref().map(|block| &block.told), held) {
                return match affected(&changes) {
                    Ok(affected) => {
                        let (block, pending) = self.leasing.tell(leasing, block, affected, author, now.clock);
                        Outcome::Done(Done::Told { prepare, block, pending })
                    }
                    Err(e) => answered(Err(e)),
                };
            }
        }
        let changed = if terms.author.is_some() { inodes(&changes).collect() } else { Vec::new() };
        if let Some((key, sequence)) = slot
            && let Some(outcome) = to_store(&answer)
        {
            changes.insert(key, Some(StoredReply { sequence, outcome }.encode()));
        }
        if answer.is_err() && changes.is_empty() {
            return answered(answer);
        }
        below.absorb(changes);
        Outcome::InCommit { answer, terms, block, changed, effects }
    }

    /// Whether a mutation is carried out or was before.
    fn admit(terms: Terms, tables: &mut Tables, view: &dyn View, now: Moment) -> Result<Admission> {
        let Some(session) = terms.session else { return Ok(Admission::Execute(None)) };
        let is_live = tables.touch(session, now.clock);
        let Some(Replay { slot, sequence }) = terms.replay else { return is_live.map(|()| Admission::Execute(None)) };
        let key = keys::reply(session, slot);
        let stored = view.get(&key)?.map(|value| StoredReply::decode(&value)).transpose()?;
        // A session that has expired is told what it did, and by its end, that it did no more.
        if stored.as_ref().is_none_or(|stored| stored.sequence != sequence) {
            is_live?;
        }
        let Some(stored) = stored else { return Ok(Admission::Execute(Some((key, sequence)))) };
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

enum Admission {
    /// With the row for the reply and the sequence number, if it is to be stored.
    Execute(Option<(crate::store::Key, u64)>),
    Answered(Result<Vec<u8>>),
}

/// What a retry shall get; nothing where trying again may well have another result.
fn to_store(answer: &Result<Reply>) -> Option<Result<Vec<u8>, (String, String)>> {
    match answer {
        Ok(reply) => Some(Ok(reply.body.clone())),
        Err(e) if e.kind().is_transient() || matches!(e.kind(), ErrorKind::Internal | ErrorKind::Corrupt) => None,
        Err(e) => Some(Err((e.kind().code().to_owned(), e.message().to_owned()))),
    }
}
