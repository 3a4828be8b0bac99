"""Calls on files beyond the everyday: space and holes, direct and appending writes, mappings, running programs, leases, ioctls, renameat2."""

import array
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import subprocess

from probe import BLOCK, KIB, OTHER, OWNER, as_user, call, case, in_child, libc, make, opened

AT_FDCWD = -100
RW = os.O_RDWR
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64


def fallocate(fd, mode, offset, length):
    return call("fallocate", fd, mode, offset, length)


def state(name):
    stat = os.stat(name)
    return f"{stat.st_size} bytes, {stat.st_blocks * 512} stored"


def space():
    modes = {
        "plain": 0, "keep size": KEEP, "punch": PUNCH | KEEP, "punch without keep": PUNCH, "collapse": COLLAPSE, "collapse and keep": COLLAPSE | KEEP,
        "insert": INSERT, "zero": ZERO, "zero and keep": ZERO | KEEP, "unshare": UNSHARE, "punch and zero": PUNCH | ZERO | KEEP, "no such flag": 1 << 12,
    }
    for title, mode in modes.items():
        for where, offset, length in [("inside", BLOCK, BLOCK), ("over the end", 3 * BLOCK, 2 * BLOCK), ("behind the end", 6 * BLOCK, BLOCK)]:
            make("f", b"x" * 4 * BLOCK)
            with opened("f", RW) as fd:
                case(f"fallocate {title} {where}", lambda: fallocate(fd, mode, offset, length))
                os.fsync(fd)
            case(f"fallocate {title} {where}: after", lambda: state("f"))
    make("f", b"x")
    with opened("f", RW) as fd:
        for title, offset, length in [("length 0", 0, 0), ("negative length", 0, -1), ("negative offset", -1, 5), ("over all", 1 << 62, 1 << 62)]:
            case(f"fallocate of {title}", lambda: fallocate(fd, 0, offset, length))
    with opened("f", os.O_RDONLY) as fd:
        case("fallocate of what is read", lambda: fallocate(fd, 0, 0, 5))
    with opened(".", os.O_RDONLY) as fd:
        case("fallocate of a directory", lambda: fallocate(fd, 0, 0, 5))
    make("sparse")
    os.truncate("sparse", 1 << 40)
    case("1 TiB of a hole", lambda: state("sparse"))
    with opened("sparse", RW) as fd:
        os.pwrite(fd, b"y" * BLOCK, 4 * BLOCK)
        os.fsync(fd)
        case("a hole is not counted", lambda: state("sparse"))
        for whence in [os.SEEK_DATA, os.SEEK_HOLE]:
            for at in [0, 3 * BLOCK, 4 * BLOCK, 4 * BLOCK + 5, 5 * BLOCK, (1 << 40) - 1, 1 << 40, -1]:
                case(f"seek {whence} from {at}", lambda: os.lseek(fd, at, whence))
        fallocate(fd, PUNCH | KEEP, 4 * BLOCK, BLOCK)
        os.fsync(fd)
        case("punched again", lambda: (state("sparse"), os.lseek(fd, 0, os.SEEK_HOLE)))
        case("no data", lambda: os.lseek(fd, 0, os.SEEK_DATA))
    make("short", b"z" * 100)
    with opened("short", RW) as fd:
        case("seek hole of a short file", lambda: os.lseek(fd, 0, os.SEEK_HOLE))
        case("seek data of a short file", lambda: os.lseek(fd, 50, os.SEEK_DATA))
        case("seek before the start", lambda: os.lseek(fd, -5, os.SEEK_SET))
        case("seek with no such whence", lambda: os.lseek(fd, 0, 9))
        os.fsync(fd)
    case("one small file", lambda: state("short"))
    case("truncate to a negative size", lambda: os.truncate("short", -1))
    case("truncate far behind", lambda: os.truncate("short", 1 << 62))
    with opened("short", RW) as fd:
        case("write far behind", lambda: os.pwrite(fd, b"x", (1 << 63) - 2))


