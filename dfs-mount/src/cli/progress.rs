//! Bars for transfers and other work that take longer than a second, on a terminal only.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

const QUIET: Duration = Duration::from_secs(1);

/// How far one transfer is.
#[derive(Debug)]
pub(crate) struct Progress {
    total: u64,
    start: Instant,
    state: Mutex<(u64, Option<ProgressBar>)>,
}

impl Progress {
    /// Of `total` bytes.
    pub(crate) fn new(total: u64) -> Self {
        Self { total, start: Instant::now(), state: Mutex::new((0, None)) }
    }

    /// So many more are done.
    pub(crate) fn add(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.0 += bytes;
        if state.1.is_none() && self.start.elapsed() >= QUIET && std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(self.total);
            let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}").expect("the template is well-formed");
            bar.set_style(style);
            state.1 = Some(bar);
        }
        if let Some(bar) = &state.1 {
            bar.set_position(state.0);
        }
    }

    /// The transfer is over, however it went.
    pub(crate) fn finish(&self) {
        if let Some(bar) = self.state.lock().1.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How far work of several steps is.
#[derive(Debug)]
pub(crate) struct Steps(Option<ProgressBar>);

impl Steps {
    /// Of `total` steps.
    pub(crate) fn new(total: u64) -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}").expect("the template is well-formed");
            ProgressBar::new(total).with_style(style)
        }))
    }

    /// The next step begins.
    pub(crate) fn step(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_owned());
            bar.inc(1);
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}
