//! The result of a run: as it is printed for a person, and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::meter::{Meter, Process};
use super::place::Place;
use super::rows::{Row, Unit};
use super::stats::{median, percentile, times_as_fast};
use crate::cli::failure::Outcome;
use crate::cli::render;

/// What one workload did in one directory, round by round.
#[derive(Debug)]
pub(super) enum Cell {
    /// It ran in every round.
    Measured(Vec<Round>),
    /// It cannot run there, and why.
    Skipped(String),
    /// It failed there, and how.
    Failed(String),
}

/// One round.
#[derive(Debug)]
pub(super) struct Round {
    /// In the unit of the row.
    value: f64,
    /// Microseconds of single operations.
    operations: Vec<f64>,
    /// Processor time of the daemons for one unit of work, in microseconds.
    processor: Vec<f64>,
    /// The most memory of each of them, in bytes.
    memory: Vec<u64>,
}

impl Round {
    /// What the meter of a row saw.
    pub(super) fn new(unit: Unit, meter: &Meter) -> Self {
        let microseconds = |time: &std::time::Duration| time.as_secs_f64() * 1e6;
        let processor = meter.processor.iter().map(|time| microseconds(time) / meter.count as f64).collect();
        let operations = meter.operations.iter().map(microseconds).collect();
        Self { value: unit.of(meter.count, meter.elapsed), operations, processor, memory: meter.memory.clone() }
    }
}

/// Everything that a run has found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    finished: String,
    machine: Machine,
    pub(super) rounds: usize,
    pub(super) quick: bool,
    large_bytes: u64,
    directories: Vec<Directory>,
    rows: Vec<RowReport>,
    processes: Vec<ProcessReport>,
}

#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    processors: usize,
    memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Directory {
    name: String,
    path: String,
    file_system: String,
}

#[derive(Debug, Serialize)]
struct RowReport {
    name: &'static str,
    title: &'static str,
    unit: Unit,
    per: &'static str,
    /// In the order of the directories.
    results: Vec<CellReport>,
    /// The first directory against each of the others.
    times_as_fast: Vec<Option<f64>>,
}

/// Either the numbers, or `skipped`, or `failed`.
#[derive(Debug, Default, Serialize)]
struct CellReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    median: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rounds: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operations_us: Option<Percentiles>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    processor_us: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    peak_memory_bytes: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// From so many operations on, what 99 of 100 do not exceed says more than the median.
const ENOUGH: usize = 20;

/// Of all single operations of all rounds.
#[derive(Debug, Serialize)]
struct Percentiles {
    count: usize,
    p50: f64,
    p99: f64,
}

#[derive(Debug, Serialize)]
struct ProcessReport {
    name: String,
    /// Of all workloads.
    peak_memory_bytes: Option<u64>,
}

impl Machine {
    fn this() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let memory = read("/proc/meminfo").lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(), processors, memory_bytes: memory.map(|kib| kib << 10) }
    }
}

/// The last word of each path where that tells them apart, else the whole paths.
fn names(paths: &[&Path]) -> Vec<String> {
    let last: Vec<String> = paths.iter().map(|path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()).collect();
    let unique: std::collections::BTreeSet<&String> = last.iter().collect();
    if unique.len() == last.len() { last } else { paths.iter().map(|path| path.display().to_string()).collect() }
}

impl CellReport {
    fn new(cell: &Cell, processes: &[Process]) -> Self {
        let rounds = match cell {
            Cell::Skipped(reason) => return Self { skipped: Some(reason.clone()), ..Self::default() },
            Cell::Failed(reason) => return Self { failed: Some(reason.clone()), ..Self::default() },
            Cell::Measured(rounds) => rounds,
        };
        let values: Vec<f64> = rounds.iter().map(|round| round.value).collect();
        let operations: Vec<f64> = rounds.iter().flat_map(|round| round.operations.iter().copied()).collect();
        let operations_us =
            percentile(&operations, 50.0).zip(percentile(&operations, 99.0)).map(|(p50, p99)| Percentiles { count: operations.len(), p50, p99 });
        let of_process = |at: usize| median(&rounds.iter().filter_map(|round| round.processor.get(at).copied()).collect::<Vec<_>>());
        let processor_us = processes.iter().enumerate().filter_map(|(at, process)| Some((process.name.clone(), of_process(at)?))).collect();
        let most = |at: usize| rounds.iter().filter_map(|round| round.memory.get(at).copied()).max();
        let peak_memory_bytes = processes.iter().enumerate().filter_map(|(at, process)| Some((process.name.clone(), most(at)?))).collect();
        Self { median: median(&values), rounds: values, operations_us, processor_us, peak_memory_bytes, ..Self::default() }
    }

