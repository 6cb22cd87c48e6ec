#!/bin/sh
# Started by systemd once PostgreSQL runs. What to do stands on the kernel's command line; speaks to the host over the
# serial console, in lines of one word and its values.
exec >/dev/ttyS0 2>&1
sql() { runuser -u postgres -- psql -qAtX "$@"; }
bench() { runuser -u postgres -- pgbench -n "$@" postgres >/dev/null 2>&1; }
case "$(cat /proc/cmdline)" in
*role=load*)
    sql -c 'create table committed (id bigint primary key, padding text)'
    bench -i -s 2
    bench -c 2 -T 3600 &
    until [ "$(sql -c 'select count(*) from pgbench_history')" -gt 10 ]; do sleep 0.1; done
    echo LOAD
    # Each statement is a transaction of its own, and psql prints its row when the server has said that it is committed.
    seq 1 1000000000 |
        sed "s/.*/insert into committed values (&, repeat(md5('&'), 20)) returning 'COMMITTED ' || id;/" | sql
    ;;
*role=report*)
    sql -c "select 'ROWS ' || count(*) || ' ' || max(id) from committed where padding = repeat(md5(id::text), 20)"
    sql -c "select 'MONEY ' || (select sum(abalance) from pgbench_accounts)
        || ' ' || (select sum(bbalance) from pgbench_branches) || ' ' || (select sum(delta) from pgbench_history)"
    ;;
esac
