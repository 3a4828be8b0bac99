//! Several mounts that keep what they are told, acknowledge events in tasks of their own,
//! and change the same few names at the same time: whenever everything has returned,
//! nobody believes anything that is not so.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

use super::super::state::Leased;
use super::events::{Mount, chmod, directory};
use super::*;

const MOUNTS: usize = 3;
const NAMES: [&str; 3] = ["a", "b", "c"];
const ROUNDS: usize = 150;

/// What a client believes: attributes, and where the names of a directory lead, each with its answer's number.
#[derive(Debug, Default)]
struct Beliefs {
    inodes: HashMap<InodeId, (u64, Attributes)>,
    names: BTreeMap<(InodeId, Name), (u64, Option<InodeId>)>,
    events: Vec<Event>,
}

impl Beliefs {
    fn event(&mut self, event: Event) {
        self.inodes.remove(&event.ino);
        if let Some(name) = &event.name {
            self.names.remove(&(event.ino, name.clone()));
        } else if event.over {
            self.names.retain(|key, _| key.0 != event.ino);
        }
        self.events.push(event);
    }

    /// Whether an answer as of `number` is older than an event on `ino` (and `name`).
    fn is_old(&self, ino: InodeId, name: Option<&Name>, number: u64) -> bool {
        let concerns = |e: &Event| e.ino == ino && (name.is_none() || e.name.is_none() && e.over || e.name.as_ref() == name);
        self.events.iter().any(|e| e.number > number && concerns(e))
    }

    fn learn(&mut self, granted: &Granted, attributes: &Attributes) {
        let ino = attributes.ino;
        let known = self.inodes.get(&ino).is_some_and(|known| known.0 > granted.event);
        if !known && !granted.except.contains(&ino) && attributes.nlink > 0 && !self.is_old(ino, None, granted.event) {
            self.inodes.insert(ino, (granted.event, attributes.clone()));
        }
    }

    fn learn_name(&mut self, granted: &Granted, at: (InodeId, Name), to: Option<InodeId>) {
        let known = self.names.get(&at).is_some_and(|known| known.0 > granted.event);
        if !known && !granted.except.contains(&at.0) && !self.is_old(at.0, Some(&at.1), granted.event) {
            self.names.insert(at, (granted.event, to));
        }
    }

    /// Forgets what an own change made old, before it is told what is true now.
    fn changed(&mut self, inodes: &[InodeId], names: &[(InodeId, Name)], number: u64) {
        self.inodes.retain(|ino, known| known.0 > number || !inodes.contains(ino));
        self.names.retain(|at, known| known.0 > number || !names.contains(at));
    }
}

struct Believer {
    mount: Mount,
    beliefs: Arc<Mutex<Beliefs>>,
}

impl Believer {
    async fn new(directory: &Arc<Directory>) -> Self {
        let mount = Mount::new(directory).await;
        let mut listener = Mount { client: Client { session: mount.client.session, ..mount.client.other() }, seen: mount.seen };
        let beliefs = Arc::new(Mutex::new(Beliefs::default()));
        let heard = beliefs.clone();
        tokio::spawn(async move {
            loop {
                for event in listener.events().await {
                    heard.lock().event(event);
                }
            }
        });
        Self { mount, beliefs }
    }

    async fn ask<O: Leased>(&self, operation: &O) -> Option<(O::Reply, Granted)> {
        match self.mount.leased(operation).await {
            (Ok(reply), granted) => Some((reply, granted.unwrap())),
            (Err(_), _) => None,
        }
    }

    async fn lookup(&self, parent: InodeId, name: Name) {
        let (answer, granted) = self.mount.leased(&Lookup { parent, name: name.clone() }).await;
        let (mut beliefs, granted) = (self.beliefs.lock(), granted.unwrap());
        if granted.nothing {
            return;
        }
        beliefs.learn_name(&granted, (parent, name), answer.as_ref().ok().map(|entry| entry.attributes.ino));
        if let Ok(entry) = answer {
            beliefs.learn(&granted, &entry.attributes);
        }
    }

