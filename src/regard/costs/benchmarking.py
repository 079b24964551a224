"""Mechanisms and ops against the least that memory allows and against other libraries; only what is right has a speed.

Run as a module, this file is the process in which `bench` measures.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import regard
from regard import ops
from regard.base.errors import UserError, near
from regard.costs import implementations
from regard.costs.costing import peak_memory
from regard.costs.entries import AXES, Entry, Setting, Step, floor, inputs_of
from regard.costs.peers import PEERS, missing
from regard.costs.speed import GATES, OWN, SCHEMA, TRAFFIC, Speed, said
from regard.costs.timing import ALLOCATOR, interleave, ratio
from regard.ops.dispatch import NAMES
from regard.registry.building import check_options
from regard.registry.spelling import parse

SHAPES = ((8, 256, 56, 56), (16, 512, 14, 14), (32, 64, 112, 112))
PASSES = ("inference", "training")
LAYOUTS = ("contiguous", "channels_last")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
CHECKED = 2**23  # numbers of the map on which agreement is asked; at least two images
HALF = 0.5  # of the largest value
SWEEP = (0.25, 0.5, 1, 2, 4)
LARGEST = 2**25  # numbers of the largest map of a sweep
LAW = Entry("ours", "reference")

Outcome = dict[str, Tensor]
Record = dict[str, Any]
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

    A race is one mechanism at one shape, dtype and layout: all implementations and peers in the same interleaved rounds
    as the floor, see `race`.

    Args:
        names: mechanisms with options where wanted, or an op's case such as ``"squeeze:channel"``, which has a shape
            and a layout of its own.
        shapes: (B, C, *spatial), also written ``"8x256x56x56"``.
        dtypes: of ``"float32"``, ``"bfloat16"``, ``"float16"``.
        layouts: of ``"contiguous"``, ``"channels_last"``.
        impls: see `use_impl`.
        passes: of ``"inference"``, ``"training"`` (forward and backward pass, no optimiser).
        device: ``"cpu"`` or ``"cuda"``.
        threads: how many, a race for each; by default torch's own number.
        peers: other libraries too, where they are installed; see `regard.costs.peers`.
        compiled: everything under `torch.compile` too.
        rounds: timings of each.
        budget: seconds for all timings together; 5 rounds are done even so.
        scaling: also how time grows with batch, channels and side, in powers of two around the first shape.
        tell: is given a sentence after each race.

    Raises:
        UserError: for an unknown name or setting, or when the process died.
    """
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
    for name in names:
        _check(name)
    asked = {
        "names": list(names), "shapes": list(map(_shape, shapes)), "dtypes": list(dtypes), "layouts": list(layouts),
        "impls": list(impls), "passes": list(passes), "device": device, "peers": peers, "compiled": compiled,
        "threads": list(threads or [torch.get_num_threads()]), "rounds": rounds, "budget": budget, "scaling": scaling,
    }  # fmt: skip
    if peers:
        for library, command in missing().items():
            tell(f"{library} is not installed and stays out: {command}")
    return Speed(_elsewhere(asked, tell))


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
        records += (found := race(setting, _entries(setting, asked), **limits))
        tell(f"{done}/{total} {setting}: {'; '.join(map(said, found))}")
    for done, (setting, axis) in enumerate(sweeps, start=len(settings) + 1):
        eager = [entry for entry in _entries(setting, asked) if not entry.compiled]
        slopes += (found := sweep(setting, axis, eager, **limits))
        tell(f"{done}/{total} {setting}, {axis}: {'; '.join(map(said, found))}")
    torch.set_num_threads(threads)
    machine = _machine(asked["device"]) | {"load_before": before[0], "load_after": os.getloadavg()[0]}
    return {"schema": SCHEMA, "machine": machine, "settings": asked, "records": records, "scaling": slopes}


