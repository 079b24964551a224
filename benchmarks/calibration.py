"""docs/calibration.md: every claim about the verdicts, simulated; written by `make calibration`.

The accuracies are drawn, everything else is what `regard compare` does: the looks, the levels, the tests, the words.
The tests visit 2,048 choices of signs or ways of dealing instead of 32,768, which keeps them exact and makes them a
little less sharp. `--folder runs/mine` takes spread and correlation from the runs of a comparison instead.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from regard.base.files import write_text
from regard.comparison.case import FUTILE
from regard.comparison.permutation import paired, signs, size, unpaired
from regard.comparison.plan import LOOKS, Plan, fixed, planned
from regard.comparison.sequential import boundaries, chance_of_deciding, spent, winnings
from regard.comparison.statistics import LATER, PLANNED, judge
from regard.comparison.wording import counted

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "calibration.json", ROOT / "docs" / "calibration.md"
ALPHA, MARGIN = 0.05, 0.01
SD = 0.0064  # of one arm's accuracy over seeds, as recorded
# how the runs of one seed hang together, and how they are compared
WAYS = {"independent": (0.0, "none"), "independent, by seed": (0.0, "seeds"), "tied": (0.94, "seeds")}
ARMS = (1, 2, 4, 10)
EFFECTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # points
NOISES = ("normal", "heavy", "skewed", "rare", "spread")
CORRECTIONS = ("equal parts", "steps", "largest")
MOST = 2**11  # members of a test that are visited here
PIECE = 1000  # comparisons judged at once


def noise(random: np.random.Generator, shape: tuple[int, ...], kind: str = "normal") -> np.ndarray:
    """Noise of mean 0 and, but for "heavy", deviation 1."""
    if kind == "heavy":
        return random.standard_t(2, shape) / 2
    if kind == "skewed":
        return random.exponential(1, shape) - 1
    if kind == "rare":  # now and then a run goes astray
        return random.standard_normal(shape) * np.where(random.random(shape) < 0.1, 3, 0.33)
    return random.standard_normal(shape)


def draw(
    random: np.random.Generator, plan: Plan, effects: np.ndarray, sd: float, tied: float, kind: str = "normal"
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of the arms (seeds, arms, pages) and of none (seeds, 1, pages); effects (arms, pages)."""
    seeds = len(plan.seeds)
    shared = math.sqrt(tied) * noise(random, (seeds, 1, effects.shape[1]), kind)
    own = [math.sqrt(1 - tied) * noise(random, (seeds, n, effects.shape[1]), kind) for n in (len(effects), 1)]
    return 0.8 + effects + sd * (shared + own[0]), 0.8 + sd * (shared + own[1])


