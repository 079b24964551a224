"""`regard compare`, and what comes of a comparison's folder later: `regard report` and `regard export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regard.cli import values
from regard.cli.options import Attachable, Device, Sites
from regard.cli.output import check_writable, print_json, say_loading, writing

if TYPE_CHECKING:
    from regard.comparison.results import Comparison


def compare(
    *arms: Attachable,
    data: str = "fashion",
    model: str = "small_resnet",
    seeds: Literal["auto"] | int | None = None,
    looks: str | None = None,
    seed_list: str | None = None,
    pairing: Literal["seeds", "none"] | None = None,
    epochs: Literal["auto"] | int | None = None,
    size: int | None = None,
    batch: int | None = None,
    optimiser: Literal["muon", "adamw"] | None = None,
    learning_rate: float | None = None,
    tune: int = 0,
    augmentation: Literal["none", "crops"] | None = None,
    at: Sites = "auto",
    start: Literal["scaled", "identity", "paper"] | None = None,
    trunk: Literal["trained", "frozen"] = "trained",
    margin: float = 0.01,
    pretrained: bool = False,
    weights: Path | None = None,
    control: str | None = None,
    out: Path | None = None,
    skip_broken: bool = False,
    keep: Literal["first", "all", "none"] = "first",
    workers: int | None = None,
    device: Device | None = None,
    json: bool = False,
) -> None:
    """Train a network with and without attention on the same images; say whether it helps and what it costs.

    Every variant is compared with the baseline `none`, the network without
    attention. Stopped in any way, the same command resumes where it was; a
    finished run is never repeated.

    Parameters
    ----------
    arms
        Variants to compare: mechanisms, with options where wanted: se, "cbam[squeeze=max,arrangement=parallel]".
    data
        fashion or cluttered (of the package regard-images), or a folder of class folders, with or without train/ and
        val/.
    model
        small_resnet, a network of timm or torchvision/NAME, each with options: "resnet18[zero_init_last=false]"; or
        file.py:function. A function with parameters num_classes and in_chans is given both.
    seeds
        auto, the default: every variant is judged after 8, 12, 16 and 20 seeds (--looks), and stops once it is decided
        or unlikely to be. Or a number, counted from 0; fewer than 6 can rarely show a difference, and more variants
        need more.
    looks
        Numbers of seeds after which auto judges (interim analyses); by default 8,12,16,20.
    seed_list
        Which seeds instead, e.g. 3,4,5.
    pairing
        seeds: runs of one seed are compared in pairs; none: all runs of one variant with all runs of the other. By
        default seeds if runs of one seed share something (pretrained weights, the identity start, test images drawn by
        the seed), else none.
    epochs
        Epochs of every run: 3 for fashion, 5 for cluttered, else 20, or 8 from pretrained weights. auto: more, until
        the baseline gains no more than --margin on validation images in its last quarter.
    size
        Side of the images in pixels; by default 28 (fashion), 56 (cluttered), the network's own size, or 64.
    batch
        Images in one step: 96 for small_resnet, else 128.
    optimiser
        muon: for the kernels of the host's convolutions, and AdamW for everything else; adamw: for all. By default muon
        for small_resnet from scratch.
    learning_rate
        Peak learning rate of AdamW; that of Muon scales with it.
    tune
        How many learning rates every variant is tried with, on validation images, e.g. 5; 0: one for all.
    augmentation
        crops: crop and mirror each image at random; none: take it as it is. By default crops for more
        than 3 epochs.
    start
        scaled (the default from scratch): the authors' weights, each gate divided by its mean over training images,
        so that no branch is shrunk; identity (the default from pretrained weights): the network computes at first
        what it did without; paper: as the authors start it.
    trunk
        frozen: the pretrained backbone stays as it is; only the classifier and what a variant adds learn.
    margin
        The smallest difference that matters, as a fraction of the test images.
    pretrained
        Start from timm's pretrained weights.
    weights
        Start from this checkpoint of the model (safetensors, or a plain state dict).
    control
        One or several, joined by commas. constant: for each variant with gates its constant twin, whose gates are
        learnt constants; wider: the baseline, widened until a training step is as slow as that of the most expensive
        variant; parameters: the baseline, widened until it has as many parameters as the largest variant.
    out
        Folder of the results; by default one below runs/ that depends on the question.
    skip_broken
        Leave out images that cannot be read, and list them in the report.
    keep
        Which seeds' trained weights to keep.
    workers
        Processes that train side by side; by default one for each core, or one on a GPU.
    json
        Print the result as JSON instead of text.

    Examples
    --------
    regard compare se cbam
    regard compare se "cbam[squeeze=max]" --data photos/ --model resnet18 \\
        --seeds 8 --out runs/mine
    """
    from regard.comparison.question import Draft
    from regard.comparison.question_file import refuse_early

    question: dict[str, Any] = {
        "data": data, "model": model, "size": size, "epochs": epochs, "batch": batch, "optimiser": optimiser,
        "learning_rate": learning_rate, "tune": tune, "augmentation": augmentation, "at": values.sites(at),
        "start": start, "trunk": trunk, "margin": margin, "pairing": pairing, "pretrained": pretrained,
        "weights": weights, "device": device,
    }  # fmt: skip
    chosen = values.seeds(seeds, seed_list)
    judged_after = None if looks is None else values.numbers("--looks", looks)
    refuse_early(Draft.of(**question), arms, out, control)
    say_loading()
    from regard.comparison.compare import compare as train_and_compare

    comparison = train_and_compare(
        arms,
        seeds=chosen,
        looks=judged_after,
        control=control,
        out=out,
        skip_broken=skip_broken,
        keep=keep,
        workers=workers,
        **question,
    )
    _show(comparison, as_json=json)


def report(folder: Path, /, *, json: bool = False) -> None:
    """Write the report of a comparison again, from its stored runs, and print the result.

    Parameters
    ----------
    folder
        What `regard compare` wrote, e.g. runs/mine.
    json
        Print the result as JSON instead of text.

    Examples
    --------
    regard report runs/mine
    regard report runs/mine --json
    """
    from regard.comparison.results import Comparison

    comparison = Comparison.load(folder)
    comparison.save()
    from regard.comparison import report as page  # it draws, and that takes seconds to import

    page.write(comparison)
    _show(comparison, as_json=json)


def export(folder: Path, /, *, csv: Path | None = None) -> None:
    """Print every run of a comparison as CSV, or write it to a file.

    One line for each run: variant, seed, accuracies and log-loss on test and
    validation images, calibration, seconds, parameters, and why a run failed.
    Accuracies are fractions, log-loss is in nats.

    Parameters
    ----------
    folder
        What `regard compare` wrote, e.g. runs/mine.
    csv
        The file to write, instead of standard output.

    Examples
    --------
    regard export runs/mine
    regard export runs/mine --csv mine.csv
    """
    from regard.base.files import write_text
    from regard.comparison.results import Comparison

    if csv is not None:
        check_writable(csv)
    table = Comparison.load(folder).csv()
    if csv is None:
        print(table, end="")
        return
    with writing(csv):
        write_text(csv, table)


def _show(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        print_json(comparison.to_json())
    else:
        print(f"\n{comparison}\n\nReport: {comparison.folder / 'report.html'}")
