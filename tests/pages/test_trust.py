"""docs/trust.md is what `make trust` found, and it found everything that there is."""

import json
from pathlib import Path

import pytest

import fuzzing
import regard
from contract import PROMISES
from golden import CASES, QUIRKS
from trust import FORMULAS, PAGE, RESULTS, describe, render

FOUND = json.loads(RESULTS.read_text())
ENTRIES = {entry["name"]: entry for entry in FOUND["mechanisms"]}


def test_the_page_is_made_from_the_results():
    fuzzed = json.loads(fuzzing.RESULTS.read_text())
    assert PAGE.read_text() == render(FOUND, fuzzed), "run `make trust` and commit what changes"


@pytest.mark.parametrize("name", regard.names())
def test_every_mechanism_was_asked_everything_that_has_a_meaning_for_it(name):
    known = regard.info(name)
    asked = [words for words, promise in PROMISES.items() if promise.where(known) and not promise.slow]
    answers = ENTRIES[name]["promises"]
    assert list(answers) == asked
    for words, answer in answers.items():
        reason = known.exceptions.get(words)
        assert answer == (f"on the card: {reason}" if reason else "yes")


def test_every_case_is_in_the_table():
    cases = [case for case in CASES if case["mechanism"] not in QUIRKS]
    assert sum(entry["cases"] for entry in ENTRIES.values()) == len(cases)
    assert {source for entry in ENTRIES.values() for source in entry["sources"]} == {
        describe(case["source"]) for case in cases
    }
    for entry in ENTRIES.values():
        assert max(entry[key] or 0 for key in ("value", "gradient", "buffers")) <= 1e-9


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if not entry["cases"]])
def test_what_nobody_has_numbers_for_is_held_to_its_formula_by_a_test_that_there_is(name):
    file, _, test = FORMULAS[name].partition("::")
    source = (Path(__file__).parents[1] / file).read_text()
    assert f'create("{name}"' in source.partition(f"def {test}(")[2].partition("\ndef ")[0]


def test_other_libraries_are_not_all_broken_and_not_all_fine():
    """A table where a column says the same of everybody would show a check that cannot fail, or cannot pass."""
    for words, promise in PROMISES.items():
        if promise.anyone and not promise.slow:
            answers = {entry["promises"][words] == "yes" for entry in FOUND["others"] if words in entry["promises"]}
            assert answers == {True, False}, words
