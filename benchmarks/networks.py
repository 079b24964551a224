"""Try mechanisms in one network of every family of timm, and in those of torchvision; write docs/networks.md.

Usage: python benchmarks/networks.py [--all] [--jobs N] [NETWORK ...]

Without names, what runs/networks holds is not tried again, and the page is written. With names, such as `resnet18` or
`torchvision/r3d_18`, these alone are tried, again, and the page is left alone. `--all` tries every mechanism instead of
ten unlike ones. Two cores need about half an hour with `--jobs 2`.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.models import _registry as timm_registry
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision import models as vision
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import regard
from regard.base.errors import UserError
from regard.base.files import write_text
from regard.insertion.dry_run import dry_run
from regard.insertion.site import Site, choose
from regard.insertion.surveyed import Surveyed
from regard.insertion.words import WORDS
from regard.networks.models import open_model
from regard.networks.replica import call
from regard.registry.named import TORCHVISION

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "networks"
RESULTS = ROOT / "benchmarks" / "results" / "networks.json"
PAGE = ROOT / "docs" / "networks.md"
SIZES = (64, 128, 126, None)  # pixels, the first that the network takes; None is its own size
FRAMES = (4, 16)
LIMIT = 900  # seconds of processor time for one network
SAMPLE = ("se", "eca", "cbam", "coordinate", "bam", "simam", "sk", "non_local", "shuffle", "stn")
# beside the smallest of their families, because people ask for them
ASKED_FOR = (
    "convnext_tiny", "cspresnet50", "efficientnet_b0", "fbnetc_100", "mobilenetv4_conv_small", "nfnet_l0", "repvgg_a0",
    "resnet50", "resnext50_32x4d", "vgg11_bn",
)  # fmt: skip
# the same code as another of torchvision, or too slow for one core
LEFT_OUT = (
    "deeplabv3_resnet101", "fcn_resnet101", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "mvit_v1_b",
    "mvit_v2_s", "retinanet_resnet50_fpn_v2", "s3d", "swin3d_b", "swin3d_s",
)  # fmt: skip
SHORTER = {"deepseek_vit_412m": "deepseek_vit_412m[depth=2]"}  # all of its 24 layers are alike

Result = dict[str, Any]


class OutOfTime(BaseException):
    """Not an `Exception`, so that nobody on the way makes another error of it."""


def timm_networks() -> dict[str, str]:
    """Network -> family: the smallest of each family, but for timm's own tests, and those that people ask for."""
    kept = RUNS / f"smallest of timm {timm.__version__}.json"
    if not kept.exists():
        write_text(kept, json.dumps({family: smallest(family) for family in sorted(timm_registry._module_to_models)}))
    chosen = {name: family for family, name in json.loads(kept.read_text()).items()}
    chosen |= {name: timm_registry._model_to_module[name] for name in ASKED_FOR}
    return {SHORTER.get(name, name): family for name, family in sorted(chosen.items(), key=lambda pair: pair[::-1])}


def smallest(family: str) -> str:
    """The network of a family of timm that has the fewest parameters."""
    sizes = {}
    for name in sorted(timm_registry._module_to_models[family]):
        if not name.startswith("test_") and name not in timm_registry._deprecated_models:
            with torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    print(f"{family}: {min(sizes, key=sizes.__getitem__)} is the smallest of {len(sizes)}", flush=True)
    return min(sizes, key=sizes.__getitem__)


def torchvision_networks() -> dict[str, str]:
    """Network -> family: the smallest of each family that classifies images, and all for other tasks."""
    chosen: dict[str, str] = {}
    sizes = {name: vision.get_model_weights(name).DEFAULT.meta["num_params"] for name in vision.list_models(vision)}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        chosen[vision.get_model_builder(name).__module__.removeprefix("torchvision.models.")] = name
    families = {TORCHVISION + name: family for family, name in sorted(chosen.items())}
    for kind in (vision.segmentation, vision.detection, vision.video):
        names = [name for name in vision.list_models(kind) if name not in LEFT_OUT]
        families |= {TORCHVISION + name: kind.__name__.rpartition(".")[2] for name in names}
    return families


