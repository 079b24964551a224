"""Whether a contestant is right: what it gives beside the reference implementation in float64."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard import ops
from regard.costs.contestants import Contestant, Setting, inputs_of
from regard.costs.records import OWN, Record

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
CHECKED = 2**23  # numbers of the map on which agreement is asked; at least two images
HALF = 0.5  # of the largest value
REFERENCE = Contestant("ours", "reference")

Outcome = dict[str, Tensor]


def exact_outcome(setting: Setting) -> tuple[Setting, Outcome, dict[str, float]]:
    """The setting in which agreement is asked, what is right there, and how far off the reference is in its dtype."""
    batch, *image = setting.shape
    images = batch if setting.layout == OWN else min(batch, max(2, CHECKED // math.prod(image)))
    fewer = setting.grown("batch", images / batch)
    doubled = [x.detach().double().requires_grad_(setting.training) for x in inputs_of(fewer)]
    exact = outcome(REFERENCE, REFERENCE.module(fewer).double(), doubled)
    return fewer, exact, deviations(outcome(REFERENCE, REFERENCE.module(fewer), inputs_of(fewer)), exact)


def agreement(
    setting: Setting, contestant: Contestant, fewer: Setting, exact: Outcome, own: dict[str, float]
) -> Record:
    off = deviations(outcome(contestant, contestant.module(fewer), inputs_of(fewer)), exact)
    noise = {kind: max(own[what] for what in own if what.split()[0] == kind) for kind in {w.split()[0] for w in own}}
    room = {what: max(4 * own[what], min(4 * noise[what.split()[0]], HALF)) for what in own}
    allowed = {what: max(_tolerance(setting), room[what]) for what in off}
    worst = max(off, key=lambda what: math.inf if math.isnan(off[what]) else off[what] / allowed[what])
    agrees = off[worst] <= allowed[worst]
    found = {"worst": worst, "deviation": off[worst], "tolerance": allowed[worst], "agrees": agrees}
    return {"images": fewer.shape[0]} | found


def outcome(contestant: Contestant, module: nn.Module, inputs: Sequence[Tensor]) -> Outcome:
    """Every output and, in training mode, every gradient, by name."""
    with torch.set_grad_enabled(module.training):
        outputs = contestant.call(module, inputs)
    found = {f"output {place}": y.detach() for place, y in enumerate(outputs)}
    if module.training:
        generator = torch.Generator().manual_seed(2)
        upstream = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
        torch.autograd.backward(outputs, upstream)
        found |= {f"input {place}'s gradient": x.grad for place, x in enumerate(inputs) if x.grad is not None}
        weights = ((name.removeprefix("_orig_mod."), weight.grad) for name, weight in module.named_parameters())
        found |= {f"weight {name}'s gradient": gradient for name, gradient in weights if gradient is not None}
    return found


def deviations(found: Outcome, exact: Outcome) -> dict[str, float]:
    """The largest deviation of each, relative to its largest value; infinite where it is not there.

    A weight's gradient that is 0 but for rounding has no size of its own, so the size of none is taken to be less than
    1 % of the largest.
    """
    sizes = {what: float(value.abs().max()) for what, value in exact.items()}
    least = 0.01 * max((size for what, size in sizes.items() if what.startswith("weight")), default=0.0)
    off = {}
    for what, value in exact.items():
        size = max(sizes[what], least if what.startswith("weight") else 0.0) or 1.0
        off[what] = float((found[what].double() - value).abs().max()) / size if what in found else math.inf
    return off


def _tolerance(setting: Setting) -> float:
    """An op's own, where its docstring gives one for the dtype."""
    if ":" not in setting.name:
        return TOLERANCE[setting.dtype]
    text = getattr(ops, setting.name.partition(":")[0]).__doc__
    given = dict(re.findall(r"\b(b?float\d\d) (\de-\d+)", text.partition("Tolerance:")[2].partition("\n\n")[0]))
    return float(given.get(setting.dtype, TOLERANCE[setting.dtype]))
