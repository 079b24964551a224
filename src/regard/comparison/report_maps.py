"""The maps of the report: what an arm looked at, from its maps/ARM.npz, which may come from anybody."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from regard.base.errors import UserError
from regard.base.files import opened, slug
from regard.base.schema import fault
from regard.comparison.kept_maps import EVIDENCE
from regard.comparison.records import Shown
from regard.comparison.wording import counted
from regard.insertion.layout import Layout
from regard.maps.figures import FIGURES
from regard.maps.meaning import judge
from regard.maps.recording import Map
from regard.pictures.captions import CAPTIONS
from regard.pictures.drawing import draw
from regard.pictures.marks import without_scale
from regard.pictures.picture import data_uri, resize

PICTURE = 112  # pixels of a picture in the sheet of maps
PICTURES = 8  # images in that sheet
TAPS = 9  # maps of one arm: two kinds at four resolutions, and Grad-CAM
UNPACKED = 2**30  # bytes of an arm's maps, at most
BARS = 64  # channels drawn of a channel gate


def gallery(folder: Path, arm: str, classes: int = 2**31) -> dict[str, Any] | None:
    """What one arm looked at: a row of test images, and a row for each of its last taps."""
    path = folder / "maps" / f"{slug(arm)}.npz"
    if not path.exists():
        return None
    opened(path).close()
    try:
        return _drawn(arm, *_maps(path, classes))
    except Exception as error:  # what numpy raises for a broken file differs with every kind of damage
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UserError(
            f"{path} is damaged ({reason}): delete it, and the report is written without the maps of {arm}"
        ) from error


def _drawn(arm: str, taps: list[dict[str, Any]], kept: dict[str, np.ndarray]) -> dict[str, Any] | None:
    if not taps:
        return None
    pictures = [resize(image, PICTURE) for image in kept["images"]]
    return {
        "arm": arm,
        "files": [str(file) for file in kept["files"]],
        "labels": [int(label) for label in kept["labels"]],
        "predictions": [int(label) for label in kept["predictions"]],
        "images": [data_uri(picture) for picture in pictures],
        "rows": [_map_row(tap, kept[tap["key"]], pictures, kept.get("masks")) for tap in _chosen(taps, kept)],
        "taps": len(taps),
    }


def _maps(path: Path, classes: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """What a file of maps describes and holds, of the first few pictures; it may come from anybody."""
    with zipfile.ZipFile(path) as file:  # before anything is unpacked
        size = sum(entry.file_size for entry in file.infolist())
        if size > UNPACKED:
            raise ValueError(f"unpacked it would be {size:,} bytes")
    with np.load(path, allow_pickle=False) as stored:
        taps = json.loads(str(stored["taps"]))
        if wrong := fault(taps, list[Shown]):
            raise ValueError(f"taps: {wrong}")
        names = ["images", "labels", "predictions", "files", *(["masks"] if "masks" in stored else [])]
        kept = {name: stored[name][:PICTURES] for name in [*names, *(tap["key"] for tap in taps)]}
    count, *sides = kept["images"].shape if kept["images"].ndim == 4 else (0, 0)
    wanted = {
        "images": kept["images"].dtype == np.uint8 and len(sides) == 3 and sides[2] == 3,
        **{
            name: kept[name].dtype.kind in "iu" and bool(((kept[name] >= 0) & (kept[name] < classes)).all())
            for name in ("labels", "predictions")
        },
        "files": kept["files"].dtype.kind == "U" and kept["files"].ndim == 1,
        "masks": "masks" not in kept or (kept["masks"].dtype == bool and kept["masks"].shape[1:] == tuple(sides[:2])),
    }
    for tap in taps:
        kind, array = tap["kind"], kept[tap["key"]]
        axes = (2,) if kind == "channel" else (3,) if kind in ("spatial", "token", EVIDENCE) else (2, 3, 4, 5, 6)
        known = kind in ("channel", "token", EVIDENCE) or kind in CAPTIONS
        wanted[tap["key"]] = known and array.dtype.kind == "f" and array.ndim in axes and wanted.get(tap["key"], True)
    for name, sound in wanted.items():
        if name in kept and (not sound or len(kept[name]) != count or kept[name].size == 0):
            raise ValueError(f"{name} is {kept[name].dtype} {kept[name].shape}, or holds what it cannot")
    return taps, kept


def _chosen(taps: Sequence[dict[str, Any]], kept: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The last tap of each kind and resolution, and of those the deepest few."""
    last = {(tap["kind"], kept[tap["key"]].shape[1:]): tap for tap in taps}
    return [tap for tap in taps if any(tap is other for other in last.values())][-TAPS:]


