"""Is one arm better than another? What the runs say about every comparison of a page, as a number, a range and a word.

Everything on a page is one family with one error rate, 5 %: with that chance, at most, anything is called better or
worse that is not, or any interval misses its truth, whatever the arms, the looks and the seeds added later. The rate is
split beforehand. `PLANNED` of it goes in equal parts to the comparisons that were planned, each of which spends its
part over the planned looks (`sequential.boundaries`) with an exact test (`permutation`). `LATER` goes to the same
comparisons for seeds that are added outside the plan, with a test that is valid at any time. The rest goes to arms that
are added after looking, half of it to the first, a sixth to the second, a twelfth to the third, and so on.

The p-value says for which error rate of the whole page a comparison would just be decided. Interval, p-value and word
come from the same test at the same look: 0 lies outside the interval exactly where ``p <= alpha``.

Equal parts (Bonferroni), not steps (Holm) and not the largest of all differences under common flips: equal parts are
said in one breath, leave every interval its own test turned round, and hold where runs are missing, arms stop at
different looks or are not paired. `docs/calibration.md` has what it costs.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import numpy as np

from regard.base.errors import UserError, near
from regard.comparison.permutation import Test, paired, size, smallest_p, unpaired
from regard.comparison.plan import Contrast, Pairing, Plan, fixed
from regard.comparison.sequential import (
    Look,
    boundaries,
    chance_of_deciding,
    confidence_sequence,
    seeds_that_decide,
    spent,
    winnings,
)

PLANNED, LATER = 0.8, 0.1  # of the error rate: the plan, and seeds added to it; the rest is for arms added later
FUTILE = 0.1  # a plan stops where its looks to come decide with a smaller chance
MOST_SEEDS = 400  # an estimate of the seeds still needed goes no farther

Scores = Mapping[str, Mapping[int, float]]
Word = Literal[
    "better by more than the margin",
    "worse by more than the margin",
    "better, by less than matters",
    "worse, by less than matters",
    "better",
    "worse",
    "no difference worth having",
    "undecided",
]
State = Literal["decided", "waiting", "open", "futile", "ended"]


@dataclass(frozen=True)
class Verdict:
    """What the runs say about one comparison. Accuracies and their differences are fractions, not percentages.

    Attributes:
        arm, against: the arm judged and the arm it is compared with.
        pairing: see `plan.Plan`.
        seeds: of the runs of ``arm`` that were judged, in the order of the plan; of those so far, where none was yet.
        others: how many runs of ``against`` they were judged with.
        differences: accuracy of ``arm`` minus accuracy of ``against``, one per seed; without pairing minus the mean of
            ``against``.
        mean: the difference of the means; NaN without runs.
        low, high: its interval; infinite where so few runs can show nothing.
        level: of all intervals of the page together: 0.95.
        p: two-sided, corrected for every comparison of the page, every look and what was added later.
        wins, ties: how many of the differences are above, and equal to, 0.
        word: the verdict. Better or worse exactly where ``p <= 1 - level``: by more than the margin where the whole
            interval lies beyond it, by less than matters where it lies within, plain where that is open. No difference
            worth having: the interval lies within the margin and holds 0. Else undecided.
        state: ``"decided"``; ``"waiting"`` for the first look; ``"open"``: looks are to come; ``"futile"``: they would
            hardly decide, so the plan stops; ``"ended"`` undecided.
        look: how many looks of the plan were judged.
        later: whether seeds outside the plan were judged, with the test that is valid at any time.
        more_seeds, chance: how many further seeds decide with which chance, where undecided: the seeds of the plan
            while it has looks to come; then as many as give 80 %, or `MOST_SEEDS`. None with fewer than two.
        sentence: all of it in plain words, in percentage points.
    """

    arm: str
    against: str
    pairing: Pairing
    seeds: tuple[int, ...]
    others: int
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    level: float
    p: float
    wins: int
    ties: int
    word: Word
    state: State
    look: int
    later: bool
    more_seeds: int | None
    chance: float | None
    sentence: str

    @property
    def direction(self) -> Literal["better", "worse", "equal", "undecided"]:
        """The word without how much."""
        first = self.word.split()[0].rstrip(",")
        return {"better": "better", "worse": "worse", "no": "equal"}.get(first, "undecided")  # type: ignore[return-value]


def judge(
    scores: Scores,
    plan: Plan | None = None,
    *,
    against: str = "none",
    contrasts: Sequence[Contrast] | None = None,
    margin: float = 0.01,
    alpha: float = 0.05,
    failed: Collection[tuple[str, int]] = (),
    late: Mapping[str, Plan] | None = None,
) -> list[Verdict]:
    """Judge every comparison of a page; one verdict each, in their order.

    Nothing but the scores and what was planned goes in, so it can be called on scores of any origin. A look is judged
    when all of its runs are there or have failed; what it decides stays. Runs outside the plan are used where the plan
    left a comparison undecided, in the order in which ``scores[arm]`` gives them.

    Args:
        scores: ``scores[arm][seed]``, accuracies as fractions. Differences are rounded to twelve decimals.
        plan: what was fixed before looking. Without one the scores are taken for all that there will ever be: one look
            at all seeds, of runs that both have, and nothing of the error rate is kept for later.
        against: what every other arm is compared with, where ``contrasts`` does not say.
        contrasts: (arm, the arm it is compared with): all that is asked.
        margin: the largest difference not worth having, a fraction: 0.01 is one percentage point.
        alpha: the chance that anything at all on the page is called better or worse and is not.
        failed: runs (arm, seed) of the plan that will never have a score.
        late: arms that were added after looking, each with its own plan, in order.

    Raises:
        UserError: an arm to compare has no entry, an accuracy or ``margin`` is no fraction, or ``alpha`` is not between
            0 and 1.
    """
    cases = _cases(scores, plan, against, contrasts, margin, alpha, failed, late or {})
    return [case.verdict() for case in cases]


def runs_needed(
    scores: Scores,
    plan: Plan,
    *,
    contrasts: Sequence[Contrast],
    margin: float = 0.01,
    alpha: float = 0.05,
    failed: Collection[tuple[str, int]] = (),
    late: Mapping[str, Plan] | None = None,
) -> set[tuple[str, int]]:
    """The runs (arm, seed) that the plan asks for by now, those that are done included: all until the next look.

    A comparison that a look decides, or leaves with a chance below `FUTILE` to be decided at all, asks for no further
    seeds. An arm gets as many as any of its comparisons asks for. The answer depends on the scores up to the last
    finished look alone, so an interrupted comparison goes on as it would have.
    """
    late = late or {}
    cases = _cases(scores, plan, "none", contrasts, margin, alpha, failed, late)
    runs: set[tuple[str, int]] = set()
    for followed in (plan, *late.values()):
        going = here = [case for case in cases if case.plan is followed]
        for look in range(len(followed.looks)):
            runs |= {(arm, seed) for case in going for arm in case.arms for seed in followed.until(arm, look)}
            if not all(case.reached(look) for case in going):
                break
            # also of what was thought futile, where other comparisons have brought its runs
            going = [case for case in here if case.reached(look) and case.verdict(look + 1).state == "open"]
    return runs


def fewest_seeds(comparisons: int, pairing: Pairing = "seeds", alpha: float = 0.05, part: float = PLANNED) -> int:
    """The fewest seeds with which one look can find anything better or worse in one of so many comparisons.

    ``part`` is that of the error rate which this look may spend: 1 for scores without a plan.
    """
    level = alpha * part / comparisons + 1e-12
    return next(n for n in count(2) if smallest_p(n, n if pairing == "none" else None) <= level)


@dataclass(frozen=True)
class _Standing:
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
class _Case:
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
        return replace(verdict, sentence=_describe(verdict, self.plan, self.margin, self._too_few(s)))

    def _follow(self, looks: int) -> _Standing:
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
            standing = _Standing(
                look + 1, seeds, len(y), self._differences(x, y), mean, low, high, p,
                "decided" if decided else "ended" if last else "open",
            )  # fmt: skip
            if decided:
                break
        return standing

    def _so_far(self) -> _Standing:
        """Before the first look: what there is, unjudged."""
        seeds, x, y = self._runs(0)
        mean = float(x.mean() - y.mean()) if len(x) and len(y) else math.nan
        differences = self._differences(x, y) if len(y) else np.zeros(0)
        state: State = "waiting" if not self.reached(0) else "open" if len(self.plan.looks) > 1 else "ended"
        return _Standing(0, seeds, len(y), differences, mean, -math.inf, math.inf, 1.0, state)

    def _add(self, standing: _Standing) -> _Standing:
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
        return _Standing(standing.look, seeds, len(pairs), d, mean, low, high, p, state, later=True)

    def _foresee(self, s: _Standing) -> tuple[int | None, float | None, State]:
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

    def _too_few(self, s: _Standing) -> bool:
        """Whether what was judged could not have found anything."""
        return not math.isfinite(s.low)


def _cases(
    scores: Scores,
    plan: Plan | None,
    against: str,
    contrasts: Sequence[Contrast] | None,
    margin: float,
    alpha: float,
    failed: Collection[tuple[str, int]],
    late: Mapping[str, Plan],
) -> list[_Case]:
    """Every comparison with its part of the error rate."""
    if contrasts is None:
        contrasts = [(arm, against) for arm in scores if arm != against]
        if against not in scores:
            raise UserError(f"there are no runs of {against!r} to compare with{near(against, list(scores))}")
    for arm in dict.fromkeys(arm for contrast in contrasts for arm in contrast):
        if arm not in scores:
            raise UserError(f"there are no runs of {arm!r} to compare{near(arm, list(scores))}")
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
    whole = plan is None
    if plan is None:
        plan = fixed(sorted({seed for runs in scores.values() for seed in runs}))
        failed = [(arm, seed) for arm in scores for seed in plan.seeds if seed not in scores[arm]]
    own = [next((late[arm] for arm in reversed(list(late)) if arm in contrast), None) for contrast in contrasts]
    first = sum(one is None for one in own)
    cases, added = [], 0
    for (arm, other), one in zip(contrasts, own, strict=True):
        if one is None:
            parts = (1 if whole else PLANNED) / first, LATER / first
        else:
            added += 1
            part = (1 - PLANNED - LATER) / (added * (added + 1))
            parts = part * PLANNED / (PLANNED + LATER), part * LATER / (PLANNED + LATER)
        cases.append(_Case(arm, other, one or plan, scores, failed, margin, alpha, *parts))
    return cases


def _within(low: float, high: float, margin: float) -> bool:
    return max(-low, high) <= margin + 1e-12


def _describe(v: Verdict, plan: Plan, margin: float, too_few: bool) -> str:
    """The verdict as a sentence."""
    pairs = len(v.seeds)
    who = v.arm if v.against == "none" else f"{v.arm} against {v.against}"
    limit = f"the margin of {round(100 * margin, 2):g} point{'' if round(100 * margin, 2) == 1 else 's'}"
    level = f"{round(100 * v.level, 2):g} %"
    span = f"{level} interval {_points(v.low)} to {_points(v.high)}"
    seeds = _count(pairs, "seed") if v.pairing == "seeds" else f"{_count(pairs, 'run')} against {v.others}"
    if v.word == "no difference worth having":
        return f"{who}: {v.word}: the {span} points lies inside {limit} ({seeds})."
    if v.word == "undecided":
        return f"{who}: undecided: {_why(v, plan, span, too_few)}."
    amount = _points(v.mean) if v.direction == "better" else f"lower by {_points(-v.mean).removeprefix('+')}"
    p = "p < 0.001" if v.p < 0.001 else f"p = {v.p:.3f}"
    ahead = f"ahead in {v.wins}" if v.direction == "better" else f"behind in {pairs - v.wins - v.ties}"
    backing = f"{ahead} of {seeds}" if v.pairing == "seeds" else seeds
    plain = v.word in ("better", "worse")
    much = " by more than " + limit if v.word.endswith("margin") else "" if plain else ", by less than matters"
    end = f"; whether by more than {limit} is open" if plain else ""
    return f"{v.arm} is {v.direction} than {v.against}{much}: {amount} points ({span}, {p}, {backing}){end}."


def _why(v: Verdict, plan: Plan, span: str, too_few: bool) -> str:
    """What is known of a comparison that is undecided, and what would decide it."""
    if v.state == "waiting":
        there, wanted = len(v.seeds), plan.looks[0]
        return f"{there} of {_count(wanted, 'seed')} done, and nothing is judged before the first look"
    if v.more_seeds is None or v.chance is None:
        return f"{_count(len(v.seeds), 'run')} with {v.against}, too few to say anything"
    known = f"{_points(v.mean)} points, "
    known += f"which {_count(len(v.seeds), 'seed')} cannot tell from 0" if too_few else span
    more, chance = _count(v.more_seeds, "more seed"), f"{100 * v.chance:.0f} %"
    if v.state == "open":
        return f"{known}; {more} of the plan decide with a chance of {chance}"
    if v.state == "futile":
        return f"{known}; the plan stopped, since its {more} would decide with a chance of {chance}"
    return f"{known}; {more} would decide with a chance of {chance}"


def _points(fraction: float) -> str:
    """Signed percentage points with one decimal, or one digit where that would hide on which side of zero it lies."""
    points = round(100 * fraction, 6) + 0.0  # no negative zero
    return f"{points:+.1f}" if abs(points) >= 0.05 or points == 0 else f"{points:+.1g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
