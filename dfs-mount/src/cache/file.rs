//! Cache files as files of the local disk: opened without taking the last descriptors, and read to the end.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_common::attributes::Timestamp;
use dfs_common::{Error, ErrorKind, Result};
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};

use crate::system;

/// Descriptors that are kept for what is not a file of a program: connections, the journal, /proc.
const SPARE_DESCRIPTORS: u64 = 128;

/// The limit of descriptors, which somebody may change, is asked for once in so many opens, and where it seems to be reached.
const ASK_LIMIT_EVERY: u64 = 64;

/// Opens or creates a cache file for reading and writing; `TooManyOpen` where the process has hardly a descriptor left.
pub(super) fn open_file(path: &Path, create: bool) -> Result<File> {
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(create).open(path);
    let file = file.map_err(|e| Error::from_io(&e, format!("cache file {}", path.display())))?;
    spare_descriptors(&file).inspect_err(|_| {
        if create {
            // Nothing leads to it yet.
            let _ = std::fs::remove_file(path);
        }
    })?;
    Ok(file)
}

/// Files never take the last descriptors: with none for connections and pipes no open file could be published either.
fn spare_descriptors(file: &File) -> Result<()> {
    static OPENED: AtomicU64 = AtomicU64::new(0);
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    // Each has the lowest number that was free.
    let number = file.as_raw_fd() as u64;
    let is_last = |limit: u64| number + SPARE_DESCRIPTORS.min(limit / 4) >= limit;
    if !OPENED.fetch_add(1, Ordering::Relaxed).is_multiple_of(ASK_LIMIT_EVERY) && !is_last(KNOWN.load(Ordering::Relaxed)) {
        return Ok(());
    }
    let limit = system::descriptor_limit().map_err(|e| Error::from_io(&e, "limit of open files"))?;
    KNOWN.store(limit, Ordering::Relaxed);
    if is_last(limit) {
        return Err(Error::new(ErrorKind::TooManyOpen, format!("this mount may have {limit} descriptors and has hardly one left")));
    }
    Ok(())
}

/// `len` bytes from `offset`. Behind its end a cache file stands for zeros.
pub(super) fn read_filled(file: &File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = read_at(file, offset, len)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// `len` bytes from `offset`, fewer where the file ends; into memory that is not cleared before.
pub(super) fn read_at(file: &File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // Memory may have been given for more.
    bytes.truncate(len);
    Ok(bytes)
}

/// The cache file's own modification time, which every change of its bytes moves.
pub(super) fn modified(file: &File) -> Timestamp {
    file.metadata().and_then(|m| m.modified()).map(Timestamp::from_system_time).unwrap_or_default()
}
