"""What is computed of logits, held to plain loops and to scipy, and the files in which they are kept."""

import hashlib
import json
import math
import os

import numpy as np
import pytest
import safetensors.numpy
from scipy.special import log_softmax

import stored
import tiny
from regard.base.errors import UserError
from regard.comparison import answers, report
from regard.comparison.answers import Answers
from regard.comparison.endpoints import (
    by_class,
    calibration_error,
    churn,
    class_differences,
    endpoints,
    log_loss,
    right,
)
from regard.comparison.results import Comparison


def drawn(seed=0, count=300, classes=7, start=0):
    """Answers that are right more often than not."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = 3 * random.standard_normal((count, classes)) + 3 * np.eye(classes)[labels]
    return Answers(np.arange(start, start + count), labels, logits.astype(np.float32))


def slow_calibration_error(logits, labels, bins):
    """By its definition, a bin and an image at a time."""
    probabilities = np.exp(log_softmax(logits.astype(float), axis=1))
    total = 0.0
    for number in range(bins):
        inside = [p for p in range(len(labels)) if number / bins < probabilities[p].max() <= (number + 1) / bins]
        if inside:
            confidence = np.mean([probabilities[p].max() for p in inside])
            accuracy = np.mean([probabilities[p].argmax() == labels[p] for p in inside])
            total += len(inside) / len(labels) * abs(confidence - accuracy)
    return total


# ---- the numbers


@pytest.mark.parametrize("classes", [2, 7, 30])
def test_log_loss_and_calibration_are_those_of_plain_loops(classes):
    said = drawn(classes, classes=classes)
    theirs = log_softmax(said.logits.astype(float), axis=1)
    assert log_loss(said.logits, said.labels) == pytest.approx(-theirs[np.arange(300), said.labels].mean(), rel=1e-12)
    for bins in (1, 4, 15):
        assert calibration_error(said.logits, said.labels, bins) == pytest.approx(
            slow_calibration_error(said.logits, said.labels, bins), rel=1e-9
        )


def test_the_ends_of_log_loss_and_calibration():
    labels = np.array([0, 1, 2, 3])
    assert log_loss(np.zeros((4, 4)), labels) == pytest.approx(math.log(4))
    assert log_loss(1e4 * np.eye(4), labels) == 0
    assert log_loss(1e30 * np.eye(4)[[1, 0, 3, 2]], labels) == pytest.approx(1e30)  # nothing overflows
    assert calibration_error(1e4 * np.eye(4), labels) == 0
    assert calibration_error(1e4 * np.eye(4), labels[::-1]) == 1
    assert calibration_error(np.zeros((4, 4)), labels) == pytest.approx(0)  # a quarter sure, and a quarter right


def test_the_true_class_is_looked_for_among_the_first_guesses():
    said = drawn()
    order = np.argsort(-said.logits, axis=1)
    for among in (1, 2, 5):
        assert right(said.logits, said.labels, among).tolist() == [
            label in guesses[:among] for label, guesses in zip(said.labels, order, strict=True)
        ]
    equal = np.zeros((3, 4))
    assert right(equal, np.array([0, 1, 3])).tolist() == [True, False, False]
    assert right(equal, np.array([0, 1, 3]), 2).tolist() == [True, True, False]


def test_churn_counts_the_images_that_both_saw():
    one, other = drawn(0), drawn(0, start=100)
    assert churn(one, one) == 0
    guesses = {i: int(g) for i, g in zip(other.images, other.guesses, strict=True)}
    differ = [int(g) != guesses[i] for i, g in zip(one.images, one.guesses, strict=True) if i in guesses]
    assert len(differ) == 200
    assert churn(one, other) == pytest.approx(np.mean(differ))
    assert churn(endpoints(one), other) == churn(one, other) > 0
    assert math.isnan(churn(one, drawn(1, start=10_000)))


def test_accuracy_by_class_and_its_differences():
    one, other = drawn(0), drawn(1)
    for said in (one, other):
        assert by_class(said) == pytest.approx(
            [np.mean([g == c for g, c in zip(said.guesses, said.labels, strict=True) if c == k]) for k in range(7)]
        )
    without = Answers(one.images, np.where(one.labels == 3, 4, one.labels), one.logits)
    assert math.isnan(by_class(without)[3])
    a, b, c = endpoints(one), endpoints(other), endpoints(without)
    both = class_differences([(a, b), (c, b)])
    assert both[3] == pytest.approx(a.by_class[3] - b.by_class[3])  # the other pair has no such image
    assert both[0] == pytest.approx((a.by_class[0] + c.by_class[0]) / 2 - b.by_class[0])
    assert class_differences([(c, b)])[3] is None


# ---- the file


def test_what_was_said_is_read_again(tmp_path):
    path, val, test = tmp_path / "seed-0000.safetensors", drawn(0, 40), drawn(1, 500)
    loud = test._replace(logits=test.logits * 1e9)  # far beyond float16
    digest = answers.write(path, val, loud)
    kept_val, kept = answers.read(path, digest, 540, 7)
    assert kept_val.images.tolist() == val.images.tolist()
    assert kept.labels.tolist() == test.labels.tolist()
    assert kept.guesses.tolist() == test.guesses.tolist()
    assert kept.logits.dtype == np.float16
    digest = answers.write(path, val, test)
    kept = answers.read(path, digest, 540, 7)[1]
    assert log_loss(kept.logits, kept.labels) == pytest.approx(log_loss(test.logits, test.labels), rel=1e-3)
    assert calibration_error(kept.logits, kept.labels) == pytest.approx(
        calibration_error(test.logits, test.labels), abs=1e-3
    )
    assert right(kept.logits, kept.labels, 5).tolist() == right(test.logits, test.labels, 5).tolist()
    assert path.stat().st_size < 540 * (8 + 2 * 7) + 1000
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == answers.write(path, val, test)


def test_files_of_strangers_are_refused(tmp_path):
    """Also where the record says that this is what the run wrote."""
    path, val, test = tmp_path / "seed-0000.safetensors", drawn(0, 40), drawn(1, 50)
    digest = answers.write(path, val, test)
    arrays, content = safetensors.numpy.load_file(path), path.read_bytes()
    nan = arrays["test_logits"].copy()
    nan[3, 3] = np.nan

    def refused(content, *words):
        path.write_bytes(content)
        with pytest.raises(UserError) as raised:
            answers.read(path, hashlib.sha256(content).hexdigest(), 90, 7)
        for word in (str(path), "its accuracy is in its record", *words):
            assert word in str(raised.value)
        with pytest.raises(UserError, match="is not what the run wrote"):
            answers.read(path, digest, 90, 7)

    for name, array in {
        "test_logits": arrays["test_logits"][:, :5], "val_logits": arrays["val_logits"].astype(np.float32),
        "test_images": arrays["test_images"][::-1].copy(), "val_images": arrays["val_images"] - 1,
        "test_labels": arrays["test_labels"] + 7, "val_labels": arrays["val_labels"][:-1],
    }.items():  # fmt: skip
        refused(safetensors.numpy.save(arrays | {name: array}), "damaged", name.partition("_")[2][:5])
    refused(safetensors.numpy.save(arrays | {"test_logits": nan}), "a logit is no number")
    refused(safetensors.numpy.save({name: a for name, a in arrays.items() if name != "val_images"}), "val_images")
    for damaged in (b"", b"PK", content[:100], b"\xff" * 64):
        refused(damaged, "damaged")
    path.write_bytes(content + bytes(10**6))  # no more is read than could be sound
    with pytest.raises(UserError, match="is not what the run wrote"):
        answers.read(path, hashlib.sha256(content + bytes(10**6)).hexdigest(), 90, 7)
    path.unlink()
    with pytest.raises(UserError, match="there is no file"):
        answers.read(path, digest, 90, 7)
    os.mkfifo(path)
    with pytest.raises(UserError, match="no regular file"):
        answers.read(path, digest, 90, 7)


# ---- in a comparison


def test_a_run_keeps_its_logits_and_they_say_what_its_record_says(tmp_path):
    from regard.comparison import training

    asked = tiny.question(tmp_path, tiny.fill(tmp_path / "photos", each=20))
    record = training.train(asked, "se", 3, tmp_path, lambda details: None)
    val, test = answers.read(
        tmp_path / "runs/se/seed-0003.safetensors", record["logits_sha256"], 100, len(asked.classes)
    )
    assert right(test.logits, test.labels).mean() == record["top1"]
    assert right(val.logits, val.labels).mean() == record["curve"][-1]["val_top1"]
    assert log_loss(test.logits, test.labels) == pytest.approx(record["log_loss"], rel=1e-3)
    assert log_loss(val.logits, val.labels) == pytest.approx(record["val_log_loss"], rel=1e-3)
    assert record["log_loss"] != record["val_log_loss"]


def test_a_comparison_computes_what_the_files_hold(tmp_path):
    comparison = Comparison.load(stored.store(tmp_path, seeds=range(3), logits=True))
    said = {(arm, seed): comparison.answers(arm, seed)[1] for arm in comparison.arms for seed in range(3)}
    se = [said["se", seed] for seed in range(3)]
    none = [said["none", seed] for seed in range(3)]
    assert comparison.log_loss["se"][1] == pytest.approx(log_loss(se[1].logits, se[1].labels), rel=1e-3)
    assert comparison.calibration["se"][2] == calibration_error(se[2].logits, se[2].labels)
    assert comparison.churn["se"] == pytest.approx(
        {"seeds": (churn(*se[:2]) + churn(*se[1:])) / 2, "none": np.mean([churn(se[i], none[i]) for i in range(3)])}
    )
    assert set(comparison.churn["none"]) == {"seeds"}
    assert comparison.by_class["se"] == pytest.approx(
        np.mean([by_class(a) - by_class(b) for a, b in zip(se, none, strict=True)], axis=0)
    )
    found = comparison.to_json()
    assert found["churn"] == comparison.churn
    assert found["by_class"] == comparison.by_class
    assert found["log_loss"]["se"]["1"] == comparison.log_loss["se"][1]
    assert comparison.table()[1]["log-loss"] == f"{np.mean(list(comparison.log_loss['se'].values())):.3f}"
    assert not [note for note in comparison.notes() if note.startswith("No logits")]


def test_a_run_whose_logits_are_lost_counts_all_the_same(tmp_path):
    stored.store(tmp_path, seeds=range(3), logits=True)
    whole = Comparison.load(tmp_path)
    (tmp_path / "runs/se/seed-0001.safetensors").unlink()
    (tmp_path / "runs/none/seed-0002.safetensors").write_bytes(b"?")
    comparison = Comparison.load(tmp_path)
    assert comparison.scores == whole.scores
    assert comparison.log_loss == whole.log_loss
    assert comparison.churn["se"]["none"] == churn(
        comparison.answers("se", 0)[1], comparison.answers("none", 0)[1]
    )  # the one seed that both still have
    notes = [note for note in comparison.notes() if note.startswith("No logits")]
    assert len(notes) == 2
    assert notes[0].startswith("No logits of none, seed 2: ")
    assert "is not what the run wrote" in notes[0]
    assert "there is no file" in notes[1]
    assert report.write(comparison).stat().st_size > 10_000
    with pytest.raises(UserError, match="no logits of eca, seed 0"):
        comparison.answers("eca", 0)


def test_older_folders_have_none_and_say_nothing_of_it(tmp_path):
    comparison = Comparison.load(stored.store(tmp_path, seeds=range(2)))
    assert not any(comparison.log_loss.values())
    assert not any(comparison.calibration.values())
    assert "log-loss" not in str(comparison)
    assert not [note for note in comparison.notes() if "logits" in note]
    json.dumps(comparison.to_json(), allow_nan=False)
