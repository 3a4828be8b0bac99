//! The search: can the operations of a history, each at one instant (or two, for path calls)
//! between its call and its return, have had the results that they had?
//!
//! Just-in-time linearization (Wing and Gong 1993; Lowe, "Testing for linearizability",
//! 2017): events are walked in order of time with the set of all possible configurations.
//! Nothing takes effect before it must: when an operation returns, the configurations in
//! which it has not happened yet are extended by every order of steps that ends with it.
//! Steps of other operations come before it only where they may touch what it touches;
//! all others can as well come later. No configuration left: a violation.

use std::collections::{HashMap, HashSet, VecDeque};

use super::model::{Config, Id};
use super::record::{Names, Operation, Outcome};
use super::report;

/// More possibilities than this are not followed: the history has too many operations with unknown results.
const MOST: usize = 200_000;
/// Operations kept for the report.
const RECENT: usize = 4_000;

/// What one file system could not have answered.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The operation.
    pub operation: Operation,
    /// Everything, readable.
    pub text: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Violation {}

/// Walks histories piece by piece.
#[derive(Debug)]
pub struct Checker {
    names: Names,
    configs: HashSet<Config>,
    operations: HashMap<Id, Operation>,
    recent: VecDeque<(Id, Operation)>,
    last: Id,
    most: usize,
    /// Tries steps of operations that have nothing to do with each other in every order, too: to test that this changes nothing.
    exhaustive: bool,
}

impl Checker {
    /// For an empty directory.
    pub fn new(names: Names) -> Self {
        let configs = HashSet::from([Config::new(&names)]);
        Self { names, configs, operations: HashMap::new(), recent: VecDeque::new(), last: 0, most: 1, exhaustive: false }
    }

    /// The most possibilities that there ever were at one time.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Operations that may still happen at any time.
    pub fn open_ends(&self) -> usize {
        self.operations.len()
    }

    /// Goes on with `history`, in any order; all of it is later than what was given before, and nothing but operations
    /// with unknown results goes beyond its end.
    pub fn extend(&mut self, history: Vec<Operation>) -> Result<(), Box<Violation>> {
        let mut history: Vec<Operation> = history.into_iter().filter(counts).collect();
        history.sort_by_key(|op| op.start);
        // A call at the instant of a return counts as earlier, so that the two overlap: no order is known.
        let mut events: Vec<(u64, bool, Id)> = Vec::with_capacity(history.len() * 2);
        for (id, op) in (self.last + 1..).zip(&history) {
            events.push((op.start, false, id));
            events.push((op.end, true, id));
        }
        events.sort_unstable();
        let first = self.last + 1;
        self.last += history.len() as Id;
        let mut history: Vec<Option<Operation>> = history.into_iter().map(Some).collect();
        for (_, returns, id) in events {
            if returns {
                self.returned(id)?;
            } else {
                let op = history[(id - first) as usize].take().expect("called once");
                self.called(id, op);
            }
        }
        Ok(())
    }

    fn called(&mut self, id: Id, op: Operation) {
        self.configs = self
            .configs
            .drain()
            .map(|mut config| {
                config.call(id, &op);
                config
            })
            .collect();
        self.operations.insert(id, op);
    }

    fn returned(&mut self, id: Id) -> Result<(), Box<Violation>> {
        let op = &self.operations[&id];
        self.recent.push_back((id, op.clone()));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        match op.outcome {
            Outcome::Unknown(_) => return Ok(()),
            Outcome::Impossible(ref what) => return Err(self.violation(id, what)),
            _ => {}
        }
        let next = self.settle(id);
        if next.len() > MOST {
            return Err(self.violation(id, "more possibilities than can be followed"));
        }
        if next.is_empty() {
            return Err(self.violation(id, ""));
        }
        self.most = self.most.max(next.len());
        self.configs = next;
        self.operations.remove(&id);
        Ok(())
    }

    /// The configurations in which `id` has happened.
    fn settle(&self, id: Id) -> HashSet<Config> {
        let (mut out, mut seen) = (HashSet::with_capacity(self.configs.len()), HashSet::new());
        let mut work: Vec<Config> = Vec::new();
        let may_be_nothing = self.operations[&id].outcome == Outcome::Stale;
        for config in &self.configs {
            if !config.is_active(id) {
                out.insert(config.clone());
                continue;
            }
            if may_be_nothing {
                let mut without = config.clone();
                without.end(id);
                out.insert(without);
            }
            work.push(config.clone());
        }
        while let Some(config) = work.pop() {
            for step in self.relevant(&config, id) {
                for next in config.steps(step, &self.operations[&step]) {
                    if !next.is_active(id) {
                        out.insert(next);
                    } else if seen.insert(next.clone()) {
                        work.push(next);
                    }
                }
            }
            if out.len() > MOST || seen.len() > MOST {
                break;
            }
        }
        out
    }

    /// `id`, and what is under way that touches what it touches, directly or through others.
    fn relevant(&self, config: &Config, id: Id) -> Vec<Id> {
        if self.exhaustive {
            return config.active().collect();
        }
        let mut touched = config.touches(id, &self.operations[&id]);
        let (mut all, mut others) = (vec![id], config.active().filter(|&o| o != id).collect::<Vec<_>>());
        loop {
            let before = all.len();
            others.retain(|&other| {
                let touches = config.touches(other, &self.operations[&other]);
                let joins = touches.meets(touched);
                if joins {
                    touched = touched.and(touches);
                    all.push(other);
                }
                !joins
            });
            if all.len() == before {
                return all;
            }
        }
    }

    fn violation(&self, id: Id, why: &str) -> Box<Violation> {
        let operation = self.operations[&id].clone();
        let mut pending: Vec<(Id, &Operation)> = self.operations.iter().map(|(&id, op)| (id, op)).collect();
        pending.sort_unstable_by_key(|p| p.0);
        let text = report::violation(&self.names, (id, &operation, why), &self.configs, &self.recent, &pending);
        Box::new(Violation { operation, text })
    }
}

/// What says nothing is left out: a read without a result, and what came to nothing.
fn counts(op: &Operation) -> bool {
    match op.outcome {
        Outcome::Unknown(_) => !op.call.only_reads(),
        Outcome::Stale => matches!(op.call, super::Call::Open { append: false, .. }),
        _ => true,
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
