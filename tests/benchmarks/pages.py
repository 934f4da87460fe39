"""How long every page of the dashboard takes beside very many jobs."""

import time
from uuid import UUID

import asyncpg
import httpx2
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from outbox import Outbox
from outbox.dashboard import outbox_dashboard
from tests.benchmarks import bench

DAYS = 13
TURNS = 3

PAGES = {
    "overview": "",
    "overview, a day": "?window=24h",
    "overview, a week": "?window=7d",
    "overview, a week of one task": "?window=7d&task=task-7",
    "queues": "/queues",
    "schedules": "/schedules",
    "workers": "/workers",
    "batches": "/batches",
    "doctor": "/doctor",
    "audit": "/audit",
    "jobs": "/jobs",
    "jobs, an older page": "/jobs?before={middle}",
    "jobs, waiting": "/jobs?q=state:pending",
    "jobs, running": "/jobs?q=state:running",
    "jobs, succeeded": "/jobs?q=state:succeeded",
    "jobs, failed": "/jobs?q=state:failed",
    "jobs, failed of one task": "/jobs?q=state:failed task:task-7",
    "jobs of one task": "/jobs?q=task:task-7",
    "jobs of a task that there is not": "/jobs?q=task:nobody",
    "jobs of one queue": "/jobs?q=queue:q-3",
    "jobs of one queue that wait": "/jobs?q=state:pending queue:q-3",
    "jobs by a tag": "/jobs?q=tag:rare",
    "jobs by an argument": "/jobs?q=args.n:77",
    "jobs by a key": "/jobs?q=key:none",
    "jobs by a group": "/jobs?q=group:none",
    "jobs of a tenant": "/jobs?q=tenant:t-3",
    "jobs of some hours": "/jobs?q=after:200h before:190h",
    "jobs of some hours by an argument": "/jobs?q=after:200h before:190h args.n:77",
    "retry all that failed": "/jobs/change?action=retry&q=state:failed",
    "cancel all that wait": "/jobs/change?action=cancel&q=state:pending",
    "a finished job": "/jobs/{middle}",
    "a waiting job": "/jobs/{waiting}",
}

_FINISHED = """
insert into outbox.finished_job
    (id, task, queue, state, payload, fence, attempt, started_at, finished_at, result, tags, tenant, errors)
select (rpad(lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0'), 13, '7')
           || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid,
       'task-' || n % 20, 'q-' || n % 5, case when n % 100 = 0 then 'failed' else 'succeeded' end,
       jsonb_build_object('n', n), 1, 1, at, at + interval '1 second', jsonb_build_object('ok', n),
       case when n % 100000 = 0 then '["rare"]'::jsonb end, case when n % 10 = 0 then 't-' || n % 30 end,
       case when n % 100 = 0 then '[]'::jsonb end
from generate_series(1, $1::integer) n,
     lateral (select now() - make_interval(secs => $2 * 86400.0 * n / $1) as at) moment
"""
_WAITING = """
insert into outbox.live_job (task, queue, priority, payload, run_at)
select 'task-' || n % 20, 'q-' || n % 5, n % 4, jsonb_build_object('n', n),
       clock_timestamp() + case when n % 2 = 0 then make_interval(secs => n) else interval '0' end
from generate_series(1, $1::integer) n
"""
_COUNTED = """
insert into outbox.statistic (seconds, starts_at, queue, task, outcome, count, waits, runs)
select span.seconds, date_bin(make_interval(secs => span.seconds), now(), 'epoch')
           - make_interval(secs => span.seconds * n), 'q-' || task % 5, 'task-' || task, outcome, 600,
       array_fill(12, array[48]), array_fill(12, array[48])
from (values (60, 60), (600, 144), (3600, 168)) span (seconds, points), generate_series(0, points - 1) n,
     generate_series(0, 19) task, (values ('succeeded'), ('retried'), ('failed')) ended (outcome)
"""
_STOOD = """
insert into outbox.backlog
select date_bin('1 minute', now(), 'epoch') - make_interval(mins => n), 'q-' || queue, n, 0, 5, 1.5
from generate_series(0, 7 * 24 * 60) n, generate_series(0, 4) queue
"""
_MIDDLE = """
select id from outbox.finished_job where id < outbox.first_id(now() - interval '6 days') order by id desc limit 1
"""


async def beside(server: str, finished: int, waiting: int) -> dict[str, float]:
    """Milliseconds that each page takes, the median of a few times."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        middle, one = await _fill(client, finished, waiting)
        await client.close()
        engine = create_async_engine(url)
        app = FastAPI()
        app.include_router(outbox_dashboard(Outbox(), async_sessionmaker(engine)))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as browser:
            took = {
                name: await _times(browser, "/outbox" + path.format(middle=middle, waiting=one))
                for name, path in PAGES.items()
            }
        await engine.dispose()
    return took


async def _fill(client: asyncpg.Connection, finished: int, waiting: int) -> tuple[UUID, UUID]:
    for day in range(-1, DAYS + 2):
        await client.execute("select outbox.add_partition((now() at time zone 'UTC')::date - $1::integer)", day)
    await client.execute(_FINISHED, finished, DAYS, timeout=3600)
    await client.execute(_WAITING, waiting, timeout=3600)
    await client.execute(_COUNTED)
    await client.execute(_STOOD)
    await client.execute("checkpoint", timeout=3600)
    middle = await client.fetchval(_MIDDLE)
    return middle, await client.fetchval("select id from outbox.live_job limit 1")


async def _times(browser: httpx2.AsyncClient, address: str) -> float:
    took = []
    for _ in range(TURNS):
        began = time.perf_counter()
        answer = await browser.get(address)
        took.append((time.perf_counter() - began) * 1000)
        if answer.status_code not in (200, 503):  # the database was given five seconds
            raise RuntimeError(f"{address}: {answer.status_code}")
    return sorted(took)[TURNS // 2]
