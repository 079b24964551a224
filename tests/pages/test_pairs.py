"""Attention between pixels without weights in memory: the same function, and what is kept grows with the pixels."""

import json

import pytest
import torch
from torch import nn

import pairs
import regard
from regard import ops
from regard.mechanisms.non_local import _sum_above

# maps kept for the backward pass at 64 x 64; the map itself is one, and criss_cross does everything twice
KEPT = {
    "non_local[pairwise=gaussian]": 5.1,
    "non_local[pairwise=embedded_gaussian]": 4.1,
    "non_local[pairwise=dot_product]": 4.1,
    "non_local[pairwise=concatenation]": 7.2,
    "danet_position": 3.3,
    "qkv": 5.1,
    "qkv[heads=4]": 5.1,
    "criss_cross": 6.6,
    "local": 4.1,
    "local[heads=4]": 4.1,
}
arms = pytest.mark.parametrize("arm", pairs.ARMS)


@arms
def test_what_is_kept_grows_with_the_pixels(arm):
    small, large = (pairs.kept(pairs.build(arm), pairs.image(side)) for side in (32, 64))
    assert 4 * large / small < 4.1  # four times the pixels
    assert large < KEPT[arm]


@arms
def test_a_watched_tap_costs_its_weights(arm):
    """What the other tests measure is there to be measured."""
    unwatched, watched = (pairs.kept(pairs.build(arm, watched=seen), pairs.image(48)) for seen in (False, True))
    assert watched > {"criss_cross": 1.4, "local": 2.5, "local[heads=4]": 4}.get(arm, 7) * unwatched


