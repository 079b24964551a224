"""The docs are what the docstrings say, and the docstrings' examples run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import regard
from regard import pages

DOCS = Path(__file__).parent.parent / "docs"
MODULES = [module.name for module in pkgutil.walk_packages(regard.__path__, "regard.")]


def test_the_written_pages_are_up_to_date(tmp_path):
    made = {path.name: path.read_text() for path in pages.write(tmp_path)}
    kept = {path.name: path.read_text() for path in (DOCS / "mechanisms").glob("*.md")}
    assert made == kept, "run `make docs` and commit what changes"


@pytest.mark.parametrize("name", regard.names())
def test_a_page_shows_every_option_with_its_meaning(name):
    text = pages.page(regard.info(name))
    for option in regard.info(name).options:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{option}` |"))
        assert len(row.rstrip(" |").rpartition("| ")[2]) > 10, row


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    # a registered example stays registered: the registry is put back
    from regard import registry

    before = dict(registry._registry)
    try:
        result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    finally:
        registry._registry.clear()
        registry._registry.update(before)
    assert result.failed == 0
