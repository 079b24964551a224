"""The answer for people: one HTML file that opens anywhere, without a network and without a script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from regard.base.files import write_text
from regard.comparison import report_charts as charts
from regard.comparison import report_maps as maps
from regard.comparison import report_tables as tables
from regard.comparison.arms import PARAMETERS, WIDER
from regard.comparison.question import Question
from regard.comparison.results import UNTRAINED, Comparison
from regard.comparison.verdict import Verdict
from regard.comparison.wording import counted, typeset

TITLES = {
    "better by more than the margin": "Better than none by more than the margin",
    "better": "Better than none",
    "better, by less than matters": "Better than none, by less than matters",
    "worse by more than the margin": "Worse than none by more than the margin",
    "worse": "Worse than none",
    "worse, by less than matters": "Worse than none, by less than matters",
    "no difference worth having": "No difference worth having",
    "undecided": "Undecided",
}
# the widened networks: how wide they are, and what a mechanism spends instead
CONTROLS = {
    WIDER: {"how": "so many that a training step takes as long as that of the most expensive variant", "spent": "cost"},
    PARAMETERS: {
        "how": "so many that it has at least as many parameters as the variant that has most",
        "spent": "number of parameters",
    },
}
SIGNS = {"better": "▲", "worse": "▼", "equal": "=", "undecided": "?"}


def write(comparison: Comparison) -> Path:
    """Write `report.html` into the comparison's folder, whole or not at all, and return its path."""
    html = _template().render(
        comparison=comparison,
        question=comparison.question,
        headline=headline(comparison.against("none")) if comparison.trained else UNTRAINED,
        signs=SIGNS,
        differences=[tables.difference(comparison, verdict) for verdict in comparison.against("none")],
        base=tables.accuracy(comparison, "none"),
        forest=charts.forest(comparison.against("none"), comparison.question.margin, "none"),
        controls=[_control(comparison, name) for name in CONTROLS if comparison.against(name)],
        scatter=charts.costs(comparison, "costs"),
        prices=tables.prices(comparison),
        curves=charts.curves(comparison),
        gates=tables.gates(comparison),
        costs=[(row["arm"], row["inference"], row["training step"]) for row in comparison.price_table()[1:]],
        endpoints=tables.endpoints(comparison),
        classes=tables.classes(comparison),
        galleries=[
            gallery
            for arm in comparison.arms
            if (gallery := maps.gallery(comparison.folder, arm, len(comparison.question.classes)))
        ],
        facts=facts(comparison.question),
        environment=environment(comparison),
        counted=counted,
        signed=typeset,
    )
    return write_text(comparison.folder / "report.html", html)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html.jinja")


def _breakable(arm: str) -> Markup:
    """The name of an arm, which a narrow column may break before an option and its value."""
    return Markup(re.sub(r"([\[,])", r"\1<wbr>", str(escape(arm))))


def _control(comparison: Comparison, name: str) -> dict[str, Any]:
    """What is said of every mechanism beside a widened network."""
    verdicts = comparison.against(name)
    return CONTROLS[name] | {
        "name": name,
        "rows": [tables.difference(comparison, verdict) for verdict in verdicts],
        "forest": charts.forest(verdicts, comparison.question.margin, name),
    }


def headline(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in one line: names while they are few, counts when they are many."""
    if all(verdict.word == "undecided" for verdict in verdicts):
        return "Undecided"
    parts = []
    for word, title in TITLES.items():
        arms = [verdict.arm for verdict in verdicts if verdict.word == word]
        names = ", ".join(arms) if len(verdicts) <= 4 else f"{len(arms)} of {len(verdicts)} variants"
        parts += [f"{title}: {names}."] if arms else []
    return " ".join(parts)


def facts(question: Question) -> dict[str, str]:
    """What every run had in common, in words a reader can compare."""
    facts = {}
    for key, value in question.to_json().items():
        if key in ("broken", "classes") or value is None or value is False:  # what was not asked for
            continue
        text = _fact(value)
        facts[key.replace("_", " ")] = text
    classes = question.classes
    facts["classes"] = f"{len(classes)}: {', '.join(classes[:20])}{', …' if len(classes) > 20 else ''}"
    return facts


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_fact(inner)} for {name}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "yes" if value is True else f"{value:,}" if isinstance(value, int) else str(value)


def environment(comparison: Comparison) -> dict[str, str]:
    """Versions and machine; where runs were made in several, all of their values."""
    environments = [comparison.environment, *(run.get("environment") or {} for run in comparison.done)]
    keys = dict.fromkeys(key for environment in environments for key in environment)
    return {
        key: ", ".join(dict.fromkeys(str(each[key] or "none") for each in environments if key in each)) for key in keys
    }
