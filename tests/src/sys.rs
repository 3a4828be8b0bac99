//! The system calls that std does not have: the one module with unsafe code.

#![expect(unsafe_code, reason = "system calls that the standard library does not offer")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};

/// A modification or access time to leave alone, for [`set_times`].
pub const OMIT: (i64, i64) = (0, libc::UTIME_OMIT);

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// kill(2); a process that is gone already is fine.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::kill(pid, signal) };
}

/// Whether the calling thread is root; another one may be somebody else ([`as_user`]).
pub fn is_root() -> bool {
    // SAFETY: takes nothing, and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Runs `work` on a thread of its own that is user `uid` of group `gid`, with `groups` besides, and has no privileges but root's.
pub fn as_user<T: Send>(uid: u32, gid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    let become_user = || -> io::Result<()> {
        // SAFETY: the list lives until the call returns. The system calls themselves, unlike the functions of libc, concern
        // only the calling thread.
        check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
        // SAFETY: takes numbers only.
        check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
        // SAFETY: takes numbers only.
        check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(|_| ())
    };
    let thread = || {
        become_user().expect("tests run as root");
        work()
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Whether a child, which nobody has waited for, has ended.
pub fn has_ended(pid: i32) -> bool {
    // SAFETY: only numbers, of which zeroes are valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: a pid and a place for the answer that lives until the call returns. It stays to be waited for.
    check(i64::from(unsafe { libc::waitid(libc::P_PID, pid as u32, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) }))
        .expect("it is a child");
    // SAFETY: the kernel has written what waitid(2) writes, or nothing.
    unsafe { info.si_pid() == pid }
}

/// Waits for a child's end.
pub fn wait(pid: i32) -> ExitStatus {
    let mut status = 0;
    loop {
        // SAFETY: a pid and a place for the status that lives until the call returns.
        match check(i64::from(unsafe { libc::waitpid(pid, &raw mut status, 0) })) {
            Ok(_) => return ExitStatus::from_raw(status),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => panic!("waiting for process {pid}: {e}"),
        }
    }
}

/// Runs `work` in a thread that has none of this process's open files; numbers of files mean nothing elsewhere that are opened there.
///
/// A program that is started elsewhere inherits all of them, and its exec(2) closes them again: on a mount that is a flush, which waits
/// for the services. Where the program is the service that is away, they would wait for each other; and what another test has open
/// and written is published before that closes it.
pub fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    type Job = Box<dyn FnOnce() + Send>;
    /// A thread's new threads share its files. This one is there before the first mount: to take its copies of their files away would flush.
    static MOTHER: LazyLock<Sender<Job>> = LazyLock::new(|| {
        const FIRST: libc::c_uint = 3;
        let (jobs, todo) = channel::<Job>();
        let (ready, is_ready) = channel();
        std::thread::spawn(move || {
            // SAFETY: takes numbers only. The thread gets a table of its own, which lacks what this closes; nothing is closed for the others.
            let closed = check(unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) });
            ready.send(closed).expect("somebody waits");
            todo.into_iter().for_each(|job| job());
        });
        is_ready.recv().expect("the thread begins").expect("close_range");
        jobs
    });
    let (begin, begun) = channel();
    let job = move || begin.send(std::thread::spawn(work)).expect("somebody waits");
    MOTHER.send(Box::new(job)).expect("the thread never ends");
    begun.recv().expect("a thread begins").join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// From now on the calling thread runs when all others have had their share (nice 19).
pub fn run_last() {
    // SAFETY: takes numbers only; 0 is the calling thread.
    check(i64::from(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) })).expect("anybody may be nicer");
}

/// sendfile(2) of at most `length` bytes. Unlike read(2) it does not ask for the file's length first.
pub fn send_file(from: &File, to: &File, length: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are open, and no offset is passed.
    let sent = unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), std::ptr::null_mut(), length) };
    check(sent as i64).map(|sent| sent as usize)
}

/// close(2) with its error, which dropping a [`File`] hides.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was owned by `file` and is given up here.
    check(i64::from(unsafe { libc::close(file.into_raw_fd()) })).map(|_| ())
}

/// Makes the end of `stream` an RST instead of a FIN (`SO_LINGER` of 0 s).
pub fn reset_on_close(stream: &std::net::TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: an open socket; pointer and length describe `linger`, which lives until the call returns.
    unsafe {
        let (value, size) = (std::ptr::from_ref(&linger).cast(), size_of::<libc::linger>() as libc::socklen_t);
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, size);
    }
}

