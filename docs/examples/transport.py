"""An engine whose address may ask for TLS in libpq's words."""

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import address


def sessions_at(url: str) -> async_sessionmaker[AsyncSession]:
    engine = address.engine(url, pool_pre_ping=True)  # whatever else create_async_engine takes
    return async_sessionmaker(engine, expire_on_commit=False)
