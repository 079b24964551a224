"""What mechanisms would cost in one network: `Advice`, the answer of `advise`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any

from regard.base import notebook
from regard.costs.advice_text import WIDTH, added, bytes_text, milliseconds, ratio, section, short, table
from regard.costs.costing import Cost
from regard.costs.timing import Spread
from regard.pictures import outline

COLUMNS = ("mechanism", "sites", "parameters", "multiply-adds", "inference x", "training step x", "memory x")


@dataclass(frozen=True)
class Row:
    """What one mechanism costs at its sites.

    Attributes:
        arm: the mechanism with its options, as `registry.parse` reads it.
        sites: names of its sites, in the order of the forward pass.
        cost: beside the network without; None where it was refused.
        refused: why it cannot be had there, in a sentence.
        warnings: what to know before training, a sentence each.
        predicted_bytes: `Cost.peak_bytes` at the larger batch that was asked for.
        predicted_ratio: the same over the network's without.
    """

    arm: str
    sites: tuple[str, ...] = ()
    cost: Cost | None = None
    refused: str | None = None
    warnings: tuple[str, ...] = ()
    predicted_bytes: int | None = None
    predicted_ratio: float | None = None

    @property
    def slowdown(self) -> Spread | None:
        """Time of a training step, or of inference where training was not measured, over the network's without."""
        return (self.cost.train_ratio or self.cost.infer_ratio) if self.cost else None

    @property
    def memory(self) -> float | None:
        """Peak memory over the network's without, at the larger batch where one was asked for."""
        return self.predicted_ratio or (self.cost.peak_ratio if self.cost else None)


@dataclass(frozen=True)
class Advice:
    """What mechanisms cost in one network; as text: a table.

    Attributes:
        network: its name.
        device: where it was measured.
        inputs: shapes of the example's tensors.
        batch: images in the example.
        none: what the network without any mechanism costs, measured beside the first of them.
        rows: one for each mechanism, the fastest first, those that were refused last.
        notes: what to know of the measurement, a sentence each.
        steps: the network's maps in the order of the forward pass.
        max_slowdown, max_memory: limits that were asked for.
        larger: the batch for which memory was predicted.
        predicted_bytes: peak memory of the network without at that batch.
    """

    network: str
    device: str
    inputs: tuple[tuple[int, ...], ...]
    batch: int
    none: Cost
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    steps: tuple[outline.Step, ...]
    max_slowdown: float | None = None
    max_memory: float | None = None
    larger: int | None = None
    predicted_bytes: int | None = None

    @property
    def passing(self) -> list[Row]:
        """Rows within the limits, and those of which the noise does not tell."""
        return [row for row in self.rows if row.cost and not self._is_over(row)]

    @property
    def over(self) -> list[Row]:
        """Rows that are certainly beyond a limit."""
        return [row for row in self.rows if row.cost and self._is_over(row)]

    @property
    def unclear(self) -> list[Row]:
        """Rows whose middle half of timings lies on both sides of `max_slowdown`."""
        limit = self.max_slowdown
        return [row for row in self.passing if limit and row.slowdown and row.slowdown[0] <= limit < row.slowdown[2]]

    def _is_over(self, row: Row) -> bool:
        slow = self.max_slowdown is not None and row.slowdown is not None and row.slowdown[0] > self.max_slowdown
        return slow or (self.max_memory is not None and row.memory is not None and row.memory > self.max_memory)

    def to_json(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        found = asdict(self)
        for name in ("passing", "over", "unclear"):
            found[name] = [row.arm for row in getattr(self, name)]
        return found

    def picture(self) -> str:
        """The network as SVG: its maps as boxes in the order of the forward pass, and below them where what goes."""
        arms: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            if row.sites:
                arms.setdefault(row.sites, []).append(row.arm)
        return outline.draw(self.steps, {", ".join(sorted(named)): sites for sites, named in arms.items()}, self._title)

    def __str__(self) -> str:
        rows = [_cells(row, row in self.unclear) for row in self.passing]
        nothing = "No mechanism is within the limits." if self.over else "No mechanism can stand here."
        parts = [self._head, table([COLUMNS, *rows]) if rows else nothing]
        if self.unclear:
            listed = ", ".join(row.arm for row in self.unclear)
            parts.append(f"? The timings do not tell whether these stay within {self.max_slowdown:g}: {listed}.")
        if self.over:
            limits = {"slower": self.max_slowdown, "memory": self.max_memory}
            said = " and ".join(f"{word} x {limit:g}" for word, limit in limits.items() if limit is not None)
            parts.append(f"Beyond the limits ({said}): {', '.join(row.arm for row in self.over)}.")
        parts += section("Warnings", [(row.arm, said) for row in self.passing for said in row.warnings])
        parts += section("Not possible here", [(row.arm, row.refused) for row in self.rows if row.refused])
        parts += section("Notes", [("", note) for note in self.notes])
        return "\n\n".join(part if "\n" in part else fill(part, WIDTH) for part in parts)

    def _repr_html_(self) -> str:
        """For notebooks: what printing shows."""
        return notebook.plain(str(self))

    @property
    def _title(self) -> str:
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in dict.fromkeys(self.inputs))
        return f"{self.network} on {self.device}, batch of {self.batch} ({shapes})"

    @property
    def _head(self) -> str:
        none = self.none
        times = [f"inference {milliseconds(none.infer_ms)}"]
        if none.train_ms and none.peak_bytes is not None:
            times.append(f"training step {milliseconds(none.train_ms)}")
            times.append(f"which holds {bytes_text(none.peak_bytes)} at most beside weights and batch")
        if self.predicted_bytes is not None:
            times.append(f"predicted {bytes_text(self.predicted_bytes)} at batch {self.larger}")
        counts = f"{short(none.parameters)} parameters, {short(none.macs)} multiply-adds an image"
        return fill(f"{self._title}: {counts}; {', '.join(times)}.", WIDTH)


def _cells(row: Row, unclear: bool) -> tuple[str, ...]:
    cost = row.cost
    assert cost is not None
    return (
        row.arm,
        str(len(row.sites)),
        added(cost.added_parameters, cost.parameters),
        added(cost.added_macs, cost.macs),
        ratio(cost.infer_ratio),
        ("? " if unclear else "") + (ratio(cost.train_ratio) if cost.train_ratio else "-"),
        f"{row.memory:.2f}" if row.memory else "-",
    )
