"""Settings come from the environment, refuse nonsense, and keep secrets to themselves."""

import pytest
from pydantic import ValidationError

from api.settings import Settings


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_any_spelling_of_the_database_url_will_do(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://me:secret@db/shop")
    monkeypatch.setenv("WEBHOOK_ALLOWED_HOSTS", "Localhost, 10.0.0.1 ,")
    monkeypatch.setenv("OUTBOX_LEASE", "12.5")
    settings = Settings()  # type: ignore[call-arg]  # from the environment
    assert settings.database_url == "postgresql+asyncpg://me:secret@db/shop"
    assert settings.webhook_allowed_hosts == {"localhost", "10.0.0.1"}
    assert settings.worker({"mail": 3}).lease == 12.5


def test_proxies_are_addresses_and_networks_and_nobody_unless_they_are_named() -> None:
    url = "postgresql://db/shop"
    assert Settings(database_url=url).forwarded_allow_ips == ""
    named = Settings(database_url=url, forwarded_allow_ips=" 10.0.0.0/8, ::1 ,")
    assert named.forwarded_allow_ips == "10.0.0.0/8,::1"


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        database_url="postgresql://me:canary@db/shop",
        smtp_password="canary",  # type: ignore[arg-type]
        warehouse_secret="whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5",  # type: ignore[arg-type]
    )
    assert "canary" not in repr(settings)
    assert "Y2FuYXJ5" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"database_url": "mysql://me:canary@db/shop"},
        {"warehouse_secret": "whsec_canary"},
        {"warehouse_secret": "canary!"},
        {"warehouse_secret": "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5,whsec_canary"},
        {"smtp_port": 0},
        {"forwarded_allow_ips": "*"},
        {"forwarded_allow_ips": "proxy.example"},
        {"forwarded_allow_ips": "10.0.0.1, 10.0.0.0/33"},
        {"database_url": "postgresql://me:canary@db/shop?sslmode=verify"},
        {"database_url": "postgresql://me:canary@db/shop?sslmode=verify-full&sslrootcert=/nowhere/ca.crt"},
    ],
)
def test_nonsense_is_refused_and_not_repeated(wrong: dict[str, object]) -> None:
    values: dict[str, object] = {"database_url": "postgresql://db/shop", **wrong}
    with pytest.raises(ValidationError) as caught:
        Settings(**values)  # type: ignore[arg-type]
    assert "canary" not in str(caught.value)
