//! Random operations on the service and on a naive model of a namespace agree in every
//! result and in the whole tree afterwards.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use dfs_common::ids::RECOVERED;

use super::super::periodic::Rounds;
use super::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Step {
    Make { at: Place, kind: FileKind },
    Link { what: Index, at: Place },
    Remove { at: Place, directory: bool },
    Rename { from: Place, to: Place, mode: RenameMode },
    Chmod { what: Index, mode: u32 },
    Undelete { what: Index, at: Place },
}

/// A name in one of the directories that were ever made.
#[derive(Clone, Debug)]
struct Place {
    directory: Index,
    name: usize,
}

fn place() -> impl Strategy<Value = Place> {
    (any::<Index>(), 0..NAMES.len()).prop_map(|(directory, name)| Place { directory, name })
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![2 => Just(FileKind::File), 3 => Just(FileKind::Directory), 1 => Just(FileKind::Symlink), 1 => Just(FileKind::Fifo)];
    let mode = prop_oneof![3 => Just(RenameMode::Replace), 1 => Just(RenameMode::NoReplace), 2 => Just(RenameMode::Exchange)];
    prop_oneof![
        4 => (place(), kind).prop_map(|(at, kind)| Step::Make { at, kind }),
        1 => (any::<Index>(), place()).prop_map(|(what, at)| Step::Link { what, at }),
        2 => (place(), any::<bool>()).prop_map(|(at, directory)| Step::Remove { at, directory }),
        4 => (place(), place(), mode).prop_map(|(from, to, mode)| Step::Rename { from, to, mode }),
        2 => (any::<Index>(), place()).prop_map(|(what, at)| Step::Undelete { what, at }),
        1 => (any::<Index>(), 0u32..0o10000).prop_map(|(what, mode)| Step::Chmod { what, mode }),
    ]
}

/// An inode of the model; directories have entries, and no counters are kept: they are counted.
#[derive(Debug)]
struct Node {
    kind: FileKind,
    mode: u32,
    entries: BTreeMap<usize, InodeId>,
}

#[derive(Debug)]
struct Model {
    nodes: BTreeMap<InodeId, Node>,
    /// What was removed from each name last, unless it was removed from it by a rename away.
    removed: BTreeMap<(InodeId, usize), InodeId>,
}

impl Model {
    fn new() -> Self {
        let top = |mode| Node { kind: FileKind::Directory, mode, entries: BTreeMap::new() };
        Self { nodes: BTreeMap::from([(ROOT, top(0o755)), (RECOVERED, top(0o700))]), removed: BTreeMap::new() }
    }

    fn is_directory(&self, ino: InodeId) -> bool {
        self.nodes[&ino].kind == FileKind::Directory
    }

    fn names_of(&self, ino: InodeId) -> u32 {
        self.nodes.values().flat_map(|n| n.entries.values()).filter(|&&i| i == ino).count() as u32
    }

    fn nlink(&self, ino: InodeId) -> u32 {
        if !self.is_directory(ino) {
            return self.names_of(ino);
        }
        if ino != ROOT && ino != RECOVERED && self.names_of(ino) == 0 {
            return 0;
        }
        2 + self.nodes[&ino].entries.values().filter(|&&i| self.is_directory(i)).count() as u32
    }

    fn get(&self, (directory, name): (InodeId, usize)) -> Option<InodeId> {
        self.nodes[&directory].entries.get(&name).copied()
    }

    fn set(&mut self, (directory, name): (InodeId, usize), ino: Option<InodeId>) {
        let entries = &mut self.nodes.get_mut(&directory).unwrap().entries;
        match ino {
            Some(ino) => entries.insert(name, ino),
            None => entries.remove(&name),
        };
    }

    fn usable(&self, directory: InodeId) -> Result<(), ErrorKind> {
        if self.nlink(directory) == 0 { Err(ErrorKind::NotFound) } else { Ok(()) }
    }

    fn lies_in(&self, ino: InodeId, ancestor: InodeId) -> bool {
        ino == ancestor || self.nodes[&ancestor].entries.values().any(|&i| self.is_directory(i) && self.lies_in(ino, i))
    }

    fn remove(&mut self, at: (InodeId, usize), directory: bool) -> Result<(), ErrorKind> {
        self.usable(at.0)?;
        let ino = self.get(at).ok_or(ErrorKind::NotFound)?;
        match (directory, self.is_directory(ino)) {
            (true, false) => return Err(ErrorKind::NotDirectory),
            (false, true) => return Err(ErrorKind::IsDirectory),
            (true, true) if !self.nodes[&ino].entries.is_empty() => return Err(ErrorKind::NotEmpty),
            _ => {}
        }
        self.set(at, None);
        self.removed.insert(at, ino);
        Ok(())
    }

