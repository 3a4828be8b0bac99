//! Random operations on three file systems that must agree: a naive one in memory, a
//! directory on a local disk, a mount.
//!
//! Names come from a small pool, so that most operations meet something. Symlinks lead
//! nowhere (outside, to what does not exist): following one is ENOENT everywhere.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::rng::Rng;
use crate::sys;

/// One operation; paths are relative to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the system calls of the same names")]
pub enum Op {
    Create {
        path: String,
        content: Vec<u8>,
    },
    WriteAt {
        path: String,
        offset: u64,
        bytes: Vec<u8>,
    },
    Append {
        path: String,
        bytes: Vec<u8>,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Read {
        path: String,
    },
    MakeDir {
        path: String,
    },
    RemoveDir {
        path: String,
    },
    Unlink {
        path: String,
    },
    /// `flags` as of renameat2: 0, 1 NOREPLACE, 2 EXCHANGE.
    Rename {
        from: String,
        to: String,
        flags: u32,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        target: String,
        path: String,
    },
    ReadLink {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Stat {
        path: String,
    },
    List {
        path: String,
    },
    SetXattr {
        path: String,
        name: String,
        value: Vec<u8>,
    },
    GetXattr {
        path: String,
        name: String,
    },
    RemoveXattr {
        path: String,
        name: String,
    },
}

/// What an operation answered.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It worked, with this to show.
    Fine(String),
    /// Content of a file.
    Content(Vec<u8>),
    /// errno.
    Failed(i32),
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Fine(text) => write!(f, "Fine({text:?})"),
            Outcome::Content(bytes) => write!(f, "Content({} bytes, {})", bytes.len(), &blake3::hash(bytes).to_hex()[..12]),
            Outcome::Failed(errno) => write!(f, "Failed({})", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}

/// A random path of one to three components.
fn path(rng: &mut Rng) -> String {
    const NAMES: &[&str] = &["a", "b", "c", "d", "ü e"];
    let depth = 1 + rng.below(3);
    (0..depth).map(|_| *rng.pick(NAMES)).collect::<Vec<_>>().join("/")
}

fn content(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(10) {
        0 => 0,
        1 => 65_536 + rng.below(3) as usize - 1,
        2 => rng.below(300_000) as usize,
        _ => rng.below(5_000) as usize,
    };
    rng.bytes(len)
}

impl Op {
    /// A random one.
    pub fn random(rng: &mut Rng) -> Self {
        let xattr = |rng: &mut Rng| format!("user.{}", rng.pick(&["x", "y"]));
        match rng.below(26) {
            0..=3 => Op::Create { path: path(rng), content: content(rng) },
            4 | 5 => Op::WriteAt { path: path(rng), offset: rng.below(400_000), bytes: content(rng) },
            6 => Op::Append { path: path(rng), bytes: content(rng) },
            7 => Op::Truncate { path: path(rng), size: rng.below(400_000) },
            8 | 9 => Op::Read { path: path(rng) },
            10..=12 => Op::MakeDir { path: path(rng) },
            13 => Op::RemoveDir { path: path(rng) },
            14 => Op::Unlink { path: path(rng) },
            15..=17 => Op::Rename { from: path(rng), to: path(rng), flags: *rng.pick(&[0, 0, 1, 2]) },
            18 => Op::Link { from: path(rng), to: path(rng) },
            19 => Op::Symlink { target: format!("/dfs-nowhere/{}", rng.below(9)), path: path(rng) },
            20 => Op::ReadLink { path: path(rng) },
            21 => Op::Chmod { path: path(rng), mode: rng.below(0o1000) as u32 },
            22 => Op::Stat { path: path(rng) },
            23 => Op::List { path: path(rng) },
            24 => match rng.below(2) {
                0 => Op::SetXattr { path: path(rng), name: xattr(rng), value: rng.bytes(20) },
                _ => Op::GetXattr { path: path(rng), name: xattr(rng) },
            },
            _ => Op::RemoveXattr { path: path(rng), name: xattr(rng) },
        }
    }
}

/// Carries `op` out below `root` with system calls.
pub fn apply(root: &Path, op: &Op) -> Outcome {
    match real(root, op) {
        Ok(outcome) => outcome,
        Err(e) => Outcome::Failed(e.raw_os_error().unwrap_or_else(|| panic!("{op:?}: {e}"))),
    }
}

fn real(root: &Path, op: &Op) -> std::io::Result<Outcome> {
    use std::fs::OpenOptions;
    let at = |path: &str| root.join(path);
    let done = Outcome::Fine(String::new());
    let store = |mut file: std::fs::File, bytes: &[u8]| {
        file.write_all(bytes)?;
        sys::close(file)
    };
    match op {
        Op::Create { path, content } => store(std::fs::File::create(at(path))?, content).map(|()| done),
        Op::WriteAt { path, offset, bytes } => {
            let mut file = OpenOptions::new().write(true).open(at(path))?;
            file.seek(SeekFrom::Start(*offset))?;
            store(file, bytes).map(|()| done)
        }
        Op::Append { path, bytes } => store(OpenOptions::new().append(true).open(at(path))?, bytes).map(|()| done),
        Op::Truncate { path, size } => {
            let file = OpenOptions::new().write(true).open(at(path))?;
            file.set_len(*size)?;
            sys::close(file).map(|()| done)
        }
        Op::Read { path } => {
            let mut bytes = Vec::new();
            std::fs::File::open(at(path))?.read_to_end(&mut bytes)?;
            Ok(Outcome::Content(bytes))
        }
        Op::MakeDir { path } => {
            std::fs::create_dir(at(path))?;
            std::fs::set_permissions(at(path), PermissionsExt::from_mode(0o755)).map(|()| done)
        }
        Op::RemoveDir { path } => std::fs::remove_dir(at(path)).map(|()| done),
        Op::Unlink { path } => std::fs::remove_file(at(path)).map(|()| done),
        Op::Rename { from, to, flags } => sys::rename2(&at(from), &at(to), *flags).map(|()| done),
        Op::Link { from, to } => std::fs::hard_link(at(from), at(to)).map(|()| done),
        Op::Symlink { target, path } => std::os::unix::fs::symlink(target, at(path)).map(|()| done),
        Op::ReadLink { path } => std::fs::read_link(at(path)).map(|t| Outcome::Fine(t.display().to_string())),
        Op::Chmod { path, mode } => std::fs::set_permissions(at(path), PermissionsExt::from_mode(*mode)).map(|()| done),
        Op::Stat { path } => {
            let meta = std::fs::symlink_metadata(at(path))?;
            let size = if meta.is_dir() { 0 } else { meta.len() };
            let xattrs = sys::list_xattrs(&at(path))?.into_iter().filter(|n| n.starts_with("user.")).collect::<Vec<_>>();
            Ok(Outcome::Fine(format!("{:o} links={} size={size} {xattrs:?}", meta.mode(), meta.nlink())))
        }
        Op::List { path } => {
            let mut names: Vec<String> =
                std::fs::read_dir(at(path))?.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned())).collect::<Result<_, _>>()?;
            names.sort();
            Ok(Outcome::Fine(names.join(" ")))
        }
        Op::SetXattr { path, name, value } => sys::set_xattr(&at(path), name, value, 0).map(|()| done),
        Op::GetXattr { path, name } => sys::get_xattr(&at(path), name).map(Outcome::Content),
        Op::RemoveXattr { path, name } => sys::remove_xattr(&at(path), name).map(|()| done),
    }
}

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    Dir(BTreeMap<String, u64>),
    Symlink(String),
}

