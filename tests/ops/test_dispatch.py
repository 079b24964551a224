"""Which implementation runs: tried with an op made for this test, whose fast file says that it ran."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, invalidate_caches

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.ops.dispatch import FAST, NAMES, Op, not_plain

REFERENCE = """
def run(x, by):
    return x * by
"""

# right only for what it accepts: the test sees by the value who answered
CPU = """
import torch

def why_not(x, by):
    return None if x.dtype == torch.float32 else f"needs float32, got {x.dtype}"

def run(x, by):
    return x.detach() * 0 + 1000
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make an op out of files; its package is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def op(name="scaling", **files):
        folder = tmp_path / name
        folder.mkdir()
        for word, text in ({"__init__": "", "reference": REFERENCE} | files).items():
            (folder / f"{word}.py").write_text(text)
        invalidate_caches()
        made.append(name)
        return Op(name, import_module(f"{name}.reference").run)

    yield op
    for module in [module for module in sys.modules if module.partition(".")[0] in made]:
        del sys.modules[module]


@pytest.fixture
def op(make):
    return make(cpu=CPU)


X = torch.ones(2, 3)


def fast(y):
    return bool((y == 1000).all())


def test_auto_takes_the_fast_one_where_it_can(op):
    assert op.fast == ("cpu",)
    assert fast(op(X, 2.0))
    assert torch.equal(op(X.double(), 2.0), 2 * X.double())


def test_auto_takes_the_first_fast_one(make):
    op = make(cpu=CPU, triton=CPU.replace("1000", "2000").replace("float32", "float16"))
    assert op.fast == ("triton", "cpu")
    assert (op(X.half(), 2.0) == 2000).all()
    assert fast(op(X, 2.0))
    assert torch.equal(op(X.double(), 2.0), 2 * X.double())


def test_without_fast_files_the_reference_runs(make):
    op = make()
    assert op.fast == ()
    assert torch.equal(op(X, 2.0), 2 * X)
    assert op.explain(X, 2.0) == {"triton": "not implemented", "cpu": "not implemented", "reference": None}
    with regard.use_impl("cpu"), pytest.raises(regard.UserError, match=r"scaling\[cpu\]: not implemented"):
        op(X, 2.0)


def test_by_name_it_runs_or_raises(op):
    with regard.use_impl("cpu"):
        assert fast(op(X, 2.0))
        with pytest.raises(regard.UserError, match=r"^scaling\[cpu\]: needs float32, got torch.float64$"):
            op(X.double(), 2.0)
        with pytest.raises(
            regard.UserError, match=r"^scaling\[cpu\]: needs strided tensors with memory, got .* on meta"
        ):
            op(X.to("meta"), 2.0)
    with regard.use_impl("triton"), pytest.raises(regard.UserError, match=r"scaling\[triton\]: not implemented"):
        op(X, 2.0)
    with regard.use_impl("reference"):
        assert torch.equal(op(X, 2.0), 2 * X)


def test_explain(op):
    assert op.explain(X, 2.0) == {"triton": "not implemented", "cpu": None, "reference": None}
    assert op.explain(X.double(), 2.0)["cpu"] == "needs float32, got torch.float64"
    assert tuple(op.explain(X, 2.0)) == (*FAST, "reference"), "in the order in which auto asks"


def test_a_fast_file_is_only_imported_when_asked(make):
    op = make(cpu="raise RuntimeError('too early')")
    with regard.use_impl("reference"):
        op(X, 2.0)
    op(X.to("meta"), 2.0)
    with pytest.raises(RuntimeError, match="too early"):
        op(X, 2.0)


def test_an_error_inside_a_fast_file_is_not_hidden(make):
    op = make(cpu=CPU.replace("return x.detach() * 0 + 1000", "raise ZeroDivisionError('inside')"))
    with pytest.raises(ZeroDivisionError, match="inside"):
        op(X, 2.0)


# --- use_impl --------------------------------------------------------------------------------------------------------


def test_use_impl_nests_and_restores(op):
    with regard.use_impl("reference"):
        with regard.use_impl("cpu"):
            assert fast(op(X, 2.0))
        assert not fast(op(X, 2.0))
        with pytest.raises(regard.UserError), regard.use_impl("cpu"):
            op(X.double(), 2.0)
        assert not fast(op(X, 2.0))
    assert fast(op(X, 2.0))


def test_use_impl_is_of_the_block_alone(op):
    """A thread that is started sees the default; one that has a block open disturbs nobody."""
    seen = {}

    def work(name):
        seen[name, "before"] = fast(op(X, 2.0))
        with regard.use_impl("reference"):
            seen[name, "inside"] = fast(op(X, 2.0))
            inside.wait()
            left.wait()
        seen[name, "after"] = fast(op(X, 2.0))

    inside, left = threading.Barrier(2), threading.Barrier(2)
    with regard.use_impl("reference"):
        thread = threading.Thread(target=work, args=("thread",))
        thread.start()
        inside.wait()
    assert fast(op(X, 2.0)), "the other thread's block is still open"
    left.wait()
    thread.join()
    assert seen == {("thread", "before"): True, ("thread", "inside"): False, ("thread", "after"): True}
    assert fast(op(X, 2.0))