def follow(
    arms: np.ndarray, none: np.ndarray, plan: Plan, truth: np.ndarray, stop: bool = True
) -> dict[str, np.ndarray]:
    """Every comparison with none through the plan, as `statistics` does it; all results (arms, pages).

    Gives `look` (how many were judged), `called` (1 better, -1 worse, 0 neither), `same` (no difference worth having),
    `covered` (the last interval holds the truth), `chance` (foreseen at the first look, NaN where it decided).
    """
    shape = arms.shape[1:]
    x = arms.reshape(len(arms), -1)
    y = np.broadcast_to(none, (len(none), *shape)).reshape(len(none), -1)
    truth = np.broadcast_to(truth, shape).ravel()
    pairs = plan.pairing == "seeds"
    counts = [(n, (plan.base or plan.looks)[k]) for k, n in enumerate(plan.looks)]
    rules = boundaries(
        ALPHA * PLANNED / shape[0],
        tuple(float(n) if pairs else n * m / (n + m) for n, m in counts),
        tuple(spent(n / plan.looks[-1]) for n in plan.looks),
        tuple(size(n, None if pairs else m, MOST) for n, m in counts),
    )
    found = {key: np.zeros(x.shape[1], dtype=int) for key in ("look", "called")}
    found |= {key: np.zeros(x.shape[1], dtype=bool) for key in ("same", "covered")}
    found["chance"] = np.full(x.shape[1], np.nan)
    going = np.arange(x.shape[1])
    for look, (n, m) in enumerate(counts):
        left = []
        for start in range(0, len(going), PIECE):
            part = going[start : start + PIECE]
            a, b = x[:n, part], y[:m, part]
            test = paired(a - b, MOST) if pairs else unpaired(a, b, MOST)
            allowed = rules[look].allowed
            rejected = test.count <= allowed
            same = ~rejected & (test.count_at(MARGIN) <= allowed) & (test.count_at(-MARGIN) <= allowed)
            found["look"][part] = look + 1
            found["called"][part] = np.where(rejected, np.sign(test.mean), 0)
            found["same"][part] = same
            found["covered"][part] = test.count_at(truth[part]) > allowed
            alive = ~rejected & ~same
            if look + 1 < len(counts) and alive.any():
                a, b, mean = a[:, alive], b[:, alive], test.mean[alive]
                freedom = n - 1 if pairs else n + m - 2
                spread = np.std(a - b, axis=0, ddof=1) if pairs else np.sqrt((a.var(0) * n + b.var(0) * m) / freedom)
                added = [later - n for later in plan.looks[look + 1 :]]
                have = rules[look].information
                chance = chance_of_deciding(mean, spread, have, rules[look + 1 :], MARGIN, freedom, added)[-1]
                if look == 0:
                    found["chance"][part[alive]] = chance
                alive[alive] = (chance >= FUTILE) | (not stop)
            left.append(part[alive])
        going = np.concatenate(left)
        if not len(going):
            break
    return {key: values.reshape(shape) for key, values in found.items()}


def page(arms: int, effect: float, way: str, pages: int, sd: float, tied: float, fixed_at: int = 0) -> dict[str, Any]:
    """Many pages whose first arm has this effect, in points, and whose others have none."""
    pairing = WAYS[way][1]
    plan = fixed(range(fixed_at), pairing) if fixed_at else planned(LOOKS, arms, pairing)  # type: ignore[arg-type]
    effects = np.zeros((arms, pages))
    effects[0] = effect / 100
    random = np.random.default_rng([arms, round(100 * effect), *way.encode()])
    x, y = draw(random, plan, effects, sd, tied)
    found = follow(x, y, plan, effects)
    wrong = (found["called"] != 0) & (np.sign(effects) != found["called"])
    looks = np.array([0, *plan.looks])[found["look"]]
    base = np.array([0, *(plan.base or plan.looks)])[found["look"]].max(axis=0)
    real = found["called"][0] == np.sign(effect) if effect else np.zeros(pages, dtype=bool)
    return {
        "arms": arms, "effect": effect, "way": way, "looks": list(plan.looks), "base": list(plan.base), "pages": pages,
        "wrong": float(wrong.any(axis=0).mean()), "found": float(real.mean()) if effect else None,
        "same": float(found["same"][0].mean()), "seeds": float(looks[0].mean()),
        "runs": float((looks.sum(axis=0) + base).mean()),
        "joint": float(found["covered"].all(axis=0).mean()), "each": float(found["covered"].mean()),
    }  # fmt: skip


