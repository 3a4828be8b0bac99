//! Random operations on one file by two mounts in turn, after the manner of fsx: each
//! turn opens the file, does a few operations, and closes it, on the one or the other.
//!
//! The invariant is close-to-open: what is opened after a close is what was closed.
//! A model in memory knows it; every read, mapping and size is compared with it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::rng::Rng;
use crate::sys;

/// The file never becomes longer: some blocks of 256 KiB.
const LONGEST: usize = 1 << 20;
/// The most bytes of one operation.
const MOST: u64 = 70_000;
/// Operations that a failure shows.
const SHOWN: usize = 30;
const NAME: &str = "two-mounts";

#[derive(Clone, Copy, Debug)]
enum Op {
    Read { at: usize, len: usize },
    ReadMapped,
    Write { at: usize, len: usize },
    WriteMapped { at: usize, len: usize },
    Append { len: usize },
    Truncate { size: usize },
    PunchHole { at: usize, len: usize },
    Allocate { at: usize, len: usize },
    Copy { from: usize, to: usize, len: usize },
    Replace { len: usize },
    Sync,
    Size,
}

impl Op {
    fn random(rng: &mut Rng, size: usize) -> Self {
        let mut below = |limit: usize| rng.below(limit.max(1) as u64) as usize;
        let (at, len) = (below(LONGEST), below(MOST as usize) + 1);
        let len = len.min(LONGEST - at);
        // Inside the file, for what must not make it longer.
        let inside = below(size);
        let within = len.min(size.saturating_sub(inside));
        match below(31) {
            0..=7 => Self::Read { at: inside, len },
            8..=10 => Self::ReadMapped,
            11..=16 => Self::Write { at, len },
            17..=19 if within > 0 => Self::WriteMapped { at: inside, len: within },
            20 | 21 if size + len <= LONGEST => Self::Append { len },
            22 | 23 => Self::Truncate { size: at },
            24 | 25 if within > 0 => Self::PunchHole { at: inside, len: within },
            26 => Self::Allocate { at, len },
            27 if within > 0 => Self::Copy { from: inside, to: below(LONGEST - within), len: within },
            28 => Self::Replace { len },
            29 => Self::Sync,
            _ => Self::Size,
        }
    }
}

/// What the file must hold.
#[derive(Debug, Default)]
struct Model(Vec<u8>);

impl Model {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.grow(at + bytes.len());
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn grow(&mut self, size: usize) {
        if self.0.len() < size {
            self.0.resize(size, 0);
        }
    }

    fn range(&self, at: usize, len: usize) -> &[u8] {
        let end = (at + len).min(self.0.len());
        &self.0[at.min(end)..end]
    }
}

/// One file, seen through two mounts.
#[derive(Debug)]
pub struct Alternate {
    directories: [PathBuf; 2],
    rng: Rng,
    model: Model,
    history: Vec<String>,
}

impl Alternate {
    /// The file is made in `a`, which must be the same directory as `b` on another mount.
    pub fn new(a: &Path, b: &Path, seed: u64) -> Result<Self> {
        File::create(a.join(NAME)).with_context(|| format!("making {} in {}", NAME, a.display()))?;
        Ok(Self { directories: [a.to_owned(), b.to_owned()], rng: Rng::new(seed), model: Model::default(), history: Vec::new() })
    }

    /// Does `operations` operations; the error says what differed, after which operations.
    pub fn run(&mut self, operations: usize) -> Result<()> {
        let mut done = 0;
        while done < operations {
            let side = self.rng.below(2) as usize;
            let turn = 1 + self.rng.below(4) as usize;
            self.turn(side, turn).with_context(|| self.last())?;
            done += turn;
        }
        for side in [0, 1] {
            let path = self.directories[side].join(NAME);
            let found = fs::read(&path)?;
            compare(&found, &self.model.0, 0).with_context(|| format!("{} in the end", path.display())).with_context(|| self.last())?;
        }
        Ok(())
    }

    fn last(&self) -> String {
        let from = self.history.len().saturating_sub(SHOWN);
        self.history[from..].iter().fold(String::from("the last operations:"), |mut text, line| {
            let _ = write!(text, "\n  {line}");
            text
        })
    }

    /// Opens, does `count` operations, and closes.
    fn turn(&mut self, side: usize, count: usize) -> Result<()> {
        let path = self.directories[side].join(NAME);
        let mut file = open(&path)?;
        for _ in 0..count {
            let op = Op::random(&mut self.rng, self.model.0.len());
            self.history.push(format!("{} mount {side}: {op:?}", self.history.len()));
            if let Op::Replace { len } = op {
                sys::close(file).context("close")?;
                self.replace(&path, len).context("replace")?;
                file = open(&path)?;
            } else {
                self.apply(&path, &file, op).with_context(|| format!("{op:?}"))?;
            }
        }
        sys::close(file).context("close")
    }

