"""Mechanisms and ops against the least that memory allows and against other libraries."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import product
from typing import Any

import torch

import regard
from regard.base import process
from regard.base.errors import UserError, near
from regard.base.machine import processor
from regard.costs import support
from regard.costs.agreement import TOLERANCE
from regard.costs.contest import contest
from regard.costs.contestants import AXES, Contestant, Setting
from regard.costs.goals import GATES
from regard.costs.growth import growth
from regard.costs.other_libraries import OTHER_LIBRARIES, missing
from regard.costs.records import OWN, SCHEMA
from regard.costs.speed import Speed
from regard.costs.speed_table import said
from regard.costs.timing import ALLOCATOR
from regard.ops.dispatch import NAMES
from regard.registry.building import check_options
from regard.registry.spelling import parse

SHAPES = ((8, 256, 56, 56), (16, 512, 14, 14), (32, 64, 112, 112))
PASSES = ("inference", "training")
LAYOUTS = ("contiguous", "channels_last")

Tell = Callable[[str], object]


def bench(
    names: Sequence[str] = GATES,
    *,
    shapes: Sequence[str | Sequence[int]] = SHAPES,
    dtypes: Sequence[str] = ("float32",),
    layouts: Sequence[str] = ("contiguous",),
    impls: Sequence[str] = ("auto",),
    passes: Sequence[str] = PASSES,
    device: str = "cpu",
    threads: Sequence[int] | None = None,
    peers: bool = False,
    compiled: bool = False,
    rounds: int = 15,
    budget: float | None = None,
    scaling: bool = False,
    tell: Tell = lambda sentence: None,
) -> Speed:
    """Time mechanisms or ops, in a process of their own that has the settings of `ALLOCATOR`.

    Of one mechanism at one shape, dtype and layout all implementations, and the modules of other libraries, are timed
    in the same interleaved rounds as the lower bound, see `contest`.

    Args:
        names: mechanisms with options where wanted, or an op's case such as ``"squeeze:channel"``, which has a shape
            and a layout of its own.
        shapes: (B, C, *spatial), also written ``"8x256x56x56"``.
        dtypes: of ``"float32"``, ``"bfloat16"``, ``"float16"``.
        layouts: of ``"contiguous"``, ``"channels_last"``.
        impls: see `use_impl`.
        passes: of ``"inference"``, ``"training"`` (forward and backward pass, no optimiser).
        device: ``"cpu"`` or ``"cuda"``.
        threads: how many, each by itself; by default torch's own number.
        peers: modules of other libraries too, where they are installed; see `regard.costs.other_libraries`.
        compiled: everything under `torch.compile` too.
        rounds: timings of each.
        budget: seconds for all timings together; 5 rounds are done even so.
        scaling: also how time grows with batch, channels and side, in powers of two around the first shape.
        tell: is given a sentence after each measurement.

    Raises:
        UserError: for an unknown name or setting, or when the process died.
    """
    process.refuse_nesting()
    _check_settings(dtypes, layouts, impls, passes, device, rounds, threads)
    for name in names:
        _check(name)
    asked = {
        "names": list(names), "shapes": list(map(read_shape, shapes)), "dtypes": list(dtypes), "layouts": list(layouts),
        "impls": list(impls), "passes": list(passes), "device": device, "peers": peers, "compiled": compiled,
        "threads": list(threads or [torch.get_num_threads()]), "rounds": rounds, "budget": budget, "scaling": scaling,
    }  # fmt: skip
    if peers:
        for library, command in missing().items():
            tell(f"{library} is not installed and stays out: {command}")
    return Speed(measure_elsewhere(asked, tell))


def _check_settings(
    dtypes: Sequence[str],
    layouts: Sequence[str],
    impls: Sequence[str],
    passes: Sequence[str],
    device: str,
    rounds: int,
    threads: Sequence[int] | None,
) -> None:
    for what, given, known in (
        ("dtype", dtypes, tuple(TOLERANCE)),
        ("layout", layouts, LAYOUTS),
        ("implementation", impls, NAMES),
        ("pass", passes, PASSES),
    ):
        for word in given:
            if word not in known:
                hint = near(word, known) or f": choose from {', '.join(known)}"
                raise UserError(f"there is no {what} {word!r}{hint}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here: measure on the CPU")
    if min(rounds, *(threads or [1])) < 1:
        raise UserError(f"rounds and threads are positive, got {rounds} and {list(threads or ())}")


def measure_elsewhere(asked: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """`measure`, in a fresh process."""
    # a pool of compilers would keep the cores busy while others are timed
    environment = ALLOCATOR | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    last = "before the first measurement"

    def follow(sentence: str) -> None:
        nonlocal last
        tell(sentence)
        last = f"after {sentence.partition(':')[0]}"

    try:
        return process.call(_measure_quietly, asked, environment=environment, caller="bench()", tell=follow)
    except process.Died as death:
        hint = "; the system may be out of memory: take smaller shapes" if death.status == -9 else ""
        raise UserError(f"the process that measures ended {last}, with status {death.status}{hint}") from None


def _measure_quietly(asked: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """`measure`, as what JSON can hold; standard output is the caller's, whatever a compiler prints."""
    logging.disable(logging.WARNING)
    with redirect_stdout(sys.stderr):
        return json.loads(json.dumps(measure(asked, tell)))


