"""What the folder of a comparison says: its runs, scores, verdicts and costs, as text and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from regard.base import notebook
from regard.base.errors import UserError
from regard.base.files import write_text
from regard.base.tables import aligned
from regard.comparison import answers as logits_of
from regard.comparison import learning, notes, tables
from regard.comparison.answers import Answers
from regard.comparison.arms import twin
from regard.comparison.endpoints import Endpoints, churn, class_differences, endpoints
from regard.comparison.plan import Contrast, Plan, contrasts, fixed
from regard.comparison.question import Question
from regard.comparison.question_file import Stored
from regard.comparison.records import opened, read_cost, read_linear, read_run
from regard.comparison.wording import counted

if TYPE_CHECKING:
    from regard.comparison.verdict import Verdict

REPLACED = ("gate_images", "top1_own_gate", "top1_mean_gate", "top1_other_gate")
# what an arm's verdict against its constant twin says
INPUT = {
    "better": "uses its input",
    "equal": "a constant does the same",
    "worse": "a constant does better",
    "undecided": "undecided",
}
UNTRAINED = "Not trained long enough to tell"


class Second(NamedTuple):
    """The log-loss of an arm less that of another, in nats: mean over seeds, interval, corrected p, and in a word."""

    mean: float
    low: float
    high: float
    p: float
    word: Literal["lower", "higher", "undecided"]

    @property
    def bounded(self) -> bool:
        """Whether there are runs enough for an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True, repr=False)
