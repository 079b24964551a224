"""Costs, against counts done by hand."""

import gc
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import flop_counter

from regard import UserError
from regard.costs import costing, width
from regard.costs.costing import measure
from regard.costs.counts import multiply_adds, parameters
from regard.costs.examples import batch_size, resized
from regard.costs.memory import peak_memory, predicted_peak
from regard.costs.steps import stand_in, training_step
from regard.costs.width import widen
from regard.networks.replica import shadow
from restless import everything, restless

BYTES = 4 * 1000 * 1000
SMALL = 200  # bytes: scalars that torch allocates beside the maps


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Sleep(nn.Module):
    """Takes the time it is told, with as many parameters as it is wide."""

    def __init__(self, seconds: float, width: int = 1) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


# --- parameters and multiply-adds -------------------------------------------------------------------------------------


def test_shared_parameters_count_once() -> None:
    shared = nn.Linear(7, 5)
    assert parameters(nn.Sequential(shared, nn.Linear(5, 7), shared)) == (7 * 5 + 5) + (5 * 7 + 7)


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 16, 16), 2 * 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(6, 8, 3, groups=2, bias=False), (1, 6, 10, 10), 8 * 8 * 8 * 3 * 9),
        (nn.Linear(7, 5), (3, 7), 3 * 7 * 5),
        (Call(lambda x: functional.scaled_dot_product_attention(x, x, x)), (2, 4, 50, 16), 2 * (2 * 4 * 50 * 50 * 16)),
        (nn.Sequential(nn.AvgPool2d(2), nn.Sigmoid()), (1, 3, 8, 8), 0),
    ],
)
def test_multiply_adds_by_hand(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert multiply_adds(model, torch.randn(shape)) == macs


def test_attention_is_counted_where_torch_has_no_formula_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.delitem(flop_counter.flop_registry, cpu, raising=False)
    x = torch.randn(1, 2, 30, 8)
    model = Call(lambda x: functional.scaled_dot_product_attention(x, x, x))
    assert multiply_adds(model, x) == 2 * (2 * 30 * 30 * 8)


def test_multihead_attention_is_counted_although_inference_fuses_it() -> None:
    class SelfAttention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x, need_weights=False)[0]

    model = SelfAttention(16, 2, batch_first=True)
    assert multiply_adds(model, torch.randn(2, 10, 16)) == 2 * (4 * 10 * 16 * 16 + 2 * 10 * 10 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_leaves_everything_as_it_was() -> None:
    model, x = restless(), torch.randn(2, 3, 8, 8)
    before = everything(model)
    multiply_adds(model, x)
    assert everything(model) == before


# --- memory -----------------------------------------------------------------------------------------------------------


def freed(x: Tensor) -> Tensor:
    for _ in range(4):
        x = x * 2
    return x


def kept(x: Tensor) -> list[Tensor]:
    return [x := x * 2 for _ in range(4)]


def freed_then_kept(x: Tensor) -> list[Tensor]:
    freed(x)
    return kept(x)[:3]


def trained(x: Tensor) -> None:
    """The gradient of exp is held beside exp itself; nothing else of that size lives then."""
    weight = torch.ones_like(x, requires_grad=True)  # one map, held throughout
    (x * weight).exp().sum().backward()


@pytest.mark.parametrize(("step", "maps"), [(freed, 2), (kept, 4), (freed_then_kept, 4), (trained, 3)])
def test_peak_memory_by_hand(step: Callable[[Tensor], object], maps: int) -> None:
    x = torch.ones(1000, 1000)
    peaks = [peak_memory(partial(step, x), "cpu") for _ in range(3)]
    assert maps * BYTES <= peaks[0] < maps * BYTES + SMALL
    assert len(set(peaks)) == 1


def test_what_was_held_before_does_not_count() -> None:
    held = [torch.ones(1000, 1000)]

    def step() -> None:
        held.append(held[0] + held[0])
        held.append(held[1] + held[1])

    assert peak_memory(step, "cpu") == 2 * BYTES
    assert peak_memory(lambda: None, "cpu") == 0


def test_garbage_of_an_earlier_call_does_not_count() -> None:
    gc.collect()  # of other tests

    def step() -> None:
        gc.collect()  # as may happen by itself at any moment
        cycle: list[Any] = [torch.ones(1000, 1000)]
        cycle.append(cycle)

    assert [peak_memory(step, "cpu") for _ in range(2)] == [BYTES, BYTES]


def test_peak_memory_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    peak_memory(lambda: torch.ones(10), "cpu")
    assert capfd.readouterr() == ("", "")


# --- models side by side ----------------------------------------------------------------------------------------------


class SlowInTraining(Sleep):
    """Takes three times as long in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(3 * self.seconds if self.training else self.seconds)
        return x


def tower(depth: int) -> nn.Module:
    layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), SlowInTraining(0.004, width=0)) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.usefixtures("clock")
def test_twice_the_work_costs_twice() -> None:
    x = torch.randn(4, 32, 12, 12)
    costs = measure({"none": tower(4), "double": tower(8)}, x, rounds=9)
    none, double = costs["none"], costs["double"]
    assert none.macs == 4 * 32 * 32 * 9 * 12 * 12
    assert double.macs == 2 * none.macs
    assert double.added_parameters == none.parameters == 4 * (32 * 32 * 9 + 32)
    assert none.added_parameters == 0
    assert none.infer_ratio == none.train_ratio == (1.0, 1.0, 1.0)
    assert double.infer_ratio == pytest.approx((2, 2, 2), rel=1e-3)
    assert double.train_ratio == pytest.approx((2, 2, 2), rel=1e-3)
    assert none.infer_ms == pytest.approx((16, 16, 16), rel=1e-3)
    assert none.train_ms == pytest.approx((48, 48, 48), rel=1e-3)
    one_map = x.numel() * x.element_size()
    assert double.peak_bytes - none.peak_bytes == pytest.approx(
        4 * one_map, rel=0.3
    )  # each convolution keeps its input
    assert double.peak_ratio == double.peak_bytes / none.peak_bytes


def test_measuring_leaves_everything_as_it_was() -> None:
    models = {"none": restless(), "wide": restless(8)}
    before = [everything(model) for model in models.values()]
    rounds: list[int] = []
    measure(models, torch.zeros(2, 3, 8, 8), rounds=5, progress=lambda done, of: rounds.append(done))
    assert [everything(model) for model in models.values()] == before
    assert rounds == [1, 2, 3, 4, 5]


def test_training_runs_in_train_mode_and_inference_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[bool, ...]] = set()

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.add((self.training, torch.is_inference_mode_enabled(), self.weight.grad is None))
            return super().forward(x)

    monkeypatch.setattr(costing, "multiply_adds", lambda model, example: 0)
    measure({"none": Spy(4, 3), "frozen": Spy(4, 3).eval()}, torch.randn(2, 4), rounds=5)
    assert seen == {(True, False, True), (False, True, True)}


def test_scores_of_every_pixel_and_a_given_loss_work() -> None:
    model = nn.Conv2d(3, 5, 1)
    x = torch.randn(2, 3, 4, 4)
    assert measure({"none": model}, x, rounds=5)["none"].macs == 5 * 3 * 16
    given: list[Tensor] = []

    def loss(model: nn.Module, example: Any) -> Tensor:
        given.append(example)
        return model(example).square().mean()

    measure({"none": model}, x, rounds=5, loss=loss)
    assert given
    assert all(example is x for example in given)
    with pytest.raises(ZeroDivisionError):  # the user's own words
        measure({"none": model}, x, rounds=5, loss=lambda model, example: 1 / 0)


def test_without_training() -> None:
    cost = measure({"none": nn.Linear(4, 3)}, torch.randn(2, 4), rounds=5, train=False)["none"]
    assert (cost.train_ms, cost.train_ratio, cost.peak_bytes, cost.peak_ratio) == (None, None, None, None)
    assert cost.infer_ms[1] > 0


def test_the_loss_that_stands_in_reaches_every_output() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(4, 1)
    outputs = [
        (lambda x: first(x), [first]),
        (lambda x: {"a": [first(x), torch.arange(2)], "b": (second(x),)}, [first, second]),
        (lambda x: second(x), [second]),  # one class: its cross entropy would be 0
        (lambda x: first(x)[:, 0], [first]),
    ]
    for function, layers in outputs:
        stand_in(Call(function), torch.randn(2, 4)).backward()
        for layer in layers:
            assert layer.weight.grad is not None
            assert layer.weight.grad.abs().sum() > 0
            layer.zero_grad()


def test_examples_of_any_form() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    images = [x[0], x[1], x[2]]
    other = torch.zeros(4)
    assert [batch_size(example) for example in (x, (x, 1), {"x": x}, (images, other))] == [3, 3, 3, 3]
    assert torch.equal(resized(x, 2), x[:2])
    assert torch.equal(resized(x, 5), x[[0, 1, 2, 0, 1]])
    listed, kept = resized((images, other), 4)
    assert [id(image) for image in listed] == [id(images[place]) for place in (0, 1, 2, 0)]
    assert kept is other
    assert torch.equal(resized({"x": x, "scale": 2}, 1)["x"], x[:1])
    model = nn.Bilinear(2, 2, 5, bias=False)
    assert measure({"none": model}, (x, x), rounds=5)["none"].infer_ms[1] > 0


def test_a_shadow_shares_weights_and_nothing_else() -> None:
    model = restless()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = everything(model)
    other = shadow(model).train()
    assert [w.data_ptr() for w in other.parameters()] == [w.data_ptr() for w in model.parameters()]
    assert all(w.grad is None for w in other.parameters())
    other(torch.randn(2, 3, 8, 8)).sum().backward()
    other.zero_grad()
    assert everything(model)[:4] == before[:4]
    shared = nn.Linear(4, 4)
    tied = shadow(nn.Sequential(shared, shared))
    assert tied[0].weight is tied[1].weight


# --- memory of a batch that does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [1, 2, 8])
def test_the_predicted_peak_is_measured_at_the_large_batch(small: int) -> None:
    """The wide layer's gradients are the peak of a small batch, the maps that of a large one."""
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(8)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 500), nn.Linear(500, 7))
    x = torch.randn(small, 3, 32, 32)
    peaks = [peak_memory(training_step(model, resized(x, size)), "cpu") for size in (small, 48)]
    assert predicted_peak(model, x, 48) == pytest.approx(peaks[1], rel=0.01)
    assert peaks[1] > 3 * peaks[0]


