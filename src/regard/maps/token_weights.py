"""Weights between tokens: what a softmax made and then weighs tokens, or what torch's attention would have made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regard.base.functions import ADDED_PRODUCTS, MATRIX_PRODUCTS, OTHER_PRODUCTS, Call
from regard.insertion.layout import Layout
from regard.layers.tap import Query
from regard.maps.batches import Batches, Images
from regard.maps.grids import Grids
from regard.maps.notes import Notes
from regard.maps.places import Place
from regard.maps.telling import Teller
from regard.maps.windows import Windows


class Weights:
    """Tells of all weights between tokens in the moment they are applied.

    Args:
        windows: None where no place in a window is asked for.
        queries: numbers or places of the tokens whose weights are told; None is all.
    """

    def __init__(
        self,
        notes: Notes,
        batches: Batches,
        grids: Grids,
        windows: Windows | None,
        teller: Teller,
        queries: Sequence[Query] | None,
    ) -> None:
        self.notes, self.batches, self.grids, self.windows = notes, batches, grids, windows
        self.teller, self.queries = teller, queries
        self.before = {
            **dict.fromkeys(MATRIX_PRODUCTS, self.on_matrix_product),
            **dict.fromkeys(ADDED_PRODUCTS, self.on_added_product),
            **dict.fromkeys((*OTHER_PRODUCTS, "linear"), self.on_other_product),
            "einsum": self.on_einsum,
            "scaled_dot_product_attention": self.on_attention,
            "multi_head_attention_forward": self.on_heads,
        }

    def on_matrix_product(self, call: Call) -> None:
        if self._any(call) and not self._weigh(*call.operands[:2]):
            self._drop(call)

    def on_added_product(self, call: Call) -> None:
        if self._any(call) and not self._weigh(*call.operands[1:3]):
            self._drop(call)

    def on_other_product(self, call: Call) -> None:
        if self._any(call):
            self._drop(call)

    def on_einsum(self, call: Call) -> None:
        equation, *factors = call.args
        factors = [*factors[0]] if factors and isinstance(factors[0], list | tuple) else factors
        if self._any(call) and not (len(factors) == 2 and self._weigh_summed(equation, *factors)):
            self._drop(call)

    def on_attention(self, call: Call) -> None:
        if self.teller.wants("token"):
            with torch.no_grad():
                self._attend(_attention(*call.args, **call.kwargs))

    def on_heads(self, call: Call) -> None:
        """`torch.nn.MultiheadAttention`, which is one function for a mode."""
        with torch.no_grad():
            attention = _heads(*call.args, **call.kwargs)
            if attention is None:
                self.teller.drop()
            elif self.teller.wants("token"):
                self._attend(attention)

    def _any(self, call: Call) -> bool:
        """Whether there is a gate among the factors, or weights."""
        return bool(self.notes.marked(_factors(call)))

    def _drop(self, call: Call) -> None:
        """A product that is none of weights and tokens; a layer may well work on what was bounded."""
        factors = _factors(call)
        marks = [] if call.word == "linear" else [self.notes.mark(factor) for factor in factors]
        layer = any(isinstance(factor, nn.Parameter) for factor in factors)
        if not layer or any(mark and mark.by == "softmax" for mark in marks):
            self.teller.drop()

    # which of the factors are weights, and over which axis

    def _weigh(self, left: object = None, right: object = None) -> bool:
        """A product of weights and values; of which the queries are the rows, or the columns. Whether it was one."""
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return False
        mark = self.notes.mark(left)
        if mark and mark.by == "softmax" and mark.dim == -1:
            self._tell(left, self.batches.of(left), right)
            return True
        mark = self.notes.mark(right)
        if mark and mark.by == "softmax" and mark.dim == -2:
            self._tell(right.transpose(-1, -2), self.batches.of(right))
            return True
        return False

    def _weigh_summed(self, equation: Any, left: Tensor, right: Tensor) -> bool:
        """Einstein's sum: the axis of the softmax is summed over, and of the others one is that of the queries."""
        if not isinstance(equation, str) or "->" not in equation or "." in equation:
            return False
        factors, kept = equation.replace(" ", "").split("->")
        first, second = factors.split(",")
        for weights, ours, values, theirs in ((left, first, right, second), (right, second, left, first)):
            mark = self.notes.mark(weights)
            if mark is None or mark.by != "softmax" or mark.dim is None:
                continue
            images = self.batches.of(weights)
            letters = _letters(ours, theirs, kept, ours[mark.dim], ours[images.axis] if images else "")
            if letters is None:
                continue
            shared, ordered, content = letters
            flat = len(content) == 1 and len(theirs) == len(shared) + 2
            held = _ordered(values, theirs, [*shared, ordered[-1], *content]) if flat else None
            where = images and images._replace(axis=ordered.index(ours[images.axis]))
            self._tell(_ordered(weights, ours, ordered), where, held)
            return True
        return False

    def _attend(self, attention: _Attention) -> None:
        """Weights that torch's attention does not show are made here, of no more than is asked for."""
        query, key, value = attention.query, attention.key, attention.value
        if query.shape[:-1] == key.shape[:-1] == value.shape[:-1] and self._tell_windows(value, attention.seen):
            return
        images = [self.batches.of(tensor) for tensor in (query, key, value)]
        if any(where is None for where in images):
            self._tell(attention.weights(), None, own=True)
            return
        first = [self.batches.first(x, where) for x, where in zip((query, key, value), images, strict=True) if where]
        where = images[0] if first[0] is query else Images(0, len(first[0]))
        attention = replace(attention, query=first[0], key=first[1], value=first[2])
        rows = self.grids.rows(self.queries, first[0].shape[-2])
        if rows is not None:
            attention = attention.of(rows)
        self._tell(attention.weights(), where, first[2], chosen=rows is not None, own=True)

    # what is told of them

    def _tell(
        self,
        weights: Tensor,
        images: Images | None,
        values: Tensor | None = None,
        chosen: bool = False,
        own: bool = False,
    ) -> None:
        """Weights between tokens, (\\*others, queries, keys).

        Args:
            images: where they are in the weights; None where that cannot be told.
            values: what is weighed.
            chosen: whether these are the rows that are asked for alone.
            own: whether the weights were made here: the network may write over its own.
        """
        if not self.teller.wants("token"):
            return
        square = values is not None and weights.shape == (*values.shape[:-1], values.shape[-2])
        if values is not None and square and self._tell_windows(values, lambda place: place.token(weights)):
            return
        if images is None:
            self.teller.tell("token", weights if own else weights.clone()) if weights.dim() == 4 else self.teller.drop()
            return
        first = self.batches.first(weights, images)
        if first is not weights and values is not None:
            beside = self.batches.of(values)
            values = self.batches.first(values, beside) if beside else None
        weights = first.unflatten(0, (images.size, -1)) if first.dim() == 3 else first
        if weights.dim() == 4:
            self._tell_first(weights, values, chosen, own)
        else:
            self.teller.drop()

    def _tell_first(self, weights: Tensor, values: Tensor | None, chosen: bool, own: bool) -> None:
        """As `_tell`, of (B, heads, queries, keys)."""
        _, _, queries, keys = weights.shape
        layout = self.grids.of(keys) if len(weights) == self.grids.batch else None
        if layout and not chosen and values is not None and self._between_channels(layout, values):
            self.teller.tell("token", weights if own else weights.clone())
        elif not chosen and layout and queries == 1:  # of a class, or of the whole map: no place looks
            seen = weights[:, :, 0, layout.prefix :].unflatten(2, layout.grid)
            self.teller.tell("spatial", seen.clone())
        elif not chosen and layout and queries != keys and not self.grids.of(queries):
            self.teller.tell("query", weights.mean(1))
        else:
            rows = None if chosen else self.grids.rows(self.queries, queries)
            held = weights[:, :, rows] if rows is not None else weights if own else weights.clone()
            self.teller.tell("token", held, layout)

    def _between_channels(self, layout: Layout, values: Tensor) -> bool:
        """Whether channels look at one another, over all places, and not so many tokens."""
        across = self.grids.of(values.shape[-1])
        return bool(across and not across.prefix and self.grids.when(across) > self.grids.when(layout))

    def _tell_windows(self, values: Tensor, seen: Callable[[Place], Tensor]) -> bool:
        """The views from the places that are asked for, where the tokens are those of windows.

        Args:
            values: of all windows.
            seen: gives the weights (B, heads, N) with which a place looks at its window.
        """
        queries = [query for query in self.queries or () if not isinstance(query, int)]
        batch = self.grids.batch
        places = self.windows.of(values, batch, queries) if self.windows and batch else []
        if not places:
            return False
        views = torch.cat([place.view(seen(place)) for place in places], 2)
        self.teller.tell("token", views, Layout("tokens", 0, places[0].sides), windows=True)
        return True