def test_use_impl_in_blocks_that_overlap(op):
    """Two that end in the order in which they began; the threads of a pool, at random; and tasks that take turns."""
    first, second = regard.use_impl("reference"), regard.use_impl("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(regard.UserError, match="needs float32"):
        op(X.double(), 2.0)
    second.__exit__(None, None, None)
    op(X.double(), 2.0)
    assert fast(op(X, 2.0))

    def work(number):
        for _ in range(200):
            with regard.use_impl("reference" if number % 2 else "cpu"):
                if fast(op(X, 2.0)) == number % 2:
                    return False
        return fast(op(X, 2.0))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert fast(op(X, 2.0))

    async def task(name):
        with regard.use_impl(name):
            for _ in range(3):
                await asyncio.sleep(0)
                assert fast(op(X, 2.0)) == (name == "cpu")

    async def tasks():
        with regard.use_impl("reference"):
            await asyncio.gather(task("cpu"), task("reference"), task("cpu"))
            assert not fast(op(X, 2.0))

    asyncio.run(tasks())
    assert fast(op(X, 2.0))


def test_use_impl_refuses_unknown_names(op):
    with pytest.raises(regard.UserError, match=r"no implementation 'refrence'.*did you mean 'reference'"):
        regard.use_impl("refrence").__enter__()
    with pytest.raises(regard.UserError, match="the names are auto, reference, triton, cpu"):
        regard.use_impl("gpu").__enter__()
    assert NAMES == ("auto", "reference", "triton", "cpu")
    assert fast(op(X, 2.0))


def test_the_names_reach_the_mechanisms():
    se = regard.create("se", 8)
    with regard.use_impl("triton"), pytest.raises(regard.UserError, match=r"recalibrate\[triton\]: "):
        se(torch.ones(1, 8, 2, 2))


# --- the guard -------------------------------------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def compiled(op):
    return torch.compile(lambda x: op(x, 2.0), fullgraph=True, backend="eager")(X)


def exported(op):
    class Module(torch.nn.Module):
        def forward(self, x):
            return op(x, 2.0)

    return torch.export.export(Module(), (X,)).module()(X)


def traced(op):
    return torch.jit.trace(lambda x: op(x, 2.0), (X,), check_trace=False)(X)


def vmapped(op):
    return torch.func.vmap(lambda x: op(x, 2.0))(X)


def batched_gradients(op):
    class Doubling(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, dy):
            return op(dy, 2.0)

    x = X.clone().requires_grad_()
    return torch.autograd.grad(Doubling.apply(x), x, torch.stack([X, X]), is_grads_batched=True)[0][0]


def differentiated(op):
    return torch.func.grad(lambda x: op(x, 2.0).sum())(X) * X


def reverse_jacobian(op):
    return torch.func.jacrev(lambda x: op(x, 2.0))(X).sum((2, 3))


def functional_forward(op):
    return torch.func.jvp(lambda x: op(x, 2.0), (X,), (X,))[1]


def forward_mode(op):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, X)
        return torch.autograd.forward_ad.unpack_dual(op(dual, 2.0)).tangent


def functionalised(op):
    return torch.func.functionalize(lambda x: op(x, 2.0))(X)


def under(mode):
    def run(op):
        with mode:
            return op(X, 2.0)

    return run


def symbolic(tracing_mode, **options):
    def run(op):
        return make_fx(lambda x: op(x, 2.0), tracing_mode=tracing_mode, **options)(X)(X)

    return run


def subclassed(op):
    return op(X.as_subclass(Subclass), 2.0).as_subclass(torch.Tensor)


def second_argument(op):
    return op(X, (2 * X).as_subclass(Subclass)).as_subclass(torch.Tensor)


GUARDED = {
    "tensor subclass": subclassed,
    "subclass as second argument": second_argument,
    "torch.compile": compiled,
    "torch.export": exported,
    "torch.jit.trace": traced,
    "vmap": vmapped,
    "batched gradients": batched_gradients,
    "grad": differentiated,
    "jacrev": reverse_jacobian,
    "func.jvp": functional_forward,
    "functionalize": functionalised,
    "forward-mode AD": forward_mode,
    "dispatch mode": under(Mode()),
    "FlopCounterMode": under(FlopCounterMode(display=False)),
    "make_fx": symbolic("real"),
    "make_fx fake": symbolic("fake"),
    "make_fx symbolic": symbolic("symbolic"),
    "make_fx pre-dispatch": symbolic("real", pre_dispatch=True),
}


@pytest.mark.parametrize("case", GUARDED)
def test_only_plain_tensors_meet_a_fast_file(op, case):
    expected = 2 * X
    got = GUARDED[case](op)
    assert torch.equal(got, expected), f"{case}: the fast file was asked"
    assert fast(op(X, 2.0)), "the guard is open again"


def test_tensors_without_memory_meet_the_reference(op):
    meta = op(X.to("meta"), 2.0)
    assert meta.device.type == "meta"
    assert meta.shape == X.shape
    with FakeTensorMode() as mode:
        inside = op(mode.from_tensor(X), 2.0)
        made = op(torch.ones(2, 3), 2.0)
    for fake in (inside, made, op(inside, 2.0)):
        assert type(fake).__name__ == "FakeTensor"
    sparse = op(X.to_sparse(), 2.0)
    assert torch.equal(sparse.to_dense(), 2 * X)


def test_by_name_the_guard_says_why(op):
    with regard.use_impl("cpu"):
        for case, words in {
            "vmap": "torch.func transform",
            "grad": "torch.func transform",
            "dispatch mode": "dispatch mode",
            "forward-mode AD": "forward-mode",
            "tensor subclass": "plain tensors, got Subclass",
            "torch.jit.trace": "torch.jit.trace",
            "make_fx pre-dispatch": "dispatch mode",
            "batched gradients": "batched gradient",
        }.items():
            with pytest.raises(regard.UserError, match=words):
                GUARDED[case](op)


def test_plain_arguments_pass_the_guard():
    assert not_plain(X, torch.nn.Parameter(X), (2, 3), "max", 2.0, None) is None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert not_plain(X) is None
    torch.set_default_device("cpu")
    try:
        assert not_plain(X) is None
    finally:
        torch.set_default_device(None)
