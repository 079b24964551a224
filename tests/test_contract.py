"""The contract that every registered mechanism inherits: nobody writes it again for a new one."""

import copy
import io
import re
from functools import cache

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.registry import SLOTS
from regard.tap import taps

NAMES = regard.names()
each = pytest.mark.parametrize("name", NAMES)


def make(name, channels=20, **options):
    torch.manual_seed(0)
    module = regard.create(name, channels, **options)
    for parameter in module.parameters():  # a zero start would hide what the weights do
        nn.init.normal_(parameter, std=0.3)
    return module


def image(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@each
@pytest.mark.parametrize("channels", [8, 20, 64])
@pytest.mark.parametrize("size", [(14, 14), (7, 13), (1, 1), (1, 9)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_any_map(name, channels, size, training):
    module = make(name, channels).train(training)
    x = image(2, channels, *size)
    y = module(x)
    assert y.shape == x.shape
    assert y.isfinite().all()


@each
def test_one_value_for_each_channel_in_training(name):
    module = make(name)
    x = image(1, 20, 1, 1).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in module.buffers())


@each
@pytest.mark.parametrize("training", [True, False])
def test_keeps_channels_last(name, training):
    module = make(name).train(training)
    x = image(2, 20, 7, 13)
    last = x.contiguous(memory_format=torch.channels_last)
    y = module(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, copy.deepcopy(module)(x), rtol=1e-5, atol=1e-6)
    assert copy.deepcopy(module)(x).is_contiguous()


@each
def test_takes_a_sliced_map(name):
    module = make(name).eval()
    x = image(2, 20, 7, 26)[..., ::2]
    torch.testing.assert_close(module(x), module(x.contiguous()))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_dtype_under_autocast(name, dtype):
    module = make(name).eval()
    x = image(2, 20, 7, 13, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), module(x.float()), rtol=0.05, atol=0.05)


@each
@pytest.mark.parametrize("training", [True, False])
def test_gradients(name, training):
    module = make(name, 6).double().train(training)
    x = image(2, 6, 3, 4, dtype=torch.float64).requires_grad_()
    parameters = [p for p in module.parameters() if p.requires_grad]
    buffers = copy.deepcopy(dict(module.named_buffers()))

    def function(x, *parameters):
        names = [n for n, _ in module.named_parameters()]
        state = dict(zip(names, parameters, strict=True)) | copy.deepcopy(buffers)
        return torch.func.functional_call(module, state, (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@each
def test_every_parameter_gets_a_gradient(name):
    module = make(name, 64)
    module(image(2, 64, 7, 13)).square().sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@each
@pytest.mark.parametrize("channels", [8, 20, 256, 1000])
def test_parameter_count_is_the_formula(name, channels):
    assert sum(p.numel() for p in regard.create(name, channels).parameters()) == regard.info(name).parameters(channels)


@each
def test_images_do_not_see_their_neighbours(name):
    module = make(name).eval()
    x = image(3, 20, 7, 13)
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), rtol=1e-5, atol=1e-6)


@each
@pytest.mark.parametrize("training", [True, False])
def test_does_not_write_to_its_input(name, training):
    module = make(name).train(training)
    x = image(2, 20, 7, 13).requires_grad_()
    before, version = x.detach().clone(), x._version
    module(x).sum().backward()
    assert torch.equal(x, before)
    assert x._version == version


@each
def test_repr_copy_and_state_dict(name):
    module = make(name).eval()
    x = image(2, 20, 7, 13)
    assert type(module).__name__ in repr(module)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = regard.create(name, 20).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), module(x))


@each
def test_same_seed_same_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return regard.create(name, 20).state_dict()

    first, again = weights(3), weights(3)
    assert all(torch.equal(first[key], again[key]) for key in first)


@each
def test_export_with_dynamic_sides(name):
    module = make(name).eval()
    batch, height, width = (torch.export.Dim(word, min=2, max=64) for word in ("batch", "height", "width"))
    program = torch.export.export(module, (image(2, 20, 7, 13),), dynamic_shapes=({0: batch, 2: height, 3: width},))
    x = image(3, 20, 9, 5)
    torch.testing.assert_close(program.module()(x), module(x))


@each
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(name, training):
    module = make(name).train(training)
    x = image(2, 20, 7, 13)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.slow
@each
def test_inductor_agrees(name):
    module = make(name).eval()
    x = image(2, 20, 7, 13)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x), rtol=1e-4, atol=1e-5)