/// How long a process has been on a processor, with the threads of it that have ended.
pub fn processor_time(pid: i32) -> io::Result<std::time::Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: a number, and a place for the clock's that lives until the call returns.
    match unsafe { libc::clock_getcpuclockid(pid, &mut clock) } {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a number, and a structure of the right type that lives until the call returns.
    check(i64::from(unsafe { libc::clock_gettime(clock, &mut time) }))?;
    Ok(std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Raises this process's soft limit of descriptors to `count` where it is lower. An error where the hard limit is.
pub fn want_descriptors(count: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a structure of the right type that lives until the call returns.
    check(i64::from(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }))?;
    limit.rlim_cur = limit.rlim_cur.max(count);
    // SAFETY: as above.
    check(i64::from(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })).map(|_| ())
}

/// A thread of another process, traced by the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traced(pub i32);

/// Where a traced thread is in a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// It begins, with these arguments.
    Entry(u64, [u64; 6]),
    /// It has returned this.
    Exit(i64),
    /// In none.
    Elsewhere,
}

impl Traced {
    fn request(self, request: u32, address: usize, data: usize) -> io::Result<i64> {
        // SAFETY: none of the requests made here writes anywhere but into what `call` gives it.
        check(unsafe { libc::ptrace(request, self.0, address, data) })
    }

    /// Begins to trace it, and threads that it starts from then on; it stops for the first time soon.
    pub fn begin(thread: i32) -> io::Result<Self> {
        let this = Self(thread);
        this.request(libc::PTRACE_SEIZE, 0, (libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE) as usize)?;
        this.stop()?;
        Ok(this)
    }

    /// Lets it stop wherever it is.
    pub fn stop(self) -> io::Result<()> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0).map(|_| ())
    }

    /// Lets it go on, with a signal or 0, until the next beginning or end of a system call.
    pub fn go_on(self, signal: i32) -> io::Result<()> {
        self.request(libc::PTRACE_SYSCALL, 0, signal as usize).map(|_| ())
    }

    /// Leaves it where it was in a group that has stopped.
    pub fn listen(self) -> io::Result<()> {
        self.request(libc::PTRACE_LISTEN, 0, 0).map(|_| ())
    }

    /// Lets it go on, with a signal or 0, and traces it no more.
    pub fn end(self, signal: i32) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH, 0, signal as usize).map(|_| ())
    }

    /// Where it has stopped.
    pub fn call(self) -> io::Result<At> {
        let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
        self.request(libc::PTRACE_GET_SYSCALL_INFO, size_of::<libc::ptrace_syscall_info>(), info.as_mut_ptr() as usize)?;
        // SAFETY: the kernel has filled as much of it as `op` says, and all zeros is a valid value anyway.
        let info = unsafe { info.assume_init() };
        Ok(match info.op {
            // SAFETY: `op` says which member counts.
            libc::PTRACE_SYSCALL_INFO_ENTRY => unsafe { At::Entry(info.u.entry.nr, info.u.entry.args) },
            // SAFETY: as above.
            libc::PTRACE_SYSCALL_INFO_EXIT => At::Exit(unsafe { info.u.exit.sval }),
            _ => At::Elsewhere,
        })
    }
}

/// Waits until a thread that the calling thread traces stops or ends; with its status as waitpid(2) says it, `None` where it traces none.
pub fn wait_traced() -> io::Result<Option<(Traced, i32)>> {
    let mut status = 0;
    // SAFETY: a place for the status that lives until the call returns.
    let result = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
    match check(i64::from(result)) {
        Ok(thread) => Ok(Some((Traced(thread as i32), status))),
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(e) => Err(e),
    }
}

/// renameat2(2) with `flags`.
pub fn rename2(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (path(from), path(to));
    // SAFETY: both strings end with NUL and live until the call returns.
    let result = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    check(i64::from(result)).map(|_| ())
}

/// mknod(2): `mode` includes the type.
pub fn mknod(at: &Path, mode: u32, device: u64) -> io::Result<()> {
    let at = path(at);
    // SAFETY: the string ends with NUL and lives until the call returns.
    check(i64::from(unsafe { libc::mknod(at.as_ptr(), mode, device) })).map(|_| ())
}

