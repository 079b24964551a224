"""The verdicts of a page: words, intervals and p-values at every look, however seeds and arms were added."""

import itertools
import math
import re
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import calibration
from regard.base.errors import UserError
from regard.comparison import permutation
from regard.comparison.case import FUTILE
from regard.comparison.permutation import paired
from regard.comparison.plan import LOOKS, Plan, check_looks, contrasts, fixed, planned
from regard.comparison.sequential import boundaries, confidence_sequence, spent
from regard.comparison.statistics import LATER, PLANNED, fewest_seeds, judge, runs_needed
from regard.comparison.verdict import Verdict


@contextmanager
def visiting(most):
    """Let so many members of a permutation test's set be visited, which is all that its time depends on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "MOST", most)
        patch.setattr(permutation.paired, "__defaults__", (most,))
        patch.setattr(permutation.unpaired, "__defaults__", (most,))
        patch.setattr(permutation.size, "__defaults__", (None, most))
        yield


ALPHAS = st.sampled_from([0.01, 0.05, 0.0625, 0.1, 0.25, 0.5]) | st.floats(0.001, 0.6)
WORDS = [
    f"{side}{much}"
    for side, much in itertools.product(("better", "worse"), (" by more than the margin", ", by less than matters", ""))
] + ["no difference worth having", "undecided"]


def scores_of(**differences: list[int]) -> dict[str, dict[int, float]]:
    """Accuracies of 2000 images whose differences from `none`, in images, are the given ones."""
    longest = max(map(len, differences.values()))
    base = [1500 + 13 * (seed % 7) for seed in range(longest)]
    arms = {arm: {s: (base[s] + d) / 2000 for s, d in enumerate(row)} for arm, row in differences.items()}
    return {"none": {s: b / 2000 for s, b in enumerate(base)}, **arms}


def judge_one(differences: list[int], plan: Plan | None = None, **options: float) -> Verdict:
    return judge(scores_of(se=differences), plan, **options)[0]


def hold_together(v: Verdict, margin: float) -> None:
    """What must be true of every verdict, wherever it comes from."""
    alpha = 1 - v.level
    found = v.p <= alpha + 1e-15
    assert found == (not v.low <= 0 <= v.high)
    assert v.low <= v.high
    assert v.word in WORDS
    assert found == (v.direction in ("better", "worse"))
    assert (v.direction == "better") == (v.low > 0)
    assert (v.direction == "worse") == (v.high < 0)
    inside, beyond = max(-v.low, v.high) <= margin + 1e-12, max(v.low, -v.high) > margin + 1e-12
    assert (v.word == "no difference worth having") == (inside and not found)
    assert v.word.endswith("matters") == (inside and found)
    assert v.word.endswith("margin") == (beyond and found)
    assert (v.state == "decided") == (v.word != "undecided")
    assert (v.more_seeds is None) == (v.chance is None)
    assert v.more_seeds is None or (v.word == "undecided" and 1 <= v.more_seeds <= 1000 and 0 <= v.chance <= 1)
    assert (v.state == "futile") == (
        v.more_seeds is not None and v.chance < FUTILE and "the plan stopped" in v.sentence
    )
    assert not v.look or v.low - 1e-12 <= v.mean <= v.high + 1e-12
    assert (v.wins, v.ties) == (sum(d > 0 for d in v.differences), v.differences.count(0))
    assert v.sentence.startswith(v.arm)
    assert v.sentence.endswith(".")
    assert not re.search(r"\b(inf|nan|None)\b|-0\.0\b|\de-", v.sentence)


# --- one look ---


ROWS = st.integers(0, 9).flatmap(
    lambda n: st.one_of(
        st.lists(st.integers(-15, 15), min_size=n, max_size=n),
        st.lists(st.integers(3, 40), min_size=n, max_size=n),
        st.integers(-40, 40).map(lambda d: [d] * n),
    )
)


@given(st.lists(ROWS, min_size=1, max_size=5), ALPHAS, st.sampled_from([0.0, 0.002, 0.01]))
@settings(max_examples=40, deadline=None)
@visiting(1 << 12)
def test_words_intervals_and_p_never_contradict(rows, alpha, margin):
    verdicts = judge(scores_of(**{f"arm{i}": row for i, row in enumerate(rows)}), margin=margin, alpha=alpha)
    assert [v.arm for v in verdicts] == [f"arm{i}" for i in range(len(rows))]
    for v, row in zip(verdicts, rows, strict=True):
        assert np.array(v.differences) * 2000 == pytest.approx(np.array(row, dtype=float))
        assert v.level == 1 - alpha
        hold_together(v, margin)


def test_p_is_that_of_the_exact_test_times_the_comparisons_over_their_part_of_the_error_rate():
    rows = {"a": [30, 20, 25, 40, 35, 22, 28, 31, 27], "b": [-4, 7, 0, 13, 9, 3, 10, 13, 5], "c": [5, -5] * 4 + [1]}
    for v in judge(scores_of(**rows), fixed(range(9))):
        test = paired(np.array(v.differences))
        assert v.p == pytest.approx(min(1, 3 / PLANNED * test.count / test.size), rel=1e-6)
        assert (v.low, v.high) == test.interval(math.floor(0.05 * PLANNED / 3 * test.size))
    (alone,) = judge(scores_of(a=rows["a"]))
    assert alone.p == pytest.approx(2 / 2**9, rel=1e-6), "without a plan nothing is kept for later"


def test_every_comparison_of_a_page_has_an_equal_part_whatever_it_is_against():
    scores = scores_of(se=[30] * 9, eca=[12, 9] * 4 + [8], wider=[10] * 9)
    asked = contrasts(list(scores))
    assert asked == [("se", "none"), ("eca", "none"), ("wider", "none"), ("se", "wider"), ("eca", "wider")]
    verdicts = judge(scores, fixed(range(9)), contrasts=asked)
    assert [(v.arm, v.against) for v in verdicts] == asked
    assert verdicts[3].p == pytest.approx(5 / PLANNED * 2 / 2**9, rel=1e-6)


def test_fewest_seeds():
    assert [fewest_seeds(arms) for arms in (1, 2, 4, 10)] == [6, 7, 8, 9]
    assert [fewest_seeds(arms, part=1) for arms in (1, 3, 6)] == [6, 7, 8]
    assert [fewest_seeds(arms, "none") for arms in (1, 2, 10)] == [4, 5, 6]
    for count, alpha, pairing in itertools.product((1, 2, 5), (0.01, 0.5), ("seeds", "none")):
        n = fewest_seeds(count, pairing, alpha)
        for seeds, found in ((n, True), (n - 1, False)):
            if seeds >= 2:
                rows = {f"arm{i}": [40] * seeds if i == 0 else [0] * seeds for i in range(count)}
                scores = {arm: {s: round(0.75 + 0.02 * (arm == "arm0"), 4) for s in range(seeds)} for arm in rows}
                scores["none"] = dict.fromkeys(range(seeds), 0.75)
                v = judge(scores, fixed(range(seeds), pairing), alpha=alpha)[0]
                assert (v.direction == "better") == found, (count, alpha, pairing, seeds)


def test_only_seeds_of_both_are_paired_in_the_order_of_the_plan():
    scores = {"se": {17: 0.9, 100: 0.8, 5: 0.7, 2: 0.1 + 0.2}, "none": {0: 0.1, 100: 0.6, 5: 0.7, 17: 0.87, 2: 0.3}}
    (v,) = judge(scores)
    assert v.seeds == (2, 5, 17, 100)
    assert v.differences == (0.0, 0.0, 0.03, 0.2)
    assert (v.wins, v.ties, v.against) == (2, 2, "none")
    (reverse,) = judge(scores, against="se")
    assert (reverse.arm, reverse.mean, reverse.wins) == ("none", -v.mean, 0)


def test_without_pairing_all_runs_of_both_count():
    scores = {"none": {s: 0.8 + 0.001 * (s % 5) for s in range(14)}, "se": {s: 0.83 + 0.001 * s for s in range(6)}}
    (v,) = judge(scores, Plan(tuple(range(14)), (6,), "none", (14,)))
    assert (len(v.seeds), v.others, v.pairing) == (6, 14, "none")
    assert v.mean == pytest.approx(np.mean(v.differences))
    assert "6 runs against 14" in v.sentence
    assert v.word == "better by more than the margin"


# --- a plan ---


def test_a_plan_without_pairing_has_more_runs_of_none_by_the_root_of_the_arms():
    assert planned(LOOKS, 4, "none").base == (16, 24, 32, 40)
    assert planned(LOOKS, 1, "none").base == planned(LOOKS, 4, "seeds").base == ()
    plan = planned((8, 12), 2, "none")
    assert (plan.until("none", 0), plan.until("se", 1)) == (tuple(range(12)), tuple(range(12)))
    assert plan.until("none", -1) == plan.seeds == tuple(range(17))


@pytest.mark.parametrize("looks", [[], [1], [8, 8], [12, 8], [8, 2000], [8.5], [True, 9], list(range(2, 40))])
def test_looks_that_are_no_plan_are_refused(looks):
    with pytest.raises(UserError, match="looks are at most 20 ascending numbers of seeds"):
        check_looks(looks)


def test_nothing_is_judged_before_a_look_is_complete():
    plan = planned(LOOKS, 1, "seeds")
    rows = [40, 44, 48, 50, 36, 42, 41, 45, 44, 43, 39]
    waiting = judge_one(rows[:7], plan)
    assert (waiting.state, waiting.look, waiting.p, waiting.low) == ("waiting", 0, 1, -math.inf)
    assert waiting.sentence == "se: undecided: 7 of 8 seeds done, and nothing is judged before the first look."
    first, same = judge_one(rows[:8], plan), judge_one(rows, plan)
    assert (first.word, first.look) == ("better by more than the margin", 1)
    assert first == same, "what a look decided stays, and runs between two looks say nothing"


def test_a_failed_run_is_not_waited_for():
    scores = scores_of(se=[40, 44, 48, 50, 36, 42, 41, 45])
    del scores["se"][3]
    plan = planned(LOOKS, 1, "seeds")
    assert judge(scores, plan)[0].state == "waiting"
    (v,) = judge(scores, plan, failed={("se", 3)})
    assert (v.look, len(v.seeds), v.direction) == (1, 7, "better")
    nothing = {"none": scores["none"], "se": {}}
    (v,) = judge(nothing, plan, failed={("se", s) for s in range(8)})
    assert (v.state, v.look) == ("open", 0)
    assert runs_needed(nothing, plan, contrasts=[("se", "none")], failed={("se", s) for s in range(8)}) == {
        (arm, seed) for arm in ("none", "se") for seed in range(12)
    }


def test_the_levels_of_the_looks_are_those_of_the_spending_function():
    plan = planned(LOOKS, 1, "seeds")
    looks = boundaries(
        0.05 * PLANNED, (8.0, 12.0, 16.0, 20.0), tuple(spent(n / 20) for n in LOOKS), (2**7, 2**11, 2**15, 2**15)
    )
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        row = [round(d) for d in rng.normal(8, 18, 20)]
        for number, look in enumerate(looks, start=1):
            v = judge_one(row[: LOOKS[number - 1]], plan)
            if v.look == number:
                test = paired(np.array(v.differences))
                assert (v.direction in ("better", "worse")) == (test.count <= look.allowed)
                seen.add((number, v.word))
    assert {number for number, word in seen if word == "better"} == {1, 2, 3, 4}


def test_a_plan_stops_what_is_decided_and_what_will_hardly_be():
    plan = planned((8, 12), 3, "seeds")
    rng = np.random.default_rng(5)
    scores = {"none": dict.fromkeys(range(8), 0.8)}
    scores["clear"] = {s: round(0.83 + rng.normal(0, 0.002), 4) for s in range(8)}
    scores["open"] = {s: round(0.806 + rng.normal(0, 0.007), 4) for s in range(8)}
    scores["noisy"] = {s: round(0.8 + 0.12 * (-1) ** s + rng.normal(0, 0.01), 4) for s in range(8)}
    asked = contrasts(list(scores))
    words = {v.arm: (v.state, v.word) for v in judge(scores, plan)}
    assert {arm: state for arm, (state, _) in words.items()} == {"clear": "decided", "open": "open", "noisy": "futile"}
    runs = runs_needed(scores, plan, contrasts=asked)
    assert {arm: sum(other == arm for other, _ in runs) for arm in scores} == {
        "none": 12, "clear": 8, "open": 12, "noisy": 8,
    }  # fmt: skip


@pytest.mark.slow
@given(st.integers(0, 10**6), st.sampled_from(["seeds", "none"]), st.booleans())
@example(82313, "none", True)  # one comparison is futile, and others bring its runs
@settings(max_examples=8, deadline=None)
@visiting(1 << 10)
def test_an_interrupted_plan_goes_on_as_if_it_had_not_been(number, pairing, wider):
    """Runs come in any order and the process may die anywhere: what is asked depends on finished looks alone."""
    rng = np.random.default_rng(number)
    plan = planned((6, 9, 12), 2, pairing)
    arms = ["none", "a", "b", *(["wider"] if wider else [])]
    asked = contrasts(arms)
    gains = dict(zip(arms, [0, *rng.normal(0, 0.01, 3)], strict=False))
    everything = {a: {s: round(0.8 + gains[a] + rng.normal(0, 0.006), 4) for s in plan.seeds} for a in arms}
    done = {arm: {} for arm in arms}
    while missing := sorted(run for run in runs_needed(done, plan, contrasts=asked) if run[1] not in done[run[0]]):
        for index in rng.permutation(len(missing))[: rng.integers(1, len(missing) + 1)]:
            arm, seed = missing[index]
            done[arm][seed] = everything[arm][seed]
    whole = {arm: {} for arm in arms}
    while missing := [run for run in runs_needed(whole, plan, contrasts=asked) if run[1] not in whole[run[0]]]:
        for arm, seed in missing:
            whole[arm][seed] = everything[arm][seed]
    assert done == whole
    assert judge(done, plan, contrasts=asked) == judge(whole, plan, contrasts=asked)
    assert all(v.state in ("decided", "futile", "ended") for v in judge(whole, plan, contrasts=asked))


@visiting(calibration.MOST)
def test_the_calibration_follows_the_plan_as_the_verdicts_do():
    """What docs/calibration.md says was simulated is what `judge` and `runs_needed` do."""
    words = set()
    for pairing, spread in (("seeds", 0.0064), ("none", 0.0064), ("none", 0.03)):
        plan = planned(LOOKS, 2, pairing)
        random = np.random.default_rng(6)
        effects = random.normal(0, 0.008, (2, 12))
        x, y = calibration.draw(random, plan, effects, spread, 0.0)
        found = calibration.follow(x, y, plan, effects)
        for page in range(12):
            every = {"none": y[:, 0, page], "a": x[:, 0, page], "b": x[:, 1, page]}
            scores = {arm: {} for arm in every}
            while missing := [
                (arm, s)
                for arm, s in runs_needed(scores, plan, contrasts=contrasts(list(every)))
                if s not in scores[arm]
            ]:
                for arm, seed in missing:
                    scores[arm][seed] = float(every[arm][seed])
            for number, v in enumerate(judge(scores, plan)):
                called = {"better": 1, "worse": -1}.get(v.direction, 0)
                assert (called, v.direction == "equal") == (
                    found["called"][number, page], found["same"][number, page]
                )  # fmt: skip
                if v.word != "undecided":
                    assert v.look == found["look"][number, page]
                    assert (v.low <= effects[number, page] <= v.high) == found["covered"][number, page]
                words.add(v.direction)
    assert words == {"better", "worse", "equal", "undecided"}


# --- what is added later ---


def test_seeds_outside_the_plan_are_judged_by_the_test_that_is_valid_at_any_time():
    row = [14, -6, 22, 3, 25, -9, 12, 20]
    later = [15, 21, 9, 30, 12, 18, 17, 20, 9, 22, 13, 25]
    eight = judge_one(row, fixed(range(8)))
    more = judge(scores_of(se=row + later), fixed(range(8)))[0]
    assert (eight.word, eight.later) == ("undecided", False)
    assert (more.direction, more.later, len(more.seeds)) == ("better", True, 20)
    low, high = confidence_sequence(np.array(more.differences), 0.05 * LATER, 0.01)
    assert more.low == max(low, eight.low)
    assert more.high == min(high, eight.high)
    assert more.p > paired(np.array(more.differences)).count / 2**15
    planned_for = judge_one(row + later, fixed(range(20)))
    assert planned_for.p < more.p, "who had planned 20 seeds finds more in them"


def test_what_the_plan_decided_stands_whatever_is_added():
    row = [40, 44, 48, 50, 36, 42, 39, 45]
    assert judge(scores_of(se=row + [-300] * 12), fixed(range(8))) == judge(scores_of(se=row), fixed(range(8)))


def test_later_seeds_count_in_the_order_in_which_they_came():
    first = scores_of(se=[14, -6, 22, 3, 25, -9, 12, 20, 45, 41, 29, 50, 32, 18, 17, 20])
    turned = {arm: {s: runs[s] for s in [*range(8), *range(15, 7, -1)]} for arm, runs in first.items()}
    (a,), (b,) = (judge(scores, fixed(range(8))) for scores in (first, turned))
    assert (a.seeds, b.seeds) == (tuple(range(16)), (*range(8), *range(15, 7, -1)))
    assert a.p != b.p


@given(
    st.lists(st.lists(st.integers(-25, 30), min_size=13, max_size=13), min_size=1, max_size=3),
    st.sampled_from(["seeds", "none"]),
    st.sampled_from([(4,), (6, 9), (5, 7, 9)]),
    st.integers(0, 13),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
@visiting(1 << 12)
def test_nothing_contradicts_itself_at_any_look_and_however_seeds_are_added(rows, pairing, looks, there, late):
    scores = scores_of(**{f"arm{i}": row for i, row in enumerate(rows)})
    scores = {
        arm: {s: a for s, a in runs.items() if s < there or (arm == "none" and s < 13)} for arm, runs in scores.items()
    }
    plan = Plan(tuple(range(13)), looks, pairing, ())
    added = {f"arm{len(rows) - 1}": fixed(range(11), pairing)} if late and len(rows) > 1 else {}
    for v in judge(scores, plan, alpha=0.3, late=added):
        hold_together(v, 0.01)
        assert v.pairing == pairing
        if v.later:
            assert there > looks[-1]


def test_arms_added_later_share_what_was_kept_for_them():
    rows = {name: [40, 44, 48, 50, 36, 42, 41, 45, 44, 43, 39, 47] for name in ("first", "second", "third")}
    scores, plan = scores_of(**rows), fixed(range(12))
    first, second, third = judge(scores, plan, late={"second": plan, "third": plan})
    kept = 1 - PLANNED - LATER
    p = 2 / 2**12
    assert first.p == pytest.approx(p / PLANNED, rel=1e-6), "no dearer for what came later"
    assert second.p == pytest.approx(p / (kept / 2 * PLANNED / (PLANNED + LATER)), rel=1e-6)
    assert third.p == pytest.approx(3 * second.p, rel=1e-6)


def test_a_late_arm_follows_its_own_plan():
    plan, own = fixed(range(8)), Plan(tuple(range(12)), (8, 12))
    scores = scores_of(se=[40, 44, 48, 50, 36, 42, 41, 45], eca=[])
    asked = contrasts(list(scores))
    runs = runs_needed(scores, plan, contrasts=asked, late={"eca": own})
    assert runs == {(arm, seed) for arm in ("none", "se", "eca") for seed in range(8)}
    scores["eca"] = {s: a + 0.004 * (-1) ** s for s, a in scores["none"].items()}
    runs = runs_needed(scores, plan, contrasts=asked, late={"eca": own})
    assert {arm: sum(other == arm for other, _ in runs) for arm in scores} == {"none": 12, "se": 8, "eca": 12}


@visiting(1 << 12)
def test_peeking_after_every_seed_holds_the_error_rate():
    """300 arms without an effect, 8 seeds planned, then a look at the verdict after every seed up to 24."""
    rng = np.random.default_rng(8)
    called = 0
    for _ in range(300):
        d = [round(x) for x in rng.normal(0, 18, 24)]
        (v,) = judge(scores_of(se=d), fixed(range(8)))
        called += v.direction in ("better", "worse")
    assert called / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


# --- in words ---


@pytest.mark.parametrize(
    ("images", "word", "sentence"),
    [
        (
            [40, 44, 48, 50, 36, 42],
            "better by more than the margin",
            "se is better than none by more than the margin of 1 point: +2.2 points"
            " (95 % interval +1.8 to +2.5, p = 0.031, ahead in 6 of 6 seeds).",
        ),
        (
            [-40, -44, -48, -50, -36, -42, 0],
            "worse",
            "se is worse than none: lower by 1.9 points (95 % interval -2.4 to -1.0, p = 0.031, behind in 6 of 7"
            " seeds); whether by more than the margin of 1 point is open.",
        ),
        (
            [4] * 11 + [5],
            "better, by less than matters",
            "se is better than none, by less than matters: +0.2 points"
            " (95 % interval +0.2 to +0.2, p < 0.001, ahead in 12 of 12 seeds).",
        ),
        (
            [6, -4, 2, 0, -2, 8],
            "no difference worth having",
            "se: no difference worth having: the 95 % interval -0.2 to +0.4 points lies inside the margin of"
            " 1 point (6 seeds).",
        ),
    ],
)
def test_sentences(images, word, sentence):
    v = judge_one(images)
    assert v.word == word
    assert v.sentence == sentence


@pytest.mark.parametrize(
    ("images", "pattern"),
    [
        (
            [60, -40, 20, 30, -20, 10],
            r"se: undecided: \+0\.5 points, 95 % interval .*; \d+ more seeds would decide with",
        ),
        ([40, 44, 48, 50, 36], r"se: undecided: \+2\.2 points, which 5 seeds cannot tell from 0; \d+ more seeds would"),
        ([40], r"se: undecided: 1 run with none, too few to say anything\."),
        ([], r"se: undecided: 0 runs with none, too few to say anything\."),
    ],
)
def test_what_is_undecided_says_why(images, pattern):
    scores = scores_of(se=images, eca=[1, 2])
    del scores["eca"]
    assert re.match(pattern, judge(scores)[0].sentence)


def test_no_sign_is_hidden():
    assert "+0.0 points" in judge_one([-160, 120, 40]).sentence  # its mean is -1e-18
    assert "interval +0.03 to" in judge_one([1, 1, 1, 1, 1, 0.5]).sentence


def test_mistakes_are_explained():
    scores = scores_of(se=[1, 2, 3])
    with pytest.raises(UserError, match=r"no runs of 'nome'.*did you mean 'none'"):
        judge(scores, against="nome")
    with pytest.raises(UserError, match=r"no runs of 'eca'"):
        judge(scores, contrasts=[("eca", "none")])
    with pytest.raises(UserError, match="alpha must lie between 0 and 1"):
        judge(scores, alpha=5)
    with pytest.raises(UserError, match="margin must be a fraction"):
        judge(scores, margin=1.0)
    for wrong in (87.3, math.nan):
        with pytest.raises(UserError, match=f"accuracy of 'se' with seed 1 .* but is {wrong}"):
            judge({**scores, "se": {1: wrong}})
