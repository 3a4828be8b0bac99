//! Copying from one open file to another: what was decided in [`copy`], carried out on
//! two cache files.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::fs::File;
use std::os::unix::fs::FileExt;

use dfs_common::attributes::Timestamp;
use dfs_common::{Error, Result};

use super::{Content, NotYet, State, check_size, set_aside};
use crate::cache::copy::{self, Piece};
use crate::cache::file::read_filled;
use crate::system;

/// Bytes that are copied at once where the kernel does not copy.
const COPY_BUFFER: u64 = 256 << 10;

/// Why a copy could not be made at once.
#[derive(Debug)]
pub enum CopyNotYet {
    /// These blocks of the source have to be fetched first.
    Source(Vec<u32>),
    /// The target has to be ready first.
    Target(NotYet),
}

impl Content {
    /// Copies up to `len` bytes at `from` of `source` (which may be this content) to `to`; fewer where the source ends.
    /// Whole blocks that servers have stay blocks that servers have.
    pub fn copy_from(&self, source: &Self, from: u64, to: u64, len: u64, now: Timestamp) -> Result<u64, CopyNotYet> {
        // In one order everywhere, so that copies in opposite directions do not wait for each other.
        let (mut state, other) = match std::ptr::from_ref(self).cmp(&std::ptr::from_ref(source)) {
            Less => {
                let state = self.state.lock();
                (state, Some(source.state.lock()))
            }
            Equal => (self.state.lock(), None),
            Greater => {
                let other = source.state.lock();
                (self.state.lock(), Some(other))
            }
        };
        let source_map = other.as_ref().map_or(&state.map, |other| &other.map);
        let len = len.min(source_map.size().saturating_sub(from));
        check_size(to, len).map_err(CopyNotYet::Target)?;
        if state.aside {
            return Err(CopyNotYet::Target(NotYet::Failed(set_aside())));
        }
        if state.committing {
            return Err(CopyNotYet::Target(NotYet::Committing));
        }
        if len == 0 {
            return Ok(0);
        }
        let plan = copy::plan(source_map, &state.map, from, to, len);
        if !plan.needed_of_source.is_empty() {
            return Err(CopyNotYet::Source(plan.needed_of_source));
        }
        if !plan.needed_of_target.is_empty() {
            return Err(CopyNotYet::Target(NotYet::Missing(plan.needed_of_target)));
        }
        let done = self.copy_pieces(&mut state, &source.file, &plan.pieces, (from, to, len));
        state.mtime = Some(now);
        done.map_err(|e| CopyNotYet::Target(NotYet::Failed(e)))?;
        state.written = true;
        Ok(len)
    }

    fn copy_pieces(&self, state: &mut State, source: &File, pieces: &[Piece], (from, to, len): (u64, u64, u64)) -> Result<()> {
        for (n, piece) in pieces.iter().enumerate() {
            let (start, end) = piece.span(state.map.bits(), to + len);
            if let Err(e) = self.copy_piece(state, source, *piece, (start, end), from + (start - to)) {
                // The map must not call equal to a version what is overwritten in part.
                state.map.copied(&pieces[..n], start);
                let touched = end.min(state.map.size()).saturating_sub(start);
                state.map.wrote(start, touched);
                self.file.set_len(state.map.size()).map_err(|e| Error::from_io(&e, "cache file"))?;
                return Err(e);
            }
        }
        state.map.copied(pieces, to + len);
        // Last, so that a crash before does not leave zeros at the end. A hole there has not made the file longer yet.
        self.file.set_len(state.map.size()).map_err(|e| Error::from_io(&e, "cache file"))
    }

    fn copy_piece(&self, state: &State, source: &File, piece: Piece, (start, end): (u64, u64), from: u64) -> Result<()> {
        for (at, to, missing) in state.map.pieces(start, end - start) {
            let result = match piece {
                Piece::Hole(_) => system::punch_hole(&self.file, at, to - at),
                Piece::Block(..) | Piece::Bytes(..) => copy_bytes(source, from + (at - start), &self.file, at, to - at),
            };
            result.map_err(|e| Error::from_io(&e, "cache file"))?;
            if missing {
                state.note_present(at, to)?;
            }
        }
        Ok(())
    }
}

/// Copies bytes from one cache file to another or within one, in the kernel where it can.
fn copy_bytes(source: &File, mut from: u64, target: &File, mut to: u64, len: u64) -> std::io::Result<()> {
    let end = to + len;
    while to < end {
        let copied = match system::copy_range((source, from), (target, to), end - to) {
            // Behind its end a cache file stands for zeros.
            Ok(0) => return system::punch_hole(target, to, end - to),
            Ok(copied) => copied,
            Err(_) => {
                let buffer = read_filled(source, from, (end - to).min(COPY_BUFFER) as usize)?;
                target.write_all_at(&buffer, to)?;
                buffer.len() as u64
            }
        };
        (from, to) = (from + copied, to + copied);
    }
    Ok(())
}
