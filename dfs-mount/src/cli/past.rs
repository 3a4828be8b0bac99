//! `dfs history`, `restore` and `undelete`: what a name held before, and bringing it back.
//!
//! Editors save by writing another file and renaming it, so the history of a path is that
//! of every file that had the name. A version of the file that has it now is called by its
//! number, one of an earlier file by the inode's number before that: `41.3`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use dfs_common::ErrorKind;
use dfs_common::api::directory::{Lookup, NameHistory, PastRow, SetAttributes, Undelete, VersionRow};
use dfs_common::attributes::{Entry, FileKind, Timestamp};
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::clients::past::Save;
use dfs_common::ids::{InodeId, ROOT};
use dfs_common::name::{self, Name};

use super::args::{self, OnePath, Restore};
use super::content::download;
use super::failure::{At, Failure, Outcome};
use super::render;
use super::session::{Session, missing};
use super::upload::{FileSource, publish};

/// A directory comes back with what was removed from it so long before it at the most, in nanoseconds.
const TOGETHER: i64 = 3_600_000_000_000;
/// The deepest tree that comes back.
const MAX_DEPTH: usize = 4096;

/// A name in a directory, either of which may have been removed.
struct Spot {
    parent: InodeId,
    name: Name,
    /// What it leads to now.
    entry: Option<Entry>,
}

impl Spot {
    async fn past(&self, session: &Session) -> Outcome<Vec<PastRow>> {
        Ok(session.cluster.directory.call(&NameHistory { parent: self.parent, name: self.name.clone() }).await?)
    }
}

/// Walks to `path` through what is there and, where nothing is, through the directory that was there last.
async fn walk(session: &Session, path: &OsStr) -> Outcome<Spot> {
    let found = match session.resolve(path, true).await {
        Ok(found) => Some(found),
        Err(e) if e.is(ErrorKind::NotFound) => None,
        Err(e) => return Err(e),
    };
    if let Some(found) = found {
        let Some(name) = found.name else { return Err(Failure::new(ErrorKind::IsDirectory, "is the root").at(path)) };
        return Ok(Spot { parent: found.parent, name, entry: found.entry });
    }
    let mut names = path.as_bytes().split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".").peekable();
    let mut parent = ROOT;
    while let Some(part) = names.next() {
        let name = Name::new(part).at(path)?;
        let entry = match session.cluster.directory.call(&Lookup { parent, name: name.clone() }).await {
            Ok(entry) => Some(entry),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e).at(path),
        };
        let spot = Spot { parent, name, entry };
        if names.peek().is_none() {
            return Ok(spot);
        }
        let is_directory = |entry: &&Entry| entry.attributes.kind == FileKind::Directory;
        parent = match spot.entry.as_ref().filter(is_directory) {
            Some(entry) => entry.attributes.ino,
            None => {
                let past = spot.past(session).await.at(path)?;
                past.iter().map(|row| &row.entry).find(is_directory).ok_or_else(|| missing().at(path))?.attributes.ino
            }
        };
    }
    Err(missing().at(path))
}

/// Every kept version of what `path` held, oldest first.
async fn saves(session: &Session, path: &OsStr) -> Outcome<Vec<Save>> {
    let spot = walk(session, path).await?;
    let saves = session.cluster.saves(spot.parent, &spot.name, spot.entry.as_ref()).await.at(path)?;
    if saves.is_empty() && spot.entry.is_none() {
        return Err(missing().at(path));
    }
    Ok(saves)
}

pub(crate) async fn history(session: &Session, arguments: &OnePath) -> Outcome {
    let saves = saves(session, &arguments.path).await?;
    if session.json {
        return render::json(&saves);
    }
    let columns = saves.iter().map(|save| {
        let VersionRow { size, published, by, manifest, .. } = &save.row;
        let state = match (save.current, save.row.interim) {
            (true, _) => "current",
            (false, true) => "fsync",
            (false, false) => "",
        };
        let by = name::encode(by.as_bytes());
        vec![save.id.clone(), size.to_string(), render::full_time(*published), by, short(*manifest), state.to_owned()]
    });
    render::table(&["VERSION", "SIZE", "PUBLISHED", "BY", "CONTENT", ""], &[0, 1], columns.collect())
}

/// Enough of a hash to tell two versions apart.
fn short(hash: BlockHash) -> String {
    hash.to_string().chars().take(12).collect()
}

/// `PATH@ID` in its parts, where it has this form.
pub(crate) fn split_version(path: &OsStr) -> Option<(&OsStr, &str)> {
    let bytes = path.as_bytes();
    let at = bytes.iter().rposition(|&b| b == b'@')?;
    let id = std::str::from_utf8(&bytes[at + 1..]).ok()?;
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (first, second) = id.split_once('.').unwrap_or((id, "0"));
    (is_number(first) && is_number(second)).then(|| (OsStr::from_bytes(&bytes[..at]), id))
}

/// The version `id` of what `path` held, as an entry that can be read.
pub(crate) async fn old_version(session: &Session, path: &OsStr, id: &str) -> Outcome<Entry> {
    let Some(save) = saves(session, path).await?.into_iter().find(|save| save.id == id) else {
        return Err(Failure::new(ErrorKind::NotFound, format!("version {id} is not kept; dfs history lists those that are")).at(path));
    };
    session.cluster.saved(&save).await.at(path)
}

pub(crate) async fn restore(session: &Session, arguments: &Restore) -> Outcome {
    let Some((path, id)) = split_version(&arguments.path) else {
        return Err(Failure::new(ErrorKind::Invalid, "names no version: PATH@VERSION, as dfs history lists them").at(&arguments.path));
    };
    let old = old_version(session, path, id).await?;
    let entry = republish(session, &old, path, arguments.waiting.wait).await?;
    if session.json { render::json(&entry) } else { Ok(()) }
}

