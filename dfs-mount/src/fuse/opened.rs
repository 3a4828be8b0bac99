//! Answers to open and create. A file that is served from a cache file is named by the
//! kernel's number of that, which the library wants wrapped.
#![expect(unsafe_code, reason = "numbers of cache files, each with its reason")]

use std::time::Duration;

use fuser::{BackingId, FileAttr, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};

use crate::vfs::backing::Io;
use crate::vfs::open::Opened;

fn flags(io: &Io) -> FopenFlags {
    let (keep, direct) = match *io {
        Io::Cached { keep, direct } => (keep, direct),
        // Direct I/O overrules the cache file for everything but mappings.
        Io::Backed { direct, .. } => (false, direct),
    };
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, direct);
    flags
}

/// The number stays its owner's: the wrapping must not close it.
fn lend(wrapped: BackingId, answer: impl FnOnce(&BackingId)) {
    answer(&wrapped);
    wrapped.into_raw();
}

pub(super) fn opened(reply: ReplyOpen, opened: &Opened) {
    let (handle, flags) = (FileHandle(opened.handle), flags(&opened.io));
    match &opened.io {
        Io::Cached { .. } => reply.opened(handle, flags),
        Io::Backed { backing, .. } => {
            // SAFETY: the number is of this mount, open as long as `backing` lives, and not closed by the wrapping.
            let wrapped = unsafe { reply.wrap_backing(backing.number()) };
            lend(wrapped, |id| reply.opened_passthrough(handle, flags, id));
        }
    }
}

pub(super) fn created(reply: ReplyCreate, ttl: Duration, attributes: &FileAttr, generation: Generation, opened: &Opened) {
    let (handle, flags) = (FileHandle(opened.handle), flags(&opened.io));
    match &opened.io {
        Io::Cached { .. } => reply.created(&ttl, attributes, generation, handle, flags),
        Io::Backed { backing, .. } => {
            // SAFETY: as above.
            let wrapped = unsafe { reply.wrap_backing(backing.number()) };
            lend(wrapped, |id| reply.created_passthrough(&ttl, attributes, generation, handle, flags, id));
        }
    }
}
