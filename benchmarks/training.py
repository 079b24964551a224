"""Measure the training loop of `regard compare`; write benchmarks/results/training.json.

Usage: python benchmarks/training.py [--quick] [--rounds N] [--device cuda] [--out FILE]

Three questions. How many images a second are trained on and validated, against a loop of timm's own pieces on the same
images, and against the network alone, on a batch that lies ready? Which memory layout is faster in the networks that
arms are compared in? Two workers with a thread each, or one with two? What is compared runs in turns. Nothing else may
run meanwhile; two cores need about a quarter of an hour.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from regard.base.files import write_text
from regard.comparison import data, evaluation, grid, hosts, loading, network, preprocessing, training
from regard.comparison.compare import complete
from regard.comparison.environment import environment
from regard.comparison.question import Draft, Question
from regard.costs.timing import ALLOCATOR, Timing, allocator_hint, interleave, noisy, ratio

RESULTS = Path(__file__).parent / "results" / "training.json"
PHOTO = 256  # side in pixels of the files that stand for a user's photos
# (data, photos, model, size, batch): a user's folder takes small_resnet at 64 px unless asked otherwise
LOOPS = (
    ("fashion", 0, "small_resnet", 28, 128),
    ("photos", 2000, "small_resnet", 64, 128),
    ("photos", 100, "resnet18", 128, 32),
)
QUICK_LOOPS = (("photos", 200, "small_resnet", 32, 32),)
# (model, channels, size, batch)
HOSTS = (
    ("small_resnet", 1, 28, 128), ("small_resnet", 3, 64, 64), ("resnet18", 3, 64, 32), ("resnet18", 3, 160, 8),
    ("resnet50", 3, 96, 8), ("efficientnet_b0", 3, 96, 8), ("mobilenetv3_small_100", 3, 96, 16),
    ("densenet121", 3, 96, 4), ("regnetx_004", 3, 96, 8), ("convnext_atto", 3, 96, 8),
    ("vit_tiny_patch16_224", 3, 224, 2),
)  # fmt: skip
SECONDS = 60.0  # for one row of them, and five rounds at least
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


# ---- the loop


def photos(folder: Path, count: int) -> Path:
    """JPEG files in ten class folders, soft noise in another colour for every class."""
    draws = np.random.default_rng(0)
    for i in range(count):
        soft = Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).resize((PHOTO, PHOTO))
        tint = Image.new("RGB", soft.size, tuple(int(25 * (i % 10) * k) % 256 for k in (1, 3, 7)))
        path = folder / f"class{i % 10}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(soft, tint, 0.4).save(path, quality=90)
    return folder


def question(images: data.Images, model: str, size: int, batch: int, device: str) -> Question:
    """What `compare` tells its workers, for one epoch."""
    words: dict[str, Any] = {"optimiser": "adamw", "learning_rate": 1e-3, "augmentation": "crops", "start": "paper"}
    draft = Draft.of(model=model, size=size, batch=batch, device=device, **words)
    return complete(draft, images, 0, epochs=1)


class Listed(Dataset[tuple[Any, int]]):
    """Some of the images, opened from their files where they have any; timm puts its transform in."""

    def __init__(self, images: data.Images, index: np.ndarray, root: Path | None) -> None:
        self.images, self.index, self.root = images, index, root
        self.transform: Callable[[Image.Image], Any] = lambda image: image

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        row = self.index[item]
        if self.root is None:
            image = Image.fromarray(self.images.pixels[row, 0])
        else:
            image = Image.open(self.root / self.images.files[row]).convert("RGB")
        return self.transform(image), int(self.images.labels[row])


def timm_epoch(asked: Question, images: data.Images, root: Path | None) -> float:
    """Seconds an image of one epoch and its validation, by timm's loader, optimiser, schedule, loss and meters.

    With timm's own crops and mirroring, without its jitter of colours; in this process, without loading workers. Its
    loader leaves out a last batch that is not full.
    """
    device = torch.device(asked.device)
    split = images.split(0)
    mean, std = preprocessing.normalisation(images, split.train)
    shared: dict[str, Any] = {
        "input_size": (asked.channels, asked.size, asked.size), "mean": mean, "std": std, "device": device,
        "num_workers": 0, "persistent_workers": False,
    }  # fmt: skip
    train = create_loader(
        Listed(images, split.train, root), batch_size=asked.batch, is_training=True, color_jitter=0.0, **shared
    )
    check = create_loader(Listed(images, split.val, root), batch_size=2 * asked.batch, **shared)
    model = network.on_device(network.build(asked, "none", 0), asked.device)
    optimiser = create_optimizer_v2(model, "adamw", lr=asked.learning_rate, weight_decay=asked.weight_decay)
    schedule = CosineLRScheduler(optimiser, t_initial=len(train), warmup_t=len(train) // 7, t_in_epochs=False)
    loss_of = LabelSmoothingCrossEntropy(asked.smoothing)
    losses, first, five = AverageMeter(), AverageMeter(), AverageMeter()

    begun = time.perf_counter()
    model.train()
    for step, (x, labels) in enumerate(train):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model(x.contiguous(memory_format=torch.channels_last)), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.update(loss.item(), len(x))
        schedule.step_update(step + 1)
    model.eval()
    with torch.inference_mode():
        for x, labels in check:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            for meter, value in zip((first, five), accuracy(logits, labels, topk=(1, 5)), strict=True):
                meter.update(value.item(), len(x))
    return (time.perf_counter() - begun) / (len(train) * asked.batch + len(split.val))


def bare_epoch(asked: Question, images: data.Images) -> float:
    """Seconds an image that the network alone takes: forward, loss and backward on batches that lie ready."""
    split = images.split(0)
    model = network.on_device(network.build(asked, "none", 0), asked.device)
    shape = (asked.channels, asked.size, asked.size)
    ready = torch.randn(2 * asked.batch, *shape, device=asked.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(asked.batch + 1, dtype=torch.long, device=asked.device)
    enabled = ready.device.type == "cuda"
    begun = time.perf_counter()
    model.train()
    for batch in loading.batches(split.train, asked.batch):
        with torch.autocast(ready.device.type, torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(model(ready[: len(batch)]), labels[: len(batch)])
        model.zero_grad()
        loss.backward()
    model.eval()
    for batch in loading.batches(split.val, 2 * asked.batch):
        evaluation.predict(model, ready[: len(batch)])
    if enabled:
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / (len(split.train) + len(split.val))


def loop(
    source: str, count: int, model: str, size: int, batch: int, device: str, rounds: int, folder: Path
) -> dict[str, Any]:
    """One row of the first table, and the images of the third."""
    root = photos(folder / "photos", count) if count else None
    begun = time.perf_counter()
    images = data.prepare(root or source, folder / "data", size=size)
    decoding = time.perf_counter() - begun
    asked = question(images, model, size, batch, device)
    split = images.split(0)
    number = len(split.train) + len(split.val)
    epochs: dict[str, Callable[[], float]] = {
        "regard": lambda: training.train(asked, "none", 0, folder, lambda told: None)["seconds"] / number,
        "timm": lambda: timm_epoch(asked, images, root),
        "network": lambda: bare_epoch(asked, images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for done in range(rounds + 1):
        for name in random.Random(done).sample(list(epochs), len(epochs)):
            taken = epochs[name]()
            if done:  # the first round warms up
                seconds[name].append(taken)
    times = {name: Timing(np.array(values)) for name, values in seconds.items()}
    return {
        "data": source, "model": model, "size": size, "batch": batch, "train_images": len(split.train),
        "validation_images": len(split.val), "decoding_seconds_once": decoding,
        "images_per_second": {name: 1 / timing.median for name, timing in times.items()},
        "seconds_per_image": {name: timing.spread for name, timing in times.items()},
        "timm_over_regard": ratio(times["timm"], times["regard"]),
        "regard_over_network": ratio(times["regard"], times["network"]),
        "timm_over_network": ratio(times["timm"], times["network"]),
        "busy": any(noisy(timing.spread) is not None for timing in times.values()),
    }  # fmt: skip


# ---- the layout


def layouts(model: str, channels: int, size: int, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """One row of the second table: training and inference, channels last over contiguous."""
    calls: dict[str, Callable[[], object]] = {}
    for layout, order in LAYOUTS.items():
        x = torch.randn(batch, channels, size, size, device=device).contiguous(memory_format=order)
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        learning, learnt = (
            hosts.build(model, 10, channels, seed=0).to(device).to(memory_format=order) for _ in range(2)
        )
        learnt.eval()

        def train(host: nn.Module = learning, x: torch.Tensor = x, labels: torch.Tensor = labels) -> None:
            host.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
                loss = F.cross_entropy(host(x), labels)
            loss.backward()

        calls[f"{layout} train"] = train
        calls[f"{layout} infer"] = partial(evaluation.predict, learnt, x)
    times = interleave(calls, rounds=rounds, warmup=2, budget=SECONDS, device=device)
    row: dict[str, Any] = {"model": model, "channels": channels, "size": size, "batch": batch}
    row |= {"threads": torch.get_num_threads()}
    for mode in ("train", "infer"):
        row[f"{mode}_ratio"] = ratio(times[f"channels_last {mode}"], times[f"contiguous {mode}"])
        row[f"{mode}_seconds"] = {layout: times[f"{layout} {mode}"].spread for layout in LAYOUTS}
    row["busy"] = any(noisy(timing.spread) is not None for timing in times.values())
    return row


# ---- workers and threads


def crews(source: str, model: str, size: int, batch: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One row of the third table: two runs by two workers with a thread each, and by one worker with two."""
    asked = question(data.load(folder / "data"), model, size, batch, "cpu")
    seconds: dict[str, list[float]] = {"2 workers, 1 thread": [], "1 worker, 2 threads": []}
    for done in range(rounds):
        for workers, name in random.Random(done).sample(list(zip((2, 1), seconds, strict=True)), 2):
            records: list[dict[str, Any]] = []
            grid.run(
                folder, asked, [("none", 0), ("none", 1)], workers=workers, threads=3 - workers,
                keep=lambda arm, seed: False,
                watch=lambda kind, run, details: records.append(details) if kind == "done" else None,  # noqa: B023
            )  # fmt: skip
            # as long as two runs take side by side, or one after the other
            seconds[name].append(sum(record["seconds"] for record in records) / workers)
    side_by_side, in_turn = (Timing(np.array(values)) for values in seconds.values())
    return {
        "data": source, "model": model, "size": size, "batch": batch, "ratio": ratio(side_by_side, in_turn),
        "seconds": {name: Timing(np.array(values)).spread for name, values in seconds.items()},
        "busy": noisy(in_turn.spread) is not None or noisy(side_by_side.spread) is not None,
        "chosen": dict(zip(("workers", "threads"), grid.workers_for("cpu", 2), strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if allocator_hint() is not None:  # the C library reads the settings once, before Python starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    rounds = 2 if asked.quick else asked.rounds
    on_cpu = asked.device == "cpu"
    found: dict[str, Any] = {
        "machine": {
            "processor": environment()["processor"], "cores": len(os.sched_getaffinity(0)),
            "machine": platform.machine(), "device": asked.device, "torch": str(torch.__version__),
            "timm": timm.__version__, "load_before": os.getloadavg()[0],
        },
        "units": "seconds and ratios are lower quartile, median, upper quartile over rounds in turns, ratios paired by "
        "round; images per second count training and validation images of one epoch, one thread; network: forward, "
        "loss and backward on batches that lie ready; layout ratios are channels_last over contiguous, crew ratios two "
        "workers with one thread over one with two; below 1 the former is faster",
        "timm": "timm.data.create_loader (its crops and mirroring, no colour jitter, its prefetcher, no loading "
        "workers), timm.optim.create_optimizer_v2, timm.scheduler.CosineLRScheduler, "
        "timm.loss.LabelSmoothingCrossEntropy, timm.utils.AverageMeter and accuracy",
        "loops": [], "layouts": [], "crews": [],
    }  # fmt: skip

    def keep() -> None:
        """What is measured is on disk, whatever happens next."""
        found["machine"]["load_after"] = os.getloadavg()[0]
        write_text(asked.out, json.dumps(found, indent=1) + "\n")

    for source, count, model, size, batch in QUICK_LOOPS if asked.quick else LOOPS:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as name:
            row = loop(source, count, model, size, batch, asked.device, rounds, Path(name))
            found["loops"].append(row)
            speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in row["images_per_second"].items())
            print(f"{model} on {source} at {size}: images a second: {speeds}" + ", busy" * row["busy"], flush=True)
            keep()
            if on_cpu:
                row = crews(source, model, size, batch, rounds // 2 + 1, Path(name))
                found["crews"].append(row)
                print(f"    two workers over two threads: {row['ratio'][1]:.2f}" + ", busy" * row["busy"], flush=True)
                keep()
    for model, channels, size, batch in HOSTS[:1] if asked.quick else HOSTS:
        for threads in (1, 2) if on_cpu else (1,):
            torch.set_num_threads(threads)
            row = layouts(model, channels, size, batch, asked.device, rounds)
            found["layouts"].append(row)
            print(
                f"{model} at {size}, {threads} threads: channels last over contiguous, "
                f"training {row['train_ratio'][1]:.2f}, inference {row['infer_ratio'][1]:.2f}" + ", busy" * row["busy"],
                flush=True,
            )
            keep()
    print(asked.out)


if __name__ == "__main__":
    main()
