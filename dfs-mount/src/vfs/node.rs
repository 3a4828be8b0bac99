//! The nodes that the kernel holds references to.
//!
//! A node id is the inode's number, except where a newer version arrives from elsewhere
//! while an older one is open here: the old node keeps the old version to the end, and
//! the name leads to a new node with an id of its own. To the holder of the old one it
//! looks as if the file had been replaced by a rename.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use dfs_common::Error;
use dfs_common::attributes::{Attributes, Entry, FileKind};
use dfs_common::ids::{InodeId, ROOT, Version};
use dfs_common::name::Name;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::backing::Backing;
use super::entries::Entries;
use super::held_back::HeldBack;
use super::knowledge::Knowledge;
use super::locks::Lockable;
use super::nursery::Unborn;
use super::paging::Paging;
use super::reclaim::NODES_MAX;
use crate::cache::Content;
use crate::turn::Turn;

/// What a program may do beyond its user, as an extended attribute.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
/// The kernel's id of the root.
pub(crate) const ROOT_ID: u64 = 1;
/// A path of more names than this is shown by its end.
const DEPTH_MAX: usize = 100;
/// Ids of nodes that had to differ from their inode's number have this bit.
const ALIAS_BIT: u64 = 1 << 62;

/// True for an id that means something on this mount alone.
pub(crate) fn is_alias(id: u64) -> bool {
    id & ALIAS_BIT != 0
}

/// One inode, or one old version of it, as the kernel knows it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) ino: InodeId,
    pub(crate) state: Mutex<State>,
    /// Held while an open prepares the content, so that it is fetched once.
    pub(crate) opening: Turn,
}

#[derive(Debug)]
pub(crate) struct State {
    /// What the directory said last.
    pub(crate) entry: Entry,
    /// The number of the answer that this came with; 0 where it is not known.
    as_of: u64,
    /// Nobody changes it without telling this mount first.
    pub(crate) leased: bool,
    /// Extended attributes that were asked for since; `None`: there is none of that name.
    pub(crate) xattrs: HashMap<Name, Option<Vec<u8>>>,
    /// For a directory.
    pub(crate) entries: Entries,
    /// Of a directory that was opened.
    paging: Option<Box<Paging>>,
    /// Directories and names by which the kernel may have come here.
    pub(crate) places: Vec<(InodeId, Name)>,
    /// What the kernel knows of the attributes.
    pub(crate) kernel: Knowledge,
    /// The version that the kernel's page cache holds pages of.
    pub(crate) pages: Option<Version>,
    /// References that the kernel holds.
    lookups: u64,
    /// Open handles.
    pub(crate) opens: u32,
    /// Opens under way.
    pub(crate) arriving: u32,
    /// Of the open handles, those for writing, and commits under way.
    pub(crate) writers: u32,
    /// Present while anything is open.
    pub(crate) content: Option<Arc<Content>>,
    /// What is open is served from its cache file.
    pub(crate) backing: Option<Arc<Backing>>,
    /// Set by a program, and not sent yet.
    pub(crate) held_back: Option<HeldBack>,
    /// Made here, and not told of yet.
    pub(crate) unborn: Option<Arc<Unborn>>,
    /// Its name is somebody else's: what the service said when it was told.
    pub(crate) birth_refused: Option<Error>,
    /// A newer version has a node of its own.
    pub(crate) superseded: bool,
    /// No name leads here any more.
    pub(crate) removed: bool,
}

impl State {
    /// True where `entry` is a version that others published while this one is open here, or what is open here was set aside.
    pub(crate) fn is_overtaken_by(&self, entry: &Entry) -> bool {
        self.writers == 0 && self.content.as_ref().is_some_and(|c| c.is_aside() || c.version() < entry.attributes.version)
    }

    /// Takes over what the directory said as of `number` (`None`: nobody knows), `leased` or not. Answers may overtake
    /// one another: what is older than what is known, or no better, is not believed.
    pub(crate) fn hear(&mut self, entry: &Entry, number: Option<u64>, leased: bool) {
        if self.is_overtaken_by(entry) {
            // It is another node's, once the name is looked up again.
            return self.unlease();
        }
        let no_better = self.leased && !leased;
        let is_older = number.map_or(no_better, |number| number < self.as_of || (number == self.as_of && no_better));
        if is_older || entry.attributes.version < self.entry.attributes.version {
            return;
        }
        // An undeletion gives a removed one a name again.
        self.removed = entry.attributes.nlink == 0;
        if self.entry != *entry {
            self.xattrs.clear();
            self.entry.clone_from(entry);
        }
        self.as_of = number.unwrap_or(self.as_of);
        self.leased = leased;
    }

