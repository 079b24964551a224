"""`regard bench`: mechanisms and ops against their lower bound and other libraries."""

from __future__ import annotations

import sys
from pathlib import Path

from regard.cli import values
from regard.cli.options import Device, Mechanism
from regard.cli.output import check_writable, print_json, say_loading, writing


def bench(
    *names: Mechanism,
    shapes: str = "8x256x56x56,16x512x14x14,32x64x112x112",
    dtype: str = "float32",
    layout: str = "contiguous",
    impl: str = "auto",
    pass_: str = "inference,training",
    device: Device = "cpu",
    threads: str | None = None,
    peers: bool = False,
    compiled: bool = False,
    rounds: int = 15,
    budget: float | None = None,
    scaling: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Time mechanisms and ops against their lower bound, and against other libraries.

    What is shown is time relative to the lower bound, measured in the same rounds:
    for inference one sum and one copy of the map; for training also a second sum
    of the map, and one sum and one copy of its gradient. What disagrees with the
    reference implementation is not timed. Options that take several values take
    them joined by commas.

    Parameters
    ----------
    names
        Mechanisms, with options where wanted, or cases of ops such as gate:channel; eleven pure gates (se to
        triplet) if none is named.
    shapes
        Batch, channels and sides of the maps. An op's case has a shape and a layout of its own.
    dtype
        Of maps and weights: float32, bfloat16, float16.
    layout
        How the maps lie in memory: contiguous, channels_last.
    impl
        Implementations: auto, reference, cpu, triton; `regard ops` shows what there is.
    pass_
        inference, training (forward and backward pass).
    threads
        How many; by default torch's own number.
    peers
        Also the same mechanisms of timm, torchvision and fightingcv-attention, where they are installed.
    compiled
        Also everything under torch.compile, which takes seconds for each.
    rounds
        Rounds of timing.
    budget
        Seconds for all timings together; 5 rounds are run in any case.
    scaling
        Also how time grows with batch, channels and side, around the first shape.
    out
        Folder for bench.json and the picture bench.svg.
    json
        Print JSON instead of tables.

    Examples
    --------
    regard bench
    regard bench se cbam --peers --compiled --out runs/bench
    regard bench "cbam[squeeze=max]" --shapes 8x256x56x56 --impl auto,reference
    regard bench gate:channel --dtype float32,bfloat16 --pass training
    regard bench se --scaling --threads 1,2 --json
    """
    say_loading()
    from regard.costs import bench as benchmark
    from regard.costs.goals import GATES

    if out is not None:
        check_writable(out / "bench.svg")
    speed = benchmark.bench(
        names or GATES,
        shapes=shapes.split(","),
        dtypes=dtype.split(","),
        layouts=layout.split(","),
        impls=impl.split(","),
        passes=pass_.split(","),
        device=device,
        threads=values.numbers("--threads", threads) if threads else None,
        peers=peers,
        compiled=compiled,
        rounds=rounds,
        budget=budget,
        scaling=scaling,
        tell=lambda sentence: print(sentence, file=sys.stderr, flush=True),
    )
    if json:
        print_json(speed.to_json())
    else:
        print(speed)
    if out is not None:
        with writing(out):
            speed.save(out)
    return int(bool(speed.wrong))
