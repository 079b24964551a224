"""The verdict about one comparison: numbers, a word, and all of it in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regard.comparison.plan import Pairing, Plan

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


def describe(v: Verdict, plan: Plan, margin: float, too_few: bool) -> str:
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