    fn text(&self, unit: Unit) -> String {
        match (self.median, &self.operations_us) {
            (Some(value), Some(operations)) if operations.count >= ENOUGH => {
                format!("{} [{}]", shown(value, unit), shown(operations.p99, Unit::Microseconds))
            }
            (Some(value), _) => shown(value, unit),
            (None, _) if self.failed.is_some() => "FAILED".to_owned(),
            (None, _) => "skipped".to_owned(),
        }
    }
}

impl Report {
    /// Puts together what was measured: `cells` by row, then by place. The daemons are those of the first place.
    pub(super) fn new(rows: &[&'static Row], cells: &[Vec<Cell>], places: &[Place], processes: &[Process]) -> Self {
        let paths: Vec<&Path> = places.iter().map(|place| place.given.as_path()).collect();
        let directories = names(&paths).into_iter().zip(places).map(|(name, place)| {
            let path = place.given.display().to_string();
            Directory { name, path, file_system: place.file_system.clone() }
        });
        let row = |(row, cells): (&&'static Row, &Vec<Cell>)| {
            let results: Vec<CellReport> = cells.iter().map(|cell| CellReport::new(cell, processes)).collect();
            let against = |other: &CellReport| times_as_fast(&results[0].rounds, &other.rounds, row.unit.is_rate());
            let times_as_fast = results[1..].iter().map(against).collect();
            RowReport { name: row.name, title: row.title, unit: row.unit, per: row.per, results, times_as_fast }
        };
        let rows: Vec<RowReport> = rows.iter().zip(cells).map(row).collect();
        let most = |name: &String| rows.iter().filter_map(|row| row.results[0].peak_memory_bytes.get(name).copied()).max();
        let process = |process: &Process| ProcessReport { name: process.name.clone(), peak_memory_bytes: most(&process.name) };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            finished: chrono::Local::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, false),
            machine: Machine::this(),
            rounds: 0,
            quick: false,
            large_bytes: places[0].scale.large,
            directories: directories.collect(),
            processes: processes.iter().map(process).collect(),
            rows,
        }
    }

    /// How many cells failed.
    pub(super) fn failures(&self) -> usize {
        self.rows.iter().flat_map(|row| &row.results).filter(|cell| cell.failed.is_some()).count()
    }

    /// Prints it for a person.
    pub(super) fn print(&self) -> Outcome {
        let first = &self.directories[0].name;
        let mut header = vec!["WORKLOAD".to_owned(), "FOR".to_owned()];
        header.extend(self.directories.iter().map(|directory| directory.name.clone()));
        header.extend(self.directories[1..].iter().map(|other| format!("{first}:{}", other.name)));
        let lines = self.rows.iter().map(|row| {
            let mut line = vec![row.title.to_owned(), row.per.to_owned()];
            line.extend(row.results.iter().map(|cell| cell.text(row.unit)));
            line.extend(row.times_as_fast.iter().map(|ratio| ratio.map_or("-".to_owned(), ratio_text)));
            line
        });
        table(&header, 2, lines.collect())?;
        let mut notes = format!("\nThe median of {} rounds", self.rounds);
        notes.push_str("; in brackets what 99 of 100 operations do not exceed.\n");
        if self.directories.len() > 1 {
            notes.push_str(&format!("{first}:OTHER is how many times as fast {first} is, in the median of the rounds.\n"));
        }
        notes.push_str(&self.notes());
        render::text(&notes)?;
        self.print_processes()
    }

    /// A line for each reason why something was not measured.
    fn notes(&self) -> String {
        let mut reasons: BTreeMap<(String, &str), Vec<&str>> = BTreeMap::new();
        for row in &self.rows {
            for (cell, directory) in row.results.iter().zip(&self.directories) {
                for (word, reason) in [("skipped", &cell.skipped), ("FAILED", &cell.failed)] {
                    if let Some(reason) = reason {
                        reasons.entry((format!("{word} in {}", directory.name), reason)).or_default().push(row.name);
                    }
                }
            }
        }
        reasons.into_iter().map(|((what, reason), rows)| format!("{what}: {}: {reason}\n", rows.join(", "))).collect()
    }

    fn print_processes(&self) -> Outcome {
        if self.processes.is_empty() {
            return Ok(());
        }
        render::text(&format!(
            "\nProcessor time of daemons for one unit of work in {}, and the most memory that they had meanwhile:\n\n",
            self.directories[0].name
        ))?;
        let mut header = vec!["WORKLOAD".to_owned(), "FOR".to_owned()];
        header.extend(self.processes.iter().map(|process| process.name.clone()));
        let measured = self.rows.iter().filter(|row| row.results[0].median.is_some());
        let spent = |cell: &CellReport, name: &str| match (cell.processor_us.get(name), cell.peak_memory_bytes.get(name)) {
            (Some(us), Some(bytes)) => format!("{}, {}", shown(*us, Unit::Microseconds), render::bytes(*bytes)),
            _ => "-".to_owned(),
        };
        let line = |row: &RowReport| {
            let spent = self.processes.iter().map(|process| spent(&row.results[0], &process.name));
            [row.title.to_owned(), row.per.to_owned()].into_iter().chain(spent).collect()
        };
        table(&header, 2, measured.map(line).collect())
    }
}

