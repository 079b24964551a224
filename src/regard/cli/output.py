"""What a command prints and writes, and how it says that it cannot."""

from __future__ import annotations

import errno
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regard.base.errors import UserError


def say_loading() -> None:
    """Importing torch takes seconds: say that something happens, to whoever watches."""
    if sys.stderr.isatty():
        print("Loading ...", file=sys.stderr, end="\r", flush=True)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written before the work whose result it shall hold.

    Raises:
        UserError: it is a folder, or no file can be made where it shall lie.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        parent = next(folder for folder in path.parents if folder.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no folder")
        tempfile.TemporaryFile(dir=parent).close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails inside because a file cannot be written is the user's to mend.

    Raises:
        UserError: an `OSError` was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}): name another place") from error
