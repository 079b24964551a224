"""Hidden layers of gates: from the identity every unit learns, in however narrow a network; and few units are said."""

import re

import pytest
import torch
from torch import nn

import regard
from regard.costs.advising import advise
from regard.insertion.hidden import narrow
from regard.insertion.identity_start import start_as_identity
from regard.insertion.plan import plan

OPTIONS = {
    "cbam": [{}, {"squeeze": "max"}, {"arrangement": "channel"}],
    "gc": [{}, {"squeeze": "avg"}, {"fusion": "mul"}, {"fusion": "add+mul"}],
    "ge": [{"form": "theta-plus", "extent": 2}, {"form": "theta-plus", "size": 5}],
    "bam": [{}, {"combine": "sum"}],
    "scse": [{}, {"combine": "add"}],
    "polarized": [{"arrangement": "sequential"}],
    "sk": [{"groups": 1}],
    "tam": [{"frames": 2}],
}
WITHOUT_EFFECT = {  # in front of a norm or a softmax, from whatever start
    "bam": r"down\.bias|reduce\.bias|dilated\.\d\.bias", "gam": r"conv\d\.bias", "coordinate": r"down\.bias",
    "gc": r"query\.bias", "danet_position": r"key\.bias", "qkv": r"key\.bias", "criss_cross": r"key\.bias",
    "non_local": r"key\.bias",
}  # fmt: skip
HIDDEN = [name for name in regard.names() if regard.info(name).hidden]
OTHERS = [name for name in regard.names() if regard.info(name).place and name not in HIDDEN]


def dead(name, channels, seed, options):
    """Parameters without a gradient within three steps, on a map of one sign and on one of both."""
    known = regard.info(name)
    size = ((5, 5), (7,), (3, 5, 4))[seed % 3]
    if "*spatial" not in known.signature or "size" in options or name in ("triplet", "stn", "local"):
        size = (5, 5)
    if "spatial_dims" in known.options:
        options = options | {"spatial_dims": len(size)}
    found = []
    for one_sign in (True, False):
        torch.manual_seed(seed)
        module = regard.create(name, channels, **options)
        start_as_identity(known, module)
        if not [*module.parameters()]:
            return []
        x, target = torch.randn(2, 2, channels, *size)
        x = x.relu() if one_sign else x
        assert torch.equal(module(x), x) or name == "sk"
        optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
        learnt = set()
        for _ in range(3):
            optimiser.zero_grad()
            (module(x) - target).square().mean().backward()
            optimiser.step()
            learnt |= {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
        nothing = WITHOUT_EFFECT.get(name, "-")
        found += [n for n, _ in module.named_parameters() if n not in learnt and not re.fullmatch(nothing, n)]
    return found


@pytest.mark.parametrize("name", HIDDEN)
def test_every_parameter_learns_from_the_identity(name):
    for options in OPTIONS.get(name, [{}]):
        for channels in (4, 16):
            for seed in range(2):
                assert dead(name, channels, seed, options) == [], f"{options}, {channels} channels, seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", HIDDEN + OTHERS)
def test_every_parameter_learns_from_a_hundred_seeds(name):
    for options in OPTIONS.get(name, [{}]):
        for channels in (4, 8, 16, 32, 64):
            for seed in range(100 if name in HIDDEN else 5):
                assert dead(name, channels, seed, options) == [], f"{options}, {channels} channels, seed {seed}"


def test_without_biases_maps_of_one_sign_open_a_unit():
    for seed in range(20):
        for channels in (4, 16, 32):
            torch.manual_seed(seed)
            module = regard.create("se", channels, bias=False)
            start_as_identity(regard.info("se"), module)
            x = torch.randn(2, channels, 5, 5)
            assert torch.relu(module.down(x.relu().mean((2, 3)))).any()
            if channels == 32:  # two units, one for each sign
                assert torch.relu(module.down(x.mean((2, 3)))).any(1).all()


def test_the_authors_start_is_theirs_to_the_bit():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    for name in ("se", "cbam", "gc"):
        attached = regard.attach(net, name, at="1", example=torch.randn(1, 3, 8, 8), start="paper", seed=5)
        torch.manual_seed(5)
        alone = regard.create(name, 16).state_dict()
        assert all(
            torch.equal(a, b) for a, b in zip(attached.modules["1"].state_dict().values(), alone.values(), strict=True)
        )
        attached.remove()


def test_few_units_are_said_everywhere():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.ReLU())
    x = torch.randn(2, 3, 12, 12)
    said = "1 hidden unit at 1: reduction=4 gives 4"
    attached = regard.attach(net, "se", at=["1", "3"], example=x)
    assert attached.notes == [said]
    assert said in repr(attached)
    attached.remove()
    assert said in str(plan(net, x, mechanism="se", at=["1", "3"]))
    assert said not in str(plan(net, x, mechanism="se[reduction=4]", at=["1", "3"]))
    (row,) = advise(net, x, mechanisms=["se"], at=["1", "3"], rounds=3).rows
    assert f"{said}." in row.warnings


def test_which_option_gives_more_units():
    def of(name, channels, **options):
        return narrow(name, {"a": channels}, {"a": options})

    assert of("cbam", 32) == ["2 hidden units at a: reduction=8 gives 4"]
    assert of("cbam", 32, arrangement="spatial") == []
    assert of("gc", 64, hidden=1) == ["1 hidden unit at a: hidden=4 gives 4"]
    assert of("se", 2) == ["1 hidden unit at a: reduction=1 gives 2"]
    assert of("polarized", 8, arrangement="sequential") == ["1 hidden unit at a"]
    assert of("polarized", 8) == of("simam", 8) == of("sk", 8) == of("ge", 8) == []
    sites = {f"s{number}": 16 for number in range(5)}
    (said,) = narrow("se", sites, {site: {} for site in sites})
    assert said == "1 hidden unit at s0, s1, s2 and 2 more: reduction=4 gives 4"
