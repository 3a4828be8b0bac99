//! Keeping what this mount says true: answers are taken over with what they grant, the
//! kernel is told how long it may keep them, and events make them old.
//!
//! Lock order: [`Leases`], then the tables of nodes, then one node's state.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dfs_common::api::directory::{Event, GetAttributes};
use dfs_common::api::{Operation, Packed};
use dfs_common::attributes::{Attributes, Entry, Timestamp};
use dfs_common::ids::InodeId;
use dfs_common::name::Name;
use dfs_common::{ErrorKind, Result};
use parking_lot::MutexGuard;

use super::Vfs;
use super::entries::Kept;
use super::events::UNFORGETTING;
use super::knowledge::SETTLES;
use super::leases::{Leases, Stamp};
use super::node::Node;

/// Extended attributes of one inode that are kept in memory.
const XATTRS_MAX: usize = 32;

/// A name in a directory.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) directory: Arc<Node>,
    pub(crate) name: Name,
}

/// Something for the kernel: an inode's attributes, or that a name is absent.
#[derive(Debug)]
pub struct Told {
    /// `None` for an absent name.
    attributes: Option<Attributes>,
    /// They were leased when they were taken from the node.
    leased: bool,
    node: Option<Arc<Node>>,
    stamp: Stamp,
    place: Option<Place>,
    /// It was made and opened for writing by the call that is answered, so nothing is written yet.
    is_new: bool,
}

impl Told {
    /// It was made by the call that opened it for writing. The kernel knows what its own writes change, but for the bits
    /// that a write ends.
    pub(crate) fn new_file(mut self) -> Self {
        self.is_new = self.attributes.as_ref().is_some_and(|attributes| attributes.mode & 0o6000 == 0);
        self
    }

    /// With attributes that the kernel is not to keep: those of SETATTR and LINK it takes in without looking whether an
    /// event has come before.
    pub(crate) fn for_now(mut self) -> Self {
        self.leased = false;
        self
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// What `stat` shows, under the number by which the kernel knows the node; `None` for an absent name.
    pub fn attributes(&self) -> Option<&Attributes> {
        self.attributes.as_ref()
    }

    /// The same, under the inode's own number.
    pub fn own_attributes(&self) -> Option<Attributes> {
        let ino = self.node.as_ref()?.ino;
        Some(Attributes { ino, ..self.attributes.clone()? })
    }
}

/// How long the kernel may keep what it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The name.
    pub entry: Duration,
    /// The attributes.
    pub attributes: Duration,
}

/// What the kernel must forget before an event is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Clear {
    pub(crate) attributes: Vec<Arc<Node>>,
    pub(crate) listings: Vec<u64>,
    pub(crate) entries: Clearing,
    /// Directories of which everything is to be told.
    pub(crate) births: Vec<InodeId>,
}

/// This mount is changing names: until the kernel has its answer it may keep what it had under them.
#[derive(Debug)]
pub struct Changing(Vec<Place>);

impl Drop for Changing {
    fn drop(&mut self) {
        for Place { directory, name } in &self.0 {
            directory.state.lock().entries.end_change(name);
        }
    }
}

/// How the kernel is made to forget a name.
///
/// What it throws away has no path any more, nor has a process whose current directory it is (getcwd fails until somebody
/// looks the name up), and what is mounted inside goes. So directories are left to it, which are looked up with their next use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgetting {
    /// It looks the name up with the next use. An answer about a name that it had, and is looking up again, undoes this.
    LookUp,
    /// It throws it away.
    Drop,
    /// It looks this and every other name up with the next use, whatever answers are under way.
    LookUpAll,
}

/// Names that the kernel is made to forget. Until that is over, whatever else makes them old waits for it by clearing them, too.
#[derive(Debug, Default)]
pub(crate) struct Clearing(Vec<(Place, Forgetting)>);

impl Clearing {
    /// While no event is taken in, for a name that the kernel may keep.
    pub(crate) fn add(&mut self, place: Place, how: Forgetting) {
        place.directory.state.lock().entries.begin_clear(place.name.clone());
        self.0.push((place, how));
    }

    pub(crate) fn places(&self) -> &[(Place, Forgetting)] {
        &self.0
    }
}

impl Drop for Clearing {
    fn drop(&mut self) {
        for (Place { directory, name }, _) in &self.0 {
            directory.state.lock().entries.end_clear(name);
        }
    }
}

