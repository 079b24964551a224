"""docs/trust.md is what `make trust` found; what it was not asked yet is said, and breaks nothing."""

import json

import pytest

import fuzzing
import regard
import resultfiles
from contract import PROMISES
from golden import CASES
from trust import PAGE, describe, render, uses

FOUND = resultfiles.read("trust")
FUZZED = json.loads(fuzzing.RESULTS.read_text())


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(FOUND, FUZZED), "run `make docs` and commit what changes"


@pytest.mark.parametrize("name", FOUND)
def test_every_answer_is_yes_or_on_the_card(name):
    known = regard.info(name)
    for words, answer in FOUND[name]["promises"].items():
        reason = known.exceptions.get(words)
        assert PROMISES[words].where(known)
        assert answer == (f"on the card: {reason}" if reason else "yes")


@pytest.mark.parametrize("name", FOUND)
def test_every_case_was_near(name):
    entry, official = FOUND[name], regard.info(name).official
    cases = [case for case in CASES if case["mechanism"] in official or uses(case, name)]
    assert entry["cases"] == len(cases)
    assert set(entry["sources"]) == {describe(case["source"]) for case in cases}
    assert bool(cases) != bool(entry["formula"])
    deviations = entry["formula"] or entry
    assert max(deviations.get(key) or 0 for key in ("value", "gradient", "buffers")) <= 1e-9


def test_what_was_not_asked_yet_is_said():
    fewer = {"bam": FOUND["bam"], "cbam": FOUND["cbam"] | {"promises": {"gradients": "yes"}}}
    page = render(fewer, FUZZED)
    assert page.count("not asked yet |") == len(regard.names()) - len(fewer)
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in page.splitlines() if line.startswith("| ")}
    number = [words for words, promise in PROMISES.items() if not promise.slow].index("gradients")
    assert cells["se"][number] == "?"
    assert (cells["cbam"][number], cells["cbam"][number - 1]) == ("+", "?")
    assert "?" not in cells["bam"]
    assert "" in cells["se"], "what has no meaning for it stays blank"


def test_other_libraries_are_not_all_broken_and_not_all_fine():
    """A table where a column says the same of everybody would show a check that cannot fail, or cannot pass."""
    others = [entry["promises"] for found in FOUND.values() for entry in found["others"]]
    for words, promise in PROMISES.items():
        if promise.anyone and not promise.slow:
            answers = {promises[words] == "yes" for promises in others if words in promises}
            assert answers == {True, False}, words
