#!/bin/sh
# Started by systemd once PostgreSQL runs. What to do stands on the kernel's command line; speaks to the host over the
# serial console, in lines of one word and its values. Errors go there as well, for the report of a failed test.
exec >/dev/ttyS0 2>&1
sql() { runuser -u postgres -- psql -qAtX "$@"; }
bench() { runuser -u postgres -- pgbench -n "$@" postgres; }
# Ranges of numbers whose row is there and right, after the word.
ranges() {
    sql -c "select '$1 ' || min(id) || ' ' || max(id)
        from (select id, id - row_number() over (order by id) as range from committed
            where padding = repeat(md5(id::text), 20)) as numbered
        group by range order by min(id)"
}
# What pgbench moved, after the word.
sums() {
    sql -c "select '$1 ' || (select sum(abalance) from pgbench_accounts)
        || ' ' || (select sum(bbalance) from pgbench_branches) || ' ' || (select sum(delta) from pgbench_history)"
}
dmesg -n 1 # the kernel is silent from here on, or its lines would break ours
sql -c "select 'ANSWERS ' || 1"
case "$(cat /proc/cmdline)" in
*role=load*)
    sql -c 'create table committed (id bigint primary key, padding text)'
    bench -i -s 2
    bench -c 2 -T 3600 &
    until [ "$(sql -c 'select count(*) from pgbench_history')" -gt 10 ]; do sleep 0.1; done
    # Each statement is a transaction of its own, and psql prints its row when the server has said that it is committed.
    seq 1 1000000000 |
        sed "s/.*/insert into committed values (&, repeat(md5('&'), 20)) returning 'COMMITTED ' || id;/" | sql
    ;;
*role=report*)
    ranges HOLDS
    sums SUMS
    # The control: one row is deleted, one is changed, an entry of the books is forgotten, and the questions are put again.
    sql -c "delete from committed where id = 5" -c "update committed set padding = 'wrong' where id = 7" \
        -c 'delete from pgbench_history where ctid = (select ctid from pgbench_history where delta <> 0 limit 1)'
    ranges SPOILT
    sums FORGOT
    echo REPORTED 1
    ;;
esac
