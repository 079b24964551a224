"""Pictures of networks: what is drawn, against the networks themselves."""

import re
from xml.etree import ElementTree

import pytest
import timm
import torch
from torch import nn

from regard import sites
from regard.insertion.dry_run import dry_run
from regard.pictures import outline

SVG = "{http://www.w3.org/2000/svg}"


def steps(model, side=32):
    return outline.trace(model.eval(), dry_run(model, torch.randn(1, 3, side, side)))


@pytest.fixture(scope="module")
def resnet():
    return timm.create_model("resnet18")


def test_a_resnet_18_is_its_stem_and_eight_blocks(resnet):
    found = steps(resnet)
    assert [step.names for step in found[2:]] == [(f"layer{stage}.{block}",) for stage in "1234" for block in "01"]
    assert found[0].names == ("conv1", "bn1", "act1")
    assert [step.shape for step in found[::3]] == [(1, 64, 16, 16), (1, 64, 8, 8), (1, 256, 2, 2), (1, 512, 1, 1)]
    assert [step.is_block for step in found] == [False] * 2 + [True] * 8


def test_many_equal_blocks_share_a_box():
    found = steps(timm.create_model("resnet50"))
    assert [len(step.names) for step in found if step.is_block] == [3, 4, 6, 3]
    text = outline.draw(found, {}, "resnet50")
    assert re.findall(r"× \d+", text) == ["× 3", "× 4", "× 6", "× 3"]
    assert "layer3.0 – 5" in text


def test_plain_networks_have_boxes_without_blocks():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1800, 2))
    found = steps(net)
    assert [(step.names, step.shape) for step in found] == [(("0", "1"), (1, 8, 30, 30)), (("2",), (1, 8, 15, 15))]
    text = outline.draw(found, {}, "plain")
    assert "Blue" not in text
    assert "circle" not in text
    assert "connections are not shown" in text
    outline.draw((), {}, "nothing")


def test_the_picture_marks_every_site_and_stays_inside_its_frame(resnet):
    found = steps(resnet)
    x = torch.randn(1, 3, 32, 32)
    marks = {
        "se, <b> & more": [site.name for site in sites(resnet, "branches", example=x)],
        "bam": [site.name for site in sites(resnet, "stages", example=x)],
        "whole": ["layer2"],
    }
    root = ElementTree.fromstring(outline.draw(found, marks, "resnet18 < all"))
    width, height = float(root.get("width")), float(root.get("height"))
    assert width <= 940
    assert len(root.findall(f"{SVG}circle")) == 8 + 4 + 1
    boxes = [box for box in root.findall(f"{SVG}rect") if box.get("class") in ("layer", "step")]
    assert len(boxes) == len(found)
    for element in [*boxes, *root.findall(f"{SVG}text"), *root.findall(f"{SVG}circle")]:
        x, y = (float(element.get(k) or element.get(f"c{k}")) for k in "xy")
        assert -16 <= x <= width - 16
        assert -16 <= y <= height - 16
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert "A: 8 sites of se, <b> & more" in texts
    assert "C: 1 site of whole" in texts
    assert "Blue: residual blocks. Number in a circle: sites in the box above it." in texts[-1]
    whole = root.findall(f"{SVG}circle")[-1]
    last_of_layer2 = boxes[5]
    middle = float(last_of_layer2.get("x")) + float(last_of_layer2.get("width")) / 2
    marked = [float(c.get("cx")) for c in root.findall(f"{SVG}circle") if c.get("cy") == whole.get("cy")]
    assert marked == [pytest.approx(middle, abs=0.2)]


def test_higher_maps_and_more_channels_are_larger(resnet):
    root = ElementTree.fromstring(outline.draw(steps(resnet, 64), {}, "resnet18"))
    boxes = [box for box in root.findall(f"{SVG}rect") if box.get("class") == "layer"]
    heights, widths = ([float(box.get(side)) for box in boxes[::2]] for side in ("height", "width"))
    assert heights == sorted(set(heights), reverse=True)
    assert widths == sorted(set(widths))
