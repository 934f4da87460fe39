"""The whole service on one machine: ``make run``, ``make worker``, ``make api``, ``make migrate``, ``make crash``.

The database is the one that DATABASE_URL names; unset, an embedded PostgreSQL that keeps its data in ``.local`` and is
shared by all of these commands; LOCAL_DIR names another directory. Nothing here is meant for production.
"""

import asyncio
import base64
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx2
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from api.crew import HOST, ROOT, Crew, Failure, Stopped, free_port, say
from api.postgres import PostgresUnavailable, embedded

LOCAL: Final = Path(os.environ.get("LOCAL_DIR", ROOT / ".local")).resolve()
MAILS: Final = LOCAL / "mail"

RUNNING: Final = LOCAL / "run.json"
"""What ``make run`` gave its processes, for a ``make worker`` in another terminal. There while it runs."""

QUEUES: Final = {"mail": 10, "webhooks": 10, "default": 5, "reports": 2, "imports": 2, "demo": 2}
"""How many jobs of a queue one worker runs at once."""

ORDER: Final = {
    "email": "ada@example.com",
    "lines": [
        {"sku": "TEA-01", "quantity": 2, "unit_price_cents": 1250},
        {"sku": "CUP-07", "quantity": 1, "unit_price_cents": 890},
    ],
}


def shown(path: Path) -> str:
    """A path as people write it who are in the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@contextmanager
def database() -> Iterator[str]:
    """The database's URL, and the embedded server while it is needed."""
    if url := os.environ.get("DATABASE_URL"):
        try:
            say(f"PostgreSQL  {make_url(url).render_as_string()} (DATABASE_URL)")
        except ArgumentError as exc:
            raise Failure("DATABASE_URL is no URL: write postgresql://user:password@host/name") from exc
        yield url
    else:
        try:
            began = time.monotonic()
            with embedded(LOCAL / "postgres") as url:
                took = time.monotonic() - began
                say(f"PostgreSQL  embedded, up in {took:.1f} s, its data is in {shown(LOCAL / 'postgres')}")
                yield url
        except PostgresUnavailable as exc:
            raise Failure(str(exc)) from exc


def common(url: str) -> dict[str, str]:
    """What every process of the service is told, wherever the others are."""
    return {"DATABASE_URL": url, "FILES_DIR": str(LOCAL / "files"), "WEBHOOK_ALLOWED_HOSTS": HOST}


def neighbours(url: str) -> dict[str, str]:
    """What a process is told that joins what ``make run`` has started, if it has."""
    try:
        running: dict[str, str] = json.loads(RUNNING.read_text())
    except (FileNotFoundError, ValueError):
        running = {}
    return {**common(url), **running}


async def migrate(crew: Crew) -> None:
    """Bring the database to the newest schema, and say which migrations that took."""
    hint = f"If {shown(LOCAL / 'postgres')} holds nothing you need, remove it and start again."
    if os.environ.get("DATABASE_URL"):
        hint = "Check that DATABASE_URL is right and its server can be reached."
    for line in await crew.run("migrations", "-m", "alembic", "upgrade", "head", hint=hint):
        if match := re.search(r"Running upgrade \S* ?-> (.*)", line):
            say(f"migrations  {match[1]}")
    say("migrations  at head")


async def start_api(crew: Crew, port: int, *, plain: bool = False) -> None:
    """Start the API; it may not take requests yet."""
    await crew.start(
        *("api", "-m", "api", "--host", HOST, "--port", str(port)),
        *("--timeout-graceful-shutdown", "3", "--log-level", "info" if plain else "warning"),
        plain=plain,
    )


async def start_worker(crew: Crew, *, plain: bool = False) -> None:
    """Start a worker for all queues."""
    queues = [argument for name, slots in QUEUES.items() for argument in ("-q", f"{name}:{slots}")]
    await crew.start("worker", "-m", "outbox", "worker", "api.handlers:outbox", *queues, plain=plain)


async def until_ready(client: httpx2.AsyncClient) -> None:
    """Wait until the API answers that all is well."""
    answer = "nothing"
    for _ in range(300):
        try:
            response = await client.get("/readyz")
            if response.is_success:
                return
            answer = response.text
        except httpx2.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise Failure(f"the API is not ready after 30 s; it answers: {answer}")


async def run() -> None:
    """Everything, and an order whose jobs can be watched."""
    with database() as url:
        port, mail, web = (
            free_port(int(os.environ.get("PORT", "8000")), "the API"),
            free_port(1025, "the mail server"),
            free_port(8025, "the page of mails"),
        )
        told = {
            "PUBLIC_URL": f"http://{HOST}:{port}",
            "SMTP_HOST": HOST,
            "SMTP_PORT": str(mail),
            "WAREHOUSE_URL": f"http://{HOST}:{web}/warehouse",
            "WAREHOUSE_SECRET": f"whsec_{base64.b64encode(os.urandom(32)).decode()}",
            "ANALYTICS_URL": f"http://{HOST}:{web}/events",
        }
        async with Crew({**common(url), "OUTBOX_GRACE": "3", **told}, patience=10) as crew:
            RUNNING.write_text(json.dumps(told))
            try:
                await crew.play(_start_all(crew, port, mail, web))
                await crew.play(_order(f"http://{HOST}:{port}"))
                say("\nReady. Ctrl-C stops everything; the data stays. Try in another terminal: make crash")
                await crew.play(_for_ever())
            finally:
                RUNNING.unlink(missing_ok=True)
                say("stopping ...")


