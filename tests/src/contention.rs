//! Writers that contend for few files, and the checker of what came of it: one holder at a
//! time, first come first served, and every acknowledged close in the file, in order, once.
//!
//! Each writer opens a file, reads it, adds one line of its own, and closes it. So the file
//! itself is the history, and a lost or doubled update shows as a line.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{Ending, Rng, sys};

/// One attempt to add a line, with times since the start.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Who.
    pub client: usize,
    /// Which file.
    pub file: usize,
    /// Its line, different in each attempt.
    pub line: String,
    /// open(2) was called.
    pub asked: Duration,
    /// It returned; `None`: with an error.
    pub opened: Option<Duration>,
    /// close(2) was called.
    pub closing: Option<Duration>,
    /// It returned without an error, and so did everything before it.
    pub acknowledged: bool,
}

/// When somebody was disturbed: whoever waited or asked meanwhile may have lost its place.
#[derive(Clone, Copy, Debug)]
pub struct Disturbance {
    /// A client, or everybody.
    pub client: Option<usize>,
    /// From when.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
}

/// A run under way.
#[derive(Debug)]
pub struct Contention {
    start: Instant,
    attempts: Mutex<Vec<Attempt>>,
    disturbances: Mutex<Vec<Disturbance>>,
    stop: AtomicBool,
}

/// The name of file `n`.
pub fn name(file: usize) -> String {
    format!("contended-{file}")
}

impl Contention {
    /// Makes the files below `root`.
    pub fn new(root: &Path, files: usize) -> Self {
        for file in 0..files {
            std::fs::write(root.join(name(file)), "").unwrap_or_else(|e| panic!("{}: {e}", root.display()));
        }
        Self { start: Instant::now(), attempts: Mutex::default(), disturbances: Mutex::default(), stop: AtomicBool::new(false) }
    }

    /// Lets `clients` write below their roots while `faults` runs; it gets this run, to note what it does.
    pub fn run(&self, clients: &[PathBuf], files: usize, seed: u64, faults: impl FnOnce(&Self)) {
        std::thread::scope(|scope| {
            for (client, root) in clients.iter().enumerate() {
                scope.spawn(move || self.client(client, root, files, Rng::new(seed + client as u64)));
            }
            let _ending = Ending(&self.stop);
            faults(self);
        });
    }

    fn client(&self, client: usize, root: &Path, files: usize, mut rng: Rng) {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let file = rng.below(files as u64) as usize;
            let asked = self.start.elapsed();
            let mut attempt = Attempt { client, file, line: format!("{client}.{number}"), asked, opened: None, closing: None, acknowledged: false };
            let result = self.attempt(&root.join(name(file)), &mut attempt);
            self.attempts.lock().expect("no client panics").push(attempt);
            if result.is_err() {
                // A mount that was killed is away for a moment.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn attempt(&self, path: &Path, attempt: &mut Attempt) -> std::io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        attempt.opened = Some(self.start.elapsed());
        let mut before = String::new();
        let written = file.read_to_string(&mut before).and_then(|_| writeln!(file, "{}", attempt.line));
        attempt.closing = Some(self.start.elapsed());
        // A program that saw a write fail does not count on its close.
        attempt.acknowledged = sys::close(file).is_ok() && written.is_ok();
        written
    }

    /// Notes that `disturb` disturbs a client, or everybody, for as long as it takes.
    pub fn disturbing(&self, client: Option<usize>, disturb: impl FnOnce()) {
        let from = self.start.elapsed();
        disturb();
        self.disturbances.lock().expect("nobody panics").push(Disturbance { client, from, to: self.start.elapsed() });
    }

    /// Every attempt and every disturbance.
    pub fn into_parts(self) -> (Vec<Attempt>, Vec<Disturbance>) {
        (self.attempts.into_inner().expect("no client panics"), self.disturbances.into_inner().expect("nobody panics"))
    }
}

/// What a check came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Closes that were acknowledged.
    pub acknowledged: usize,
    /// Lines of attempts that were not, and are there all the same: published after a crash, or with a lost answer.
    pub others: usize,
    /// Pairs of which the order of asking was compared with that of being served.
    pub compared: usize,
}

