"""Exact tests of two arms (sign flips, permutations), and the intervals that are obtained by inverting them.

If an arm made no difference, the difference of two runs with the same seed would be as likely to have the other sign,
and runs without a common seed would be as likely to have come from the other arm. So what was observed is one of a
known set: one member for every choice of signs, or for every way of dealing the runs to the two arms. The p-value is
the share of the members that are as far from zero as what was observed, or farther, and the interval holds every shift
of the arm's runs that this test does not reject.

With signs the distance is that of the means. Taking a shift x from every difference makes the observed mean D - x and
that of a member A - b x, where b is the mean of its signs. So a member is as far away or farther exactly where x lies
between (D - A) / (1 - b) and (D + A) / (1 + b), the means of the pairs that are flipped and of those that are not, and
all intervals are read from these ends.

Runs that are dealt may differ in spread as well, and one arm may have more of them. So the distance is that of the
means in units of its standard error, as Welch has it (Janssen 1997), and p is never below that of Welch's own test: it
holds exactly where an arm makes no difference at all, whatever the noise, and nearly so where it changes the spread
alone. The ends of its interval are found by halving.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np
from scipy.special import stdtr

MOST = 2**15  # members of the set that are visited


class Test(ABC):
    """An exact test, for one data set or for many at once (the further axes, ...).

    Attributes:
        mean: (...) the observed difference.
        size: how many members were visited; 1 / size is the smallest p-value that there can be.
    """

    mean: np.ndarray
    size: int

    @abstractmethod
    def count_at(self, shift: np.ndarray | float) -> np.ndarray:
        """(...) members that are as far from zero as what was observed, or farther, with the shift (...) taken away."""

    @abstractmethod
    def interval(self, allowed: int) -> tuple[float, float]:
        """The shifts whose count is larger than ``allowed``, of one data set; 0 is outside where ``count`` is not."""

    @cached_property
    def count(self) -> np.ndarray:
        """(...) the count without a shift; ``count / size`` is the p-value."""
        return self.count_at(0.0)


@dataclass(frozen=True)
class Flips(Test):
    """The sign-flip test. ``lower`` and ``upper`` (size, ...) are the two ends of every member."""

    mean: np.ndarray
    size: int
    lower: np.ndarray
    upper: np.ndarray

    def count_at(self, shift: np.ndarray | float) -> np.ndarray:
        return ((self.lower <= shift) & (self.upper >= shift)).sum(axis=0)

    def interval(self, allowed: int) -> tuple[float, float]:
        return float(np.sort(self.lower)[allowed]), float(np.sort(self.upper)[-1 - allowed])


@dataclass(frozen=True)
class Deals(Test):
    """The permutation test of Welch's statistic.

    Attributes:
        runs, others: how many of the arm, and of the other.
        sums, squares: (size, ...) of the runs that a member deals to the arm, and of their squares.
        own, kept: (size, ...) the sum of those that are the arm's own, and (size, 1...) how many these are.
    """

    mean: np.ndarray
    size: int
    runs: int
    others: int
    sums: np.ndarray
    squares: np.ndarray
    own: np.ndarray
    kept: np.ndarray
    totals: tuple[np.ndarray, np.ndarray]

    def count_at(self, shift: np.ndarray | float) -> np.ndarray:
        n, m = self.runs, self.others
        sums = self.sums - shift * self.kept
        squares = self.squares - 2 * shift * self.own + shift**2 * self.kept
        left = self.totals[0] - shift * n - sums
        left_squares = self.totals[1] - 2 * shift * self.own[0] + shift**2 * n - squares
        apart = sums / n - left / m
        error = (squares - sums**2 / n) / max(n - 1, 1) / n + (left_squares - left**2 / m) / max(m - 1, 1) / m
        error = np.maximum(error, 1e-12 * (squares + left_squares))  # rounding
        # a ten-millionth for sums that are equal but for rounding
        count = (apart**2 * error[0] >= apart[0] ** 2 * error * (1 - 1e-7)).sum(axis=0)
        return np.maximum(count, np.ceil(self.size * self._welch(apart[0]) - 1e-6)).astype(int)

    def _welch(self, apart: np.ndarray) -> np.ndarray:
        """The p-value (...) of Welch's t test, of a difference of the means."""
        n, m = self.runs, self.others
        others, other_squares = (
            total - own[0] for total, own in zip(self.totals, (self.sums, self.squares), strict=True)
        )
        first = np.maximum(self.squares[0] - self.sums[0] ** 2 / n, 0) / max(n - 1, 1) / n
        second = np.maximum(other_squares - others**2 / m, 0) / max(m - 1, 1) / m
        error = first + second
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = error**2 / (first**2 / max(n - 1, 1) + second**2 / max(m - 1, 1))
            p = 2 * stdtr(freedom, -np.abs(apart) / np.sqrt(error))
        return np.where(error > 1e-12 * self.totals[1], p, 0.0)

    def interval(self, allowed: int) -> tuple[float, float]:
        far = 1e3 * float(np.sqrt(self.totals[1]) + abs(self.mean)) + 1e-6
        return ends(lambda shift: bool(self.count_at(shift) <= allowed), float(self.mean), far)


