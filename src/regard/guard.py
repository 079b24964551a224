"""The guard before gradio: what the page to play with needs, and nothing else of all that gradio would serve."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
ROOMS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
CALLS = ("app_id", "cancel", "queue/data", "queue/join", "reset", "startup-events", "upload", "upload_progress")
LETTER = 100_000  # bytes of what the page asks, at most
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'"
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def guard(inner: Any, folder: Path, megabytes: float) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Let through what the page needs and nothing else.

    gradio's own routes would also fetch addresses for whoever asks, and take files of this machine for uploads.

    Args:
        inner: gradio's application.
        folder: of uploads and drawn pictures; no other file is served or taken.
        megabytes: of an upload, at most.
    """

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        path, call = scope["path"], scope["path"].removeprefix("/gradio_api/")
        inside = call.startswith("file=") and _within(call.removeprefix("file="), folder)
        if not (path in PAGES or path.startswith(ROOMS) or inside or (call != path and call in CALLS)):
            await _answer(send, 404, "There is nothing here.")
            return
        if scope["method"] == "POST":
            limit = int(megabytes * 1e6) + LETTER if call == "upload" else LETTER
            size = dict(scope["headers"]).get(b"content-length", b"")
            if not size.isdigit() or int(size) > limit:
                await _answer(send, 413, f"This is larger than {limit:,} bytes.")
                return
            if call == "queue/join":
                body = b""
                while (message := await receive())["type"] == "http.request":
                    body += message.get("body", b"")
                    if not message.get("more_body"):
                        break
                try:
                    asked = json.loads(body)
                except (ValueError, RecursionError):
                    asked = {"path": ""}
                if not _harmless(asked, folder):
                    await _answer(send, 403, "Only what was uploaded here is looked at.")
                    return
                # what was checked, and not what another reader might make of the same bytes
                checked = {"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}
                receive = _again(checked, receive)

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *policy]
            await send(message)

        await inner(scope, receive, with_policy)

    return outer


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
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})