def _map_row(
    tap: dict[str, Any], maps: np.ndarray, pictures: Sequence[Image.Image], masks: np.ndarray | None
) -> dict[str, Any]:
    """One tap on every image: overlays of a spatial map or bars of a channel gate, and in words what they show."""
    site, _, rest = tap["name"].partition(".regard.")
    kind = tap["kind"]
    meaning = judge(maps)
    low, high = float(maps.min()), float(maps.max())
    # Bars start where the gate can; a flat map stretched over all colours would show rounding noise as attention.
    whole = kind == "channel" or FIGURES["spread"].warns(meaning.spread)
    limits = _reach(tap, maps) if whole else (low, high)
    caption = "Evidence for the predicted class" if kind == EVIDENCE else CAPTIONS[kind].rstrip(".")
    row = {"site": site, "tap": rest.rpartition(".")[2] or kind, "kind": kind, "caption": caption}
    row |= {"empty": "; ".join(meaning.words) or None, "low": f"{low:.3g}", "high": f"{high:.3g}", "object": None}
    if kind == "channel":
        every = math.ceil(maps.shape[1] / BARS)
        return row | {
            "size": counted(maps.shape[1], "channel") + (f", every {_ordinal(every)} drawn" if every > 1 else ""),
            "cells": [_bars(gate[::every], limits) for gate in maps],
            "ranges": [f"{gate.min():.2f} to {gate.max():.2f}" for gate in maps],
        }
    placed = kind in ("spatial", "token", EVIDENCE)
    if kind == "token":
        found = Map(
            tap["name"], kind, torch.from_numpy(maps).flatten(1)[:, None, None], Layout("tokens", 0, maps.shape[1:])
        )
    else:
        found = Map(tap["name"], "spatial" if placed else kind, torch.from_numpy(maps))
    drawn = [
        draw(found, picture, number=number, size=PICTURE, limits=limits if placed else None)
        for number, picture in enumerate(pictures)
    ]
    return row | {
        "size": " × ".join(map(str, maps.shape[1:])),
        "cells": [data_uri(without_scale(one)) for one in drawn],
        "object": None if masks is None or kind not in ("spatial", EVIDENCE) else _share_on(maps, masks),
    }


def _reach(tap: dict[str, Any], maps: np.ndarray) -> tuple[float, float]:
    """The values that a map can take, as far as that is known."""
    bounds = [bound for bound in tap["limits"] or () if type(bound) in (int, float) and abs(bound) < 1e30]
    reach = [float(maps.min()), float(maps.max()), *(bounds or (0.0, 2 * float(maps.mean())))]
    return min(reach), max(reach)


def _share_on(maps: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
    """How much of the maps lies on the objects, beside what a flat map would have there.

    The two count as the same, and the maps as uninformative, when they differ by less than a tenth of the latter.
    """
    size = masks.shape[2], masks.shape[1]
    spread = np.stack([np.asarray(Image.fromarray(map.clip(0)).resize(size, Image.Resampling.BOX)) for map in maps])
    total = spread.sum()
    share = float(spread[masks].sum() / total) if total > 0 else 0.0
    flat = float(masks.mean())
    return {
        "share": f"{100 * share:.0f}",
        "flat": f"{100 * flat:.0f}",
        "uninformative": abs(share - flat) < 0.1 * flat,
    }


def _bars(gate: np.ndarray, limits: tuple[float, float]) -> str:
    """The path of a bar for each channel, in a box of 100 x 100."""
    low, high = limits
    heights = 100 * np.clip((gate - low) / (high - low), 0.02, 1) if high > low else np.full(len(gate), 50.0)
    wide = 100 / len(gate)
    return "".join(f"M{i * wide:.1f} 100v-{height:.0f}h{0.8 * wide:.1f}V100z" for i, height in enumerate(heights))


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