def race(setting: Setting, entries: Sequence[Entry], *, rounds: int = 15, budget: float | None = None) -> list[Record]:
    """A record for each entry, all timed in the same rounds as the floor; what is wrong or does not run has no time.

    The floor of inference is to sum the map and to copy it; of training to do so, to sum the map again, and to sum and
    to copy the gradient.

    Ours has to agree with the reference in float64, on as many images as make 8 million numbers: every output, and
    in training every gradient. It may differ by `TOLERANCE`, relative to the largest value, which is room for sums in
    another order; or by four times what the reference itself differs in that dtype, there or, up to half the largest
    value, in another output, input's or weight's gradient: where rounding moves a maximum to another place its gradient
    goes along, and a weight's gradient is what is left when many rounded numbers cancel. A peer has only to run.
    """
    torch.set_num_threads(setting.threads)
    if any(entry.compiled for entry in entries):
        torch.compiler.reset()
    inputs = inputs_of(setting)
    law = cache(lambda: _law(setting))
    records: dict[Entry, Record] = {}
    steps: dict[Any, Step] = {}
    for entry in entries:
        record = records[entry] = setting.to_json() | vars(entry) | dict.fromkeys(MEASURED)
        try:
            if entry.source == "ours":
                record["agreement"] = agreement = _agreement(setting, entry, *law())
                if not agreement["agrees"]:
                    record["refused"] = f"wrong: {agreement['worst']} is off by {agreement['deviation']:.0e}"
                    continue
            module = entry.module(setting)
            step = entry.step(module, inputs, training=setting.training)
            step()
            if setting.training:
                record["maps_kept"] = entry.kept(module, inputs)
            if setting.device != "cpu":
                record["peak_maps"] = peak_memory(step, setting.device) / inputs[0].nbytes
            steps[entry] = step
        except Exception as error:  # whatever it is, it is the finding
            record["refused"] = _brief(error)
    x = inputs[0].detach()
    target = torch.empty_like(x)
    steps |= {"floor": floor(x, training=setting.training), "copy": lambda: target.copy_(x)}
    timings = interleave(steps, rounds=rounds, budget=budget, device=setting.device)
    copied = 2 * x.nbytes / timings["copy"].median
    for entry, record in records.items():
        record |= {"floor_seconds": timings["floor"].spread, "copy_gb_per_second": copied / 1e9}
        if entry in steps:
            timing = timings[entry]  # type: ignore[index]
            record |= {"seconds": timing.spread, "over_floor": ratio(timing, timings["floor"])}
            record["of_copy_bandwidth"] = TRAFFIC[setting.pass_] * x.nbytes / timing.median / copied
    return list(records.values())


MEASURED = ("seconds", "over_floor", "of_copy_bandwidth", "maps_kept", "peak_maps", "agreement", "refused")


def sweep(
    setting: Setting, axis: str, entries: Sequence[Entry], *, rounds: int = 15, budget: float | None = None
) -> list[Record]:
    """How time grows along one axis: the slope of its logarithm over that of the size, by least squares.

    All sizes run in the same rounds, and each round has its slope. Time in proportion to the map has a slope of 1 along
    batch and channels, and of 2 along the side. The floor grows beside the entries.
    """
    torch.set_num_threads(setting.threads)
    steps: dict[Any, Step] = {}
    for sized in (setting.grown(axis, factor) for factor in SWEEP):
        if min(sized.shape) < 1 or math.prod(sized.shape) > LARGEST:
            continue
        inputs = inputs_of(sized)
        steps[None, sized.along(axis)] = floor(inputs[0].detach(), training=sized.training)
        for entry in entries:
            try:
                step = entry.step(entry.module(sized), inputs, training=sized.training)
                step()
            except Exception:  # `race` says why
                continue
            steps[entry, sized.along(axis)] = step
    timings: dict[Any, Any] = interleave(steps, rounds=rounds, budget=budget, device=setting.device)
    slopes = []
    for who in (None, *entries):
        sizes = [size for other, size in steps if other == who]
        if len(sizes) < 3:
            continue
        seconds = np.stack([timings[who, size].seconds for size in sizes])
        by_round = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        known = {"source": who.source, "implementation": who.implementation} if who else {"source": "floor"}
        fitted = {"sizes": sizes, "seconds": np.median(seconds, axis=1).tolist()}
        slope = {"slope": np.percentile(by_round, (25, 50, 75)).tolist()}
        slopes.append(setting.to_json() | {"implementation": None} | known | {"axis": axis} | fitted | slope)
    return slopes


# ---- Who races


def _settings(asked: dict[str, Any]) -> Iterator[Setting]:
    keys = ("threads", "dtypes", "layouts", "shapes", "passes", "names")
    seen = set()
    for threads, dtype, layout, shape, pass_, name in product(*(asked[key] for key in keys)):
        if ":" in name:
            x, *_ = implementations.find(name)[1](torch.float32, "cpu")
            shape, layout = x.shape, OWN
        setting = Setting(name, tuple(shape), dtype, layout, asked["device"], threads, pass_)
        if setting not in seen:
            seen.add(setting)
            yield setting


def _entries(setting: Setting, asked: dict[str, Any]) -> list[Entry]:
    entries = [Entry("ours", impl) for impl in asked["impls"]]
    if asked["peers"]:
        entries += [Entry(library, None) for library in PEERS.get(setting.name, ()) if library not in missing()]
    if asked["compiled"]:
        entries += [Entry(entry.source, entry.implementation, compiled=True) for entry in entries]
    return entries


def _check(name: str) -> None:
    """Refuse what cannot race, before anything does."""
    if ":" in name:
        implementations.find(name)
        return
    word, options = parse(name)
    known = regard.info(word)
    check_options(known, options)
    if "C, " not in known.signature.partition(")")[0]:
        raise UserError(f"{word} takes no map of (B, C, *spatial), and nothing else is timed here")


def _shape(given: str | Sequence[int]) -> list[int]:
    words = given.split("x") if isinstance(given, str) else list(map(str, given))
    if len(words) < 3 or not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"a shape is batch, channels and sides, such as 8x256x56x56, got {given!r}")
    return list(map(int, words))


# ---- Whether it is right


