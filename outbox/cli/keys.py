"""``outbox keys``: make keys to the HTTP API, list and revoke them."""

from dataclasses import asdict
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, keys
from outbox.cli.console import AsJson, DatabaseUrl, ago, ask, err, say, show, table
from outbox.cli.jobs import actor
from outbox.keys import ApiKey, Scope

app = typer.Typer(no_args_is_help=True, help="Make keys to the HTTP API, list and revoke them.")


@app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="whose it is")],
    database_url: DatabaseUrl,
    scope: Annotated[list[Scope], typer.Option("--scope", "-s", help="repeat for several")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="whose jobs alone it sees")] = None,
    days: Annotated[float | None, typer.Option("--days", min=0, help="for how long it is good")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""

    async def create(session: AsyncSession) -> tuple[ApiKey, str]:
        expires_in = None if days is None else days * 86_400
        made = await keys.create(session, name, scope, tenant=tenant, expires_in=expires_in)
        await audit.write(
            session, actor(), "create", f"key {made[0].prefix}", scopes=sorted(scope), tenant_of_key=tenant
        )
        return made

    known, key = ask(database_url, create)
    if as_json:
        show(asdict(known) | {"key": key})
        return
    say("This is the only time that it is shown:", style="dim", to=err)
    typer.echo(key)


@app.command("ls")
def list_keys(database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """List all keys; none of them is shown."""
    found = ask(database_url, keys.all_of_them)
    if as_json:
        show([asdict(each) for each in found])
        return
    rows = (
        (
            each.prefix + "…",
            each.name,
            ", ".join(sorted(each.scopes)),
            each.tenant,
            ago(each.created_at),
            "revoked" if each.revoked_at else ago(each.expires_at) if each.expires_at else "never",
        )
        for each in found
    )
    table(("key", "name", "scopes", "tenant", "made", "ends"), rows, empty="No keys.")


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="PREFIX|ID", help="as outbox keys ls shows it")],
    database_url: DatabaseUrl,
    as_json: AsJson = False,
) -> None:
    """Have a key open nothing any more, within five seconds."""

    async def revoke(session: AsyncSession) -> ApiKey:
        known = await keys.revoke(session, key.rstrip("…"))
        await audit.write(session, actor(), "revoke", f"key {known.prefix}")
        return known

    known = ask(database_url, revoke)
    if as_json:
        show(asdict(known))
    else:
        say(f"{known.prefix}… ({known.name}) is revoked.")
