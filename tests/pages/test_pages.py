"""The docs are what the docstrings say, and the docstrings' examples run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import diagram
import pages
import regard
from regard.layers.tap import taps

DOCS = Path(__file__).parents[2] / "docs"
MODULES = [module.name for module in pkgutil.walk_packages(regard.__path__, "regard.")]


def test_the_written_pages_are_up_to_date(tmp_path):
    made = {path.relative_to(tmp_path): path.read_text() for path in pages.write(tmp_path)}
    single = [DOCS / "files.md", DOCS / "numbers.md"]
    kept = {path.relative_to(DOCS): path.read_text() for path in [*(DOCS / "mechanisms").iterdir(), *single]}
    differing = sorted({str(path) for path in made.keys() | kept.keys() if made.get(path) != kept.get(path)})
    assert not differing, "run `make docs` and commit what changes"


def test_the_readme_lists_every_mechanism():
    readme = (DOCS.parent / "README.md").read_text()
    assert readme == pages.listed(readme), "run `make docs` and commit what changes"
    assert all(f"(docs/mechanisms/{name}.md)" in readme for name in regard.names())


@pytest.mark.parametrize("name", regard.names())
def test_a_page_shows_every_option_with_its_meaning(name):
    text = pages.page(regard.info(name))
    for option in regard.info(name).options:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{option}` |"))
        assert len(row.rstrip(" |").rpartition("| ")[2]) > 10, row


@pytest.mark.parametrize("name", regard.names())
def test_a_page_shows_the_data_flow_from_every_input_to_every_output(name):
    known = regard.info(name)
    takes, _, gives = known.signature.partition(" -> ")
    flow = pages.flow(name)
    assert sum(node.kind == "input" for node in flow.nodes) == takes.count("(")
    assert sum(node.kind == "output" for node in flow.nodes) == max(1, gives.count("("))
    shown = {str(node) for node in flow.nodes if node.kind == "tap"}
    shown |= {words.removeprefix("map ") for node in flow.nodes for _, words in node.rows if words.startswith("map ")}
    assert shown == {tap for tap, _ in taps(known.factory(16))}
    assert f"```mermaid\n{diagram.draw(flow, f'Data flow of {name}')}\n```" in pages.page(known)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    # a registered example stays registered: the registry is put back
    from regard.registry import registration as registry

    before = dict(registry.registered)
    try:
        result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    finally:
        registry.registered.clear()
        registry.registered.update(before)
    assert result.failed == 0
