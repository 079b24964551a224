"""docs/calibration.md is what `make calibration` found, and what it found keeps what the verdicts promise."""

import json
import math

import numpy as np
import pytest

from calibration import ARMS, EFFECTS, PAGE, RESULTS, SD, WAYS, page, render

FOUND = json.loads(RESULTS.read_text())
KEYS = ("said", "decided")


def above(share, promised, count):
    """Whether a simulated share is above what is promised by more than the simulation explains."""
    return share > promised + 3 * math.sqrt(promised * (1 - promised) / count)


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(FOUND), "run `make calibration` and commit what changes"


def test_every_way_number_of_arms_and_effect_is_there():
    asked = {(row["way"], row["arms"], row["effect"]) for row in FOUND["plan"]}
    assert asked == {(way, arms, effect) for way in WAYS for arms in ARMS for effect in EFFECTS}
    assert FOUND["pages"] >= 1000
    assert FOUND["sd"] == SD


@pytest.mark.parametrize("kind", ["plan", "fixed"])
def test_no_page_errs_or_misses_more_often_than_it_says(kind):
    for row in FOUND[kind]:
        assert not above(row["wrong"], 0.05, row["pages"]), row
        assert not above(1 - row["joint"], 0.05, row["pages"]), row
        if row["effect"] >= 1:
            assert not above(row["same"], 0.05, row["pages"]), row


def test_no_way_of_adding_seeds_errs_more_often_and_the_uncorrected_one_does():
    null = FOUND["added"]["0.0"]
    for name, share in null.items():
        assert above(share, 0.05, 2 * FOUND["pages"]) == name.startswith("uncorrected"), name
    for advised in FOUND["advised"].values():
        assert not above(advised["missed"], 0.05, advised["pages"])
    assert not above(FOUND["advised"]["0.0"]["called"], 0.05, FOUND["advised"]["0.0"]["pages"])


def test_other_noise_does_no_harm():
    for kind, share in FOUND["noise"].items():
        assert not above(share, 0.05, 2 * FOUND["pages"]), kind


def test_the_plan_saves_seeds_where_there_is_nothing_and_where_there_is_much():
    for row in FOUND["plan"]:
        if row["arms"] == 1 and row["effect"] in (0.0, 1.0, 1.5):
            assert row["seeds"] < 15, row


def test_what_is_foreseen_comes_about_by_and_large():
    for spread in {row["sd"] for row in FOUND["foreseen"]}:
        rows = [row for row in FOUND["foreseen"] if row["sd"] == spread]
        said, decided = (np.average([r[key] for r in rows], weights=[r["comparisons"] for r in rows]) for key in KEYS)
        assert decided == pytest.approx(said, abs=0.2)
        assert [row["decided"] for row in rows] == sorted(row["decided"] for row in rows)


@pytest.mark.parametrize(("arms", "effect", "way"), [(1, 1.0, "independent"), (2, 0.5, "tied")])
def test_a_part_of_it_comes_out_the_same_again(arms, effect, way):
    (before,) = [r for r in FOUND["plan"] if (r["arms"], r["effect"], r["way"]) == (arms, effect, way)]
    again = page(arms, effect, way, before["pages"], SD, WAYS[way][0])
    for key in ("wrong", "found", "same", "joint"):
        assert again[key] == pytest.approx(before[key], abs=2 / before["pages"]), key
