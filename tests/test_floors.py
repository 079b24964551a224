"""Imports point downward only, also those inside functions: read from the source."""

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import regard

ROOT = Path(regard.__file__).parent

# From the top. Rooms on one floor do not import each other. `regard` is the package itself: its public names.
FLOORS = [
    "regard.__main__",
    "regard.cli regard.pages",
    "regard.app",
    "regard.comparison.question regard.looking",
    "regard.comparison.trials",
    "regard.comparison.report regard.comparison.display regard.comparison.grid regard.comparison.linear"
    " regard.comparison.prices",
    "regard.comparison.training",
    "regard.comparison.asked",
    "regard.comparison.pictures regard.comparison.results",
    "regard.comparison.data regard.comparison.endpoints regard.comparison.hosts regard.comparison.learning"
    " regard.comparison.optimising"
    " regard.comparison.statistics regard.comparison.twins regard.comparison.gates",
    "regard.comparison.answers regard.comparison.folders regard.comparison.records regard.comparison.sequential",
    "regard.comparison.plan regard.comparison.permutation",
    "regard.comparison.arms",
    "regard.comparison",
    "regard.ticker",
    "regard.advising regard.placing regard.benchmarking",
    "regard.meaning",
    "regard.costing regard.saliency regard.drawing regard.models regard.outline regard.entries regard.speed",
    "regard",
    "regard.insertion regard.recording regard.timing regard.diagram regard.implementations regard.charts",
    "regard.site",
    "regard.survey regard.watching",
    "regard.windows regard.batches",
    "regard.borrowing",
    "regard.mechanisms",
    "regard.mechanisms.*",
    "regard.ops",
    "regard.ops.agreeing.cpu regard.ops.selfgating.cpu regard.ops.recalibrating.cpu",
    "regard.ops.convolving.cpu regard.ops.squeezing.cpu regard.ops.squeezing.triton regard.ops.gating.cpu"
    " regard.ops.gating.triton regard.ops.exciting.cpu",
    "regard.ops.gradients",
    "regard.ops.kernels.cpu regard.ops.kernels.triton",
    "regard.ops.kernels.plan regard.ops.kernels.library",
    "regard.ops.kernels.interface regard.ops.dispatch regard.ops.*",
    "regard.cards regard.named",
    "regard.hidden",
    "regard.registry",
    "regard.schema regard.images",
    "regard.tap regard.norm regard.conv regard.files regard.layout regard.positions regard.svg regard.peers"
    " regard.notebook regard.noted regard.guard regard.small_resnet",
    "regard.errors regard.blocks",
]


def floor(module):
    exact = [number for number, rooms in enumerate(FLOORS) if module in rooms.split()]
    return exact or [n for n, rooms in enumerate(FLOORS) if any(fnmatchcase(module, room) for room in rooms.split())]


def read():
    """Every module's name and source."""
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["regard", *path.relative_to(ROOT).with_suffix("").parts]
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return sources


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(source, modules):
    """The modules of this package that a source imports, anywhere but for the type checker alone."""
    nodes = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if is_type_checking(node):
            nodes.extend(node.orelse)
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write the whole name"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in whole]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "regard")


def violations(sources):
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        for other in imported(source, sources)
        if not floor(module) or not floor(other) or floor(module)[0] >= floor(other)[0]
    ]


def test_imports_point_downward():
    sources = read()
    assert len(sources) > 30, "the test sees nothing"
    assert violations(sources) == []


def test_every_room_has_one_floor():
    modules = read()
    for module in modules:
        assert len(floor(module)) == 1, f"{module} is on the floors {floor(module)}: name it in FLOORS"
    for rooms in FLOORS:
        for room in rooms.split():
            assert any(fnmatchcase(module, room) for module in modules), f"there is no {room}"


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("regard.tap", "import torch", []),
        ("regard.tap", "from regard.errors import UserError", []),
        ("regard.tap", "from regard.norm import BatchNorm", ["regard.norm"]),
        ("regard.mechanisms.se", "from regard import ops", []),
        ("regard.mechanisms.se", "from regard.mechanisms.eca import ECA", ["regard.mechanisms.eca"]),
        ("regard.mechanisms.se", "from regard.mechanisms import eca", ["regard.mechanisms.eca"]),
        ("regard.mechanisms.se", "import regard.survey", ["regard.survey"]),
        ("regard.mechanisms.se", "import regard", ["regard"]),
        ("regard.mechanisms.se", "from regard import attach", ["regard"]),
        ("regard.ops.gating.cases", "from regard.ops.gating.reference import run", ["regard.ops.gating.reference"]),
        ("regard.ops.gating.cases", "from regard.ops.squeezing import cases", ["regard.ops.squeezing.cases"]),
        ("regard.recording", "def f():\n  from regard.insertion import attach", ["regard.insertion"]),
        ("regard.recording", "if True:\n  import regard.cli as cli", ["regard.cli"]),
        ("regard.survey", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import regard.cli", []),
        ("regard.comparison.training", "import regard\nfrom regard.comparison import hosts, data", []),
        ("regard.comparison.hosts", "from regard.comparison import training", ["regard.comparison.training"]),
        ("regard.comparison.data", "from regard.comparison.hosts import build", ["regard.comparison.hosts"]),
        ("regard.drawing", "from regard.costing import cost", ["regard.costing"]),
        ("regard.errors", "from regard.tap import Tap", ["regard.tap"]),
    ],
)
def test_the_reader_sees_what_is_forbidden(module, source, found):
    assert violations(dict.fromkeys(read(), "") | {module: source}) == [f"{module} imports {other}" for other in found]
