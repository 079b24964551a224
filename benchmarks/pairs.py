"""Measure attention between pixels with and without its weights in memory; write benchmarks/results/pairs.json.

Usage: python benchmarks/pairs.py [--quick] [--threads N] [--out FILE]

While somebody watches its tap, a mechanism builds the weights and keeps them: N x N of them for N pixels, in
criss_cross those of row and column, in local those of the windows. Unwatched, it is to need less memory and less time.
Nothing else may run meanwhile; one core needs a few minutes. `--quick` takes one tiny map, to see that everything runs.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regard
from regard.base.files import write_text
from regard.costs.memory import peak_memory
from regard.costs.timing import ALLOCATOR, allocator_hint, interleave, noisy, ratio
from regard.layers.tap import taps
from regard.registry.spelling import parse

RESULTS = Path(__file__).parent / "results" / "pairs.json"
ARMS = (
    "non_local[pairwise=gaussian]", "non_local[pairwise=embedded_gaussian]", "non_local[pairwise=dot_product]",
    "non_local[pairwise=concatenation]", "danet_position", "qkv", "qkv[heads=4]", "criss_cross", "local",
    "local[heads=4]",
)  # fmt: skip
CHANNELS, SIDES, QUICK = 64, (32, 64, 96), (16,)
MODES = ("infer", "train")


def build(arm: str, *, watched: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A mechanism that has left its start, and with or without somebody who watches its taps."""
    torch.manual_seed(0)
    name, options = parse(arm)
    module = regard.create(name, CHANNELS, dtype=dtype, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    for _, tap in taps(module) if watched else ():
        tap.register_forward_hook(lambda *_: None)
    return module


def image(side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One map."""
    return torch.randn(1, CHANNELS, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def kept(module: nn.Module, x: Tensor) -> float:
    """Bytes that wait for the backward pass, over those of the map; the map counts, weights do not."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x.detach().requires_grad_())
    del y  # until here what is kept had an address of its own
    return sum(sizes.values()) / x.nbytes


def calls(module: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """Inference, and a training step."""
    learning = [x.detach().clone().requires_grad_(), *module.parameters()]
    dy = torch.randn_like(x)

    def train() -> None:
        torch.autograd.grad(module(learning[0]), learning, dy)

    return {"infer": torch.no_grad()(lambda: module(x)), "train": train}


def measure(arm: str, side: int, rounds: int) -> dict[str, Any]:
    """One row of the results: times and memory without weights, and with them."""
    x = image(side)
    modules = {"without": build(arm).train(), "with": build(arm, watched=True).train()}
    work = {(form, mode): call for form, module in modules.items() for mode, call in calls(module, x).items()}
    peaks = {key: peak_memory(call, "cpu") / x.nbytes for key, call in work.items()}
    times = interleave({" ".join(key): call for key, call in work.items()}, rounds=rounds, warmup=1)
    row: dict[str, Any] = {"mechanism": arm, "side": side}
    for mode in MODES:
        without, built = times[f"without {mode}"], times[f"with {mode}"]
        row[f"{mode}_ratio"] = ratio(without, built)
        row[f"{mode}_seconds"] = {"without": without.spread, "with": built.spread}
        row[f"{mode}_peak_maps"] = {form: peaks[form, mode] for form in modules}
    row["kept_maps"] = {form: kept(module, x) for form, module in modules.items()}
    row["busy"] = any(noisy(timing.spread) is not None for timing in times.values())
    return row


def rows(sides: tuple[int, ...], rounds: int) -> Iterator[dict[str, Any]]:
    """All rows, told as they come."""
    print(f"{'mechanism':40} side   time without / with weights    maps kept      maps at most, in training")
    for arm, side in product(ARMS, sides):
        row = measure(arm, side, rounds)
        (_, infer, _), (_, train, _) = row["infer_ratio"], row["train_ratio"]
        memory, peak = row["kept_maps"], row["train_peak_maps"]
        print(
            f"{arm:40} {side:4}   infer {infer:5.2f}  train {train:5.2f}       "
            f"{memory['without']:5.1f} / {memory['with']:6.1f} {peak['without']:8.1f} / {peak['with']:6.1f}"
            + "  busy"
            * row["busy"],
            flush=True,
        )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if allocator_hint() is not None:  # the C library reads the settings once, before Python starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.set_num_threads(asked.threads)
    found = {
        "machine": {"processor": platform.machine(), "threads": asked.threads, "torch": torch.__version__},
        "units": "spreads are lower quartile, median, upper quartile; a ratio is the time without weights over that "
        "with them; a map is the bytes of the input",
        "channels": CHANNELS,
        "rows": list(rows(QUICK, 3) if asked.quick else rows(SIDES, 7)),
    }
    print(write_text(asked.out, json.dumps(found, indent=1) + "\n"))


if __name__ == "__main__":
    main()
