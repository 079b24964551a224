"""What a network says about images, and about the same with its gates replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.comparison import gates
from regard.comparison.answers import Answers
from regard.comparison.data import Split
from regard.comparison.endpoints import right
from regard.comparison.loading import Loader


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, as in training."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of a batch, float32."""
    with torch.inference_mode(), autocast(x.device):
        return model(x).float()


def answer(model: nn.Module, loader: Loader, index: np.ndarray) -> Answers:
    """What the model says about the images, in float32."""
    model.eval()
    logits = [predict(model, x) for x in loader.evaluation(index)]
    # read once, at the end: a GPU need not be waited for
    return Answers(index, loader.images.labels[index], torch.cat(logits).cpu().numpy())


def replace_gates(model: nn.Module, loader: Loader, split: Split) -> dict[str, Any]:
    """How far the gates opened on validation images, and the accuracy with each gate replaced by its mean over
    training images, or by that of another image. The images are in a random order, the same for every run."""

    def some(index: np.ndarray, most: int) -> np.ndarray:
        return np.random.default_rng(0).permutation(index)[:most]

    def accuracy(index: np.ndarray) -> float:
        said = answer(model, loader, index)
        return float(right(said.logits, said.labels).mean())

    openings = gates.Openings(model)
    val, test = some(split.val, gates.ASKED), some(split.test, gates.ASKED)
    means = gates.averages(model, lambda: accuracy(some(split.train, gates.MEANS)))
    with openings.watched():
        fields: dict[str, Any] = {"gate_images": len(test), "val_top1_own_gate": accuracy(val)}
    fields["top1_own_gate"] = accuracy(test)
    for word, instead in (("mean", means), ("other", None)):
        with gates.replaced(model, instead):
            fields |= {f"top1_{word}_gate": accuracy(test), f"val_top1_{word}_gate": accuracy(val)}
    return fields | {"gates": openings.told()}
