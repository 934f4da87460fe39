"""The address of the database, as people write it for SQLAlchemy or libpq."""

import pytest

from outbox.connection import dsn
from outbox.errors import DeclarationError

HERE = "postgresql://u:p%40ss@db:5432/shop"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (HERE, HERE),
        ("postgres://u:p%40ss@db:5432/shop", HERE),
        ("postgresql+asyncpg://u:p%40ss@db:5432/shop", HERE),
        ("postgresql+psycopg://u:p%40ss@db:5432/shop?sslmode=require", f"{HERE}?sslmode=require"),
        (f"{HERE}?ssl=verify-full", f"{HERE}?sslmode=verify-full"),
        (f"{HERE}?prepared_statement_cache_size=0", HERE),
        (f"{HERE}?application_name=x&prepared_statement_cache_size=0", f"{HERE}?application_name=x"),
        ("postgresql:///shop?host=/run/postgresql", "postgresql:///shop?host=%2Frun%2Fpostgresql"),
    ],
)
def test_an_address_of_any_driver_is_understood(written: str, meant: str) -> None:
    assert dsn(written) == meant


@pytest.mark.parametrize(
    "written",
    ["postgresql://u:s3cr/t@db:port/shop", f"postgresql://u:s3cr@{'d' * 64}/shop", "postgresql://u:s3cr@db:65536/shop"],
)
def test_an_address_that_cannot_be_read_is_not_shown(written: str) -> None:
    with pytest.raises(DeclarationError, match="percent-encode") as raised:
        dsn(written)
    assert "s3cr" not in str(raised.value)
    assert raised.value.__cause__ is None
