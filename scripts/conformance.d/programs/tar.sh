# tar --xattrs --sparse there and back: content, attributes, holes, times, links.
# packages: tar attr
mkdir tree tree/sub
for f in 1 2 3 4 5; do
    seq $((f * 3000)) >"tree/f$f"
    setfattr -n user.number -v "value $f" "tree/f$f"
done
setfattr -n user.dir -v 0x00ff0a tree/sub
setfattr -n user.long -v "$(head -c 3000 /dev/zero | tr '\0' x)" tree/f1
truncate -s 64M tree/sparse
for at in 0 7777 30000000 67108800; do printf data | dd of=tree/sparse bs=1 seek="$at" conv=notrunc status=none; done
truncate -s 32M tree/hole
ln -s f1 tree/link
ln tree/f2 tree/sub/hard
mkfifo tree/pipe
touch -d '2001-02-03 04:05:06.123456789' tree/f3
chmod 4750 tree/f4
tar --xattrs --xattrs-include='user.*' --sparse --format=posix -cf all.tar tree
test "$(stat -c %s all.tar)" -lt 4000000
mkdir out
tar --xattrs --xattrs-include='user.*' --sparse -xpf all.tar -C out
tar --sparse -df all.tar -C out
diff <(cd tree && getfattr -R -h -d -e hex . | sort) <(cd out/tree && getfattr -R -h -d -e hex . | sort)
getfattr -n user.long --only-values out/tree/f1 | wc -c | grep -qx 3000
list() { (cd "$1" && find . -printf '%p %y %m %U %G %n %l %T@\n' | grep -v '^\. ' | sort; find . -type f -printf '%p %s\n' | sort); }
diff <(list tree) <(list out/tree)
cmp tree/sparse out/tree/sparse
test "$(stat -c %b out/tree/hole)" = 0
test "$(($(stat -c %b out/tree/sparse) / 2))" -lt 8192
test out/tree/f2 -ef out/tree/sub/hard
