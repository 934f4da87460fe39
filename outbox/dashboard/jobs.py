"""The pages of jobs: the list with its filter, one job, and what is done to one or to many."""

from datetime import UTC, datetime
from typing import Annotated, Any, get_args
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import batch, control, explain, status
from outbox.control import Action
from outbox.dashboard import graph, timeline
from outbox.dashboard.forms import Form, back, form
from outbox.dashboard.render import page, site
from outbox.dashboard.route import PageRoute
from outbox.dashboard.search import WORDS, Search, SearchError, parse
from outbox.family import family
from outbox.fastapi.access import Principal
from outbox.fastapi.api import Api, found
from outbox.fastapi.operations import change_many, change_one
from outbox.job import TERMINAL, Job, State
from outbox.keys import Scope
from outbox.newjob import PRIORITIES
from outbox.status import MAX_PAGE, JobFilter

PAGE = 50
"""Jobs on a page."""

PORTION = 1000
"""Jobs that one request changes, in a transaction of its own; the page asks for the next, and workers have time."""

Text = Annotated[str, Query(max_length=4000)]
Ids = Annotated[list[UUID], Query(max_length=MAX_PAGE)]
Sent = Annotated[Form, Depends(form)]


def area(api: Api, trace_url: str | None) -> APIRouter:
    """The routes.

    :param trace_url: see ``outbox_dashboard``.
    """
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Reader = Annotated[Principal, api.reader]  # noqa: N806
    Operator = Annotated[Principal, api.operator]  # noqa: N806

    @router.get("/jobs")
    async def show_jobs(
        request: Request, session: Session, who: Reader, q: Text = "", before: UUID | None = None
    ) -> Response:
        if (id := _id(q)) is not None:
            return RedirectResponse(site(request).at("jobs", id), 303)
        return page(request, "jobs", who, **await _list(api, session, who, q, before))

    @router.get("/jobs/change")
    async def ask_about_jobs(
        request: Request,
        session: Session,
        who: Operator,
        action: Action,
        q: Text = "",
        id: Ids = [],  # noqa: B006 - FastAPI's way
    ) -> Response:
        """How many it would be, before anything is done."""
        which = _which(q, id, who)
        matched = (await change_many(session, who, action, which, {}, limit=control.MANY, dry_run=True)).matched
        return _portion(request, who, action, q, count=matched, ids=id)

    @router.post("/jobs/change")
    async def change_jobs(request: Request, session: Session, who: Operator, sent: Sent) -> Response:
        """Change one portion; the page goes on with the next, until there is none."""
        action, priority, text, ids = _action(sent), sent.number("priority"), sent.get("q"), _ids(sent)
        said = {"ids": len(ids)} if ids else {"filter": str(_search(text).without_arguments())}
        which = _which(text, ids, who)
        after = next(iter(_ids(sent, "after")), None)
        change = await change_many(session, who, action, which, said, limit=PORTION, after=after, priority=priority)
        done = (sent.number("done") or 0) + change.changed
        if change.next is not None:
            count = max(sent.number("count") or 0, done)
            return _portion(request, who, action, text, count=count, done=done, after=change.next, priority=priority)
        return back(request, sent, site(request).at("jobs", q=text), said=action, count=done)

    @router.get("/jobs/{job_id}")
    async def show_job(request: Request, session: Session, who: Reader, job_id: UUID) -> Response:
        shown = await _job(session, await found(session, job_id, who), who)
        return page(request, "job", who, trace_url=trace_url, **shown)

    @router.post("/jobs/{job_id}/{action}")
    async def change_job(
        request: Request, session: Session, who: Operator, job_id: UUID, action: Action, sent: Sent
    ) -> Response:
        await change_one(session, who, action, job_id, priority=sent.number("priority"))
        here = site(request)
        where = here.at("jobs") if action == "discard" else here.at("jobs", job_id)
        return back(request, sent, where, said=action)

    return router


async def _list(api: Api, session: AsyncSession, who: Principal, text: str, before: UUID | None) -> dict[str, Any]:
    search, error, jobs = Search(), "", status.Page([], None)
    try:
        search = parse(text)
        jobs = await status.page(session, _wanted(search, who), limit=PAGE, before=before)
    except SearchError as exc:
        error = str(exc)
    return {
        "text": text,
        "search": search,
        "error": error,
        "jobs": jobs.jobs,
        "older": jobs.next,
        "searched": jobs.searched,
        "before": before,
        "states": list(State),
        "words": WORDS,
        "known": {
            "state": list(State),
            "task": sorted(each.name for each in api.outbox),
            "queue": sorted({each.defaults.queue for each in api.outbox}),
        },
    }


async def _job(session: AsyncSession, job: Job, who: Principal) -> dict[str, Any]:
    tied = await family(session, [job.id], tenant=who.tenant)
    ended = job.state in TERMINAL
    return {
        "job": job,
        "ended": ended,
        "steps": timeline.steps(job),
        "explanation": None if ended else await explain.explain(session, job.id, tenant=who.tenant),
        "graph": graph.draw(tied),
        "more": tied.more,
        "batch": None if job.batch_id is None else await batch.get(session, job.batch_id, tenant=who.tenant),
    }


def _portion(
    request: Request,
    who: Principal,
    action: Action,
    text: str,
    *,
    count: int,
    done: int = 0,
    after: UUID | None = None,
    ids: list[UUID] | None = None,
    priority: int | None = None,
) -> Response:
    return page(
        request,
        "change",
        who,
        action=action,
        text=text,
        ids=ids or [],
        count=count,
        most=control.MANY,
        done=done,
        after=after,
        priority=priority,
        priorities=PRIORITIES,
    )


def _which(text: str, ids: list[UUID], who: Principal) -> JobFilter | list[UUID]:
    try:
        return ids or _wanted(_search(text), who)
    except SearchError as exc:
        raise HTTPException(422, str(exc)) from exc


def _wanted(search: Search, who: Principal) -> JobFilter:
    return search.wanted(datetime.now(UTC), who.tenant, payloads=who.may(Scope.READ_PAYLOAD))


def _search(text: str) -> Search:
    try:
        return parse(text)
    except SearchError as exc:
        raise HTTPException(422, str(exc)) from exc


def _action(sent: Form) -> Action:
    wanted = sent.get("action")
    action: Action | None = next((each for each in get_args(Action) if each == wanted), None)
    if action is None:
        raise HTTPException(422, "action: must be one of " + ", ".join(get_args(Action)))
    if action == "priority" and sent.number("priority") not in PRIORITIES:
        raise HTTPException(422, "priority: must be 0 to 3")
    return action


def _ids(sent: Form, field: str = "id") -> list[UUID]:
    try:
        return [UUID(each) for each in sent.all(field)][:MAX_PAGE]
    except ValueError as exc:
        raise HTTPException(422, f"{field}: must be ids of jobs") from exc


def _id(text: str) -> UUID | None:
    try:
        return UUID(text.strip())
    except ValueError:
        return None
