"""The gradient of a map between a squeeze and a gate is written once, and right whatever else happens to the map."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import regard
from regard import ops


@pytest.fixture(params=ops.OPS["squeeze"].fast, autouse=True)
def impl(request):
    device = "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"
    with ops.use_impl(request.param), torch.device(device):
        reason = ops.OPS["squeeze"].why_not(request.param, torch.ones(1, 1, 1, 1), ((2, 3),), ("avg",), ())
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
    joint = ops.Joint(x)
    (mean,) = joint.squeeze((2, 3))
    return joint.gate(torch.sigmoid(w * mean))


def two(x, w):
    joint = ops.Joint(x)
    mean, top = joint.squeeze((2, 3), kinds=("avg", "max"))
    gate = torch.sigmoid(w * mean + top)
    top, mean = joint.squeeze((1,), kinds=("max", "avg"), gates=(gate,))
    return joint.gate(gate, torch.sigmoid(top - mean))


def spread(x, w):
    joint = ops.Joint(x)
    mean, variance = joint.squeeze((2, 3), kinds=("avg", "var"))
    (norm,) = joint.squeeze((2, 3), kinds=("lp",))
    return joint.gate(torch.sigmoid(w * mean + variance - norm))


def axes(x, w):
    joint = ops.Joint(x)
    return joint.gate(*(torch.sigmoid(w * profile) for profile in joint.squeeze((3,), (2,))))


def three(x, w):
    joint = ops.Joint(x)
    stats = joint.squeeze((2,), (3,), (1,), kinds=("max", "avg"))
    return joint.gate(*(torch.sigmoid(a * b) for a, b in zip(stats[::2], stats[1::2], strict=True)), mean=True) * w


def pooled(x, w):
    joint = ops.Joint(x)
    (logits,) = joint.squeeze((1,), kinds=("sum",), gates=(w,))
    weights = logits.flatten(2).softmax(-1).view(logits.shape)
    (context,) = joint.squeeze((2, 3), kinds=("sum",), gates=(weights,))
    return joint.gate(torch.sigmoid(context), shift=context)


def also_read(x, w):  # the map goes elsewhere too
    return one(x, w) + 2 * x.tanh() + x


def two_gates(x, w):
    joint = ops.Joint(x)
    (mean,) = joint.squeeze((2, 3))
    return joint.gate(torch.sigmoid(w * mean)) + joint.gate(mean)


def no_gate(x, w):
    (top,) = ops.Joint(x).squeeze((2, 3), kinds=("max",))
    return top * w


def detached(x, w):
    joint = ops.Joint(x)
    (mean,) = joint.squeeze((2, 3))
    return joint.gate(torch.sigmoid(w * mean.detach()))


def apart(x, w):  # the public pair
    z, mean, top = ops.squeeze(x, (2, 3), kinds=("avg", "max"))
    return ops.gate(z, torch.sigmoid(w * mean), top)


def other_layout(x, w):  # the gradient arrives laid out otherwise than the map
    return one(x, w).transpose(2, 3).contiguous() * random(torch.rand, (21, 9), 2).to(x)


def expanded(x, w):  # a gradient without memory of its own
    return two(x, w).sum((2, 3))


FORMS = [one, two, spread, axes, three, pooled, also_read, two_gates, no_gate, detached, apart, other_layout, expanded]
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
    joint = ops.Joint(x)
    (mean,) = joint.squeeze((2, 3))
    gate = torch.sigmoid(w * mean)
    joint.gate(gate)
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


# --- the public pair, whatever is asked of its gradients --------------------------------------------------------------


def read(tensors):
    return [None if tensor is None else tensor.clone() for tensor in tensors]


def retained(x, z, y, stats, w):
    z.retain_grad()
    (y.sum() + z.square().sum()).backward()
    return x.grad, z.grad, w.grad


def hooked(x, z, y, stats, w):
    seen = []
    z.register_hook(lambda gradient: seen.append(gradient.clone()))
    y.square().sum().backward()
    return *seen, x.grad


def halved(x, z, y, stats, w):
    z.register_hook(lambda gradient: gradient / 2)
    y.square().sum().backward()
    return x.grad, w.grad


def kept_by_the_node(x, z, y, stats, w):
    seen = []
    z.grad_fn.register_prehook(lambda gradients: seen.extend(read(gradients)))
    y.square().sum().backward()
    return *seen, x.grad


def partial(x, z, y, stats, w):
    return [
        gradient
        for what in (y.sum(), y.square().sum(), stats[0].sum(), (stats[-1] * w).sum())
        for wanted in ((z,), (x, z), (z, w), (w,), tuple(stats))
        for gradient in torch.autograd.grad(what, wanted, retain_graph=True, allow_unused=True)
    ]


def into_inputs(x, z, y, stats, w):
    z.retain_grad()
    y.sum().backward(inputs=[z], retain_graph=True)
    first = read([z.grad, x.grad, w.grad])
    y.square().sum().backward(inputs=[x, w])
    return *first, z.grad, x.grad, w.grad


def again(x, z, y, stats, w):
    z.retain_grad()
    y.sum().backward(retain_graph=True)
    first = read([x.grad, z.grad])
    stats[-1].sum().backward(retain_graph=True)
    y.square().sum().backward()
    return *first, x.grad, z.grad, w.grad


def through_an_edge(x, z, y, stats, w):
    return torch.autograd.grad(y.square().sum(), torch.autograd.graph.get_gradient_edge(z))


WAYS = [retained, hooked, halved, kept_by_the_node, partial, into_inputs, again, through_an_edge]
SECOND = {
    "itself": lambda z, g: ops.gate(z, g),
    "cloned": lambda z, g: ops.gate(z.clone(), g),
    "detached": lambda z, g: ops.gate(z.detach(), g),
    "viewed": lambda z, g: ops.gate(z.view_as(z), g),
    "seen again": lambda z, g: ops.gate(ops.squeeze(z, (1,))[0], g, ops.squeeze(z, (1,), gates=(g,))[1]),
    "gate first": lambda z, g: ops.gate(ops.squeeze(ops.gate(z, g), (1,))[0], g),
    "jointly": lambda z, g: (joint := ops.Joint(z)).gate(g, *joint.squeeze((1,))) + z,
}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_public_pair_has_every_gradient_that_autograd_has(way, second):
    def run(dtype):
        x, w = (tensor.detach().to(dtype).requires_grad_() for tensor in (draw(), weight()))
        z, *stats = ops.squeeze(x * 1, (2, 3), kinds=("avg", "max", "var"))
        return way(x, z, SECOND[second](z, torch.sigmoid(w * stats[0] + stats[1])), stats, w)

    found = run(torch.float32)
    with ops.use_impl("reference"):
        expected = run(torch.float64)
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine.double() - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def test_nothing_is_left_behind():
    x, w = draw(), weight()
    y = one(x, w)
    node = next(node for node, _ in y.grad_fn.next_functions if hasattr(node, "tape"))
    for wanted in ((w,), (x,), (x, w)):
        torch.autograd.grad(y.sum(), wanted, retain_graph=True)
        assert not node.tape.held


def test_two_passes_at_once_through_one_graph():
    """One of them waits between the gate and the squeeze until the other one is through."""
    x, w = draw(), weight()
    joint, waiting, through = ops.Joint(x), threading.Event(), threading.Event()
    (mean,) = joint.squeeze((2, 3))
    gate = torch.sigmoid(w * mean)
    y = joint.gate(gate)
    expected = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    slow, found = None, []

    def wait(gradient):
        if threading.current_thread() is slow:
            waiting.set()
            assert through.wait(20)

    gate.register_hook(wait)
    slow = threading.Thread(target=lambda: found.extend(torch.autograd.grad(y.sum(), x, retain_graph=True)))
    slow.start()
    assert waiting.wait(20)
    other = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    through.set()
    slow.join()
    assert torch.equal(other, expected)
    assert torch.equal(found[0], expected)
