"""Hours of steady work, in as many minutes as there are: what grows?"""

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from outbox.wakeup import Notifier
from tests.benchmarks import bench, latency

EVERY = 10.0
"""Seconds between two looks."""

_SIZE = "select pg_table_size('outbox.live_job') / 1e6 as table, pg_indexes_size('outbox.live_job') / 1e6 as indexes"
_WAITS = """
select percentile_cont(array[0.5, 0.99]) within group (order by extract(epoch from started_at - run_at) * 1000) as waits
from outbox.finished_job where task = 'stamp' and finished_at > now() - make_interval(secs => $1)
"""


@dataclass
class Soak:
    """What was seen at each look."""

    minutes: list[float] = field(default_factory=list)
    table: list[float] = field(default_factory=list)
    """Megabytes of the live table, and of its indexes."""
    indexes: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    """Megabytes of the worker."""
    p50: list[float] = field(default_factory=list)
    """Milliseconds from run_at to the start, of single jobs beside the load."""
    p99: list[float] = field(default_factory=list)

    def growth(self, values: list[float]) -> tuple[float, float]:
        """The last third and the second one, in the mean; in the first one it warms up."""
        third = len(values) // 3
        return statistics.mean(values[-third:]), statistics.mean(values[third : 2 * third])


async def run(server: str, seconds: float, rate: int = 2000) -> Soak:
    """So many jobs a second come and go, and twenty single ones whose waits are measured."""
    seen = Soak()
    async with bench.database(server) as url:
        engine, client = create_async_engine(url), await bench.connect(url)
        async with bench.workers(url, "default:100", 1, "-q", "latency:10") as [pid], Notifier(engine):
            load = [asyncio.create_task(latency.load(engine, rate)), asyncio.create_task(_singles(engine))]
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                await asyncio.sleep(EVERY)
                await _look(client, seen, pid, (time.monotonic() - began) / 60)
                if (broken := [each for each in load if each.done()]) != []:
                    broken[0].result()
            for each in load:
                each.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        await client.close()
        await engine.dispose()
    return seen


async def _singles(engine: AsyncEngine) -> None:
    while True:
        await latency.enqueue_one(engine)
        await asyncio.sleep(0.05)


async def _look(client: asyncpg.Connection, seen: Soak, pid: int, minutes: float) -> None:
    size = await client.fetchrow(_SIZE)
    waits = await client.fetchval(_WAITS, EVERY)
    assert size is not None
    seen.minutes.append(round(minutes, 2))
    seen.table.append(float(size["table"]))
    seen.indexes.append(float(size["indexes"]))
    seen.memory.append(bench.resident_mb(pid))
    seen.p50.append(waits[0])
    seen.p99.append(waits[1])
