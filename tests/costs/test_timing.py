"""Timing: interleaved, shuffled, and leaving the process as it was."""

import gc
import os
import random
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from regard.costs.timing import ALLOCATOR, Timing, allocator_hint, interleave, noisy, ratio


@pytest.mark.usefixtures("clock")
def test_known_sleeps_give_their_ratio() -> None:
    timings = interleave({"short": partial(time.sleep, 0.01), "long": partial(time.sleep, 0.03)}, rounds=9)
    assert ratio(timings["long"], timings["short"]) == pytest.approx((3, 3, 3), rel=1e-3)
    assert timings["short"].seconds == pytest.approx(np.full(9, 0.01), rel=1e-3)
    assert timings["short"].seconds.shape == (9,)
    assert timings["short"].quartiles == pytest.approx(np.percentile(timings["short"].seconds, (25, 75)))


@pytest.mark.usefixtures("clock")
def test_calls_too_short_for_the_clock_are_repeated_and_told_per_call() -> None:
    calls = {"once": 0, "thrice": 0}

    def work(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    timings = interleave({"once": partial(work, "once", 1e-4), "thrice": partial(work, "thrice", 3e-4)}, rounds=7)
    assert calls == {"once": 3 + 7 * 10, "thrice": 3 + 7 * 4}  # until a timing takes a millisecond
    assert ratio(timings["thrice"], timings["once"])[1] == pytest.approx(3, rel=1e-2)
    assert timings["once"].median == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.usefixtures("clock")
def test_every_round_runs_each_once_in_a_new_order() -> None:
    ran: list[str] = []

    def call(name: str) -> None:
        ran.append(name)
        time.sleep(0.0015)

    names = ["a", "b", "c"]
    interleave({name: partial(call, name) for name in names}, rounds=12, warmup=2)
    assert ran[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [ran[start : start + 3] for start in range(6, len(ran), 3)]
    assert len(rounds) == 12
    assert all(sorted(order) == names for order in rounds)
    assert {order[0] for order in rounds} == set(names)


@pytest.mark.usefixtures("clock")
def test_a_spent_budget_still_gives_five_rounds() -> None:
    rounds = []
    timings = interleave(
        {"a": partial(time.sleep, 0.002)}, rounds=40, budget=0.0, progress=lambda done, of: rounds.append((done, of))
    )
    assert len(timings["a"].seconds) == 5
    assert rounds == [(done, 40) for done in range(1, 6)]
    assert len(interleave({"a": partial(time.sleep, 0.002)}, rounds=7, budget=60.0)["a"].seconds) == 7
    # three calls to warm up, then as many as fit
    assert len(interleave({"a": partial(time.sleep, 1)}, rounds=40, budget=11.5)["a"].seconds) == 9


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_rests_and_comes_back(enabled: bool) -> None:
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) > 3:
            raise ArithmeticError

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ArithmeticError):
            interleave({"a": call})
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert not any(seen)


def test_random_states_stay() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    interleave({"a": lambda: None, "b": lambda: None}, rounds=5)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.usefixtures("clock")
def test_cuda_is_waited_for_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(str(device)))

    def call() -> None:
        events.append("call")
        time.sleep(0.0015)

    interleave({"a": call}, rounds=5, warmup=1, device="cuda:1")
    assert events == ["cuda:1", "call", "cuda:1"] * 6


def test_ratio_is_paired_by_round() -> None:
    drifting = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert ratio(Timing(3 * drifting), Timing(drifting)) == (3.0, 3.0, 3.0)


def test_noise_is_said() -> None:
    assert noisy((0.97, 1.0, 1.03)) is None
    assert "25%" in (noisy((4.0, 4.0, 5.0)) or "")


def start(code: str, **variables: str) -> "subprocess.Popen[str]":
    clean = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    return subprocess.Popen([sys.executable, "-c", code], env=clean | variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_the_allocator_hint_tells_how_the_process_was_started() -> None:
    hint = "from regard.costs.timing import ALLOCATOR, allocator_hint; import os, torch; os.environ.update(ALLOCATOR); "
    without = start(hint + "print(allocator_hint())")
    given = start(hint + "print(allocator_hint(), torch.cuda.is_initialized())", **ALLOCATOR)
    said = without.communicate()[0]
    assert all(f"{name}={value}" in said for name, value in ALLOCATOR.items())
    assert given.communicate()[0] == "None False\n"


def test_elsewhere_the_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert allocator_hint() is None
