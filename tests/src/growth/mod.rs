//! What one operation costs while something around it grows: entries of its directory,
//! versions of its file, sessions of the cluster.
//!
//! Everything runs on real daemons. Processor time counts rather than the clock, and the sizes are measured
//! in turn, so that what else the machine does concerns all of them alike.

mod beds;
mod sessions;

use std::fmt::Write as _;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{Cluster, Mount, Role, sys};

/// An operation costs at most so many times as much where something is large as where it is small.
pub const FLAT: f64 = 1.5;

/// How large things become, and how often is measured.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Entries of directories.
    pub entries: Vec<u64>,
    /// Versions of files.
    pub versions: Vec<u64>,
    /// Sessions besides those of the mounts that are measured.
    pub sessions: Vec<u64>,
    /// Of these sessions; each is renewed three times in it.
    pub lease_seconds: u64,
    /// Rounds, each of every size in turn; one more warms up.
    pub rounds: u64,
    /// Operations of one size in one round.
    pub each: u64,
}

impl Scale {
    /// Seconds, to see that it works.
    pub fn quick() -> Self {
        Self { entries: vec![100, 500], versions: vec![1, 30], sessions: vec![1, 20], lease_seconds: 3, rounds: 2, each: 5 }
    }

    /// Operations of one size, warming up included.
    fn operations(&self) -> u64 {
        (self.rounds + 1) * self.each
    }
}

/// What one operation costs at one size.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The operation.
    pub operation: String,
    /// The size.
    pub size: u64,
    /// What it is the size of.
    pub of: &'static str,
    /// Microseconds by the clock, the median of all.
    pub clock: f64,
    /// Microseconds of the processor by daemon, each the median of the rounds.
    pub processor: Vec<(String, f64)>,
}

impl Cost {
    /// Processor time of all daemons in microseconds.
    pub fn work(&self) -> f64 {
        self.processor.iter().map(|(_, time)| time).sum()
    }
}

/// The daemons whose processor time counts.
#[derive(Clone, Debug)]
struct Watched(Vec<(String, i32)>);

impl Watched {
    /// All of `cluster`, and the drivers of `mounts` together.
    fn new(cluster: &mut Cluster, mounts: &[&Mount]) -> Self {
        let mut all: Vec<(String, i32)> = mounts.iter().map(|mount| ("mount".to_owned(), mount.pid())).collect();
        for role in cluster.roles() {
            let name = match role {
                Role::File(_) => "file".to_owned(),
                role => format!("{role:?}").to_lowercase(),
            };
            all.push((name, cluster.daemon(role).pid()));
        }
        Self(all)
    }

    /// Processor time so far, by name.
    fn times(&self) -> Result<Vec<(String, Duration)>> {
        let mut sums: Vec<(String, Duration)> = Vec::new();
        for (name, pid) in &self.0 {
            let time = sys::processor_time(*pid)?;
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += time,
                None => sums.push((name.clone(), time)),
            }
        }
        Ok(sums)
    }
}

/// One operation at one size.
struct Case<'a> {
    size: u64,
    watched: &'a Watched,
    /// What these operations need; not measured.
    prepare: Box<dyn FnMut(Range<u64>) -> Result<()> + 'a>,
    /// One operation, by its number.
    work: Box<dyn FnMut(u64) -> Result<()> + 'a>,
    /// Waits for what the operations of a round leave to be done; the processor time of that counts.
    settle: Box<dyn FnMut() -> Result<()> + 'a>,
}

/// What one case took so far, in microseconds.
#[derive(Clone, Debug, Default)]
struct Taken {
    /// Each operation.
    clock: Vec<f64>,
    /// By daemon, an operation of each round.
    processor: Vec<(String, Vec<f64>)>,
}

impl Taken {
    /// One round of `case`.
    fn round(&mut self, case: &mut Case<'_>, numbers: Range<u64>) -> Result<()> {
        let count = (numbers.end - numbers.start) as f64;
        (case.prepare)(numbers.clone())?;
        let before = case.watched.times()?;
        for number in numbers {
            let start = Instant::now();
            (case.work)(number)?;
            self.clock.push(start.elapsed().as_secs_f64() * 1e6);
        }
        (case.settle)()?;
        for ((name, before), (_, after)) in before.into_iter().zip(case.watched.times()?) {
            let each = (after - before).as_secs_f64() * 1e6 / count;
            match self.processor.iter_mut().find(|(known, _)| *known == name) {
                Some((_, all)) => all.push(each),
                None => self.processor.push((name, vec![each])),
            }
        }
        Ok(())
    }
}

