"""`regard advise`: what each mechanism would cost in a network."""

from __future__ import annotations

from pathlib import Path

from regard.cli import values
from regard.cli.options import Attachable, Device, Layout, Model, Sites, Size
from regard.cli.output import check_writable, print_json, say_loading, writing
from regard.cli.wording import example_from


def advise(
    model: Model,
    /,
    *arms: Attachable,
    size: Size | None = None,
    batch: int | None = None,
    predict: int | None = None,
    at: Sites = "auto",
    layout: Layout | None = None,
    repeated: bool = False,
    max_slowdown: float | None = None,
    max_memory: float | None = None,
    rounds: int = 9,
    budget: float | None = 120.0,
    device: Device = "cpu",
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Say what each mechanism would cost in a network: parameters, multiply-adds, time, memory, and what to watch.

    The network has random weights; its times do not depend on them.

    Parameters
    ----------
    arms
        Variants: mechanisms, with options where wanted: se, "cbam[squeeze=max]"; all mechanisms if none is named.
    batch
        Images in a batch; by default 8.
    predict
        Also predict the memory of a training step with so many images, which need not fit.
    repeated
        Also at sites that one forward pass calls several times.
    max_slowdown
        Only variants with which a training step takes at most so many times as long, e.g. 1.05.
    max_memory
        Only variants that need at most so many times the memory, e.g. 1.1.
    rounds
        Rounds of timing for each variant.
    budget
        Seconds for all timings together; 5 rounds are run in any case.
    picture
        Write a picture of the network with the sites to this file, as SVG.
    json
        Print JSON instead of a table.

    Examples
    --------
    regard advise resnet50
    regard advise mobilenetv2_100 se coordinate "cbam[reduction=8]" \\
        --max-slowdown 1.05 --max-memory 1.1
    regard advise torchvision/r3d_18 se --size 112 --batch 2 --predict 32
    regard advise mynet.py:build --budget 60 --picture mynet.svg
    """
    say_loading()
    import regard
    from regard.base.files import write_text
    from regard.cli.progress import Ticker
    from regard.networks.models import open_model

    if picture is not None:
        check_writable(picture)
    network, example = open_model(model, size=size, batch=batch, device=device)
    with Ticker() as ticker, example_from(model):
        advice = regard.advise(
            network,
            example,
            mechanisms=arms or None,
            at=values.sites(at),
            layout=layout,
            repeated=repeated,
            batch=predict,
            max_slowdown=max_slowdown,
            max_memory=max_memory,
            rounds=rounds,
            budget=budget,
            name=model,
            progress=ticker.tick,
        )
    if json:
        print_json(advice.to_json())
    else:
        print(advice)
    if picture is not None:
        with writing(picture):
            write_text(picture, advice.picture())
