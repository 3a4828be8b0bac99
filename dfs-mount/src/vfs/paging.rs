//! Where a listing goes on: offsets that stay good while entries come and go.
//!
//! The directory service lists in order of names. The names are cut into ranges, the
//! pages, of which only the names between them are remembered. Within a page entries
//! are given out in order of a hash of their names, and an offset is a page and the
//! lowest hash that has not been given out. So an offset outlives the entry that it was
//! given out with, and what has come meanwhile moves nothing.
//!
//! Offsets are those of a directory and not of a handle, because the kernel gives one
//! handle what it has kept from another. Where a page has grown far beyond its size, the
//! next listing from the start cuts anew, as another generation; the one before stays
//! for who is still within it.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use dfs_common::name::Name;
use parking_lot::Mutex;

/// Entries of a page when it is cut.
pub(crate) const PAGE: usize = 1024;
/// A page that has grown to this many is cut anew with the next listing.
const OVERFULL: usize = 4 * PAGE;
/// Generations at a time; the last of them is then not cut anew, and slow.
const GENERATIONS: usize = 16;

/// `.` and `..` take the offsets below.
const DOTS: u64 = 2;
const HASH_BITS: u32 = 36;
const PAGE_BITS: u32 = 20;
const HASHES: u64 = 1 << HASH_BITS;
/// In place of a page: the rest is the number of a [`Position`] that is remembered as a whole.
const REMEMBERED: u64 = (1 << PAGE_BITS) - 1;

/// A place between two entries of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) page: usize,
    /// What is behind it has at least this hash,
    hash: u64,
    /// and with this very hash a name above this one.
    above: Option<Name>,
}

impl Position {
    /// Before all entries of `page`.
    pub(crate) fn start_of(page: usize) -> Self {
        Self { page, hash: 0, above: None }
    }

    /// True where it comes before `other` of the same page.
    pub(crate) fn is_below(&self, other: &Position) -> bool {
        (self.hash, &self.above) < (other.hash, &other.above)
    }

    /// True where the entry of this page with `hash` and `name` comes behind.
    pub(crate) fn is_before(&self, hash: u64, name: &Name) -> bool {
        hash > self.hash || (hash == self.hash && self.above.as_ref().is_none_or(|above| name > above))
    }
}

/// Where a listing is asked to go on.
#[derive(Debug)]
pub(crate) enum Offset {
    /// At the start, so many of `.` and `..` left out.
    Start(usize),
    /// Within the entries.
    Within(Arc<Generation>, Position),
}

/// How the names of a directory are cut, at one time.
#[derive(Debug)]
pub(crate) struct Generation {
    number: u64,
    /// Secret, so that nobody can make names whose hashes meet.
    key: RandomState,
    cut: Mutex<Cut>,
}

#[derive(Debug, Default)]
struct Cut {
    /// The last names of all pages but the last.
    ends: Vec<Name>,
    /// The last page was given out as one, whatever will be added to it.
    is_whole: bool,
    is_overfull: bool,
    /// Places within equal hashes, which are next to none.
    remembered: Vec<Position>,
}

impl Generation {
    pub(crate) fn hash(&self, name: &Name) -> u64 {
        // One less than there are: the offset behind the last one is that of the next.
        self.key.hash_one(name.as_bytes()) % (HASHES - 1)
    }

    /// The name that `page` begins behind; `None` for the first.
    pub(crate) fn start(&self, page: usize) -> Option<Name> {
        page.checked_sub(1).map(|before| self.cut.lock().ends[before].clone())
    }

    /// The last name of `page`; `None`: it goes on to the end. A page that is read for the first time ends with `last`, the last of
    /// the entries that were read, or where these are the last of all goes on to the end.
    pub(crate) fn end(&self, page: usize, last: Option<&Name>) -> Option<Name> {
        let mut cut = self.cut.lock();
        if let Some(end) = cut.ends.get(page) {
            return Some(end.clone());
        }
        match last {
            Some(last) if !cut.is_whole && cut.ends.len() + 1 < REMEMBERED as usize => {
                cut.ends.push(last.clone());
                Some(last.clone())
            }
            _ => {
                cut.is_whole = true;
                None
            }
        }
    }

    /// A page was found to have `count` entries.
    pub(crate) fn counted(&self, count: usize) {
        if count >= OVERFULL {
            self.cut.lock().is_overfull = true;
        }
    }

    /// The offset behind an entry, `next` being the hash of the next entry of its page.
    pub(crate) fn offset_behind(&self, page: usize, hash: u64, name: &Name, next: Option<u64>) -> u64 {
        let (page_bits, rest) = if next == Some(hash) {
            let position = Position { page, hash, above: Some(name.clone()) };
            let mut cut = self.cut.lock();
            let known = cut.remembered.iter().position(|p| *p == position);
            let number = known.unwrap_or_else(|| {
                cut.remembered.push(position);
                cut.remembered.len() - 1
            });
            (REMEMBERED, number as u64)
        } else {
            (page as u64, hash + 1)
        };
        (self.number << (PAGE_BITS + HASH_BITS)) | (page_bits << HASH_BITS) | rest
    }

    fn position(&self, offset: u64) -> Option<Position> {
        let (page, rest) = ((offset >> HASH_BITS) & REMEMBERED, offset & (HASHES - 1));
        let cut = self.cut.lock();
        if page == REMEMBERED {
            return cut.remembered.get(rest as usize).cloned();
        }
        (page as usize <= cut.ends.len()).then_some(Position { page: page as usize, hash: rest, above: None })
    }
}

