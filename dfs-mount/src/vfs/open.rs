//! Opening, creating and closing files: the write lock, the version, the cache file.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::block::Manifest;
use dfs_common::ids::InodeId;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::backing::Io;
use super::coherence::Told;
use super::fill::AT_ONCE;
use super::handles::FileHandle;
use super::interrupt::{Signals, given_up_on};
use super::leases::Stamp;
use super::locks::Wait;
use super::names::NewEntry;
use super::node::{Arriving, Node};
use super::rights::opener;
use super::{Caller, Vfs};
use crate::cache::record::Owned;
use crate::cache::{BlockMap, Content};
use crate::failpoint;

/// Attempts to open a file for reading that is published again and again meanwhile.
const OVERTAKEN_MAX: u32 = 5;
/// Between two attempts to publish what could not be published.
const RETRY: Duration = Duration::from_secs(2);
/// A thread's open that was sent back is the same one again if it comes within this time.
const COMES_BACK: Duration = Duration::from_secs(1);

/// How others see that somebody has a file's turn.
pub(super) const OPENING: &str = "another open or close of the file";

/// What an open wants, from open(2)'s flags.
#[derive(Clone, Copy, Debug)]
pub struct Intent {
    /// O_WRONLY or O_RDWR.
    pub write: bool,
    /// O_RDWR: what is written may be written to a mapping.
    maps: bool,
    /// O_WRONLY, and O_SYNC is left to the kernel, which knows where a write(2) of many requests ends.
    only_writes: bool,
    /// O_DIRECT, which asks for more on a local disk than here.
    pub(super) direct: bool,
    /// O_NONBLOCK.
    pub nonblock: bool,
    /// O_EXCL, together with O_CREAT.
    pub exclusive: bool,
    /// Open only to set the length: nothing is shown to the kernel, so it need not know the version.
    truncate: bool,
    /// O_TRUNC.
    empty: bool,
    /// The file was made by this very call.
    created: bool,
}

impl Intent {
    /// From the flags of open(2).
    pub fn from_flags(flags: i32) -> Self {
        Self {
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            maps: flags & libc::O_ACCMODE == libc::O_RDWR,
            only_writes: flags & (libc::O_ACCMODE | libc::O_DSYNC) == libc::O_WRONLY,
            direct: flags & libc::O_DIRECT != 0,
            nonblock: flags & libc::O_NONBLOCK != 0,
            exclusive: flags & libc::O_EXCL != 0,
            truncate: false,
            empty: flags & libc::O_TRUNC != 0,
            created: false,
        }
    }

    pub(crate) fn truncate() -> Self {
        Self { truncate: true, ..Self::from_flags(libc::O_WRONLY) }
    }
}

/// An open file, for the kernel.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// How it is served.
    pub io: Io,
}

/// Threads whose opens were answered with ESTALE: the kernel looks the name up again and comes back, once.
#[derive(Debug, Default)]
pub(crate) struct SentBack(Mutex<HashMap<u32, (Instant, Option<InodeId>)>>);

impl SentBack {
    fn add(&self, caller: Caller, ino: Option<InodeId>) {
        let mut waiting = self.0.lock();
        waiting.retain(|_, (at, _)| at.elapsed() < COMES_BACK);
        waiting.insert(caller.pid, (Instant::now(), ino));
    }

    /// Whether the caller was sent back, and from which file.
    fn take(&self, caller: Caller) -> Option<Option<InodeId>> {
        self.0.lock().remove(&caller.pid).filter(|(at, _)| at.elapsed() < COMES_BACK).map(|(_, ino)| ino)
    }
}

/// A download for an open. Where it fails, or its caller gives up, what has arrived goes on the shelf.
struct Download<'a> {
    vfs: &'a Vfs,
    node: &'a Node,
    content: Option<Arc<Content>>,
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        if let Some(content) = self.content.take()
            && let Err(e) = self.vfs.shelf.put_back(self.node.ino, &content)
        {
            log::warn!("cache of inode {}: {e}", self.node.ino);
        }
    }
}

/// The answer that makes the kernel look the name up again.
fn moved_on(node: &Node) -> Error {
    Error::new(ErrorKind::Stale, format!("inode {} has moved on", node.ino))
}

