"""What is asked, and the whole way from a question to its answer."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from regard.base.errors import UserError, near
from regard.base.files import slug, write_text
from regard.base.process import refuse_nesting
from regard.comparison import data as images_of
from regard.comparison import grid, hosts, learning, linear, prices, report, training, trials
from regard.comparison.arms import CONSTANT, HOSTS, PARAMETERS, PLAIN, WIDER, controls, refuse_names, twin, twinned
from regard.comparison.asked import AUGMENTATIONS, OPTIMISERS, first_epochs, refuse_other
from regard.comparison.asked import question as asked_question
from regard.comparison.display import Display
from regard.comparison.folders import SIZES
from regard.comparison.folders import text as as_text
from regard.comparison.plan import LOOKS, Pairing, Plan, check_looks, fixed, planned
from regard.comparison.results import BEFORE, Comparison, counted, read_cost, read_linear, read_run
from regard.comparison.statistics import fewest_seeds
from regard.insertion.record import STARTS
from regard.layers.tap import taps
from regard.registry.building import create
from regard.registry.named import SMALL, Named
from regard.registry.registration import info
from regard.registry.spelling import parse, spell

KEPT = ("first", "all", "none")
TRUNKS = ("trained", "frozen")
PAIRINGS = ("seeds", "none")
MOST_SEEDS = 1000
FOUND = ("pairing", "epochs", "augmentation")  # by the images or by trials, where nobody says it


def compare(
    arms: str | Sequence[str],
    *,
    data: str | Path = "fashion",
    model: str = SMALL,
    seeds: int | Iterable[int] | Literal["auto"] = "auto",
    looks: Sequence[int] | None = None,
    pairing: Pairing | None = None,
    epochs: int | Literal["auto"] | None = None,
    size: int | None = None,
    batch: int | None = None,
    optimiser: str | None = None,
    learning_rate: float | None = None,
    tune: int = 0,
    augmentation: str | None = None,
    at: str | Sequence[str] = "auto",
    start: str | None = None,
    trunk: str = "trained",
    margin: float = 0.01,
    pretrained: bool = False,
    weights: str | Path | None = None,
    control: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    skip_broken: bool = False,
    keep: str = "first",
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Train a network with and without attention on the same images, and say whether it helps and what it costs.

    For one seed every arm has the same trunk weights, order of images and augmentations. ``none`` is always an arm.
    The test images are used once, at the end of each run. Interrupted in any way, the same call goes on where it was.
    A script that calls this needs ``if __name__ == "__main__":``, since worker processes import it.

    Args:
        arms: mechanisms with their options, e.g. ``["se", "cbam[squeeze=max,arrangement=parallel]"]``.
        data: ``"fashion"``, ``"cluttered"`` or a folder of class folders.
        model: ``"small_resnet"``, any name of timm, each with options (``"resnet18[zero_init_last=false]"``),
            ``"torchvision/NAME"``, or ``"file.py:function"`` for a network of your own. The function is told the
            numbers of classes and channels where it asks for ``num_classes`` and ``in_chans``; it returns a new network
            whenever it is called, with weights from torch's global generator. The text of the file is part of the
            question.
        seeds: ``"auto"``: as many as it takes: every arm is judged at each of the ``looks``, and goes on where that is
            open and seeds to come have a chance to decide. Or how many, counted from 0, or which. Seeds that are added
            after results were seen are judged by a test that allows for it.
        looks: after how many seeds to judge; 8, 12, 16 and 20 if not said. In a folder that has a plan, ``"auto"``
            without looks follows that.
        pairing: ``"seeds"``: runs of one seed are compared with each other; ``"none"``: an arm's runs with all runs of
            the other. By default the former where a seed ties its runs: from pretrained weights, with
            ``start="identity"``, and where the seed draws the test images; else the latter.
        epochs: of every run; 3 for fashion, 5 for cluttered, else 20, or 8 from pretrained weights. ``"auto"`` trains
            `none` on that many, then on half as many again, until the validation accuracy of two seeds rises by the
            margin or less in the last quarter.
        size: side of the images in pixels; by default that of the embedded images, of a model of timm or torchvision,
            or 64.
        batch: images in one step; 96 for the small host, else 128.
        optimiser: ``"muon"`` for the kernels of the host's convolutions, with AdamW for everything else, or
            ``"adamw"`` for all; the former for the small host from scratch, else the latter.
        learning_rate: of AdamW at its height, with which that of Muon moves; 4e-3 for the small host, else 1e-3; from
            pretrained weights 3e-4, or 1e-2 with a frozen trunk.
        tune: how many learning rates every arm is tried with, each half of the next; the one with the lowest log-loss
            on validation images is taken. 0 leaves all arms the same. At most 15.
        augmentation: ``"crops"``: each image is cropped and mirrored at random; ``"none"``: it is taken as it is, which
            is the default up to 3 epochs, in which every image is new.
        at: sites, see `regard.sites`; the mechanism's own placement otherwise.
        start: ``"scaled"``, the default from scratch: the authors' weights, every gate divided by its own mean over
            training images of the seed, so that no branch is shrunk; ``"identity"``, the default from pretrained
            weights: the network computes at first what it did without; ``"paper"``: as the authors start it.
        trunk: ``"trained"``: all weights learn; ``"frozen"``: the pretrained weights and the statistics of their norms
            stay as they are, only the classifier and what an arm adds learn, so that ``none`` is a linear probe.
        margin: a difference smaller than this fraction of the test images is not worth having.
        pretrained: start from timm's pretrained weights.
        weights: start from this checkpoint of the model (safetensors, or a plain state dict).
        control: one or several of ``"constant"``: for every arm with gates a twin ``constant[ARM]``, whose gates are
            constants that learn, or uniform weights, from the same start in the same places; ``"wider"``: the plain
            host, widened until a training step takes as long as that of the dearest arm; ``"parameters"``: the plain
            host, widened until it has at least as many parameters as the arm that has most.
        out: folder of the results; by default one below ``runs/`` that depends on the question alone.
        skip_broken: leave out images that cannot be read instead of refusing.
        keep: trained weights of the ``"first"`` seed, of ``"all"`` or of ``"none"``.
        workers: processes; by default one for each core, or one on a GPU.
        device: ``"cpu"``, ``"cuda"``; by default a GPU where there is one.
        progress: show what happens on standard error.

    Returns:
        The comparison; printing it prints the answer.

    Raises:
        UserError: anything wrong with the question, before any training.
        KeyboardInterrupt: after the workers were stopped.

    Example:
        >>> import regard
        >>> comparison = regard.compare(["se", "cbam"], data="photos/", seeds=8)  # doctest: +SKIP
        >>> print(comparison)  # doctest: +SKIP
    """
    refuse_nesting()
    chosen_controls = controls(control)
    asked = _arms(arms, chosen_controls)
    chosen = _seeds(seeds, looks, pairing)
    _check(
        model, epochs, batch, optimiser, learning_rate, tune, augmentation, margin, start, trunk, keep, workers, size,
        device,
    )  # fmt: skip
    starting = pretrained or weights is not None
    if trunk == "frozen" and not starting:
        raise UserError("a frozen trunk must have learnt something before: pass --pretrained or --weights FILE as well")
    wide = [control for control in chosen_controls if control in HOSTS]
    if wide and starting:
        raise UserError(
            f"the {wide[0]} control starts from no pretrained weights, so it would not be fair: leave it out"
        )
    question = asked_question(
        data=data, model=model, size=size, epochs=epochs, batch=batch, optimiser=optimiser,
        learning_rate=learning_rate, tune=tune, augmentation=augmentation, at=at, start=start, trunk=trunk,
        margin=margin, pairing=pairing, pretrained=pretrained, weights=weights, device=device,
    )  # fmt: skip
    question["size"] = size or hosts.image_size(model) or SIZES.get(str(data), 64)
    question["device"] = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(out) if out is not None else _default_folder(question)
    with Display(progress) as display, _alone(folder):
        # before its images would be replaced
        stored = refuse_other(folder, {k: v for k, v in question.items() if v is not None or k not in FOUND})
        images = images_of.prepare(
            data, folder / "data", size=question["size"], skip_broken=skip_broken, progress=display.reading
        )
        tied = starting or question["start"] == "identity" or images.varies == "the whole split"
        question["pairing"] = pairing or (stored["question"] if stored else {}).get(
            "pairing", "seeds" if tied else "none"
        )
        served = sum(not twinned(arm) for arm in asked)  # by the runs of `none`
        plan = _plan(folder, bool(stored), chosen, looks, served, question["pairing"])
        if question["epochs"] is None and stored:
            question |= {key: stored["question"][key] for key in ("epochs", "augmentation")}
        split = images.split(plan.seeds[0])
        question |= {
            "fingerprint": images.fingerprint,
            "classes": list(images.classes),
            "channels": images.pixels.shape[1],
            "normalisation": hosts.normalisation(model, images.pixels.shape[1]) if starting else None,
            "train_images": len(split.train),
            "val_images": len(split.val),
            "test_images": len(split.test),
            "split_varies": images.varies,
            "broken": [list(entry) for entry in images.broken],
        }
        for arm in (PLAIN, *asked):
            training.check_trainable(question | dict.fromkeys(training.WIDENINGS.values(), 1.5), arm)
        _drop_damaged(folder, display.say)

        def train(place: Path, question: dict[str, Any], runs: Sequence[grid.Run], among: int = 0) -> None:
            # by all runs, not by those that are left: with other threads the numbers would be others
            count, threads = grid.workers_for(question["device"], among or len(runs))
            count, threads = (workers, max(1, _cores() // workers)) if workers else (count, threads)
            grid.run(
                place,
                question,
                runs,
                workers=count,
                threads=threads,
                keep=lambda arm, seed: (
                    not question.get("trial") and (keep == "all" or (keep == "first" and seed == first))
                ),
                watch=display.watch,
                images=folder / "data",
            )

        def try_out(place: Path, question: dict[str, Any], runs: Sequence[grid.Run]) -> None:
            display.go(runs)
            train(place, question, runs)

        if question["epochs"] is None:
            question = trials.epochs(
                folder, question, first_epochs(data, starting), augmentation, plan.seeds, try_out, display.say
            )
        stored = _ask(folder, question, asked, plan)
        question = stored["question"]
        comparison = Comparison.load(folder)
        mechanisms = [arm for arm in comparison.arms if arm not in HOSTS and not twinned(arm)]
        least = fewest_seeds(len(comparison.contrasts), question["pairing"])
        if comparison.plan.looks[-1] < least:
            display.say(
                f"{counted(comparison.plan.looks[-1], 'seed')} can never show a difference: with "
                f"{counted(len(comparison.contrasts), 'comparison')} it takes {least} or more. The answer will be "
                f"'undecided'; --seeds {least} can do better."
            )
        if sentence := learning.one_image(question["test_images"], margin):
            display.say(sentence)
        if CONSTANT in chosen_controls:
            for arm in asked:
                if arm not in HOSTS and not twinned(arm) and twin(arm) not in asked:
                    display.say(f"{arm} has no gate that a constant could stand for, and gets no twin")
        if not _fitted(folder, question):
            display.say("Fitting a linear model to the pixels")
            fitted = linear.measure(images, plan.seeds[0], question["size"])
            write_text(folder / "linear.json", json.dumps(fitted, indent=1))
        for control, find in ((WIDER, prices.widening), (PARAMETERS, prices.widening_parameters)):
            key = training.WIDENINGS[control]
            if control in comparison.arms and question.get(key) is None:
                display.say(f"Measuring how wide the control {control} must be")
                question[key] = grid.call(find, question, mechanisms, threads=_cores())
                write_text(folder / "question.json", json.dumps(stored, indent=1))

        untuned = [arm for arm in comparison.arms if tune and arm not in (question["rates"] or {})]
        if untuned:
            found = trials.rates(folder, question, untuned, plan.seeds[0], try_out, display.say)
            question["rates"] = (question["rates"] or {}) | found
            write_text(folder / "question.json", json.dumps(stored, indent=1))
            comparison = Comparison.load(folder)

        first = comparison.seeds[0]
        tried: set[tuple[str, int]] = set()
        while True:
            runs = [
                run
                for run in comparison.wanted
                if run not in tried and comparison.records.get(run, {}).get("status") != "done"
            ]
            if tried and not runs:
                break
            display.start(comparison, question, again=bool(tried))
            train(folder, question, runs, among=len(comparison.foreseen))
            if not runs:
                break
            tried |= set(runs)
            comparison = Comparison.load(folder)
        priced = [arm for arm in comparison.arms if not twinned(arm)]  # a twin still computes what it drops
        if not _priced(folder, priced):
            display.say("Measuring what each arm costs")
            cost = grid.call(prices.measure, question, priced, threads=_cores())
            write_text(folder / "cost.json", json.dumps(cost, indent=1))
        comparison = Comparison.load(folder)
        comparison.save()
        report.write(comparison)
    return comparison


def _arms(arms: str | Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Every arm but `none`: the mechanisms as they are spelt, their twins, the controls."""
    asked: list[str] = []
    twins: list[str] = []
    for text in [arms] if isinstance(arms, str) else arms:
        refuse_names(text)
        name, options = parse(text)
        if name == PLAIN and not options:
            continue
        info(name)
        arm = spell(name, options)
        if len(twin(arm)) > 200:
            raise UserError(f"the arm {arm[:40]}... is longer than the name of a file may be: leave options out")
        try:
            module = create(name, info(name).try_channels, **options)
        except UserError:
            raise
        except Exception as error:  # whatever a mechanism makes of a value that it did not expect
            raise UserError(f"the arm {arm!r} cannot be built ({error}): see `regard info {name}`") from error
        if arm in asked:
            raise UserError(f"the arm {arm!r} is given twice: leave one out")
        asked.append(arm)
        if CONSTANT in chosen and any(taps(module)):
            twins.append(twin(arm))
    if not asked:
        raise UserError("no arm to compare: name at least one mechanism, such as se; `regard list` shows them")
    return [*asked, *twins, *(control for control in chosen if control in HOSTS)]


def _seeds(
    seeds: int | Iterable[int] | Literal["auto"], looks: Sequence[int] | None, pairing: str | None
) -> list[int] | None:
    """Which seeds, or None where the plan says it."""
    if pairing not in (None, *PAIRINGS):
        raise UserError(f"pairing is 'seeds' or 'none', got {pairing!r}")
    if seeds == "auto":
        check_looks(LOOKS if looks is None else looks)
        return None
    if isinstance(seeds, str):
        raise UserError(f"seeds is 'auto', how many there should be, or a list of numbers, got {seeds[:60]!r}")
    if looks is not None:
        raise UserError("looks belong to seeds='auto': leave out the looks or the number of seeds")
    chosen = list(range(min(seeds, MOST_SEEDS + 1))) if isinstance(seeds, int) else sorted(set(seeds))
    if not chosen or min(chosen) < 0 or max(chosen) >= 2**32 or len(chosen) > MOST_SEEDS:
        raise UserError(
            f"seeds is how many there should be, at least 1 and at most {MOST_SEEDS:,}, or a list of as many "
            f"numbers from 0 to 2^32 - 1, got {str(seeds)[:60]}"
        )
    return chosen


def _check(
    model: str,
    epochs: int | Literal["auto"] | None,
    batch: int | None,
    optimiser: str | None,
    learning_rate: float | None,
    tune: int,
    augmentation: str | None,
    margin: float,
    start: str | None,
    trunk: str,
    keep: str,
    workers: int | None,
    size: int | None,
    device: str | None,
) -> None:
    hosts.check(model)
    if isinstance(epochs, str) and epochs != "auto":
        raise UserError(f"epochs is 'auto' or how many there should be, got {epochs[:60]!r}")
    if not 0 <= tune <= trials.MOST:
        raise UserError(f"tune is how many learning rates every arm is tried with, at most {trials.MOST}, got {tune}")
    least = {
        "epochs": (None if isinstance(epochs, str) else epochs, 1),
        "batch": (batch, 2),
        "workers": (workers, 1),
        "size": (size, 8),
    }
    for name, (value, smallest) in least.items():
        if value is not None and value < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {value}")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise UserError(f"the learning rate must be above 0, got {learning_rate}")
    for what, word, words in (
        ("optimiser", optimiser, OPTIMISERS),
        ("augmentation", augmentation, AUGMENTATIONS),
    ):
        if word is not None and word not in words:
            raise UserError(f"{what} is {' or '.join(map(repr, words))}, got {word!r}{near(word, words)}")
    if not 0 < margin < 1:
        raise UserError(f"the margin is a fraction of the test images between 0 and 1, such as 0.01, got {margin}")
    if start is not None and start not in STARTS:
        raise UserError(f"start is 'scaled', 'identity' or 'paper', got {start!r}")
    if trunk not in TRUNKS:
        raise UserError(f"trunk is 'trained' or 'frozen', got {trunk!r}")
    if keep not in KEPT:
        raise UserError(f"keep is one of {', '.join(KEPT)}, got {keep!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {device!r} here: take cpu, or leave it out") from error


def _default_folder(question: dict[str, Any]) -> Path:
    # what was not asked yet when older folders were named has no part in the name
    named = {key: value for key, value in question.items() if BEFORE.get(key, ...) != value}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
    name = Path(question["data"]).resolve().name if question["data"] not in SIZES else question["data"]
    model = Named.read(question["model"])
    host = slug(model.same.replace(".py:", "-")) if model.file else model.name
    return Path("runs") / f"{name}-{host}-{digest}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else may work in the folder meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"another comparison is at work in {folder}: wait for it, or pass another --out") from None
    except OSError as error:
        raise UserError(f"cannot write in {folder} ({error.strerror}): pass another --out") from error
    try:
        yield
    finally:
        lock.release()


def _plan(
    folder: Path, stored: bool, seeds: list[int] | None, looks: Sequence[int] | None, arms: int, pairing: Pairing
) -> Plan:
    """What is asked for now: these seeds, these looks, or what the folder has planned."""
    if seeds is not None:
        return fixed(seeds, pairing)
    if stored and looks is None:
        return Comparison.load(folder).plan
    return planned(check_looks(LOOKS if looks is None else looks), arms, pairing)


def _ask(folder: Path, question: dict[str, Any], arms: list[str], plan: Plan) -> dict[str, Any]:
    """What the folder's question.json holds from now on; another question than the stored one is refused."""
    path = folder / "question.json"
    entry = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "arms": [PLAIN, *arms],
        "seeds": list(plan.seeds),
        "looks": list(plan.looks),
        "base": list(plan.base),
        "command": command(question, arms, plan, folder),
        "seen": (folder / "result.json").is_file(),
    }
    stored = refuse_other(folder, question)
    if stored:
        stored["question"]["model"] = question["model"]  # a file may lie elsewhere, seen from here
    if not stored:
        stored = {"question": question, "asked": [entry], "environment": training.environment()}
    else:
        before = Comparison.load(folder)
        known = before.foreseen if len(plan.looks) > 1 else set(before.wanted)
        if not {(arm, seed) for arm in arms for seed in plan.until(arm, -1)} <= known:
            stored["asked"].append(entry)
    write_text(path, json.dumps(stored, indent=1))
    return stored


def _drop_damaged(folder: Path, say: Callable[[str], None]) -> None:
    """Remove the records of runs that cannot be read, so that these runs are done again."""
    for path in sorted(folder.glob("runs/*/seed-*.json")):
        try:
            read_run(path)
        except UserError as error:
            if path.is_dir():
                raise
            say(f"{str(error).partition(': ')[0]}: this run is done again")
            path.unlink()


def command(question: dict[str, Any], arms: list[str], plan: Plan, folder: Path) -> str:
    """The command line that asks this question."""
    words = [
        "regard",
        "compare",
        *(arm for arm in arms if arm not in HOSTS and not twinned(arm)),
        "--data",
        question["data"],
    ]
    words += ["--model", question["model"], "--size", str(question["size"])]
    words += ["--epochs", "auto" if question["epochs_auto"] else str(question["epochs"])]
    words += ["--batch", str(question["batch"]), "--learning-rate", str(question["learning_rate"])]
    words += ["--tune", str(question["tune"])] * bool(question["tune"])
    words += ["--optimiser", question["optimiser"], "--augmentation", question["augmentation"]]
    words += ["--start", question["start"], "--trunk", question["trunk"], "--margin", str(question["margin"])]
    words += ["--pairing", question["pairing"]]
    if len(plan.looks) > 1:
        words += ["--seeds", "auto", "--looks", ",".join(map(str, plan.looks))]
    elif plan.seeds == tuple(range(len(plan.seeds))):
        words += ["--seeds", str(len(plan.seeds))]
    else:
        words += ["--seed-list", ",".join(map(str, plan.seeds))]
    words += ["--at", question["at"]] if isinstance(question["at"], str) else ["--at", ",".join(question["at"])]
    words += ["--pretrained"] * question["pretrained"]
    words += ["--weights", question["weights"]] if question["weights"] else []
    words += ["--skip-broken"] * bool(question.get("broken"))
    chosen = [CONSTANT] * any(map(twinned, arms)) + [arm for arm in arms if arm in HOSTS and arm != PLAIN]
    words += ["--control", ",".join(chosen)] if chosen else []
    return as_text(shlex.join([*words, "--out", str(folder)]))


def _priced(folder: Path, arms: list[str]) -> bool:
    cost = read_cost(folder)
    return cost is not None and list(cost["arms"]) == arms


def _fitted(folder: Path, question: dict[str, Any]) -> bool:
    linear = read_linear(folder)
    return linear is not None and linear["fingerprint"] == question["fingerprint"]


def _cores() -> int:
    workers, threads = grid.workers_for("cpu", 10**6)
    return workers * threads
