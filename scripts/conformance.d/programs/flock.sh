# flock(1): four processes count under one lock; shared locks together; a time limit; release by death.
# packages: util-linux
echo 0 >counter
for who in 1 2 3 4; do
    for _ in $(seq 25); do
        flock lock sh -c 'read -r n <counter; echo $((n + 1)) >counter' || exit 1
    done &
    workers[who]=$!
done
for who in 1 2 3 4; do wait "${workers[who]}"; done
test "$(cat counter)" = 100

exec 7>held
flock -x 7
code=0
flock -n -E 42 held true || code=$?
test "$code" = 42
code=0
flock -w 0.2 -E 43 held true || code=$?
test "$code" = 43
exec 7>&-
flock -n held true
flock -s held flock -s -n held true
code=0
flock -s held flock -x -n -E 44 held true || code=$?
test "$code" = 44

# The lock goes with the process that held it.
mkfifo ready
flock -x held sh -c 'echo held >ready; exec tail -f /dev/null' &
holder=$!
read -r _ <ready
code=0
flock -n -E 45 held true || code=$?
test "$code" = 45
pkill -KILL -P "$holder"
wait "$holder" 2>/dev/null || true
flock -w 10 held true
