//! A fixed piece of work on a mount that may die at any moment, and what must be there afterwards.
//!
//! Of each file it knows the states that the program produced, in order, how far that had
//! got when a call returned, and what was under way. After a crash a file is in one of the states from the last one on that
//! a call had returned from; of the call under way a beginning may be there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// Bytes of a block of a new file.
pub const BLOCK: usize = 256 << 10;

/// A change of a file's content.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => {
                content.resize(content.len().max(offset + bytes.len()), 0);
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Self::Truncate(size) => content.resize(*size, 0),
        }
    }
}

/// What is known of one file.
#[derive(Debug)]
pub struct Tracked {
    /// Its name.
    pub name: &'static str,
    /// As the last call that returned left it.
    content: Vec<u8>,
    /// Under way when the process died.
    unfinished: Option<Change>,
    exists: bool,
}

impl Tracked {
    /// Panics where `found` is not what the program made, or less than it was told that it had made.
    #[track_caller]
    pub fn check(&self, found: Option<&[u8]>, who: &str) {
        let name = self.name;
        let Some(found) = found else {
            assert!(!self.exists, "{name} is gone, says {who}");
            return;
        };
        if found == self.content {
            return;
        }
        let is_fine = match &self.unfinished {
            Some(change @ Change::Write(offset, bytes)) => {
                let mut whole = self.content.clone();
                change.apply(&mut whole);
                // A beginning of the bytes, cut where pages or blocks begin.
                let beginning = |len: &usize| {
                    let mut content = self.content.clone();
                    Change::Write(*offset, bytes[..*len].to_vec()).apply(&mut content);
                    content == found
                };
                whole == found || (1..bytes.len()).filter(|len| (offset + len).is_multiple_of(4096)).any(|len| beginning(&len))
            }
            Some(change) => {
                let mut whole = self.content.clone();
                change.apply(&mut whole);
                whole == found
            }
            None => false,
        };
        let differs = found.iter().zip(&self.content).position(|(a, b)| a != b);
        assert!(
            is_fine,
            "{name} of {} bytes is torn or lost: {} bytes, first different one {differs:?}, says {who}",
            self.content.len(),
            found.len()
        );
    }
}

/// A file that is written, and what is known of it.
struct Writer<'a> {
    file: File,
    tracked: &'a mut Tracked,
}

impl<'a> Writer<'a> {
    fn open(dir: &Path, tracked: &'a mut Tracked, options: &mut OpenOptions) -> io::Result<Self> {
        let file = options.open(dir.join(tracked.name))?;
        tracked.exists = true;
        Ok(Self { file, tracked })
    }

    fn change(&mut self, change: Change, carry_out: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        self.tracked.unfinished = Some(change.clone());
        carry_out(&mut self.file)?;
        change.apply(&mut self.tracked.content);
        self.tracked.unfinished = None;
        Ok(())
    }

    fn write_at(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, bytes.to_vec()), |file| file.write_all_at(bytes, offset as u64))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.tracked.content.len();
        self.change(Change::Write(end, bytes.to_vec()), |file| file.write_all(bytes))
    }

    fn truncate(&mut self, size: usize) -> io::Result<()> {
        self.change(Change::Truncate(size), |file| file.set_len(size as u64))
    }

    fn map(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let length = self.tracked.content.len();
        self.change(Change::Write(offset, bytes.to_vec()), |file| sys::write_mapped(file, length, offset, bytes))
    }

    fn close(self) -> io::Result<()> {
        sys::close(self.file)
    }
}

/// The work, in one directory.
#[derive(Debug)]
pub struct Work {
    dir: PathBuf,
    files: Vec<Tracked>,
}

/// Bytes without a pattern that a shift would hide.
fn filled(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add((n >> 8) as u8).wrapping_add(seed) | 1).collect()
}

/// The files that are there before, with their sizes.
const BEFORE: [(&str, usize); 5] = [("big", 3 * BLOCK + 1000), ("log", 700), ("cut", 3 * BLOCK), ("doc", 5000), ("mapped", BLOCK + 9000)];

