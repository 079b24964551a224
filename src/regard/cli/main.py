"""The entry: a mistake is one sentence, and every end has its exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from regard.base.errors import UserError, install


def main() -> None:
    """Run the command of this process's arguments, and exit with its status."""
    words = sys.argv[1:]
    try:
        sys.exit(run([word for word in words if word != "--debug"], debug="--debug" in words))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one
        kept = "; nothing finished is lost. The same command goes on from here" if words[:1] == ["compare"] else ""
        print(f"\nStopped{kept}.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `regard list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def run(words: Sequence[str], *, debug: bool = False) -> int:
    """Run a command: a user's mistake is one sentence on standard error and exit status 2.

    Args:
        words: the command, its arguments and options.
        debug: whether mistakes are raised instead.

    Returns:
        The exit status.
    """
    try:
        import cyclopts
    except ModuleNotFoundError as error:
        return _complain(f"the command line needs the package {error.name!r}: {install('compare')}")
    from regard.cli.program import COMMANDS, program
    from regard.cli.wording import as_options

    command = words[0] if words else ""
    try:
        status = program()(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return status or 0
    except cyclopts.CycloptsError as error:
        if debug:
            raise
        return _complain(" ".join(str(error).split()) + " (regard --help shows what there is)")
    except UserError as error:
        if debug:
            raise
        return _complain(as_options(str(error), COMMANDS[command]) if command in COMMANDS else str(error))
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("regard"):
            raise
        extra = "app" if command == "app" else "compare"
        return _complain(f"this command needs the package {error.name!r}: {install(extra)}")


def _complain(sentence: str) -> int:
    sys.stdout.flush()  # what was printed comes first
    print("regard:", *sentence.splitlines(), file=sys.stderr)
    return 2
