"""``python -m tests.benchmarks [--full] [row ...]``: measure, print a table, and write build/bench.json.

Without ``--full`` the main rows only, in a few minutes. With names, only the groups of rows with these names.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from api.postgres import binaries, embedded
from outbox import connection
from tests import pooler
from tests.benchmarks import bench, drain, enqueue, floor, idle, latency, pages, pressure, report, soak
from tests.benchmarks.peers import PEERS, Peer, PeerFailed, run, stores
from tests.benchmarks.report import Row, above, at_least, at_most, below, draw, say, told

BATCH = 500
BIN = binaries(18)


async def drains(server: str, *, full: bool) -> list[Row]:
    """Ours and the floor take turns."""
    jobs, turns = (100_000, 3) if full else (50_000, 3)
    speeds, floors, costs = [], [], []
    for _ in range(turns):
        floors.append(await _floor(server, 100_000, BATCH))
        speed, cost = await drain.plain(server, jobs)
        speeds.append(speed)
        costs.append(cost)
    ours, cost = statistics.median(speeds), costs[-1]
    return [
        at_least("drain, one process, jobs/s", ours, f"pgbench, batch {BATCH}", statistics.median(floors), 0.5),
        below("drain, commits per job", cost.commits / jobs, 0.02),
        told("drain, bytes of WAL per job", cost.wal / jobs),
    ]


async def more_drains(server: str, *, full: bool) -> list[Row]:
    """Two processes, threads, transactional completion."""
    jobs = 100_000 if full else 50_000
    one = (await drain.plain(server, jobs))[0]
    two = (await drain.plain(server, jobs, workers=2))[0]
    return [
        at_least("drain, two processes, jobs/s", two, "one process", one, 1.0),
        above("drain, sync handlers in threads, jobs/s", await drain.threads(server, jobs // 2), 5000),
        told("drain, transactional completion, jobs/s", await drain.transactional(server, jobs // 10)),
        told("drain, limited to 100 at once, jobs/s", await drain.limited(server, jobs // 2), "without", one),
        told("drain, 1,000 groups in order, jobs/s", await drain.groups(server, jobs // 2), "without", one),
        *await _pooled(server, jobs, one),
    ]


async def _pooled(server: str, jobs: int, direct: float) -> list[Row]:
    if pooler.PROGRAM is None:
        say("  nothing could be measured through PgBouncer: it is not here; on Debian: apt install pgbouncer")
        return []
    return [told("drain, through PgBouncer, jobs/s", await drain.pooled(server, jobs), "directly", direct)]


async def enqueues(server: str, *, full: bool) -> list[Row]:
    """In transactions, in bulk, by many writers."""
    none, one, four = await enqueue.in_transactions(server, 2000 if full else 500)
    (bulk, made_too), bulk_floor = await enqueue.in_bulk(server, 10), await enqueue.floor_of_bulk(server, 10)
    with_wake_up, without = await enqueue.by_writers(server, 40 if full else 12)
    return [
        at_most("transaction with one job, ms", one, "the same without", none, 1.35),
        at_most("transaction with four jobs, ms", four, "the same without", none, 1.6),
        above("enqueue_many of 10,000, jobs/s", bulk, 100_000, "insert by the server", bulk_floor),
        told("the same with the making of the jobs", made_too, "insert by the server", bulk_floor),
        at_least("commits/s of 16 writers, wake-up on", with_wake_up, "off", without, 0.9),
    ]


async def latencies(server: str, *, full: bool) -> list[Row]:
    """From commit to start."""
    jobs = 1000 if full else 200
    p50, p99 = await latency.of_single_jobs(server, jobs)
    polled50, polled99 = await latency.of_single_jobs(server, jobs, wake_up=False)
    _, loaded99 = await latency.under_load(server, 30 if full else 8)
    one = 1000 / await _floor(server, 2000, 1)
    return [
        below("commit to start, p50 ms", p50, 1.2, "pgbench, one job", one),
        below("commit to start, p99 ms", p99, 3, "pgbench, one job", one),
        below("the same by polling alone, p50 ms", polled50, 15),
        below("the same by polling alone, p99 ms", polled99, 40),
        below("the same under 2,000 jobs/s, p99 ms", loaded99, 25),
    ]


async def idles(server: str, *, full: bool) -> list[Row]:
    """Nothing to do."""
    statements, share = await idle.one(server, 60 if full else 10)
    rows = [
        below("idle worker, statements/s", statements, 4),
        below("idle worker, % of a core", share, 0.4),
    ]
    if full:
        rows.append(below("50 idle workers, server's % of a core", await idle.many(server, 30, 50), 3))
    return rows


async def pressures(server: str, *, full: bool) -> list[Row]:
    """Held snapshots, open writers, readers, history."""
    count, jobs = (10, 100_000) if full else (4, 50_000)
    held = await pressure.snapshot(server, count, jobs)
    writing, after = await pressure.writer(server, count, jobs)
    draw("jobs/s, round by round", [*range(1, count + 1)], **{"held snapshot": held, "open writer": writing})
    beside, alone = await pressure.beside_readers(server, jobs)
    return [
        at_least("held snapshot, last round, jobs/s", held[-1], "first round", held[0], 0.9),
        at_least("open writing transaction, last round", writing[-1], "first round", writing[0], 0.5),
        at_least("ten seconds after its end", after, "first round", writing[0], 0.9),
        at_least("beside four readers, jobs/s", beside, "alone", alone, 0.8),
    ]


async def histories(server: str, *, full: bool) -> list[Row]:
    """A long history, many scheduled and blocked jobs, and dropping a day of it."""
    finished, scheduled, blocked = (10_000_000, 1_000_000, 100_000) if full else (200_000, 200_000, 20_000)
    seen = await pressure.beside_history(server, 100_000 if full else 50_000, finished, scheduled, blocked)
    beside = f"beside {finished / 1e6:g} m finished, {scheduled / 1e6:g} m scheduled"
    return [
        at_least(beside, seen.speed, "empty database", seen.speed_alone, 0.9),
        at_most("the same, claim of 50, p99 ms", seen.claim, "empty database", seen.claim_alone, 1.1),
        below(f"dropping a day of {finished / 1e6:g} m finished, ms", seen.drop * 1000, 1000),
        below("longest settle meanwhile, ms", seen.longest * 1000, 100),
    ]


async def soaks(server: str, *, full: bool) -> list[Row]:
    """Steady work, 2,000 jobs a second: what grows?"""
    seen = await soak.run(server, 1200 if full else 90)
    draw("soak: megabytes", seen.minutes, table=seen.table, indexes=seen.indexes, worker=seen.memory)
    draw("soak: ms until a job starts", seen.minutes, p50=seen.p50, p99=seen.p99)
    name = f"soak of {seen.minutes[-1]:.0f} min, last third: "
    return [
        at_most(name + "live table, MB", *_beside(seen.growth(seen.table)), 1.2),
        at_most(name + "indexes, MB", *_beside(seen.growth(seen.indexes)), 1.2),
        at_most(name + "worker, MB", *_beside(seen.growth(seen.memory)), 1.05),
        at_most(name + "wait p99, ms", *_beside(seen.growth(seen.p99)), 1.25),
    ]


def _beside(growth: tuple[float, float]) -> tuple[float, str, float]:
    return growth[0], "second third", growth[1]


async def dashboards(server: str, *, full: bool) -> list[Row]:
    """Every page of the dashboard beside very many jobs."""
    took = await pages.beside(server, *((10_000_000, 1_000_000) if full else (1_000_000, 100_000)))
    rows = [below(f"page: {name}, ms", each, 500) for name, each in took.items()]
    return sorted(rows, key=lambda row: -row.ours)


async def peers(server: str, *, full: bool) -> list[Row]:
    """Other queues, in turns with ours."""
    rows = []
    for name, times in AGAINST.items():
        try:
            rows += await _against(server, PEERS[name], times, full=full)
        except PeerFailed as exc:
            say(f"  {name} could not be measured: {exc}")
    return rows


async def _against(server: str, peer: Peer, times: float, *, full: bool) -> list[Row]:
    ours, theirs = [], []
    for _ in range(3 if full else 1):
        ours.append((await drain.plain(server, 100_000))[0])
        theirs.append(await _peer(server, peer, "drain", jobs=peer.jobs, workers=1))
    speed = statistics.median(each["jobs_per_second"] for each in theirs)
    rows = [at_least("drain, jobs/s", statistics.median(ours), peer.name, speed, times)]
    if peer.name == "pgqueuer":
        two = await _peer(server, peer, "drain", jobs=peer.jobs, workers=2)
        bulk = statistics.median(each["enqueue_per_second"] for each in theirs)
        both = (await drain.plain(server, 100_000, workers=2))[0]
        rows.append(at_least("drain, two processes, jobs/s", both, peer.name, two["jobs_per_second"], 1.5))
        rows.append(at_least("enqueue in bulk, jobs/s", (await enqueue.in_bulk(server, 10))[0], peer.name, bulk, 1.5))
    if peer.name == "procrastinate":
        completed = await drain.transactional(server, 10_000)
        rows.append(at_least("drain, transactional completion, jobs/s", completed, f"{peer.name}, plain", speed, 3))
    jobs = 500 if full else 100
    mine = await latency.of_single_jobs(server, jobs)
    try:
        waits = await _peer(server, peer, "latency", jobs=jobs, pause=0.05)
    except PeerFailed as exc:
        say(f"  {peer.name}: single jobs could not be measured: {str(exc).splitlines()[-1]}")
        return rows
    for n, quantile in enumerate(("p50", "p99")):
        row = f"commit to start, {quantile} ms"
        if peer.name in NO_SLOWER_THAN:
            rows.append(at_most(row, mine[n], peer.name, waits[quantile], 1.0))
        else:
            rows.append(told(row, mine[n], peer.name, waits[quantile]))
    return rows


async def _peer(server: str, peer: Peer, command: str, **options: float) -> dict[str, Any]:
    if peer.needs == "redis":
        with stores.redis() as url:
            return await run(peer, command, url, options)
    async with stores.database(server) as url:
        return await run(peer, command, url, options)


AGAINST = {
    "pgqueuer": 2.0,
    "awa": 8.0,
    "oban": 10.0,
    "procrastinate": 10.0,
    "celery": 10.0,
    "arq": 10.0,
    "dramatiq": 10.0,
}
"""Other queues, and how many times as fast as each ours is to drain."""

NO_SLOWER_THAN = {"pgqueuer", "oban"}
"""Those than which ours starts a single job no later."""

MAIN: dict[str, Callable[..., Awaitable[list[Row]]]] = {
    "drain": drains,
    "more-drain": more_drains,
    "enqueue": enqueues,
    "latency": latencies,
    "idle": idles,
    "pressure": pressures,
    "history": histories,
}
FULL = MAIN | {"pages": dashboards, "soak": soaks, "peers": peers}


async def _floor(server: str, jobs: int, batch: int) -> float:
    async with bench.database(server) as url:
        return floor.jobs_per_second(BIN, connection.dsn(url), jobs=jobs, batch=batch)


async def main(names: list[str], *, full: bool) -> None:
    """Run the groups of rows and print the table."""
    unknown = set(names) - FULL.keys()
    if unknown:
        raise SystemExit(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(FULL)}")
    table: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="outbox-bench-") as folder, embedded(Path(folder) / "pg") as server:
        for name, rows in FULL.items():
            if name in (names or (FULL if full else MAIN)):
                say(f"{name}: {rows.__doc__} ...")
                came = await rows(server, full=full)
                for row in came:
                    say("  " + report.line(row))
                table += came
    report.show(table)


if __name__ == "__main__":
    asyncio.run(main([each for each in sys.argv[1:] if each != "--full"], full="--full" in sys.argv))
