"""The exact tests, held against scipy and enumeration in whole numbers, and their intervals against the tests."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regard.comparison import permutation
from regard.comparison.permutation import paired, signs, smallest_p, unpaired

WHOLE = st.integers(-30, 30)


def p_of(differences) -> float:
    test = paired(np.array(differences, dtype=float))
    return float(test.count / test.size)


def interval(differences, level: float) -> tuple[float, float]:
    test = paired(np.array(differences, dtype=float))
    return test.interval(math.floor((1 - level) * test.size + 1e-9))


def enumerate_p(values: np.ndarray) -> float:
    """The definition of the sign-flip test, in whole numbers, so without rounding."""
    flips = np.array(list(itertools.product([1, -1], repeat=len(values))))
    return float(np.mean(np.abs(flips @ values) >= abs(values.sum())))


def enumerate_deals(x: np.ndarray, y: np.ndarray) -> float:
    """The definition of the permutation test of Welch's statistic; squares cross-multiplied, in whole numbers."""
    both = [int(value) for value in (*x, *y)]
    n, m = len(x), len(y)
    found = []
    for chosen in itertools.combinations(range(n + m), n):
        a = [both[i] for i in chosen]
        b = [both[i] for i in range(n + m) if i not in chosen]
        apart = (m * sum(a) - n * sum(b)) ** 2
        spread = [len(v) * sum(w * w for w in v) - sum(v) ** 2 for v in (a, b)]  # n (n - 1) times the variance
        error = spread[0] * m * m * max(m - 1, 1) + spread[1] * n * n * max(n - 1, 1)  # up to a common factor
        found.append((apart, error))
    apart, error = found[0]
    return float(np.mean([a * error >= apart * e for a, e in found]))


# --- pairs ---


@pytest.mark.parametrize("pairs", [2, 3, 6, 9])
def test_p_is_scipys(pairs):
    rng = np.random.default_rng(pairs)
    for values in [rng.integers(-3, 5, pairs) / 2000, rng.integers(-40, 60, pairs) / 2000, rng.normal(0.3, 1, pairs)]:
        whole = np.round(values * 2000) if pairs else values
        theirs = stats.permutation_test(
            (whole if np.allclose(whole, values * 2000) else values,),
            np.sum, permutation_type="samples", n_resamples=np.inf,
        ).pvalue  # fmt: skip
        assert p_of(values) == theirs


@given(st.lists(WHOLE, min_size=1, max_size=9))
def test_p_counts_ties_in_spite_of_rounding(images):
    accuracies = [((1700 + d) / 2000) - 1700 / 2000 for d in images]  # not exactly d / 2000
    assert p_of(accuracies) == enumerate_p(np.array(images))


def test_p_at_its_extremes():
    assert p_of([0.3]) == 1
    assert p_of([0.0] * 8) == 1
    assert p_of([0.2] * 8) == smallest_p(8) == 2 / 2**8
    assert p_of([0.2] * 60) == smallest_p(60) == 1 / permutation.MOST


@pytest.mark.parametrize("pairs", [16, 17, 20, 40])
def test_p_of_many_pairs_is_near_that_of_all_signs(pairs):
    images = np.random.default_rng(pairs).integers(-40, 60, pairs)
    ways = np.array([1.0])  # how often each sum of signed differences occurs, by convolution
    for step in np.abs(images):
        ways = np.convolve(ways, np.r_[0.5, np.zeros(max(2 * step - 1, 0)), 0.5] if step else [1.0])
    sums = np.arange(len(ways)) - np.abs(images).sum()
    exact = ways[np.abs(sums) >= abs(images.sum())].sum()
    assert 0.001 < exact < 0.5
    error = 1e-12 if pairs == 16 else 4 * math.sqrt(exact * (1 - exact) / permutation.MOST)
    assert p_of(images / 2000) == pytest.approx(exact, abs=error)


@pytest.mark.parametrize("pairs", [1, 2, 5, 6, 9, 30])
def test_the_signs_that_are_visited_are_a_group_and_all_of_them_where_they_are_few(pairs):
    """A test by a group of signs is exact; one by any other fixed choice is not."""
    most = 2**5 if pairs <= 6 else 2**8
    rows = signs(pairs, most)
    kept = {tuple(row) for row in rows}
    assert len(kept) == len(rows) == min(2 ** (pairs - 1), most)
    assert (rows[0] == 1).all()
    assert {tuple(a * b) for a in rows for b in rows} == kept
    if pairs > 9:  # no pair stands still but one
        moving = rows[:, [i for i in range(pairs) if i != 8]].astype(int)
        assert (np.abs(moving.sum(axis=0)) < len(rows)).all()


def test_p_by_a_group_is_exact():
    """Over all signs of given sizes, p <= a happens with a share of at most a, for every a, and is used up."""
    sizes = np.random.default_rng(0).exponential(1, 12)
    every = sizes[:, None] * np.array(list(itertools.product([1, -1], repeat=12))).T
    test = paired(every, most=2**6)
    p = test.count / test.size
    for level in np.arange(1, 65) / 64:
        assert np.mean(p <= level) <= level + 1e-12
    assert np.mean(p <= 0.25) > 0.2