def added(pages: int, sd: float, tied: float, effect: float = 0.0) -> dict[str, float]:
    """How often one arm is called better or worse, by the way in which seeds come."""
    random = np.random.default_rng(round(100 * effect))
    x, y = draw(random, fixed(range(40)), np.full((1, pages), effect / 100), sd, tied)
    d = (x - y)[:, 0]
    first = paired(d[:8], MOST)
    by_plan = first.count <= boundaries(ALPHA * PLANNED, (8.0,), (1.0,), (128,))[0].allowed
    # the money is the most so far, so what is true after 20 seeds covers every look until then
    later = (winnings(d, 0.0, MARGIN) >= math.log(2 / (ALPHA * LATER))).any(axis=-1)
    rejected = {n: paired(d[:n], MOST).count <= ALPHA * size(n, None, MOST) for n in range(8, 41)}
    peeked = {last: np.any([rejected[n] for n in range(8, last + 1)], axis=0) for last in (20, 40)}
    follows = follow(x[:20], y[:20], planned(LOOKS, 1, "seeds"), np.full((1, pages), effect / 100))
    return {
        "the plan: 8, 12, 16, 20": float((follows["called"] != 0).mean()),
        "8 planned": float(by_plan.mean()),
        "8 planned, then 12": float((by_plan | later[12]).mean()),
        "8 planned, then one by one to 20": float((by_plan | later[20]).mean()),
        "8 planned, then one by one to 40": float((by_plan | later[40]).mean()),
        "uncorrected, 8 then 12": float((rejected[8] | rejected[12]).mean()),
        "uncorrected, one by one from 8 to 20": float(peeked[20].mean()),
        "uncorrected, one by one from 8 to 40": float(peeked[40].mean()),
    }


def advised(pages: int, sd: float, tied: float, spread: float) -> dict[str, Any]:
    """Who begins with 8 seeds and then adds what the verdict says, up to four times; true effects of that spread."""
    random = np.random.default_rng(7)
    missed = called = told = kept = 0
    for _ in range(pages):
        truth = spread / 100 * random.standard_normal()
        x, y = draw(random, fixed(range(1700)), np.full((1, 1), truth), sd, tied)
        have, promised = 8, False
        for step in range(5):
            arms = {"none": y[:have, 0, 0].tolist(), "se": x[:have, 0, 0].tolist()}
            (v,) = judge({arm: dict(enumerate(runs)) for arm, runs in arms.items()}, fixed(range(8)), margin=MARGIN)
            kept += promised and step == 1 and v.word != "undecided"
            if v.more_seeds is None or v.chance is None:
                break
            promised = step == 0 and v.chance >= 0.8
            told += promised
            have += v.more_seeds
        missed += not v.low <= truth <= v.high
        called += v.direction in ("better", "worse")
    return {
        "pages": pages,
        "missed": missed / pages,
        "called": called / pages,
        "told": told,
        "kept": kept / max(told, 1),
    }


def foreseen(pages: int, sd: float, tied: float) -> list[dict[str, float]]:
    """The chance foreseen at the first look, against how often the plan then decided; effects of spread 0.7 points."""
    random = np.random.default_rng(11)
    truth = 0.007 * random.standard_normal((1, pages))
    plan = planned(LOOKS, 1, "seeds")
    found = follow(*draw(random, plan, truth, sd, tied), plan, truth, stop=False)
    said, then = found["chance"][0], ((found["called"] != 0) | found["same"])[0]
    rows = []
    for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.01)):
        inside = (said >= low) & (said < high)
        if inside.sum() >= 30:
            row = {"sd": 100 * sd, "low": low, "high": min(high, 1.0), "comparisons": int(inside.sum())}
            rows.append(row | {"said": float(said[inside].mean()), "decided": float(then[inside].mean())})
    return rows


def other_noise(pages: int) -> dict[str, float]:
    """How often the plan calls anything better or worse that is not, by the kind of noise, compared in both ways."""
    found = {}
    for kind in NOISES:
        arms = 4 if kind == "spread" else 1
        for pairing in ("seeds", "none"):
            plan = planned(LOOKS, arms, pairing)  # type: ignore[arg-type]
            x, y = draw(np.random.default_rng(3), plan, np.zeros((arms, pages)), SD, 0.0, kind)
            x = 0.8 + 2 * (x - 0.8) if kind == "spread" else x
            found[f"{kind}, {pairing}"] = float(
                (follow(x, y, plan, np.zeros((1, 1)))["called"] != 0).any(axis=0).mean()
            )
    return found


