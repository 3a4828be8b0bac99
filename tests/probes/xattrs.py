"""Extended attributes and access control lists: names, sizes, namespaces, kinds of files, users, errors."""

import os
import socket
import struct

from probe import OTHER, OWNER, as_user, call, case, make, user_name

SET, GET, LIST, REMOVE = os.setxattr, os.getxattr, os.listxattr, os.removexattr


def kinds():
    """One object of each kind, and its name."""
    make("file")
    os.mkdir("directory")
    os.symlink("file", "symlink")
    os.mkfifo("fifo")
    os.mknod("device", 0o20666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
    return ["file", "directory", "symlink", "fifo", "device", "socket"]


def namespaces():
    for kind in kinds():
        for name in ["user.x", "trusted.x", "security.x", "system.x", "other.x", "x", "USER.x"]:
            case(f"{kind}: set {name}", lambda: SET(kind, name, b"1", follow_symlinks=False))
            case(f"{kind}: get {name}", lambda: GET(kind, name, follow_symlinks=False))
            case(f"{kind}: remove {name}", lambda: REMOVE(kind, name, follow_symlinks=False))
            case(f"{kind}: remove {name} again", lambda: REMOVE(kind, name, follow_symlinks=False))
        case(f"{kind}: list", lambda: sorted(LIST(kind, follow_symlinks=False)))


def names():
    make("n")
    for length in [5, 6, 254, 255, 256, 300]:
        name = "user." + "n" * (length - 5)
        case(f"name of {length} bytes: set", lambda: SET("n", name, b"1"))
        case(f"name of {length} bytes: get", lambda: GET("n", name))
    for title, name in [("nothing", b""), ("a dot", b"."), ("other bytes", b"user.\xff\xfe\n "), ("a slash", b"user.a/b"), ("trusted. alone", b"trusted.")]:
        case(f"name is {title}: set", lambda: SET("n", name, b"1"))
        case(f"name is {title}: get", lambda: GET("n", name))
    case("names", lambda: sorted(len(os.fsencode(n)) for n in LIST("n")))
    case("case counts", lambda: (SET("n", "user.A", b"1"), SET("n", "user.a", b"2"), GET("n", "user.A")))


def sizes():
    make("s")
    for length in [0, 1, 255, 1024, 3000, 4096, 65535, 65536, 65537, 1 << 20]:
        case(f"value of {length} bytes: set", lambda: SET("s", "user.v", b"v" * length))
        case(f"value of {length} bytes: length", lambda: len(GET("s", "user.v")))
        case(f"value of {length} bytes: remove", lambda: REMOVE("s", "user.v"))
    SET("s", "user.v", b"value")
    buffer = b"\0" * 64
    for size in [0, 1, 4, 5, 64]:
        case(f"get into {size} bytes", lambda: call("getxattr", b"s", b"user.v", buffer if size else None, size))
    for size in [0, 1, 6, 7, 64]:
        case(f"list into {size} bytes", lambda: call("listxattr", b"s", buffer if size else None, size))
    make("m")
    case("100 small attributes", lambda: [SET("m", f"user.{n}", b"value") for n in range(100)] and len(LIST("m")))
    make("l")
    case("400 long names", lambda: [SET("l", f"user.{n:0250}", b"") for n in range(400)] and len(LIST("l")))
    case("400 long names: list", lambda: len(LIST("l")) > 0)


def flags():
    make("f")
    SET("f", "user.a", b"1")
    for title, flag in [("create", os.XATTR_CREATE), ("replace", os.XATTR_REPLACE), ("create and replace", 3), ("an unknown flag for", 4)]:
        case(f"{title} what is there", lambda: SET("f", "user.a", b"2", flag))
        case(f"{title} what is not there", lambda: SET("f", f"user.{flag}", b"2", flag))
    case("after the flags", lambda: [(n, GET("f", n)) for n in sorted(LIST("f"))])
    os.link("f", "f2")
    case("through another link", lambda: GET("f2", "user.a"))
    os.rename("f", "f3")
    case("after a rename", lambda: GET("f3", "user.a"))
    fd = os.open("f3", os.O_RDONLY)
    os.unlink("f3")
    os.unlink("f2")
    case("of a file without a name: set", lambda: SET(fd, "user.c", b"3"))
    case("of a file without a name: get", lambda: GET(fd, "user.c"))
    os.close(fd)
    fd = os.open(make("p"), os.O_PATH)
    case("through O_PATH", lambda: SET(fd, "user.a", b"1"))
    os.close(fd)
    case("of what is not there", lambda: SET("nothing", "user.a", b"1"))

    def moved(act):
        os.utime("t", (1, 1))
        before = os.stat("t")
        act()
        after = os.stat("t")
        return f"mtime {after.st_mtime_ns != before.st_mtime_ns}, ctime {after.st_ctime_ns > before.st_ctime_ns}"

    make("t")
    case("times after set", lambda: moved(lambda: SET("t", "user.a", b"1")))
    case("times after remove", lambda: moved(lambda: REMOVE("t", "user.a")))


def users():
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    os.mkdir("closed", 0o700)
    for name, mode in [("u644", 0o644), ("u600", 0o600), ("u666", 0o666), ("u444", 0o444)]:
        make(name, b"", mode, OWNER)
        SET(name, "user.old", b"1")
        SET(name, "trusted.old", b"1")
        SET(name, "security.old", b"1")
    make("closed/f", b"", 0o666)
    for user in [OWNER, OTHER]:
        for name in ["u644", "u600", "u666", "u444", "sticky", "closed/f"]:
            for space in ["user", "trusted", "security"]:
                title = f"{user_name(user)}, {name}, {space}"
                case(f"{title}: set", lambda: as_user(user, lambda: SET(name, f"{space}.x", b"1")))
                case(f"{title}: get", lambda: as_user(user, lambda: GET(name, f"{space}.old")))
                case(f"{title}: remove", lambda: as_user(user, lambda: REMOVE(name, f"{space}.x")))
            case(f"{user_name(user)}, {name}: list", lambda: as_user(user, lambda: sorted(LIST(name))))


def acl(*entries):
    """(tag, permissions, id) each; tags: 1 owner, 2 user, 4 group of the file, 8 group, 16 mask, 32 other."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, permissions, who) for tag, permissions, who in entries)


def access_lists():
    nobody = 0xFFFFFFFF
    minimal = acl((1, 6, nobody), (4, 4, nobody), (32, 4, nobody))
    full = acl((1, 6, nobody), (2, 6, OTHER), (4, 4, nobody), (16, 6, nobody), (32, 0, nobody))
    wrong = {
        "empty": b"",
        "no entries": acl(),
        "cut short": full[:-3],
        "version 1": b"\1" + full[1:],
        "without a mask": acl((1, 6, nobody), (2, 6, OTHER), (4, 4, nobody), (32, 0, nobody)),
        "without an owner": acl((4, 4, nobody), (32, 4, nobody)),
        "a tag that is none": acl((1, 6, nobody), (3, 4, nobody), (32, 4, nobody)),
        "permissions that are none": acl((1, 15, nobody), (4, 4, nobody), (32, 4, nobody)),
        "out of order": acl((32, 4, nobody), (4, 4, nobody), (1, 6, nobody)),
        "an owner twice": acl((1, 6, nobody), (1, 6, nobody), (4, 4, nobody), (32, 4, nobody)),
        "a user twice": acl((1, 6, nobody), (2, 6, OTHER), (2, 6, OTHER), (4, 4, nobody), (16, 6, nobody), (32, 0, nobody)),
    }
    access, default = "system.posix_acl_access", "system.posix_acl_default"
    for kind in ["file", "directory", "symlink", "fifo", "device"]:
        for name in [access, default]:
            case(f"acl: {kind}: get none of {name}", lambda: GET(kind, name, follow_symlinks=False))
            case(f"acl: {kind}: set {name}", lambda: SET(kind, name, full, follow_symlinks=False))
            case(f"acl: {kind}: get {name}", lambda: GET(kind, name, follow_symlinks=False) == full)
            case(f"acl: {kind}: mode after {name}", lambda: oct(os.lstat(kind).st_mode))
            case(f"acl: {kind}: list with {name}", lambda: sorted(LIST(kind, follow_symlinks=False)))
            case(f"acl: {kind}: remove {name}", lambda: REMOVE(kind, name, follow_symlinks=False))
            case(f"acl: {kind}: remove {name} again", lambda: REMOVE(kind, name, follow_symlinks=False))
    for title, value in wrong.items():
        make("a", b"", 0o640)
        case(f"acl: {title}", lambda: SET("a", access, value))
        case(f"acl: {title}: mode", lambda: oct(os.stat("a").st_mode))
    make("a", b"", 0o640)
    case("acl: minimal", lambda: SET("a", access, minimal))
    case("acl: minimal is the mode", lambda: (oct(os.stat("a").st_mode), LIST("a")))
    make("b", b"", 0o644, OWNER)
    for user in [OWNER, OTHER]:
        case(f"acl: {user_name(user)} sets", lambda: as_user(user, lambda: SET("b", access, full)))
        case(f"acl: {user_name(user)} removes", lambda: as_user(user, lambda: REMOVE("b", access)))
    many = acl((1, 6, nobody), *[(2, 6, 70000 + n) for n in range(1000)], (4, 4, nobody), (16, 6, nobody), (32, 0, nobody))
    case("acl: of 1000 users", lambda: SET("a", access, many))
    few = acl((1, 6, nobody), *[(2, 6, 70000 + n) for n in range(300)], (4, 4, nobody), (16, 6, nobody), (32, 0, nobody))
    case("acl: of 300 users", lambda: SET("a", access, few))


def capabilities():
    # The permitted set has CAP_CHOWN; version 2, effective.
    value = struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0)
    make("c", b"content", 0o777)
    case("capability: set", lambda: SET("c", "security.capability", value))
    case("capability: set by its owner", lambda: as_user(OTHER, lambda: SET("c", "security.capability", value)))
    case("capability: nonsense", lambda: SET("c", "security.capability", b"nonsense"))

    def after(act):
        SET("c", "security.capability", value)
        act()
        return GET("c", "security.capability") == value

    def write():
        fd = os.open("c", os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)

    for user in [0, OTHER]:
        who = user_name(user)
        case(f"capability: after a write by {who}", lambda: after(lambda: as_user(user, write)))
        case(f"capability: after a truncation by {who}", lambda: after(lambda: as_user(user, lambda: os.truncate("c", 3))))
    case("capability: after a chown", lambda: after(lambda: os.chown("c", OWNER, OWNER)))
    case("capability: after a chmod", lambda: after(lambda: os.chmod("c", 0o755)))
    case("capability: after a rename", lambda: after(lambda: (os.rename("c", "c2"), os.rename("c2", "c"))))


for part in [namespaces, names, sizes, flags, users, access_lists, capabilities]:
    part()
