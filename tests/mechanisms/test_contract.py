"""The contract that every registered mechanism inherits: nobody writes it again for a new one."""

import pytest
import torch
from torch import nn

import regard
from contract import PROMISES, Subject, ours
from regard.registry.registration import register

CASES = [
    pytest.param(name, words, id=f"{name}-{words}", marks=[pytest.mark.slow] * promise.slow)
    for name in regard.names()
    for words, promise in PROMISES.items()
    if promise.where(regard.info(name))
]


@pytest.mark.parametrize(("name", "words"), CASES)
def test_contract(name, words):
    check = PROMISES[words].check
    unkept = regard.info(name).exceptions.get(words)
    if unkept is None:
        check(ours(name))
        return
    with pytest.raises(Exception, match=unkept.error):  # an exception on the card that is none is a lie
        check(ours(name))
    pytest.skip(unkept)


class Weighed(nn.Module):
    """A gate on the mean of each channel."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * torch.sigmoid(self.logits(x))

    def logits(self, x):
        return (self.weight * x.mean((2, 3)))[..., None, None]


class WithoutSigmoid(Weighed):
    def forward(self, x):
        return x * self.logits(x)


class WithoutGradient(Weighed):
    def forward(self, x):
        return x * torch.sigmoid(self.logits(x.detach()))


class OnOneAxis(Weighed):
    def logits(self, x):
        return (self.weight * x.mean(3).amax(2))[..., None, None]


@pytest.mark.parametrize("gate", [WithoutSigmoid, WithoutGradient, OnOneAxis])
def test_a_gate_that_is_not_its_formula_is_caught(gate):
    def subject(factory):
        elsewhere = {}
        register(
            "weighed", category="channel", paper="Nobody 2020", place="branches", parameters=lambda channels: channels,
            signature="(B, C, H, W) -> same", registry=elsewhere,
            formula=lambda x, weights: x * torch.sigmoid(torch.einsum("c,bchw->bc", weights["weight"], x)
                                                         / x[0, 0].numel())[..., None, None],
        )(factory)  # fmt: skip
        return Subject("weighed", factory, elsewhere["weighed"])

    words = "the formula of its paper"
    assert PROMISES[words].where(subject(gate).known)
    PROMISES[words].check(subject(Weighed))
    with pytest.raises(AssertionError, match="not the formula that it registers"):
        PROMISES[words].check(subject(gate))


def test_what_names_a_paper_is_held_to_something():
    words = {"category": "channel", "place": "branches", "parameters": lambda channels: channels, "registry": {}}
    with pytest.raises(regard.UserError, match=r"weighed names a paper and nothing .*: give formula=.* or official="):
        register("weighed", paper="Nobody 2020", **words)
    register("weighed", paper="Nobody 2020", formula=lambda x, weights: x, **words)(Weighed)
    register("weighed", paper="-", **words)(Weighed)
