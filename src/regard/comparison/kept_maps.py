"""What a trained arm looks at in a few test images, and the evidence for its predictions, kept for the report."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.base.errors import UserError
from regard.base.files import slug, whole
from regard.comparison import preprocessing
from regard.comparison.loading import Loader
from regard.layers.tap import taps
from regard.maps.recording import Map, record
from regard.maps.saliency import evidence
from regard.maps.views import views
from regard.pictures.drawing import can_draw

COUNT = 8
CENTRE = (0.5, 0.5)  # whose view is kept of weights between positions
EVIDENCE = "grad-cam"


def write(
    folder: Path,
    arm: str,
    model: nn.Module,
    loader: Loader,
    test: np.ndarray,
) -> None:
    """Write maps/ARM.npz: `COUNT` test images, the same for every arm, what its attention and that of its host shows on
    them, and its Grad-CAM."""
    images, size = loader.images, loader.question.size
    chosen = _spread(images.labels[test], test)
    pixels = torch.from_numpy(images.pixels[chosen])
    device = next(model.parameters()).device
    x = loader.normalise(preprocessing.centre(pixels.to(device), size))
    model.eval()
    with torch.inference_mode(), record(model, queries=[CENTRE]) as maps:
        predictions = model(x).argmax(1)
    seen = [found for found in views(maps, CENTRE) if can_draw(found) and len(found.value) == len(x)]
    with suppress(UserError):  # no layer gives a map, and then there is none to explain
        why = evidence(model, x, None)
        seen.append(Map(why.name, EVIDENCE, why.value))
    if not seen:
        return
    taps_of = dict(taps(model))
    arrays: dict[str, np.ndarray] = {}
    described: list[dict[str, Any]] = []
    for found in seen:
        key = f"map{len(described)}"
        kind, values = _small(found)
        arrays[key] = values.float().cpu().numpy()
        tap = taps_of.get(found.name)  # the product of gates has none, nor has what others wrote
        limits = list(tap.limits) if tap else None
        described.append({"key": key, "name": found.name, "kind": kind, "limits": limits})
    shown = preprocessing.centre(pixels, size).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    arrays["images"] = np.repeat(shown, 3, axis=3) if shown.shape[3] == 1 else shown
    arrays["labels"] = images.labels[chosen]
    arrays["predictions"] = predictions.cpu().numpy()
    arrays["files"] = np.array([images.files[i] for i in chosen])
    if images.masks is not None:
        masks = torch.from_numpy(images.masks[chosen]).unsqueeze(1)
        arrays["masks"] = preprocessing.centre(masks.byte(), size).squeeze(1).bool().numpy()
    arrays["taps"] = np.array(json.dumps(described))
    with whole(folder / "maps" / f"{slug(arm)}.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _spread(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The first image of each class in turn, until there are enough."""
    rounds: list[tuple[int, int, int]] = []
    seen: dict[int, int] = {}
    for label, image in zip(labels.tolist(), index.tolist(), strict=True):
        rounds.append((seen.get(label, 0), label, image))
        seen[label] = seen.get(label, 0) + 1
    return np.array([image for _, _, image in sorted(rounds)[:COUNT]])


def _small(found: Map) -> tuple[str, Tensor]:
    """What is kept of a map: (K, C) of channels, (K, h, w) of pixels (the mean of channels or heads), else all."""
    value = found.value
    if found.kind == "channel":
        return "channel", value.flatten(1)
    if found.kind in ("spatial", "element", "axis", EVIDENCE):
        return EVIDENCE if found.kind == EVIDENCE else "spatial", value.mean(1)
    if found.kind == "token" and found.layout:
        return "token", value.mean(1)[:, 0, found.layout.prefix :].unflatten(1, found.layout.grid)
    return found.kind, value
