//! The system calls that have no safe form in the standard library. Each
//! block of unsafe code says why it is sound.
#![expect(unsafe_code, reason = "calls into libc, each with its reason")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Frees the blocks of a range, which then reads as zeros; the length stays.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: plain integers and a descriptor that `file` keeps open.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) }).map(|_| ())
}

/// Copies bytes between files in the kernel; as copy_file_range(2) it may do less than it was asked for.
pub(crate) fn copy_range(from: (&File, u64), to: (&File, u64), len: u64) -> io::Result<u64> {
    let (mut from_offset, mut to_offset) = (from.1 as libc::off64_t, to.1 as libc::off64_t);
    // SAFETY: two descriptors that their files keep open, and offsets that live until the call returns.
    let copied = unsafe {
        libc::copy_file_range(from.0.as_raw_fd(), &mut from_offset, to.0.as_raw_fd(), &mut to_offset, usize::try_from(len).unwrap_or(usize::MAX), 0)
    };
    u64::try_from(copied).map_err(|_| io::Error::last_os_error())
}

/// The next byte at or after `offset` that is not in a hole; `None` behind the last one.
pub(crate) fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    // SAFETY: plain integers and a descriptor that `file` keeps open.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(at) => Ok(Some(at)),
        Err(_) => Some(io::Error::last_os_error()).filter(|e| e.raw_os_error() != Some(libc::ENXIO)).map_or(Ok(None), Err),
    }
}

/// Takes back the number by which the FUSE mount behind `device` serves from a file.
pub(crate) fn end_backing(device: &File, number: u32) -> io::Result<()> {
    /// FUSE_DEV_IOC_BACKING_CLOSE: _IOW(229, 2, u32)
    const BACKING_CLOSE: libc::Ioctl = 0x4004_e502;
    // SAFETY: a descriptor that `device` keeps open, and a number that lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &number) }).map(|_| ())
}

/// How many descriptors this process may have.
pub(crate) fn descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a structure of the right type that lives until the call returns.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(limit.rlim_cur)
}

/// Allows this process as many descriptors as it may allow itself; how many that is.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a structure of the right type that lives until the calls return.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    descriptor_limit()
}

/// Ends this process at once, as a crash would.
pub(crate) fn kill_self() {
    // SAFETY: numbers only.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Takes an exclusive lock on an open file, or says that another process has it.
pub(crate) fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: a descriptor that `file` keeps open.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(|_| ())
}

