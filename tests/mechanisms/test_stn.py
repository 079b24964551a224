"""The spatial transformer beyond the contract: volumes, frames known by hand, networks of one's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regard
from regard.mechanisms.stn import Cells, sample


def frame(*rows):
    return torch.tensor([rows], dtype=torch.float64)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 7, 9), None), ((2, 3, 6, 5), (8, 4)), ((2, 3, 4, 5, 6), (3, 7, 5))]
)
def test_agrees_with_pytorch(align_corners, padding, shape, size):
    torch.manual_seed(0)
    dims = len(shape) - 2
    x = torch.randn(shape, dtype=torch.float64)
    theta = torch.eye(dims, dims + 1, dtype=torch.float64) + 0.3 * torch.randn(2, dims, dims + 1, dtype=torch.float64)
    grid = F.affine_grid(theta, (*shape[:2], *(size or shape[2:])), align_corners=align_corners)
    expected = F.grid_sample(x, grid, padding_mode=padding, align_corners=align_corners)
    got = sample(x, theta, size=size, align_corners=align_corners, padding=padding)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_frame_moves_x_along_the_last_axis():
    x = torch.arange(20, dtype=torch.float64).reshape(1, 1, 4, 5)
    # two fifths of the half-width of 5 pixels are one pixel
    moved = sample(x, frame([1, 0, 0.4], [0, 1, 0]))
    torch.testing.assert_close(moved[..., :-1], x[..., 1:])
    torch.testing.assert_close(moved[..., -1], torch.zeros(1, 1, 4, dtype=torch.float64))
    turned = sample(x[..., :4], frame([0, -1, 0], [1, 0, 0]))
    torch.testing.assert_close(turned, x[..., :4].rot90(1, dims=(2, 3)))


def test_a_side_of_one_pixel_is_its_centre():
    x = torch.randn(1, 2, 1, 1, dtype=torch.float64)
    for align_corners in (False, True):
        assert torch.equal(sample(x, frame([1, 0, 0], [0, 1, 0]), align_corners=align_corners), x)


def test_volumes():
    torch.manual_seed(0)
    volume = torch.randn(2, 3, 5, 6, 7, requires_grad=True)
    stn = regard.create("stn", 3, spatial_dims=3)
    assert stn.locate(volume).shape == (2, 3, 4)
    torch.testing.assert_close(stn(volume), volume, rtol=1e-4, atol=1e-5)
    regard.info("stn").identity(stn)
    assert torch.equal(stn(volume), volume)
    stn(volume).square().sum().backward()
    assert stn.head.weight.grad.abs().sum() > 0
    last = volume.detach().contiguous(memory_format=torch.channels_last_3d)
    assert stn(last).is_contiguous(memory_format=torch.channels_last_3d)


def test_from_the_identity_it_is_the_same_function_with_the_same_gradient():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    gradients, results = [], []
    for exact in (False, True):
        torch.manual_seed(1)
        stn = regard.create("stn", 3, dtype=torch.float64)
        nn.init.normal_(stn.head.weight, std=0.1)
        if exact:
            regard.info("stn").identity(stn)
        results.append(stn(x))
        results[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in stn.parameters()])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients)
    assert not torch.allclose(results[0], x)


def test_another_size():
    stn = regard.create("stn", 3, size=(5, 4))
    regard.info("stn").identity(stn)
    assert stn(torch.randn(2, 3, 16, 12)).shape == (2, 3, 5, 4)


def test_a_localisation_network_of_ones_own():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    stn = regard.create("stn", 6, localisation=Mean(), hidden=6)
    assert sum(p.numel() for p in stn.parameters()) == regard.info("stn").parameters(6, localisation=Mean(), hidden=6)
    stn(torch.randn(2, 6, 8, 8)).sum().backward()
    with pytest.raises(regard.UserError, match="pass hidden=6"):
        regard.create("stn", 6, localisation=Mean())(torch.randn(2, 6, 8, 8))


def test_the_tutorials_network_fits_28_pixels_alone():
    stn = regard.create("stn", 3, localisation="tutorial")
    assert sum(p.numel() for p in stn.parameters()) == regard.info("stn").parameters(3, localisation="tutorial")
    assert stn(torch.randn(1, 3, 28, 28)).shape == (1, 3, 28, 28)
    with pytest.raises(regard.UserError, match="28 x 28"):
        stn(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spatial_dims": 1}, "2 or 3"),
        ({"padding": "zero"}, "did you mean 'zeros'"),
        ({"size": (3,)}, "one number for each"),
        ({"localisation": "resnet"}, "a module, 'tutorial' or None"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(regard.UserError, match=words):
        regard.create("stn", 3, **options)


def test_attached_to_a_network_of_odd_sides_it_starts_exactly():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(2, 3, 13, 11)
    before = network(x)
    regard.attach(network, "stn", at="1", example=x)
    assert torch.equal(network(x), before)


@pytest.mark.parametrize("size", [(7, 13), (4, 4), (1, 3), (32, 20), (5, 6, 9)])
def test_cells_are_adaptive_pooling(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    pool = F.adaptive_avg_pool3d if len(size) == 3 else F.adaptive_avg_pool2d
    ours, theirs = Cells(4)(x), pool(x, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(theirs)
    gradients = [torch.autograd.grad(y, x, weights)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
