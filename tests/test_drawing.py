"""Overlays, sheets, and the judgement whether maps say anything."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from regard.drawing import overlay, says_nothing, sheet
from regard.errors import UserError

RAMP = np.linspace(0.2, 0.8, 64).reshape(1, 64).repeat(48, axis=0)


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (48, 64, 3)])
def test_overlay_keeps_the_image_size_whatever_the_map(shape):
    image = np.full(shape, 100, np.uint8)
    for map in (
        RAMP,
        np.ones((7, 5)),
        np.ones((1, 1)),
        np.ones((14, 1)),
        torch.rand(1, 1, 7, 13, dtype=torch.bfloat16),
    ):
        drawn = overlay(image, map)
        assert drawn.mode == "RGB"
        assert drawn.size == (64, 48)


def test_alpha_goes_from_the_image_to_the_map():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert np.array_equal(overlay(image, RAMP, alpha=0), image)
    assert np.array_equal(overlay(image, RAMP, alpha=1), overlay(np.zeros_like(image), RAMP, alpha=1))
    assert np.array_equal(overlay(Image.fromarray(image), torch.tensor(RAMP)), overlay(image, RAMP))


def test_colours_grow_lighter_with_the_value_also_for_the_colour_blind():
    drawn = np.asarray(overlay(np.zeros((48, 64), np.uint8), RAMP, alpha=1), dtype=float)[0]
    lightness = drawn @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) >= 0).all()
    assert lightness[-1] - lightness[0] > 150
    hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in drawn / 255]
    assert all(0.12 < hue < 0.85 for hue in hues)  # no red, which many cannot tell from green


def test_limits_and_smoothness():
    grey = np.zeros((48, 64), np.uint8)
    own, wide = overlay(grey, RAMP, alpha=1), overlay(grey, RAMP, alpha=1, limits=(0, 1))
    assert own.getpixel((0, 0)) != wide.getpixel((0, 0))
    assert overlay(grey, 10 * RAMP, alpha=1, limits=(0, 1)).getpixel((0, 0)) == own.getpixel((63, 0))
    corners = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert len(overlay(grey, corners, alpha=1, smooth=False).getcolors()) == 2
    assert len(overlay(grey, corners, alpha=1).getcolors(4096)) > 20


@pytest.mark.parametrize(
    ("image", "map", "words"),
    [
        (np.zeros((8, 8), np.float32), RAMP, "uint8"),
        (np.zeros((3, 8, 8), np.uint8), RAMP, "channels last"),
        (np.zeros((8, 8), np.uint8), np.zeros(8), "shape"),
        (np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8)), "one map of one image"),
        (np.zeros((8, 8), np.uint8), np.array([[np.nan, 1.0]]), "NaN"),
    ],
)
def test_mistakes_are_named(image, map, words):
    with pytest.raises(UserError, match=words):
        overlay(image, map)


def test_sheet_is_a_grid_whose_columns_share_their_limits():
    images = [np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.uint8)]
    maps = {"low": [np.zeros((7, 7)), np.ones((7, 7))], "a.very.long.dotted.name.of.a.tap": torch.rand(2, 1, 14, 14)}
    page = sheet(images, maps, labels=["Sandal", "Knöchelstiefel"], size=64, alpha=1)
    assert page.height >= 2 * 64
    assert page.width >= 3 * 64
    flat = [overlay(images[0], np.full((7, 7), value), alpha=1, limits=(0, 1)) for value in (0, 1)]
    dark, bright = (picture.getpixel((0, 0)) for picture in flat)
    colours = {colour for _, colour in page.getcolors(page.width * page.height)}
    assert {dark, bright} <= colours  # two flat maps of one column: one darkest, one brightest
    with pytest.raises(UserError, match="'low' has 1 entries for 2 images"):
        sheet(images, {"low": maps["low"][:1]})


def test_says_nothing():
    random = np.random.default_rng(0)
    noise = random.random((6, 7, 7))
    assert says_nothing(noise) is None
    assert says_nothing(np.full((6, 7, 7), 0.5)) == "flat: says nothing"
    assert says_nothing(0.5 + 0.005 * noise) == "flat: says nothing"
    assert says_nothing(0.5 + 0.05 * noise) is None
    assert says_nothing(np.zeros((6, 7, 7))) == "flat: says nothing"
    assert says_nothing(np.repeat(noise[:1], 6, axis=0)) == "the same for every image"
    assert says_nothing(noise[:1] + 0.05 * noise) == "the same for every image"
    assert says_nothing(noise[:1] + 0.2 * noise) is None
    assert says_nothing(noise[:1]) is None  # one image cannot be compared with others
    assert says_nothing(torch.sigmoid(torch.randn(6, 64))) is None  # channel gates
    assert says_nothing(torch.full((6, 64), -0.3)) == "flat: says nothing"
