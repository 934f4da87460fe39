"""The floor: what Postgres itself does for the same rows when pgbench claims and completes them in plain SQL."""

import re
import subprocess
from pathlib import Path

_SETUP = """
drop schema if exists floor cascade;
create schema floor;
create table floor.job (
    id bigint primary key, state text not null default 'pending', run_at timestamptz not null default clock_timestamp(),
    payload jsonb not null, fence bigint not null default 0, lease_until timestamptz, result jsonb
);
create index on floor.job (run_at, id) where state = 'pending';
insert into floor.job (id, payload) select i, jsonb_build_object('n', i) from generate_series(1, {jobs}) i;
vacuum analyze floor.job;
"""

# Claim, then complete: two transactions, as any queue that stores results needs.
_SCRIPT = """
with taken as materialized (
    select id from floor.job where state = 'pending' and run_at <= now()
    order by run_at, id limit {batch} for update skip locked
), claimed as (
    update floor.job j set state = 'running', fence = fence + 1, lease_until = now() + interval '30 s'
    from taken where j.id = taken.id returning j.id
)
select coalesce(array_agg(id), '{{}}') as ids from claimed \\gset
update floor.job set state = 'succeeded', lease_until = null, result = payload where id = any (':ids'::bigint[]);
"""


def jobs_per_second(bin_dir: Path, dsn: str, *, jobs: int, batch: int) -> float:
    """Jobs claimed and completed per second by one pgbench client, in batches of the given size."""
    psql: list[str | Path] = [bin_dir / "psql", "-qX", "-v", "ON_ERROR_STOP=1", dsn]
    subprocess.run(psql, input=_SETUP.format(jobs=jobs), check=True, capture_output=True, text=True)
    script = Path("build/floor.sql")
    script.parent.mkdir(exist_ok=True)
    script.write_text(_SCRIPT.format(batch=batch))
    options = ["-n", "-c", "1", "-M", "simple", "-t", str(jobs // batch)]
    command: list[str | Path] = [bin_dir / "pgbench", *options, "-f", script, dsn]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"tps = ([0-9.]+)", printed)
    if found is None:
        raise RuntimeError(f"pgbench printed no figure:\n{printed}")
    return float(found[1]) * batch
