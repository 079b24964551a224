"""docs/evidence.md: does attention help, and does it look? Written by `make evidence`.

Usage: python benchmarks/evidence.py [--only TABLE ...] [--page]

Each table is one comparison, kept in runs/evidence: interrupted in any way, the same command goes on. What is finished
is also packed into benchmarks/results/evidence, from which a fresh clone goes on; logits and weights are left out. All
tables take some hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import regard
from regard.base.files import write_text
from regard.comparison.arms import CONSTANT, twinned
from regard.comparison.plan import LOOKS
from regard.comparison.results import Comparison
from regard.comparison.wording import counted, interval, points
from regard.registry.named import Named

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "evidence", ROOT / "docs" / "evidence.md"
RUNS = ROOT / "runs" / "evidence"
KEPT = ("question.json", "linear.json", "cost.json", "result.json", "runs/*/seed-*.json", "trials/*/runs/*/seed-*.json")
TUNE = 5


class Table(NamedTuple):
    """One comparison: what it asks in words, on which images, of which arms."""

    title: str
    data: str
    arms: list[str]


TABLES = {
    "squeeze": Table(
        "How to squeeze: the average, the maximum, or both",
        "fashion",
        ["cbam[arrangement=channel,squeeze=avg]", "cbam[arrangement=channel,squeeze=max]", "cbam[arrangement=channel]"],
    ),
    "arrangement": Table(
        "Which order: channels alone, channels then pixels, pixels then channels, side by side",
        "fashion",
        [
            "cbam[arrangement=channel]",
            "cbam",
            "cbam[arrangement=spatial-channel]",
            "cbam[arrangement=parallel]",
        ],
    ),
    "gates": Table(
        "The field's mechanisms, images of one centred thing",
        "fashion",
        [
            "se", "eca", "cbam", "bam", "coordinate", "sge", "simam", "triplet", "gc", "shuffle", "srm", "gct", "scse",
            "ge", "polarized", "non_local",
        ],
    ),
    "places": Table(
        "Those that look at places, and SE: a small thing somewhere among others",
        "cluttered",
        ["se", "cbam", "coordinate", "sge", "gc", "non_local"],
    ),
}  # fmt: skip

# what is published: top-1 accuracy or error on ImageNet, one run of each unless said
CBAM_PAPER = {
    "squeeze": ["ResNet-50 24.56", "average (SE) 23.14", "maximum 23.20", "both 22.80"],
    "arrangement": ["channels alone 23.14", "channels, pixels 22.66", "pixels, channels 22.78", "side by side 22.95"],
}
TIMM = [
    ("ResNet-50, SE", "A1, 600 epochs", "-0.37"),
    ("ResNet-50, SE", "A2, 300 epochs", "+0.27"),
    ("ResNet-50, SE", "A3, 100 epochs", "-1.02"),
    ("ResNet-33-ts, SE", "RA2", "+1.16"),
    ("ResNet-33-ts, GC", "RA2", "+0.86"),
    ("ResNet-26-t, ECA", "RA2", "+1.02"),
    ("ResNet-152-d, SE", "RA2", "+0.54"),
    ("ResNeXt-50, SE", "Gluon", "+0.56"),
    ("ResNeXt-101 (32), SE", "Gluon", "+0.55"),
    ("ResNeXt-101 (64), SE", "Gluon", "+0.24"),
    ("ResNeXt-50, SK", "RA", "+0.37"),
    ("MnasNet, SE", "RMSProp", "+0.78"),
]


def ask(name: str) -> Comparison:
    """Run one table's comparison, or go on with it, and pack what it has recorded."""
    folder = RUNS / name
    packed = RESULTS / f"{name}.json"
    if packed.exists() and not folder.exists():
        unpack(packed, folder)
    table = TABLES[name]
    try:
        return regard.compare(
            table.arms, data=table.data, epochs="auto", tune=TUNE, control=CONSTANT, keep="none", out=folder
        )
    finally:
        pack(folder, packed)


def pack(folder: Path, packed: Path) -> None:
    """Write the records of a comparison into one file, without what tells of the machine's folders and kernel."""
    held = {
        path.relative_to(folder).as_posix(): _public(json.loads(path.read_text().replace(f"{ROOT}/", "")))
        for pattern in KEPT
        for path in sorted(folder.glob(pattern))
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(content)}" for name, content in held.items())
    write_text(packed, f"{{\n{lines}\n}}\n")


def _public(content: dict[str, Any]) -> dict[str, Any]:
    if "system" in content.get("environment", {}):
        content["environment"]["system"] = content["environment"]["system"].partition("-")[0]
    return content


def unpack(packed: Path, folder: Path) -> None:
    """Lay out a comparison's folder again, without images, logits and weights."""
    for name, content in json.loads(packed.read_text()).items():
        write_text(folder / name, json.dumps(content, indent=1))


# ---- the page


def load() -> dict[str, Comparison]:
    """Every table whose plan has ended; one that was interrupted waits for the rest."""
    found = {}
    for name in TABLES:
        if (RESULTS / f"{name}.json").exists():
            with tempfile.TemporaryDirectory() as place:
                unpack(RESULTS / f"{name}.json", Path(place))
                comparison = Comparison.load(place)
            if not comparison.missing:
                found[name] = comparison
    return found


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """What is known of each arm: its verdicts against `none` and against its constant twin."""
    told = []
    for arm in comparison.arms:
        scores = list(comparison.scores[arm].values())
        if twinned(arm) or not scores:
            continue
        verdicts = {verdict.against: verdict for verdict in comparison.verdicts if verdict.arm == arm}
        none = verdicts.get("none")
        twin = verdicts.get(comparison.twins.get(arm, ""))
        told.append(
            {
                "arm": arm,
                "runs": len(scores),
                "accuracy": fmean(scores),
                "none": none,
                "twin": twin,
                "word": none.word if none else "",
                "input": comparison.uses_input.get(arm, "has no constant" if arm != "none" else ""),
                "rate": (comparison.question.rates or {}).get(arm, 1.0),
                "step": (comparison.cost or {"arms": {}})["arms"].get(arm, {}).get("train_ratio", (0, math.nan, 0))[1],
            }
        )
    return told