def ends(rejected: Callable[[float], bool], inside: float, far: float) -> tuple[float, float]:
    """The ends of the shifts that are not rejected, around one that is not; infinite where ``far`` away none is.

    Found by halving, but zero is asked itself: it lies outside exactly where it is rejected.
    """
    found = []
    for sign in (-1, 1):
        kept, lost = inside, inside + sign * far
        if not rejected(lost):
            found.append(sign * math.inf)
            continue
        if sign * (0 - kept) > 0 and sign * (lost - 0) > 0:
            kept, lost = (kept, 0.0) if rejected(0.0) else (0.0, lost)
        for _ in range(60):
            middle = (kept + lost) / 2
            kept, lost = (kept, middle) if rejected(middle) else (middle, lost)
        found.append(kept)
    return found[0], found[1]


def paired(differences: np.ndarray, most: int = MOST) -> Flips:
    """The sign-flip test of differences (pairs, ...), pair by pair.

    All signs up to `most` choices, 2^15: 16 pairs. Beyond, the signs of the further pairs are products of those of the
    first ones. Such choices form a group, as all choices do, and that is all that the test needs to be exact.
    """
    differences = np.asarray(differences, dtype=float)
    flips, pairs = signs(len(differences), most), len(differences)
    mean = differences.mean(axis=0)
    apart, b = _product(flips, differences) / pairs, _along(flips.mean(axis=1), mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.stack([(mean - apart) / (1 - b), (mean + apart) / (1 + b)])
    both[np.abs(both) <= 1e-9 * np.abs(differences).max(axis=0)] = 0  # sums that are equal but for rounding tie
    lower, upper = both.min(axis=0), both.max(axis=0)
    lower[0], upper[0] = -np.inf, np.inf  # the signs as they are
    return Flips(mean, len(flips), lower, upper)


def unpaired(runs: np.ndarray, others: np.ndarray, most: int = MOST) -> Deals:
    """The permutation test of an arm's runs (n, ...) against the runs of another (m, ...).

    Every way of dealing them where there are at most `most`; else those as they are and a fixed random sample of the
    other ways, which keeps the test valid.
    """
    both = np.concatenate([runs, others]).astype(float)
    mean = both[: len(runs)].mean(axis=0) - both[len(runs) :].mean(axis=0)
    both = both - both.mean(axis=0)  # so that rounding is small beside the differences
    n = len(runs)
    dealt = _deals(n, len(others), most)
    own = _product(dealt[:, :n], both[:n])
    kept = _along(dealt[:, :n].sum(axis=1), mean)
    sums, squares = _product(dealt, both), _product(dealt, both**2)
    totals = both.sum(axis=0), (both**2).sum(axis=0)
    return Deals(mean, len(dealt), n, len(others), sums, squares, own, kept, totals)


def _along(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(size,) as (size, 1, ...)."""
    return values.reshape(-1, *[1] * np.ndim(like))


def size(runs: int, others: int | None = None, most: int = MOST) -> int:
    """How many members are visited for so many pairs, or for so many runs of an arm against ``others`` runs."""
    return min(2 ** max(runs - 1, 0) if others is None else math.comb(runs + others, runs), most)


def smallest_p(runs: int, others: int | None = None) -> float:
    """The smallest p-value that there can be."""
    return (2 if runs == others else 1) / size(runs, others)


@lru_cache(maxsize=16)
def signs(pairs: int, most: int) -> np.ndarray:
    """(size, pairs) of 1 and -1, the first row all 1. One pair keeps its sign: flipping all of them changes nothing."""
    free = min(pairs, most.bit_length()) - 1
    if free < 0:
        return np.ones((1, pairs), dtype=np.int8)
    bits = (np.arange(2**free)[:, None] >> np.arange(free) & 1).astype(np.int8)
    further = pairs - free - 1
    chosen = np.random.default_rng(0).integers(2, size=(further, free), dtype=np.int8)
    bits = np.concatenate([bits, np.zeros((len(bits), 1), dtype=np.int8), bits @ chosen.T & 1], axis=1)
    return (1 - 2 * bits).astype(np.int8)


@lru_cache(maxsize=16)
def _deals(first: int, second: int, most: int) -> np.ndarray:
    """(size, first + second): 1 for the runs that are dealt to the arm, the first row as they are."""
    runs = first + second
    if math.comb(runs, first) <= most:
        dealt = np.zeros((size(first, second, most), runs), dtype=np.int8)
        dealt[np.arange(len(dealt))[:, None], list(combinations(range(runs), first))] = 1
        return dealt
    order = np.random.default_rng(0).random((most, runs), dtype=np.float32).argpartition(first - 1, axis=1)
    dealt = np.zeros((most, runs), dtype=np.int8)
    np.put_along_axis(dealt, order[:, :first], 1, axis=1)
    dealt[0] = np.arange(runs) < first
    return dealt


def _product(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``rows @ values`` over the first axis of the values, in pieces: the rows are small whole numbers."""
    flat = values.reshape(len(values), -1)
    total = np.zeros((len(rows), flat.shape[1]))
    for start in range(0, len(flat), 64):
        total += rows[:, start : start + 64].astype(float) @ flat[start : start + 64]
    return total.reshape(len(rows), *values.shape[1:])
