//! `dfs ls` and `dfs stat`: what is there, without a change.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use chrono::Local;
use dfs_common::api::directory::{PageEntry, ReadLink};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::ids::{InodeId, ServerId};
use dfs_common::name;
use serde::Serialize;

use super::args::{Ls, OnePath};
use super::failure::{At, Outcome};
use super::render::{self, Owners};
use super::session::Session;

/// An entry of the API with where it was found.
#[derive(Serialize)]
struct Found {
    path: String,
    #[serde(flatten)]
    entry: PageEntry,
}

/// One line of a listing before its columns are aligned.
struct Row {
    name: Vec<u8>,
    entry: Entry,
    target: Option<Vec<u8>>,
}

pub(crate) async fn ls(session: &Session, arguments: &Ls) -> Outcome {
    let mut listing = Listing { session, arguments, found: Vec::new(), owners: Owners::local(), first: true };
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for path in &arguments.paths {
        match session.existing(path, true).await {
            Ok(entry) if entry.attributes.kind == FileKind::Directory => directories.push((path.clone(), entry.attributes.ino)),
            Ok(entry) => files.push((path.clone(), entry)),
            Err(e) => session.report(&e),
        }
    }
    let headings = arguments.recursive || files.len() + directories.len() > 1;
    listing.files(files).await?;
    // Depth first, in order of names: the last of the stack is next.
    directories.reverse();
    while let Some((path, ino)) = directories.pop() {
        match listing.directory(&path, ino, headings).await {
            Ok(below) => directories.extend(below.into_iter().rev()),
            Err(e) if e.exit_code() == 141 => return Err(e),
            Err(e) => session.report(&e.at(&path)),
        }
    }
    if session.json { render::json(&listing.found) } else { Ok(()) }
}

/// The output of one `ls`.
struct Listing<'a> {
    session: &'a Session,
    arguments: &'a Ls,
    found: Vec<Found>,
    owners: Owners,
    first: bool,
}

