"""Many runs on one machine: worker processes that may die, and a parent that may be killed, without a run lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from regard.base import process
from regard.base.errors import DiskFull, UserError
from regard.base.files import slug, write_text
from regard.base.machine import cores
from regard.comparison.question import Question
from regard.costs.timing import ALLOCATOR

# signals of a fault in native code: what the run had reached may be damaged, and the memory layout may be the cause
FAULTS = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"}
CALLER = "compare()"
Run = tuple[str, int]
# (what happened, the run, its details): "started", "progress", "done", "failed", "again" (its first try was killed)
Watch = Callable[[str, Run, dict[str, Any]], None]


def record_path(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / slug(arm) / f"seed-{seed:04d}.json"


def workers_for(device: str, runs: int) -> tuple[int, int]:
    """How many workers, and how many threads each: the processor's cores divided among them; one worker on a GPU."""
    workers = 1 if device.startswith("cuda") else max(1, min(cores(), runs))
    return workers, max(1, cores() // workers)


def run(
    folder: Path,
    question: Question,
    runs: Sequence[Run],
    *,
    workers: int,
    threads: int,
    keep: Callable[[str, int], bool],
    watch: Watch,
    images: Path | None = None,
) -> None:
    """Do every run that has no finished record yet, in the order given.

    A run's record is written whole by its worker. A run that raises is recorded as failed with the reason, and the
    others go on. A run whose worker is killed by a signal is tried once more: from its checkpoint, or from the start
    and in the contiguous memory layout after a fault (see `FAULTS`). Workers end by themselves when this process is
    gone.

    Args:
        folder: of the comparison.
        question: what every run is told.
        runs: (arm, seed), in the order in which they should start.
        workers, threads: see `workers_for`.
        keep: whether a run also writes its weights and maps.
        watch: is told what happens, in this process.
        images: the folder of the images, where that is not ``data`` in the folder.

    Raises:
        UserError: the calling script asks again when a worker imports it.
        DiskFull: a run could not be written.
        KeyboardInterrupt: after the workers were stopped; what they had finished is recorded.
    """
    for stale in folder.glob("*/*/.seed-*"):  # half written by a process that was killed
        stale.unlink()
    settings = _environment(threads)
    hire = lambda: _Worker(threads, str(folder), question, str(images or folder / "data"), settings)  # noqa: E731
    crew = _Crew(folder, list(runs), hire, keep, watch)
    try:
        while crew.has_work:
            crew.fill(workers)
            crew.listen()
    finally:
        crew.stop()


def call(function: Callable[..., Any], *args: Any, threads: int) -> Any:
    """Call a module-level function in a fresh worker process, alone, with the allocator settings; give its result."""
    try:
        return process.call(_with_threads, threads, function, args, environment=_environment(threads), caller=CALLER)
    except process.Died as death:
        raise UserError(f"{death}: give the same command again to go on") from None


class _Crew:
    """The workers at their runs, and the runs that wait for one."""

    def __init__(
        self,
        folder: Path,
        waiting: list[Run],
        hire: Callable[[], _Worker],
        keep: Callable[[str, int], bool],
        watch: Watch,
    ) -> None:
        self.folder, self.waiting, self.hire, self.keep, self.watch = folder, waiting, hire, keep, watch
        self.workers: list[_Worker] = []
        self.killed: dict[Run, str] = {}  # the signal that ended a run's first try

    @property
    def has_work(self) -> bool:
        return bool(self.waiting) or any(worker.run for worker in self.workers)

    def fill(self, most: int) -> None:
        """Hire as many workers as there is work for, and give a run to every one that is idle."""
        busy = sum(bool(worker.run) for worker in self.workers)
        while self.waiting and len(self.workers) < min(most, len(self.waiting) + busy):
            self.workers.append(self.hire())
        for worker in self.workers:
            if worker.run is None and self.waiting:
                run = self.waiting.pop(0)
                worker.start(run, self.keep(*run), self.killed.get(run))
                self.watch("started", run, {})

    def listen(self) -> None:
        """Wait until something happens, and pass on what the workers say; those that died are let go."""
        sources = [source for worker in self.workers for source in (worker.process.pipe, worker.process.sentinel)]
        ready = wait(sources, timeout=1.0)
        for worker in list(self.workers):
            for kind, details in worker.messages(ready):
                if kind == "full":  # every other run would end like this one
                    raise DiskFull(details["reason"])
                self.watch(kind, worker.current, details)
            if worker.gone:
                self.workers.remove(worker)
                if worker.run:
                    self.lose(worker.run, worker.process)

    def lose(self, run: Run, worker: process.Process) -> None:
        """Try a run once more whose worker was killed by a signal, and record every other one as failed."""
        reason = str(worker.death(CALLER))
        if worker.signal and run not in self.killed:
            self.killed[run] = worker.signal
            self.waiting.insert(0, run)
            self.watch("again", run, {"reason": reason})
            return
        first = self.killed.get(run)
        reason += f"; its first try had been killed by {first}" if first else ""
        record = _failure(*run, reason)
        write_text(record_path(self.folder, *run), json.dumps(record, indent=1))
        self.watch("failed", run, record)

    def stop(self) -> None:
        # nothing is lost by killing: checkpoints and records are written whole
        for worker in self.workers:
            worker.process.kill()


class _Worker:
    """One worker process and the run it is at."""

    def __init__(self, threads: int, folder: str, question: Question, images: str, environment: dict[str, str]) -> None:
        self.process = process.Process(serve, threads, folder, question, images, environment=environment)
        self.run: Run | None = None
        self.current: Run = ("", 0)
        self.gone = False

    def start(self, run: Run, keep: bool, killed: str | None) -> None:
        self.run = self.current = run
        with suppress(OSError):  # a worker that died meanwhile is seen by its sentinel
            self.process.pipe.send((*run, keep, killed))

    def messages(self, ready: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            while self.process.pipe.poll():
                kind, details = self.process.pipe.recv()
                if kind in ("done", "failed"):
                    self.run = None
                yield kind, details
        except (EOFError, OSError):
            self.gone = True
        self.gone = self.gone or self.process.sentinel in ready
        if self.gone:
            self.process.join()


def _environment(threads: int) -> dict[str, str]:
    """What a worker must find when it starts."""
    return ALLOCATOR | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _with_threads(threads: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(threads)
    return function(*args)


def serve(pipe: Connection, threads: int, folder: str, question: Question, images: str) -> None:
    """What a worker does: one run after another, as they are asked for, until its parent is gone."""
    torch.set_num_threads(threads)
    try:
        while True:
            _work(pipe, Path(folder), question, Path(images), *pipe.recv())
    except DiskFull as error:
        pipe.send(("full", {"reason": str(error)}))


def _work(
    pipe: Connection,
    folder: Path,
    question: Question,
    images: Path,
    arm: str,
    seed: int,
    keep: bool,
    killed: str | None,
) -> None:
    """One run, recorded."""
    from regard.comparison import checkpoint, training

    unfinished = checkpoint.path_of(folder, arm, seed)
    layout = None
    if killed in FAULTS:
        layout = torch.contiguous_format
        unfinished.unlink(missing_ok=True)
    try:
        tell = lambda details: pipe.send(("progress", details))  # noqa: E731
        record = training.train(question, arm, seed, folder, tell, keep, layout, images) | {"killed": killed}
    except (BrokenPipeError, DiskFull):
        raise
    except Exception as error:
        record = _failure(arm, seed, _reason(error))
    write_text(record_path(folder, arm, seed), json.dumps(record, indent=1))
    if record["status"] == "done":
        unfinished.unlink(missing_ok=True)
    pipe.send((record["status"], record))


def _reason(error: Exception) -> str:
    """An error in one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(error, UserError | FloatingPointError):
        reason = f"{type(error).__name__}: {reason}"
    return reason.encode(errors="replace").decode()


def _failure(arm: str, seed: int, reason: str) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "status": "failed", "reason": reason}
