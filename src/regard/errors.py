"""The one exception for a caller's mistake."""


class UserError(ValueError):
    """What is wrong, where, and what to do about it, in one sentence.

    The command line prints it without a traceback and exits with status 2.
    """


class DiskFull(UserError):
    """There is no room left where a file is written."""


def near(word: str, known: "list[str] | tuple[str, ...]", count: int = 3) -> str:
    """The most similar known words as the tail of a sentence: ``; did you mean 'a' or 'b'?``, or nothing."""
    import difflib

    matches = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""