@pytest.mark.parametrize("pairs", [5, 6, 7, 8])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.9375, 0.95, 0.99])
def test_interval_holds_exactly_the_shifts_not_rejected(pairs, level):
    images = np.random.default_rng(pairs).integers(-6, 9, pairs)
    low, high = interval(images / 2000, level)
    parts = 840  # of one image: every mean of up to 8 whole numbers lies on this grid, so the bounds do too
    for shift in {*range(-8 * parts, 11 * parts, parts // 4), *range(-30, 30)} | {
        round(bound * 2000 * parts) + step for bound in (low, high) if math.isfinite(bound) for step in (-1, 0, 1)
    }:
        kept = enumerate_p(parts * images - shift) > 1 - level
        assert kept == (low - 1e-12 <= shift / parts / 2000 <= high + 1e-12), shift


@pytest.mark.parametrize("mean", [0.0, 0.3, 0.4, 0.5, 0.6])
def test_interval_of_many_pairs_is_near_students(mean):
    differences = np.random.default_rng(3).normal(mean, 1, 25)
    low, high = interval(differences, 0.95)
    assert (p_of(differences) <= 0.05) == (not low <= 0 <= high)
    assert (low, high) == pytest.approx(stats.ttest_1samp(differences, 0).confidence_interval(0.95), abs=0.05)


def test_interval_is_infinite_where_no_test_can_reject():
    assert interval([0.1] * 5, 0.95) == (-math.inf, math.inf)
    assert interval([0.1] * 6, 0.95) == pytest.approx((0.1, 0.1))
    assert interval([0.0] * 6, 0.95) == (0, 0)


@pytest.mark.parametrize("pairs", [6, 8, 12])
def test_interval_covers_the_truth_as_often_as_it_says(pairs):
    test = paired(np.random.default_rng(pairs).normal(0.3, 1, (pairs, 1500)))
    allowed = math.floor(0.05 * test.size)
    covered = np.mean(test.count_at(0.3) > allowed)
    exact = 1 - allowed / test.size  # p is uniform on the multiples of 1 / size
    assert exact >= 0.95
    assert covered == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / 1500))


# --- runs without a partner ---


@given(st.lists(WHOLE, min_size=2, max_size=5), st.lists(WHOLE, min_size=2, max_size=5), st.integers(-20, 20))
@settings(max_examples=60)
def test_dealing_counts_what_its_definition_counts(x, y, shift):
    test = unpaired((np.array(x) + 1700) / 2000, (np.array(y) + 1700) / 2000)
    assert test.size == math.comb(len(x) + len(y), len(x))
    for moved in (0, shift):
        ours = np.array(x) - moved
        p = enumerate_deals(ours, np.array(y))
        if len({*ours}) > 1 or len({*y}) > 1:
            p = max(p, math.ceil(stats.ttest_ind(ours, y, equal_var=False).pvalue * test.size - 1e-6) / test.size)
        assert test.count_at(moved / 2000) / test.size == p


@given(
    st.lists(WHOLE, min_size=2, max_size=7).map(lambda images: [0.8 + i / 2000 for i in images]),
    st.lists(WHOLE, min_size=2, max_size=7).map(lambda images: [0.8 + i / 2000 for i in images]),
    st.floats(0.001, 0.6),
)
@settings(max_examples=100)
def test_the_interval_of_a_deal_and_its_p_agree(x, y, level):
    test = unpaired(np.array(x), np.array(y))
    allowed = math.floor(level * test.size)
    low, high = test.interval(allowed)
    assert (test.count <= allowed) == (not low <= 0 <= high)
    assert low - 1e-12 <= test.mean <= high + 1e-12


def test_dealing_is_near_welch():
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.8, 1.5, 15), rng.normal(0, 1, 25)
    test = unpaired(x, y)
    assert test.size == permutation.MOST
    theirs = stats.ttest_ind(x, y, equal_var=False)
    assert theirs.pvalue <= test.count / test.size <= theirs.pvalue + 0.01
    assert test.interval(int(0.05 * test.size)) == pytest.approx(theirs.confidence_interval(0.95), abs=0.1)


@pytest.mark.parametrize(("n", "m", "spread", "most"), [(8, 14, 1, 0.05), (8, 25, 2, 0.05), (8, 25, 0.5, 0.05)])
def test_dealing_holds_its_level_where_the_spreads_differ(n, m, spread, most):
    rng = np.random.default_rng(n)
    test = unpaired(rng.normal(0, spread, (n, 3000)), rng.normal(0, 1, (m, 3000)), 2**10)
    assert 0.03 < np.mean(test.count <= 0.05 * test.size) < most + 3 * math.sqrt(0.05 * 0.95 / 3000)


def test_equal_runs_show_nothing_and_parted_ones_all_there_is():
    assert unpaired(np.full(5, 0.8), np.full(6, 0.8)).count == math.comb(11, 5)
    parted = unpaired(np.full(4, 0.9), np.full(4, 0.8))
    assert parted.count / parted.size == smallest_p(4, 4) == 2 / math.comb(8, 4)
    assert unpaired(np.full(4, 0.9), np.full(5, 0.8)).count == 1
