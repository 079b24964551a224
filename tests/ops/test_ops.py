"""Every op, every implementation, every case: against the reference in float64."""

import inspect
import pkgutil
import re
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from regard import ops
from regard.base.errors import UserError
from regard.layers.tap import Tap
from regard.ops.dispatch import FAST
from running import OPS, differentiable, every_tensor, forward_and_gradients, tensors

SLOTS = ("Formula", "Shape", "Gradient", "Keeps", "Traffic", "Impls", "Tolerance")
CASES = [
    pytest.param(op, impl, arguments, id=f"{op.name}-{impl}-{name}")
    for op in OPS.values()
    for impl in ("reference", *op.fast)
    for name, arguments in import_module(f"{op.package}.cases").cases()
]
every = pytest.mark.parametrize(("op", "impl", "arguments"), CASES)


def slots(op):
    word = next(word for word, known in OPS.items() if known is op)
    text = inspect.cleandoc(getattr(ops, word).__doc__)
    return dict(re.findall(r"^(\w+):[ \t]+(.*(?:\n[ \t]+.*)*)", text, re.MULTILINE))


def tolerance(op, dtype):
    words = dict(re.findall(r"(\w*float\d+) (\S+?),", slots(op)["Tolerance"]))
    word = str(dtype).removeprefix("torch.")
    return float(words[word]) if word in words else pytest.skip(f"promises nothing in {word}")


def device(impl):
    """Where an implementation is tested."""
    return "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"


def runner(op, impl, args):
    """Skip only where the implementation says why it cannot run."""
    reason = op.why_not(impl, *args)
    if reason is not None:
        with pytest.raises(UserError, match=re.escape(reason)), ops.use_impl(impl):
            op(*args)
        pytest.skip(reason)

    def run(*args):
        with ops.use_impl(impl):
            return op(*args)

    return run


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_and_gradients(op, impl, arguments, dtype):
    allowed = tolerance(op, dtype)
    args = differentiable(arguments(dtype, device(impl)))
    exact = differentiable(every_tensor(arguments(dtype, device(impl)), torch.Tensor.double))
    outputs, gradients = forward_and_gradients(runner(op, impl, args), args)
    expected, expected_gradients = forward_and_gradients(op.reference, exact)
    for got, wanted in [*zip(outputs, expected, strict=True), *zip(gradients, expected_gradients, strict=True)]:
        assert got.dtype == dtype
        assert got.shape == wanted.shape
        error = (got.double() - wanted).abs().max()
        assert error <= allowed * wanted.abs().max(), f"{error / wanted.abs().max():.1e}"


@every
def test_gradcheck(op, impl, arguments):
    args = differentiable(arguments(torch.float64, device(impl)))
    if any((x == x.round()).all() for x in tensors(args)):
        pytest.skip("a maximum among equals has no derivative")
    run, leaves = runner(op, impl, args), tensors(args)

    def flat(*tensors):
        given = iter(tensors)
        return run(*every_tensor(args, lambda _: next(given)))

    assert torch.autograd.gradcheck(flat, leaves, fast_mode=True)


