"""A kernel is as exact as its float32 reference on large numbers, far from 0, on equal pixels and on one pixel."""

import pytest
import torch

from regard.costs.support import cases
from regard.ops import use_impl
from running import OPS, differentiable, every_tensor, forward_and_gradients, tensors

FLOOR = 1e-5  # relative to the largest value: what rounding costs on usual numbers


def equal(x):
    """Every pixel as the first, laid out as before."""
    pixel = x[(slice(None), slice(None), *[slice(1)] * (x.dim() - 2))]
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(pixel.expand_as(x))


NUMBERS = {
    "large": lambda x: x * 1e12,
    "far from 0": lambda x: x + 1e4,
    "equal pixels": equal,
    "nearly equal pixels": lambda x: equal(x) + x * 1e-3,
}


def no_further(found, plain, exact):
    """Every error at most ten times the reference's, or within the floor."""
    for ours, theirs, wanted in zip(found, plain, exact, strict=True):
        scale = wanted.abs().max().clamp_min(1e-10)
        errors = [((value.double() - wanted).abs().max() / scale).item() for value in (ours, theirs)]
        assert errors[0] <= max(10 * errors[1], FLOOR), f"{errors[0]:.0e}, the reference {errors[1]:.0e}"


CASES = [pytest.param(op, name, id=f"{word}-{name}") for word, op in OPS.items() for name in cases(op)]


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize(("op", "name"), CASES)
def test_every_op(op, name, numbers):
    x, *others = cases(op)[name](torch.float32, "cpu")
    args = (every_tensor(x, NUMBERS[numbers]), *others)
    reason = op.why_not("cpu", *args)
    if reason:
        pytest.skip(reason)

    def run(impl, dtype):
        with use_impl(impl):
            outputs, gradients = forward_and_gradients(op, differentiable(every_tensor(args, lambda x: x.to(dtype))))
        return [*outputs, *gradients]

    no_further(run("cpu", torch.float32), run("reference", torch.float32), run("reference", torch.float64))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("word", OPS)
def test_a_sign_that_is_still_to_be_changed_is_changed(word, grad):
    """A view such as that of `x.conj().imag` says of its numbers that they count with the other sign."""
    op = OPS[word]
    args = every_tensor(next(iter(cases(op).values()))(torch.float32, "cpu"), lambda x: x.detach().requires_grad_(grad))
    run = lambda change: tensors(op(*every_tensor(args, change)))  # noqa: E731
    run(lambda x: -x)  # what looks alike is remembered
    for got, wanted in zip(run(torch._neg_view), run(lambda x: -x), strict=True):
        torch.testing.assert_close(got.resolve_neg(), wanted)
        if grad:
            leaves = tensors(args)
            found, exact = (
                torch.autograd.grad(y, leaves, direction, retain_graph=True, allow_unused=True)
                for y, direction in ((got, torch._neg_view(-got.detach())), (wanted, wanted.detach()))
            )
            for mine, theirs in zip(found, exact, strict=True):
                assert (mine is None) == (theirs is None)
                assert mine is None or (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()
