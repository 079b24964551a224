"""What users call, as it stands in tests/package/public.txt: a change of it is seen in a review, and is meant.

``python tests/package/test_public.py`` writes the file again.
"""

import difflib
import inspect
import re
from pathlib import Path

import regard
from regard.cli.program import COMMANDS

KEPT = Path(__file__).with_name("public.txt")


def surface() -> list[str]:
    """A line for every public name, what a public class offers, and every option of the command line."""
    lines = [line for name in regard.__all__ for line in described(name, getattr(regard, name))]
    for name, command in COMMANDS.items():
        given = inspect.signature(command).parameters.values()  # without annotations: they hold the help
        lines += [f"$ regard {name}: {option.replace(annotation=inspect.Parameter.empty)}" for option in given]
    return [re.sub(r"<function (\w+) at \w+>", r"\1", line) for line in lines]


def described(name, value):
    if inspect.ismodule(value):
        return [f"{name}.{inner}" for inner in value.__all__]
    if not inspect.isclass(value):
        return [f"{name}{inspect.signature(value)}"]
    if issubclass(value, Exception):
        return [name]
    lines = [f"{name}{inspect.signature(value)}"]
    for inner in sorted(
        {inner for base in value.__mro__ if base.__module__.startswith("regard") for inner in vars(base)}
    ):
        if not inner.startswith("_"):
            held = inspect.getattr_static(value, inner)
            method = inspect.isfunction(held) or isinstance(held, classmethod | staticmethod)
            lines.append(f"{name}.{inner}{inspect.signature(getattr(value, inner)) if method else ''}")
    return lines


def test_what_users_call_is_as_it_was():
    changed = "\n".join(
        difflib.unified_diff(KEPT.read_text().splitlines(), surface(), "promised", "now", lineterm="", n=0)
    )
    assert not changed, f"python {Path(__file__).name} writes public.txt, where this is meant:\n{changed}"


if __name__ == "__main__":
    KEPT.write_text("\n".join(surface()) + "\n")
