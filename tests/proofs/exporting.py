"""docs/export.md: whether every mechanism, attached to a ResNet-18, compiles, exports and keeps its promises there.

    make export [NAME=MECHANISM]

The answers of a mechanism are a file of its own in benchmarks/results/export. Without a name, what has no answer yet is
asked.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from torch import Tensor, nn

import regard
import resultfiles
from regard.base.files import write_text
from resultfiles import LATER

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "export.md"

OPTIONS = {"tam": {"frames": 2}}  # a clip is as many images of the batch
GIVEN, OTHER = (4, 3, 64, 64), (6, 3, 104, 72)  # seen by the exporters, and never seen by them
WIDER = (4, 3, 128, 128)  # see the column bf16
DYNAMIC = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)

NO_GPU = "no GPU here"


def leaving() -> list[str]:
    """The mechanisms that can be attached."""
    return [name for name in regard.names() if regard.info(name).place is not None]


def images(shape: tuple[int, ...] = GIVEN, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def host(name: str) -> tuple[nn.Module, regard.Attached]:
    """A ResNet-18 with a mechanism that started as the identity and has learnt something since."""
    torch.manual_seed(0)
    # timm starts the last norm of every branch at 0, and what weighs a map of zeros shows nothing
    network = timm.create_model("resnet18", num_classes=10, zero_init_last=False)
    attached = regard.attach(network, name, example=images(), seed=0, **OPTIONS.get(name, {}))
    before = network(images())
    learn(attached.parameters())
    assert distance(network(images()), before) > 1e-3, f"{name} does nothing, so nothing is tested"
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # the running statistics are the last batch's, so that no map explodes
    with torch.no_grad():
        network(images())
    return network, attached


@torch.no_grad()
def learn(parameters: Iterable[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.numel() == 1:  # a strength, or what the authors call gamma
            parameter.fill_(0.5)
        else:
            parameter.copy_(parameter * (1 + 0.3 * noise) if parameter.any() else 0.03 * noise)


def distance(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((got.float() - wanted).abs().max() / wanted.abs().max()).item()


def step(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of one training step, and all gradients in one row."""
    network.zero_grad()
    y = network.train()(x)
    y.float().square().mean().backward()
    return y.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def compiled(name: str, backend: str = "inductor") -> float:
    network, _ = host(name)
    torch.compiler.reset()
    fast = torch.compile(copy.deepcopy(network), fullgraph=True, backend=backend)
    batches = [images(seed=seed) for seed in range(1, 6)]
    # where a rounding crosses the kink of a ReLU, a batch's gradient moves by a percent, in plain PyTorch against
    # float64 as well; what is compiled wrongly is wrong for every batch
    return min(max(map(distance, step(fast, x), step(network, x))) for x in batches)


@torch.no_grad()
def exported(name: str) -> float:
    network = host(name)[0].eval()
    program = torch.export.export(network, (images(),), dynamic_shapes=DYNAMIC)
    return distance(program.module()(images(OTHER)), network(images(OTHER)))


@torch.no_grad()
def translated(name: str) -> float:
    network = host(name)[0].eval()
    with redirect_stdout(StringIO()):
        program = torch.onnx.export(network, (images(),), dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/network.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/network.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images(OTHER).numpy()})
    return distance(torch.from_numpy(logits), network(images(OTHER)))


