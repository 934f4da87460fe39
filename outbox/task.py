"""Declared tasks: ``Outbox``, the registry, and ``Task``, a handler with its rules. Declarations only, no I/O."""

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
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

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from typing_extensions import TypedDict

from outbox import enqueue, injection, payload
from outbox.backoff import Retry
from outbox.context import JobContext
from outbox.enqueue import UnitOfWork
from outbox.errors import DeclarationError, PayloadInvalid
from outbox.limit import Limit, Rule, Scope
from outbox.newjob import MAX_NAME, NewJob, OnConflict, Options, is_name
from outbox.outcome import Cancel, Snooze
from outbox.version import Upcaster, Versions

P = ParamSpec("P")
R = TypeVar("R")

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
    :ivar session: the parameter that takes the session in which the job is settled, if the handler has one.
    """

    def __init__(
        self,
        handler: Callable[P, Any],
        *,
        name: str,
        options: Options,
        retry: Retry,
        timeout: float | None,
        version: int = 1,
        sessions: Sessions | None = None,
    ) -> None:
        functools.update_wrapper(self, handler)
        self.handler = handler
        self.name = name
        self.retry = retry
        self.timeout = timeout
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

    def arguments(self, raw: str, version: int | None = None) -> dict[str, Any]:
        """The arguments for the handler from a stored payload. Keys that the handler does not know are left out.

        :param version: the payload's version; that of the task unless given.
        :raises PayloadInvalid: if they do not fit the handler's signature (any more), or cannot be upcast.
        """
        if version is not None and version != self.version:
            raw = payload.dump(self.name, self.versions.lift(payload.parse(self.name, raw), version))
        try:
            return self._adapter.validate_json(raw)
        except ValidationError as exc:
            raise _invalid(self.name, exc) from None

    def _new_job(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewJob:
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as exc:
            raise PayloadInvalid(self.name, "$", str(exc)) from None
        try:
            arguments = self._adapter.validate_python(bound)
        except ValidationError as exc:
            raise _invalid(self.name, exc) from None
        encoded = payload.encode_arguments(self.name, self._adapter, arguments)
        return NewJob(self.name, encoded, options, version=self.version)


class Call(Generic[P, R]):
    """A task with options for the next jobs; made by ``Task.options``."""

    def __init__(self, task: Task[P, R], options: Options) -> None:
        self._task = task
        self._options = options

    def enqueue(self, session: UnitOfWork, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """As ``Task.enqueue``, with these options."""
        return enqueue.add(session, self.job(*args, **kwargs))

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """As ``Task.job``, with these options."""
        return self._task._new_job(self._options, args, kwargs)


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
    """

    def __init__(self, *, sessions: Sessions | None = None) -> None:
        self._sessions = sessions
        self._tasks: dict[str, Task[..., Any]] = {}
        self._limits: list[Rule] = []

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
        :param tags: strings that every job of it carries.
        :param limit: how many of its jobs run at once, or start in a time, in all workers together.
        :param limit_per_key: the same for the jobs of each ``limit_key`` apart.
        :param version: of its payload: raise it when the arguments change, and say with ``Task.upcast`` how older ones
            become the new. 1 to 32,767.
        :raises DeclarationError: if the name is taken, or the function's signature cannot be a payload.
        """
        policy = Retry(max_attempts=retry) if isinstance(retry, int) else retry
        longest = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        try:
            options = Options(queue=queue, priority=priority, max_attempts=policy.max_attempts, tags=tags)
        except (ValueError, TypeError) as exc:
            raise DeclarationError(f"task {name or ''}: {exc}") from exc

        def register(handler: Callable[..., Any]) -> Task[..., Any]:
            chosen = str(name or getattr(handler, "__name__", ""))
            if not is_name(chosen):
                raise DeclarationError(f"task {chosen!r}: a name must be 1 to {MAX_NAME} printable characters")
            if longest is not None and not 0 < longest <= 7 * 86_400:
                raise DeclarationError(
                    f"task {chosen!r}: timeout={longest}; must be above 0 and at most a week, in seconds"
                )
            if chosen in self._tasks:
                raise DeclarationError(f"task {chosen!r} is declared twice; give one of them another name=")
            task: Task[..., Any] = Task(
                handler,
                name=chosen,
                options=options,
                retry=policy,
                timeout=longest,
                version=version,
                sessions=self._sessions,
            )
            self._tasks[chosen] = task
            self._limits += _rules("task", chosen, limit, limit_per_key)
            return task

        return Declare(register)

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


def _invalid(task: str, exc: ValidationError) -> PayloadInvalid:
    first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return PayloadInvalid(task, payload.safe_text(path, 500), payload.safe_text(first["msg"], 500))