def _law(setting: Setting) -> tuple[Setting, Outcome, dict[str, float]]:
    """The setting in which agreement is asked, what is right there, and how far off the reference is in its dtype."""
    batch, *image = setting.shape
    images = batch if setting.layout == OWN else min(batch, max(2, CHECKED // math.prod(image)))
    fewer = setting.grown("batch", images / batch)
    doubled = [x.detach().double().requires_grad_(setting.training) for x in inputs_of(fewer)]
    exact = _outcome(LAW, LAW.module(fewer).double(), doubled)
    return fewer, exact, _deviations(_outcome(LAW, LAW.module(fewer), inputs_of(fewer)), exact)


def _agreement(setting: Setting, entry: Entry, fewer: Setting, exact: Outcome, own: dict[str, float]) -> Record:
    off = _deviations(_outcome(entry, entry.module(fewer), inputs_of(fewer)), exact)
    noise = {kind: max(own[what] for what in own if what.split()[0] == kind) for kind in {w.split()[0] for w in own}}
    room = {what: max(4 * own[what], min(4 * noise[what.split()[0]], HALF)) for what in own}
    allowed = {what: max(_tolerance(setting), room[what]) for what in off}
    worst = max(off, key=lambda what: math.inf if math.isnan(off[what]) else off[what] / allowed[what])
    agrees = off[worst] <= allowed[worst]
    found = {"worst": worst, "deviation": off[worst], "tolerance": allowed[worst], "agrees": agrees}
    return {"images": fewer.shape[0]} | found


def _outcome(entry: Entry, module: nn.Module, inputs: Sequence[Tensor]) -> Outcome:
    """Every output and, in training mode, every gradient, by name."""
    with torch.set_grad_enabled(module.training):
        outputs = entry.call(module, inputs)
    found = {f"output {place}": y.detach() for place, y in enumerate(outputs)}
    if module.training:
        generator = torch.Generator().manual_seed(2)
        upstream = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
        torch.autograd.backward(outputs, upstream)
        found |= {f"input {place}'s gradient": x.grad for place, x in enumerate(inputs) if x.grad is not None}
        weights = ((name.removeprefix("_orig_mod."), weight.grad) for name, weight in module.named_parameters())
        found |= {f"weight {name}'s gradient": gradient for name, gradient in weights if gradient is not None}
    return found


def _deviations(found: Outcome, exact: Outcome) -> dict[str, float]:
    """The largest deviation of each, relative to its largest value; infinite where it is not there.

    A weight's gradient that is 0 but for rounding has no size of its own, so the size of none is taken to be less than
    1 % of the largest.
    """
    sizes = {what: float(value.abs().max()) for what, value in exact.items()}
    least = 0.01 * max((size for what, size in sizes.items() if what.startswith("weight")), default=0.0)
    off = {}
    for what, value in exact.items():
        size = max(sizes[what], least if what.startswith("weight") else 0.0) or 1.0
        off[what] = float((found[what].double() - value).abs().max()) / size if what in found else math.inf
    return off


def _tolerance(setting: Setting) -> float:
    """An op's own, where its docstring gives one for the dtype."""
    if ":" not in setting.name:
        return TOLERANCE[setting.dtype]
    text = getattr(ops, setting.name.partition(":")[0]).__doc__
    given = dict(re.findall(r"\b(b?float\d\d) (\de-\d+)", text.partition("Tolerance:")[2].partition("\n\n")[0]))
    return float(given.get(setting.dtype, TOLERANCE[setting.dtype]))


def _brief(error: Exception) -> str:
    sentence = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return sentence if isinstance(error, UserError) else f"does not run: {type(error).__name__}: {sentence}"[:200]


# ---- The process that measures


def _elsewhere(asked: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """`measure`, in a fresh process that ends with this one."""
    # a pool of compilers would keep the cores busy while others are timed
    environment = os.environ | ALLOCATOR | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", "-m", "regard.costs.benchmarking", json.dumps(asked)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    last = "before the first race"
    # in a group of its own, because Ctrl-C is our business
    with subprocess.Popen(command, env=environment, process_group=0, **pipes) as process:
        try:
            for line in process.stdout or ():
                kind, content = json.loads(line)
                if kind == "found":
                    return content
                tell(content)
                last = f"after {content.partition(':')[0]}"
        except BaseException:
            process.kill()
            raise
    hint = "; the system may be out of memory: take smaller shapes" if process.returncode == -9 else ""
    raise UserError(f"the process that measures ended {last}, with status {process.returncode}{hint}")


def _serve(asked: dict[str, Any]) -> None:
    """Measure, and write progress and the result as lines to standard output, which nobody else may use."""

    def follow() -> None:
        sys.stdin.read()  # ends when the parent does
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    logging.disable(logging.WARNING)  # the compiler's
    lines = sys.stdout
    with redirect_stdout(sys.stderr):
        found = measure(asked, lambda sentence: print(json.dumps(["told", sentence]), file=lines, flush=True))
    print(json.dumps(["found", found]), flush=True)


def _machine(device: str) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "cpu": named[1] if named else platform.machine(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "torch": torch.__version__,
        "allocator": {name: os.environ.get(name) for name in (*ALLOCATOR, "LD_PRELOAD")},
    }


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
