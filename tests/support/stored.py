"""A comparison's folder as a finished comparison would leave it, with invented numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regard.base.files import slug
from regard.comparison import answers
from regard.comparison.endpoints import log_loss
from regard.comparison.results import Comparison

CLASSES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
GAINS = {"none": 0.0, "se": 0.002, "cbam[squeeze=max]": 0.021, "wider": 0.012}


def store(
    folder: Path,
    *,
    gains: Mapping[str, float] = GAINS,
    seeds: Sequence[int] = range(8),
    later: Sequence[int] = (),
    failed: Sequence[tuple[str, int]] = (),
    missing: Sequence[tuple[str, int]] = (),
    broken: Sequence[tuple[str, str]] = (),
    classes: Sequence[str] = CLASSES,
    masks: bool = True,
    cost: bool = True,
    logits: bool = False,
) -> Path:
    """Write question, runs, cost and maps; `gains` is arm -> its true gain over none, `later` are seeds added late."""
    random = np.random.default_rng(0)
    arms = list(gains)
    question = {
        "data": "fashion", "fingerprint": "5f1d0c2e9ab4", "model": "small_resnet", "size": 28, "epochs": 5,
        "batch": 128, "learning_rate": 0.1, "pretrained": False, "weights": None, "start": "paper", "margin": 0.01,
        "train_images": 9000, "val_images": 1000, "test_images": 2000, "classes": list(classes),
        "split_varies": "the validation part", "broken": [list(entry) for entry in broken],
    }  # fmt: skip
    environment = {
        "regard": "0.1.0", "torch": "2.15.0", "timm": "1.0.31", "python": "3.11.9", "system": "Linux",
        "processor": "x86_64", "threads": 1, "workers": 2, "device": "cpu",
    }  # fmt: skip
    command = f"regard compare {' '.join(arms[1:])} --data fashion"
    asked = [{"when": "2026-11-20T10:00:00Z", "arms": arms, "seeds": list(seeds), "command": command, "seen": False}]
    if later:
        asked.append(
            {"when": "2026-11-21T09:00:00Z", "arms": arms, "seeds": list(later), "command": command, "seen": True}
        )
    _write(folder / "question.json", {"question": question, "asked": asked, "environment": environment})
    for seed in [*seeds, *later]:
        shared = 0.872 + 0.004 * random.standard_normal()
        for arm in arms:
            top1 = round(shared + gains[arm] + 0.004 * random.standard_normal(), 4)
            if (arm, seed) not in missing:
                record = _record(arm, seed, top1, (arm, seed) in failed, environment)
                if logits and record["status"] == "done":
                    record |= _store_logits(folder, arm, seed, top1, len(classes))
                _write(folder / "runs" / slug(arm) / f"seed-{seed:04d}.json", record)
    if cost:
        prices = {arm: price(i) for i, arm in enumerate(arms)}
        _write(folder / "cost.json", {"device": "cpu", "batch": 64, "rounds": 15, "noisy": False, "arms": prices})
    for arm in arms:
        if arm not in ("none", "wider"):
            _store_maps(folder / "maps" / f"{slug(arm)}.npz", arm.partition("[")[0], masks, random)
    return folder


def fit(folder: Path, **other: Any) -> Comparison:
    """Write what a linear model would make of the pixels, and load the folder."""
    fitted = {
        "fingerprint": "5f1d0c2e9ab4", "seed": 0, "side": 28, "train_images": 9000, "test_images": 2000, "top1": 0.846,
        "log_loss": 0.45, "val_top1": 0.84, "val_log_loss": 0.46, "l2": 0.01, "chance": 0.1, "seconds": 3.0,
    }  # fmt: skip
    (folder / "linear.json").write_text(json.dumps(fitted | other))
    return Comparison.load(folder)


def curves(folder: Path, *values: float) -> None:
    """Give every run of none these validation accuracies."""
    for path in folder.glob("runs/none/*.json"):
        run = json.loads(path.read_text())
        run["curve"] = [run["curve"][0] | {"epoch": i, "val_top1": v} for i, v in enumerate(values, start=1)]
        path.write_text(json.dumps(run))


def _record(arm: str, seed: int, top1: float, failed: bool, environment: dict[str, Any]) -> dict[str, Any]:
    random = np.random.default_rng(seed + 1000 * len(arm))
    curve = [
        {
            "epoch": epoch,
            "train_loss": 1.4 / epoch,
            "val_top1": top1 - 0.16 / epoch**1.5 + 0.006 * random.standard_normal(),
            "seconds": 4.0 + random.random(),
        }
        for epoch in range(1, 6)
    ]
    record = {
        "arm": arm, "seed": seed, "status": "done", "reason": None, "top1": top1, "top5": 0.99, "test_images": 2000,
        "curve": curve, "seconds": 22.0, "parameters": 77850, "weights_sha256": "0" * 64, "resumed": 0,
        "environment": environment,
    }  # fmt: skip
    if failed:
        record |= {"status": "failed", "reason": "the loss became NaN in epoch 2", "curve": []}
        del record["top1"], record["top5"]
    return record


def _store_logits(folder: Path, arm: str, seed: int, top1: float, classes: int) -> dict[str, Any]:
    """Files of 1,000 and 2,000 images, of which so many are right, and what they add to the record."""
    random = np.random.default_rng([seed, len(arm)])
    parts = []
    for start, count in ((9000, 1000), (10_000, 2000)):
        labels = np.arange(count) % classes
        logits = random.standard_normal((count, classes))
        guesses = (labels + (np.arange(count) >= round(top1 * count))) % classes
        logits[np.arange(count), guesses] += 6
        parts.append(answers.Answers(np.arange(start, start + count), labels, logits))
    losses = [log_loss(part.logits, part.labels) for part in parts]
    digest = answers.write(answers.path_of(folder, arm, seed), *parts)
    return {"val_log_loss": losses[0], "log_loss": losses[1], "logits_sha256": digest}


def price(place: int) -> dict[str, Any]:
    """The first arm is none; each further one costs an eighth more."""
    ratio = 1 + place / 8
    return {
        "parameters": 77850 + 1200 * place, "added_parameters": 1200 * place, "macs": 5_100_000 + 9000 * place,
        "infer_ms": [21.0 * ratio, 21.6 * ratio, 22.9 * ratio], "train_ms": [70.0 * ratio, 71.5 * ratio, 75.0 * ratio],
        "infer_ratio": [ratio - 0.03, ratio, ratio + 0.05], "train_ratio": [ratio - 0.02, ratio, ratio + 0.04],
        "peak_bytes": int(31_000_000 * ratio), "peak_ratio": ratio,
    }  # fmt: skip


def _store_maps(path: Path, name: str, masks: bool, random: np.random.Generator) -> None:
    """A bright disc on noise; one map that finds the disc, one that is flat, one the same for every image, gates."""
    count, size = 8, 28
    rows, columns = np.mgrid[:size, :size]
    centres = random.integers(8, 20, (count, 2))
    discs = np.stack([(rows - y) ** 2 + (columns - x) ** 2 < 36 for y, x in centres])
    images = np.where(discs[..., None], 210, random.integers(0, 70, (count, size, size, 3))).astype(np.uint8)
    small = discs.reshape(count, 14, 2, 14, 2).mean((2, 4))
    deep = np.broadcast_to(np.linspace(0.2, 0.7, 49).reshape(7, 7), (count, 7, 7))
    maps = {
        "map0": np.full((count, 28, 28), 0.5) + 0.001 * random.standard_normal((count, 28, 28)),
        "map1": 0.1 + 0.8 * small,
        "map2": 1 / (1 + np.exp(-random.standard_normal((count, 128)))),
        "map3": deep,
    }
    kinds = {"map0": "spatial", "map1": "spatial", "map2": "channel", "map3": "spatial"}
    taps = [
        {"key": key, "name": f"layer{i}.1.bn2.regard.{name}.{'gate' if kind == 'channel' else 'mask'}", "kind": kind,
         "limits": [0, 1]}
        for i, (key, kind) in enumerate(kinds.items(), start=1)
    ]  # fmt: skip
    labels = np.arange(count)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        images=images,
        labels=labels,
        predictions=np.where(labels == 6, 0, labels),
        files=np.array([f"test/{i:05d}.png" for i in range(count)]),
        taps=json.dumps(taps),
        **({"masks": discs} if masks else {}),
        **{key: values.astype(np.float32) for key, values in maps.items()},
    )


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
