//! Opens that the kernel serves from the cache file itself (passthrough): reads and
//! mappings of what is complete and unchanged never come here, and cost what they cost
//! on the disk below.
//!
//! As long as anything of a node is open, every open of it is served the same way, as
//! the first one was. Who opens a file for writing while it is served from its cache
//! file gets the same, but for read(2) and write(2), which come here all the same: what
//! changes must be known, and must wait while a version is committed. Only stores to a
//! mapping escape; [`Content::may_be_mapped`] has them looked for at each commit.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Vfs;
use super::events::KernelCache;
use super::open::Intent;
use crate::cache::Content;

/// A smaller file is read in one request, and then is in the kernel's page cache.
const MIN_SIZE: u64 = 128 << 10;

/// A cache file from which the kernel serves.
#[derive(Debug)]
pub struct Backing {
    number: u32,
    kernel: Arc<dyn KernelCache>,
}

impl Backing {
    fn new(kernel: &Arc<dyn KernelCache>, file: &File) -> io::Result<Self> {
        kernel.back(file).map(|number| Self { number, kernel: kernel.clone() })
    }

    /// The kernel's number of it.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(e) = self.kernel.end_backing(self.number) {
            log::debug!("a cache file that served the kernel: {e}");
        }
    }
}

/// How the kernel serves an open file.
#[derive(Clone, Debug)]
pub enum Io {
    /// From its page cache, and from here; with `direct` only from here.
    Cached {
        /// Whether the pages that it has are of this version.
        keep: bool,
        /// Whether read(2) and write(2) come here, past the page cache.
        direct: bool,
    },
    /// From the cache file; with `direct` only mappings.
    Backed {
        /// The cache file.
        backing: Arc<Backing>,
        /// Whether read(2) and write(2) come here.
        direct: bool,
    },
}

impl Io {
    /// Whether read(2) and write(2) come here past the kernel's page cache.
    pub(super) fn is_direct(&self) -> bool {
        match self {
            Self::Cached { direct, .. } | Self::Backed { direct, .. } => *direct,
        }
    }
}

impl Vfs {
    /// For the first open of `content`: the cache file, if the kernel can serve from it.
    pub(super) fn back(&self, content: &Content, intent: Intent) -> Option<Arc<Backing>> {
        if intent.write || intent.direct || !self.backs.load(Ordering::Relaxed) || content.size() < MIN_SIZE || !content.is_whole() {
            return None;
        }
        let kernel = self.kernel.get()?;
        match content.with_file(|file| Backing::new(kernel, file)) {
            Ok(backing) => Some(Arc::new(backing)),
            Err(e) => {
                let for_good = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOTTY, libc::EINVAL, libc::ELOOP];
                if e.raw_os_error().is_some_and(|errno| for_good.contains(&errno)) {
                    self.backs.store(false, Ordering::Relaxed);
                    log::info!("the kernel does not serve from cache files here, so that reads pass through this program: {e}");
                }
                None
            }
        }
    }
}
