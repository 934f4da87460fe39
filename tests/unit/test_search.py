"""What people type into the filter bar is read as it was meant, or refused with a reason; nothing else happens."""

import contextlib
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.dashboard.search import MAX_LENGTH, WORDS, Search, SearchError, parse
from outbox.job import State

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
BATCH = "01a1fbd7-c1c0-7423-be91-f1d20e30ae1d"


def test_every_word_narrows() -> None:
    text = (
        f'state:failed state:pending queue:mail task:send_receipt tag:vip key:"order 7" group:g batch:{BATCH} '
        "tenant:acme args.order.id:42 args.order.paid:true args.note:x after:2h before:2026-11-21T11:30"
    )
    wanted = parse(text).wanted(NOW)
    assert wanted.states == [State.FAILED, State.PENDING]
    assert (wanted.queues, wanted.tasks, wanted.tags) == (["mail"], ["send_receipt"], ["vip"])
    assert (wanted.key, wanted.group, wanted.batch, wanted.tenant) == ("order 7", "g", UUID(BATCH), "acme")
    assert wanted.arguments == {"order": {"id": 42, "paid": True}, "note": "x"}
    assert wanted.created_after == NOW - timedelta(hours=2)
    assert wanted.created_before == datetime(2026, 11, 21, 11, 30, tzinfo=UTC)
    assert str(parse(text)) == text


@pytest.mark.parametrize("text", ["", "   "])
def test_nothing_said_is_no_filter(text: str) -> None:
    assert parse(text) == Search()
    assert parse(text).wanted(NOW).states == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("failed", "failed: write a word, a colon and a value"),
        ("colour:red", "colour: can't be asked for"),
        ("args:7", "args: can't be asked for"),
        ('queue:"mail', "write a word"),
        ('queue:"mail"x', "write a word"),
        ("state:", "write a word"),
        ("x" * (MAX_LENGTH + 1), "longer than"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SearchError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("state:ready", "state:ready: must be one of pending"),
        ("batch:7", "batch:7: must be the id"),
        ("after:yesterday", "yesterday: write 30m"),
        ("after:999999d", "999999d: write 30m"),
        ("args.a:1 args.a.b:2", "a is asked to be two things"),
    ],
)
def test_a_value_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SearchError, match=reason):
        parse(text).wanted(NOW)


def test_a_tenant_that_one_is_bound_to_stands_above_what_one_types() -> None:
    assert parse("tenant:other").wanted(NOW, "mine").tenant == "mine"


def test_a_value_is_a_number_only_if_json_says_so() -> None:
    wanted = parse("args.a:1.5 args.b:NaN args.c:007 args.d:null args.e:[1]").wanted(NOW)
    assert wanted.arguments == {"a": 1.5, "b": "NaN", "c": "007", "d": None, "e": "[1]"}


def test_terms_come_and_go() -> None:
    search = parse("state:failed queue:mail")
    assert str(search.toggled("state", "failed")) == "queue:mail"
    assert str(search.toggled("state", "running")) == "state:failed queue:mail state:running"
    assert str(search.having("key", "a").having("key", "b")) == "state:failed queue:mail key:b"
    assert str(search.without("queue")) == "state:failed"
    assert str(parse("args.a:1 queue:q").without_arguments()) == "queue:q"


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*(word for word in WORDS if not word.endswith(".")), "args.a.b"]),
            st.text(min_size=1, max_size=20).filter(lambda value: value.isprintable()),
        ),
        max_size=5,
        unique=True,
    )
)
def test_what_is_written_is_read_again(terms: list[tuple[str, str]]) -> None:
    search = Search()
    for word, value in terms:
        search = search.having(word, value)
    assert parse(str(search)) == search


@given(st.text(max_size=80))
def test_whatever_is_typed_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(SearchError):
        parse(text).wanted(NOW)