#[derive(Clone, Debug)]
struct Node {
    body: Body,
    mode: u32,
    links: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// The naive file system.
#[derive(Clone, Debug)]
pub struct Model {
    nodes: HashMap<u64, Node>,
    next: u64,
}

type Answer<T> = Result<T, i32>;

impl Default for Model {
    fn default() -> Self {
        let root = Node { body: Body::Dir(BTreeMap::new()), mode: 0o755, links: 2, xattrs: BTreeMap::new() };
        Self { nodes: HashMap::from([(1, root)]), next: 2 }
    }
}

impl Model {
    /// Carries `op` out.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        self.run(op).unwrap_or_else(Outcome::Failed)
    }

    fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    fn entries(&self, id: u64) -> Answer<&BTreeMap<String, u64>> {
        match &self.node(id).body {
            Body::Dir(entries) => Ok(entries),
            Body::File(_) => Err(libc::ENOTDIR),
            Body::Symlink(_) => Err(libc::ENOENT),
        }
    }

    fn entries_mut(&mut self, id: u64) -> &mut BTreeMap<String, u64> {
        match &mut self.nodes.get_mut(&id).expect("a node").body {
            Body::Dir(entries) => entries,
            _ => unreachable!("checked to be a directory"),
        }
    }

    /// The directory that holds the last component, that component, and what is there; all directories on the way.
    fn walk(&self, path: &str) -> Answer<(Vec<u64>, String, Option<u64>)> {
        let (dirs, last) = path.rsplit_once('/').unwrap_or(("", path));
        let mut way = vec![1];
        for name in dirs.split('/').filter(|n| !n.is_empty()) {
            let dir = *way.last().expect("at least the root");
            way.push(*self.entries(dir)?.get(name).ok_or(libc::ENOENT)?);
        }
        let parent = *way.last().expect("at least the root");
        let found = self.entries(parent)?.get(last).copied();
        Ok((way, last.to_owned(), found))
    }

