"""What `record` finds in modules without taps: gates (`gates.py`) and weights between tokens (`token_weights.py`).

No class is known by name. A gate is what a sigmoid or a softmax made and what then multiplies a map; weights are what a
softmax made and what then weighs tokens, or what `scaled_dot_product_attention` would have made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from regard.base.functions import Call
from regard.base.tracing import DISABLED, Tracer
from regard.layers.tap import Query, reading, recomputing
from regard.maps.batches import Batches
from regard.maps.gates import Gates
from regard.maps.grids import Grids
from regard.maps.marks import Marks
from regard.maps.notes import Notes
from regard.maps.running import Running
from regard.maps.telling import Tell, Teller
from regard.maps.token_weights import Weights
from regard.maps.windows import Windows


class Watch(Tracer):
    """While it is entered, tells of every gate and of all weights between tokens.

    Args:
        model: whose modules are meant.
        tell: called with the dotted name of the module that applies it, the kind (see `regard.layers.tap.Tap`;
            ``"token"`` (B, heads, queries, keys) for weights between tokens), the values, how the keys hold the
            picture's pixels, where that is known, and whether they are those of windows.
        queries: of weights only these, so that the others are never built: numbers of tokens, or places
            (row, column) as shares of the picture's height and width. None is all.
        kinds: tell of these only; None is all.

    Attributes:
        dropped: names of modules whose products look like attention of no kind that is known.
    """

    def __init__(
        self,
        model: nn.Module,
        tell: Tell,
        *,
        queries: Sequence[Query] | None = None,
        kinds: frozenset[str] | None = None,
    ) -> None:
        self.notes = notes = Notes()
        self.running = Running(model)
        teller = Teller(self.running, tell, kinds)
        self.dropped = teller.dropped.keys()
        self.batches, self.grids, self.marks = Batches(notes), Grids(notes), Marks(notes)
        # windows have a picture only where a place in it is asked for
        places = [query for query in queries or () if not isinstance(query, int)]
        self.windows = Windows(notes) if places and teller.wants("token") else None
        gates = Gates(notes, self.batches, self.grids, teller)
        weights = Weights(notes, self.batches, self.grids, self.windows, teller, queries)
        super().__init__({**gates.before, **weights.before}, self.grids.after, self.marks.after)
        self.beginnings = self.batches.beginnings | self.grids.beginnings | self.marks.beginnings
        if self.windows:
            self.beginnings |= self.windows.beginnings
        self.thread = get_ident()
        self.depth = 0  # how many calls of the model are open

    @property
    def here(self) -> bool:
        """Whether it is this watch's thread that calls, inside its block: hooks on a model are everybody's."""
        return self in reading and self.thread == get_ident()

    @property
    def awake(self) -> bool:
        if self not in reading or recomputing():
            return False
        if not self.depth:  # a part of the model may have been called by itself
            with DISABLED():
                self.grids.begin([inputs for *_, inputs in self.running][-1:])
        return True

    def enter(self, model: nn.Module, inputs: Any) -> None:
        """The model begins to run, or the copy of it that is called in its place."""
        if self.here:
            if not self.depth or model is not self.running.model:
                self.running.begin(model)
            if not self.depth:
                self.grids.begin(inputs)
            self.depth += 1

    def leave(self) -> None:
        if self.here:
            self.depth -= 1

    def follow(self, call: Call) -> None:
        """Most functions of most networks begin nothing, and nothing is known of what they are given."""
        result = call.result
        if isinstance(result, Tensor) and result.dim() == 4:
            self.grids.see(result.shape)
        call.notes = [*filter(None, map(self.notes.by_id, map(id, call.operands)))]
        if call.notes or call.word in self.beginnings:
            if self.windows:
                self.windows.follow(call)
            self.batches.follow(call)
            super().follow(call)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Enter a watch; afterwards its model is as it was."""
    model = watch.running.model
    handles = [
        model.register_forward_pre_hook(lambda model, *inputs: watch.enter(model, inputs), with_kwargs=True),
        model.register_forward_hook(lambda *_: watch.leave(), always_call=True),
    ]
    try:
        with watch:
            yield
    finally:
        for handle in handles:
            handle.remove()
