//! Listing directories: a stream over pages from the directory service.
//!
//! Offsets count entries from the start, `.` and `..` included. One page is in memory;
//! going back behind it reads from the start again.

use dfs_common::api::directory::{List, Page, PageEntry};
use dfs_common::attributes::{Attributes, FileKind};
use dfs_common::ids::{InodeId, ROOT};
use dfs_common::{ErrorKind, Result};
use tokio::sync::Mutex;

use super::Vfs;

/// Entries fetched at a time.
const PAGE: u32 = 1024;
/// `.` and `..`.
const DOTS: u64 = 2;

#[derive(Debug, Default)]
struct Window {
    /// Offset of the first entry in `entries`, dots not counted.
    start: u64,
    entries: Vec<PageEntry>,
    end: bool,
    parent: Option<InodeId>,
}

/// An open directory.
#[derive(Debug)]
pub struct Stream {
    ino: InodeId,
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
    /// The whole entry; `None` for `.` and `..`.
    entry: Option<PageEntry>,
}

impl Stream {
    pub(crate) fn ino(&self) -> InodeId {
        self.ino
    }
}

impl Vfs {
    /// Opens a directory; returns its handle.
    pub async fn open_directory(&self, id: u64) -> Result<u64> {
        let ino = self.ino(id)?;
        Ok(self.handles.add_directory(Stream { ino, window: Mutex::default() }))
    }

    /// Closes it.
    pub fn close_directory(&self, handle: u64) {
        let Ok(stream) = self.handles.directory(handle) else { return };
        self.handles.remove_directory(handle);
        if self.nodes.current(stream.ino).is_some_and(|n| n.state.lock().removed) {
            self.let_go_if_closed(stream.ino);
        }
    }

    /// The entries from `offset` on: as many as are at hand, none at the end.
    pub async fn list(&self, handle: u64, offset: u64) -> Result<Vec<Listed>> {
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
            let dots = [(&b"."[..], stream.ino), (&b".."[..], parent)];
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
                entry: Some(entry.clone()),
            });
        }
        Ok(listed)
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
        let page = match self.cluster.directory.call(&List { ino: stream.ino, after, limit: PAGE }).await {
            // A removed directory that somebody still has open is empty.
            Err(e) if e.kind() == ErrorKind::NotFound => Page { parent: stream.ino, entries: Vec::new(), end: true },
            other => other?,
        };
        *window = Window { start, entries: page.entries, end: page.end, parent: Some(page.parent) };
        Ok(())
    }

    /// Registers a listed entry with its attributes, as a lookup would.
    pub fn introduce_listed(&self, listed: Listed) -> Option<Attributes> {
        listed.entry.map(|e| self.introduce(e.entry))
    }
}
