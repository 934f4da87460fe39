"""What a user installs: the wheel holds the library and nothing else, and needs no web framework to run jobs."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import lock

ROOT = Path(__file__).parents[1]

PROGRAM = """
import asyncio
import importlib.util
import sys

from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from outbox import Outbox, status
from outbox.worker import Worker

outbox = Outbox()


@outbox.task()
async def double(n: int) -> int:
    return 2 * n


async def main(url: str) -> None:
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session, session.begin():
        id = double.enqueue(session, 21).id
    worker = Worker(outbox, url)
    working = asyncio.create_task(worker.run())
    async with AsyncSession(engine) as session:
        while not (job := await status.get(session, id)).done:
            await session.rollback()
            await asyncio.sleep(0.02)
    worker.stop()
    await working
    await engine.dispose()
    print(job.state, job.result)


assert not any(map(importlib.util.find_spec, ("fastapi", "alembic", "api", "migrations", "tests")))
asyncio.run(main(sys.argv[1]))
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What the command prints; fails with it, if the command fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel made from it."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist)
    return dist


@pytest.mark.slow
def test_the_wheel_installs_one_package(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    information = f"{wheel.name.rpartition('-py3')[0]}.dist-info"
    assert top == {"outbox", information}
    assert "outbox/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]
    assert [name for name in names if "/sboms/" in name] == [f"{information}/sboms/vendored.cdx.json"]


@pytest.mark.slow
def test_the_source_distribution_holds_what_the_repository_does(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"outbox", "api", "migrations", "tests", "Makefile", "LICENSE", "requirements.lock"} <= top
    assert not {".git", ".venv", ".local", "dist", "build"} & top


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bare_environment_runs_a_job(dist: Path, tmp_path: Path, database_url: str) -> None:
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    programs = tmp_path / "venv" / "bin"
    # Without hashes: with them pip would ask for one of the wheel, too, and for all that it needs by name.
    (tmp_path / "constraints").write_text("\n".join(pin.line for pin in lock.pins()))
    run(programs / "python", "-m", "pip", "install", "--quiet", "--constraint", tmp_path / "constraints", wheel)
    (tmp_path / "program.py").write_text(PROGRAM)

    assert "succeeded 42" in run(programs / "python", "program.py", database_url, cwd=tmp_path)
    assert "outbox schema: version" in run(programs / "outbox", "migrate", "--database-url", database_url, cwd=tmp_path)
    assert "--lease" in run(programs / "outbox", "worker", "--help", cwd=tmp_path)
