//! Several owners that make files before they tell of them, between reads of everybody
//! else: what has been made once, everybody sees from then on.

use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::coherent::next;
use super::events::Mount;
use super::exclusive::{birth, directory, make};
use super::*;

const OWNERS: usize = 3;
const ROUNDS: u64 = 120;
/// Directories that are in use at a time: the newest ones.
const RECENT: usize = 4;

/// What is so, whether the service knows it or not.
#[derive(Debug, Default)]
struct Truth {
    directories: Vec<InodeId>,
    files: BTreeSet<(InodeId, String)>,
    /// When a directory was changed last, as far as anybody knows.
    times: HashMap<InodeId, Timestamp>,
    /// Files that were made before the service heard of them.
    births: u64,
}

/// What an owner has to itself.
#[derive(Debug, Default)]
struct Owned {
    /// Numbers that are left in each directory.
    alone: HashMap<InodeId, (Reservation, u64)>,
    untold: Vec<Make>,
    /// The number of the last event of each directory.
    events: HashMap<InodeId, u64>,
}

struct Owner {
    mount: Mount,
    owned: Arc<Mutex<Owned>>,
}

async fn tell(mount: &Mount, owned: &Mutex<Owned>, births: Vec<Make>) {
    for make in births {
        let ino = make.birth.unwrap().ino;
        let told = if ino.0.is_multiple_of(2) {
            mount.leased(&make).await.0.map(|_| ())
        } else {
            let publish = Publish { make: Some(make.clone()), ..mount.client.version(ino, 0, &[ServerId(1)]) };
            mount.leased(&publish).await.0.map(|_| ())
        };
        told.unwrap();
        // Only now: who looks meanwhile tells of it once more.
        owned.lock().untold.retain(|untold| untold.birth != make.birth);
    }
}

impl Owner {
    /// `tells`: of what it has made in a directory, before it acknowledges an event of that.
    async fn new(directory: &Arc<Directory>, tells: bool) -> Self {
        let mount = Mount::new(directory).await;
        let mut listener = Mount { client: Client { session: mount.client.session, ..mount.client.other() }, seen: mount.seen };
        let owned = Arc::new(Mutex::new(Owned::default()));
        let heard = owned.clone();
        tokio::spawn(async move {
            loop {
                for event in listener.events().await {
                    let births = {
                        let mut owned = heard.lock();
                        owned.alone.remove(&event.ino);
                        owned.events.insert(event.ino, event.number);
                        owned.untold.iter().filter(|make| make.parent == event.ino).cloned().collect()
                    };
                    if tells {
                        tell(&listener, &heard, births).await;
                    }
                }
            }
        });
        Self { mount, owned }
    }

    /// Makes something by asking the service.
    async fn make(&self, truth: &Mutex<Truth>, parent: InodeId, text: String, kind: FileKind) {
        let (made, granted) = self.mount.leased(&make(parent, &text, kind, 4)).await;
        let (made, granted) = (made.unwrap(), granted.unwrap());
        let mut owned = self.owned.lock();
        // An event that came after this answer was made has overtaken it.
        let is_over = |ino: &InodeId| owned.events.get(ino).is_some_and(|number| *number > granted.event);
        if let Some(ino) = granted.exclusive.filter(|ino| !is_over(ino)) {
            owned.alone.insert(ino, (made.reserved.unwrap(), 0));
        }
        let mut truth = truth.lock();
        match kind {
            FileKind::Directory => truth.directories.push(made.entry.attributes.ino),
            _ => drop(truth.files.insert((parent, text))),
        }
    }

    /// Makes a file where it may without asking.
    fn give_birth(&self, truth: &Mutex<Truth>, parent: InodeId, text: &str) -> bool {
        let mut owned = self.owned.lock();
        let Some((reserved, used)) = owned.alone.get_mut(&parent).filter(|(reserved, used)| *used < reserved.placements.len() as u64) else {
            return false;
        };
        let make = birth(parent, text, reserved, *used);
        *used += 1;
        owned.untold.push(make);
        let mut truth = truth.lock();
        truth.births += 1;
        // The service will be told of it later, and takes that for its time.
        truth.times.insert(parent, Timestamp::from_system_time(SystemTime::now()));
        truth.files.insert((parent, text.to_owned()))
    }