/// Checks the attempts on one file against its `content`. Of two that asked more than `margin` apart, undisturbed for
/// `grace` before and while they waited, the first must be served first.
pub fn check(attempts: &[Attempt], disturbances: &[Disturbance], content: &str, margin: Duration, grace: Duration) -> Result<Verdict, String> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (place, line) in content.lines().enumerate() {
        if places.insert(line, place).is_some() {
            return Err(format!("'{line}' stands twice in the file"));
        }
    }
    let known: HashSet<&str> = attempts.iter().map(|a| a.line.as_str()).collect();
    if let Some(strange) = places.keys().find(|line| !known.contains(*line)) {
        return Err(format!("'{strange}' was never written"));
    }
    let mut done: Vec<(usize, &Attempt)> = Vec::new();
    for attempt in attempts.iter().filter(|a| a.acknowledged) {
        let place = places.get(attempt.line.as_str()).ok_or_else(|| format!("{attempt:?} was acknowledged and is lost"))?;
        done.push((*place, attempt));
    }
    done.sort_by_key(|(place, _)| *place);
    for pair in done.windows(2) {
        let (first, second) = (pair[0].1, pair[1].1);
        if first.closing > second.opened {
            return Err(format!("two held the file at the same time: {first:?} and {second:?}"));
        }
    }
    let others = places.len() - done.len();
    let compared = check_order(attempts, disturbances, margin, grace)?;
    Ok(Verdict { acknowledged: done.len(), others, compared })
}

fn check_order(attempts: &[Attempt], disturbances: &[Disturbance], margin: Duration, grace: Duration) -> Result<usize, String> {
    let disturbed = |a: &Attempt, until: Duration| {
        let mine = |d: &&Disturbance| d.client.is_none_or(|client| client == a.client);
        disturbances.iter().filter(mine).any(|d| d.from < until && d.to + grace > a.asked)
    };
    let served: Vec<(&Attempt, Duration)> = attempts.iter().filter_map(|a| a.opened.map(|opened| (a, opened))).collect();
    let mut compared = 0;
    for &(first, first_opened) in &served {
        for &(second, second_opened) in &served {
            if first.client == second.client || first.asked + margin > second.asked || second.asked > first_opened {
                continue;
            }
            if disturbed(first, first_opened) || disturbed(second, second_opened) {
                continue;
            }
            compared += 1;
            if second_opened < first_opened {
                return Err(format!("not first come first served: {first:?} waited longer than {second:?}"));
            }
        }
    }
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn attempt(client: usize, asked: u64, opened: u64, closing: u64) -> Attempt {
        let line = format!("{client}.{asked}");
        Attempt { client, file: 0, line, asked: ms(asked), opened: Some(ms(opened)), closing: Some(ms(closing)), acknowledged: true }
    }

    fn verdict(attempts: &[Attempt], content: &str) -> Result<Verdict, String> {
        check(attempts, &[], content, ms(5), ms(0))
    }

    #[test]
    fn order_and_presence_are_right() {
        let attempts = [attempt(0, 0, 1, 10), attempt(1, 2, 11, 20), attempt(2, 9, 21, 30)];
        let fine = verdict(&attempts, "0.0\n1.2\n2.9\n").unwrap();
        assert_eq!(fine, Verdict { acknowledged: 3, others: 0, compared: 1 });
    }

    #[test]
    fn a_lost_a_doubled_and_an_invented_line_are_found() {
        let attempts = [attempt(0, 0, 1, 10), attempt(1, 2, 11, 20)];
        assert!(verdict(&attempts, "1.2\n").unwrap_err().contains("lost"));
        assert!(verdict(&attempts, "0.0\n1.2\n0.0\n").unwrap_err().contains("twice"));
        assert!(verdict(&attempts, "0.0\n1.2\n9.9\n").unwrap_err().contains("never written"));
    }

    #[test]
    fn two_holders_at_once_and_a_wrong_order_are_found() {
        let both = [attempt(0, 0, 1, 10), attempt(1, 2, 9, 20)];
        assert!(verdict(&both, "0.0\n1.2\n").unwrap_err().contains("same time"));
        let swapped = [attempt(0, 0, 1, 10), attempt(1, 2, 11, 20)];
        assert!(verdict(&swapped, "1.2\n0.0\n").unwrap_err().contains("same time"));
    }

    #[test]
    fn who_asked_later_is_served_later_unless_disturbed() {
        let overtaken = [attempt(0, 0, 40, 41), attempt(1, 10, 20, 30)];
        assert!(verdict(&overtaken, "1.10\n0.0\n").unwrap_err().contains("first come"));
        let stopped = Disturbance { client: Some(0), from: ms(5), to: ms(8) };
        assert_eq!(check(&overtaken, &[stopped], "1.10\n0.0\n", ms(5), ms(0)).unwrap().compared, 0);
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_once() {
        let mut attempts = [attempt(0, 0, 1, 10), attempt(1, 2, 11, 20)];
        attempts[0].acknowledged = false;
        assert_eq!(verdict(&attempts, "0.0\n1.2\n").unwrap().others, 1);
        assert_eq!(verdict(&attempts, "1.2\n").unwrap().others, 0);
    }
}
