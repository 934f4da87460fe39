"""What a worker costs while there is nothing to do."""

import asyncio
import time

import asyncpg

from tests.benchmarks import bench

SETTLED = 3.0
"""Seconds until a worker that has just started has come to rest."""


async def one(server: str, seconds: float) -> tuple[float, float]:
    """Statements per second of one idle worker, and the share of a core that it uses, in per cent."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        async with bench.workers(url, "default:10") as [pid]:
            await asyncio.sleep(SETTLED)
            commits, cpu, began = await _transactions(client), bench.cpu_seconds(pid), time.monotonic()
            await asyncio.sleep(seconds)
            took = time.monotonic() - began
            statements = (await _transactions(client) - commits) / took
            share = 100 * (bench.cpu_seconds(pid) - cpu) / took
        await client.close()
    return statements, share


async def many(server: str, seconds: float, count: int) -> float:
    """What the server's processes use while so many workers are idle, in per cent of a core."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        async with bench.workers(url, "default:10", count):
            await asyncio.sleep(SETTLED)
            before = await _server_seconds(client)
            began = time.monotonic()
            await asyncio.sleep(seconds)
            share = 100 * (await _server_seconds(client) - before) / (time.monotonic() - began)
        await client.close()
    return share


async def _transactions(client: asyncpg.Connection) -> int:
    """Those of all but this connection. A worker's statements are a transaction each while nothing is found."""
    await client.execute("select pg_stat_clear_snapshot()")
    return int(
        await client.fetchval(
            "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
        )
    )


async def _server_seconds(client: asyncpg.Connection) -> float:
    pids = await client.fetch("select pid from pg_stat_activity where pid <> pg_backend_pid()")
    return sum(bench.cpu_seconds(row["pid"]) for row in pids)
