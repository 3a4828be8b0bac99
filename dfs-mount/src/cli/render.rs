//! How things look to a person: modes, times, sizes, owners, tables. Machines get JSON.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};

use chrono::{DateTime, Local, TimeDelta};
use comfy_table::{CellAlignment, Table, presets};
use dfs_common::attributes::{Attributes, FileKind, Timestamp};
use dfs_common::name;
use serde::Serialize;

use super::failure::Outcome;

/// One value as a line of JSON on standard output.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Outcome {
    let mut line = serde_json::to_vec(value).expect("wire types serialize");
    line.push(b'\n');
    Ok(std::io::stdout().lock().write_all(&line)?)
}

/// Text on standard output.
pub(crate) fn text(text: &str) -> Outcome {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// Columns without lines; those named in `right` hold numbers.
pub(crate) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Outcome {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    text(&lines.concat())
}

/// As `ls -l` shows type and permissions.
pub(crate) fn mode(kind: FileKind, mode: u32) -> String {
    let first = match kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let mut out = String::from(first);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    out
}

/// The word for a type.
pub(crate) fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "regular file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symbolic link",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

/// As `ls -l` shows times: the hour within half a year, the year beyond.
pub(crate) fn listed_time(time: Timestamp, now: DateTime<Local>) -> String {
    let time = local(time);
    let age = now - time;
    let recent = age >= TimeDelta::zero() && age < TimeDelta::days(183);
    time.format(if recent { "%b %e %H:%M" } else { "%b %e  %Y" }).to_string()
}

/// Date, time with milliseconds, zone.
pub(crate) fn full_time(time: Timestamp) -> String {
    local(time).format("%Y-%m-%d %H:%M:%S%.3f %z").to_string()
}

fn local(time: Timestamp) -> DateTime<Local> {
    DateTime::from_timestamp_nanos(time.0).with_timezone(&Local)
}

/// Bytes with a binary prefix.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A length of time in its two largest units.
pub(crate) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Names behind uids and gids, from the local files; unknown ones stay numbers.
#[derive(Debug)]
pub(crate) struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    pub(crate) fn local() -> Self {
        Self { users: numbered("/etc/passwd"), groups: numbered("/etc/group") }
    }

    pub(crate) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

fn numbered(path: &str) -> HashMap<u32, String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let row = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    text.lines().filter_map(row).collect()
}

/// A name for standard output: its bytes for a program, escaped and coloured for a terminal.
pub(crate) fn shown_name(bytes: &[u8], attributes: &Attributes) -> Vec<u8> {
    if !std::io::stdout().is_terminal() {
        return bytes.to_vec();
    }
    let plain = name::encode(bytes);
    let colour = match attributes.kind {
        FileKind::Directory => "1;34",
        FileKind::Symlink => "1;36",
        FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => "33",
        FileKind::File if attributes.mode & 0o111 != 0 => "1;32",
        FileKind::File => return plain.into_bytes(),
    };
    if std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) {
        return plain.into_bytes();
    }
    format!("\x1b[{colour}m{plain}\x1b[0m").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        for (kind, bits, expected) in [
            (FileKind::File, 0o644, "-rw-r--r--"),
            (FileKind::File, 0o4755, "-rwsr-xr-x"),
            (FileKind::File, 0o2644, "-rw-r-Sr--"),
            (FileKind::Directory, 0o1777, "drwxrwxrwt"),
            (FileKind::Directory, 0o1776, "drwxrwxrwT"),
            (FileKind::Symlink, 0o777, "lrwxrwxrwx"),
        ] {
            assert_eq!(mode(kind, bits), expected);
        }
    }

    #[test]
    fn sizes_and_spans() {
        for (count, expected) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (u64::MAX, "16384.0 PiB")]
        {
            assert_eq!(bytes(count), expected);
        }
        for (ms, expected) in [(5, "5 ms"), (59_999, "59 s"), (61_000, "1 min 1 s"), (3_660_000, "1 h 1 min"), (90_000_000, "1 d 1 h")] {
            assert_eq!(span(ms), expected);
        }
    }

    #[test]
    fn times_of_every_age_have_a_form() {
        for nanos in [i64::MIN, -1, 0, i64::MAX] {
            assert!(!listed_time(Timestamp(nanos), Local::now()).is_empty());
            assert!(!full_time(Timestamp(nanos)).is_empty());
        }
    }
}
