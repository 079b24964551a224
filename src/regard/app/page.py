"""The page to play with: drop a picture, choose what is looked into, click a place.

The page chooses among what the command named, and sends nothing but these choices, a place and a picture. Everything
else that gradio could serve is refused before it gets there, see `regard.app.guard`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw

import regard
from regard.app.guard import LOOPBACK, PATIENCE, guard
from regard.base.errors import UserError
from regard.gallery.looking import (
    Subject,
    caption,
    inside,
    judged,
    open_subject,
    read,
    see,
    trained,
    trained_on,
    within,
)
from regard.maps.meaning import FIGURES, judge
from regard.maps.recording import Map
from regard.maps.saliency import METHODS, explain
from regard.pictures.drawing import draw, resize

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr

NETWORKS = ("vit_tiny_patch16_224", "seresnet18", "skresnet18", "efficientnet_b0", "resnet18")  # if none is named
NOTHING, AS_IT_IS, MEAN = "nothing", "as it is", "mean"
PIXELS = 60_000_000  # of a picture, at most: more than a usual phone's
KEPT = 1024  # pixels of its longer side that are kept
OPEN = 4  # networks, at most
DRAWN_AT = 400  # pixels of the longer side
OVER = ("spatial", "axis", "element", "token", "criss-cross", "frame", "path", *METHODS)  # drawn on the picture


# --- the networks ----------------------------------------------------------------------------------------------------


class Offer(NamedTuple):
    """A network that may be chosen.

    Attributes:
        open: opens it.
        peak: see `regard.gallery.looking.Subject`, as far as it is known before that.
    """

    open: Callable[[], Subject]
    peak: int | None = None


def offers(
    words: Sequence[str],
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    size: int | None = None,
    own: str | None = None,
) -> dict[str, Offer]:
    """What the words name: networks as `regard.gallery.looking.open_subject` takes them, and folders of comparisons.

    Args:
        words: of a folder, every arm with weights is offered; without words a few networks of timm are.
        weights, pretrained, size, own: see `regard.gallery.looking.open_subject`.

    Raises:
        UserError: a folder holds no comparison or no weights, or the weights are meant for several networks.
    """
    if weights is not None and len(words) != 1:
        raise UserError(f"--weights are of one network, and {len(words)} are named: name the one they belong to")
    found: dict[str, Offer] = {}
    folders = [word for word in words if Path(word).is_dir()]
    for word in words or NETWORKS:
        if word in folders:
            before = f"{Path(word).resolve().name}: " if len(folders) > 1 else ""
            kept, peak = trained(word), trained_on(word)
            for arm, seed, path in kept:
                found[f"{before}{arm}, seed {seed}"] = Offer(partial(open_subject, str(path), own=own), peak)
        else:
            found[word] = Offer(partial(open_subject, word, weights=weights, pretrained=pretrained, size=size, own=own))
    return found


class Networks:
    """The networks that are offered; the last few stay open, and one thread at a time works with them.

    Attributes:
        peak: by which pictures of more than 8 bits are scaled for all of them, as `regard.look` does it.
    """

    def __init__(self, offered: Mapping[str, Offer]) -> None:
        self.offered = offered
        self.peak = max((offer.peak for offer in offered.values() if offer.peak), default=None)
        self.lock = threading.RLock()  # one look at a time: each takes all cores
        self._open: dict[tuple[str, str], Subject] = {}

    def open(self, name: str, mechanism: str = AS_IT_IS) -> Subject:
        """A network, with a mechanism put in as its authors start it.

        Raises:
            UserError: it is not offered, cannot be opened, or the mechanism cannot be attached to it.
        """
        if name not in self.offered:
            raise UserError(f"there is no network {name!r} to choose here")
        with self.lock:
            subject = self._open.pop((name, mechanism), None) or self._opened(name, mechanism)
            self._open[name, mechanism] = subject
            while len(self._open) > OPEN:
                del self._open[next(iter(self._open))]
            return subject

    def _opened(self, name: str, mechanism: str) -> Subject:
        if mechanism == AS_IT_IS:
            return self.offered[name].open()
        plain = self.open(name)
        model = deepcopy(plain.model)
        regard.attach(model, mechanism, example=torch.zeros(1, plain.channels, *plain.size), start="paper", seed=0)
        return replace(plain, model=model)


def mechanisms() -> list[str]:
    """Those that can be put into a network."""
    return [name for name in regard.names() if regard.info(name).place is not None]


# --- a picture -------------------------------------------------------------------------------------------------------


def marked(picture: Image.Image, query: tuple[float, float]) -> Image.Image:
    """The picture, small, with a cross at a place (row, column) in shares of its sides."""
    small = resize(picture, DRAWN_AT)
    y, x = query[0] * (small.height - 1), query[1] * (small.width - 1)
    pen, arm = ImageDraw.Draw(small), DRAWN_AT // 24
    for colour, width in (("black", 4), ("white", 2)):
        pen.line([(x - arm, y), (x + arm, y)], fill=colour, width=width)
        pen.line([(x, y - arm), (x, y + arm)], fill=colour, width=width)
    return small


# --- a panel ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What a panel shows.

    Attributes:
        sites: words and key of each place with attention, then of each way to say what spoke for the class.
        site: the key of the one that is drawn; it begins with its kind.
        heads: how many it has; 0 where there is nothing to choose.
        drawn: its picture.
        words: what is seen, as sentences; those that warn come with an exclamation mark in front.
    """

    sites: list[tuple[str, str]] = field(default_factory=list)
    site: str | None = None
    heads: int = 0
    drawn: Image.Image | None = None
    words: list[str] = field(default_factory=list)


