"""Is the process alive, and can it do its work?"""

import asyncio

from fastapi import APIRouter, HTTPException
from sqlalchemy import text

from api.database import engine
from outbox import schema
from outbox.fastapi import problem_responses

router = APIRouter(tags=["health"])

PATIENCE = 2.0
"""Seconds that the database may take to answer."""


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process is alive. Says nothing about the database: restarting this process would not bring that back."""
    return {"status": "ok"}


@router.get("/readyz", responses=problem_responses(503))
async def readyz() -> dict[str, str]:
    """The database answers, and its schema is the one that this release needs."""
    try:
        async with asyncio.timeout(PATIENCE), engine().connect() as connection:
            version = await connection.scalar(text("select max(version) from outbox.schema_version"))
    except Exception as exc:
        raise HTTPException(503, "the database does not answer as it should") from exc
    if version != schema.LATEST:
        raise HTTPException(503, f"the schema has version {version}, wanted is {schema.LATEST}")
    return {"status": "ok"}