def writes():
    make("d", b"0" * 64 * KIB)
    page = mmap.mmap(-1, 16 * KIB)
    with opened("d", RW | os.O_DIRECT) as fd:
        for title, offset, length, shift in [("aligned", 4 * KIB, 4 * KIB, 0), ("at any offset", 5, 4 * KIB, 0), ("of any length", 0, 100, 0), ("from anywhere", 0, 4 * KIB, 1)]:
            case(f"O_DIRECT write {title}", lambda: os.pwritev(fd, [memoryview(page)[shift : shift + length]], offset))
            case(f"O_DIRECT read {title}", lambda: os.preadv(fd, [memoryview(page)[shift : shift + length]], offset))
        case("O_DIRECT, then read", lambda: (os.pwritev(fd, [memoryview(page)[: 4 * KIB]], 0), open("d", "rb").read(3)))
    make("a", b"12345")
    with opened("a", os.O_WRONLY | os.O_APPEND) as fd:
        case("pwrite with O_APPEND", lambda: (os.pwrite(fd, b"67", 0), open("a").read()))
        case("position with O_APPEND", lambda: (os.lseek(fd, 0, os.SEEK_SET), os.write(fd, b"8"), os.lseek(fd, 0, os.SEEK_CUR)))
        case("O_APPEND off", lambda: fcntl.fcntl(fd, fcntl.F_SETFL, 0))
        case("pwrite without it", lambda: (os.pwrite(fd, b"x", 0), open("a").read()))
    with opened("a", RW) as fd:
        case("RWF_APPEND", lambda: (os.pwritev(fd, [b"9"], 0, 0x10), open("a").read()))
        case("RWF_DSYNC", lambda: os.pwritev(fd, [b"9"], 0, os.RWF_DSYNC))
        case("RWF_NOWAIT write", lambda: os.pwritev(fd, [b"9"], 0, 8))
        case("RWF_HIPRI", lambda: os.preadv(fd, [bytearray(1)], 0, os.RWF_HIPRI))
        case("sync_file_range", lambda: call("sync_file_range", fd, 0, 5, 7))
        case("fdatasync", lambda: os.fdatasync(fd))
        case("syncfs", lambda: call("syncfs", fd))
        case("posix_fadvise", lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED))
        case("readahead", lambda: call("readahead", fd, 0, 4096))
    case("tmpfile", lambda: os.close(os.open(".", RW | 0o20200000, 0o600)))
    case("open a directory for writing", lambda: os.open(".", RW))
    case("read a directory", lambda: os.read(os.open(".", os.O_RDONLY), 5))
    for title, flags in [("O_DIRECTORY of a file", os.O_DIRECTORY), ("O_CREAT of a directory", os.O_CREAT), ("O_TRUNC for reading", os.O_TRUNC), ("O_SYNC", os.O_SYNC | RW)]:
        case(title, lambda: os.close(os.open("." if "of a directory" in title else "a", flags)))
    os.symlink("a", "l")
    case("O_NOFOLLOW", lambda: os.open("l", os.O_NOFOLLOW))
    make("n", b"x", 0o644, OWNER)
    case("O_NOATIME by the owner", lambda: as_user(OWNER, lambda: os.close(os.open("n", os.O_NOATIME))))
    case("O_NOATIME by somebody else", lambda: as_user(OTHER, lambda: os.close(os.open("n", os.O_NOATIME))))
    with opened("a", os.O_RDONLY) as fd:
        case("write of what is read", lambda: os.write(fd, b"x"))
        case("ftruncate of what is read", lambda: os.ftruncate(fd, 1))

    def limited():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with opened("limited", RW | os.O_CREAT) as fd:
            return os.write(fd, b"x" * 2000), os.write(fd, b"x")

    case("RLIMIT_FSIZE", lambda: in_child(limited))


