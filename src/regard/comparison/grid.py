"""Many runs on one machine: worker processes that may die, and a parent that may be killed, without a run lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from regard.errors import UserError
from regard.files import slug, write_text
from regard.timing import ALLOCATOR

Run = tuple[str, int]
# (what happened, the run, its details): "started", "progress", "done", "failed"
Watch = Callable[[str, Run, dict[str, Any]], None]


def record_path(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / slug(arm) / f"seed-{seed:04d}.json"


def workers_for(device: str, runs: int) -> tuple[int, int]:
    """How many workers, and how many threads each: the processor's cores divided among them; one worker on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 1 if device.startswith("cuda") else max(1, min(cores, runs))
    return workers, max(1, cores // workers)


def run(
    folder: Path,
    question: dict[str, Any],
    runs: Sequence[Run],
    *,
    workers: int,
    threads: int,
    keep: Callable[[str, int], bool],
    watch: Watch,
) -> None:
    """Do every run that has no finished record yet, in the order given.

    A run's record is written whole by its worker. A run that raises, or whose worker dies, is recorded as failed with
    the reason, and the others go on. Workers end by themselves when this process is gone.

    Args:
        folder: of the comparison.
        question: what every run is told.
        runs: (arm, seed), in the order in which they should start.
        workers, threads: see `workers_for`.
        keep: whether a run also writes its weights and maps.
        watch: is told what happens, in this process.

    Raises:
        KeyboardInterrupt: after the workers were stopped; what they had finished is recorded.
    """
    waiting = list(runs)
    crew: list[_Worker] = []
    try:
        while waiting or any(worker.run for worker in crew):
            while waiting and len(crew) < min(workers, len(waiting) + sum(bool(worker.run) for worker in crew)):
                crew.append(_Worker(folder, question, threads))
            for worker in crew:
                if worker.run is None and waiting:
                    worker.start(waiting.pop(0), keep)
                    watch("started", worker.run, {})  # type: ignore[arg-type]
            ready = wait([source for worker in crew for source in (worker.pipe, worker.process.sentinel)], timeout=1.0)
            for worker in list(crew):
                for kind, details in worker.messages(ready):
                    watch(kind, worker.current, details)
                if worker.gone:
                    if worker.run:
                        reason = worker.epitaph()
                        _record_failure(folder, *worker.run, reason)
                        watch("failed", worker.run, {"reason": reason})
                    crew.remove(worker)
    finally:
        for worker in crew:
            worker.stop()


def call(function: Callable[..., Any], *args: Any, threads: int) -> Any:
    """Call a module-level function in a fresh worker process, alone, with the allocator settings; give its result."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    with _environment(threads):
        process = context.Process(target=_call, args=(other, threads, function, args), daemon=True)
        process.start()
    other.close()
    try:
        while not pipe.poll(0.5):
            if not process.is_alive() and not pipe.poll():
                raise UserError(f"a worker process ended with exit status {process.exitcode}: is there enough memory?")
        try:
            result, error = pipe.recv()
        except EOFError:
            process.join()
            raise UserError(
                f"a worker process ended with exit status {process.exitcode}: is there enough memory?"
            ) from None
        if error is not None:
            raise error
        return result
    finally:
        process.kill()
        process.join()


class _Worker:
    """One worker process and the run it is at."""

    def __init__(self, folder: Path, question: dict[str, Any], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.run: Run | None = None
        self.current: Run = ("", 0)
        self.gone = False
        with _environment(threads):
            self.process: BaseProcess = context.Process(
                target=_serve, args=(other, str(folder), question, threads), daemon=True
            )
            self.process.start()
        other.close()

    def start(self, run: Run, keep: Callable[[str, int], bool]) -> None:
        self.run = self.current = run
        with suppress(OSError):  # a worker that died meanwhile is seen by its sentinel
            self.pipe.send((*run, keep(*run)))

    def messages(self, ready: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            while self.pipe.poll():
                kind, details = self.pipe.recv()
                if kind in ("done", "failed"):
                    self.run = None
                yield kind, details
        except (EOFError, OSError):
            self.gone = True
        self.gone = self.gone or self.process.sentinel in ready
        if self.gone:
            self.process.join()

    def epitaph(self) -> str:
        code = self.process.exitcode or 0
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; the system may be out of memory" if name == "SIGKILL" else ""
            return f"the worker process was killed by {name}{hint}"
        return f"the worker process ended with exit status {code}"

    def stop(self) -> None:
        # nothing is lost by killing: checkpoints and records are written whole
        self.process.kill()
        self.process.join()


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The environment that a process must have before it starts; ours is put back."""
    settings = ALLOCATOR | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _settle(threads: int) -> None:
    """What every worker does first: leave Ctrl-C to the parent, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _serve(pipe: Connection, folder: str, question: dict[str, Any], threads: int) -> None:
    _settle(threads)
    from regard.comparison import training

    while True:
        try:
            arm, seed, keep = pipe.recv()
        except EOFError:
            return
        try:
            tell = lambda details: pipe.send(("progress", details))  # noqa: E731
            record = training.train(question, arm, seed, Path(folder), tell, keep)
            write_text(record_path(Path(folder), arm, seed), json.dumps(record, indent=1))
            training.checkpoint_path(Path(folder), arm, seed).unlink(missing_ok=True)
            pipe.send(("done", record))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not isinstance(error, UserError | FloatingPointError):
                reason = f"{type(error).__name__}: {reason}"
            _record_failure(Path(folder), arm, seed, reason)
            pipe.send(("failed", {"reason": reason}))


def _call(pipe: Connection, threads: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _settle(threads)
    try:
        pipe.send((function(*args), None))
    except Exception as error:
        pipe.send((None, error))


def _record_failure(folder: Path, arm: str, seed: int, reason: str) -> None:
    record = {"arm": arm, "seed": seed, "status": "failed", "reason": reason}
    write_text(record_path(folder, arm, seed), json.dumps(record, indent=1))
