# PostgreSQL: initdb, pgbench by four clients, kill -9, recovery, checksums, dump and restore.
# packages: postgresql
programs=$(dirname "$(find /usr/lib/postgresql -name pg_ctl | sort | tail -n 1)")
# The server refuses to run as root; its home is on the file system under test.
as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }
if [ "$(id -u)" = 0 ]; then chown postgres:postgres .; fi
# A path of a socket has 107 bytes at most.
sockets=$(as_postgres mktemp -d /tmp/dfs-postgres-XXXXXX)
export PGHOST=$sockets PGDATABASE=postgres HOME=$PWD PGUSER=postgres LC_ALL=C
control() { as_postgres "$programs/pg_ctl" -s -w -t 60 -D data -l server.log "$@"; }
trap 'control stop -m immediate 2>/dev/null || true; rm -rf "$sockets"' EXIT
options="-c listen_addresses= -c unix_socket_directories=$sockets -c shared_buffers=16MB -c max_wal_size=64MB"
as_postgres "$programs/initdb" -D data -U postgres -A trust --data-checksums >initdb.log
control start -o "$options"
as_postgres "$programs/pgbench" -q -i -s 2 2>init.log
as_postgres "$programs/pgbench" -n -c 4 -j 2 -t "${PGBENCH_TRANSACTIONS:-100}" >bench.log 2>bench.err
grep -q "^number of transactions actually processed: $((4 * ${PGBENCH_TRANSACTIONS:-100}))/" bench.log
as_postgres psql -qc 'create table kept as select generate_series(1, 10000) as n; create index on kept(n);'

# What was committed survives the death of every process.
read -r postmaster <data/postmaster.pid
kill -KILL "$postmaster" $(pgrep -P "$postmaster")
rm -f data/postmaster.pid "$sockets"/.s.PGSQL.*
control start -o "$options"
test "$(as_postgres psql -Atc 'select count(*), sum(n) from kept')" = '10000|50005000'
test "$(as_postgres psql -Atc 'select (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)')" = t
as_postgres psql -q -c 'vacuum full' -c 'reindex database postgres' -c checkpoint
as_postgres pg_dump -Fc -f dump postgres
as_postgres createdb other
as_postgres pg_restore -d other dump
test "$(as_postgres psql -d other -Atc 'select count(*) from pgbench_accounts')" = 200000
control stop -m fast
as_postgres "$programs/pg_checksums" --check -D data >checksums.log
grep -q '^Bad checksums:  0$' checksums.log
