"""One run: an arm, a seed, a fixed number of epochs, and the test images once at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from regard.base.files import slug, whole
from regard.comparison import answers, checkpoint, data, draws, gates, hosts, preprocessing
from regard.comparison.answers import Answers
from regard.comparison.arms import twinned
from regard.comparison.data import Split
from regard.comparison.endpoints import log_loss, right
from regard.comparison.environment import environment
from regard.comparison.evaluation import answer, autocast, replace_gates
from regard.comparison.loading import Loader, normaliser
from regard.comparison.network import build, fingerprint, learning_parts, on_device
from regard.comparison.optimising import Optimiser
from regard.comparison.question import Question

TELL = 0.5  # seconds between two messages
Tell = Callable[[dict[str, Any]], None]


def train(
    question: Question,
    arm: str,
    seed: int,
    folder: Path,
    tell: Tell,
    keep: bool = False,
    layout: torch.memory_format | None = None,
    images_at: Path | None = None,
) -> dict[str, Any]:
    """Train one arm with one seed, from its checkpoint if there is one, and return its record.

    For one seed every arm has the same trunk weights, the same order of images and the same augmentations. Every
    random number is a function of (seed, epoch), so that a run resumed after any epoch ends with the same weights.

    Args:
        question: what is asked; the same for all runs of a comparison.
        arm: ``"none"``, a control, a mechanism with its options, or the constant twin of one.
        seed: of the trunk, the order and the augmentations; the mechanism's own generator is seeded apart from it.
        folder: of the comparison.
        tell: is given what happens, about once a second and at the end of every epoch.
        keep: also write the trained weights.
        layout: of weights and maps in memory; by default the faster of those that are safe.
        images_at: the folder of the images, where that is not ``data`` in the folder.

    Returns:
        The record; of a trial one that knows nothing of the test images.

    Raises:
        FloatingPointError: the loss is no number any more.
    """
    images = data.load(images_at or folder / "data")
    split = images.split(seed)
    mean, std = question.normalisation or preprocessing.normalisation(images, split.train)
    example = Loader(images, question, normaliser(mean, std, "cpu")).first(split.train, seed)
    host = build(question, arm, seed, example)
    scales = gates.branch_scales(host, example)
    layout = layout or hosts.memory_format(host)
    model = on_device(host, question.device, layout)
    loader = Loader(images, question, normaliser(mean, std, question.device, layout))
    optimiser = _optimiser(model, question, arm)

    path = checkpoint.path_of(folder, arm, seed)
    state = checkpoint.resume(path, model, optimiser, question)
    curve, resumed = state["curve"], state["resumed"]
    steps = question.epochs * math.ceil(len(split.train) / question.batch)
    progress = _Progress(tell, steps, sum(epoch["seconds"] for epoch in curve))
    for epoch in range(len(curve), question.epochs):
        begun = time.perf_counter()
        loss = _epoch(model, loader, optimiser, split.train, seed, epoch, progress)
        val = answer(model, loader, split.val)
        accuracy, seconds = float(right(val.logits, val.labels).mean()), time.perf_counter() - begun
        curve.append({"epoch": epoch + 1, "train_loss": loss, "val_top1": accuracy, "seconds": seconds})
        progress.epoch((epoch + 1) / question.epochs, accuracy)
        if epoch + 1 < question.epochs:
            checkpoint.save(path, model, optimiser, curve, resumed)

    record = {
        "arm": arm,
        "seed": seed,
        "status": "done",
        "reason": None,
        "val_log_loss": _number(log_loss(val.logits, val.labels), "validation"),
        "curve": curve,
        "seconds": sum(epoch["seconds"] for epoch in curve),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layout": str(layout).removeprefix("torch."),
        "resumed": resumed,
        "environment": environment(),
    }
    if question.trial:
        return record
    record |= _test(model, loader, split, arm, val, answers.path_of(folder, arm, seed))
    record |= {"branch_scale": scales} if scales else {}
    if keep:
        _keep(model, loader, split, arm, seed, folder)
    return record


def _optimiser(model: nn.Module, question: Question, arm: str) -> Optimiser:
    factor = (question.rates or {}).get(arm, 1.0)
    matrix_rate = question.matrix_rate and factor * question.matrix_rate
    return Optimiser(model, factor * question.learning_rate, matrix_rate, question.weight_decay)


class _Progress:
    """Tells how far a run is.

    Args:
        tell: is told.
        steps: of all epochs.
        spent: seconds before this process.
    """

    def __init__(self, tell: Tell, steps: int, spent: float) -> None:
        self.tell, self.steps = tell, steps
        self.started, self.told = time.perf_counter() - spent, 0.0

    def step(self, done: int) -> None:
        """After so many steps."""
        if (now := time.perf_counter()) - self.told > TELL:
            self.told = now
            self.tell({"done": done / self.steps, "seconds": now - self.started})

    def epoch(self, share: float, accuracy: float) -> None:
        """After an epoch, with its validation accuracy."""
        self.tell({"done": share, "val_top1": accuracy, "seconds": time.perf_counter() - self.started})


def _epoch(
    model: nn.Module,
    loader: Loader,
    optimiser: Optimiser,
    index: np.ndarray,
    seed: int,
    epoch: int,
    progress: _Progress,
) -> float:
    """Train one epoch on the indexed images, and give the mean loss of its steps."""
    question = loader.question
    device, steps = torch.device(question.device), math.ceil(len(index) / question.batch)
    torch.manual_seed(draws.stream(seed, epoch, "model").initial_seed())  # dropout and its like
    model.eval()
    for part in learning_parts(model, question):
        part.train()
    losses = torch.zeros((), device=device)
    for step, (x, labels) in enumerate(loader.training(index, seed, epoch), start=epoch * steps):
        with autocast(device):
            loss = F.cross_entropy(model(x), labels, label_smoothing=question.smoothing)
        loss.backward()
        optimiser.step(step / progress.steps)
        losses += loss.detach()
        progress.step(step + 1)
    if not math.isfinite(losses.item()):
        raise FloatingPointError(f"the loss became {losses.item() / steps} in epoch {epoch + 1}")
    return losses.item() / steps


def _test(model: nn.Module, loader: Loader, split: Split, arm: str, val: Answers, path: Path) -> dict[str, Any]:
    """What the record has of the test images, whose logits are written beside it."""
    test = answer(model, loader, split.test)
    asks = not twinned(arm) and gates.has_gates(model)
    gated = replace_gates(model, loader, split) if asks else {}
    return {
        "top1": float(right(test.logits, test.labels).mean()),
        "top5": float(right(test.logits, test.labels, among=5).mean()) if len(loader.images.classes) >= 10 else None,
        "log_loss": _number(log_loss(test.logits, test.labels), "test"),
        "logits_sha256": answers.write(path, val, test),
        "test_images": len(split.test),
        "weights_sha256": fingerprint(model),
        **gated,
    }


def _keep(model: nn.Module, loader: Loader, split: Split, arm: str, seed: int, folder: Path) -> None:
    """Write the trained weights, and maps of what the arm looks at."""
    with whole(folder / "weights" / slug(arm) / f"seed-{seed:04d}.safetensors") as path:
        safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    if not twinned(arm):  # what looks at nothing has nothing to show
        from regard.comparison import kept_maps  # only the first seed draws, and only it pays for the import

        kept_maps.write(folder, arm, model, loader, split.test)


def _number(loss: float, of: str) -> float:
    if not loss <= 1e15:
        raise FloatingPointError(f"what the trained network says about the {of} images is no number")
    return loss
