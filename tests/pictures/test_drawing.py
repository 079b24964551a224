"""Overlays, sheets, and maps of every kind."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from contract import MAPS
from regard.base.errors import UserError
from regard.insertion.layout import Layout
from regard.maps.recording import Map
from regard.pictures.drawing import draw
from regard.pictures.overlay import overlay
from regard.pictures.sheet import sheet

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


# --- maps of every kind ----------------------------------------------------------------------------------------------

GREY = np.full((60, 80, 3), 127, np.uint8)


def colour(picture, place, size=(60, 80)):
    """Of a drawn map at a place (row, column), as shares of the sides."""
    return picture.getpixel((int(place[1] * size[1]), int(place[0] * size[0])))


def brightest(picture, rows, columns, size=(60, 80)):
    """Which cell of a grid is drawn brightest."""
    pixels = np.asarray(picture.image().convert("L"), dtype=float)[: size[0], : size[1]]
    cells = pixels.reshape(rows, size[0] // rows, columns, size[1] // columns).mean((1, 3))
    return divmod(int(cells.argmax()), columns)


KINDS = {
    "channel": torch.rand(2, 16, 1, 1),
    "spatial": torch.rand(2, 1, 6, 8),
    "axis": torch.rand(2, 16, 6, 1),
    "element": torch.rand(2, 16, 6, 8),
    "position": torch.rand(2, 2, 6, 8, 6, 8),
    "criss-cross": torch.rand(2, 6, 8, 14),
    "pair": torch.rand(2, 5, 5),
    "branch": torch.rand(2, 3, 16, 1, 1),
    "frame": torch.tensor([[0.5, 0, 0], [0, 0.5, 0.5]]).repeat(2, 1, 1),
    "path": torch.rand(2, 4, 2) * 2 - 1,
    "kernel": torch.rand(2, 16, 3),
    "query": torch.rand(2, 3, 7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn(kind):
    drawn = draw(Map("here", kind, KINDS[kind]), GREY, size=80)
    picture = drawn.image()
    assert picture.mode == "RGB"
    assert picture.height >= 60
    assert len(picture.getcolors(10**6)) > 2
    again = draw(Map("here", kind, KINDS[kind]), GREY, size=80)
    assert picture.tobytes() == again.image().tobytes()
    assert drawn.svg() == again.svg()


def test_every_kind_of_tap_is_known():
    assert MAPS.keys() <= KINDS.keys()


def test_the_view_from_a_place():
    weights = torch.zeros(1, 2, 6, 8, 6, 8)
    weights[0, 0, 4, 2, 1, 7] = 1  # who stands at (4, 2) looks at (1, 7)
    weights[0, 1, 4, 2, 5, 0] = 1
    found = Map("here", "position", weights)
    at = (4.5 / 6, 2.5 / 8)
    assert brightest(draw(found, GREY, query=at, head=0, size=80, alpha=1, smooth=False), 6, 8) == (1, 7)
    assert brightest(draw(found, GREY, query=at, head=1, size=80, alpha=1, smooth=False), 6, 8) == (5, 0)
    with pytest.raises(UserError, match="has 2 heads, there is no number 2"):
        draw(found, GREY, head=2)
    with pytest.raises(UserError, match="of 1 images, there is no number 1"):
        draw(found, GREY, number=1)


def test_the_view_of_a_token():
    weights = torch.zeros(1, 1, 49, 49)
    weights[0, 0, 1 + 4 * 8 + 2, 1 + 1 * 8 + 7] = 1
    weights[0, 0, 0, 1 + 5 * 8] = 1  # the class token looks at (5, 0)
    found = Map("here", "token", weights, Layout("tokens", 1, (6, 8)))
    shown = {"size": 80, "alpha": 1, "smooth": False}
    assert brightest(draw(found, GREY, query=(4.5 / 6, 2.5 / 8), **shown), 6, 8) == (1, 7)
    assert brightest(draw(found, GREY, query=0, **shown), 6, 8) == (5, 0)
    row = Map("here", "token", weights[:, :, [1 + 4 * 8 + 2]], Layout("tokens", 1, (6, 8)))
    assert brightest(draw(row, GREY, **shown), 6, 8) == (1, 7)
    with pytest.raises(UserError, match="windows"):
        draw(Map("here", "token", weights), GREY)


def test_a_row_and_a_column():
    weights = torch.zeros(1, 6, 8, 14)
    weights[0, 4, 2, 1] = 1  # in its column, at row 1
    found = Map("here", "criss-cross", weights)
    shown = draw(found, GREY, query=(4.5 / 6, 2.5 / 8), size=80, alpha=1, smooth=False)
    assert brightest(shown, 6, 8) == (1, 2)
    weights[0, 4, 2, 6 + 5] = 9  # in its row, at column 5
    assert brightest(draw(found, GREY, query=(4.5 / 6, 2.5 / 8), size=80, alpha=1, smooth=False), 6, 8) == (4, 5)


def test_a_frame_and_a_path_lie_where_they_are():
    dark = np.zeros((80, 80, 3), np.uint8)
    left = torch.tensor([[[0.5, 0, -0.5], [0, 0.5, 0]]])  # the left half's middle
    pixels = np.asarray(draw(Map("here", "frame", left), dark, size=80).image().convert("L"))
    rows, columns = np.nonzero(pixels)
    assert (columns.min(), columns.max()) == (pytest.approx(0, abs=3), pytest.approx(40, abs=3))
    assert (rows.min(), rows.max()) == (pytest.approx(20, abs=3), pytest.approx(60, abs=3))
    pixels = np.asarray(draw(Map("here", "path", torch.tensor([[[0.0, -1.0]]])), dark, size=80).image().convert("L"))
    rows, columns = np.nonzero(pixels)
    assert (rows.max(), columns.mean()) == (pytest.approx(8, abs=2), pytest.approx(40, abs=2))