    fn apply(&mut self, path: &Path, file: &File, op: Op) -> Result<()> {
        match op {
            Op::Read { at, len } => {
                let mut found = vec![0; len];
                let got = read_full(file, &mut found, at as u64)?;
                compare(&found[..got], self.model.range(at, len), at)
            }
            Op::ReadMapped if self.model.0.is_empty() => Ok(()),
            Op::ReadMapped => compare(&sys::read_mapped(file, self.model.0.len())?, &self.model.0, 0),
            Op::Write { at, len } => {
                let bytes = self.rng.bytes(len);
                file.write_all_at(&bytes, at as u64)?;
                self.model.write(at, &bytes);
                Ok(())
            }
            Op::WriteMapped { at, len } => {
                let bytes = self.rng.bytes(len);
                sys::write_mapped(file, self.model.0.len(), at, &bytes)?;
                self.model.write(at, &bytes);
                Ok(())
            }
            Op::Append { len } => {
                let bytes = self.rng.bytes(len);
                let mut appending = File::options().append(true).open(path)?;
                appending.write_all(&bytes)?;
                sys::close(appending)?;
                self.model.write(self.model.0.len(), &bytes);
                Ok(())
            }
            Op::Truncate { size } => {
                file.set_len(size as u64)?;
                self.model.0.resize(size, 0);
                Ok(())
            }
            Op::PunchHole { at, len } => {
                sys::fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, at as i64, len as i64)?;
                self.model.write(at, &vec![0; len]);
                Ok(())
            }
            Op::Allocate { at, len } => {
                sys::fallocate(file, 0, at as i64, len as i64)?;
                self.model.grow(at + len);
                Ok(())
            }
            Op::Copy { from, to, len } => self.copy(file, from, to, len),
            Op::Sync => Ok(file.sync_all()?),
            Op::Size | Op::Replace { .. } => {
                let found = file.metadata()?.len();
                ensure!(found == self.model.0.len() as u64, "the size is {found}, and must be {}", self.model.0.len());
                Ok(())
            }
        }
    }

    fn copy(&mut self, file: &File, from: usize, to: usize, len: usize) -> Result<()> {
        let mut done = 0;
        while done < len {
            // Ranges that overlap are an error within one file, as everywhere.
            if from.abs_diff(to) < len {
                return match sys::copy_range((file, from as i64), (file, to as i64), len) {
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                    other => bail!("overlapping ranges: {other:?}, and must be EINVAL"),
                };
            }
            let copied = sys::copy_range((file, (from + done) as i64), (file, (to + done) as i64), len - done)?;
            ensure!(copied > 0, "copy_file_range stopped at {done}");
            done += copied;
        }
        let bytes = self.model.range(from, len).to_vec();
        self.model.write(to, &bytes);
        Ok(())
    }

    /// As editors save: a new file takes the name.
    fn replace(&mut self, path: &Path, len: usize) -> Result<()> {
        let bytes = self.rng.bytes(len);
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        sys::close(file)?;
        fs::rename(&temporary, path)?;
        self.model.0 = bytes;
        Ok(())
    }
}

/// Names are promised to be seen elsewhere within the time that lookups are kept: ESTALE is not among the promises.
fn open(path: &Path) -> Result<File> {
    File::options().read(true).write(true).open(path).with_context(|| format!("opening {}", path.display()))
}

fn read_full(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// `base` is where both begin in the file.
fn compare(found: &[u8], wanted: &[u8], base: usize) -> Result<()> {
    if let Some(at) = found.iter().zip(wanted).position(|(a, b)| a != b) {
        let wrong = found.iter().zip(wanted).filter(|(a, b)| a != b).count();
        bail!("byte {} is {:#04x}, and must be {:#04x}; {wrong} bytes differ", base + at, found[at], wanted[at]);
    }
    ensure!(found.len() == wanted.len(), "{} bytes from {base}, and must be {}", found.len(), wanted.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_directory_agrees_with_the_model() {
        let dir = tempfile::tempdir().unwrap();
        Alternate::new(dir.path(), dir.path(), 1).unwrap().run(2000).unwrap();
    }

    #[test]
    fn a_change_behind_its_back_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Alternate::new(dir.path(), dir.path(), 1).unwrap();
        run.run(50).unwrap();
        run.model.grow(1);
        run.model.0[0] ^= 1;
        run.directories.swap(0, 1);
        assert!(run.run(0).is_err());
    }
}
