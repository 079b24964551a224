"""One comparison of a page, followed through the looks of its plan to its verdict."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from regard.comparison.permutation import Test, paired, size, unpaired
from regard.comparison.plan import Contrast, Plan
from regard.comparison.sequential import (
    Look,
    boundaries,
    chance_of_deciding,
    confidence_sequence,
    seeds_that_decide,
    spent,
    winnings,
)
from regard.comparison.verdict import State, Verdict, Word, describe

FUTILE = 0.1  # a plan stops where its looks to come decide with a smaller chance
MOST_SEEDS = 400  # an estimate of the seeds still needed goes no farther

Scores = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Standing:
    """What one look says about a comparison."""

    look: int
    seeds: tuple[int, ...]
    others: int
    differences: np.ndarray
    mean: float
    low: float
    high: float
    p: float
    state: State
    later: bool = False


@dataclass(frozen=True)
class Case:
    """One comparison with its part of the error rate; the methods follow it through its looks."""

    arm: str
    against: str
    plan: Plan
    scores: Scores
    failed: Collection[tuple[str, int]]
    margin: float
    alpha: float  # of the page
    planned: float  # the parts of it: for the plan
    later: float  # and for seeds added later

    @property
    def arms(self) -> Contrast:
        return self.arm, self.against

    def reached(self, look: int) -> bool:
        """Whether every run of a look is done or has failed."""
        return all(
            seed in self.scores[arm] or (arm, seed) in self.failed
            for arm in self.arms
            for seed in self.plan.until(arm, look)
        )

    def verdict(self, looks: int | None = None) -> Verdict:
        """The verdict, by the first so many looks of the plan and nothing else where that is given."""
        standing = self._follow(len(self.plan.looks) if looks is None else looks)
        if looks is None and standing.state != "decided":
            standing = self._add(standing)
        s = standing
        word: Word = "undecided"
        if s.low > 0 or s.high < 0:
            near_end, far_end = (s.low, s.high) if s.low > 0 else (-s.high, -s.low)
            how = " by more than the margin" if near_end > self.margin + 1e-12 else ""
            how = ", by less than matters" if far_end <= self.margin + 1e-12 else how
            word = ("better" if s.low > 0 else "worse") + how  # type: ignore[assignment]
        elif _within(s.low, s.high, self.margin):
            word = "no difference worth having"
        more, chance, state = self._foresee(s) if word == "undecided" else (None, None, s.state)
        verdict = Verdict(
            arm=self.arm, against=self.against, pairing=self.plan.pairing, seeds=s.seeds, others=s.others,
            differences=tuple(s.differences.tolist()), mean=s.mean, low=s.low, high=s.high, level=1 - self.alpha, p=s.p,
            wins=int((s.differences > 0).sum()), ties=int((s.differences == 0).sum()), word=word,
            state=state if word == "undecided" else "decided", look=s.look, later=s.later, more_seeds=more,
            chance=chance, sentence="",
        )  # fmt: skip
        return replace(verdict, sentence=describe(verdict, self.plan, self.margin, self._too_few(s)))

    def _follow(self, looks: int) -> Standing:
        """Through the looks of the plan to the first that decides, or to the last of so many that is reached."""
        standing = self._so_far()
        for look in range(looks):
            if not self.reached(look):
                break
            seeds, x, y = self._runs(look)
            before = self._information(len(standing.seeds), standing.others) if standing.look else 0
            if self._information(len(x), len(y)) <= before:
                continue  # all new runs have failed
            rule = self._rules(look + 1, done=look + 1)[-1]
            test = self._test(x, y)
            mean, (low, high) = float(test.mean), test.interval(rule.allowed)
            rejected = bool(test.count <= rule.allowed)
            p = min(1.0, float(rule.corrected(test.count / test.size)) / self.planned)
            p = min(p, self.alpha) if rejected else max(p, np.nextafter(self.alpha, 1))  # rounding of the integration
            decided = rejected or _within(low, high, self.margin)
            last = look + 1 == len(self.plan.looks)
            standing = Standing(
                look + 1, seeds, len(y), self._differences(x, y), mean, low, high, p,
                "decided" if decided else "ended" if last else "open",
            )  # fmt: skip
            if decided:
                break
        return standing

    def _so_far(self) -> Standing:
        """Before the first look: what there is, unjudged."""
        seeds, x, y = self._runs(0)
        mean = float(x.mean() - y.mean()) if len(x) and len(y) else math.nan
        differences = self._differences(x, y) if len(y) else np.zeros(0)
        state: State = "waiting" if not self.reached(0) else "open" if len(self.plan.looks) > 1 else "ended"
        return Standing(0, seeds, len(y), differences, mean, -math.inf, math.inf, 1.0, state)

    def _add(self, standing: Standing) -> Standing:
        """Judge with the runs outside the plan as well, by the test that is valid at any time."""
        pairs = self._pairs_in_order()
        mine, theirs = (set(self.plan.until(arm, -1)) for arm in self.arms)
        if all(a in mine and b in theirs for a, b in pairs):
            return standing
        d = np.array([round(self.scores[self.arm][a] - self.scores[self.against][b], 12) for a, b in pairs])
        alpha = self.alpha * self.later
        won = float(winnings(d, 0.0, self.margin)[-1].max())
        low, high = confidence_sequence(d, alpha, self.margin)
        p = min(1.0, 2 * math.exp(-won) / self.later)
        rejected = low > 0 or high < 0
        p = min(p, self.alpha) if rejected else max(p, np.nextafter(self.alpha, 1))
        mean = float(d.mean())
        # both intervals hold at once, so what lies in one of them only is ruled out; 0 lies in the plan's
        if max(low, standing.low) <= mean <= min(high, standing.high):
            low, high = max(low, standing.low), min(high, standing.high)
        state: State = "decided" if rejected or _within(low, high, self.margin) else "ended"
        seeds = tuple(a for a, _ in pairs)
        return Standing(standing.look, seeds, len(pairs), d, mean, low, high, p, state, later=True)

    def _foresee(self, s: Standing) -> tuple[int | None, float | None, State]:
        """How many seeds decide with which chance, and whether the looks to come are worth their runs."""
        if len(s.differences) < 2 or (self.plan.pairing == "none" and s.others < 2) or s.state == "waiting":
            return None, None, s.state
        if s.state == "open":
            future = self._rules(len(self.plan.looks), done=s.look)[s.look - len(self.plan.looks) :]
            freedom, have = self._freedom(len(s.seeds), s.others), self._information(len(s.seeds), s.others)
            _, x, y = self._runs(s.look - 1)
            now = self.plan.looks[s.look - 1]
            added = [look - now for look in self.plan.looks[s.look :]]
            chances = chance_of_deciding(s.mean, self._spread(x, y), have, future, self.margin, freedom, added)
            enough = [i for i, chance in enumerate(chances) if chance >= 0.8]
            chosen = enough[0] if enough else len(chances) - 1
            return added[chosen], float(chances[chosen]), "futile" if chances[-1] < FUTILE else "open"
        pairs = self._pairs_in_order()
        d = [self.scores[self.arm][a] - self.scores[self.against][b] for a, b in pairs]
        if len(d) < 2:
            return None, None, s.state
        return *seeds_that_decide(d, self.alpha * self.later, self.margin, MOST_SEEDS), s.state

    def _rules(self, looks: int, done: int) -> tuple[Look, ...]:
        """What the first so many looks may do: those done with their runs as they are, the others as planned.

        Looks that brought no new run are left out.
        """
        counted: list[tuple[int, int]] = []
        shares = []
        for look in range(looks):
            if look < done:
                n, m = (len(values) for values in self._runs(look)[1:])
            else:
                n, m = (len(self.plan.until(arm, look)) for arm in self.arms)
            if n and m and (not counted or self._information(n, m) > self._information(*counted[-1])):
                counted.append((n, m))
                shares.append(spent(self.plan.looks[look] / self.plan.looks[-1]))
        return boundaries(
            self.alpha * self.planned,
            tuple(self._information(n, m) for n, m in counted),
            tuple(shares),
            tuple(size(n, m if self.plan.pairing == "none" else None) for n, m in counted),
        )

    def _runs(self, look: int) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """The seeds of the arm, its accuracies and those of the other at a look, as far as they are there."""
        mine, theirs = self.scores[self.arm], self.scores[self.against]
        seeds = [seed for seed in self.plan.until(self.arm, look) if seed in mine]
        if self.plan.pairing == "seeds":
            seeds = others = [seed for seed in seeds if seed in theirs]
        else:
            others = [seed for seed in self.plan.until(self.against, look) if seed in theirs]
        return tuple(seeds), np.array([mine[s] for s in seeds]), np.array([theirs[s] for s in others])

    def _pairs_in_order(self) -> list[tuple[int, int]]:
        """All runs, those of the plan first: by seed, or without pairing the first with the first, and so on."""
        orders = []
        for arm in self.arms:
            first = [seed for seed in self.plan.until(arm, -1) if seed in self.scores[arm]]
            orders.append([*first, *(seed for seed in self.scores[arm] if seed not in set(first))])
        if self.plan.pairing == "none":
            return list(zip(*orders, strict=False))
        return [(seed, seed) for seed in orders[0] if seed in self.scores[self.against]]

    def _differences(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.round(x - (y if self.plan.pairing == "seeds" else y.mean()), 12)

    def _test(self, x: np.ndarray, y: np.ndarray) -> Test:
        return paired(np.round(x - y, 12)) if self.plan.pairing == "seeds" else unpaired(x, y)

    def _information(self, n: int, m: int) -> float:
        return float(n) if self.plan.pairing == "seeds" else n * m / max(n + m, 1)

    def _freedom(self, n: int, m: int) -> int:
        return n - 1 if self.plan.pairing == "seeds" else n + m - 2

    def _spread(self, x: np.ndarray, y: np.ndarray) -> float:
        """The standard deviation of one pair, or of one run where runs have no partner."""
        if self.plan.pairing == "seeds":
            return float(np.std(x - y, ddof=1))
        return math.sqrt((x.var() * len(x) + y.var() * len(y)) / self._freedom(len(x), len(y)))

    def _too_few(self, s: Standing) -> bool:
        """Whether what was judged could not have found anything."""
        return not math.isfinite(s.low)


def _within(low: float, high: float, margin: float) -> bool:
    return max(-low, high) <= margin + 1e-12
