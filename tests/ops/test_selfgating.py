"""`selfgate` and `agree` by C++: right whatever happens to the map, the gradient and the tap around them."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import regard
from regard import ops
from regard.layers.tap import Tap
from regard.ops.kernels import library

pytestmark = pytest.mark.skipif(library.missing() is not None, reason="no C++ kernels here")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def impl():
    with ops.use_impl("cpu"):
        yield


def draw(layout=torch.contiguous_format, shape=(2, 12, 9, 21)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    return x.contiguous(memory_format=layout).requires_grad_()


def parameters():
    return torch.randn(3, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()


def fade(strength):
    tap = Tap("element")
    del tap._parameters["strength"]  # for a tensor with a history, which a parameter has not
    tap.strength = strength
    return tap


def keep(scale):
    tap = Tap("element")
    tap.scale = scale
    return tap


def energy(x, w):
    return ops.selfgate(x, Tap("element"), energy=0.1) * w.mean()


def norm(x, w):
    return ops.selfgate(x, Tap("element"), slope=w[0], level=w[1], bias=w[2])


def shuffled(x, w):
    return ops.selfgate(x, Tap("element"), slope=w[0, :4], level=w[1, :4], bias=w[2, :4], shuffle=True)


def fading(x, w):
    return ops.selfgate(x, fade(w[0, :1]), bias=w[1], energy=0.1)


def scaled(x, w):
    return ops.selfgate(x, keep(torch.tensor([1.7])), bias=w[1], energy=0.1)


def agreeing(x, w):
    return ops.agree(x, w[0, :4], w[1, :4], Tap("spatial"))


def agreeing_fading(x, w):
    return ops.agree(x, w[0, :3], w[1, :3], fade(w[2, :1]), unbiased=False)


def agreeing_scaled(x, w):
    return ops.agree(x, w[0, :3], w[1, :3], keep(torch.tensor([1.7])))


def other_layout(x, w):  # the gradient arrives laid out otherwise than the map
    return norm(x, w).transpose(2, 3).contiguous() * agreeing(x, w).transpose(2, 3).contiguous()


def expanded(x, w):  # a gradient without memory of its own
    return energy(x, w).sum((2, 3)) + agreeing(x, w).sum((2, 3))


FORMS = [energy, norm, shuffled, fading, scaled, agreeing, agreeing_fading, agreeing_scaled, other_layout, expanded]
forms = pytest.mark.parametrize("form", FORMS)


def gradients(form, x, w, **how):
    y = form(x, w)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y)
    return y, *torch.autograd.grad(y, (x, w), direction, **how)


def exactly(compute, form, x, w):
    with ops.use_impl("reference"):
        return compute(form, *(tensor.detach().double().requires_grad_() for tensor in (x, w)))


def agree(found, expected, tolerance=2e-5):
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.double() - theirs).abs().max() <= tolerance * theirs.abs().max()


@forms
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_the_reference(form, layout):
    x, w = draw(LAYOUTS[layout]), parameters()
    found = gradients(form, x, w)
    agree(found, exactly(gradients, form, x, w))
    assert all(map(torch.equal, found, gradients(form, x, w)))
    assert found[1].stride() == x.stride()


@forms
def test_twice_through_one_graph(form):
    x, w = draw(), parameters()
    y = form(x, w)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    first = torch.autograd.grad(y, (x, w), direction, retain_graph=True)
    (only_w,) = torch.autograd.grad(y, w, direction, retain_graph=True)
    assert torch.equal(only_w, first[1])
    assert all(map(torch.equal, first, torch.autograd.grad(y, (x, w), direction)))


@forms
def test_a_gradient_of_a_gradient(form):
    def penalty(form, x, w):
        _, dx, dw = gradients(form, x, w, create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dw.sum(), (x, w))

    x, w = draw(), parameters()
    agree(penalty(form, x, w), exactly(penalty, form, x, w), 1e-4)


@forms
def test_many_gradients_at_once(form):
    x, w = draw(), parameters()
    y = form(x, w)
    directions = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(3))
    batched = torch.autograd.grad(y, (x, w), directions, retain_graph=True, is_grads_batched=True)
    singly = [torch.autograd.grad(y, (x, w), direction, retain_graph=True) for direction in directions]
    for mine, theirs in zip(batched, map(torch.stack, zip(*singly, strict=True)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("form", [norm, agreeing])
def test_under_checkpointing(form, reentrant):
    x, w = draw(), parameters()
    plain = gradients(form, x, w)[1:]
    y = checkpoint(form, x, w, use_reentrant=reentrant)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(x.grad, plain[0])
    assert torch.equal(w.grad, plain[1])


@forms
def test_what_needs_no_gradient(form):
    x, w = draw(), parameters()
    y, dx, dw = gradients(form, x, w)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.autograd.grad(form(x, w.detach()), x, direction)[0], dx)
    assert torch.equal(torch.autograd.grad(form(x.detach(), w), w, direction)[0], dw)
    with torch.inference_mode():
        assert torch.equal(form(x, w), y)


@forms
def test_a_map_changed_before_backward_is_noticed(form):
    x, w = draw(), parameters()
    z = x * 1
    y = form(z, w)
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|modified inplace"):
        y.sum().backward()


@forms
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 5])
def test_threads_change_no_bit(form, layout, batch):
    x, w = draw(LAYOUTS[layout], (batch, 12, 60, 70)), parameters()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            y = form(x, w)
            direction = torch.ones((), dtype=y.dtype).expand(y.shape)
            dx, _ = torch.autograd.grad(y, (x, w), direction)  # the last sum of dw is torch's own
            found.append((y, dx))
    finally:
        torch.set_num_threads(before)
    for each in found[1:]:
        assert all(map(torch.equal, each, found[0]))


def test_from_several_threads():
    x, w = draw(), parameters()
    expected = [gradients(form, x, w) for form in FORMS]
    wrong = []

    def work():
        for _ in range(10):
            for form, wanted in zip(FORMS, expected, strict=True):
                if not all(map(torch.equal, gradients(form, x, w), wanted)):
                    wrong.append(form)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sigmoid_is_right_everywhere(layout):
    """A map of 0 and 2 has the mean 1 and the variance 1: u = bias - slope and bias + slope."""
    values = torch.cat([torch.linspace(-86, 86, 4001), torch.tensor([-1e-30, 0, 1e-30, 17, 89, -120, 1e30, -1e30])])
    values = torch.cat([values, torch.tensor([float("inf"), -float("inf"), float("nan")])])
    x = torch.tensor([0.0, 2]).repeat(1, len(values), 8, 1).contiguous(memory_format=LAYOUTS[layout])
    found = ops.selfgate(x, Tap("element"), bias=values)[0, :, 0, 1] / 2
    found_too = ops.selfgate(x, Tap("element"), bias=values, slope=torch.zeros_like(values) + 1e-30)[0, :, 0, 1] / 2
    exact = torch.sigmoid(values.double())
    for each in (found, found_too):
        assert torch.equal(each.isnan(), values.isnan())
        known = ~values.isnan() & (values > -87)
        assert ((each - exact)[known].abs() / exact[known]).max() <= 2e-7
        assert (each[values < -88] == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", [energy, norm, shuffled, agreeing])
def test_nan_and_infinity_stay_in_their_channel(form, value, layout):
    x, w = draw(LAYOUTS[layout]).detach(), parameters().detach()
    x[1, 5, 2, 3] = value
    y = form(x, w)
    with ops.use_impl("reference"):
        assert torch.equal(y.isnan(), form(x, w).isnan())
    assert y.isnan().any()
    assert not y[0].isnan().any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_variance_does_not_cancel(layout):
    x = (1000 + torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))).contiguous(
        memory_format=LAYOUTS[layout]
    )
    y = ops.selfgate(x, Tap("element"), energy=1e-4)
    with ops.use_impl("reference"):
        torch.testing.assert_close(y.double(), ops.selfgate(x.double(), Tap("element"), energy=1e-4), rtol=1e-3, atol=0)


EXTREMES = {
    "times 1e12": lambda x: x * 1e12,
    "times 1e-12": lambda x: x * 1e-12,
    "offset 1e4": lambda x: x + 1e4,
    "offset 1e4 times 1e12": lambda x: (x + 1e4) * 1e12,
    "steps": lambda x: x + 1e4 * (torch.arange(x[0, 0].numel()) >= 200).view(x.shape[2:]),  # how the pixels begin
    "equal pixels": lambda x: x[:, :, :1, :1].expand(x.shape),
    "equal pixels times 1e12": lambda x: x[:, :, :1, :1].expand(x.shape) * 1e12,
    "one pixel": lambda x: x[:, :, :1, :1],
    "one pixel times 1e12": lambda x: x[:, :, :1, :1] * 1e12,
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", [energy, norm, shuffled, fading])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_as_exact_as_the_reference(extreme, form, layout, dtype):
    """On maps that a sum of squares, in float32, would not survive: value and every gradient."""
    w = parameters().detach().to(dtype)
    for shape in ((2, 12, 9, 21), (1, 12, 60, 70)):
        x = EXTREMES[extreme](draw(shape=shape).detach()).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        errors = []
        exact = exactly(gradients, form, x, w)
        for impl in ("cpu", "reference"):
            with ops.use_impl(impl):
                found = gradients(form, *(tensor.clone().requires_grad_() for tensor in (x, w)))
            pairs = list(zip(found, exact, strict=True))[: 2 if form is energy else 3]  # which weighs w by torch alone
            errors.append([(a.double() - b).abs().max() / b.abs().max() for a, b in pairs])
        for ours, theirs in zip(*errors, strict=True):
            allowed = 2e-5 if dtype == torch.float32 else 1e-2
            both_zero = ours.isnan() and theirs.isnan()
            assert both_zero or ours <= max(2 * theirs, allowed), f"{ours:.1e}, the reference {theirs:.1e}"


def test_memory_kept():
    """The map itself and small things, in training."""
    for form in (energy, norm, shuffled, agreeing):
        x, w = draw(shape=(2, 12, 40, 40)), parameters()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):  # noqa: B023
            form(x, w.detach())
        maps = {tensor.data_ptr(): tensor.numel() for tensor in saved}
        assert sum(maps.values()) <= 1.1 * x.numel() + (form is energy) * x.numel()  # energy multiplies once more


@pytest.mark.parametrize("name", ["simam", "shuffle", "sge"])
def test_a_hook_on_the_tap_sees_the_gate_and_may_change_it(name):
    x = draw().detach()
    with ops.use_impl("auto"):
        module = regard.create(name, 12)
        plain = module(x)
        tap = module.mask if name == "sge" else module.gate
        seen = []
        handle = tap.register_forward_hook(lambda module, args, gate: seen.append(gate) or 0.5 * gate)
        half = module(x)
        handle.remove()
    torch.testing.assert_close(half, 0.5 * plain)
    assert len(seen) == 1
    assert seen[0].shape[2:] == x.shape[2:]


@pytest.mark.parametrize("name", ["simam", "sge"])
def test_a_tap_that_fades_in_is_not_in_the_way_of_the_kernel(name):
    module = regard.create(name, 12)
    tap = module.mask if name == "sge" else module.gate
    tap.fade_in()
    x = draw()
    assert torch.equal(module(x), x)
    module(x).sum().backward()
    ours = tap.strength.grad.clone()
    with ops.use_impl("reference"):
        (theirs,) = torch.autograd.grad(module(x.detach()).sum(), tap.strength)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