impl Vfs {
    /// Opens the file behind `id`. `Stale`: the kernel looks the name up again and comes back.
    pub async fn open(self: &Arc<Self>, id: u64, intent: Intent, caller: Caller) -> Result<Opened> {
        let node = self.node(id)?;
        let mut handle = self.open_for(&node, intent, caller).await?;
        let io = {
            let mut state = node.state.lock();
            let version = handle.content.version();
            match state.backing.clone() {
                Some(backing) => Io::Backed { backing, direct: intent.write || intent.direct },
                // Where the kernel reads no cache files, the pages that are written are worth having.
                None => Io::Cached {
                    keep: state.pages.replace(version) == Some(version),
                    direct: intent.only_writes && self.backs.load(Ordering::Relaxed),
                },
            }
        };
        handle.direct = io.is_direct();
        Ok(Opened { handle: self.handles.add_file(handle), io })
    }

    /// Creates a file and opens it. `Stale` where somebody else was faster: the kernel comes back and opens that.
    pub async fn create(self: &Arc<Self>, parent: u64, name: &[u8], mode: u32, intent: Intent, caller: Caller) -> Result<(Told, Opened)> {
        let here = if intent.write { self.make_here(&self.place(parent, name)?, mode & 0o7777, caller) } else { None };
        let new = NewEntry { kind: FileKind::File, mode, rdev: 0, target: None };
        let made = match here {
            Some(told) => Ok(told),
            None => self.make(parent, name, new, caller).await,
        };
        let told = match made {
            // Made by somebody else a moment ago. The kernel takes an answer for a new file, on which nothing is checked and
            // nothing truncated; sent back, it finds the file and opens it.
            Err(e) if e.kind() == ErrorKind::Exists && !intent.exclusive => {
                self.sent_back.add(caller, None);
                return Err(Error::new(ErrorKind::Stale, e.message().to_owned()));
            }
            other => other?,
        };
        let id = told.node().expect("what was made has a node").id;
        let opened = self.open(id, Intent { created: true, ..intent }, caller).await.inspect_err(|_| self.forget(id, 1))?;
        let FileHandle { node, content, .. } = &*self.handles.file(opened.handle)?;
        if intent.empty && content.size() > 0 {
            // Somebody else wrote before this open had its turn. The kernel truncates no file that is new to it.
            if let Err(e) = self.change(node, content, || content.truncate(0, self.now())).await {
                self.release(opened.handle).await?;
                self.forget(id, 1);
                return Err(e);
            }
            return Ok((told, opened));
        }
        Ok((if intent.write { told.new_file() } else { told }, opened))
    }

    pub(crate) async fn open_for(self: &Arc<Self>, node: &Arc<Node>, intent: Intent, caller: Caller) -> Result<FileHandle> {
        if node.kind() != FileKind::File {
            return Err(Error::new(ErrorKind::Invalid, "only regular files are opened here"));
        }
        let _arriving = Arriving::new(node);
        if !intent.write {
            let content = given_up_on(Signals::Ending, caller.pid, self.prepare(node, intent, caller)).await??;
            return Ok(FileHandle { node: node.clone(), content, held: None, opener: opener(node, false), direct: false });
        }
        let wait = if intent.nonblock { Wait::Never } else { Wait::Until(self.lock_wait(node)) };
        self.hear_closes(node, caller).await;
        let held = self.lock(node.lockable(), caller, wait).await?;
        match given_up_on(Signals::Ending, caller.pid, self.prepare(node, intent, caller)).await.and_then(|prepared| prepared) {
            Ok(content) => {
                self.arrived(node.ino);
                Ok(FileHandle { node: node.clone(), content, held: Some(held), opener: opener(node, true), direct: false })
            }
            Err(e) if e.kind() == ErrorKind::Stale => {
                self.unlock_later(node.ino, held).await;
                Err(e)
            }
            Err(e) => {
                self.unlock(node.ino, held).await;
                Err(e)
            }
        }
    }

    /// How long an open for writing waits for its turn: as the mount was told, or else by the cluster's rules.
    fn lock_wait(&self, node: &Node) -> Option<Duration> {
        self.settings.lock_wait.or_else(|| self.cluster.lock_wait(|| self.nodes.path(node)).flatten())
    }

    /// The content for one more handle, counted in the node.
    async fn prepare(self: &Arc<Self>, node: &Arc<Node>, intent: Intent, caller: Caller) -> Result<Arc<Content>> {
        let turn = node.opening.take(OPENING).await?;
        let mut prepared = Err(ErrorKind::Stale.into());
        for _ in 0..OVERTAKEN_MAX {
            prepared = self.prepare_alone(node, intent, caller).await;
            if !matches!(prepared, Ok(None)) {
                break;
            }
        }
        let content = turn.end(prepared.and_then(|content| content.ok_or_else(|| ErrorKind::Stale.into())))?;
        self.uncover(node).await;
        Ok(content)
    }

