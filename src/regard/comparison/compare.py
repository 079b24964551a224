"""From a question to its answer: checks, trials, training, costs, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from regard.base.errors import UserError
from regard.base.files import write_text
from regard.base.machine import cores
from regard.base.process import refuse_nesting
from regard.comparison import data as images_of
from regard.comparison import grid, hosts, learning, linear, network, prices, report, trials
from regard.comparison.arms import (
    CONSTANT,
    HOSTS,
    PARAMETERS,
    PLAIN,
    WIDER,
    controls,
    mechanisms,
    refuse_names,
    twin,
    twinned,
)
from regard.comparison.crew import Crew
from regard.comparison.display import Display
from regard.comparison.environment import environment
from regard.comparison.folders import SIZES
from regard.comparison.lock import alone
from regard.comparison.plan import LOOKS, MOST_SEEDS, Pairing, Plan, check_looks, fixed, planned
from regard.comparison.question import Draft, Question, augmentation_for, first_epochs
from regard.comparison.question_file import Stored, refuse_other
from regard.comparison.records import read_cost, read_linear, read_run
from regard.comparison.results import Comparison
from regard.comparison.statistics import fewest_seeds
from regard.comparison.wording import counted
from regard.layers.tap import taps
from regard.registry.building import create
from regard.registry.named import SMALL
from regard.registry.registration import info
from regard.registry.spelling import parse, spell

KEPT = ("first", "all", "none")


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
            host, widened until a training step takes as long as that of the most expensive arm; ``"parameters"``: the
            plain host, widened until it has at least as many parameters as the arm that has most.
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
    chosen = controls(control)
    every = every_arm(arms, chosen)
    wished = _seeds(seeds, looks)
    hosts.check(model)
    _refuse_wide(chosen, pretrained or weights is not None)
    draft = Draft.of(
        data=data, model=model, size=size, epochs=epochs, batch=batch, optimiser=optimiser,
        learning_rate=learning_rate, tune=tune, augmentation=augmentation, at=at, start=start, trunk=trunk,
        margin=margin, pairing=pairing, pretrained=pretrained, weights=weights, device=device,
    )  # fmt: skip
    draft.check()
    _check_work(keep, workers, device)
    draft = replace(
        draft,
        size=size or hosts.image_size(model) or SIZES.get(str(data), 64),
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    folder = Path(out) if out is not None else draft.default_folder()
    with Display(progress) as display, alone(folder):
        crew = Crew(folder, workers, keep, display)
        stored = refuse_other(folder, draft)  # before its images would be replaced
        images = images_of.prepare(
            data, folder / "data", size=draft.size, skip_broken=skip_broken, progress=display.reading
        )
        draft = _settled(draft, stored, images)
        plan = _plan(folder, stored, wished, looks, every, draft.pairing)
        question = _question(draft, images, plan, every, crew)
        stored = _ask(folder, question, every, plan)
        _say_beforehand(Comparison.load(folder), every, chosen, display.say)
        return _answer(stored, images, plan.seeds[0], crew)


def _question(draft: Draft, images: images_of.Images, plan: Plan, arms: Sequence[str], crew: Crew) -> Question:
    """The whole question, when every arm is known to work; its epochs by trials, where that is asked."""
    ask = partial(complete, draft, images, plan.seeds[0])
    first = draft.epochs or first_epochs(draft.data, draft.learnt_before)
    question = ask(first)
    widened = replace(question, widening=1.5, widening_parameters=1.5)
    for arm in (PLAIN, *arms):
        network.check_trainable(widened, arm)
    _drop_damaged(crew.folder, crew.display.say)
    if draft.epochs is None:
        return trials.epochs(crew.folder, ask, first, plan.seeds, crew.try_out, crew.display.say)
    return question


def _answer(stored: Stored, images: images_of.Images, seed: int, crew: Crew) -> Comparison:
    """Everything that is measured and trained for a question that is stored, and the report."""
    folder, say = crew.folder, crew.display.say
    _fit_linear(folder, stored.question, images, seed, say)
    stored = _widen(folder, stored, say)
    stored = _tune(folder, stored, seed, crew)
    _train(folder, stored.question, crew)
    _price(folder, stored.question, say)
    comparison = Comparison.load(folder)
    comparison.save()
    report.write(comparison)
    return comparison


def complete(draft: Draft, images: images_of.Images, seed: int, epochs: int) -> Question:
    """The whole question, once the images are known and for so many epochs.

    Args:
        draft: with the size of its images and its device.
        images: of the comparison.
        seed: whose split is counted.
        epochs: of every run.
    """
    split, channels = images.split(seed), images.pixels.shape[1]
    trained_on = hosts.normalisation(draft.model, channels) if draft.learnt_before else None
    known = draft.to_json() | {
        "epochs": epochs,
        "augmentation": draft.augmentation or augmentation_for(epochs),
        "pairing": draft.pairing or "seeds",
    }
    return Question(
        **known,
        fingerprint=images.fingerprint,
        classes=list(images.classes),
        channels=channels,
        normalisation=(list(trained_on[0]), list(trained_on[1])) if trained_on else None,
        train_images=len(split.train),
        val_images=len(split.val),
        test_images=len(split.test),
        split_varies=images.varies,
        broken=list(images.broken),
    )


def every_arm(arms: str | Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Every arm but `none`: the mechanisms as they are spelt, their twins, the controls.

    Raises:
        UserError: a mechanism or an option that there is not, an arm that is given twice, or none at all.
    """
    asked: list[str] = []
    twins: list[str] = []
    for text in [arms] if isinstance(arms, str) else arms:
        refuse_names(text)
        name, options = parse(text)
        if name == PLAIN and not options:
            continue
        mechanism = info(name)
        arm = spell(name, options)
        if len(twin(arm)) > 200:
            raise UserError(f"the arm {arm[:40]}... is longer than the name of a file may be: leave options out")
        try:
            module = create(name, mechanism.try_channels, **options)
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
        raise UserError("nothing to compare: name at least one mechanism, such as se; `regard list` shows them")
    return [*asked, *twins, *(control for control in chosen if control in HOSTS)]


