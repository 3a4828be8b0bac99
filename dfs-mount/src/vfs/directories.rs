//! Listing directories: a stream over pages from the directory service.
//!
//! A page at a time is in memory, in the order and under the offsets of [`super::paging`].

use std::sync::Arc;

use dfs_common::api::directory::{Page, PageEntry};
use dfs_common::attributes::FileKind;
use dfs_common::ids::{InodeId, ROOT};
use dfs_common::name::Name;
use dfs_common::{Error, ErrorKind, Result};
use tokio::sync::Mutex;

use super::Vfs;
use super::coherence::{Place, Telling, Told};
use super::leases::Stamp;
use super::node::Node;
use super::paging::{Generation, Offset, PAGE, Position};

/// Entries given out at a time: more than the kernel usually takes.
const AT_ONCE: usize = 256;

/// One entry of a page.
#[derive(Debug)]
struct Item {
    hash: u64,
    entry: PageEntry,
    /// How old it is.
    stamp: Arc<Stamp>,
}

/// Entries as the service gave them, in order of names, `after` one of them.
#[derive(Debug)]
struct Fetched {
    after: Option<Name>,
    entries: std::vec::IntoIter<PageEntry>,
    end: bool,
    stamp: Arc<Stamp>,
}

/// A part of a page in order of hashes.
#[derive(Debug)]
struct Window {
    generation: Arc<Generation>,
    /// Where it begins.
    from: Position,
    items: Vec<Item>,
    /// The page goes on behind it.
    more: bool,
    /// No page follows.
    is_last: bool,
}

#[derive(Debug, Default)]
struct Reading {
    window: Option<Arc<Window>>,
    /// What was fetched beyond the page in the window.
    ahead: Option<Fetched>,
    parent: Option<InodeId>,
}

/// An open directory.
#[derive(Debug)]
pub struct Stream {
    node: Arc<Node>,
    /// The kernel was told that the listing which it has kept is still true.
    is_kept: bool,
    reading: Mutex<Reading>,
}

/// One entry for the kernel.
#[derive(Debug)]
pub struct Listed {
    what: What,
    /// What comes after it.
    pub next: u64,
}

#[derive(Debug)]
enum What {
    /// `.` or `..`, and where that leads.
    Dots(&'static [u8], InodeId),
    /// One of this window.
    Entry(Arc<Window>, usize),
}

/// Whose entries are listed.
#[derive(Clone, Debug)]
pub struct Listing(Arc<Node>);

/// An open directory, for the kernel.
#[derive(Clone, Copy, Debug)]
pub struct OpenedDirectory {
    /// Its handle.
    pub handle: u64,
    /// The kernel may keep the listing.
    pub may_keep: bool,
    /// What it has kept is still true.
    pub keep_cache: bool,
}

impl Stream {
    pub(crate) fn ino(&self) -> InodeId {
        self.node.ino
    }
}

impl Listed {
    /// Its item; `None` for `.` and `..`.
    fn item(&self) -> Option<&Item> {
        match &self.what {
            What::Dots(..) => None,
            What::Entry(window, at) => Some(&window.items[*at]),
        }
    }

    /// The name.
    pub fn name(&self) -> &[u8] {
        match &self.what {
            What::Dots(name, _) => name,
            What::Entry(window, at) => window.items[*at].entry.name.as_bytes(),
        }
    }

    /// The inode.
    pub fn ino(&self) -> InodeId {
        match &self.what {
            What::Dots(_, ino) => *ino,
            What::Entry(window, at) => window.items[*at].entry.entry.attributes.ino,
        }
    }

    /// Its type.
    pub fn kind(&self) -> FileKind {
        self.item().map_or(FileKind::Directory, |item| item.entry.entry.attributes.kind)
    }
}

impl Item {
    /// By this they are in order.
    fn place(&self) -> (u64, &Name) {
        (self.hash, &self.entry.name)
    }
}

impl Window {
    /// Where in it that begins which comes behind `position`; `None` where that is to be read anew.
    fn behind(&self, generation: &Arc<Generation>, position: &Position) -> Option<usize> {
        if !Arc::ptr_eq(&self.generation, generation) || self.from.page != position.page || position.is_below(&self.from) {
            return None;
        }
        let from = self.items.partition_point(|item| !position.is_before(item.hash, &item.entry.name));
        (from < self.items.len() || !self.more).then_some(from)
    }