    async fn step(&self, truth: &Mutex<Truth>, what: u64, parent: InodeId, text: String) {
        match what % 8 {
            0 => self.make(truth, ROOT, text, FileKind::Directory).await,
            1 => {
                let births = self.owned.lock().untold.clone();
                tell(&self.mount, &self.owned, births).await;
            }
            _ if self.give_birth(truth, parent, &text) => {}
            _ => self.make(truth, parent, text, FileKind::File).await,
        }
    }
}

/// Reads in one of several ways, and finds all that was there when it began.
async fn read(reader: &Client, truth: &Mutex<Truth>, what: u64, parent: InodeId, seed: u64) {
    let (files, time): (Vec<String>, _) = {
        let truth = truth.lock();
        let files = truth.files.iter().filter(|file| file.0 == parent).map(|file| file.1.clone()).collect();
        (files, truth.times.get(&parent).copied())
    };
    let told = |time: Timestamp| {
        let mut truth = truth.lock();
        let latest = truth.times.entry(parent).or_insert(time);
        *latest = time.max(*latest);
    };
    match what % 4 {
        0 => {
            let page = reader.call(&List { ino: parent, after: None, limit: List::MAX_LIMIT }).await.unwrap();
            let listed: BTreeSet<String> = page.entries.iter().map(|row| row.name.to_string()).collect();
            let lost: Vec<_> = files.iter().filter(|file| !listed.contains(*file)).collect();
            assert!(lost.is_empty(), "seed {seed}: hidden: {lost:?} in {parent}");
        }
        1 => {
            if let Some(file) = files.last() {
                reader.lookup(parent, file).await.unwrap_or_else(|e| panic!("seed {seed}: hidden: '{file}' in {parent}: {e}"));
            }
        }
        2 => {
            let mtime = reader.attributes(parent).await.unwrap().attributes.mtime;
            assert!(time.is_none_or(|time| mtime >= time), "seed {seed}: hidden: the time {time:?} of {parent} behind {mtime:?}");
            told(mtime);
        }
        _ => {
            let page = reader.call(&List { ino: ROOT, after: None, limit: List::MAX_LIMIT }).await.unwrap();
            let row = page.entries.iter().find(|row| row.entry.attributes.ino == parent).expect("it was made");
            let mtime = row.entry.attributes.mtime;
            assert!(time.is_none_or(|time| mtime >= time), "seed {seed}: hidden: the time {time:?} of {parent} behind {mtime:?}");
            told(mtime);
        }
    }
}

async fn run(seed: u64, tells: bool) {
    let directory = directory().await;
    let mut state = seed;
    let mut owners = Vec::new();
    for _ in 0..OWNERS {
        owners.push(Owner::new(&directory, tells).await);
    }
    // Makes nothing, and acknowledges what it is told.
    let holder = Owner::new(&directory, tells).await;
    let nobody = holder.mount.client.other();
    let truth = Mutex::new(Truth::default());
    owners[0].make(&truth, ROOT, "first".to_owned(), FileKind::Directory).await;
    for round in 0..ROUNDS {
        let directories = truth.lock().directories.clone();
        let recent = &directories[directories.len().saturating_sub(RECENT)..];
        let mut any = || (next(&mut state), recent[next(&mut state) as usize % recent.len()]);
        let steps: Vec<_> = (0..OWNERS * 2).map(|n| (n, any())).collect();
        let (what, parent) = any();
        // A mount's lease on a directory stays, and nobody has that to itself any more: it reads less often.
        let reader = if round % 16 == 1 { &holder.mount.client } else { &nobody };
        let steps = steps.into_iter().map(|(n, (what, parent))| owners[n % OWNERS].step(&truth, what, parent, format!("{round}-{n}")));
        let reads = async {
            if round % 2 == 1 {
                read(reader, &truth, what, parent, seed).await;
            }
        };
        let all = futures_util::future::join(futures_util::future::join_all(steps), reads);
        tokio::time::timeout(Duration::from_secs(20), all).await.unwrap_or_else(|_| panic!("seed {seed}: it hangs"));
    }
    let events = nobody.status().await.events;
    let births = truth.lock().births;
    assert!(births > ROUNDS / 4 && events > ROUNDS / 4, "seed {seed}: only {births} births and {events} events");
}

#[tokio::test(start_paused = true)]
async fn what_was_made_is_seen_by_everybody_from_then_on() {
    for seed in 1..=6 {
        run(seed, true).await;
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "hidden")]
async fn an_owner_that_does_not_tell_is_found_out() {
    run(1, false).await;
}
