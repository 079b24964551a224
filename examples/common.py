"""What the examples share: images, runs over seeds that survive an interruption, a verdict, and a page in the docs.

An example is a script with a function ``train(arm, seed) -> score`` at its top level, and a ``main`` that calls
`measure`, draws one figure and calls `write_page`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
from PIL import Image
from torch import Tensor, nn

from regard.base.files import slug, write_text
from regard.comparison import data, statistics
from regard.costs import counts

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "examples"
DOCS = ROOT / "docs" / "examples"


def arguments(description: str, seeds: int) -> argparse.Namespace:
    """``--seeds N`` and ``--quick`` (one seed, hardly any training: does the script work at all?)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=seeds, help="trainings of every arm (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="only try the script: one seed, hardly any training")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # as in the workers, so that what is drawn is what was measured
    if asked.quick:
        asked.seeds = 1
        os.environ["QUICK"] = "1"  # the workers see it too
    return asked


def quick() -> bool:
    return "QUICK" in os.environ


def images(name: str) -> data.Images:
    """ "fashion" or "cluttered", decoded once: 10,000 training and 2,000 test images, the first, as on all pages."""
    every = data.prepare(name, RUNS / "data" / name)
    first = slice(12_000)
    masks = None if every.masks is None else every.masks[first]
    pixels, labels, parts, files = (getattr(every, what)[first] for what in ("pixels", "labels", "parts", "files"))
    return replace(every, pixels=pixels, labels=labels, parts=parts, files=files, masks=masks)


def measure(
    name: str, train: Callable[[str, int], float], arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Train every arm with every seed, two at a time, one thread each; what is done already is not done again.

    Returns:
        Scores, ``scores[arm][seed]``, as fractions.
    """
    if quick():  # to start workers would take longer than the work
        return {arm: {seed: train(arm, seed) for seed in seeds} for arm in arms}
    path = RUNS / f"{name}.json"
    done: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    todo = [(arm, seed) for seed in seeds for arm in arms if f"{arm}/{seed}" not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(train, arm, seed): (arm, seed) for arm, seed in todo}
        for future in as_completed(futures):
            arm, seed = futures[future]
            done[f"{arm}/{seed}"] = future.result()
            write_text(path, json.dumps(done, indent=1))
            print(f"{len(done)} of {len(arms) * len(seeds)}: {arm}, seed {seed}: {future.result():.4f}", flush=True)
    return {arm: {seed: done[f"{arm}/{seed}"] for seed in seeds} for arm in arms}


def table(scores: Mapping[str, Mapping[int, float]], *, against: str, what: str) -> str:
    """Mean, spread and verdict of every arm, as Markdown; scores are fractions, shown in percent."""
    judged = {verdict.arm: verdict for verdict in statistics.judge(scores, against=against)}
    lines = [f"| arm | runs | {what} % | difference | interval | verdict |", "|---|---|---|---|---|---|"]
    for arm, by_seed in scores.items():
        values = [100 * score for score in by_seed.values()]
        spread = f" sd {stdev(values):.2f}" if len(values) > 1 else ""
        cells = [arm, str(len(values)), f"{mean(values):.2f}{spread}", "", "", ""]
        if arm in judged:
            v = judged[arm]
            cells[3:] = [f"{100 * v.mean:+.2f}", f"[{100 * v.low:+.2f}, {100 * v.high:+.2f}]", v.word]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kept(name: str, arm: str) -> Path:
    """Where the weights of an arm's first seed lie, for the figure."""
    return RUNS / f"{name}{'-quick' * quick()}-{slug(arm)}.pt"


def costs(models: Mapping[str, nn.Module], example: Callable[[str], Tensor], digits: int = 1) -> str:
    """What one example (1, ...) of every arm costs, as Markdown."""
    lines = ["| arm | parameters | million multiply-adds |", "|---|---|---|"]
    for arm, model in models.items():
        millions = counts.multiply_adds(model, example(arm)) / 1e6
        lines.append(f"| {arm} | {counts.parameters(model):,} | {millions:.{digits}f} |")
    return "\n".join(lines)


def write_page(name: str, title: str, text: str, figure: Image.Image, alt: str) -> None:
    """``docs/examples/NAME.md`` with its figure beside it; a quick try writes below ``runs/`` instead."""
    folder = RUNS / "quick" if quick() else DOCS
    folder.mkdir(parents=True, exist_ok=True)
    figure.save(folder / f"{name}.webp", quality=80, method=6)
    page = f"# {title}\n\n{text.strip()}\n\n![{alt}]({name}.webp)\n\nMade by `python examples/{name}.py`.\n"
    print(write_text(folder / f"{name}.md", page))