def view(
    networks: Networks,
    name: str,
    mechanism: str,
    site: str | None,
    head: int | None,
    picture: Image.Image,
    query: tuple[float, float],
) -> View:
    """Look into a network.

    Args:
        networks: what may be opened.
        name, mechanism: see `Networks.open`.
        site: a key of `View.sites`; one that is not there stands for the last place with attention, of what was put in
            if it has any.
        head: of weights between places; None is their mean, as is one that is not there.
        picture: RGB.
        query: the place (row, column) whose view is shown of weights between places, as shares of the sides.

    Raises:
        UserError: as `Networks.open`, or the network cannot be looked into.
    """
    with networks.lock:
        subject = networks.open(name, mechanism)
        images = subject.prepare([picture])
        seen = see(subject, images, query)
        number, share = seen.classes[0]
        maps = _keyed(seen.maps)
        sites = [(words, key) for key, (words, _) in maps.items()]
        if share is not None:
            sites += [(f"reasons ({method})", method) for method in METHODS]
        keys = [key for _, key in sites]
        if not keys:
            raise UserError(
                "No attention that could be recognised was found in this network, and it gives no classes: there is "
                "nothing to see."
            )
        if site is None or site not in keys:
            own = [key for key in maps if mechanism != AS_IT_IS and f"regard.{mechanism}" in key]
            site = (own or list(maps) or keys)[-1 if maps else 0]
        found = maps[site][1] if site in maps else explain(subject.model, images, method=site)
    heads = found.value.shape[1] if found.kind == "token" else 1
    head = head if head is not None and 0 <= head < heads > 1 else None
    values = judged(found, head)
    places = inside(found, values)
    meaning = judge(within(values, places), images if places is None else None)
    words = []
    if subject.random:
        words.append("! The weights of this network are random: start with --pretrained or --weights FILE.")
    if mechanism != AS_IT_IS:
        words.append(
            f"! {mechanism} was put in just now and has learnt nothing: it shows how it works, not what it finds."
        )
    if share is not None:
        words.append(f"Taken for {subject.called(number)}, {100 * share:.{1 if share < 0.01 else 0}f} %.")
    if not maps:
        words.append(
            "No attention that could be recognised was found in this network: there are only the reasons for its "
            "decision."
        )
    words.append(caption(found, found.kind if site in maps else site, head))
    if found.kind not in ("token", "criss-cross"):
        words.append("The cross changes nothing here: this is no view from one place.")
    words += [f"! {word[0].upper()}{word[1:]}." for word in meaning.words]
    shades = (" (dark)", " (bright)") if found.kind in OVER else ("", "")
    words.append(f"From {values.min():.3g}{shades[0]} to {values.max():.3g}{shades[1]}; {meaning}.")
    drawn = draw(found, picture, query=query, head=head, size=DRAWN_AT).image()
    return View(sites, site, heads if heads > 1 else 0, drawn, words)