@dataclass(frozen=True)
class _Attention:
    """What torch's attention is given: (\\*others, tokens, width) each, and what is added to the logits."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    scale: float

    def weights(self) -> Tensor:
        """(\\*others, queries, keys)."""
        logits, bias = self.query @ self.key.transpose(-1, -2) * self.scale, self.bias
        if bias is not None:
            logits = logits.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else logits + bias
        return logits.float().softmax(-1)

    def of(self, rows: list[int]) -> _Attention:
        """That of some queries alone."""
        bias = self.bias
        bias = bias[..., rows, :] if bias is not None and bias.shape[-2] > 1 else bias
        return replace(self, query=self.query[..., rows, :], bias=bias)

    def seen(self, place: Place) -> Tensor:
        """The weights (B, heads, N) with which a place looks at its window."""
        query, key, bias = self.query, self.key, self.bias
        if bias is not None:
            bias = place.token(bias.expand(*query.shape[:-1], key.shape[-2]))[:, :, None]
        near = replace(self, query=place.token(query)[:, :, None], key=place.tokens(key), bias=bias)
        return near.weights()[:, :, 0]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> _Attention:
    """What `torch.nn.functional.scaled_dot_product_attention` is given."""
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    return _Attention(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)


def _heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    weight: Tensor | None,
    bias: Tensor | None,
    *others: Any,
    **named: Any,
) -> _Attention | None:
    """What `torch.nn.functional.multi_head_attention_forward` is given, (tokens, B, width); None where it has keys of
    other widths, or adds keys and values."""
    if weight is None or others[:3] != (None, None, False) or query.dim() != 3:
        return None
    weights, biases = weight.chunk(3), (None,) * 3 if bias is None else bias.chunk(3)
    q, k = (
        nn.functional.linear(x, w, b).unflatten(2, (heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key), weights, biases, strict=False)
    )
    mask, padding = named.get("attn_mask"), named.get("key_padding_mask")
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, heads))
    total = q.new_zeros(q.shape[2], k.shape[2])
    for hidden in (mask, None if padding is None else padding[:, None, None]):
        if hidden is not None:
            total = total.masked_fill(hidden, -math.inf) if hidden.dtype == torch.bool else total + hidden
    return _attention(q, k, k, total)


def _factors(call: Call) -> list[object]:
    """Some functions are given their factors in a list."""
    operands = [operand if isinstance(operand, list | tuple) else (operand,) for operand in call.operands]
    return [factor for several in operands for factor in several]


def _letters(ours: str, theirs: str, kept: str, key: str, images: str) -> tuple[list[str], list[str], list[str]] | None:
    """The letters of Einstein's sum; None where it is no sum of values, weighed.

    Args:
        ours, theirs, kept: those of the weights, of the values, of the result.
        key: that of the softmax.
        images: that of the images.

    Returns:
        Those of both factors, the images first; those of the weights, queries and keys last; those of the values alone.
    """
    queries = [letter for letter in ours if letter in kept and letter not in theirs]
    content = [letter for letter in theirs if letter in kept and letter not in ours]
    shared = sorted((letter for letter in ours if letter in theirs and letter in kept), key=lambda one: one != images)
    if key not in theirs or key in kept or len(queries) != 1 or len(ours) != len(shared) + 2:
        return None
    return shared, [*shared, *queries, key], content


def _ordered(tensor: Tensor, letters: str, wanted: Sequence[str]) -> Tensor:
    """The axes in another order; the tensor itself where they lie so."""
    return tensor if [*letters] == [*wanted] else tensor.permute([letters.index(letter) for letter in wanted])
