"""Measure what looking costs: recording over a plain forward pass, Grad-CAM against captum's; write docs/looking.md.

Usage: python benchmarks/looking.py [--quick] [--threads N]

Each network runs in turns with and without somebody who records, on the same pictures. Nothing else may run meanwhile;
two cores need a few minutes. `--quick` takes tiny pictures and few rounds, to see that everything runs.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import captum.attr
import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

import regard
from regard.base.files import write_text
from regard.costs.timing import ALLOCATOR, Spread, Timing, interleave, ratio
from regard.maps.layer_choice import find_layer

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "looking.md", ROOT / "benchmarks" / "results" / "looking.json"
BATCH, SIDE, ROUNDS = 8, 224, 15  # as many pictures as `look` takes at a time
GOAL = 1.05  # of a forward pass
MIDDLE = (0.5, 0.5)


def attached(*names: str) -> nn.Module:
    model = torchvision.models.resnet50()
    for name in names:
        regard.attach(model, name, example=torch.randn(1, 3, 64, 64), start="paper")
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50, no attention": lambda: attached(),
    "resnet50 + se": lambda: attached("se"),
    "resnet50 + cbam": lambda: attached("cbam"),
    "timm seresnet50": lambda: timm.create_model("seresnet50"),
    "timm resnet50, non-local": lambda: timm.create_model("resnet50", block_args={"attn_layer": "nl"}),
    "timm vit_small_patch16_224": lambda: timm.create_model("vit_small_patch16_224"),
    "timm swin_tiny_patch4_window7_224": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
}
EXPLAINED = ("resnet50, no attention", "resnet50 + se", "timm seresnet50")


def recording(model: nn.Module, x: Tensor, rounds: int) -> dict[str, Timing]:
    """A plain pass, one that is recorded with the view from the middle, and one with all maps."""

    def passed(**options: object) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode(), regard.record(model, **options) as maps:
                model(x)
            return maps

        return call

    def plain() -> object:
        with torch.inference_mode():
            return model(x)

    return interleave({"plain": plain, "view": passed(queries=[MIDDLE]), "all": passed()}, rounds=rounds)


def explaining(model: nn.Module, x: Tensor, rounds: int) -> dict[str, Timing]:
    layer = find_layer(model, x)
    theirs = captum.attr.LayerGradCam(model, model.get_submodule(layer))
    ours = regard.explain(model, x, 7, layer=layer, relu=False).value
    torch.testing.assert_close(ours, theirs.attribute(x, 7), rtol=1e-4, atol=1e-6)  # else no speed is claimed
    calls = {"captum": lambda: theirs.attribute(x, 7), "regard": lambda: regard.explain(model, x, 7, layer=layer)}
    return interleave(calls, rounds=rounds)


def words(spread: Spread) -> str:
    low, middle, high = spread
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    batch, rounds = (1, 3) if asked.quick else (BATCH, ROUNDS)
    x = torch.randn(batch, 3, SIDE, SIDE)
    found: dict[str, dict[str, Spread]] = {}
    added: dict[str, float] = {}  # milliseconds
    for name, build in NETWORKS.items():
        model = build().eval()
        times = recording(model, x, rounds)
        found[name] = {what: ratio(times[what], times["plain"]) for what in ("view", "all")}
        added[name] = 1000 * float(np.median(times["view"].seconds - times["plain"].seconds))
        if name in EXPLAINED:
            times = explaining(model, x, rounds)
            found[name]["explain"] = ratio(times["regard"], times["captum"])
        print(name, {what: words(one) for what, one in found[name].items()}, flush=True)
    if asked.quick:
        return
    about = {
        "batch": batch, "side": SIDE, "rounds": rounds, "threads": asked.threads, "processor": platform.machine(),
        "versions": {one: version(one) for one in ("torch", "torchvision", "timm", "captum")},
    }  # fmt: skip
    write_text(RESULTS, json.dumps({"about": about, "ratios": found, "added": added}, indent=1) + "\n")
    write_text(PAGE, page(about, found, added))


def page(about: dict, found: dict[str, dict[str, Spread]], added: dict[str, float]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# What looking costs",
        "",
        f"Made by `make looking`: {about['batch']} pictures of {about['side']} x {about['side']}, float32, "
        f"{about['threads']} threads of a CPU, {about['rounds']} rounds in turns, medians with quartiles; {versions}.",
        "",
        "## Recording",
        "",
        "Time of a recorded forward pass over that of a plain one, hooks set and taken away included. The goal is "
        f"{GOAL}. With a query only its row of the weights between places is computed; without one all of them, which "
        "the networks' own attention never builds. What a query adds is Python, the same for one picture and for many: "
        "of larger batches it is a smaller share.",
        "",
        "| network | `record(model, queries=[(0.5, 0.5)])` | adds, ms | `record(model)` |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {words(one['view'])} | {added[name]:.0f} | {words(one['all'])} |" for name, one in found.items()
    ]
    missed = [name for name, one in found.items() if one["view"][1] > GOAL]
    lines += [
        "",
        f"Missed with a query: {', '.join(missed)}." if missed else "The goal is reached by all with a query.",
    ]
    lines += [
        "",
        "## Grad-CAM",
        "",
        "`regard.explain` over captum's `LayerGradCam`, same layer and pictures; the maps are equal to rounding, which "
        "is asserted before anything is timed. Only what follows the layer is differentiated, so it costs little more "
        "than a forward pass.",
        "",
        "| network | over captum's |",
        "|---|---|",
    ]
    lines += [f"| {name} | {words(one['explain'])} |" for name, one in found.items() if "explain" in one]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
