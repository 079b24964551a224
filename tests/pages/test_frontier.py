"""docs/frontier.md is what `make frontier` found, and its recipes are those that `compare` has."""

import json

import numpy as np

from frontier import BEFORE, LINEAR, OURS, PAGE, RESULTS, ask, render
from regard.comparison import data, hosts

FOUND = json.loads(RESULTS.read_text())


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(FOUND), "run `make frontier` and commit what changes"


def test_the_recipe_lies_above_the_linear_model_and_learns_more_with_time():
    ours = {record["epochs"]: record["top1"] for record in FOUND["records"] if record["recipe"] == OURS}
    linear = next(record["top1"] for record in FOUND["records"] if record["recipe"] == LINEAR)
    assert min(ours[1]) > linear[0]
    means = [sum(top1) / len(top1) for _, top1 in sorted(ours.items())]
    assert means == sorted(means)


def test_the_recipe_before_can_still_be_asked():
    class Images:
        classes, pixels, fingerprint, varies, broken = (
            ("a", "b"),
            np.zeros((2, 1, 28, 28), np.uint8),
            "0",
            "nothing",
            (),
        )
        split = staticmethod(lambda seed: data.Split(*[np.arange(2)] * 3))

    asked = ask(2, Images, **BEFORE)
    assert (asked.matrix_rate, asked.batch, asked.augmentation) == (None, 128, "crops")
    host = hosts.build(asked.model, 2, 1, seed=0)
    assert host.stages[1].conv1.stride == (2, 2)
