"""The page for those who operate it tells of everything that they can be told."""

import re
from pathlib import Path
from typing import get_args

from outbox import doctor, explain
from outbox.cli import command
from tests.commands import leaves

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    table = re.findall(r"^\| `.*\|$", PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table]


def test_each_reason_why_a_job_does_not_run_is_told_with_what_to_do() -> None:
    told = rows("Why does my job not run?")
    assert {code.strip("`") for code, _, _ in told} == set(get_args(explain.Code))
    assert len(told) == len(get_args(explain.Code))
    assert all(means and do for _, means, do in told)


def test_each_finding_of_the_doctor_is_told_with_its_fix() -> None:
    source = Path(doctor.__file__).read_text()
    named = set(re.findall(r"Finding\(\s*\"(\w+)\"", source))
    assert named == {check.__name__.strip("_") for check in doctor.CHECKS}  # what fails is named after its function
    told = rows("Is all well?")
    assert {check.strip("`") for check, _, _ in told} == named
    assert len(told) == len(named)
    assert all(found and do for _, found, do in told)


def test_every_command_that_it_names_is_there() -> None:
    known = {path for path, _ in leaves(command())}
    named = {each.strip() for each in re.findall(r"outbox ((?:jobs |queues )?[a-z-]+)", PAGE)}
    assert {"jobs explain", "doctor", "queues resume", "migrate"} <= named
    assert {each for each in named if each in known or each.split()[0] in ("jobs", "queues")} <= known
