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
said in one breath, leave every interval its own test inverted, and hold where runs are missing, arms stop at
different looks or are not paired. `docs/calibration.md` has what it costs.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import count

from regard.base.errors import UserError, near
from regard.comparison.case import Case, Scores
from regard.comparison.permutation import smallest_p
from regard.comparison.plan import Contrast, Pairing, Plan, fixed
from regard.comparison.verdict import Verdict

PLANNED, LATER = 0.8, 0.1  # of the error rate: the plan, and seeds added to it; the rest is for arms added later


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


def _cases(
    scores: Scores,
    plan: Plan | None,
    against: str,
    contrasts: Sequence[Contrast] | None,
    margin: float,
    alpha: float,
    failed: Collection[tuple[str, int]],
    late: Mapping[str, Plan],
) -> list[Case]:
    """Every comparison with its part of the error rate."""
    if contrasts is None:
        contrasts = [(arm, against) for arm in scores if arm != against]
        if against not in scores:
            raise UserError(f"there are no runs of {against!r} to compare with{near(against, list(scores))}")
    _check(scores, contrasts, margin, alpha)
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
        cases.append(Case(arm, other, one or plan, scores, failed, margin, alpha, *parts))
    return cases


def _check(scores: Scores, contrasts: Sequence[Contrast], margin: float, alpha: float) -> None:
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
