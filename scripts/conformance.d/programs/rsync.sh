# rsync -a, then -c finds nothing to do; changes, then --delete; in place.
# packages: rsync
mkdir from
for d in a b c d; do
    mkdir -p "from/$d/sub"
    for f in $(seq 60); do seq $((f * 40)) >"from/$d/f$f"; done
    head -c 700000 /dev/urandom >"from/$d/sub/big"
done
ln -s ../a/f1 from/b/link
ln from/a/f2 from/c/hard
chmod 600 from/a/f3
chmod 2755 from/d
touch -d '1999-12-31 23:59:59.123456789' from/a/f4
rsync -aHX from/ to/
test -z "$(rsync -aHXc --itemize-changes from/ to/)"
test -z "$(rsync -aHX --itemize-changes from/ to/)"
diff -r from to
echo more >>from/a/f5
rm from/b/f6
mv from/c/f7 from/c/g7
dd if=/dev/urandom of=from/a/sub/big bs=1000 seek=300 count=3 conv=notrunc status=none
rsync -aHX --delete from/ to/
rsync -aHX --inplace --no-whole-file --checksum from/ to/
test -z "$(rsync -aHXc --delete --itemize-changes from/ to/)"
diff -r from to
