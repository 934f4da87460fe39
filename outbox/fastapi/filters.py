"""Which jobs: the filter of lists and of what is done to many, as parameters of an address or as JSON."""

import json
from typing import Annotated, Any
from uuid import UUID

from fastapi import HTTPException, Path
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field

from outbox import status
from outbox.errors import PayloadInvalid
from outbox.fastapi.access import Principal
from outbox.job import State
from outbox.keys import Scope
from outbox.newjob import MAX_NAME, is_name
from outbox.payload import refuse

Name = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
"""A name to look for; one that nothing can have is not found."""


def _named(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"must be 1 to {MAX_NAME} printable characters")
    return name


NewName = Annotated[str, Path(min_length=1, max_length=MAX_NAME), AfterValidator(_named)]
"""A name in an address, of something that it may be given to."""


class JobQuery(BaseModel):
    """Filters; within each any of several values will do."""

    model_config = {"extra": "forbid"}

    state: list[State] = []
    queue: list[Name] = Field([], max_length=50)
    task: list[Name] = Field([], max_length=50)
    tag: list[Name] = Field([], max_length=50)
    key: Name | None = None
    group: Name | None = None
    batch: UUID | None = None
    tenant: Name | None = None
    arguments: Annotated[str, Field(max_length=2000)] | None = Field(
        None, description='What the arguments contain, as JSON: `{"order_id": 42}`. Needs the scope read:payload.'
    )
    created_after: AwareDatetime | None = None
    created_before: AwareDatetime | None = None

    def filter(self, who: Principal) -> status.JobFilter:
        """The same in the library's words, among the jobs that they may see."""
        if self.arguments is not None and not who.may(Scope.READ_PAYLOAD):
            # Whoever may ask whether a job has this argument finds out which one it has.
            raise HTTPException(403, f"To look for arguments needs the scope {Scope.READ_PAYLOAD}.")
        return status.JobFilter(
            states=self.state,
            queues=self.queue,
            tasks=self.task,
            tags=self.tag,
            key=self.key,
            group=self.group,
            batch=self.batch,
            tenant=who.tenant if who.tenant is not None else self.tenant,
            arguments=self._arguments(),
            created_after=self.created_after,
            created_before=self.created_before,
        )

    def _arguments(self) -> dict[str, Any]:
        if self.arguments is None:
            return {}
        try:
            wanted = json.loads(self.arguments)
            refuse("", wanted)  # what no job can have, the database could not even be asked for
        except PayloadInvalid as exc:
            raise _invalid(exc.reason) from exc
        except (ValueError, RecursionError):
            wanted = None
        if not isinstance(wanted, dict):
            raise _invalid("must be a JSON object")
        return wanted


def _invalid(reason: str) -> RequestValidationError:
    return RequestValidationError(
        [{"type": "value_error", "loc": ("query", "arguments"), "msg": reason, "input": None}]
    )
