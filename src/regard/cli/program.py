"""The commands in the order of the help, and the program that cyclopts makes of them.

A command is a function: its parameters are the arguments and options, its docstring is the help.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import cyclopts

from regard.cli.advise import advise
from regard.cli.app import app
from regard.cli.bench import bench
from regard.cli.compare import compare, export, report
from regard.cli.look import look
from regard.cli.mechanisms import info, list_
from regard.cli.ops import ops
from regard.cli.sites import sites

COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_,
    "info": info,
    "sites": sites,
    "advise": advise,
    "compare": compare,
    "report": report,
    "export": export,
    "look": look,
    "app": app,
    "bench": bench,
    "ops": ops,
}
EXAMPLES = "\nExamples\n--------\n"  # the heading
EPILOGUE = """Examples:

  regard list
  regard info cbam
  regard advise resnet50 se cbam
  regard compare se eca "cbam[squeeze=max]" --data photos/ --model resnet18
  regard report runs/mine
  regard export runs/mine --csv mine.csv
  regard look vit_small_patch16_224 photos/ --pretrained
  regard app runs/mine
  regard bench se cbam --peers

--debug with any command shows the traceback of an error.
Exit status: 0 done, 1 bench found what disagrees with the reference, 2 bad
arguments or files, 130 Ctrl-C."""


def program() -> cyclopts.App:
    """The whole command line."""
    whole = cyclopts.App(
        name="regard",
        help="Visual attention for PyTorch: which mechanism helps on your images, and what it costs.",
        help_epilogue=EPILOGUE,
        version=version("regard"),
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(consume_multiple=True, negative=""),
    )
    for name, command in COMMANDS.items():
        shown = textwrap.indent(examples(command), "  ")
        command.__doc__ = flowing(command.__doc__ or "")
        whole.command(command, name=name, help_epilogue=f"Examples:\n\n{shown}")
    whole.register_install_completion_command(
        help="Let the shell complete commands, options, mechanisms and words for sites (bash, zsh, fish, powershell)."
    )
    return whole


def examples(command: Callable[..., Any]) -> str:
    """The lines of a command's docstring below `Examples`, which stands last."""
    return inspect.cleandoc(command.__doc__ or "").partition(EXAMPLES)[2]


def flowing(docstring: str) -> str:
    """A docstring with what is said of a parameter on one line, which the help wraps as wide as the terminal is."""
    described, heading, lines = inspect.cleandoc(docstring).partition(EXAMPLES)
    described = re.sub(r"(?m)^ {4}\S.*(?:\n {4}\S.*)+", lambda body: "    " + " ".join(body[0].split()), described)
    return described + heading + lines
