"""The guard before gradio: what the page to play with needs, and nothing else of all that gradio would serve."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")

PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
ROOMS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
CALLS = ("app_id", "cancel", "queue/data", "queue/join", "reset", "startup-events", "upload", "upload_progress")
LETTER = 100_000  # bytes of what the page asks, at most
TOTAL = 200_000_000  # bytes that lie uploaded, at most, where one upload alone may not be larger
FORGOTTEN = 120  # seconds after which an upload is removed that nobody asked about
PATIENCE = 5  # seconds in which a request comes whole,
SLOWEST = 20_000  # ... and more by one for so many bytes of it
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'"
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def guard(
    inner: Any, folder: Path, megabytes: float, *, host: str = LOOPBACK[0], functions: Collection[int] | None = None
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Let through what the page needs and nothing else.

    gradio's own routes would also fetch addresses for whoever asks, and take files of this machine for uploads. Another
    page that is open in the same browser may send requests here: what names another host, or comes from another page,
    is refused.

    Args:
        inner: gradio's application.
        folder: of uploads and drawn pictures; no other file is served or taken.
        megabytes: of an upload, at most.
        host: the address that is listened on.
        functions: numbers of what the page may ask for; all if None.
    """
    uploads = _Uploads(max(TOTAL, int(megabytes * 1e6) + LETTER))

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        names = [value.decode("latin-1").lower() for key, value in scope["headers"] if key == b"host"]
        origins = [value.decode("latin-1").lower() for key, value in scope["headers"] if key == b"origin"]
        if len(names) != 1 or not _own(names[0], host):
            await _answer(send, 403, "This page goes by another name: open the address that was printed.")
            return
        if any(origin.partition("://")[2] != names[0] for origin in origins):
            await _answer(send, 403, "Another page asks for this: only this one may.")
            return
        path, call = scope["path"], scope["path"].removeprefix("/gradio_api/")
        inside = call.startswith("file=") and _within(call.removeprefix("file="), folder)
        if not (path in PAGES or path.startswith(ROOMS) or inside or (call != path and call in CALLS)):
            await _answer(send, 404, "There is nothing here.")
            return
        if scope["method"] not in ("GET", "HEAD", "POST"):
            await _answer(send, 405, "This is not asked for in such a way.")
            return

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *policy]
            await send(message)

        if scope["method"] != "POST":
            await inner(scope, receive, with_policy)
            return
        limit = int(megabytes * 1e6) + LETTER if call == "upload" else LETTER
        said = dict(scope["headers"]).get(b"content-length", b"")
        size = int(said) if said.isdigit() and len(said) < 16 else limit + 1
        if size > limit:
            await _answer(send, 413, f"This is larger than {limit:,} bytes.")
            return
        if call == "upload" and not uploads.room(size):
            await _answer(send, 429, "Too much was uploaded at once: try again in a minute.")
            return
        with uploads.coming(size if call == "upload" else 0):
            body = await _whole(receive)
            if body is None:
                await _answer(send, 408, "This came too slowly.")
                return
            if call != "upload":
                try:
                    asked = json.loads(body)
                    # what is checked, and not what another reader might make of the same bytes
                    body = json.dumps(asked, ensure_ascii=False, allow_nan=False).encode()
                except (ValueError, RecursionError):
                    asked = None
                if not isinstance(asked, dict) or (call == "queue/join" and not _is_question(asked, functions)):
                    await _answer(send, 422, "This is no question of the page.")
                    return
                if not _harmless(asked, folder):
                    await _answer(send, 403, "Only what was uploaded here is looked at.")
                    return
            read = {"type": "http.request", "body": body, "more_body": False}
            out = uploads.noting(with_policy) if call == "upload" else with_policy
            await inner(scope, _again(read, receive), out)

    return outer


class _Uploads:
    """What lies uploaded, and what is on its way; what nobody asks about is removed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.on_its_way = 0
        self.lying: dict[Path, tuple[int, float]] = {}  # size, and when it came

    def room(self, size: int) -> bool:
        for path, (_, came) in list(self.lying.items()):
            if time.monotonic() - came > FORGOTTEN:
                path.unlink(missing_ok=True)
            if not path.exists():  # the page's own answer removes it
                del self.lying[path]
        return self.on_its_way + sum(size for size, _ in self.lying.values()) + size <= self.most

    @contextmanager
    def coming(self, size: int) -> Iterator[None]:
        self.on_its_way += size
        try:
            yield
        finally:
            self.on_its_way -= size

    def noting(self, send: Send) -> Send:
        """Passes the answer on, which names the files."""
        answer = b""

        async def note(message: MutableMapping[str, Any]) -> None:
            nonlocal answer
            answer += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body"):
                with suppress(ValueError, TypeError, OSError):
                    for path in map(Path, json.loads(answer)):
                        self.lying[path] = path.stat().st_size, time.monotonic()
            await send(message)

        return note


def _own(name: str, host: str) -> bool:
    """Whether a request's Host, a name or an address with or without a port, means this server."""
    name = re.sub(r":\d*$", "", name).strip("[]").removesuffix(".")
    open_to_others = host not in LOOPBACK
    try:
        # no other page can be at an address: only names are given to other machines' addresses by strangers
        return ip_address(name).is_loopback or open_to_others
    except ValueError:
        here = socket.gethostname().lower()
        return name in ("localhost", host.lower()) or (open_to_others and name in (here, f"{here}.local"))


async def _whole(receive: Receive) -> bytes | None:
    """All that is sent, or None where it comes too slowly or not to its end."""
    began, parts, got = time.monotonic(), [], 0
    while True:
        left = began + PATIENCE + got / SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left))
        except TimeoutError:
            return None
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        got += len(parts[-1])
        if not message.get("more_body"):
            return b"".join(parts)


def _is_question(asked: dict[str, Any], functions: Collection[int] | None) -> bool:
    """Whether this is what the page asks, of a function that it has."""
    return (
        type(number := asked.get("fn_index")) is int
        and (functions is None or number in functions)
        and isinstance(asked.get("data"), list)
        and isinstance(asked.get("session_hash"), str)
        and type(asked.get("trigger_id")) in (int, NoneType)
    )


def _within(path: object, folder: Path) -> bool:
    try:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(folder)
    except (OSError, ValueError):  # no name that a file can have
        return False


def _harmless(asked: Any, folder: Path) -> bool:
    """Whether every file that a question names lies in the folder."""
    waiting = [asked]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value and not _within(value["path"], folder):
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True


def _again(first: MutableMapping[str, Any], receive: Receive) -> Receive:
    """What was read already, and then the rest."""
    given = [first]

    async def next_one() -> MutableMapping[str, Any]:
        return given.pop() if given else await receive()

    return next_one


async def _answer(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(b"connection", b"close")] if status == 408 else []  # the rest would come as slowly
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})
