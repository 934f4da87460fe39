"""Declared tasks: a handler with its rules. Declarations only, but for ``result_of``, which reads."""

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial, reduce
from typing import Any, Generic, ParamSpec, TypeVar, cast
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaMode
from sqlalchemy import Text, bindparam, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import enqueue, injection, payload, secret, signature
from outbox.backoff import Retry
from outbox.bounds import Bounds
from outbox.enqueue import UnitOfWork
from outbox.errors import DeclarationError, JobNotFound, PayloadInvalid, ResultNotStored
from outbox.newjob import NewJob, OnConflict, Options
from outbox.outcome import Error
from outbox.seal import Seal
from outbox.secret import Keyring
from outbox.table import job
from outbox.version import Upcaster, Versions

P = ParamSpec("P")
R = TypeVar("R")

_RESULT = select(sql_cast(job.c.result, Text).label("result")).where(
    job.c.id == bindparam("id"), job.c.task == bindparam("task")
)

Sessions = Callable[[], AsyncSession]
"""What makes a session; an ``async_sessionmaker`` is one."""


class Task(Generic[P, R]):
    """A handler and the rules by which its jobs run. Calling it calls the handler, as in a unit test.

    :ivar name: what the row says; a promise to all rows that wait, so it outlives a move of the function.
    :ivar timeout: seconds, or None for no limit.
    :ivar bounds: this and what else bounds an attempt.
    :ivar session: the parameter that takes the session in which the job is settled, if the handler has one.
    """

    def __init__(
        self,
        handler: Callable[P, Any],
        *,
        name: str,
        options: Options,
        retry: Retry,
        bounds: Bounds,
        version: int = 1,
        sessions: Sessions | None = None,
        secrets: Keyring | None = None,
    ) -> None:
        functools.update_wrapper(self, handler)
        self.handler = handler
        self.name = name
        self.retry = retry
        self.timeout = bounds.timeout
        self.bounds = bounds
        self.is_async = inspect.iscoroutinefunction(handler)
        self.defaults = options
        self.versions = Versions(name, version)
        parameters, result = signature.analyse(name, handler)
        self._signature = parameters.signature
        given = parameters.signature.parameters.values()
        self._positional = tuple(each.name for each in given if each.kind is not each.KEYWORD_ONLY)
        self._required = frozenset(each.name for each in given if each.default is each.empty)
        self._known = frozenset(parameters.signature.parameters)
        self._adapter = parameters.adapter
        self.contexts = parameters.contexts
        self.session = parameters.session
        self.sessions = sessions
        if self.session is not None and not self.is_async:
            raise DeclarationError(f"task {name!r}: only an async handler can ask for an AsyncSession")
        if self.session is not None and sessions is None:
            raise DeclarationError(
                f"task {name!r}: {self.session!r} is an AsyncSession; say where to get one: "
                "Outbox(sessions=async_sessionmaker(engine))"
            )
        self.resolver = injection.resolver(name, parameters.dependencies) if parameters.dependencies else None
        self.is_plain = self.is_async and self.timeout is None and self.session is None and self.resolver is None
        self.result = result
        self.result_type = parameters.returns
        self._seal = _seal(name, "arguments", self._adapter, secrets)
        self._result_seal = _seal(name, "result", result, secrets)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.handler(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def enqueue(self, session: UnitOfWork, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """Write a job with the session's transaction: it runs if, and only if, that commits.

        No I/O and no await: arguments are checked now, the row is written at the next flush.

        :raises PayloadInvalid: if the arguments do not fit the handler's signature or cannot be stored.
        """
        return enqueue.add(session, self.job(*args, **kwargs))

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """A job that is not part of any transaction yet, for ``Outbox.enqueue_many``."""
        return self._new_job(self.defaults, args, kwargs)

    @property
    def parameters(self) -> Sequence[str]:
        """The names of the arguments that a job of it has."""
        return tuple(self._signature.parameters)

    @property
    def shows_result(self) -> bool:
        """Whether the stored result can be described: it has a type that JSON Schema knows, and no secrets."""
        return self.result is not None and self._result_seal is None and bool(schema_of(self.result, "serialization"))

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments; empty if a type has none."""
        return schema_of(self._adapter)

    def options(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        max_attempts: int | None = None,
        tags: Sequence[str] | None = None,
        group: str | None = None,
        passable: bool | None = None,
        limit_key: str | None = None,
        tenant: str | None = None,
        key: str | None = None,
        unique_for: float | timedelta | None = None,
        on_conflict: OnConflict | None = None,
        after: Sequence[NewJob] | None = None,
        even_if_failed: bool | None = None,
    ) -> "Call[P, R]":
        """This task with other options for the jobs enqueued through what is returned; see ``Options``."""
        given = {
            "queue": queue,
            "priority": priority,
            "delay": delay,
            "run_at": run_at,
            "max_attempts": max_attempts,
            "tags": tags,
            "group": group,
            "passable": passable,
            "limit_key": limit_key,
            "tenant": tenant,
            "key": key,
            "unique_for": unique_for,
            "on_conflict": on_conflict,
            "after": after,
            "even_if_failed": even_if_failed,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return Call(self, replace(self.defaults, **cast(Any, changes)))

    @property
    def version(self) -> int:
        """The version of the payload that the handler takes."""
        return self.versions.latest

    def upcast(self, version: int) -> Callable[[Upcaster], Upcaster]:
        """Declare the decorated function the way from the arguments of ``version`` to those of the next.

        It is given the stored arguments as a dict, as JSON has them, may change it, and returns a dict. What it returns
        must be JSON again. If it raises, the attempt fails, and is retried by the policy.

        :raises DeclarationError: if the task has no later version, or the way is declared twice.
        """

        def declare(upcaster: Upcaster) -> Upcaster:
            self.versions.add(version, upcaster)
            return upcaster

        return declare

    def arguments(self, raw: str, version: int | None = None, id: UUID | None = None) -> dict[str, Any]:
        """The arguments for the handler from a stored payload. Keys that the handler does not know are left out.

        :param version: the payload's version; that of the task unless given.
        :param id: the job's id, by which its secrets are opened.
        :raises PayloadInvalid: if they do not fit the handler's signature (any more), or cannot be upcast or opened.
        """
        is_old = version is not None and version != self.version
        if is_old or self._seal is not None:
            stored = payload.parse(self.name, raw)
            if is_old:
                stored = self._lifted(stored, cast(int, version))
            if self._seal is not None:
                stored = self._seal.open(stored, id)
            raw = payload.dump(self.name, stored)
        try:
            arguments: dict[str, Any] = self._adapter.validator.validate_json(raw)
        except ValidationError as exc:
            raise self._invalid(exc) from None
        except Exception as exc:  # noqa: BLE001 - a validator is the user's own code
            cause = exc if self._seal is None else None  # its message may repeat a secret
            raise PayloadInvalid(self.name, "$", f"a validator raised {type(exc).__name__}") from cause
        return arguments

    def encode_result(self, value: Any, id: UUID) -> tuple[str | None, Error | None]:
        """What the handler of this job returned, as JSON text, its secrets sealed; never raises.

        :return: see ``payload.encode_result``.
        """
        seal = self._result_seal
        if seal is None or value is None or self.result is None:
            return payload.encode_result(self.result, value)
        try:
            return payload.encode_sealed_result(seal.close(seal.document(self.result, value), id))
        except BaseException as exc:  # noqa: BLE001 - a value's own serializer runs here, and may do anything
            reason = f"{exc.path}: {exc.reason}" if isinstance(exc, PayloadInvalid) else type(exc).__name__
            return None, payload.describe(
                ResultNotStored(f"the result, {type(value).__name__}, cannot be stored: {reason}")
            )

    async def result_of(self, connection: AsyncSession | AsyncConnection, id: UUID) -> R | None:
        """The result of a job of this task, as its handler returned it: checked, and with its secrets in clear.

        :return: None if the job has none, or none yet.
        :raises JobNotFound: if this task has no such job.
        :raises PayloadInvalid: if the result does not fit the return annotation any more, or does not open.
        """
        row = (await connection.execute(_RESULT, {"id": id, "task": self.name})).first()
        if row is None:
            raise JobNotFound(id)
        if row.result is None or self.result is None:
            return cast(R | None, payload.read(row.result))
        raw = row.result
        if self._result_seal is not None:
            raw = json.dumps(self._result_seal.open(json.loads(raw), id))
        try:
            return cast(R, self.result.validate_json(raw))
        except ValidationError as exc:
            raise self._invalid(exc) from None

    def secrets(self, arguments: dict[str, Any]) -> Sequence[Any]:
        """The secrets among the arguments."""
        return () if self._seal is None else tuple(payload.secrets(arguments))

    def describe(self, exception: BaseException, secrets: Sequence[Any] = ()) -> Error:
        """An exception as text that can be stored, with masks where it says one of these secrets."""
        error = payload.describe(exception)
        return error if self._seal is None else payload.scrub(error, secrets)

    def _new_job(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewJob:
        bound = self._bound(args, kwargs)
        try:
            arguments = self._adapter.validator.validate_python(bound)
        except ValidationError as exc:
            raise self._invalid(exc) from None
        if self._seal is None:
            encoded = payload.encode_arguments(self.name, self._adapter, arguments)
            return NewJob(self.name, encoded, options, version=self.version)
        payload.refuse(self.name, arguments)
        write = partial(_sealed, self._seal, self._seal.document(self._adapter, arguments))
        return NewJob(self.name, write, options, version=self.version)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name."""
        names = self._positional
        if len(args) <= len(names):
            bound = {**dict(zip(names, args, strict=False)), **kwargs}
            # What is as it should be is known at once; whatever else it is, the signature says best.
            if len(bound) == len(args) + len(kwargs) and self._required <= bound.keys() <= self._known:
                return bound
        try:
            return self._signature.bind(*args, **kwargs).arguments
        except TypeError as exc:
            raise PayloadInvalid(self.name, "$", str(exc)) from None

    def _lifted(self, stored: dict[str, Any], version: int) -> dict[str, Any]:
        try:
            lifted: dict[str, Any] = self.versions.lift(stored, version)
        except PayloadInvalid as exc:
            if self._seal is not None:
                exc.__cause__ = None  # what has become a secret since then may stand in clear in its message
            raise
        return lifted

    def _invalid(self, exc: ValidationError) -> PayloadInvalid:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        path = reduce(payload.child, first["loc"], "$")
        rule = first["type"].replace("_", " ")
        # A message may be the user's own and repeat the value; of a task with secrets only the rule is named.
        reason = first["msg"] if self._seal is None and self._result_seal is None else rule
        return PayloadInvalid(self.name, payload.safe_text(path, 500), payload.safe_text(reason, 500), rule)


class Call(Generic[P, R]):
    """A task with options for the next jobs; made by ``Task.options``."""

    def __init__(self, task: Task[P, R], options: Options) -> None:
        self.task = task
        self._options = options

    def enqueue(self, session: UnitOfWork, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """As ``Task.enqueue``, with these options."""
        return enqueue.add(session, self.job(*args, **kwargs))

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """As ``Task.job``, with these options."""
        return self.task._new_job(self._options, args, kwargs)


def schema_of(adapter: TypeAdapter[Any], mode: JsonSchemaMode = "validation") -> dict[str, Any]:
    """JSON Schema of what an adapter takes or gives; empty if a type has none."""
    try:
        return adapter.json_schema(mode=mode)
    except PydanticInvalidForJsonSchema:
        return {}


def _seal(name: str, part: str, adapter: TypeAdapter[Any] | None, keys: Keyring | None) -> Seal | None:
    if adapter is None or not secret.mentions(adapter.core_schema):
        return None
    if keys is None:
        raise DeclarationError(
            f"task {name!r}: a secret is among its {part}; say with what to encrypt it: "
            "Outbox(secrets=Keyring({'2026-11': key}, current='2026-11'))"
        )
    return Seal(name, part, keys)


def _sealed(seal: Seal, document: Any, id: UUID) -> str:
    return payload.encode_sealed(seal.task, seal.close(document, id))
