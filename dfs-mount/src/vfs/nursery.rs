//! Files that were made here, in directories that this mount has to itself, and of which
//! the directory service has not been told yet. They are told of with their first
//! content, in one request instead of two; or by themselves, where something else about
//! them, or about their directory, is asked for, and after a second.
//!
//! Invariant: whoever else asks for what is in such a directory makes the service send an event, which is acknowledged
//! only after everything in there was told of. So nobody can tell that a file was made before it was told of.
//!
//! Lock order: leases, then this, then a node's state.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dfs_common::api::directory::{Birth, Make, Reservation};
use dfs_common::attributes::{Attributes, Entry, FileKind, Layout};
use dfs_common::clients::behalf::{self, Behalf};
use dfs_common::ids::{InodeId, ServerId};
use dfs_common::name::Name;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::coherence::{Place, Told};
use super::leases::Stamp;
use super::node::Node;
use super::rights::{needs_groups, scope};
use super::{Caller, Vfs};

/// Numbers that are asked for at first; then twice as many each time.
const FIRST: u32 = 16;
/// So many files are made in a directory before it is asked for, doubled whenever somebody else uses it.
const BEFORE: u32 = 2;
const BEFORE_DOUBLINGS: u32 = 8;
/// Numbers are used for so long: their file servers were chosen for now.
const FRESH: Duration = Duration::from_secs(600);
/// The longest that a file is not told of.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// Directories of which something is remembered.
const WARDS_MAX: usize = 4096;

/// Numbers for new files, and the servers of each.
#[derive(Debug)]
struct Numbers {
    first: InodeId,
    rest: std::iter::Zip<std::ops::RangeFrom<u64>, std::vec::IntoIter<Vec<ServerId>>>,
    since: Instant,
}

impl Numbers {
    fn new(Reservation { first, placements }: Reservation, since: Instant) -> Self {
        Self { first, rest: (first.0..).zip(placements), since }
    }
}

/// A directory.
#[derive(Debug, Default)]
struct Ward {
    /// Present while this mount has it to itself.
    numbers: Option<Numbers>,
    unborn: HashMap<Name, Arc<Node>>,
    /// A request for numbers is under way, and nothing has ended it.
    asking: bool,
    /// Files made by asking since the last request for numbers, how many of these were in vain, and how many numbers were got last.
    made: u32,
    refused: u32,
    got: u32,
}

impl Ward {
    fn end(&mut self) {
        (self.numbers, self.asking) = (None, false);
    }

    fn add(&mut self, reservation: Reservation, now: Instant) {
        (self.made, self.refused, self.got) = (0, 0, reservation.placements.len() as u32);
        self.numbers = Some(Numbers::new(reservation, now));
    }
}

/// A file that was made and not told of.
#[derive(Debug)]
pub(crate) struct Unborn {
    pub(super) make: Make,
    behalf: Option<Behalf>,
    since: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Nursery {
    wards: Mutex<HashMap<InodeId, Ward>>,
    unborn: AtomicUsize,
    /// There is something to tell of.
    changed: Notify,
}

/// A request for numbers that is under way. Where it is dropped before its answer was heard, it was in vain.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    nursery: &'a Nursery,
    /// Of a file; a directory that is about to be made has no number yet.
    directory: Option<InodeId>,
    /// So many.
    pub(super) count: u32,
}

