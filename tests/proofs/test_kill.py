"""Killing a comparison costs the work of one epoch and nothing else: proofs with real processes and real signals."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import tiny
from regard.comparison import training

SEEDS, EPOCHS = 2, 15


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.fill(tmp_path_factory.mktemp("images") / "photos")


def words(photos, out, epochs, seeds=SEEDS):
    return ["compare", "se", "--data", str(photos), *tiny.WORDS, "--epochs", str(epochs), "--seeds", str(seeds),
            "--start", "paper", "--augmentation", "crops", "--out", str(out)]  # fmt: skip


def state(folder):
    """The finished runs: when each record was written, and what it says."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("runs/*/seed-*.json")}


def leftovers(folder):
    """Checkpoints, and what was half written."""
    kept = {path.name for pattern in ("runs/*/*", "weights/*/*") for path in folder.glob(pattern)}
    return {name for name in kept if not re.fullmatch(r"seed-\d{4}\.(json|safetensors)", name)}


def checkpointed(folder):
    """When an epoch was last checkpointed."""
    with suppress(FileNotFoundError):  # its run has just finished
        return max((path.stat().st_mtime for path in folder.glob("runs/*/seed-*.ckpt")), default=0)
    return 0


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    """What every run must end with, computed in this process, with as many threads as a worker has."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    asked = tiny.question(folder, photos, epochs=EPOCHS)
    runs = [(arm, seed) for arm in ("none", "se") for seed in range(SEEDS)]
    records = [training.train(asked, arm, seed, folder, lambda details: None) for arm, seed in runs]
    return {
        f"{arm}/seed-{seed:04d}.json": (record["top1"], record["weights_sha256"])
        for (arm, seed), record in zip(runs, records, strict=True)
    }


def test_a_killed_comparison_goes_on_as_if_nothing_had_happened(photos, tmp_path, uninterrupted):
    out = tmp_path / "out"
    process = tiny.begin(*words(photos, out, EPOCHS))
    tiny.until(lambda: state(out), process)
    finished = state(out)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    tiny.gone(process.pid, seconds=1)
    assert len(state(out)) < 2 * SEEDS, "this kills too late to show anything"
    assert {path: content for path, content in state(out).items() if path in finished} == finished

    ended = tiny.regard(*words(photos, out, EPOCHS), "--json")
    assert ended.returncode == 0, ended.stderr
    assert tiny.outcomes(out) == uninterrupted
    assert {path: content for path, content in state(out).items() if path in finished} == finished
    assert not leftovers(out)
    assert (out / "report.html").is_file()
    assert json.loads(ended.stdout) == json.loads((out / "result.json").read_text())
    assert "\x1b" not in ended.stderr


def test_workers_end_when_their_parent_is_killed():
    program = "import time\nfrom regard.comparison import grid\ngrid.call(time.sleep, 60, threads=1)"
    process = subprocess.Popen([sys.executable, "-c", program], env=tiny.ENVIRONMENT, start_new_session=True)
    (worker,) = tiny.until(lambda: tiny.workers(process.pid), process)
    tiny.until(lambda: "libtorch" in Path(f"/proc/{worker}/maps").read_text(), process)
    tiny.until(lambda: rests(worker), process)
    process.kill()
    process.wait()
    tiny.gone(process.pid, seconds=1)


def rests(process):
    """Whether a process takes no processor time for a quarter of a second: its imports are over."""

    def used():
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = used()
    time.sleep(0.25)
    return used() == before


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path, capsys):
    """Also while images are decoded and costs are measured, and always against a comparison left alone."""
    photos = tiny.fill(tmp_path / "photos", each=600)
    whole = tiny.regard(*words(photos, tmp_path / "whole", 10, seeds=3), timeout=600)
    assert whole.returncode == 0, whole.stderr
    expected = tiny.outcomes(tmp_path / "whole")

    out = tmp_path / "out"
    draw = random.Random(5)
    orphaning = draw.sample(range(10), 4)  # in these the parent alone is killed
    said = []
    for kill in range(10):
        before = state(out)
        begun = time.time()
        process = tiny.begin(*words(photos, out, 10, seeds=3))
        if kill == 0:
            where, wait = "while decoding", 0.0
            tiny.until(lambda: list(out.glob("data/.images.npy.*")), process)
        elif kill == 9:
            where, wait = "while measuring costs", 1.0
            tiny.until(lambda: len(state(out)) == 6, process, 600)
        elif kill % 2:
            where, wait = "from the start", draw.uniform(0.1, 8)
        else:
            where, wait = "from the first epoch", draw.uniform(0, 12)
            tiny.until(lambda begun=begun: checkpointed(out) > begun, process)
        time.sleep(wait)
        assert process.poll() is None, "it had ended by itself"
        whom = "the parent" if kill in orphaning else "all"
        (os.kill if kill in orphaning else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
        tiny.gone(process.pid, seconds=4 if kill in orphaning else 1)  # a worker must have imported torch to notice
        after = state(out)
        assert {path: after[path] for path in before} == before, "a finished run was touched"
        said.append(f"{kill + 1}. {whom}, {wait:.1f} s {where}: {len(after)} of 6 runs finished")

    before = state(out)
    ended = tiny.regard(*words(photos, out, 10, seeds=3), timeout=600)
    assert ended.returncode == 0, ended.stderr
    after = state(out)
    assert {path: after[path] for path in before} == before
    assert tiny.outcomes(out) == expected
    resumed = sum(record["resumed"] for record in tiny.records(out).values())
    assert resumed, "no checkpoint was ever used"
    assert not leftovers(out)
    with capsys.disabled():
        print("", "killed", *said, f"then to the end: {resumed} resumptions, scores and weights equal", sep="\n  ")
