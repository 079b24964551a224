"""The server of the page: one process on one address, until Ctrl-C."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from regard.app.guard import LOOPBACK, PATIENCE, Guard
from regard.app.networks import OPEN, Networks, Offer
from regard.app.page import CSS, build
from regard.base.errors import UserError


def serve(
    offered: Mapping[str, Offer],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    megabytes: float = 20,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C; afterwards no picture is left on the disk.

    Args:
        offered: see `regard.app.networks.offers`; the first few are opened before the page is.
        host: the address that is listened on; any but this machine's own gets a warning.
        port: 0 is any that is free.
        megabytes: of an upload, at most.
        tell: is given the address of the page, when it can be opened.

    Raises:
        UserError: the size makes no sense, the address is taken or none of this machine, or a network cannot be opened.
    """
    if not 0 < megabytes <= 1000:
        raise UserError(f"--megabytes is more than 0 and at most 1000, got {megabytes:g}")
    networks = Networks(offered)
    listening = _listen(host, port)
    with listening, tempfile.TemporaryDirectory(prefix="regard-app-") as temporary:
        folder = Path(temporary).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when the page is built; nobody else may look into it
        for name in list(offered)[:OPEN]:
            networks.open(name)
        page = build(networks).queue(api_open=False, max_size=64)
        guarded = Guard(_mounted(page, megabytes), folder, megabytes, host=host, functions=page.fns.keys())
        _announce(host, listening.getsockname()[1], tell)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise the folder would stay
        settings = uvicorn.Config(
            guarded, http=_Impatient, log_level="error", access_log=False, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(settings)
        # what is still open when it ends is broken off, which uvicorn would report as an exception of the page
        logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(
            f"the page cannot listen on {host}, port {port} (ports end at 65535): choose another --host or --port"
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number in errno.errorcode else error.strerror  # that names the address again
        raise UserError(
            f"the page cannot listen on {host}, port {port} ({reason}): choose another --host or --port"
        ) from error


def _mounted(page: gr.Blocks, megabytes: float) -> Any:
    """The page as an application, without all that gradio would add to it."""
    return gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=int(megabytes * 1e6),
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )


def _announce(host: str, port: int, tell: Callable[[str], None]) -> None:
    if host not in LOOPBACK:
        print(f"regard: the page listens on {host}: anybody who reaches this machine there can use it", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    tell(f"http://{shown}:{port}/   (Ctrl-C ends it)")


class _Impatient(H11Protocol):
    """A connection that is closed when the head of a request does not come in time."""

    _timer: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if not self._waiting():
            if self._timer:
                self._timer.cancel()
            self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(PATIENCE, self._drop)

    def _drop(self) -> None:
        self._timer = None
        if self._waiting():
            self.transport.close()

    def _waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
