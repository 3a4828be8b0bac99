//! What one run of a workload cost: time, single operations, processor time of daemons.
//!
//! Only what happens in a section counts; preparing and checking happen between sections.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::system;

/// The error of whoever is asked to end by a signal; workloads ask before every operation.
pub(super) fn go_on() -> io::Result<()> {
    if system::is_asked_to_end() { Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")) } else { Ok(()) }
}

/// A daemon whose processor time counts: a process, or a file whose first word is its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// What it is called in the result.
    pub(super) name: String,
    /// Where its number is found each time anew: a mount that was made cold is another process.
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Number(i32),
    File(PathBuf),
}

impl std::str::FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, source) =
            text.split_once('=').filter(|(name, source)| !name.is_empty() && !source.is_empty()).ok_or("expected NAME=PID or NAME=FILE")?;
        let source = source.parse().map_or_else(|_| Source::File(source.into()), Source::Number);
        Ok(Self { name: name.to_owned(), source })
    }
}

impl Process {
    fn pid(&self) -> io::Result<i32> {
        match &self.source {
            Source::Number(pid) => Ok(*pid),
            Source::File(file) => {
                let text = std::fs::read_to_string(file)?;
                text.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or_else(|| io::Error::other("holds no process number"))
            }
        }
    }

    /// How long it has been on a processor.
    pub(super) fn time(&self) -> io::Result<Duration> {
        self.pid().and_then(system::processor_time).map_err(|e| io::Error::new(e.kind(), format!("process {}: {e}", self.name)))
    }

    /// The most resident memory that it ever had, in bytes; `None` where it is gone.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid().ok()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    }
}

/// What one run of a workload cost.
#[derive(Debug, Default)]
pub(super) struct Meter {
    processes: Vec<Process>,
    /// How long all sections took.
    pub(super) elapsed: Duration,
    /// How many files, MiB or whatever else the workload counts.
    pub(super) count: u64,
    /// Single operations, where the workload has them.
    pub(super) operations: Vec<Duration>,
    /// Processor time, in the order of the processes.
    pub(super) processor: Vec<Duration>,
}

impl Meter {
    /// One that looks at these daemons.
    pub(super) fn new(processes: &[Process]) -> Self {
        Self { processes: processes.to_vec(), processor: vec![Duration::ZERO; processes.len()], ..Self::default() }
    }

    /// A section: does `work`, which is `count` units of the workload.
    pub(super) fn section<T>(&mut self, count: u64, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        go_on()?;
        let before = self.processor_times()?;
        let start = Instant::now();
        let result = work()?;
        self.elapsed += start.elapsed();
        self.count += count;
        let after = self.processor_times()?;
        for ((sum, before), after) in self.processor.iter_mut().zip(before).zip(after) {
            *sum += after.saturating_sub(before);
        }
        Ok(result)
    }

    /// A section of single operations, `work` for each number below `count`.
    pub(super) fn operations(&mut self, count: u64, mut work: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let mut operations = std::mem::take(&mut self.operations);
        operations.reserve(usize::try_from(count).unwrap_or(0));
        self.section(count, || {
            let mut start = Instant::now();
            for number in 0..count {
                go_on()?;
                work(number)?;
                let end = Instant::now();
                operations.push(end - start);
                start = end;
            }
            Ok(())
        })?;
        self.operations = operations;
        Ok(())
    }

    fn processor_times(&self) -> io::Result<Vec<Duration>> {
        self.processes.iter().map(Process::time).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_by_number_or_by_file() {
        let own = std::process::id();
        let process: Process = format!("me={own}").parse().unwrap();
        assert!(process.time().unwrap() > Duration::ZERO && process.peak_memory().unwrap() > 1 << 20);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{own} 12345\n")).unwrap();
        let process: Process = format!("me={}", file.path().display()).parse().unwrap();
        assert_eq!(process.pid().unwrap(), i32::try_from(own).unwrap());
        std::fs::write(file.path(), "").unwrap();
        assert!(process.time().unwrap_err().to_string().contains("process me"), "an empty file names nobody");
        for bad in ["", "x", "=1", "x="] {
            assert!(bad.parse::<Process>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_sections_count() {
        let mut meter = Meter::new(&["me".to_owned() + "=" + &std::process::id().to_string()].map(|text| text.parse().unwrap()));
        meter.operations(5, |_| Ok(())).unwrap();
        meter.section(2, || Ok(())).unwrap();
        assert_eq!((meter.count, meter.operations.len(), meter.processor.len()), (7, 5, 1));
        assert!(meter.operations.iter().sum::<Duration>() <= meter.elapsed);
        assert!(meter.section(1, || Err::<(), _>(io::Error::other("x"))).is_err());
        assert_eq!(meter.count, 7, "what failed does not count");
    }
}