def _keyed(maps: Sequence[Map]) -> dict[str, tuple[str, Map]]:
    """key -> words and map; the second call of a place has a key of its own."""
    found: dict[str, tuple[str, Map]] = {}
    for one in maps:
        call = 1 + sum(key.startswith(f"{one.kind}/{one.name}/") for key in found)
        kind = "view" if one.kind == "token" else one.kind
        words = f"{one.name or 'the network'} ({kind}{f', call {call}' if call > 1 else ''})"
        found[f"{one.kind}/{one.name}/{call}"] = words, one
    return found


# --- the page --------------------------------------------------------------------------------------------------------

ABOUT = """# What does a network look at?

Drop a picture. Each panel looks into one network: the map of one of its places with attention is laid over the picture,
dark where it is low and bright where it is high. Click the picture, or a map, to ask what that place looks at; only
attention between places (ViT, non-local) answers differently for every place.
"""
MEANINGS = "".join(f"- **{name}**: {FIGURES[name].text}\n" for name in ("spread", "entropy", "edges"))
MEANINGS += """\
- **place in it**: where attention was found, with the kind of its map: *view* is what one place takes from all others,
  *channel* how much each feature is let through, *spatial* how much each place. *Reasons* are what spoke for the class.
- **attention put in**: a mechanism of this library, attached to the network here and now, as its authors start it.

Whether a map is the same for every picture, or with random weights, takes more pictures: `regard look` says it.
"""
CSS = """
.words p { margin: 0 0 .4rem; line-height: 1.45; overflow-wrap: anywhere; }
.words .warn { color: #8a3b00; font-weight: 600; }
.dark .words .warn { color: #ffb37a; }
.words .fault { color: #a40000; font-weight: 600; }
.dark .words .fault { color: #ff9d9d; }
.picture img { cursor: crosshair; }
"""


class Uploads:
    """The files that were sent, each deleted once it is read.

    Equal files of several visitors are one file of the server: who comes second is given what the first was.

    Args:
        peak: see `Networks`.
        remembered: so many files.
    """

    def __init__(self, peak: int | None = None, remembered: int = 8) -> None:
        self.peak, self.remembered = peak, remembered
        self._lock = threading.Lock()
        self._found: dict[Path, Image.Image | str] = {}

    def take(self, path: Path) -> Image.Image | str:
        """The picture in a file, or why it is none."""
        with self._lock:
            if path in self._found and not path.exists():
                return self._found[path]
            try:
                found: Image.Image | str = read(path, pixels=PIXELS, longest=KEPT, peak=self.peak)
            except UserError as error:
                found = str(error)
            finally:
                path.unlink(missing_ok=True)
            self._found.pop(path, None)
            self._found[path] = found
            for old in [*self._found][: -self.remembered]:
                del self._found[old]
            return found


