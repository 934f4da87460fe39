"""The service on one machine, as ``make run`` starts it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from api.crew import free_port
from api.handlers import outbox
from api.local import QUEUES

ROOT = Path(__file__).parents[1]


def test_the_worker_serves_every_queue() -> None:
    assert {task.defaults.queue for task in outbox} == QUEUES.keys()


def test_a_taken_port_gives_way_to_the_next_free_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port, "the API") > port
    assert f"port {port} is taken" in capsys.readouterr().out


@pytest.mark.slow
def test_run_finishes_an_order_and_leaves_nothing_behind(database_url: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "api.local", "run"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url, "PORT": "18000", "LOCAL_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("Ready"):
                break
        crew = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        printed += process.stdout.readlines()
    text = "".join(printed)
    assert process.returncode == 0, text
    assert time.monotonic() - began < 10
    assert len(re.findall(r"✓ \w+ +succeeded in \d+ ms \(attempt 1\)", text)) == 4, text
    assert len(crew) == 4
    assert not psutil.wait_procs(crew, timeout=0)[1]
    assert len(list((tmp_path / "mail").iterdir())) == 1


@pytest.mark.crash
def test_the_other_worker_finishes_the_job_of_a_killed_one(database_url: str, tmp_path: Path) -> None:
    scene = subprocess.run(
        [sys.executable, "-m", "api.local", "crash"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url, "PORT": "18100", "LOCAL_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert scene.returncode == 0, scene.stdout + scene.stderr
    killed = re.search(r"kill -9 +(worker [AB])", scene.stdout)
    succeeded = re.search(r"succeeded +on (worker [AB]): fence 2, attempt 1", scene.stdout)
    assert killed is not None
    assert succeeded is not None, scene.stdout
    assert killed[1] != succeeded[1]
