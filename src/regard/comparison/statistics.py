"""Is one arm better than another? One rule answers: the sign-flip test on the paired differences of the seeds.

If an arm made no difference, the difference of every pair would be as likely to have the other sign. The test counts
the assignments of signs whose sum is at least as far from zero as the sum observed; the interval holds every shift of
the differences that the test does not reject; Holm's procedure corrects for the number of arms. Everywhere "rejected"
means ``p <= alpha``, so the p-value, the interval and the words cannot contradict each other.

Flipping the signs of the pairs in A takes the sum from ``A + B`` to ``B - A``, where A and B stand for the sums of the
two sides. That is as far from zero or farther exactly where ``A * B <= 0``. A shift d therefore fails to separate the
two sides exactly where it lies between their means, and the p-value of d is the share of all splits whose two means
enclose it. Both the test and the interval are read from these two means.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from regard.errors import UserError, near

MOST_EXACT = 20  # pairs up to which every split is visited: 2^19 of them
MOST_SEEDS = 1000  # an estimate of the seeds still needed says no more than this

Word = Literal["better", "worse", "no difference worth having", "not enough runs"]


@dataclass(frozen=True)
class Verdict:
    """What the runs say about one arm. Accuracies and their differences are fractions, not percentages.

    Attributes:
        arm, against: the arm judged and the arm it is compared with.
        seeds: the seeds that both have, ascending.
        differences: accuracy of ``arm`` minus accuracy of ``against``, one per seed.
        mean: of the differences; NaN without a pair.
        low, high: the interval of the mean at ``level``; infinite where too few pairs can never reject.
        level: confidence level of Holm's step at which the arm was judged.
        p, p_holm: two-sided p-value, as it is and corrected for the number of arms.
        wins, ties: seeds in which the arm was ahead, and in which both were equal.
        word: the verdict; better or worse exactly where ``p_holm <= alpha``.
        more_seeds: estimate of the seeds still needed where there are not enough runs, 1000 meaning at least that;
            None for the other words, and with fewer than two pairs.
        sentence: all of it in plain words, in percentage points.
    """

    arm: str
    against: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    level: float
    p: float
    p_holm: float
    wins: int
    ties: int
    word: Word
    more_seeds: int | None
    sentence: str


def sign_flip_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of the sign-flip test that the differences, (n,), are symmetric about zero.

    The share of all 2^n assignments of signs whose sum is at least as far from zero as the observed one: exact up to 20
    pairs. Beyond, the share among 2^19 splits, the observed one and a fixed random sample of the others, which keeps
    the test valid; its standard error at p = 0.05 is 0.0003. A mean within 1e-9 of the largest difference counts as
    zero, so sums that are equal but for rounding tie. Without a pair p is 1.
    """
    lower, upper = _split_means(differences)
    return float(np.mean((lower <= 0) & (upper >= 0)))


def interval(differences: Sequence[float], level: float) -> tuple[float, float]:
    """The closed interval of the shifts that `sign_flip_test` does not reject at ``level``, in the differences' unit.

    Zero lies outside exactly where ``sign_flip_test(differences) <= 1 - level``. The bounds are infinite where n pairs
    can never reject, 2 / 2^n > 1 - level. ``level`` is a fraction between 0 and 1.
    """
    return _shifts_not_rejected(differences, 1 - level)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, (m,), adjusted by Holm's step-down procedure: in the given order, at most 1."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return adjusted.tolist()


def fewest_pairs(arms: int, alpha: float = 0.05) -> int:
    """The fewest seeds with which the strongest of ``arms`` comparisons can be significant after Holm's correction."""
    return next(pairs for pairs in itertools.count(1) if 2 * arms <= alpha * 2**pairs)


