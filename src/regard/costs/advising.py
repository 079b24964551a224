"""What each mechanism would cost in a network, measured in that network before anybody trains it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from textwrap import fill
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from regard.base import notebook
from regard.base.errors import UserError, brief
from regard.base.tables import aligned
from regard.costs import costing
from regard.costs.costing import Cost, Loss
from regard.costs.timing import ALLOCATOR, Spread, allocator_hint, noisy
from regard.insertion.attach import attach
from regard.insertion.attachment import Attached
from regard.insertion.dry_run import dry_run
from regard.insertion.site import At, choose
from regard.insertion.surveyed import Surveyed
from regard.layers.tap import taps
from regard.networks.hookable import refuse_unhookable
from regard.networks.replica import borrowed, call, shadow
from regard.pictures import outline
from regard.registry.registration import check_options, info, names, parse, spell

WIDTH = 100  # columns of the table
LEAVING = re.compile("export|onnx|compile", re.IGNORECASE)  # promises that matter to who leaves Python
LARGE = 2**30  # bytes of one map that are worth a warning


@dataclass(frozen=True)
class Row:
    """What one mechanism costs at its sites.

    Attributes:
        arm: the mechanism with its options, as `registry.parse` reads it.
        sites: names of its sites, in the order of the forward pass.
        cost: beside the network without; None where it was refused.
        refused: why it cannot be had there, in a sentence.
        warnings: what to know before training, a sentence each.
        predicted_bytes: `Cost.peak_bytes` at the larger batch that was asked for.
        predicted_ratio: the same over the network's without.
    """

    arm: str
    sites: tuple[str, ...] = ()
    cost: Cost | None = None
    refused: str | None = None
    warnings: tuple[str, ...] = ()
    predicted_bytes: int | None = None
    predicted_ratio: float | None = None

    @property
    def slowdown(self) -> Spread | None:
        """Time of a training step, or of inference where training was not measured, over the network's without."""
        return (self.cost.train_ratio or self.cost.infer_ratio) if self.cost else None

    @property
    def memory(self) -> float | None:
        """Peak memory over the network's without, at the larger batch where one was asked for."""
        return self.predicted_ratio or (self.cost.peak_ratio if self.cost else None)


