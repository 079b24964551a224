"""What is planned before anybody looks: which seeds, when the verdict is asked, what is compared with what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from regard.base.errors import UserError
from regard.comparison.arms import HOSTS, PLAIN, mechanisms, twin

LOOKS = (8, 12, 16, 20)  # seeds at which a plan looks where nobody says otherwise
MOST_LOOKS = 20
MOST_SEEDS = 1000  # of one arm
MOST_RATES = 15  # learning rates that an arm is tried with
Pairing = Literal["seeds", "none"]
Contrast = tuple[str, str]  # an arm, and the arm that it is compared with


@dataclass(frozen=True)
class Plan:
    """The seeds of a comparison and the looks at them, fixed before any result was seen.

    Attributes:
        seeds: in the order in which they are run.
        looks: how many of them every arm has at each look, ascending. One number is a comparison with fixed seeds.
        pairing: ``"seeds"``: runs of one seed are compared with each other. ``"none"``: all runs of one arm with all
            runs of the other.
        base: how many of the seeds `none` has at each look, where it has more than the others; empty where it has not.
    """

    seeds: tuple[int, ...]
    looks: tuple[int, ...]
    pairing: Pairing = "seeds"
    base: tuple[int, ...] = ()

    def until(self, arm: str, look: int) -> tuple[int, ...]:
        """The seeds that an arm has at a look, counted from 0."""
        return self.seeds[: (self.base if arm == "none" and self.base else self.looks)[look]]


def fixed(seeds: Iterable[int], pairing: Pairing = "seeds") -> Plan:
    """One look, at all of the seeds."""
    seeds = tuple(seeds)
    return Plan(seeds, (len(seeds),), pairing)


def planned(looks: Sequence[int], arms: int, pairing: Pairing) -> Plan:
    """Looks at that many seeds, counted from 0, for ``arms`` arms that are compared with `none`.

    Without pairing `none` gets more runs than each arm, by the root of the number of arms: it serves them all, and that
    share makes the differences as exact as they can be for that many runs.
    """
    base = tuple(math.ceil(count * math.sqrt(arms)) for count in looks) if pairing == "none" and arms > 1 else ()
    return Plan(tuple(range(max(base or looks))), tuple(looks), pairing, base)


def check_looks(looks: Sequence[int]) -> tuple[int, ...]:
    """The looks as a plan takes them.

    Raises:
        UserError: they do not ascend, or are too few or too many.
    """
    whole = all(isinstance(look, int) and not isinstance(look, bool) for look in looks)
    ascending = whole and all(a < b for a, b in pairwise(looks))
    if not (looks and ascending and looks[0] >= 2 and looks[-1] <= MOST_SEEDS and len(looks) <= MOST_LOOKS):
        raise UserError(
            f"looks are at most {MOST_LOOKS} ascending numbers of seeds from 2 to {MOST_SEEDS}, such as 8,12,16,20, "
            f"got {','.join(map(str, looks))[:60] or 'none'}"
        )
    return tuple(looks)


def contrasts(arms: Sequence[str]) -> list[Contrast]:
    """Everything that a comparison of these arms asks: one family, judged with one error rate.

    Every mechanism and every widened network against `none`; every mechanism against the widened networks and against
    its constant twin. A twin is there for its mechanism alone.
    """
    attentive = mechanisms(arms)
    wide = [arm for arm in arms if arm in HOSTS and arm != PLAIN]
    asked = [(arm, PLAIN) for arm in (*attentive, *wide)]
    asked += [(arm, control) for control in wide for arm in attentive]
    return asked + [(arm, twin(arm)) for arm in attentive if twin(arm) in arms]


def factors(count: int) -> list[float]:
    """What the learning rates of an arm are multiplied with when so many are tried: powers of 2 around 1.

    Example:
        >>> factors(5), factors(2)
        ([0.25, 0.5, 1.0, 2.0, 4.0], [1.0, 2.0])
    """
    return [2.0**power for power in range(-((count - 1) // 2), count // 2 + 1)]