def build(name: str) -> tuple[nn.Module, Any, int]:
    """A network with a batch of the smallest images, and shortest clips, that it takes; and the side of the images."""
    reason = ""
    moving = name.removeprefix(TORCHVISION) in vision.list_models(vision.video)
    for size, text, frames in product(SIZES, (name, f"{name}[img_size=%s]"), FRAMES if moving else (None,)):
        try:
            model, example = open_model(text.replace("%s", str(size)), size=size, batch=2)
            example = example[:, :, :frames] if frames else example
            torch.manual_seed(0)
            settle(model, example)
            assert all(torch.isfinite(output).all() for output in outputs(model, example)), "its outputs are not finite"
            return model, example, tree_leaves(example)[0].shape[-1]
        except Exception as error:  # whatever a network says of images that it does not take
            reason = str(error)
    raise UserError(f"it takes none of the images: {reason}")


@torch.no_grad()
def settle(model: nn.Module, example: Any) -> None:
    """Make random weights more like learnt ones: no norm or layer scale that is constant, and statistics that fit."""
    for parameter in model.parameters():
        if parameter.min() == parameter.max():
            parameter.add_(0.1 * torch.randn_like(parameter))
    norms: list[Any] = [module for module in model.modules() if hasattr(module, "momentum")]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    loss(model, example)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module in (model, getattr(model, "roi_heads", model)):
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0  # a detector that has learnt nothing would detect nothing
            module.detections_per_img = 5  # and then too much


@torch.no_grad()
def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    model.eval()
    torch.manual_seed(0)
    return [leaf for leaf in tree_leaves(call(model, example)) if isinstance(leaf, Tensor)]


def loss(model: nn.Module, example: Any) -> Tensor:
    """Of a training step: a detector's own, else a random projection of the outputs."""
    model.train()
    torch.manual_seed(0)
    if isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform):
        example = (*example, [target(image) for image in example[0]])
    found = [
        leaf for leaf in tree_leaves(call(model, example)) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    return sum((output * torch.randn_like(output)).sum() for output in found)  # type: ignore[return-value]


def target(image: Tensor) -> dict[str, Tensor]:
    """Objects in the middle of an image, one for each level of a detector, for every kind of it."""
    height, width = image.shape[-2:]
    ends = [((1 - share) / 2, (1 + share) / 2) for share in (0.1, 0.3, 0.6, 1.0)]
    boxes = [[low * width, low * height, high * width, high * height] for low, high in ends]
    masks = torch.zeros(len(ends), height, width, dtype=torch.uint8)
    for mask, (low, high) in zip(masks, ends, strict=True):
        mask[int(low * height) : int(high * height), int(low * width) : int(high * width)] = 1
    return {
        "boxes": torch.tensor(boxes),
        "labels": torch.ones(len(ends), dtype=torch.int64),
        "masks": masks,
        "keypoints": torch.tensor([width / 2, height / 2, 1.0]).expand(len(ends), 17, 3),
    }


def try_network(name: str, family: str, mechanisms: list[str]) -> Result:
    """What every word finds in a network, and what becomes of every mechanism."""
    start = time.process_time()
    result: Result = {"name": name, "family": family, "words": {}, "mechanisms": {}}
    try:
        with time_limit(LIMIT):
            model, example, result["side"] = build(name)
            survey = dry_run(model, example)
            network = Surveyed(model, survey)
            for word in WORDS:
                result["words"][word] = attempt(lambda: list(map(describe, choose(word, network))))  # noqa: B023
            before = outputs(model, example)
            with patch("regard.insertion.attach.dry_run", return_value=survey):  # it sees the same for every mechanism
                for mechanism in mechanisms:
                    result["mechanisms"][mechanism] = attempt(lambda: insert(model, example, before, mechanism))  # noqa: B023
    except OutOfTime:
        result["defect"] = f"took more than {LIMIT} seconds"
    except Exception as error:
        result["defect"] = brief(error)
    return result | {"seconds": round(time.process_time() - start)}


def attempt(check: Callable[[], Any]) -> Any:
    """What a check returns, or why it was refused, or what is wrong."""
    try:
        return check()
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"defect": brief(error)}


def describe(site: Site) -> dict[str, Any]:
    others = f" + {site.layout.prefix}" * bool(site.layout.prefix)
    return {"name": site.name, "shape": site.shape[1:], "calls": site.calls, "layout": site.layout.word + others}