    /// True unless it is known that a program in this file may do no more than its user.
    pub(crate) fn may_have_capability(&self) -> bool {
        let is_known_absent = || self.xattrs.iter().any(|(name, value)| name.as_bytes() == CAPABILITY && value.is_none());
        self.entry.attributes.has_xattrs && !is_known_absent()
    }

    /// The lease on the attributes is over.
    pub(crate) fn unlease(&mut self) {
        self.leased = false;
        self.xattrs.clear();
    }

    /// What is known is true as of this answer, too.
    pub(crate) fn is_as_of(&mut self, number: u64) {
        self.as_of = self.as_of.max(number);
    }

    /// The kernel is being told the attributes.
    pub(crate) fn is_told(&mut self) {
        self.kernel.was_told(self.entry.attributes.version, Instant::now);
    }

    /// Numbers start anew.
    pub(crate) fn renumber(&mut self) {
        self.as_of = 0;
    }

    /// How a directory's listings are cut into pages.
    pub(crate) fn paging(&mut self) -> &mut Paging {
        self.paging.get_or_insert_default()
    }

    /// The kernel may come here by `name` in `directory`.
    pub(crate) fn add_place(&mut self, directory: InodeId, name: &Name) {
        if !self.places.iter().any(|(d, n)| *d == directory && n == name) {
            // Nearly all have one, and there are many nodes.
            self.places.reserve_exact(1);
            self.places.push((directory, name.clone()));
        }
    }

    /// That name leads elsewhere now.
    pub(crate) fn remove_place(&mut self, directory: InodeId, name: &Name) {
        self.places.retain(|(d, n)| *d != directory || n != name);
    }

    /// What `stat` shows: the directory's word, with unpublished changes over it.
    pub(crate) fn attributes(&self, id: u64) -> Attributes {
        let mut attributes = self.entry.attributes.clone();
        attributes.ino = InodeId(id);
        if let Some((size, stored, mtime)) = self.content.as_ref().and_then(|c| c.changes()) {
            attributes.size = size;
            attributes.stored = stored;
            attributes.mtime = mtime.unwrap_or(attributes.mtime);
            attributes.ctime = attributes.ctime.max(attributes.mtime);
        }
        if let Some(held) = &self.held_back {
            held.show(&mut attributes);
        }
        if self.removed {
            attributes.nlink = 0;
        }
        attributes
    }
}

/// An open that is under way: what it will open is not given up meanwhile.
#[derive(Debug)]
pub(crate) struct Arriving(Arc<Node>);

impl Arriving {
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        node.state.lock().arriving += 1;
        Self(node.clone())
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.state.lock().arriving -= 1;
    }
}

impl Node {
    fn new(id: u64, entry: Entry) -> Self {
        let state = State {
            kernel: Knowledge::new(entry.attributes.version),
            as_of: 0,
            leased: false,
            xattrs: HashMap::new(),
            entries: Entries::default(),
            paging: None,
            places: Vec::new(),
            pages: None,
            lookups: 0,
            opens: 0,
            arriving: 0,
            writers: 0,
            content: None,
            backing: None,
            held_back: None,
            unborn: None,
            birth_refused: None,
            superseded: false,
            removed: entry.attributes.nlink == 0,
            entry,
        };
        Self { id, ino: state.entry.attributes.ino, state: Mutex::new(state), opening: Turn::default() }
    }

    /// What `stat` shows.
    pub(crate) fn attributes(&self) -> Attributes {
        self.state.lock().attributes(self.id)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.state.lock().entry.attributes.kind == FileKind::Directory
    }

    /// True while an open or a close has its turn.
    pub(crate) fn is_opening(&self) -> bool {
        self.opening.try_lock().is_err()
    }

    /// True where it is open, or about to be, and a newer version may be published without a word to this mount.
    /// A version that is being written here is the newest.
    pub(crate) fn is_open_unleased(&self) -> bool {
        let is_opening = self.is_opening();
        let state = self.state.lock();
        (state.opens > 0 || is_opening) && state.writers == 0 && !state.leased && state.entry.attributes.kind == FileKind::File
    }

    pub(crate) fn lockable(&self) -> Lockable {
        Lockable { ino: self.ino, fresh: self.state.lock().entry.layout.fresh }
    }

    pub(crate) fn kind(&self) -> FileKind {
        self.state.lock().entry.attributes.kind
    }
}

#[derive(Debug, Default)]
pub(crate) struct Nodes {
    tables: Mutex<Tables>,
    /// There are more than [`NODES_MAX`].
    pub(crate) many: Notify,
}

