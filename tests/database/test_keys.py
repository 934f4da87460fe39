"""Keys are shown once, stored as digests, and end when they are told to."""

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, keys
from outbox.errors import KeyNotFound
from outbox.keys import Scope


async def test_a_key_opens_what_it_says(session: AsyncSession) -> None:
    known, key = await keys.create(session, "reporting", [Scope.READ], tenant="acme")
    assert key.startswith(known.prefix)
    assert len(key) >= len(known.prefix) + 43
    assert await keys.find(session, key) == known
    assert (known.name, set(known.scopes), known.tenant, known.expires_at) == ("reporting", {Scope.READ}, "acme", None)


async def test_what_is_stored_opens_nothing(session: AsyncSession, db: asyncpg.Connection) -> None:
    known, key = await keys.create(session, "reporting", [Scope.READ])
    await session.commit()
    stored = await db.fetchval("select to_jsonb(k)::text from outbox.api_key k")
    assert known.prefix in stored
    assert key.removeprefix(known.prefix).strip("_") not in stored
    for wrong in (known.prefix, key[:-1], key + "x", key.upper(), "", "obx_", "ö", "\ud800", stored, "x" * 10_000):
        assert await keys.find(session, wrong) is None, wrong


async def test_two_keys_differ_and_are_good_at_once(session: AsyncSession) -> None:
    made = [await keys.create(session, "rotated", [Scope.ENQUEUE]) for _ in range(2)]
    assert len({key for _, key in made}) == 2
    for known, key in made:
        assert await keys.find(session, key) == known


async def test_a_revoked_key_and_one_that_is_over_open_nothing(session: AsyncSession, db: asyncpg.Connection) -> None:
    revoked, one = await keys.create(session, "a", [Scope.READ])
    _, other = await keys.create(session, "b", [Scope.READ], expires_in=3600)
    await keys.revoke(session, revoked.prefix)
    await session.commit()
    assert await keys.find(session, one) is None
    assert await keys.find(session, other) is not None
    await db.execute("update outbox.api_key set expires_at = now() - interval '1 second' where name = 'b'")
    assert await keys.find(session, other) is None
    assert [each.name for each in await keys.all_of_them(session)] == ["a", "b"]


async def test_revoking_twice_keeps_the_first_moment_and_nothing_is_refused(session: AsyncSession) -> None:
    known, _ = await keys.create(session, "a", [Scope.READ])
    first = await keys.revoke(session, str(known.id))
    assert (await keys.revoke(session, known.prefix)).revoked_at == first.revoked_at
    with pytest.raises(KeyNotFound):
        await keys.revoke(session, "obx_nobody")


@pytest.mark.parametrize(
    ("name", "scopes", "options", "said"),
    [
        ("", [Scope.READ], {}, "name"),
        ("a\nb", [Scope.READ], {}, "name"),
        ("a", [], {}, "scopes"),
        ("a", ["root"], {}, "root"),
        ("a", [Scope.READ], {"tenant": ""}, "tenant"),
        ("a", [Scope.READ], {"expires_in": -1}, "0 seconds"),
    ],
)
async def test_what_cannot_be_is_refused(
    session: AsyncSession, name: str, scopes: list[Scope], options: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        await keys.create(session, name, scopes, **options)  # type: ignore[arg-type]


def test_what_scopes_open() -> None:
    assert keys.opened_by([Scope.ENQUEUE]) == {Scope.ENQUEUE}
    assert keys.opened_by([Scope.OPERATE]) == {Scope.READ, Scope.OPERATE}
    assert keys.opened_by([Scope.READ_PAYLOAD, Scope.ENQUEUE]) == {Scope.READ, Scope.READ_PAYLOAD, Scope.ENQUEUE}
    assert keys.opened_by([Scope.ADMIN]) == set(Scope)
    assert keys.opened_by([]) == set()


# Audit.


async def test_deeds_are_read_page_by_page_the_latest_first(session: AsyncSession) -> None:
    for n in range(5):
        await audit.write(session, "ada", "pause", f"queue q{n}", n=n)
    first = await audit.page(session, limit=3)
    rest = await audit.page(session, limit=3, before=first[-1].id)
    assert [deed.target for deed in (*first, *rest)] == [f"queue q{n}" for n in (4, 3, 2, 1, 0)]
    assert (first[0].actor, first[0].action, first[0].detail) == ("ada", "pause", {"n": 4})


@pytest.mark.parametrize(
    "change", ["update outbox.audit set actor = 'eve'", "delete from outbox.audit", "truncate outbox.audit"]
)
async def test_a_deed_cannot_be_undone(session: AsyncSession, db: asyncpg.Connection, change: str) -> None:
    await audit.write(session, "ada", "pause", "queue q")
    await session.commit()
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only ever added"):
        await db.execute(change)


async def test_a_deed_that_is_rolled_back_was_none(session: AsyncSession) -> None:
    await audit.write(session, "ada", "pause", "queue q")
    await session.rollback()
    assert await audit.page(session) == []