def written_only():
    """What a descriptor for writing only writes is what readers and mappings have, before it is closed."""
    # As a new file, as one that is cached, as one that others read: the last is large.
    for title, flags, size in [("new", os.O_CREAT | os.O_EXCL, 0), ("old", 0, 3 * 4096 + 5), ("cut", os.O_TRUNC, 3 * 4096), ("large", 0, 4 * BLOCK)]:
        if "new" not in title:
            make(title, b"0" * size)
        readers = [os.open(title, os.O_RDONLY)] if title in ["old", "large"] else []
        for reader in readers:
            os.pread(reader, 4 * BLOCK, 0)
        with opened(title, os.O_WRONLY | flags) as fd:
            os.write(fd, b"a" * 5000)
            readers.append(os.open(title, os.O_RDONLY))
            reader = readers[-1]
            view = mmap.mmap(reader, 5000, prot=mmap.PROT_READ)
            case(f"{title}: read", lambda: [os.pread(r, 9, 4995) for r in readers])
            case(f"{title}: mapped", lambda: bytes(view[4995:5000]))
            for length, offset in [(1, 4095), (3, 4094), (4096, 1), (100, 4990)]:
                os.pwrite(fd, b"b" * length, offset)
                seen = lambda: (bytes(view[:]) == os.pread(reader, 5000, 0), bytes(view[offset : offset + 3]), os.pread(reader, 2, offset - 1))
                case(f"{title}: {length} at {offset}", seen)
            with opened(title, RW) as both:
                stored = mmap.mmap(both, 5000)
                stored[10:15] = b"store"
                os.pwrite(fd, b"beside", 20)
                stored[40:45] = b"store"
                case(f"{title}: stores beside writes", lambda: (bytes(stored[8:48]), os.pread(reader, 40, 8), bytes(view[8:48])))
                os.pwrite(fd, bytes(stored[0:100]), 200)
                case(f"{title}: a store is overwritten", lambda: (os.pwrite(fd, b"over", 11), bytes(stored[8:18]), os.pread(both, 10, 8)))
                # Written from the mapping of what is written.
                case(f"{title}: from its own mapping", lambda: (call("pwrite", fd, (ctypes.c_char * 4096).from_buffer(stored), 4096, 100), bytes(view[108:118])))
                case(f"{title}: to its own page", lambda: (call("pwrite", fd, (ctypes.c_char * 50).from_buffer(stored), 50, 2000), bytes(view[2000:2020])))
            case(f"{title}: appended", lambda: (fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND), os.write(fd, b"end"), os.fstat(fd).st_size, os.pread(reader, 9, os.fstat(fd).st_size - 5)))
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            case(f"{title}: writev", lambda: (os.pwritev(fd, [b"v", b"", b"w" * 5000, b"v"], 300), os.pread(reader, 3, 299), os.pread(reader, 3, 5300)))
            make("source", b"s" * 9000)
            with opened("source", os.O_RDONLY) as source:
                case(f"{title}: sendfile", lambda: (os.lseek(fd, 100, os.SEEK_SET), os.sendfile(fd, source, 0, 9000), os.pread(reader, 3, 99), os.pread(reader, 3, 9098)))
                case(f"{title}: copied", lambda: (call("copy_file_range", source, None, fd, None, 5000, 0), os.pread(reader, 3, 14097)))
            case(f"{title}: from a pipe", lambda: (piped(b"p" * 6000, fd, 7), os.pread(reader, 3, 6), os.pread(reader, 3, 6005)))
            case(f"{title}: from nowhere", lambda: call("pwrite", fd, ctypes.c_void_p(8), 10, 5))
            case(f"{title}: cut", lambda: (os.ftruncate(fd, 4100), os.pwrite(fd, b"c", 4200), os.pread(reader, 5, 4098), os.pread(reader, 5, 4196)))
            case(f"{title}: nothing", lambda: os.pwrite(fd, b"", 4))
            case(f"{title}: a limit of sizes", lambda: in_child(lambda: limited(fd)))
            case(f"{title}: time", lambda: os.fstat(fd).st_mtime_ns >= os.stat("source").st_mtime_ns)
        case(f"{title}: closed", lambda: (os.stat(title).st_size, [os.pread(r, 5000, 0) == open(title, "rb").read()[:5000] for r in readers], bytes(view[0:9])))
        for reader in readers:
            os.close(reader)


