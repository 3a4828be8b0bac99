//! The clusters on which growth is measured, and the operations on them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dfs_common::api::directory::{Status, Versions};
use dfs_common::api::file;
use dfs_common::attributes::FileKind;
use dfs_common::ids::{InodeId, ROOT};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::sessions::Crowd;
use super::{Case, Cost, Scale, Watched, in_turn};
use crate::{Cluster, Mount, Role, bulk, http, sys};

/// Of a file that is created, and of a change.
const PAGE: usize = 4096;
/// Blocks of a file that is changed: enough that one of them is not all of it.
const BLOCKS: u64 = 4;
const BLOCK: u64 = 64 << 10;
/// Every session is renewed long before so many of these pauses are over.
const LOOKS: u32 = 400;
const PAUSE: Duration = Duration::from_millis(500);
/// Requests under way while a directory is filled.
const PARALLEL: usize = 32;

/// Unlike that of any other number.
fn page(number: u64) -> Vec<u8> {
    crate::Rng::new(number).bytes(PAGE)
}

fn create(path: &Path, number: u64) -> Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(&page(number))?;
    sys::close(file)?;
    Ok(())
}

fn nothing<'a>() -> Box<dyn FnMut(Range<u64>) -> Result<()> + 'a> {
    Box::new(|_| Ok(()))
}

fn at_once<'a>() -> Box<dyn FnMut() -> Result<()> + 'a> {
    Box::new(|| Ok(()))
}

/// Names in no order, as mail or caches have them.
fn name(number: u64) -> String {
    format!("{:08x}-{number}", (number as u32).wrapping_mul(0x9E37_79B1))
}

/// The number of one of `count` entries, another one for each `turn` below `count`; neighbours are far apart.
fn scattered(turn: u64, count: u64) -> u64 {
    // A prime that divides none of the counts in use.
    (turn * 7919) % count
}

/// Makes `count` empty files in `directory`.
fn fill(cluster: &Cluster, directory: &str, count: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = cluster.client(Duration::from_secs(60)).await?;
        let parent = client.directory.call(&bulk::make(ROOT, directory, FileKind::Directory, 0o755)).await?.entry.attributes.ino;
        let makes = (0..count).map(|number| {
            let client = &client;
            async move { client.directory.call(&bulk::make(parent, &name(number), FileKind::File, 0o644)).await.map(drop) }
        });
        stream::iter(makes).buffer_unordered(PARALLEL).try_collect::<()>().await?;
        client.close().await?;
        anyhow::Ok(())
    })
}

/// Operations in directories of different sizes.
pub(super) fn entries(scale: &Scale) -> Result<Vec<Cost>> {
    ensure!(scale.entries.iter().all(|count| *count >= scale.operations()), "each directory needs {} entries", scale.operations());
    let mut cluster = Cluster::builder().directory_args(&["--keep-removed", "0"]).start();
    for count in &scale.entries {
        fill(&cluster, &count.to_string(), *count).with_context(|| format!("filling a directory with {count}"))?;
    }
    // Only now, so that it heard of none of these names.
    let mount = cluster.mount();
    let watched = Watched::new(&mut cluster, &[&mount]);
    let directories: Vec<(u64, PathBuf)> = scale.entries.iter().map(|count| (*count, mount.at(count.to_string()))).collect();
    let mut costs = Vec::new();
    let mut measure = |operation: &str, work: &dyn Fn(&Path, u64, u64) -> Result<()>| -> Result<()> {
        let case = |(size, directory): &(u64, PathBuf)| {
            let (size, directory) = (*size, directory.clone());
            Case { size, watched: &watched, prepare: nothing(), work: Box::new(move |number| work(&directory, size, number)), settle: at_once() }
        };
        let mut cases: Vec<Case<'_>> = directories.iter().map(case).collect();
        costs.append(&mut in_turn(operation, "entries", scale, &mut cases)?);
        Ok(())
    };
    measure("create, write 4 KiB, close", &|directory, size, number| create(&directory.join(format!("new-{number}")), (size << 20) + number))?;
    measure("stat of a name that is not cached", &|directory, size, number| {
        let attributes = fs::symlink_metadata(directory.join(name(scattered(number, size))))?;
        ensure!(attributes.is_file(), "{attributes:?}");
        Ok(())
    })?;
    measure("rename in the directory", &|directory, _, number| {
        Ok(fs::rename(directory.join(format!("new-{number}")), directory.join(format!("renamed-{number}")))?)
    })?;
    measure("unlink", &|directory, _, number| Ok(fs::remove_file(directory.join(format!("renamed-{number}")))?))?;
    Ok(costs)
}