/// The right to tell the kernel what it may keep: while this lives no event is taken in.
#[derive(Debug)]
pub struct Telling<'a> {
    pub(super) vfs: &'a Vfs,
    leases: MutexGuard<'a, Leases>,
    now: Instant,
    believed: Duration,
}

impl Vfs {
    /// See [`Telling`]. Not to be kept across anything that waits.
    pub fn telling(&self) -> Telling<'_> {
        let leases = self.leases.lock();
        let now = Instant::now();
        // Without a way to clear the kernel's caches it is to keep nothing.
        let believed = if self.kernel.get().is_some() { leases.believed_for(now) } else { Duration::ZERO };
        Telling { vfs: self, leases, now, believed }
    }

    /// Notes that each name in its parent is about to be changed by this mount, until the result is dropped: the first goes, or
    /// becomes the second.
    pub fn changing(&self, names: &[(u64, &[u8])]) -> Changing {
        let place = |(parent, name): &(u64, &[u8])| Some(Place { directory: self.nodes.get(*parent)?, name: Name::new(name).ok()? });
        let places: Vec<Place> = names.iter().filter_map(place).collect();
        let moved = places.first().and_then(|from| from.directory.state.lock().entries.get(&from.name)).flatten();
        for Place { directory, name } in &places {
            directory.state.lock().entries.begin_change(name.clone(), moved);
        }
        Changing(places)
    }

    /// Asks the directory service; the answer comes with what it grants.
    pub(crate) async fn ask<O: Operation>(&self, operation: &O) -> (Result<O::Reply>, Stamp) {
        let claim = self.leases.lock().claim();
        let (result, granted) = self.cluster.directory.call_leased(operation).await;
        (result, Stamp::of(claim, granted))
    }

    /// As [`Vfs::ask`], with the answer in the form for programs.
    pub(crate) async fn ask_packed<O: Packed>(&self, operation: &O) -> (Result<O::Reply>, Stamp) {
        let claim = self.leases.lock().claim();
        let (result, granted) = self.cluster.directory.call_leased_packed(operation).await;
        (result, Stamp::of(claim, granted))
    }

    /// As [`Vfs::ask`], for the attributes of `ino`, with its servers' addresses known afterwards.
    pub(crate) async fn ask_entry(&self, ino: InodeId) -> (Result<Entry>, Stamp) {
        if let Some(node) = self.nodes.current(ino)
            && let Err(e) = self.give_birth(&node).await
        {
            return (Err(e), Stamp::default());
        }
        match self.ask(&GetAttributes { ino }).await {
            (Ok(entry), stamp) => (self.cluster.learn(&entry).await.map(|()| entry), stamp),
            failed => failed,
        }
    }

    /// Changes something at the directory service. Where the session has expired, it was not changed, and is under a new session.
    pub(crate) async fn mutate<O: Operation>(&self, operation: &O) -> (Result<O::Reply>, Stamp) {
        let session = self.cluster.id();
        match self.ask(operation).await {
            (Err(e), _) if e.kind() == ErrorKind::SessionExpired => match self.reopen_session(session).await {
                Ok(()) => self.ask(operation).await,
                Err(e) => (Err(e), Stamp::default()),
            },
            other => other,
        }
    }

    /// Takes in events, as if nobody had been told what they concern; returns what the kernel must forget.
    pub(crate) fn take_in(&self, events: &[Event]) -> Clear {
        let mut clear = Clear::default();
        let mut telling = self.telling();
        for event in events {
            telling.leases.changed(event.number, event.ino, event.name.clone());
            telling.forget(event.ino, event.name.as_ref(), event.over, &mut clear);
            if self.nursery.end(event.ino) {
                clear.births.push(event.ino);
            }
        }
        clear
    }

    /// The first step of a claim: what is leased, and from here on nothing more is.
    pub(crate) fn begin_claim(&self) -> Vec<InodeId> {
        self.leases.lock().pause();
        self.nursery.end_all();
        let leased = |node: &Arc<Node>| {
            let state = node.state.lock();
            (state.leased || state.entries.is_leased()).then_some(node.ino)
        };
        self.nodes.all().iter().filter_map(leased).collect()
    }

    /// The last step of a claim, as of `event`: of `held`, `lost` is over, and so is everything else.
    pub(crate) fn end_claim(&self, event: u64, held: &[InodeId], lost: &[InodeId]) -> Clear {
        let kept: std::collections::HashSet<InodeId> = held.iter().copied().collect();
        let lost: std::collections::HashSet<InodeId> = lost.iter().copied().collect();
        let mut clear = Clear::default();
        let mut telling = self.telling();
        telling.leases.claimed(event);
        self.nursery.end_all();
        for node in self.nodes.all() {
            node.state.lock().renumber();
            if !kept.contains(&node.ino) || lost.contains(&node.ino) {
                telling.forget(node.ino, None, true, &mut clear);
            }
        }
        clear
    }
}

