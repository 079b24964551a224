"""Levels of planned looks, betting, and foresight, held against other integrations, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regard.comparison import sequential
from regard.comparison.sequential import (
    boundaries,
    chance_of_deciding,
    confidence_sequence,
    seeds_that_decide,
    spent,
    winnings,
)

LOOKS = (8.0, 12.0, 16.0, 20.0)
SHARES = tuple(spent(n / 20) for n in LOOKS)
FINE = (10**9,) * 4


def test_the_whole_error_rate_is_spent_at_the_end():
    assert spent(0) == 0
    assert spent(1) == spent(1.5) == pytest.approx(1)
    assert list(SHARES) == sorted(SHARES)


def test_one_look_has_the_whole_level():
    (look,) = boundaries(0.05, (8.0,), (1.0,), (128,))
    assert (look.allowed, look.level) == (6, 6 / 128)
    assert look.corrected(0.03) == pytest.approx(0.03, rel=1e-6)


def test_two_looks_spend_what_the_normal_distribution_in_two_dimensions_says():
    first, second = boundaries(0.05, (8.0, 20.0), (SHARES[0], 1.0), (10**9,) * 2)
    a, b = (stats.norm.isf(look.level / 2) for look in (first, second))
    normal = stats.multivariate_normal([0, 0], [[1, math.sqrt(8 / 20)], [math.sqrt(8 / 20), 1]])
    inside = normal.cdf([a, b]) - normal.cdf([-a, b]) - normal.cdf([a, -b]) + normal.cdf([-a, -b])
    assert 1 - inside == pytest.approx(0.05, abs=2e-5)
    assert first.level == pytest.approx(0.05 * SHARES[0], rel=1e-6)


@pytest.mark.parametrize("sizes", [FINE, (128, 2048, 2**15, 2**15)])
@pytest.mark.parametrize("alpha", [0.04, 0.004])
def test_the_looks_together_spend_alpha_and_no_more(alpha, sizes):
    looks = boundaries(alpha, LOOKS, SHARES, sizes)
    rng = np.random.default_rng(0)
    count = 400_000
    total, out = np.zeros(count), np.zeros(count, dtype=bool)
    for look, gained in zip(looks, np.diff([0, *LOOKS]), strict=True):
        total += math.sqrt(gained) * rng.standard_normal(count)
        out |= 2 * stats.norm.sf(np.abs(total) / math.sqrt(look.information)) <= look.level
        error = 3 * math.sqrt(alpha / count)
        assert out.mean() <= alpha * look.share + error
    assert out.mean() >= 0.97 * alpha - error


def test_what_a_step_loses_is_left_for_the_next_look():
    coarse, fine = (boundaries(0.01, LOOKS, SHARES, sizes) for sizes in ((128, *FINE[1:]), FINE))
    assert coarse[0].allowed == 0
    assert coarse[1].level > fine[1].level


@given(st.floats(0.002, 0.2), st.floats(1e-6, 1))
def test_the_corrected_p_decides_as_the_level_does(alpha, p):
    alpha = round(alpha, 3)
    for look in boundaries(alpha, LOOKS, SHARES, FINE):
        if abs(p - look.level) > 1e-7:
            assert (look.corrected(p) <= alpha) == (p <= look.level)
        assert look.corrected(p) >= min(p, look.corrected(p / 2))


# --- betting ---


def test_betting_on_a_fair_sign_wins_c_times_the_stake_with_a_chance_of_at_most_1_in_c():
    """Over all signs of given sizes: no approximation, whatever the sizes are."""
    for sizes in (np.random.default_rng(1).exponential(0.01, 13), np.r_[np.full(12, 1e-6), 1.0], np.zeros(13)):
        every = sizes[:, None] * np.array(list(itertools.product([1, -1], repeat=13))).T
        most = winnings(every)[-1]
        for c in (1.5, 2, 5, 20, 100):
            assert np.mean(most >= math.log(c), axis=0).max() <= 1 / c + 1e-12
    assert np.mean(winnings(0.01 + every)[-1, :, 0] > math.log(100)) == 1


def test_the_money_of_the_two_is_each_others_with_the_signs_turned():
    d = np.random.default_rng(2).normal(0.003, 0.01, 20)
    assert winnings(d)[:, 0] == pytest.approx(winnings(-d)[:, 1])
    assert winnings(d[:7]) == pytest.approx(winnings(d)[:8])  # what is to come changes nothing


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=25), st.floats(0.001, 0.5))
def test_the_confidence_sequence_and_its_test_agree(images, alpha):
    d = np.array(images) / 2000
    low, high = confidence_sequence(d, alpha)
    won = winnings(d)[-1] >= math.log(2 / alpha)
    assert (low > 0, high < 0) == (won[0], won[1] and not won[0]) or won.all()
    for shift, end in ((low, 0), (high, 1)):
        if math.isfinite(shift):
            outside = shift + (2 * end - 1) * 1e-6
            assert winnings(d, outside)[-1, end] >= math.log(2 / alpha)


def test_the_confidence_sequence_holds_the_truth_at_all_times_at_once():
    rng = np.random.default_rng(3)
    d = rng.normal(0.004, 0.009, (60, 3000))
    missed = (winnings(d, 0.004)[-1] >= math.log(2 / 0.05)).any(axis=-1).mean()
    assert missed <= 0.05
    found = (winnings(d)[-1] >= math.log(2 / 0.05)).any(axis=-1).mean()
    assert found > 0.5


# --- foresight ---


def test_the_chance_of_deciding_is_that_of_drawing_what_is_to_come():
    looks = boundaries(0.04, LOOKS, SHARES, (128, 2048, 2**15, 2**15))
    chances = chance_of_deciding(0.002, 0.012, 8.0, looks[1:], 0.01, 7, (4, 8, 12))
    rng = np.random.default_rng(9)
    count = 20_000
    spread = 0.012 * np.sqrt(7 / rng.chisquare(7, count))
    wide = 0.01 * rng.standard_normal(40 * count)  # what may be true, kept where it agrees with what was seen
    error = np.repeat(spread, 40) / math.sqrt(8)
    kept = rng.random(40 * count) < np.exp(-((wide - 0.002) ** 2) / (2 * error**2))
    kept = np.array([row.argmax() for row in kept.reshape(count, 40)])
    truth = wide.reshape(count, 40)[np.arange(count), kept]
    decided = np.zeros(count, dtype=bool)
    new = truth + spread * rng.standard_normal((12, count))
    for look, n in zip(looks[1:], (12, 16, 20), strict=True):
        mean = (8 * 0.002 + new[: n - 8].sum(axis=0)) / n
        half = stats.t.isf(look.level / 2, n - 1) * spread / math.sqrt(n)
        decided |= (np.abs(mean) > half) | (np.abs(mean) + half <= 0.01)
        assert chances[(n - 12) // 4] == pytest.approx(decided.mean(), abs=4 * 0.5 / math.sqrt(sequential.DRAWS))
    assert list(chances) == sorted(chances)


def test_a_clear_difference_needs_few_seeds_and_none_at_all_needs_a_margin():
    rng = np.random.default_rng(4)
    clear, none = rng.normal(0.03, 0.004, 8), rng.normal(0, 0.01, 8)
    clear_more, clear_chance = seeds_that_decide(clear, 0.0005, 0.01)
    more, chance = seeds_that_decide(none, 0.005, 0.01)
    assert clear_more < 15
    assert min(clear_chance, chance) >= 0.8
    assert more > clear_more
    assert seeds_that_decide(none, 0.005, 0.0001)[0] == 400  # no margin to speak of: hardly ever
    assert seeds_that_decide(none, 0.005, 0.0001)[1] < 0.8