/// Changes a page of the file, each time another one.
fn change(path: &Path, number: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&page(number), number % BLOCKS * BLOCK)?;
    sys::close(file)?;
    Ok(())
}

/// What [`change`] has written there is what is read.
fn read(path: &Path, number: u64) -> Result<()> {
    let file = File::open(path)?;
    let mut got = vec![0; PAGE];
    file.read_exact_at(&mut got, number % BLOCKS * BLOCK)?;
    ensure!(got == page(number), "{} holds something else than what was written on the other mount", path.display());
    Ok(())
}

/// A file of `versions` versions.
fn make_versions(path: &Path, versions: u64) -> Result<()> {
    fs::write(path, vec![7; (BLOCKS * BLOCK) as usize])?;
    // Every one of them has a block of its own.
    (1..versions).try_for_each(|number| change(path, 1_000_000 + number))
}

/// Files with different numbers of versions; that with one is each time another file.
struct Histories<'a> {
    writer: &'a Mount,
    reader: &'a Mount,
}

impl Histories<'_> {
    /// The file for the operation `number`.
    fn name(size: u64, number: u64) -> String {
        if size == 1 { format!("one-{number}") } else { format!("many-{size}") }
    }

    fn make(&self, size: u64, operations: u64) -> Result<()> {
        let numbers = if size == 1 { 0..operations } else { 0..1 };
        numbers.into_iter().try_for_each(|number| make_versions(&self.writer.at(Self::name(size, number)), size))
    }

    /// The reader has what is read by the operations to come, and the writer the locks.
    fn prepare(&self, size: u64, numbers: Range<u64>) -> Result<()> {
        for name in numbers.map(|number| Self::name(size, number)) {
            File::open(self.reader.at(&name))?.read_to_end(&mut Vec::new())?;
            sys::close(OpenOptions::new().append(true).open(self.writer.at(&name))?)?;
        }
        Ok(())
    }
}

/// Operations on files of different numbers of versions.
pub(super) fn versions(scale: &Scale) -> Result<Vec<Cost>> {
    // However long ago, and however full the disk.
    let keep = ["--keep-versions", "1000000", "--keep-versions-for", "3650d", "--history-free", "0", "--block-size", "64K"];
    let mut cluster = Cluster::builder().directory_args(&keep).start();
    let (writer, reader) = (cluster.mount(), cluster.mount());
    let watched = Watched::new(&mut cluster, &[&writer, &reader]);
    let histories = Histories { writer: &writer, reader: &reader };
    for size in &scale.versions {
        // Two operations use up the files of one version.
        histories.make(*size, 2 * scale.operations())?;
    }
    let mut costs = Vec::new();
    let mut measure = |operation: &str, first: u64, work: &dyn Fn(&str, u64) -> Result<()>| -> Result<()> {
        let case = |size: &u64| {
            let (size, histories) = (*size, &histories);
            Case {
                size,
                watched: &watched,
                prepare: Box::new(move |numbers| histories.prepare(size, numbers.start + first..numbers.end + first)),
                work: Box::new(move |number| work(&Histories::name(size, number + first), number + first)),
                settle: at_once(),
            }
        };
        let mut cases: Vec<Case<'_>> = scale.versions.iter().map(case).collect();
        costs.append(&mut in_turn(operation, "versions", scale, &mut cases)?);
        Ok(())
    };
    measure("open, change 4 KiB, close", 0, &|name, number| change(&writer.at(name), number))?;
    measure("the same, and open and read on another mount", scale.operations(), &|name, number| {
        change(&writer.at(name), number)?;
        read(&reader.at(name), number)
    })?;
    costs.append(&mut opens(scale, &cluster, &watched)?);
    for size in scale.versions.iter().filter(|size| **size > 1) {
        let kept = cluster.directory(&Versions { ino: cluster.inode(&Histories::name(*size, 0)) })?.len() as u64;
        ensure!(kept >= size + 2 * scale.operations(), "{kept} versions are kept of a file that shall have more than {size}");
    }
    costs.append(&mut at_the_limit(scale)?);
    Ok(costs)
}

