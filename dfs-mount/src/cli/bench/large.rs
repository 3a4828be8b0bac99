//! Workloads on one large file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::content::{self, PAGE, PIECE};
use super::meter::{Meter, go_on};
use super::place::{Ended, Place, copy};
use crate::system;

/// Reads whose bytes are kept until they are checked.
const BATCH: usize = 64;

/// The large file as it must be: a seed's pages, but for those that were changed since.
#[derive(Clone, Debug)]
pub(super) struct Large {
    pub(super) path: PathBuf,
    seed: u64,
    pages: u64,
    /// The seed of each page that is not of `seed`.
    changed: BTreeMap<u64, u64>,
}

impl Large {
    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.pages * PAGE as u64
    }

    /// What stands at `out.len()` bytes, whole pages, from page `first` on.
    fn wanted(&self, first: u64, out: &mut [u8]) {
        content::fill(self.seed, first, out);
        let end = first + (out.len() / PAGE) as u64;
        for (&page, &seed) in self.changed.range(first..end) {
            let at = (page - first) as usize * PAGE;
            content::fill(seed, page, &mut out[at..at + PAGE]);
        }
    }

    /// Compares bytes that were read from page `first` on.
    fn check(&self, first: u64, got: &[u8], spare: &mut Vec<u8>) -> io::Result<()> {
        spare.resize(got.len(), 0);
        self.wanted(first, spare);
        content::compare(got, spare, first * PAGE as u64)
    }

    /// Reads a file that must have the same content, and makes it cached.
    fn check_file(&self, path: &Path) -> io::Result<()> {
        let (mut file, mut buffer, mut spare) = (File::open(path)?, vec![0; PIECE], Vec::new());
        if file.metadata()?.size() != self.len() {
            return Err(content::wrong(format!("{} bytes were written, and there are {}", self.len(), file.metadata()?.size())));
        }
        for (first, len) in self.pieces() {
            go_on()?;
            file.read_exact(&mut buffer[..len])?;
            self.check(first, &buffer[..len], &mut spare)?;
        }
        Ok(())
    }

    /// First page and bytes of what is read at once, from the beginning to the end.
    fn pieces(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let len = self.len();
        (0..len).step_by(PIECE).map(move |at| (at / PAGE as u64, PIECE.min((len - at) as usize)))
    }

    fn mib(&self) -> u64 {
        self.len() >> 20
    }
}

/// Lets there be a large file that is cached; a copy of what is known of it.
fn cached(place: &mut Place) -> io::Result<Large> {
    let large = existing(place)?;
    large.check_file(&large.path)?;
    Ok(large)
}

fn existing(place: &mut Place) -> io::Result<Large> {
    match &place.large {
        Some(large) => Ok(large.clone()),
        None => write_new(place, &mut Meter::default()),
    }
}

fn write_new(place: &mut Place, meter: &mut Meter) -> io::Result<Large> {
    if let Some(old) = place.large.take() {
        fs::remove_file(old.path)?;
        place.settle()?;
    }
    let (path, seed, pages) = (place.fresh("large"), place.seed(), place.scale.large / PAGE as u64);
    let large = Large { path, seed, pages, changed: BTreeMap::new() };
    // Made before, so that nobody has time to write while it is made.
    let bytes = content::bytes(seed, 0, usize::try_from(large.len()).map_err(io::Error::other)?);
    meter.section(large.mib(), || {
        let mut file = File::create_new(&large.path)?;
        for piece in bytes.chunks(PIECE) {
            go_on()?;
            file.write_all(piece)?;
        }
        file.sync_all()?;
        system::close(file)
    })?;
    place.large = Some(large.clone());
    Ok(large)
}

/// Makes the file that others read.
pub(super) fn prepare(place: &mut Place) -> Result<(), Ended> {
    existing(place).map(|_| ()).map_err(Ended::Failed)
}

/// Makes it, and has it cached.
pub(super) fn warm(place: &mut Place) -> Result<(), Ended> {
    cached(place).map(|_| ()).map_err(Ended::Failed)
}

pub(super) fn write(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let large = write_new(place, meter)?;
    large.check_file(&large.path)
}

pub(super) fn read(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let large = existing(place)?;
    let (mut file, mut buffer, mut spare) = (File::open(&large.path)?, vec![0; PIECE], Vec::new());
    for (first, len) in large.pieces().filter(|(_, len)| *len == PIECE) {
        meter.section(1, || file.read_exact(&mut buffer[..len]))?;
        large.check(first, &buffer[..len], &mut spare)?;
    }
    Ok(())
}

