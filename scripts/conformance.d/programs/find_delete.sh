# 1,000 files in a deep tree, removed by find -delete, by rm -r, and by name while others are made.
# packages: findutils
for d in $(seq 20); do
    mkdir -p "tree/$((d % 5))/$d/deep/er"
    (cd "tree/$((d % 5))/$d/deep/er" && touch $(seq 50))
done
test "$(find tree -type f | wc -l)" = 1000
cp -a tree copy
find tree -type f -name '*5' -delete
test "$(find tree -type f | wc -l)" = 900
find tree -depth -delete
test ! -e tree
rm -r copy
test -z "$(ls -A)"
mkdir busy
(cd busy && touch $(seq 500))
(for i in $(seq 3000 3100); do : >"busy/$i"; done) &
maker=$!
find busy -type f -name '[12]*' -delete
wait "$maker"
test -z "$(find busy -name '[12]*')"
test "$(find busy -name '3[012]??' | wc -l)" = 101
find busy -delete
test -z "$(ls -A)"
