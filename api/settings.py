"""What this service can be told, and the only place that reads the environment.

One process has one configuration: ``get_settings`` reads it once, ``configure`` replaces it (``create_app``, tests).
"""

import base64
import binascii
import ipaddress
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import EmailStr, Field, HttpUrl, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from outbox import WorkerSettings, address
from outbox.errors import DeclarationError


class Settings(BaseSettings):
    """Each field is an environment variable of the same name, in capitals."""

    # A wrong value may be a secret, so errors do not repeat it.
    model_config = SettingsConfigDict(hide_input_in_errors=True, extra="ignore", frozen=True)

    database_url: str = Field(repr=False, description="postgresql://user:password@host/database")
    host: str = Field(default="127.0.0.1", description="address that the API listens at")
    port: int = Field(default=8000, ge=1, le=65_535)
    forwarded_allow_ips: str = Field(
        default="",
        description="comma-separated addresses or networks of proxies, believed when they say for whom they ask",
    )
    outbox_access: Literal["local", "keys"] = Field(
        default="local", description="who may ask for jobs and steer them: this machine, or who has a key"
    )
    outbox_trace_url: str | None = Field(
        default=None,
        pattern=r"^https?://.*\{trace_id\}",
        description="where a trace is shown, https://traces.example.com/{trace_id}; unset: pages show its id alone",
    )
    outbox_lease: float = Field(
        default=30.0, description="seconds for which a worker's claim is good without a heartbeat"
    )
    outbox_grace: float = Field(default=20.0, description="seconds that a stopping worker gives to running jobs")

    public_url: HttpUrl = Field(default=HttpUrl("http://127.0.0.1:8000"), description="where people reach this service")
    files_dir: Path = Field(default=Path("files"), description="reports and uploads; API and workers must share it")

    smtp_host: str = "127.0.0.1"
    smtp_port: int = Field(default=1025, ge=1, le=65_535)
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    mail_from: EmailStr = "shop@example.com"

    warehouse_url: str | None = Field(default=None, description="where new orders are announced; unset: nobody is told")
    warehouse_secret: SecretStr | None = Field(
        default=None,
        description="Standard Webhooks secret, whsec_...; while it changes the new and the old, comma-separated",
    )
    analytics_url: str | None = Field(default=None, description="where events are sent; unset: nowhere")
    payments_secret: SecretStr | None = Field(
        default=None, description="the payment provider's secret, whsec_..., or two as above; unset: nobody may call"
    )
    webhook_allowed_hosts: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(),
        description="comma-separated hosts that may be called by plain http and at private addresses",
    )

    @field_validator("database_url")
    @classmethod
    def _async_driver(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("postgres", "postgresql", "postgresql+asyncpg"):
            raise ValueError("must start with postgresql://")
        try:
            address.dsn(url)
        except DeclarationError as exc:
            raise ValueError(str(exc)) from None
        return f"postgresql+asyncpg://{rest}"

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _proxies(cls, given: str) -> str:
        proxies = [each.strip() for each in given.split(",") if each.strip()]
        for each in proxies:
            # Neither a name, which uvicorn would take and never find, nor "*": then anybody could say they are anybody.
            ipaddress.ip_network(each)
        return ",".join(proxies)

    @field_validator("webhook_allowed_hosts", mode="before")
    @classmethod
    def _split(cls, hosts: object) -> object:
        return frozenset(filter(None, map(str.strip, hosts.lower().split(",")))) if isinstance(hosts, str) else hosts

    @field_validator("warehouse_secret", "payments_secret")
    @classmethod
    def _strong(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        if not all(24 <= _size(each) <= 64 for each in secret.get_secret_value().split(",")):
            raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
        return secret

    def worker(self, queues: dict[str, int]) -> WorkerSettings:
        """The library's settings for a worker of this service."""
        return WorkerSettings(queues=queues, lease=self.outbox_lease, grace=self.outbox_grace)


def _size(key: str) -> int:
    """Bytes in a key of Standard Webhooks; 0 if it is none."""
    try:
        return len(base64.b64decode(key.removeprefix("whsec_"), validate=True))
    except binascii.Error:
        return 0


_configured: list[Settings] = []


def configure(settings: Settings) -> None:
    """Use these settings in this process from now on, whatever the environment says."""
    _configured[:] = [settings]


def get_settings() -> Settings:
    """The settings of this process."""
    return _configured[0] if _configured else _from_environment()


@cache
def _from_environment() -> Settings:
    return Settings()  # type: ignore[call-arg]  # the environment gives what is required