impl Work {
    /// Prepares `name` through a mount at `root` that stays alive.
    pub fn prepare(root: &Path, name: &str) -> Self {
        let dir = root.join(name);
        fs::create_dir(&dir).expect("directory of the work");
        let mut files = Vec::new();
        for (n, (name, size)) in BEFORE.into_iter().enumerate() {
            let content = filled(n as u8, size);
            fs::write(dir.join(name), &content).expect("a file that is there before");
            files.push(Tracked { name, content, unfinished: None, exists: true });
        }
        for name in ["new", "synced", "doc.tmp"] {
            files.push(Tracked { name, content: Vec::new(), unfinished: None, exists: false });
        }
        Self { dir: PathBuf::from(name), files }
    }

    fn file(&mut self, name: &str) -> &mut Tracked {
        self.files.iter_mut().find(|f| f.name == name).expect("a file of the work")
    }

    /// Does it below `root`, until something fails, which is how a death shows.
    pub fn run(&mut self, root: &Path) -> io::Result<()> {
        let dir = root.join(&self.dir);
        self.make_and_append(&dir)?;
        self.edit_in_place(&dir)?;
        self.cut_and_map(&dir)?;
        self.replace(&dir)
    }

    fn make_and_append(&mut self, dir: &Path) -> io::Result<()> {
        let mut new = Writer::open(dir, self.file("new"), OpenOptions::new().write(true).create(true).mode(0o640))?;
        for n in 0..3 {
            new.append(&filled(50 + n, 5000))?;
        }
        new.close()?;
        let mut log = Writer::open(dir, self.file("log"), OpenOptions::new().append(true))?;
        for n in 0..3 {
            log.append(&filled(60 + n, 100))?;
        }
        log.close()
    }

    fn edit_in_place(&mut self, dir: &Path) -> io::Result<()> {
        let mut big = Writer::open(dir, self.file("big"), OpenOptions::new().read(true).write(true))?;
        // In the middle of a block that is not here, over whole ones, and over the end.
        big.write_at(BLOCK + 300, &filled(70, 100))?;
        big.write_at(2 * BLOCK, &filled(71, BLOCK + 5000))?;
        big.file.sync_all()?;
        big.write_at(10, &filled(72, 5000))?;
        big.close()?;
        let mut synced = Writer::open(dir, self.file("synced"), OpenOptions::new().write(true).create_new(true))?;
        synced.append(&filled(80, 3000))?;
        synced.file.sync_all()?;
        synced.append(&filled(81, 3000))?;
        synced.close()
    }

    fn cut_and_map(&mut self, dir: &Path) -> io::Result<()> {
        let mut cut = Writer::open(dir, self.file("cut"), OpenOptions::new().write(true))?;
        // Where a block begins, which fetches nothing, and inside one.
        cut.truncate(2 * BLOCK)?;
        cut.write_at(2 * BLOCK + 500, &filled(90, 2000))?;
        cut.truncate(BLOCK + 77)?;
        cut.write_at(BLOCK + 77, &filled(91, 50))?;
        cut.close()?;
        let mut mapped = Writer::open(dir, self.file("mapped"), OpenOptions::new().read(true).write(true))?;
        mapped.map(5000, &filled(95, 300))?;
        mapped.close()
    }

    fn replace(&mut self, dir: &Path) -> io::Result<()> {
        let mut temporary = Writer::open(dir, self.file("doc.tmp"), OpenOptions::new().write(true).create_new(true))?;
        temporary.append(&filled(99, 6000))?;
        temporary.close()?;
        // The rename may have happened where no answer came.
        let saved = self.file("doc.tmp").content.clone();
        self.file("doc").unfinished = Some(Change::Write(0, saved.clone()));
        self.file("doc.tmp").exists = false;
        fs::rename(dir.join("doc.tmp"), dir.join("doc"))?;
        *self.file("doc") = Tracked { name: "doc", content: saved, unfinished: None, exists: true };
        Ok(())
    }

    /// Compares every file below `root` with what is known of it.
    #[track_caller]
    pub fn check(&self, root: &Path, who: &str) {
        for tracked in &self.files {
            let path = root.join(&self.dir).join(tracked.name);
            let found = match fs::read(&path) {
                Ok(found) => Some(found),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => panic!("{}: {e}, says {who}", path.display()),
            };
            tracked.check(found.as_deref(), who);
        }
        let either = ["doc", "doc.tmp"].map(|name| root.join(&self.dir).join(name).exists());
        assert!(either[0], "the file that was replaced is gone, says {who}");
    }
}
