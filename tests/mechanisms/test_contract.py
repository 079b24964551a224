"""The contract that every registered mechanism inherits: nobody writes it again for a new one."""

import pytest

import regard
from contract import PROMISES, ours

CASES = [
    pytest.param(name, words, id=f"{name}-{words}", marks=[pytest.mark.slow] * promise.slow)
    for name in regard.names()
    for words, promise in PROMISES.items()
    if promise.where(regard.info(name))
]


@pytest.mark.parametrize(("name", "words"), CASES)
def test_contract(name, words):
    check = PROMISES[words].check
    reason = regard.info(name).exceptions.get(words)
    if reason is None:
        check(ours(name))
        return
    with pytest.raises(Exception):  # noqa: B017, PT011  (an exception on the card that is none is a lie)
        check(ours(name))
    pytest.skip(reason)
