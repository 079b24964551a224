"""`advise`: what each mechanism would cost in a network, measured in that network before anybody trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regard.base.errors import UserError, brief
from regard.costs import costing
from regard.costs.advice import Advice, Row
from regard.costs.costing import Cost
from regard.costs.examples import batch_size, device_of
from regard.costs.memory import predicted_peak
from regard.costs.steps import Loss, training_step
from regard.costs.timing import ALLOCATOR, allocator_hint, noisy
from regard.costs.warnings import too_large, warnings_of
from regard.insertion.attach import attach
from regard.insertion.attachment import Attached
from regard.insertion.dry_run import dry_run
from regard.insertion.site import At, choose
from regard.insertion.surveyed import Surveyed
from regard.networks.hookable import refuse_unhookable
from regard.networks.replica import shadow
from regard.pictures import outline
from regard.registry.building import check_options
from regard.registry.registration import info, names
from regard.registry.spelling import parse, spell


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

    Mechanisms are attached one after the other, each to a replica of the network that reads the same weights, and
    timed in turns with the baseline. The model, its gradients and the random state stay as they are.

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
    _check(batch=batch, rounds=rounds, max_slowdown=max_slowdown, max_memory=max_memory, budget=budget)
    refuse_unhookable(model)
    survey = dry_run(model, example, layout)
    if at != "auto":
        choose(at, Surveyed(model, survey))
    device, own = device_of(example), batch_size(example)
    untrained = _why_untrained(model, example, loss)
    train = untrained is None
    predicted = predicted_peak(model, example, batch, loss) if batch and train else None
    share = budget and budget / len(arms)
    measurement = _Measurement(model, example, at, layout, repeated, loss, train, rounds, share, batch, predicted)
    rows, baselines = [], []
    for done, arm in enumerate(arms, 1):
        row, none = measurement.row(arm)
        rows.append(row)
        baselines += [none] if none else []
        if progress:
            progress(row, done, len(arms))
    if not baselines:
        baselines = [costing.measure({"none": model}, example, rounds=rounds, loss=loss, train=train)["none"]]
    notes = too_large(predicted, batch, device) if batch and predicted else []
    return Advice(
        network=name or type(model).__name__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        inputs=tuple(tuple(leaf.shape) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)),
        batch=own,
        none=baselines[0],
        rows=tuple(sorted(rows, key=lambda row: (row.cost is None, (row.slowdown or (0, 0))[1], row.arm))),
        notes=tuple(notes + notes_of(baselines, device, untrained, batch, train)),
        steps=outline.trace(model, survey),
        max_slowdown=max_slowdown,
        max_memory=max_memory,
        larger=batch,
        predicted_bytes=predicted,
    )


@dataclass(frozen=True)
class _Measurement:
    """What is the same for all mechanisms; see `advise`.

    Attributes:
        train: whether a training step can be measured.
        budget: seconds for each mechanism.
        predicted: peak memory of the network without any, at the larger batch.
    """

    model: nn.Module
    example: Any
    at: At
    layout: str | None
    repeated: bool
    loss: Loss | None
    train: bool
    rounds: int
    budget: float | None
    batch: int | None
    predicted: int | None

    def row(self, arm: str) -> tuple[Row, Cost | None]:
        """What a mechanism costs, and what the network without it costs, measured beside it."""
        mechanism, options = parse(arm)
        host = shadow(self.model)
        where: dict[str, Any] = {"at": self.at, "layout": self.layout, "repeated": self.repeated}
        try:
            attached = attach(host, mechanism, example=self.example, seed=0, **where, **options)
        except UserError as error:
            return Row(arm, refused=str(error)), None
        row = Row(arm, tuple(attached.sites))
        try:
            return self._measured(row, attached, host)
        except (UserError, RuntimeError, ValueError) as error:
            return replace(row, refused=_failed(error, device_of(self.example))), None

    def _measured(self, row: Row, attached: Attached, host: nn.Module) -> tuple[Row, Cost]:
        example, batch, device = self.example, self.batch, device_of(self.example)
        own = batch_size(example)
        sentences = warnings_of(host, attached, example, device, (batch or own) / own)
        costs = costing.measure(
            {"none": self.model, row.arm: host},
            example,
            rounds=self.rounds,
            budget=self.budget,
            loss=self.loss,
            train=self.train,
            warmup=1 if self.budget else 3,
        )
        if batch and self.predicted:
            peak = predicted_peak(host, example, batch, self.loss)
            sentences += too_large(peak, batch, device)
            row = replace(row, predicted_bytes=peak, predicted_ratio=peak / self.predicted)
        return replace(row, cost=costs[row.arm], warnings=tuple(sentences)), costs["none"]


def _check(
    *,
    batch: int | None,
    rounds: int,
    max_slowdown: float | None,
    max_memory: float | None,
    budget: float | None,
) -> None:
    for word, number in {"batch": batch, "rounds": rounds}.items():
        if number is not None and number < 1:
            raise UserError(f"{word} is at least 1, got {number}")
    for word, limit in {"max_slowdown": max_slowdown, "max_memory": max_memory}.items():
        if limit is not None and not limit > 0:
            raise UserError(f"{word} is a factor such as 1.05, got {limit}")
    if budget is not None and not budget > 0:
        raise UserError(f"budget is a number of seconds above 0, got {budget}")


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
            training_step(model, example, loss)()
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


def notes_of(
    baselines: Sequence[Cost], device: torch.device, untrained: str | None, batch: int | None, train: bool
) -> list[str]:
    """What to know of the measurement, a sentence each."""
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
