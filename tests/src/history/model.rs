//! The small file system that all clients share, and the atomic steps of each operation.
//!
//! A [`Config`] is one possibility: the state, and how far each operation under way has
//! come. Path calls take two steps, because that is what POSIX promises: the name is
//! resolved, then the inode is acted on, which may have lost that name meanwhile. A
//! step is possible only where it fits the operation's result, which is known already.

use super::record::{Call, Content, Names, Operation, Outcome, Shown};

/// An operation, counted from 1; also names the inode that it makes.
pub type Id = u32;

/// No inode.
const NONE: Id = 0;
/// An inode without a name, for an operation that does not show it: which one it was makes no difference any more, so all are one.
const GONE: Id = Id::MAX;
/// Mode of a new file.
const NEW_MODE: u32 = 0o644;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Inode {
    id: Id,
    directory: bool,
    content: Content,
    mode: u32,
    xattr: u32,
    /// st_ino; 0 until somebody has seen it.
    number: u64,
}

/// How far an operation under way has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Progress {
    Waiting,
    Resolved(Id),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Active {
    id: Id,
    progress: Progress,
    reads: bool,
}

/// What steps read and change; two of them may come in either order unless one changes what the other one touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touches {
    read: u64,
    changed: u64,
}

impl Touches {
    /// Whether the order matters.
    pub fn meets(self, other: Self) -> bool {
        self.changed & (other.read | other.changed) != 0 || other.changed & self.read != 0
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { read: self.read | other.read, changed: self.changed | other.changed }
    }
}

/// One possible state, with what is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    names: Vec<Id>,
    /// Those that have a name, are open, or are resolved; in order of id.
    inodes: Vec<Inode>,
    active: Vec<Active>,
    /// Which inode each client has open for writing.
    handles: Vec<(u8, Id)>,
}

impl Config {
    /// An empty directory, nothing under way.
    pub fn new(names: &Names) -> Self {
        Self { names: vec![NONE; usize::from(names.count())], inodes: Vec::new(), active: Vec::new(), handles: Vec::new() }
    }

    /// `id`, later than all others, is called. A close takes the client's handle with it: whatever becomes of it, the next open is another one.
    pub fn call(&mut self, id: Id, op: &Operation) {
        let closed = self.handle(op.client).filter(|_| matches!(op.call, Call::Close { .. }));
        if closed.is_some() {
            self.handles.retain(|h| h.0 != op.client);
        }
        self.active.push(Active { id, progress: closed.map_or(Progress::Waiting, Progress::Resolved), reads: op.call.only_reads() });
    }

    /// True while `id` has steps to do.
    pub fn is_active(&self, id: Id) -> bool {
        self.progress(id).is_some()
    }