@every
def test_inputs_and_saved_tensors_are_not_written_to(op, impl, arguments):
    args = differentiable(arguments(torch.float32, device(impl)))
    before = [(x.detach().clone(), x._version) for x in tensors(args)]
    saved = []

    def pack(tensor):
        saved.append((tensor, tensor.clone()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = tensors(runner(op, impl, args)(*args))
        copies = [y.detach().clone() for y in outputs]
        sum(y.sum() for y in outputs).backward()
    for x, (copy, version) in zip(tensors(args), before, strict=True):
        assert torch.equal(x, copy)
        assert x._version == version
    assert all(torch.equal(tensor, copy) for tensor, copy in saved)
    assert all(torch.equal(y, copy) for y, copy in zip(outputs, copies, strict=True))


@every
def test_what_has_the_shape_of_the_map_has_its_layout(op, impl, arguments):
    args = arguments(torch.float32, device(impl))
    for y in tensors(runner(op, impl, args)(*args)):
        x = tensors(args)[0]
        if x.dim() == 4 and y.shape == x.shape and x.is_contiguous(memory_format=torch.channels_last):
            assert y.stride() == x.stride()


@pytest.mark.parametrize("word", OPS)
def test_docstrings(word):
    op = OPS[word]
    assert tuple(slots(op))[: len(SLOTS)] == SLOTS
    assert all(slots(op).values())
    listed = {name.strip() for name in slots(op)["Impls"].split(",")}
    assert listed == {"reference", *op.fast}
    assert all(impl in FAST for impl in op.fast)
    arguments = list(inspect.signature(getattr(ops, word)).parameters)
    described = re.findall(r"^    (\w[\w, ]*):", inspect.cleandoc(getattr(ops, word).__doc__), re.MULTILINE)
    assert ", ".join(described).split(", ") == arguments


@pytest.mark.parametrize("word", OPS)
def test_the_public_op_is_the_dispatched_one(word, monkeypatch):
    calls = []
    monkeypatch.setattr(OPS[word], "reference", lambda *args: calls.append(args) or args)
    x, tap, layer = torch.ones(1, 2, 3, 3), Tap("element"), torch.nn.Linear(2, 2)
    conv = torch.nn.Conv2d(2, 1, 3, padding=1, bias=False)
    others = {"squeeze": [(2, 3)], "gate": [x], "attend": [x, x], "convolve": [conv], "cross": [x, x]}
    others |= {"selfgate": [tap], "agree": [x, x, tap], "recalibrate": [tap]}
    layers = {"down": layer, "up": layer} if word in ("excite", "recalibrate") else {}
    with ops.use_impl("reference"):
        getattr(ops, word)(x, *others.get(word, ()), **layers)
    assert len(calls) == 1


@every
def test_auto_gives_what_the_implementation_gives_to_the_bit(op, impl, arguments):
    """Also from the second call on, when it is prepared, and for other numbers that look alike."""
    args = arguments(torch.float32, "cpu")
    explained = op.explain(*args)
    if impl != next(name for name, reason in explained.items() if reason is None):
        pytest.skip("auto takes another one")
    with ops.use_impl(impl):
        alike = every_tensor(args, lambda x: torch.empty_strided(x.shape, x.stride()).copy_(x.flip(0)))
        expected = tensors(op(*args)), tensors(op(*alike))
    for default in ("cpu", "meta"):
        for given, wanted in zip((args, alike), expected, strict=True):
            with torch.device(default):
                got = tensors(op(*given))
            assert all(torch.equal(y, z) and y.stride() == z.stride() for y, z in zip(got, wanted, strict=True))


def test_excite_calls_layers_that_are_hooked_or_no_plain_linear():
    class Doubled(torch.nn.Linear):
        def forward(self, s):
            return 2 * super().forward(s)

    down, up, s = torch.nn.Linear(6, 2), torch.nn.Linear(2, 6), torch.randn(3, 6)
    plain = ops.excite(s, s, down=down, up=up)
    calls = []
    handle = down.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(ops.excite(s, s, down=down, up=up), plain)
    assert calls
    handle.remove()
    doubled = Doubled(2, 6)
    doubled.load_state_dict(up.state_dict())
    assert torch.allclose(ops.excite(s, down=down, up=doubled), torch.sigmoid(2 * up(torch.relu(down(s)))))


def test_every_folder_is_an_op():
    folders = {f"regard.ops.{module.name}" for module in pkgutil.iter_modules(ops.__path__) if module.ispkg}
    assert folders == {op.package for op in OPS.values()} | {"regard.ops.kernels"}


# --- squeeze ---------------------------------------------------------------------------------------------------------


def test_squeeze_says_what_numpy_says():
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    _, *got = ops.squeeze(x, (2, 3), kinds=("avg", "max", "lp", "lse"))
    values = x.numpy()
    wanted = (
        values.mean((2, 3)),
        values.max((2, 3)),
        np.sqrt((values**2).sum((2, 3))),
        np.log(np.exp(values).sum((2, 3))),
    )
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs[..., None, None])
    assert ops.squeeze(x, (1,))[1].shape == (2, 1, 4, 3)
    assert ops.squeeze(x, (1,))[0] is x


@pytest.fixture(params=["reference", *OPS["squeeze"].fast])
def squeeze(request):
    """The op by each implementation, without the map that it passes on."""

    where = device(request.param)

    def run(x, dims, kinds=("avg",)):
        with ops.use_impl(request.param):
            return [result.cpu() for result in ops.squeeze(x.to(where), dims, kinds=kinds)[1:]]

    reason = OPS["squeeze"].why_not(request.param, torch.ones(1, 1, 1, 1, device=where), ((2, 3),), ("avg",), ())
    return pytest.skip(reason) if reason else run


@pytest.mark.parametrize("dims", [(2, 3), (1,), (3,), (3, 2), (1, 2, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("values", [[0, 1], [-float("inf")], [0, float("nan")]])
def test_of_equal_maxima_the_first_gets_all(squeeze, dims, layout, values):
    x = torch.randint(0, len(values), (3, 6, 5, 7), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(values)[x].contiguous(memory_format=layout).float().requires_grad_()
    try:
        (top,) = squeeze(x, dims, ("max",))
    except UserError as reason:
        pytest.skip(str(reason))
    top.sum().backward()
    assert (x.grad.sum(dims) == 1).all()
    flat = x.detach().numpy()
    for index in np.ndindex(*top.shape):
        group = tuple(slice(None) if axis in dims else at for axis, at in enumerate(index))
        values, gradient = flat[group].ravel(), x.grad.numpy()[group].ravel()
        assert gradient.argmax() == values.argmax()


def test_the_maximum_is_that_of_max_pooling(squeeze):
    x = torch.randint(0, 3, (2, 4, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (top,) = squeeze(ours, (2, 3), ("max",))
    pooled = F.max_pool2d(theirs, (5, 6))
    assert torch.equal(top, pooled)
    top.sum().backward()
    pooled.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("side", [4, 17, 40])
def test_nan_and_infinity_pass(squeeze, grad, side):
    x = torch.zeros(2, 3, side, 5)
    x[0, 0, 1, 1], x[0, 1, 2, 2], x[0, 2, 3, 3] = float("nan"), float("inf"), -float("inf")
    average, top, root = squeeze(x.requires_grad_(grad), (2, 3), ("avg", "max", "lp"))
    for result in (average, top, root):
        assert result[0, 0].isnan().all()
        assert result[0, 1].isposinf().all()
        assert result[1].isfinite().all()
    assert average[0, 2].isneginf().all()
    assert (top[0, 2] == 0).all()


def test_infinity_in_an_exponential():
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = float("nan"), float("inf")
    _, soft = ops.squeeze(x, (2, 3), kinds=("lse",))
    assert soft[0, 0].isnan()
    assert soft[0, 1].isposinf()


def test_a_map_of_minus_infinity(squeeze):
    (top,) = squeeze(torch.full((1, 2, 3, 3), -float("inf")), (2, 3), ("max",))
    assert top.isneginf().all()
    _, soft = ops.squeeze(torch.full((1, 2, 3, 3), -float("inf")), (2, 3), kinds=("lse",))
    assert soft.isneginf().all()


def test_the_root_of_nothing_has_a_gradient(squeeze):
    x = torch.zeros(2, 3, 4, 5, requires_grad=True)
    (root,) = squeeze(x, (2, 3), ("lp",))
    root.sum().backward()
    assert torch.equal(root, torch.zeros(2, 3, 1, 1))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_a_variance_does_not_cancel(squeeze):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = (1000 + torch.randn(2, 3, 40, 50)).contiguous(memory_format=layout)
        (variance,) = squeeze(x, (2, 3), ("var",))
        torch.testing.assert_close(
            variance.double(), x.double().var((2, 3), correction=0, keepdim=True), rtol=1e-4, atol=0
        )


def test_large_values_do_not_overflow():
    x = torch.full((1, 1, 4, 4), 200.0, requires_grad=True)
    _, soft = ops.squeeze(x, (2, 3), kinds=("lse",))
    soft.backward()
    torch.testing.assert_close(soft.item(), 200 + np.log(16), rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 16))


def test_unknown_kinds():
    with pytest.raises(ValueError, match="squeeze kind 'mean': the kinds are avg, sum, max, var, lp, lse"):
        ops.squeeze(torch.ones(1, 2, 3, 3), (2, 3), kinds=("mean",))


# --- attend ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [False, True])
def test_attend_says_what_numpy_says(watched):
    query, key = torch.randn(2, 2, 4, 3, 2, dtype=torch.float64), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    value = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    seen = []
    watch = (lambda weights: seen.append(weights) or weights) if watched else None
    got = ops.attend(query, key, value, scale=0.7, watch=watch)
    logits = 0.7 * np.einsum("bhdij,bhdk->bhijk", query, key)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(got, np.einsum("bhijk,bhek->bheij", weights, value))
    if watched:
        np.testing.assert_allclose(seen[0], weights)


def test_what_the_watcher_returns_is_applied():
    x = torch.randn(1, 1, 3, 4)
    assert (ops.attend(x, x, x, watch=torch.zeros_like) == 0).all()


def test_a_hidden_key_has_no_say():
    x = torch.randn(1, 1, 3, 4)
    bias = torch.tensor([0, 0, 0, -float("inf")]).view(1, 1, 1, 4)
    torch.testing.assert_close(ops.attend(x, x, x, bias=bias), ops.attend(x, x[..., :3], x[..., :3]))


# --- gate ------------------------------------------------------------------------------------------------------------


def test_gate_is_a_product():
    x = torch.randn(2, 3, 4, 5)
    rows, columns = torch.rand(2, 3, 4, 1), torch.rand(2, 3, 1, 5)
    torch.testing.assert_close(ops.gate(x, rows, columns), x * rows * columns)
    torch.testing.assert_close(ops.gate(x, rows, columns, mean=True), x * (rows + columns) / 2)
    torch.testing.assert_close(ops.gate(x, rows, shift=columns), x * rows + columns)
    assert torch.equal(ops.gate(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_map_decides_dtype_and_layout(dtype, layout):
    x = torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=layout)
    for gate_dtype in (torch.bfloat16, torch.float32, torch.float64):
        for gate in (torch.rand(2, 3, 1, 1, dtype=gate_dtype), torch.rand(2, 1, 4, 5, dtype=gate_dtype)):
            y = ops.gate(x, gate)
            assert y.dtype == dtype
            assert y.stride() == x.stride()


def test_nan_and_infinity_pass_a_gate():
    x = torch.ones(1, 3, 2, 2)
    gate = torch.tensor([float("nan"), float("inf"), 0.5]).view(1, 3, 1, 1)
    y = ops.gate(x, gate)
    assert y[0, 0].isnan().all()
    assert y[0, 1].isposinf().all()
    assert (y[0, 2] == 0.5).all()
    assert ops.gate(x * float("inf"), torch.zeros(1, 3, 1, 1)).isnan().all()
