//! Versions: publishing one, listing those kept, and what each server should hold.
//!
//! Publishing swaps the inode's current version in one step. Invariant: versions of a
//! file rise by one, and a token below one that published, or that a fence named, is
//! refused for ever.

use dfs_common::api::directory::{Fence, HeldPage, HeldVersions, Publish, VersionOf, VersionRow, Versions};
use dfs_common::attributes::{Entry, FileKind, Timestamp};
use dfs_common::block::{BlockHash, MAX_FILE_SIZE};
use dfs_common::ids::{InodeId, ServerId, Version};
use dfs_common::{Error, ErrorKind, Result};

use super::attributes::set_attributes;
use super::change::{Change, load};
use super::keys;
use super::make::make_for;
use super::records::{Inode, Record, UnderReplicated, VersionRecord};
use crate::store::View;

/// Versions in one page of [`HeldVersions`].
const HELD_PAGE: usize = 1000;
/// The most versions that one publish drops.
const PRUNE: usize = 1000;
/// How many rows of versions a publish looks at, on average, to find those beyond what is kept: where more are kept, it is not every publish that looks …
const LOOKED_AT: usize = 8;
/// … but one of so many: what goes then goes at once.
const SHARED_BY: usize = 64;
/// Rows that one request looks at: other servers' versions lie between.
const HELD_SCAN: usize = 4096;
/// The most servers that one version may name.
const HOLDERS_MAX: usize = 32;

pub(crate) fn publish(change: &mut Change<'_>, request: &Publish) -> Result<Entry> {
    let ino = request.ino;
    let is_new = give_birth(change, request)?;
    let mut inode = load_file(&change.view, ino)?;
    let next = request.base.0.checked_add(1).map(Version).ok_or_else(|| Error::new(ErrorKind::Invalid, "no version comes after the base"))?;
    if inode.version == next && is_repeated(change, &inode, request)? {
        return Ok(inode.entry(ino));
    }
    check(change, request)?;
    if request.token < inode.fence {
        return Err(Error::new(
            ErrorKind::Fenced,
            format!("token {} of inode {ino} is older than {}: the write lock behind it was lost", request.token, inode.fence),
        ));
    }
    if request.base != inode.version {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("version {} of inode {ino} is current, not {}: somebody else published", inode.version, request.base),
        ));
    }
    let by = change
        .author(request.session)
        .ok_or_else(|| Error::new(ErrorKind::SessionExpired, format!("session {} is not known here or has expired", request.session)))?;
    let (now, holders) = (change.now.wall, unique(&request.holders));
    let record = VersionRecord {
        manifest: request.manifest.0,
        size: request.size,
        mtime: request.mtime,
        published: now,
        by,
        session: request.session,
        token: request.token,
        holders: holders.clone(),
        interim: request.interim,
        superseded: Timestamp(0),
    };
    change.view.put(keys::version(VersionOf { ino, version: next }), record.encode());
    (inode.version, inode.manifest, inode.fence) = (next, Some(request.manifest.0), request.token);
    (inode.size, inode.stored, inode.mtime, inode.ctime) = (request.size, request.stored, request.mtime, now);
    let missing: Vec<ServerId> = unique(&request.missing).into_iter().filter(|s| !holders.contains(s)).collect();
    if is_new || inode.placement.first() != holders.first() {
        inode.placement = holders.iter().chain(&missing).copied().take(change.policy.copies.max(1) as usize).collect();
    }
    let lacks = holders.len() < inode.wanted_copies(change.policy.copies) || !missing.is_empty();
    inode.holders = holders;
    change.put_inode(ino, &inode);
    change.set_missing(ino, lacks.then_some(UnderReplicated { missing }))?;
    supersede(change, VersionOf { ino, version: request.base }, request)?;
    prune(change, ino, next)?;
    request.set.as_ref().map_or_else(|| Ok(inode.entry(ino)), |set| set_attributes(change, set))
}

/// Makes the file, if `request` says how and it is not there yet.
fn give_birth(change: &mut Change<'_>, request: &Publish) -> Result<bool> {
    let Some(make) = &request.make else { return Ok(false) };
    if make.birth.is_none_or(|birth| birth.ino != request.ino) || make.reserve > 0 {
        return Err(Error::new(ErrorKind::Invalid, format!("a version of inode {} makes another file", request.ino)));
    }
    if change.view.get(&keys::inode(request.ino))?.is_some() {
        return Ok(false);
    }
    make_for(change, make, Some(request.session)).map(|_| true)
}

/// True where the current version is what `request` published before its answer was lost.
fn is_repeated(change: &Change<'_>, inode: &Inode, request: &Publish) -> Result<bool> {
    if inode.manifest != Some(request.manifest.0) {
        return Ok(false);
    }
    let what = VersionOf { ino: request.ino, version: inode.version };
    let record = change.view.get(&keys::version(what))?.map(|v| VersionRecord::decode(&v)).transpose()?;
    Ok(record.is_some_and(|r| r.session == request.session && r.token == request.token))
}