impl Wish<'_> {
    fn hear(mut self, reservation: Option<Reservation>) {
        self.end(reservation);
    }

    fn end(&mut self, reservation: Option<Reservation>) {
        if let Some(directory) = self.directory.take().filter(|_| self.count > 0) {
            self.nursery.hear(directory, reservation);
        }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Nursery {
    /// A file is about to be made in `directory` by asking: how many numbers to ask for with it.
    fn wish(&self, directory: InodeId) -> u32 {
        let mut wards = self.wards.lock();
        if wards.len() >= WARDS_MAX {
            wards.values_mut().for_each(Ward::end);
            wards.retain(|_, ward| !ward.unborn.is_empty());
        }
        let ward = wards.entry(directory).or_default();
        ward.made += 1;
        if ward.asking || !(ward.numbers.is_some() || ward.made >= BEFORE << ward.refused.min(BEFORE_DOUBLINGS)) {
            return 0;
        }
        ward.asking = true;
        (2 * ward.got).clamp(FIRST, Make::MAX_RESERVED)
    }

    /// The answer to a wish, if the directory is this mount's alone.
    fn hear(&self, directory: InodeId, reservation: Option<Reservation>) {
        let mut wards = self.wards.lock();
        let Some(ward) = wards.get_mut(&directory) else { return };
        // An event has come in between.
        let still = std::mem::take(&mut ward.asking);
        match reservation.filter(|_| still) {
            Some(reservation) => ward.add(reservation, Instant::now()),
            None => {
                ward.end();
                (ward.made, ward.refused) = (0, ward.refused + 1);
            }
        }
    }

    /// The same for a directory that was just made.
    fn hear_of_new(&self, directory: InodeId, reservation: Reservation) {
        let mut wards = self.wards.lock();
        if wards.len() < WARDS_MAX {
            wards.entry(directory).or_default().add(reservation, Instant::now());
        }
    }

    /// A number for a new file in `directory`, with the first of its reservation and its servers.
    fn take(&self, directory: InodeId, now: Instant) -> Option<(InodeId, InodeId, Vec<ServerId>)> {
        let mut wards = self.wards.lock();
        let numbers = wards.get_mut(&directory)?.numbers.as_mut()?;
        let (ino, placement) = numbers.rest.next().filter(|_| now.saturating_duration_since(numbers.since) < FRESH)?;
        Some((InodeId(ino), numbers.first, placement))
    }

    fn add(&self, directory: InodeId, name: &Name, node: &Arc<Node>) {
        if self.wards.lock().entry(directory).or_default().unborn.insert(name.clone(), node.clone()).is_none() {
            self.unborn.fetch_add(1, Ordering::Relaxed);
        }
        self.changed.notify_one();
    }

    fn remove(&self, directory: InodeId, name: &Name) {
        if self.wards.lock().get_mut(&directory).is_some_and(|ward| ward.unborn.remove(name).is_some()) {
            self.unborn.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// `directory` is not this mount's alone any more, or not by the same rules. True where something in it is to be told of.
    pub(super) fn end(&self, directory: InodeId) -> bool {
        self.wards.lock().get_mut(&directory).is_some_and(|ward| {
            ward.end();
            !ward.unborn.is_empty()
        })
    }

    /// None is.
    pub(super) fn end_all(&self) {
        self.wards.lock().values_mut().for_each(Ward::end);
    }

    fn is_empty(&self) -> bool {
        self.unborn.load(Ordering::Relaxed) == 0
    }

    fn at(&self, place: &Place) -> Option<Arc<Node>> {
        if self.is_empty() {
            return None;
        }
        self.wards.lock().get(&place.directory.ino)?.unborn.get(&place.name).cloned()
    }

    /// What is to be told of: in one directory, or in all.
    fn within(&self, directory: Option<InodeId>) -> Vec<Arc<Node>> {
        let wards = self.wards.lock();
        match directory {
            Some(directory) => wards.get(&directory).into_iter().flat_map(|ward| ward.unborn.values().cloned()).collect(),
            None => wards.values().flat_map(|ward| ward.unborn.values().cloned()).collect(),
        }
    }
}

/// What is to be told of `node`. `Conflict` where that was refused: somebody else may have heard it, and whoever wrote the content has not.
fn unborn(node: &Node) -> Result<Option<Arc<Unborn>>> {
    let state = node.state.lock();
    state.birth_refused.clone().map_or_else(|| Ok(state.unborn.clone()), Err)
}

impl Vfs {
    /// How many numbers to ask for with a new entry of `directory`.
    pub(super) fn wish(&self, directory: InodeId, kind: FileKind, caller: Caller) -> Wish<'_> {
        let may = self.cluster.may_have_new_locks() && !self.is_squashed(caller);
        let (directory, count) = match kind {
            FileKind::File if may => (Some(directory), self.nursery.wish(directory)),
            FileKind::Directory if may => (None, FIRST),
            _ => (None, 0),
        };
        Wish { nursery: &self.nursery, directory, count }
    }

    /// What came of a wish for the directory of a new file: numbers, if the answer with this stamp gives it to this mount alone.
    pub(super) fn hear_wish(&self, wish: Wish<'_>, reservation: Option<Reservation>, stamp: &Stamp) {
        let telling = self.telling();
        let is_exclusive = |directory| telling.believes() && telling.is_exclusive(stamp, directory);
        let granted = reservation.filter(|_| wish.directory.is_some_and(is_exclusive));
        wish.hear(granted);
    }

    /// The same for a directory that was just made.
    pub(super) fn hear_of_new(&self, directory: InodeId, reservation: Option<Reservation>, stamp: &Stamp) {
        let telling = self.telling();
        if let Some(reservation) = reservation.filter(|_| telling.is_exclusive(stamp, directory) && telling.still_holds(stamp, directory)) {
            self.nursery.hear_of_new(directory, reservation);
        }
    }

    /// Makes a file that is about to be written without asking, if this mount may. `None`: ask.
    pub(super) fn make_here(self: &Arc<Self>, place: &Place, mode: u32, caller: Caller) -> Option<Told> {
        let directory = &place.directory;
        if self.is_squashed(caller) || !self.cluster.may_have_new_locks() {
            return None;
        }
        let telling = self.telling();
        if !telling.believes() || !matches!(directory.state.lock().entries.get(&place.name), Some(None)) {
            return None;
        }
        let (ino, first, placement) = self.nursery.take(directory.ino, Instant::now())?;
        let at = self.now();
        let make = Make {
            umask: caller.umask,
            uid: caller.uid,
            gid: caller.gid,
            lock: true,
            birth: Some(Birth { ino, first, at }),
            ..Make::new(directory.ino, place.name.clone(), FileKind::File, mode)
        };
        let attributes = Attributes {
            mode: mode & !(caller.umask & 0o777),
            uid: caller.uid,
            gid: caller.gid,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            ..Attributes::bare(ino, FileKind::File)
        };
        let layout = Layout { placement, fresh: Some(self.cluster.id()), ..Layout::default() };
        let told = telling.made_here(place, &Entry { attributes, layout }, at);
        let node = told.node().expect("what was made has a node");
        let behalf = behalf::current().map(|behalf| {
            let needed = needs_groups(&directory.state.lock().entry.attributes, &behalf.user());
            behalf.to_keep(needed)
        });
        node.state.lock().unborn = Some(Arc::new(Unborn { make, behalf, since: Instant::now() }));
        self.nursery.add(directory.ino, &place.name, node);
        drop(telling);
        self.keep_fresh(ino);
        Some(told)
    }

    /// Tells of what nothing else has told of; never returns.
    pub async fn keep_nursery(self: Arc<Self>) {
        loop {
            self.nursery.changed.notified().await;
            tokio::time::sleep(TELL_AFTER).await;
            if !self.nursery.is_empty() {
                self.nursery.changed.notify_one();
            }
            for node in self.nursery.within(None) {
                let is_due = node.state.lock().unborn.as_ref().is_some_and(|unborn| unborn.since.elapsed() >= TELL_AFTER);
                if is_due && let Err(e) = self.give_birth(&node).await {
                    log::debug!("{}: {e}", self.nodes.path(&node));
                }
            }
        }
    }

    /// Tells of everything in `directory`, or everywhere.
    pub(super) async fn give_births(&self, directory: Option<InodeId>) -> Result<()> {
        if self.nursery.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        for node in self.nursery.within(directory) {
            result = self.give_birth(&node).await.and(result);
        }
        result
    }

    /// Tells of what is at `place`.
    pub(super) async fn give_birth_at(&self, place: &Place) -> Result<()> {
        match self.nursery.at(place) {
            Some(node) => self.give_birth(&node).await,
            None => Ok(()),
        }
    }

    /// Tells of `node`, if the service does not know it. `Conflict` where its name is somebody else's by now.
    pub(super) async fn give_birth(&self, node: &Node) -> Result<()> {
        let Some(unborn) = unborn(node)? else { return Ok(()) };
        let (made, stamp) = Box::pin(scope(unborn.behalf.as_ref(), self.mutate(&unborn.make))).await;
        match made {
            Ok(made) => {
                if let Some(directory) = self.nodes.current(unborn.make.parent) {
                    let place = Place { directory, name: unborn.make.name.clone() };
                    let mut telling = self.telling();
                    // The name leads where it led: what the kernel keeps under it is still to be cleared when that changes.
                    telling.told_of(&place, false, &stamp);
                    telling.hear_attributes(&place.directory, made.directory, &stamp);
                }
                self.changed(node, made.entry, &stamp);
                self.is_born(node, &unborn);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Exists | ErrorKind::Invalid) => {
                // This client was cut off, and others went on.
                let kind = if e.kind() == ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Conflict };
                let refused = Error::new(kind, e.message().to_owned());
                if kind == ErrorKind::Conflict {
                    node.state.lock().birth_refused = Some(refused.clone());
                }
                self.is_born(node, &unborn);
                Err(refused)
            }
            Err(e) => Err(e),
        }
    }

    /// How the commit under way is to make the file: not where it is on behalf of somebody else, who would become its owner.
    pub(super) async fn born_with(&self, node: &Node) -> Result<Option<Arc<Unborn>>> {
        let Some(unborn) = unborn(node)? else { return Ok(None) };
        if behalf::current().as_ref().map(Behalf::uid) == unborn.behalf.as_ref().map(Behalf::uid) {
            return Ok(Some(unborn));
        }
        self.give_birth(node).await.map(|()| None)
    }

    /// A commit has told of it: the file is `entry` now.
    pub(super) fn born_with_content(&self, node: &Node, unborn: &Unborn, entry: &Entry, stamp: &Stamp) {
        let Make { parent, name, birth, .. } = &unborn.make;
        if let Some(directory) = self.nodes.current(*parent) {
            // Where the service's clock is another, its word for the directory's times counts.
            let is_agreed = Some(entry.attributes.crtime) == birth.map(|birth| birth.at);
            self.telling().told_of(&Place { directory: directory.clone(), name: name.clone() }, is_agreed, stamp);
            if !is_agreed {
                self.forget_attributes(directory.id);
            }
        }
        self.is_born(node, unborn);
    }

    /// The service knows it.
    fn is_born(&self, node: &Node, unborn: &Unborn) {
        node.state.lock().unborn = None;
        self.nursery.remove(unborn.make.parent, &unborn.make.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: InodeId = InodeId(7);

    fn reservation(first: u64, count: usize) -> Reservation {
        Reservation { first: InodeId(first), placements: vec![vec![ServerId(1)]; count] }
    }

    /// Files made by asking until numbers are asked for.
    fn wishes_after(nursery: &Nursery) -> (u32, u32) {
        (1..).map(|made| (made, nursery.wish(DIR))).find(|(_, count)| *count > 0).unwrap()
    }

    #[test]
    fn numbers_are_asked_for_where_several_files_are_made_and_in_growing_numbers() {
        let (nursery, now) = (Nursery::default(), Instant::now());
        assert_eq!(wishes_after(&nursery), (BEFORE, FIRST));
        assert_eq!(nursery.wish(DIR), 0, "one request at a time");
        nursery.hear(DIR, Some(reservation(100, 16)));
        let taken: Vec<u64> = std::iter::from_fn(|| nursery.take(DIR, now)).map(|(ino, first, _)| ino.0 - first.0).collect();
        assert_eq!(taken, (0..16).collect::<Vec<_>>());
        assert_eq!(wishes_after(&nursery), (1, 2 * FIRST), "it still is this mount's own");
        nursery.hear(DIR, Some(reservation(200, 64)));
        assert_eq!((nursery.take(DIR, Instant::now() + FRESH), wishes_after(&nursery)), (None, (1, Make::MAX_RESERVED)), "servers chosen long ago");
    }

    #[test]
    fn an_event_ends_it_and_who_is_refused_asks_less_often() {
        let (nursery, now) = (Nursery::default(), Instant::now());
        wishes_after(&nursery);
        assert!(!nursery.end(DIR));
        nursery.hear(DIR, Some(reservation(100, 16)));
        assert_eq!(nursery.take(DIR, now), None, "the event came after the answer was given");
        assert_eq!(wishes_after(&nursery).0, 2 * BEFORE);
        nursery.hear(DIR, None);
        assert_eq!(wishes_after(&nursery).0, 4 * BEFORE);
        nursery.hear(DIR, Some(reservation(200, 16)));
        assert_eq!(nursery.take(DIR, now).unwrap().0, InodeId(200));
        nursery.end_all();
        assert_eq!(nursery.take(DIR, now), None);
        assert_eq!(wishes_after(&nursery).0, BEFORE);
    }

    #[test]
    fn a_request_that_is_given_up_does_not_keep_others_from_asking() {
        let nursery = Nursery::default();
        let wish = |nursery| Wish { nursery, directory: Some(DIR), count: wishes_after(nursery).1 };
        drop(wish(&nursery));
        assert_eq!(wishes_after(&nursery).0, 2 * BEFORE);
        nursery.end(DIR);
        wish(&nursery).hear(Some(reservation(100, 16)));
        assert_eq!(nursery.take(DIR, Instant::now()).unwrap().0, InodeId(100));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let nursery = Nursery::default();
        for n in 0..3 * WARDS_MAX as u64 {
            nursery.hear_of_new(InodeId(n), reservation(n << 8, 1));
            nursery.wish(InodeId(n));
        }
        assert!(nursery.wards.lock().len() <= WARDS_MAX);
    }
}
