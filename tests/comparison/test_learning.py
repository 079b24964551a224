"""What has not learnt is not judged: chance, the linear model on pixels, and curves that still climb."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional as F

import regard
import tiny
from regard.base.errors import UserError
from regard.comparison import data, learning, linear, prices, report
from regard.comparison.results import UNTRAINED, Comparison
from stored import curves, fit, store

# ---- in words


def test_near_chance_is_below_the_margin_or_the_noise_of_the_test_images():
    assert "25.5 %" in learning.near_chance([0.25, 0.26], 0.25, 10_000, 0.01)
    assert "look at the labels" in learning.near_chance([0.1], 0.25, 10_000, 0.01)
    assert learning.near_chance([0.27, 0.28], 0.25, 10_000, 0.01) is None
    assert learning.near_chance([0.27, 0.28], 0.25, 10_000, 0.05)
    assert learning.near_chance([0.27, 0.28], 0.25, 100, 0.01), "one set of 100 images in six does as well by chance"
    assert learning.near_chance([0.5], 0.25, 100, 0.01) is None
    assert learning.near_chance([], 0.25, 100, 0.01) is None


def test_below_a_linear_model():
    assert "81.0 %" in learning.below_linear([0.8, 0.82], 0.846, 2000)
    assert "84.6 %" in learning.below_linear([0.8, 0.82], 0.846, 2000)
    assert learning.below_linear([0.8, 0.82], 0.846, 100) is None  # of so few images that is three or four
    assert learning.below_linear([0.84, 0.86], 0.846, 2000) is None
    assert learning.below_linear([], 0.846, 2000) is None


@pytest.mark.parametrize(
    ("curve", "rise"),
    [
        ([0.5, 0.6, 0.7, 0.8], 0.1),  # from the end of the third epoch of four
        ([0.5, 0.7, 0.8, 0.85, 0.88, 0.9, 0.93, 0.94], 0.04),
        ([0.8, 0.9], 0.05),  # half of the second epoch
        ([0.9], 0.2),  # a quarter of what the one epoch brought
        ([0.5, 0.6, 0.7, 0.8, 0.9], 0.125),
        ([0.9, 0.8, 0.7, 0.6], -0.1),
    ],
)
def test_the_last_quarter_lies_between_epochs(curve, rise):
    assert learning.climb(curve, start=0.1) == pytest.approx(rise)


def test_still_climbing_is_a_mean_over_seeds_beyond_its_standard_error():
    flat, steep = [0.5, 0.8, 0.9, 0.901], [0.5, 0.7, 0.8, 0.87]
    said = learning.still_climbing([steep, [0.5, 0.7, 0.8, 0.85]], 0.01)
    assert "rose by 6.0 points" in said
    assert "standard error 1.0" in said
    assert "--epochs" in said
    assert learning.still_climbing([flat] * 4, 0.01) is None
    assert learning.still_climbing([steep], 0.01), "one seed has no standard error"
    noisy = [[0.5, 0.7, 0.8, 0.8 + rise] for rise in (0.1, -0.08, 0.06, -0.02)]  # 1.5 points on average, error 4.0
    assert learning.still_climbing(noisy, 0.01) is None
    assert learning.still_climbing([steep], 0.08) is None
    assert learning.still_climbing([], 0.01) is None


def test_no_sentence_names_a_number_of_seeds():
    said = [learning.near_chance([0.1], 0.2, 50, 0.01), learning.below_linear([0.1], 0.2, 1000),
            learning.still_climbing([[0.1, 0.5]], 0.01)]  # fmt: skip
    assert not [sentence for sentence in said if "seed" in sentence]


def test_one_image_worth_more_than_the_margin():
    assert "take 100 test images or more" in learning.one_image(99, 0.01)
    assert "worth 1.2 points" in learning.one_image(80, 0.01)
    assert learning.one_image(100, 0.01) is None
    assert learning.one_image(33, 0.03)
    assert learning.one_image(34, 0.03) is None


# ---- the linear model


def blobs(spread, count=300, side=6):
    """Three classes of images that differ in where they are bright, as `prepare` would have decoded them."""
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, count)
    centres = random.integers(60, 190, (3, 1, side, side))
    pixels = np.clip(centres[labels] + spread * random.standard_normal((count, 1, side, side)), 0, 255)
    return SimpleNamespace(
        pixels=pixels.astype(np.uint8), labels=labels, classes=("a", "b", "c"), fingerprint="0",
        split=lambda seed: data.Split(*np.split(np.roll(np.arange(count), seed), [200, 250])),
    )  # fmt: skip


def test_it_is_softmax_regression():
    """At the strength that it took, torch's own optimiser finds the same answers in double precision."""
    images = blobs(spread=200)
    found = linear.measure(images, 3, 6)
    split = images.split(3)
    x, val, test = (torch.from_numpy(images.pixels[part].reshape(-1, 36) / 255) for part in split)
    mean = x.mean(0)
    x, val, test = ((part - mean) / (x - mean).square().mean().sqrt() for part in (x, val, test))

    def fitted(strength):
        model = torch.nn.Linear(36, 3).double()
        optimiser = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def closure():
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x), torch.from_numpy(images.labels[split.train]))
            loss = loss + strength / 2 * model.weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return lambda pixels: log_softmax(model(pixels).detach().numpy(), axis=1)

    losses = {}
    for strength in linear.STRENGTHS:
        losses[strength] = -fitted(strength)(val)[np.arange(len(val)), images.labels[split.val]].mean()
    assert found["l2"] == min(losses, key=losses.get), losses
    theirs = fitted(found["l2"])(test)
    assert found["log_loss"] == pytest.approx(-theirs[np.arange(50), images.labels[split.test]].mean(), rel=0.02)
    assert found["top1"] == pytest.approx((theirs.argmax(1) == images.labels[split.test]).mean(), abs=0.021)
    assert found["val_log_loss"] == pytest.approx(losses[found["l2"]], rel=0.02)
    assert found["chance"] == np.bincount(images.labels[split.test]).max() / 50
    again = linear.measure(images, 3, 6)
    assert again | {"seconds": 0} == found | {"seconds": 0}
    assert linear.measure(blobs(spread=1), 3, 6)["top1"] == 1


