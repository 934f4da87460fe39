"""What is installed is what somebody has pinned: all that is asked for, by release and by hash."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import lock

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

ENVIRONMENTS = [
    {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "os_name": "nt" if platform == "win32" else "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    for python, platform in product(("3.11", "3.12", "3.13", "3.14"), ("linux", "darwin", "win32"))
]
"""Where a lock must be right: every Python of the classifiers, on every system that wheels are made for."""


def asked() -> Iterator[str]:
    """Every requirement that pyproject.toml has, wherever it stands."""
    yield from PROJECT["build-system"]["requires"]
    yield from PROJECT["project"]["dependencies"]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        yield from extra
    for group in PROJECT["dependency-groups"].values():
        yield from (each for each in group if isinstance(each, str))


@pytest.mark.parametrize("line", sorted(set(asked())))
def test_what_is_asked_for_is_pinned_once_in_each_environment(line: str) -> None:
    wanted = Requirement(line)
    found = [pin for pin in lock.pins() if pin.name == canonicalize_name(wanted.name)]
    for environment in ENVIRONMENTS:
        if wanted.marker is not None and not wanted.marker.evaluate(environment):
            continue
        here = [pin for pin in found if pin.is_for(environment)]
        assert len(here) == 1, environment
        assert wanted.specifier.contains(here[0].version), environment


def test_what_that_needs_in_turn_is_pinned_too() -> None:
    # pip would refuse to install anything at all by a lock that lacks one of them.
    names = {pin.name for pin in lock.pins()}
    waiting, seen = [Requirement(line) for line in asked()], set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (key := (canonicalize_name(wanted.name), extra)) not in seen:
                seen.add(key)
                waiting += needs(wanted.name, extra)
    assert {name for name, _ in seen} <= names
    assert len(seen) > len(names) / 2


def needs(name: str, extra: str) -> list[Requirement]:
    """What an installed package says it needs here; nothing if it is not installed here."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]


def test_no_package_is_pinned_twice_in_one_environment() -> None:
    for environment in ENVIRONMENTS:
        names = [pin.name for pin in lock.pins() if pin.is_for(environment)]
        assert len(names) == len(set(names)), environment


def test_every_pin_is_one_release_with_the_hashes_of_its_files() -> None:
    pins = lock.pins()
    assert [pin.name for pin in pins] == sorted(pin.name for pin in pins)
    for pin in pins:
        assert re.fullmatch(r"==[\w.+!]+", str(pin.requirement.specifier)), pin.line
        assert pin.hashes, pin.line
        for each in pin.hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", each), pin.line
        assert len(set(pin.hashes)) == len(pin.hashes), pin.line


def test_nothing_in_the_lock_says_where_packages_come_from() -> None:
    # Who installs has an index of their own, and a hash is as good from anywhere.
    text = lock.FILE.read_text()
    assert "://" not in text
    assert " @ " not in text
    assert {line.split("=")[0] for line in text.split() if line.startswith("-")} == {"--hash"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line, "Successfully installed parcel-1.0"),
        (lambda line: line[:-1] + ("0" if line[-1] != "0" else "1"), "DO NOT MATCH THE HASHES"),
        (lambda line: line.partition(" ")[0], "Hashes are required"),
    ],
    ids=["right", "wrong", "none"],
)
def test_the_setup_takes_no_file_but_the_one_that_was_pinned(
    tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    wheel = packages / "parcel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("parcel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
        archive.writestr("parcel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("parcel-1.0.dist-info/RECORD", "")
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "setup", tmp_path / ".ci")
    right = f"parcel==1.0 --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}"
    (tmp_path / "requirements.lock").write_text(change(right) + "\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(packages)}
    # It never ends well: there is no project to be installed after its packages.
    subprocess.run([tmp_path / ".ci" / "setup"], env=environment, capture_output=True, check=False)
    assert said in (tmp_path / ".venv" / "setup.log").read_text()
