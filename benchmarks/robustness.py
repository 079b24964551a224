"""docs/robustness.md: does the answer of `make demo` survive what a doubter would try? Written by `make robustness`.

Usage: python benchmarks/robustness.py [--only CASE ...] [--page]

Every case is a comparison of its own, kept in runs/robustness: interrupted, the same command goes on. All of them take
about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from PIL import Image

import nearsighted
import regard
from regard.base.files import write_text
from regard.comparison import data, grid
from regard.comparison.plan import fixed, planned
from regard.comparison.results import Comparison
from regard.comparison.statistics import judge
from regard.comparison.wording import interval, points

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "robustness.json", ROOT / "docs" / "robustness.md"
RUNS = ROOT / "runs" / "robustness"
SEEDS = 8
SHRUNK = Path(__file__).with_name("shrunk.py")  # the demo's network, every branch times a constant
PLANTED = "a task that asks for attention"
NEAR = Path(nearsighted.__file__)  # its network
NULL_RUNS, QUESTIONS = 64, 200  # of `none`, and how many times two groups of them are compared
MARGIN = 0.01

BASE: dict[str, Any] = {"arms": ["se", "cbam"], "data": "fashion", "seeds": SEEDS}
CASES: dict[str, dict[str, Any]] = {
    "as the demo asks it": {},
    "the start of the papers": {"start": "paper"},
    "the start from the identity": {"start": "identity"},
    "twice the learning rate": {"learning_rate": 8e-3},
    "twice the epochs": {"epochs": 6},
    "branches times 0.25": {
        "model": f"{SHRUNK}:build", "optimiser": "muon", "batch": 96,  # as the demo's network
    },
    "only more parameters": {"arms": ["se"], "control": "parameters"},
    "labels shuffled": {"data": RUNS / "shuffled", "size": 28, "epochs": 3},
    PLANTED: {
        "arms": ["se", "eca"], "data": RUNS / "planted", "size": nearsighted.SIDE, "model": f"{NEAR}:build",
        "epochs": 16, "control": "constant",
    },
}  # fmt: skip


def fill(folder: Path, pixels: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Write images as a user has them: one folder for each class. Nothing is written where something is."""
    if folder.exists():
        return
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / f"{label % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05d}.png")


def shuffled(images: data.Images) -> None:
    """3,000 images under labels that were drawn anew."""
    random = np.random.default_rng(0)
    fill(RUNS / "shuffled", images.pixels[:3000, 0], random.permutation(images.labels[:3000]), len(images.classes))


def planted() -> None:
    """Images of a task in which the average over the image decides what a place means."""
    fill(RUNS / "planted", *nearsighted.draw(4000, seed=0), nearsighted.CLASSES)


def ask(case: str) -> dict[str, Any]:
    """What one comparison says."""
    asked = BASE | CASES[case]
    folder = RUNS / case.replace(" ", "-")
    comparison = regard.compare(asked.pop("arms"), keep="none", out=folder, **asked)
    return {
        "headline": comparison.findings[0] if comparison.untrained_because else " ".join(comparison.findings),
        "trained": comparison.trained,
        "chance": comparison.chance,
        "epochs": comparison.question.epochs,
        "scores": {arm: list(runs.values()) for arm, runs in comparison.scores.items()},
        "verdicts": [
            {"arm": v.arm, "against": v.against, "word": v.word, "text": f"{points(v.mean)} {interval(v)}"}
            for v in comparison.verdicts
        ],
        "uses_input": comparison.uses_input,
        "branch_scale": {arm: told["branch_scale"] for arm, told in comparison.gates.items()},
    }


def null() -> list[float]:
    """The accuracies of many runs of `none`."""
    demo = RUNS / "as-the-demo-asks-it"
    folder = RUNS / "null"
    question = Comparison.load(demo).question
    workers, threads = grid.workers_for(question.device, NULL_RUNS)
    runs = [("none", seed) for seed in range(NULL_RUNS)]
    left = [run for run in runs if not grid.record_path(folder, *run).is_file()]
    grid.run(
        folder, question, left, workers=workers, threads=threads, keep=lambda arm, seed: False,
        watch=lambda kind, run, details: print(kind, *run, flush=True) if kind in ("done", "failed") else None,
        images=demo / "data",
    )  # fmt: skip
    return [json.loads(grid.record_path(folder, *run).read_text())["top1"] for run in runs]


