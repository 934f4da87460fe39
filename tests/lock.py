"""The lock as data: which release of what is pinned, where, and by which hashes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).parents[1] / "requirements.lock"

_HASH = re.compile(r"--hash=(\S+)")


@dataclass(frozen=True)
class Pin:
    """One release that is installed, wherever its marker holds.

    :ivar line: as it stands in the lock, without its hashes.
    :ivar hashes: one for each file of the release, as in ``sha256:...``.
    """

    line: str
    hashes: tuple[str, ...]

    @property
    def requirement(self) -> Requirement:
        """The line, read."""
        return Requirement(self.line)

    @property
    def name(self) -> str:
        """Of the package, in the form in which names are compared."""
        return canonicalize_name(self.requirement.name)

    def is_for(self, environment: Mapping[str, str]) -> bool:
        """Whether it is installed there, by the variables of PEP 508."""
        marker = self.requirement.marker
        return marker is None or marker.evaluate(dict(environment))

    @property
    def version(self) -> str:
        """The one release."""
        return str(self.requirement.specifier).removeprefix("==")


def pins(text: str | None = None) -> list[Pin]:
    """What the lock says, in its order.

    :param text: of another lock than the repository's.
    """
    entries = (FILE.read_text() if text is None else text).replace("\\\n", " ").splitlines()
    return [
        Pin(entry.partition(" --hash")[0].strip(), tuple(_HASH.findall(entry))) for entry in entries if entry.strip()
    ]
