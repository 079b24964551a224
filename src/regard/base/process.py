"""Work in a fresh process: its result, its error, its death and Ctrl-C, handled once.

A fresh process imports the user's script, as every spawned one does, so a script that asks for one without a guard
would ask again in there: `refuse_nesting`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from regard.base.errors import UserError

UNGUARDED = 78  # exit status of a process that found itself asking for another one


class Died(Exception):
    """A process ended before it had answered; the message says how.

    Attributes:
        status: exit status, negative for the signal that ended it.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Process:
    """A fresh process that runs one function, and our end of the pipe to it.

    It ends by itself when this process is gone. Ctrl-C reaches all processes of a terminal and is this one's business:
    the other starts with it blocked, so that it cannot even interrupt the imports.

    Args:
        function: of a module; called with the pipe's other end and the arguments.
        args: can be pickled.
        environment: variables that must be set before the process starts; ours are put back.

    Attributes:
        pipe: to the function.
        sentinel: for `multiprocessing.connection.wait`, ready when the process has ended.
    """

    def __init__(self, function: Callable[..., None], *args: Any, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_enter, args=(function, other, args), daemon=True)
        resource_tracker.ensure_running()  # it would be started now otherwise, and lift the block
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            with _environment(environment):
                self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()
        self.sentinel = self._process.sentinel

    def join(self) -> None:
        """Wait until it has ended."""
        self._process.join()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it."""
        status = self._process.exitcode or 0
        return signal.Signals(-status).name if status < 0 else None

    def death(self, caller: str) -> Died:
        """How it ended that should not have.

        Args:
            caller: the function that the user called.

        Raises:
            UserError: it found itself asking for another process.
        """
        status = self._process.exitcode or 0
        if status == UNGUARDED:
            raise UserError(
                f"every worker process imports this script and would ask again: put the call of {caller} below "
                '`if __name__ == "__main__":`'
            )
        if self.signal is None:
            return Died(f"the worker process ended with exit status {status}", status)
        hint = "; the system may be out of memory" if self.signal == "SIGKILL" else ""
        return Died(f"the worker process was killed by {self.signal}{hint}", status)


def call(
    function: Callable[..., Any],
    *args: Any,
    environment: Mapping[str, str],
    caller: str,
    tell: Callable[[Any], object] | None = None,
) -> Any:
    """Call a function of a module in a fresh process, alone, and give its result.

    Args:
        function: called with the arguments, and after them with a function that tells, where `tell` is given.
        args: can be pickled.
        environment: see `Process`.
        caller: see `Process.death`.
        tell: is given, in this process, what the function tells.

    Raises:
        Died: the process ended without an answer.
        UserError: see `Process.death`.
        Exception: whatever the function raised.
    """
    process = Process(_answer, function, args, tell is not None, environment=environment)
    try:
        while True:
            kind, content = process.pipe.recv()
            if kind == "result":
                return content
            if kind == "error":
                raise content
            assert tell is not None
            tell(content)
    except (EOFError, ConnectionError):
        process.join()
        raise process.death(caller) from None
    finally:
        process.kill()


def refuse_nesting() -> None:
    """End this process when it is a fresh one that imports the user's script and came upon the question in it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(UNGUARDED)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _enter(function: Callable[..., None], pipe: Connection, args: tuple[Any, ...]) -> None:
    """What every fresh process does: it runs its function, and ends when its parent does."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    with suppress(EOFError, ConnectionError):  # the parent is gone
        function(pipe, *args)


def _answer(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...], tells: bool) -> None:
    try:
        more = (lambda content: pipe.send(("told", content)),) if tells else ()
        pipe.send(("result", function(*args, *more)))
    except Exception as error:
        pipe.send(("error", error))