    async fn step(&self, what: u64, parent: InodeId, name: Name, other: (InodeId, Name)) {
        let at = (parent, name.clone());
        match what % 7 {
            0 | 1 => self.lookup(parent, name).await,
            2 => {
                let kind = if what & 64 == 0 { FileKind::File } else { FileKind::Directory };
                let make = Make::new(parent, name, kind, 0o755);
                let Some((made, granted)) = self.ask(&make).await else { return };
                let mut beliefs = self.beliefs.lock();
                beliefs.changed(&[parent], std::slice::from_ref(&at), granted.event);
                beliefs.learn(&granted, &made.directory);
                beliefs.learn(&granted, &made.entry.attributes);
                beliefs.learn_name(&granted, at, Some(made.entry.attributes.ino));
            }
            3 => {
                let Some((removed, granted)) = self.ask(&Remove { parent, name, directory: what & 64 == 0 }).await else { return };
                let mut beliefs = self.beliefs.lock();
                beliefs.changed(&[parent, removed.entry.attributes.ino], std::slice::from_ref(&at), granted.event);
                beliefs.learn(&granted, &removed.directory);
                beliefs.learn(&granted, &removed.entry.attributes);
                beliefs.learn_name(&granted, at, None);
            }
            4 => {
                let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][(what >> 8) as usize % 3];
                let rename = Rename { parent, name, new_parent: other.0, new_name: other.1.clone(), mode };
                let Some((renamed, granted)) = self.ask(&rename).await else { return };
                let replaced = renamed.replaced.iter().map(|entry| entry.attributes.clone());
                let all: Vec<Attributes> = [renamed.entry.attributes, renamed.directory, renamed.new_directory].into_iter().chain(replaced).collect();
                let mut beliefs = self.beliefs.lock();
                let inodes: Vec<InodeId> = all.iter().map(|attributes| attributes.ino).collect();
                beliefs.changed(&inodes, &[at, other], granted.event);
                all.iter().for_each(|attributes| beliefs.learn(&granted, attributes));
            }
            _ => {
                let Ok(entry) = self.mount.client.other().lookup(parent, &name.to_string()).await else { return };
                let ino = entry.attributes.ino;
                if what % 7 == 5 {
                    let Some((entry, granted)) = self.ask(&GetAttributes { ino }).await else { return };
                    self.beliefs.lock().learn(&granted, &entry.attributes);
                } else {
                    let Some((entry, granted)) = self.ask(&chmod(ino, (what >> 8) as u32 & 0o777)).await else { return };
                    let mut beliefs = self.beliefs.lock();
                    beliefs.changed(&[ino], &[], granted.event);
                    beliefs.learn(&granted, &entry.attributes);
                }
            }
        }
    }

    /// Everything that it believes is so. Returns how much that was.
    async fn check(&self, nobody: &Client, seed: u64) -> usize {
        let (inodes, names) = {
            let beliefs = self.beliefs.lock();
            (beliefs.inodes.clone(), beliefs.names.clone())
        };
        let count = inodes.len() + names.len();
        for (ino, (number, believed)) in inodes {
            let is = nobody.attributes(ino).await.map(|entry| entry.attributes);
            assert_eq!(is.as_ref().ok(), Some(&believed), "seed {seed}: inode {ino} as of {number}");
        }
        for ((parent, name), (number, believed)) in names {
            let is = nobody.lookup(parent, &name.to_string()).await.ok().map(|entry| entry.attributes.ino);
            assert_eq!(is, believed, "seed {seed}: '{name}' in {parent} as of {number}");
        }
        count
    }
}

pub(super) fn next(state: &mut u64) -> u64 {
    // Knuth's MMIX generator; the high bits are the good ones.
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

async fn run(directory: Arc<Directory>, seed: u64) -> usize {
    let mut state = seed;
    let mut believers = Vec::new();
    for _ in 0..MOUNTS {
        believers.push(Believer::new(&directory).await);
    }
    let nobody = believers[0].mount.client.other();
    let places = [ROOT, nobody.dir(ROOT, "d").await];
    let mut believed = 0;
    for _ in 0..ROUNDS {
        let steps: Vec<_> = (0..MOUNTS * 2)
            .map(|n| {
                let mut place = || (places[next(&mut state) as usize % 2], name(NAMES[next(&mut state) as usize % 3]));
                let (at, other) = (place(), place());
                believers[n % MOUNTS].step(next(&mut state), at.0, at.1, other)
            })
            .collect();
        let all = futures_util::future::join_all(steps);
        tokio::time::timeout(Duration::from_secs(20), all).await.unwrap_or_else(|_| panic!("seed {seed}: it hangs"));
        for believer in &believers {
            believed += believer.check(&nobody, seed).await;
        }
    }
    believed
}

#[tokio::test(start_paused = true)]
async fn nobody_believes_what_is_not_so() {
    for seed in 1..=4 {
        let believed = run(directory(), seed).await;
        assert!(believed > ROUNDS, "seed {seed}: only {believed} beliefs were compared");
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "as of")]
async fn without_invalidation_somebody_does() {
    run(Directory::open(Config { invalidate: false, ..config() }, Arc::new(MemoryStore::default())).unwrap(), 1).await;
}
