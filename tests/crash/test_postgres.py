"""Postgres goes away under load: restarted, crashed, cut off, or gone for long. The workers wait, and go on."""

import asyncio
import os
from datetime import timedelta

import pytest
from sqlalchemy import make_url

from api.postgres import Mode
from tests.cluster import Cluster
from tests.crash.clients import Clients
from tests.crash.database import PATIENCE, Database, Report
from tests.crash.handlers import gated, tick
from tests.crash.history import count, must_be_right, steps
from tests.crash.processes import LEASE, Crew, WorkerProcess
from tests.crash.proxy import Proxy
from tests.waiting import eventually, until

RESTARTS = int(os.environ.get("OUTBOX_TEST_RESTARTS", "3"))
TERMINATIONS = int(os.environ.get("OUTBOX_TEST_TERMINATIONS", "20"))
AWAY = float(os.environ.get("OUTBOX_TEST_AWAY", "20"))

RESUMED_WITHIN = timedelta(seconds=5)
"""Between the start of the server and the first claim, both by the server's clock. A promise to users."""

LINKS = 4
"""Connections of one worker."""

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]


async def claims_since_start(database: Database) -> dict[str, timedelta]:
    """For each worker that has claimed since the server was started, how long after the start the first claim was."""
    rows = await database.fetch("""
        select writer, min(at) - pg_postmaster_start_time() as late from crash.history
        where at > pg_postmaster_start_time() and before ->> 'state' = 'pending' and after ->> 'state' = 'running'
        group by writer
    """)
    return {row["writer"]: row["late"] for row in rows}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_server_restarted_under_load(
    cluster: Cluster, database: Database, crew: Crew, clients: Clients, seed: int, mode: Mode, report: Report
) -> None:
    workers = [await crew.started() for _ in range(2)]
    resumed: list[timedelta] = []
    async with clients.at_work():
        for _ in range(RESTARTS):
            for worker in workers:
                await crew.in_the_middle(worker)
            await asyncio.to_thread(cluster.restart, mode)

            async def all_claim_again() -> bool:
                for worker in workers:
                    worker.must_live()
                return len(await claims_since_start(database)) == len(workers)

            await eventually(all_claim_again, within=PATIENCE)
            resumed.append(min((await claims_since_start(database)).values()))
    await database.comes_to_rest()

    for worker in workers:
        worker.must_live()
    history = await database.history(clients.ledger)
    must_be_right(history)
    assert max(resumed) <= RESUMED_WITHIN
    report(
        resumed=[f"{each.total_seconds():.2f}" for each in resumed],
        committed=len(clients.ledger.committed),
        unknown=len(clients.ledger.unknown),
        rescued=count(history, "rescue"),
        refused=sum(worker.reported("lease_lost") for worker in workers),
    )


async def test_connections_terminated_under_load(
    database: Database, crew: Crew, clients: Clients, seed: int, report: Report
) -> None:
    workers = [await crew.started() for _ in range(2)]
    ended, last = 0, await database.value("select now()")
    async with clients.at_work():
        for _ in range(TERMINATIONS):

            async def all_write_again() -> bool:
                for worker in workers:
                    worker.must_live()
                writers = "select distinct writer from crash.history where at > $1 and writer <> ''"
                return len(await database.fetch(writers, last)) == len(workers)  # noqa: B023

            await eventually(all_write_again, within=PATIENCE)
            ended += await database.value("""
                select count(pg_terminate_backend(pid)) from pg_stat_activity
                where application_name like 'outbox %' and datname = current_database()
            """)
            last = await database.value("select clock_timestamp()")
    await database.comes_to_rest()

    for worker in workers:
        worker.must_live()
    history = await database.history(clients.ledger)
    must_be_right(history)
    assert ended >= TERMINATIONS * len(workers), "void: the workers had no connections to lose"
    report(
        terminated=ended,
        committed=len(clients.ledger.committed),
        rescued=count(history, "rescue"),
        refused=sum(worker.reported("lease_lost") for worker in workers),
    )


async def test_server_away_for_long(cluster: Cluster, database: Database, crew: Crew, report: Report) -> None:
    """The workers wait without hurry and without a word, and go on by themselves."""
    port = make_url(database.url).port
    assert port is not None
    jobs = [tick.job(seconds=0.05) for _ in range(200)]
    async with Proxy(port).listening() as proxy:
        direct = await crew.started()
        through = await crew.started(port=proxy.port)
        workers: list[WorkerProcess] = [direct, through]
        await database.enqueue(*jobs)
        for worker in workers:
            await crew.in_the_middle(worker)
        await asyncio.to_thread(cluster.stop, "immediate")
        attempts, used = proxy.connections, [worker.cpu_seconds() for worker in workers]
        await asyncio.sleep(AWAY)  # the absence itself
        attempts = proxy.connections - attempts
        used = [worker.cpu_seconds() - before for worker, before in zip(workers, used, strict=True)]
        assert all(worker.alive for worker in workers)
        await asyncio.to_thread(cluster.start)
        await database.comes_to_rest()
        for worker in workers:
            await worker.reports("database_back")
        assert min((await claims_since_start(database)).values()) <= RESUMED_WITHIN

    assert all(worker.alive for worker in workers)
    must_be_right(await database.history())
    assert 2 <= attempts <= LINKS * (2 * AWAY + 10), "not, or too busily, tried again"
    assert max(used) <= AWAY / 10, "busy while there was nothing to do"
    for worker in workers:
        assert 1 <= worker.reported("database_lost") <= LINKS, "said once for each connection, and not at each attempt"
    report(attempts=attempts, cpu_seconds=[round(each, 2) for each in used])


async def test_outage_longer_than_the_lease_is_no_death(cluster: Cluster, database: Database, crew: Crew) -> None:
    """When the server is back, a worker that has lived through it renews its claims before others take them.

    What ends in the absence is settled afterwards, and does not run again.
    """
    workers = [await crew.started() for _ in range(2)]
    jobs = [gated.job() for _ in range(8)]
    await database.enqueue(*jobs)
    await until(lambda: all(database.started(job.id) for job in jobs))
    assert len({run.worker for run in database.runs()}) == len(workers), "void: one worker has all the jobs"
    still = len(jobs)
    for number in range(3):
        await asyncio.to_thread(cluster.stop, "fast")
        await asyncio.sleep(LEASE * 1.5)  # the absence itself
        if number == 2:
            still = len(jobs) // 2
            for job in jobs[still:]:
                database.open_gate(job.id)
            await until(lambda: sum(run.what == "end" for run in database.runs()) == len(jobs) - still)  # noqa: B023
        await asyncio.to_thread(cluster.start)

        async def all_renewed() -> bool:
            held = "select count(*) from outbox.live_job where state = 'running' and lease_until > clock_timestamp()"
            return bool(await database.value(held) == still)  # noqa: B023

        await eventually(all_renewed, within=PATIENCE)
    for job in jobs[:still]:
        database.open_gate(job.id)
    await database.comes_to_rest()

    history = await database.history()
    must_be_right(history)
    moves = {step.move for each in steps(history.changes).values() for step in each}
    assert moves == {"enqueue", "claim", "renew", "finish"}, "jobs of living workers were given to others"
    assert {job.row.fence for job in history.jobs} == {1}