    /// `None` where a newer version was heard of meanwhile, which the next attempt takes.
    async fn prepare_alone(self: &Arc<Self>, node: &Arc<Node>, intent: Intent, caller: Caller) -> Result<Option<Arc<Content>>> {
        let entry = self.current_entry(node, intent, caller).await?;
        let shared = node.state.lock().content.clone();
        let is_loaded = shared.is_none();
        let is_cold = is_loaded && !self.shelf.has(node.ino);
        let content = match shared {
            Some(content) => content,
            None => Arc::new(self.load(&entry, intent).await?),
        };
        if intent.write {
            let owned = Owned::from(&entry.attributes);
            self.shelf.mark_writing(node.ino, &content, || self.nodes.path(node), owned)?;
        } else if content.missing_bytes() <= AT_ONCE {
            let mut download = Download { vfs: self, node, content: is_loaded.then(|| content.clone()) };
            self.fill_all(&entry, &content).await?;
            download.content = None;
        }
        let mut state = node.state.lock();
        if content.is_aside() {
            return Ok(None);
        }
        if !intent.write && state.opens == 0 && content.version() < state.entry.attributes.version {
            drop(state);
            self.shelf.put_back(node.ino, &content)?;
            return Ok(None);
        }
        if state.opens == 0 {
            state.backing = self.back(&content, intent);
        } else if intent.write && intent.maps && state.backing.is_some() {
            content.may_be_mapped();
        }
        state.content = Some(content.clone());
        state.opens += 1;
        state.writers += u32::from(intent.write);
        drop(state);
        if !intent.write {
            if !content.is_complete() {
                content.arriving.want_stream();
            } else if is_loaded {
                self.read_in_order(node, is_cold);
            }
        }
        Ok(Some(content))
    }

    /// What the directory says of the file, if the kernel can go on with that.
    async fn current_entry(&self, node: &Arc<Node>, intent: Intent, caller: Caller) -> Result<Entry> {
        {
            let state = node.state.lock();
            if state.superseded {
                return Err(moved_on(node));
            }
            // A file that this mount is writing changes only here.
            if state.writers > 0 {
                return Ok(state.entry.clone());
            }
        }
        let (entry, stamp) = match self.heard_entry(node).await {
            Err(e) if e.kind() == ErrorKind::NotFound && intent.created => {
                // Removed by others, and let go in our name after this client was cut off: it is open without a name, as
                // if that had come later. Sent back, this open would make a second file.
                let mut state = node.state.lock();
                state.removed = true;
                return Ok(state.entry.clone());
            }
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(moved_on(node)),
            other => other?,
        };
        let telling = self.telling();
        let sent_back = self.sent_back.take(caller);
        let was_sent_from_here = sent_back == Some(Some(node.ino));
        let (overtaken, removed, told) = {
            let mut state = node.state.lock();
            if was_sent_from_here {
                state.kernel.was_looked_up();
            }
            (
                state.is_overtaken_by(&entry),
                entry.attributes.nlink == 0 && state.opens == 0,
                intent.truncate || state.kernel.knows(entry.attributes.version) || state.content.is_some(),
            )
        };
        let comes_back = intent.created || if intent.write { sent_back.is_some() } else { was_sent_from_here };
        // The kernel believes another size or another file, or may have lost what it was told: it looks the name up again,
        // and is told. It comes back once only. Then what was removed meanwhile is opened as if it had been opened before;
        // under the lock the current version stays; and without it, the file moves faster than it is looked up, and what
        // the kernel was told a moment ago is a whole version, too.
        if overtaken || !(comes_back || (told && !removed)) {
            drop(telling);
            self.until_forgotten(node).await;
            self.sent_back.add(caller, Some(node.ino));
            return Err(moved_on(node));
        }
        if let Some(stamp) = &stamp
            && (told || intent.write)
        {
            telling.hear(node, entry, stamp);
        }
        drop(telling);
        if !told {
            self.forget_attributes(node.id);
        }
        Ok(node.state.lock().entry.clone())
    }

    /// As it is known here, or else asked for: then with the stamp of the answer.
    async fn heard_entry(&self, node: &Node) -> Result<(Entry, Option<Stamp>)> {
        let known = self.telling().known_entry(node);
        if let Some(entry) = known {
            return Ok((entry, None));
        }
        let (entry, stamp) = self.ask_entry(node.ino).await;
        Ok((entry?, Some(stamp)))
    }

