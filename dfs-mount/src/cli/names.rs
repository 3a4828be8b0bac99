//! Commands that change names and nothing else: create, rm, mkdir, mv, ln.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use dfs_common::ErrorKind;
use dfs_common::api::directory::{Link, PageEntry, Remove, Rename, RenameMode, Renamed, Resolved};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::ids::InodeId;
use dfs_common::name::{Name, Text};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::args::{Create, Ln, Mkdir, Mv, Rm};
use super::failure::{At, Failure, Outcome};
use super::ls::join;
use super::render;
use super::session::{Session, missing};

/// The deepest tree that a recursive removal walks.
const MAX_DEPTH: usize = 4096;
/// Removals in one directory that are under way at a time.
const PARALLEL: usize = 16;

pub(crate) async fn create(session: &Session, arguments: &Create) -> Outcome {
    for path in &arguments.paths {
        let made = async {
            let (parent, name) = session.vacant(path).await?;
            session.make(parent, name, FileKind::File, None).await.at(path)
        };
        shown(session, made.await)?;
    }
    Ok(())
}

pub(crate) async fn mkdir(session: &Session, arguments: &Mkdir) -> Outcome {
    for path in &arguments.paths {
        let made = if arguments.parents { with_parents(session, path).await } else { directory(session, path).await };
        shown(session, made)?;
    }
    Ok(())
}

async fn directory(session: &Session, path: &OsStr) -> Outcome<Entry> {
    let (parent, name) = session.vacant(path).await?;
    session.make(parent, name, FileKind::Directory, None).await.at(path)
}

/// Makes what is missing on the way, and accepts what others make meanwhile.
async fn with_parents(session: &Session, path: &OsStr) -> Outcome<Entry> {
    let mut entry = session.existing(OsStr::new("/"), true).await?;
    for end in prefixes(path.as_bytes()) {
        let prefix = OsStr::from_bytes(&path.as_bytes()[..end]);
        entry = match session.resolve(prefix, true).await? {
            Resolved { entry: Some(entry), .. } => entry,
            Resolved { parent, name: Some(name), .. } => match session.make(parent, name, FileKind::Directory, None).await {
                Err(e) if e.kind() == ErrorKind::Exists => session.existing(prefix, true).await?,
                made => made.at(prefix)?,
            },
            Resolved { .. } => return Err(missing().at(prefix)),
        };
        if entry.attributes.kind != FileKind::Directory {
            return Err(Failure::new(ErrorKind::NotDirectory, "is not a directory").at(prefix));
        }
    }
    Ok(entry)
}

/// Where each component of `path` ends.
fn prefixes(path: &[u8]) -> Vec<usize> {
    let ends = |at: &usize| path[*at - 1] != b'/' && path.get(*at).is_none_or(|&next| next == b'/');
    (1..=path.len()).filter(ends).collect()
}

/// Prints what was made as JSON where that is wanted, or the failure.
fn shown(session: &Session, made: Outcome<Entry>) -> Outcome {
    match made {
        Ok(entry) if session.json => render::json(&entry),
        Ok(_) => Ok(()),
        Err(e) => {
            session.report(&e);
            Ok(())
        }
    }
}

pub(crate) async fn rm(session: &Session, arguments: &Rm) -> Outcome {
    let mut removed = 0;
    for path in &arguments.paths {
        match remove(session, arguments, path, &mut removed).await {
            Ok(()) => {}
            Err(e) if arguments.force && e.is(ErrorKind::NotFound) => {}
            Err(e) => session.report(&e),
        }
    }
    if session.json { render::json(&serde_json::json!({ "removed": removed })) } else { Ok(()) }
}

async fn remove(session: &Session, arguments: &Rm, path: &OsStr, removed: &mut u64) -> Outcome {
    let found = session.resolve(path, false).await?;
    let Some(name) = found.name else { return Err(Failure::new(ErrorKind::NotPermitted, "the root cannot be removed").at(path)) };
    let Some(entry) = found.entry else { return Err(missing().at(path)) };
    let is_directory = entry.attributes.kind == FileKind::Directory;
    if is_directory {
        if !arguments.recursive {
            return Err(Failure::new(ErrorKind::IsDirectory, "is a directory; -r removes it with everything below").at(path));
        }
        empty(session, path, entry.attributes.ino, removed).await?;
    }
    *removed += take(session, found.parent, name, is_directory).await.at(path)?;
    Ok(())
}