/// utimensat(2) without following a symlink; seconds and nanoseconds.
pub fn set_times(at: &Path, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let at = path(at);
    let times = [libc::timespec { tv_sec: atime.0, tv_nsec: atime.1 }, libc::timespec { tv_sec: mtime.0, tv_nsec: mtime.1 }];
    // SAFETY: the string ends with NUL, the array has the two elements that the call reads.
    let result = unsafe { libc::utimensat(libc::AT_FDCWD, at.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    check(i64::from(result)).map(|_| ())
}

/// lsetxattr(2).
pub fn set_xattr(at: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (at, name) = (path(at), CString::new(name).expect("no NUL"));
    // SAFETY: strings end with NUL; pointer and length describe `value`.
    let result = unsafe { libc::lsetxattr(at.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    check(i64::from(result)).map(|_| ())
}

/// lgetxattr(2).
pub fn get_xattr(at: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (at, name) = (path(at), CString::new(name).expect("no NUL"));
    let mut value = vec![0_u8; 65_536];
    // SAFETY: strings end with NUL; pointer and length describe `value`.
    let result = unsafe { libc::lgetxattr(at.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(check(result as i64)? as usize);
    Ok(value)
}

/// lremovexattr(2).
pub fn remove_xattr(at: &Path, name: &str) -> io::Result<()> {
    let (at, name) = (path(at), CString::new(name).expect("no NUL"));
    // SAFETY: both strings end with NUL.
    check(i64::from(unsafe { libc::lremovexattr(at.as_ptr(), name.as_ptr()) })).map(|_| ())
}

/// llistxattr(2), sorted.
pub fn list_xattrs(at: &Path) -> io::Result<Vec<String>> {
    let at = path(at);
    let mut names = vec![0_u8; 65_536];
    // SAFETY: the string ends with NUL; pointer and length describe `names`.
    let result = unsafe { libc::llistxattr(at.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check(result as i64)? as usize);
    let mut list: Vec<String> = names.split(|&b| b == 0).filter(|n| !n.is_empty()).map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    list.sort();
    Ok(list)
}

/// statvfs(2).
pub fn statvfs(at: &Path) -> io::Result<libc::statvfs> {
    let at = path(at);
    let mut out = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the string ends with NUL; the struct is filled on success, and all zeros is a valid value anyway.
    check(i64::from(unsafe { libc::statvfs(at.as_ptr(), out.as_mut_ptr()) }))?;
    // SAFETY: initialized above.
    Ok(unsafe { out.assume_init() })
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE.
pub fn seek(file: &File, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// truncate(2), without an open file.
pub fn truncate(at: &Path, size: i64) -> io::Result<()> {
    let at = path(at);
    // SAFETY: the string ends with NUL and lives until the call returns.
    check(i64::from(unsafe { libc::truncate(at.as_ptr(), size) })).map(|_| ())
}

/// syncfs(2): everything that was written to the file system that holds `file` is on its device.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check(i64::from(unsafe { libc::syncfs(file.as_raw_fd()) })).map(|_| ())
}

/// fallocate(2).
pub fn fallocate(file: &File, mode: i32, offset: i64, length: i64) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(i64::from(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) })).map(|_| ())
}

/// copy_file_range(2), once: from (file, offset) to (file, offset).
pub fn copy_range(from: (&File, i64), to: (&File, i64), length: usize) -> io::Result<usize> {
    let (mut from_offset, mut to_offset) = (from.1, to.1);
    // SAFETY: open descriptors, and offsets that live until the call returns.
    let copied = unsafe { libc::copy_file_range(from.0.as_raw_fd(), &mut from_offset, to.0.as_raw_fd(), &mut to_offset, length, 0) };
    check(copied as i64).map(|copied| copied as usize)
}

/// flock(2).
pub fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(i64::from(unsafe { libc::flock(file.as_raw_fd(), operation) })).map(|_| ())
}

/// fcntl(2) with F_SETLK or, with `wait`, F_SETLKW: `kind` is F_RDLCK, F_WRLCK or F_UNLCK; a length of 0 goes on for ever.
pub fn lock_range(file: &File, kind: i32, start: i64, length: i64, wait: bool) -> io::Result<()> {
    let lock = range(kind, start, length);
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    // SAFETY: the descriptor is open and the structure lives until the call returns.
    check(i64::from(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) })).map(|_| ())
}

/// fcntl(2) with F_GETLK: kind, start, length and process of the lock in the way.
pub fn test_range(file: &File, kind: i32, start: i64, length: i64) -> io::Result<Option<(i32, i64, i64, i32)>> {
    let mut lock = range(kind, start, length);
    // SAFETY: as above.
    check(i64::from(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) }))?;
    let kind = i32::from(lock.l_type);
    Ok((kind != libc::F_UNLCK).then_some((kind, lock.l_start, lock.l_len, lock.l_pid)))
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 }
}

