"""Random use of what is public, and what came of it: right, refused in a sentence, or wrong; `make fuzz`.

Every trial is a function of (seed, kind, number) alone, so that one that went wrong is done again by its name:
`python tests/proofs/fuzzing.py --again values:17`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import regard
from regard.base.errors import UserError
from regard.base.files import write_text
from regard.registry.signatures import shapes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
SEED = 20261129
MEMORY = 12 * 2**30  # bytes: what asks for more is to be refused
PATIENCE = 900  # seconds for one trial
RIGHT, REFUSED, WRONG = "right", "refused", "wrong"


class Wrong(Exception):
    """What a trial found."""


@dataclass(frozen=True)
class Kind:
    """One kind of trial: what it tries, in words, how many make a run, and the trial itself."""

    words: str
    trials: int
    run: Callable[[random.Random, Path], None]


KINDS: dict[str, Kind] = {}


def kind(words: str, trials: int):
    def add(function):
        KINDS[function.__name__] = Kind(words, trials, function)
        return function

    return add


def attempt(name: str, number: int, seed: int = SEED) -> tuple[str, str]:
    """One trial: right, refused or wrong, and in words what was."""
    draw = random.Random(f"{seed} {name} {number}")
    torch.manual_seed(draw.getrandbits(32))
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with at_most(PATIENCE):
                KINDS[name].run(draw, Path(folder))
        except UserError as error:
            return (WRONG, f"a sentence of several lines: {error}") if "\n" in str(error) else (REFUSED, str(error))
        except Wrong as error:
            return WRONG, str(error)
        except Exception as error:  # whatever is no sentence is a finding
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return WRONG, f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    return RIGHT, ""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Whatever takes longer than this does not end by itself."""

    def end(*_: Any) -> None:
        raise Wrong(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- mechanisms on strange maps


def options_of(draw: random.Random, name: str, strange: float = 0.05) -> dict[str, Any]:
    """Some options of a mechanism with values of their kind, now and then with one that makes no sense."""
    known = regard.info(name)
    page = known.factory.__doc__ or ""
    chosen: dict[str, Any] = {}
    for option, default in known.options.items():
        if draw.random() < strange:
            chosen[option] = draw.choice([None, -1, 0, 1.5, "nonsense", [], float("nan"), (3, 3), True, {}])
        elif draw.random() < 0.35:
            if isinstance(default, bool):
                chosen[option] = draw.random() < 0.5
            elif isinstance(default, int) or (default is None and draw.random() < 0.3):
                chosen[option] = draw.choice([1, 2, 3, 4, 5, 7, 8, 16])
            elif isinstance(default, float):
                chosen[option] = draw.choice([0.0, 1e-4, 0.1, 0.5, 1.0])
            elif isinstance(default, str) and (
                line := re.search(rf"^ +{option}: (.*?)(?=\n +\w+: |\n\n|\Z)", page, re.M | re.S)
            ):
                chosen[option] = draw.choice([default, *re.findall(r'``"(\w+)"``', line[1])])
    return chosen


def laid(draw: random.Random, x: torch.Tensor) -> torch.Tensor:
    """The same numbers, lying in memory in another way."""
    way = draw.choice(["plain", "plain", "last", "every second", "expanded", "shifted", "turned", "negative"])
    if way == "last" and x.dim() in (4, 5):
        return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
    if way == "every second":
        return torch.stack([x, x], dim=-1)[..., 0]
    if way == "expanded":
        return x[:1].expand(x.shape)
    if way == "shifted":
        return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)
    if way == "turned" and x.dim() > 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if way == "negative":
        return torch._neg_view(-x)
    return x


def numbers(draw: random.Random, x: torch.Tensor) -> torch.Tensor:
    """Values of another kind: large, small, far from 0, equal, all of one sign."""
    way = draw.choice(["plain", "plain", "plain", "large", "small", "offset", "equal", "zero", "positive", "one"])
    if way == "equal":
        return x.mean(tuple(range(2, x.dim())), keepdim=True).expand_as(x).contiguous() if x.dim() > 2 else x
    changed = {
        "large": x * 1e6,
        "small": x * 1e-6,
        "offset": x + 1e3,
        "zero": x * 0,
        "positive": x.relu(),
        "one": x * 0 + 1,
    }
    return changed.get(way, x)