/// A cluster that keeps so many versions, with a file that has as many.
struct Full {
    size: u64,
    mount: Mount,
    watched: Watched,
    cluster: Cluster,
}

impl Full {
    fn new(size: u64) -> Result<Self> {
        let keep = ["--keep-versions", &size.to_string(), "--keep-versions-for", "3650d", "--history-free", "0", "--block-size", "64K"];
        let mut cluster = Cluster::builder().directory_args(&keep).start();
        let mount = cluster.mount();
        make_versions(&mount.at("full"), size)?;
        let watched = Watched::new(&mut cluster, &[&mount]);
        let full = Self { size, mount, watched, cluster };
        full.drop_old()?;
        Ok(full)
    }

    /// Waits until the file server holds no more than is kept. Of many the directory service drops some at a time.
    fn drop_old(&self) -> Result<()> {
        let most = self.size + (self.size / 8).min(63);
        let held = || Ok::<_, anyhow::Error>(http::call(self.cluster.url(Role::File(0)), self.cluster.token(), &file::Status {})?.versions);
        for _ in 0..LOOKS {
            if held()? <= most {
                return Ok(());
            }
            // Asking counts, too.
            std::thread::sleep(PAUSE);
        }
        bail!("{} versions are held instead of {most}", held()?)
    }
}

/// Changes of a file that each make its oldest version go.
fn at_the_limit(scale: &Scale) -> Result<Vec<Cost>> {
    let beds: Vec<Full> = scale.versions.iter().map(|size| Full::new(*size)).collect::<Result<_>>()?;
    let mut cases = Vec::new();
    for bed in &beds {
        let path = bed.mount.at("full");
        let work = Box::new(move |number| change(&path, number));
        cases.push(Case { size: bed.size, watched: &bed.watched, prepare: nothing(), work, settle: Box::new(|| bed.drop_old()) });
    }
    in_turn("open, change 4 KiB, close, and the oldest version goes", "versions", scale, &mut cases)
}

/// What a client without any cache asks to open and read a file.
fn opens(scale: &Scale, cluster: &Cluster, watched: &Watched) -> Result<Vec<Cost>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(cluster.client(Duration::from_secs(60)))?;
    let open = |ino: InodeId| {
        runtime.block_on(async {
            let entry = client.entry(ino).await?;
            let manifest = client.manifest(&entry).await?;
            let block = client.blocks(&entry, &manifest, 0, 0).await?;
            ensure!(block.len() as u64 == BLOCK, "a block of {} bytes", block.len());
            Ok(())
        })
    };
    let inodes: Vec<(u64, InodeId)> = scale.versions.iter().map(|size| (*size, cluster.inode(&Histories::name(*size, 0)))).collect();
    let case = |(size, ino): &(u64, InodeId)| {
        let (open, ino) = (&open, *ino);
        Case { size: *size, watched, prepare: nothing(), work: Box::new(move |_| open(ino)), settle: at_once() }
    };
    let mut cases: Vec<Case<'_>> = inodes.iter().map(case).collect();
    let costs = in_turn("attributes, manifest and a block, nothing cached, no mount", "versions", scale, &mut cases)?;
    drop(cases);
    runtime.block_on(client.close())?;
    Ok(costs)
}