def insert(model: nn.Module, example: Any, before: list[Tensor], mechanism: str) -> dict[str, Any]:
    """Attach a mechanism, hold it to its promises, and take it out again.

    Raises:
        UserError: it was refused.
        AssertionError: a promise was not kept.
    """
    state = deepcopy(model.state_dict())
    attached = regard.attach(model, mechanism, example=example, seed=0)
    try:
        sites = attached.sites
        assert same(outputs(model, example), before), "attaching changes the outputs"

        train(model, example)
        bad = [name for name, p in attached.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not bad, f"{len(bad)} parameters get no finite gradient, such as {bad[0]}"
        model.load_state_dict(state, strict=False)  # the statistics of norms

        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in attached.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert not same(outputs(model, example), before), "other weights do not change the outputs"
        train(model, example)
        model.load_state_dict(state, strict=False)
        moved = {site: any(map(torch.any, gradients(module))) for site, module in attached.modules.items()}
        assert all(moved.values()), f"{list(moved.values()).count(False)} of {len(moved)} sites get no gradient"
    finally:
        attached.remove()
        model.zero_grad()
    after = model.state_dict()
    assert list(after) == list(state), "removing leaves other keys"
    assert same(list(after.values()), list(state.values())), "removing leaves other weights"
    assert same(outputs(model, example), before), "removing leaves other outputs"
    return {"sites": len(sites), "first": sites[0]}


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def train(model: nn.Module, example: Any) -> None:
    model.zero_grad()
    loss(model, example).backward()


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def brief(error: Exception) -> str:
    """An error in one line, with the place where it arose."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = (str(error).splitlines() or [""])[0]
    if isinstance(error, AssertionError):
        return message
    return f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {message}"


def line(result: Result) -> str:
    """What is printed of a network."""
    if "defect" in result:
        return f"{result['name']}: DEFECT: {result['defect']}"
    answers = {**result["words"], **result["mechanisms"]}
    defects = [f"{key}: DEFECT: {answer['defect']}" for key, answer in answers.items() if "defect" in answer]
    works = [name for name, answer in result["mechanisms"].items() if "sites" in answer]
    auto = result["words"]["auto"]
    chosen = f"{len(auto)} x {auto[0]['name']}" if isinstance(auto, list) else "nothing"
    said = [f"auto finds {chosen}", f"{len(works)} of {len(result['mechanisms'])} mechanisms work", *defects]
    return f"{result['name']} ({result['seconds']} s): {'; '.join(said)}"


def render(found: dict[str, Any]) -> str:
    """The page."""
    results = found["networks"]
    answers = [(result, name, answer) for result in results for name, answer in result["mechanisms"].items()]
    works = [answer for _, _, answer in answers if "sites" in answer]
    refused = [(result, name, answer["refused"]) for result, name, answer in answers if "refused" in answer]
    notes: dict[str, tuple[int, str]] = {}
    for result, name, reason in refused:
        example = f"{shortened(reason)} ({name} in {result['name'].removeprefix('torchvision/')})"
        notes.setdefault(kind_of(reason), (len(notes) + 1, example))
    defects = [
        f"- {result['name']}: {key}: {answer['defect']}"
        for result in results
        for key, answer in {**result["words"], **result["mechanisms"]}.items()
        if "defect" in answer
    ] + [f"- {result['name']}: {result['defect']}" for result in results if "defect" in result]
    ours = [result for result in results if not result["name"].startswith(TORCHVISION)]
    theirs = [result for result in results if result["name"].startswith(TORCHVISION)]
    families = len({result["family"] for result in ours})
    mechanisms = list(dict.fromkeys(name for _, name, _ in answers))
    versions = found["versions"]
    header = f"| family | network | px | layout | {' | '.join(COUNTED)} | `auto` begins with | works | refused |"
    rule = f"|---|---|---|---|{'---|' * len(COUNTED)}---|---|---|"
    return f"""# Networks

Made by `python benchmarks/networks.py` (timm {versions["timm"]}, torchvision {versions["torchvision"]}, torch
{versions["torch"]}); nothing here is written by hand.

**{len(results)} networks, {len(answers)} pairs of a network and a mechanism: {len(works)} work, {len(refused)} are
refused with a sentence, {len(defects)} {"fails" if len(defects) == 1 else "fail"} otherwise.**

Of timm the network with the fewest parameters of each of its {families} families, and {len(ours) - families} more that
people ask for; of torchvision the smallest of each family that classifies images, and all that segment, detect or
see videos, but for {", ".join(LEFT_OUT)} (the same code as another, or too slow for this). Random weights;
images of 64 pixels, or of 128 or the network's own size where it takes no smaller ones. The mechanisms, each at its own
place (`at="auto"`) and started as the identity: {", ".join(mechanisms)}.

*Works* means: the outputs are bit-equal after attaching; in a training step every added parameter gets a finite
gradient; other values of the added parameters change the outputs, and then every site gets a gradient that is not zero;
after `remove()` the keys, weights and outputs are bit-equal to those before.

The columns with numbers count the sites that a word finds, such as `at="branches"`; a blank is a word that finds
nothing, and says so in a sentence. `transitions` are the stages but the last, `head` is the last. Tokens + 1 are tokens
behind one that belongs to no pixel.
{"".join(f"{chr(10)}{defect}" for defect in ["What fails:", "", *defects, ""]) if defects else ""}
## timm

{header}
{rule}
{chr(10).join(_row(result, notes) for result in ours)}

## torchvision

{header}
{rule}
{chr(10).join(_row(result, notes) for result in theirs)}

## Why refused

{chr(10).join(f"{number}. {example}" for number, example in notes.values())}

## Where each word begins

The first site of every word, with the shape of its map, (channels, height, width).

| network | {" | ".join(COUNTED[1:])} |
|---|{"---|" * len(COUNTED[1:])}
{chr(10).join(_first_sites(result) for result in results)}
"""


COUNTED = [word for word in WORDS if word not in ("transitions", "head")]


def kind_of(reason: str) -> str:
    """A reason without the names and numbers of its network."""
    return re.sub(r"in this \w+|'[^']*\.[^']*'|\d+", "", shortened(reason))


def shortened(reason: str) -> str:
    """Without the hints, which are other names in every network."""
    return reason.partition("; ")[0]


def _row(result: Result, notes: dict[str, tuple[int, str]]) -> str:
    name = result["name"].removeprefix(TORCHVISION)
    words = result["words"]
    if "auto" not in words:
        return f"| {result['family']} | {name} |  |  | {' | '.join('' for _ in COUNTED)} |  |  | {result['defect']} |"
    layouts = dict.fromkeys(site["layout"] for found in words.values() if isinstance(found, list) for site in found)
    layout = ", ".join(layouts).replace("_", " ")
    counts = " | ".join(str(len(words[word])) if isinstance(words[word], list) else "" for word in COUNTED)
    auto = f"`{words['auto'][0]['name']}`" if isinstance(words["auto"], list) else ""
    answers = result["mechanisms"]
    works = sum("sites" in answer for answer in answers.values())
    refused: dict[int, list[str]] = {}
    for mechanism, answer in answers.items():
        if "refused" in answer:
            refused.setdefault(notes[kind_of(answer["refused"])][0], []).append(mechanism)
    why = "; ".join(f"{', '.join(names)} ({number})" for number, names in sorted(refused.items()))
    return (
        f"| {result['family']} | {name} | {result['side']} | {layout} | {counts} | {auto} "
        f"| {works} of {len(answers)} | {why} |"
    )


def _first_sites(result: Result) -> str:
    cells = []
    for word in COUNTED[1:]:
        found = result["words"].get(word)
        shape = tuple(found[0]["shape"]) if isinstance(found, list) else ()
        cells.append(f"`{found[0]['name']}` {shape}" if isinstance(found, list) else "")
    return f"| {result['name']} | {' | '.join(cells)} |"


def kept(name: str) -> Path:
    return RUNS / f"{name.replace('/', ' ')}.json"


def work(name: str, family: str, mechanisms: list[str]) -> None:
    """Try a network, keep what becomes of it, and print it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # timm's, of names that it has changed
    result = try_network(name, family, mechanisms)
    write_text(kept(name), json.dumps(result))
    print(line(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--all", action="store_true", help="try every mechanism that can be attached")
    parser.add_argument("--jobs", type=int, default=1, help="networks at the same time, one core each")
    chosen = parser.parse_args()
    mechanisms = [name for name in regard.names() if regard.info(name).place] if chosen.all else list(SAMPLE)
    networks = timm_networks() | torchvision_networks()
    missing = [name for name in networks if not kept(name).exists() or not holds(kept(name), mechanisms)]
    with ProcessPoolExecutor(chosen.jobs, get_context("spawn")) as pool:
        tasks = [pool.submit(work, name, networks.get(name, ""), mechanisms) for name in chosen.networks or missing]
    for task in tasks:
        task.result()
    if not chosen.networks:
        versions = {package: version(package).partition("+")[0] for package in ("timm", "torch", "torchvision")}
        found = {"versions": versions, "networks": [json.loads(kept(name).read_text()) for name in networks]}
        write_text(RESULTS, json.dumps(found, indent=1) + "\n")
        print(write_text(PAGE, render(found)))


def holds(file: Path, mechanisms: list[str]) -> bool:
    """Whether a kept result has all of these mechanisms."""
    return set(json.loads(file.read_text())["mechanisms"]) == set(mechanisms)


if __name__ == "__main__":
    main()
