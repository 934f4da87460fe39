"""What holds for every command of the command line, whichever there are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox import cli
from outbox.cli import console
from tests.commands import ARGUMENTS, invoke, leaves

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()

COMMANDS = dict(leaves(cli.command()))
PROCESSES = {"worker", "dev"}
"""They wait for a database that cannot be reached."""


def options(command: Any) -> Iterator[Any]:
    return (each for each in command.params if each.param_type_name == "option" and "--help" not in each.opts)


def variables(option: Any) -> list[str]:
    return [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())


def test_there_is_every_command_that_was_promised() -> None:
    promised = {
        "worker",
        "dev",
        "migrate",
        "queues ls",
        "schedules ls",
        "workers",
        "stats",
        "doctor",
        "check",
        "openapi",
    }
    promised |= {f"jobs {each}" for each in ("ls", "show", "retry", "cancel", "discard", "explain")}
    promised |= {f"keys {each}" for each in ("create", "ls", "revoke")}
    assert promised <= COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_says_what_it_does(path: str) -> None:
    assert COMMANDS[path].help
    for option in options(COMMANDS[path]):
        assert option.help, option.opts


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_has_a_variable(path: str) -> None:
    for option in options(COMMANDS[path]):
        names = variables(option)
        assert names, option.opts
        for name in names:
            # Named after command and option, or a shorter name that the page tells.
            said = max(option.opts, key=len).lstrip("-").replace("-", "_").upper()
            rule = f"OUTBOX_{path.replace('-', '_').replace(' ', '_').upper()}_{said}"
            assert name == rule or f"`{name}`" in PAGE, (option.opts, name)


def test_no_two_options_of_a_command_share_a_variable() -> None:
    for path, command in COMMANDS.items():
        names = [name for option in options(command) for name in variables(option)]
        assert len(names) == len(set(names)), path


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_prints_json_for_programs(path: str) -> None:
    assert any("--json" in option.opts for option in options(COMMANDS[path]))


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_shows_all_of_it_on_a_narrow_terminal(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    status, out, _ = invoke(capsys, *path.split(), "--help")
    assert status == 0
    whole = "".join(out.split())
    for option in options(COMMANDS[path]):
        assert max(option.opts, key=len) in whole
        assert "".join(option.help.split()) in whole
        assert all(name in whole for name in variables(option))


def test_the_page_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"^\| `outbox ((?:[a-z-]+ ?)+?)(?: [^a-z`][^`]*)?` \|", PAGE, re.MULTILINE))
    assert named == COMMANDS.keys()


def test_the_page_names_every_exit_status_and_no_other() -> None:
    told = {int(each) for each in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == {0} | {value for name, value in vars(console).items() if name.startswith("EXIT_")}


@pytest.mark.parametrize("path", sorted(COMMANDS.keys() - PROCESSES - {"openapi"}))
@pytest.mark.parametrize(
    "url", ["postgresql://x:s3cret@127.0.0.1:1/x", "mysql", "postgresql://x:s3cret@nowhere.invalid/x"]
)
def test_a_database_that_cannot_be_asked_is_one_line_and_status_78(
    path: str, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    status, out, err = invoke(capsys, *path.split(), *ARGUMENTS.get(path, ()), "--json")
    assert (status, out, err.count("\n")) == (78, "", 1)
    assert err.startswith("outbox: the database")
    assert "s3cret" not in err


@pytest.mark.parametrize("path", sorted(PROCESSES))
def test_a_worker_without_an_address_does_not_start(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = invoke(capsys, path, "api.handlers:outbox")
    assert (status, out) == (2, "")
    assert "--database-url" in err


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("plain, ä and 漢", "plain, ä and 漢"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\x07\r\x00", r"\x07\r\x00"),
        ("\ud800", r"\ud800"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_no_text_steers_a_terminal(hostile: str, shown: str) -> None:
    assert console.clean(hostile) == shown
    assert "\n" not in console.clean(hostile, keep="")


def test_a_table_becomes_blocks_where_the_terminal_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("1" * 36, "[red]" + "x" * 30, 7, "the last one is folded " * 3)]
    columns = ("id", "task", "attempt", "")
    monkeypatch.setattr(console.out, "width", 60)
    console.table(columns, rows, empty="none")
    narrow = capsys.readouterr().out.splitlines()
    assert narrow[:2] == ["1" * 36, "  task [red]" + "x" * 30 + "  attempt 7"]
    monkeypatch.setattr(console.out, "width", 130)
    console.table(columns, rows, empty="none")
    wide = capsys.readouterr().out.splitlines()
    assert wide[0].split() == ["id", "task", "attempt"]
    assert wide[1].split()[:3] == ["1" * 36, "[red]" + "x" * 30, "7"]
    assert max(map(len, wide)) <= 130


def test_a_cell_that_is_too_long_is_cut_before_the_table_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 120)
    console.table(("id", "task", "queue"), [("1", "x" * 200, "mail")], empty="none")
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "x" * (console.MIDDLE - 1) + "…", "mail"]