@arms
def test_with_and_without_weights_it_is_the_same_function(arm):
    x = pairs.image(17, torch.float64)  # 289 pixels: more than one step of attend, no whole number of blocks
    found = []
    for watched in (False, True):
        module = pairs.build(arm, watched=watched, dtype=torch.float64)
        learning = [x.clone().requires_grad_(), *module.parameters()]
        y = module(learning[0])
        found.append([y, *torch.autograd.grad(y.sin().sum(), learning)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("width", [4, 6])
def test_attend_keeps_no_weights_whatever_lies_how(last, width):
    """Channels first, positions do not lie one after the other: torch then silently builds all weights."""
    layout = torch.channels_last if last else torch.contiguous_format
    query, key, value = (
        torch.randn(1, 2 * channels, 20, 20).contiguous(memory_format=layout).requires_grad_()
        for channels in (4, 4, width)
    )
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ops.attend(*(x.unflatten(1, (2, -1)) for x in (query, key, value)))
    assert max(sizes) <= 2 * 6 * 400


def test_second_derivatives_of_attend_and_cross():
    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    wide = some(1, 1, 2, 3, 4), some(1, 1, 2, 5), some(1, 1, 3, 5)
    assert torch.autograd.gradgradcheck(ops.attend, wide)
    assert torch.autograd.gradgradcheck(ops.cross, (some(1, 2, 3, 4), some(1, 2, 3, 4), some(1, 3, 3, 4)))


def test_cross_on_one_pixel():
    query, key, value = (torch.randn(2, channels, 1, 1, requires_grad=True) for channels in (2, 2, 3))
    y = ops.cross(query, key, value)
    y.sum().backward()
    assert torch.equal(y, value)
    assert not query.grad.any()
    assert not key.grad.any()
    assert torch.equal(value.grad, torch.ones_like(value))


def test_cross_in_autocast():
    query, key, value = (torch.randn(2, channels, 5, 6, requires_grad=True) for channels in (4, 4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.cross(query, key, value)
    y.sum().backward()
    assert value.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), ops.cross(query, key, value), rtol=0.1, atol=0.1)


# --- the sum of concatenation ----------------------------------------------------------------------------------------


def pair_by_pair(a, b, v):
    return torch.relu(a + b.mT) @ v


def test_a_pair_at_exactly_zero_has_no_gradient():
    """As relu has it; where a map is dead, both halves are zero everywhere."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-2, 3, (2, n, 1), generator=generator).double().requires_grad_() for n in (9, 12))
    v = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert (a + b.mT == 0).any()
    found = [torch.autograd.grad(sum_of(a, b, v).sin().sum(), (a, b, v)) for sum_of in (_sum_above, pair_by_pair)]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("shift", "tolerance"), [(0, 1e-6), (3, 1e-5), (-3, 1e-5), (100, 1e-5)])
@pytest.mark.parametrize("low", [0, -6])
def test_running_sums_lose_no_digits(shift, low, tolerance):
    """The halves far from zero, and against each other; with `low` only a few pairs count."""
    generator = torch.Generator().manual_seed(0)
    a, b, v = (torch.randn(1, 2000, width, generator=generator) for width in (1, 1, 8))
    a, b = a + shift + low, b - shift
    exact = [x.double().requires_grad_() for x in (a, b, v)]
    rounded = [x.requires_grad_() for x in (a, b, v)]
    wanted, got = pair_by_pair(*exact), _sum_above(*rounded)
    gradients = torch.autograd.grad(got.sum(), rounded), torch.autograd.grad(wanted.sum(), exact)
    for y, expected in [(got, wanted), *zip(*gradients, strict=True)]:
        assert (y - expected).abs().max() <= tolerance * expected.abs().max()


def test_concatenation_in_half_precision():
    module = pairs.build("non_local[pairwise=concatenation]")
    x = pairs.image(9)
    expected, y = module.eval()(x), module.to(torch.bfloat16)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() < 0.05 * expected.norm()


def test_nothing_counts_and_everything_counts():
    v = torch.randn(1, 5, 3)
    for a, expected in ((-9.0, torch.zeros(3)), (9.0, 9 * v[0].sum(0))):
        y = _sum_above(torch.full((1, 4, 1), a), torch.zeros(1, 5, 1), v)
        torch.testing.assert_close(y, expected.expand(1, 4, 3))


# --- leaving python --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["non_local[pairwise=concatenation]", "local"])
def test_gradients_of_what_is_compiled(arm):
    module = pairs.build(arm, dtype=torch.float64)
    fast = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = pairs.image(9, torch.float64).requires_grad_()
    got, expected = (torch.autograd.grad(call(x).square().sum(), [x, *module.parameters()]) for call in (fast, module))
    for g, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(g, wanted, rtol=1e-7, atol=1e-7)


def test_concatenation_as_onnx(tmp_path):
    """ONNX cannot search a sorted row: there the pairs are built."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module = pairs.build("non_local[pairwise=concatenation]").eval()
    program = torch.onnx.export(module, (pairs.image(6),), dynamo=True, verbose=False)
    program.save(tmp_path / "module.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "module.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: pairs.image(6).numpy()})
    torch.testing.assert_close(torch.from_numpy(y), module(pairs.image(6)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["local", "non_local", "criss_cross"])
def test_gradients_by_torch_func(name):
    """What is transformed meets plain PyTorch."""
    module = regard.create(name, 4)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 4, 5, 6)
    parameters = dict(module.named_parameters())

    def total(parameters):
        return torch.func.functional_call(module.eval(), parameters, (x,)).square().sum()

    got = torch.func.grad(total)({key: value.detach() for key, value in parameters.items()})
    expected = torch.autograd.grad(total(parameters), parameters.values())
    for key, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(got[key], wanted)


# --- the measurement -------------------------------------------------------------------------------------------------


def test_a_measured_row():
    row = pairs.measure("danet_position", 8, rounds=3)
    assert row["kept_maps"]["with"] > row["kept_maps"]["without"] > 1
    for mode in pairs.MODES:
        assert row[f"{mode}_ratio"] == tuple(sorted(row[f"{mode}_ratio"]))
        assert all(peak > 0 for peak in row[f"{mode}_peak_maps"].values())


def test_the_results_reach_the_goals():
    rows = {(row["mechanism"], row["side"]): row for row in json.loads(pairs.RESULTS.read_text())["rows"]}
    assert len(rows) == len(pairs.ARMS) * len(pairs.SIDES)
    for (arm, side), row in rows.items():
        assert row["kept_maps"]["without"] < KEPT[arm], f"{arm} at {side}"
