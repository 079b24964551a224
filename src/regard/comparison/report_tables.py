"""The tables of the report: rows of text, empty where something is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from regard.comparison.arms import twinned
from regard.comparison.results import Comparison
from regard.comparison.verdict import Verdict
from regard.comparison.wording import interval, points, typeset


def difference(comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    return {
        "arm": verdict.arm,
        "word": verdict.word,
        "direction": verdict.direction,
        "sentence": typeset(verdict.sentence),
        **accuracy(comparison, verdict.arm),
        "mean": typeset(points(verdict.mean)),
        "interval": typeset(interval(verdict)),
        "ahead": f"{verdict.wins} of {len(verdict.seeds)}" + (f", {verdict.ties} tied" if verdict.ties else ""),
        "p": _chance(verdict.p) if verdict.look or verdict.later else "",
    }


def accuracy(comparison: Comparison, arm: str) -> dict[str, str]:
    """Mean and standard deviation over seeds, and the mean among the first five, in percent; empty where unknown."""
    scores, fives = comparison.scores[arm].values(), comparison.top5[arm].values()
    return {
        "accuracy": f"{100 * fmean(scores):.2f}" if scores else "",
        "spread": f"{100 * stdev(scores):.2f}" if len(scores) > 1 else "",
        "top5": f"{100 * fmean(fives):.2f}" if fives else "",
    }


def _chance(p: float) -> str:
    """A p-value to three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def gates(comparison: Comparison) -> list[dict[str, str]]:
    """How each mechanism's gates started and opened, and what is lost without them; empty text where unknown."""
    rows = []
    for arm, told in comparison.gates.items():
        if twinned(arm):
            continue
        twins = comparison.against(comparison.twins.get(arm, ""))
        seen = {True: "yes", False: "no", None: ""}[told["opened"]]
        lost = {
            word: typeset(points(-told[word])) if told[word] is not None else "" for word in ("mean_gate", "other_gate")
        }
        rows.append(
            {
                "arm": arm,
                "word": comparison.uses_input.get(arm, "") if comparison.trained else "",
                "difference": typeset(points(twins[0].mean)) if twins else "",
                "interval": typeset(interval(twins[0])) if twins else "",
                "scale": f"{told['branch_scale']:.2f}" if told["branch_scale"] is not None else "",
                "opened": seen,
                **lost,
                "images": f"{told['images']:,}",
            }
        )
    return rows


def prices(comparison: Comparison) -> list[dict[str, Any]]:
    """The cost table: medians, each with its spread over rounds."""
    if not comparison.cost:
        return []
    rows = []
    for arm in comparison.arms:
        if price := comparison.cost["arms"].get(arm):
            scores = list(comparison.scores[arm].values())
            rows.append(
                {
                    "arm": arm,
                    "accuracy": f"{100 * fmean(scores):.2f}" if scores else "",
                    "parameters": f"{price['parameters']:,}",
                    "added": f"{price['added_parameters']:+,}" if price.get("added_parameters") else "",
                    "macs": f"{price['macs'] / 1e6:,.2f}",
                    "peak": f"{price['peak_bytes'] / 2**20:,.1f}" if price.get("peak_bytes") else "",
                    "peak_ratio": f"{price['peak_ratio']:.2f}×" if price.get("peak_ratio") else "",
                }
                | {key: _spread(price[key], " ms") for key in ("infer_ms", "train_ms")}
                | {
                    key: _spread(price[key], "×") if key in price and arm != "none" else ("", "")
                    for key in ("infer_ratio", "train_ratio")
                }
            )
    return rows


def _spread(triple: Sequence[float], unit: str) -> tuple[str, str]:
    """The median with its unit, and the quartiles around it."""
    low, middle, high = triple
    digits = 1 if middle >= 10 else 2
    return f"{middle:.{digits}f}{unit}", f"{low:.{digits}f} to {high:.{digits}f}"


def endpoints(comparison: Comparison) -> list[dict[str, str]]:
    """One row for each arm: what its logits say beside accuracy; empty where no logits were kept."""
    calibration, churn, second = comparison.calibration, comparison.churn, comparison.log_loss_against_none
    rows = []
    for arm in comparison.arms:
        losses, errors = list(comparison.log_loss[arm].values()), list(calibration[arm].values())
        found = second.get(arm)
        rows.append(
            {
                "arm": arm,
                "log_loss": f"{fmean(losses):.3f}" if losses else "",
                "spread": f"{stdev(losses):.3f}" if len(losses) > 1 else "",
                "difference": typeset(f"{found.mean:+.3f}") if found else "",
                "interval": typeset(f"[{found.low:+.3f}, {found.high:+.3f}]") if found and found.bounded else "",
                "word": found.word if found and comparison.trained else "",
                "calibration": f"{100 * fmean(errors):.2f}" if errors else "",
                "seeds": f"{100 * churn[arm]['seeds']:.2f}" if "seeds" in churn[arm] else "",
                "none": f"{100 * churn[arm]['none']:.2f}" if "none" in churn[arm] else "",
            }
        )
    return rows if any(row["log_loss"] for row in rows) else []


def classes(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """One row for each class: what every arm's accuracy on it is above that of none, in points."""
    by_class = comparison.by_class
    return [
        (name, [typeset(points(math.nan if (gain := gains[i]) is None else gain)) for gains in by_class.values()])
        for i, name in enumerate(comparison.question.classes)
        if by_class
    ]
