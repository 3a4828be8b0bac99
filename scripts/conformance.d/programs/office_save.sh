# Saves as LibreOffice, editors and databases do them: lock file, temporary file, fsync, rename, fsync of the directory.
# packages: python3
python3 - <<'END'
import os

def sync_directory():
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)

def lock(name):
    return os.open(".~lock." + name + "#", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)

def save(name, content):
    held = lock(name)
    os.write(held, b",user,host,;")
    try:
        lock(name)
    except FileExistsError:
        pass
    else:
        raise SystemExit("two holders of one lock file")
    temporary = "lu%d.tmp" % os.getpid()
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    for at in range(0, len(content), 8192):
        os.write(fd, content[at:at + 8192])
    # The head of an archive is written last.
    os.pwrite(fd, content[:30], 0)
    os.fsync(fd)
    os.fchmod(fd, 0o644)
    os.close(fd)
    if os.path.exists(name):
        if os.path.exists(name + ".bak"):
            os.unlink(name + ".bak")
        os.link(name, name + ".bak")
    os.rename(temporary, name)
    sync_directory()
    os.close(held)
    os.unlink(".~lock." + name + "#")

def read(name):
    with open(name, "rb") as f:
        return f.read()

previous = None
for generation in range(20):
    content = bytes([generation]) * 30 + os.urandom(40_000 + generation * 10_000)
    reader = os.open("letter.odt", os.O_RDONLY) if previous else None
    save("letter.odt", content)
    assert read("letter.odt") == content, generation
    if previous:
        assert read("letter.odt.bak") == previous, generation
        # Who had it open still reads the old one.
        assert os.pread(reader, 1 << 20, 0) == previous, generation
        os.close(reader)
    previous = content
assert sorted(os.listdir(".")) == ["letter.odt", "letter.odt.bak"], os.listdir(".")
assert os.stat("letter.odt").st_mode & 0o777 == 0o644
END
