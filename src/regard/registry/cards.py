"""What is known of the mechanisms, read from their files without loading torch, which takes seconds."""

from __future__ import annotations

import ast
import builtins
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from regard.registry.building import check_options
from regard.registry.info import Info
from regard.registry.registration import among, register
from regard.registry.spelling import parse

FOLDER = Path(__file__).parents[1] / "mechanisms"
NEEDED = ("regard.registry.registration", "regard.registry.info", "regard.base.errors", "regard.layers.groups")


class _Absent(type):
    """Stands for whatever a file takes from torch: nothing of it is called while a mechanism registers."""

    def __getattr__(cls, name: str) -> Any:
        return cls


class _Nothing(metaclass=_Absent):
    pass


@cache
def cards() -> dict[str, Info]:
    """Every mechanism by name, as its file registers it, for reading: its factory builds nothing.

    A file is run with nothing in the place of torch and of what needs it, and its classes without their bases.
    """
    found: dict[str, Info] = {}
    elsewhere = {"register": partial(register, registry=found)}

    def load(name: str, *others: Any) -> Any:
        root = name.partition(".")[0]
        if root not in ("torch", "regard"):
            return builtins.__import__(name, *others)
        if name not in NEEDED:
            return _Nothing
        return SimpleNamespace(**vars(import_module(name)) | elsewhere)

    for path in sorted(FOLDER.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                node.bases = []
        names = {"__name__": f"regard.mechanisms.{path.stem}", "__builtins__": {**vars(builtins), "__import__": load}}
        exec(compile(tree, path, "exec"), names)
    return found


def card(text: str) -> Info:
    """What is known of one mechanism, with the options of an arm where it has some: ``"cbam[squeeze=max]"``.

    Raises:
        UserError: there is no such mechanism, or it has no such option.
    """
    from dataclasses import replace

    name, options = parse(text)
    known = among(cards(), name)
    check_options(known, options)
    return replace(known, options={**known.options, **options}) if options else known
