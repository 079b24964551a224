"""What a benchmark found: `Speed`, the answer of `bench`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from regard.base.files import whole, write_text
from regard.costs.records import Record
from regard.costs.speed_picture import picture
from regard.costs.speed_table import conditions, notes, scaling, table, title_of

LEGEND = """\
Times over the lower bound: median (quartiles). Lower bound of inference: sum the map, copy it; of training: that,
sum the map again, sum and copy the gradient. Kept: maps that wait for the backward pass."""


@dataclass(frozen=True)
class Speed:
    """The answer of `bench`.

    Attributes:
        found: schema, machine, settings, records, scaling; see `to_json`.
    """

    found: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values only. A record is one of ours or of another library in one setting.

        Spreads are lower quartile, median, upper quartile, and what was not measured is None.
        """
        return self.found

    @property
    def records(self) -> list[Record]:
        return self.found["records"]

    @property
    def wrong(self) -> list[Record]:
        """Ours that do not agree with the reference."""
        return [record for record in self.records if record["agreement"] and not record["agreement"]["agrees"]]

    def contests(self) -> list[list[Record]]:
        """The records that share all but the mechanism, in the order in which they were measured."""
        groups: dict[tuple[Any, ...], list[Record]] = {}
        for record in self.records:
            groups.setdefault(conditions(record), []).append(record)
        return list(groups.values())

    def save(self, folder: Path) -> list[Path]:
        """Write bench.json and bench.svg into a folder."""
        text = json.dumps(self.to_json(), indent=1)
        paths = [write_text(folder / "bench.json", text + "\n")]
        if any(record["seconds"] for record in self.records):
            paths.append(self.draw(folder / "bench.svg"))
        return paths

    def draw(self, path: Path) -> Path:
        """Write the picture: time over the lower bound, a panel for each pass and shape.

        It is of the first dtype, layout, device and number of threads that were measured.
        """
        # the salt makes the ids in the file depend on what is drawn alone
        with whole(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "regard"}):
            picture(self.records).savefig(temporary, format=path.suffix[1:], metadata={"Date": None})
        return path

    def __str__(self) -> str:
        machine = self.found["machine"]
        parts = [
            f"{machine['gpu'] or machine['cpu']}, {machine['capability']}, torch {machine['torch']}, load "
            f"{machine['load_before']:.1f} before and {machine['load_after']:.1f} after\n{LEGEND}"
        ]
        for records in self.contests():
            first = records[0]
            title = f"{title_of(first)}: lower bound {1e3 * first['floor_seconds'][1]:.3g} ms, copy "
            parts.append("\n".join([f"{title}{first['copy_gb_per_second']:.3g} GB/s", table(records), *notes(records)]))
        if self.found["scaling"]:
            parts.append(scaling(self.found["scaling"]))
        return "\n\n".join(parts)
