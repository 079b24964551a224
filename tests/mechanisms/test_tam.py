"""Temporal attention beyond the contract: the mixing of frames by hand, clips that do not touch, and attaching."""

import pytest
import torch
from torch import nn

import regard


def by_hand(module, x):
    """The frames mixed one by one, from the maps that the module shows."""
    with regard.record(module) as maps:
        y = module(x)
    values = {found.name: found.value for found in maps}
    frames, size = module.frames, values["kernel"].shape[2]
    gated = x * values["gate"]
    expected = torch.zeros_like(x)
    for frame in range(len(x)):
        clip, t = divmod(frame, frames)
        for j in range(size):
            other = t + j - size // 2
            if 0 <= other < frames:
                weight = values["kernel"][clip, :, j].reshape(-1, *[1] * (x.dim() - 2))
                expected[frame] += weight * gated[clip * frames + other]
    return y, expected


@pytest.mark.parametrize(
    ("frames", "kernel_size", "sides"), [(4, 3, (3, 5)), (1, 3, (2, 2)), (2, 5, (4,)), (3, 1, (2, 3, 2))]
)
def test_frames_are_mixed_within_a_clip(frames, kernel_size, sides):
    torch.manual_seed(0)
    module = regard.create("tam", 6, frames=frames, kernel_size=kernel_size, dtype=torch.float64).eval()
    x = torch.randn(2 * frames, 6, *sides, dtype=torch.float64)
    torch.testing.assert_close(*by_hand(module, x))
    # the other clip changes nothing
    torch.testing.assert_close(module(x[:frames]), module(x)[:frames])


def test_keeps_the_memory_layout():
    x = torch.randn(8, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    module = regard.create("tam", 6, frames=4)
    assert module(x).is_contiguous(memory_format=torch.channels_last)
    regard.info("tam").identity(module)
    assert module(x).is_contiguous(memory_format=torch.channels_last)


def test_attached_it_starts_exactly_and_learns():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    clips = torch.randn(2 * 4, 3, 9, 9)
    before = network(clips)
    attached = regard.attach(network, "tam", frames=4, at="1", example=clips)
    assert torch.equal(network(clips), before)
    optimiser = torch.optim.SGD(attached.parameters(), lr=1.0)
    start = {name: parameter.clone() for name, parameter in attached.named_parameters()}
    for _ in range(2):
        optimiser.zero_grad()
        network(clips)[1::2].square().sum().backward()
        optimiser.step()
    assert all(not torch.equal(start[name], parameter) for name, parameter in attached.named_parameters())


def test_mistakes_are_told():
    with pytest.raises(regard.UserError, match="whole clips of 8: give the frames of whole clips"):
        regard.create("tam", 4)(torch.randn(12, 4, 3, 3))
    with pytest.raises(regard.UserError, match="kernel_size is odd"):
        regard.create("tam", 4, kernel_size=4)
    with pytest.raises(regard.UserError, match="stride is 1"):
        regard.load_official("tam", {"L.0.weight": torch.ones(1, 4, 3)}, stride=2)
