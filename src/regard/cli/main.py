"""The command line: parse and call, no logic. Torch is imported by the commands that need it, not for `--help`."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

EXAMPLES = {
    "list": """Examples:

  regard list
  regard list --category channel""",
    "info": """Examples:

  regard info cbam
  regard info "cbam[squeeze=max]"
  regard info cbam --json""",
    "sites": """Examples:

  regard sites resnet50
  regard sites mobilenetv2_100 --mechanism coordinate
  regard sites torchvision/fcn_resnet50 --at "backbone.layer4.*" --all
  regard sites mynet.py:build --size 96 --json""",
    "advise": """Examples:

  regard advise resnet50
  regard advise mobilenetv2_100 se coordinate "cbam[reduction=8]" \\
      --max-slowdown 1.05 --max-memory 1.1
  regard advise torchvision/r3d_18 se --size 112 --batch 2 --predict 32
  regard advise mynet.py:build --budget 60 --picture mynet.svg""",
    "compare": """Examples:

  regard compare se cbam
  regard compare se "cbam[squeeze=max]" --data photos/ --model resnet18 \\
      --seeds 8 --out runs/mine""",
    "report": """Examples:

  regard report runs/mine
  regard report runs/mine --json""",
    "export": """Examples:

  regard export runs/mine
  regard export runs/mine --csv mine.csv""",
    "bench": """Examples:

  regard bench
  regard bench se cbam --peers --compiled --out runs/bench
  regard bench "cbam[squeeze=max]" --shapes 8x256x56x56 --impl auto,reference
  regard bench gate:channel --dtype float32,bfloat16 --pass training
  regard bench se --scaling --threads 1,2 --json""",
    "look": """Examples:

  regard look seresnet50 photos/*.jpg --weights seresnet50.safetensors
  regard look runs/mine/weights/cbam/seed-0000.safetensors photos/
  regard look runs/mine photos/ --pictures svg
  regard look vit_small_patch16_224 cat.jpg --pretrained --query 0.4,0.6 --head 2
  regard look seresnet50 --beside resnet50 --pretrained photos/ --masks objects/
  regard look mynet.py:build photos/ --layer backbone.stage3 --json""",
    "app": """Examples:

  regard app
  regard app runs/mine
  regard app vit_small_patch16_224 seresnet50 --pretrained
  regard app seresnet50 --weights seresnet50.safetensors --port 8000""",
    "ops": """Examples:

  regard ops
  regard ops --json""",
}


def main() -> None:
    """Entry point: a user's mistake is one sentence on standard error and exit status 2."""
    try:
        sys.exit(_run([word for word in sys.argv[1:] if word != "--debug"], debug="--debug" in sys.argv[1:]))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one
        kept = "; nothing finished is lost. The same command goes on from here" if "compare" in sys.argv[1:2] else ""
        print(f"\nStopped{kept}.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `regard list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _run(words: list[str], debug: bool) -> int:
    from regard.base.errors import UserError, install

    try:
        import cyclopts
    except ModuleNotFoundError as error:
        return _complain(f"the command line needs the package {error.name!r}: {install('compare')}")
    try:
        status = _app(cyclopts)(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return status or 0
    except cyclopts.CycloptsError as error:
        if debug:
            raise
        return _complain(" ".join(str(error).split()) + " (regard --help shows what there is)")
    except UserError as error:
        if debug:
            raise
        return _complain(_as_options(str(error), words[:1]))
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("regard"):
            raise
        extra = "app" if words[:1] == ["app"] else "compare"
        return _complain(f"this command needs the package {error.name!r}: {install(extra)}")


def _as_options(sentence: str, command: list[str]) -> str:
    """A sentence with Python's arguments as the options of the command: ``skip_broken=True`` is ``--skip-broken``."""
    given = inspect.signature(_commands().get("".join(command), _commands)).parameters.values()
    for parameter in given:
        if parameter.kind is parameter.KEYWORD_ONLY:
            option = "--" + parameter.name.strip("_").replace("_", "-")
            sentence = re.sub(rf"\b{parameter.name}=True\b", option, sentence)
            sentence = re.sub(rf"\b{parameter.name}='([^' ]*)'", rf"{option} \1", sentence)
    return sentence


def _complain(sentence: str) -> int:
    sys.stdout.flush()  # what was printed comes first
    print("regard:", *sentence.splitlines(), file=sys.stderr)
    return 2


def _app(cyclopts: Any) -> Any:
    from importlib.metadata import version

    app = cyclopts.App(
        name="regard",
        help="Visual attention for PyTorch: which mechanism helps on your images, and what it costs.",
        help_epilogue="""Examples:

  regard list
  regard info cbam
  regard advise resnet50 se cbam
  regard compare se eca "cbam[squeeze=max]" --data photos/ --model resnet18
  regard report runs/mine
  regard export runs/mine --csv mine.csv
  regard look vit_small_patch16_224 photos/ --pretrained
  regard app runs/mine
  regard bench se cbam --peers

--debug with any command shows the traceback of an error.
Exit status: 0 done, 1 bench found what computes something else, 2 a mistake in
the question or the files, 130 Ctrl-C.""",
        version=version("regard"),
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(consume_multiple=True, negative=""),
    )
    for name, command in _commands().items():
        hints = get_type_hints(command)
        for word in COMPLETED.keys() & hints.keys():
            hints[word] = Annotated[hints[word], cyclopts.Parameter(completer=COMPLETED[word])]
        command.__annotations__ = hints
        app.command(command, name=name, help_epilogue=EXAMPLES[name])
    app.register_install_completion_command(
        help="Let the shell complete commands, options, mechanisms and words for sites (bash, zsh, fish, powershell)."
    )
    return app


def _commands() -> dict[str, Any]:
    commands = {"list": list_, "info": info, "sites": sites, "advise": advise, "compare": compare, "report": report}
    return commands | {"export": export, "look": look, "app": app_, "bench": bench, "ops": ops}


def _mechanisms(_: Any) -> dict[str, str]:
    from regard.registry.cards import cards

    return {name: card.slots["Summary"] for name, card in sorted(cards().items())}


def _attachable(_: Any) -> dict[str, str]:
    from regard.registry.cards import cards

    return {name: card.slots["Summary"] for name, card in sorted(cards().items()) if card.place}


def _categories(_: Any) -> list[str]:
    from regard.registry.cards import cards

    return sorted({card.category for card in cards().values()})


def _words(_: Any) -> list[str]:
    from regard.registry.registration import PLACES

    return ["auto", *PLACES]


# what the shell completes, by the names of the parameters
COMPLETED: dict[str, Callable[[Any], Any]] = {
    "name": _mechanisms,
    "names": _mechanisms,
    "arms": _attachable,
    "mechanism": _attachable,
}
COMPLETED |= {"category": _categories, "at": _words}


def list_(
    *, category: str | None = None, attention: Literal["soft", "hard", "self"] | None = None, json: bool = False
) -> None:
    """Show the mechanisms by category: name, kind of attention, where it attaches, parameters at 256 channels, paper.

    Parameters
    ----------
    category
        Only those of one category, e.g. channel.
    attention
        Only those of soft, hard or self-attention.
    json
        Print JSON instead of a table.
    """
    from regard.base.errors import UserError, near
    from regard.base.tables import aligned
    from regard.registry.cards import cards

    every = [known for _, known in sorted(cards().items())]
    known = sorted({one.category for one in every})
    if category is not None and category not in known:
        hint = near(category, known) or f": the categories are {', '.join(known)}"
        raise UserError(f"there is no category {category!r}{hint}")
    found = [i for i in every if category in (None, i.category) and attention in (None, i.attention)]
    if json:
        keys = ("name", "category", "attention", "paper")
        _print_json([{key: getattr(i, key) for key in keys} | {"parameters_at_256": i.parameters(256)} for i in found])
        return
    cells = [[i.name, i.attention, i.place or "-", f"{i.parameters(256):,}", i.paper] for i in found]
    head = ["", "attention", "attaches at", "parameters at C=256", "paper"]
    first, *lines = aligned([head, *cells], right={3})
    print("  " + first)
    for word in known:
        shown = ["  " + line for i, line in zip(found, lines, strict=True) if i.category == word]
        if shown:
            print("\n".join([word, *shown]))


def info(name: str, /, *, json: bool = False) -> None:
    """Show a mechanism's card: formula, shapes, cost, placement, how it differs from the paper and the authors' code.

    Parameters
    ----------
    name
        A registered name, with options where wanted: se, "cbam[squeeze=max]"; `regard list` shows the names.
    json
        Print JSON instead of text.
    """
    from regard.registry.cards import card

    known = card(name)
    if json:
        options = dict(known.options)
        keys = ("name", "category", "attention", "paper", "place", "signature")
        shown = {key: getattr(known, key) for key in keys}
        shown |= {"spatial_axes": list(known.spatial), "exceptions": dict(known.exceptions), "options": options}
        _print_json(shown | {"parameters_at_256": known.parameters(256, **options), "card": dict(known.slots)})
    else:
        print(known)


def sites(
    model: str,
    /,
    *,
    mechanism: str | None = None,
    at: str = "auto",
    layout: Literal["channels_first", "channels_last", "tokens"] | None = None,
    size: int | None = None,
    batch: int | None = None,
    all: bool = False,
    json: bool = False,
) -> None:
    """Show the places of a network where mechanisms can go, the words that find them, and where one goes.

    Columns: the module's name and class; the shape of its map, always written
    batch x channels x sides, whatever the layout in which the module holds it;
    how often one forward pass calls it; the words for --at that find it; and
    why it can be no site, where it cannot.

    Parameters
    ----------
    model
        small_resnet, a network of timm, torchvision/NAME, or file.py:function, which runs that file and calls the
        function; it returns a model, or a model and an example.
    mechanism
        Mark the sites of this one, with options where wanted; else those of --at.
    at
        Sites: auto, branches, convolutions, expansions, kernels, blocks, stages, transitions, head;
        a pattern such as "layer4.*.bn2"; or names joined by commas.
    layout
        How the network's maps are held, where that cannot be told.
    size
        Side of the images in pixels; by default the network's own.
    batch
        Images in the example; 2 if not said.
    all
        Every module that is called, with the reason where it can be no site.
    json
        Print JSON instead of a table.
    """
    _show_a_sign_of_life()
    from regard.base.errors import UserError
    from regard.insertion.placing import plan
    from regard.networks.models import open_model

    network, example = open_model(model, size=size, batch=batch, usual=2)
    with _hints_for(model):
        found = plan(network, example, mechanism=mechanism, at=_at(at), layout=layout, every=all)
    if json:
        _print_json(found.to_json())
    else:
        print(found.table if found.refused else found)
    if found.refused:
        raise UserError(found.refused)


def advise(
    model: str,
    /,
    *arms: str,
    size: int | None = None,
    batch: int | None = None,
    predict: int | None = None,
    at: str = "auto",
    layout: Literal["channels_first", "channels_last", "tokens"] | None = None,
    repeated: bool = False,
    max_slowdown: float | None = None,
    max_memory: float | None = None,
    rounds: int = 9,
    budget: float | None = 120.0,
    device: str = "cpu",
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Say what each mechanism would cost in a network: parameters, multiply-adds, time, memory, and what to watch.

    The network has random weights; its times do not depend on them.

    Parameters
    ----------
    model
        small_resnet, a network of timm, torchvision/NAME, or file.py:function, which runs that file and calls the
        function; it returns a model, or a model and an example.
    arms
        Mechanisms, with options where wanted: se, "cbam[squeeze=max]"; all of them if none is named.
    size
        Side of the images in pixels; by default the network's own.
    batch
        Images in a batch; 8 if not said.
    predict
        Also predict the memory of a training step with so many images, which need not fit.
    at
        Sites: auto, branches, convolutions, expansions, kernels, blocks, stages, transitions, head;
        a pattern such as "layer4.*.bn2"; or names joined by commas.
    layout
        How the network's maps are held, where that cannot be told.
    repeated
        Also at sites that one forward pass calls several times.
    max_slowdown
        Only what makes a training step at most so many times as long, e.g. 1.05.
    max_memory
        Only what needs at most so many times the memory, e.g. 1.1.
    rounds
        Timings of each mechanism.
    budget
        Seconds for all timings together; 5 timings are done even so.
    device
        cpu or cuda.
    picture
        Write a picture of the network with the sites to this file, as SVG.
    json
        Print JSON instead of a table.
    """
    _show_a_sign_of_life()
    import regard
    from regard.base.files import write_text
    from regard.cli.progress import Ticker
    from regard.networks.models import open_model

    if picture is not None:
        _check_target(picture)
    network, example = open_model(model, size=size, batch=batch, device=device)
    with Ticker() as ticker, _hints_for(model):
        advice = regard.advise(
            network,
            example,
            mechanisms=arms or None,
            at=_at(at),
            layout=layout,
            repeated=repeated,
            batch=predict,
            max_slowdown=max_slowdown,
            max_memory=max_memory,
            rounds=rounds,
            budget=budget,
            name=model,
            progress=ticker.tick,
        )
    if json:
        _print_json(advice.to_json())
    else:
        print(advice)
    if picture is not None:
        with _writing(picture):
            write_text(picture, advice.picture())


def compare(
    *arms: str,
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
    at: str = "auto",
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
    device: str | None = None,
    json: bool = False,
) -> None:
    """Train a network with and without attention on the same images; say whether it helps and what it costs.

    Every arm is compared with `none`, the network without attention, seed by
    seed. Stopped in any way, the same command goes on where it was; a finished
    run is never done again.

    Parameters
    ----------
    arms
        Mechanisms, with options where wanted: se, "cbam[squeeze=max,arrangement=parallel]".
    data
        fashion or cluttered (inside the package), or a folder of class folders, with or without train/ and val/.
    model
        small_resnet or any network of timm, with options where wanted: "resnet18[zero_init_last=false]";
        torchvision/NAME; or file.py:function, which is told the numbers of classes and channels where it takes
        num_classes and in_chans.
    seeds
        auto, if not said: every arm is judged at the looks and goes on only where that is open and can still be
        decided. Or how many seeds, counted from 0; fewer than 6 can rarely show a difference, more arms need more.
    looks
        After how many seeds auto judges: 8,12,16,20 if not said.
    seed_list
        Which seeds instead, e.g. 3,4,5.
    pairing
        seeds: runs of one seed are compared with each other; none: all runs of an arm with all runs of the other. If
        not said, seeds where the seed ties the runs: pretrained weights, the identity start, drawn test images.
    epochs
        Of every run: 3 for fashion, 5 for cluttered, else 20, or 8 from pretrained weights. auto: more and more, until
        the validation accuracy of none rises by the margin or less in the last quarter.
    size
        Side of the images in pixels.
    batch
        Images in one step: 96 for the small host, else 128.
    optimiser
        muon: for the kernels of the host's convolutions, and AdamW for everything else; adamw: for all. By default muon
        for the small host from scratch.
    learning_rate
        Of AdamW at its height; that of Muon moves with it.
    tune
        How many learning rates every arm is tried with, on validation images; 5, say. 0: one for all.
    augmentation
        crops: crop and mirror each image at random; none: take it as it is. By default none up to 3 epochs.
    at
        Sites: auto, branches, convolutions, expansions, kernels, blocks, stages, transitions, head;
        a pattern such as "layer4.*.bn2"; or names joined by commas.
    start
        scaled (the default from scratch): the authors' weights, each gate divided by its mean over training images,
        so that no branch is shrunk; identity (the default from pretrained weights): the network computes at first
        what it did without; paper: as the authors start it.
    trunk
        frozen: pretrained weights stay as they are; only the classifier and what an arm adds learn.
    margin
        A difference below this fraction of the test images is not worth having.
    pretrained
        Start from timm's pretrained weights.
    weights
        Start from this checkpoint of the model (safetensors, or a plain state dict).
    control
        One or several, joined by commas. constant: for each arm with gates a twin whose gates are constants that
        learn; wider: the plain network, widened until a training step is as slow as that of the dearest arm;
        parameters: ... until it has as many parameters as the arm with most.
    out
        Folder of the results; by default one below runs/ that depends on the question.
    skip_broken
        Leave out images that cannot be read, and list them in the report.
    keep
        Trained weights of which seeds to keep.
    workers
        Processes that train side by side.
    device
        cpu or cuda.
    json
        Print the result as JSON instead of text.
    """
    from regard.comparison.asked import refuse_early

    asked: dict[str, Any] = {
        "data": data, "model": model, "size": size, "epochs": epochs, "batch": batch, "optimiser": optimiser,
        "learning_rate": learning_rate, "tune": tune, "augmentation": augmentation, "at": _at(at), "start": start,
        "trunk": trunk, "margin": margin, "pairing": pairing, "pretrained": pretrained, "weights": weights,
        "device": device,
    }  # fmt: skip
    chosen = _seeds(seeds, seed_list)
    at_seeds = _numbers(looks, "--looks") if looks is not None else None
    refuse_early(arms, out, control, **asked)
    _show_a_sign_of_life()
    from regard.comparison.question import compare as ask

    comparison = ask(
        arms,
        seeds=chosen,
        looks=at_seeds,
        control=control,
        out=out,
        skip_broken=skip_broken,
        keep=keep,
        workers=workers,
        **asked,
    )
    _show(comparison, json)


def report(folder: Path, /, *, json: bool = False) -> None:
    """Write the report of a comparison again, from its stored runs, and print the result.

    Parameters
    ----------
    folder
        What `regard compare` wrote, e.g. runs/mine.
    json
        Print the result as JSON instead of text.
    """
    from regard.comparison.results import Comparison

    comparison = Comparison.load(folder)
    comparison.save()
    from regard.comparison import report as page  # it draws, and that takes seconds to import

    page.write(comparison)
    _show(comparison, json)


def export(folder: Path, /, *, csv: Path | None = None) -> None:
    """Print every run of a comparison as comma-separated values, or write them to a file.

    One line for each run: arm, seed, accuracies and log-loss on test and
    validation images, calibration, seconds, parameters, and why a run failed.
    Accuracies are fractions, log-loss is in nats.

    Parameters
    ----------
    folder
        What `regard compare` wrote, e.g. runs/mine.
    csv
        The file to write, instead of standard output.
    """
    from regard.base.files import write_text
    from regard.comparison.results import Comparison

    if csv is not None:
        _check_target(csv)
    table = Comparison.load(folder).csv()
    if csv is None:
        print(table, end="")
        return
    with _writing(csv):
        write_text(csv, table)


def bench(
    *names: str,
    shapes: str = "8x256x56x56,16x512x14x14,32x64x112x112",
    dtype: str = "float32",
    layout: str = "contiguous",
    impl: str = "auto",
    pass_: str = "inference,training",
    device: str = "cpu",
    threads: str | None = None,
    peers: bool = False,
    compiled: bool = False,
    rounds: int = 15,
    budget: float | None = None,
    scaling: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Time mechanisms and ops against the least that memory allows, and against other libraries.

    What is shown is time over a lower bound, measured in the same rounds: of
    inference to sum the map and to copy it; of training to do so, to sum the map again, and
    to sum and copy the gradient. What does not agree with the reference gets no
    time. Options that take several values take them joined by commas.

    Parameters
    ----------
    names
        Mechanisms, with options where wanted, or cases of ops such as gate:channel; the pure gates if none is named.
    shapes
        Batch, channels and sides of the maps. An op's case has a shape and a layout of its own.
    dtype
        Of maps and weights: float32, bfloat16, float16.
    layout
        How the maps lie in memory: contiguous, channels_last.
    impl
        Whose code runs: auto, reference, cpu, triton; `regard ops` shows what there is.
    pass_
        inference, training (forward and backward pass).
    device
        cpu or cuda.
    threads
        How many; torch's own number if not said.
    peers
        Also the same mechanisms of timm, torchvision and fightingcv-attention, where they are installed.
    compiled
        Also everything under torch.compile, which takes seconds for each.
    rounds
        Timings of each.
    budget
        Seconds for all timings together; 5 timings are done even so.
    scaling
        Also how time grows with batch, channels and side, around the first shape.
    out
        Folder for bench.json and the picture bench.svg.
    json
        Print JSON instead of tables.
    """
    _show_a_sign_of_life()
    from regard.costs import bench as benchmark
    from regard.costs.goals import GATES

    if out is not None:
        _check_target(out / "bench.svg")
    speed = benchmark.bench(
        names or GATES,
        shapes=shapes.split(","),
        dtypes=dtype.split(","),
        layouts=layout.split(","),
        impls=impl.split(","),
        passes=pass_.split(","),
        device=device,
        threads=_numbers(threads, "--threads") if threads else None,
        peers=peers,
        compiled=compiled,
        rounds=rounds,
        budget=budget,
        scaling=scaling,
        tell=lambda sentence: print(sentence, file=sys.stderr, flush=True),
    )
    if json:
        _print_json(speed.to_json())
    else:
        print(speed)
    if out is not None:
        with _writing(out):
            speed.save(out)
    return int(bool(speed.wrong))


def look(
    network: str,
    /,
    *images: str,
    model: str | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    size: int | None = None,
    mean: str | None = None,
    std: str | None = None,
    target: int | None = None,
    method: Literal["grad-cam", "grad-cam++", "hirescam", "layercam"] = "grad-cam",
    layer: str = "auto",
    query: str = "0.5,0.5",
    head: int | None = None,
    every: bool = False,
    quick: bool = False,
    masks: Path | None = None,
    blocks: bool = False,
    beside: list[str] | None = None,
    pictures: Literal["png", "svg", "webp"] | None = None,
    out: Path = Path("look"),
    json: bool = False,
) -> None:
    """Show what a network's attention looks at in some pictures, and what spoke for its decisions, as a gallery.

    Attention is found by itself: regard's mechanisms, and the gates and weights of other networks. Beside each map
    stands what it is worth: flat, the same for every image, the same with random weights, edges, needed no more than
    random places.

    Parameters
    ----------
    network
        small_resnet, a network of timm, torchvision/NAME, file.py:function, weights that `regard compare` kept, or its
        folder for all arms side by side.
    images
        Files, folders, or patterns; nothing is fetched from the net.
    model
        The file.py:function of weights or of a folder that `regard compare` wrote with it: no file is run that only a
        folder names.
    weights
        A checkpoint of the network (safetensors, or a plain state dict); without one its weights are random.
    pretrained
        timm's pretrained weights.
    size
        Side of the pictures in pixels; the network's own if not said.
    mean, std
        By which each channel is normalised, as shares of 1: 0.5,0.5,0.5; the network's own if not said.
    target
        Show what spoke for this class, instead of the one that each picture is taken for.
    method
        By which that is computed.
    layer
        At which layer; found by itself if not said.
    query
        Of weights between places, show the view from here: row,column as shares of the picture's sides.
    head
        Of these weights, counted from 0; the mean of the heads if not said.
    every
        Show every place in the network, not the last of each kind and resolution.
    quick
        Leave out the checks that run the network again: with weights drawn anew layer by layer, and without the
        places that a map shows.
    masks
        A folder with a picture of the same name for each, white on the object: does a map find it?
    blocks
        Draw each value of a map as a block, not blended.
    beside
        More networks, to be shown beside the first.
    pictures
        Also write every picture as a file of its own, and a sheet of all.
    out
        Folder for gallery.html and gallery.json.
    json
        Print the figures as JSON instead of text.
    """
    _show_a_sign_of_life()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from regard.gallery.looking import expand, open_subjects
    from regard.gallery.looking import look as looked

    normalised = _shares("--mean", mean), _shares("--std", std)
    paths = expand(images)
    place = _place(query)
    subjects = open_subjects(network, own=model, weights=weights, pretrained=pretrained, size=size)
    for word in beside or []:
        subjects += open_subjects(word, own=model, pretrained=pretrained, size=size)
    _check_target(out / "gallery.html")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(paths))
        gallery = looked(
            subjects,
            paths,
            target=target,
            method=method,
            layer=layer,
            query=place,
            head=head,
            every=every,
            checks=not quick,
            masks=masks,
            smooth=not blocks,
            mean=normalised[0],
            std=normalised[1],
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    with _writing(out / "gallery.html"):
        page = gallery.save(out, pictures=pictures)
    if json:
        _print_json(gallery.to_json())
    else:
        print(gallery)
        print(page)


def app_(
    *models: str,
    model: str | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    size: int | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    megabytes: float = 20,
) -> None:
    """Serve a page to play with: drop a picture, choose network, mechanism, place and head, compare side by side.

    Only networks that are named here can be chosen there. Pictures are not kept, and nothing leaves this machine.

    Parameters
    ----------
    models
        small_resnet, networks of timm, torchvision/NAME, file.py:function, weights that `regard compare` kept, or its
        folder for all of its arms; a few networks of timm if none is named.
    model
        The file.py:function of weights or of a folder that `regard compare` wrote with it.
    weights
        A checkpoint of the one network that is named (safetensors, or a plain state dict).
    pretrained
        timm's pretrained weights; without them and --weights a network of timm has random ones.
    size
        Side of the pictures in pixels; the network's own if not said.
    host
        The address to listen on; with another one than this machine's own, others can use the page.
    port
        Of that address; 0 is any that is free.
    megabytes
        Of a picture's file, at most.
    """
    _show_a_sign_of_life()
    from regard.app.page import offers, serve

    offered = offers(models, own=model, weights=weights, pretrained=pretrained, size=size)
    serve(offered, host=host, port=port, megabytes=megabytes, tell=lambda address: print(address, flush=True))


def ops(*, json: bool = False) -> None:
    """Show the implementations of every op, on how many of its cases each runs, and why not on the others.

    Parameters
    ----------
    json
        Print JSON instead of a table.
    """
    _show_a_sign_of_life()
    from regard.costs import support
    from regard.ops.kernels import library

    rows = support.overview()
    if json:
        _print_json({"ops": rows, "no_kernels": library.missing(), **library.overview()})
    else:
        print(support.table(rows))


def _show(comparison: Any, as_json: bool) -> None:
    if as_json:
        _print_json(comparison.to_json())
    else:
        print(f"\n{comparison}\n\nReport: {comparison.folder / 'report.html'}")


def _at(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    return [name for name in names if name] if len(names) > 1 else names[0]


@contextmanager
def _hints_for(model: str) -> Iterator[None]:
    """Where Python takes an example, the command line takes a function that returns one."""
    from regard.base.errors import UserError

    try:
        yield
    except UserError as error:
        function = model if ".py:" in model else "a function of your own, file.py:NAME,"
        hint = f"let {function} return (model, example), with an example that"
        raise UserError(str(error).replace("pass an `example` that", hint)) from error


def _check_target(path: Path) -> None:
    """Refuse a path that cannot be written before the work whose result it shall hold."""
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        parent = next(folder for folder in path.parents if folder.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no folder")
        tempfile.TemporaryFile(dir=parent).close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    from regard.base.errors import UserError

    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}): name another place") from error


def _shares(option: str, text: str | None) -> list[float] | None:
    from regard.base.errors import UserError

    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} is one number for each channel, such as 0.5,0.5,0.5, got {text!r}") from None


def _place(text: str) -> tuple[float, float]:
    from regard.base.errors import UserError

    try:
        row, column = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--query is row,column as shares of the sides, such as 0.4,0.6, got {text!r}") from None
    if not (0 <= row <= 1 and 0 <= column <= 1):
        raise UserError(f"--query lies between 0 and 1, got {text!r}")
    return row, column


def _seeds(count: int | Literal["auto"] | None, listed: str | None) -> int | list[int] | Literal["auto"]:
    from regard.base.errors import UserError

    if listed is None:
        return "auto" if count is None else count
    if count is not None:
        raise UserError("--seeds says how many and --seed-list says which: give one of them")
    return _numbers(listed, "--seed-list")


def _numbers(text: str, option: str) -> list[int]:
    from regard.base.errors import UserError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} is numbers joined by commas, such as 3,4,5, got {text!r}") from None


def _show_a_sign_of_life() -> None:
    """Importing torch takes seconds: say that something happens, to whoever watches."""
    if sys.stderr.isatty():
        print("Loading ...", file=sys.stderr, end="\r", flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
