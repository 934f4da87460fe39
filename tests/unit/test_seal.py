"""A task's secrets: sealed in its jobs, opened for its handler, and shown to nobody else."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    field_serializer,
)

from outbox import Outbox
from outbox.errors import DeclarationError, PayloadInvalid
from outbox.secret import Keyring
from outbox.task import Task

CANARY = "canary-2b7e151628aed2a6"
RING = Keyring({"2026-11": os.urandom(32)}, current="2026-11")


def task_of(handler: Callable[..., Any], ring: Keyring | None = RING, **options: Any) -> Task[..., Any]:
    task: Task[..., Any] = Outbox(secrets=ring).task(**{"name": "t", **options})(handler)
    return task


class Login(BaseModel):
    user: str
    password: SecretStr


@dataclass
class Pair:
    n: int
    key: SecretBytes


class Named(NamedTuple):
    key: SecretStr
    id: UUID


class Listed(RootModel[list[SecretStr]]):
    pass


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    id: UUID
    key: SecretStr


ID = UUID(int=1)

VALUES: dict[str, tuple[Any, Any]] = {
    "str": (SecretStr, SecretStr(CANARY)),
    "bytes": (SecretBytes, SecretBytes(CANARY.encode())),
    "other": (Secret[dict[str, int]], Secret({CANARY: 1})),
    "none": (SecretStr | None, None),
    "unicode": (SecretStr, SecretStr("漢é\0\n\"'\\" + CANARY)),
    "empty": (SecretStr, SecretStr("")),
    "long": (SecretStr, SecretStr(CANARY * 1000)),
    "list": (list[SecretStr | int], [SecretStr(CANARY), 1, SecretStr(CANARY)]),
    "tuple": (tuple[UUID, SecretStr], (ID, SecretStr(CANARY))),
    "set": (set[SecretStr], {SecretStr(CANARY), SecretStr("b"), SecretStr("c")}),
    "deque": (deque[SecretStr], deque([SecretStr(CANARY)])),
    "dict": (dict[UUID, dict[int, SecretStr]], {ID: {7: SecretStr(CANARY)}}),
    "model": (Login, Login(user="ada", password=SecretStr(CANARY))),
    "strict model": (Strict, Strict(id=ID, key=SecretStr(CANARY))),
    "dataclass": (Pair, Pair(1, SecretBytes(CANARY.encode()))),
    "named": (Named, Named(SecretStr(CANARY), ID)),
    "root": (Listed, Listed([SecretStr(CANARY)])),
    "nested": (dict[str, list[Login]], {"a.b": [Login(user="ada", password=SecretStr(CANARY))]}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_secret_goes_in_and_out_wherever_it_is(kind: str) -> None:
    annotation, value = VALUES[kind]

    async def handler(value: Any, rest: int = 3) -> None: ...

    handler.__annotations__["value"] = annotation
    task = task_of(handler)
    job = task.job(value, 4)
    assert CANARY not in job.payload
    assert task.arguments(job.payload, job.version, job.id) == {"value": value, "rest": 4}
    assert "**********" not in job.payload, "a mask that was stored is a secret that was lost"
    assert CANARY not in repr(job)


async def send(login: Login, key: SecretBytes | None = None) -> None: ...


def test_only_secrets_are_sealed() -> None:
    job = task_of(send).job(Login(user="ada", password=SecretStr(CANARY)))
    stored = json.loads(job.payload)
    assert stored["login"]["user"] == "ada"
    assert stored["login"]["password"]["$secret"].keys() == {"key", "data"}
    assert stored["login"]["password"]["$secret"]["key"] == "2026-11"


def test_a_plain_text_can_be_given_for_a_secret() -> None:
    async def handler(key: SecretStr) -> None: ...

    task, given = task_of(handler), CANARY
    job = task.job(given)
    assert CANARY not in job.payload
    assert task.arguments(json.dumps({"key": CANARY}))["key"].get_secret_value() == CANARY, "as from SQL, or of old"


@pytest.mark.parametrize(("task", "id"), [("other", None), ("t", uuid4())], ids=["of another task", "of another job"])
def test_a_secret_that_was_moved_does_not_open(task: str, id: UUID | None) -> None:
    job = task_of(send).job(Login(user="ada", password=SecretStr(CANARY)))
    with pytest.raises(PayloadInvalid, match=r"\$\.login\.password: cannot be decrypted with the key"):
        task_of(send, name=task).arguments(job.payload, 1, id or job.id)


def test_a_result_does_not_open_as_an_argument() -> None:
    async def handler(key: SecretStr) -> SecretStr:
        return key

    task, id = task_of(handler), uuid4()
    result, error = task.encode_result(SecretStr(CANARY), id)
    assert error is None
    with pytest.raises(PayloadInvalid, match="cannot be decrypted"):
        task.arguments(json.dumps({"key": json.loads(str(result))}), 1, id)


def test_a_missing_key_is_named_with_the_path() -> None:
    job = task_of(send).job(Login(user="ada", password=SecretStr(CANARY)))
    later = task_of(send, Keyring({"2027-01": os.urandom(32)}, current="2027-01"))
    with pytest.raises(PayloadInvalid) as caught:
        later.arguments(job.payload, 1, job.id)
    assert caught.value.path == "$.login.password"
    assert caught.value.reason == "is encrypted with the key '2026-11', which is not on the keyring"


def test_a_handler_is_called_without_a_keyring_as_any_function_is() -> None:
    assert task_of(lambda key: key).arguments('{"key": 1}') == {"key": 1}


async def takes(key: SecretStr) -> None: ...
async def returns() -> list[Login]:
    return []


@pytest.mark.parametrize(("handler", "part"), [(takes, "arguments"), (returns, "result")])
def test_a_task_with_secrets_needs_a_keyring(handler: Any, part: str) -> None:
    with pytest.raises(DeclarationError, match=rf"a secret is among its {part}; .*Outbox\(secrets="):
        task_of(handler, None)


class Exposed(BaseModel):
    password: SecretStr

    @field_serializer("password")
    def clear(self, value: SecretStr) -> str:
        return value.get_secret_value()


class Excluded(BaseModel):
    password: SecretStr = Field(exclude=True)


class ExposedInJson(BaseModel):
    password: Annotated[
        SecretStr, PlainSerializer(lambda value: value.get_secret_value(), return_type=str, when_used="json")
    ]


Joined = Annotated[dict[str, SecretStr], PlainSerializer(str, return_type=str, when_used="json")]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Exposed, Exposed(password=SecretStr(CANARY))),
        (Excluded, Excluded(password=SecretStr(CANARY))),
        (Joined, {"a": SecretStr(CANARY)}),
        (Iterable[SecretStr], [SecretStr(CANARY)]),
        (dict[str, Any], {"$secret": 1}),
        (dict[str, Any], {"$secret": {"key": "2026-11", "data": "AAAA"}}),
        (SecretStr, SecretStr("\ud800")),
        (SecretBytes, SecretBytes(b"\xff")),
    ],
)
def test_what_would_be_lost_or_stand_in_clear_is_refused(annotation: Any, value: Any) -> None:
    async def handler(value: Any, key: SecretStr | None = None) -> None: ...

    handler.__annotations__["value"] = annotation
    with pytest.raises(PayloadInvalid) as caught:
        task_of(handler).job(value)
    assert CANARY not in str(caught.value)


def test_a_serializer_for_json_does_not_show_it() -> None:
    async def handler(value: ExposedInJson) -> None: ...

    task = task_of(handler)
    job = task.job(ExposedInJson(password=SecretStr(CANARY)))
    assert CANARY not in job.payload
    assert task.arguments(job.payload, 1, job.id) == {"value": ExposedInJson(password=SecretStr(CANARY))}


def leaky(value: SecretStr) -> SecretStr:
    raise ValueError(f"{value.get_secret_value()} is too simple")


def crashing(value: SecretStr) -> SecretStr:
    raise KeyError(value.get_secret_value())


def test_a_validator_that_repeats_a_secret_is_not_quoted() -> None:
    async def handler(key: Annotated[SecretStr, AfterValidator(leaky)]) -> None: ...

    given: Any = CANARY
    with pytest.raises(PayloadInvalid) as caught:
        task_of(handler).job(given)
    assert (caught.value.path, caught.value.reason) == ("$.key", "value error")
    assert caught.value.__cause__ is None


def test_a_validator_that_crashes_spoils_its_own_job_and_is_not_quoted() -> None:
    async def handler(key: Annotated[SecretStr, AfterValidator(crashing)]) -> None: ...

    with pytest.raises(PayloadInvalid) as caught:
        task_of(handler).arguments(json.dumps({"key": CANARY}))
    assert caught.value.reason == "a validator raised KeyError"
    assert caught.value.__cause__ is None


def test_an_upcaster_moves_secrets_without_seeing_them() -> None:
    async def old(password: SecretStr) -> None: ...
    async def new(login: dict[str, SecretStr]) -> None: ...

    job, task, seen = task_of(old).job(SecretStr(CANARY)), task_of(new, version=2), []

    @task.upcast(1)
    def _(arguments: dict[str, Any]) -> dict[str, Any]:
        seen.append(arguments)
        return {"login": {"ada": arguments["password"]}}

    assert task.arguments(job.payload, 1, job.id)["login"]["ada"].get_secret_value() == CANARY
    assert CANARY not in str(seen)


def test_an_upcaster_that_repeats_what_has_become_a_secret_is_not_quoted() -> None:
    task = task_of(takes, version=2)

    @task.upcast(1)
    def _(arguments: dict[str, Any]) -> dict[str, Any]:
        raise KeyError(arguments["key"])

    with pytest.raises(PayloadInvalid) as caught:
        task.arguments(json.dumps({"key": CANARY}), 1)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", [CANARY, Exposed(password=SecretStr(CANARY)), SecretStr("\ud800"), object()])
def test_a_result_that_cannot_be_sealed_is_not_stored_and_not_shown(value: Any) -> None:
    result, error = task_of(returns_secret).encode_result(value, uuid4())
    assert result is None
    assert error is not None
    assert error.type == "outbox.errors.ResultNotStored"
    assert CANARY not in str(error)


async def returns_secret() -> SecretStr:
    return SecretStr("")
