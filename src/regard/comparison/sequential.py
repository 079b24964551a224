"""Looking more than once at one error rate: levels of planned looks, a test that is valid at any time, and foresight.

**Planned looks.** An alpha-spending function (Lan and DeMets 1983, of Pocock's type) says how much of the error rate
may be spent by each look. What a level costs at a look, given that no earlier look decided, is the chance that a sum of
normal noise first leaves its bounds there, by numerical integration (Armitage, McPherson and Rowe 1969). The test at
each look is exact whatever the noise; how the looks hang together is that of sums of many independent parts, which
`make calibration` checks with other noise. An exact test has steps, and what a level loses by its step is left for the
next look.

**At any time.** If an arm makes no difference, nobody can win money by betting on the sign of the next pair. Whoever
multiplies the money by c or more has therefore seen something whose chance is at most 1 / c, whenever the betting stops
(Ville 1939): an e-process. The stake on the next difference d is such that the money grows by ``1 + tanh(l d / s)``,
with s the spread of the pairs before, begun with a guess, and l one of `BETS`, an equal part of the money on each. One
gambler bets on the one sign, one on the other. The shifts at which neither has won enough make an interval that holds
at all times at once, a confidence sequence. Since a gambler's money falls as the shift grows, it is an interval indeed.

**Foresight.** The chance that seeds still to come decide is found by drawing them: mean and spread from what the runs
so far leave open, then the looks to come. Before there were runs, the mean is taken to lie about as far from 0 as the
margin, since most effects do: without that, what looks large by chance would be foreseen to stay large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, t

from regard.comparison.permutation import ends

BETS = np.array([0.3, 0.6, 1.2])  # effects, in spreads of one pair, that the gambler hopes for
FLOOR = 1e-4  # the least spread that may be guessed, a hundredth of a point
NODES = 160  # of the numerical integration
FAR = 12.0  # standard deviations that nothing reaches
DRAWS = 1000  # of the seeds still to come


def spent(share: float) -> float:
    """The share of the error rate that may be spent when this share of the seeds is there: ln(1 + (e - 1) share)."""
    return float(np.log1p((np.e - 1) * min(share, 1.0)))


@dataclass(frozen=True)
class Look:
    """What one look may do.

    Attributes:
        allowed: the largest ``count`` of a test (see `permutation.Test`) that decides.
        level: the level of this look's test by itself, ``allowed / size``.
        information: see `boundaries`.
        alpha: what all looks may spend.
        share: of it, by this look.
    """

    allowed: int
    level: float
    information: float
    alpha: float
    share: float
    _nodes: np.ndarray
    _weights: np.ndarray
    _before: float
    _gained: float

    def corrected(self, p: np.ndarray | float) -> np.ndarray:
        """The p-value that takes all looks into account, in units of all looks' alpha, of this look's own p (...).

        The chance that an earlier look decides or this one sees as much, divided by the share that may be spent by now.
        """
        bound = np.sqrt(self.information) * norm.isf(np.asarray(p, dtype=float) / 2)
        return np.minimum(1, (self._before + self._crossing(bound)) / self.share)

    def _crossing(self, bound: np.ndarray | float) -> np.ndarray:
        """The chance that no earlier look decides and the sum then lies beyond ``bound``."""
        return _crossing(self._nodes, self._weights, self._gained, bound)


@lru_cache(maxsize=256)
def boundaries(
    alpha: float, information: tuple[float, ...], shares: tuple[float, ...], sizes: tuple[int, ...]
) -> tuple[Look, ...]:
    """The looks of a plan.

    Args:
        alpha: the chance that any look rejects what is true.
        information: pairs at each look, or ``1 / (1 / n + 1 / m)`` for n runs against m without pairing, ascending.
        shares: of alpha that may be spent by each look, ascending, see `spent`.
        sizes: of the test at each look: its p-values are multiples of ``1 / size``.
    """
    nodes, weights, before, past = np.zeros(1), np.ones(1), 0.0, 0.0
    looks = []
    for now, share, size in zip(information, shares, sizes, strict=True):
        gained, root = now - past, np.sqrt(now)
        excess = partial(_excess, nodes, weights, gained, root, alpha * share - before)
        level = 2 * norm.sf(brentq(excess, 0, FAR)) if excess(FAR) < 0 < excess(0) else 0.0
        allowed = int(np.floor(level * size + 1e-6))
        looks.append(Look(allowed, allowed / size, now, alpha, share, nodes, weights, before, gained))
        bound = root * (norm.isf(allowed / size / 2) if allowed else FAR)
        before += float(_crossing(nodes, weights, gained, bound))
        points, widths = np.polynomial.legendre.leggauss(NODES)
        ahead = points * bound
        density = norm.pdf((ahead[:, None] - nodes) / np.sqrt(gained)) @ weights / np.sqrt(gained)
        nodes, weights, past = ahead, widths * bound * density, now
    return tuple(looks)


def _excess(nodes: np.ndarray, weights: np.ndarray, gained: float, root: float, left: float, z: float) -> float:
    """What a bound at z standard deviations spends beyond what is left."""
    return float(_crossing(nodes, weights, gained, z * root)) - left


def _crossing(nodes: np.ndarray, weights: np.ndarray, gained: float, bound: np.ndarray | float) -> np.ndarray:
    bound = np.asarray(bound, dtype=float)[..., None]
    with np.errstate(invalid="ignore"):
        beyond = norm.sf((bound - nodes) / np.sqrt(gained)) + norm.cdf((-bound - nodes) / np.sqrt(gained))
    return beyond @ weights


def winnings(differences: np.ndarray, shift: np.ndarray | float = 0.0, guess: float = 0.01) -> np.ndarray:
    """The logarithm of the most money that two gamblers have had after every pair, (pairs + 1, ..., 2).

    The first bets that ``differences - shift`` are positive, the second that they are negative.

    Args:
        differences: (pairs, ...) in the order in which they came.
        shift: (...) what is taken from each.
        guess: of the spread, before there is any pair.
    """
    stakes = _stakes(differences - shift, _spreads(differences, guess))
    money = np.logaddexp.reduce(np.cumsum(stakes, axis=0), axis=-1) - np.log(len(BETS))
    begin = np.zeros((1, *money.shape[1:]))
    return np.maximum.accumulate(np.concatenate([begin, money]), axis=0)


def _spreads(differences: np.ndarray, guess: float) -> np.ndarray:
    """(pairs, ...) the standard deviation of the pairs before each, the guess counted as one of them."""
    past = np.arange(len(differences)).reshape(-1, *[1] * (differences.ndim - 1))
    away = differences - differences[:1]
    total = np.cumsum(away, axis=0) - away
    squares = np.cumsum(away**2, axis=0) - away**2
    about_mean = np.maximum(squares - total**2 / np.maximum(past, 1), 0)
    return np.sqrt((max(guess, FLOOR) ** 2 + about_mean) / np.maximum(past, 1))


def _stakes(differences: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """(pairs, ..., 2, bets) by whose logarithm the money grows with each pair: log(1 + tanh(l d / s))."""
    x = differences / spreads
    signed = np.stack([x, -x], axis=-1)[..., None] * BETS
    return np.log(2) - np.logaddexp(0, -2 * signed)


def confidence_sequence(
    differences: Sequence[float] | np.ndarray, alpha: float, guess: float = 0.01
) -> tuple[float, float]:
    """The shifts at which neither gambler has won ``2 / alpha`` by now, their ends; 0 lies outside where one has."""
    d = np.asarray(differences, dtype=float)
    enough = np.log(2 / alpha)
    step = float(np.ptp(d)) + FLOOR
    found = []
    for side, sign in ((0, -1), (1, 1)):

        def won(shift: float, side: int = side) -> bool:
            return bool(winnings(d, shift, guess)[-1, side] >= enough)

        inside = float(d.mean())
        while won(inside):  # the mean has moved away from what was found before
            inside -= sign * step
        found.append(ends(won, inside, 1e4 * step)[side])
    return found[0], found[1]


def chance_of_deciding(
    mean: np.ndarray | float,
    spread: np.ndarray | float,
    have: float,
    to_come: Sequence[Look],
    margin: float,
    freedom: int,
    added: Sequence[int],
) -> np.ndarray:
    """The chance (looks to come, ...) that the plan has decided by each look to come.

    Args:
        mean, spread: (...) of the runs so far: their difference, and the standard deviation of one unit of information.
        have: the information so far.
        to_come: the looks.
        margin: see `statistics.judge`.
        freedom: degrees of freedom of the spread.
        added: those that come until each look.
    """
    random = np.random.default_rng(0)
    mean, spread = np.asarray(mean, dtype=float)[..., None], np.asarray(spread, dtype=float)[..., None]
    true_spread = spread * np.sqrt(freedom / random.chisquare(freedom, DRAWS))
    truth = _truth(mean, true_spread / np.sqrt(have), margin, random.standard_normal(DRAWS))
    total, past = mean * have, have
    decided = np.zeros((*total.shape[:-1], DRAWS), dtype=bool)
    chances = []
    for look, more in zip(to_come, added, strict=True):
        gained = max(look.information - past, 0)
        total = total + gained * truth + np.sqrt(gained) * true_spread * random.standard_normal(DRAWS)
        past += gained
        seen = np.abs(total / past)
        if look.level > 0:
            half = t.isf(look.level / 2, freedom + more) * true_spread / np.sqrt(past)
            decided = decided | (seen > half) | (seen + half <= margin)
        chances.append(decided.mean(axis=-1))
    return np.array(chances)


def _truth(mean: np.ndarray, error: np.ndarray, margin: float, noise: np.ndarray) -> np.ndarray:
    """True differences, drawn from what a mean with this standard error leaves open."""
    kept = margin**2 / (margin**2 + error**2) if margin else 1.0
    return kept * mean + np.sqrt(kept) * error * noise


def seeds_that_decide(
    differences: Sequence[float] | np.ndarray, alpha: float, margin: float, most: int = 400, draws: int = 300
) -> tuple[int, float]:
    """How many further pairs let the test that is valid at any time decide with a chance of 80 %, and that chance.

    Where not even ``most`` pairs do, ``most`` and the chance that they have.
    """
    d = np.asarray(differences, dtype=float)
    random = np.random.default_rng(0)
    spread = max(float(d.std(ddof=1)), FLOOR)
    freedom = len(d) - 1
    true_spread = spread * np.sqrt(freedom / random.chisquare(freedom, draws))
    truth = _truth(d.mean(), true_spread / np.sqrt(len(d)), margin, random.standard_normal(draws))
    noise = random.standard_normal((most, draws))
    paths = np.concatenate([np.repeat(d[:, None], draws, axis=1), truth + true_spread * noise])
    enough = np.log(2 / alpha)
    at_zero = (winnings(paths, 0, margin) >= enough).any(axis=-1)
    above, below = winnings(paths, -margin, margin)[..., 0], winnings(paths, margin, margin)[..., 1]
    inside = (above >= enough) & (below >= enough)
    chances = (at_zero | inside)[len(d) + 1 :].mean(axis=-1)
    if chances[-1] < 0.8:
        return most, float(chances[-1])
    more = int(np.argmax(chances >= 0.8))
    return more + 1, float(chances[more])
