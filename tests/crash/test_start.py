"""Workers that are started before the database is ready for them."""

import asyncio
import signal

import pytest

from outbox.cli.console import EXIT_CONFIG
from tests.cluster import Cluster
from tests.crash.database import Database
from tests.crash.handlers import tick
from tests.crash.processes import Crew

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


async def test_worker_waits_for_a_database_that_is_down(cluster: Cluster, database: Database, crew: Crew) -> None:
    job = tick.job(seconds=0)
    await database.enqueue(job)
    await asyncio.to_thread(cluster.stop, "fast")
    worker = crew.start()
    await worker.reports("database_lost")
    assert worker.reported("worker_started") == 0
    await asyncio.to_thread(cluster.start)
    await worker.reports("worker_started")
    await database.reaches(job.id, "succeeded")


async def test_worker_that_waits_for_a_database_can_be_stopped(
    cluster: Cluster, database: Database, crew: Crew
) -> None:
    await asyncio.to_thread(cluster.stop, "fast")
    worker = crew.start()
    await worker.reports("database_lost")
    worker.send(signal.SIGTERM)
    assert await worker.leaves() == 0


async def test_missing_schema_is_said_and_not_waited_for(bare_database: Database, crew: Crew) -> None:
    worker = crew.start()
    assert await worker.leaves() == EXIT_CONFIG
    said = worker.said()
    assert "outbox schema" in said
    assert "outbox migrate" in said
    assert "Traceback" not in said