    /// What is under way.
    pub fn active(&self) -> impl Iterator<Item = Id> + '_ {
        self.active.iter().map(|a| a.id)
    }

    /// `id` will not take another step.
    pub fn end(&mut self, id: Id) {
        self.active.retain(|a| a.id != id);
        let Self { names, inodes, active, handles } = self;
        let resolved = |a: &Active| if let Progress::Resolved(inode) = a.progress { Some(inode) } else { None };
        // A reader that is under way may still show what becomes of it.
        let read: Vec<Id> = active.iter().filter(|a| a.reads).filter_map(resolved).collect();
        let shows = |inode: &Id| names.contains(inode) || read.contains(inode);
        for active in active.iter_mut().filter(|a| !a.reads) {
            if let Progress::Resolved(inode) = &mut active.progress
                && !shows(inode)
            {
                *inode = GONE;
            }
        }
        handles.iter_mut().filter(|h| !shows(&h.1)).for_each(|h| h.1 = GONE);
        inodes.retain(|i| shows(&i.id));
    }

    fn progress(&self, id: Id) -> Option<Progress> {
        self.active.iter().find(|a| a.id == id).map(|a| a.progress)
    }

    fn slot(&self, inode: Id) -> usize {
        self.inodes.iter().position(|i| i.id == inode).expect("what is referred to exists")
    }

    fn inode(&self, inode: Id) -> &Inode {
        &self.inodes[self.slot(inode)]
    }

    fn links(&self, inode: Id) -> u64 {
        self.names.iter().filter(|&&n| n == inode).count() as u64
    }

    fn handle(&self, client: u8) -> Option<Id> {
        self.handles.iter().find(|h| h.0 == client).map(|h| h.1)
    }

    /// What the next steps of `id` may read and what they may change: names as the lower 32 bits, inodes as the upper ones.
    pub fn touches(&self, id: Id, op: &Operation) -> Touches {
        let Some(progress) = self.progress(id) else { return Touches::default() };
        let effect = !matches!(op.outcome, Outcome::Absent | Outcome::Exists);
        let mut touches = Touches::default();
        let mut add = |bits: u64, changes: bool| if changes { touches.changed |= bits } else { touches.read |= bits };
        match (&op.call, progress) {
            (Call::List, _) => add(u64::from(u32::MAX), false),
            (&Call::Open { name, append }, Progress::Waiting) => {
                add(self.inode_bit(name), false);
                add(1 << name, effect && !append && self.names[usize::from(name)] == NONE);
                add(1 << name, false);
            }
            (&Call::Link { from, to }, Progress::Waiting) => {
                add(1 << from, false);
                add(self.inode_bit(from) | 1 << to, effect);
            }
            (&Call::Link { to, .. }, Progress::Resolved(inode)) => add(self.bit(inode) | 1 << to, effect),
            (&Call::Rename { to, .. }, Progress::Resolved(inode)) => add(self.bit(inode) | 1 << to, false),
            (&Call::Chmod { name, .. } | &Call::SetXattr { name, .. }, Progress::Waiting) => {
                add(1 << name, false);
                add(self.inode_bit(name), effect);
            }
            (Call::Chmod { .. } | Call::SetXattr { .. } | Call::Close { .. }, Progress::Resolved(inode)) => add(self.bit(inode), effect),
            (_, Progress::Resolved(inode)) => add(self.bit(inode), false),
            (call, Progress::Waiting) => {
                let changes = effect && !call.only_reads();
                let names = (0..self.names.len() as u8).filter(|n| call.names() & 1 << n != 0);
                names.for_each(|name| add(1 << name | self.inode_bit(name), changes));
            }
        }
        touches
    }

    fn inode_bit(&self, name: u8) -> u64 {
        self.bit(self.names[usize::from(name)])
    }

    fn bit(&self, inode: Id) -> u64 {
        if inode == NONE || inode == GONE { 0 } else { 1 << (32 + self.slot(inode).min(31)) }
    }

    /// Everything that one step of `id` can make of this.
    pub fn steps(&self, id: Id, op: &Operation) -> Vec<Config> {
        let Some(progress) = self.progress(id) else { return Vec::new() };
        match (&op.call, progress) {
            (Call::List, _) => self.list(id, op),
            (Call::Close { .. }, Progress::Waiting) => panic!("a log without the open of close #{id}"),
            (&Call::Close { piece, bytes, append }, Progress::Resolved(inode)) => {
                self.done_if(matches!(op.outcome, Outcome::Fine(_) | Outcome::Unknown(_)), id, |next| {
                    if inode != GONE {
                        let slot = next.slot(inode);
                        let it = &mut next.inodes[slot].content;
                        *it = if append { it.with(piece, bytes) } else { Content::of(piece, bytes) };
                    }
                })
            }
            (&Call::Unlink { name } | &Call::RemoveDir { name }, _) => self.remove(id, op, name),
            (&Call::MakeDir { name }, _) => self.make_directory(id, op, name),
            (&Call::Rename { from, to }, _) => self.rename(id, op, progress, (from, to)),
            (&Call::Open { name, append: false }, Progress::Waiting) if self.names[usize::from(name)] == NONE => self.create(id, op, name),
            (
                &Call::Stat { name }
                | &Call::Read { name }
                | &Call::Open { name, .. }
                | &Call::Chmod { name, .. }
                | &Call::SetXattr { name, .. }
                | &Call::GetXattr { name }
                | &Call::Link { from: name, .. },
                Progress::Waiting,
            ) => self.resolve(id, op, name),
            (call, Progress::Resolved(inode)) => self.act(id, op, call, inode),
        }
    }

    /// This with `id` done, after `change`.
    fn done(&self, id: Id, change: impl FnOnce(&mut Self)) -> Vec<Config> {
        let mut next = self.clone();
        change(&mut next);
        next.end(id);
        vec![next]
    }

    fn done_if(&self, fits: bool, id: Id, change: impl FnOnce(&mut Self)) -> Vec<Config> {
        if fits { self.done(id, change) } else { Vec::new() }
    }

    fn resolve(&self, id: Id, op: &Operation, name: u8) -> Vec<Config> {
        let inode = self.names[usize::from(name)];
        if inode == NONE {
            return self.done_if(op.outcome == Outcome::Absent, id, |_| {});
        }
        if op.outcome == Outcome::Stale {
            return Vec::new();
        }
        let mut next = self.clone();
        next.active.iter_mut().filter(|a| a.id == id).for_each(|a| a.progress = Progress::Resolved(inode));
        vec![next]
    }

    fn create(&self, id: Id, op: &Operation, name: u8) -> Vec<Config> {
        let opened = op.outcome == Outcome::Fine(Shown::Nothing);
        // An open that ended in ESTALE or unclearly may have made its file.
        let made = opened || matches!(op.outcome, Outcome::Stale | Outcome::Unknown(_));
        self.done_if(made, id, |next| {
            next.make(id, name, false);
            if opened {
                next.handles.push((op.client, id));
                next.handles.sort_unstable();
            }
        })
    }

    fn make(&mut self, id: Id, name: u8, directory: bool) {
        let inode = Inode { id, directory, content: Content::default(), mode: NEW_MODE, xattr: 0, number: 0 };
        let at = self.inodes.partition_point(|i| i.id < id);
        self.inodes.insert(at, inode);
        self.names[usize::from(name)] = id;
    }

    /// The second step of a path call.
    fn act(&self, id: Id, op: &Operation, call: &Call, inode: Id) -> Vec<Config> {
        let alive = self.links(inode) > 0;
        if let &Call::Link { to, .. } = call {
            return self.link(id, op, inode, to);
        }
        if op.outcome == Outcome::Absent {
            // With O_CREAT there is always a file to open.
            let may = !alive && !matches!(call, Call::Open { append: false, .. });
            return self.done_if(may, id, |_| {});
        }
        let unknown = matches!(op.outcome, Outcome::Unknown(_));
        let Outcome::Fine(shown) = (if unknown { &Outcome::Fine(Shown::Nothing) } else { &op.outcome }) else { return Vec::new() };
        if matches!(call, Call::Open { .. }) {
            return self.done_if(!unknown, id, |next| {
                next.handles.push((op.client, inode));
                next.handles.sort_unstable();
            });
        }
        if inode == GONE {
            return self.done(id, |_| {});
        }
        let slot = self.slot(inode);
        let it = &self.inodes[slot];
        match (call, shown) {
            (Call::Stat { .. }, Shown::Attributes { number, .. }) => {
                self.done_if(self.shows(it, shown), id, |next| next.inodes[slot].number = *number)
            }
            (Call::Read { .. }, Shown::Content(content)) => self.done_if(it.content == *content, id, |_| {}),
            (Call::GetXattr { .. }, Shown::Xattr(value)) => self.done_if(it.xattr == *value, id, |_| {}),
            (Call::Chmod { mode, .. }, _) => self.done(id, |next| next.inodes[slot].mode = *mode),
            (Call::SetXattr { value, .. }, _) => self.done(id, |next| next.inodes[slot].xattr = *value),
            _ => Vec::new(),
        }
    }

    fn shows(&self, it: &Inode, shown: &Shown) -> bool {
        let &Shown::Attributes { number, directory, mode, links, bytes } = shown else { return false };
        let same = if it.number == 0 { self.inodes.iter().all(|i| i.number != number) } else { it.number == number };
        same && it.directory == directory && (directory || (it.mode == mode && it.content.bytes == bytes && self.links(it.id) == links))
    }

    fn link(&self, id: Id, op: &Operation, inode: Id, to: u8) -> Vec<Config> {
        let (alive, free) = (self.links(inode) > 0, self.names[usize::from(to)] == NONE);
        let fits = match op.outcome {
            Outcome::Exists => !free,
            Outcome::Absent => !alive,
            Outcome::Fine(_) | Outcome::Unknown(_) => alive && free,
            _ => false,
        };
        let takes = matches!(op.outcome, Outcome::Fine(_) | Outcome::Unknown(_));
        self.done_if(fits, id, |next| {
            if takes {
                next.names[usize::from(to)] = inode;
            }
        })
    }

    fn list(&self, id: Id, op: &Operation) -> Vec<Config> {
        let bits = self.names.iter().enumerate().filter(|n| *n.1 != NONE).fold(0, |bits, (n, _)| bits | 1 << n);
        self.done_if(op.outcome == Outcome::Fine(Shown::Listing(bits)), id, |_| {})
    }

    fn remove(&self, id: Id, op: &Operation, name: u8) -> Vec<Config> {
        let there = self.names[usize::from(name)] != NONE;
        match op.outcome {
            Outcome::Absent => self.done_if(!there, id, |_| {}),
            Outcome::Fine(_) | Outcome::Unknown(_) => self.done_if(there, id, |next| next.names[usize::from(name)] = NONE),
            _ => Vec::new(),
        }
    }

    fn make_directory(&self, id: Id, op: &Operation, name: u8) -> Vec<Config> {
        let there = self.names[usize::from(name)] != NONE;
        match op.outcome {
            Outcome::Exists => self.done_if(there, id, |_| {}),
            Outcome::Fine(_) | Outcome::Unknown(_) => self.done_if(!there, id, |next| next.make(id, name, true)),
            _ => Vec::new(),
        }
    }

    /// One step at the server. But the kernel resolves both names first, one after the other, and does nothing, with success,
    /// where both lead to one inode: which another client's rename between the two can bring about.
    fn rename(&self, id: Id, op: &Operation, progress: Progress, (from, to): (u8, u8)) -> Vec<Config> {
        let (old, over) = (self.names[usize::from(from)], self.names[usize::from(to)]);
        if let Progress::Resolved(inode) = progress {
            return self.done_if(over == inode && matches!(op.outcome, Outcome::Fine(_)), id, |_| {});
        }
        match op.outcome {
            Outcome::Absent => self.done_if(old == NONE, id, |_| {}),
            Outcome::Fine(_) | Outcome::Unknown(_) if old != NONE => {
                let mut all = self.done(id, |next| {
                    next.names[usize::from(from)] = NONE;
                    next.names[usize::from(to)] = old;
                });
                if matches!(op.outcome, Outcome::Fine(_)) {
                    all.extend(self.resolve(id, op, from));
                }
                all
            }
            _ => Vec::new(),
        }
    }

    /// What `name` is here, for reports.
    pub fn describe(&self, name: u8) -> String {
        match self.names[usize::from(name)] {
            NONE => "absent".into(),
            inode => {
                let it = self.inode(inode);
                let kind = if it.directory { "directory".into() } else { super::report::content(&it.content) };
                format!("made by #{inode}, number {}, mode {:o}, {} links, xattr {}, {kind}", it.number, it.mode, self.links(inode), it.xattr)
            }
        }
    }

    /// The names that exist, as bits.
    pub fn listing(&self) -> u32 {
        self.names.iter().enumerate().filter(|n| *n.1 != NONE).fold(0, |bits, (n, _)| bits | 1 << n)
    }
}