def in_short(comparisons: dict[str, Comparison]) -> str:
    """What all tables say together, in sentences; an arm that stands in several tables counts once, in the last."""
    if not comparisons:
        return "Nothing has been run yet: `make evidence`."
    last = {row["arm"]: row for one in comparisons.values() if one.trained for row in rows(one) if row["none"]}
    judged = list(last.values())
    families = {Named.read(arm).name for arm in last}
    pairs = [row for row in judged if row["twin"]]

    def count(word: str) -> int:
        return sum(row["word"].startswith(word) for row in judged)

    looks = sum(row["input"] == "uses its input" for row in pairs)
    same = sum(row["input"] == "a constant does the same" for row in pairs)
    largest = max((row["none"].mean for row in judged), default=math.nan)
    least = min((row["none"].mean for row in judged), default=math.nan)
    return (
        f"Of {counted(len(judged), 'variant')} of {counted(len(families), 'mechanism')} "
        f"{'(' + ', '.join(sorted(families)) + ') ' if len(families) < 4 else ''}"
        "that were judged on a small residual network trained from scratch, "
        f"{count('better')} did better than the network without, {count('worse')} did worse, for "
        f"{count('no difference')} there is no difference worth having, and {count('undecided')} are undecided; the "
        f"differences lie between {points(least)} and {points(largest)} points. Beside a constant in the place of its "
        f"gates, {looks} of {len(pairs)} used the input, and for {same} a constant does the same."
    )


def render(comparisons: dict[str, Comparison]) -> str:
    sections = [section(name, comparison) for name, comparison in comparisons.items()]
    left = [TABLES[name].title.partition(":")[0].lower() for name in TABLES if name not in comparisons]
    missing = f"\n\nStill to be run: {'; '.join(left)}." if left else ""
    published = "\n".join(f"| {network} | {recipe} | {difference} |" for network, recipe, difference in TIMM)
    return f"""# Does attention help?

**{in_short(comparisons)}**{missing}

This is one small network on small images, and no proof about ImageNet. It is what anybody can run again: `make
evidence`. Every arm has the same images, order and starting weights of the trunk; its gates start so that no branch is
shrunk (`start="scaled"`); as many epochs as the network without attention needs until it hardly improves (`--epochs
auto`); and the best of {TUNE} learning rates on validation images, each arm with the same number of tries (`--tune
{TUNE}`). The seeds follow a plan: {", ".join(map(str, LOOKS[:-1]))} or {LOOKS[-1]}, and a comparison stops where it is
decided or would hardly be decided any more. The intervals of one table hold together with 95 %. [How such verdicts were
checked](calibration.md).

A **constant** is the same mechanism with each gate replaced by numbers that learn and ignore the image: what is left of
the difference to it is what looking is worth.

{chr(10).join(sections)}
## What is published

The ablations of the CBAM paper (Woo et al. 2018, tables 1 and 3), top-1 error of ResNet-50 on ImageNet in percent, one
run each: {"; ".join(CBAM_PAPER["squeeze"])}. Of the order: {"; ".join(CBAM_PAPER["arrangement"])}.

timm's own networks, same recipe with and without, top-1 accuracy on ImageNet, one run each, in points; for the recipe
A2 its authors trained 100 seeds and found a standard deviation of 0.1 (arXiv 2110.00476), so that 0.3 is two standard
deviations of a difference.

| network, mechanism | recipe | difference |
|---|---|---|
{published}

"Stripe Observation Guided Inference Cost-free Attention" (ECCV 2024, arXiv 2304.06345) reports that channel gates
approach constants in training, from one run each; the columns "against its constant" test that.
"""


def section(name: str, comparison: Comparison) -> str:
    question, table = comparison.question, TABLES[name]
    lines = [
        "| arm | runs | accuracy % | against none | verdict | against its constant | uses its input? | learning rate | "
        "training step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(comparison):
        cells = [f"`{row['arm']}`", str(row["runs"]), f"{100 * row['accuracy']:.2f}"]
        cells += [f"{points(row['none'].mean)} {interval(row['none'])}" if row["none"] else "", row["word"]]
        cells += [f"{points(row['twin'].mean)} {interval(row['twin'])}" if row["twin"] else "", row["input"]]
        cells += [f"x {row['rate']:g}", f"{row['step']:.2f}x" if math.isfinite(row["step"]) else ""]
        lines.append(f"| {' | '.join(cells)} |")
    unsure = "" if comparison.trained else f"\n\n{' '.join(comparison.findings)}"
    left = len(comparison.missing)
    rest = f" {counted(left, 'run')} of the plan still missing." if left else ""
    return f"""## {table.title}

`{question.data}`, {question.model}, {question.size} px, {counted(question.epochs, "epoch")},
{question.test_images:,} test images, margin {100 * question.margin:g}; points of accuracy with intervals, the
training step as a multiple of that of none.{rest}{unsure}

{chr(10).join(lines)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    asked = parser.parse_args()
    if not asked.page:
        for name in asked.only:
            print(ask(name))
            write_text(PAGE, render(load()))
    write_text(PAGE, render(load()))


if __name__ == "__main__":
    main()
