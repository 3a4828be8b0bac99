"""What ends suid, sgid and the sticky bit: each change of a file, by root, its owner and somebody else who may write it."""

import mmap
import os

from probe import KIB, OTHER, OWNER, as_user, call, case, make, opened, user_name

PUNCH, ZERO = 3, 16


def write(fd):
    os.write(fd, b"changed")


def mapped(fd):
    with mmap.mmap(fd, 4 * KIB) as memory:
        memory[:3] = b"new"
        memory.flush()


def copied(fd):
    with opened("source", os.O_RDONLY) as source:
        os.copy_file_range(source, fd, 100, 0, 0)


def sent(fd):
    with opened("source", os.O_RDONLY) as source:
        os.sendfile(fd, source, 0, 100)


# Each changes the file "f".
BY_HANDLE = {
    "write": write,
    "pwrite": lambda fd: os.pwrite(fd, b"x", 5),
    "writev": lambda fd: os.writev(fd, [b"a", b"b"]),
    "write of nothing": lambda fd: os.write(fd, b""),
    "ftruncate": lambda fd: os.ftruncate(fd, 3),
    "ftruncate to the same size": lambda fd: os.ftruncate(fd, 8 * KIB),
    "fallocate": lambda fd: call("fallocate", fd, 0, 0, 64 * KIB),
    "punch a hole": lambda fd: call("fallocate", fd, PUNCH, 0, 4 * KIB),
    "zero a range": lambda fd: call("fallocate", fd, ZERO, 0, 4 * KIB),
    "mapped stores": mapped,
    "copy_file_range": copied,
    "sendfile": sent,
    "open only": lambda fd: None,
}
BY_PATH = {
    "truncate": lambda: os.truncate("f", 3),
    "open with O_TRUNC": lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)),
    "chown to the same": lambda: os.chown("f", OWNER, OWNER),
    "chown of nothing": lambda: os.chown("f", -1, -1),
    "chgrp to the same": lambda: os.chown("f", -1, OWNER),
    "chmod to the same": lambda: os.chmod("f", os.stat("f").st_mode & 0o7777),
    "utime": lambda: os.utime("f", (1, 1)),
    "rename": lambda: (os.rename("f", "g"), os.rename("g", "f")) and None,
    "link": lambda: (os.link("f", "g"), os.unlink("g")) and None,
    "setxattr": lambda: os.setxattr("f", "user.a", b"1"),
}


def changes():
    make("source", b"s" * KIB)
    for mode in [0o6777, 0o6755, 0o2767, 0o2775, 0o4666, 0o7777]:
        for user in [0, OWNER, OTHER]:
            for title, change in [*BY_HANDLE.items(), *BY_PATH.items()]:
                make("f", b"f" * 8 * KIB, mode, OWNER)

                def run():
                    if title in BY_PATH:
                        return change()
                    with opened("f", os.O_RDWR) as fd:
                        change(fd)
                        # The handle sees what the path sees.
                        return oct(os.fstat(fd).st_mode & 0o7777)

                case(f"{mode:o}, {user_name(user)}: {title}", lambda: as_user(user, run))
                case(f"{mode:o}, {user_name(user)}: mode after {title}", lambda: oct(os.stat("f").st_mode & 0o7777))


def handed_over():
    """By root: suid ends with a chown, and stays for directories."""
    for mode in [0o6777, 0o2767, 0o7777]:
        make("f", b"x", mode, OWNER)
        os.chown("f", OTHER, -1)
        case(f"{mode:o}: after a chown by root", lambda: oct(os.stat("f").st_mode & 0o7777))
        os.mkdir("d")
        os.chown("d", OWNER, OWNER)
        os.chmod("d", mode)
        os.chown("d", OTHER, OTHER)
        case(f"{mode:o}: directory after a chown by root", lambda: oct(os.stat("d").st_mode & 0o7777))
        os.rmdir("d")


def set_by_users():
    """Who may set which bit: sgid wants that the caller belongs to the group."""
    for mode in [0o4755, 0o2755, 0o1755, 0o7777]:
        make("f", b"x", 0o755)
        os.chown("f", OWNER, OTHER)
        case(f"chmod {mode:o} by the owner outside of the group", lambda: as_user(OWNER, lambda: os.chmod("f", mode)))
        case(f"chmod {mode:o} by the owner outside of the group: mode", lambda: oct(os.stat("f").st_mode & 0o7777))
        case(f"chmod {mode:o} by the owner in the group", lambda: as_user(OWNER, lambda: os.chmod("f", mode), [OTHER]))
        case(f"chmod {mode:o} by the owner in the group: mode", lambda: oct(os.stat("f").st_mode & 0o7777))
        case(f"chmod {mode:o} by somebody else", lambda: as_user(OTHER, lambda: os.chmod("f", mode)))
    case("chgrp to a group of the owner's", lambda: as_user(OWNER, lambda: os.chown("f", -1, OTHER), [OTHER]))
    case("chgrp to another group", lambda: as_user(OWNER, lambda: os.chown("f", -1, 61_009), [OTHER]))
    case("chown by the owner", lambda: as_user(OWNER, lambda: os.chown("f", OTHER, -1)))


def made_below_sgid():
    os.mkdir("s")
    os.chown("s", 0, OTHER)
    os.chmod("s", 0o2777)
    for user, groups in [(OWNER, []), (OWNER, [OTHER]), (0, [])]:
        for mode in [0o644, 0o2775, 0o2767, 0o4755, 0o1777]:
            title = f"below sgid, {user_name(user)} of {len(groups)} groups, {mode:o}"
            os.umask(0)
            case(f"{title}: open", lambda: as_user(user, lambda: os.close(os.open("s/f", os.O_CREAT | os.O_WRONLY, mode)), groups))
            case(f"{title}: file", lambda: (oct(os.stat("s/f").st_mode), os.stat("s/f").st_gid == OTHER))
            case(f"{title}: mkdir", lambda: as_user(user, lambda: os.mkdir("s/d", mode), groups))
            case(f"{title}: directory", lambda: (oct(os.stat("s/d").st_mode), os.stat("s/d").st_gid == OTHER))
            case(f"{title}: mknod", lambda: as_user(user, lambda: os.mkfifo("s/p", mode), groups))
            case(f"{title}: fifo", lambda: (oct(os.stat("s/p").st_mode), os.stat("s/p").st_gid == OTHER))
            os.umask(0o022)
            os.unlink("s/f")
            os.rmdir("s/d")
            os.unlink("s/p")


def sticky():
    os.mkdir("t")
    os.chmod("t", 0o1777)
    for user in [0, OWNER, OTHER]:
        for title, act in [("unlink", lambda: os.unlink("t/f")), ("rename", lambda: os.rename("t/f", "t/g")), ("replace", lambda: os.rename("t/mine", "t/f"))]:
            make("t/f", b"", 0o666, OWNER)
            make("t/mine", b"", 0o666, user)
            case(f"sticky: {title} by {user_name(user)}", lambda: as_user(user, act))
            for name in os.listdir("t"):
                os.unlink(f"t/{name}")


for part in [changes, handed_over, set_by_users, made_below_sgid, sticky]:
    part()