impl Listing<'_> {
    async fn files(&mut self, files: Vec<(OsString, Entry)>) -> Outcome {
        let mut rows = Vec::new();
        for (path, entry) in files {
            if self.session.json {
                // The name of the wire is a component; a path given as `a/b` ends in one.
                let last = path.as_bytes().rsplit(|&b| b == b'/').find(|part| !part.is_empty()).unwrap_or(b"/");
                if let Ok(name) = name::Name::new(last) {
                    self.found.push(Found { path: name::encode(path.as_bytes()), entry: PageEntry { name, entry } });
                }
            } else {
                rows.push(self.row(path.into_vec(), entry).await?);
            }
        }
        self.first &= rows.is_empty();
        self.print(&rows)
    }

    /// Lists one directory; returns those below it where they are wanted.
    async fn directory(&mut self, path: &OsStr, ino: InodeId, heading: bool) -> Outcome<Vec<(OsString, InodeId)>> {
        let mut below = Vec::new();
        let mut rows = Vec::new();
        for found in self.session.cluster.entries(ino).await? {
            if !self.arguments.all && found.name.as_bytes().starts_with(b".") {
                continue;
            }
            let full = join(path, found.name.as_bytes());
            if self.arguments.recursive && found.entry.attributes.kind == FileKind::Directory {
                below.push((full.clone(), found.entry.attributes.ino));
            }
            if self.session.json {
                self.found.push(Found { path: name::encode(full.as_bytes()), entry: found });
            } else {
                rows.push(self.row(found.name.as_bytes().to_vec(), found.entry).await?);
            }
        }
        if !self.session.json {
            self.heading(path, heading, &rows)?;
            self.print(&rows)?;
        }
        Ok(below)
    }

    fn heading(&mut self, path: &OsStr, heading: bool, rows: &[Row]) -> Outcome {
        let mut out = Vec::new();
        if heading {
            if !self.first {
                out.push(b'\n');
            }
            out.extend_from_slice(path.as_bytes());
            out.extend_from_slice(b":\n");
        }
        self.first = false;
        if self.arguments.long {
            let stored: u64 = rows.iter().map(|row| row.entry.attributes.stored.div_ceil(1024)).sum();
            out.extend_from_slice(format!("total {stored}\n").as_bytes());
        }
        Ok(std::io::stdout().lock().write_all(&out)?)
    }

    async fn row(&self, name: Vec<u8>, entry: Entry) -> Outcome<Row> {
        let symlink = self.arguments.long && entry.attributes.kind == FileKind::Symlink;
        let target = match symlink {
            true => Some(self.session.cluster.directory.call(&ReadLink { ino: entry.attributes.ino }).await?.0),
            false => None,
        };
        Ok(Row { name, entry, target })
    }

    fn print(&self, rows: &[Row]) -> Outcome {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let columns: Vec<[String; 4]> = if self.arguments.long { rows.iter().map(|row| self.columns(&row.entry)).collect() } else { Vec::new() };
        let width = |at: usize| columns.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let (links, user, group, size) = (width(0), width(1), width(2), width(3));
        let now = Local::now();
        for (at, row) in rows.iter().enumerate() {
            let attributes = &row.entry.attributes;
            if let Some([l, u, g, s]) = columns.get(at) {
                let (mode, time) = (render::mode(attributes.kind, attributes.mode), render::listed_time(attributes.mtime, now));
                write!(out, "{mode} {l:>links$} {u:<user$} {g:<group$} {s:>size$} {time} ")?;
            }
            out.write_all(&render::shown_name(&row.name, attributes))?;
            if let Some(target) = &row.target {
                out.write_all(b" -> ")?;
                out.write_all(target)?;
            }
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    fn columns(&self, entry: &Entry) -> [String; 4] {
        let a = &entry.attributes;
        let size = match a.kind {
            FileKind::CharDevice | FileKind::BlockDevice => {
                let (major, minor) = (libc::major(u64::from(a.rdev)), libc::minor(u64::from(a.rdev)));
                format!("{major}, {minor}")
            }
            _ => a.size.to_string(),
        };
        [a.nlink.to_string(), self.owners.user(a.uid), self.owners.group(a.gid), size]
    }
}

/// `directory/name`.
pub(crate) fn join(directory: &OsStr, name: &[u8]) -> OsString {
    let mut path = directory.as_bytes().to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    OsString::from_vec(path)
}

pub(crate) async fn stat(session: &Session, arguments: &OnePath) -> Outcome {
    let path = &arguments.path;
    let entry = session.existing(path, false).await?;
    if session.json {
        return render::json(&entry);
    }
    let (a, layout) = (&entry.attributes, &entry.layout);
    let owners = Owners::local();
    let mut out = format!("  File: {}", name::encode(path.as_bytes()));
    if a.kind == FileKind::Symlink {
        let target = session.cluster.directory.call(&ReadLink { ino: a.ino }).await.at(path)?;
        out += &format!(" -> {}", name::encode(&target.0));
    }
    out += &format!(
        "\n  Size: {:<15} Stored: {:<15} {}\n Inode: {:<15} Links: {}\nAccess: ({:04o}/{})  Uid: ({}/{})  Gid: ({}/{})\n",
        a.size,
        a.stored,
        render::kind(a.kind),
        a.ino,
        a.nlink,
        a.mode,
        render::mode(a.kind, a.mode),
        a.uid,
        owners.user(a.uid),
        a.gid,
        owners.group(a.gid),
    );
    for (what, time) in [("Access", a.atime), ("Modify", a.mtime), ("Change", a.ctime), (" Birth", a.crtime)] {
        out += &format!("{what}: {}\n", render::full_time(time));
    }
    if a.kind == FileKind::File {
        out += &format!("Version: {}\nHolders: {}\nNext commit: {}\n", a.version, list(&layout.holders), list(&layout.placement));
    }
    render::text(&out)
}

fn list(servers: &[ServerId]) -> String {
    if servers.is_empty() {
        return "none".to_owned();
    }
    let ids: Vec<String> = servers.iter().map(|id| format!("server {id}")).collect();
    ids.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_adds_one_slash() {
        assert_eq!(join(OsStr::new("/"), b"a"), "/a");
        assert_eq!(join(OsStr::new("a"), b"b"), "a/b");
        assert_eq!(join(OsStr::new("a/"), b"b"), "a/b");
    }
}