def judge(
    scores: Mapping[str, Mapping[int, float]], *, against: str = "none", margin: float = 0.01, alpha: float = 0.05
) -> list[Verdict]:
    """Compare every arm with ``against``, paired by the seeds that both have; one verdict per arm, in their order.

    An arm that Holm rejects is judged, and its interval drawn, at alpha / (number of arms with a p-value as large or
    larger); all others at alpha / (number of arms not rejected), the step at which Holm stops.

    Args:
        scores: ``scores[arm][seed]``, accuracies as fractions. Differences are rounded to twelve decimals.
        against: the arm that all others are compared with.
        margin: the largest difference not worth having, a fraction: 0.01 is one percentage point.
        alpha: the probability of calling any arm better or worse if none is.

    Raises:
        UserError: no arm is called ``against``, an accuracy or ``margin`` is no fraction, or ``alpha`` is not between
            0 and 1.
    """
    if against not in scores:
        raise UserError(f"there are no runs of {against!r} to compare with{near(against, list(scores))}")
    if not 0 < alpha < 1:
        raise UserError(f"alpha must lie between 0 and 1, such as 0.05, but is {alpha}")
    if not 0 <= margin < 1:
        raise UserError(f"margin must be a fraction from 0 to below 1, such as 0.01 for one point, but is {margin}")
    for arm, runs in scores.items():
        for seed, score in runs.items():
            if not 0 <= score <= 1:
                raise UserError(
                    f"the accuracy of {arm!r} with seed {seed} must be a fraction from 0 to 1 (divide a percentage by"
                    f" 100), but is {score}"
                )

    base = scores[against]
    # Rounding takes the noise of the subtraction away, so that equal accuracies tie and 0.873 - 0.87 is 0.003.
    paired = {
        arm: {seed: round(runs[seed] - base[seed], 12) for seed in sorted(runs.keys() & base.keys())}
        for arm, runs in scores.items()
        if arm != against
    }
    p_values = [sign_flip_test(list(pairs.values())) for pairs in paired.values()]
    adjusted = holm(p_values)
    undecided = sum(p_holm > alpha for p_holm in adjusted)

    verdicts = []
    for (arm, pairs), p, p_holm in zip(paired.items(), p_values, adjusted, strict=True):
        differences = tuple(pairs.values())
        rejected = p_holm <= alpha
        remaining = sum(other >= p for other in p_values) if rejected else undecided
        mean = float(np.mean(differences)) if differences else math.nan
        low, high = _shifts_not_rejected(differences, alpha / remaining)
        word: Word
        if rejected:
            word = "better" if mean > 0 else "worse"
        elif _is_within(low, high, margin):
            word = "no difference worth having"
        else:
            word = "not enough runs"
        estimate = word == "not enough runs" and len(differences) >= 2
        verdict = Verdict(
            arm=arm,
            against=against,
            seeds=tuple(pairs),
            differences=differences,
            mean=mean,
            low=low,
            high=high,
            level=1 - alpha / remaining,
            p=p,
            p_holm=p_holm,
            wins=sum(difference > 0 for difference in differences),
            ties=sum(difference == 0 for difference in differences),
            word=word,
            more_seeds=_seeds_still_needed(differences, margin, alpha, remaining) if estimate else None,
            sentence="",
        )
        sentence = _describe(verdict, arms=len(paired), margin=margin, fewest=fewest_pairs(remaining, alpha))
        verdicts.append(replace(verdict, sentence=sentence))
    return verdicts