@kind("a mechanism with random options on a random map: values and gradients against the reference in float64", 600)
def values(draw: random.Random, folder: Path) -> None:
    name = draw.choice(regard.names())
    known, options = regard.info(name), options_of(draw, name)
    channels = draw.choice([1, 2, 3, 4, 6, 8, 16, 20, 32, 33, 64])
    size = tuple(draw.choice([1, 2, 3, 4, 5, 7, 8, 13, 16]) for _ in range(2))
    module = regard.create(name, channels, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
    module.train(draw.random() < 0.4)
    told = {option: value for option, value in options.items() if option != "size"}
    wanted, _ = shapes(known, channels, batch=draw.choice([1, 2, 3]), size=size, **told)
    dtype = draw.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    inputs = [laid(draw, numbers(draw, torch.randn(shape, dtype=torch.float64)).to(dtype)) for shape in wanted]
    if any(x.untyped_storage().nbytes() == 0 for x in inputs):
        return

    def run(impl: str, dtype: torch.dtype) -> list[torch.Tensor]:
        own = copy.deepcopy(module).to(dtype)
        given = [x.detach().to(dtype).requires_grad_() for x in inputs]
        torch.manual_seed(1)
        with regard.use_impl(impl):
            found = own(*given)
            outputs = list(found) if isinstance(found, tuple | list) else [found]
            total = sum(y.square().sum() for y in outputs)
            gradients = torch.autograd.grad(total, [*given, *own.parameters()], allow_unused=True)
        return [t.detach().double() for t in (*outputs, *gradients) if t is not None]

    try:
        true, plain = run("reference", torch.float64), run("reference", dtype)
    except (ValueError, RuntimeError) as error:  # what the reference refuses, the kernels must not take
        with suppress(ValueError, RuntimeError):
            run("auto", dtype)
            raise Wrong(f"{name} {options} takes what its reference refuses: {error}") from error
        raise UserError(str(error).splitlines()[0]) from error
    fast = run("auto", dtype)
    floor = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2}[dtype]
    # what is 0 in truth is noise in both, and is measured against the largest of its company
    largest = max((b.abs().max().item() for b in true if b.numel()), default=0.0)
    for place, (a, b, c) in enumerate(zip(fast, true, plain, strict=True)):
        if b.numel() == 0:
            continue
        scale = max(b.abs().max().item(), max(1e-3, 4 * torch.finfo(dtype).eps) * largest)
        if not math.isfinite(scale) or not c.isfinite().all():
            continue  # what overflows in the reference as well
        theirs, ours = (
            ((c - b).abs().max() / max(scale, 1e-20)).item(),
            ((a - b).abs().max() / max(scale, 1e-20)).item(),
        )
        if not ours <= max(10 * theirs, floor):
            what = f"{name} {options} {[tuple(x.shape) for x in inputs]} {[x.stride() for x in inputs]} {dtype}"
            raise Wrong(f"{what}, result {place}: off by {ours:.1e}, the reference by {theirs:.1e}")


@kind("words that name a mechanism with options, most of them nonsense", 400)
def words(draw: random.Random, folder: Path) -> None:
    name = draw.choice([*regard.names(), "none", "", "SE", "cbamm", "se ", "gct[", "x" * 300])
    option = draw.choice(["reduction", "squeeze", "kernel_size", "", "__class__", "ratio", "heads", "mode"])
    value = draw.choice(["1", "-1", "max", "[1,2]", "{}", "nan", "1e999", "'", "true", "none", "9" * 40, "reduction=2"])
    text = draw.choice(
        [name, f"{name}[{option}={value}]", f"{name}[{option}]", f"{name}[{option}={value}", f"{name}]["]
    )
    parsed, options = regard.registry.spelling.parse(text)
    regard.create(parsed, draw.choice([8, 64, 0, -3, 10**9, 2.5]) if draw.random() < 0.2 else 64, **options)


# ---- networks


class Residual(nn.Module):
    def __init__(self, draw: random.Random, channels: int, dim: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1]
        self.one, self.norm1 = conv(channels, channels, 3, padding=1), norm(channels)
        self.two, self.norm2 = conv(channels, channels, 3, padding=1), norm(channels)
        self.act = draw.choice([nn.ReLU, nn.SiLU, nn.GELU])()
        self.late = draw.random() < 0.5

    def forward(self, x):
        y = self.norm2(self.two(self.act(self.norm1(self.one(x)))))
        return self.act(x + y) if self.late else x + self.act(y)


