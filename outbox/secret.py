"""Secrets at rest: the keys they are encrypted with, how they look in a row, and the mask that everybody else sees.

A parameter or a field is a secret if its type is Pydantic's ``SecretStr``, ``SecretBytes`` or ``Secret[...]``. In the
row its value is an object that names the key::

    {"$secret": {"key": "2026-11", "data": "base64 of nonce, ciphertext and tag"}}

AES-256-GCM, with a random nonce for each value. What it belongs to (the job, its task, arguments or result) is
authenticated with it: a value that was changed, or moved to another job, does not open.
"""

import base64
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import Secret, SecretBytes, SecretStr, TypeAdapter

from outbox.errors import DeclarationError

MARK: Final = "$secret"
MASK: Final = "**********"
"""What is shown in place of a secret; Pydantic's own mask."""

KINDS: Final = (SecretStr, SecretBytes, Secret)

_NONCE = 12
_PIECE = 16
_LEAST = 4
_INPUT = re.compile(r"input_value=.*?(?=, input_type=)", re.DOTALL)

# Of a type with parameters there is no class to look for, but all of them are written by one function.
_WRITER: Any = TypeAdapter(Secret[str]).core_schema.get("serialization", {}).get("function")


class NotOpened(Exception):
    """A sealed secret cannot be read. The message says why, and shows nothing of it."""


class Keyring:
    """The keys of a service's secrets: new ones are encrypted with the current key, old ones opened with any.

    To rotate, add a key to every process, then make it the current one, and take the old one away once no job is left
    that was encrypted with it: ``outbox check`` names those that are.

    :param keys: key id → key: 32 random bytes (``os.urandom(32)``). An id is stored in clear beside every secret.
    :param current: the id of the key that encrypts.
    :raises DeclarationError: if a key is no key, or the extra ``outbox[secrets]`` is not installed.
    """

    def __init__(self, keys: Mapping[str, bytes], *, current: str) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as exc:
            raise DeclarationError('secrets need the package cryptography: pip install "outbox[secrets]"') from exc
        if current not in keys:
            raise DeclarationError(f"keyring: has no key {current!r}, which is to be the current one")
        for id, key in dict[str, Any](keys).items():
            if not 1 <= len(id) <= 64 or not id.isprintable():
                raise DeclarationError("keyring: a key's id must be 1 to 64 printable characters")
            if not isinstance(key, bytes) or len(key) != 32:
                raise DeclarationError(f"keyring: the key {id!r} must be 32 bytes, as os.urandom(32) gives them")
        self.current = current
        self._ciphers = {id: AESGCM(key) for id, key in keys.items()}

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._ciphers)}; current={self.current}>"

    def seal(self, plain: bytes, about: bytes) -> dict[str, Any]:
        """The secret as a row holds it.

        :param about: what it belongs to; it opens for nothing else.
        """
        nonce = os.urandom(_NONCE)
        data = nonce + self._ciphers[self.current].encrypt(nonce, plain, about)
        return {MARK: {"key": self.current, "data": base64.b64encode(data).decode()}}

    def open(self, sealed: Mapping[str, Any], about: bytes) -> bytes:
        """The secret itself.

        :raises NotOpened: if its key is not on the ring, or it was changed, or belongs to something else.
        """
        from cryptography.exceptions import InvalidTag

        id, data = sealed[MARK]["key"], sealed[MARK]["data"]
        if id not in self._ciphers:
            raise NotOpened(f"is encrypted with the key {id!r}, which is not on the keyring")
        try:
            raw = base64.b64decode(data, validate=True)
            return self._ciphers[id].decrypt(raw[:_NONCE], raw[_NONCE:], about)
        except (InvalidTag, ValueError):
            reason = "was changed, or is another job's, or its key is another one by the same id"
            raise NotOpened(f"cannot be decrypted with the key {id!r}: {reason}") from None


def is_sealed(value: Any) -> bool:
    """Whether this is a secret as a row holds it."""
    if not isinstance(value, dict) or value.keys() != {MARK}:
        return False
    inner = value[MARK]
    return (
        isinstance(inner, dict)
        and inner.keys() == {"key", "data"}
        and all(isinstance(each, str) for each in inner.values())
    )


def mask(value: Any) -> Any:
    """The mask if this is a sealed secret, else the value itself."""
    return MASK if is_sealed(value) else value


def mentions(schema: Any) -> bool:
    """Whether values of this core schema of Pydantic's may hold a secret."""
    waiting, seen = [schema], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, type):
            if issubclass(node, KINDS):
                return True
        elif node is _WRITER:
            return True
        elif isinstance(node, dict | list | tuple) and id(node) not in seen:
            seen.add(id(node))
            waiting += node.values() if isinstance(node, dict) else node
    return False


def scrub(text: str, secrets: Iterable[Any]) -> str:
    """The text with masks where it says one of the secrets, or what a ValidationError was given: that may be one."""
    text = _INPUT.sub(f"input_value={MASK}", text)
    for secret in secrets:
        plain = secret.get_secret_value()
        said = plain.decode(errors="replace") if isinstance(plain, bytes) else str(plain)
        quoted = repr(plain).removeprefix("b")[1:-1] if isinstance(plain, bytes | str) else said
        for each in (said, quoted):
            if len(each) >= _LEAST:
                text = text.replace(each, MASK)
            if len(each) > 2 * _PIECE:  # cut by somebody
                text = text.replace(each[:_PIECE], MASK).replace(each[-_PIECE:], MASK)
    return text