/// All generations of one directory that are in use.
#[derive(Debug, Default)]
pub(crate) struct Paging {
    /// The newest is the last.
    generations: Vec<Arc<Generation>>,
    /// Of the last one.
    number: u64,
    handles: usize,
}

impl Paging {
    /// One more handle. Returns whether a listing that the kernel has kept is one of the newest generation.
    pub(crate) fn opened(&mut self) -> bool {
        self.handles += 1;
        self.generations.len() <= 1
    }

    /// One handle less. Without any, nobody is within what is not the newest. True where that went: a listing that the
    /// kernel has kept may be of it.
    pub(crate) fn closed(&mut self) -> bool {
        self.handles -= 1;
        let goes = self.handles == 0 && self.generations.len() > 1;
        if goes {
            self.generations.drain(..self.generations.len() - 1);
        }
        goes
    }

    /// The generation for a listing from the start.
    pub(crate) fn newest(&mut self) -> Arc<Generation> {
        let newest = self.generations.last().filter(|g| !g.cut.lock().is_overfull || self.generations.len() == GENERATIONS);
        if let Some(newest) = newest {
            return newest.clone();
        }
        // Far fewer are in use at a time than there are numbers, and 0 is for the dots.
        self.number = self.number % (2 * GENERATIONS as u64) + 1;
        let new = Arc::new(Generation { number: self.number, key: RandomState::new(), cut: Mutex::default() });
        self.generations.push(new.clone());
        new
    }

    /// What `offset` means; `None` where it was never given out.
    pub(crate) fn find(&self, offset: u64) -> Option<Offset> {
        if offset <= DOTS {
            return Some(Offset::Start(offset as usize));
        }
        let generation = self.generations.iter().find(|g| g.number == offset >> (PAGE_BITS + HASH_BITS))?;
        Some(Offset::Within(generation.clone(), generation.position(offset)?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn within(paging: &Paging, offset: u64) -> Position {
        match paging.find(offset).unwrap() {
            Offset::Within(_, position) => position,
            Offset::Start(_) => panic!("{offset} is the start"),
        }
    }

    #[test]
    fn offsets_fit_63_bits_and_lead_back() {
        let mut paging = Paging::default();
        let generation = paging.newest();
        assert!(matches!(paging.find(0), Some(Offset::Start(0))) && matches!(paging.find(2), Some(Offset::Start(2))));
        assert_eq!(generation.end(0, Some(&name("m"))), Some(name("m")));
        assert_eq!(generation.start(1), Some(name("m")));
        let offset = generation.offset_behind(1, HASHES - 2, &name("x"), None);
        assert!(offset < 1 << 63 && offset > DOTS);
        assert_eq!(within(&paging, offset), Position { page: 1, hash: HASHES - 1, above: None });
        assert!(paging.find(offset + (1 << HASH_BITS)).is_none(), "there is no page 2");
        assert!(paging.find(offset + (1 << (PAGE_BITS + HASH_BITS))).is_none(), "there is no such generation");
    }

    #[test]
    fn equal_hashes_are_neither_lost_nor_repeated() {
        let mut paging = Paging::default();
        let generation = paging.newest();
        let between = generation.offset_behind(0, 7, &name("a"), Some(7));
        assert_eq!(generation.offset_behind(0, 7, &name("a"), Some(7)), between, "remembered once");
        let position = within(&paging, between);
        assert!(position.is_before(7, &name("b")) && !position.is_before(7, &name("a")) && !position.is_before(6, &name("z")));
        let behind = within(&paging, generation.offset_behind(0, 7, &name("b"), Some(8)));
        assert!(!behind.is_before(7, &name("c")) && behind.is_before(8, &name("a")));
    }

    #[test]
    fn a_page_keeps_its_bounds_whoever_reads_it() {
        let mut paging = Paging::default();
        let generation = paging.newest();
        assert_eq!(generation.end(0, Some(&name("f"))), Some(name("f")));
        assert_eq!(generation.end(0, Some(&name("d"))), Some(name("f")));
        assert_eq!(generation.end(1, None), None);
        assert_eq!(generation.end(1, Some(&name("x"))), None, "it was given out to the end");
    }

    #[test]
    fn what_has_grown_is_cut_anew_and_the_old_stays_for_who_is_within() {
        let mut paging = Paging::default();
        assert!(paging.opened());
        let old = paging.newest();
        let offset = old.offset_behind(0, 1, &name("a"), None);
        old.counted(OVERFULL);
        let new = paging.newest();
        assert!(new.number != old.number && paging.newest().number == new.number);
        assert!(!paging.opened(), "the kernel may keep the old one");
        assert_eq!(within(&paging, offset).page, 0);
        paging.closed();
        assert!(paging.find(offset).is_some());
        paging.closed();
        assert!(paging.find(offset).is_none() && paging.newest().number == new.number);
    }

    #[test]
    fn generations_are_few_and_never_share_a_number() {
        let mut paging = Paging::default();
        for _ in 0..5 * GENERATIONS {
            paging.newest().counted(OVERFULL);
            let numbers: BTreeSet<u64> = paging.generations.iter().map(|g| g.number).collect();
            assert!(numbers.len() == paging.generations.len() && numbers.len() <= GENERATIONS && !numbers.contains(&0));
            if paging.generations.len() == GENERATIONS {
                paging.opened();
                paging.closed();
            }
        }
    }
}
