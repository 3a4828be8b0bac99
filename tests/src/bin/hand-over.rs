//! Measures from the second client's side how long a file's write lock takes from one mount
//! to another: `hand-over DIR OTHER_DIR [ROUNDS]`.
//!
//! One side holds a file open for writing, the other waits in open(2). Two times count: from
//! the call of close(2), which publishes what was written, and from its return.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dfs_tests::sys;

/// What a program that stands in line needs to get there: the round trip of its request.
const IN_LINE: Duration = Duration::from_millis(20);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(first), Some(second)) = (arguments.next(), arguments.next()) else { bail!("usage: hand-over DIR OTHER_DIR [ROUNDS]") };
    let rounds: usize = arguments.next().map_or(Ok(200), |text| text.parse()).context("rounds")?;
    let paths = [PathBuf::from(first).join("hand-over"), PathBuf::from(second).join("hand-over")];
    std::fs::write(&paths[0], "").context("making the file")?;
    let (mut from_call, mut from_return) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (holder, waiter) = (&paths[round % 2], paths[(round + 1) % 2].clone());
        let mut file = OpenOptions::new().append(true).open(holder)?;
        let (asks, asked) = channel();
        let waiting = std::thread::spawn(move || -> std::io::Result<Instant> {
            let _ = asks.send(());
            let file = OpenOptions::new().append(true).open(waiter)?;
            let opened = Instant::now();
            sys::close(file)?;
            Ok(opened)
        });
        asked.recv().context("the waiter")?;
        std::thread::sleep(IN_LINE);
        writeln!(file, "{round}")?;
        let called = Instant::now();
        sys::close(file)?;
        let returned = Instant::now();
        let opened = waiting.join().expect("the waiter does not panic")?;
        from_call.push(opened.saturating_duration_since(called));
        from_return.push(opened.saturating_duration_since(returned));
    }
    for (what, times) in [("call", &mut from_call), ("return", &mut from_return)] {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
        println!("from the {what} of close: median {:.2} ms, 99 % {:.2} ms, most {:.2} ms, of {rounds}", at(50), at(99), at(100));
    }
    std::fs::remove_file(&paths[0]).context("removing the file")
}