    /// What [`Removals`] of a directory shows.
    fn removals(&self, directory: InodeId) -> Vec<(String, InodeId)> {
        let rows = self
            .removed
            .iter()
            .filter(|((parent, name), ino)| *parent == directory && self.get((*parent, *name)).is_none() && self.nlink(**ino) == 0);
        rows.map(|((_, name), ino)| (NAMES[*name].to_owned(), *ino)).collect()
    }

    fn rename(&mut self, from: (InodeId, usize), to: (InodeId, usize), mode: RenameMode) -> Result<(), ErrorKind> {
        self.usable(from.0)?;
        self.usable(to.0)?;
        let source = self.get(from).ok_or(ErrorKind::NotFound)?;
        let target = self.get(to);
        if mode == RenameMode::NoReplace && target.is_some() {
            return Err(ErrorKind::Exists);
        }
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(ErrorKind::NotFound);
        }
        if target == Some(source) {
            return Ok(());
        }
        if self.is_directory(source) && self.lies_in(to.0, source) {
            return Err(ErrorKind::Invalid);
        }
        let Some(target) = target else {
            self.set(from, None);
            self.set(to, Some(source));
            return Ok(());
        };
        if mode == RenameMode::Exchange {
            if self.is_directory(target) && self.lies_in(from.0, target) {
                return Err(ErrorKind::Invalid);
            }
            self.set(from, Some(target));
        } else {
            match (self.is_directory(source), self.is_directory(target)) {
                (true, false) => return Err(ErrorKind::NotDirectory),
                (false, true) => return Err(ErrorKind::IsDirectory),
                (true, true) if !self.nodes[&target].entries.is_empty() => return Err(ErrorKind::NotEmpty),
                _ => {}
            }
            self.set(from, None);
            self.removed.insert(to, target);
        }
        self.set(to, Some(source));
        Ok(())
    }
}

struct Both {
    model: Model,
    client: Client,
}

impl Both {
    fn place(&self, place: &Place) -> (InodeId, usize) {
        let directories: Vec<InodeId> = self.model.nodes.iter().filter(|n| n.1.kind == FileKind::Directory).map(|n| *n.0).collect();
        (*place.directory.get(&directories), place.name)
    }

    fn inode(&self, index: &Index) -> InodeId {
        let inodes: Vec<InodeId> = self.model.nodes.keys().copied().collect();
        *index.get(&inodes)
    }

    /// Does one step to both; their results, without what succeeded.
    async fn step(&mut self, step: &Step) -> (Result<(), ErrorKind>, Result<(), ErrorKind>) {
        let real;
        let expected;
        match step {
            Step::Make { at, kind } => {
                let at = self.place(at);
                let made = self.client.make(at.0, NAMES[at.1], *kind).await;
                expected = self.model.usable(at.0).and_then(|()| self.model.get(at).map_or(Ok(()), |_| Err(ErrorKind::Exists)));
                if let (Ok(entry), Ok(())) = (&made, &expected) {
                    let mode = match kind {
                        FileKind::Symlink => 0o777,
                        FileKind::Directory => 0o755 | self.model.nodes[&at.0].mode & 0o2000,
                        _ => 0o755,
                    };
                    let ino = entry.attributes.ino;
                    assert!(self.model.nodes.insert(ino, Node { kind: *kind, mode, entries: BTreeMap::new() }).is_none());
                    self.model.set(at, Some(ino));
                }
                real = made.map(|_| ());
            }
            Step::Link { what, at } => {
                let (ino, at) = (self.inode(what), self.place(at));
                real = self.client.call(&Link { ino, parent: at.0, name: name(NAMES[at.1]) }).await.map(|_| ());
                expected = self.model.usable(at.0).and_then(|()| match () {
                    () if self.model.is_directory(ino) => Err(ErrorKind::NotPermitted),
                    () if self.model.nlink(ino) == 0 => Err(ErrorKind::NotFound),
                    () if self.model.get(at).is_some() => Err(ErrorKind::Exists),
                    () => Ok(()),
                });
                if expected.is_ok() {
                    self.model.set(at, Some(ino));
                }
            }
            Step::Remove { at, directory } => {
                let at = self.place(at);
                real = self.client.remove(at.0, NAMES[at.1], *directory).await.map(|_| ());
                expected = self.model.remove(at, *directory);
            }
            Step::Rename { from, to, mode } => {
                let (from, to) = (self.place(from), self.place(to));
                real = self.client.rename((from.0, NAMES[from.1]), (to.0, NAMES[to.1]), *mode).await.map(|_| ());
                expected = self.model.rename(from, to, *mode);
            }
            Step::Undelete { what, at } => {
                let (ino, at) = (self.inode(what), self.place(at));
                real = self.client.call(&Undelete { ino, parent: at.0, name: name(NAMES[at.1]) }).await.map(|_| ());
                expected = self.model.usable(at.0).and_then(|()| match () {
                    () if self.model.nlink(ino) > 0 => Err(ErrorKind::NotFound),
                    () if self.model.get(at).is_some() => Err(ErrorKind::Exists),
                    () => Ok(()),
                });
                if expected.is_ok() {
                    self.model.set(at, Some(ino));
                }
            }
            Step::Chmod { what, mode } => {
                let ino = self.inode(what);
                real = self.client.call(&SetAttributes { mode: Some(*mode), ..SetAttributes::none(ino) }).await.map(|_| ());
                self.model.nodes.get_mut(&ino).unwrap().mode = *mode;
                expected = Ok(());
            }
        }
        (real.map_err(|e| e.kind()), expected)
    }