def deal(accuracies: list[float], late: bool) -> dict[str, int]:
    """None against none, many times: two groups drawn from the same runs. `late`: whoever asks looks after every seed
    and adds one, from 4 on, until something is called better or worse, or 20 are there."""
    random = np.random.default_rng(2)
    found = {"better": 0, "worse": 0, "no difference": 0, "undecided": 0}
    for _ in range(QUESTIONS):
        drawn = random.permutation(accuracies)[:40]
        words = []
        for count in range(4, 21) if late else (20,):
            scores = {arm: dict(enumerate(group[:count])) for arm, group in (("se", drawn[:20]), ("none", drawn[20:]))}
            plan = fixed(range(4), "none") if late else planned((8, 12, 16, 20), 1, "none")
            (verdict,) = judge(scores, plan, margin=MARGIN)
            words.append(next(word for word in found if verdict.word.startswith(word)))
        found[next((word for word in words if word in ("better", "worse")), words[-1])] += 1
    return found


# ---- the page


def render(found: dict[str, Any]) -> str:
    sections = "\n".join(section(case, found["cases"][case]) for case in CASES if case in found["cases"])
    nothing = found["null"]
    top1 = nothing["top1"]
    ways = {"planned": "by the plan: 8, 12, 16, 20 seeds", "peeked": "a look after every seed from 4"}
    questions = "\n".join(f"| {way} | {' | '.join(map(str, nothing[key].values()))} |" for key, way in ways.items())
    return f"""# Does the answer hold?

What a doubter would try on `make demo`, and a task that was made so that attention must help, each a comparison of its
own with {SEEDS} seeds, written by `make robustness`.
Differences are in points of accuracy, with intervals that hold together with 95 %; the margin is 1.

| case | arm | accuracy % | against | difference | verdict |
|---|---|---|---|---|---|
{sections}

In "branches times 0.25" every branch of the network is multiplied by that constant, with and without attention. In
"only more parameters" the plain network is widened until it has as many as SE adds. In "labels shuffled" 3,000 images
have labels drawn anew, and nothing can be learnt. "{PLANTED.capitalize()}" is the opposite: a network that
sees {nearsighted.SIGHT} x {nearsighted.SIGHT} pixels at a time, and images in which the brightness of the frame decides
what the texture inside means (`benchmarks/nearsighted.py`). Without attention, and with constant gates, about half of
the answers are right, which is all that can be known without the frame.

## None against none

{len(top1)} networks without attention, {100 * fmean(top1):.2f} % right on average (sd {100 * stdev(top1):.2f}), two
groups drawn from them {QUESTIONS} times, as if one had attention:

| looks | better | worse | no difference worth having | undecided |
|---|---|---|---|---|
{questions}

The draws share runs, so these are no {QUESTIONS} separate experiments; [the simulation](calibration.md) is sharper.
"""


def section(case: str, found: dict[str, Any]) -> str:
    judged: dict[str, list[dict[str, Any]]] = {arm: [] for arm in found["scores"]}
    for verdict in found["verdicts"]:
        judged[verdict["arm"]].append(verdict)
    lines = []
    for arm, scores in found["scores"].items():
        for verdict in judged[arm] or [{"against": "", "text": "", "word": ""}]:
            word = verdict["word"] if found["trained"] else "not trained long enough to tell" * bool(verdict["word"])
            if scale := found["branch_scale"].get(arm):
                word += f"; multiplies its branch by {scale:.2f} at the start" * (scale < 0.9 and bool(word))
            cells = ["" if lines else case, f"`{arm}`", f"{100 * fmean(scores):.2f}", verdict["against"]]
            lines.append(f"| {' | '.join([*cells, verdict['text'], word])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*CASES, "null"], default=[*CASES, "null"])
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    asked = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    if not asked.page:
        images = data.prepare("fashion", RUNS / "images")
        shuffled(images)
        planted()
        for case in asked.only:
            if case == "null":
                top1 = null()
                found["null"] = {"top1": top1, "planned": deal(top1, late=False), "peeked": deal(top1, late=True)}
            else:
                found["cases"][case] = ask(case)
            write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    write_text(PAGE, render(found))


if __name__ == "__main__":
    main()
