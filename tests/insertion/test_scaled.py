"""start="scaled" and constant twins: every mechanism that can be attached, by its registration."""

import copy

import pytest
import torch
from torch import nn

import regard
from regard.base.errors import UserError
from regard.comparison import hosts
from regard.comparison.twins import make_constant
from regard.insertion.scaled_start import taps_in_replica
from regard.layers.tap import Constant, Tap, keep_scale, taps
from regard.ops.kernels import library

X = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
NAMES = [name for name in regard.names() if regard.info(name).place]
GATING = ("se", "cbam", "simam", "sge", "shuffle", "srm", "gam", "scse[combine=add]", "bam")
every = pytest.mark.parametrize("name", NAMES)


def host(**options):
    return hosts.build("small_resnet", 10, 1, seed=0, size=28, **options)


def attach(net, name, start="scaled", **options):
    name, chosen = regard.registry.spelling.parse(name)
    return regard.attach(net, name, example=X, start=start, seed=0, **chosen, **options)


def photograph(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def gates(net, x, *, train=False):
    """What every tap that multiplies applied, in the order of the pass."""
    found = []
    seen = lambda tap, args, value: found.append((tap, value.detach().clone()))  # noqa: E731
    handles = [tap.register_forward_hook(seen) for _, tap in taps(net) if tap.rest is not None]
    with torch.no_grad():
        net.train(train)(x)
    for handle in handles:
        handle.remove()
    return found


@every
def test_a_scaled_gate_starts_with_the_mean_that_leaves_a_map_alone(name):
    net = host()
    net.train()
    before, state = photograph(net), torch.get_rng_state()
    attached = attach(net, name)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    for key, value in before.items():
        assert torch.equal(net.state_dict()[key], value), f"{key} has moved"
    found = []
    with taps_in_replica(attached) as (twin, pairs), torch.no_grad():
        for tap, copied in pairs:
            if tap.rest is not None:
                assert tap.strength is None, "a scaled gate does not fade in"
                copied.register_forward_hook(lambda tap, args, value: found.append((tap, value.float())))
        twin(X)
    for tap, value in found:
        size = value.mean() if tap.low >= 0 else value.square().mean().sqrt()
        assert size == pytest.approx(tap.rest, abs=1e-4)
    assert len(found) >= sum(tap.rest is not None for _, tap in taps(net))
    attached.remove()
    assert photograph(net).keys() == before.keys()
    with torch.no_grad():
        assert torch.equal(net.eval()(X), host().eval()(X))


@pytest.mark.parametrize("name", GATING)
def test_a_scaled_arm_is_saved_and_loaded_and_copied(name, tmp_path):
    net = host()
    attached = attach(net, name)
    factors = [float(tap.scale) for _, tap in taps(net) if tap.rest is not None]
    assert factors
    assert any(abs(factor - 1) > 0.01 for factor in factors), "nothing was scaled"
    attached.save(tmp_path / "arm.safetensors")
    other = host()
    assert regard.load(other, tmp_path / "arm.safetensors").start == "scaled"
    with torch.no_grad():
        y = net.eval()(X)
        assert torch.equal(other.eval()(X), y)
        assert torch.equal(copy.deepcopy(net)(X), y)
    assert [found.start for found in regard.attached(copy.deepcopy(net))] == ["scaled"]


@pytest.mark.parametrize("name", ["se", "simam", "sge", "shuffle"])
def test_later_gates_see_the_earlier_ones_scaled(name):
    """The gates of one pass in training mode, whose norms see what the start saw."""
    net = host()
    attach(net, name)
    means = [float(value.mean()) for _, value in gates(net, X, train=True)]
    assert means == pytest.approx([1.0] * len(means), abs=1e-3)


@pytest.mark.skipif(library.missing() is not None, reason="no C++ kernels here")
@pytest.mark.parametrize("name", ["simam", "sge", "shuffle"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_scaled_gate_runs_through_the_fast_kernels(name, layout):
    def gradients(impl):
        torch.manual_seed(0)
        module = regard.create(name, 16)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        keep_scale(module)
        for _, tap in taps(module):
            tap.scale.fill_(1.7)
        x = torch.randn(2, 16, 14, 14).to(memory_format=layout).requires_grad_()
        with regard.use_impl(impl):
            y = module(x)
            y.square().sum().backward()
        return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]

    for ours, law in zip(gradients("cpu"), gradients("reference"), strict=True):
        torch.testing.assert_close(ours, law, rtol=1e-4, atol=1e-4 * float(law.abs().max()))


def test_what_the_start_needs_is_said():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    with pytest.raises(UserError, match="give an example of several images"):
        regard.attach(net, "se", at="0", example=X[:1], start="scaled")
    assert not regard.attached(net)


def test_a_gate_without_a_mean_keeps_its_factor():
    tap = Tap("channel")
    tap.keep_scale()
    tap.measure(torch.zeros(2, 3, 1, 1))
    assert float(tap.scale) == 1.0
    assert tap.limits == (0.0, 1.0)
    tap.measure(torch.full((2, 3, 1, 1), 0.25))
    assert float(tap.scale) == 4.0
    assert tap.limits == (0.0, 4.0)


# ---- constant twins


@every
@pytest.mark.parametrize("start", ["scaled", "identity"])
def test_a_twin_does_not_look(name, start):
    net = host()
    attached = attach(net, name, start)
    mechanisms = {key: value.clone() for key, value in attached.state_dict().items()}
    make_constant(attached, X)
    for key, value in mechanisms.items():  # what is learnt no more is kept under its name
        assert torch.equal(attached.state_dict()[key], value)
    found = []
    seen = lambda tap, args, value: found.append(value.detach().clone())  # noqa: E731
    for _, tap in taps(net):
        assert isinstance(tap, Constant)
        tap.register_forward_hook(seen)
    with torch.no_grad():
        net.train()(X)
        first = [*found]
        found.clear()
        net(2 * X.flip(0) + 1)
    assert len(first) == len(found)
    assert all(map(torch.equal, first, found)), "a gate has seen its input"
    learnt = dict(attached.named_parameters())
    for _, tap in taps(net):
        for parameter in (tap.strength, tap.value):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.3)  # a frame that leaves the picture would get no gradient
    for parameter in learnt.values():
        if parameter.dim() > 1 or not parameter.any():  # authors who start at 0 let nothing through yet
            nn.init.normal_(parameter)
    net(X).square().sum().backward()
    for key, parameter in learnt.items():
        assert parameter.grad is not None, f"{key} gets no gradient"
    for where, tap in taps(net):
        for parameter in (tap.strength, tap.value):
            assert parameter is None or parameter.grad.any(), f"the constant {where} gets zero"


@pytest.mark.parametrize("name", GATING)
def test_a_twin_starts_with_the_mean_of_the_gate(name):
    net = host()
    attached = attach(net, name)
    with taps_in_replica(attached) as (twin, pairs), torch.no_grad():
        means = []
        for tap, copied in pairs:
            if tap.rest is not None:
                copied.register_forward_hook(lambda tap, args, value: means.append(value.mean(0)))
        twin(X)
    make_constant(attached, X)
    constants = [value[0] for _, value in gates(net, X[:4])]
    assert len(constants) == len(means)
    for constant, mean in zip(constants, means, strict=True):
        torch.testing.assert_close(constant, mean, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in attached.parameters()) == sum(constant.numel() for constant in constants)
    state = photograph(net)
    other = host()
    again = attach(other, name)
    make_constant(again, X)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(other.eval()(X), net.eval()(X))
    with pytest.raises(UserError, match="its gates are constants now"):
        attached.save("nowhere.safetensors")


def test_what_still_sees_the_input_learns_on():
    net = host()
    attached = attach(net, "gc")
    whole = sum(p.numel() for p in attached.parameters())
    make_constant(attached, X)
    dropped = sum(module.query.weight.numel() + 1 for module in attached.modules.values())
    assert sum(p.numel() for p in attached.parameters()) == whole - dropped


def test_a_twin_says_which_images_it_takes():
    net = host()
    attached = attach(net, "sge")
    make_constant(attached, X)
    with pytest.raises(UserError, match="give images of the size that it was made with"):
        net(torch.randn(2, 1, 32, 32))
