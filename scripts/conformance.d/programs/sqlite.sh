# sqlite3 in each journal mode: four processes write at once, one dies in a transaction.
# packages: sqlite3
for mode in delete truncate persist wal; do
    db=$mode.db
    test "$(sqlite3 "$db" "pragma journal_mode=$mode; create table t(who integer, n integer, data blob);")" = "$mode"
    for who in 1 2 3 4; do
        for n in $(seq 10); do
            printf '.timeout 60000\ninsert into t values(%s, %s, randomblob(3000));\n' "$who" "$n" | sqlite3 "$db" || exit 1
        done &
        workers[who]=$!
    done
    for who in 1 2 3 4; do wait "${workers[who]}"; done
    test "$(sqlite3 "$db" 'select count(*), count(distinct who * 100 + n) from t')" = '40|40'

    # The reader of the pipe holds a transaction with 200 rows when it is killed.
    mkfifo "$mode.in"
    sqlite3 "$db" <"$mode.in" >"$mode.out" 2>&1 &
    victim=$!
    exec 3>"$mode.in"
    printf '%s\n' '.timeout 60000' 'pragma cache_size=5;' 'begin immediate;' \
        'with recursive c(i) as (select 1 union all select i + 1 from c where i < 200) insert into t select 9, i, randomblob(3000) from c;' \
        "select 'written';" >&3
    until grep -q written "$mode.out"; do kill -0 "$victim"; done
    kill -KILL "$victim"
    wait "$victim" 2>/dev/null || true
    exec 3>&-
    test "$(sqlite3 "$db" 'pragma integrity_check')" = ok
    test "$(sqlite3 "$db" 'select count(*) from t')" = 40
    sqlite3 "$db" 'delete from t where n % 2; vacuum;'
    test "$(sqlite3 "$db" 'pragma integrity_check; select count(*) from t')" = $'ok\n20'
    rm "$mode.in"
done
