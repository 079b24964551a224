"""The attention maps of a trained arm on a few test images, kept for the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.comparison import data
from regard.files import slug, whole
from regard.recording import Map, record
from regard.tap import taps

COUNT = 8
DRAWN = ("channel", "spatial", "axis", "element")


def write(
    folder: Path,
    arm: str,
    model: nn.Module,
    images: data.Images,
    test: np.ndarray,
    prepare: Callable[[Tensor], Tensor],
    question: dict[str, Any],
) -> None:
    """Write maps/ARM.npz: `COUNT` test images, the same for every arm, and what each tap shows on them."""
    found = dict(taps(model))
    if not found:
        return
    chosen = _spread(images.labels[test], test)
    pixels = torch.from_numpy(images.pixels[chosen])
    device = next(model.parameters()).device
    x = prepare(data.centre(pixels.to(device), question["size"]))
    model.eval()
    with torch.inference_mode(), record(model, kinds=DRAWN, every=False) as maps:
        predictions = model(x).argmax(1)
    arrays: dict[str, np.ndarray] = {}
    described: list[dict[str, Any]] = []
    for name, kind, values in _together(maps):
        key = f"map{len(described)}"
        arrays[key] = values.float().cpu().numpy()
        limits = [found[name].low, found[name].high] if name in found else None  # the product of gates has none
        described.append({"key": key, "name": name, "kind": kind, "limits": limits})
    shown = data.centre(pixels, question["size"]).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    arrays["images"] = np.repeat(shown, 3, axis=3) if shown.shape[3] == 1 else shown
    arrays["labels"] = images.labels[chosen]
    arrays["predictions"] = predictions.cpu().numpy()
    arrays["files"] = np.array([images.files[i] for i in chosen])
    if images.masks is not None:
        masks = torch.from_numpy(images.masks[chosen]).unsqueeze(1)
        arrays["masks"] = data.centre(masks.byte(), question["size"]).squeeze(1).bool().numpy()
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


def _together(maps: list[Map]) -> list[tuple[str, str, Tensor]]:
    """Name, kind and values, (K, C) for channels and (K, h, w) for pixels. The gates along the axes of one mechanism
    multiply, so they are one map: the mean over channels of their product. What is neither is not drawn."""
    result: list[tuple[str, str, Tensor]] = []
    axes: dict[str, list[Tensor]] = {}
    for found in maps:
        if found.kind == "channel":
            result.append((found.name, "channel", found.value.flatten(1)))
        elif found.kind in ("spatial", "element"):
            result.append((found.name, "spatial", found.value.mean(1)))
        elif found.kind == "axis":
            axes.setdefault(found.name.rpartition(".")[0], []).append(found.value)
    for name, gates in axes.items():
        product = gates[0]
        for gate in gates[1:]:
            product = product * gate
        result.append((name, "spatial", product.mean(1)))
    return result
