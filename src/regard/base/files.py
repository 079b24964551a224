"""Files that are written whole or not at all, and their names."""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regard.base.errors import DiskFull, UserError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files as large as that are not allowed here",
}
PROBE = 2**16  # bytes


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to the path this yields; at the end of the block it replaces `path` in one step.

    A reader finds the old file or the new one, never a part, even when the machine stops in the middle. Nothing is
    left behind when the block raises.

    Raises:
        DiskFull: there is no room for it, whatever the writer in the block made of that.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # with the rights that the process gives to every new file
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        full = _no_room(error, temporary)
        temporary.unlink(missing_ok=True)
        if full:
            raise DiskFull(
                f"{FULL[full]}: {path} cannot be written; make room in {path.parent} and give the same command again"
            ) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file whole."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """A file, opened to be read, as `regular` opens it.

    Raises:
        UserError: there is no such file, it is not a regular file, or it may not be read.
    """
    try:
        return regular(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened to be read. A pipe would wait for a writer, and a device may never end.

    Raises:
        OSError: there is no such file, it is not a regular file, or it may not be read.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def slug(text: str) -> str:
    """Any text as a file name; where a character had to be replaced, a hash keeps two texts apart."""
    safe = re.sub(r"[^A-Za-z0-9=,.\-]", "_", text)
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _no_room(error: BaseException | None, temporary: Path) -> int | None:
    """Which of `FULL` a failure means, if any: not every writer says so, so that one more piece is tried."""
    if isinstance(error, UserError):
        return None
    while error is not None:
        for number in FULL:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    try:
        with temporary.open("ab") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as tried:
        return tried.errno if tried.errno in FULL else None
    return None
