"""``python -m tests.benchmarks.peers drain|latency [name ...]``: try the adapters, and see a table."""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from api.postgres import embedded
from tests.benchmarks.peers import PEERS, Peer, PeerFailed, run
from tests.benchmarks.peers.stores import database, redis

COLUMNS = {"drain": ["jobs_per_second", "enqueue_per_second"], "latency": ["p50", "p99"]}


async def main() -> None:
    """Measure the peers that are named, or all of them, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers")
    parser.add_argument("command", choices=list(COLUMNS))
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(PEERS))
    parser.add_argument("--jobs", type=int, help="by default as many as suit the peer, or 100 single ones")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.05)
    asked = parser.parse_args()
    columns = COLUMNS[asked.command]
    print(f"{'':16}{''.join(f'{column:>20}' for column in columns)}{'jobs':>9}  settings")
    for name in asked.names or PEERS:
        try:
            found = await measure(PEERS[name], asked)
        except PeerFailed as exc:
            print(f"{name:16}{exc}", flush=True)
            continue
        figures = "".join(f"{found[column]:>20,.2f}" for column in columns)
        print(f"{name:16}{figures}{found['jobs']:>9,}  {found['version']}: {found['settings']}", flush=True)


async def measure(peer: Peer, asked: argparse.Namespace) -> dict[str, Any]:
    """One run of one peer with a store made for it."""
    print(f"{peer.name} ...", file=sys.stderr, flush=True)
    async with AsyncExitStack() as stack:
        if peer.needs == "postgres":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="outbox-peers-"))
            url = await stack.enter_async_context(database(stack.enter_context(embedded(Path(folder) / "pg"))))
        else:
            url = stack.enter_context(redis())
        if asked.command == "drain":
            return await run(peer, "drain", url, {"jobs": asked.jobs or peer.jobs, "workers": asked.workers})
        return await run(peer, "latency", url, {"jobs": asked.jobs or 100, "pause": asked.pause})


if __name__ == "__main__":
    asyncio.run(main())