fn table(header: &[String], first_number: usize, rows: Vec<Vec<String>>) -> Outcome {
    let right: Vec<usize> = (first_number..header.len()).collect();
    render::table(&header.iter().map(String::as_str).collect::<Vec<_>>(), &right, rows)
}

/// A value with three digits and its unit.
fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Microseconds if value >= 999_500.0 => format!("{} s", digits(value / 1e6)),
        Unit::Microseconds if value >= 999.5 => format!("{} ms", digits(value / 1e3)),
        Unit::Microseconds => format!("{} us", digits(value)),
        Unit::MegabytesPerSecond => format!("{} MB/s", digits(value)),
        Unit::PerSecond => format!("{} /s", digits(value)),
    }
}

/// Below a tenth, two decimals would hide most of it.
fn ratio_text(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 0.000_995 => format!("{ratio:.5}"),
        ratio if ratio < 0.009_95 => format!("{ratio:.4}"),
        ratio if ratio < 0.0995 => format!("{ratio:.3}"),
        ratio => format!("{ratio:.2}"),
    }
}

fn digits(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::place::Scale;
    use super::super::rows::ROWS;
    use super::*;

    #[test]
    fn values_have_three_digits() {
        for (value, unit, expected) in [
            (0.444, Unit::Microseconds, "0.44 us"),
            (9.996, Unit::Microseconds, "10.0 us"),
            (999.4, Unit::Microseconds, "999 us"),
            (999.6, Unit::Microseconds, "1.00 ms"),
            (2_345_678.0, Unit::Microseconds, "2.35 s"),
            (4373.2, Unit::MegabytesPerSecond, "4373 MB/s"),
            (12.34, Unit::PerSecond, "12.3 /s"),
        ] {
            assert_eq!(shown(value, unit), expected);
        }
        assert_eq!([0.000_234, 0.0112, 0.0994, 0.0996, 12.3].map(ratio_text), ["0.00023", "0.011", "0.099", "0.10", "12.30"]);
    }

    #[test]
    fn directories_are_told_apart() {
        assert_eq!(names(&[Path::new("/a/x"), Path::new("/b/y")]), ["x", "y"]);
        assert_eq!(names(&[Path::new("/a/x"), Path::new("/b/x")]), ["/a/x", "/b/x"]);
        assert_eq!(names(&[Path::new("/")]), ["/"]);
    }

    fn measured(us: &[u64]) -> Cell {
        let round = |&us: &u64| {
            let mut meter = Meter::new(&[]);
            (meter.elapsed, meter.count) = (Duration::from_micros(us * 10), 10);
            meter.operations = (1..=10).map(|n| Duration::from_micros(us * n)).collect();
            Round::new(Unit::Microseconds, &meter)
        };
        Cell::Measured(us.iter().map(round).collect())
    }

    #[test]
    fn a_report_holds_numbers_ratios_and_reasons() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = |dir: &tempfile::TempDir| Place::new(dir.path(), Scale::quick(1 << 20), None, 1).unwrap();
        let rows: Vec<&'static Row> = ["create", "cold-find", "save"].iter().map(|name| ROWS.iter().find(|row| row.name == *name).unwrap()).collect();
        let cells = [
            vec![measured(&[10, 30, 20]), measured(&[40, 30, 60])],
            vec![Cell::Skipped("warm".to_owned()), measured(&[5, 5, 5])],
            vec![measured(&[5, 5, 5]), Cell::Failed("broken".to_owned())],
        ];
        let report = Report::new(&rows, &cells, &[place(&one), place(&two)], &[]);
        assert_eq!(report.failures(), 1);
        let notes = report.notes();
        assert!(notes.contains(": cold-find: warm\n") && notes.contains("FAILED in ") && notes.contains(": save: broken\n"), "{notes}");
        assert_eq!(report.rows[0].results[0].text(Unit::Microseconds), "20.0 us [300 us]");
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        let create = &json["rows"][0];
        assert_eq!(create["results"][0]["rounds"], serde_json::json!([10.0, 30.0, 20.0]));
        assert_eq!((create["results"][1]["median"].as_f64(), create["times_as_fast"][0].as_f64()), (Some(40.0), Some(3.0)));
        assert_eq!(create["results"][0]["operations_us"]["count"], 30);
        assert_eq!((json["rows"][1]["results"][0]["skipped"].as_str(), json["rows"][1]["times_as_fast"][0].is_null()), (Some("warm"), true));
        assert_eq!(json["rows"][2]["results"][1]["failed"], "broken");
    }
}
