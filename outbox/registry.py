"""``Outbox``: all that a service declares. No I/O, and nothing is read from the environment."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import enqueue
from outbox.backoff import Retry
from outbox.bounds import Bounds, Isolation
from outbox.errors import DeclarationError, PayloadInvalid
from outbox.limit import Limit, Rule, Scope
from outbox.newjob import MAX_NAME, NewJob, Options, is_name
from outbox.schedule import CatchUp, Schedule
from outbox.secret import Keyring
from outbox.task import Sessions, Task

P = ParamSpec("P")
R = TypeVar("R")


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
