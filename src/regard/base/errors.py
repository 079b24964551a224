"""The one exception for a caller's mistake."""

from typing import Any


class UserError(ValueError):
    """What is wrong, where, and what to do about it, in one sentence.

    The command line prints it without a traceback and exits with status 2.

    Attributes:
        subject: of whom it is said, as ``"tam"``, where the sentence begins with that; else "".
        reason: the sentence without it.
    """

    __module__ = "regard"  # as users write it, and as a traceback says it

    def __init__(self, *sentence: object, subject: str = "") -> None:
        super().__init__(*sentence)
        self.subject = subject

    @property
    def reason(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}" if self.subject else self.reason


class DiskFull(UserError):
    """There is no room left where a file is written."""


class ExampleError(UserError):
    """A network cannot be run on the example that was passed for it, or on the one that was made for it.

    Attributes:
        problem: what went wrong.
        needed: what the example must be, as the end of a sentence: `that the model accepts`.
    """

    def __init__(self, problem: str, needed: str) -> None:
        super().__init__(f"{problem}: pass an `example` {needed}")
        self.problem, self.needed = problem, needed

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # into another process and back
        return type(self), (self.problem, self.needed)


def near(word: str, known: "list[str] | tuple[str, ...]", count: int = 3) -> str:
    """The most similar known words as the tail of a sentence: ``; did you mean 'a' or 'b'?``, or nothing."""
    import difflib

    matches = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""


def install(extra: str) -> str:
    """The command that adds an extra to this installation, from where it came."""
    origin = _origin()
    folder = _folder(origin)
    if folder is None:  # from an index, or a file
        source = f" @ {origin['url']}" if "url" in origin else ""
        return f"pip install 'regard[{extra}]{source}'"
    editable = "-e " if origin["dir_info"].get("editable") else ""
    return f"pip install {editable}'{folder}[{extra}]'"


def install_images() -> str:
    """The command that installs regard-images, which lies in the repository that this regard came from."""
    from pathlib import Path

    clone = _folder(_origin()) or Path(__file__).parents[3]
    if Path(clone, "images", "pyproject.toml").exists():
        return f"pip install '{Path(clone, 'images')}'"
    return "pip install ./images, in a clone of regard"


def _origin() -> dict[str, Any]:
    """Where this installation came from, as its installer noted it (PEP 610)."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        noted: dict[str, Any] = json.loads(distribution("regard").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        noted = {}
    return noted


def _folder(origin: dict[str, Any]) -> str | None:
    from urllib.parse import urlparse
    from urllib.request import url2pathname

    return url2pathname(urlparse(origin["url"]).path) if "dir_info" in origin else None


def brief(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
