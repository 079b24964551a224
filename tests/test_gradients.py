"""The gradient of a map between a squeeze and a gate is written once, and right whatever else happens to the map."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import regard
from regard import ops


@pytest.fixture(params=ops.squeezing.fast, autouse=True)
def impl(request):
    device = "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"
    with ops.use_impl(request.param), torch.device(device):
        reason = ops.squeezing.why_not(request.param, torch.ones(1, 1, 1, 1), ((2, 3),), ("avg",), ())
        if reason:
            pytest.skip(reason)
        yield request.param


def random(draw, shape, seed):
    """The same numbers on every device."""
    numbers = draw(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return numbers.to(torch.get_default_device())


def draw(layout=torch.contiguous_format, shape=(2, 12, 9, 21)):
    return random(torch.randn, shape, 0).contiguous(memory_format=layout).requires_grad_()


def weight():
    return random(torch.rand, (1, 12, 1, 1), 1).requires_grad_()


def one(x, w):
    x, mean = ops.squeeze(x, (2, 3))
    return ops.gate(x, torch.sigmoid(w * mean))


def two(x, w):
    x, mean, top = ops.squeeze(x, (2, 3), kinds=("avg", "max"))
    gate = torch.sigmoid(w * mean + top)
    x, top, mean = ops.squeeze(x, (1,), kinds=("max", "avg"), gates=(gate,))
    return ops.gate(x, gate, torch.sigmoid(top - mean))


def spread(x, w):
    x, mean, variance = ops.squeeze(x, (2, 3), kinds=("avg", "var"))
    x, norm = ops.squeeze(x, (2, 3), kinds=("lp",))
    return ops.gate(x, torch.sigmoid(w * mean + variance - norm))


def axes(x, w):
    x, *profiles = ops.squeeze(x, (3,), (2,))
    return ops.gate(x, *(torch.sigmoid(w * profile) for profile in profiles))


def three(x, w):
    x, *stats = ops.squeeze(x, (2,), (3,), (1,), kinds=("max", "avg"))
    return ops.gate(x, *(torch.sigmoid(a * b) for a, b in zip(stats[::2], stats[1::2], strict=True)), mean=True) * w


def pooled(x, w):
    x, logits = ops.squeeze(x, (1,), kinds=("sum",), gates=(w,))
    weights = logits.flatten(2).softmax(-1).view(logits.shape)
    x, context = ops.squeeze(x, (2, 3), kinds=("sum",), gates=(weights,))
    return ops.gate(x, torch.sigmoid(context), shift=context)


def also_read(x, w):  # what the squeeze passes on goes elsewhere too
    z, mean = ops.squeeze(x, (2, 3))
    return ops.gate(z, torch.sigmoid(w * mean)) + 2 * z.tanh() + x


def two_gates(x, w):
    z, mean = ops.squeeze(x, (2, 3))
    return ops.gate(z, torch.sigmoid(w * mean)) + ops.gate(z, mean)


def no_gate(x, w):
    _, top = ops.squeeze(x, (2, 3), kinds=("max",))
    return top * w


def detached(x, w):
    z, mean = ops.squeeze(x, (2, 3))
    return ops.gate(z, torch.sigmoid(w * mean.detach()))


def other_layout(x, w):  # the gradient arrives laid out otherwise than the map
    return one(x, w).transpose(2, 3).contiguous() * random(torch.rand, (21, 9), 2).to(x)


def expanded(x, w):  # a gradient without memory of its own
    return two(x, w).sum((2, 3))


FORMS = [one, two, spread, axes, three, pooled, also_read, two_gates, no_gate, detached, other_layout, expanded]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def gradients(form, x, w, **how):
    y = form(x, w)
    direction = random(torch.randn, y.shape, 3).to(y)
    return y, *torch.autograd.grad(y, (x, w), direction, **how)


def exact(form, x, w, **how):
    with ops.use_impl("reference"):
        return gradients(form, *(tensor.detach().double().requires_grad_() for tensor in (x, w)), **how)


def agree(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.double() - theirs).abs().max() <= 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_against_the_reference(form, layout):
    x, w = draw(LAYOUTS[layout]), weight()
    found = gradients(form, x, w)
    agree(found, exact(form, x, w))
    assert all(torch.equal(mine, again) for mine, again in zip(found, gradients(form, x, w), strict=True))
    if form is not also_read:
        assert found[1].stride() == x.stride()


@pytest.mark.parametrize("form", FORMS)
def test_twice_through_one_graph(form):
    x, w = draw(), weight()
    y = form(x, w)
    direction = random(torch.randn, y.shape, 3)
    first = torch.autograd.grad(y, (x, w), direction, retain_graph=True)
    (only_w,) = torch.autograd.grad(y, w, direction, retain_graph=True)
    again = torch.autograd.grad(y, (x, w), direction)
    assert all(map(torch.equal, first, again))
    torch.testing.assert_close(only_w, first[1])


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_of_a_gradient(form):
    def penalty(x, w):
        _, dx, dw = gradients(form, x, w, create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dw.sum(), (x, w), allow_unused=True)

    def penalties(x, w):
        return [torch.zeros(()) if d is None else d for d in penalty(x, w)]

    x, w = draw(), weight()
    with ops.use_impl("reference"):
        expected = penalties(*(tensor.detach().double().requires_grad_() for tensor in (x, w)))
    for mine, theirs in zip(penalties(x, w), expected, strict=True):
        assert (mine.double() - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_many_gradients_at_once(form):
    x, w = draw(), weight()
    y = form(x, w)
    directions = random(torch.randn, (3, *y.shape), 3)
    batched = torch.autograd.grad(y, (x, w), directions, retain_graph=True, is_grads_batched=True)
    singly = [torch.autograd.grad(y, (x, w), direction, retain_graph=True) for direction in directions]
    for mine, theirs in zip(batched, map(torch.stack, zip(*singly, strict=True)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("form", [one, two, three])
def test_under_checkpointing(form, reentrant):
    x, w = draw(), weight()
    plain = gradients(form, x, w)[1:]
    y = checkpoint(form, x, w, use_reentrant=reentrant)
    y.backward(random(torch.randn, y.shape, 3))
    torch.testing.assert_close((x.grad, w.grad), plain)


@pytest.mark.parametrize("form", FORMS)
def test_a_map_that_needs_no_gradient(form):
    x, w = draw(), weight()
    expected = gradients(form, x, w)[2]
    y = form(x.detach(), w)
    (dw,) = torch.autograd.grad(y, w, random(torch.randn, y.shape, 3))
    torch.testing.assert_close(dw, expected)
    with torch.inference_mode():
        torch.testing.assert_close(form(x, w), y)


def test_a_gradient_of_what_was_seen_alone():
    x, w = draw(), weight()
    z, mean = ops.squeeze(x, (2, 3))
    gate = torch.sigmoid(w * mean)
    ops.gate(z, gate)
    (dx,) = torch.autograd.grad(gate.sum(), x)
    with ops.use_impl("reference"):
        (expected,) = torch.autograd.grad(torch.sigmoid(w * x.mean((2, 3), keepdim=True)).sum(), x)
    torch.testing.assert_close(dx, expected)


def test_a_map_changed_before_backward_is_noticed():
    x, w = draw(), weight()
    z = x * 1
    y = one(z, w)
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|modified inplace"):
        y.sum().backward()


def test_from_several_threads():
    x, w = draw(), weight()
    expected = gradients(two, x, w)
    found = [None] * 6

    def work(place):
        for _ in range(20):
            found[place] = gradients(two, x, w)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        assert all(map(torch.equal, each, expected))


def test_hooks_see_the_gate_and_may_change_it():
    se = regard.create("se", 12)
    x = draw()
    handle = se.gate.register_forward_hook(lambda module, args, gate: 0.5 * gate)
    half = se(x)
    handle.remove()
    torch.testing.assert_close(half, 0.5 * se(x))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_no_bit(threads):
    x, w = draw(shape=(1, 12, 60, 70)), weight()
    expected = gradients(two, x, w)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = gradients(two, x, w)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_gate_that_is_given_twice():
    def squared(x, w):
        return ops.squeeze(x, (2, 3), kinds=("sum", "max"), gates=(w, w))[1] + ops.gate(x, w, w).sum((2, 3), True)

    x, w = draw(), weight()
    agree(gradients(squared, x, w), exact(squared, x, w))