def test_mistakes_are_said_in_a_sentence() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(UserError, match=r"no model is named 'none'.*'se'"):
        measure({"se": nn.Linear(4, 3)}, x)
    with pytest.raises(UserError, match=r"nothing that the Call returns .* pass loss="):
        measure({"none": Call(lambda x: (x, x))}, x)


# --- the width that costs as much -------------------------------------------------------------------------------------


def widening(step: float, factors: list[float]) -> Callable[[float], nn.Module]:
    """A network of 8 ms times its width, which is rounded to a multiple of `step`."""

    def build(factor: float) -> nn.Module:
        factors.append(factor)
        width = round(factor / step) * step
        return Sleep(0.008 * width, round(100 * width))

    return build


@pytest.mark.usefixtures("clock")
def test_widen_times_the_networks_it_builds() -> None:
    factors: list[float] = []
    like = Sleep(0.012)
    state = torch.get_rng_state()
    found, (low, median, high) = widen(widening(0.01, factors), like, torch.zeros(1), rounds=5, tolerance=0.1)
    assert found == pytest.approx(1.5, rel=0.1)
    assert low <= median <= high
    assert len(factors) <= 8
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Exact times instead of measured ones: a model's calls take what they sleep."""
    sizes: list[float] = []

    def interleave(callables: Any, **_: Any) -> dict[str, Any]:
        slept: list[float] = []
        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", slept.append)
            for call in callables.values():
                call()
        sizes.append(slept[0])
        return {
            name: SimpleNamespace(seconds=np.full(5, seconds)) for name, seconds in zip(callables, slept, strict=True)
        }

    monkeypatch.setattr(width, "interleave", interleave)
    return sizes