@dataclass(frozen=True)
class Advice:
    """What mechanisms cost in one network; as text: a table.

    Attributes:
        network: its name.
        device: where it was measured.
        inputs: shapes of the example's tensors.
        batch: images in the example.
        none: what the network without any mechanism costs, measured beside the first of them.
        rows: one for each mechanism, the fastest first, those that were refused last.
        notes: what to know of the measurement, a sentence each.
        steps: the network's maps in the order of the forward pass.
        max_slowdown, max_memory: limits that were asked for.
        larger: the batch for which memory was predicted.
        predicted_bytes: peak memory of the network without at that batch.
    """

    network: str
    device: str
    inputs: tuple[tuple[int, ...], ...]
    batch: int
    none: Cost
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    steps: tuple[outline.Step, ...]
    max_slowdown: float | None = None
    max_memory: float | None = None
    larger: int | None = None
    predicted_bytes: int | None = None

    @property
    def passing(self) -> list[Row]:
        """Rows within the limits, and those of which the noise does not tell."""
        return [row for row in self.rows if row.cost and not self._is_over(row)]

    @property
    def over(self) -> list[Row]:
        """Rows that are certainly beyond a limit."""
        return [row for row in self.rows if row.cost and self._is_over(row)]

    @property
    def unclear(self) -> list[Row]:
        """Rows whose middle half of timings lies on both sides of `max_slowdown`."""
        limit = self.max_slowdown
        return [row for row in self.passing if limit and row.slowdown and row.slowdown[0] <= limit < row.slowdown[2]]

    def _is_over(self, row: Row) -> bool:
        slow = self.max_slowdown is not None and row.slowdown is not None and row.slowdown[0] > self.max_slowdown
        return slow or (self.max_memory is not None and row.memory is not None and row.memory > self.max_memory)

    def to_json(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        found = asdict(self)
        for name in ("passing", "over", "unclear"):
            found[name] = [row.arm for row in getattr(self, name)]
        return found

    def picture(self) -> str:
        """The network as SVG: its maps as boxes in the order of the forward pass, and below them where what goes."""
        arms: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            if row.sites:
                arms.setdefault(row.sites, []).append(row.arm)
        return outline.draw(self.steps, {", ".join(sorted(named)): sites for sites, named in arms.items()}, self._title)

    def __str__(self) -> str:
        rows = [_cells(row, row in self.unclear) for row in self.passing]
        nothing = "No mechanism is within the limits." if self.over else "No mechanism can stand here."
        parts = [self._head, _table([COLUMNS, *rows]) if rows else nothing]
        if self.unclear:
            listed = ", ".join(row.arm for row in self.unclear)
            parts.append(f"? The timings do not tell whether these stay within {self.max_slowdown:g}: {listed}.")
        if self.over:
            limits = {"slower": self.max_slowdown, "memory": self.max_memory}
            said = " and ".join(f"{word} x {limit:g}" for word, limit in limits.items() if limit is not None)
            parts.append(f"Beyond the limits ({said}): {', '.join(row.arm for row in self.over)}.")
        parts += _section("Warnings", [(row.arm, said) for row in self.passing for said in row.warnings])
        parts += _section("Not possible here", [(row.arm, row.refused) for row in self.rows if row.refused])
        parts += _section("Notes", [("", note) for note in self.notes])
        return "\n\n".join(part if "\n" in part else fill(part, WIDTH) for part in parts)

    def _repr_html_(self) -> str:
        """For notebooks: what printing shows."""
        return notebook.plain(str(self))

    @property
    def _title(self) -> str:
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in dict.fromkeys(self.inputs))
        return f"{self.network} on {self.device}, batch of {self.batch} ({shapes})"

    @property
    def _head(self) -> str:
        none = self.none
        times = [f"inference {_milliseconds(none.infer_ms)}"]
        if none.train_ms and none.peak_bytes is not None:
            times.append(f"training step {_milliseconds(none.train_ms)}")
            times.append(f"which holds {_bytes(none.peak_bytes)} at most beside weights and batch")
        if self.predicted_bytes is not None:
            times.append(f"predicted {_bytes(self.predicted_bytes)} at batch {self.larger}")
        counts = f"{_short(none.parameters)} parameters, {_short(none.macs)} multiply-adds an image"
        return fill(f"{self._title}: {counts}; {', '.join(times)}.", WIDTH)


