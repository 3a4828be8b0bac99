//! Times the everyday work of a file system in one directory, or in two of them in
//! turn, and prints medians and the ratio: `measure DIR [OTHER]`.
//!
//! Each round makes a directory of its own and removes it; what is read is compared
//! with what was written.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const FILES: u32 = 500;
const SMALL: usize = 4096;
const LARGE: usize = 256 << 20;
const PIECE: usize = 1 << 20;

/// What is measured, and the unit of one result.
const ROWS: [(&str, &str); 8] = [
    ("create, write 4 KiB, close", "us a file"),
    ("open, read, close (just written)", "us a file"),
    ("stat", "us a file"),
    ("list with attributes", "us a file"),
    ("remove", "us a file"),
    ("write 256 MiB and close", "MB/s"),
    ("read 256 MiB (just written)", "MB/s"),
    ("write 16 KiB, fsync, rename over", "us"),
];

fn main() -> std::process::ExitCode {
    let directories: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if directories.is_empty() || directories.len() > 2 || directories.iter().any(|d| !d.is_dir()) {
        eprintln!("usage: measure DIR [OTHER]    two directories are measured in turn and compared");
        return std::process::ExitCode::from(2);
    }
    let mut results: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); ROWS.len()]; directories.len()];
    for number in 0..ROUNDS {
        for (directory, rows) in directories.iter().zip(&mut results) {
            let round = directory.join(format!("measure-{}-{number}", std::process::id()));
            match measure(&round) {
                Ok(values) => rows.iter_mut().zip(values).for_each(|(row, value)| row.push(value)),
                Err(e) => {
                    eprintln!("measure: {}: {e}", round.display());
                    return std::process::ExitCode::FAILURE;
                }
            }
        }
        eprint!("\rround {} of {ROUNDS}", number + 1);
    }
    eprintln!();
    print(&directories, &results);
    std::process::ExitCode::SUCCESS
}

fn print(directories: &[PathBuf], results: &[Vec<Vec<f64>>]) {
    let names: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
    println!("| median of {ROUNDS} | unit | {} |{}", names.join(" | "), if names.len() == 2 { " first / second |" } else { "" });
    println!("|---|---|{}", "---|".repeat(names.len() + usize::from(names.len() == 2)));
    for (at, (name, unit)) in ROWS.iter().enumerate() {
        let medians: Vec<f64> = results.iter().map(|rows| median(&rows[at])).collect();
        let cells: Vec<String> = medians.iter().map(|m| format!("{m:.0}")).collect();
        let ratio = if let [a, b] = medians[..] { format!(" {:.2} |", a / b) } else { String::new() };
        println!("| {name} | {unit} | {} |{ratio}", cells.join(" | "));
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// One value a row of [`ROWS`].
fn measure(directory: &Path) -> std::io::Result<Vec<f64>> {
    fs::create_dir(directory)?;
    let small = vec![7; SMALL];
    let path = |n: u32| directory.join(format!("f{n}"));
    let mut values = Vec::new();
    let mut per_file = |time: Duration| values.push(time.as_secs_f64() * 1e6 / f64::from(FILES));
    per_file(timed(|| (0..FILES).try_for_each(|n| File::create(path(n))?.write_all(&small)))?);
    per_file(timed(|| (0..FILES).try_for_each(|n| check(fs::read(path(n))? == small)))?);
    per_file(timed(|| (0..FILES).try_for_each(|n| fs::metadata(path(n)).map(|_| ())))?);
    per_file(timed(|| fs::read_dir(directory)?.try_for_each(|e| e?.metadata().map(|_| ())))?);
    per_file(timed(|| (0..FILES).try_for_each(|n| fs::remove_file(path(n))))?);
    let large = directory.join("large");
    let rate = |time: Duration| LARGE as f64 / 1e6 / time.as_secs_f64();
    values.push(rate(timed(|| write_large(&large))?));
    values.push(rate(timed(|| read_large(&large))?));
    fs::remove_file(&large)?;
    let saves = 20;
    let saved = timed(|| (0..saves).try_for_each(|_| save(directory)))?;
    values.push(saved.as_secs_f64() * 1e6 / f64::from(saves));
    fs::remove_dir_all(directory)?;
    Ok(values)
}

fn timed(work: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<Duration> {
    let start = Instant::now();
    work().map(|()| start.elapsed())
}

fn check(fine: bool) -> std::io::Result<()> {
    if fine { Ok(()) } else { Err(std::io::Error::other("the bytes that were read are not those that were written")) }
}

/// Pieces that differ from one another, so that nothing is stored once for all.
fn piece(number: usize) -> Vec<u8> {
    (0..PIECE / 8).flat_map(|word| ((number * PIECE + word) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

fn write_large(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    (0..LARGE / PIECE).try_for_each(|n| file.write_all(&piece(n)))
}

fn read_large(path: &Path) -> std::io::Result<()> {
    let (mut file, mut buffer) = (File::open(path)?, vec![0; PIECE]);
    (0..LARGE / PIECE).try_for_each(|n| file.read_exact(&mut buffer).and_then(|()| check(buffer == piece(n))))
}

fn save(directory: &Path) -> std::io::Result<()> {
    let temporary = directory.join("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&[1; 16 << 10])?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, directory.join("saved"))
}
