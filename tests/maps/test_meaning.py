"""Whether a map means anything: figures with known answers, and networks whose maps mean nothing."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from scipy.stats import spearmanr
from torch import nn

import regard
from regard.maps.deletion import deletion_insertion
from regard.maps.meaning import class_effect, judge, rank_correlation
from regard.maps.randomisation import randomisation_curve, randomised
from regard.registry.signatures import example_inputs

GENERATOR = np.random.default_rng(0)


def words(maps):
    return "; ".join(judge(maps).words)


def test_flat_and_same():
    noise = GENERATOR.random((6, 7, 7)) + 0.5
    assert words(noise) == ""
    assert words(np.full((6, 7, 7), 0.5)) == "flat: says nothing"
    assert words(0.5 + 0.005 * noise) == "flat: says nothing"
    assert words(0.5 + 0.05 * noise) == ""
    assert words(np.zeros((6, 7, 7))) == "flat: says nothing"
    assert words(np.repeat(noise[:1], 6, axis=0)) == "the same for every image"
    assert words(noise[:1] + 0.05 * noise) == "the same for every image"
    assert words(noise[:1] + 0.3 * noise) == ""
    assert words(noise[:1]) == ""  # one image cannot be compared with others
    assert words(torch.sigmoid(torch.randn(6, 64))) == ""  # channel gates
    assert words(torch.full((6, 64), -0.3)) == "flat: says nothing"
    assert judge(np.repeat(noise[:1], 6, 0)).between_images == pytest.approx(0, abs=1e-20)
    assert judge(noise).between_images == pytest.approx(6 / 7, abs=0.1)  # independent: the mean of six keeps a sixth
    assert judge(noise[:1]).between_images is None


def test_a_single_place_is_not_flat():
    one = np.zeros((6, 7, 7))
    one[range(6), range(6), 3] = 1
    assert words(one) == ""


def test_entropy():
    one = np.zeros((1, 4, 4))
    one[0, 1, 2] = 3
    assert judge(one).entropy == pytest.approx(0)
    assert judge(np.ones((1, 4, 4))).entropy == pytest.approx(1)
    half = np.zeros((1, 4, 4))
    half[0, :2] = 1
    assert judge(half).entropy == pytest.approx(np.log(8) / np.log(16))


def test_the_object():
    masks = np.zeros((2, 32, 32), bool)
    masks[:, :16, :16] = True
    maps = np.zeros((2, 4, 4))
    maps[0, 0, 0] = 1  # on the object
    maps[1, 3, 3] = 1  # beside it
    found = judge(maps, masks=masks)
    assert (found.pointing, found.object_area) == (0.5, 0.25)
    assert found.on_object == pytest.approx(0.5, abs=0.01)
    assert judge(np.ones((2, 4, 4)), masks=masks).on_object == pytest.approx(0.25)


def test_edges():
    images = torch.zeros(3, 3, 64, 64)
    for at, image in enumerate(images):
        image[:, 8 + 8 * at : 40, 16:48] = 1
    from regard.maps.meaning import edge_strength

    edges = edge_strength(images, (16, 16))
    found = judge(edges + 0.01 * GENERATOR.random(edges.shape), images)
    assert found.edges > 0.5
    assert judge(edges, images).words == ["follows edges, not the class"]
    assert judge(edges.max() - edges, images).edges == pytest.approx(-1)
    assert judge(edges[:, None], images) == judge(edges, images)  # as `explain` gives them
    ours = judge(GENERATOR.random((3, 16, 16)), images)
    assert abs(ours.edges) < 0.3
    assert ours.words == []


def test_rank_correlation_is_scipys():
    a, b = GENERATOR.random((2, 3, 5, 5)).round(1)
    expected = np.median([spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)])
    assert judge(a, random=b).random_weights == pytest.approx(expected)
    assert judge(a, random=b[:2]).random_weights == rank_correlation(a[:2], b[:2])  # of the first images


class Corner(nn.Module):
    """Its class 1 is how bright the upper left corner is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        corner = self.conv(x)[:, 0, :8, :8].mean((1, 2))
        return torch.stack([torch.zeros_like(corner), 8 * corner - 4], 1)


def test_erasing_what_matters():
    images = torch.zeros(2, 1, 32, 32)
    images[:, :, :8, :8] = 1
    right, wrong = images[:, 0], images[:, 0].flip(1, 2)
    good, bad = (deletion_insertion(Corner(), images, maps, 1).areas for maps in (right, wrong))
    assert good["deletion"] < good["random deletion"] < bad["deletion"]
    assert good["insertion"] > good["random insertion"] > bad["insertion"]
    for maps, sign in ((right, 1), (wrong, -1)):
        found = judge(maps, curves=deletion_insertion(Corner(), images, maps, 1))
        assert found.matters * sign > 0
        assert ("no more than removing random ones" in " ".join(found.words)) == (sign < 0)
    curves = deletion_insertion(Corner(), images, right)  # the class that it is given
    assert curves.deletion.shape == (2, 21)
    assert np.allclose(curves.deletion[:, 0], 1)
    assert np.allclose(curves.insertion[:, -1], 1)
    again = deletion_insertion(Corner(), images, right, chance=curves.chance)
    assert all(np.array_equal(again.all[name], curve) for name, curve in curves.all.items())


