"""One address for all: what SQLAlchemy understands goes to it, and what asyncpg does to that."""

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.pool import NullPool

from outbox import address
from outbox.errors import DeclarationError


@pytest.mark.parametrize("driver", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"])
async def test_an_engine_takes_what_the_worker_takes(database_url: str, driver: str) -> None:
    url = make_url(database_url).update_query_dict(
        {"sslmode": "prefer", "application_name": "shop", "lock_timeout": "7s", "prepared_statement_cache_size": "0"}
    )
    written = driver + url.render_as_string(hide_password=False)[len(url.drivername) :]
    engine = address.engine(written, poolclass=NullPool, connect_args={"timeout": 5})
    async with engine.connect() as connection:
        for setting, value in {"application_name": "shop", "lock_timeout": "7s"}.items():
            assert await connection.scalar(text(f"show {setting}")) == value
        assert await connection.scalar(text("select current_database()")) == url.database
    assert engine.url.database == url.database
    assert engine.url.drivername == "postgresql+asyncpg"
    assert dict(engine.url.query) == {"prepared_statement_cache_size": "0"}


def test_an_engine_of_what_is_no_address_is_refused_and_not_shown() -> None:
    with pytest.raises(DeclarationError, match="percent-encode") as raised:
        address.engine("postgresql://u:s3cr/t@db:port/shop")
    assert "s3cr" not in str(raised.value)