/// By numbers that services and this mount give out one after the other: nobody can make them meet.
type Numbered<N, T> = HashMap<N, T, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
struct Tables {
    by_id: Numbered<u64, Arc<Node>>,
    /// The node that names lead to.
    current: Numbered<InodeId, u64>,
    /// Nodes of old versions.
    superseded: Numbered<InodeId, Vec<u64>>,
    next_alias: u64,
    /// In the order in which they were made; some are gone since.
    order: VecDeque<u64>,
}

impl Nodes {
    pub(crate) fn get(&self, id: u64) -> Option<Arc<Node>> {
        self.tables.lock().by_id.get(&id).cloned()
    }

    /// The node that names of `ino` lead to, if the kernel knows one.
    pub(crate) fn current(&self, ino: InodeId) -> Option<Arc<Node>> {
        let tables = self.tables.lock();
        tables.current.get(&ino).and_then(|id| tables.by_id.get(id)).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        self.tables.lock().by_id.values().cloned().collect()
    }

    /// Where people see `node`, as far as it is known here: a path from the root, or of what is known the end. Names are
    /// written as they are in JSON.
    pub(crate) fn path(&self, node: &Node) -> String {
        let mut names: Vec<String> = Vec::new();
        let mut place = node.state.lock().places.first().cloned();
        while let Some((directory, name)) = place {
            names.push(name.to_string());
            if directory == ROOT {
                names.push(String::new());
                break;
            }
            if names.len() > DEPTH_MAX {
                break;
            }
            place = self.current(directory).and_then(|node| node.state.lock().places.first().cloned());
        }
        if names.is_empty() {
            return format!("inode {}", node.ino);
        }
        names.reverse();
        names.join("/")
    }

    /// Every node of `ino`: the current one, and old versions that are still in use.
    pub(crate) fn all_of(&self, ino: InodeId) -> Vec<Arc<Node>> {
        let tables = self.tables.lock();
        let current = tables.current.get(&ino).and_then(|id| tables.by_id.get(id));
        let old = tables.superseded.get(&ino).into_iter().flatten().filter_map(|id| tables.by_id.get(id));
        current.into_iter().chain(old).cloned().collect()
    }

    /// The root's node, which the kernel never forgets.
    pub(crate) fn add_root(&self, entry: Entry) {
        let mut tables = self.tables.lock();
        let root = Arc::new(Node::new(ROOT_ID, entry));
        root.state.lock().lookups = 1;
        tables.current.insert(root.ino, ROOT_ID);
        tables.by_id.insert(ROOT_ID, root);
    }

    /// Counts one more reference to the current node of `ino`, if what is known of it is leased.
    pub(crate) fn refer(&self, ino: InodeId) -> Option<Arc<Node>> {
        let tables = self.tables.lock();
        let node = tables.current.get(&ino).and_then(|id| tables.by_id.get(id))?;
        let mut state = node.state.lock();
        if !state.leased {
            return None;
        }
        state.is_told();
        state.lookups += 1;
        Some(node.clone())
    }

    /// Counts one more reference by the kernel to the node of `entry`, which was heard as of `number`, `leased` or not.
    pub(crate) fn introduce(&self, entry: &Entry, number: Option<u64>, leased: bool) -> Arc<Node> {
        let mut tables = self.tables.lock();
        let ino = entry.attributes.ino;
        if let Some(node) = tables.current.get(&ino).and_then(|id| tables.by_id.get(id)).cloned() {
            let mut state = node.state.lock();
            if !state.is_overtaken_by(entry) {
                state.hear(entry, number, leased);
                state.is_told();
                state.lookups += 1;
                drop(state);
                return node;
            }
            state.superseded = true;
            state.unlease();
            tables.superseded.entry(ino).or_default().push(node.id);
        }
        let id = if tables.by_id.contains_key(&ino.0) {
            tables.next_alias += 1;
            ALIAS_BIT | tables.next_alias
        } else {
            ino.0
        };
        let node = Arc::new(Node::new(id, entry.clone()));
        {
            let mut state = node.state.lock();
            state.lookups = 1;
            state.hear(entry, number, leased);
        }
        tables.by_id.insert(id, node.clone());
        tables.current.insert(ino, id);
        tables.order.push_back(id);
        if tables.by_id.len() > NODES_MAX {
            self.many.notify_one();
        }
        node
    }

    pub(crate) fn count(&self) -> usize {
        self.tables.lock().by_id.len()
    }

