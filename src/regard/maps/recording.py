"""`record`: what a model's attention looks at, its own and that of mechanisms put into it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regard.base import notebook
from regard.base.errors import UserError, near
from regard.insertion.layout import Layout
from regard.layers.tap import KINDS, Query, Reader, Tap, reading, taps
from regard.maps.watching import Watch, watched
from regard.networks.hookable import refuse_unseen


@dataclass(frozen=True)
class Map:
    """What was looked at in one call.

    Attributes:
        name: dotted name of the tap, or of the module that applied it.
        kind: what it speaks of, and with it its shape: see `regard.layers.tap.Tap`; ``"token"`` (B, heads, queries,
            keys) for weights between tokens in a network that holds its map so.
        value: detached, as it was applied.
        layout: how the keys of weights between tokens hold the picture's pixels; None where that is not known (windows,
            say), or the map has pixels itself.
        windows: whether a place looks no further than its window; the weights of what lies outside are 0.
    """

    name: str
    kind: str
    value: Tensor
    layout: Layout | None = None
    windows: bool = False

    def __repr__(self) -> str:
        return f"Map({self.name!r}, {self.kind!r}, {tuple(self.value.shape)})"

    def _repr_html_(self) -> str:
        """For notebooks: the map of the first images in grey, the mean over channels or heads."""
        value = self.value.detach().float()
        sizes = " x ".join(map(str, value.shape))
        low, high = (float(value.min()), float(value.max())) if value.numel() else (0.0, 0.0)
        line = notebook.paragraph(f"{self.name}: {self.kind}, {sizes}, {low:.3g} to {high:.3g}")
        if self.kind == "channel":  # a row for each image
            value = value.flatten(1)[:, None]
        while value.dim() > 3:
            value = value.mean(1)
        return line + (notebook.pictures(value.cpu().numpy(), self.name) if value.dim() == 3 else "")


class Maps(list[Map]):
    """Recorded maps, in the order of the calls.

    Attributes:
        dropped: names of modules in which something that looks like a gate or weights multiplied a tensor in a way that
            is no attention of a known kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped: Collection[str] = ()


@contextmanager
def record(
    model: nn.Module,
    *,
    kinds: Collection[str] | None = None,
    queries: Sequence[Query] | None = None,
    every: bool = True,
) -> Iterator[Maps]:
    """Collect what the attention inside a model looks at while the block runs.

    Every tap of `regard`'s mechanisms is read, and besides what other modules do: a sigmoid or softmax that multiplies
    a map is a gate (squeeze-and-excitation, ECA, CBAM, coordinate attention, selective kernels, ...), one that weighs
    tokens, or `scaled_dot_product_attention`, gives weights between them (ViT, Swin, non-local blocks, ...).
    Afterwards the model is as it was, also after an exception; nothing is kept without a block. What other threads call
    is not recorded, and goes on as ever.

    Args:
        model: any network.
        kinds: collect only these, see `regard.layers.tap.Tap`; maps between all positions are then not even built.
        queries: of weights between tokens only the rows of these: numbers of tokens, or places (row, column) as shares
            of the picture's height and width. The others are never built where the network does not build them itself.
        every: whether modules without taps are looked into.

    Yields:
        A list that grows by one `Map` for each tap, gate or product and call, in the order of the calls; what looked
        like attention and was not recognised is named in its `dropped`.

    Raises:
        UserError: the model is compiled or TorchScript (torch would ignore the hooks) or spread over several devices
            by `torch.nn.DataParallel`, there is no such kind, a place lies beside the picture, or the model has no
            taps and `every` is False.

    Example:
        >>> import regard, torch
        >>> se = regard.create("se", 16)
        >>> with regard.record(se) as maps:
        ...     y = se(torch.randn(2, 16, 4, 4))
        >>> maps[0].name, maps[0].value.shape
        ('gate', torch.Size([2, 16, 1, 1]))
    """
    refuse_unseen(model)
    if any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in model.modules()):
        raise UserError("DataParallel runs copies of the model in threads, which are not recorded: record model.module")
    if queries is not None:
        _check_queries(queries)
    named_taps = list(taps(model))
    if kinds is not None:
        _check_kinds(kinds, {*KINDS, *(tap.kind for _, tap in named_taps)})
    if not named_taps and not every:
        raise UserError("the model has no taps: attach a mechanism first")
    maps = Maps()
    watch = Watch(
        model, lambda *seen: maps.append(Map(*seen)), queries=queries, kinds=None if kinds is None else frozenset(kinds)
    )
    maps.dropped = watch.dropped
    handles = []
    try:
        for name, tap in named_taps:
            if kinds is not None and tap.kind not in kinds:
                continue

            def keep(tap: Tap, value: Tensor, name: str = name) -> None:
                watch.marks.forget(value)
                maps.append(Map(name, tap.kind, value.detach()))

            handles.append(tap.register_forward_hook(Reader(watch, keep, queries)))
        with reading.enter(watch), watched(watch) if every else nullcontext():
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def _check_kinds(kinds: Collection[str], allowed: Collection[str]) -> None:
    """Raise a `UserError` where these are no kinds of maps."""
    if isinstance(kinds, str) or (unknown := sorted(set(kinds) - {*allowed})):
        wrong = f"the string {kinds!r}" if isinstance(kinds, str) else f"{unknown[0]!r}{near(unknown[0], [*allowed])}"
        raise UserError(f"kinds is a collection of {', '.join(KINDS)}, got {wrong}")


def _check_queries(queries: Any) -> None:
    """Raise a `UserError` where these are no tokens or places."""
    if not isinstance(queries, Sequence) or isinstance(queries, str):
        raise UserError(f"queries is a list of tokens or places, such as [(0.5, 0.5)], got {queries!r}")
    for query in queries:
        if isinstance(query, int) and not isinstance(query, bool):
            if query < 0:
                raise UserError(f"tokens are counted from 0, got {query}")
            continue
        pair = isinstance(query, Sequence) and len(query) == 2 and all(isinstance(at, int | float) for at in query)
        if not pair or not all(0 <= at <= 1 for at in query):
            hint = ": write queries=[(0.5, 0.5)] for one place" if isinstance(query, float) else ""
            raise UserError(f"a place is (row, column) as shares of the sides, from 0 to 1, got {query!r}{hint}")
