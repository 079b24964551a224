"""What every mechanism owes: one function for each promise, asked of ours by test_contract.py and of ours and others by
`make trust`."""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import pytest
import timm
import torch
from torch import nn

import regard
from regard.insertion.identity_start import start_as_identity
from regard.layers.tap import taps
from regard.registry.info import RANKS, SLOTS, Info
from regard.registry.signatures import shapes

SIZES = [(14, 14), (7, 13), (1, 1), (1, 9)]


@dataclass(frozen=True)
class Subject:
    """A mechanism under test: its name, how to build it, and the shapes it takes and gives."""

    name: str
    build: Callable[..., nn.Module]
    known: Info

    def make(self, channels: int = 20, **options) -> nn.Module:
        torch.manual_seed(0)
        module = self.build(channels, **options)
        for parameter in module.parameters():  # a zero start would hide what the weights do
            nn.init.normal_(parameter, std=0.3)
        for child in module.modules():
            if isinstance(child, nn.modules.dropout._DropoutNd):  # two passes would not be comparable
                child.p = 0.0
        return module

    def inputs(self, channels: int = 20, size=(7, 13), *, batch=2, dtype=torch.float32, **options):
        generator = torch.Generator().manual_seed(1)
        wanted, _ = shapes(self.known, channels, batch=batch, size=size, **options)
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in wanted)

    def outputs(self, channels: int = 20, size=(7, 13), *, batch=2, **options):
        return shapes(self.known, channels, batch=batch, size=size, **options)[1]

    @cached_property
    def spatial(self) -> bool:
        return "*spatial" in self.known.signature or "H, W" in self.known.signature


def ours(name: str) -> Subject:
    return Subject(name, lambda channels, **options: regard.create(name, channels, **options), regard.info(name))


@dataclass(frozen=True)
class Promise:
    """A check that raises, the mechanisms it has a meaning for, whether other libraries can be asked, and its pace."""

    check: Callable[[Subject], None]
    where: Callable[[Info], bool]
    anyone: bool
    slow: bool


PROMISES: dict[str, Promise] = {}


def promise(words: str, *, where: Callable[[Info], bool] = lambda known: True, anyone: bool = True, slow: bool = False):
    """Give a check its words."""

    def add(check):
        PROMISES[words] = Promise(check, where, anyone, slow)
        return check

    return add


def same(known):
    """One map in, one map of its shape out."""
    return known.signature.endswith("-> same") and known.signature.count("(") == 1


def inserted(known):
    return known.place is not None and known.beside is None  # tests/insertion/test_placement.py has what stands beside


def first(value):
    return value[0] if isinstance(value, tuple) else value


def all_of(value):
    return list(value) if isinstance(value, tuple | list) else [value]


def total(value):
    return sum(y.square().sum() for y in all_of(value))


def sizes(subject):
    return SIZES if subject.spatial else SIZES[:1]


@promise("any channels and size")
def any_map(subject):
    for channels in (8, 20, 64):
        for training in (True, False):
            module = subject.make(channels).train(training)
            for size in sizes(subject):
                got = all_of(module(*subject.inputs(channels, size)))
                assert [tuple(y.shape) for y in got] == subject.outputs(channels, size), f"at {channels} x {size}"
                assert all(y.isfinite().all() for y in got), f"NaN or infinity at {channels} x {size}"


@promise(
    "one value per channel in training", where=lambda known: "spatial" in known.signature or "H, W" in known.signature
)
def one_value(subject):
    module = subject.make()
    inputs = [x.requires_grad_() for x in subject.inputs(20, (1, 1), batch=1)]
    y = module(*inputs)
    total(y).backward()
    assert all(value.isfinite().all() for value in all_of(y)), "NaN or infinity in the output"
    assert all(x.grad.isfinite().all() for x in inputs), "NaN or infinity in the gradient"
    assert all(buffer.isfinite().all() for buffer in module.buffers()), "NaN or infinity in a buffer"