/// Measures `operation` at all sizes in turn.
fn in_turn(operation: &str, of: &'static str, scale: &Scale, cases: &mut [Case<'_>]) -> Result<Vec<Cost>> {
    let mut taken = vec![Taken::default(); cases.len()];
    for round in 0..=scale.rounds {
        for turn in 0..cases.len() {
            let at = (round as usize + turn) % cases.len();
            taken[at].round(&mut cases[at], round * scale.each..(round + 1) * scale.each)?;
        }
        if round == 0 {
            taken.fill(Taken::default());
        }
    }
    let cost = |(case, mut taken): (&Case<'_>, Taken)| Cost {
        operation: operation.to_owned(),
        size: case.size,
        of,
        clock: median(&mut taken.clock),
        processor: taken.processor.into_iter().map(|(name, mut times)| (name, median(&mut times))).collect(),
    };
    Ok(cases.iter().zip(taken).map(cost).collect())
}

/// The middle of `values`, the lower one of two.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Entries of a directory.
    Entries,
    /// Versions of a file.
    Versions,
    /// Sessions of the cluster.
    Sessions,
}

/// Measures what depends on one kind of growth.
pub fn measure(growth: Growth, scale: &Scale) -> Result<Vec<Cost>> {
    ensure!(scale.rounds > 0 && scale.each > 0, "at least one round of one operation");
    match growth {
        Growth::Entries => beds::entries(scale),
        Growth::Versions => beds::versions(scale),
        Growth::Sessions => beds::sessions(scale),
    }
}

/// `costs` as a table of Markdown: each operation at each size, and how many times what it takes at its first size.
pub fn table(costs: &[Cost]) -> String {
    let mut out = String::new();
    let mut first: Option<&Cost> = None;
    for cost in costs {
        let same = first.is_some_and(|first| first.operation == cost.operation && first.of == cost.of);
        if !same {
            let names: Vec<&str> = cost.processor.iter().map(|(name, _)| name.as_str()).collect();
            if first.is_none_or(|first| first.of != cost.of) {
                let line = "|---".repeat(names.len());
                writeln!(out, "| operation | with | median | {} | times the processor | times the clock |", names.join(" | ")).expect("a string");
                writeln!(out, "|---|---|---{line}|---|---|").expect("a string");
            }
            first = Some(cost);
        }
        let base = first.unwrap_or(cost);
        let times: Vec<String> = cost.processor.iter().map(|(_, time)| format!("{time:.0} us")).collect();
        let (operation, size, of) = (&cost.operation, grouped(cost.size), cost.of);
        let (work, clock) = (cost.work() / base.work(), cost.clock / base.clock);
        writeln!(out, "| {operation} | {size} {of} | {:.0} us | {} | {work:.2} | {clock:.2} |", cost.clock, times.join(" | ")).expect("a string");
    }
    out
}

/// With a comma behind each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Operations that take more than [`FLAT`] times the processor time at some size, with that factor.
pub fn grown(costs: &[Cost]) -> Vec<(&Cost, f64)> {
    let base = |cost: &Cost| costs.iter().find(|first| first.operation == cost.operation && first.of == cost.of).map_or(f64::NAN, Cost::work);
    costs.iter().map(|cost| (cost, cost.work() / base(cost))).filter(|(_, times)| *times > FLAT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(operation: &str, size: u64, work: f64) -> Cost {
        Cost { operation: operation.to_owned(), size, of: "entries", clock: 2.0 * work, processor: vec![("mount".to_owned(), work)] }
    }

    #[test]
    fn what_grows_is_found_and_shown() {
        let costs = [cost("create", 1_000, 100.0), cost("create", 1_000_000, 140.0), cost("stat", 1_000, 10.0), cost("stat", 1_000_000, 16.0)];
        let found: Vec<(&str, f64)> = grown(&costs).into_iter().map(|(cost, times)| (cost.operation.as_str(), times)).collect();
        assert_eq!(found, [("stat", 1.6)]);
        let table = table(&costs);
        assert_eq!(table.lines().count(), 6, "{table}");
        assert!(table.contains("| create | 1,000,000 entries | 280 us | 140 us | 1.40 | 1.40 |"), "{table}");
    }

    #[test]
    fn the_middle_of_values() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.0);
        assert!(median(&mut []).is_nan());
    }
}