def narrow(name: str, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> float:
    network, attached = host(name)
    network, x = network.to(device), images(WIDER).to(device)
    with torch.no_grad():
        expected = network.eval()(x)
        for module in attached.modules.values():
            module.register_forward_hook(same_dtype)
        with torch.autocast(device, dtype):
            got = network(x)
    with torch.autocast(device, dtype):
        assert all(tensor.isfinite().all() for tensor in step(network, x)), "NaN or infinity"
    return distance(got, expected)


def same_dtype(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    assert output.dtype == args[0].dtype, f"{args[0].dtype} in, {output.dtype} out"


def half(name: str) -> float | str:
    return narrow(name, torch.float16, "cuda") if torch.cuda.is_available() else NO_GPU


def last(name: str) -> float:
    network, attached = host(name)
    expected, _ = step(copy.deepcopy(network), images())
    network.to(memory_format=torch.channels_last)
    for module in attached.modules.values():
        module.register_forward_hook(same_layout)
    got, _ = step(network, images().contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        network.eval()(images().contiguous(memory_format=torch.channels_last))
    return distance(got, expected)


def same_layout(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    layout = torch.channels_last
    assert args[0].is_contiguous(memory_format=layout), "the host gave another layout"
    assert output.is_contiguous(memory_format=layout), "channels_last in, another layout out"


def repeatable(name: str) -> float:
    network, _ = host(name)
    torch.use_deterministic_algorithms(True)
    try:
        once, again = (step(copy.deepcopy(network), images()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, once, again)), "two runs differ"
    return 0.0


# column -> the check, the largest deviation that counts as agreement, what it says
CHECKS: dict[str, tuple[Callable[[str], float | str], float, str]] = {
    "export": (exported, 1e-3, "`torch.export` with dynamic batch, height and width, run at another batch and size"),
    "onnx": (translated, 1e-3, "`torch.onnx.export(dynamo=True)`, dynamic as before, run by onnxruntime"),
    "bf16": (
        narrow,
        0.2,
        "autocast to bfloat16: close, every mechanism gives back the dtype it got, and a training step is finite. On "
        f"{WIDER[2]} pixels a side: on maps of 1 or 2, oneDNN's bfloat16 weight gradient of any 7x7 convolution can be "
        "uninitialised memory on a CPU (seen with torch 2.15, without a mechanism too)",
    ),
    "fp16": (half, 0.2, "the same in float16, on a GPU"),
    "channels_last": (last, 1e-3, "`model.to(memory_format=torch.channels_last)`: no mechanism changes the layout"),
    "deterministic": (repeatable, 0.0, "`torch.use_deterministic_algorithms(True)`: two training steps, bit-equal"),
    "compile": (
        compiled,
        1e-3,
        "`torch.compile(fullgraph=True)`: logits and gradients of a training step, the nearest of five",
    ),
}


def ask(name: str, column: str) -> float | str:
    """The deviation, or in a line what went wrong."""
    check, tolerance, _ = CHECKS[column]
    try:
        found = check(name)
    except Exception as error:  # whatever it is, it is the finding
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160]
    return found if isinstance(found, str) or found <= tolerance else f"off by {found:.0e}"


def examine(names: Iterable[str]) -> None:
    """Ask everything of these mechanisms, and keep each answer at once: what was killed goes on where it was."""
    versions = {package: version(package).partition("+")[0] for package in ("torch", "timm", "onnxruntime")}
    for name in names:
        kept = resultfiles.read("export").get(name, {})
        unfinished = kept.get("commit") == resultfiles.commit() and missing(kept)
        answers = kept["answers"] if unfinished else {}
        for column in CHECKS:
            if column not in answers:
                answers[column] = ask(name, column)
                print(name, column, answers[column], flush=True)
                resultfiles.write("export", name, {"versions": versions, "answers": answers})


def missing(found: dict[str, Any]) -> bool:
    """Whether there is a column that was not asked yet."""
    return not found.get("answers", {}).keys() >= CHECKS.keys()


def render(found: dict[str, dict[str, Any]]) -> str:
    """The page."""
    notes: dict[str, int] = {}
    rows = "\n".join(row(name, found.get(name, {}), notes) for name in leaving())
    legend = "\n".join(f"- **{column}**: {words}" for column, (_, _, words) in CHECKS.items())
    footnotes = "\n".join(f"{number}. {note}" for note, number in notes.items())
    return f"""# Leaving Python

Made by `make export` ({resultfiles.versions(found)}); nothing here is written by hand.

Every mechanism that can be attached, in a ResNet-18 at its own placement: started as the identity, then all added
parameters moved away from it, so that the mechanism does something. It sees {GIVEN[0]} images of
{GIVEN[2]} x {GIVEN[3]} pixels, and what was exported runs on {OTHER[0]} of {OTHER[2]} x {OTHER[3]}. *yes* comes with
the largest deviation from plain PyTorch, relative to the largest value. *Asked at* is the commit of the answers.

{legend}

`torch.jit.trace`, which PyTorch deprecates, takes networks with mechanisms too, and what it gives runs at other sizes.
`torch.jit.script` is not supported: trace, compile or export. What becomes of attention under other tools:
[frameworks.md](frameworks.md#tools-that-rebuild-wrap-or-trace-a-network).

| mechanism | {" | ".join(CHECKS)} | asked at |
|---|{"---|" * len(CHECKS)}---|
{rows}

{footnotes or "There are no exceptions."}
"""


def row(name: str, found: dict[str, Any], notes: dict[str, int]) -> str:
    """The answers of one mechanism."""
    answers = found.get("answers", {})
    cells = " | ".join(cell(name, column, answers.get(column, LATER), notes) for column in CHECKS)
    return f"| [{name}](mechanisms/{name}.md) | {cells} | {found.get('commit', '')} |"


def cell(name: str, column: str, answer: float | str, notes: dict[str, int]) -> str:
    """Yes, or no and the number of the footnote that says why."""
    if not isinstance(answer, str):
        return f"yes, {answer:.0e}" if answer else "yes"
    if answer in (NO_GPU, LATER):
        return answer
    note = f"{name}: {regard.info(name).cannot_export.get(column, answer)}."
    return f"no [{notes.setdefault(note, len(notes) + 1)}]"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if "--page" not in sys.argv:
        kept = resultfiles.read("export")
        examine(sys.argv[1:] or [name for name in leaving() if missing(kept.get(name, {}))])
    print(write_text(PAGE, render(resultfiles.read("export"))))


if __name__ == "__main__":
    main()
