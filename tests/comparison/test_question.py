"""What is asked, as an object: its JSON, its check, its difference, and where its results go."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

import regard
import tiny
from regard.base.errors import UserError
from regard.comparison.question import Draft, Question
from regard.comparison.question_file import Stored, refuse_other
from stored import store


def whole(**words):
    draft = replace(Draft.of(**{"size": 28, "device": "cpu", "pairing": "none"} | words), epochs=3)
    return Question(
        **draft.to_json(), fingerprint="5f", classes=["a", "b"], channels=1, train_images=9, val_images=3,
        test_images=4, split_varies="nothing", broken=[],
    )  # fmt: skip


def kept(question, folder):
    entry = {"when": "", "arms": ["none"], "seeds": [0], "command": "", "seen": False, "looks": [1], "base": []}
    Stored(question, [entry], {}).write(folder)
    return Stored.read(folder, strict=True).question


def test_it_is_read_as_it_was_written_and_cannot_be_changed(tmp_path):
    question = whole(at=["layer1", "layer2"], margin=0.02)
    assert kept(question, tmp_path) == question
    with pytest.raises(FrozenInstanceError):
        question.epochs = 5
    assert (question["epochs"], dict(question)) == (3, question.to_json())


def test_fields_of_a_newer_version_stay_in_the_file(tmp_path):
    kept(whole(), tmp_path)
    path = tmp_path / "question.json"
    held = json.loads(path.read_text())
    held["question"]["mood"] = {"a": [1]}
    path.write_text(json.dumps(held))
    Stored.read(tmp_path).write(tmp_path)
    assert json.loads(path.read_text()) == held


def test_the_first_folders_are_read_but_no_network_of_theirs_is_built(tmp_path):
    store(tmp_path)
    question = Stored.read(tmp_path).question
    assert (question.recipe, question.optimiser, question.augmentation, question.trunk) == (
        1,
        "adamw",
        "crops",
        "trained",
    )
    with pytest.raises(UserError, match=r"too old or damaged \(question\.weight_decay is missing\)"):
        Stored.read(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"size": 28, "device": "cpu"}, "fashion-small_resnet-6b4c0690"),
        (
            {
                "data": "photos",
                "model": "resnet18",
                "size": 64,
                "device": "cuda",
                "epochs": "auto",
                "tune": 3,
                "batch": 7,
            }
            | {"at": ["a", "b"], "start": "identity", "augmentation": "crops"},
            "photos-resnet18-64b4acfd",
        ),
    ],
)
def test_the_same_question_finds_the_folder_of_the_version_before(words, name):
    assert Draft.of(**words).default_folder() == Path("runs") / name


def test_the_difference_is_said_in_words():
    question = whole()
    assert question.differs_from(replace(question, rates={"se": 2.0}, widening=1.5, classes=["c"])) == ""
    assert whole(margin=0.02).differs_from(question) == "margin was 0.01, now 0.02"
    assert Draft.of().differs_from(question) == "", "what is left open differs from nothing"
    assert Draft.of(epochs=2, batch=9).differs_from(question) == "epochs was 3, now 2; batch was 96, now 9"


def test_a_difference_is_refused(tmp_path):
    assert refuse_other(tmp_path, Draft.of()) is None
    kept(whole(), tmp_path)
    assert refuse_other(tmp_path, Draft.of()).question == whole()
    with pytest.raises(UserError, match=r"holds another question \(trunk was \"trained\", now \"frozen\"\)"):
        refuse_other(tmp_path, whole(trunk="frozen"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 2, got 0"),
        ({"learning_rate": 0.0}, "learning rate must be above 0"),
        ({"augmentation": "crop"}, "augmentation is 'none' or 'crops', got 'crop'; did you mean 'crops'?"),
        ({"start": "papr"}, "start is 'scaled', 'identity' or 'paper', got 'papr'; did you mean 'paper'?"),
        ({"trunk": "frozen"}, "must have learnt something before"),
    ],
)
def test_what_makes_no_sense_is_refused(words, said):
    with pytest.raises(UserError) as raised:
        Draft.of(**words).check()
    assert said in str(raised.value)


def test_a_question_that_is_refused_leaves_no_folder_behind(tmp_path):
    photos = tiny.fill(tmp_path / "photos", classes=("only",))
    for out in (tmp_path / "new" / "deep", tmp_path / "there"):
        with pytest.raises(UserError, match="a single class"):
            regard.compare("se", data=photos, out=out, seeds=1, **tiny.ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="a single class"):
        regard.compare("se", data=photos, out=tmp_path / "mine", seeds=1, **tiny.ASKED)
    assert list((tmp_path / "mine").iterdir()) == [], "a folder that was there stays, and nothing is in it"


def test_images_that_were_decoded_stay_for_the_question_put_right(tmp_path):
    photos = tiny.fill(tmp_path / "photos")
    with pytest.raises(UserError, match="nowhere"):
        regard.compare("se", data=photos, out=tmp_path / "out", at="nowhere.*", seeds=1, epochs=1, **tiny.ASKED)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]
    assert (tmp_path / "out" / "data" / "meta.json").is_file()
