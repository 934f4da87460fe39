"""An engine whose transactions go through a pooler in transaction mode: nothing stays behind in its sessions."""

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


def engine_behind_pooler(url: str) -> AsyncEngine:
    # A statement that stays prepared would be missing in the session that the next transaction gets, or be somebody
    # else's. Without asyncpg's cache it has no name, and ends with its transaction.
    return create_async_engine(url, connect_args={"statement_cache_size": 0})
