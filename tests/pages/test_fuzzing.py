"""The fuzzer: it finds what is wrong, says what it refused, and found nothing when the page was made."""

import json

import pytest
import torch

import fuzzing
import regard
from regard.comparison import results
from regard.ops import dispatch


@pytest.mark.parametrize("kind", [kind for kind in fuzzing.KINDS if kind != "interruptions"])
def test_a_few_trials_of_every_kind(kind):
    """With another seed than the page's."""
    found = fuzzing.run([kind], 6 / fuzzing.KINDS[kind].trials, seed=1)
    assert found["wrong"] == []
    assert sum(found["kinds"][kind][word] for word in (fuzzing.RIGHT, fuzzing.REFUSED)) == 6


def test_a_trial_is_a_function_of_its_name():
    assert [fuzzing.attempt("words", number) for number in range(8)] == [
        fuzzing.attempt("words", number) for number in range(8)
    ]


def test_a_kernel_that_is_off_is_found(monkeypatch):
    """Also one that is off by a thousandth, in one mechanism's gate alone."""
    create = regard.create

    class Off(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            y = self.module(x)
            return y if dispatch._choice.last() == "reference" else y * 1.001

    monkeypatch.setattr(regard, "create", lambda name, channels, **options: Off(create("se", channels)))
    monkeypatch.setattr(regard, "names", lambda: ["se"])
    outcomes = {fuzzing.attempt("values", number)[0] for number in range(30)}
    assert fuzzing.WRONG in outcomes


def test_a_reader_that_raises_anything_but_a_sentence_is_found(monkeypatch):
    def load(folder):
        raise KeyError("arms")

    monkeypatch.setattr(results.Comparison, "load", load)
    outcome, said = fuzzing.attempt("folders", 0)
    assert outcome == fuzzing.WRONG
    assert said.startswith("KeyError")


def test_what_does_not_end_is_found(monkeypatch):
    monkeypatch.setattr(fuzzing, "PATIENCE", 1)
    monkeypatch.setitem(fuzzing.KINDS, "words", fuzzing.Kind("", 1, lambda draw, folder: __import__("time").sleep(9)))
    assert fuzzing.attempt("words", 0) == (fuzzing.WRONG, "not done after 1 seconds")


def test_the_page_was_made_with_every_trial_and_nothing_was_wrong():
    found = json.loads(fuzzing.RESULTS.read_text())
    assert {name: counts["trials"] for name, counts in found["kinds"].items()} == {
        name: kind.trials for name, kind in fuzzing.KINDS.items()
    }
    assert found["wrong"] == []
    # what is only ever refused shows nothing
    assert all(counts[fuzzing.RIGHT] >= 0.1 * counts["trials"] for counts in found["kinds"].values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_a_third_of_the_trials_with_another_seed(kind):
    assert fuzzing.run([kind], 1 / 3, seed=7)["wrong"] == []