fn check(change: &Change<'_>, request: &Publish) -> Result<()> {
    let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
    if request.holders.is_empty() || request.holders.len() + request.missing.len() > HOLDERS_MAX {
        return invalid(format!("a version has 1 to {HOLDERS_MAX} servers"));
    }
    if let Some(unknown) = request.holders.iter().chain(&request.missing).find(|s| change.tables.servers.get(**s).is_none()) {
        return invalid(format!("file server {unknown} is not registered"));
    }
    if request.size > MAX_FILE_SIZE {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("a file has at most {MAX_FILE_SIZE} bytes, this one {}", request.size)));
    }
    if request.set.as_ref().is_some_and(|set| set.ino != request.ino) {
        return invalid(format!("a version of inode {} sets attributes of another one", request.ino));
    }
    if request.stored > request.size {
        return invalid(format!("{} bytes stored of a file of {}", request.stored, request.size));
    }
    Ok(())
}

/// A version ceases to be current: it is history from now on, unless its writer only went on with the same lock.
fn supersede(change: &mut Change<'_>, what: VersionOf, by: &Publish) -> Result<()> {
    let key = keys::version(what);
    let Some(value) = change.view.get(&key)? else { return Ok(()) };
    let mut record = VersionRecord::decode(&value)?;
    if record.interim && record.token == by.token && by.goes_on {
        change.drop_version(key, &record);
        return Ok(());
    }
    record.superseded = Timestamp(change.now.wall.0.max(1));
    change.view.put(keys::superseded(record.superseded, what), Vec::new());
    change.view.put(key, record.encode());
    Ok(())
}

/// Drops versions beyond those that are kept. Numbers may be missing, so they are counted; where that is much to look at, some
/// publishes share it, and so many more versions are there for a while.
fn prune(change: &mut Change<'_>, ino: InodeId, current: Version) -> Result<()> {
    let before = change.policy.keep.versions.max(1) as usize - 1;
    let every = (before / LOOKED_AT).clamp(1, SHARED_BY) as u64;
    if current.0 <= before as u64 + 1 || !current.0.is_multiple_of(every) {
        return Ok(());
    }
    let (from, _) = keys::versions(ino);
    let to = keys::version(VersionOf { ino, version: current });
    let mut rows = change.view.scan(&from, &to, before.saturating_add(PRUNE))?;
    rows.truncate(rows.len().saturating_sub(before));
    for (key, value) in rows {
        change.drop_version(key, &VersionRecord::decode(&value)?);
    }
    Ok(())
}

/// Raises the token below which commits are refused. It is in no attribute, so nobody is told.
pub(crate) fn fence(change: &mut Change<'_>, request: &Fence) -> Result<()> {
    let key = keys::inode(request.ino);
    let Some(value) = change.view.get(&key)? else { return Ok(()) };
    let mut inode = Inode::decode(&value)?;
    if inode.fence < request.token {
        inode.fence = request.token;
        change.put_inode(request.ino, &inode);
    }
    Ok(())
}

fn unique(servers: &[ServerId]) -> Vec<ServerId> {
    let mut out = Vec::with_capacity(servers.len());
    for server in servers {
        if !out.contains(server) {
            out.push(*server);
        }
    }
    out
}

fn load_file(view: &dyn View, ino: InodeId) -> Result<Inode> {
    let inode = load(view, ino)?;
    match inode.kind {
        FileKind::File => Ok(inode),
        FileKind::Directory => Err(Error::new(ErrorKind::IsDirectory, format!("inode {ino} is a directory"))),
        _ => Err(Error::new(ErrorKind::Invalid, format!("inode {ino} is no file"))),
    }
}

pub(crate) fn versions(view: &dyn View, request: &Versions) -> Result<Vec<VersionRow>> {
    load_file(view, request.ino)?;
    let (from, to) = keys::versions(request.ino);
    let row = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let VersionRecord { manifest, size, mtime, published, by, holders, interim, .. } = VersionRecord::decode(value)?;
        Ok(VersionRow { version: keys::version_of(key).version, manifest: BlockHash(manifest), size, mtime, published, by, holders, interim })
    };
    view.scan(&from, &to, usize::MAX)?.iter().map(row).collect()
}

/// One page. The rows of all servers lie in one table, so a page may be short although more follows.
pub(crate) fn held_versions(view: &dyn View, request: &HeldVersions) -> Result<HeldPage> {
    let (mut from, to) = request.ino.map_or_else(|| keys::table(b'v'), keys::versions);
    if let Some(after) = request.after {
        let mut behind = keys::version(after);
        behind.push(0);
        from = from.max(behind);
    }
    let rows = view.scan(&from, &to, HELD_SCAN)?;
    let mut page = HeldPage::default();
    let full = rows.len() == HELD_SCAN;
    for (key, value) in &rows {
        let (what, record) = (keys::version_of(key), VersionRecord::decode(value)?);
        if record.holders.contains(&request.server) {
            page.versions.push((what, BlockHash(record.manifest)));
            if page.versions.len() == HELD_PAGE {
                page.next = Some(what);
                return Ok(page);
            }
        }
    }
    page.next = rows.last().filter(|_| full).map(|(key, _)| keys::version_of(key));
    Ok(page)
}