@promise("channels_last", where=same)
def channels_last(subject):
    for training in (True, False):
        module = subject.make().train(training)
        (x,) = subject.inputs()
        last = x.contiguous(memory_format=torch.channels_last)
        y = copy.deepcopy(module)(last)
        plain = copy.deepcopy(module)(x)
        assert y.is_contiguous(memory_format=torch.channels_last), "channels_last in, another layout out"
        assert plain.is_contiguous(), "contiguous in, another layout out"
        torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-5)


@promise("non-contiguous maps")
def sliced(subject):
    module = subject.make().eval()
    inputs = subject.inputs()
    apart = [torch.stack([x, x], dim=-1)[..., 0] for x in inputs]
    assert not any(x.is_contiguous() for x in apart)
    for y, expected in zip(all_of(module(*apart)), all_of(module(*inputs)), strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@promise("keeps the dtype under autocast")
def autocast(subject):
    for dtype in (torch.float32, torch.bfloat16):
        module = subject.make().eval()
        inputs = subject.inputs(dtype=dtype)
        expected = all_of(module(*(x.float() for x in inputs)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = all_of(module(*inputs))
        for y, wanted in zip(got, expected, strict=True):
            assert y.dtype == dtype, f"{dtype} in, {y.dtype} out"
            error = (y.float() - wanted).norm() / wanted.norm().clamp(min=1e-6)
            assert error < 0.1, f"off by {error:.0%}"


@promise("an empty batch passes", where=same)
def empty(subject):
    for training in (False, True):
        module = subject.make().train(training)
        (x,) = subject.inputs(batch=0)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of torch, on the deviation of nothing
            y = module(x.requires_grad_())
            y.sum().backward()
        assert y.shape == x.shape


@promise("half precision, for small and for large values", where=same)
def half_precision(subject):
    """Squares and sums of a map neither overflow nor vanish: the answer is that of float64 on the same numbers."""
    for dtype, allowed in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
        module = subject.make().eval().to(dtype)
        exact = copy.deepcopy(module).double()
        for deviation in (1e-3, 1.0, 30.0):
            (x,) = (deviation * x for x in subject.inputs(size=(56, 56) if deviation > 1 else (7, 13)))
            x = x.to(dtype)
            with torch.no_grad():
                got, wanted = module(x).double(), exact(x.double())
                with torch.autocast("cpu", dtype=dtype):
                    mixed = copy.deepcopy(exact).float()(x)
            assert got.isfinite().all(), f"{dtype}, values around {deviation}"
            assert mixed.isfinite().all(), f"{dtype} under autocast, values around {deviation}"
            # what grows with the square of large values is rounded before a softmax takes the largest
            if deviation <= 1 or subject.known.attention != "self":
                error = float((got - wanted).abs().max() / wanted.abs().max())
                assert error <= allowed * (1 if deviation <= 1 else 2), f"{dtype}, values around {deviation}: {error}"


@promise("gradients")
def gradients(subject):
    for training in (True, False):
        module = subject.make(6).double().train(training)
        inputs = [x.requires_grad_() for x in subject.inputs(6, (3, 4), dtype=torch.float64)]
        parameters = dict(module.named_parameters())
        buffers = copy.deepcopy(dict(module.named_buffers()))
        count = len(inputs)

        def function(*values, module=module, parameters=parameters, buffers=buffers, count=count):
            state = dict(zip(parameters, values[count:], strict=True)) | copy.deepcopy(buffers)
            return torch.func.functional_call(module, state, values[:count])

        once, again = (all_of(function(*inputs, *parameters.values())) for _ in range(2))
        assert all(map(torch.equal, once, again)), "two calls differ: there is no function to differentiate"
        assert torch.autograd.gradcheck(function, (*inputs, *parameters.values()), fast_mode=True)


@promise("a gradient of a gradient", anyone=False)
def twice(subject):
    """As a penalty on gradients takes it: by whatever runs, as by the reference in double precision."""
    for training in (True, False):
        found = []
        for impl, dtype in (("auto", torch.float32), ("reference", torch.float64)):
            module = subject.make(8).to(dtype).train(training)
            inputs = [x.requires_grad_() for x in subject.inputs(8, (4, 5), dtype=dtype)]
            leaves = [*inputs, *module.parameters()]
            with regard.use_impl(impl):
                once = torch.autograd.grad(total(module(*inputs)), leaves, create_graph=True, allow_unused=True)
                penalty = sum(d.square().sum() for d in once if d is not None)
                found.append(torch.autograd.grad(penalty, leaves, allow_unused=True))
        largest = max(expected.abs().max() for expected in found[1] if expected is not None)
        for got, expected in zip(*found, strict=True):
            assert (got is None) == (expected is None)
            if got is not None:
                error = (got.double() - expected).abs().max() / largest
                assert error < 1e-3, f"off by {error:.0e}"


@promise("the formula of its paper", anyone=False, where=lambda known: known.formula is not None)
def formula(subject):
    worst = from_formula(subject)
    assert max(worst.values()) <= 1e-9, f"not the formula that it registers: {worst}"


def from_formula(subject):
    """The largest absolute deviation from the registered formula, of value and gradient, in float64."""
    value, gradient = 0.0, 0.0
    for channels in (6, 20):
        module = subject.make(channels).double().eval()
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():  # fresh statistics are those that change nothing
                nn.init.uniform_(buffer, 0.5, 1.5) if name.endswith("var") else nn.init.normal_(buffer)
        weights = dict(module.named_parameters()) | dict(module.named_buffers())
        for size in sizes(subject):
            inputs = [x.requires_grad_() for x in subject.inputs(channels, size, dtype=torch.float64)]
            leaves = [*inputs, *module.parameters()]
            y, wanted = module(*inputs), subject.known.formula(*inputs, weights)
            torch.testing.assert_close(y.shape, wanted.shape)
            value = max(value, (y - wanted).abs().max().item())
            g = torch.randn_like(y)
            for ours, theirs in zip(*(_gradients(answer, g, leaves) for answer in (y, wanted)), strict=True):
                gradient = max(gradient, (ours - theirs).abs().max().item())
    return {"value": value, "gradient": gradient}


def _gradients(answer, g, leaves):
    """A zero where the answer does not depend on a leaf."""
    found = torch.autograd.grad(answer, leaves, g, allow_unused=True)
    return [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, found, strict=True)]


@promise("every parameter gets a gradient")
def every_parameter(subject):
    module = subject.make(64)
    for training in (True, False):  # what stands before a norm moves nothing in training
        total(module.train(training)(*(x.requires_grad_() for x in subject.inputs(64)))).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} gets none"
        assert parameter.grad.abs().sum() > 0, f"{name} gets zero"


@promise("as many parameters as the formula says", anyone=False)
def parameter_count(subject):
    for channels in (8, 20, 256, 1000):
        built = sum(p.numel() for p in subject.build(channels).parameters())
        assert built == subject.known.parameters(channels), f"{built} with {channels} channels"


@promise("an image does not see its neighbours", where=lambda known: known.signature.startswith("(B,"))
def neighbours(subject):
    module = subject.make().eval()
    inputs = subject.inputs(batch=3)
    together, alone = all_of(module(*inputs)), all_of(module(*(x[1:2] for x in inputs)))
    for y, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(y[1:2], expected, rtol=1e-4, atol=1e-5)


@promise("the input is not written to")
def untouched(subject):
    for training in (True, False):
        module = subject.make().train(training)
        inputs = [x.requires_grad_() for x in subject.inputs()]
        before = [(x.detach().clone(), x._version) for x in inputs]
        total(module(*inputs)).backward()
        for x, (kept, version) in zip(inputs, before, strict=True):
            assert torch.equal(x, kept)
            assert x._version == version


@promise("repr, copy and state dict")
def copies(subject):
    module = subject.make().eval()
    inputs = subject.inputs()
    assert type(module).__name__ in repr(module)
    assert torch.equal(first(copy.deepcopy(module)(*inputs)), first(module(*inputs)))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = subject.build(20).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(fresh(*inputs)), first(module(*inputs)))


