"""Files that API and workers share: there whole or not at all."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Protocol


class Upload(Protocol):
    """What can be read piece by piece; FastAPI's ``UploadFile`` is one."""

    async def read(self, size: int = -1, /) -> bytes: ...


@asynccontextmanager
async def replacing(path: Path) -> AsyncIterator[IO[bytes]]:
    """A file to write that becomes ``path`` at the end, if there was no error. Two writers at once do no harm."""
    file = await asyncio.to_thread(_create, path)
    try:
        yield file
        await asyncio.to_thread(_publish, file, path)
    finally:
        _discard(file)


async def store(upload: Upload, path: Path) -> int:
    """Write an upload to ``path`` piece by piece; return its size."""
    size = 0
    async with replacing(path) as file:
        while piece := await upload.read(256 * 1024):
            size += await asyncio.to_thread(file.write, piece)
    return size


def _create(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)


def _discard(file: IO[bytes]) -> None:
    file.close()
    Path(file.name).unlink(missing_ok=True)


def _publish(file: IO[bytes], path: Path) -> None:
    # On the disk before it has its name, and named before a job says so: a power cut must not leave an empty report.
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