def advise(
    model: nn.Module,
    example: Any,
    *,
    mechanisms: Iterable[str] | None = None,
    at: At = "auto",
    layout: str | None = None,
    repeated: bool = False,
    loss: Loss | None = None,
    batch: int | None = None,
    max_slowdown: float | None = None,
    max_memory: float | None = None,
    rounds: int = 9,
    budget: float | None = None,
    name: str | None = None,
    progress: Callable[[Row, int, int], None] | None = None,
) -> Advice:
    """Say what each mechanism would cost in this network: parameters, multiply-adds, time, memory, and what to watch.

    Mechanisms are attached one after the other, each to a twin of the network that reads the same weights, and timed in
    turns with the network without. The model, its gradients and the random state stay as they are.

    Args:
        model: any module, on the device to be measured.
        example: a batch for it; a tuple is positional arguments, a dict keyword arguments, anything else one.
        mechanisms: such as ``["se", "cbam[reduction=8]"]``; all that can be attached where None.
        at, layout, repeated: see `attach`.
        loss: ``(model, example) -> number`` for the training step, in train mode; None stands for cross entropy with
            made-up labels where the model returns scores (B, K, ...), else for the mean of all that it returns.
        batch: also predict peak memory for so many images, which need not fit.
        max_slowdown: sort out what makes a training step slower than by this factor, such as 1.05.
        max_memory: sort out what raises its peak memory beyond this factor, such as 1.1.
        rounds: timings of each mechanism.
        budget: seconds for all timings together; 5 rounds are done even so.
        name: of the network, for the table.
        progress: called with each finished row, the number done and the number of all.

    Returns:
        The advice; ``print`` shows it as a table.

    Raises:
        UserError: an unknown mechanism or option, a model that cannot be called with the example, or a batch or limit
            that makes no sense. A mechanism that cannot stand there is a row with the reason instead.

    Example:
        >>> import regard, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3))
        >>> advice = regard.advise(net, torch.randn(2, 3, 12, 12), mechanisms=["se"], at="1", rounds=5)
        >>> advice.rows[0].cost.added_parameters
        50
    """
    arms = _arms(mechanisms)
    for word, number in {"batch": batch, "rounds": rounds}.items():
        if number is not None and number < 1:
            raise UserError(f"{word} is at least 1, got {number}")
    for word, limit in {"max_slowdown": max_slowdown, "max_memory": max_memory}.items():
        if limit is not None and not limit > 0:
            raise UserError(f"{word} is a factor such as 1.05, got {limit}")
    if budget is not None and not budget > 0:
        raise UserError(f"budget is a number of seconds above 0, got {budget}")
    refuse_unhookable(model)
    survey = dry_run(model, example, layout)
    if at != "auto":
        choose(at, Surveyed(model, survey))
    device = costing.device_of(example)
    own = costing.batch_size(example)
    untrained = _why_untrained(model, example, loss)
    train = untrained is None
    predicted = costing.predicted_peak(model, example, batch, loss) if batch and train else None

    def measure(arm: str) -> tuple[Row, Cost | None]:
        mechanism, options = parse(arm)
        host = shadow(model)
        try:
            attached = attach(
                host, mechanism, at=at, layout=layout, example=example, repeated=repeated, seed=0, **options
            )
        except UserError as error:
            return Row(arm, refused=str(error)), None
        row = Row(arm, tuple(attached.sites))
        try:
            warnings = _warnings(host, attached, example, device, (batch or own) / own)
            costs = costing.measure(
                {"none": model, arm: host},
                example,
                rounds=rounds,
                budget=budget and budget / len(arms),
                loss=loss,
                train=train,
                warmup=1 if budget else 3,
            )
            if batch and predicted:
                peak = costing.predicted_peak(host, example, batch, loss)
                warnings += _too_large(peak, batch, device)
                row = replace(row, predicted_bytes=peak, predicted_ratio=peak / predicted)
        except (UserError, RuntimeError, ValueError) as error:
            return replace(row, refused=_failed(error, device)), None
        return replace(row, cost=costs[arm], warnings=tuple(warnings)), costs["none"]

    rows, baselines = [], []
    for done, arm in enumerate(arms, 1):
        row, none = measure(arm)
        rows.append(row)
        baselines += [none] if none else []
        if progress:
            progress(row, done, len(arms))
    if not baselines:
        baselines = [costing.measure({"none": model}, example, rounds=rounds, loss=loss, train=train)["none"]]
    notes = _too_large(predicted, batch, device) if batch and predicted else []
    return Advice(
        network=name or type(model).__name__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        inputs=tuple(tuple(leaf.shape) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)),
        batch=own,
        none=baselines[0],
        rows=tuple(sorted(rows, key=lambda row: (row.cost is None, (row.slowdown or (0, 0))[1], row.arm))),
        notes=tuple(notes + _notes(baselines, device, untrained, batch, train)),
        steps=outline.trace(model, survey),
        max_slowdown=max_slowdown,
        max_memory=max_memory,
        larger=batch,
        predicted_bytes=predicted,
    )


