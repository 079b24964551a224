"""Epochs and learning rates are chosen on validation images, with an equal budget, and looked for once."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest

import regard
import tiny
from regard.base.errors import UserError
from regard.base.files import write_text
from regard.comparison import grid, prices, training, trials
from regard.comparison.plan import MOST_RATES, factors
from regard.comparison.question import Draft, Question, augmentation_for
from regard.comparison.results import Comparison

QUESTION = Question(
    **Draft.of(tune=5, size=28, device="cpu", augmentation="none", pairing="none").to_json(), fingerprint="0",
    classes=["a", "b", "c", "d", "e"], train_images=900, val_images=400, test_images=500, split_varies="nothing",
)  # fmt: skip


def ask(epochs, augmentation=None):
    return replace(QUESTION, epochs=epochs, augmentation=augmentation or augmentation_for(epochs))


class Going:
    """Trains nothing: a record for every run, of a curve and a log-loss that are made up."""

    def __init__(self, curve=lambda epochs: [0.5] * epochs, loss=lambda arm, rate: 1.0):
        self.curve, self.loss, self.asked = curve, loss, []

    def __call__(self, place, question, runs):
        self.asked.append((question, list(runs)))
        for arm, seed in runs:
            loss = self.loss(arm, (question.rates or {}).get(arm, 1.0))
            done = {
                "status": "done",
                "val_log_loss": loss,
                "curve": [
                    {"epoch": number + 1, "train_loss": 1.0, "val_top1": value, "seconds": 1.0}
                    for number, value in enumerate(self.curve(question.epochs))
                ],
            }
            record = done if loss is not None else {"status": "failed", "reason": "the loss became nan"}
            write_text(grid.record_path(place, arm, seed), json.dumps({"arm": arm, "seed": seed, **record}))


def epochs(folder, go, **other):
    options = {"ask": ask, "first": 4, "seeds": (5, 6, 7), "say": lambda sentence: None} | other
    return trials.epochs(folder, go=go, **options)


def test_longer_until_the_last_quarter_is_flat(tmp_path):
    # the error halves every 3 epochs of a training, so that the rise in the last quarter depends on their number
    go = Going(lambda epochs: [0.9 - 0.4 * 2 ** (-n / 3) for n in range(epochs + 1)][1:])
    found = epochs(tmp_path, go)
    tried = [question.epochs for question, _ in go.asked]
    assert tried == [4, 6, 9, 14, 21]
    assert found.epochs == 21
    rise = lambda n: 0.4 * (2 ** (-0.75 * n / 3) - 2 ** (-n / 3))  # noqa: E731
    assert rise(21) <= 0.01 < rise(14)
    assert all(runs == [("none", 5), ("none", 6)] for _, runs in go.asked)
    assert found.augmentation == "crops"
    assert all(question.trial for question, _ in go.asked)


def test_a_short_training_needs_no_augmentation_and_what_is_asked_stays(tmp_path):
    assert epochs(tmp_path, Going(), first=3).augmentation == "none"
    assert epochs(tmp_path, Going(), ask=partial(ask, augmentation="crops"), first=3).augmentation == "crops"


def test_what_never_ends_is_said(tmp_path):
    said = []
    found = epochs(tmp_path, Going(lambda epochs: [n / epochs for n in range(epochs)]), say=said.append)
    assert found.epochs == 48
    assert "still rises" in said[-1]


@pytest.mark.parametrize(("learns_after", "tried"), [(13, [4, 6, 9, 14]), (99, [4, 6, 9, 14, 21])])
def test_a_network_at_chance_is_given_more_time_but_not_for_ever(tmp_path, learns_after, tried):
    go = Going(lambda epochs: [0.9 if epochs > learns_after else 0.2] * epochs)
    epochs(tmp_path, go)
    assert [question.epochs for question, _ in go.asked] == tried


def test_a_baseline_that_cannot_be_trained(tmp_path):
    with pytest.raises(UserError, match="none cannot be trained: the loss became nan"):
        epochs(tmp_path, Going(loss=lambda arm, rate: None))


def test_every_arm_keeps_its_best_rate(tmp_path):
    best = {"none": 1.0, "se": 2.0, "cbam": 0.25}
    go = Going(loss=lambda arm, rate: None if arm == "eca" else abs(math.log2(rate / best[arm])) + 0.5)
    asked = replace(QUESTION, epochs=3)
    found = trials.rates(tmp_path, asked, [*best, "eca"], 3, go, lambda sentence: None)
    assert found == best | {"eca": 1.0}
    assert [len(runs) for _, runs in go.asked] == [4] * 5, "as many trials for every arm"
    assert {seed for _, runs in go.asked for _, seed in runs} == {3}
    again = Going()
    assert trials.rates(tmp_path, asked, [*best], 3, again, lambda sentence: None) != {}
    assert [runs for _, runs in again.asked] == []


@pytest.mark.parametrize("count", range(1, MOST_RATES + 1))
def test_rates_lie_around_the_one_that_is_asked(count):
    found = factors(count)
    assert len(found) == count
    assert 1.0 in found
    assert found == sorted(found)


def test_a_damaged_trial_is_trained_again(tmp_path):
    epochs(tmp_path, Going())
    (record,) = tmp_path.glob("trials/*/runs/none/seed-0005.json")
    record.write_text('{"arm": "none", "seed": 5, "status": "done", "curve": []}')
    go = Going()
    epochs(tmp_path, go)
    assert [runs for _, runs in go.asked] == [[("none", 5)]]


@pytest.fixture
def photos(tmp_path):
    return tiny.fill(tmp_path / "photos")


def test_a_trial_knows_nothing_of_the_test_images(tmp_path, photos):
    question = tiny.question(tmp_path, photos, trial=True, epochs=2)
    record = training.train(question, "se", 0, tmp_path, lambda details: None)
    assert not [field for field in record if "top1" in field or "logits" in field or field == "log_loss"]
    whole = training.train(replace(question, trial=False), "se", 0, tmp_path, lambda details: None)
    assert record["curve"][-1]["val_top1"] == whole["curve"][-1]["val_top1"]
    assert record["val_log_loss"] == whole["val_log_loss"]


def test_rates_move_both_optimisers(tmp_path, photos, monkeypatch):
    seen = []
    real = training.Optimiser
    monkeypatch.setattr(training, "Optimiser", lambda model, *rates: seen.append(rates) or real(model, *rates))
    question = tiny.question(tmp_path, photos, trial=True, epochs=1, rates={"se": 0.5})
    for arm in ("none", "se"):
        training.train(question, arm, 0, tmp_path, lambda details: None)
    assert seen == [(4e-3, 0.07, 0.05), (2e-3, 0.035, 0.05)]


@pytest.mark.slow
def test_from_the_question_to_the_report(tmp_path, photos, monkeypatch, capsys):
    tiny.train_here(monkeypatch)
    monkeypatch.setattr(prices, "SECONDS", 0.01)
    words = tiny.ASKED | {"data": photos, "seeds": 2, "out": tmp_path / "out", "margin": 0.2, "batch": 8}
    monkeypatch.setattr("regard.comparison.compare.first_epochs", lambda *_: 2)
    monkeypatch.setattr(trials, "PATIENCE", 1)  # so little data is not learnt from
    asked = {"epochs": "auto", "tune": 2, "control": "constant"}
    found = regard.compare("se", **words | asked)
    assert found.question.epochs_auto
    assert found.question.epochs >= 2
    assert found.question.rates.keys() == {"none", "se", "constant[se]"}
    assert "Tuned: the learning rate is multiplied by " in str(found)
    assert any(note.startswith("Chosen on shared images: ") for note in found.notes())
    command = found.asked[0]["command"]
    assert "--epochs auto" in command
    assert "--tune 2" in command

    trained = [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("seed-*.json")]
    again = regard.compare("se", **words | asked)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("seed-*.json")] == trained
    assert again.scores == found.scores
    assert len(again.asked) == 1

    more = regard.compare(["se", "eca"], **words | asked)
    assert set(more.question.rates) == {"none", "se", "constant[se]", "eca", "constant[eca]"}
    with pytest.raises(UserError, match="tune was 2, now 0"):
        regard.compare("se", **words | asked | {"tune": 0})
    loaded = Comparison.load(tmp_path / "out")
    assert loaded.question.rates == more.question.rates
    loaded = replace(loaded, question=replace(loaded.question, tune=3, rates={"none": 1.0, "se": 2.0}))
    assert "Tuned to an end: se may do better" in " ".join(loaded.notes())
    loaded = replace(loaded, question=replace(loaded.question, split_varies="the validation part"))
    assert "Chosen on shared images" not in " ".join(loaded.notes())


@pytest.mark.parametrize(("wrong", "words"), [({"epochs": "many"}, "'auto' or how many"), ({"tune": 16}, "at most 15")])
def test_what_is_no_number(photos, tmp_path, wrong, words):
    with pytest.raises(UserError, match=words):
        regard.compare("se", **tiny.ASKED | {"data": photos, "seeds": 2, "out": tmp_path / "out"} | wrong)


def test_twice_the_learning_rate_is_twice_for_both_optimisers():
    once, twice = (Draft.of(learning_rate=rate) for rate in (None, 8e-3))
    assert (twice.learning_rate, twice.matrix_rate) == (2 * once.learning_rate, 2 * once.matrix_rate)
