"""The kernels in Triton: on a GPU where there is one, else in Triton's interpreter, and compiled without being run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard import ops
from regard.ops.kernels.plan import Request
from regard.ops.squeeze.triton import INTERPRETED

kernels = pytest.importorskip("regard.ops.kernels.triton", reason="needs the package triton")

from regard.ops.kernels.triton.affine import affine_tile  # noqa: E402
from regard.ops.kernels.triton.pick import scatter_values  # noqa: E402
from regard.ops.kernels.triton.reduce import plan_reduce  # noqa: E402
from regard.ops.kernels.triton.reduce_kernel import combine_rows, reduce_tile  # noqa: E402

GPU = torch.cuda.is_available()
runs = pytest.mark.skipif(not (GPU or INTERPRETED), reason="runs in the interpreter's process")
elsewhere = pytest.mark.skipif(GPU or INTERPRETED, reason="runs for itself")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
EXPRESSIONS = {
    "test_ops.py": "triton and not (written or dtype1 or dtype2 or three or large or variance)",
    "test_gradients.py": "triton and against and channels_last",
    "test_triton.py": "not interpreter",
}
if INTERPRETED:
    kernels.launch.MANY = 1  # large tiles and few programs, of which the interpreter runs some forty in a second


@elsewhere
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=[pytest.mark.slow] * (file in ("test_ops.py", "test_gradients.py")))
        for file in EXPRESSIONS
    ],
)
def test_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "test_triton", "-k", EXPRESSIONS[file], file]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10


def draw(*shape, dtype=torch.float32, layout=torch.contiguous_format, seed=0):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda" if GPU else "cpu", dtype)
    return numbers.contiguous(memory_format=layout)


def near(found, expected, tolerance=1e-5):
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max()


@pytest.fixture
def tiny(monkeypatch):
    """Tiles so small that what one program reduces is never enough, and rows of results are joined several times."""
    for name, size in {"LEAST": 32, "MOST": 32, "ROW": 2}.items():
        monkeypatch.setattr(kernels.launch, name, size)
    plan_reduce.cache_clear()
    yield
    plan_reduce.cache_clear()


@runs
@pytest.mark.parametrize(
    ("dims", "layout"),
    [((2, 3), LAYOUTS[1]), ((1,), LAYOUTS[0]), ((3,), LAYOUTS[0]), ((0, 2, 3), LAYOUTS[1]), ((0, 1, 2, 3), LAYOUTS[0])],
)
def test_from_many_tiles(tiny, dims, layout):
    x = draw(2, 6, 5, 7, layout=layout).round()
    x[0, 0, 4, 6] = x[1, 5, 0, 1] = float("nan")
    x[1, 2, 3, 4] = float("inf")
    clean, factor = x.nan_to_num(0, 3), draw(2, 1, 1, 7)
    kinds = ("sum", "max") if 0 in dims else ("sum", "max", "place")
    plain, gated = kernels.reduce(x, [Request(dims, kinds), Request(dims, ("sum", "squares"), (factor,))])
    (moments,) = kernels.reduce(1000 + clean, [Request(dims, ("moments",))])
    (product,) = kernels.reduce(clean, [Request(dims, ("sum",))], draw(2, 6, 5, 7))
    torch.testing.assert_close(plain["sum"], x.sum(dims, keepdim=True), equal_nan=True)
    torch.testing.assert_close(plain["max"], x.amax(dims, keepdim=True), equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(gated["sum"], (x * factor).sum(dims, keepdim=True), equal_nan=True)
    torch.testing.assert_close(gated["squares"], (x * factor).square().sum(dims, keepdim=True), equal_nan=True)
    torch.testing.assert_close(product["sum"], (clean * draw(2, 6, 5, 7)).sum(dims, keepdim=True), rtol=0, atol=1e-4)
    exact = 1000 + clean.double()
    near(moments["mean"], exact.mean(dims, keepdim=True), 1e-6)
    count = exact.numel() // moments["mean"].numel()
    near(moments["deviations"] / count, exact.var(dims, correction=0, keepdim=True), 1e-4)
    if 0 not in dims:
        held = torch.zeros_like(x).permute(0, 2, 3, 1) if layout == torch.channels_last else torch.zeros_like(x)
        held = held.contiguous().flatten(1)
        held.scatter_(1, plain["place"].flatten(1).long(), 1)
        held = held.view(2, 5, 7, 6).permute(0, 3, 1, 2) if layout == torch.channels_last else held.view_as(x)
        assert (held.sum(dims) == 1).all()
        top = torch.where(held == 1, x, 0).sum(dims, keepdim=True)
        torch.testing.assert_close(top, plain["max"], equal_nan=True, rtol=0, atol=0)


@runs
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_in_one_pass(dtype, layout):
    map, x = draw(2, 6, 5, 7, dtype=dtype, layout=layout), draw(2, 6, 5, 7, dtype=dtype, seed=1)
    smalls = a, b, c = draw(2, 6, 1, 1), draw(1, 6, 1, 1, dtype=dtype), draw(2, 1, 5, 7)
    wide = map.double()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}[dtype]  # the interpreter cuts bits off
    y = kernels.affine(map, smalls, terms=[(a, c), (b,)], x=x, weight=c)
    near(y, wide * a * b * c + a * c + b + x.double() * c, tolerance)
    assert (y.dtype, y.stride()) == (dtype, map.stride())
    near(kernels.affine(map, smalls, mean=True), wide * (a + b + c) / 3, tolerance)
    assert kernels.affine(map, out=map, x=x) is map
    near(map, wide + x.double(), tolerance)
    assert kernels.affine(map * float("nan")).isnan().all()


@runs
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_maxima(layout):
    x, gate, other = draw(2, 6, 5, 7, layout=layout), draw(2, 6, 1, 1), draw(1, 1, 5, 7)
    d = draw(2, 1, 5, 7, seed=1)
    leaves = [tensor.double().requires_grad_() for tensor in (x, gate, other)]
    top = (leaves[0] * leaves[1] * leaves[2]).max(1, keepdim=True).values
    expected = torch.autograd.grad(top, leaves, d.double())
    (found,) = kernels.reduce(x, [Request((1,), ("max", "place"), (gate, other))])
    dx = torch.ones_like(x)
    kernels.scatter(dx, found["place"], d, (gate, other))
    for mine, theirs in zip([dx - 1, *kernels.gather(x, found["place"], d, (gate, other))], expected, strict=True):
        near(mine, theirs)
    near(kernels.affine(x, picks=[(found["place"], d, (gate, other))] * 2), x + 2 * expected[0])


@runs
def test_an_infinite_factor_stays_where_it_is():
    x, factor = torch.ones_like(draw(1, 6, 5, 7)), torch.ones_like(draw(1, 1, 5, 7))
    factor[0, 0, 2, 3] = float("inf")
    (found,) = kernels.reduce(x, [Request((1,), ("sum",), (factor,))])
    torch.testing.assert_close(found["sum"], (x * factor).sum(1, keepdim=True))


def look(x, w):
    joint = ops.Joint(x)
    mean, top = joint.squeeze((2, 3), kinds=("avg", "max"))
    gate = torch.sigmoid(w * mean + top)
    top, root = joint.squeeze((1,), kinds=("max", "sum"), gates=(gate,))
    spread = joint.squeeze((2,), (3,), kinds=("var", "lp"))
    return joint.gate(gate, torch.sigmoid(top - root), shift=spread[0] + spread[1])


def gradients(x, w):
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = look(x, w)
    return y, *torch.autograd.grad(y, (x, w), draw(*y.shape, seed=2).to(y))


@runs
def test_memory_may_hold_anything_before():
    x, w = draw(1, 6, 40, 41), draw(1, 6, 1, 1)
    with ops.use_impl("triton"):
        before = gradients(x, w)
        torch.use_deterministic_algorithms(True)  # then fresh memory is filled with NaN
        try:
            assert torch.empty(1).isnan()
            after = gradients(x, w)
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, before, after))
    with ops.use_impl("reference"):
        for mine, theirs in zip(before, gradients(x.double(), w.double()), strict=True):
            near(mine, theirs, 2e-5)


@runs
def test_what_is_refused():
    def reason(x, *dims, kinds=("avg",), gates=()):
        return ops.OPS["squeeze"].why_not("triton", x, dims, kinds, gates)

    x = draw(2, 6, 5, 7)
    assert reason(x, (2, 3)) is None
    assert reason(x, (0, 2, 3)) is None
    assert "not over images" in reason(x, (0, 2, 3), kinds=("max",))
    assert "contiguous maps only" in reason(draw(2, 6, 5, 7, layout=torch.channels_last), (1, 2, 3), kinds=("max",))
    assert "float64" in reason(x.double(), (2, 3))
    assert "dense" in reason(draw(2, 6, 5, 14)[..., ::2], (2, 3))
    assert "no gates with var" in reason(x, (2, 3), kinds=("var",), gates=(x[:, :1],))
    assert "between 1 and 2^31" in reason(x[:0], (2, 3))
    assert "smaller than the map" in ops.OPS["gate"].why_not("triton", x, (x,), False, None)


@elsewhere
def test_on_the_cpu_triton_is_never_imported():
    script = (
        "import sys, torch, regard; regard.create('se', 8)(torch.ones(1, 8, 2, 2)); print('triton' in sys.modules);"
        "args = torch.ones(1, 8, 2, 2), (torch.ones(1, 8, 1, 1),), False, None;"
        "print(regard.ops.OPS['gate'].why_not('triton', *args))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "needs a tensor on a GPU, got cpu"]


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What every launch is compiled to, for a GPU that need not be there; nothing runs."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Absent:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assembly = []
    for kernel in (reduce_tile, combine_rows, affine_tile, scatter_values):

        def compile(*args, run=kernel.run, **options):
            assembly.append(run(*args, **options | {"warmup": True}).asm["ptx"])

        monkeypatch.setattr(kernel, "run", compile)
    driver.set_active(Absent())
    yield assembly
    driver.set_active(None)


@elsewhere
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_compiler_takes_every_kernel(compiled, layout):
    x = draw(2, 64, 14, 14, dtype=torch.bfloat16, layout=layout)
    channel, pixel = draw(2, 64, 1, 1, dtype=torch.bfloat16), draw(2, 1, 14, 14)
    (found,) = kernels.reduce(x, [Request((1,), ("sum", "max", "place"), (channel,))])
    kernels.reduce(x, [Request((2, 3), ("sum",), (pixel,)), Request((1,), ("sum",), (channel,))], x)
    kernels.reduce(x, [Request((2, 3), ("moments",)), Request((2, 3), ("squares",))])
    kernels.gather(x, found["place"], found["max"], (channel,))
    kernels.affine(x, (channel, pixel), terms=[(channel, pixel)], x=x, weight=channel)
    kernels.affine(x, picks=[(found["place"], found["max"], (channel,))])
    kernels.affine(x, (channel, pixel), mean=True)
    kernels.scatter(x, found["place"], found["max"], (channel,))
    assert len(compiled) >= 10
    assert not re.findall(r"\b(?:atom|red)\.", "".join(compiled))  # no sum in an order of its own
    assert "ld.global.v" in compiled[0]  # neighbours are read together, though a row of 196 is no multiple of 16
    assert any("cvt.rn.bf16" in text for text in compiled)  # rounded, not cut off
