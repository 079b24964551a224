"""Work in a fresh process: what it gives, what it tells, how it dies, and what the user's script must not do."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from regard.base import process
from regard.base.errors import UserError

SETTINGS = {"REGARD_TEST": "in there"}


def call(function, *args, **options):
    return process.call(function, *args, environment=SETTINGS, caller="work()", **options)


def count(most, tell):
    for number in range(most):
        tell(number)
    return os.environ["REGARD_TEST"], os.getpid()


def fail(sentence):
    raise UserError(sentence)


def test_a_result_comes_back_after_what_was_told():
    told = []
    where, number = call(count, 3, tell=told.append)
    assert (told, where) == ([0, 1, 2], "in there")
    assert number != os.getpid()
    assert "REGARD_TEST" not in os.environ
    assert not multiprocessing.active_children()


def test_an_error_is_raised_here():
    with pytest.raises(UserError, match=r"^no$"):
        call(fail, "no")
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("function", "args", "sentence", "status"),
    [
        (os._exit, (3,), "the worker process ended with exit status 3", 3),
        (os.abort, (), "the worker process was killed by SIGABRT", -6),
    ],
)
def test_a_death_is_a_sentence(function, args, sentence, status):
    with pytest.raises(process.Died) as caught:
        call(function, *args)
    assert (str(caught.value), caught.value.status) == (sentence, status)
    assert not multiprocessing.active_children()


def interrupt(number):
    raise KeyboardInterrupt


def test_ctrl_c_ends_the_other_process():
    with pytest.raises(KeyboardInterrupt):
        call(count, 10**9, tell=interrupt)
    assert not multiprocessing.active_children()


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from regard.base import process\n"
        "process.refuse_nesting()\n"
        "process.call(max, 1, 2, environment={}, caller='work()')\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert 'put the call of work() below `if __name__ == "__main__":`' in ended.stderr
