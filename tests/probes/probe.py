"""Says what calls do in the current directory, a line each: NAME, a tab, RESULT.

The same program runs on ext4 and on a mount (tests/tests/ext4.rs), so a result holds nothing that differs between two runs:
no times, numbers of inodes or paths. A call that fails is the name of its errno.
"""

import ctypes
import errno
import os
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
OWNER, OTHER = 61001, 61002
KIB = 1 << 10
# Of the mount's files; a multiple of the blocks of ext4.
BLOCK = 256 * KIB


def number(value):
    """An argument of a system call; all are 64 bits wide."""
    return value if isinstance(value, (bytes, ctypes.Array, ctypes.c_void_p)) or value is None else ctypes.c_long(value)


def call(name, *arguments):
    """Calls a function of the C library; its result, or OSError."""
    function = getattr(libc, name)
    result = function(*(arguments if function.argtypes else map(number, arguments)))
    if result is None or result == -1 or result == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), name)
    return result


def outcome(run):
    """What `run` returned as text, or the name of the errno with which it failed."""
    try:
        result = run()
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e.errno))
    return "ok" if result is None else str(result)


def case(name, run):
    print(f"{name}\t{outcome(run)}", flush=True)


def in_child(run):
    """Runs `run` in a process of its own; what it returned or raised, or the name of the signal that ended it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, outcome(run).encode())
        except BaseException as e:
            os.write(writer, f"{type(e).__name__}: {e}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said


def as_user(user, run, groups=()):
    """Runs `run` as another user; 0 is root."""
    if user == 0:
        return in_child(run)

    def changed():
        os.setgroups(groups)
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return run()

    return in_child(changed)


def user_name(user):
    return {0: "root", OWNER: "owner", OTHER: "other"}[user]


def make(name, content=b"", mode=0o644, owner=None):
    """A fresh file, and its name."""
    if os.path.lexists(name):
        os.unlink(name)
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(fd, content)
    os.close(fd)
    if owner is not None:
        os.chown(name, owner, owner)
    os.chmod(name, mode)
    return name


class opened:
    """An open descriptor, closed at the end of the block."""

    def __init__(self, name, flags, mode=0o644):
        self.fd = os.open(name, flags, mode)

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        os.close(self.fd)


os.umask(0o022)
sys.stdout.reconfigure(line_buffering=True)