class Comparison:
    """A comparison as its folder holds it, finished or not; printing it prints the answer.

    Attributes:
        folder: where it was read from.
        question: data, model, recipe and margin: the same for every run.
        asked: every time it was asked: arms, seeds, looks, command, and whether results had been seen by then.
        environment: versions and machine.
        records: (arm, seed) -> the record of that run, done or failed.
        cost: what each arm costs beside `none`, or None while that is not measured.
        fitted: what a linear model on the pixels reaches, or None where there is none yet.
    """

    folder: Path
    question: Question
    asked: list[dict[str, Any]]
    environment: dict[str, Any]
    records: dict[tuple[str, int], dict[str, Any]]
    cost: dict[str, Any] | None
    fitted: dict[str, Any] | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Read a comparison's folder.

        Raises:
            UserError: when the folder holds no comparison, or a file of it is damaged; the sentence names the field.
        """
        folder = Path(folder)
        if not (folder / "question.json").exists():
            raise UserError(f"{folder} holds no comparison (no question.json); name the folder a comparison wrote.")
        stored = Stored.read(folder)
        runs = [read_run(path) for path in sorted(folder.glob("runs/*/seed-*.json"))]
        return cls(
            folder=folder,
            question=stored.question,
            asked=stored.asked,
            environment=stored.environment,
            records={(run["arm"], run["seed"]): run for run in runs},
            cost=read_cost(folder),
            fitted=read_linear(folder),
        )

    @property
    def arms(self) -> list[str]:
        """The arms in the order they were asked, `none` first."""
        return list(dict.fromkeys(["none", *(arm for entry in self.asked for arm in entry["arms"])]))

    @property
    def contrasts(self) -> list[Contrast]:
        """Everything that is judged: (arm, the arm it is compared with)."""
        return contrasts(self.arms)

    @cached_property
    def plan(self) -> Plan:
        """What was fixed before any result was seen: by the last time that it was asked until then."""
        before = self._before
        seeds = tuple(dict.fromkeys(seed for entry in before for seed in entry["seeds"]))
        plan = self._plan(before[-1])
        return plan if set(plan.seeds) == set(seeds) else fixed(seeds, plan.pairing)

    @cached_property
    def late(self) -> dict[str, Plan]:
        """The arms that were first asked for when results had been seen, each with its own plan, in order."""
        known = {"none", *(arm for entry in self._before for arm in entry["arms"])}
        late: dict[str, Plan] = {}
        for entry in self.asked:
            late |= {arm: self._plan(entry) for arm in entry["arms"] if arm not in known and arm not in late}
        return late

    @property
    def _before(self) -> list[dict[str, Any]]:
        return [entry for entry in self.asked if not entry["seen"]] or self.asked[:1]

    def _plan(self, entry: dict[str, Any]) -> Plan:
        seeds, pairing = tuple(entry["seeds"]), self.question.pairing
        looks = tuple(entry.get("looks") or (len(seeds),))
        return Plan(seeds, looks, pairing, tuple(entry.get("base") or ()))

    @cached_property
    def foreseen(self) -> set[tuple[str, int]]:
        """(arm, seed) of every run that was asked, also of those that the plan may never need."""
        return {(arm, seed) for entry in self.asked for arm in ["none", *entry["arms"]] for seed in entry["seeds"]}

    @cached_property
    def wanted(self) -> list[tuple[str, int]]:
        """(arm, seed) of every run that is asked by now, seed by seed: until the next look of the plan, if it has one.

        Seeds and arms that were added later by number are wanted in full.
        """
        from regard.comparison.statistics import runs_needed

        pairs = runs_needed(self.scores, self.plan, contrasts=self.contrasts, **self._judging) & self.foreseen
        for entry in self.asked:
            staged = len(entry.get("looks") or ()) > 1
            if staged and not entry["seen"]:
                continue
            for arm in ["none", *entry["arms"]]:
                known = set(self.late.get(arm, self.plan).seeds) if staged else set()
                if not staged or self.late.get(arm) != self._plan(entry):
                    pairs |= {(arm, seed) for seed in entry["seeds"] if seed not in known}
        return [
            (arm, seed) for seed in sorted({seed for _, seed in pairs}) for arm in self.arms if (arm, seed) in pairs
        ]

    @property
    def _judging(self) -> dict[str, Any]:
        """What the verdicts need beside the scores: a run that was not asked, or failed, is waited for by no look."""
        failed = {(run["arm"], run["seed"]) for run in self.failed}
        seeds = {seed for plan in (self.plan, *self.late.values()) for seed in plan.seeds}
        absent = {(arm, seed) for arm in self.arms for seed in seeds} - self.foreseen
        return {"margin": self.question.margin, "failed": failed | absent, "late": self.late}

    @property
    def seeds(self) -> list[int]:
        """Every seed that is asked by now, in order."""
        return sorted({seed for _, seed in self.wanted})

    @property
    def done(self) -> list[dict[str, Any]]:
        """The records of the runs that finished."""
        return [run for run in self.records.values() if run["status"] == "done"]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The records of the runs that failed, each with its reason."""
        return [run for run in self.records.values() if run["status"] == "failed"]

    @property
    def missing(self) -> list[tuple[str, int]]:
        """(arm, seed) of every run that was asked and has no record yet."""
        return [run for run in self.wanted if run not in self.records]

    @property
    def scores(self) -> dict[str, dict[int, float]]:
        """arm -> seed -> top-1 accuracy on the test images, a fraction; of runs that finished, in the order asked."""
        return self._scores("top1")

    @property
    def top5(self) -> dict[str, dict[int, float]]:
        """The same for the true class among the first five guesses; empty where there are fewer than ten classes."""
        return self._scores("top5")

    @property
    def log_loss(self) -> dict[str, dict[int, float]]:
        """The same for the log-loss on the test images, in nats: the second endpoint, which less is better of."""
        return self._scores("log_loss")

    def _scores(self, kind: str) -> dict[str, dict[int, float]]:
        scores: dict[str, dict[int, float]] = {arm: {} for arm in self.arms}
        place = {seed: number for number, seed in enumerate(dict.fromkeys(s for e in self.asked for s in e["seeds"]))}
        for run in sorted(self.done, key=lambda run: place.get(run["seed"], len(place))):
            if run.get(kind) is not None:
                scores.setdefault(run["arm"], {})[run["seed"]] = run[kind]
        return scores

    @property
    def linear(self) -> float | None:
        """The accuracy of a linear model on the pixels, on the first seed's test images; None in older folders."""
        return self.fitted["top1"] if self.fitted else None

    @property
    def chance(self) -> float | None:
        """The share of the largest class among the test images; None in older folders."""
        return self.fitted["chance"] if self.fitted else None

    @cached_property
    def untrained_because(self) -> list[str]:
        """Why `none` has not learnt enough for a difference to mean something, a sentence each; empty when it has."""
        accuracies, margin = list(self.scores["none"].values()), self.question.margin
        curves = [[epoch["val_top1"] for epoch in run["curve"]] for run in self.done if run["arm"] == "none"]
        found = [learning.still_climbing(curves, margin, self.chance or 0.0)]
        if self.fitted:
            linear, chance, tested = (self.fitted[name] for name in ("top1", "chance", "test_images"))
            nothing = learning.near_chance(accuracies, chance, tested, margin)
            found = [nothing or learning.below_linear(accuracies, linear, tested), *found]
        return [sentence for sentence in found if sentence]

    @property
    def trained(self) -> bool:
        """Whether nothing speaks against judging: `untrained_because` says what does."""
        return not self.untrained_because

    def answers(self, arm: str, seed: int) -> tuple[Answers, Answers]:
        """What a run answered on the validation and on the test images, read from its file.

        Raises:
            UserError: no such run has finished, or its logits were not kept or are damaged.
        """
        run = self.records.get((arm, seed), {})
        if "logits_sha256" not in run:
            raise UserError(f"no logits of {arm}, seed {seed}, were kept: ask for a run that finished")
        images = self.question.val_images + self.question.test_images
        path = logits_of.path_of(self.folder, arm, seed)
        return logits_of.read(path, run["logits_sha256"], images, len(self.question.classes))

    @cached_property
    def _endpoints(self) -> tuple[dict[tuple[str, int], Endpoints], list[str]]:
        """By (arm, seed) what is computed of its logits on the test images, and a note for each file that is lost."""
        found, notes = {}, []
        for run in self.done:
            if "logits_sha256" in run:
                try:
                    found[run["arm"], run["seed"]] = endpoints(self.answers(run["arm"], run["seed"])[1])
                except UserError as error:
                    notes.append(f"No logits of {run['arm']}, seed {run['seed']}: {error}.")
        return found, notes

    @property
    def calibration(self) -> dict[str, dict[int, float]]:
        """arm -> seed -> expected calibration error on the test images, a fraction, in 15 bins."""
        found = self._endpoints[0]
        return {arm: {seed: one.calibration for (a, seed), one in found.items() if a == arm} for arm in self.arms}

    @property
    def churn(self) -> dict[str, dict[str, float]]:
        """arm -> ``"seeds"`` and ``"none"`` -> the share of test images whose first guess differs.

        Between one seed and the next of the same arm, and from `none` with the same seed; means over pairs. What has no
        pair is missing.
        """
        found, result = self._endpoints[0], {}
        for arm in self.arms:
            seeds = [seed for seed in self.seeds if (arm, seed) in found]
            pairs = {
                "seeds": [((arm, a), (arm, b)) for a, b in pairwise(seeds)],
                "none": [((arm, a), ("none", a)) for a in seeds if arm != "none" and ("none", a) in found],
            }
            shares = {name: [churn(found[a], found[b]) for a, b in both] for name, both in pairs.items()}
            known = {name: [share for share in all_of if math.isfinite(share)] for name, all_of in shares.items()}
            result[arm] = {name: fmean(all_of) for name, all_of in known.items() if all_of}
        return result

    @property
    def by_class(self) -> dict[str, list[float | None]]:
        """arm -> for each class, what its accuracy is above that of `none`, a fraction: the mean over their seeds."""
        found = self._endpoints[0]
        pairs = {
            arm: [
                (found[arm, seed], found["none", seed])
                for seed in self.seeds
                if {(arm, seed), ("none", seed)} <= found.keys()
            ]
            for arm in self.arms
            if arm != "none"
        }
        return {arm: class_differences(both) for arm, both in pairs.items() if both}

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Every arm judged against `none`, every mechanism against the controls `wider` and `parameters` where they
        were run, and every arm that has a constant twin against that."""
        from regard.comparison.statistics import judge  # scipy takes a second to load, and few questions need it

        return judge(self.scores, self.plan, contrasts=self.contrasts, **self._judging)

    @property
    def twins(self) -> dict[str, str]:
        """arm -> its constant twin, for every arm that has one."""
        arms = self.arms
        return {arm: twin(arm) for arm in arms if twin(arm) in arms}

    @property
    def uses_input(self) -> dict[str, str]:
        """arm -> what its verdict against its constant twin says: ``"uses its input"``, ``"a constant does the same"``,
        ``"a constant does better"``, or ``"undecided"``."""
        return {arm: INPUT[verdict.direction] for arm, other in self.twins.items() for verdict in self.against(other)}

    @cached_property
    def gates(self) -> dict[str, dict[str, Any]]:
        """arm -> what its gates did, the mean over its finished runs, None where the records do not tell.

        ``branch_scale``: by how much the mechanisms multiplied their maps at the start, a root mean square, over all
        sites; ``opened``: whether a gate opened in any run, see `opened`; ``mean_gate`` and ``other_gate``: what the
        accuracy on ``images`` test images loses, as a fraction, with every gate replaced by its mean over training
        images, or by that of another image.
        """
        told = {}
        for arm in self.arms:
            runs = [run for run in self.done if run["arm"] == arm]
            scales = [scale for run in runs for scale in run.get("branch_scale", {}).values() if scale is not None]
            seen = [word for run in runs if (word := opened(run.get("gates", []))) is not None]
            asked = [run for run in runs if all(run.get(field) is not None for field in REPLACED)]
            lost = {
                f"{word}_gate": fmean(run["top1_own_gate"] - run[f"top1_{word}_gate"] for run in asked)
                if asked
                else None
                for word in ("mean", "other")
            }
            if scales or seen or asked:
                told[arm] = {
                    "branch_scale": fmean(scales) if scales else None,
                    "opened": any(seen) if seen else None,
                    **lost,
                    "images": asked[0]["gate_images"] if asked else 0,
                }
        return told

    @cached_property
    def log_loss_against_none(self) -> dict[str, Second]:
        """arm -> what the log-loss says of it beside `none`: the second endpoint, which no verdict is taken from."""
        return {arm: second for (arm, against), second in self._log_loss_verdicts.items() if against == "none"}

    @property
    def log_loss_against_constant(self) -> dict[str, Second]:
        """arm -> the same beside its constant twin."""
        told, twins = self._log_loss_verdicts, self.twins
        return {arm: told[arm, twins[arm]] for arm in twins if (arm, twins[arm]) in told}

    @cached_property
    def _log_loss_verdicts(self) -> dict[Contrast, Second]:
        """By the plan of the accuracies, with an error rate of their own."""
        from regard.comparison.statistics import judge

        losses = self.log_loss
        scale = max([1.0, *(loss for runs in losses.values() for loss in runs.values())])
        shares = {arm: {seed: 1 - loss / scale for seed, loss in runs.items()} for arm, runs in losses.items()}
        words: dict[str, Any] = {"better": "lower", "worse": "higher"}
        return {
            (v.arm, v.against): Second(
                -scale * v.mean, -scale * v.high, -scale * v.low, v.p, words.get(v.direction, "undecided")
            )
            for v in judge(shares, self.plan, contrasts=self.contrasts, **self._judging | {"margin": 0.0})
            if v.seeds
        }

    def against(self, arm: str) -> list[Verdict]:
        """The verdicts against one arm: `none`, a control, or a constant twin."""
        return [verdict for verdict in self.verdicts if verdict.against == arm]

    @property
    def added_after_looking(self) -> tuple[list[str], list[int]]:
        """The arms and the seeds that were first asked for when results had already been seen."""
        arms: dict[str, bool] = {"none": False}
        seeds: dict[int, bool] = {}
        for entry in self.asked:
            for arm in entry["arms"]:
                arms.setdefault(arm, entry["seen"])
            for seed in entry["seeds"]:
                seeds.setdefault(seed, entry["seen"])
        return [arm for arm, late in arms.items() if late], [seed for seed, late in seeds.items() if late]

    @property
    def plan_in_words(self) -> str:
        """What was planned before any result was seen, and how the comparisons share one error rate."""
        looks, base = ([str(count) for count in counts] for counts in (self.plan.looks, self.plan.base))
        when = f"{', '.join(looks[:-1])} and {looks[-1]}" if len(looks) > 1 else looks[0]
        more = f" ({', '.join(base)} of none, which serves all variants)" if base else ""
        stop = "; a comparison stops where it is decided or would hardly be decided any more" if len(looks) > 1 else ""
        how = {"seeds": "run by run of the same seed", "none": "as two groups of runs, since seeds do not tie them"}
        family = counted(len(self.contrasts), "comparison")
        return (
            f"Planned before looking: a verdict at {when} seeds{more}{stop}. Variants are compared "
            f"{how[self.plan.pairing]}. All intervals of accuracy hold together with 95 %: the chance that any of "
            f"{family} is called better or worse and is not, at any look, is 5 % at most. Each p is corrected for that."
        )

    @property
    def added_in_words(self) -> str:
        """``2 seeds (8, 9) and 1 variant (se)``: what joined after results had been seen; empty when nothing did."""
        arms, seeds = self.added_after_looking
        added = [([str(seed) for seed in seeds], "seed"), (arms, "variant")]
        return " and ".join(f"{counted(len(new), noun)} ({', '.join(new)})" for new, noun in added if new)

    def table(self) -> list[dict[str, str]]:
        """One row for each arm: column -> text. Accuracies in percent, differences in percentage points."""
        return tables.arm_rows(self)

    def price_table(self) -> list[dict[str, str]]:
        """What each arm costs, one row each: column -> text; times and memory as multiples of those of `none`."""
        return tables.price_rows(self)

    @property
    def findings(self) -> list[str]:
        """The answer, one sentence for each arm; where the network has not learnt, that alone, and what to change."""
        if self.untrained_because:
            return [f"{UNTRAINED}.", *(sentence[0].upper() + sentence[1:] for sentence in self.untrained_because)]
        return [verdict.sentence for verdict in self.verdicts]

    def notes(self) -> list[str]:
        """What a reader must know before believing the table, one sentence each; empty when nothing went wrong."""
        return notes.notes(self, self._endpoints[1], self._log_loss_verdicts)

    def to_json(self) -> dict[str, Any]:
        """The whole answer in plain types, as `result.json` holds it; what is not a finite number is null."""
        return tables.as_json(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each run that finished or failed, seed by seed: its record without what is nested.

        Accuracies are fractions, log-loss is in nats, seconds are of the whole training; None is what is not known.
        """
        return tables.run_rows(self)

    def frame(self) -> Any:
        """`rows` as a pandas DataFrame; as they are where pandas is not installed."""
        try:
            import pandas
        except ModuleNotFoundError:
            return self.rows()
        return pandas.DataFrame(self.rows(), columns=list(tables.COLUMNS))

    def csv(self) -> str:
        """`rows` as comma-separated values under their names, every number in full."""
        return tables.as_csv(self)

    def save(self) -> Path:
        """Write `result.json` into the folder, whole or not at all."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_text(self.folder / "result.json", text + "\n")

    @property
    def _title(self) -> str:
        question = self.question
        trunk = ", frozen trunk" if question.trunk == "frozen" else ""
        title = f"{question.data}, {question.model}{trunk}, {question.size} px, {counted(question.epochs, 'epoch')}"
        return f"{title}: top-1 accuracy on {question.test_images:,} test images"

    def _repr_html_(self) -> str:
        """For notebooks: what printing shows."""
        told = [notebook.paragraph(self._title), notebook.points(self.findings), notebook.table(self.table())]
        return "".join([*told, notebook.table(self.price_table()), notebook.points(self.notes())])

    def __repr__(self) -> str:
        lines = [self._title, ""]
        lines += _aligned(self.table())
        if prices := self.price_table():
            lines += ["", *_aligned(prices)]
        lines += ["", *self.findings]
        lines += ["", *self.notes()] if self.notes() else []
        return "\n".join(lines)


def _aligned(rows: list[dict[str, str]]) -> list[str]:
    """The rows as lines of text under their column names, numbers to the right; columns without a word are left out."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    table = [columns, *([row[column] for column in columns] for row in rows)]
    return aligned(table, right={number for number, column in enumerate(columns) if column not in ("arm", "verdict")})
