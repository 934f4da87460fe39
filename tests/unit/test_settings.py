"""Settings are refused at the start, by name, with the rule."""

import dataclasses
import math
from typing import Any

import pytest

from outbox import WorkerSettings
from outbox.errors import DeclarationError

LIMITS = {
    "lease": (1, 3600),
    "grace": (0, 86_400),
    "cancel_grace": (0, 600),
    "poll_min": (0.001, 0.5),
    "poll_max": (0.01, 60),
    "prefetch": (0, 10_000),
    "retention_days": (1, 3650),
    "statement_timeout": (1, 600),
}


def test_the_defaults_are_within_their_own_limits() -> None:
    settings = WorkerSettings()
    assert dict(settings.queues) == {"default": 10}
    assert settings.beat == settings.lease / 3


@pytest.mark.parametrize(("name", "limits"), LIMITS.items())
def test_limits_are_kept(name: str, limits: tuple[float, float]) -> None:
    for allowed in limits:
        assert getattr(WorkerSettings(**_with(name, allowed)), name) == allowed
    low, high = limits
    for refused in (low - 1, high + 1, math.nan, math.inf, -math.inf):
        with pytest.raises(DeclarationError, match=r"^poll_(min|max): " if name.startswith("poll") else f"^{name}: "):
            WorkerSettings(**_with(name, refused))


def _with(name: str, value: float) -> dict[str, Any]:
    return {name: value}


@pytest.mark.parametrize(
    "queues", [{}, {"": 1}, {"x" * 201: 1}, {"a": 0}, {"a": -1}, {"a": 10_001}, {"good": 1, "bad": 0}]
)
def test_queues_that_cannot_be_worked_on_are_refused(queues: dict[str, int]) -> None:
    with pytest.raises(DeclarationError, match=r"^queues"):
        WorkerSettings(queues=queues)


def test_the_shortest_pause_is_not_longer_than_the_longest() -> None:
    with pytest.raises(DeclarationError, match="poll_min"):
        WorkerSettings(poll_min=0.3, poll_max=0.2)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WorkerSettings().lease = 1  # type: ignore[misc]