    fn existing(&self, path: &str) -> Answer<u64> {
        if path.is_empty() { Ok(1) } else { self.walk(path)?.2.ok_or(libc::ENOENT) }
    }

    /// As [`Model::existing`], following a symlink (which leads nowhere).
    fn followed(&self, path: &str) -> Answer<u64> {
        let id = self.existing(path)?;
        if matches!(self.node(id).body, Body::Symlink(_)) { Err(libc::ENOENT) } else { Ok(id) }
    }

    fn content(&mut self, path: &str) -> Answer<&mut Vec<u8>> {
        let id = self.followed(path)?;
        match &mut self.nodes.get_mut(&id).expect("a node").body {
            Body::File(bytes) => Ok(bytes),
            _ => Err(libc::EISDIR),
        }
    }

    fn add(&mut self, path: &str, body: Body, mode: u32) -> Answer<()> {
        let (way, name, found) = self.walk(path)?;
        if found.is_some() {
            return Err(libc::EEXIST);
        }
        let (parent, id) = (*way.last().expect("a parent"), self.next);
        self.next += 1;
        let directory = matches!(body, Body::Dir(_));
        self.nodes.insert(id, Node { body, mode, links: if directory { 2 } else { 1 }, xattrs: BTreeMap::new() });
        self.entries_mut(parent).insert(name, id);
        if directory {
            self.links(parent, 1);
        }
        Ok(())
    }

    fn links(&mut self, id: u64, by: i32) {
        let node = self.nodes.get_mut(&id).expect("a node");
        node.links = node.links.checked_add_signed(by).expect("links do not go below zero");
    }

    fn is_dir(&self, id: u64) -> bool {
        matches!(self.node(id).body, Body::Dir(_))
    }

    /// Takes the name away, and the node with its last one.
    fn detach(&mut self, parent: u64, name: &str) {
        let id = self.entries_mut(parent).remove(name).expect("it was there");
        if self.is_dir(id) {
            self.links(parent, -1);
            self.nodes.remove(&id);
        } else {
            self.links(id, -1);
            if self.node(id).links == 0 {
                self.nodes.remove(&id);
            }
        }
    }