/// Publishes the content of `old` as the next version of the file at `path`, which is created if there is none.
pub(crate) async fn republish(session: &Session, old: &Entry, path: &OsStr, wait: std::time::Duration) -> Outcome<Entry> {
    let copy = tempfile::NamedTempFile::new()?;
    download(session, old, copy.path()).await?;
    let locked = session.lock(path, "dfs restore", wait).await?;
    let published = async {
        let empty = Manifest::empty(session.cluster.session().block_bits);
        let source = FileSource::scan(copy.reopen()?, &empty, 0).await?;
        Ok(publish(session, &locked, &source, None, false).await?)
    };
    let published = published.await;
    session.release(locked.entry.attributes.ino, locked.token).await;
    published.map_err(|e: Failure| e.at(path))
}

pub(crate) async fn undelete(session: &Session, arguments: &args::Undelete) -> Outcome {
    if arguments.list {
        return list(session, arguments.paths.first().map_or(OsStr::new("/"), |path| path.as_os_str())).await;
    }
    if arguments.to.is_some() && arguments.paths.len() > 1 {
        return Err(Failure::new(ErrorKind::Invalid, "--to names one place, for one path"));
    }
    let mut restored = 0;
    for path in &arguments.paths {
        if let Err(e) = bring_back(session, arguments, path, &mut restored).await {
            session.report(&e);
        }
    }
    if session.json { render::json(&serde_json::json!({ "restored": restored })) } else { Ok(()) }
}

async fn bring_back(session: &Session, arguments: &args::Undelete, path: &OsString, restored: &mut u64) -> Outcome {
    let spot = walk(session, path).await?;
    let past = spot.past(session).await.at(path)?;
    let Some(row) = past.into_iter().find(|row| row.entry.attributes.nlink == 0) else {
        return Err(Failure::new(ErrorKind::NotFound, "nothing that was removed is kept under this name").at(path));
    };
    let (parent, name) = match &arguments.to {
        Some(to) => session.vacant(to).await?,
        None if spot.entry.is_some() => return Err(Failure::new(ErrorKind::Exists, "the name is taken again; choose another with --to").at(path)),
        None => (spot.parent, spot.name),
    };
    let again = Undelete { ino: row.entry.attributes.ino, parent, name };
    let made = session.cluster.directory.call(&again).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound if arguments.to.is_none() => e.context("its directory was removed, too: undelete that, or choose a place with --to"),
        _ => e,
    });
    made.at(path)?;
    *restored += 1;
    if row.entry.attributes.kind == FileKind::Directory {
        below(session, arguments.all, &row, restored).await.at(path)?;
    }
    Ok(())
}

/// Brings back what was removed from a directory before it was removed itself, level by level.
async fn below(session: &Session, all: bool, top: &PastRow, restored: &mut u64) -> dfs_common::Result<()> {
    let directory = &session.cluster.directory;
    let since = if all { Timestamp(i64::MIN) } else { Timestamp(top.until.0.saturating_sub(TOGETHER)) };
    let mut open = vec![(top.entry.attributes.ino, 1)];
    let mut times = Vec::new();
    while let Some((parent, depth)) = open.pop() {
        let mut first: Option<(Timestamp, Timestamp)> = None;
        for row in session.cluster.removals(parent).await?.into_iter().filter(|row| row.until >= since) {
            let attributes = &row.entry.attributes;
            directory.call(&Undelete { ino: attributes.ino, parent, name: row.name }).await?;
            *restored += 1;
            first = Some(first.map_or((row.until, row.parent_mtime), |first| first.min((row.until, row.parent_mtime))));
            if attributes.kind == FileKind::Directory && depth < MAX_DEPTH {
                open.push((attributes.ino, depth + 1));
            }
        }
        times.extend(first.map(|(_, mtime)| (parent, mtime)));
    }
    // Last, as bringing back a subdirectory changes the time of what it lies in.
    for (ino, mtime) in times {
        match directory.call(&SetAttributes { mtime: Some(mtime), ..SetAttributes::none(ino) }).await {
            // A directory of somebody else, whose time is not ours to set.
            Err(e) if e.kind() == ErrorKind::NotPermitted => {}
            set => set.map(|_| ())?,
        }
    }
    Ok(())
}

async fn list(session: &Session, path: &OsStr) -> Outcome {
    let parent = match session.directory_at(path).await? {
        Some(ino) => ino,
        None => {
            let spot = walk(session, path).await?;
            let past = spot.past(session).await?;
            let directory = past.iter().find(|row| row.entry.attributes.kind == FileKind::Directory);
            directory.ok_or_else(|| Failure::new(ErrorKind::NotDirectory, "is not a directory").at(path))?.entry.attributes.ino
        }
    };
    let rows = session.cluster.removals(parent).await.at(path)?;
    if session.json {
        return render::json(&rows);
    }
    let columns = rows.iter().map(|row| {
        let a = &row.entry.attributes;
        vec![
            render::mode(a.kind, a.mode),
            a.size.to_string(),
            render::full_time(row.until),
            name::encode(row.by.as_bytes()),
            name::encode(row.name.as_bytes()),
        ]
    });
    render::table(&["MODE", "SIZE", "REMOVED", "BY", "NAME"], &[1], columns.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_off_at_the_last_at() {
        assert_eq!(split_version(OsStr::new("a@b@12")), Some((OsStr::new("a@b"), "12")));
        assert_eq!(split_version(OsStr::new("a@41.3")), Some((OsStr::new("a"), "41.3")));
        for none in ["a@b", "a", "a@", "a@1.", "a@.1", "a@1.2.3", "a@-1"] {
            assert_eq!(split_version(OsStr::new(none)), None, "{none}");
        }
    }
}
