"""Those who look at everything hear of changes by one look for all, and of none while nobody listens."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import pulse
from outbox.pulse import Pulse
from outbox.watch import WatchClosed
from tests.factories import plant
from tests.waiting import until

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT", 0.01)


async def test_all_hear_of_a_change_and_one_look_serves_them(sessions: Sessions, engine: AsyncEngine) -> None:
    heart = Pulse(sessions)
    async with heart.listening() as one, heart.listening() as other:
        for each in (one, other):
            await each.next()  # at once
            await each.next()  # the first look
        looks = heart.looks
        await plant(engine)
        for each in (one, other):
            await each.next()
        assert heart.looks > looks
        async with heart.listening() as late:
            await late.next()  # at once, whatever is seen next: a page may be older than its stream
    before = heart.looks
    await asyncio.sleep(0.1)
    assert heart.looks == before


async def test_a_database_that_does_not_answer_is_asked_again(sessions: Sessions, engine: AsyncEngine) -> None:
    heart = Pulse(sessions)
    async with heart.listening() as listener:
        await listener.next()
        await listener.next()
        async with engine.begin() as connection:
            await connection.execute(text("alter table outbox.audit rename to gone"))
        looks = heart.looks
        await until(lambda: heart.looks > looks + 2)
        async with engine.begin() as connection:
            await connection.execute(text("alter table outbox.gone rename to audit"))
        await plant(engine)
        await listener.next()


async def test_listeners_end_when_it_is_closed(sessions: Sessions) -> None:
    heart = Pulse(sessions)
    async with heart.listening() as listener:
        await listener.next()
        await listener.next()
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(0)
        heart.close()
        with pytest.raises(WatchClosed):
            await waiting
    async with heart.listening() as late:
        with pytest.raises(WatchClosed):
            await late.next()
