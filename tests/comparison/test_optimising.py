"""How the weights of a run move."""

import copy

import pytest
import torch
from torch import nn

import regard
from regard.comparison.optimising import Optimiser, schedule


class Net(nn.Module):
    """A stem of one channel, kernels of three shapes, one by groups, a linear layer."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.depthwise(self.point(torch.relu(self.norm(self.wide(self.stem(x))))))
        return self.head(x.mean((2, 3)))


def images(channels=1):
    return torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_learning_rate_rises_to_its_height_and_falls_to_nothing():
    rates = [schedule(step / 1000) for step in range(1001)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] < 0.1
    assert rates[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_the_kernels_of_the_host_and_adamw_what_is_left(layout):
    """The step of a kernel is the one that torch's Muon makes of it as a matrix, in whichever layout it lies."""
    torch.manual_seed(0)
    net = Net().to(memory_format=layout)
    regard.attach(net, "cbam", at="norm", example=images(), seed=0)
    optimiser = Optimiser(net, 1e-3, 0.05, 0.1)
    net(images()).square().sum().backward()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    gradients = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    optimiser.step(0.5)
    moved = {name: parameter.detach() for name, parameter in net.named_parameters()}
    adam, muon = optimiser.parts
    assert sum(len(group["params"]) for group in adam.param_groups) + 2 == len(before)
    assert len(muon.param_groups[0]["params"]) == 2
    for name in ("wide.weight", "point.weight"):
        alone = nn.Parameter(before[name].flatten(1).clone())
        alone.grad = gradients[name].flatten(1)
        settings = {key: value for key, value in muon.defaults.items() if key != "lr"}
        torch.optim.Muon([alone], lr=0.05 * schedule(0.5), **settings).step()
        # its arithmetic is in bfloat16, and rounds by the order of the columns
        step, wanted = moved[name].flatten(1) - before[name].flatten(1), alone - before[name].flatten(1)
        assert (step - wanted).norm() < 0.02 * wanted.norm()
    for name in moved.keys() - {"wide.weight", "point.weight"}:
        assert not torch.equal(moved[name], before[name]) or not gradients[name].any(), name
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_is_frozen_stays():
    net = Net()
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    optimiser = Optimiser(net, 1e-3, 0.05, 0.1)
    net(images()).sum().backward()
    optimiser.step(0.3)
    changed = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("rate", [None, 0.05])
def test_a_state_goes_into_a_like_optimiser_and_into_no_other(rate):
    def made(net, rate):
        return net, Optimiser(net, 1e-2, rate, 0.1)

    def learn(net, optimiser):
        net(images()).square().sum().backward()
        optimiser.step(0.2)

    torch.manual_seed(0)
    net, optimiser = made(Net(), rate)
    learn(net, optimiser)
    other, resumed = made(Net(), rate)
    state = copy.deepcopy(optimiser.state())
    assert resumed.fits(state)
    other.load_state_dict(net.state_dict())
    resumed.load(state)
    learn(net, optimiser)
    learn(other, resumed)
    for mine, theirs in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert not made(Net(), 0.05 if rate is None else None)[1].fits(state)
    assert not made(Net(3), rate)[1].fits(state)
