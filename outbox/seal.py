"""The secrets in a job's JSON: sealed where they stand when it is written, opened when its handler's call is made."""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pydantic_core
from pydantic import TypeAdapter

from outbox import payload, secret
from outbox.errors import PayloadInvalid
from outbox.secret import KINDS, Keyring, NotOpened

_HIDDEN = "holds a secret that its own serializer hides or writes in clear: take the serializer or the exclude away"


@dataclass(frozen=True, slots=True)
class Seal:
    """Seals and opens the secrets in one part of a task's jobs.

    :ivar part: ``arguments`` or ``result``.
    """

    task: str
    part: str
    keyring: Keyring

    def document(self, adapter: TypeAdapter[Any], value: Any) -> Any:
        """The value as JSON has it, but with the secrets themselves in their places.

        :raises PayloadInvalid: if it cannot be stored, or where a secret stands cannot be told.
        """
        try:
            shown = adapter.dump_python(value, mode="json", warnings=False)
            full = adapter.dump_python(value, warnings=False)
        except Exception as exc:  # noqa: BLE001 - a value's own serializer runs here, and may raise anything
            # Not its message, nor its traceback: both may repeat a value.
            raise PayloadInvalid(self.task, "$", f"cannot be written as JSON: {type(exc).__name__}") from None
        document = self._unmasked(shown, full, "$")
        if _count(document) < sum(1 for _ in payload.secrets(value)):
            raise PayloadInvalid(self.task, "$", _HIDDEN)
        return document

    def close(self, document: Any, id: UUID) -> Any:
        """The document as the row of this job holds it."""
        return self._closed(document, self._about(id), "$")

    def open(self, stored: Any, id: UUID | None) -> Any:
        """What the row of this job holds, with the secrets in clear.

        :raises PayloadInvalid: if one of them does not open; with its path and the id of its key.
        """
        try:
            return self._opened(stored, self._about(id), "$")
        except RecursionError:
            raise PayloadInvalid(self.task, "$", "is nested too deep") from None

    def _about(self, id: UUID | None) -> bytes:
        return f"outbox 1\n{self.part}\n{self.task}\n{id}".encode()

    def _unmasked(self, shown: Any, full: Any, path: str) -> Any:
        # The same serializers have written both, so they have the same form, but for serializers of the user's own.
        if isinstance(full, KINDS):
            return full
        if isinstance(shown, dict) and isinstance(full, Mapping) and len(shown) == len(full):
            if shown.keys() == {secret.MARK}:
                raise PayloadInvalid(self.task, path, f"an object with the only key {secret.MARK!r} is a sealed secret")
            return {
                key: self._unmasked(each, below, payload.child(path, key))
                for (key, each), below in zip(shown.items(), full.values(), strict=True)
            }
        if (
            isinstance(shown, list)
            and isinstance(full, list | tuple | set | frozenset | deque)
            and len(shown) == len(full)
        ):
            return [
                self._unmasked(each, below, payload.child(path, n))
                for n, (each, below) in enumerate(zip(shown, full, strict=True))
            ]
        if isinstance(shown, dict | list) or next(payload.secrets(full), None) is not None:
            raise PayloadInvalid(self.task, path, _HIDDEN)
        return shown

    def _opened(self, stored: Any, about: bytes, path: str) -> Any:
        match stored:
            case dict() if secret.is_sealed(stored):
                try:
                    return json.loads(self.keyring.open(stored, about))
                except NotOpened as exc:
                    raise PayloadInvalid(self.task, path, str(exc)) from None
            case dict():
                return {key: self._opened(each, about, payload.child(path, key)) for key, each in stored.items()}
            case list():
                return [self._opened(each, about, payload.child(path, n)) for n, each in enumerate(stored)]
        return stored

    def _closed(self, value: Any, about: bytes, path: str) -> Any:
        match value:
            case dict():
                return {key: self._closed(each, about, payload.child(path, key)) for key, each in value.items()}
            case list():
                return [self._closed(each, about, payload.child(path, n)) for n, each in enumerate(value)]
        if not isinstance(value, KINDS):
            return value
        try:
            plain = pydantic_core.to_json(value.get_secret_value())
        except ValueError:
            raise PayloadInvalid(self.task, path, "is a secret that is no Unicode text nor JSON: encode it") from None
        return self.keyring.seal(plain, about)


def _count(document: Any) -> int:
    match document:
        case dict():
            return sum(map(_count, document.values()))
        case list():
            return sum(map(_count, document))
    return int(isinstance(document, KINDS))
