"""What Python calls an argument, the command line calls an option: the sentences of errors in its words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from regard.base.errors import ExampleError, UserError


def as_options(sentence: str, command: Callable[..., Any]) -> str:
    """A sentence with Python's arguments as the options of the command: ``skip_broken=True`` is ``--skip-broken``."""
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            option = "--" + parameter.name.strip("_").replace("_", "-")
            sentence = re.sub(rf"\b{parameter.name}=True\b", option, sentence)
            sentence = re.sub(rf"\b{parameter.name}='([^' ]*)'", rf"{option} \1", sentence)
    return sentence


@contextmanager
def example_from(model: str) -> Iterator[None]:
    """Where Python takes an example, the command line takes a function that returns one.

    Args:
        model: the network as the user named it.

    Raises:
        UserError: an `ExampleError` was raised inside.
    """
    try:
        yield
    except ExampleError as error:
        function = model if ".py:" in model else "a function of your own, file.py:NAME,"
        raise UserError(
            f"{error.problem}: let {function} return (model, example), with an example {error.needed}"
        ) from error