    /// As the kernel wants them, `from` that place on.
    fn listed(self: &Arc<Self>, from: usize) -> impl Iterator<Item = Listed> + '_ {
        self.items.iter().enumerate().skip(from).take(AT_ONCE).map(|(at, item)| {
            let next_hash = self.items.get(at + 1).map(|next| next.hash);
            let next = self.generation.offset_behind(self.from.page, item.hash, &item.entry.name, next_hash);
            Listed { what: What::Entry(self.clone(), at), next }
        })
    }
}

impl Vfs {
    /// Opens a directory.
    pub fn open_directory(&self, id: u64) -> Result<OpenedDirectory> {
        let node = self.node(id)?;
        let may_keep = self.telling().believes();
        let keep_cache = {
            let mut state = node.state.lock();
            let is_newest = state.paging().opened();
            // Until an event, or a listing without a lease, says otherwise.
            let kept = std::mem::replace(&mut state.entries.listing_kept, true);
            kept && is_newest && may_keep && state.entries.is_leased()
        };
        Ok(OpenedDirectory {
            handle: self.handles.add_directory(Stream { node, is_kept: keep_cache, reading: Mutex::default() }),
            may_keep,
            keep_cache,
        })
    }

    /// Closes it.
    pub fn close_directory(&self, handle: u64) {
        let Ok(stream) = self.handles.directory(handle) else { return };
        self.handles.remove_directory(handle);
        let removed = {
            let mut state = stream.node.state.lock();
            if state.paging().closed() {
                state.entries.listing_kept = false;
            }
            state.removed
        };
        if removed {
            self.let_go_if_closed(stream.node.ino);
        }
    }

    /// The entries from `offset` on, of which directory: as many as are at hand, none at the end.
    pub async fn list(self: &Arc<Self>, handle: u64, offset: u64) -> Result<(Listing, Vec<Listed>)> {
        let stream = self.handles.directory(handle)?;
        let mut reading = stream.reading.lock().await;
        if offset == 0 {
            // rewinddir: what has changed since shows.
            *reading = Reading::default();
        }
        let (dots, generation, mut position) = {
            let mut state = stream.node.state.lock();
            match state.paging().find(offset) {
                Some(Offset::Start(dots)) => (dots, state.paging().newest(), Position::start_of(0)),
                Some(Offset::Within(generation, position)) => (2, generation, position),
                None => return Err(Error::new(ErrorKind::Invalid, format!("offset {offset} was not given out by directory {}", stream.ino()))),
            }
        };
        let mut listed = Vec::new();
        loop {
            let window = match reading.window.take().filter(|w| w.behind(&generation, &position).is_some()) {
                Some(window) => window,
                None => Arc::new(self.load_window(&stream, &mut reading, &generation, position.clone()).await?),
            };
            if dots < 2 && listed.is_empty() {
                let names = [(&b"."[..], stream.ino()), (&b".."[..], reading.parent.unwrap_or(ROOT))];
                for (at, (name, ino)) in names.into_iter().enumerate().skip(dots) {
                    listed.push(Listed { what: What::Dots(name, ino), next: at as u64 + 1 });
                }
            }
            let from = window.behind(&generation, &position).unwrap_or(window.items.len());
            let is_over = from < window.items.len() || window.is_last;
            listed.extend(window.listed(from));
            reading.window = Some(window);
            if listed.is_empty() && is_over {
                self.end_listing(&stream.node);
            }
            if is_over {
                return Ok((Listing(stream.node.clone()), listed));
            }
            position = Position::start_of(position.page + 1);
        }
    }

    /// The kernel has taken in the whole listing. It shall not keep what has changed on the way: nobody may tell of that again.
    fn end_listing(&self, node: &Node) {
        if !node.state.lock().entries.listing_kept {
            self.forget_listing(node.id);
        }
    }

