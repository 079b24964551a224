"""What a reader of a comparison must know before believing its table, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from regard.comparison.arms import twinned
from regard.comparison.plan import Contrast, factors
from regard.comparison.records import OPEN
from regard.comparison.wording import counted

if TYPE_CHECKING:
    from regard.comparison.results import Comparison, Second

SHRUNK = 0.9  # a branch that is smaller than this at the start is named
SLOW = 1.2  # an arm whose inference takes this many times that of `none` is named as slow
NAMED = 12  # missing runs that are named
# of an arm against its twin, after the arm's name
AGAINST_TWIN = {
    "uses its input": "is right more often than its constant twin: it uses its input",
    "a constant does the same": "against its constant twin, in accuracy: a constant does the same",
    "a constant does better": "against its constant twin, in accuracy: a constant does better",
    "undecided": "may use its input or not: more seeds are needed",
}


def notes(comparison: Comparison, lost_logits: Sequence[str], log_loss: Mapping[Contrast, Second]) -> list[str]:
    """All of them; empty when nothing went wrong.

    Args:
        comparison: finished or not.
        lost_logits: a note for each file of logits that cannot be read.
        log_loss: what it says of every two arms that are compared.
    """
    return [
        *_runs(comparison),
        *_trials(comparison),
        *_lost(comparison),
        *lost_logits,
        *_left_out(comparison),
        *_beside_accuracy(comparison, log_loss),
        *_gates(comparison),
        *_costs(comparison),
    ]


def _runs(comparison: Comparison) -> Iterator[str]:
    for run in comparison.failed:
        yield f"Failed: {run['arm']}, seed {run['seed']}: {run['reason']}"
    for run in comparison.done:
        if name := run.get("killed"):
            layout = ", in the contiguous memory layout," if run.get("layout") == "contiguous_format" else ""
            yield (
                f"Tried again: {run['arm']}, seed {run['seed']}: the worker process of its first try was killed by "
                f"{name}; the second try{layout} finished."
            )


def _trials(comparison: Comparison) -> Iterator[str]:
    question = comparison.question
    if rates := question.rates:
        said = ", ".join(f"{rate:g} for {arm}" for arm, rate in rates.items())
        tried = factors(question.tune)
        yield (
            f"Tuned: the learning rate is multiplied by {said}: of {len(tried)} tried for every variant, the one with "
            "the lowest log-loss on validation images."
        )
        if edge := [arm for arm, rate in rates.items() if len(tried) > 2 and rate in (tried[0], tried[-1])]:
            yield f"Tuned to an end: {', '.join(edge)} may do better with a rate beyond those tried (--tune)."
    if (rates or question.epochs_auto) and question.split_varies == "the whole split":
        yield (
            "Chosen on shared images: every seed draws its own test images, so the validation images that epochs "
            "or learning rates were chosen on are test images of other seeds; give val/ and test/ to part them."
        )


def _lost(comparison: Comparison) -> Iterator[str]:
    if missing := comparison.missing:
        pairs = ", ".join(f"{arm} seed {seed}" for arm, seed in missing[:NAMED])
        rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        yield f"Missing: {counted(len(missing), 'run')} not finished yet: {pairs}{rest}; the same command goes on."


def _left_out(comparison: Comparison) -> Iterator[str]:
    for file, reason in comparison.question.broken or []:
        yield f"Broken file, left out: {file}: {reason}"
    if added := comparison.added_in_words:
        yield f"Added after looking: {added}; intervals and p-values allow for it."


def _beside_accuracy(comparison: Comparison, log_loss: Mapping[Contrast, Second]) -> Iterator[str]:
    for arm, word in comparison.uses_input.items():
        yield f"Constant: {arm} {AGAINST_TWIN[word]}."
    for (arm, against), second in log_loss.items():
        if second.word != "undecided" and not twinned(arm):
            yield (
                f"Log-loss: {arm} has a {second.word} one than {against}, by {abs(second.mean):.3f} nats (lower is "
                "better); verdicts are about accuracy alone."
            )


def _gates(comparison: Comparison) -> Iterator[str]:
    for arm, gates in comparison.gates.items():
        if twinned(arm):
            continue
        if gates["branch_scale"] is not None and gates["branch_scale"] < SHRUNK:
            yield f"Shrunk: at the start {arm} multiplies its branch by {gates['branch_scale']:.2f}."
        if gates["opened"] is False:
            yield (
                f"Not opened: no gate of {arm} ends with a spread of {100 * OPEN:g} % of its mean, over places or "
                "over images: no difference would mean that it was not tried."
            )


def _costs(comparison: Comparison) -> Iterator[str]:
    cost = comparison.cost
    if not cost:
        return
    for arm, said in cost.get("narrow", {}).items():
        yield from (f"Narrow: {arm} has {note}." for note in said)
    if cost["noisy"]:
        yield "Noisy timing: the machine was busy while costs were measured; read them as rough."
        return
    for arm, price in cost["arms"].items():
        if arm != "none" and price["infer_ratio"][1] > SLOW:
            yield f"Slow: {arm} takes {price['infer_ratio'][1]:.2f} times as long as none at inference."
