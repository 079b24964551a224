"""The guard before gradio: what the page needs passes, and nothing else of all that gradio would serve."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Any

from regard.app.uploads import Message, Send, Uploads

LOOPBACK = ("127.0.0.1", "::1", "localhost")

PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
CALLS = ("app_id", "cancel", "queue/data", "queue/join", "reset", "startup-events", "upload", "upload_progress")
QUESTION = 100_000  # bytes of what the page asks, at most
PATIENCE = 5  # seconds in which a request comes whole,
SLOWEST = 20_000  # ... and more by one for so many bytes of it
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'"
)

Receive = Callable[[], Awaitable[Message]]


class _Refused(Exception):
    """A request that does not pass: the status and the sentence of the answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status, sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """Lets through what the page needs and nothing else.

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

    def __init__(
        self,
        inner: Any,
        folder: Path,
        megabytes: float,
        *,
        host: str = LOOPBACK[0],
        functions: Collection[int] | None = None,
    ) -> None:
        self.inner, self.folder, self.host, self.functions = inner, folder, host, functions
        self.largest = int(megabytes * 1e6) + QUESTION
        self.uploads = Uploads(self.largest)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._let_through(scope, receive, send)
            except _Refused as refused:
                await _answer(send, refused)

    async def _let_through(self, scope: Message, receive: Receive, send: Send) -> None:
        self._check_origin(scope)
        call = self._check_path(scope)
        if scope["method"] != "POST":
            await self.inner(scope, receive, _with_policy(send))
        elif call == "upload":
            size = _size(scope, limit=self.largest)
            if not self.uploads.has_room(size):
                raise _Refused(429, "Too much was uploaded at once: try again in a minute.")
            with self.uploads.arriving(size):
                body = await _whole(receive)
                await self.inner(scope, _again(body, receive), self.uploads.noting(_with_policy(send)))
        else:
            _size(scope, limit=QUESTION)
            question = self._checked(call, await _whole(receive))
            await self.inner(scope, _again(question, receive), _with_policy(send))

    def _check_origin(self, scope: Message) -> None:
        names = [value.decode("latin-1").lower() for key, value in scope["headers"] if key == b"host"]
        origins = [value.decode("latin-1").lower() for key, value in scope["headers"] if key == b"origin"]
        if len(names) != 1 or not _is_own_name(names[0], self.host):
            raise _Refused(403, "This is not an address of the page: open the one that was printed.")
        if any(origin.partition("://")[2] != names[0] for origin in origins):
            raise _Refused(403, "This was sent by another page: only this one may ask.")

    def _check_path(self, scope: Message) -> str:
        """What is called of gradio, which may also be a page or a file."""
        path, call = scope["path"], scope["path"].removeprefix("/gradio_api/")
        inside = call.startswith("file=") and _is_within(call.removeprefix("file="), self.folder)
        if not (path in PAGES or path.startswith(FOLDERS) or inside or (call != path and call in CALLS)):
            raise _Refused(404, "There is nothing here.")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise _Refused(405, "This HTTP method is not allowed here.")
        return str(call)

    def _checked(self, call: str, body: bytes) -> bytes:
        """A question as it was read here, and not as another reader might understand the same bytes."""
        try:
            question = json.loads(body)
            written = json.dumps(question, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            question, written = None, b""
        if not isinstance(question, dict) or (call == "queue/join" and not _is_question(question, self.functions)):
            raise _Refused(422, "The page sends no such request.")
        if not _is_harmless(question, self.folder):
            raise _Refused(403, "Only files that were uploaded here are read.")
        return written


def _with_policy(send: Send) -> Send:
    """The page may load nothing from elsewhere, and no other page may frame it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            policy = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
            message["headers"] = [*message.get("headers", []), *policy]
        await send(message)

    return sending


def _size(scope: Message, limit: int) -> int:
    """How many bytes a request says that it sends."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    size = int(length) if length.isdigit() and len(length) < 16 else limit + 1
    if size > limit:
        raise _Refused(413, f"This is larger than {limit:,} bytes.")
    return size


def _is_own_name(name: str, host: str) -> bool:
    """Whether a request's Host, a name or an address with or without a port, means this server."""
    name = re.sub(r":\d*$", "", name).strip("[]").removesuffix(".")
    open_to_others = host not in LOOPBACK
    try:
        # no other page can be at an address: only names are given to other machines' addresses by strangers
        return ip_address(name).is_loopback or open_to_others
    except ValueError:
        here = socket.gethostname().lower()
        return name in ("localhost", host.lower()) or (open_to_others and name in (here, f"{here}.local"))


async def _whole(receive: Receive) -> bytes:
    """All that is sent; refused where it comes too slowly or not to its end."""
    began, parts, got = time.monotonic(), [], 0
    while True:
        left = began + PATIENCE + got / SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left))
        except TimeoutError:
            raise _Refused(408, "This came too slowly.") from None
        if message["type"] != "http.request":
            raise _Refused(408, "This came too slowly.")
        parts.append(message.get("body", b""))
        got += len(parts[-1])
        if not message.get("more_body"):
            return b"".join(parts)


def _is_question(question: dict[str, Any], functions: Collection[int] | None) -> bool:
    """Whether this is what the page asks, of a function that it has."""
    return (
        type(number := question.get("fn_index")) is int
        and (functions is None or number in functions)
        and isinstance(question.get("data"), list)
        and isinstance(question.get("session_hash"), str)
        and type(question.get("trigger_id")) in (int, NoneType)
    )


def _is_within(path: object, folder: Path) -> bool:
    try:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(folder)
    except (OSError, ValueError):  # no name that a file can have
        return False


def _is_harmless(question: Any, folder: Path) -> bool:
    """Whether every file that a question names lies in the folder."""
    waiting = [question]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value and not _is_within(value["path"], folder):
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True


def _again(body: bytes, receive: Receive) -> Receive:
    """What was read already, and then the rest."""
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return given.pop() if given else await receive()

    return next_message


async def _answer(send: Send, refused: _Refused) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(b"connection", b"close")] if refused.status == 408 else []  # the rest would come as slowly
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": refused.sentence.encode()})
