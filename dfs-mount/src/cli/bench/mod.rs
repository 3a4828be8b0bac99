//! `dfs bench`: everyday work in any directory, timed, with every byte that is read
//! compared with what was written. Directories are measured in turn, workload by workload,
//! so that what disturbs the machine disturbs all of them.
//!
//! It needs no cluster. It makes one directory in each of those it is given, works there
//! only, and removes it at the end, however that comes.

mod content;
mod git;
mod large;
mod meter;
mod place;
mod report;
mod rows;
mod small;
mod stats;
mod tree;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use dfs_common::ErrorKind;
use serde::Serialize;

use self::meter::Meter;
use self::place::{Ended, Place, Scale};
use self::report::{Cell, Report, Round};
use self::rows::{ROWS, Row};
use super::args::{Bench, Globals};
use super::failure::{At, Failure, Outcome};
use super::progress::Steps;
use super::render;
use crate::system;

pub(crate) use self::meter::Process;

const ROUNDS: usize = 5;
const LARGE: u64 = 256 << 20;
const QUICK_LARGE: u64 = 4 << 20;

/// The names of all workloads.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.name)
}

/// Measures, prints, and fails where a workload failed.
pub(crate) fn bench(globals: &Globals, arguments: &Bench) -> Outcome {
    if arguments.list {
        return list(globals.json);
    }
    let is_chosen = |row: &&Row| arguments.only.is_empty() || arguments.only.iter().any(|name| name == row.name);
    let rows: Vec<&'static Row> = ROWS.iter().filter(is_chosen).collect();
    let scale = if arguments.quick { Scale::quick(arguments.size.unwrap_or(QUICK_LARGE)) } else { Scale::full(arguments.size.unwrap_or(LARGE)) };
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 1 } else { ROUNDS });
    for process in &arguments.pids {
        process.time()?;
    }
    system::note_signals()?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let mut places = Vec::new();
    for (number, directory) in arguments.directories.iter().enumerate() {
        // Far apart, so that no two directories ever hold the same content.
        places.push(open(directory, scale, arguments.cold.clone(), seed.wrapping_add((number as u64) << 48))?);
    }
    let cells = measure(&rows, &mut places, rounds, &arguments.pids);
    let report = cells.as_ref().map(|cells| {
        let mut report = Report::new(&rows, cells, &places, &arguments.pids);
        (report.rounds, report.quick) = (rounds, arguments.quick);
        report
    });
    // All of them, whichever fails.
    let closed: Vec<Outcome> = places.into_iter().map(|place| place.close().map_err(Failure::from)).collect();
    let report = report.map_err(Failure::clone)?;
    if globals.json {
        render::json(&report)?
    } else {
        report.print()?
    }
    closed.into_iter().collect::<Outcome<()>>()?;
    match report.failures() {
        0 => Ok(()),
        failures => Err(Failure::new(ErrorKind::Internal, format!("{failures} of the workloads failed"))),
    }
}

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    title: &'static str,
}

fn list(json: bool) -> Outcome {
    if json {
        return render::json(&ROWS.iter().map(|row| Listed { name: row.name, title: row.title }).collect::<Vec<_>>());
    }
    render::table(&["NAME", "WORKLOAD"], &[], ROWS.iter().map(|row| vec![row.name.to_owned(), row.title.to_owned()]).collect())
}

fn open(directory: &Path, scale: Scale, cold: Option<String>, seed: u64) -> Outcome<Place> {
    let (free, _) = system::space(directory).at(directory)?;
    if free < scale.space() {
        let (free, wanted) = (render::bytes(free), render::bytes(scale.space()));
        return Err(Failure::from(std::io::Error::other(format!("{free} are free, and {wanted} are wanted; --size makes that less")))).at(directory);
    }
    Place::new(directory, scale, cold, seed).at(directory)
}

/// Every row in every place in every round; the places take turns in being the first.
fn measure(rows: &[&'static Row], places: &mut [Place], rounds: usize, processes: &[Process]) -> Outcome<Vec<Vec<Cell>>> {
    let mut cells: Vec<Vec<Cell>> = rows.iter().map(|_| places.iter().map(|_| Cell::Measured(Vec::new())).collect()).collect();
    let progress = Steps::new((rows.len() * places.len() * rounds) as u64);
    for round in 0..rounds {
        for (row, cells) in rows.iter().zip(&mut cells) {
            for turn in 0..places.len() {
                let at = (round + turn) % places.len();
                progress.step(&format!("round {} of {rounds}: {} in {}", round + 1, row.name, places[at].given.display()));
                let Cell::Measured(done) = &mut cells[at] else { continue };
                let outcome = run(row, places, at, if at == 0 { processes } else { &[] });
                if system::is_asked_to_end() {
                    return Err(Failure::new(ErrorKind::Interrupted, "interrupted"));
                }
                match outcome {
                    Ok(result) => done.push(result),
                    Err(Ended::Skipped(reason)) => cells[at] = Cell::Skipped(reason),
                    Err(Ended::Failed(error)) => cells[at] = Cell::Failed(error.to_string()),
                }
            }
        }
    }
    Ok(cells)
}

/// One row in the place `at`.
fn run(row: &Row, places: &mut [Place], at: usize, processes: &[Process]) -> Result<Round, Ended> {
    (row.prepare)(&mut places[at])?;
    // What others left to be written would be written while this one is measured.
    places.iter().try_for_each(Place::settle)?;
    places[at].make_cold(row.cold)?;
    let mut meter = Meter::new(processes);
    (row.run)(&mut places[at], &mut meter)?;
    Ok(Round::new(row.unit, &meter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_runs_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = [open(dir.path(), Scale::quick(1 << 20), Some("true".to_owned()), 5).unwrap()];
        let rows: Vec<&'static Row> = ROWS.iter().collect();
        let own: Process = format!("me={}", std::process::id()).parse().unwrap();
        // Backwards in the second run, where each makes for itself what it needs.
        for rows in [rows.clone(), rows.into_iter().rev().collect()] {
            for (row, cells) in rows.iter().zip(measure(&rows, &mut places, 1, std::slice::from_ref(&own)).unwrap()) {
                assert!(matches!(&cells[0], Cell::Measured(rounds) if rounds.len() == 1), "{row:?}: {cells:?}");
            }
        }
        let [place] = places;
        place.close().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_without_space_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path(), Scale::quick(1 << 60), None, 1).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(format!("{error:?}").contains("3.0 EiB are wanted") || format!("{error:?}").contains("PiB are wanted"), "{error:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_made_cold_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let place = open(dir.path(), Scale::quick(1 << 20), None, 1).unwrap();
        assert!(matches!(place.make_cold(place::Cold::Everything), Err(Ended::Skipped(_))));
        let failing = open(dir.path(), Scale::quick(1 << 20), Some("echo no such disk >&2; false".to_owned()), 1).unwrap();
        let error = failing.make_cold(place::Cold::Content).unwrap_err();
        assert!(matches!(&error, Ended::Failed(e) if e.to_string().contains("no such disk")), "{error:?}");
    }
}
