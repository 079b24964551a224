"""A comparison as rows: for the terminal, for result.json, for a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from regard.comparison.wording import interval, points

if TYPE_CHECKING:
    from regard.comparison.results import Comparison

# of `run_rows`
COLUMNS = (
    "arm", "seed", "status", "top1", "top5", "log_loss", "val_top1", "val_log_loss", "calibration", "epochs", "seconds",
    "parameters", "layout", "resumed", "killed", "reason",
)  # fmt: skip


def arm_rows(comparison: Comparison) -> list[dict[str, str]]:
    """One row for each arm: column -> text. Accuracies in percent, differences in percentage points."""
    judged = {verdict.arm: verdict for verdict in comparison.against("none")}
    rows = []
    for arm in comparison.arms:
        scores, fives = list(comparison.scores[arm].values()), list(comparison.top5[arm].values())
        losses = list(comparison.log_loss[arm].values())
        verdict = judged.get(arm)
        spread = f" sd {100 * stdev(scores):.2f}" if len(scores) > 1 else ""
        rows.append(
            {
                "arm": arm,
                "runs": f"{len(scores)}/{sum(wanted == arm for wanted, _ in comparison.wanted)}",
                "accuracy %": f"{100 * fmean(scores):.2f}{spread}" if scores else "",
                "top-5 %": f"{100 * fmean(fives):.2f}" if fives else "",
                "log-loss": f"{fmean(losses):.3f}" if losses else "",
                "difference": points(verdict.mean) if verdict else "",
                "interval": interval(verdict) if verdict else "",
                "verdict": verdict.word if verdict and comparison.trained else "",
            }
        )
    return rows


def price_rows(comparison: Comparison) -> list[dict[str, str]]:
    """What each arm costs, one row each: column -> text; times and memory as multiples of those of `none`."""
    priced = comparison.cost["arms"] if comparison.cost else {}
    return [
        {
            "arm": arm,
            "parameters": f"{price['parameters']:,}",
            "multiply-adds": f"{price['macs']:,}",
            "inference": f"{price['infer_ratio'][1]:.2f}x",
            "training step": f"{price['train_ratio'][1]:.2f}x",
            "memory": f"{price['peak_ratio']:.2f}x",
        }
        for arm, price in priced.items()
    ]


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each run that finished or failed, seed by seed: its record without what is nested."""
    order = {run: place for place, run in enumerate(comparison.wanted)}
    calibration = comparison.calibration
    rows = []
    for run in sorted(comparison.records.values(), key=lambda run: order.get((run["arm"], run["seed"]), len(order))):
        curve = run.get("curve") or [{}]
        computed = {
            "epochs": len(run.get("curve", [])),
            "val_top1": curve[-1].get("val_top1"),
            "calibration": calibration.get(run["arm"], {}).get(run["seed"]),
        }
        rows.append({column: computed.get(column, run.get(column)) for column in COLUMNS})
    return rows


def as_csv(comparison: Comparison) -> str:
    """`run_rows` as comma-separated values under their names, every number in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(run_rows(comparison))
    return text.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The whole answer in plain types; what is not a finite number is null."""
    arms, seeds = comparison.added_after_looking
    answer = {
        "question": comparison.question.to_json(),
        "asked": comparison.asked,
        "headline": comparison.findings[0] if comparison.untrained_because else " ".join(comparison.findings),
        "trained": comparison.trained,
        "untrained_because": comparison.untrained_because,
        "chance": comparison.chance,
        "linear": comparison.fitted,
        "environment": comparison.environment,
        "arms": comparison.arms,
        "seeds": comparison.seeds,
        "scores": comparison.scores,
        "top5": comparison.top5,
        "plan": asdict(comparison.plan),
        "log_loss": comparison.log_loss,
        "calibration": comparison.calibration,
        "log_loss_against_none": {arm: one._asdict() for arm, one in comparison.log_loss_against_none.items()},
        "log_loss_against_constant": {arm: one._asdict() for arm, one in comparison.log_loss_against_constant.items()},
        "churn": comparison.churn,
        "by_class": comparison.by_class,
        "verdicts": [asdict(verdict) for verdict in comparison.verdicts],
        "twins": comparison.twins,
        "uses_input": comparison.uses_input,
        "gates": comparison.gates,
        "cost": comparison.cost,
        "failed": [{"arm": run["arm"], "seed": run["seed"], "reason": run["reason"]} for run in comparison.failed],
        "missing": [{"arm": arm, "seed": seed} for arm, seed in comparison.missing],
        "added_after_looking": {"arms": arms, "seeds": seeds},
        "notes": comparison.notes(),
    }
    plain: dict[str, Any] = _plain(answer)
    return plain


def _plain(value: Any) -> Any:
    """The value in JSON's own types, with null for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