def _seeds(seeds: int | Iterable[int] | Literal["auto"], looks: Sequence[int] | None) -> list[int] | None:
    """Which seeds, or None where the plan says it."""
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


def _refuse_wide(chosen: Sequence[str], learnt_before: bool) -> None:
    wide = [control for control in chosen if control in HOSTS]
    if wide and learnt_before:
        raise UserError(
            f"the {wide[0]} control starts from no pretrained weights, so it would not be fair: leave it out"
        )


def _check_work(keep: str, workers: int | None, device: str | None) -> None:
    """Refuse what is no part of the question, and what this machine has not."""
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    if keep not in KEPT:
        raise UserError(f"keep is one of {', '.join(KEPT)}, got {keep!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {device!r} here: take cpu, or leave it out") from error


def _settled(draft: Draft, stored: Stored | None, images: images_of.Images) -> Draft:
    """The draft with the pairing that suits the images; what was found before, and is left open now, stays."""
    tied = draft.learnt_before or draft.start == "identity" or images.varies == "the whole split"
    if stored:
        draft = replace(draft, pairing=draft.pairing or stored.question.pairing)
        if draft.epochs is None:
            draft = replace(draft, epochs=stored.question.epochs, augmentation=stored.question.augmentation)
    return replace(draft, pairing=draft.pairing or ("seeds" if tied else "none"))


def _plan(
    folder: Path,
    stored: Stored | None,
    seeds: list[int] | None,
    looks: Sequence[int] | None,
    arms: Sequence[str],
    pairing: Pairing | None,
) -> Plan:
    """What is asked for now: these seeds, these looks, or what the folder has planned."""
    pairing = pairing or "seeds"
    if seeds is not None:
        return fixed(seeds, pairing)
    if stored and looks is None:
        return Comparison.load(folder).plan
    served = sum(not twinned(arm) for arm in arms)  # by the runs of `none`
    return planned(check_looks(LOOKS if looks is None else looks), served, pairing)


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


