"""What ``import outbox`` promises. Everything else may be renamed; changing this list is a change for every user."""

import outbox


def test_the_public_names_are_these() -> None:
    assert sorted(outbox.__all__) == [
        "Cancel",
        "Depends",
        "INJECTED",
        "Job",
        "JobContext",
        "Limit",
        "NewJob",
        "Outbox",
        "OutboxError",
        "Retry",
        "Snooze",
        "State",
        "Task",
        "WorkerSettings",
    ]


def test_each_of_them_is_there() -> None:
    for name in outbox.__all__:
        assert getattr(outbox, name) is not None
