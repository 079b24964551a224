"""The verdict of a comparison, held against scipy, statsmodels and enumeration in whole numbers."""

import itertools
import math
import re
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from regard.comparison.statistics import Verdict, fewest_pairs, holm, interval, judge, sign_flip_test
from regard.errors import UserError

ALPHAS = st.sampled_from([0.01, 0.05, 0.0625, 0.09375, 0.1, 0.125, 0.25, 0.5]) | st.floats(0.001, 0.6)


def enumerate_p(values: np.ndarray) -> float:
    """The definition of the test, in whole numbers, so without rounding."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(values))))
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum())))


def scores_of(**differences: list[int]) -> dict[str, dict[int, float]]:
    """Accuracies of 2000 images whose differences from `none`, in images, are the given ones."""
    longest = max(map(len, differences.values()))
    base = [1500 + 13 * seed for seed in range(longest)]
    arms = {arm: {s: (base[s] + d) / 2000 for s, d in enumerate(row)} for arm, row in differences.items()}
    return {"none": {s: b / 2000 for s, b in enumerate(base)}, **arms}


def judge_one(differences: list[int], **options: float) -> Verdict:
    return judge(scores_of(se=differences), **options)[0]


# --- the test ---


@pytest.mark.parametrize("pairs", [2, 3, 6, 9])
def test_p_is_scipys(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    for images in [rng.integers(-3, 5, pairs), rng.integers(-40, 60, pairs)] * 3:
        theirs = stats.permutation_test(
            (images.astype(float),), np.sum, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert sign_flip_test(images / 2000) == theirs
    noise = rng.normal(0.3, 1, pairs)
    theirs = stats.permutation_test((noise,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_test(noise) == theirs


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=9))
def test_p_counts_ties_in_spite_of_rounding(images: list[int]) -> None:
    accuracies = [((1700 + d) / 2000) - 1700 / 2000 for d in images]  # not exactly d / 2000
    assert sign_flip_test(accuracies) == enumerate_p(np.array(images))


def test_p_at_its_extremes() -> None:
    assert sign_flip_test([]) == 1
    assert sign_flip_test([0.3]) == 1
    assert sign_flip_test([0.0] * 8) == 1
    assert sign_flip_test([0.2] * 8) == 2 / 2**8
    assert sign_flip_test([0.2] * 60) == 2 / 2**20  # of a sample, only the observed signs


@pytest.mark.parametrize("pairs", [20, 21, 40])
def test_p_of_many_pairs_is_near_the_exact_one(pairs: int) -> None:
    images = np.random.default_rng(pairs).integers(-40, 60, pairs)
    ways = np.array([1.0])  # how often each sum of signed differences occurs, by convolution
    for step in np.abs(images):
        ways = np.convolve(ways, np.r_[0.5, np.zeros(max(2 * step - 1, 0)), 0.5] if step else [1.0])
    sums = np.arange(len(ways)) - np.abs(images).sum()
    exact = ways[np.abs(sums) >= abs(images.sum())].sum()
    assert 0.001 < exact < 0.5
    error = 1e-12 if pairs == 20 else 4 * math.sqrt(exact * (1 - exact) / 2**19)
    assert sign_flip_test(images / 2000) == pytest.approx(exact, abs=error)
    assert sign_flip_test(images / 2000) == sign_flip_test(images / 2000)


# --- its inversion ---


@pytest.mark.parametrize("pairs", [5, 6, 7, 8])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.9375, 0.95, 0.99])
def test_interval_holds_exactly_the_shifts_not_rejected(pairs: int, level: float) -> None:
    images = np.random.default_rng(pairs).integers(-6, 9, pairs)
    low, high = interval(images / 2000, level)
    parts = 840  # of one image: every mean of up to 8 whole numbers lies on this grid, so the bounds do too
    for shift in {*range(-8 * parts, 11 * parts, parts // 4), *range(-30, 30)} | {
        round(bound * 2000 * parts) + step for bound in (low, high) if math.isfinite(bound) for step in (-1, 0, 1)
    }:
        kept = enumerate_p(parts * images - shift) > 1 - level
        assert kept == (low - 1e-12 <= shift / parts / 2000 <= high + 1e-12), shift


@given(
    st.lists(st.integers(-20, 20), max_size=9).map(lambda images: [i / 2000 for i in images])
    | st.lists(st.floats(-1, 1), max_size=9),
    st.sampled_from([0.5, 0.75, 0.9, 0.9375, 0.95, 0.96875, 0.99]) | st.floats(0.4, 0.999),
)
@settings(max_examples=300)
def test_interval_and_p_agree(differences: list[float], level: float) -> None:
    low, high = interval(differences, level)
    assert (sign_flip_test(differences) <= 1 - level) == (not low <= 0 <= high)


@pytest.mark.parametrize("mean", [0.0, 0.3, 0.4, 0.5, 0.6])
def test_interval_and_p_agree_on_many_pairs(mean: float) -> None:
    differences = np.random.default_rng(3).normal(mean, 1, 25)
    low, high = interval(differences, 0.95)
    assert (sign_flip_test(differences) <= 1 - 0.95) == (not low <= 0 <= high)
    student = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx(student, abs=0.05)


def test_interval_is_infinite_where_no_test_can_reject() -> None:
    assert interval([], 0.95) == interval([0.1] * 5, 0.95) == (-math.inf, math.inf)
    assert interval([0.1] * 6, 0.95) == pytest.approx((0.1, 0.1))
    assert interval([0.0] * 6, 0.95) == (0, 0)


@pytest.mark.parametrize("pairs", [6, 8, 12])
def test_interval_covers_the_truth_as_often_as_it_says(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    bounds = np.array([interval(rng.normal(0.3, 1, pairs), 0.95) for _ in range(1500)])
    assert np.isfinite(bounds).all()
    covered = np.mean((bounds[:, 0] <= 0.3) & (bounds[:, 1] >= 0.3))
    exact = 1 - math.floor(0.05 * 2 ** (pairs - 1)) / 2 ** (pairs - 1)  # p is uniform on the multiples of 2 / 2^n
    assert exact >= 0.95
    assert covered == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / 1500))


# --- several arms ---


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.03125]), min_size=1, max_size=8))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    with patch("gc.collect"):  # in every call, which takes a second in a process as large as this
        theirs = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(theirs.tolist(), rel=1e-12, abs=0)


def test_fewest_pairs() -> None:
    assert [fewest_pairs(arms) for arms in (1, 2, 10)] == [6, 7, 9]
    for arms, alpha in itertools.product(range(1, 12), (0.01, 0.05, 0.0625, 0.5)):
        n = fewest_pairs(arms, alpha)
        others = [1.0] * (arms - 1)
        assert holm([sign_flip_test([0.1] * n), *others])[0] <= alpha
        assert holm([sign_flip_test([0.1] * (n - 1)), *others])[0] > alpha


ROWS = st.integers(0, 9).flatmap(
    lambda n: st.one_of(
        st.lists(st.integers(-15, 15), min_size=n, max_size=n),
        st.lists(st.integers(3, 40), min_size=n, max_size=n),
        st.integers(-40, 40).map(lambda d: [d] * n),
    )
)


@given(st.lists(ROWS, min_size=1, max_size=5), ALPHAS, st.sampled_from([0.0, 0.002, 0.01]), st.booleans())
@settings(max_examples=300)
def test_words_intervals_and_p_never_contradict(
    rows: list[list[int]], alpha: float, margin: float, twice: bool
) -> None:
    rows = rows * 2 if twice else rows  # equal p-values
    verdicts = judge(scores_of(**{f"arm{i}": row for i, row in enumerate(rows)}), margin=margin, alpha=alpha)
    assert [v.arm for v in verdicts] == [f"arm{i}" for i in range(len(rows))]
    for v, row in zip(verdicts, rows, strict=True):
        assert np.array(v.differences) * 2000 == pytest.approx(np.array(row, dtype=float))
        assert v.p == (enumerate_p(np.array(row)) if row else 1)
        rejected = v.p_holm <= alpha
        assert rejected == (not v.low <= 0 <= v.high)
        assert rejected == (v.word in ("better", "worse"))
        assert (v.word == "better") == (v.low > 0)
        assert (v.word == "worse") == (v.high < 0)
        inside = max(-v.low, v.high) <= margin + 1e-9
        assert (v.word == "no difference worth having") == (inside and not rejected)
        assert (v.more_seeds is not None) == (v.word == "not enough runs" and len(row) >= 2)
        assert v.more_seeds is None or 1 <= v.more_seeds <= 1000
        assert not row or v.low - 1e-12 <= v.mean <= v.high + 1e-12
        assert (v.wins, v.ties) == (sum(d > 0 for d in row), row.count(0))
        assert v.sentence.startswith(v.arm)
        assert v.sentence.endswith(".")
        assert not re.search(r"\b(inf|nan|None)\b|-0\.0\b|e-", v.sentence)
    assert [v.p_holm for v in verdicts] == holm([v.p for v in verdicts])


def test_every_arm_is_judged_at_its_step_of_holm() -> None:
    strong, weaker = [30, 20, 25, 40, 35, 22, 28, 31], [30, 20, 25, 40, 35, 22, 28, -3]
    faint, nothing = [-4, 7, 0, 13, 9, 3, 10, 13], [5, -5, 9, 3, -8, 1, 1, 2]
    verdicts = judge(scores_of(faint=faint, weaker=weaker, nothing=nothing, strong=strong))
    by_arm = {v.arm: v for v in verdicts}
    assert [by_arm[arm].p * 2**8 for arm in ("strong", "weaker", "faint")] == [2, 4, 12]  # 12 / 256 < 0.05
    assert by_arm["strong"].level == pytest.approx(1 - 0.05 / 4)
    assert by_arm["weaker"].level == pytest.approx(1 - 0.05 / 3)
    assert by_arm["faint"].level == by_arm["nothing"].level == pytest.approx(1 - 0.05 / 2)
    assert all((v.low, v.high) == pytest.approx(interval(v.differences, v.level)) for v in verdicts)
    tied = judge(scores_of(a=strong, b=strong, c=nothing))  # equal evidence, equal interval, in whatever order
    assert [v.level for v in tied] == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 3, 0.95])


def test_no_arm_passes_behind_one_that_failed() -> None:
    first, second = [6, 3, 11, 9, 4, 1, -2, 3], [11, -6, 9, 11, 6, 8, 13, 1]
    verdicts = judge(scores_of(first=first, second=second, third=[1, -1]))
    assert [v.p * 2**8 for v in verdicts] == [6, 8, 256]  # 6 / 256 > 0.05 / 3, so 8 / 256 < 0.05 is of no use
    assert [v.level for v in verdicts] == pytest.approx([1 - 0.05 / 3] * 3)
    assert verdicts[1].low <= 0
    assert judge_one(second).low > 0


def test_only_seeds_of_both_are_paired_in_ascending_order() -> None:
    scores = {"se": {17: 0.9, 100: 0.8, 5: 0.7, 2: 0.1 + 0.2}, "none": {0: 0.1, 100: 0.6, 5: 0.7, 17: 0.87, 2: 0.3}}
    (v,) = judge(scores)
    assert v.seeds == (2, 5, 17, 100)
    assert v.differences == (0.0, 0.0, 0.03, 0.2)
    assert (v.wins, v.ties, v.against) == (2, 2, "none")
    (reverse,) = judge(scores, against="se")
    assert (reverse.arm, reverse.mean, reverse.wins) == ("none", -v.mean, 0)


# --- how many more ---


@pytest.mark.parametrize(
    "images", [[30, -10, 8, 41, -25, 19, 3], [60, -50, 2, 70, -35, 9, 3], [90, -10, 40], [2, -4, 1]]
)
def test_more_seeds_is_where_the_t_interval_first_decides(images: list[int]) -> None:
    v = judge_one(images)
    assert v.word == "not enough runs"
    assert v.more_seeds is not None

    def decides(total: int) -> bool:
        half = stats.t.interval(0.95, total - 1, scale=np.std(v.differences, ddof=1) / math.sqrt(total))[1]
        return total >= 6 and (abs(v.mean) > half or abs(v.mean) + half < 0.01)

    total = len(images) + v.more_seeds
    assert decides(total)
    assert not any(decides(n) for n in range(len(images) + 1, total))


def test_more_seeds_of_equal_differences_is_the_fewest_pairs() -> None:
    assert judge_one([0, 0]).more_seeds == 4
    assert judge_one([7, 7, 7]).more_seeds == 3
    assert [v.more_seeds for v in judge(scores_of(a=[0, 0], b=[7]))] == [5, None]


# --- in words ---


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (
            [40, 44, 48, 50, 36, 42],
            "se is better than none: +2.2 points (95.0 % interval +1.8 to +2.5, p = 0.031, ahead in 6 of 6 seeds).",
        ),
        (
            [-40, -44, -48, -50, -36, -42, 0],
            "se is worse than none: lower by 1.9 points"
            " (95.0 % interval -2.4 to -1.0, p = 0.031, behind in 6 of 7 seeds).",
        ),
        (
            [4] * 11 + [5],
            "se is better than none by no more than the margin of 1.0 points: +0.2 points"
            " (95.0 % interval +0.2 to +0.2, p < 0.001, ahead in 12 of 12 seeds).",
        ),
        (
            [6, -4, 2, 0, -2, 8],
            "se: no difference worth having: the 95.0 % interval -0.2 to +0.4 points lies inside the margin of"
            " 1.0 points.",
        ),
        (
            [60, -40, 20, 30, -20, 10],
            "se: not enough runs: +0.5 points, 95.0 % interval -2.0 to +3.0; about 46 more seeds would be needed.",
        ),
        (
            [40, 44, 48, 50, 36],
            "se: not enough runs: +2.2 points, no interval: fewer than 6 pairs can never reach 95.0 %;"
            " about 1 more seed would be needed.",
        ),
        (
            [200, -180],
            "se: not enough runs: +0.5 points, no interval: fewer than 6 pairs can never reach 95.0 %;"
            " at least 1000 more seeds would be needed.",
        ),
        ([40], "se: not enough runs: 1 pair with none; any answer needs at least 6."),
    ],
)
def test_sentences(images: list[int], sentence: str) -> None:
    assert judge_one(images).sentence == sentence


def test_sentence_names_the_correction_and_hides_no_sign() -> None:
    rows = {"a": [40, 44, 48, 50, 36, 42, 41], "b": [1, 12, 16, 20, 11, 13, 15], "c": []}
    better, faint, missing = (v.sentence for v in judge(scores_of(**rows), alpha=0.1))
    assert "p = 0.047 after correction for 3 arms" in better
    assert "interval +0.3 to" in faint
    assert missing == "c: not enough runs: 0 pairs with none; any answer needs at least 5."
    assert "+0.0 points" in judge_one([-160, 120, 40]).sentence  # its mean is -1e-18
    assert "interval +0.03 to" in judge_one([1, 1, 1, 1, 1, 0.5]).sentence


def test_mistakes_are_explained() -> None:
    scores = scores_of(se=[1, 2, 3])
    with pytest.raises(UserError, match=r"no runs of 'nome'.*did you mean 'none'"):
        judge(scores, against="nome")
    with pytest.raises(UserError, match="alpha must lie between 0 and 1"):
        judge(scores, alpha=5)
    with pytest.raises(UserError, match="margin must be a fraction"):
        judge(scores, margin=1.0)
    for wrong in (87.3, math.nan):
        with pytest.raises(UserError, match=f"accuracy of 'se' with seed 1 .* but is {wrong}"):
            judge({**scores, "se": {1: wrong}})
