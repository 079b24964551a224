"""What a long command shows on standard error meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from regard.costs.advice import Row

PATIENCE = 2.0  # seconds that pass in silence


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, moved by calling what is given: with what is being done, how much is done, and of how much.

    Args:
        total: how much there is to do at first.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)


class Ticker:
    """A line for each finished mechanism, and on a terminal a bar, once it takes more than two seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._waiting: list[str] = []
        self._began = time.monotonic()

    def __enter__(self) -> Ticker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def tick(self, row: Row, done: int, total: int) -> None:
        """One mechanism more."""
        self._waiting.append(f"{done}/{total} {row.arm}: {_summary(row)}")
        if time.monotonic() - self._began < PATIENCE or total == 1:
            return
        for line in self._waiting:
            self._console.print(line, markup=False, soft_wrap=True)
        self._waiting.clear()
        if self._console.is_terminal:
            if self._bar is None:
                columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._bar.add_task("", total=total)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done)


def _summary(row: Row) -> str:
    if row.cost is None or row.slowdown is None:
        return row.refused or ""
    what = "training step" if row.cost.train_ratio else "inference"
    memory = f", memory x {row.memory:.2f}" if row.memory else ""
    return f"{what} x {row.slowdown[1]:.2f}{memory}"