    async fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            let (real, expected) = self.step(step).await;
            assert_eq!(real, expected, "{step:?}");
        }
        self.compare().await;
    }

    /// Every inode, every listing and every count is as in the model; nothing else is there.
    async fn compare(&self) {
        let mut removed = 0;
        for (&ino, node) in &self.model.nodes {
            let attributes = self.client.attributes(ino).await.unwrap().attributes;
            let expected = (node.kind, node.mode, self.model.nlink(ino));
            assert_eq!((attributes.kind, attributes.mode, attributes.nlink), expected, "inode {ino}");
            removed += u64::from(attributes.nlink == 0);
            if node.kind != FileKind::Directory {
                continue;
            }
            let page = self.client.call(&List { ino, after: None, limit: 100 }).await.unwrap();
            let listed: Vec<_> = page.entries.iter().map(|e| (e.name.to_string(), e.entry.attributes.ino)).collect();
            let expected: Vec<_> = node.entries.iter().map(|(&n, &i)| (NAMES[n].to_owned(), i)).collect();
            assert_eq!(listed, expected, "directory {ino}");
            if ino != ROOT && ino != RECOVERED && attributes.nlink > 0 {
                assert!(self.model.nodes[&page.parent].entries.values().any(|&i| i == ino), "parent of {ino}");
            }
            assert_eq!(self.removals(ino).await, self.model.removals(ino), "removals of directory {ino}");
        }
        let status = self.client.status().await;
        // Those without names are orphans while a session is there, and kept when none is.
        let (open, kept) = if status.sessions > 0 { (removed, 0) } else { (0, removed) };
        assert_eq!((status.inodes, status.orphans, status.kept), (self.model.nodes.len() as u64 - kept, open, kept));
    }

    /// Page by page, one row each.
    async fn removals(&self, parent: InodeId) -> Vec<(String, InodeId)> {
        let (mut rows, mut after) = (Vec::new(), None);
        loop {
            let page = self.client.call(&Removals { parent, after: after.take(), limit: 1 }).await.unwrap();
            rows.extend(page.rows.iter().map(|row| (row.name.to_string(), row.entry.attributes.ino)));
            match page.rows.into_iter().next_back().filter(|_| page.more) {
                Some(last) => after = Some(last.name),
                None => return rows,
            }
        }
    }
}

async fn agree(steps: Vec<Step>) {
    let mut client = Client::with(keeping(), Arc::new(MemoryStore::default()));
    let session = client.open_session().await;
    let mut both = Both { model: Model::new(), client };
    let (first, rest) = steps.split_at(steps.len() * 3 / 4);
    both.steps(first).await;
    // With nobody left who has them open, removed ones are kept, and all goes on.
    both.client.call(&CloseSession { session }).await.unwrap();
    both.client.session = None;
    both.client.directory.look(&mut Rounds::default()).await.unwrap();
    both.compare().await;
    both.steps(rest).await;
    // By another policy they go, and all else stays.
    both.client.forget_the_past().await;
    let Model { nodes, .. } = &both.model;
    let kept: Vec<InodeId> = nodes.keys().copied().filter(|&ino| both.model.nlink(ino) > 0).collect();
    both.model.nodes.retain(|ino, _| kept.contains(ino));
    both.model.removed.clear();
    both.compare().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_service_agrees_with_a_naive_model(steps in proptest::collection::vec(step(), 0..80)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(agree(steps));
    }
}