    /// The ids of `count` nodes, those that were made longest ago; they count as the newest from here on.
    pub(crate) fn oldest(&self, count: usize) -> Vec<u64> {
        let mut tables = self.tables.lock();
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count
            && let Some(id) = tables.order.pop_front()
        {
            if tables.by_id.contains_key(&id) {
                ids.push(id);
            }
        }
        tables.order.extend(&ids);
        ids
    }

    /// The kernel dropped `count` references.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        let mut tables = self.tables.lock();
        let Some(node) = tables.by_id.get(&id).cloned() else { return };
        {
            let mut state = node.state.lock();
            state.lookups = state.lookups.saturating_sub(count);
        }
        tables.drop_if_unused(&node);
    }

    /// A handle was closed: the node goes if the kernel has forgotten it before.
    pub(crate) fn closed(&self, node: &Arc<Node>) {
        self.tables.lock().drop_if_unused(node);
    }
}

impl Tables {
    fn drop_if_unused(&mut self, node: &Arc<Node>) {
        let places = {
            let mut state = node.state.lock();
            if state.lookups > 0 || state.opens > 0 || state.writers > 0 || state.arriving > 0 {
                return;
            }
            std::mem::take(&mut state.places)
        };
        self.by_id.remove(&node.id);
        if self.order.len() > 2 * self.by_id.len() + NODES_MAX {
            let by_id = &self.by_id;
            self.order.retain(|id| by_id.contains_key(id));
        }
        if self.current.get(&node.ino) == Some(&node.id) {
            self.current.remove(&node.ino);
        }
        if let Some(old) = self.superseded.get_mut(&node.ino) {
            old.retain(|id| *id != node.id);
            if old.is_empty() {
                self.superseded.remove(&node.ino);
            }
        }
        // Names that lead to the node of another version the kernel still keeps; and with the table held nobody is told of a new one.
        if !self.current.contains_key(&node.ino) {
            for (directory, name) in places {
                let directory = self.current.get(&directory).and_then(|id| self.by_id.get(id));
                if let Some(directory) = directory {
                    directory.state.lock().entries.forgotten(&name, node.ino);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::attributes::Layout;
    use dfs_common::block::Manifest;
    use dfs_common::ids::SessionId;

    use super::*;
    use crate::cache::record::Run;
    use crate::cache::{BlockMap, Shelf};

    fn entry(ino: u64, version: u64) -> Entry {
        let attributes = Attributes { version: Version(version), ..Attributes::bare(InodeId(ino), FileKind::File) };
        Entry { attributes, layout: Layout::default() }
    }

    #[test]
    fn a_newer_version_gets_its_own_node_while_the_old_one_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let run = Run { cluster: "c".into(), boot: "b".into(), session: SessionId(1) };
        let shelf = Shelf::open(dir.path(), run, 1 << 20).unwrap();
        let nodes = Nodes::default();
        assert_eq!(nodes.introduce(&entry(5, 1), None, false).id, 5);
        let old = nodes.get(5).unwrap();
        let content = shelf.create(old.ino, Version(1), BlockMap::new(Manifest::empty(16), true), false).unwrap();
        {
            let mut state = old.state.lock();
            state.content = Some(Arc::new(content));
            state.opens = 1;
        }
        assert_eq!(nodes.introduce(&entry(5, 1), None, false).id, 5);
        let alias = nodes.introduce(&entry(5, 2), None, false).id;
        assert_ne!(alias, 5);
        assert_eq!(nodes.introduce(&entry(5, 2), None, false).id, alias);
        assert!(old.state.lock().superseded);
        assert_eq!(old.attributes().version, Version(1));

        old.state.lock().opens = 0;
        nodes.forget(5, 2);
        assert!(nodes.get(5).is_none());
        nodes.forget(alias, 2);
        assert_eq!(nodes.introduce(&entry(5, 3), None, false).id, 5);
    }

    #[test]
    fn an_answer_that_was_overtaken_is_not_believed() {
        let nodes = Nodes::default();
        let node = nodes.introduce(&entry(5, 3), None, false);
        nodes.introduce(&entry(5, 2), None, false);
        assert_eq!(node.attributes().version, Version(3));
        let changed = |mode| {
            let mut entry = entry(5, 3);
            entry.attributes.mode = mode;
            entry
        };
        for (mode, number, leased, expected) in
            [(1, Some(7), true, 1), (2, Some(6), true, 1), (3, Some(7), false, 1), (4, None, false, 1), (5, Some(8), true, 5), (7, Some(9), false, 7)]
        {
            node.state.lock().hear(&changed(mode), number, leased);
            assert_eq!(node.attributes().mode, expected, "{mode}");
        }
        node.state.lock().unlease();
        node.state.lock().hear(&changed(6), None, false);
        assert_eq!(node.attributes().mode, 6);
    }
}
