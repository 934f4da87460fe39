"""Keys, masks, and what opens when. Secrets in whole jobs are tested with the database."""

import base64
import builtins
import os
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, Field, Secret, SecretBytes, SecretStr, TypeAdapter, field_serializer

from outbox import secret
from outbox.errors import DeclarationError
from outbox.secret import MASK, Keyring, NotOpened

OLD, NEW = os.urandom(32), os.urandom(32)


class Login(BaseModel):
    user: str
    password: SecretStr | None = None


class Exposed(BaseModel):
    password: SecretStr

    @field_serializer("password")
    def clear(self, value: SecretStr) -> str:
        return value.get_secret_value()


@dataclass
class Plain:
    key: SecretBytes


class Tree(BaseModel):
    children: list["Tree"] = []
    key: Secret[int] | None = None


class PasswordStr(SecretStr):
    pass


def test_what_is_sealed_opens_for_the_same_thing_only() -> None:
    ring = Keyring({"a": OLD}, current="a")
    sealed = ring.seal(b"hunter2", b"job 1")
    assert ring.open(sealed, b"job 1") == b"hunter2"
    with pytest.raises(NotOpened):
        ring.open(sealed, b"job 2")


def test_two_seals_of_one_secret_look_different() -> None:
    ring = Keyring({"a": OLD}, current="a")
    assert ring.seal(b"hunter2", b"") != ring.seal(b"hunter2", b"")


@pytest.mark.parametrize("position", [0, 11, 12, -17, -16, -1])
def test_a_changed_bit_is_noticed(position: int) -> None:
    ring = Keyring({"a": OLD}, current="a")
    sealed = ring.seal(b"hunter2 hunter2", b"job 1")
    raw = bytearray(base64.b64decode(sealed["$secret"]["data"]))
    raw[position] ^= 1
    sealed["$secret"]["data"] = base64.b64encode(raw).decode()
    with pytest.raises(NotOpened, match="cannot be decrypted with the key 'a'"):
        ring.open(sealed, b"job 1")


@pytest.mark.parametrize("data", ["", "AAAA", "no base64!", "é", "A" * 16])
def test_what_is_no_ciphertext_is_refused_in_the_same_way(data: str) -> None:
    with pytest.raises(NotOpened):
        Keyring({"a": OLD}, current="a").open({"$secret": {"key": "a", "data": data}}, b"")


def test_keys_rotate() -> None:
    before = Keyring({"old": OLD}, current="old")
    during = Keyring({"old": OLD, "new": NEW}, current="new")
    after = Keyring({"new": NEW}, current="new")
    old, new = before.seal(b"1", b""), during.seal(b"2", b"")
    assert (during.open(old, b""), during.open(new, b""), after.open(new, b"")) == (b"1", b"2", b"2")
    assert new["$secret"]["key"] == "new"
    with pytest.raises(NotOpened, match="encrypted with the key 'old', which is not on the keyring"):
        after.open(old, b"")
    with pytest.raises(NotOpened, match="its key is another one by the same id"):
        Keyring({"old": NEW}, current="old").open(old, b"")


@pytest.mark.parametrize(
    ("keys", "current", "said"),
    [
        ({}, "a", "has no key 'a'"),
        ({"b": OLD}, "a", "has no key 'a'"),
        ({"a": OLD[:16]}, "a", "the key 'a' must be 32 bytes"),
        ({"a": "x" * 32}, "a", "the key 'a' must be 32 bytes"),
        ({"": OLD}, "", "1 to 64 printable"),
        ({"a\n": OLD}, "a\n", "1 to 64 printable"),
        ({"a" * 65: OLD}, "a" * 65, "1 to 64 printable"),
    ],
)
def test_a_keyring_that_cannot_work_is_refused(keys: dict[str, Any], current: str, said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        Keyring(keys, current=current)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DeclarationError, match=r'pip install "outbox\[secrets\]"'):
        Keyring({"a": OLD}, current="a")


def test_a_keyring_shows_no_key() -> None:
    ring = Keyring({"a": OLD, "b": NEW}, current="b")
    assert repr(ring) == "<Keyring a, b; current=b>"
    assert not any(isinstance(each, bytes) for each in vars(ring).values())


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        (SecretStr, True),
        (SecretBytes, True),
        (Secret[int], True),
        (PasswordStr, True),
        (Annotated[SecretStr, Field(min_length=3), AfterValidator(lambda value: value)], True),
        (SecretStr | None, True),
        (dict[str, list[tuple[int, Login]]], True),
        (Exposed, True),
        (Plain, True),
        (Tree, True),
        (str, False),
        (dict[str, Any], False),
        (int | None, False),
    ],
)
def test_a_type_that_may_hold_a_secret_is_known(kind: Any, holds: bool) -> None:
    assert secret.mentions(TypeAdapter(kind).core_schema) is holds


SEALED = {"$secret": {"key": "a", "data": "AA=="}}


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (SEALED, MASK),
        ({**SEALED, "more": 1}, {**SEALED, "more": 1}),
        ({"$secret": "text"}, {"$secret": "text"}),
        ({"$secret": {"key": "a"}}, {"$secret": {"key": "a"}}),
        ({"$secret": {"key": 1, "data": ""}}, {"$secret": {"key": 1, "data": ""}}),
        ([SEALED], [SEALED]),
        (None, None),
    ],
)
def test_only_a_sealed_secret_is_masked(value: Any, seen: Any) -> None:
    assert secret.mask(value) == seen


@pytest.mark.parametrize(
    ("value", "text", "left"),
    [
        (SecretStr("hunter2"), "no 'hunter2' here, hunter2!", f"no '{MASK}' here, {MASK}!"),
        (SecretStr("a\nb'\"c"), repr("a\nb'\"c"), f"'{MASK}'"),
        (SecretBytes(b"hunter2"), "b'hunter2'", f"b'{MASK}'"),
        (SecretBytes(b"\xff\x00hunter2"), repr(b"\xff\x00hunter2"), f"b'{MASK}'"),
        (Secret[int](123456), "n=123456", f"n={MASK}"),
        (SecretStr("0123456789abcdef" * 3), "0123456789abcdef…9abcdef", f"{MASK}…9abcdef"),
        (
            SecretStr("hunter2"),
            "[input_value={'k': 'hun...r2'}, input_type=dict]",
            f"[input_value={MASK}, input_type=dict]",
        ),
        (SecretStr("abc"), "abc", "abc"),
        (SecretStr(""), "text", "text"),
    ],
)
def test_a_text_is_scrubbed_of_a_secret(value: Any, text: str, left: str) -> None:
    assert secret.scrub(text, [value]) == left