impl Telling<'_> {
    /// Whether what is leased may be answered from.
    pub(crate) fn believes(&self) -> bool {
        !self.believed.is_zero()
    }

    /// How long the kernel may keep names at the most.
    fn names_believed(&self) -> Duration {
        if self.vfs.kernel_forgets.load(Ordering::Relaxed) { self.believed } else { self.believed.min(UNFORGETTING) }
    }

    /// The name as it is known here, if it is leased, with one more reference to where it leads.
    pub(crate) fn known(&self, place: &Place) -> Option<Told> {
        if !self.believes() {
            return None;
        }
        let leads_to = place.directory.state.lock().entries.get(&place.name)?;
        let node = match leads_to {
            Some(ino) => Some(self.vfs.nodes.refer(ino)?),
            None => None,
        };
        Some(self.told(node, self.leases.cached(true), Some(place.clone())))
    }

    /// The attributes of `node` as they are known here, if they are leased.
    pub(crate) fn known_attributes(&self, node: &Arc<Node>) -> Option<Told> {
        let leased = node.state.lock().leased && self.believes();
        leased.then(|| self.told(Some(node.clone()), self.leases.cached(true), None))
    }

    /// The same with where the content is.
    pub(crate) fn known_entry(&self, node: &Node) -> Option<Entry> {
        let state = node.state.lock();
        (state.leased && self.believes()).then(|| state.entry.clone())
    }

    /// What is known of `node`, to be kept by nobody.
    pub(crate) fn unleased(&self, node: &Arc<Node>) -> Told {
        self.told(Some(node.clone()), Stamp::default(), None)
    }

    fn told(&self, node: Option<Arc<Node>>, stamp: Stamp, place: Option<Place>) -> Told {
        let (attributes, leased) = match &node {
            Some(node) => {
                let state = node.state.lock();
                let mut attributes = state.attributes(node.id);
                self.vfs.accesses.show(node.ino, &mut attributes);
                (Some(attributes), state.leased)
            }
            None => (None, false),
        };
        Told { attributes, leased, node, stamp, place, is_new: false }
    }

    /// Takes over what an answer said of `node`.
    pub(crate) fn hear(&self, node: &Node, entry: Entry, stamp: &Stamp) {
        let leased = self.leases.covers(stamp, node.ino);
        node.state.lock().hear(&entry, self.leases.number(stamp), leased);
    }

    /// The same, of attributes alone.
    pub(crate) fn hear_attributes(&self, node: &Node, attributes: Attributes, stamp: &Stamp) {
        let layout = node.state.lock().entry.layout.clone();
        self.hear(node, Entry { attributes, layout }, stamp);
    }

    /// An extended attribute as an answer said it; kept as long as the attributes are leased.
    pub(crate) fn hear_xattr(&self, node: &Node, name: Name, value: Option<Vec<u8>>, stamp: &Stamp) {
        let mut state = node.state.lock();
        if state.leased && self.leases.covers(stamp, node.ino) && state.xattrs.len() < XATTRS_MAX {
            state.xattrs.insert(name, value);
        }
    }

    /// What an answer to GETATTR says: heard, told.
    pub(crate) fn answered(&self, node: &Arc<Node>, entry: Entry, stamp: Stamp) -> Told {
        {
            let leased = self.leases.covers(&stamp, node.ino);
            let mut state = node.state.lock();
            state.hear(&entry, self.leases.number(&stamp), leased);
            state.is_told();
        }
        self.told(Some(node.clone()), stamp, None)
    }

    /// Registers an inode that the kernel is about to be told of once more, and by which name.
    pub(crate) fn introduce(&self, entry: &Entry, stamp: &Stamp, place: Option<Place>) -> Told {
        let leased = self.leases.covers(stamp, entry.attributes.ino);
        let node = self.vfs.nodes.introduce(entry, self.leases.number(stamp), leased);
        if let Some(Place { directory, name }) = &place {
            node.state.lock().add_place(directory.ino, name);
        }
        self.lease_directory(place.as_ref(), stamp);
        self.told(Some(node), stamp.clone(), place)
    }

    /// An answer says that the name is absent.
    pub(crate) fn absent(&self, place: Place, stamp: Stamp) -> Told {
        self.lease_directory(Some(&place), &stamp);
        self.told(None, stamp, Some(place))
    }

    fn lease_directory(&self, place: Option<&Place>, stamp: &Stamp) {
        if let Some(Place { directory, .. }) = place
            && self.leases.covers_directory(stamp, directory.ino)
        {
            directory.state.lock().entries.lease();
        }
    }

    /// Whether the answer with this stamp gives `directory` to this mount alone.
    pub(crate) fn is_exclusive(&self, stamp: &Stamp, directory: InodeId) -> bool {
        self.leases.is_exclusive(stamp, directory)
    }

    /// This mount has made `entry` at `place`, where it alone may, and the service has not been told.
    pub(crate) fn made_here(&self, place: &Place, entry: &Entry, at: Timestamp) -> Told {
        let Place { directory, name } = place;
        {
            let mut state = directory.state.lock();
            let attributes = &mut state.entry.attributes;
            (attributes.mtime, attributes.ctime) = (attributes.mtime.max(at), attributes.ctime.max(at));
            state.entries.gone(name);
            state.entries.learn(name, Some(entry.attributes.ino), self.now, Duration::ZERO);
        }
        self.vfs.walks.forget(directory.ino);
        self.introduce(entry, &self.leases.cached(true), Some(place.clone()))
    }

    /// The service was told of what [`Telling::made_here`] made at `place`; `agreed`: the directory's attributes are what they are here.
    pub(crate) fn told_of(&mut self, place: &Place, agreed: bool, stamp: &Stamp) {
        let Place { directory, name } = place;
        let number = self.leases.number(stamp);
        if let Some(number) = number {
            self.leases.changed(number, directory.ino, Some(name.clone()));
        }
        let mut state = directory.state.lock();
        match number.filter(|_| agreed) {
            // Answers from before are older than what is known.
            Some(number) => state.is_as_of(number),
            None => state.unlease(),
        }
    }

    /// Whether nothing of `ino` has changed since an answer that has this stamp.
    pub(crate) fn still_holds(&self, stamp: &Stamp, ino: InodeId) -> bool {
        self.believes() && self.leases.covers(stamp, ino)
    }

    /// A listing of `directory` has come; the kernel may keep it only if nothing has changed since.
    pub(crate) fn listed(&self, directory: &Node, stamp: &Stamp) {
        let mut state = directory.state.lock();
        if self.leases.covers_directory(stamp, directory.ino) {
            state.entries.lease();
        }
        if !self.leases.covers(stamp, directory.ino) {
            state.entries.listing_kept = false;
        }
    }

    /// This mount has changed attributes of `node`.
    pub(crate) fn changed(&mut self, node: &Node, stamp: &Stamp) {
        match self.leases.number(stamp) {
            Some(number) => self.leases.changed(number, node.ino, None),
            None => node.state.lock().unlease(),
        }
    }

    /// This mount has changed where `place` leads: to `leads_to` now, or nowhere. With `moved` the kernel keeps under that
    /// name what it kept under another. False where that is not leased.
    pub(crate) fn changed_entry(&mut self, place: &Place, leads_to: Option<InodeId>, moved: bool, stamp: &Stamp) -> bool {
        let Place { directory, name } = place;
        if let Some(number) = self.leases.number(stamp) {
            self.leases.changed(number, directory.ino, Some(name.clone()));
        }
        self.vfs.walks.forget(directory.ino);
        let holds = self.leases.covers_entry(stamp, directory.ino, name);
        let mut state = directory.state.lock();
        state.unlease();
        if !holds {
            state.entries.changes(name, self.now);
            return false;
        }
        state.entries.gone(name);
        // No name is ever kept for longer than leases are believed.
        let kept = if moved { self.names_believed() } else { Duration::ZERO };
        state.entries.learn(name, leads_to, self.now, kept);
        true
    }

    /// How long the kernel may keep `told`; from here on it counts as told.
    pub fn keep(&self, told: &Told) -> Keep {
        let mut keep = Keep::default();
        if !self.believes() {
            return keep;
        }
        if told.leased
            && let Some(node) = &told.node
            // A name leads to a node by a number that need not be the inode's: that is heard with the attributes alone.
            && (told.place.is_none() || node.id == node.ino.0)
            && self.leases.covers(&told.stamp, node.ino)
        {
            let mut state = node.state.lock();
            // What is written here changes without a word to anybody.
            if state.writers == u32::from(told.is_new) {
                let kind = state.entry.attributes.kind;
                keep.attributes = state.kernel.keep_for(kind, self.believed.min(self.vfs.settings.attr_ttl), self.now);
            }
        }
        if let Some(Place { directory, name }) = &told.place
            && self.leases.covers_entry(&told.stamp, directory.ino, name)
            && !told.node.as_ref().is_some_and(|node| node.is_open_unleased())
        {
            let wanted = self.names_believed().min(self.vfs.settings.entry_ttl);
            let mut state = directory.state.lock();
            let kept = state.entries.keep_for(wanted, self.now);
            let ino = told.node.as_ref().map(|n| n.ino);
            keep.entry = if state.entries.learn(name, ino, self.now, kept) { kept } else { Duration::ZERO };
            drop(state);
            if let Some(node) = &told.node {
                node.state.lock().add_place(directory.ino, name);
            }
        }
        keep
    }

    /// The names by which the kernel may come to `node` and that it keeps; from here on it is not to.
    fn uncover(&self, node: &Node, clearing: &mut Clearing) {
        for place in self.places(node) {
            let is_kept = place.directory.state.lock().entries.uncover(&place.name, self.now);
            if is_kept {
                // Only files are open.
                clearing.add(place, Forgetting::Drop);
            }
        }
    }

    /// The names by which the kernel may come to `node`, whether it keeps them or not.
    pub(crate) fn places(&self, node: &Node) -> Vec<Place> {
        let places = node.state.lock().places.clone();
        let place = |(directory, name)| Some(Place { directory: self.vfs.nodes.current(directory)?, name });
        places.into_iter().filter_map(place).collect()
    }

    /// The kernel may be taking in `node` just now, under these names. True for a directory.
    pub(crate) fn clear_places(&self, node: &Node, clearing: &mut Clearing) -> bool {
        let is_directory = node.is_directory();
        let how = if is_directory { Forgetting::LookUp } else { Forgetting::Drop };
        self.places(node).into_iter().for_each(|place| clearing.add(place, how));
        is_directory
    }

    /// The names that must not lead to `node`, because it is open and nobody will tell of a newer version.
    pub(crate) fn unleased_places(&self, node: &Node) -> Clearing {
        let mut clearing = Clearing::default();
        if node.is_open_unleased() {
            self.uncover(node, &mut clearing);
        }
        clearing
    }

    /// How the kernel is made to forget a name that leads to `ino`, which it was told last at `told`.
    fn forgetting(&self, ino: InodeId, told: Instant) -> Forgetting {
        let is_directory = self.vfs.nodes.current(ino).is_some_and(|node| node.is_directory());
        match self.now.saturating_duration_since(told) >= SETTLES {
            true if is_directory => Forgetting::LookUp,
            false if is_directory && self.vfs.kernel_forgets.load(Ordering::Relaxed) => Forgetting::LookUpAll,
            _ => Forgetting::Drop,
        }
    }

    /// Nobody was told what an event, or the end of a lease, concerns.
    fn forget(&self, ino: InodeId, name: Option<&Name>, over: bool, clear: &mut Clear) {
        for node in self.vfs.nodes.all_of(ino) {
            // An open that is under way may have the old version.
            let is_opening = node.is_opening();
            let mut state = node.state.lock();
            state.unlease();
            let (mut names, mut is_overtaken): (Vec<(Name, Kept)>, _) = (Vec::new(), false);
            match name {
                Some(name) => {
                    clear.listings.push(node.id);
                    names.extend(state.entries.changes(name, self.now).into_iter().map(|kept| (name.clone(), kept)));
                }
                None if over && state.entries.is_leased() => {
                    clear.listings.push(node.id);
                    names = state.entries.over(self.now);
                }
                // A newer version gets a node of its own: names must no longer lead to this one.
                None => is_overtaken = (state.opens > 0 || is_opening) && state.writers == 0,
            }
            let is_kept = state.kernel.forgets(self.now);
            drop(state);
            for (name, kept) in names {
                let how = kept.leads_to.map_or(Forgetting::LookUp, |ino| self.forgetting(ino, kept.told));
                clear.entries.add(Place { directory: node.clone(), name }, how);
            }
            if is_overtaken {
                self.uncover(&node, &mut clear.entries);
            }
            if is_kept {
                clear.attributes.push(node);
            }
        }
    }
}
