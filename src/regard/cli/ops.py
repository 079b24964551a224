"""`regard ops`: which implementation of an op runs where."""

from __future__ import annotations

from regard.cli.output import print_json, say_loading


def ops(*, json: bool = False) -> None:
    """Show the implementations of every op, on how many of its cases each runs, and why not on the others.

    Parameters
    ----------
    json
        Print JSON instead of a table.

    Examples
    --------
    regard ops
    regard ops --json
    """
    say_loading()
    from regard.costs import support
    from regard.ops.kernels import library

    rows = support.overview()
    if json:
        print_json({"ops": rows, "no_kernels": library.missing(), **library.overview()})
    else:
        print(support.table(rows))
