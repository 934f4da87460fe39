"""The types of ``enqueue`` are those of the handler: mypy says so, line by line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).with_name("typed_example.py")


IGNORE = re.compile(r"  # type: ignore\[([a-z-]+)\]")


@pytest.fixture
def said(tmp_path: Path) -> dict[int, set[str]]:
    """The errors that a user's mypy finds in the example, by line, without the project's own settings."""
    example = tmp_path / "example.py"
    example.write_text(IGNORE.sub("", EXAMPLE.read_text()))
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--no-pretty", "--no-error-summary"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--cache-dir={ROOT / '.mypy_cache' / 'example'}", str(example)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert checked.returncode == 1, checked.stdout + checked.stderr
    found: dict[int, set[str]] = {}
    for line in checked.stdout.splitlines():
        if match := re.search(r"example\.py:(\d+): error: .*\[([a-z-]+)\]$", line):
            found.setdefault(int(match[1]), set()).add(match[2])
    return found


def test_right_calls_pass_and_wrong_ones_are_errors(said: dict[int, set[str]]) -> None:
    expected = {
        number: {match[1]}
        for number, line in enumerate(EXAMPLE.read_text().splitlines(), start=1)
        if (match := IGNORE.search(line))
    }
    assert len(expected) == 14
    assert said == expected


def test_the_library_says_that_it_is_typed() -> None:
    assert (ROOT / "outbox" / "py.typed").exists()
