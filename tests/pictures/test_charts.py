"""Charts: what they draw can be read back."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from regard.base.errors import UserError
from regard.pictures import charts

CHARTS = {
    "gates": lambda: charts.gates(np.linspace(0.2, 0.9, 16), 120),
    "beside the usual": lambda: charts.gates(np.linspace(0.2, 0.9, 16), 120, usual=np.linspace(0.9, 0.2, 16)),
    "by class": lambda: charts.by_class({"<a> & b": np.linspace(0, 1, 16), "c": np.ones(16)}, 120),
    "shares": lambda: charts.shares(np.ones((3, 8, 1, 1)) / 3, 120),
    "moments": lambda: charts.moments(np.ones((8, 3)) / 3, 120),
    "curves": lambda: charts.curves({"one": [1, 0.5, 0], "two": [0, 0.2, 1]}, 120, over="share", ends=("none", "all")),
}


@pytest.mark.parametrize("name", CHARTS)
def test_pixels_and_svg(name, tmp_path):
    chart = CHARTS[name]()
    picture = chart.image()
    assert (picture.mode, picture.height) == ("RGB", 120)
    assert len(picture.getcolors(10**6)) > 2
    again = CHARTS[name]()
    assert chart.svg() == again.svg()
    ElementTree.fromstring(chart.svg())
    assert chart.save(tmp_path / "chart.svg").read_text() == chart.svg()
    with Image.open(chart.save(tmp_path / "chart.png")) as saved:
        assert saved.tobytes() == picture.tobytes()
    with pytest.raises(UserError, match=r"written as \.svg, \.png"):
        chart.save(tmp_path / "chart.doc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chart.png", "chart.svg"]


def test_channels_come_in_the_order_of_the_usual():
    values, usual = np.array([0.1, 0.9, 0.5]), np.array([0.8, 0.1, 0.3])

    def line(chart):
        return chart.figure.axes[0].lines[0].get_ydata()

    assert list(line(charts.gates(values, 100))) == [0.9, 0.5, 0.1]
    assert list(line(charts.gates(values, 100, usual=usual))) == [0.1, 0.5, 0.9]


def test_what_a_chart_holds():
    chart = charts.curves({"one": [1, 0.5, -0.5], "two": [0, 0.2, 2]}, 100, over="share")
    axes = chart.figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    assert axes.get_ylim() == (-0.5, 2)
    bars = charts.shares(np.array([[0.2, 0.4], [0.6, 0.8]]), 100).figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.3, 0.7])
