"""Many runs on one machine: worker processes that may die, and a parent that may be killed, without a run lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from regard.base.errors import DiskFull, UserError
from regard.base.files import slug, write_text
from regard.costs.timing import ALLOCATOR

UNGUARDED = 78  # exit status of a worker that found itself asking the question again
# signals of a fault in native code: what the run had reached may be damaged, and the memory layout may be the cause
FAULTS = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"}
Run = tuple[str, int]
# (what happened, the run, its details): "started", "progress", "done", "failed", "again" (its first try was killed)
Watch = Callable[[str, Run, dict[str, Any]], None]


def record_path(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / slug(arm) / f"seed-{seed:04d}.json"


def workers_for(device: str, runs: int) -> tuple[int, int]:
    """How many workers, and how many threads each: the processor's cores divided among them; one worker on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 1 if device.startswith("cuda") else max(1, min(cores, runs))
    return workers, max(1, cores // workers)


def refuse_nesting() -> None:
    """End this process when it is a worker that imports the user's script and came upon the question in it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(UNGUARDED)


def run(
    folder: Path,
    question: dict[str, Any],
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
    waiting = list(runs)
    killed: dict[Run, str] = {}  # the signal that ended a run's first try
    crew: list[_Worker] = []
    try:
        while waiting or any(worker.run for worker in crew):
            while waiting and len(crew) < min(workers, len(waiting) + sum(bool(worker.run) for worker in crew)):
                crew.append(_Worker(folder, question, threads, images or folder / "data"))
            for worker in crew:
                if worker.run is None and waiting:
                    worker.start(waiting.pop(0), keep, killed)
                    watch("started", worker.run, {})  # type: ignore[arg-type]
            ready = wait([source for worker in crew for source in (worker.pipe, worker.process.sentinel)], timeout=1.0)
            for worker in list(crew):
                for kind, details in worker.messages(ready):
                    if kind == "full":  # every other run would end like this one
                        raise DiskFull(details["reason"])
                    watch(kind, worker.current, details)
                if worker.gone:
                    if worker.run:
                        reason, deadly = _epitaph(worker.process), _signal(worker.process)
                        if deadly and worker.run not in killed:
                            killed[worker.run] = deadly
                            waiting.insert(0, worker.run)
                            watch("again", worker.run, {"reason": reason})
                        else:
                            first = killed.get(worker.run)
                            reason += f"; its first try had been killed by {first}" if first else ""
                            record = _failure(*worker.run, reason)
                            write_text(record_path(folder, *worker.run), json.dumps(record, indent=1))
                            watch("failed", worker.run, record)
                    crew.remove(worker)
    finally:
        for worker in crew:
            worker.stop()


def call(function: Callable[..., Any], *args: Any, threads: int) -> Any:
    """Call a module-level function in a fresh worker process, alone, with the allocator settings; give its result."""
    process, pipe = _spawn(_call, threads, function, args)
    try:
        result, error = pipe.recv()
        if error is not None:
            raise error
        return result
    except EOFError:
        process.join()
        raise UserError(f"{_epitaph(process)}: give the same command again to go on") from None
    finally:
        process.kill()
        process.join()


class _Worker:
    """One worker process and the run it is at."""

    def __init__(self, folder: Path, question: dict[str, Any], threads: int, images: Path) -> None:
        self.process, self.pipe = _spawn(_serve, threads, str(folder), question, str(images))
        self.run: Run | None = None
        self.current: Run = ("", 0)
        self.gone = False

    def start(self, run: Run, keep: Callable[[str, int], bool], killed: dict[Run, str]) -> None:
        self.run = self.current = run
        with suppress(OSError):  # a worker that died meanwhile is seen by its sentinel
            self.pipe.send((*run, keep(*run), killed.get(run)))

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

    def stop(self) -> None:
        # nothing is lost by killing: checkpoints and records are written whole
        self.process.kill()
        self.process.join()


def _spawn(target: Callable[..., None], threads: int, *args: Any) -> tuple[BaseProcess, Connection]:
    """Start `target(pipe, threads, *args)` in a process of its own, with our end of the pipe.

    Ctrl-C reaches all processes of a terminal and is the parent's business: a worker starts with it blocked, so that it
    cannot even interrupt the imports.
    """
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=target, args=(other, threads, *args), daemon=True)
    resource_tracker.ensure_running()  # it would be started now otherwise, and lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _environment(threads):
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    other.close()
    return process, pipe


def _epitaph(process: BaseProcess) -> str:
    """How a worker ended that should not have."""
    code = process.exitcode or 0
    if code == UNGUARDED:
        raise UserError(
            "every worker process imports this script and would ask again: put the call of compare() below "
            '`if __name__ == "__main__":`'
        )
    if name := _signal(process):
        hint = "; the system may be out of memory" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{hint}"
    return f"the worker process ended with exit status {code}"


def _signal(process: BaseProcess) -> str | None:
    """The name of the signal that ended a process."""
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else None


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
    """What every worker does first: take its share of the cores, and end when the parent does."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _serve(pipe: Connection, threads: int, folder: str, question: dict[str, Any], images: str) -> None:
    _settle(threads)
    with suppress(EOFError, ConnectionError):  # the parent is gone
        try:
            _work(pipe, Path(folder), question, Path(images))
        except DiskFull as error:
            pipe.send(("full", {"reason": str(error)}))


def _work(pipe: Connection, folder: Path, question: dict[str, Any], images: Path) -> None:
    """One run after another, as they are asked for."""
    from regard.comparison import training

    while True:
        arm, seed, keep, killed = pipe.recv()
        checkpoint = training.checkpoint_path(folder, arm, seed)
        layout = None
        if killed in FAULTS:
            layout = torch.contiguous_format
            checkpoint.unlink(missing_ok=True)
        try:
            tell = lambda details: pipe.send(("progress", details))  # noqa: E731
            record = training.train(question, arm, seed, folder, tell, keep, layout, images) | {"killed": killed}
        except (BrokenPipeError, DiskFull):
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not isinstance(error, UserError | FloatingPointError):
                reason = f"{type(error).__name__}: {reason}"
            record = _failure(arm, seed, reason.encode(errors="replace").decode())
        write_text(record_path(folder, arm, seed), json.dumps(record, indent=1))
        if record["status"] == "done":
            checkpoint.unlink(missing_ok=True)
        pipe.send((record["status"], record))


def _call(pipe: Connection, threads: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _settle(threads)
    try:
        pipe.send((function(*args), None))
    except Exception as error:
        pipe.send((None, error))


def _failure(arm: str, seed: int, reason: str) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "status": "failed", "reason": reason}
