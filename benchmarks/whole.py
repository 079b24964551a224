"""Measure what attention costs inside a ResNet-50, ours and timm's; write benchmarks/results/whole.json.

Usage: python benchmarks/whole.py [--quick] [--batch N] [--side N] [--rounds N] [--out FILE] [MECHANISM ...]

The mechanism stands at the end of every residual branch. Step times are over those of the same network without
attention, round by round. The lower bound's share is what the maps at the sites would cost at the speed of memory
(see docs/speed.md), measured in the same rounds. Nothing else may run meanwhile; it takes about eight minutes.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import regard
from regard.base.files import write_text
from regard.costs.contestants import lower_bound
from regard.costs.timing import ALLOCATOR, Spread, allocator_hint, interleave, noisy, ratio

RESULTS = Path(__file__).parent / "results" / "whole.json"
MECHANISMS = ("se", "eca", "cbam", "coordinate")
THEIRS = {"se": "se", "eca": "eca", "cbam": "cbam", "gc": "gc"}  # timm's names; what is not here it does not attach
GOALS = {"se": 0.02, "eca": 0.02, "cbam": 0.05, "coordinate": 0.05}  # over the lower bound's share
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def network(mechanism: str, plain: nn.Module, x: Tensor, *, theirs: bool, model: str) -> nn.Module:
    """The network with a mechanism at the end of every residual branch; what is not the mechanism's is the plain one's.

    Networks that are each drawn for themselves differ by several per cent in time, mechanism or not, by where their
    weights happen to lie.
    """
    options = {"block_args": {"attn_layer": THEIRS[mechanism]}} if theirs else {}
    net: nn.Module = timm.create_model(model, **options)
    for name, module in plain.named_modules():
        mine = net.get_submodule(name)
        mine._parameters.update(module._parameters)
        mine._buffers.update(module._buffers)
    if not theirs:
        regard.attach(net, mechanism, at="branches", example=x[:1], start="paper")
    return net


def forward(net: nn.Module, x: Tensor) -> Callable[[], None]:
    net.eval()

    def call() -> None:
        with torch.inference_mode():
            net(x)

    return call


def step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    net.train()

    def call() -> None:
        net(x).square().mean().backward()
        net.zero_grad(set_to_none=True)

    return call


def shares(x: Tensor, mode: str, model: str) -> Callable[[], None]:
    """The lower bound of every site, one after the other."""
    plain: nn.Module = timm.create_model(model)
    sites = regard.sites(plain, at="branches", example=x[:1])
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    maps = [torch.randn(len(x), *site.shape[1:]).contiguous(memory_format=layout) for site in sites]
    bounds = [lower_bound(a, training=mode == "training") for a in maps]

    def call() -> None:
        for bound in bounds:
            bound()

    return call


def measure(mechanisms: list[str], batch: int, side: int, rounds: int, model: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for layout, memory_format in LAYOUTS.items():
        x = torch.randn(batch, 3, side, side).contiguous(memory_format=memory_format)
        for mode, run in (("inference", forward), ("training", step)):
            torch.manual_seed(0)
            plain: nn.Module = timm.create_model(model)
            plain = plain.to(memory_format=memory_format)
            arms = {"none": plain}
            for name in mechanisms:
                arms[name] = network(name, plain, x, theirs=False, model=model)
                if name in THEIRS:
                    arms[f"timm's {name}"] = network(name, plain, x, theirs=True, model=model)
            calls = {name: run(net.to(memory_format=memory_format), x) for name, net in arms.items()}
            calls["lower bound"] = shares(x, mode, model)
            timings = interleave(calls, rounds=rounds, warmup=2)
            share = ratio(timings["lower bound"], timings["none"])
            for name in list(arms)[1:]:
                over, timms = ratio(timings[name], timings["none"]), timings.get(f"timm's {name}")
                theirs = ratio(timings[name], timms) if timms else None
                points = GOALS.get(name)
                goal = None if points is None else 1 + share[1] + points
                records.append(record(layout, mode, name, over, theirs, share, goal, noisy(timings["none"].spread)))
    return records


def record(
    layout: str,
    mode: str,
    name: str,
    over: Spread,
    theirs: Spread | None,
    share: Spread,
    goal: float | None,
    restless: str | None,
) -> dict[str, Any]:
    print(
        f"{layout:13} {mode:9} {name:18} {over[1]:.3f} [{over[0]:.3f}, {over[2]:.3f}]  lower bound {share[1]:.3f}"
        + (f"  over timm's {theirs[1]:.3f} [{theirs[0]:.3f}, {theirs[2]:.3f}]" if theirs else "")
        + (f"  goal {goal:.3f} {'met' if over[1] <= goal else 'missed'}" if goal else "")
        + ("  (noisy)" if restless else ""),
        flush=True,
    )
    numbers: dict[str, Any] = {"over": [round(value, 4) for value in over], "floor": round(share[1], 4)}
    numbers |= {"theirs": theirs and [round(value, 4) for value in theirs], "goal": goal and round(goal, 4)}
    return {"layout": layout, "pass": mode, "name": name, **numbers, "noisy": restless is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mechanisms", nargs="*", default=list(MECHANISMS))
    parser.add_argument("--quick", action="store_true", help="a tiny network, to see that everything runs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if allocator_hint():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    if args.quick:
        args.batch, args.side, args.rounds = 2, 64, 2
    model = "resnet10t" if args.quick else "resnet50"
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    machine |= {"timm": timm.__version__, "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    records = measure(args.mechanisms, args.batch, args.side, args.rounds, model)
    settings = {"model": model, "batch": args.batch, "side": args.side, "rounds": args.rounds}
    write_text(args.out, json.dumps({"machine": machine, "settings": settings, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
