"""benchmarks/stamps.py lays objects where it says, and scores maps whose answers are known; without any package."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import regard

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "stamps.py"
SIZE, RIM = 64, 4


@pytest.fixture(scope="module")
def stamps():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / "examples"))
        specification = importlib.util.spec_from_file_location("stamps", SCRIPT)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        yield module


def disc(colour, side=100):
    stamp = Image.new("RGBA", (side, side))
    ImageDraw.Draw(stamp).ellipse((10, 10, side - 11, side - 11), fill=(*colour, 255))
    return stamp


def composed(stamps, seed):
    stamp, piece, photo = disc((255, 0, 0)).crop((10, 10, 90, 90)), disc((0, 0, 255)), Image.new("RGB", (200, 150))
    picture, mask = stamps.compose(np.random.default_rng(seed), stamp, [piece], photo, SIZE, RIM)
    return np.asarray(picture), mask


def test_the_object_lies_where_the_mask_says_and_pieces_lie_elsewhere(stamps):
    for seed in range(20):
        picture, mask = composed(stamps, seed)
        assert picture.shape == (SIZE + 2 * RIM, SIZE + 2 * RIM, 3)
        red, blue = picture[..., 0] > 127, picture[..., 2] > 127
        assert (red == mask).mean() > 0.995  # but for the blended rim
        assert not (blue & mask).any()
        assert blue.any()
        rows, columns = np.nonzero(mask)
        assert min(rows.min(), columns.min()) >= RIM
        assert max(rows.max(), columns.max()) < SIZE + RIM
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.25 * SIZE - 2 <= longer <= 0.5 * SIZE + 2


def test_the_same_seed_gives_the_same_picture(stamps):
    first, again, other = (composed(stamps, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_stamp_is_cut_out_and_what_has_no_outline_is_left_out(stamps, tmp_path):
    disc((0, 255, 0)).save(tmp_path / "disc.png")
    disc((0, 255, 0), 60).save(tmp_path / "small.png")
    Image.new("RGBA", (100, 100), "red").save(tmp_path / "square.png")
    assert stamps.cut_out(tmp_path / "disc.png").size == (80, 80)
    assert stamps.cut_out(tmp_path / "small.png") is None
    assert stamps.cut_out(tmp_path / "square.png") is None


def test_maps_with_known_scores(stamps):
    masks = np.stack([composed(stamps, seed)[1] for seed in range(8)])
    images = np.random.default_rng(0).random((8, 3, *masks.shape[1:]))
    perfect = stamps.score(masks.astype(float), images, masks)
    assert (perfect["pointing"], perfect["energy"], perfect["lifted"]) == (1, 1, 1)
    even = stamps.score(np.ones((8, 4, 4)), images, masks)
    assert even["energy"] == pytest.approx(masks.mean())
    assert even["lifted"] == pytest.approx(masks.mean())
    assert even["spread"] == 0
    gate = stamps.score(1 + 0.1 * masks, images, masks)  # lets everything through, and the object a little more
    assert (gate["pointing"], gate["lifted"]) == (1, 1)
    assert gate["energy"] < 1.1 * masks.mean()
    assert stamps.score(1 - 0.1 * masks, images, masks)["lifted"] < masks.mean()


@pytest.mark.parametrize(
    ("mechanism", "finest"), [("se", None), ("cbam", 8), ("coordinate", 8), ("bam", 8), ("gc", 8), ("non_local", 8)]
)
def test_every_arm_gives_its_last_maps(stamps, mechanism, finest):
    host = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 16, 1), torch.nn.Conv2d(16, 16, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(16, 4),
    )  # fmt: skip
    x = torch.randn(2, 3, 128, 128)
    regard.attach(host, mechanism, at=["0", "1"], example=x, seed=0)
    found = stamps.chosen_maps(host, x, "0")
    assert found["Grad-CAM"].shape == (2, 4, 4)
    assert found["Grad-CAM, finer"].shape == (2, 8, 8)
    assert ("own map" in found) == (finest is not None)
    if finest:
        assert found["own map"].shape == (2, 4, 4)
        assert found["own map, finer"].shape == (2, 8, 8)


def test_a_place_that_all_look_at_is_the_map_of_weights_between_places(stamps):
    layer = regard.create("non_local", 8)
    with torch.no_grad():
        layer.query.weight.zero_()
        layer.query.bias.fill_(1.0)
        layer.key.weight.fill_(1.0)
    x = torch.zeros(1, 8, 3, 4)
    x[0, :, 1, 2] = 5
    ((_, values),) = stamps.own_maps(layer, x)
    assert values.shape == (1, 3, 4)
    assert values.flatten().argmax() == 1 * 4 + 2
    assert values.sum() == pytest.approx(1, abs=1e-5)


def test_the_page_is_made_from_the_results(stamps):
    results = json.loads(stamps.RESULTS.read_text())
    assert stamps.PAGE.read_text() == stamps.render(results), "run benchmarks/stamps.py and commit what changes"
    assert min(len(runs) for runs in results["runs"].values()) >= 7
