# git: 200 commits, branches and a merge, gc, fsck, a clone, a worktree.
# packages: git
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.com GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.com
export GIT_CONFIG_GLOBAL=$PWD/config
git config --global gc.auto 0
git config --global safe.directory '*'
git init -q -b main repo
cd repo
for i in $(seq 200); do
    echo "line $i" >>log
    mkdir -p "d$((i % 7))"
    seq "$i" >"d$((i % 7))/f$((i % 23))"
    git add .
    git commit -q -m "commit $i"
done
git checkout -q -b side main~50
echo side >side
git add side
git commit -q -m side
git checkout -q main
git merge -q -m merge side
git gc -q --aggressive --prune=now
git fsck --strict --full
test "$(git rev-list --count HEAD)" = 202
test -z "$(git status --porcelain)"
cd ..
git clone -q --no-hardlinks repo clone
git -C clone fsck --strict --full
test "$(git -C clone rev-parse HEAD)" = "$(git -C repo rev-parse HEAD)"
diff -r --exclude=.git repo clone
git -C clone worktree add -q ../tree HEAD~100
test "$(tail -n 1 tree/log)" = "line $(wc -l <tree/log)"
git -C clone repack -q -a -d -f
git -C clone fsck --strict --full