def _arms(mechanisms: Iterable[str] | None) -> list[str]:
    if mechanisms is None:
        return [name for name in names() if info(name).place is not None]
    if isinstance(mechanisms, str):
        raise UserError(f"mechanisms is a list of names: pass [{mechanisms!r}]")
    arms = [parse(text) for text in mechanisms]
    for name, options in arms:
        if info(name).place is None:
            raise UserError(f"{name} cannot be attached: {info(name).said('Place')}")
        check_options(info(name), options)
    return list(dict.fromkeys(spell(name, options) for name, options in arms)) or _arms(None)


def _why_untrained(model: nn.Module, example: Any, loss: Loss | None) -> str | None:
    """Why no training step can be measured."""
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            costing.training_step(model, example, loss)()
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else brief(error)
        ask = "in Python, pass regard.advise a loss=, a function of the model and the example, to have its cost"
        hint = ask if loss is None else "look at the loss you passed"
        return f"Training is not measured, since a step without any mechanism fails ({reason}): {hint}."
    return None


def _failed(error: Exception, device: torch.device) -> str:
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return "it does not fit into memory at this batch: pass a smaller one, and the batch to predict for"
    return str(error) if isinstance(error, UserError) else f"it fails while it is measured ({brief(error)})"


# What to watch


def _warnings(model: nn.Module, attached: Attached, example: Any, device: torch.device, batches: float) -> list[str]:
    """What one forward pass shows: single pixels, batch norms of single values, squares of the pixels."""
    maps: dict[str, torch.Size] = {}
    starved: list[str] = []

    def see_map(site: str) -> Callable[..., None]:
        return lambda _, args: maps.__setitem__(site, args[0].shape)

    def see_norm(site: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Tensor]) -> None:
            if args[0].numel() == args[0].shape[1] * maps[site][0]:
                starved.append(site)

        return look

    with borrowed(model) as twin, torch.no_grad():
        for site, mechanism in attached.on(twin).modules.items():
            mechanism.register_forward_pre_hook(see_map(site))
            for norm in mechanism.modules():
                if isinstance(norm, _BatchNorm):
                    norm.register_forward_pre_hook(see_norm(site))
        call(twin, example)

    said = []
    single = [site for site, shape in maps.items() if math.prod(shape[2:]) == 1]
    if single:
        said.append(f"{_where(single)} the map is a single pixel: weights between places have nothing to choose there.")
    if starved:
        said.append(
            f"{_where(starved)} its batch norm sees one value per channel and image: small batches make it noisy, and "
            "a batch of 1 teaches it nothing."
        )
    sizes = {site: _square(attached.modules[site], shape) * batches for site, shape in maps.items()}
    heavy = [site for site, size in sizes.items() if size > min(LARGE, _memory(device) / 4)]
    if heavy:
        largest = max(heavy, key=sizes.__getitem__)
        pixels = " x ".join([f"{math.prod(maps[largest][2:]):,}"] * 2)
        said.append(
            f"{_where(heavy)} the map between positions ({pixels}) takes up to {_bytes(sizes[largest])} where it is "
            "recorded or built."
        )
    said += [f"{note[0].upper()}{note[1:]}." for note in attached.notes]
    known = info(attached.mechanism)
    said += [f"No {what}: {reason}." for what, reason in known.exceptions.items() if LEAVING.search(what)]
    return said


