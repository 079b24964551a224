"""The folder of a comparison belongs to one process at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from regard.base.errors import UserError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else may work in the folder meanwhile. Where nothing was asked in it at the end, nothing is left in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"another comparison is at work in {folder}: wait for it, or pass another --out") from None
    except OSError as error:
        raise UserError(f"cannot write in {folder} ({error.strerror}): pass another --out") from error
    try:
        yield
    finally:
        if not (folder / "question.json").exists():
            _clear(folder, made)
        lock.release()


def _clear(folder: Path, made: Sequence[Path]) -> None:
    """Remove the locks, and the folders that hold nothing else; images that were decoded stay."""
    with suppress(OSError):  # what is not empty stays
        if {path.name for path in (folder / "data").iterdir()} == {".lock"}:
            (folder / "data" / ".lock").unlink()
        (folder / "data").rmdir()
    with suppress(OSError):
        (folder / ".lock").unlink()
        for path in made:
            path.rmdir()