pub(super) fn read_mapped(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let large = existing(place)?;
    let file = File::open(&large.path)?;
    let mapping = system::Mapping::new(&file, usize::try_from(large.len()).map_err(io::Error::other)?)?;
    let (mut buffer, mut spare) = (vec![0; PIECE], Vec::new());
    for (first, len) in large.pieces().filter(|(_, len)| *len == PIECE) {
        meter.section(1, || {
            mapping.read(first as usize * PAGE, &mut buffer[..len]);
            Ok(())
        })?;
        large.check(first, &buffer[..len], &mut spare)?;
    }
    Ok(())
}

pub(super) fn read_randomly(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let large = existing(place)?;
    let file = File::open(&large.path)?;
    let (mut buffer, mut spare) = (vec![0; BATCH * PAGE], Vec::new());
    let order = place.seed();
    let page = |number: u64| {
        let mut word = [0; 8];
        content::fill(order, number, &mut word);
        u64::from_le_bytes(word) % large.pages
    };
    for start in (0..place.scale.random).step_by(BATCH) {
        let pages: Vec<u64> = (start..place.scale.random.min(start + BATCH as u64)).map(page).collect();
        meter.operations(pages.len() as u64, |number| {
            let number = number as usize;
            file.read_exact_at(&mut buffer[number * PAGE..][..PAGE], pages[number] * PAGE as u64)
        })?;
        pages.iter().zip(buffer.chunks(PAGE)).try_for_each(|(&page, got)| large.check(page, got, &mut spare))?;
    }
    Ok(())
}

pub(super) fn read_cold(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let large = existing(place)?;
    // Not zeros: that memory would only be given to us while we read.
    let mut buffer = vec![1; usize::try_from(large.len()).map_err(io::Error::other)?];
    meter.section(large.mib(), || {
        let mut file = File::open(&large.path)?;
        buffer.chunks_mut(PIECE).try_for_each(|piece| go_on().and_then(|()| file.read_exact(piece)))
    })?;
    let mut spare = Vec::new();
    large.pieces().zip(buffer.chunks(PIECE)).try_for_each(|((first, _), got)| large.check(first, got, &mut spare))
}

pub(super) fn read_first(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let large = existing(place)?;
    let mut buffer = vec![0; PAGE];
    // It stays open beyond the measurement: what close(2) costs is another question.
    let mut opened = None;
    meter.operations(1, |_| {
        let mut file = File::open(&large.path)?;
        file.read_exact(&mut buffer)?;
        opened = Some(file);
        Ok(())
    })?;
    large.check(0, &buffer, &mut Vec::new())
}

pub(super) fn append(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let mut large = existing(place)?;
    let seed = place.seed();
    let pages: Vec<Vec<u8>> = (large.pages..large.pages + place.scale.edits).map(|page| content::bytes(seed, page, PAGE)).collect();
    let before = large.pages;
    // Unknown until it is known that all went well.
    place.large = None;
    meter.operations(place.scale.edits, |number| {
        let mut file = File::options().append(true).open(&large.path)?;
        file.write_all(&pages[number as usize])?;
        system::close(file)
    })?;
    large.pages += place.scale.edits;
    large.changed.extend((before..large.pages).map(|page| (page, seed)));
    large.check_file(&large.path)?;
    place.large = Some(large);
    Ok(())
}

pub(super) fn overwrite(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let mut large = existing(place)?;
    let middle = large.pages / 2;
    let seeds: Vec<u64> = (0..place.scale.edits).map(|_| place.seed()).collect();
    let pages: Vec<Vec<u8>> = seeds.iter().map(|&seed| content::bytes(seed, middle, PAGE)).collect();
    place.large = None;
    meter.operations(place.scale.edits, |number| {
        let file = File::options().write(true).open(&large.path)?;
        file.write_all_at(&pages[number as usize], middle * PAGE as u64)?;
        system::close(file)
    })?;
    large.changed.extend(seeds.last().map(|&seed| (middle, seed)));
    large.check_file(&large.path)?;
    place.large = Some(large);
    Ok(())
}

pub(super) fn copy_whole(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let large = existing(place)?;
    let to = place.fresh("copy");
    meter.section(large.mib(), || copy(&large.path, &to))?;
    large.check_file(&to)?;
    fs::remove_file(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_of_a_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let large = Large { path: path.clone(), seed: 3, pages: 300, changed: BTreeMap::from([(7, 99), (299, 98)]) };
        let mut bytes = vec![0; 300 * PAGE];
        large.wanted(0, &mut bytes);
        fs::write(&path, &bytes).unwrap();
        large.check_file(&path).unwrap();
        for at in [0, 7 * PAGE + 5, PIECE, 299 * PAGE + 4095] {
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(large.check_file(&path).unwrap_err().to_string().contains(&format!("byte {at} is")), "{at}");
            bytes[at] ^= 1;
        }
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(large.check_file(&path).unwrap_err().to_string().contains("1228800 bytes were written"));
    }
}
