"""Partitions of finished jobs, made and dropped by workers that own no table: with the rights of whoever migrates.

Such a function does one thing and takes a day, and names are looked up where nobody else can put any.
"""

_WITH_OUR_RIGHTS = "security definer set search_path = pg_catalog, pg_temp"

UP = (
    f"alter function outbox.add_partition(date) {_WITH_OUR_RIGHTS}",
    f"""
    create function outbox.drop_partition(day date) returns boolean language plpgsql {_WITH_OUR_RIGHTS} as $$
    begin
        perform from pg_inherits join pg_class child on child.oid = inhrelid
        where inhparent = 'outbox.finished_job'::regclass and child.relname = outbox.partition_name(day);
        if not found then
            return false;
        end if;
        execute format('drop table if exists outbox.%I', outbox.partition_name(day));
        return true;
    end
    $$
    """,
    "comment on function outbox.drop_partition(date) is 'drops the partition of a day (UTC); false if there is none'",
    "revoke execute on function outbox.add_partition(date), outbox.drop_partition(date) from public",
)

DOWN = (
    "grant execute on function outbox.add_partition(date) to public",
    "drop function outbox.drop_partition",
    "alter function outbox.add_partition(date) security invoker reset search_path",
)