def _ask(folder: Path, question: Question, arms: list[str], plan: Plan) -> Stored:
    """What the folder's question.json holds from now on; another question than the stored one is refused."""
    entry = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "arms": [PLAIN, *arms],
        "seeds": list(plan.seeds),
        "looks": list(plan.looks),
        "base": list(plan.base),
        "command": question.command(arms, plan, folder),
        "seen": (folder / "result.json").is_file(),
    }
    stored = refuse_other(folder, question)
    if stored is None:
        stored = Stored(question, [entry], environment())
    else:
        # a file may lie elsewhere, seen from here
        stored = replace(stored, question=replace(stored.question, model=question.model))
        before = Comparison.load(folder)
        known = before.foreseen if len(plan.looks) > 1 else set(before.wanted)
        if not {(arm, seed) for arm in arms for seed in plan.until(arm, -1)} <= known:
            stored = replace(stored, asked=[*stored.asked, entry])
    stored.write(folder)
    return stored


def _say_beforehand(
    comparison: Comparison, arms: Sequence[str], chosen: Sequence[str], say: Callable[[str], None]
) -> None:
    """What can be known of the answer before anything is trained."""
    question, contrasts, most = comparison.question, len(comparison.contrasts), comparison.plan.looks[-1]
    least = fewest_seeds(contrasts, question.pairing)
    if most < least:
        say(
            f"{counted(most, 'seed')} can never show a difference: with {counted(contrasts, 'comparison')} it takes "
            f"{least} or more. The answer will be 'undecided'; --seeds {least} can do better."
        )
    if sentence := learning.one_image(question.test_images, question.margin):
        say(sentence)
    if CONSTANT in chosen:
        for arm in arms:
            if arm not in HOSTS and not twinned(arm) and twin(arm) not in arms:
                say(f"{arm} has no gate that a constant could stand for, and gets no twin")


def _fit_linear(
    folder: Path, question: Question, images: images_of.Images, seed: int, say: Callable[[str], None]
) -> None:
    """Write linear.json, unless it is there for these images."""
    before = read_linear(folder)
    if before is None or before["fingerprint"] != question.fingerprint:
        say("Fitting a linear model on the pixels")
        write_text(folder / "linear.json", json.dumps(linear.measure(images, seed, question.size), indent=1))


def _widen(folder: Path, stored: Stored, say: Callable[[str], None]) -> Stored:
    """Measure how wide the controls must be, where that is not known."""
    comparison = Comparison.load(folder)
    for control, find in ((WIDER, prices.widening), (PARAMETERS, prices.widening_parameters)):
        if control in comparison.arms and stored.question.width_of(control) is None:
            say(f"Measuring how wide the control {control} must be")
            factor = grid.call(find, stored.question, mechanisms(comparison.arms), threads=cores())
            stored = replace(stored, question=stored.question.widened(control, factor))
            stored.write(folder)
    return stored


def _tune(folder: Path, stored: Stored, seed: int, crew: Crew) -> Stored:
    """Find the learning rates of the arms that have none of their own yet, where that is asked."""
    question = stored.question
    known = question.rates or {}
    untuned = [arm for arm in Comparison.load(folder).arms if question.tune and arm not in known]
    if untuned:
        rates = trials.rates(folder, question, untuned, seed, crew.try_out, crew.display.say)
        stored = replace(stored, question=replace(question, rates=known | rates))
        stored.write(folder)
    return stored


def _train(folder: Path, question: Question, crew: Crew) -> None:
    """All runs that are wanted, look after look; a run is tried once."""
    tried: set[grid.Run] = set()
    comparison = Comparison.load(folder)
    first, among = comparison.seeds[0], len(comparison.foreseen)
    while True:
        done = {(record["arm"], record["seed"]) for record in comparison.done}
        runs = [run for run in comparison.wanted if run not in tried and run not in done]
        if runs or not tried:
            crew.display.start(comparison, again=bool(tried))
            crew.train(folder, question, runs, among, first)
        if not runs:
            return
        tried |= set(runs)
        comparison = Comparison.load(folder)


def _price(folder: Path, question: Question, say: Callable[[str], None]) -> None:
    """Write cost.json, unless it is there for these arms."""
    arms = [arm for arm in Comparison.load(folder).arms if not twinned(arm)]  # a twin still computes what it drops
    before = read_cost(folder)
    if before is None or list(before["arms"]) != arms:
        say("Measuring what each variant costs")
        cost = grid.call(prices.measure, question, arms, threads=cores())
        write_text(folder / "cost.json", json.dumps(cost, indent=1))
