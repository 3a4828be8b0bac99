//! One client: random operations on its own mount of the shared directory, each logged.
//!
//! Errors that say what the directory is like (ENOENT, EEXIST) are results; ESTALE is
//! logged and the operation done again, as often as it takes; all others are unclear.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Instant;

use super::content;
use super::record::{Call, Name, Names, Operation, Outcome, Piece, Shown};
use crate::Rng;
use crate::sys;

const XATTR: &str = "user.history";
/// A path call that is stale this often in a row is a defect of its own.
const MOST_STALE: u32 = 100;

/// What a client does for a while; several moods, so that caches are now warm, now busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Mixed,
    Reading,
    Changing,
}

/// A client of one mount.
#[derive(Debug)]
pub struct Client {
    number: u8,
    directory: PathBuf,
    names: Names,
    rng: Rng,
    clock: Instant,
    sequence: u32,
    mood: Mood,
    log: Vec<Operation>,
}

impl Client {
    /// Client `number` in `directory`; `clock` is the same for all.
    pub fn new(number: u8, directory: PathBuf, names: Names, seed: u64, clock: Instant) -> Self {
        let rng = Rng::new(seed.wrapping_mul(1_000).wrapping_add(u64::from(number)));
        Self { number, directory, names, rng, clock, sequence: 0, mood: Mood::Mixed, log: Vec::new() }
    }

    /// What was logged since the last time.
    pub fn take_log(&mut self) -> Vec<Operation> {
        std::mem::take(&mut self.log)
    }

    /// Does one random operation; a write counts as one.
    pub fn step(&mut self) {
        if self.rng.one_in(60) {
            self.mood = *self.rng.pick(&[Mood::Mixed, Mood::Mixed, Mood::Reading, Mood::Reading, Mood::Changing]);
        }
        let kind = match self.mood {
            Mood::Mixed => self.rng.below(100),
            Mood::Reading => self.rng.below(50),
            Mood::Changing => 50 + self.rng.below(50),
        };
        let call = self.choose(kind);
        self.perform(call);
    }

    /// Stats, reads and lists everything once: what is wrong at rest is found, too.
    pub fn audit(&mut self) {
        self.perform(Call::List);
        for name in 0..self.names.count() {
            self.perform(Call::Stat { name });
            if self.names.text(name).starts_with(['n', 'h']) {
                self.perform(Call::Read { name });
                self.perform(Call::GetXattr { name });
            }
        }
    }

    fn file(&mut self) -> Name {
        self.rng.below(u64::from(self.names.files)) as Name
    }

    fn link(&mut self) -> Name {
        self.names.files + self.rng.below(u64::from(self.names.links)) as Name
    }

    /// A name of a file or of a link.
    fn either(&mut self) -> Name {
        self.rng.below(u64::from(self.names.files + self.names.links)) as Name
    }

    fn directory(&mut self) -> Name {
        self.names.files + self.names.links + self.rng.below(u64::from(self.names.directories)) as Name
    }

    fn choose(&mut self, kind: u64) -> Call {
        match kind {
            0..20 => Call::Stat { name: self.rng.below(u64::from(self.names.count())) as Name },
            20..36 => Call::Read { name: self.either() },
            36..44 => Call::List,
            44..50 => Call::GetXattr { name: self.either() },
            50..64 => Call::Open { name: self.either(), append: false },
            64..71 => Call::Open { name: self.either(), append: true },
            71..77 => Call::Unlink { name: self.either() },
            77..84 => {
                let from = self.file();
                let to = (from + 1 + self.rng.below(u64::from(self.names.files) - 1) as Name) % self.names.files;
                Call::Rename { from, to }
            }
            84..89 => Call::Chmod { name: self.either(), mode: 0o600 | self.rng.below(0o100) as u32 },
            89..93 => Call::Link { from: self.file(), to: self.link() },
            93..96 => Call::SetXattr { name: self.either(), value: 1 + self.rng.below(1_000_000) as u32 },
            96..98 => Call::MakeDir { name: self.directory() },
            _ => Call::RemoveDir { name: self.directory() },
        }
    }

    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    fn path(&self, name: Name) -> PathBuf {
        self.directory.join(self.names.text(name))
    }

    /// Does `call`, again while it is stale.
    fn perform(&mut self, call: Call) {
        for _ in 0..MOST_STALE {
            if self.attempt(&call) != Outcome::Stale {
                return;
            }
        }
        self.note(call, (self.now(), self.now()), Outcome::Impossible(format!("ESTALE {MOST_STALE} times in a row")));
    }

    fn note(&mut self, call: Call, (start, end): (u64, u64), outcome: Outcome) -> Outcome {
        self.log.push(Operation { client: self.number, start, end, call, outcome: outcome.clone() });
        outcome
    }

    /// Does `call` once.
    fn attempt(&mut self, call: &Call) -> Outcome {
        match *call {
            Call::Open { name, append } => return self.write(call, name, append),
            Call::Read { name } => return self.read(call, name),
            _ => {}
        }
        let start = self.now();
        let result = self.simple(call);
        let end = self.now();
        let outcome = result.unwrap_or_else(|e| failed(call, &e));
        self.note(call.clone(), (start, end), outcome)
    }