/// (free bytes for this user, all bytes) of the file system that holds `path`.
pub(crate) fn space(path: &Path) -> io::Result<(u64, u64)> {
    let path = c_path(path)?;
    // SAFETY: statvfs is plain data, for which zeros are valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a buffer of the right type, both alive during the call.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut stat) })?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

extern "C" fn note_signal(_signal: libc::c_int) {
    if ASKED_TO_END.swap(true, Ordering::Relaxed) {
        // SAFETY: a number only; allowed in a handler.
        unsafe { libc::_exit(130) };
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP are noted, and the second of them ends this process at once.
///
/// They are noted before the wait for a child that got the same signal returns.
pub(crate) fn note_signals() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: sigaction is plain data, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = note_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: a structure of the right type, and a handler that only touches an atomic and may end the process.
        check(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

/// Whether one of the signals of [`note_signals`] has come.
pub(crate) fn is_asked_to_end() -> bool {
    ASKED_TO_END.load(Ordering::Relaxed)
}

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The parent.
    Parent,
    /// The child, in a session of its own.
    Child,
}

/// Splits the process. Must be called before any thread exists.
pub(crate) fn fork_daemon() -> io::Result<Forked> {
    // SAFETY: the process has one thread, so the child inherits no lock that nobody holds.
    match check(unsafe { libc::fork() })? {
        0 => {
            // SAFETY: no arguments; a fresh child is no group leader, so it cannot fail.
            check(unsafe { libc::setsid() })?;
            Ok(Forked::Child)
        }
        _ => Ok(Forked::Parent),
    }
}

/// A process that does a part of this one's work; it is killed where this value is dropped.
#[derive(Debug)]
pub(crate) struct Worker(libc::pid_t);

impl Worker {
    /// Splits off a process that does `work`. It ends with it, and where this one ends.
    ///
    /// `work` may allocate, but takes no lock that another thread may hold just now: not even those of the standard streams.
    pub(crate) fn start(work: impl FnOnce() -> io::Result<()>) -> io::Result<Self> {
        // SAFETY: the child has this thread only, and the C library's allocator is usable in it; `work` takes no lock.
        match check(unsafe { libc::fork() })? {
            0 => {
                // SAFETY: takes numbers only; it cannot fail for a signal that exists.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                let code = match done {
                    Ok(Ok(())) => 0,
                    Ok(Err(e)) => e.raw_os_error().filter(|errno| (1..=254).contains(errno)).unwrap_or(libc::EIO),
                    Err(_) => 255,
                };
                // SAFETY: ends the process without running what belongs to the parent: destructors, buffers.
                unsafe { libc::_exit(code) }
            }
            pid => Ok(Self(pid)),
        }
    }

    /// Waits for its end; its error is that of the work.
    pub(crate) fn wait(mut self) -> io::Result<()> {
        let mut status = 0;
        loop {
            // SAFETY: a place for the status that lives until the call returns.
            match check(unsafe { libc::waitpid(self.0, &mut status, 0) }) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        // It is nobody's any more.
        self.0 = 0;
        match libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)) {
            Some(0) => Ok(()),
            Some(errno @ 1..=254) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::Error::other("a process that did a part of the work was killed, or panicked")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.0 > 0 {
            // SAFETY: takes numbers only; a child that nobody has waited for keeps its number.
            unsafe { libc::kill(self.0, libc::SIGKILL) };
            // SAFETY: no place for a status is asked for.
            unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
        }
    }
}

/// Makes standard input, output and (unless `keep_stderr`) error those of `file`.
pub(crate) fn redirect_standard_streams(file: &File, keep_stderr: bool) -> io::Result<()> {
    let streams = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
    for &stream in if keep_stderr { &streams[..2] } else { &streams[..] } {
        // SAFETY: two descriptors; the standard ones are never owned by a Rust object here.
        check(unsafe { libc::dup2(file.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// Changes the flags of an existing mount (`mount -o remount`).
pub(crate) fn remount(mountpoint: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let target = c_path(mountpoint)?;
    // SAFETY: a NUL-terminated path; source, type and data may be null for a remount.
    check(unsafe { libc::mount(std::ptr::null(), target.as_ptr(), std::ptr::null(), libc::MS_REMOUNT | flags, std::ptr::null()) }).map(|_| ())
}

/// Takes a mount out of the tree at once; it ends when nobody uses it any more.
pub(crate) fn detach(mountpoint: &Path) -> io::Result<()> {
    let target = c_path(mountpoint)?;
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(|_| ())
}

/// The name of this host.
pub(crate) fn host_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: a buffer and its length; the result is NUL-terminated as one byte is kept back.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    let end = buffer.iter().position(|&b| b == 0).unwrap_or(0);
    if result == 0 && end > 0 { String::from_utf8_lossy(&buffer[..end]).into_owned() } else { "localhost".to_owned() }
}

/// The effective user and group.
pub(crate) fn user() -> (u32, u32) {
    // SAFETY: no arguments, cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Closes a file and returns what close(2) does: that is where some file systems say what they could not store.
pub(crate) fn close(file: File) -> io::Result<()> {
    // SAFETY: nobody else owns the descriptor, `file` has given it up.
    check(unsafe { libc::close(file.into_raw_fd()) }).map(|_| ())
}

/// Writes out everything that is dirty in the file system that holds `file`.
pub(crate) fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: a descriptor that `file` keeps open.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(|_| ())
}

/// Asks the kernel to forget the pages of a file that are not dirty; whether it did, [`Mapping::resident`] says.
pub(crate) fn drop_pages(file: &File) -> io::Result<()> {
    // SAFETY: plain integers and a descriptor that `file` keeps open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// How long a process has been running on a processor, with all its threads, also those that ended.
pub(crate) fn processor_time(pid: libc::pid_t) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: a number, and a place for the clock's that lives until the call returns.
    match unsafe { libc::clock_getcpuclockid(pid, &mut clock) } {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a number, and a structure of the right type that lives until the call returns.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// The first bytes of a file, mapped for reading.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes, of which there must be at least one. Who reads what the file has lost since gets SIGBUS.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that `file` keeps open.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { address, len }) }
    }

    /// Copies what stands from `offset` on into `out`; panics where that is beyond what was mapped.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset.checked_add(out.len()).is_some_and(|end| end <= self.len), "inside of the mapping");
        // SAFETY: the range was checked; no reference into the mapping is made, so others may write into the file.
        unsafe { std::ptr::copy_nonoverlapping(self.address.cast::<u8>().add(offset), out.as_mut_ptr(), out.len()) };
    }

    /// How many of its pages are in memory.
    pub(crate) fn resident(&self) -> io::Result<usize> {
        // SAFETY: a number only.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        let mut pages = vec![0_u8; self.len.div_ceil(page)];
        // SAFETY: the mapping lives as long as `self`, and there is one byte for each of its pages.
        check(unsafe { libc::mincore(self.address, self.len, pages.as_mut_ptr()) })?;
        Ok(pages.iter().filter(|&&page| page & 1 != 0).count())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and no reference into it exists.
        unsafe { libc::munmap(self.address, self.len) };
    }
}