    /// Reads the page of `from`: what comes behind `from`, in order of hashes, and of that the first part where it is much.
    async fn load_window(self: &Arc<Self>, stream: &Stream, reading: &mut Reading, generation: &Arc<Generation>, from: Position) -> Result<Window> {
        let (mut items, mut count): (Vec<Item>, usize) = (Vec::new(), 0);
        // Of a page that has grown no more is kept than is given out next: what comes before this.
        let mut until: Option<(u64, Name)> = None;
        let mut after = generation.start(from.page);
        let is_last = loop {
            let mut fetched = match reading.ahead.take().filter(|ahead| ahead.after == after) {
                Some(fetched) => fetched,
                None => self.fetch(stream, reading, after).await?,
            };
            let fetched_len = fetched.entries.len();
            let last = fetched.entries.as_slice().last().map(|e| e.name.clone());
            let end = generation.end(from.page, last.as_ref().filter(|_| !fetched.end));
            let within = fetched.entries.as_slice().partition_point(|e| end.as_ref().is_none_or(|end| e.name <= *end));
            count += within;
            let is_whole = fetched.end || within < fetched_len || (end.is_some() && last == end);
            let new =
                fetched.entries.by_ref().take(within).map(|entry| Item { hash: generation.hash(&entry.name), entry, stamp: fetched.stamp.clone() });
            let is_next =
                |item: &Item| from.is_before(item.hash, &item.entry.name) && until.as_ref().is_none_or(|(hash, name)| item.place() < (*hash, name));
            items.extend(new.filter(is_next));
            items.sort_by(|a, b| a.place().cmp(&b.place()));
            if is_whole {
                let is_last = end.is_none();
                reading.ahead = end.filter(|_| fetched.end || within < fetched_len).map(|end| Fetched { after: Some(end), ..fetched });
                break is_last;
            }
            after = last;
            until = keep_first(&mut items).or(until);
        };
        generation.counted(count);
        let directories = items.iter().map(|item| &item.entry).filter(|entry| entry.entry.attributes.kind == FileKind::Directory);
        self.walks.listed(stream.ino(), directories, from.page > 0);
        Ok(Window { generation: generation.clone(), from, items, more: until.is_some(), is_last })
    }

    async fn fetch(self: &Arc<Self>, stream: &Stream, reading: &mut Reading, after: Option<Name>) -> Result<Fetched> {
        let node = &stream.node;
        if stream.is_kept {
            log::debug!("inode {}: the kernel no longer has all of the listing that it may keep", node.ino);
        }
        let (result, stamp) = match &after {
            Some(_) => self.page(node.ino, after.clone(), PAGE).await,
            None => self.first_page(node).await,
        };
        let page = match result {
            // A removed directory that somebody still has open is empty.
            Err(e) if e.kind() == ErrorKind::NotFound => Page { parent: node.ino, entries: Vec::new(), end: true },
            other => other?,
        };
        self.telling().listed(node, &stamp);
        reading.parent = Some(page.parent);
        Ok(Fetched { after, entries: page.entries.into_iter(), end: page.end, stamp: Arc::new(stamp) })
    }
}

/// Keeps about the first [`PAGE`] of sorted items where there are twice as many. Returns the place of the first that went.
fn keep_first(items: &mut Vec<Item>) -> Option<(u64, Name)> {
    if items.len() <= 2 * PAGE {
        return None;
    }
    // An offset can only be told behind all of one hash.
    let cut = (1..=PAGE).rev().find(|&at| items[at - 1].hash != items[at].hash)?;
    let until = (items[cut].hash, items[cut].entry.name.clone());
    items.truncate(cut);
    Some(until)
}

impl Telling<'_> {
    /// Registers an entry of a listing with its attributes, as a lookup would; `None` for `.` and `..`.
    pub fn introduce_listed(&self, directory: &Listing, listed: &Listed) -> Option<Told> {
        let Item { entry: PageEntry { name, entry }, stamp, .. } = listed.item()?;
        Some(self.introduce(entry, stamp, Some(Place { directory: directory.0.clone(), name: name.clone() })))
    }
}