def _square(mechanism: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of the maps between positions that a mechanism makes of one batch, found without making them."""
    if not any(tap.kind == "position" for _, tap in taps(mechanism)):
        return 0
    found = [0]
    shadow = deepcopy(mechanism).to("meta").eval()
    for _, tap in taps(shadow):
        if tap.kind == "position":
            tap.register_forward_hook(lambda _, __, weights: found.append(weights.numel() * weights.element_size()))
    kind = next((weight.dtype for weight in shadow.parameters()), torch.float32)
    with torch.no_grad():
        shadow(torch.empty(tuple(shape), device="meta", dtype=kind))
    return sum(found)


def _too_large(peak: int, batch: int, device: torch.device) -> list[str]:
    memory = _memory(device)
    if peak <= memory:
        return []
    return [f"At batch {batch} a training step needs about {_bytes(peak)}, and the device has {_bytes(memory)}."]


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _notes(
    baselines: Sequence[Cost], device: torch.device, untrained: str | None, batch: int | None, train: bool
) -> list[str]:
    spreads = [cost.train_ms or cost.infer_ms for cost in baselines]
    restless = [spread for spread in spreads if noisy(spread)]
    said = [untrained] if untrained else []
    if restless:
        share = max((high - low) / median for low, median, high in restless)
        count = f"{len(restless)} of {len(spreads)} mechanisms"
        said.append(f"The machine is busy, stop other programs: timings spread by up to {share:.0%} ({count}).")
    if device.type == "cpu" and allocator_hint():
        settings = " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
        said.append(f"Set {settings} for steadier timings.")
    if batch and train:
        said.append(
            f"Memory is predicted for batch {batch}, from two smaller batches: what a step allocates grows in a "
            "straight line with the images."
        )
    return said


def _where(sites: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(sites))
    return f"At {distinct[0]!r}" if len(distinct) == 1 else f"At {len(distinct)} sites, such as {distinct[-1]!r},"


# How it reads

COLUMNS = ("mechanism", "sites", "parameters", "multiply-adds", "inference x", "training step x", "memory x")


def _cells(row: Row, unclear: bool) -> tuple[str, ...]:
    cost = row.cost
    assert cost is not None
    return (
        row.arm,
        str(len(row.sites)),
        _added(cost.added_parameters, cost.parameters),
        _added(cost.added_macs, cost.macs),
        _ratio(cost.infer_ratio),
        ("? " if unclear else "") + (_ratio(cost.train_ratio) if cost.train_ratio else "-"),
        f"{row.memory:.2f}" if row.memory else "-",
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; a name that is too long has a line of its own."""
    widths = [max(len(row[column]) for row in rows) for column in range(1, len(rows[0]))]
    first = max(len(rows[0][0]), WIDTH - sum(widths) - 2 * len(widths))
    return "\n".join(aligned(rows, right=range(1, len(rows[0])), first=first))


def _section(title: str, lines: Sequence[tuple[str, str | None]]) -> list[str]:
    """A titled list, or nothing; a sentence that several arms share is said once."""
    arms: dict[str, list[str]] = {}
    for arm, sentence in lines:
        arms.setdefault(sentence or "", []).append(arm)
    texts = [": ".join(filter(None, (", ".join(named), sentence))) for sentence, named in arms.items()]
    wrapped = [fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ") for text in texts]
    return ["\n".join([f"{title}:", *wrapped])] if wrapped else []


def _ratio(spread: Spread) -> str:
    """Median, and the quartiles around it."""
    low, median, high = spread
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _milliseconds(spread: Spread) -> str:
    low, median, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in spread)
    return f"{median} ms ({low}-{high})"


def _added(part: int, whole: int) -> str:
    """What was added, and how much that is of what there was before."""
    share = 100 * part / (whole - part) if whole > part else 0.0
    percent = f"{share:.0f}%" if share >= 10 else f"{share:.1f}%" if share >= 0.05 or not part else "<0.1%"
    return (
        f"{part:+d} {percent:>5}" if abs(part) < 1000 else f"{'+' if part > 0 else '-'}{_short(abs(part))} {percent:>5}"
    )


def _short(number: int) -> str:
    """About how many, in four letters."""
    for scale, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{letter}" if number < 1000 * scale else f"{number / scale:,.0f}{letter}"
    return str(number)


def _bytes(number: float) -> str:
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}" if number < 1000 * scale else f"{number / scale:,.0f} {unit}"
    return f"{number:.0f} bytes"
