//! Workloads on many small files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::content::{self, PAGE};
use super::meter::{Meter, go_on};
use super::place::{Ended, Place, put};
use crate::system;

/// Files of one directory.
const EACH: usize = 100;
/// Reads whose bytes are kept until they are checked.
const BATCH: usize = 64;
const WORKERS: u64 = 8;
/// What an editor saves.
const SAVED: usize = 16 << 10;

/// Small files that are there from the first use to the end.
#[derive(Clone, Debug)]
pub(super) struct Small {
    root: PathBuf,
    /// In order.
    paths: Vec<PathBuf>,
    seed: u64,
}

impl Small {
    fn entries(&self) -> u64 {
        (self.paths.len() + self.paths.len().div_ceil(EACH)) as u64
    }

    fn check(&self, number: usize, got: &[u8]) -> io::Result<()> {
        content::compare(got, &content::bytes(self.seed, number as u64, PAGE), 0)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.paths[number].display())))
    }
}

fn existing(place: &mut Place) -> io::Result<Small> {
    if let Some(small) = &place.small {
        return Ok(small.clone());
    }
    let (root, seed) = (place.fresh("small"), place.seed());
    let path = |number: usize| root.join(format!("d{:02}", number / EACH)).join(format!("f{number:04}"));
    let small = Small { paths: (0..place.scale.files).map(path).collect(), root, seed };
    fs::create_dir(&small.root)?;
    for (number, path) in small.paths.iter().enumerate() {
        go_on()?;
        if number % EACH == 0 {
            path.parent().map_or(Ok(()), fs::create_dir)?;
        }
        put(path, &content::bytes(seed, number as u64, PAGE))?;
    }
    place.small = Some(small.clone());
    Ok(small)
}

/// Makes the files that others read.
pub(super) fn prepare(place: &mut Place) -> Result<(), Ended> {
    existing(place).map(|_| ()).map_err(Ended::Failed)
}

/// Makes them, and has names, attributes and content cached.
pub(super) fn warm(place: &mut Place) -> Result<(), Ended> {
    let small = existing(place)?;
    walk(&small.root, &mut |_| Ok(()))?;
    for path in &small.paths {
        go_on()?;
        read_page(path, &mut [0; PAGE])?;
        // Afterwards, because reading changes the time of access, which a kernel may have to ask for.
        fs::metadata(path)?;
    }
    Ok(())
}

/// Everything below `directory`, itself not.
fn walk(directory: &Path, each: &mut impl FnMut(&fs::DirEntry) -> io::Result<()>) -> io::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        go_on()?;
        let entry = entry?;
        count += 1;
        each(&entry)?;
        if entry.file_type()?.is_dir() {
            count += walk(&entry.path(), each)?;
        }
    }
    Ok(count)
}

fn read_page(path: &Path, out: &mut [u8]) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.read_exact(out)?;
    system::close(file)
}

pub(super) fn create(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let (root, seed, count) = (place.fresh("create"), place.seed(), place.scale.created);
    fs::create_dir(&root)?;
    let files: Vec<NewFile> = (0..count).map(|n| (root.join(format!("f{n}")), content::bytes(seed, n, PAGE))).collect();
    meter.operations(count, |n| {
        let (path, content) = &files[n as usize];
        put(path, content)
    })?;
    finish(&root, &files)
}

/// A path, and what is to be there.
type NewFile = (PathBuf, Vec<u8>);

/// A new directory, and the files that [`WORKERS`] will create in it.
fn to_create(place: &mut Place) -> io::Result<(PathBuf, Vec<NewFile>)> {
    let (root, seed, each) = (place.fresh("create"), place.seed(), place.scale.created_by_each);
    fs::create_dir(&root)?;
    let files = (0..WORKERS * each).map(|n| (root.join(format!("f{n}")), content::bytes(seed, n, PAGE))).collect();
    Ok((root, files))
}

fn create_all(files: &[NewFile]) -> io::Result<()> {
    files.iter().try_for_each(|(path, content)| go_on().and_then(|()| put(path, content)))
}