@promise("same seed, same weights", anyone=False)
def seeds(subject):
    def weights():
        torch.manual_seed(3)
        return subject.build(20).state_dict()

    first, again = weights(), weights()
    assert all(torch.equal(first[key], again[key]) for key in first)


@promise("torch.export with dynamic batch and sides")
def export(subject):
    module = subject.make().eval()
    inputs = subject.inputs(size=(18, 26))  # more than one block of whatever works in blocks
    wanted = subject.inputs(size=(24, 35), batch=3)  # with another remainder, and with none
    # what does not change between the two stays fixed
    dynamic = tuple(
        {axis: torch.export.Dim.AUTO for axis in range(x.dim()) if x.shape[axis] != y.shape[axis]}
        for x, y in zip(inputs, wanted, strict=True)
    )
    program = torch.export.export(module, inputs, dynamic_shapes=dynamic)
    torch.testing.assert_close(first(program.module()(*wanted)), first(module(*wanted)))


@promise("torch.compile without a graph break")
def compiled(subject):
    for training in (True, False):
        torch.compiler.reset()
        module = subject.make().train(training)
        inputs = subject.inputs()
        fast = torch.compile(copy.deepcopy(module), fullgraph=True, backend="eager")
        torch.testing.assert_close(first(fast(*inputs)), first(module(*inputs)), rtol=1e-4, atol=1e-5)


