//! Walking a path from the root, for clients without a mount.

use dfs_common::api::directory::{Resolve, Resolved};
use dfs_common::attributes::FileKind;
use dfs_common::ids::{InodeId, ROOT};
use dfs_common::name::Name;
use dfs_common::user::User;
use dfs_common::{Error, ErrorKind, Result};

use super::change::{find, load};
use super::read::linked;
use super::rights::{Asker, EXECUTE};
use crate::store::View;

/// Symlinks that one walk follows (as Linux: MAXSYMLINKS).
const MAX_SYMLINKS: u32 = 40;
/// Bytes of a path: longer than PATH_MAX, because scripts join paths; still bounded.
const MAX_PATH: usize = 64 << 10;

/// A walk under way.
struct Walk<'a> {
    view: &'a dyn View,
    /// Components still to go, the next one last.
    todo: Vec<Vec<u8>>,
    /// How the walk came from the root to `directory`: each directory with the name taken in it.
    trail: Vec<(InodeId, Name)>,
    directory: InodeId,
    symlinks: u32,
    /// Who walks, where that is not root.
    asker: Option<Asker<'a>>,
}

/// Walks on behalf of `user`, who must have the right to search each directory on the way.
pub(crate) fn resolve(view: &dyn View, request: &Resolve, user: Option<&User>) -> Result<Resolved> {
    let path = &request.path.0;
    if path.len() > MAX_PATH {
        return Err(Error::new(ErrorKind::NameTooLong, format!("a path has at most {MAX_PATH} bytes, this one {}", path.len())));
    }
    let mut walk = Walk { view, todo: Vec::new(), trail: Vec::new(), directory: ROOT, symlinks: 0, asker: Asker::new(view, user) };
    walk.push(path);
    while let Some(component) = walk.todo.pop() {
        walk.search()?;
        if component == b".." {
            if let Some((directory, _)) = walk.trail.pop() {
                walk.directory = directory;
            }
            continue;
        }
        if let Some(resolved) = walk.step(Name::new(&component)?, request.follow)? {
            return Ok(resolved);
        }
    }
    // The walk ended on a directory that `..`, a symlink to the root or an empty path led to.
    let entry = Some(load(view, walk.directory)?.entry(walk.directory));
    Ok(match walk.trail.pop() {
        Some((parent, name)) => Resolved { parent, name: Some(name), entry },
        None => Resolved { parent: ROOT, name: None, entry },
    })
}

impl Walk<'_> {
    /// `Forbidden` where the directory must not be searched.
    fn search(&self) -> Result<()> {
        match &self.asker {
            Some(asker) => asker.require(self.directory, &load(self.view, self.directory)?, EXECUTE),
            None => Ok(()),
        }
    }

    fn push(&mut self, path: &[u8]) {
        let components = path.split(|&b| b == b'/').rev().filter(|c| !c.is_empty() && *c != b".");
        self.todo.extend(components.map(<[u8]>::to_vec));
    }

    /// Follows `name`; the answer where it was the last one.
    fn step(&mut self, name: Name, follow: bool) -> Result<Option<Resolved>> {
        let last = self.todo.is_empty();
        let parent = self.directory;
        let Some(ino) = find(self.view, parent, name.as_bytes())? else {
            if last {
                return Ok(Some(Resolved { parent, name: Some(name), entry: None }));
            }
            return Err(Error::new(ErrorKind::NotFound, format!("no entry '{name}' in directory {parent}")));
        };
        let inode = linked(self.view, ino)?;
        if inode.kind == FileKind::Symlink && (follow || !last) {
            self.symlinks += 1;
            if self.symlinks > MAX_SYMLINKS {
                return Err(Error::new(ErrorKind::Invalid, format!("more than {MAX_SYMLINKS} symlinks on the way, the last one '{name}'")));
            }
            if inode.target.starts_with(b"/") {
                self.directory = ROOT;
                self.trail.clear();
            }
            self.push(&inode.target);
            return Ok(None);
        }
        if last {
            return Ok(Some(Resolved { parent, name: Some(name), entry: Some(inode.entry(ino)) }));
        }
        if !inode.is_directory() {
            return Err(Error::new(ErrorKind::NotDirectory, format!("'{name}' in directory {parent} is no directory")));
        }
        self.trail.push((parent, name));
        self.directory = ino;
        Ok(None)
    }
}
