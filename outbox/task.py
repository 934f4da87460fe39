"""Declared tasks: ``Outbox``, the registry, and ``Task``, a handler with its rules. Declarations only, no I/O."""

import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial, reduce
from types import UnionType
from typing import (
    Any,
    Generic,
    NotRequired,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)
from uuid import UUID

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from sqlalchemy import Text, bindparam, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from typing_extensions import TypedDict

from outbox import enqueue, injection, payload, secret
from outbox.backoff import Retry
from outbox.bounds import Bounds, Isolation
from outbox.context import JobContext
from outbox.enqueue import UnitOfWork
from outbox.errors import DeclarationError, JobNotFound, PayloadInvalid, ResultNotStored
from outbox.limit import Limit, Rule, Scope
from outbox.newjob import MAX_NAME, NewJob, OnConflict, Options, is_name
from outbox.outcome import Cancel, Error, Snooze
from outbox.schedule import CatchUp, Schedule
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


@dataclass(frozen=True, slots=True)
class Parameters:
    """A handler's parameters, told apart: arguments come from the job, the others from the worker."""

    signature: inspect.Signature
    adapter: TypeAdapter[dict[str, Any]]
    contexts: tuple[str, ...]
    session: str | None
    dependencies: dict[str, Any]


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
        parameters, result = _analyse(name, handler)
        self._signature = parameters.signature
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
        self.result = result
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
            return self._adapter.validate_json(raw)
        except ValidationError as exc:
            raise self._invalid(exc) from None
        except Exception as exc:  # noqa: BLE001 - a validator is the user's own code
            cause = exc if self._seal is None else None  # its message may repeat a secret
            raise PayloadInvalid(self.name, "$", f"a validator raised {type(exc).__name__}") from cause

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
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as exc:
            raise PayloadInvalid(self.name, "$", str(exc)) from None
        try:
            arguments = self._adapter.validate_python(bound)
        except ValidationError as exc:
            raise self._invalid(exc) from None
        if self._seal is None:
            encoded = payload.encode_arguments(self.name, self._adapter, arguments)
            return NewJob(self.name, encoded, options, version=self.version)
        payload.refuse(self.name, arguments)
        write = partial(_sealed, self._seal, self._seal.document(self._adapter, arguments))
        return NewJob(self.name, write, options, version=self.version)

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


class Declare:
    """The decorator that ``Outbox.task`` returns."""

    def __init__(self, register: Callable[[Callable[..., Any]], Any]) -> None:
        self._register = register

    @overload
    def __call__(self, handler: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, handler: Callable[P, Any], /) -> Any:
        return self._register(handler)