@promise("inductor agrees", slow=True)
def inductor(subject):
    module = subject.make().eval()
    inputs = subject.inputs()
    fast = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(first(fast(*inputs)), first(module(*inputs)), rtol=1e-4, atol=1e-5)


MAPS = {
    "channel": lambda b, c, size: [(b, c, *(1 for _ in size))],
    "spatial": lambda b, c, size: [(b, groups, *size) for groups in range(1, c + 1)],
    "element": lambda b, c, size: [(b, c, *size)],
    "position": lambda b, c, size: [(b, heads, *size, *keys) for heads in range(1, 9) for keys in halves(size)],
    "criss-cross": lambda b, c, size: [(b, *size, sum(size))],
}


def halves(size):
    """The keys may be sub-sampled."""
    return [size, tuple(side // 2 for side in size), tuple(-(-side // 2) for side in size)]


@promise("every map is shown once, and in its range", anyone=False, where=lambda known: known.slots["Maps"] != "none.")
def maps(subject):
    module = subject.make().eval()
    inputs = subject.inputs()
    unseen = all_of(module(*inputs))
    with regard.record(module) as maps:
        seen = all_of(module(*inputs))
    for y, expected in zip(seen, unseen, strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    by_name = dict(taps(module))
    assert sorted(found.name for found in maps) == sorted(by_name)
    for found in maps:
        tap = by_name[found.name]
        assert found.value.min() >= tap.low - 1e-6, found.name
        assert found.value.max() <= tap.high + 1e-6, found.name
        assert found.value.min() < found.value.max(), f"{found.name} is constant: the test sees nothing"
        if found.kind in MAPS:
            expected = MAPS[found.kind](*inputs[0].shape[:2], tuple(inputs[0].shape[2:]))
            assert tuple(found.value.shape) in expected, f"{found.name} is {tuple(found.value.shape)}"


@promise("starts as the identity, and can learn", anyone=False, where=lambda known: inserted(known) and same(known))
def identity(subject):
    (x,) = subject.inputs(64)
    torch.manual_seed(0)
    module = subject.build(64)
    start_as_identity(subject.known, module)
    module.eval()
    assert torch.equal(module(x), x)
    module.train()
    before = copy.deepcopy(dict(module.named_parameters()))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01) if before else None
    # in the first step the strength moves, in the second what the authors start at zero, in the third all behind it
    for _ in range(3 if optimiser else 0):
        optimiser.zero_grad()
        (module(x) - x.roll(1, dims=0)).square().mean().backward()
        optimiser.step()
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} did not move within three steps"


@cache
def resnet():
    torch.manual_seed(0)
    # timm starts the last norm of every branch at 0, and what weighs a zero map shows nothing
    return timm.create_model("resnet10t", num_classes=10, zero_init_last=False).eval()


@promise("attaches, and leaves as it was", anyone=False, where=lambda known: inserted(known) and same(known))
@torch.no_grad()
def attach(subject):
    network = copy.deepcopy(resnet())
    # a stage of odd sides; as many images as a mechanism takes for one clip
    x = torch.randn(8, 3, 60, 60, generator=torch.Generator().manual_seed(1))
    before = network(x)
    keys = list(network.state_dict())
    attached = regard.attach(network, subject.name, example=x)
    assert torch.equal(network(x), before)
    attached.remove()
    assert list(network.state_dict()) == keys
    assert torch.equal(network(x), before)
    regard.attach(network, subject.name, example=x, start="paper")
    start = regard.info(subject.name).identity
    fresh, started = subject.build(20), subject.build(20)
    if start:
        start(started)
    parts = zip(fresh.modules(), started.modules(), strict=True)
    itself = all(_plain(one) == _plain(other) for one, other in parts)
    assert torch.equal(network(x), before) == itself, "who changes nothing is the identity by itself, and no other"


def _plain(module):
    """What is set in a module beside its tensors, and which tensors it has."""
    held = {key: tensor is None for key, tensor in (module._parameters | module._buffers).items()}
    return held | {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}


@promise("a card whose slots are true", anyone=False)
def card(subject):
    known = subject.known
    for slot in SLOTS:
        assert known.slots.get(slot), f"the docstring lacks the slot {slot}"
    assert known.slots["Category"].startswith(f"{known.category};")
    if known.place is not None:
        assert known.slots["Place"].startswith(f"{known.place}:")
    assert known.paper.split(", ")[0] in known.slots["Paper"]
    assert known.paper.split(" ")[-1] in known.slots["Paper"]
    marked = re.findall(r"`([\w.]+)`", known.slots["Maps"])
    assert sorted(marked) == sorted(name for name, _ in taps(subject.build(20)))
    for option in known.options:
        assert re.search(rf"^\s+{option}:", known.factory.__doc__, re.MULTILINE), f"Args lacks {option}"
    file = known.factory.__module__.rpartition(".")[2]
    assert file in (subject.name, subject.name.partition("_")[0], *regard.names()), (
        f"a stranger looks in {file}.py last"
    )
    assert subject.name in str(known)
    assert all(column in PROMISES for column in known.exceptions)


@promise("the formula of its cost", anyone=False)
def cost(subject):
    """`Cost: FORMULA parameters; ...` is evaluated and compared with what is built; its letters are C, the options'
    initials r, k and names, M, the hidden width, and what its registration says of others."""
    known = subject.known
    text = known.slots["Cost"].partition(" parameter")[0]
    r, k = known.options.get("reduction"), known.options.get("kernel_size")
    values = {"C": 256, "r": r, "k": k, "M": max(known.options.get("min_width", 0), 256 // (r or 1))}
    values |= {name: 256 if value is None else value for name, value in known.options.items()} | {"log2": 8}
    values |= known.letters(subject.build(256)) if known.letters else {}
    formula = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text.replace("^", "**"))
    assert eval(formula, values) == known.parameters(256), formula


@promise("sequences and volumes", anyone=False, where=lambda known: "*spatial" in known.signature)
def ranks(subject):
    for size in ((9,), (5, 6, 7)):
        options = {"spatial_dims": len(size)} if "spatial_dims" in subject.known.options else {}
        module = subject.make(**options)
        inputs = [x.requires_grad_() for x in subject.inputs(20, size, **options)]
        got = all_of(module(*inputs))
        assert [tuple(y.shape) for y in got] == subject.outputs(20, size, **options)
        total(got).backward()
        assert all(x.grad.isfinite().all() for x in inputs)


@promise(
    "other numbers of spatial axes are refused in a sentence",
    anyone=False,
    where=lambda known: 0 < len(known.spatial) < len(RANKS),
)
def other_ranks(subject):
    known = subject.known
    for size in ((9,), (5, 6), (5, 6, 7)):
        if len(size) in known.spatial:
            continue
        words = f"{known.name}.*{' or '.join(map(str, known.spatial))}"
        with pytest.raises(regard.UserError, match=words):
            regard.create(known.name, 20, spatial_dims=len(size))
        module = subject.make()
        with pytest.raises(regard.UserError, match=f"{known.name}.* works on maps with 2 .*spatial axes"):
            module(torch.randn(2, 20, *size))