def _split_means(differences: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The smaller and the larger mean of the two sides of every split, (splits,) each.

    The first split is the observed assignment of signs: one side empty, its means (-inf, inf). The number of splits is
    a power of two, so that a share of them is exact in floating point.
    """
    values = np.asarray(differences, dtype=float)
    pairs = len(values)
    split = np.arange(2 ** min(max(pairs, 1) - 1, MOST_EXACT - 1))
    generator = np.random.default_rng(0)
    sums, sizes = np.zeros(len(split)), np.zeros(len(split), dtype=int)
    for index, value in enumerate(values[:-1]):  # the last pair stays on the other side: no split comes twice
        taken = split >> index & 1 if pairs <= MOST_EXACT else generator.integers(2, size=len(split)) * (split > 0)
        sums += taken * value
        sizes += taken

    some = sizes > 0
    means = np.stack([sums[some] / sizes[some], (values.sum() - sums[some]) / (pairs - sizes[some])])
    means[np.abs(means) <= 1e-9 * np.abs(values).max(initial=0)] = 0
    lower, upper = np.full(len(split), -np.inf), np.full(len(split), np.inf)
    lower[some], upper[some] = means.min(axis=0), means.max(axis=0)
    return lower, upper


def _shifts_not_rejected(differences: Sequence[float], alpha: float) -> tuple[float, float]:
    """The smallest and the largest shift that more than a share ``alpha`` of the splits enclose."""
    lower, upper = _split_means(differences)
    rank = math.floor(alpha * len(lower))
    return float(np.sort(lower)[rank]), float(np.sort(upper)[-1 - rank])


def _is_within(low: float, high: float, margin: float) -> bool:
    return max(-low, high) <= margin + 1e-12


def _seeds_still_needed(differences: Sequence[float], margin: float, alpha: float, remaining: int) -> int:
    """The seeds to add until a t interval of the same mean and spread leaves out zero or fits within the margin."""
    pairs = len(differences)
    mean, spread = abs(np.mean(differences)), np.std(differences, ddof=1)
    totals = np.arange(max(pairs + 1, fewest_pairs(remaining, alpha)), pairs + MOST_SEEDS)
    half_widths = stats.t.ppf(1 - alpha / remaining / 2, totals - 1) * spread / np.sqrt(totals)
    enough = totals[half_widths <= max(mean, margin - mean)]
    return int(enough[0]) - pairs if len(enough) else MOST_SEEDS


def _describe(verdict: Verdict, *, arms: int, margin: float, fewest: int) -> str:
    """The verdict as a sentence; ``fewest`` is the number of pairs below which no interval exists at its level."""
    v = verdict
    pairs = len(v.differences)
    level = f"{round(100 * v.level, 2)} %"
    span = f"{_points(v.low)} to {_points(v.high)}"
    limit = f"the margin of {round(100 * margin, 2)} points"
    if v.word == "no difference worth having":
        return f"{v.arm}: {v.word}: the {level} interval {span} points lies inside {limit}."
    if v.word == "not enough runs":
        if v.more_seeds is None:
            return f"{v.arm}: {v.word}: {_count(pairs, 'pair')} with {v.against}; any answer needs at least {fewest}."
        finding = (
            f"{level} interval {span}"
            if math.isfinite(v.low)
            else f"no interval: fewer than {_count(fewest, 'pair')} can never reach {level}"
        )
        more = f"at least {MOST_SEEDS}" if v.more_seeds == MOST_SEEDS else f"about {v.more_seeds}"
        seeds = "seed" if v.more_seeds == 1 else "seeds"
        return f"{v.arm}: {v.word}: {_points(v.mean)} points, {finding}; {more} more {seeds} would be needed."

    small = f" by no more than {limit}" if _is_within(v.low, v.high, margin) else ""
    amount = _points(v.mean) if v.word == "better" else f"lower by {_points(-v.mean).removeprefix('+')}"
    p = "p < 0.001" if v.p_holm < 0.001 else f"p = {v.p_holm:.3f}"
    correction = f" after correction for {arms} arms" if arms > 1 else ""
    count = f"ahead in {v.wins}" if v.word == "better" else f"behind in {pairs - v.wins - v.ties}"
    return (
        f"{v.arm} is {v.word} than {v.against}{small}: {amount} points"
        f" ({level} interval {span}, {p}{correction}, {count} of {_count(pairs, 'seed')})."
    )


def _points(fraction: float) -> str:
    """Signed percentage points with one decimal, or one digit where that would hide on which side of zero it lies."""
    points = round(100 * fraction, 6) + 0.0  # no negative zero
    return f"{points:+.1f}" if abs(points) >= 0.05 or points == 0 else f"{points:+.1g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
