"""The smallest comparison: a folder of tiny images, a question about it, and the command line as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regard.base.files import write_text
from regard.comparison import data, grid, training
from regard.comparison.compare import complete
from regard.comparison.question import Draft, Question

# compiled once for all processes, also where Python is told to leave no compiled files
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "compiled"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "NO_COLOR")}
ENVIRONMENT |= {"PYTHONPYCACHEPREFIX": str(CACHE), "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
REGARD = str(Path(sys.executable).with_name("regard"))

SIZE = 16
ASKED: dict[str, Any] = {"size": SIZE, "model": "small_resnet[width=4]", "batch": 8, "workers": 2, "progress": False}
WORDS = ["--size", str(SIZE), "--model", "small_resnet[width=4]", "--batch", "8", "--workers", "2"]


def fill(folder: Path, classes: Sequence[str] = ("dark", "light"), each: int = 10) -> Path:
    """Class folders of noise, brighter for every further class, mostly."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 120, (18, 18, 3)) + 100 * label * (i % 4 > 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:03d}.png")
    return folder


def question(folder: Path, photos: Path, **other: Any) -> Question:
    """What a worker is told about images that this decodes into `folder`."""
    images = data.prepare(photos, folder / "data", size=SIZE)
    words: dict[str, Any] = {"model": "small_resnet[width=4]", "size": SIZE, "batch": 8, "augmentation": "crops"}
    draft = Draft.of(data=photos, start="paper", device="cpu", **words)
    return replace(complete(draft, images, 0, epochs=3), **other)


def run_here(
    folder: Path,
    question: Question,
    runs: Sequence[grid.Run],
    *,
    keep: Callable[[str, int], bool],
    watch: grid.Watch,
    images: Path | None = None,
    **_: Any,
) -> None:
    """What `grid.run` does, in this process: no worker has to start."""
    for arm, seed in runs:
        watch("started", (arm, seed), {})
        try:
            kept = keep(arm, seed)
            record = training.train(question, arm, seed, folder, lambda details: None, kept, None, images)
        except FloatingPointError as error:
            record = {"arm": arm, "seed": seed, "status": "failed", "reason": str(error)}
        write_text(grid.record_path(folder, arm, seed), json.dumps(record))
        watch(record["status"], (arm, seed), record)


def call_here(function: Callable[..., Any], *args: Any, threads: int) -> Any:
    return function(*args)


def train_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons train in this process."""
    monkeypatch.setattr(grid, "run", run_here)
    monkeypatch.setattr(grid, "call", call_here)


def on_one_core() -> None:
    """Two threads that wait for each other on a busy machine take a hundred times as long as one."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def regard(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    options = {"env": ENVIRONMENT, "timeout": 120, "preexec_fn": on_one_core} | options
    return subprocess.run([REGARD, *words], capture_output=True, text=True, check=False, **options)


def begin(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own, with pipes."""
    options = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    options["preexec_fn"] = on_one_core
    return subprocess.Popen([REGARD, *words], text=True, start_new_session=True, **options)


def until(happened: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> Any:
    """Wait for something that a process does, and give it."""
    deadline = time.monotonic() + seconds
    while not (seen := happened()):
        assert process.poll() is None, f"it ended: {process.communicate()}"
        assert time.monotonic() < deadline, f"it never happened; there are {alive(process.pid)}"
        time.sleep(0.01)
    return seen


def alive(group: int) -> dict[int, str]:
    """The processes of a group that still run: id -> command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, process_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
    return found


def gone(group: int, seconds: float = 1) -> None:
    """Hold that no process of a group is left, and leave none."""
    deadline = time.monotonic() + seconds
    while (left := alive(group)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left


def workers(group: int) -> list[int]:
    """The worker processes among them."""
    return [process for process, command in alive(group).items() if "spawn_main" in command]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every stored run, by its file below runs/."""
    return {
        path.relative_to(folder / "runs").as_posix(): json.loads(path.read_text())
        for path in sorted(folder.glob("runs/*/seed-*.json"))
    }


def outcomes(folder: Path) -> dict[str, tuple[float, str]]:
    """What must not depend on interruptions."""
    return {name: (record["top1"], record["weights_sha256"]) for name, record in records(folder).items()}