    /// The cache file of the version that `entry` describes; blocks may still be missing.
    async fn load(&self, entry: &Entry, intent: Intent) -> Result<Content> {
        let (ino, version) = (entry.attributes.ino, entry.attributes.version);
        let cached = self.shelf.take(ino);
        if let Some(content) = cached {
            if content.version() != version {
                let manifest = self.cluster.manifest(entry).await?;
                content.adopt(version, manifest)?;
            }
            return Ok(content);
        }
        let (fetched, fresh) = match intent.write {
            // Not before: after a crash of the machine a file among those that are written counts as what no server has.
            true => (Ok(self.fetch_first(entry, intent).await?), self.shelf.fresh(ino, true)),
            // While the server is at work.
            false => tokio::join!(self.fetch_first(entry, intent), async { self.shelf.fresh(ino, false) }),
        };
        let (manifest, start) = fetched?;
        fresh?.become_content(version, BlockMap::new(manifest, false), &start.unwrap_or_default())
    }

    /// What comes first of a file that is not here: all blocks by name, and the bytes of a small file, or the first ones of another that is read.
    async fn fetch_first(&self, entry: &Entry, intent: Intent) -> Result<(Manifest, Option<Bytes>)> {
        if let Some((manifest, bytes)) = self.cluster.small(entry).await? {
            return Ok((manifest, Some(bytes)));
        }
        // A reader begins at the beginning, as a rule.
        match intent.write {
            true => Ok((self.cluster.manifest(entry).await?, None)),
            false => self.cluster.beginning(entry).await,
        }
    }

    /// The last descriptor of `handle` was closed: publishes what is left and lets go of lock and cache file.
    ///
    /// Where the servers do not answer, the content stays the file's content on this mount, and its lock this mount's,
    /// until they do.
    pub async fn release(self: &Arc<Self>, handle: u64) -> Result<()> {
        let handle = self.handles.remove_file(handle)?;
        let Err(problem) = self.close(&handle, true).await else { return Ok(()) };
        log::error!("inode {} could not be published: {problem}. It is tried again until it can", handle.node.ino);
        let vfs = self.clone();
        tokio::spawn(async move {
            let retry = async {
                loop {
                    tokio::time::sleep(RETRY).await;
                    if vfs.close(&handle, true).await.is_ok() {
                        return;
                    }
                }
            };
            vfs.waits.watch("publish again", handle.node.id, retry).await;
        });
        Ok(())
    }

    /// One handle less. Opens of the file wait meanwhile: what the next writer has only begun (with O_TRUNC, an empty
    /// file) is never published by the one before, and a cache file is either open or on the shelf.
    ///
    /// Fails, with nothing changed, only with `retry` and where the servers do not answer.
    pub(crate) async fn close(&self, handle: &FileHandle, retry: bool) -> Result<()> {
        let (node, content) = (&handle.node, &handle.content);
        failpoint::reach("release.begun");
        let removed = {
            let _no_opens = node.opening.take_anyway(OPENING).await;
            if handle.held.is_some() {
                handle.on_behalf(self.end_writing(node, content, retry)).await?;
                self.uncover(node).await;
            }
            self.end_use(node, content)
        };
        if let Some(held) = handle.held {
            self.unlock(node.ino, held).await;
        }
        self.nodes.closed(node);
        if removed {
            self.let_go_if_closed(node.ino);
        }
        Ok(())
    }

    /// One handle for writing less. The last one publishes what is left: a mapping can change pages after the last
    /// close, and a close that failed gets its second chance.
    async fn end_writing(&self, node: &Arc<Node>, content: &Arc<Content>, retry: bool) -> Result<()> {
        if node.state.lock().writers == 1 && !content.is_aside() {
            match self.commit(node, content, false).await {
                Ok(()) => {}
                Err(e) if retry && e.kind().is_transient() => return Err(e),
                Err(e) => self.set_aside(node, content, &e).await,
            }
        }
        let mut state = node.state.lock();
        // Of content that was set aside nobody is a writer any more.
        if !content.is_aside() {
            state.writers -= 1;
            if state.writers == 0 {
                content.is_not_mapped();
                state.held_back = None;
            }
        }
        Ok(())
    }

    /// The last handle puts the cache file on the shelf, or deletes it. True where it was the last of a removed file.
    fn end_use(&self, node: &Arc<Node>, content: &Arc<Content>) -> bool {
        let (last, removed, superseded) = {
            let mut state = node.state.lock();
            state.opens -= 1;
            let last = state.opens == 0;
            if last {
                (state.content, state.backing) = (None, None);
            }
            (last, last && state.removed, state.superseded)
        };
        if last {
            content.shelve();
        }
        if last && !content.is_aside() {
            if removed || superseded {
                self.shelf.discard(content);
            } else if let Err(e) = self.shelf.put_back(node.ino, content) {
                log::warn!("cache of inode {}: {e}", node.ino);
            }
        }
        removed
    }
}
