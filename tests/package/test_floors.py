"""Imports point downward only, also those inside functions: read from the source."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import regard
from rooms import ROOMS

ROOT = Path(regard.__file__).parent

USERS = ROOMS[: ROOMS.index("pictures")]  # these may take what users take, from the package itself


def room(module):
    return module.partition(".")[2].partition(".")[0]


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


def allowed(module, other):
    here, there = room(module), room(other)
    if here == "mechanisms" and there == "mechanisms":
        return module == "regard.mechanisms"  # one paper, one file
    if here in ("", "__main__") or there in ("", "__main__"):
        return (here, there) in {("", "base"), ("__main__", "cli")} or (there == "" and here in USERS)
    return here == there or ROOMS.index(here) < ROOMS.index(there)


def violations(sources):
    inside = {module: set() for module in sources}
    wrong = []
    for module, source in sources.items():
        for other in imported(source, sources):
            if not allowed(module, other):
                wrong.append(f"{module} imports {other}")
            elif room(module) == room(other):
                inside[module].add(other)
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        wrong.append(f"a circle: {' imports '.join(reversed(error.args[1]))}")
    return wrong


def test_imports_point_downward():
    sources = read()
    assert len(sources) > 30, "the test sees nothing"
    assert violations(sources) == []


def test_the_rooms_are_those_that_are_there():
    assert {room(module) for module in read()} == {*ROOMS, "", "__main__"}


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("regard.layers.tap", "import torch", []),
        ("regard.layers.tap", "from regard.base.errors import UserError", []),
        ("regard.layers.tap", "from regard.layers.norm import BatchNorm", []),
        ("regard.layers.tap", "from regard.registry.cards import card", ["regard.registry.cards"]),
        ("regard.mechanisms.se", "from regard import ops", []),
        ("regard.mechanisms.se", "from regard.mechanisms.eca import ECA", ["regard.mechanisms.eca"]),
        ("regard.mechanisms.se", "from regard.mechanisms import eca", ["regard.mechanisms.eca"]),
        ("regard.mechanisms.se", "import regard.insertion.survey", ["regard.insertion.survey"]),
        ("regard.mechanisms.se", "import regard", ["regard"]),
        ("regard.mechanisms.se", "from regard import attach", ["regard"]),
        ("regard.ops.gate.cases", "from regard.mechanisms.se import SE", ["regard.mechanisms.se"]),
        ("regard.insertion.attach", "def f():\n  from regard.maps.recording import record", ["regard.maps.recording"]),
        ("regard.maps.recording", "from regard import attach", ["regard"]),
        ("regard.base.files", "import regard.__main__", ["regard.__main__"]),
        ("regard.maps.recording", "if True:\n  import regard.cli.main as cli", ["regard.cli.main"]),
        ("regard.insertion.survey", "from typing import *\nif TYPE_CHECKING:\n  import regard.cli.main", []),
        ("regard.comparison.training", "import regard\nfrom regard.comparison import hosts, data", []),
        ("regard.comparison.hosts", "from regard.comparison import training", []),
        ("regard.pictures.drawing", "from regard.costs.costing import cost", ["regard.costs.costing"]),
        ("regard.base.errors", "from regard.layers.tap import Tap", ["regard.layers.tap"]),
    ],
)
def test_the_reader_sees_what_is_forbidden(module, source, found):
    assert violations(dict.fromkeys(read(), "") | {module: source}) == [f"{module} imports {other}" for other in found]


def test_the_reader_sees_circles():
    circle = {"regard.maps.windows": "import regard.maps.batches", "regard.maps.batches": "import regard.maps.windows"}
    (found,) = violations(dict.fromkeys(read(), "") | circle)
    assert found.startswith("a circle: regard.maps")
