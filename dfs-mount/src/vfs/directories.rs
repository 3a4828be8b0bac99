//! Listing directories: a stream over pages from the directory service.
//!
//! Offsets count entries from the start, `.` and `..` included. One page is in memory;
//! going back behind it reads from the start again.

use std::sync::Arc;

use dfs_common::api::directory::{List, Page, PageEntry};
use dfs_common::attributes::FileKind;
use dfs_common::ids::{InodeId, ROOT};
use dfs_common::{ErrorKind, Result};
use tokio::sync::Mutex;

use super::Vfs;
use super::coherence::{Place, Telling, Told};
use super::leases::Stamp;
use super::node::Node;

/// Entries fetched at a time.
const PAGE: u32 = 1024;
/// `.` and `..`.
const DOTS: u64 = 2;

#[derive(Debug, Default)]
struct Window {
    /// How old the entries are.
    stamp: Stamp,
    /// Offset of the first entry in `entries`, dots not counted.
    start: u64,
    entries: Vec<PageEntry>,
    end: bool,
    parent: Option<InodeId>,
}

/// An open directory.
#[derive(Debug)]
pub struct Stream {
    node: Arc<Node>,
    window: Mutex<Window>,
}

/// One entry for the kernel.
#[derive(Debug)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// The inode.
    pub ino: InodeId,
    /// Its type.
    pub kind: FileKind,
    /// What comes after it.
    pub next: u64,
    /// The whole entry, and how old it is; `None` for `.` and `..`.
    entry: Option<(PageEntry, Stamp)>,
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

impl Vfs {
    /// Opens a directory.
    pub fn open_directory(&self, id: u64) -> Result<OpenedDirectory> {
        let node = self.node(id)?;
        let may_keep = self.telling().believes();
        let keep_cache = {
            let mut state = node.state.lock();
            // Until an event, or a listing without a lease, says otherwise.
            let kept = std::mem::replace(&mut state.entries.listing_kept, true);
            kept && may_keep && state.entries.is_leased()
        };
        Ok(OpenedDirectory { handle: self.handles.add_directory(Stream { node, window: Mutex::default() }), may_keep, keep_cache })
    }

    /// Closes it.
    pub fn close_directory(&self, handle: u64) {
        let Ok(stream) = self.handles.directory(handle) else { return };
        self.handles.remove_directory(handle);
        if stream.node.state.lock().removed {
            self.let_go_if_closed(stream.node.ino);
        }
    }

    /// The entries from `offset` on, of which directory: as many as are at hand, none at the end.
    pub async fn list(&self, handle: u64, offset: u64) -> Result<(Listing, Vec<Listed>)> {
        let stream = self.handles.directory(handle)?;
        let mut window = stream.window.lock().await;
        if offset == 0 {
            // rewinddir: what has changed since shows.
            *window = Window::default();
        }
        let mut listed = Vec::new();
        if offset < DOTS {
            if window.parent.is_none() {
                self.load_page(&stream, &mut window, 0, None).await?;
            }
            let parent = window.parent.unwrap_or(ROOT);
            let dots = [(&b"."[..], stream.node.ino), (&b".."[..], parent)];
            for (at, (name, ino)) in dots.into_iter().enumerate().skip(offset as usize) {
                listed.push(Listed { name: name.to_vec(), ino, kind: FileKind::Directory, next: at as u64 + 1, entry: None });
            }
        }
        let wanted = offset.max(DOTS) - DOTS;
        self.move_to(&stream, &mut window, wanted).await?;
        let skip = (wanted - window.start) as usize;
        for (at, entry) in window.entries.iter().enumerate().skip(skip) {
            listed.push(Listed {
                name: entry.name.as_bytes().to_vec(),
                ino: entry.entry.attributes.ino,
                kind: entry.entry.attributes.kind,
                next: window.start + at as u64 + 1 + DOTS,
                entry: Some((entry.clone(), window.stamp.clone())),
            });
        }
        Ok((Listing(stream.node.clone()), listed))
    }

    /// Moves the window so that it holds `wanted`, or is empty behind the end.
    async fn move_to(&self, stream: &Stream, window: &mut Window, wanted: u64) -> Result<()> {
        if wanted < window.start || window.parent.is_none() {
            self.load_page(stream, window, 0, None).await?;
        }
        while wanted >= window.start + window.entries.len() as u64 {
            if window.end {
                // Behind the end, also where the directory has shrunk meanwhile.
                window.start = wanted;
                window.entries.clear();
                return Ok(());
            }
            let start = window.start + window.entries.len() as u64;
            let after = window.entries.last().map(|e| e.name.clone());
            self.load_page(stream, window, start, after).await?;
        }
        Ok(())
    }

    async fn load_page(&self, stream: &Stream, window: &mut Window, start: u64, after: Option<dfs_common::name::Name>) -> Result<()> {
        let node = &stream.node;
        let (result, stamp) = self.ask(&List { ino: node.ino, after, limit: PAGE }).await;
        let page = match result {
            // A removed directory that somebody still has open is empty.
            Err(e) if e.kind() == ErrorKind::NotFound => Page { parent: node.ino, entries: Vec::new(), end: true },
            other => other?,
        };
        self.telling().listed(node, &stamp);
        *window = Window { stamp, start, entries: page.entries, end: page.end, parent: Some(page.parent) };
        Ok(())
    }
}

impl Telling<'_> {
    /// Registers an entry of a listing with its attributes, as a lookup would; `None` for `.` and `..`.
    pub fn introduce_listed(&self, directory: &Listing, listed: Listed) -> Option<Told> {
        let (PageEntry { name, entry }, stamp) = listed.entry?;
        Some(self.introduce(entry, &stamp, Some(Place { directory: directory.0.clone(), name })))
    }
}
