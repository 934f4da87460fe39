"""Ask for jobs, batches and schedules and steer them: the library's API and dashboard, on this service's database."""

from fastapi import APIRouter

from api.database import sessions
from api.handlers import outbox
from api.settings import get_settings
from outbox.dashboard import outbox_dashboard
from outbox.fastapi import Access, api_keys, local_only, outbox_router
from outbox.fastapi.metrics import outbox_metrics


def access() -> Access:
    """Who may ask: those whom the settings name. One for the API and the dashboard, which count requests together."""
    return api_keys(sessions) if get_settings().outbox_access == "keys" else local_only


def router(access: Access) -> APIRouter:
    """The API."""
    return outbox_router(outbox, sessions, access=access, prefix="")


def dashboard(access: Access) -> APIRouter:
    """The dashboard."""
    return outbox_dashboard(outbox, sessions, access=access, trace_url=get_settings().outbox_trace_url)


def metrics(access: Access) -> APIRouter:
    """The figures for Prometheus."""
    return outbox_metrics(outbox, sessions, access=access)