def test_its_work_is_bounded():
    for images, channels, classes, side in (
        (9000, 1, 10, 28), (20_000, 3, 10, 64), (20_000, 3, 1000, 224), (20, 3, 2, 16), (20_000, 3, 20_000, 64),
    ):  # fmt: skip
        small, count = linear.bounded(images, channels, classes, side)
        assert small <= min(side, 32)
        assert classes <= count or count == images
        assert small * small * channels * classes * count <= linear.WORK or count == classes
    assert linear.bounded(9000, 1, 10, 28) == (28, 9000)


def test_large_images_are_averaged_down():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16)).astype(np.uint8)
    images = SimpleNamespace(pixels=pixels)
    small = linear._pixels(images, np.array([4, 0]), 12, 4)
    middle = pixels[[4, 0], :, 2:14, 2:14] / 255
    assert small.shape == (2, 3 * 4 * 4)
    assert torch.allclose(small, torch.from_numpy(middle.reshape(2, 3, 4, 3, 4, 3).mean((3, 5)).reshape(2, -1)).float())


# ---- in a comparison


@pytest.fixture
def learnt(tmp_path):
    store(tmp_path)
    curves(tmp_path, 0.5, 0.8, 0.86, 0.865)
    return tmp_path


@pytest.mark.parametrize(
    ("values", "fitted", "words"),
    [
        (None, {"top1": 0.95}, "a linear model on the pixels"),
        (None, {"chance": 0.87}, "names the largest class"),
        ((0.5, 0.7, 0.8, 0.86), {}, "still rose by 6.0 points"),
    ],
)
def test_what_has_not_learnt_is_not_judged(learnt, values, fitted, words):
    sound = fit(learnt)
    assert (sound.trained, sound.untrained_because) == (True, [])
    assert (sound.linear, sound.chance) == (0.846, 0.1)
    assert UNTRAINED not in str(sound)
    assert UNTRAINED not in report.write(sound).read_text()
    assert "cbam[squeeze=max] is better" in sound.to_json()["headline"]
    if values:
        curves(learnt, *values)
    comparison = fit(learnt, **fitted)
    assert not comparison.trained
    (because,) = comparison.untrained_because
    assert words in because
    text, found, page = str(comparison), comparison.to_json(), report.write(comparison).read_text()
    assert found["headline"].startswith(UNTRAINED)
    assert found["untrained_because"] == [because]
    for said in (text, page):
        assert UNTRAINED in said
        assert words in said
        assert "is better than" not in said
        assert "would be needed" not in said
    assert f"<h1>{UNTRAINED}</h1>" in page
    assert "better" not in text
    assert comparison.table()[2]["difference"] == sound.table()[2]["difference"], "numbers stay"


def test_older_folders_have_no_line_and_are_judged_by_their_curves(learnt):
    comparison = Comparison.load(learnt)
    assert (comparison.linear, comparison.chance, comparison.trained) == (None, None, True)
    curves(learnt, 0.5, 0.7, 0.8, 0.86)
    assert not Comparison.load(learnt).trained


def test_a_damaged_line_is_named(learnt):
    for wrong in ({"top1": 2}, {"chance": None}, {"test_images": 0}):
        with pytest.raises(UserError, match=rf"linear\.json is damaged \({next(iter(wrong))} is .*delete it"):
            fit(learnt, **wrong)


def test_compare_fits_it_once_and_says_what_one_image_is_worth(monkeypatch, tmp_path, capsys):
    tiny.train_here(monkeypatch)
    monkeypatch.setattr(prices, "SECONDS", 0.01)
    options = tiny.ASKED | {"data": tiny.fill(tmp_path / "photos"), "out": tmp_path / "out", "progress": True}
    comparison = regard.compare("se", seeds=[5], epochs=1, **options)
    said = " ".join(capsys.readouterr().err.split())
    assert "One of 4 test images is worth 25 points" in said
    assert "Fitting a linear model" in said
    assert comparison.fitted["seed"] == 5
    assert comparison.chance == 0.5
    regard.compare("se", seeds=[5], epochs=1, margin=0.01, **options)
    assert "Fitting" not in capsys.readouterr().err
