"""The worker processes of one comparison: how many, what they keep, and where what happens is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.base.machine import cores
from regard.comparison import grid
from regard.comparison.display import Display
from regard.comparison.question import Question


@dataclass(frozen=True)
class Crew:
    """The workers that train, and what of it they keep and show.

    Attributes:
        folder: of the comparison, whose images they take.
        workers: how many, or None for as many as suit the machine.
        keep: see `compare`.
        display: shows what happens.
    """

    folder: Path
    workers: int | None
    keep: str
    display: Display

    def train(self, place: Path, question: Question, runs: Sequence[grid.Run], among: int, first: int = -1) -> None:
        """Train runs and keep their records in a folder.

        Args:
            place: that folder.
            question: what is asked.
            runs: those that are left.
            among: of how many, which says how the cores are divided: with other threads the numbers would be others.
            first: the seed whose weights and maps are kept, where those of the first are.
        """
        count, threads = grid.workers_for(question.device, among)
        if self.workers:
            count, threads = self.workers, max(1, cores() // self.workers)
        kept = {"all": lambda seed: not question.trial, "first": lambda seed: seed == first}
        grid.run(
            place,
            question,
            runs,
            workers=count,
            threads=threads,
            keep=lambda arm, seed: self.keep in kept and kept[self.keep](seed),
            watch=self.display.watch,
            images=self.folder / "data",
        )

    def try_out(self, place: Path, question: Question, runs: Sequence[grid.Run]) -> None:
        """Train the runs of a trial."""
        self.display.go(runs)
        self.train(place, question, runs, len(runs))
