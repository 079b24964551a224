"""Which implementations every op has, on which of its cases each runs, and why not on the others."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from regard.base.errors import UserError, near
from regard.base.tables import aligned
from regard.ops import OPS
from regard.ops.dispatch import Op
from regard.ops.kernels import library as kernels

Draw = Callable[[torch.dtype, str], tuple[Any, ...]]
"""From a dtype and a device to the arguments of one case."""


def cases(op: Op) -> dict[str, Draw]:
    """An op's named inputs."""
    return dict(import_module(f"{op.package}.cases").cases())


def find(text: str) -> tuple[Op, Draw]:
    """The op and the case that ``"squeeze:channel"`` stands for.

    Raises:
        UserError: there is no such op or case.
    """
    word, _, case = text.partition(":")
    if word not in OPS:
        raise UserError(f"there is no op {word!r}{near(word, [*OPS]) or ': the ops are ' + ', '.join(OPS)}")
    op = OPS[word]
    if case not in cases(op):
        raise UserError(f"{word} has no case {case!r}: its cases are {', '.join(cases(op))}")
    return op, cases(op)[case]


def overview() -> list[dict[str, Any]]:
    """A row for each op, device and implementation: how many cases there are, how many run, and for each reason why not
    the cases that it keeps from running. In float32, on the CPU and, where there is one, on CUDA."""
    rows = []
    for word, op in OPS.items():
        for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            answers = {case: op.explain(*draw(torch.float32, device)) for case, draw in cases(op).items()}
            for name in next(iter(answers.values())):
                refused: dict[str, list[str]] = {}
                for case, reasons in answers.items():
                    if reason := reasons[name]:
                        refused.setdefault(reason, []).append(case)
                runs = len(answers) - sum(map(len, refused.values()))
                row = {"op": word, "device": device, "implementation": name, "cases": len(answers), "runs": runs}
                rows.append(row | {"refused": refused})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `overview` as text, then the level of the C++ kernels, and of each that cannot run here, why."""
    lines = [("op", "device", "implementation", "runs", "why not")]
    for row in rows:
        reasons = row["refused"].items()
        for place, (reason, names) in enumerate(list(reasons) or [("", [])]):
            where = f" ({', '.join(names)})" if 0 < len(names) < row["cases"] else ""
            start = (row["op"], row["device"], row["implementation"], f"{row['runs']} of {row['cases']}")
            lines.append((*(start if place == 0 else ("", "", "", "")), reason + where))
    text = aligned(lines)
    found = kernels.overview()
    usable = [level for level, reason in found["levels"].items() if reason is None]
    text += ["", f"C++ kernels: {found['level'] or 'none'} runs here; usable: {', '.join(usable) or 'none'}"]
    return "\n".join(line.rstrip() for line in [*text, *filter(None, found["levels"].values())])