/// A cluster with so many sessions besides.
struct Crowded {
    size: u64,
    mounts: [Mount; 2],
    watched: Watched,
    // After the mounts, before the cluster.
    _crowd: Crowd,
    cluster: Cluster,
}

impl Crowded {
    fn new(size: u64, scale: &Scale) -> Result<Self> {
        let mut cluster = Cluster::builder().lease_seconds(scale.lease_seconds).directory_args(&["--keep-removed", "0"]).start();
        fill(&cluster, "entries", scale.operations())?;
        let crowd = Crowd::join(&cluster, size)?;
        let mounts = [cluster.mount(), cluster.mount()];
        fs::create_dir(mounts[0].at("new"))?;
        make_versions(&mounts[0].at("shared"), 2)?;
        read_all(&mounts[1].at("shared"))?;
        let watched = Watched::new(&mut cluster, &[&mounts[0], &mounts[1]]);
        Ok(Self { size, mounts, watched, _crowd: crowd, cluster })
    }

    fn case<'a>(&'a self, work: &'a dyn Fn(&[Mount; 2], u64) -> Result<()>) -> Case<'a> {
        let work = Box::new(move |number| work(&self.mounts, number));
        Case { size: self.size, watched: &self.watched, prepare: nothing(), work, settle: at_once() }
    }

    /// Waits until every session has said that it has nothing open of what was removed.
    fn forget_removed(&self) -> Result<()> {
        for _ in 0..LOOKS {
            if self.cluster.directory(&Status {})?.orphans == 0 {
                return Ok(());
            }
            // Asking counts, too.
            std::thread::sleep(PAUSE);
        }
        bail!("{} removed files are not forgotten", self.cluster.directory(&Status {})?.orphans)
    }
}

fn read_all(path: &Path) -> Result<()> {
    ensure!(fs::read(path)?.len() as u64 == BLOCKS * BLOCK, "{} is as long as it was written", path.display());
    Ok(())
}

/// Operations on clusters with different numbers of sessions.
pub(super) fn sessions(scale: &Scale) -> Result<Vec<Cost>> {
    let beds: Vec<Crowded> = scale.sessions.iter().map(|size| Crowded::new(*size, scale)).collect::<Result<_>>()?;
    let mut costs = Vec::new();
    let mut measure = |operation: &str, work: &dyn Fn(&[Mount; 2], u64) -> Result<()>| -> Result<()> {
        let mut cases: Vec<Case<'_>> = beds.iter().map(|bed| bed.case(work)).collect();
        costs.append(&mut in_turn(operation, "sessions", scale, &mut cases)?);
        Ok(())
    };
    let new = |mounts: &[Mount; 2], number: u64| mounts[0].at(format!("new/{number}"));
    measure("create, write 4 KiB, close", &|mounts, number| create(&new(mounts, number), number))?;
    measure("stat of a name that is not cached", &|mounts, number| {
        fs::symlink_metadata(mounts[0].at("entries").join(name(number)))?;
        Ok(())
    })?;
    measure("change 4 KiB, open and read on another mount", &|mounts, number| {
        change(&mounts[0].at("shared"), number)?;
        read(&mounts[1].at("shared"), number)
    })?;
    let unlink = |mounts: &[Mount; 2], number: u64| Ok(fs::remove_file(new(mounts, number))?);
    measure("unlink", &unlink)?;
    beds.iter().try_for_each(Crowded::forget_removed)?;
    // In few rounds of many, because each of them waits for the renewals of all sessions.
    let few = Scale { rounds: scale.rounds.min(2), each: scale.each * 20, ..scale.clone() };
    let mut cases = Vec::new();
    for bed in &beds {
        let create = move |number| create(&new(&bed.mounts, number), number);
        let prepare = Box::new(move |mut numbers: Range<u64>| numbers.try_for_each(create));
        cases.push(Case { prepare, settle: Box::new(|| bed.forget_removed()), ..bed.case(&unlink) });
    }
    costs.append(&mut in_turn("unlink, until no session has to be asked any more", "sessions", &few, &mut cases)?);
    drop(cases);
    Ok(costs)
}
