"""How much may lie uploaded at a time: what lies, what is on its way, and what nobody asks about any more."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TOTAL = 200_000_000  # bytes, at most, where one upload alone may not be larger
FORGOTTEN = 120  # seconds after which an upload is removed that nobody asked about

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Uploads:
    """The files that were uploaded and not yet read.

    Args:
        largest: bytes of one upload, at most.
    """

    def __init__(self, largest: int) -> None:
        self._limit = max(TOTAL, largest)
        self._arriving = 0
        self._lying: dict[Path, tuple[int, float]] = {}  # size, and when it came

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may come; what was forgotten is removed first."""
        for path, (_, came) in list(self._lying.items()):
            if time.monotonic() - came > FORGOTTEN:
                path.unlink(missing_ok=True)
            if not path.exists():  # the page's own answer removes it
                del self._lying[path]
        return self._arriving + sum(size for size, _ in self._lying.values()) + size <= self._limit

    @contextmanager
    def arriving(self, size: int) -> Iterator[None]:
        """So many bytes are on their way, inside the block."""
        self._arriving += size
        try:
            yield
        finally:
            self._arriving -= size

    def noting(self, send: Send) -> Send:
        """Passes the answer to an upload on, and notes the files that it names."""
        answer = b""

        async def note(message: Message) -> None:
            nonlocal answer
            answer += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body"):
                with suppress(ValueError, TypeError, OSError):
                    for path in map(Path, json.loads(answer)):
                        self._lying[path] = path.stat().st_size, time.monotonic()
            await send(message)

        return note