    fn rename(&mut self, from: &str, to: &str, flags: u32) -> Answer<()> {
        let (from_way, from_name, source) = self.walk(from)?;
        let (to_way, to_name, target) = self.walk(to)?;
        let source = source.ok_or(libc::ENOENT)?;
        match (flags, target) {
            (1, Some(_)) => return Err(libc::EEXIST),
            (2, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if to_way.contains(&source) {
            return Err(libc::EINVAL);
        }
        if target.is_some_and(|t| from_way.contains(&t)) {
            return Err(if flags == 2 { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        let (from_dir, to_dir) = (*from_way.last().expect("a parent"), *to_way.last().expect("a parent"));
        let Some(target) = target else {
            self.entries_mut(from_dir).remove(&from_name);
            self.entries_mut(to_dir).insert(to_name, source);
            self.moved(source, from_dir, to_dir);
            return Ok(());
        };
        if source == target {
            return Ok(());
        }
        if flags == 2 {
            self.entries_mut(from_dir).insert(from_name, target);
            self.entries_mut(to_dir).insert(to_name, source);
            self.moved(source, from_dir, to_dir);
            self.moved(target, to_dir, from_dir);
            return Ok(());
        }
        match (self.is_dir(source), self.is_dir(target)) {
            (true, false) => return Err(libc::ENOTDIR),
            (false, true) => return Err(libc::EISDIR),
            (true, true) if !self.entries(target)?.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.detach(to_dir, &to_name);
        self.entries_mut(from_dir).remove(&from_name);
        self.entries_mut(to_dir).insert(to_name, source);
        self.moved(source, from_dir, to_dir);
        Ok(())
    }

    fn moved(&mut self, id: u64, from: u64, to: u64) {
        if self.is_dir(id) {
            self.links(from, -1);
            self.links(to, 1);
        }
    }

    fn remove(&mut self, path: &str, directory: bool) -> Answer<()> {
        let (way, name, found) = self.walk(path)?;
        let id = found.ok_or(libc::ENOENT)?;
        match (directory, self.is_dir(id)) {
            (true, false) => return Err(libc::ENOTDIR),
            (false, true) => return Err(libc::EISDIR),
            (true, true) if !self.entries(id)?.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.detach(*way.last().expect("a parent"), &name);
        Ok(())
    }

    fn link(&mut self, from: &str, to: &str) -> Answer<()> {
        let id = self.existing(from)?;
        let (way, name, found) = self.walk(to)?;
        if found.is_some() {
            return Err(libc::EEXIST);
        }
        if self.is_dir(id) {
            return Err(libc::EPERM);
        }
        self.entries_mut(*way.last().expect("a parent")).insert(name, id);
        self.links(id, 1);
        Ok(())
    }

    fn stat(&self, path: &str) -> Answer<String> {
        let node = self.node(self.existing(path)?);
        let (kind, size) = match &node.body {
            Body::File(bytes) => (libc::S_IFREG, bytes.len()),
            Body::Dir(_) => (libc::S_IFDIR, 0),
            Body::Symlink(target) => (libc::S_IFLNK, target.len()),
        };
        let xattrs: Vec<&String> = node.xattrs.keys().collect();
        Ok(format!("{:o} links={} size={size} {xattrs:?}", kind | node.mode, node.links))
    }

    /// The attributes of what may have `user.` ones; `on_symlink` is the error for a symlink.
    fn xattrs(&mut self, path: &str, on_symlink: i32) -> Answer<&mut BTreeMap<String, Vec<u8>>> {
        let id = self.existing(path)?;
        let node = self.nodes.get_mut(&id).expect("a node");
        if matches!(node.body, Body::Symlink(_)) { Err(on_symlink) } else { Ok(&mut node.xattrs) }
    }

    fn run(&mut self, op: &Op) -> Answer<Outcome> {
        let done = Outcome::Fine(String::new());
        match op {
            Op::Create { path, content } => {
                if self.walk(path)?.2.is_some() {
                    self.content(path)?.clone_from(content);
                    return Ok(done);
                }
                self.add(path, Body::File(content.clone()), 0o644).map(|()| done)
            }
            Op::WriteAt { path, offset, bytes } => {
                let file = self.content(path)?;
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                // As write(2) of nothing: the length stays.
                if !bytes.is_empty() {
                    file.resize(file.len().max(end), 0);
                    file[start..end].copy_from_slice(bytes);
                }
                Ok(done)
            }
            Op::Append { path, bytes } => {
                self.content(path)?.extend_from_slice(bytes);
                Ok(done)
            }
            Op::Truncate { path, size } => {
                self.content(path)?.resize(*size as usize, 0);
                Ok(done)
            }
            Op::Read { path } => self.content(path).map(|bytes| Outcome::Content(bytes.clone())),
            Op::MakeDir { path } => self.add(path, Body::Dir(BTreeMap::new()), 0o755).map(|()| done),
            Op::RemoveDir { path } => self.remove(path, true).map(|()| done),
            Op::Unlink { path } => self.remove(path, false).map(|()| done),
            Op::Rename { from, to, flags } => self.rename(from, to, *flags).map(|()| done),
            Op::Link { from, to } => self.link(from, to).map(|()| done),
            Op::Symlink { target, path } => self.add(path, Body::Symlink(target.clone()), 0o777).map(|()| done),
            Op::ReadLink { path } => match &self.node(self.existing(path)?).body {
                Body::Symlink(target) => Ok(Outcome::Fine(target.clone())),
                _ => Err(libc::EINVAL),
            },
            Op::Chmod { path, mode } => {
                let id = self.followed(path)?;
                self.nodes.get_mut(&id).expect("a node").mode = *mode;
                Ok(done)
            }
            Op::Stat { path } => self.stat(path).map(Outcome::Fine),
            Op::List { path } => {
                let names: Vec<&str> = self.entries(self.existing(path)?)?.keys().map(String::as_str).collect();
                Ok(Outcome::Fine(names.join(" ")))
            }
            Op::SetXattr { path, name, value } => {
                self.xattrs(path, libc::EPERM)?.insert(name.clone(), value.clone());
                Ok(done)
            }
            Op::GetXattr { path, name } => self.xattrs(path, libc::ENODATA)?.get(name).cloned().map(Outcome::Content).ok_or(libc::ENODATA),
            Op::RemoveXattr { path, name } => self.xattrs(path, libc::EPERM)?.remove(name).map(|_| done).ok_or(libc::ENODATA),
        }
    }
}

/// Everything below the root as `run` shows it: one line a path.
pub fn dump(mut run: impl FnMut(&Op) -> Outcome) -> Vec<String> {
    let mut out = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(dir) = pending.pop() {
        let Outcome::Fine(names) = run(&Op::List { path: dir.clone() }) else { panic!("'{dir}' cannot be listed") };
        // Names of the pool hold a blank in one place only.
        let names = names.replace("ü e", "ü_e");
        for name in names.split(' ').filter(|n| !n.is_empty()).map(|n| n.replace("ü_e", "ü e")) {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let stat = run(&Op::Stat { path: path.clone() });
            let body = match run(&Op::ReadLink { path: path.clone() }) {
                Outcome::Failed(_) => run(&Op::Read { path: path.clone() }),
                link => link,
            };
            out.push(format!("{path}: {stat:?} {body:?}"));
            if matches!(body, Outcome::Failed(libc::EISDIR)) {
                pending.push(path);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The model itself against the local disk, so that a failure on a mount is the mount's.
    #[test]
    fn the_model_agrees_with_the_local_disk() {
        let mut rng = Rng::announced("model against disk");
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let mut model = Model::default();
            for step in 0..2000 {
                let op = Op::random(&mut rng);
                assert_eq!(model.apply(&op), apply(dir.path(), &op), "step {step}: {op:?}");
            }
            assert_eq!(dump(|op| model.apply(op)), dump(|op| apply(dir.path(), op)));
        }
    }
}
