//! The system call that has no safe form in the libraries. Its block of unsafe
//! code says why it is sound.
#![expect(unsafe_code, reason = "a call into libc, with its reason")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Asks the kernel to begin to write what is dirty of `file`, and does not wait for it: neither the bytes nor the length are on the disk before a
/// later flush has returned. Fails where the file system cannot; errors of the disk are that flush's to tell.
pub(crate) fn begin_write_back(file: &File) -> io::Result<()> {
    // SAFETY: plain integers and a descriptor that `file` keeps open.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