def build(networks: Networks) -> gr.Blocks:
    """The page, for `serve`."""
    names = list(networks.offered)
    listed = [AS_IT_IS, *mechanisms()]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}

    uploads = Uploads(networks.peak)

    def take(given: str | None) -> tuple[Any, ...]:
        if given is None:
            return gr.skip(), gr.skip(), gr.skip()
        picture = uploads.take(Path(given))
        if isinstance(picture, str):
            return None, gr.skip(), _html([], fault=f"This file {picture}.")
        return None, picture, _html([])

    def mark(picture: Image.Image | None, row: float | None, column: float | None) -> tuple[Any, ...]:
        if picture is None:
            return gr.skip(), gr.skip()
        query = _query(row, column)
        where = _html([f"The cross: {100 * query[0]:.3g} % from the top, {100 * query[1]:.3g} % from the left."])
        return gr.update(value=marked(picture, query), visible=True), where

    def on_picture(picture: Image.Image | None, event: gr.SelectData) -> tuple[Any, Any]:
        return _place(picture, event.index)

    def on_map(picture: Image.Image | None, site: str | None, event: gr.SelectData) -> tuple[Any, Any]:
        over = site is not None and site.partition("/")[0] in OVER
        return _place(picture if over else None, event.index)

    def choose(choices: list[tuple[str, str]], before: str | None, now: str | None) -> Any:
        """A value is only sent where it must change: meanwhile somebody may have chosen another."""
        value = {"value": now} if now != before else {}
        return gr.update(choices=choices, visible=bool(choices), **value)

    def show(
        picture: Image.Image | None,
        row: float | None,
        column: float | None,
        name: str,
        mechanism: str,
        site: str | None,
        head: str,
    ) -> tuple[Any, ...]:
        chosen, fault = View(), ""
        if name != NOTHING and picture is not None:
            number = int(head) if str(head).isdecimal() else None
            try:
                chosen = view(networks, name, mechanism, site, number, picture, _query(row, column))
            except UserError as error:
                fault = str(error)
            except Exception as error:  # networks are other people's code
                traceback.print_exc()
                fault = f"Looking into this network failed ({type(error).__name__}); the terminal says where."
        elif name != NOTHING:
            chosen = View(words=["Waiting for a picture."])
        heads = [MEAN, *map(str, range(chosen.heads))]
        return (
            choose(chosen.sites, site, chosen.site),
            choose([(word, word) for word in heads] if chosen.heads else [], head, head if head in heads else MEAN),
            gr.update(value=chosen.drawn, visible=chosen.drawn is not None),
            _html(chosen.words, fault),
        )

    def show_put_in(*chosen: Any) -> tuple[Any, ...]:
        """What was put in comes with places of its own."""
        *others, _, head = chosen
        return show(*others, None, head)  # type: ignore[call-arg]

    with gr.Blocks(title="regard: what does a network look at?", fill_width=True, delete_cache=(300, 3600)) as page:
        gr.Markdown(ABOUT)
        kept = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(min_width=300):
                upload = gr.File(label="Picture", file_types=["image"], height=140, elem_id="upload")
                trouble = gr.HTML(elem_classes="words", elem_id="trouble")
                shown = _picture("Your picture, with a cross at the place that looks", "shown")
                where = gr.HTML(elem_classes="words", elem_id="where")
                row = gr.Slider(0, 100, 50, step=1, label="Place: % from the top", elem_id="row", buttons=[])
                column = gr.Slider(0, 100, 50, step=1, label="Place: % from the left", elem_id="column", buttons=[])
            panels = []
            for letter, first in (("A", names[0]), ("B", names[1] if len(names) > 1 else NOTHING)):
                with gr.Column(min_width=300, elem_id=f"panel-{letter}"):
                    gr.Markdown(f"## {letter}")
                    name = gr.Dropdown([*names, NOTHING], value=first, label="Network", elem_id=f"network-{letter}")
                    mechanism = gr.Dropdown(
                        listed, value=AS_IT_IS, label="Attention put in", elem_id=f"mechanism-{letter}"
                    )
                    with gr.Row():
                        site = gr.Dropdown(
                            [], label="Place in it", visible=False, elem_id=f"site-{letter}", min_width=200, scale=2
                        )
                        head = gr.Dropdown(
                            [MEAN],
                            value=MEAN,
                            label="Head",
                            visible=False,
                            elem_id=f"head-{letter}",
                            min_width=130,
                            scale=1,
                        )
                    drawn = _picture("What it looks at", f"map-{letter}")
                    words = gr.HTML(_html(["Waiting for a picture."]), elem_classes="words", elem_id=f"words-{letter}")
                    panels.append((name, mechanism, site, head, drawn, words))
        with gr.Accordion("What the words and figures say", open=False):
            gr.Markdown(MEANINGS)
        upload.upload(take, [upload], [upload, kept, trouble], **quiet)
        # one after the other: of several events that a page begins at once, gradio loses answers on a slow machine
        last = gr.on(
            [kept.change, row.change, column.change],
            mark,
            [kept, row, column],
            [shown, where],
            preprocess=False,
            **quiet,
        )
        shown.select(on_picture, [kept], [row, column], **quiet)
        for name, mechanism, site, head, drawn, words in panels:
            drawn.select(on_map, [kept, site], [row, column], **quiet)
            inputs, outputs = [kept, row, column, name, mechanism, site, head], [site, head, drawn, words]
            loud: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network", "show_progress_on": [words]}
            # what was chosen before the choices changed is no error: `view` takes what is there instead
            loud |= quiet | {"show_progress": "minimal", "preprocess": False}
            last = last.then(show, inputs, outputs, **loud)
            gr.on([name.input, site.input, head.input], show, inputs, outputs, **loud)
            mechanism.input(show_put_in, inputs, outputs, **loud)
    return page


