"""Runs as rows, as a frame and as comma-separated values; objects in a notebook."""

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from regard.base import notebook
from regard.cli import main as cli
from regard.comparison.results import Comparison
from regard.comparison.tables import COLUMNS
from regard.maps.recording import Map
from stored import store

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def comparison(tmp_path):
    return Comparison.load(store(tmp_path / "mine", seeds=range(2), failed=[("se", 1)], logits=True, cost=False))


def call(capsys, *words):
    status = cli.run(list(words))
    return status, *capsys.readouterr()


# ---- rows


def test_every_run_is_a_row_with_what_its_record_says(comparison):
    rows = comparison.rows()
    assert [(row["arm"], row["seed"]) for row in rows] == comparison.wanted
    for row in rows:
        run = comparison.records[row["arm"], row["seed"]]
        assert tuple(row) == COLUMNS
        assert (row["status"], row["reason"]) == (run["status"], run["reason"])
        for column in ("top1", "top5", "log_loss", "parameters", "seconds"):
            assert row[column] == run.get(column), column
        if run["status"] == "done":
            assert (row["epochs"], row["val_top1"]) == (5, run["curve"][-1]["val_top1"])
            assert row["calibration"] == comparison.calibration[row["arm"]][row["seed"]]
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["top1"] is None
    assert "NaN" in failed["reason"]


def test_a_frame_is_pandas_where_pandas_is(comparison, monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = comparison.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(COLUMNS)
    mean = frame[frame.arm == "none"].top1.mean()
    assert mean == pytest.approx(np.mean(list(comparison.scores["none"].values())))
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert comparison.frame() == comparison.rows()


def test_values_joined_by_commas_are_read_again(comparison, capsys, tmp_path):
    folder = str(comparison.folder)
    status, out, err = call(capsys, "export", folder)
    assert (status, err) == (0, "")
    read = list(csv.DictReader(io.StringIO(out)))
    assert len(read) == len(comparison.wanted)
    for row, ours in zip(read, comparison.rows(), strict=True):
        for column, value in ours.items():
            assert row[column] == ("" if value is None else str(value))
            if isinstance(value, float):
                assert float(row[column]) == value, "not in full"
    path = tmp_path / "deep" / "mine.csv"
    assert call(capsys, "export", folder, "--csv", str(path)) == (0, "", "")
    assert path.read_text() == out
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export", "FOLDER"), ("export /nowhere", "/nowhere holds no comparison"),
        ("export {mine} --csv {mine}", "cannot write to"), ("export {mine} --csv", "--csv"),
        ("export {mine} --csv {mine}/question.json/a.csv", "cannot write to"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_line_and_status_2(comparison, capsys, words, said):
    status, out, err = call(capsys, *words.format(mine=comparison.folder).split())
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


# ---- notebooks


class Tags(HTMLParser):
    """Every tag opened and closed in order, what may run, and the words."""

    def __init__(self, html):
        super().__init__()
        self.open, self.seen, self.words, self.attributes = [], set(), [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def shown(thing, most=20_000):
    html = thing._repr_html_()
    assert len(html) < most
    tags = Tags(html)
    assert tags.seen <= {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "div", "img"}
    assert {name for name, _ in tags.attributes} <= {"alt", "width", "style", "src"}
    assert all(value.startswith("data:image/png;base64,") for name, value in tags.attributes if name == "src")
    return tags, " ".join(tags.words)


def test_a_comparison_in_a_notebook(tmp_path):
    folder = store(tmp_path, gains={"none": 0.0, f"se{EVIL}": 0.02}, broken=[(f"{EVIL}.jpg", "cut short")])
    comparison = Comparison.load(folder)
    assert not (folder / "report.html").exists()
    tags, words = shown(comparison)
    assert f"se{EVIL}" in words
    assert "table" in tags.seen
    for piece in ("top-1 accuracy on 2,000 test images", "is better than none", "Broken file"):
        assert piece in words


def test_advice_and_an_attachment_in_a_notebook():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU())
    x = torch.randn(2, 3, 8, 8)
    attached = regard.attach(net, "se", at="1", example=x)
    _, words = shown(attached)
    assert repr(attached) in words
    assert re.search(r"\b1\s+32\s+\d", words), "site, channels, parameters"
    attached.remove()
    assert "removed" in shown(attached)[1]
    advice = regard.advise(net, x, mechanisms=["se"], at="1", rounds=2, name=EVIL)
    _, words = shown(advice)
    assert words == str(advice)
    assert EVIL in words


def test_maps_in_a_notebook(tmp_path):
    def decoded(found):
        tags, words = shown(found, most=60_000)
        sources = [value for name, value in tags.attributes if name == "src"]
        return [decode(source) for source in sources], words

    def decode(source):
        import base64

        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))

    value = torch.rand(3, 2, 5, 7)
    pictures, words = decoded(Map(f"a.{EVIL}", "spatial", value))
    mean = value.mean(1).numpy()
    expected = np.rint((mean - mean.min()) / (mean.max() - mean.min()) * 255)
    assert (np.array(pictures) == expected).all()
    assert "3 x 2 x 5 x 7" in words
    assert EVIL in words
    assert len(decoded(Map("a", "spatial", torch.rand(30, 1, 4, 4)))[0]) == notebook.PICTURES
    (gate, _), _ = decoded(Map("a", "channel", torch.tensor([[0.0, 1.0, 0.5], [1, 1, 0]])[:, :, None, None]))
    assert gate.tolist() == [[0, 255, 128]]
    assert (decoded(Map("a", "spatial", torch.full((1, 1, 2, 2), 0.5)))[0][0] == 0).all(), "flat"
    for odd in (torch.zeros(0, 1, 4, 4), torch.rand(4), torch.rand(2, 2, 3, 4, 5, 6), torch.rand(1, 1, 2, 2).bfloat16(),
                torch.full((1, 1, 2, 2), float("nan"))):  # fmt: skip
        shown(Map("a", "element", odd))


def test_numbers_of_a_comparison_are_strict_json(comparison):
    found = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert found["log_loss_against_none"]["se"]["word"] == "undecided"
