"""What takes or makes several maps: selective kernels, the U-Net gate, layer attention; beyond the contract."""

import pytest
import timm
import torch
from torch.nn import functional as F

import regard


@pytest.mark.parametrize(
    ("kernels", "stride", "out", "groups"), [((3, 5), 2, 48, 8), ((3, 5, 7), 1, 24, 4), ((3,), 1, 24, 1)]
)
def test_sk_is_timms_with_any_number_of_branches(kernels, stride, out, groups):
    """timm's module computes what the authors' Caffe description says when it does not split its input."""
    torch.manual_seed(0)
    theirs = timm.layers.SelectiveKernel(
        24, out, list(kernels), stride=stride, groups=groups, rd_channels=10, split_input=False
    ).double()
    ours = regard.load_official("sk", theirs.state_dict(), channels=24, stride=stride, groups=groups)
    x = torch.randn(3, 24, 9, 7, dtype=torch.float64)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=0, atol=1e-12)


def test_sk_does_not_take_branches_with_channels_of_their_own_for_groups():
    with pytest.raises(regard.UserError, match="a kernel sees 12 of 24 channels: pass groups=2, unless timm built it"):
        regard.load_official("sk", timm.layers.SelectiveKernel(24).state_dict())


def test_sk_takes_the_largest_number_of_groups_that_fits():
    assert regard.create("sk", 20).groups == 4
    assert regard.create("sk", 64, out_channels=48).groups == 16
    assert regard.create("sk", 21).groups == 1


def test_sk_weights_share_every_channel_among_the_branches():
    torch.manual_seed(0)
    sk = regard.create("sk", 8, branches=3).eval()
    with regard.record(sk) as maps:
        sk(torch.randn(2, 8, 5, 5))
    assert maps[0].value.shape == (2, 3, 8, 1, 1)
    torch.testing.assert_close(maps[0].value.sum(1), torch.ones(2, 8, 1, 1))


@pytest.mark.parametrize(
    ("skip", "coarse"), [((12, 8), (6, 4)), ((13, 7), (3, 5)), ((6, 4), (9, 11)), ((1, 1), (1, 1)), ((1, 9), (2, 2))]
)
def test_the_gate_is_the_papers_equation(skip, coarse):
    """At every ratio of the two maps, those too that the contract does not ask for."""
    torch.manual_seed(0)
    gate = regard.create("attention_gate", 6, gating=10, hidden=4, project=False, dtype=torch.float64)
    x, g = torch.randn(2, 6, *skip, dtype=torch.float64), torch.randn(2, 10, *coarse, dtype=torch.float64)
    weights = gate.state_dict()
    filled = F.pad(x, (0, max(0, 2 - skip[1]), 0, max(0, 2 - skip[0])))
    seen = torch.einsum("bcijkl,ockl->boij", filled.unfold(2, 2, 2).unfold(3, 2, 2), weights["from_skip.weight"])
    told = pixelwise(g, weights, "from_gating")
    f = torch.relu(seen + F.interpolate(told, seen.shape[2:], mode="bilinear"))
    mask = F.interpolate(torch.sigmoid(pixelwise(f, weights, "score")), skip, mode="bilinear")
    torch.testing.assert_close(gate(x, g), x * mask)


def pixelwise(x, weights, layer):
    """A 1x1 convolution, written out."""
    y = torch.einsum("bihw,oi->bohw", x, weights[f"{layer}.weight"].flatten(1))
    return y + weights[f"{layer}.bias"].view(-1, 1, 1)


def test_the_gate_with_a_stride_for_each_axis():
    gate = regard.create("attention_gate", 6, stride=(1, 2), project=False)
    y = gate(torch.randn(2, 6, 5, 8), torch.randn(2, 6, 3, 2))
    assert y.shape == (2, 6, 5, 8)
    assert gate.from_skip(torch.randn(2, 6, 5, 8)).shape == (2, 3, 5, 4)
    parameters = regard.info("attention_gate").parameters(6, stride=(1, 2), project=False)
    assert parameters == sum(weight.numel() for weight in gate.parameters())
    for stride, spatial_dims in (((1, 2), 3), ((2, 0), 2), (0, 2), (1.5, 2), ("22", 2)):
        with pytest.raises(regard.UserError, match=rf"positive whole number, or one for each of {spatial_dims} axes"):
            regard.create("attention_gate", 6, stride=stride, spatial_dims=spatial_dims)


def test_the_projection_of_the_released_code():
    torch.manual_seed(0)
    gate = regard.create("attention_gate", 6, dtype=torch.float64)
    x, g = torch.randn(2, 6, 8, 8, dtype=torch.float64), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    with regard.record(gate) as maps:
        y = gate(x, g)
    convolution, norm = gate.project
    expected = F.batch_norm(convolution(x * maps[0].value), None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(y, expected)


def test_layers_that_are_alike_weigh_little():
    torch.manual_seed(0)
    attention = regard.create("layer_attention", 4)
    layers = torch.randn(1, 3, 4, 3, 3)
    layers[:, 1] = layers[:, 0]
    with regard.record(attention) as maps:
        y = attention(layers)
    assert torch.equal(y, layers.flatten(1, 2))
    weights = maps[0].value[0]
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights[0, 2] > weights[0, 1]


def test_wrong_dimensions():
    for name in ("sk", "attention_gate"):
        with pytest.raises(regard.UserError, match="1, 2 or 3"):
            regard.create(name, 8, spatial_dims=4)