def limited(fd):
    """Writes up to and behind the limit that a process has."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4300, 4300))
    return os.pwrite(fd, b"x" * 200, 4200), os.pwrite(fd, b"x", 4300)


def piped(content, fd, offset):
    """Moves `content` through a pipe into the file."""
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    os.lseek(fd, offset, os.SEEK_SET)
    moved = 0
    while moved < len(content):
        moved += os.splice(reader, fd, len(content) - moved)
    os.close(reader)
    return moved


def paths():
    make("p", b"content", 0o644, OWNER)
    with opened("p", os.O_PATH) as fd:
        for title, act in {
            "read": lambda: os.read(fd, 1), "write": lambda: os.write(fd, b"x"), "fstat": lambda: os.fstat(fd).st_size, "fchmod": lambda: os.fchmod(fd, 0o600),
            "fchown": lambda: os.fchown(fd, 1, 1), "ftruncate": lambda: os.ftruncate(fd, 0), "fsync": lambda: os.fsync(fd), "mmap": lambda: mmap.mmap(fd, 5),
            "open again": lambda: open(f"/proc/self/fd/{fd}").read(), "ioctl": lambda: fcntl.ioctl(fd, 0x80086601, b"\0" * 8),
            "flock": lambda: fcntl.flock(fd, fcntl.LOCK_SH), "linkat": lambda: call("linkat", fd, b"", AT_FDCWD, b"p2", 0x1000),
            "fchmod by its path": lambda: os.chmod(f"/proc/self/fd/{fd}", 0o640),
        }.items():
            case(f"O_PATH: {title}", act)
    with opened(".", os.O_PATH) as fd:
        case("O_PATH: openat", lambda: os.close(os.open("p", os.O_RDONLY, dir_fd=fd)))
        case("O_PATH: mkdirat", lambda: os.mkdir("below", dir_fd=fd))
    fd = os.open(make("gone", b"here"), RW)
    os.unlink("gone")
    case("a file without a name", lambda: (os.fstat(fd).st_nlink, os.pread(fd, 9, 0), os.pwrite(fd, b"x", 0)))
    case("linkat of it", lambda: call("linkat", fd, b"", AT_FDCWD, b"back", 0x1000))
    case("/proc/self/fd of it", lambda: os.readlink(f"/proc/self/fd/{fd}").endswith("gone (deleted)"))
    case("open of /proc/self/fd", lambda: open(f"/proc/self/fd/{fd}").read())
    os.close(fd)


def mapped():
    make("m", b"a" * 3 * 4096)
    with opened("m", RW) as fd:
        shared = mmap.mmap(fd, 3 * 4096)
        private = mmap.mmap(fd, 3 * 4096, flags=mmap.MAP_PRIVATE)
        shared[0:3] = b"one"
        case("shared store is read", lambda: os.pread(fd, 3, 0))
        case("private mapping sees it", lambda: bytes(private[0:3]))
        private[4096:4099] = b"two"
        case("private store is not read", lambda: os.pread(fd, 3, 4096))
        os.pwrite(fd, b"three", 8192)
        case("write is mapped", lambda: bytes(shared[8192:8197]))
        case("msync", lambda: shared.flush())
        case("madvise", lambda: shared.madvise(mmap.MADV_DONTNEED))
        shared.close()
        private.close()
        address = libc.mmap(None, 8192, 3, 1, fd, 0)
        for title, flag in [("async", 1), ("sync", 4), ("invalidate", 2), ("sync and async", 5), ("no such flag", 64)]:
            case(f"msync {title}", lambda: call("msync", ctypes.c_void_p(address), 4096, flag))
        case("msync of half a page", lambda: call("msync", ctypes.c_void_p(address + 1), 4096, 4))
        call("munmap", ctypes.c_void_p(address), 8192)
        case("msync of nothing", lambda: call("msync", ctypes.c_void_p(address), 4096, 4))
        case("MAP_SYNC", lambda: libc.mmap(None, 4096, 3, 0x80003, fd, 0) > 0 or call("mmap", None, 4096, 3, 0x80003, fd, 0))
        case("MAP_SHARED_VALIDATE", lambda: call("mmap", None, 4096, 3, 3, fd, 0) > 0)
    with opened("m", RW | os.O_APPEND) as fd:
        memory = mmap.mmap(fd, 3 * 4096)
        memory[5:8] = b"map"
        memory.flush()
        memory.close()
        os.fsync(fd)
        case("shared store through O_APPEND", lambda: (os.fstat(fd).st_size, os.pread(fd, 3, 5)))
    with opened("m", os.O_RDONLY) as fd:
        case("shared for writing of what is read", lambda: call("mmap", None, 4096, 3, 1, fd, 0))
        case("private for writing of what is read", lambda: call("mmap", None, 4096, 3, 2, fd, 0) > 0)
        case("to execute", lambda: call("mmap", None, 4096, 5, 2, fd, 0) > 0)
    with opened("m", os.O_WRONLY) as fd:
        case("of what is written only", lambda: call("mmap", None, 4096, 1, 1, fd, 0))

    def behind(size):
        with opened("m", RW) as fd:
            memory = mmap.mmap(fd, 3 * 4096)
            os.ftruncate(fd, size)
            return memory[2 * 4096 - 1], memory[2 * 4096]

    case("behind a truncation", lambda: in_child(lambda: behind(4096)))
    make("m", b"a" * 3 * 4096)
    case("within the last page", lambda: in_child(lambda: behind(2 * 4096 + 1)))

    def forked():
        with opened("m", RW) as fd:
            memory = mmap.mmap(fd, 4096)
            in_child(lambda: memory.__setitem__(slice(0, 5), b"child"))
            return bytes(memory[0:5]), os.pread(fd, 5, 0)

    case("shared between processes", forked)


def running():
    subprocess.run(["cp", "/bin/sleep", "s"], check=True)
    os.chmod("s", 0o755)
    with subprocess.Popen(["./s", "30"]) as child:
        case("open a running program for writing", lambda: os.open("s", os.O_WRONLY))
        case("truncate it", lambda: os.truncate("s", 5))
        case("read it", lambda: os.close(os.open("s", os.O_RDONLY)))
        case("chmod it", lambda: os.chmod("s", 0o755))
        case("rename over it", lambda: (subprocess.run(["cp", "/bin/true", "t"], check=True), os.rename("t", "s"), subprocess.run(["./s"]).returncode))
        child.kill()
    with opened("s", os.O_WRONLY):
        case("run what is written", lambda: subprocess.run(["./s"]).returncode)
    with open("script", "w") as script:
        script.write("#!/bin/sh\nexit 7\n")
    case("run without the right", lambda: subprocess.run(["./script"]).returncode)
    os.chmod("script", 0o755)
    case("run a script", lambda: subprocess.run(["./script"]).returncode)
    make("suid", open("/usr/bin/id", "rb").read(), 0o4755, OWNER)
    case("run a suid program", lambda: subprocess.run(["./suid", "-u"], capture_output=True).stdout)


def special():
    os.mkfifo("fifo")
    case("open a fifo for writing at once", lambda: os.open("fifo", os.O_WRONLY | os.O_NONBLOCK))

    def through():
        child = os.fork()
        if child == 0:
            with open("fifo", "w") as f:
                f.write("through")
            os._exit(0)
        with open("fifo") as f:
            said = f.read()
        os.waitpid(child, 0)
        return said

    case("through a fifo", through)
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.listen()

    def talk():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("socket")
            client.send(b"hello")
        with server.accept()[0] as connection:
            return connection.recv(9)

    case("through a socket", lambda: talk())
    case("bind again", lambda: socket.socket(socket.AF_UNIX).bind("socket"))
    case("open a socket", lambda: os.open("socket", RW))
    os.rename("socket", "moved")
    case("connect to its old name", lambda: socket.socket(socket.AF_UNIX).connect("socket"))
    case("connect to its new name", lambda: socket.socket(socket.AF_UNIX).connect("moved"))
    server.close()
    case("connect to nobody", lambda: socket.socket(socket.AF_UNIX).connect("moved"))
    os.mknod("null", 0o20666, os.makedev(1, 3))
    os.mknod("zero", 0o20666, os.makedev(1, 5))
    os.mknod("disk", 0o60600, os.makedev(7, 255))
    case("write to a device", lambda: os.write(os.open("null", os.O_WRONLY), b"x"))
    case("read from a device", lambda: os.read(os.open("zero", os.O_RDONLY), 3))
    case("numbers of a device", lambda: (os.major(os.stat("disk").st_rdev), os.minor(os.stat("disk").st_rdev)))
    case("a device by somebody else", lambda: as_user(OTHER, lambda: os.mknod("other", 0o20666, os.makedev(1, 3))))
    case("mknod of a file", lambda: (os.mknod("plain", 0o100640), oct(os.stat("plain").st_mode)))
    case("mknod of a directory", lambda: os.mknod("dir", 0o40755))
    case("whiteout by mknod", lambda: os.mknod("white", 0o20000, 0))


def told():
    make("w", b"1")
    watch = libc.inotify_init1(os.O_NONBLOCK)
    case("inotify: watch", lambda: call("inotify_add_watch", watch, b".", 0xFFF) > 0)
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY))
    with open("w", "w") as f:
        f.write("2")
    os.rename("new", "newer")
    os.chmod("newer", 0o600)
    os.link("newer", "linked")
    os.mkdir("made")
    os.unlink("newer")
    os.rmdir("made")

    def events():
        buffer, found, at = os.read(watch, 1 << 16), [], 0
        while at < len(buffer):
            _, mask, _, length = struct.unpack_from("iIII", buffer, at)
            found.append((buffer[at + 16 : at + 16 + length].rstrip(b"\0").decode(), hex(mask)))
            at += 16 + length
        return found

    case("inotify: events", events)
    os.close(watch)
    heard = []
    signal.signal(signal.SIGIO, lambda *_: heard.append(1))
    with opened(".", os.O_RDONLY) as fd:
        case("dnotify", lambda: fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_CREATE))
        make("noticed")
        case("dnotify: a signal", lambda: bool(heard))
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with opened("w", RW) as fd:
        case("poll", lambda: select.select([fd], [fd], [], 0) == ([fd], [fd], []))
        case("epoll", lambda: select.epoll().register(fd))
    for title, flags, kind in [("read", os.O_RDONLY, fcntl.F_RDLCK), ("write", RW, fcntl.F_WRLCK), ("read of what is written", RW, fcntl.F_RDLCK)]:
        with opened("w", flags) as fd:
            case(f"lease for {title}", lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, kind))
            case(f"lease for {title}: get", lambda: fcntl.fcntl(fd, fcntl.F_GETLEASE))
            case(f"lease for {title}: given back", lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK))


def ioctls():
    make("i", b"i" * 8 * KIB)
    make("clone")
    numbers = {
        "FS_IOC_GETFLAGS": 0x80086601, "FS_IOC_GETVERSION": 0x80087601, "FIGETBSZ": 2, "FIONREAD": 0x541B, "FIOQSIZE": 0x5460, "FIBMAP": 1,
        "FS_IOC_FSGETXATTR": 0x801C581F, "FS_IOC_GETFSLABEL": 0x81009431, "FIFREEZE of a file": 0xC0045877 + (1 << 40), "no such ioctl": 0x5A5A,
    }
    for where, flags in [("i", RW), (".", os.O_RDONLY)]:
        with opened(where, flags) as fd:
            for title, number in numbers.items():
                if number < 1 << 32:
                    case(f"{title} of {where}", lambda: fcntl.ioctl(fd, number, b"\0" * 256) and None)
    with opened("i", RW) as fd:
        for title, value in [("immutable", 0x10), ("append only", 0x20), ("no dump", 0x40), ("nothing", 0)]:
            case(f"FS_IOC_SETFLAGS: {title}", lambda: fcntl.ioctl(fd, 0x40086602, array.array("l", [value])) and None)
            case(f"write after {title}", lambda: os.close(os.open("i", os.O_WRONLY)))
        case("FS_IOC_FIEMAP", lambda: struct.unpack_from("QQIIII", fcntl.ioctl(fd, 0xC020660B, struct.pack("QQIIII", 0, 1 << 40, 1, 0, 0, 0)))[3] > 0)
        case("FIONREAD counts", lambda: struct.unpack("i", fcntl.ioctl(fd, 0x541B, b"\0" * 4)))
        with opened("clone", RW) as target:
            case("FICLONE", lambda: fcntl.ioctl(target, 0x40049409, fd))
            case("copy_file_range", lambda: os.copy_file_range(fd, target, 4096, 0, 0))
            case("copy_file_range onto itself", lambda: os.copy_file_range(fd, fd, 4096, 0, 100))
            case("splice", lambda: splice(fd, target))
            case("sendfile", lambda: os.sendfile(target, fd, 0, 4096))


def splice(source, target):
    reader, writer = os.pipe()
    taken = os.splice(source, writer, 4096, offset_src=0)
    return taken, os.splice(reader, target, taken, offset_dst=0)


def renames():
    def prepare():
        for name in os.listdir("."):
            (os.rmdir if os.path.isdir(name) and not os.path.islink(name) else os.unlink)(name)
        make("a", b"a")
        make("b", b"b")
        os.mkdir("d")

    os.mkdir("renames")
    os.chdir("renames")
    for title, flags in [("none", 0), ("noreplace", 1), ("exchange", 2), ("whiteout", 4), ("noreplace and exchange", 3), ("noreplace and whiteout", 5), ("no such flag", 8)]:
        for source, target in [("a", "b"), ("a", "new"), ("a", "d"), ("d", "a"), ("d", "new"), ("a", "a"), ("nothing", "b"), ("d", "d/below")]:
            prepare()
            case(f"rename, {title}: {source} to {target}", lambda: call("renameat2", AT_FDCWD, source.encode(), AT_FDCWD, target.encode(), flags))
            kinds = [(name, oct(os.lstat(name).st_mode), open(name).read() if os.path.isfile(name) else "") for name in sorted(os.listdir("."))]
            case(f"rename, {title}: {source} to {target}: after", lambda: kinds)
    os.chdir("..")


def attributes():
    make("x", b"x" * 10)
    buffer = ctypes.create_string_buffer(256)

    def statx(name, flags, mask):
        ctypes.memset(buffer, 0, 256)
        call("statx", AT_FDCWD, name, flags, mask, buffer)
        return struct.unpack_from("<IIQIIIHHQQQQ", buffer.raw)

    # Of the basic attributes, the mount's number and nothing that only some kernels know.
    case("statx: basic", lambda: hex(statx(b"x", 0, 0x7FF)[0] & 0x7FF))
    case("statx: a directory", lambda: hex(statx(b".", 0, 0x7FF)[0] & 0x7FF))
    case("statx: mount id", lambda: hex(statx(b"x", 0, 0x1000)[0] & 0x1000))
    case("statx: direct I/O", lambda: hex(statx(b"x", 0, 0x2000)[0] & 0x2000))
    case("statx: without asking", lambda: hex(statx(b"x", 0x4000, 0x7FF)[0] & 0x200))
    case("statx: reserved mask", lambda: statx(b"x", 0, 0x80000000) and None)
    case("statx: block size", lambda: statx(b"x", 0, 0x7FF)[1])
    case("links of directories", lambda: (os.mkdir("l1"), os.mkdir("l1/l2"), os.stat("l1").st_nlink))
    case("size of a directory is not 0", lambda: os.stat("l1").st_size > 0)
    case("names of 255 bytes", lambda: os.close(os.open("n" * 255, os.O_CREAT)))
    case("names of 256 bytes", lambda: os.close(os.open("n" * 256, os.O_CREAT)))
    case("pathconf", lambda: [os.pathconf("x", name) for name in ["PC_NAME_MAX", "PC_PATH_MAX", "PC_CHOWN_RESTRICTED", "PC_NO_TRUNC", "PC_SYNC_IO"]])


for part in [space, writes, written_only, paths, mapped, running, special, told, ioctls, renames, attributes]:
    directory = part.__name__ + ".d"
    os.mkdir(directory)
    os.chdir(directory)
    part()
    os.chdir("..")