/// Removes everything below a directory, deepest first, without recursion of our own stack.
async fn empty(session: &Session, path: &OsStr, ino: InodeId, removed: &mut u64) -> Outcome {
    struct Level {
        path: OsString,
        ino: InodeId,
        /// Directories still to go, in reverse order.
        below: Vec<(Name, InodeId)>,
    }
    let mut stack: Vec<Level> = vec![Level { path: path.to_owned(), ino, below: Vec::new() }];
    let mut fresh = true;
    while let Some(level) = stack.last_mut() {
        if std::mem::take(&mut fresh) {
            let (directories, others): (Vec<PageEntry>, _) = session
                .cluster
                .entries(level.ino)
                .await
                .at(&level.path)?
                .into_iter()
                .partition(|child| child.entry.attributes.kind == FileKind::Directory);
            level.below = directories.into_iter().map(|child| (child.name, child.entry.attributes.ino)).collect();
            let takes = others.into_iter().map(|child| {
                let full = join(&level.path, child.name.as_bytes());
                let parent = level.ino;
                async move { take(session, parent, child.name, false).await.at(full) }
            });
            let counts: Vec<u64> = stream::iter(takes).buffer_unordered(PARALLEL).try_collect().await?;
            *removed += counts.iter().sum::<u64>();
        }
        if let Some((name, ino)) = level.below.last() {
            let next = Level { path: join(&level.path, name.as_bytes()), ino: *ino, below: Vec::new() };
            if stack.len() >= MAX_DEPTH {
                return Err(Failure::new(ErrorKind::TooMany, format!("more than {MAX_DEPTH} directories deep")).at(&next.path));
            }
            stack.push(next);
            fresh = true;
            continue;
        }
        let done = stack.pop().expect("the loop has a level");
        if let Some(parent) = stack.last_mut() {
            let (name, _) = parent.below.pop().expect("the level was one of its parent's");
            *removed += take(session, parent.ino, name, true).await.at(&done.path)?;
        }
    }
    Ok(())
}

/// Removes one name; that somebody else has just removed it is as good. Returns how many this run has removed.
async fn take(session: &Session, parent: InodeId, name: Name, directory: bool) -> Outcome<u64> {
    match session.cluster.directory.call(&Remove { parent, name, directory }).await {
        Ok(_) => Ok(1),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e.into()),
    }
}

pub(crate) async fn mv(session: &Session, arguments: &Mv) -> Outcome {
    let (target, sources) = arguments.paths.split_last().expect("the definition wants two paths");
    let into = match session.directory_at(target).await? {
        Some(directory) if !arguments.exchange => Some(directory),
        _ if sources.len() > 1 => return Err(Failure::new(ErrorKind::NotDirectory, "is not a directory").at(target)),
        _ => None,
    };
    let mode = match (arguments.no_replace, arguments.exchange) {
        (true, _) => RenameMode::NoReplace,
        (_, true) => RenameMode::Exchange,
        _ => RenameMode::Replace,
    };
    for source in sources {
        match rename(session, source, target, into, mode).await {
            Ok(renamed) if session.json => render::json(&renamed)?,
            Ok(_) => {}
            Err(e) => session.report(&e),
        }
    }
    Ok(())
}

async fn rename(session: &Session, source: &OsStr, target: &OsStr, into: Option<InodeId>, mode: RenameMode) -> Outcome<Renamed> {
    let found = session.resolve(source, false).await?;
    let (Some(name), Some(_)) = (found.name, found.entry) else { return Err(missing().at(source)) };
    let (new_parent, new_name) = match into {
        Some(directory) => (directory, name.clone()),
        None => {
            let there = session.resolve(target, false).await?;
            let vacant = there.name.ok_or_else(|| Failure::new(ErrorKind::Exists, "the name is taken").at(target))?;
            (there.parent, vacant)
        }
    };
    session.cluster.directory.call(&Rename { parent: found.parent, name, new_parent, new_name, mode }).await.at(source)
}

pub(crate) async fn ln(session: &Session, arguments: &Ln) -> Outcome {
    let (target, mut link) = (&arguments.target, arguments.link.clone());
    if session.directory_at(&link).await?.is_some() {
        let last = target.as_bytes().rsplit(|&b| b == b'/').find(|part| !part.is_empty()).unwrap_or_default();
        link = join(&link, last);
    }
    let (parent, name) = session.vacant(&link).await?;
    let made = if arguments.symbolic {
        session.make(parent, name, FileKind::Symlink, Some(Text(target.as_bytes().to_vec()))).await.at(&link)?
    } else {
        let ino = session.existing(target, false).await?.attributes.ino;
        session.cluster.directory.call(&Link { ino, parent, name }).await.at(&link)?.entry
    };
    if session.json { render::json(&made) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_components() {
        assert_eq!(prefixes(b"/a//bc/"), [2, 6]);
        assert_eq!(prefixes(b"a"), [1]);
        assert!(prefixes(b"/").is_empty());
        assert!(prefixes(b"").is_empty());
    }
}