/// Writes `bytes` at `offset` through a shared mapping of the first `length` bytes, msync included.
pub fn write_mapped(file: &File, length: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
    assert!(offset + bytes.len() <= length, "inside the mapping");
    // SAFETY: a fresh mapping of `length` bytes of an open file, which is unmapped before the return; the copy stays inside.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast::<u8>().add(offset), bytes.len());
        let synced = check(i64::from(libc::msync(at, length, libc::MS_SYNC))).map(|_| ());
        libc::munmap(at, length);
        synced
    }
}

/// Writes `bytes` at `offset` as if the file had been opened with O_DSYNC; returns how many.
pub fn write_durably(file: &File, offset: i64, bytes: &[u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one part, which is only read, and which lives until the call returns.
    check(unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, offset, libc::RWF_DSYNC) } as i64).map(|written| written as usize)
}

/// The first `length` bytes of `file` as a private mapping shows them.
pub fn read_mapped(file: &File, length: usize) -> io::Result<Vec<u8>> {
    // SAFETY: a fresh mapping of `length` bytes that is copied from and unmapped before the return.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), length).to_vec();
        libc::munmap(at, length);
        Ok(bytes)
    }
}

/// The error number of a call that must fail.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("it must fail").raw_os_error().expect("an errno")
}

/// A directory stream: opendir(3), readdir(3), telldir(3), seekdir(3), rewinddir(3).
#[derive(Debug)]
pub struct DirectoryStream(std::ptr::NonNull<libc::DIR>);

// SAFETY: POSIX forbids only that several threads use a stream at once, which `&mut self` excludes.
unsafe impl Send for DirectoryStream {}

impl DirectoryStream {
    /// opendir(3).
    pub fn open(at: &Path) -> io::Result<Self> {
        let at = path(at);
        // SAFETY: the string ends with NUL and lives until the call returns.
        let stream = unsafe { libc::opendir(at.as_ptr()) };
        std::ptr::NonNull::new(stream).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// The next name, `.` and `..` left out, and where telldir(3) says that the stream is behind it.
    pub fn read(&mut self) -> io::Result<Option<(Vec<u8>, i64)>> {
        loop {
            // SAFETY: the stream is open; the entry is copied before the next call on it. errno tells the end from an error.
            let (name, at) = unsafe {
                *libc::__errno_location() = 0;
                let entry = libc::readdir(self.0.as_ptr());
                if entry.is_null() {
                    let error = io::Error::last_os_error();
                    return if error.raw_os_error() == Some(0) { Ok(None) } else { Err(error) };
                }
                (std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes().to_vec(), libc::telldir(self.0.as_ptr()))
            };
            if name != b"." && name != b".." {
                return Ok(Some((name, at)));
            }
        }
    }

    /// All names from here on.
    pub fn read_all(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        while let Some((name, _)) = self.read()? {
            names.push(name);
        }
        Ok(names)
    }

    /// seekdir(3) to what [`DirectoryStream::read`] gave.
    pub fn seek(&mut self, at: i64) {
        // SAFETY: the stream is open.
        unsafe { libc::seekdir(self.0.as_ptr(), at) };
    }

    /// rewinddir(3).
    pub fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0.as_ptr()) };
    }
}

impl Drop for DirectoryStream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it any more.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

/// A handle of a file, without its name: name_to_handle_at(2), open_by_handle_at(2).
#[derive(Clone, Debug)]
pub struct Handle {
    /// Length, type, and as many bytes as the length says: as the kernel lays it out, in words.
    words: Vec<u32>,
}

/// The longest handle (MAX_HANDLE_SZ).
const HANDLE_MAX: usize = 128;

impl Handle {
    /// Of what is at `at`.
    pub fn of(at: &Path) -> io::Result<Self> {
        let at = path(at);
        let mut words = vec![0_u32; 2 + HANDLE_MAX / 4];
        words[0] = HANDLE_MAX as u32;
        let mut mount = 0_i32;
        // SAFETY: the string ends with NUL; the handle's first word says how many bytes follow its header, and they do.
        let result = unsafe { libc::name_to_handle_at(libc::AT_FDCWD, at.as_ptr(), words.as_mut_ptr().cast(), &raw mut mount, 0) };
        check(i64::from(result))?;
        Ok(Self { words })
    }

    /// Opens it on the file system that `mount` is on.
    pub fn open(&self, mount: &File, flags: i32) -> io::Result<File> {
        let mut words = self.words.clone();
        // SAFETY: an open descriptor, and a handle as the kernel made it.
        let result = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), words.as_mut_ptr().cast(), flags | libc::O_CLOEXEC) };
        // SAFETY: the descriptor is new, and nobody else's.
        check(i64::from(result)).map(|fd| unsafe { File::from_raw_fd(fd as i32) })
    }
}
