"""What a comparison shows while it runs: on a terminal a live table, elsewhere a line for each finished run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from regard.comparison.results import Comparison
from regard.comparison.wording import counted

Run = tuple[str, int]


class Display:
    """The one place that writes to standard error during a comparison.

    Args:
        shown: False keeps silent.
    """

    def __init__(self, shown: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not shown, highlight=False)
        self._live: Live | None = None
        self._decoding: tuple[Progress, TaskID] | None = None
        self._runs: dict[Run, dict[str, Any]] = {}
        self._began = time.monotonic()
        self._workers_seen = 1

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def say(self, sentence: str) -> None:
        """A sentence of its own line, after whatever was live."""
        self._stop()
        self.console.print(sentence, markup=False, soft_wrap=True)

    def reading(self, done: int, total: int) -> None:
        """Images decoded so far."""
        if self._decoding is None:
            bar = Progress(TextColumn("Reading images"), BarColumn(), MofNCompleteColumn(), console=self.console)
            self._decoding = bar, bar.add_task("", total=total)
            bar.start()
        bar, task = self._decoding
        bar.update(task, completed=done, total=total)
        if done >= total:
            self._stop()

    def start(self, comparison: Comparison, again: bool = False) -> None:
        """The runs, those done before included; `again` after a look of the plan, with the runs until the next."""
        self._stop()
        self._runs = {run: {"state": "waiting"} for run in comparison.wanted}
        for run, record in comparison.records.items():
            if record["status"] == "done":
                self._runs[run] = {"state": "done", "val_top1": record["curve"][-1]["val_top1"], "seconds": 0.0}
        done = sum(entry["state"] == "done" for entry in self._runs.values())
        if again:
            going = ", ".join(arm for arm in comparison.arms if any(run[0] == arm for run in comparison.missing))
            self.say(f"Interim look at the results: {counted(len(comparison.missing), 'more run')} of {going}")
        else:
            question = comparison.question
            self.say(
                f"{question.data}: {counted(question.train_images, 'image')} to train on, "
                f"{question.test_images:,} to test, {len(question.classes)} classes; {question.model}, "
                f"{question.size} px, {counted(question.epochs, 'epoch')}; {counted(len(self._runs), 'run')}"
                + (f", {done} of them done before" if done else "")
            )
        if done < len(self._runs):
            self._go()

    def go(self, runs: Sequence[Run]) -> None:
        """Runs of a trial."""
        self._stop()
        self._runs = {run: {"state": "waiting"} for run in runs}
        self._go()

    def _go(self) -> None:
        self._began = time.monotonic()
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=2, transient=True)
            self._live.start()

    def watch(self, kind: str, run: Run, details: dict[str, Any]) -> None:
        """What `grid.run` tells."""
        entry = self._runs[run]
        if kind == "started":
            entry.update(state="running", done=0.0)
        elif kind == "progress":
            entry.update(details)
        elif kind == "done":
            entry.update(state="done", val_top1=details["curve"][-1]["val_top1"], seconds=details["seconds"])
        elif kind == "again":
            entry.update(state="waiting")
            # the table stays below it
            sentence = f"{run[0]}, seed {run[1]}: {details['reason']}; it is tried once more"
            self.console.print(sentence, markup=False, soft_wrap=True)
        else:
            entry.update(state="failed", reason=details["reason"])
        self._workers_seen = max(self._workers_seen, sum(e["state"] == "running" for e in self._runs.values()))
        if kind in ("done", "failed") and not self.console.is_terminal:
            finished = sum(e["state"] in ("done", "failed") for e in self._runs.values())
            what = (
                f"validation {entry['val_top1']:.1%}, {entry['seconds']:.0f} s" if kind == "done" else entry["reason"]
            )
            self.say(f"{finished}/{len(self._runs)} {run[0]}, seed {run[1]}: {what}")

    def _stop(self) -> None:
        if self._decoding is not None:
            self._decoding[0].stop()
            self._decoding = None
        if self._live is not None:
            live, self._live = self._live, None
            live.transient = False
            live.stop()

    def _table(self) -> Group:
        arms = list(dict.fromkeys(arm for arm, _ in self._runs))
        seeds = sorted({seed for _, seed in self._runs})
        room = max(1, (self.console.width - max(map(len, arms)) - 16) // 7)
        begun = [seeds.index(seed) + 1 for (_, seed), entry in self._runs.items() if entry["state"] != "waiting"]
        last = max([room, *begun])
        shown = seeds[last - room : last]
        table = Table(box=None, pad_edge=False, title_justify="left", padding=(0, 2, 0, 0))
        table.add_column("arm", no_wrap=True)
        table.add_column("done", justify="right")
        for seed in shown:
            table.add_column(f"seed {seed}" if seed == shown[0] else str(seed), justify="right", no_wrap=True)
        for arm in arms:
            states = [self._runs.get((arm, seed), {}).get("state") for seed in seeds]
            count = f"{states.count('done')}/{sum(state is not None for state in states)}"
            table.add_row(Text(arm), count, *(self._cell((arm, seed)) for seed in shown))
        running = [
            Text(f"{run[0]}, seed {run[1]}: {self._running(entry)}", no_wrap=True, overflow="crop")
            for run, entry in self._runs.items()
            if entry["state"] == "running"
        ]
        legend = Text("validation accuracy, % of the images; … running; - waiting; x failed", style="dim")
        return Group(table, Text(), *running, Text(self._left()), legend)

    def _cell(self, run: Run) -> str:
        entry = self._runs.get(run)
        if entry is None:
            return ""
        if entry["state"] == "done":
            return f"{100 * entry['val_top1']:.1f}"
        if entry["state"] == "running":
            return f"…{entry['done']:.0%}"
        return {"waiting": "-", "failed": "x"}[entry["state"]]

    def _running(self, entry: dict[str, Any]) -> str:
        """The bar comes last, where a narrow window may cut it off."""
        text = f"{entry['done']:.0%}"
        if "val_top1" in entry:
            text += f", {entry['val_top1']:.1%} so far"
        if entry["done"] > 0.02:
            text += f", {_clock(entry['seconds'] * (1 - entry['done']) / entry['done'])} left"
        filled = round(20 * entry["done"])
        return f"{text} {'█' * filled}{'░' * (20 - filled)}"

    def _left(self) -> str:
        states = [entry["state"] for entry in self._runs.values()]
        finished = states.count("done") + states.count("failed")
        text = f"{finished} of {len(states)} runs done"
        if failed := states.count("failed"):
            text += f", {failed} of them failed"
        spent = [e["seconds"] for e in self._runs.values() if e["state"] == "done" and e["seconds"]]
        if spent:
            mean = sum(spent) / len(spent)
            work = mean * (
                states.count("waiting") + sum(1 - e["done"] for e in self._runs.values() if e["state"] == "running")
            )
            text += f", about {_clock(work / self._workers_seen)} left"
        return f"{text}; {_clock(time.monotonic() - self._began)} so far"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
