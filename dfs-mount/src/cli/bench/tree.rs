//! Workloads on a tree that looks like the sources of a program. Its names and sizes are
//! the same in every run; its content is new each time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::content;
use super::meter::{Meter, go_on};
use super::place::{Ended, Place, copy};
use crate::system;

const SHAPE: u64 = 0x7472_6565;
const FILES_OF_A_DIRECTORY: usize = 12;
const DEEPEST: usize = 5;
/// The time that all files of the archive have.
const ARCHIVED: Duration = Duration::from_secs(1_700_000_000);
const WORDS: [&str; 16] =
    ["fn", "let", "mut", "self", "return", "match", "size", "offset", "-> Result<()>", "{", "}", "// of the", "buffer", "= 0;", "next(", ")?;\n    "];

/// A tree that was written, or is about to be.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) root: PathBuf,
    /// Below `root`, parents first.
    directories: Vec<PathBuf>,
    files: Vec<(PathBuf, Vec<u8>)>,
}

/// The number `index` of a sequence, below `below`.
fn number(sequence: u64, index: usize, below: usize) -> usize {
    let mut word = [0; 8];
    content::fill(SHAPE + sequence, index as u64, &mut word);
    (u64::from_le_bytes(word) >> 16) as usize % below
}

/// Half of the files are smaller than 4 KiB, and one in a hundred is larger than 60.
fn size(index: usize) -> usize {
    let exponent = (0..3).map(|sequence| number(10 + sequence, index, 1000)).sum::<usize>() as f64 / 250.0;
    (64.0 * exponent.exp2()) as usize
}

/// Text that compresses like a program's, of exactly `len` bytes.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut out = format!("// {seed:016x}\n").into_bytes();
    let mut choices = [0; 512];
    let mut page = 0;
    while out.len() < len {
        content::fill(seed, page, &mut choices);
        page += 1;
        for choice in choices {
            out.extend_from_slice(WORDS[usize::from(choice & 15)].as_bytes());
            out.push(if choice >> 4 == 0 { b'\n' } else { b' ' });
        }
    }
    out.truncate(len);
    out
}

impl Tree {
    /// Of so many files; every file's content follows from `seed`.
    pub(super) fn new(root: PathBuf, files: usize, seed: u64) -> Self {
        let mut directories = vec![PathBuf::from("src")];
        for index in 1..files.div_ceil(FILES_OF_A_DIRECTORY) {
            let parent = &directories[number(0, index, directories.len())];
            let parent = if parent.components().count() < DEEPEST { parent } else { &directories[0] };
            directories.push(parent.join(format!("part_{index}")));
        }
        let file = |index: usize| {
            let path = directories[number(1, index, directories.len())].join(format!("file_{index}.rs"));
            (path, text(seed.wrapping_mul(1 << 20) + index as u64, size(index)))
        };
        let mut files: Vec<(PathBuf, Vec<u8>)> = (0..files).map(file).collect();
        // As an archive holds them: directory by directory.
        files.sort();
        Self { root, directories, files }
    }

    /// Writes it as tar(1) does: each file made, written, given its time, closed.
    fn extract(&self) -> io::Result<()> {
        fs::create_dir(&self.root)?;
        for directory in &self.directories {
            fs::create_dir(self.root.join(directory))?;
        }
        for (path, content) in &self.files {
            go_on()?;
            let mut file = File::create_new(self.root.join(path))?;
            file.write_all(content)?;
            file.set_modified(UNIX_EPOCH + ARCHIVED)?;
            system::close(file)?;
        }
        Ok(())
    }

    /// Reads all of it below `root`.
    pub(super) fn check(&self, root: &Path) -> io::Result<()> {
        for (path, content) in &self.files {
            go_on()?;
            let path = root.join(path);
            content::compare(&fs::read(&path)?, content, 0).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        }
        Ok(())
    }

    pub(super) fn count(&self) -> u64 {
        self.files.len() as u64
    }

    fn at(&self, root: PathBuf) -> Self {
        Self { root, ..self.clone() }
    }
}

/// Makes a tree that nobody has written yet; what it takes is measured.
pub(super) fn extract_new(place: &mut Place, name: &str, meter: &mut Meter) -> io::Result<Tree> {
    let (root, seed) = (place.fresh(name), place.seed());
    let tree = Tree::new(root, place.scale.tree, seed);
    meter.section(tree.count(), || tree.extract())?;
    Ok(tree)
}

fn existing(place: &mut Place) -> io::Result<Tree> {
    if place.tree.is_none() {
        place.tree = Some(extract_new(place, "tree", &mut Meter::default())?);
    }
    place.tree.clone().ok_or_else(|| io::Error::other("there is no tree"))
}

/// Makes the tree that is copied, and has it cached.
pub(super) fn warm(place: &mut Place) -> Result<(), Ended> {
    let tree = existing(place)?;
    tree.check(&tree.root).map_err(Ended::Failed)
}

pub(super) fn extract(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    if let Some(old) = place.tree.take() {
        fs::remove_dir_all(old.root)?;
    }
    let tree = extract_new(place, "tree", meter)?;
    tree.check(&tree.root)?;
    place.tree = Some(tree);
    Ok(())
}

pub(super) fn copy_all(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let tree = existing(place)?;
    let to = tree.at(place.fresh("copied"));
    meter.section(tree.count(), || copy_directory(&tree.root, &to.root))?;
    to.check(&to.root)?;
    place.copy = Some(to);
    Ok(())
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        go_on()?;
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy_directory(&entry.path(), &to)? } else { copy(&entry.path(), &to)? }
    }
    Ok(())
}

/// Lets there be a tree that can go.
pub(super) fn prepare_removal(place: &mut Place) -> Result<(), Ended> {
    if place.copy.is_none() {
        place.copy = Some(extract_new(place, "copied", &mut Meter::default())?);
    }
    Ok(())
}

pub(super) fn remove(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let tree = place.copy.take().ok_or_else(|| io::Error::other("there is no tree"))?;
    meter.section(tree.count(), || fs::remove_dir_all(&tree.root))?;
    if tree.root.exists() { Err(content::wrong("a tree that was removed is still there")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_like_sources_and_is_the_same_in_every_run() {
        let tree = Tree::new("/r".into(), 1500, 1);
        let again = Tree::new("/r".into(), 1500, 2);
        let shape = |tree: &Tree| tree.files.iter().map(|(path, content)| (path.clone(), content.len())).collect::<Vec<_>>();
        assert_eq!((shape(&tree), &tree.directories), (shape(&again), &again.directories));
        assert!(tree.files.iter().zip(&again.files).all(|(a, b)| a.1 != b.1), "content is new");
        let mut sizes: Vec<usize> = shape(&tree).iter().map(|(_, len)| *len).collect();
        sizes.sort_unstable();
        assert!((2048..8192).contains(&sizes[750]) && sizes[1485] > 16 << 10 && sizes[1499] <= 256 << 10, "{} {}", sizes[750], sizes[1485]);
        assert!(tree.directories.iter().map(|d| d.components().count()).max().unwrap() > 2, "it is nested");
        assert!(tree.files.iter().all(|(path, _)| tree.directories.iter().any(|d| path.parent() == Some(d))));
    }

    #[test]
    fn a_changed_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path().join("t"), 30, 1);
        tree.extract().unwrap();
        tree.check(&tree.root).unwrap();
        let path = tree.root.join(&tree.files[17].0);
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = tree.check(&tree.root).unwrap_err().to_string();
        assert!(error.contains("WRONG DATA: byte 20") && error.contains(path.to_str().unwrap()), "{error}");
    }
}