pub(super) fn create_by_threads(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let (root, files) = to_create(place)?;
    meter.section(files.len() as u64, || {
        std::thread::scope(|scope| {
            let threads: Vec<_> = files.chunks(files.len() / WORKERS as usize).map(|part| scope.spawn(move || create_all(part))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
        })
    })?;
    finish(&root, &files)
}

pub(super) fn create_by_processes(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let (root, files) = to_create(place)?;
    // They are there before the time begins, and each waits for a byte.
    let (mut waits, mut begin) = io::pipe()?;
    let start = |part: &[NewFile]| system::Worker::start(|| waits.read_exact(&mut [0]).and_then(|()| create_all(part)));
    let workers: Vec<system::Worker> = files.chunks(files.len() / WORKERS as usize).map(start).collect::<io::Result<_>>()?;
    meter.section(files.len() as u64, || {
        begin.write_all(&[0; WORKERS as usize])?;
        workers.into_iter().try_for_each(system::Worker::wait)
    })?;
    finish(&root, &files)
}

/// Checks what was created, and removes it.
fn finish(root: &Path, files: &[NewFile]) -> io::Result<()> {
    for (path, content) in files {
        go_on()?;
        content::compare(&fs::read(path)?, content, 0)?;
    }
    fs::remove_dir_all(root)
}

pub(super) fn stat(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let small = existing(place)?;
    meter.operations(small.paths.len() as u64, |n| {
        let len = fs::metadata(&small.paths[n as usize])?.len();
        if len == PAGE as u64 { Ok(()) } else { Err(content::wrong(format!("a file of {PAGE} bytes is said to have {len}"))) }
    })
}

pub(super) fn open_read_close(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let small = existing(place)?;
    let mut buffer = vec![0; BATCH * PAGE];
    for (batch, paths) in small.paths.chunks(BATCH).enumerate() {
        meter.operations(paths.len() as u64, |n| read_page(&paths[n as usize], &mut buffer[n as usize * PAGE..][..PAGE]))?;
        buffer.chunks(PAGE).take(paths.len()).enumerate().try_for_each(|(n, got)| small.check(batch * BATCH + n, got))?;
    }
    Ok(())
}

fn counted(small: &Small, count: u64) -> io::Result<()> {
    let wanted = small.entries();
    if count == wanted { Ok(()) } else { Err(content::wrong(format!("{wanted} names are there, and {count} were listed"))) }
}

pub(super) fn find(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let small = existing(place)?;
    let count = meter.section(small.entries(), || walk(&small.root, &mut |_| Ok(())))?;
    counted(&small, count)
}

pub(super) fn du(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let small = existing(place)?;
    let mut bytes = 0;
    let count = meter.section(small.entries(), || {
        walk(&small.root, &mut |entry| {
            let attributes = entry.metadata()?;
            bytes += if attributes.is_file() { attributes.len() } else { 0 };
            Ok(())
        })
    })?;
    counted(&small, count)?;
    let wanted = (small.paths.len() * PAGE) as u64;
    if bytes == wanted { Ok(()) } else { Err(content::wrong(format!("{wanted} bytes are there, and {bytes} were counted"))) }
}

/// Lists and reads everything in order, as `cat` and `grep -r` do.
pub(super) fn read_cold(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let small = existing(place)?;
    let mut buffer = vec![1; small.paths.len() * PAGE];
    let mut times = Vec::with_capacity(small.paths.len());
    meter.section(small.paths.len() as u64, || {
        let mut slots = buffer.chunks_mut(PAGE);
        let mut start = Instant::now();
        for directory in sorted(&small.root)? {
            for path in sorted(&directory)? {
                go_on()?;
                let slot = slots.next().ok_or_else(|| content::wrong("more files are listed than there are"))?;
                read_page(&path, slot)?;
                let end = Instant::now();
                times.push(end - start);
                start = end;
            }
        }
        Ok(())
    })?;
    if times.len() != small.paths.len() {
        return Err(content::wrong(format!("{} files are there, and {} were listed", small.paths.len(), times.len())));
    }
    meter.operations = times;
    buffer.chunks(PAGE).enumerate().try_for_each(|(number, got)| small.check(number, got))
}

fn sorted(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What editors do: write a new file, have it on the disk, put it in the place of the old one.
pub(super) fn save(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let (saved, new, seed, count) = (place.fresh("saved"), place.fresh("new"), place.seed(), place.scale.edits);
    let contents: Vec<Vec<u8>> = (0..count).map(|n| content::bytes(seed, n * (SAVED / PAGE) as u64, SAVED)).collect();
    meter.operations(count, |n| {
        let mut file = File::create_new(&new)?;
        file.write_all(&contents[n as usize])?;
        file.sync_all()?;
        system::close(file)?;
        fs::rename(&new, &saved)
    })?;
    content::compare(&fs::read(&saved)?, contents.last().map_or(&[], Vec::as_slice), 0)?;
    fs::remove_file(&saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_in_a_process_fails_here() {
        let part = [(PathBuf::from("/missing/directory/f"), Vec::new())];
        let error = system::Worker::start(|| create_all(&part)).unwrap().wait().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        system::Worker::start(|| Ok(())).unwrap().wait().unwrap();
        // One that nobody waits for ends with its value.
        drop(
            system::Worker::start(|| {
                loop {
                    std::thread::sleep(std::time::Duration::from_secs(1))
                }
            })
            .unwrap(),
        );
    }

    #[test]
    fn a_changed_byte_of_one_file_is_found() {
        let small = Small { root: "/r".into(), paths: vec!["/r/a".into(), "/r/b".into()], seed: 4 };
        let mut got = content::bytes(4, 1, PAGE);
        small.check(1, &got).unwrap();
        assert!(small.check(0, &got).is_err(), "another file's content");
        got[4095] ^= 0x80;
        let error = small.check(1, &got).unwrap_err().to_string();
        assert!(error.contains("/r/b: WRONG DATA: byte 4095"), "{error}");
    }
}
