"""Trials before the question is asked: how many epochs, and which learning rate for each arm.

They see training and validation images alone, and are kept below ``trials/`` in the folder of the comparison, so that
an interrupted search goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from regard.base.errors import UserError
from regard.base.schema import fault, read
from regard.comparison import grid, learning
from regard.comparison.arms import PLAIN
from regard.comparison.plan import factors
from regard.comparison.question import Question
from regard.comparison.records import Failed, Run, Tried

SEEDS = 2  # of `none`, whose curves say how many epochs it takes
PATIENCE = 4  # times the epochs that are tried first, for a network that has learnt nothing yet
LONGEST = 16  # times the epochs that are tried first
Go = Callable[[Path, Question, Sequence[grid.Run]], None]


def epochs(
    folder: Path,
    ask: Callable[[int], Question],
    first: int,
    seeds: Sequence[int],
    go: Go,
    say: Callable[[str], None],
) -> Question:
    """The question with so many epochs that `none` hardly improves in the last quarter of them.

    The schedule of the learning rate ends with the training, so that every number of epochs is a training of its own:
    half as many again until validation accuracy rises by the margin or less in the last quarter.

    Args:
        folder: of the comparison.
        ask: gives the question with so many epochs.
        first: the number that is tried first.
        seeds: whose training and validation images are used, the first 2 of them.
        go: trains what it is told, (folder of the trial, its question, runs).
        say: is told a sentence for each number.

    Raises:
        UserError: no trial finishes.
    """
    for count in _longer(first):
        question = ask(count)
        say(f"Trying {count} epoch{'s' * (count != 1)} of none on validation images")
        runs = [(PLAIN, seed) for seed in seeds[:SEEDS]]
        found = _try(folder, question, runs, go)
        curves = [[epoch["val_top1"] for epoch in run["curve"]] for run in found.values() if run["status"] == "done"]
        if not curves:
            raise UserError(f"none cannot be trained: {found[runs[0]]['reason']}")
        rises = fmean(learning.climb(curve, 0.0) for curve in curves)
        # what has not begun to learn is flat, too
        reached, chance = [curve[-1] for curve in curves], 1 / len(question.classes)
        lost = learning.near_chance(reached, chance, question.val_images, question.margin)
        if rises <= question.margin and not (lost and count < PATIENCE * first):
            break
    else:
        say(f"After {count} epochs none still rises by {100 * rises:.1f} points in the last quarter: they must do")
    return question


def rates(
    folder: Path, question: Question, arms: Sequence[str], seed: int, go: Go, say: Callable[[str], None]
) -> dict[str, float]:
    """For each arm, what the learning rates are multiplied with where its log-loss on validation images is lowest.

    Every arm has the same number of trials, one for each factor, all with one seed. An arm that never finishes keeps
    its rate.

    Args:
        folder, question, go, say: as in `epochs`; ``question.tune`` is the number of factors.
        arms: those that are still to be tuned.
        seed: whose training and validation images are used.
    """
    losses: dict[str, dict[float, float]] = {arm: {} for arm in arms}
    for factor in factors(question.tune):
        named = ", ".join(arms) if len(arms) <= 3 else f"{len(arms)} variants"
        say(f"Trying {factor:g} times the learning rate of {named} on validation images")
        asked = replace(question, rates=dict.fromkeys(arms, factor))
        for (arm, _), run in _try(folder, asked, [(arm, seed) for arm in arms], go).items():
            if run["status"] == "done":
                losses[arm][factor] = run["val_log_loss"]
    return {arm: min(found, key=found.__getitem__, default=1.0) for arm, found in losses.items()}


def _longer(first: int) -> Iterator[int]:
    count = first
    while count <= LONGEST * first:
        yield count
        count = math.ceil(1.5 * count)


def _try(folder: Path, question: Question, runs: Sequence[grid.Run], go: Go) -> dict[grid.Run, dict[str, Any]]:
    """The records of a trial's runs, of which those that are not there yet are trained."""
    asked = {name: value for name, value in question.to_json().items() if name not in ("broken", "pairing")}
    rates = sorted(set((question.rates or {}).values()))  # the same place with more arms
    named = asked | {"trial": True, "rates": rates}
    place = folder / "trials" / hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]
    found = {run: record for run in runs if (record := _read(place, run))}
    if left := [run for run in runs if run not in found]:
        go(place, replace(question, trial=True), left)
    return {run: found.get(run) or _read(place, run) or _lost(run) for run in runs}


def _read(place: Path, run: grid.Run) -> dict[str, Any] | None:
    """A run's record; None where there is none, or one that is damaged: it is trained again."""
    path = grid.record_path(place, *run)
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = read(path, Run, "it is trained again")
    except UserError:
        return None
    wrong = fault(record, Tried if record["status"] == "done" else Failed) or (record["arm"], record["seed"]) != run
    return None if wrong else record


def _lost(run: grid.Run) -> dict[str, Any]:
    return {"arm": run[0], "seed": run[1], "status": "failed", "reason": "its record cannot be read"}