def network(draw: random.Random) -> tuple[nn.Module, torch.Tensor]:
    """A small network nobody has seen, and an example of its input."""
    dim = draw.choice([1, 2, 2, 2, 2, 3])
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    channels = draw.choice([4, 6, 8, 16, 24])
    body: list[nn.Module] = [conv(3, channels, 3, stride=draw.choice([1, 2]), padding=1)]
    for _ in range(draw.randint(1, 3)):
        layer = draw.choice(["residual", "residual", "residual", "plain", "plain", "wider", "wider", "shared"])
        if layer == "wider":
            body += [conv(channels, 2 * channels, 1, stride=2), nn.ReLU()]
            channels *= 2
        elif layer == "plain":
            body += [conv(channels, channels, 3, padding=1), draw.choice([nn.ReLU(), nn.Identity(), nn.Hardswish()])]
        elif layer == "shared":
            block = Residual(draw, channels, dim)
            body += [block, block]
        else:
            body.append(Residual(draw, channels, dim))
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dim - 1]
    net = nn.Sequential(nn.Sequential(*body), pool(1), nn.Flatten(), nn.Linear(channels, 5))
    side = draw.choice([8, 9, 12])
    return net.train(draw.random() < 0.3), torch.randn(2, 3, *[side] * dim)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def attachable() -> list[str]:
    return [name for name in regard.names() if regard.info(name).place]


@kind("a mechanism put into a network nobody has seen: bit-equal, trained, saved, removed, loaded again", 250)
def networks(draw: random.Random, folder: Path) -> None:
    model, x = network(draw)
    name = draw.choice(attachable())
    at = draw.choice(
        ["auto", "auto", "branches", "convolutions", "blocks", "0", "0.*", "head", "nowhere", ["0.0", "0.1"]]
    )
    before, mode, rng = state(model), [m.training for m in model.modules()], torch.get_rng_state()
    frozen = copy.deepcopy(model)
    options = options_of(draw, name, 0.02)
    try:
        attached = regard.attach(model, name, at=at, example=x, start="identity", **options)
    finally:
        if not torch.equal(torch.get_rng_state(), rng):
            raise Wrong("attach moved the random state")
        if [m.training for m, _ in zip(frozen.modules(), mode, strict=True)] != mode:
            raise Wrong("modes changed")
        if not {*before} <= {*state(model)} or any(not torch.equal(before[k], model.state_dict()[k]) for k in before):
            raise Wrong(f"{name} at {at}: attaching changed the network's own weights")
    model.eval(), frozen.eval()
    with torch.no_grad():
        if not torch.equal(model(x), frozen(x)):
            raise Wrong(f"{name} {options} at {at}: not the identity at start")
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimiser.zero_grad()
        model(x).square().sum().backward()
        optimiser.step()
    model.eval()
    if not all(p.isfinite().all() for p in model.parameters()):
        raise UserError("the training diverged")
    with torch.no_grad():
        trained = model(x)
        attached.save(folder / "added.safetensors")
        attached.remove()
        if state(model).keys() != before.keys():
            raise Wrong(f"{name} at {at}: removing left something behind")
        regard.load(model, folder / "added.safetensors")
        if not torch.equal(model.eval()(x), trained):
            raise Wrong(f"{name} {options} at {at}: loaded again it computes something else")


# ---- files and folders of strangers


def strange(draw: random.Random) -> Any:
    return draw.choice(
        [
            None,
            [],
            {},
            "",
            "x",
            -1,
            0,
            10**30,
            1e308,
            True,
            [[]] * 3,
            {"a": {"b": []}},
            "../../etc/passwd",
            float("nan"),
        ]
    )