    /// Calls that are one system call, or one loop of them.
    fn simple(&self, call: &Call) -> io::Result<Outcome> {
        let done = |()| Outcome::Fine(Shown::Nothing);
        match *call {
            Call::Stat { name } => fs::symlink_metadata(self.path(name)).map(|m| Outcome::Fine(attributes(&m))),
            Call::List => self.list(),
            Call::Unlink { name } => fs::remove_file(self.path(name)).map(done),
            Call::Rename { from, to } => fs::rename(self.path(from), self.path(to)).map(done),
            Call::Chmod { name, mode } => fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).map(done),
            Call::Link { from, to } => fs::hard_link(self.path(from), self.path(to)).map(done),
            Call::SetXattr { name, value } => sys::set_xattr(&self.path(name), XATTR, value.to_string().as_bytes(), 0).map(done),
            Call::GetXattr { name } => sys::get_xattr(&self.path(name), XATTR).map(|v| xattr(&v)),
            Call::MakeDir { name } => fs::create_dir(self.path(name)).map(done),
            Call::RemoveDir { name } => fs::remove_dir(self.path(name)).map(done),
            Call::Read { .. } | Call::Open { .. } | Call::Close { .. } => unreachable!("handled by their own functions"),
        }
    }

    fn list(&self) -> io::Result<Outcome> {
        let mut bits = 0_u32;
        for entry in fs::read_dir(&self.directory)? {
            let text = entry?.file_name().to_string_lossy().into_owned();
            match self.names.find(&text) {
                Some(name) if bits & 1 << name == 0 => bits |= 1 << name,
                Some(_) => return Ok(Outcome::Impossible(format!("{text} is listed twice"))),
                None => return Ok(Outcome::Impossible(format!("{text:?} is listed, which nobody made"))),
            }
        }
        Ok(Outcome::Fine(Shown::Listing(bits)))
    }

    fn read(&mut self, call: &Call, name: Name) -> Outcome {
        let start = self.now();
        let opened = File::open(self.path(name));
        let end = self.now();
        let mut bytes = Vec::new();
        let outcome = match opened.map(|mut file| file.read_to_end(&mut bytes)) {
            Ok(Ok(_)) => content::parse(&bytes).map_or_else(Outcome::Impossible, |content| Outcome::Fine(Shown::Content(content))),
            // What is open stays readable: this is never a result.
            Ok(Err(e)) => Outcome::Unknown(errno(&e)),
            Err(e) => failed(call, &e),
        };
        self.note(call.clone(), (start, end), outcome)
    }

    /// Open, write, close: nothing in between, so that this client never looks at what only its own mount has yet.
    fn write(&mut self, call: &Call, name: Name, append: bool) -> Outcome {
        let mut options = OpenOptions::new();
        if append {
            options.append(true)
        } else {
            options.write(true).truncate(true).create(true).mode(0o644)
        };
        let start = self.now();
        let opened = options.open(self.path(name));
        let end = self.now();
        let mut file = match opened {
            Ok(file) => file,
            Err(e) => {
                let outcome = failed(call, &e);
                return self.note(call.clone(), (start, end), outcome);
            }
        };
        self.note(call.clone(), (start, end), Outcome::Fine(Shown::Nothing));
        self.sequence += 1;
        let piece = Piece { client: self.number, sequence: self.sequence };
        let bytes = content::length(piece, append);
        let written = file.write_all(&content::bytes(piece, bytes));
        let start = self.now();
        let closed = written.and(sys::close(file));
        let end = self.now();
        let close = Call::Close { piece, bytes, append };
        let outcome = closed.map_or_else(|e| Outcome::Unknown(errno(&e)), |()| Outcome::Fine(Shown::Nothing));
        self.note(close, (start, end), outcome.clone());
        outcome
    }
}

fn attributes(m: &fs::Metadata) -> Shown {
    Shown::Attributes { number: m.ino(), directory: m.is_dir(), mode: m.mode() & 0o7777, links: m.nlink(), bytes: m.len() }
}

fn xattr(value: &[u8]) -> Outcome {
    let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).filter(|&n| n != 0);
    number.map_or_else(|| Outcome::Impossible(format!("attribute {value:?}, which nobody set")), |n| Outcome::Fine(Shown::Xattr(n)))
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

fn failed(call: &Call, error: &io::Error) -> Outcome {
    match (errno(error), call) {
        (libc::ENOENT, _) => Outcome::Absent,
        (libc::EEXIST, Call::Link { .. } | Call::MakeDir { .. }) => Outcome::Exists,
        (libc::ENODATA, Call::GetXattr { .. }) => Outcome::Fine(Shown::Xattr(0)),
        (libc::ESTALE, _) => Outcome::Stale,
        (other, _) => Outcome::Unknown(other),
    }
}