class Outbox:
    """The tasks that a service declares: name → handler and rules. Holds no connection and reads no environment.

    :param sessions: makes the sessions of handlers that ask for an ``AsyncSession`` (see ``completion``), on the
        database that the worker works on; an ``async_sessionmaker``, say.
    :param secrets: the keys with which secrets are encrypted (see ``secret``).
    """

    def __init__(self, *, sessions: Sessions | None = None, secrets: Keyring | None = None) -> None:
        self._sessions = sessions
        self._secrets = secrets
        self._tasks: dict[str, Task[..., Any]] = {}
        self._limits: list[Rule] = []
        self._schedules: dict[str, Schedule] = {}

    def __iter__(self) -> Iterator[Task[..., Any]]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __getitem__(self, name: str) -> Task[..., Any]:
        return self._tasks[name]

    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 1,
        retry: Retry | int = Retry(),  # noqa: B008 - frozen
        timeout: float | timedelta | None = None,
        soft_timeout: float | timedelta | None = None,
        isolation: Isolation | None = None,
        memory_limit: int | None = None,
        tags: Sequence[str] = (),
        limit: Limit | None = None,
        limit_per_key: Limit | None = None,
        version: int = 1,
    ) -> Declare:
        """Declare the decorated function a task: ``async def`` runs on the event loop, ``def`` in a thread.

        :param name: what rows say; the function's bare name unless given, so that moving the function orphans no job.
        :param queue: the queue its jobs go through.
        :param priority: 3 is claimed first, 0 last.
        :param retry: the policy, or just the number of attempts.
        :param timeout: seconds that an attempt may take.
        :param soft_timeout: seconds after which ``SoftTimeout`` is raised in the handler, so that it can clean up;
            less than ``timeout``.
        :param isolation: "process" runs a ``def`` in a child process, which is killed when it has to end.
        :param memory_limit: bytes that the handler may have in its child process, beyond which it gets a
            ``MemoryError``. Kept by Linux only.
        :param tags: strings that every job of it carries.
        :param limit: how many of its jobs run at once, or start in a time, in all workers together.
        :param limit_per_key: the same for the jobs of each ``limit_key`` apart.
        :param version: of its payload: raise it when the arguments change, and say with ``Task.upcast`` how older ones
            become the new. 1 to 32,767.
        :raises DeclarationError: if the name is taken, the function's signature cannot be a payload, or it has
            secrets and there are no keys for them.
        """
        policy = Retry(max_attempts=retry) if isinstance(retry, int) else retry
        bounds = Bounds(_seconds(timeout), _seconds(soft_timeout), isolation, memory_limit)
        try:
            options = Options(queue=queue, priority=priority, max_attempts=policy.max_attempts, tags=tags)
        except (ValueError, TypeError) as exc:
            raise DeclarationError(f"task {name or ''}: {exc}") from exc

        def register(handler: Callable[..., Any]) -> Task[..., Any]:
            chosen = str(name or getattr(handler, "__name__", ""))
            if not is_name(chosen):
                raise DeclarationError(f"task {chosen!r}: a name must be 1 to {MAX_NAME} printable characters")
            bounds.check(chosen, handler)
            if chosen in self._tasks:
                raise DeclarationError(f"task {chosen!r} is declared twice; give one of them another name=")
            task: Task[..., Any] = Task(
                handler,
                name=chosen,
                options=options,
                retry=policy,
                bounds=bounds,
                version=version,
                sessions=self._sessions,
                secrets=self._secrets,
            )
            self._tasks[chosen] = task
            self._limits += _rules("task", chosen, limit, limit_per_key)
            return task

        return Declare(register)

    def cron(
        self,
        expression: str,
        *,
        name: str | None = None,
        tz: str = "UTC",
        catch_up: CatchUp = "latest",
        jitter: float | timedelta = 0.0,
        moment: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Callable[[Task[P, R]], Task[P, R]]:
        """Declare that the task below is enqueued whenever the expression says; see ``Schedule`` for the rest.

            @outbox.cron("0 6 * * MON-FRI", tz="Europe/Berlin")
            @outbox.task()
            async def daily_report() -> None: ...

        :param name: the task's, unless given; needed for a second one of the same task.
        :param arguments: what every job of it is called with.
        :raises DeclarationError: if it never fires, if the arguments do not fit, or if the name is taken.
        """

        def register(task: Task[P, R]) -> Task[P, R]:
            if not isinstance(task, Task):
                raise DeclarationError("@outbox.cron(...) stands above @outbox.task(...), not below it")
            chosen = task.name if name is None else name
            if chosen in self._schedules:
                raise DeclarationError(f"schedule {chosen!r} is declared twice; give one of them another name=")
            given = {**(arguments or {}), **({} if moment is None else {moment: datetime.now(UTC)})}
            try:
                job = task._new_job(task.defaults, (), given)
                schedule = Schedule(
                    name=chosen, job=job, cron=expression, tz=tz, catch_up=catch_up, jitter=jitter, moment=moment
                )
            except (PayloadInvalid, ValueError) as exc:
                raise DeclarationError(f"schedule {chosen!r}: {exc}") from exc
            self._schedules[chosen] = schedule
            return task

        return register

    @property
    def schedules(self) -> Sequence[Schedule]:
        """All schedules that are declared here."""
        return tuple(self._schedules.values())

    def limit_queue(self, name: str, limit: Limit | None = None, *, per_key: Limit | None = None) -> None:
        """Declare how many jobs of a queue run at once, or start in a time, in all workers together.

        :param per_key: the same for the jobs of each ``limit_key`` apart.
        :raises DeclarationError: if the queue is declared twice.
        """
        if not is_name(name):
            raise DeclarationError(f"queue: must be 1 to {MAX_NAME} printable characters")
        if any((rule.scope, rule.name) == ("queue", name) for rule in self._limits):
            raise DeclarationError(f"queue {name!r}: its limits are declared twice; say both in one call")
        self._limits += _rules("queue", name, limit, per_key)

    def verify(self) -> None:
        """Check what cannot be known before all is declared: that every older payload version has its upcaster.

        :raises DeclarationError: if one is missing.
        """
        for task in self:
            task.versions.verify()

    @property
    def spoken_for(self) -> set[tuple[Scope, str]]:
        """The tasks and queues whose limits are declared here, or nowhere."""
        tasks: set[tuple[Scope, str]] = {("task", task.name) for task in self}
        queues: set[tuple[Scope, str]] = {("queue", task.defaults.queue) for task in self}
        return tasks | queues | {(rule.scope, rule.name) for rule in self._limits}

    @property
    def limits(self) -> Sequence[Rule]:
        """All limits that are declared here."""
        return tuple(self._limits)

    async def enqueue_many(self, connection: AsyncSession | AsyncConnection, jobs: Iterable[NewJob]) -> list[NewJob]:
        """Write thousands of jobs, made by ``task.job(...)``, in the caller's transaction, in one statement."""
        return await enqueue.add_many(connection, jobs)


def _rules(scope: Scope, name: str, limit: Limit | None, per_key: Limit | None) -> Iterator[Rule]:
    if limit is not None:
        yield Rule(scope, name, per_key=False, limit=limit)
    if per_key is not None:
        yield Rule(scope, name, per_key=True, limit=per_key)


def _seconds(given: float | timedelta | None) -> float | None:
    return given.total_seconds() if isinstance(given, timedelta) else given


def _analyse(name: str, handler: Callable[..., Any]) -> tuple[Parameters, TypeAdapter[Any] | None]:
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise DeclarationError(f"task {name!r}: a generator cannot be a handler; return a value instead of yielding")
    try:
        hints = get_type_hints(handler, include_extras=True)
    except NameError as exc:
        raise DeclarationError(f"task {name!r}: {exc}; import what its annotations name at module level") from exc
    arguments: list[inspect.Parameter] = []
    contexts: list[str] = []
    sessions: list[str] = []
    dependencies: dict[str, Any] = {}
    for parameter in inspect.signature(handler).parameters.values():
        annotation = hints.get(parameter.name, Any)
        _refuse_nameless(name, parameter)
        if annotation is JobContext:
            contexts.append(parameter.name)
        elif inspect.isclass(annotation) and issubclass(annotation, AsyncSession):
            sessions.append(parameter.name)
        elif injection.is_dependency(annotation):
            dependencies[parameter.name] = annotation
        elif parameter.default is injection.INJECTED:
            raise DeclarationError(
                f"task {name!r}: {parameter.name!r} is INJECTED, but its annotation says none of JobContext, "
                "AsyncSession and Depends"
            )
        else:
            arguments.append(parameter.replace(annotation=annotation))
    if len(sessions) > 1:
        raise DeclarationError(f"task {name!r}: {' and '.join(sessions)} are both an AsyncSession; a job has one")
    parameters = Parameters(
        inspect.Signature(arguments),
        _arguments_adapter(name, arguments),
        tuple(contexts),
        next(iter(sessions), None),
        dependencies,
    )
    return parameters, _result_adapter(name, hints.get("return", Any))


def _refuse_nameless(name: str, parameter: inspect.Parameter) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise DeclarationError(f"task {name!r}: *{parameter.name} cannot be stored; name each argument")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise DeclarationError(f"task {name!r}: {parameter.name!r} is positional-only; arguments are stored by name")


def _arguments_adapter(name: str, arguments: list[inspect.Parameter]) -> TypeAdapter[dict[str, Any]]:
    fields = {
        each.name: each.annotation if each.default is each.empty else NotRequired[each.annotation] for each in arguments
    }
    make: Any = TypedDict
    stored = make("Arguments", fields)
    # Keys of an older or newer version of the handler are left out when it runs; at enqueue the signature has refused
    # them already.
    stored.__pydantic_config__ = ConfigDict(extra="ignore", ser_json_inf_nan="constants")
    try:
        return TypeAdapter(stored)
    except (PydanticSchemaGenerationError, PydanticUserError) as exc:
        raise DeclarationError(f"task {name!r}: an argument's type cannot be stored as JSON: {exc}") from exc


def _result_adapter(name: str, annotation: Any) -> TypeAdapter[Any] | None:
    if get_origin(annotation) in (Union, UnionType):  # "Receipt | Snooze": a Snooze is never stored
        stored = [each for each in get_args(annotation) if each not in (Snooze, Cancel)]
        annotation = Union[tuple(stored)] if stored else None  # noqa: UP007 - put together at run time
    if annotation is Any or annotation in (None, type(None), Snooze, Cancel):
        return None
    try:
        return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError) as exc:
        raise DeclarationError(f"task {name!r}: its return type cannot be stored as JSON: {exc}") from exc


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