def measure(asked: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """What `bench` does, in this process; asked and answered in JSON."""
    before, threads = os.getloadavg(), torch.get_num_threads()
    settings = list(_settings(asked))
    first = [setting for setting in settings if setting.shape == tuple(asked["shapes"][0]) and setting.layout != OWN]
    sweeps = list(product(first, AXES)) if asked["scaling"] else []
    total = len(settings) + len(sweeps)
    limits = {"rounds": asked["rounds"], "budget": asked["budget"] and asked["budget"] / total}
    records, slopes = [], []
    for done, setting in enumerate(settings, start=1):
        records += (answers := contest(setting, _contestants(setting, asked), **limits))
        tell(f"{done}/{total} {setting}: {'; '.join(map(said, answers))}")
    for done, (setting, axis) in enumerate(sweeps, start=len(settings) + 1):
        eager = [contestant for contestant in _contestants(setting, asked) if not contestant.compiled]
        slopes += (answers := growth(setting, axis, eager, **limits))
        tell(f"{done}/{total} {setting}, {axis}: {'; '.join(map(said, answers))}")
    torch.set_num_threads(threads)
    machine = _machine(asked["device"]) | {"load_before": before[0], "load_after": os.getloadavg()[0]}
    return {"schema": SCHEMA, "machine": machine, "settings": asked, "records": records, "scaling": slopes}


def _settings(asked: dict[str, Any]) -> Iterator[Setting]:
    keys = ("threads", "dtypes", "layouts", "shapes", "passes", "names")
    seen = set()
    for threads, dtype, layout, shape, pass_, name in product(*(asked[key] for key in keys)):
        if ":" in name:
            x, *_ = support.find(name)[1](torch.float32, "cpu")
            shape, layout = x.shape, OWN
        setting = Setting(name, tuple(shape), dtype, layout, asked["device"], threads, pass_)
        if setting not in seen:
            seen.add(setting)
            yield setting


def _contestants(setting: Setting, asked: dict[str, Any]) -> list[Contestant]:
    contestants = [Contestant("ours", impl) for impl in asked["impls"]]
    if asked["peers"]:
        here = [library for library in OTHER_LIBRARIES.get(setting.name, ()) if library not in missing()]
        contestants += [Contestant(library, None) for library in here]
    if asked["compiled"]:
        contestants += [replace(contestant, compiled=True) for contestant in contestants]
    return contestants


def _check(name: str) -> None:
    """Refuse what cannot be timed, before anything is."""
    if ":" in name:
        support.find(name)
        return
    word, options = parse(name)
    known = regard.info(word)
    check_options(known, options)
    if "C, " not in known.signature.partition(")")[0]:
        raise UserError(f"{word} takes no map of (B, C, *spatial), and nothing else is timed here")


def read_shape(given: str | Sequence[int]) -> list[int]:
    """Batch, channels and sides of a map."""
    words = given.split("x") if isinstance(given, str) else list(map(str, given))
    if len(words) < 3 or not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"a shape is batch, channels and sides, such as 8x256x56x56, got {given!r}")
    return list(map(int, words))


def _machine(device: str) -> dict[str, Any]:
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "torch": torch.__version__,
        "allocator": {name: os.environ.get(name) for name in (*ALLOCATOR, "LD_PRELOAD")},
    }
