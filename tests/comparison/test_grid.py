"""Many runs on one machine: workers that die, runs that fail, and what is shown meanwhile."""

import io
import json
import multiprocessing
import os
import re
import signal
import threading
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import tiny
from regard.base.errors import UserError
from regard.comparison import checkpoint, grid, training
from regard.comparison.display import Display
from regard.comparison.question import Draft, Question
from regard.comparison.results import Comparison


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tiny.CACHE))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    return folder, tiny.question(folder, tiny.fill(folder / "photos"))


@pytest.fixture
def place(asked, tmp_path):
    (tmp_path / "data").symlink_to(asked[0] / "data")
    return tmp_path


def run(place, question, runs, watch=lambda *_: None, keep=lambda *_: False):
    grid.run(place, question, runs, workers=1, threads=1, keep=keep, watch=watch)
    return tiny.records(place)


# ---- workers


def kill_at_half(signals, told):
    """Kill the workers of some runs half-way, with one signal for each try."""
    left = {run: list(numbers) for run, numbers in signals.items()}

    def watch(kind, run, details):
        told.append((kind, run, details))
        if left.get(run) and kind == "progress" and "val_top1" in details and details["done"] > 0.5:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, left[run].pop(0))

    return watch


def test_a_killed_worker_costs_no_run_and_one_that_is_killed_twice_its_run_alone(asked, place):
    """And the next time its run goes on from its checkpoint, in the same numbers as if nothing had happened."""
    told = []
    question = replace(asked[1], epochs=10)
    kills = {("se", 0): [signal.SIGKILL, signal.SIGKILL], ("se", 1): [signal.SIGKILL]}
    found = run(place, question, [("se", 0), ("se", 1)], kill_at_half(kills, told))
    reason = "the worker process was killed by SIGKILL; the system may be out of memory"
    twice = reason + "; its first try had been killed by SIGKILL"
    assert found["se/seed-0000.json"] == {"arm": "se", "seed": 0, "status": "failed", "reason": twice}
    again = found["se/seed-0001.json"]
    assert (again["status"], again["killed"], again["resumed"]) == ("done", "SIGKILL", 1)
    assert [(kind, run) for kind, run, _ in told if kind != "progress"] == [
        ("started", ("se", 0)),
        ("again", ("se", 0)),
        ("started", ("se", 0)),
        ("failed", ("se", 0)),
        ("started", ("se", 1)),
        ("again", ("se", 1)),
        ("started", ("se", 1)),
        ("done", ("se", 1)),
    ]
    assert not multiprocessing.active_children()

    resumed = training.train(question, "se", 0, place, lambda details: None)
    assert resumed["resumed"] >= 1
    for record in (resumed, again):
        whole = training.train(question, "se", record["seed"], asked[0], lambda details: None)
        assert record["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.slow
def test_a_fault_is_tried_again_from_the_start_in_another_layout(asked, place):
    """What a fault leaves behind may be damaged, and the layout may be its cause."""
    question = replace(asked[1], epochs=4, model="small_resnet[width=8]")
    told = []
    found = run(place, question, [("none", 0), ("none", 1)], kill_at_half({("none", 0): [signal.SIGSEGV]}, told))
    again, untouched = found["none/seed-0000.json"], found["none/seed-0001.json"]
    assert (again["status"], again["killed"], again["layout"]) == ("done", "SIGSEGV", "contiguous_format")
    assert again["resumed"] == 0
    assert len(again["curve"]) == 4
    assert (untouched["killed"], untouched["layout"]) == (None, "channels_last")
    (said,) = [details["reason"] for kind, _, details in told if kind == "again"]
    assert said == "the worker process was killed by SIGSEGV"


def test_what_a_killed_process_had_half_written_goes(place):
    for name in ("runs/se/.seed-0000.ckpt.x3f", "weights/se/.seed-0000.safetensors.k2d", "runs/se/seed-0000.ckpt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    run(place, {}, [])
    assert {path.name for path in place.rglob("*seed*")} == {"seed-0000.ckpt"}


def where():
    return {
        "interrupts blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "threads": torch.get_num_threads(),
        "omp": os.environ["OMP_NUM_THREADS"],
        "allocator": os.environ["MALLOC_TRIM_THRESHOLD_"],
        "name": multiprocessing.current_process().name,
    }


def test_a_worker_has_its_threads_and_leaves_interrupts_to_the_parent():
    before = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    found = grid.call(where, threads=3)
    assert found.pop("name") != multiprocessing.current_process().name
    assert found == {"interrupts blocked": True, "threads": 3, "omp": "3", "allocator": str(2**34)}
    assert (dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before


def test_a_call_whose_process_dies_is_a_sentence():
    with pytest.raises(UserError, match="the worker process ended with exit status 3: give the same command again"):
        grid.call(os._exit, 3, threads=1)
    assert not multiprocessing.active_children()


def complain(sentence):
    raise UserError(sentence)


def test_a_call_gives_the_result_or_raises_the_error():
    assert grid.call(max, 3, 4, threads=1) == 4
    with pytest.raises(UserError, match=r"^no$"):
        grid.call(complain, "no", threads=1)


@pytest.mark.parametrize(
    ("cores", "device", "runs", "expected"),
    [
        (8, "cpu", 100, (8, 1)),
        (8, "cpu", 3, (3, 2)),
        (2, "cpu", 1, (1, 2)),
        (8, "cuda", 9, (1, 8)),
        (1, "cpu", 9, (1, 1)),
    ],
)
def test_the_cores_are_divided_among_the_workers(monkeypatch, cores, device, runs, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    assert grid.workers_for(device, runs) == expected


# ---- what a worker does


def serve_until_the_end(*given):
    with suppress(EOFError, ConnectionError):  # the parent is gone
        grid.serve(*given)


@pytest.fixture
def serve(asked, place):
    """Give a worker, which is this process, some runs; what it tells comes back."""

    def serve(*runs, **other):
        here, there = multiprocessing.Pipe()
        for arm, seed in runs:
            here.send((arm, seed, False, None))
        given = there, 1, str(place), replace(asked[1], **other), str(place / "data")
        worker = threading.Thread(target=serve_until_the_end, args=given)
        worker.start()
        told = []
        while sum(kind in ("done", "failed") for kind, _ in told) < len(runs):
            assert here.poll(60), "the worker says nothing"
            told.append(here.recv())
        here.close()
        worker.join(10)
        assert not worker.is_alive(), "it does not end when its parent is gone"
        return [(kind, details) for kind, details in told if kind != "progress"]

    return serve


def test_a_worker_records_what_finished_and_removes_its_checkpoint(serve, place):
    told = serve(("none", 0), ("se", 0))
    assert [kind for kind, _ in told] == ["done", "done"]
    assert tiny.records(place) == {"none/seed-0000.json": told[0][1], "se/seed-0000.json": told[1][1]}
    assert not list(place.glob("runs/*/*.ckpt"))


def test_a_run_that_diverges_is_recorded_and_the_next_one_starts(serve, place, monkeypatch):
    build = training.build

    def diverging(question, arm, seed, *example):
        model = build(question, arm, seed, *example)
        if arm == "se":
            model.head.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(training, "build", diverging)
    told = serve(("se", 0), ("none", 0))
    assert [kind for kind, _ in told] == ["failed", "done"]
    failed = {"arm": "se", "seed": 0, "status": "failed", "reason": "the loss became nan in epoch 1"}
    assert tiny.records(place)["se/seed-0000.json"] == failed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("this is wrong"), "this is wrong"),
        (RuntimeError("out of memory\nlong story"), "RuntimeError: out of memory"),
        (KeyError(), "KeyError: KeyError"),
    ],
)
def test_whatever_a_run_raises_is_its_reason(serve, place, monkeypatch, error, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(training, "build", fail)
    ((kind, record),) = serve(("se", 3))
    assert (kind, record["reason"]) == ("failed", reason)
    assert tiny.records(place) == {"se/seed-0003.json": record}


def test_a_worker_whose_parent_is_gone_blames_nobody(asked, place, monkeypatch):
    """Its run was not at fault: nothing is recorded, and the checkpoint stays."""
    here, there = multiprocessing.Pipe()
    here.send(("se", 0, False, None))
    train = training.train

    def cut(question, arm, seed, folder, tell, *others):
        def tell_nobody(details):
            if "val_top1" in details and details["done"] > 0.5:
                here.close()
            tell(details)

        return train(question, arm, seed, folder, tell_nobody, *others)

    monkeypatch.setattr(training, "train", cut)
    serve_until_the_end(there, 1, str(place), asked[1], str(place / "data"))
    assert not tiny.records(place)
    assert checkpoint.path_of(place, "se", 0).is_file()


# ---- what is shown


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def screen(arms, seeds, width, monkeypatch, terminal=True):
    """A display in the middle of a grid: the first seeds done, one arm failed, two runs at work, the rest waiting."""
    clock = Clock()
    monkeypatch.setattr("regard.comparison.display.time.monotonic", clock)
    question = Question(
        **Draft.of(data="photos", model="resnet18", size=64, device="cpu", pairing="seeds").to_json(), fingerprint="0",
        classes=["a", "b"], train_images=4200, val_images=600, test_images=1200, split_varies="nothing",
    )  # fmt: skip
    comparison = Comparison(
        folder=None,
        question=question,
        asked=[{"arms": arms, "seeds": list(range(seeds)), "seen": False}],
        environment={},
        records={
            ("none", 0): {"arm": "none", "seed": 0, "status": "done", "curve": [{"val_top1": 0.8765}], "seconds": 9.0}
        },
        cost=None,
    )
    display = Display()
    display.console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=50, record=True, color_system=None
    )
    display.start(comparison)
    runs = comparison.wanted[1:]
    half = len(runs) // 2
    for i, run in enumerate(runs[:half]):
        display.watch("started", run, {})
        clock.now += 4
        if i == 1:
            display.watch("failed", run, {"reason": "the loss became nan in epoch 1"})
        else:
            display.watch("done", run, {"curve": [{"val_top1": 0.8 + 0.001 * i}], "seconds": 60.0})
    for run, done in zip(runs[half : half + 2], (0.25, 0.6), strict=True):
        display.watch("started", run, {})
        display.watch("progress", run, {"done": done, "seconds": 100 * done})
        display.watch("progress", run, {"done": done, "val_top1": 0.7 + done / 10, "seconds": 100 * done})
    return display, runs[half : half + 2]


def lines(display):
    console = Console(file=io.StringIO(), width=display.console.width, height=50, record=True, color_system=None)
    console.print(display._table())
    return console.export_text().rstrip("\n").split("\n")


GRIDS = {
    "6 runs": (["none", "se"], 3),
    "24 runs": (["none", "se", "cbam[arrangement=parallel,squeeze=max]"], 8),
    "60 runs": (["none", "se", "eca", "cbam", "coordinate", "wider"], 10),
    "60 seeds": (["none", "cbam[arrangement=parallel,squeeze=max]"], 30),
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", GRIDS)
def test_the_live_table_fits_and_says_how_it_stands(monkeypatch, width, name):
    arms, seeds = GRIDS[name]
    display, running = screen(arms, seeds, width, monkeypatch)
    shown = lines(display)
    display._stop()
    assert all(cell_len(line.rstrip()) <= width for line in shown)
    header, *rows = shown[: len(arms) + 1]
    assert [row.split()[0] for row in rows] == arms
    assert header.split()[:2] == ["arm", "done"]
    numbers = [int(word) for word in header.split()[2:] if word != "seed"]
    at = {running[0][1], running[1][1]}
    assert at <= set(numbers), "what is running is not in sight"
    for row in rows:  # a cell for each seed in sight and none wrapped
        assert len(row.split()) == 2 + len(numbers)
    cells = {(row.split()[0], seed): cell for row in rows for seed, cell in zip(numbers, row.split()[2:], strict=True)}
    for (arm, seed), cell in cells.items():
        state = display._runs[arm, seed]["state"]
        assert re.fullmatch({"done": r"\d\d\.\d", "running": r"…\d+%", "waiting": "-", "failed": "x"}[state], cell)
    text = "\n".join(shown)
    assert re.search(rf"{re.escape(running[0][0])}, seed {running[0][1]}: 25%, 72.5% so far, 1:15 min left", text)
    assert re.search(rf"{re.escape(running[1][0])}, seed {running[1][1]}: 60%, 76.0% so far, 40 s left", text)
    done = sum(entry["state"] in ("done", "failed") for entry in display._runs.values())
    assert re.search(rf"{done} of {len(arms) * seeds} runs done, 1 of them failed, about [\d:]+ \w+ left", text)


def test_the_estimate_counts_what_a_resumed_run_had_behind_it(monkeypatch):
    """Half of 100 seconds had been done before the interruption, so 50 are left, not the moment since it went on."""
    display, (run, _) = screen(["none", "se"], 3, 80, monkeypatch)
    display.watch("started", run, {})
    display.watch("progress", run, {"done": 0.5, "seconds": 50.0})
    assert "50%, 72.5% so far, 50 s left" in display._running(display._runs[run])
    display._stop()


def test_without_a_terminal_every_finished_run_is_one_plain_line(monkeypatch):
    display, _ = screen(["none", "se"], 3, 80, monkeypatch, terminal=False)
    written = display.console.file.getvalue()
    assert "\x1b" not in written
    first, *others = written.splitlines()
    assert first == (
        "photos: 4,200 images to train on, 1,200 to test, 2 classes; resnet18, 64 px, 20 epochs; 6 runs, 1 of them done"
        " before"
    )
    assert others == [
        "2/6 se, seed 0: validation 80.0%, 60 s",
        "3/6 none, seed 1: the loss became nan in epoch 1",
    ]


def test_a_quiet_display_says_nothing(monkeypatch, capsys):
    display = Display(shown=False)
    display.say("hello")
    display.reading(1, 2)
    display.reading(2, 2)
    assert capsys.readouterr() == ("", "")


def test_records_are_plain_json(serve, place):
    serve(("none", 0))
    text = (place / "runs" / "none" / "seed-0000.json").read_text()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["status"] == "done"
