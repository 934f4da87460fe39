"""Versions of a task's payload: what jobs that were enqueued by older code say, lifted to what its handler wants now.

@outbox.task(version=2)
async def send_receipt(order_id: UUID, to: EmailStr) -> None: ...

@send_receipt.upcast(1)
def _(arguments):
    return {"order_id": arguments["order"], "to": arguments["email"]}
"""

from collections.abc import Callable
from typing import Any

from outbox.errors import DeclarationError, PayloadInvalid

MAX_VERSION = 32_767

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the arguments of one version, as JSON has them, those of the next."""


class Versions:
    """The payload versions that one task can read.

    :ivar latest: the version that its handler takes, and that new jobs get.
    """

    def __init__(self, task: str, latest: int) -> None:
        if not 1 <= latest <= MAX_VERSION:
            raise DeclarationError(f"task {task!r}: version={latest}; must be 1 to {MAX_VERSION:,}")
        self._task = task
        self._upcasters: dict[int, Upcaster] = {}
        self.latest = latest

    def add(self, version: int, upcaster: Upcaster) -> None:
        """Say how arguments of ``version`` become those of the next.

        :raises DeclarationError: if there is no such step, or if it is declared already.
        """
        if not 1 <= version < self.latest:
            raise DeclarationError(
                f"task {self._task!r}: upcast({version}) leads to version {version + 1}, but it has version "
                f"{self.latest}; raise version= too"
            )
        if version in self._upcasters:
            raise DeclarationError(f"task {self._task!r}: upcast({version}) is declared twice")
        self._upcasters[version] = upcaster

    def verify(self) -> None:
        """Check that every older version can be lifted.

        :raises DeclarationError: if a step is missing.
        """
        missing = [str(version) for version in range(1, self.latest) if version not in self._upcasters]
        if missing:
            raise DeclarationError(
                f"task {self._task!r}: version {self.latest} has no upcast({missing[0]}); "
                f"missing: {', '.join(missing[:10])}"
            )

    def lift(self, arguments: Any, version: int) -> Any:
        """The arguments of the latest version, from those of an older one.

        :raises PayloadInvalid: if an upcaster fails, or if this code does not know the version.
        """
        if not 1 <= version <= self.latest:
            raise PayloadInvalid(self._task, "$", f"has version {version}, this code knows 1 to {self.latest}")
        for step in range(version, self.latest):
            arguments = self._step(arguments, step)
        return arguments

    def _step(self, arguments: Any, version: int) -> Any:
        if version not in self._upcasters:
            raise PayloadInvalid(self._task, "$", f"has version {version}, and there is no upcast({version})")
        try:
            lifted: Any = self._upcasters[version](arguments)
        except Exception as exc:
            # Not its message, which may repeat a value.
            raise PayloadInvalid(self._task, "$", f"upcast({version}) raised {type(exc).__name__}") from exc
        if not isinstance(lifted, dict):
            raise PayloadInvalid(
                self._task, "$", f"upcast({version}) returned {type(lifted).__name__}; it must return a dict"
            )
        return lifted
