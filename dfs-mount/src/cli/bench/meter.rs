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

    /// Its memory now. From here on its peak is that of what comes, where this may be asked for.
    fn begin_peak(&self) -> io::Result<Memory> {
        // See proc(5): 5 resets the peak. That takes the rights of its user.
        let is_reset = std::fs::write(format!("/proc/{}/clear_refs", self.pid()?), "5").is_ok();
        Ok(Memory { is_reset, ..self.memory()? })
    }

    fn memory(&self) -> io::Result<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
            kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("process {}: its status has no {key}", self.name)))
        };
        Ok(Memory { resident: bytes("VmRSS:")?, peak: bytes("VmHWM:")?, is_reset: false })
    }
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    resident: u64,
    /// The most since its start, or since this was reset.
    peak: u64,
    is_reset: bool,
}

impl Memory {
    /// The most between `self` and a later look. A peak that could not be reset and has not grown says nothing; then it is what was seen.
    fn most_until(self, later: Self) -> u64 {
        if self.is_reset || later.peak > self.peak { later.peak } else { self.resident.max(later.resident) }
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
    /// The most memory that each of them had in a section, in bytes.
    pub(super) memory: Vec<u64>,
}

impl Meter {
    /// One that looks at these daemons.
    pub(super) fn new(processes: &[Process]) -> Self {
        let (processor, memory) = (vec![Duration::ZERO; processes.len()], vec![0; processes.len()]);
        Self { processes: processes.to_vec(), processor, memory, ..Self::default() }
    }

    /// A section: does `work`, which is `count` units of the workload.
    pub(super) fn section<T>(&mut self, count: u64, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        go_on()?;
        let memory: Vec<Memory> = self.processes.iter().map(Process::begin_peak).collect::<io::Result<_>>()?;
        let before = self.processor_times()?;
        let start = Instant::now();
        let result = work()?;
        self.elapsed += start.elapsed();
        self.count += count;
        let after = self.processor_times()?;
        for ((sum, before), after) in self.processor.iter_mut().zip(before).zip(after) {
            *sum += after.saturating_sub(before);
        }
        for ((most, process), before) in self.memory.iter_mut().zip(&self.processes).zip(memory) {
            *most = (*most).max(before.most_until(process.memory()?));
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
        assert!(process.time().unwrap() > Duration::ZERO && process.memory().unwrap().peak > 1 << 20);
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
    fn the_peak_is_that_of_the_section() {
        use std::io::{BufRead, BufReader, Write};
        use std::process::{Command, Stdio};
        // It takes memory and gives it back, line by line.
        let script = "while read -r size; do text=$(head -c $size /dev/zero | tr '\\0' x); text=; echo done; done";
        let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut meter = Meter::new(&[format!("sh={}", child.id()).parse().unwrap()]);
        let mut peak = |size: &str| {
            meter.memory[0] = 0;
            let work = || writeln!(to, "{size}").and_then(|()| from.read_line(&mut String::new()));
            meter.section(1, work).unwrap();
            meter.memory[0]
        };
        let peaks = ["32M", "1", "32M"].map(&mut peak);
        assert!(peaks[0] > 32 << 20 && peaks[1] < 32 << 20 && peaks[2] > 32 << 20, "{peaks:?}");
        drop(to);
        child.wait().unwrap();
    }

    #[test]
    fn a_peak_that_cannot_be_reset_counts_where_it_grows() {
        let memory = |resident: u64, peak: u64| Memory { resident, peak, is_reset: false };
        assert_eq!(Memory { is_reset: true, ..memory(10, 10) }.most_until(memory(8, 10)), 10, "it was reset");
        assert_eq!(memory(10, 50).most_until(memory(12, 60)), 60, "it has grown");
        assert_eq!(memory(10, 50).most_until(memory(12, 50)), 12, "it is from before");
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
