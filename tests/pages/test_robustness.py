"""docs/robustness.md is what `make robustness` found, and the answer of the demo survives every case."""

import json
import math

import numpy as np
import pytest

from nearsighted import draw
from robustness import CASES, PAGE, PLANTED, QUESTIONS, RESULTS, SEEDS, render

FOUND = json.loads(RESULTS.read_text())
DEMO = "as the demo asks it"


def words(case):
    """What is said of each arm against none; nothing where nothing is judged."""
    found = FOUND["cases"][case]
    return {v["arm"]: v["word"] for v in found["verdicts"] if v["against"] == "none"} if found["trained"] else {}


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(FOUND), "run `make robustness` and commit what changes"


def test_every_case_was_tried_with_every_seed():
    assert FOUND["cases"].keys() == CASES.keys()
    for found in FOUND["cases"].values():
        assert all(len(scores) >= SEEDS for scores in found["scores"].values())


@pytest.mark.parametrize(
    "case", ["the start from the identity", "twice the learning rate", "twice the epochs", "branches times 0.25"]
)
def test_no_change_of_the_recipe_turns_the_answer_round(case):
    before, after = words(DEMO), words(case)
    for arm, word in after.items():
        assert {word.partition(",")[0].partition(" ")[0], before[arm].partition(" ")[0]} != {"better", "worse"}, arm


def test_what_the_start_of_the_papers_shrinks_is_named():
    found = FOUND["cases"]["the start of the papers"]
    for arm in ("se", "cbam"):
        assert found["branch_scale"][arm] < 0.9
        assert f"multiplies its branch by {found['branch_scale'][arm]:.2f}" in PAGE.read_text()


def test_nothing_is_said_where_labels_were_shuffled():
    found = FOUND["cases"]["labels shuffled"]
    assert not found["trained"]
    assert "Not trained long enough to tell" in found["headline"]


def test_attention_is_found_where_it_must_help():
    found = FOUND["cases"][PLANTED]
    assert found["trained"]
    for arm in ("se", "eca"):
        verdicts = {v["against"]: v["word"] for v in found["verdicts"] if v["arm"] == arm}
        assert verdicts == dict.fromkeys(("none", f"constant[{arm}]"), "better by more than the margin")
        assert found["uses_input"][arm] == "uses its input"


def test_the_planted_task_cannot_be_solved_from_what_lies_together():
    # the classes of one half differ by frame and checks alone, and each of the two alone says nothing
    images, labels = draw(4000, seed=1)
    dark = images[:, 0, 0] < 110
    columns = images[:, 8:24, 8:24].astype(float)
    coarse = np.abs(np.diff(columns, axis=2)).mean((1, 2)) < 65
    for known in (dark, coarse):
        assert abs(np.corrcoef(known, labels % 2)[0, 1]) < 0.05
    assert ((coarse ^ dark) == labels % 2).mean() > 0.9


@pytest.mark.parametrize("looks", ["planned", "peeked"])
def test_none_against_none_is_hardly_ever_called_better_or_worse(looks):
    counts = FOUND["null"][looks]
    assert sum(counts.values()) == QUESTIONS
    allowed = 0.05 * QUESTIONS + 3 * math.sqrt(0.05 * 0.95 * QUESTIONS)
    assert counts["better"] + counts["worse"] <= allowed