def _query(row: float | None, column: float | None) -> tuple[float, float]:
    """Per cent as shares; an emptied box is 0."""
    y, x = (min(1.0, max(0.0, float(at or 0) / 100)) for at in (row, column))
    return y, x


def _place(picture: Image.Image | None, clicked: Any) -> tuple[Any, Any]:
    """Row and column in per cent of a click on a drawing; beside the picture is no place."""
    if picture is None:
        return gr.skip(), gr.skip()
    (x, y), (width, height) = clicked, resize(picture, DRAWN_AT).size
    if not (0 <= x <= width and 0 <= y <= height):
        return gr.skip(), gr.skip()
    return round(100 * y / height), round(100 * x / width)


def _picture(label: str, elem_id: str) -> gr.Image:
    return gr.Image(
        alt_text=label,
        show_label=False,
        elem_id=elem_id,
        elem_classes="picture",
        format="png",
        interactive=False,
        visible=False,
        buttons=[],
    )


def _html(words: Sequence[str], fault: str = "") -> str:
    lines = [
        f'<p class="warn">{escape(word[2:])}</p>' if word.startswith("! ") else f"<p>{escape(word)}</p>"
        for word in words
    ]
    return "".join([*lines, f'<p class="fault" role="alert">{escape(fault)}</p>' if fault else ""])


# --- the server ------------------------------------------------------------------------------------------------------


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
        offered: see `offers`; the first few are opened before the page is.
        host: the address that is listened on; any but this machine's own gets a warning.
        port: 0 is any that is free.
        megabytes: of an upload, at most.
        tell: is given the address of the page, when it can be opened.

    Raises:
        UserError: the size makes no sense, the address is taken or none of this machine, or a network cannot be opened.
    """
    import fastapi
    import uvicorn

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
        application = gr.mount_gradio_app(
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
        if host not in LOOPBACK:
            print(
                f"regard: the page listens on {host}: anybody who reaches this machine there can use it",
                file=sys.stderr,
            )
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{listening.getsockname()[1]}/   (Ctrl-C ends it)")
        settings = uvicorn.Config(
            guard(application, folder, megabytes, host=host, functions=page.fns.keys()),
            http=_impatient(),
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise the folder would stay
        uvicorn.Server(settings).run(sockets=[listening])


def _impatient() -> Any:
    """uvicorn's connection, closed when the head of a request does not come in time."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        timer: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def _watch(self) -> None:
            if not self._waiting():
                if self.timer:
                    self.timer.cancel()
                self.timer = None
            elif self.timer is None:
                self.timer = self.loop.call_later(PATIENCE, self._drop)

        def _drop(self) -> None:
            self.timer = None
            if self._waiting():
                self.transport.close()

        def _waiting(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

    return Impatient


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise UserError(
            f"the page cannot listen on {host}, port {port} ({reason}): choose another --host or --port"
        ) from error