def test_channels_that_follow_the_class():
    classes = [4, 4, 4, 7, 7, 7]
    noise = GENERATOR.random((6, 300))
    share, each = class_effect(noise, classes)
    assert share == pytest.approx(0, abs=0.05)  # what chance gives is taken off
    noise[:, 5] = [0, 0, 0, 1, 1, 1]
    noise[:, 6] = 0.5
    _, each = class_effect(noise, classes)
    assert (int(each.argmax()), each[5], each[6]) == (5, pytest.approx(1), 0)
    assert judge(noise, classes=classes).by_class == pytest.approx(class_effect(noise, classes)[0])
    assert class_effect(noise, [1] * 6) is None  # one class
    assert class_effect(noise, range(6)) is None  # nothing to tell chance by
    from scipy.stats import f_oneway

    f = f_oneway(noise[:3, 0], noise[3:, 0]).statistic
    eta = f / (f + 4)  # one degree of freedom between, four inside
    assert each[0] == pytest.approx(1 - (1 - eta) * 5 / 4)


def test_weights_are_drawn_anew_from_the_output_on():
    model = torchvision.models.resnet18()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(1, 3, 64, 64)
    state = torch.get_rng_state()
    names, left = [], []
    for name, copy in randomised(model, x):
        names.append(name)
        left.append(sum(torch.equal(before[key], value) for key, value in copy.state_dict().items() if "conv" in key))
    assert (names[0], names[-1]) == ("fc", "conv1")
    assert left == sorted(left, reverse=True)
    assert (left[0], left[-1]) == (16 + 1, 0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_attached_mechanisms_are_drawn_anew_too():
    model = torchvision.models.resnet18()
    x = torch.randn(1, 3, 64, 64)
    regard.attach(model, "se", example=x, start="paper")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    *_, (_, copy) = randomised(model, x)
    added = {name: value for name, value in copy.state_dict().items() if ".regard." in name}
    assert len(added) == 8 * 4
    assert not any(torch.equal(before[name], value) for name, value in added.items())


def test_a_map_that_stays_shows_the_picture():
    """The layer's map is the picture itself, whatever the classifier has learnt."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    net[4].weight.data = torch.tensor([[1.0], [-1.0]])
    net[0].weight.data.fill_(1)
    images = torch.rand(4, 1, 16, 16)
    found = randomisation_curve(net, images, 0, layer="1", relu=False)
    assert list(found) == ["4", "0"]
    assert all(abs(value) > 0.99 or value == 0 for value in found.values())


def test_what_does_not_fit_is_said():
    with pytest.raises(regard.UserError, match="there are 3 maps and 2 masks"):
        judge(np.ones((3, 4, 4)), masks=np.ones((2, 8, 8)))
    with pytest.raises(regard.UserError, match="3 maps, and 4 of random weights"):
        judge(np.ones((3, 4, 4)), random=np.ones((4, 4, 4)))
    with pytest.raises(regard.UserError, match="NaN or infinity"):
        judge(np.full((1, 4, 4), np.nan))


@pytest.mark.parametrize("name", [name for name in regard.names() if regard.info(name).place])
def test_all_numbers_of_a_mechanism_are_drawn_anew(name):
    """Also bare parameters, and what was measured, or the check would compare a map partly with itself."""
    torch.manual_seed(0)
    known = regard.info(name)
    mechanism = regard.create(name, 16)
    inputs = example_inputs(known, 16)
    for parameter in mechanism.parameters():
        nn.init.normal_(parameter, std=0.3)
    before = {key: value.clone() for key, value in mechanism.state_dict().items() if value.is_floating_point()}
    last = next((copy for _, copy in reversed([*randomised(mechanism, tuple(inputs))])), None)
    after = mechanism.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items()), "only a copy is changed"
    if last is not None:
        kept = [key for key, value in last.named_parameters() if torch.equal(value, before[key])]
        assert kept == []
        assert all(value.isfinite().all() for value in last.state_dict().values())
    assert (last is not None) == bool(before)


def test_the_bare_parameters_of_a_network_are_drawn_anew():
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    *_, (_, copy) = randomised(net, torch.randn(1, 3, 32, 32))
    same = [name for name, value in copy.named_parameters() if torch.equal(value, net.get_parameter(name))]
    assert [name for name in same if "norm" not in name and "bias" not in name] == []
    assert copy(torch.randn(1, 3, 32, 32)).isfinite().all()