async def _start_all(crew: Crew, port: int, mail: int, web: int) -> None:
    await migrate(crew)
    await crew.start("mail", "-m", "api.sinks", "mail", str(mail), str(MAILS))
    await crew.start("web", "-m", "api.sinks", "web", str(web), str(MAILS))
    await start_api(crew, port)
    await start_worker(crew)
    base = f"http://{HOST}:{port}"
    async with httpx2.AsyncClient(base_url=base, trust_env=False) as client:
        await until_ready(client)
    say(f"API         {base}/docs")
    say(f"dashboard   {base}/outbox")
    say(f"mails       http://{HOST}:{web}/ (files in {shown(MAILS)})")


async def _order(base: str) -> None:
    async with httpx2.AsyncClient(base_url=base, trust_env=False, timeout=10) as client:
        say("\ndemo: POST /v1/orders")
        response = await client.post("/v1/orders", json=ORDER)
        if response.status_code != 202:
            raise Failure(f"the order was answered with {response.status_code}: {response.text}")
        jobs = response.json()["jobs"]
        say(f"demo: {response.status_code}, order {response.json()['id']}, {len(jobs)} jobs in the same transaction")
        await asyncio.gather(*(_follow(client, job["links"]["self"]) for job in jobs))


async def _follow(client: httpx2.AsyncClient, address: str) -> None:
    failed = 0
    for _ in range(600):
        answer = await client.get(address)
        if answer.status_code == 401:
            say(f"  ? only who has a key may look (OUTBOX_ACCESS): {address}")
            return
        job = answer.json()
        if len(job["errors"]) > failed:
            failed = len(job["errors"])
            say(f"  ! {job['task']} failed, attempt {job['attempt']}: {job['error']['message']}")
        if job["done"]:
            say(_line(job))
            return
        await asyncio.sleep(0.05)
    say(f"  ? not done after 30 s: {address}")


def _line(job: dict[str, Any]) -> str:
    mark = "✓" if job["state"] == "succeeded" else "✗"
    took = (_time(job["finished_at"]) - _time(job["started_at"] or job["finished_at"])) * 1000
    how = f"{job['state']} in {took:.0f} ms (attempt {job['attempt']})"
    return f"  {mark} {job['task']:<20} {how:<35} {job['links']['self']}"


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def worker() -> None:
    """One worker."""
    with database() as url:
        grace = float(os.environ.get("OUTBOX_GRACE", "20"))
        async with Crew(neighbours(url), patience=grace + 12) as crew:
            await crew.play(_alone(crew, start_worker))


async def api() -> None:
    """The API."""
    with database() as url:
        port = free_port(int(os.environ.get("PORT", "8000")), "the API")
        async with Crew({**neighbours(url), "PUBLIC_URL": f"http://{HOST}:{port}"}, patience=10) as crew:

            async def start(crew: Crew, *, plain: bool) -> None:
                await start_api(crew, port, plain=plain)

            await crew.play(_alone(crew, start))


async def _alone(crew: Crew, start: Callable[..., Awaitable[None]]) -> None:
    if not os.environ.get("DATABASE_URL"):  # somebody else's database is migrated when they say so: make migrate
        await migrate(crew)
    await start(crew, plain=True)
    await _for_ever()


async def migrations() -> None:
    """The newest schema."""
    with database() as url:
        async with Crew(common(url), patience=10) as crew:
            await crew.play(migrate(crew))


async def crash() -> None:
    """The scene of the killed worker."""
    from api.crash import play  # only this command declares tasks

    with database() as url:
        os.environ["DATABASE_URL"] = url
        port = free_port(int(os.environ.get("PORT", "8000")), "the API")
        async with Crew({**neighbours(url), "PUBLIC_URL": f"http://{HOST}:{port}"}, patience=5) as crew:
            await crew.play(migrate(crew))
            await crew.play(start_api(crew, port))
            await crew.play(play(crew, f"http://{HOST}:{port}", url))


COMMANDS: Final = {"run": run, "worker": worker, "api": api, "migrate": migrations, "crash": crash}


def main() -> int:
    """Play the command; 0 if it did what it was to do, be it until somebody stopped it."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(COMMANDS[sys.argv[1]]())
    except Stopped:
        say("stopped; the data stays")
    except Failure as exc:
        print(f"\n{exc}", file=sys.stderr)
        return exc.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