@each
def test_every_tap_fires_once_and_in_range(name):
    module = make(name).eval()
    with regard.record(module) as maps:
        module(image(2, 20, 7, 13))
    assert sorted(found.name for found in maps) == sorted(tap_name for tap_name, _ in taps(module))
    by_name = dict(taps(module))
    for found in maps:
        tap = by_name[found.name]
        assert found.value.min() >= tap.low, found.name
        assert found.value.max() <= tap.high, found.name
        assert found.value.min() < found.value.max(), f"{found.name} is constant: the test sees nothing"
        expected = {"channel": (2, 20, 1, 1), "spatial": (2, 1, 7, 13)}.get(found.kind)
        assert expected in (None, tuple(found.value.shape))


@each
def test_starts_as_the_identity_and_can_learn(name):
    x = image(2, 64, 7, 13)
    module = regard.create(name, 64)
    start = regard.info(name).identity
    if start is not None:
        start(module)
    module.eval()
    assert torch.equal(module(x), x)
    module.train()
    before = copy.deepcopy(dict(module.named_parameters()))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        (module(x) - x.roll(1, dims=0)).square().mean().backward()
        optimiser.step()
    for parameter_name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[parameter_name]), f"{parameter_name} did not move within two steps"


@cache
def resnet():
    torch.manual_seed(0)
    # timm starts the last norm of every branch at 0, and what weighs a zero map shows nothing
    return timm.create_model("resnet10t", num_classes=10, zero_init_last=False).eval()


@each
def test_attach_to_a_network_and_remove(name):
    network = copy.deepcopy(resnet())
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
    keys = list(network.state_dict())
    attached = regard.attach(network, name, example=x)
    with torch.no_grad():
        assert torch.equal(network(x), before)
    attached.remove()
    assert list(network.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(network(x), before)


@each
def test_paper_start_changes_a_network(name):
    network = copy.deepcopy(resnet())
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
    regard.attach(network, name, example=x, start="paper")
    with torch.no_grad():
        changed = not torch.equal(network(x), before)
    assert changed == (regard.info(name).identity is not None)


@each
def test_multiply_adds_are_counted(name):
    """Small beside a convolution of the same width: a mechanism is a weight on the map, not a layer."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        make(name, 64).eval()(image(1, 64, 14, 14))
    assert counter.get_total_flops() < 2 * 9 * 64 * 64 * 14 * 14


@each
def test_card(name):
    known = regard.info(name)
    for slot in SLOTS:
        assert known.slots.get(slot), f"the docstring lacks the slot {slot}"
    assert known.slots["Category"].startswith(f"{known.category};")
    assert known.slots["Place"].startswith(f"{known.place}:")
    assert known.paper.split(", ")[0] in known.slots["Paper"]
    assert known.paper.split(" ")[-1] in known.slots["Paper"]
    marked = re.findall(r"`([\w.]+)`", known.slots["Maps"])
    assert sorted(marked) == sorted(tap_name for tap_name, _ in taps(regard.create(name, 20)))
    for option in known.options:
        assert re.search(rf"^\s+{option}:", known.factory.__doc__, re.MULTILINE), f"Args lacks {option}"
    assert known.factory.__module__ == f"regard.mechanisms.{name.partition('_')[0]}" or name in known.factory.__module__
    assert name in str(known)


@each
def test_docstring_formula_of_the_cost(name):
    """`Cost: FORMULA parameters; ...` is evaluated and compared with what is built."""
    text = regard.info(name).slots["Cost"].partition(" parameters")[0]
    known = regard.info(name)
    r, k = known.options.get("reduction"), known.options.get("kernel_size")
    k = regard.create(name, 256).conv.weight.shape[-1] if k == "adaptive" else k
    values = {"C": 256, "r": r, "k": k, "M": max(known.options.get("min_width", 0), 256 // (r or 1))}
    formula = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text.replace("^", "**"))
    assert eval(formula, values) == known.parameters(256), formula


@each
@pytest.mark.parametrize("size", [(9,), (5, 6, 7)], ids=["sequence", "volume"])
def test_other_ranks(name, size):
    options = {"spatial_dims": len(size)} if "spatial_dims" in regard.info(name).options else {}
    module = make(name, **options)
    x = image(2, 20, *size).requires_grad_()
    y = module(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.isfinite().all()