def spoil(draw: random.Random, value: Any) -> Any:
    """The same JSON with one thing of it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(sorted(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if draw.random() < 0.2 else rest | {key: spoil(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], spoil(draw, value[place]), *value[place + 1 :]]
    return strange(draw)


def damage(draw: random.Random, path: Path) -> None:
    """Cut a file, change some of its bytes, or change one thing of the JSON in it."""
    content = path.read_bytes()
    if not content:  # by an earlier damage
        return
    way = draw.choice(["cut", "bytes", "json", "json", "json", "empty", "gone"])
    if way == "gone":
        path.unlink()
    elif way in ("cut", "empty"):
        path.write_bytes(content[: draw.randrange(len(content)) if way == "cut" else 0])
    elif way == "json" and path.suffix == ".json":
        with suppress(ValueError):  # it is no JSON any more
            path.write_text(json.dumps(spoil(draw, json.loads(content))))
    elif path.suffix == ".safetensors" and way == "json":
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        if draw.random() < 0.7 and "__metadata__" in header:
            inner = header["__metadata__"]
            key = draw.choice(sorted(inner))
            with suppress(ValueError):
                inner[key] = json.dumps(spoil(draw, json.loads(inner[key])))
        else:
            header = spoil(draw, header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    else:
        changed = bytearray(content)
        for _ in range(draw.randint(1, 20)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(bytes(changed))


@kind("a damaged file of attached weights: refused, or loaded whole; the network unchanged where it is refused", 400)
def weights(draw: random.Random, folder: Path) -> None:
    model, x = network(draw)
    name = draw.choice(attachable())
    attached = regard.attach(model, name, example=x)
    attached.save(folder / "added.safetensors")
    attached.remove()
    before = state(model)
    damage(draw, folder / "added.safetensors")
    try:
        regard.load(model, folder / "added.safetensors")
    except UserError:
        if not same(before, state(model)):
            raise Wrong(f"{name}: a file was refused and the network is not what it was") from None
        raise
    with torch.no_grad():
        model.eval()(x)


@kind("a damaged folder of a comparison: read and reported, or refused", 400)
def folders(draw: random.Random, folder: Path) -> None:
    from regard.comparison import report
    from regard.comparison.results import Comparison
    from stored import store

    store(folder, gains={"none": 0.0, "se": 0.01}, seeds=range(6))
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".npz"))
    for _ in range(draw.choice([1, 1, 2])):
        damage(draw, draw.choice([path for path in files if path.is_file()]))
    comparison = Comparison.load(folder)
    str(comparison)
    comparison.save()
    report.write(comparison)


@kind("a folder of strange pictures: decoded, said to be broken, or refused", 60)
def pictures(draw: random.Random, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from regard.comparison import data

    for label in range(draw.choice([1, 2, 2, 2, 3])):
        place = folder / "photos" / f"class{label}"
        place.mkdir(parents=True)
        for number in range(draw.choice([4, 14, 14])):
            path = place / f"{number}.{draw.choice(['png', 'jpg', 'bmp', 'gif', 'tif'])}"
            mode = draw.choice(["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
            side = draw.choice([1, 2, 8, 30])
            pixels = np.random.default_rng(number).integers(0, 255, (side, draw.choice([1, 9]), 3), np.uint8)
            image = (
                Image.fromarray(pixels).convert(mode)
                if mode != "I;16"
                else Image.fromarray(pixels[..., 0].astype("u2"))
            )
            with suppress(OSError, KeyError, ValueError):  # not every format takes every mode
                image.save(path)
            way = draw.random()
            if path.is_file() and way < 0.1:
                damage(draw, path)
            elif way < 0.15:
                os.mkfifo(place / f"pipe{number}.png")
            elif way < 0.2:
                (place / f"link{number}.png").symlink_to(path)
            elif way < 0.25:
                path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    images = data.prepare(folder / "photos", folder / "data", size=8, skip_broken=draw.random() < 0.7)
    if not len(images.pixels) == len(images.labels):
        raise Wrong("more pictures than labels")


# ---- interruptions


WAYS = ["kill", "kill", "terminate", "interrupt", "stop and go", "kill a worker", "full disk", "removed", "two at once"]
INTERRUPTED: dict[str, Any] = {}


def asked(photos: Path, out: Path) -> list[str]:
    import tiny

    return ["compare", "se", "--data", str(photos), *tiny.WORDS, "--epochs", "6", "--seeds", "2", "--out", str(out)]


def uninterrupted() -> tuple[Path, dict[str, Any]]:
    """Pictures, and what a comparison on them ends with when it is left alone; made once."""
    import tiny

    if not INTERRUPTED:
        place = Path(tempfile.mkdtemp(prefix="fuzz"))
        photos = tiny.fill(place / "photos", each=30)
        ended = tiny.regard(*asked(photos, place / "whole"), timeout=600)
        if ended.returncode:
            raise Wrong(f"a comparison left alone failed: {ended.stderr}")
        INTERRUPTED.update(photos=photos, outcomes=tiny.outcomes(place / "whole"))
    return INTERRUPTED["photos"], INTERRUPTED["outcomes"]


@kind("a comparison interrupted at a random moment, then asked again: the same numbers, no process left", 12)
def interruptions(draw: random.Random, folder: Path) -> None:
    import tiny

    photos, expected = uninterrupted()
    out, way = folder / "out", draw.choice(WAYS)
    small = (
        (lambda: (tiny.on_one_core(), resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))))
        if way == "full disk"
        else tiny.on_one_core
    )
    processes = [
        subprocess.Popen(
            [tiny.REGARD, *asked(photos, out)], env=tiny.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True, preexec_fn=small,
        )
        for _ in range(2 if way == "two at once" else 1)
    ]  # fmt: skip
    first = processes[0]
    time.sleep(draw.uniform(2, 25))
    with suppress(ProcessLookupError):  # it may be done already
        if way == "kill":
            os.killpg(first.pid, signal.SIGKILL)
        elif way in ("terminate", "interrupt"):
            first.send_signal(signal.SIGTERM if way == "terminate" else signal.SIGINT)
        elif way == "stop and go":
            os.killpg(first.pid, signal.SIGSTOP)
            time.sleep(1)
            os.killpg(first.pid, signal.SIGCONT)
        elif way == "kill a worker":
            for worker in tiny.workers(first.pid)[:1]:
                os.kill(worker, signal.SIGKILL)
        elif way == "removed":
            shutil.rmtree(out, ignore_errors=True)
    for process in processes:
        try:
            said, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Wrong(f"{way}: it did not end") from None
        if "Traceback" in said:
            raise Wrong(f"{way}: {said.strip().splitlines()[-1]}")
        if process.returncode not in (0, 1, 2, 130, 143, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL):
            raise Wrong(f"{way}: exit status {process.returncode}: {said[-200:]}")
        tiny.gone(process.pid, seconds=10)
    ended = tiny.regard(*asked(photos, out), timeout=600)
    if ended.returncode:
        raise Wrong(f"{way}: asked again, it failed: {ended.stderr.strip()[-300:]}")
    if tiny.outcomes(out) != expected:
        raise Wrong(f"{way}: asked again, it ended with other numbers")


# ---- a run


def run(kinds: list[str], share: float, seed: int) -> dict[str, Any]:
    """Every trial of some kinds, or a share of them; what came of each kind, and what was wrong."""
    found: dict[str, Any] = {
        "seed": seed,
        "versions": {p: version(p) for p in ("regard", "torch")},
        "kinds": {},
        "wrong": [],
    }
    for name in kinds:
        trials = max(1, round(KINDS[name].trials * share))
        counts: Counter[str] = Counter()
        begun = time.monotonic()
        for number in range(trials):
            outcome, said = attempt(name, number, seed)
            counts[outcome] += 1
            if outcome == WRONG:
                found["wrong"].append([f"{name}:{number}", said])
                print(f"wrong {name}:{number}: {said}", flush=True)
            elif sys.stderr.isatty():
                print(f"\r{name} {number + 1}/{trials}", end="", file=sys.stderr, flush=True)
        found["kinds"][name] = {"trials": trials, **{word: counts[word] for word in (RIGHT, REFUSED, WRONG)}}
        print(f"{name}: {trials} tried, {counts[RIGHT]} right, {counts[REFUSED]} refused in a sentence, "
              f"{counts[WRONG]} wrong, {time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
    return found


def table(found: dict[str, Any]) -> str:
    """The part of docs/trust.md that says what came of it."""
    rows = "\n".join(
        f"| {KINDS[name].words} | {counts['trials']} | {counts[RIGHT]} | {counts[REFUSED]} | {counts[WRONG]} |"
        for name, counts in found["kinds"].items()
    )
    wrong = "\n".join(f"- `{name}`: {said}" for name, said in found["wrong"])
    return f"""| what is tried at random | tried | right | refused in a sentence | wrong |
|---|---|---|---|---|
{rows}
{chr(10) + wrong + chr(10) if wrong else ""}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--share", type=float, default=1.0, help="of the trials; the page is written with all of them")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--again", metavar="KIND:NUMBER", help="one trial")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if asked.again:
        name, _, number = asked.again.partition(":")
        outcome, said = attempt(name, int(number), asked.seed)
        print(outcome, said)
        return outcome == WRONG
    found = run(asked.kinds, asked.share, asked.seed)
    if asked.share == 1.0 and asked.kinds == list(KINDS):
        print(write_text(RESULTS, json.dumps(found, indent=1) + "\n"))
    return bool(found["wrong"])


if __name__ == "__main__":
    sys.exit(main())