def corrections(pages: int) -> list[dict[str, Any]]:
    """Equal parts against Holm's steps and against the largest difference under common flips; half of the arms +1."""
    rows = []
    for arms, seeds in ((2, 12), (4, 12), (10, 12), (10, 20)):
        random = np.random.default_rng([arms, seeds])
        effects = np.zeros((arms, pages))
        effects[: arms // 2] = 0.01
        x, y = draw(random, fixed(range(seeds)), effects, SD, 0.0)
        d = x - y
        test = paired(d.reshape(seeds, -1), MOST)
        p = (test.count / test.size).reshape(arms, pages)
        order = np.argsort(p, axis=0)
        steps = np.maximum.accumulate(np.arange(arms, 0, -1)[:, None] * np.take_along_axis(p, order, 0), axis=0)
        holm = np.zeros_like(p)
        np.put_along_axis(holm, order, steps, 0)
        scaled = d / np.sqrt((d**2).sum(axis=0))  # the arms on one scale that no flip changes
        flipped = np.abs(np.einsum("sn,nap->sap", signs(seeds, MOST).astype(float), scaled)).max(axis=1)
        largest = (flipped[:, None] >= np.abs(scaled.sum(axis=0)) - 1e-9).mean(axis=0)
        real = effects[:, 0] > 0
        rows.append(
            {"arms": arms, "seeds": seeds}
            | {
                name: [float((q[real] <= ALPHA).mean()), float((q[~real] <= ALPHA).any(axis=0).mean())]
                for name, q in zip(CORRECTIONS, (arms * p, holm, largest), strict=True)
            }
        )
    return rows


def measure(pages: int, sd: float, ways: dict[str, tuple[float, str]], say: Any = print) -> dict[str, Any]:
    began = time.process_time()
    found: dict[str, Any] = {"pages": pages, "sd": sd, "ways": {way: list(value) for way, value in ways.items()}}
    found["plan"], found["fixed"] = [], []
    for way, (tied, _) in ways.items():
        for arms in ARMS:
            for effect in EFFECTS:
                many = pages if not effect else max(pages // 4, 1)
                found["plan"].append(page(arms, effect, way, many, sd, tied))
                if effect in (0.0, 0.5, 1.0):
                    found["fixed"].append(page(arms, effect, way, max(pages // 4, 1), sd, tied, fixed_at=20))
            say(f"{way}, {arms} arms: {time.process_time() - began:.0f} s")
    tied = next(iter(ways.values()))[0]
    found["added"] = {str(effect): added(2 * pages, sd, tied, effect) for effect in (0.0, 0.5, 1.0)}
    found["advised"] = {str(spread): advised(max(pages // 5, 1), sd, tied, spread) for spread in (0.0, 0.7)}
    found["foreseen"] = [row for times in (1, 2) for row in foreseen(2 * pages, times * sd, tied)]
    found["noise"] = other_noise(2 * pages)
    found["corrections"] = corrections(max(pages // 5, 1))
    found["seconds"] = round(time.process_time() - began)
    return found


PAGE_TEXT = """# What the verdicts are worth

Made by `make calibration`: every claim about error, coverage and power, simulated. Accuracies are drawn with a spread
of {sd:.2f} points for one arm, as recorded; everything else is what `regard compare` does. Figures are percentages with
their simulation error, one standard deviation. The error rate of a page is 5 %, the margin 1 point, and the plan looks
at {looks} seeds.

* The largest error of a whole page without any effect: {worst}.
* Without an effect the plan ends after {null_seeds:.1f} seeds on average (one arm, {first}) instead of 20, and says "no
  difference worth having" in {null_same}.
* The lowest share of pages on which every interval holds the truth: {joint}.
* An effect as large as the margin is called "no difference worth having" in at most {wrongly}.

## Error and coverage by the plan

No arm differs from `none`. *Error*: any arm of the page is called better or worse. *Joint*: every interval of the page
holds the truth. Unpaired, `none` has more runs than each arm.

| runs | arms | error | joint coverage | no difference worth having | seeds | runs, `none` too | with fixed 20 |
|---|---|---|---|---|---|---|---|
{nulls}

## Power by the plan

One arm is better by so many points, the others are not. In each cell: how often it is called better; in brackets what
20 fixed seeds find; then the mean number of its seeds. An effect below the margin may also be called no difference
worth having, rightly.

| runs | arms | {effects} |
|---|---|{rules}
{powers}

## However seeds are added

One arm, compared by seed. Seeds outside the plan are judged by the test that is valid at any time. The last lines are,
for comparison, the same exact test at 5 % asked again and again.

| seeds | called better or worse without an effect | found at +0.5 | found at +1.0 |
|---|---|---|---|
{added}

Who begins with 8 seeds and then adds as many as the verdict says, up to four times, calls an arm without effect better
or worse in {advised_error}. With effects of a spread of 0.7 points the interval misses the truth in the end in
{advised_missed}. Of those who were told a number of seeds that decide with a chance of 80 %, {advised_kept} had a
decision with it.

## The chance that the plan decides

Foreseen at the first look, for effects of a spread of 0.7 points and one arm, and what came of it where the plan went
on in any case. It stops where the chance is below {futile:.0f} %.

| noise | foreseen | comparisons | mean foreseen | decided |
|---|---|---|---|---|
{foreseen}

## Other noise

One arm without an effect, the plan. *Heavy*: Student's t with 2 degrees of freedom; *skewed*: exponential; *rare*: one
run in ten strays nine times as far as the others; *spread*: four arms that change nothing but the spread, which is
twice that of `none`.

| noise | by seed, error | unpaired, error |
|---|---|---|
{noise}

## Equal parts, steps, or the largest difference

Half of the arms are better by 1 point, compared by seed at one look: how many of them are found, and in brackets how
often any other is called better or worse, each at the whole 5 %. *Equal parts* is what `regard` does, *steps* is Holm's
procedure, *largest* compares every arm with the largest of all under common flips.

| arms | seeds | equal parts | steps | largest |
|---|---|---|---|---|
{corrections}

{pages:,} pages a line without an effect and {few:,} with one; {minutes:.0f} minutes of one core. `python
benchmarks/calibration.py --folder runs/mine` prints the same for the noise of a comparison's own runs.
"""


def cell(share: float, count: int) -> str:
    """A share in percent with its simulation error."""
    return f"{100 * share:.1f} ± {100 * math.sqrt(max(share * (1 - share), 0.25 / count) / count):.1f}"


def render(found: dict[str, Any]) -> str:
    """The page; everything on it comes from the results."""
    pages, few, ways = found["pages"], max(found["pages"] // 4, 1), found["ways"]
    plan = {(row["way"], row["arms"], row["effect"]): row for row in found["plan"]}
    at20 = {(row["way"], row["arms"], row["effect"]): row for row in found["fixed"]}

    def named(row: dict[str, Any], key: str) -> str:
        return f"{cell(row[key], row['pages'])} ({counted(row['arms'], 'arm')}, {row['way']})"

    nulls: list[str] = []
    powers: list[str] = []
    for way, (tied, pairing) in ways.items():
        kind = f"{way} (correlation {tied:.2g}, {'by seed' if pairing == 'seeds' else 'unpaired'})"
        for arms in ARMS:
            row, whole = plan[way, arms, 0.0], at20[way, arms, 0.0]
            shares = [cell(row[key], row["pages"]) for key in ("wrong", "joint", "same")]
            counts = [f"{row['seeds']:.1f}", f"{row['runs']:.0f}", f"{whole['runs']:.0f}"]
            nulls.append(f"| {kind} | {arms} | {' | '.join([*shares, *counts])} |")
            cells = []
            for effect in EFFECTS[1:]:
                row, beside = plan[way, arms, effect], at20.get((way, arms, effect))
                fixed_power = f" ({100 * beside['found']:.0f})" if beside else ""
                cells.append(f"{cell(row['found'], row['pages'])}{fixed_power}, {row['seeds']:.1f}")
            powers.append(f"| {way} | {arms} | {' | '.join(cells)} |")
    one = plan[next(iter(ways)), 1, 0.0]
    null, mixed = found["advised"]["0.0"], found["advised"]["0.7"]
    return PAGE_TEXT.format(
        sd=100 * found["sd"],
        looks=", ".join(map(str, one["looks"])),
        worst=named(max((r for r in found["plan"] if not r["effect"]), key=lambda r: r["wrong"]), "wrong"),
        null_seeds=one["seeds"],
        first=one["way"],
        null_same=cell(one["same"], pages),
        joint=named(min(found["plan"], key=lambda r: r["joint"]), "joint"),
        wrongly=named(max((r for r in found["plan"] if r["effect"] == 1), key=lambda r: r["same"]), "same"),
        nulls="\n".join(nulls),
        effects=" | ".join(f"+{effect:g}" for effect in EFFECTS[1:]),
        rules="---|" * len(EFFECTS[1:]),
        powers="\n".join(powers),
        added="\n".join(
            f"| {name} | " + " | ".join(cell(shares[name], 2 * pages) for shares in found["added"].values()) + " |"
            for name in found["added"]["0.0"]
        ),
        advised_error=cell(null["called"], null["pages"]),
        advised_missed=cell(mixed["missed"], mixed["pages"]),
        advised_kept=cell(mixed["kept"], max(mixed["told"], 1)),
        futile=100 * FUTILE,
        foreseen="\n".join(
            f"| sd {row['sd']:.2g} | {100 * row['low']:.0f} to {100 * row['high']:.0f} | {row['comparisons']} | "
            f"{100 * row['said']:.0f} | {cell(row['decided'], row['comparisons'])} |"
            for row in found["foreseen"]
        ),
        noise="\n".join(
            f"| {kind} | "
            + " | ".join(cell(found["noise"][f"{kind}, {p}"], 2 * pages) for p in ("seeds", "none"))
            + " |"
            for kind in NOISES
        ),
        corrections="\n".join(
            f"| {row['arms']} | {row['seeds']} | "
            + " | ".join(f"{100 * row[name][0]:.0f} ({100 * row[name][1]:.1f})" for name in CORRECTIONS)
            + " |"
            for row in found["corrections"]
        ),
        pages=pages,
        few=few,
        minutes=found["seconds"] / 60,
    )


def recorded(folder: Path) -> tuple[float, dict[str, tuple[float, str]]]:
    """The spread of one arm in a comparison's folder, and how its runs of one seed hang together with those of none."""
    from regard.comparison.results import Comparison

    comparison = Comparison.load(folder)
    scores = comparison.scores
    spreads: list[float] = []
    correlations: list[float] = []
    for arm, runs in scores.items():
        spreads += [np.std(list(runs.values()), ddof=1)] if len(runs) > 2 else []
        both = sorted(runs.keys() & scores["none"].keys()) if arm != "none" else []
        if len(both) > 2:
            correlations.append(np.corrcoef([runs[s] for s in both], [scores["none"][s] for s in both])[0, 1])
    tied = float(np.clip(np.mean(correlations), 0, 0.99)) if correlations else 0.0
    pairing = comparison.plan.pairing
    return float(np.sqrt(np.mean(np.square(spreads)))), {f"as in {folder.name}": (tied, pairing)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=2000, help="simulated pages of a line without an effect")
    parser.add_argument("--folder", type=Path, help="take the noise of this comparison, and print instead of writing")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    if asked.folder:
        sd, ways = recorded(asked.folder)
        print(render(measure(asked.pages, sd, ways)))
        return
    if not asked.page:
        write_text(RESULTS, json.dumps(measure(asked.pages, SD, WAYS), indent=1) + "\n")
    print(write_text(PAGE, render(json.loads(RESULTS.read_text()))))


if __name__ == "__main__":
    main()