def test_widen_times_training_steps_where_it_is_asked_to(timed: list[float]) -> None:
    class Trains(Sleep):
        """Slow in train mode alone."""

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(self.seconds if self.training else 1.0)
            return x * next(self.parameters()).sum()

    def build(factor: float) -> nn.Module:
        return Trains(0.008 * factor, round(1000 * factor))

    found, _ = widen(build, Trains(0.016), torch.zeros(1), train=True)
    assert found == pytest.approx(2, rel=0.06)
    assert max(timed) < 1, "inference was timed"


@pytest.mark.parametrize("answer", [1.0, 1.06, 1.5, 3.0, 3.9])
def test_widen_meets_the_answer_within_the_tolerance(timed: list[float], answer: float) -> None:
    found, (_, median, _) = widen(widening(0.01, []), Sleep(0.008 * answer), torch.zeros(1))
    assert found == pytest.approx(answer, rel=0.06)
    assert median == pytest.approx(1, abs=0.05)
    assert len(timed) <= 8


def test_widen_times_a_rounded_width_once_and_gives_the_closest(timed: list[float]) -> None:
    factors: list[float] = []
    found, (_, median, _) = widen(widening(0.5, factors), Sleep(0.008 * 1.8), torch.zeros(1))
    assert round(found / 0.5) * 0.5 == 2.0
    assert median == pytest.approx(2.0 / 1.8)
    assert len(timed) == len(set(timed))
    assert len(timed) < len(factors) == 8


def test_widen_stops_at_either_end(timed: list[float]) -> None:
    factors: list[float] = []
    assert widen(widening(0.01, factors), Sleep(0.002), torch.zeros(1)) == (1.0, (4.0, 4.0, 4.0))
    assert factors == [1.0]
    found, _ = widen(widening(0.01, factors), Sleep(0.1), torch.zeros(1), widest=2.0)
    assert 1.9 < found < 2.0
