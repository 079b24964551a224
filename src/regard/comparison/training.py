"""One run: an arm, a seed, a fixed number of epochs, and the test images once at the end."""

from __future__ import annotations

import hashlib
import math
import platform
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regard
from regard.base.errors import UserError, brief
from regard.base.files import slug, whole
from regard.base.machine import processor
from regard.base.schema import fault
from regard.comparison import answers, data, gates, hosts
from regard.comparison.answers import Answers
from regard.comparison.arms import HOSTS, PARAMETERS, PLAIN, WIDER, twinned
from regard.comparison.endpoints import log_loss, right
from regard.comparison.optimising import Optimiser
from regard.comparison.records import Checkpoint
from regard.comparison.twins import make_constant
from regard.insertion.attach import attach
from regard.insertion.attachment import attached
from regard.registry.named import Named
from regard.registry.spelling import parse

FIRST = 64  # images at most from which gates and constants start
WIDENINGS = {WIDER: "widening", PARAMETERS: "widening_parameters"}  # by control, where the question keeps its width
Tell = Callable[[dict[str, Any]], None]


def train(
    question: dict[str, Any],
    arm: str,
    seed: int,
    folder: Path,
    tell: Tell,
    keep: bool = False,
    layout: torch.memory_format | None = None,
    images_at: Path | None = None,
) -> dict[str, Any]:
    """Train one arm with one seed, from its checkpoint if there is one, and return its record.

    For one seed every arm has the same trunk weights, the same order of images and the same augmentations. Every
    random number is a function of (seed, epoch), so that a run resumed after any epoch ends with the same weights.

    Args:
        question: what is asked; the same for all runs of a comparison.
        arm: ``"none"``, a control, a mechanism with its options, or the constant twin of one.
        seed: of the trunk, the order and the augmentations; the mechanism's own generator is seeded apart from it.
        folder: of the comparison.
        tell: is given what happens, about once a second and at the end of every epoch.
        keep: also write the trained weights.
        layout: of weights and maps in memory; by default the faster of those that are safe.
        images_at: the folder of the images, where that is not ``data`` in the folder.

    Returns:
        The record; of a trial, in whose question ``trial`` is set, one that knows nothing of the test images.

    Raises:
        FloatingPointError: the loss is no number any more.
    """
    images = data.load(images_at or folder / "data")
    split = images.split(seed)
    device = torch.device(question["device"])
    mean, std = question["normalisation"] or data.normalisation(images, split.train)
    example = first_images(images, split.train, question, seed, _preparation(mean, std, torch.device("cpu")))
    host = build(question, arm, seed, example)
    scales = gates.branch_scales(host, example)
    layout = layout or hosts.memory_format(host)
    model = on_device(host, question, layout)
    prepare = _preparation(mean, std, device, layout)
    learning = _learning(model, question)

    factor = (question.get("rates") or {}).get(arm, 1.0)
    matrix_rate = question["matrix_rate"] and factor * question["matrix_rate"]
    optimiser = Optimiser(model, factor * question["learning_rate"], matrix_rate, question["weight_decay"])
    steps = math.ceil(len(split.train) / question["batch"])
    total = steps * question["epochs"]

    checkpoint = checkpoint_path(folder, arm, seed)
    state = _resume(checkpoint, model, optimiser, question)
    curve: list[dict[str, Any]] = state["curve"]
    started = time.perf_counter() - sum(epoch["seconds"] for epoch in curve)
    told = 0.0
    for epoch in range(len(curve), question["epochs"]):
        begun = time.perf_counter()
        torch.manual_seed(data.stream(seed, epoch, "model").initial_seed())  # dropout and its like
        crops = data.stream(seed, epoch, "augmentation")
        model.eval()
        for part in learning:
            part.train()
        losses = torch.zeros((), device=device)
        for step, index in enumerate(_batches(data.order(split.train, seed, epoch), question["batch"])):
            pixels = _pixels(images, index)
            if question["augmentation"] == "none":
                x = prepare(data.centre(pixels.to(device), question["size"]))
            else:
                x = prepare(data.augment(pixels, question["size"], crops, device))
            labels = torch.from_numpy(images.labels[index]).to(device)
            with _autocast(device):
                loss = F.cross_entropy(model(x), labels, label_smoothing=question["smoothing"])
            loss.backward()
            optimiser.step((epoch * steps + step) / total)
            losses += loss.detach()
            if time.perf_counter() - told > 0.5:
                told = time.perf_counter()
                tell({"done": (epoch * steps + step + 1) / total, "seconds": told - started})
        if not math.isfinite(losses.item()):
            raise FloatingPointError(f"the loss became {losses.item() / steps} in epoch {epoch + 1}")
        val = _answers(model, images, split.val, question, prepare, device)
        seconds = time.perf_counter() - begun
        accuracy = float(right(val.logits, val.labels).mean())
        curve.append(
            {"epoch": epoch + 1, "train_loss": losses.item() / steps, "val_top1": accuracy, "seconds": seconds}
        )
        tell({"done": (epoch + 1) / question["epochs"], "val_top1": accuracy, "seconds": time.perf_counter() - started})
        if epoch + 1 < question["epochs"]:
            _save(checkpoint, model, optimiser, curve, state["resumed"])

    learnt = {
        "arm": arm,
        "seed": seed,
        "status": "done",
        "reason": None,
        "val_log_loss": _number(log_loss(val.logits, val.labels), "validation"),
        "curve": curve,
        "seconds": sum(epoch["seconds"] for epoch in curve),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layout": str(layout).removeprefix("torch."),
        "resumed": state["resumed"],
        "environment": environment(),
    }
    if question.get("trial"):
        return learnt

    test = _answers(model, images, split.test, question, prepare, device)
    looks = not twinned(arm) and gates.has_gates(model)
    asked = _ask_gates(model, images, split, question, prepare, device) if looks else {}
    if keep:
        with whole(folder / "weights" / slug(arm) / f"seed-{seed:04d}.safetensors") as path:
            safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
        if not twinned(arm):  # what looks at nothing has nothing to show
            from regard.comparison import pictures  # only the first seed draws, and only it pays for the import

            pictures.write(folder, arm, model, images, split.test, prepare, question)
    return learnt | {
        "top1": float(right(test.logits, test.labels).mean()),
        "top5": float(right(test.logits, test.labels, among=5).mean()) if len(images.classes) >= 10 else None,
        "log_loss": _number(log_loss(test.logits, test.labels), "test"),
        "logits_sha256": answers.write(answers.path_of(folder, arm, seed), val, test),
        "test_images": len(split.test),
        "weights_sha256": fingerprint(model),
        **({"branch_scale": scales} if scales else {}),
        **asked,
    }


def _number(loss: float, of: str) -> float:
    if not loss <= 1e15:
        raise FloatingPointError(f"what the trained network says about the {of} images is no number")
    return loss


def build(question: dict[str, Any], arm: str, seed: int, example: Tensor | None = None) -> nn.Module:
    """The host with one arm in it; the trunk's weights depend on the seed alone.

    Of a frozen trunk only the classifier and what the arm adds require gradients.

    Args:
        question: what is asked.
        arm: as `train` takes it.
        seed: of the trunk and of the mechanism.
        example: training images, prepared, from which gates take their factors and constants their first values; zeros
            will do for a model whose weights are loaded afterwards, or do not matter.
    """
    host = hosts.build(
        question["model"],
        len(question["classes"]),
        question["channels"],
        seed=seed,
        size=question["size"],
        pretrained=question["pretrained"],
        weights=Path(question["weights"]) if question["weights"] else None,
        widening=(question.get(WIDENINGS[arm]) if arm in WIDENINGS else None) or 1.0,
        digest=question.get("model_sha256"),
    )
    if question["trunk"] == "frozen":
        host.eval().requires_grad_(False)
        for classifier in hosts.classifiers(host, len(question["classes"])):
            classifier.requires_grad_(True)
    if arm not in HOSTS:
        mechanism, options = parse(twinned(arm) or arm)
        if example is None:
            example = torch.zeros(2, question["channels"], question["size"], question["size"])
        own = data.stream(seed, 0, "mechanism").initial_seed()
        start = {"at": question["at"], "start": question["start"], "seed": own}
        added = attach(host, mechanism, example=example, **start, **options)
        if twinned(arm):
            make_constant(added, example)
    return host


def first_images(
    images: data.Images, index: np.ndarray, question: dict[str, Any], seed: int, prepare: Callable[[Tensor], Tensor]
) -> Tensor:
    """The first training images of a seed, as the model sees them in evaluation: the same for every arm."""
    chosen = data.order(index, seed, 0)[: min(FIRST, max(8, 2**20 // (3 * question["size"] ** 2)))]
    return prepare(data.centre(_pixels(images, chosen), question["size"]))


def _ask_gates(
    model: nn.Module,
    images: data.Images,
    split: data.Split,
    question: dict[str, Any],
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, Any]:
    """How far the gates opened on validation images, and the accuracy with each gate replaced by its mean over
    training images, or by that of another image. The images are in a random order, the same for every run."""

    def some(index: np.ndarray, most: int) -> np.ndarray:
        return np.random.default_rng(0).permutation(index)[:most]

    def accuracy(index: np.ndarray) -> float:
        found = _answers(model, images, index, question, prepare, device)
        return float(right(found.logits, found.labels).mean())

    openings = gates.Openings(model)
    val, test = some(split.val, gates.ASKED), some(split.test, gates.ASKED)
    means = gates.averages(model, lambda: accuracy(some(split.train, gates.MEANS)))
    with openings.watched():
        found: dict[str, Any] = {"gate_images": len(test), "val_top1_own_gate": accuracy(val)}
    found["top1_own_gate"] = accuracy(test)
    for word, instead in (("mean", means), ("other", None)):
        with gates.replaced(model, instead):
            found |= {f"top1_{word}_gate": accuracy(test), f"val_top1_{word}_gate": accuracy(val)}
    return found | {"gates": openings.told()}


def on_device(model: nn.Module, question: dict[str, Any], layout: torch.memory_format | None = None) -> nn.Module:
    """The model where it is trained and timed, in a memory layout; by default the faster of those that are safe."""
    return model.to(question["device"]).to(memory_format=layout or hosts.memory_format(model))


def _learning(model: nn.Module, question: dict[str, Any]) -> list[nn.Module]:
    """What is trained: the batch norms and the dropout of a frozen trunk work as they do in evaluation."""
    if question["trunk"] == "trained":
        return [model]
    added = [module for attachment in attached(model) for module in attachment.modules.values()]
    return [*hosts.classifiers(model, len(question["classes"])), *added]


def environment() -> dict[str, Any]:
    """What a run's weights depend on besides the question."""
    return {
        "regard": regard.__version__,
        "torch": str(torch.__version__),  # a class of its own, which no checkpoint may hold
        "timm": version("timm"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def checkpoint_path(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / slug(arm) / f"seed-{seed:04d}.ckpt"


def fingerprint(model: nn.Module) -> str:
    """sha256 of every weight and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().clone().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode(), _autocast(x.device):
        return model(x).float()


def _answers(
    model: nn.Module,
    images: data.Images,
    index: np.ndarray,
    question: dict[str, Any],
    prepare: Any,
    device: torch.device,
) -> Answers:
    """What the model says about the images, in float32."""
    model.eval()
    logits = [
        predict(model, prepare(data.centre(_pixels(images, batch).to(device), question["size"])))
        for batch in _batches(index, 2 * question["batch"])
    ]
    # read once, at the end: a GPU need not be waited for
    return Answers(index, images.labels[index], torch.cat(logits).cpu().numpy())


def _pixels(images: data.Images, index: np.ndarray) -> Tensor:
    return torch.from_numpy(images.pixels[index])


def _preparation(
    mean: Any, std: Any, device: torch.device, layout: torch.memory_format = torch.channels_last
) -> Callable[[Tensor], Tensor]:
    shift = torch.tensor(mean, device=device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=device).view(1, -1, 1, 1)
    # numbers by whole channels first, then the layout: three numbers in a row are no work for vectors
    return lambda x: (x - shift).div_(scale).contiguous(memory_format=layout)


def _batches(index: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """A last batch of one image would leave batch norms nothing to average: it joins the one before."""
    ends = list(range(size, len(index), size))
    if ends and len(index) - ends[-1] == 1:
        ends.pop()
    yield from np.split(index, ends)


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _save(path: Path, model: nn.Module, optimiser: Optimiser, curve: list[Any], resumed: int) -> None:
    with whole(path) as temporary:
        torch.save(
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state(),
                "curve": curve,
                "resumed": resumed,
                "environment": environment(),
            },
            temporary,
        )


def _resume(path: Path, model: nn.Module, optimiser: Optimiser, question: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's state, put into model and optimiser; a fresh start where there is none to be trusted."""
    fresh: dict[str, Any] = {"curve": [], "resumed": 0}
    if not path.is_file():
        return fresh
    try:
        if zipfile.ZipFile(path).testzip():  # torch itself does not look at the check sums
            return fresh
        state = torch.load(path, map_location=question["device"], weights_only=True)
        # other versions or threads compute other numbers: not one run
        if state["environment"] != environment() or not _fits(state, model, optimiser, question["epochs"]):
            return fresh
    except Exception:  # whatever is wrong with the file, the run can be done again
        return fresh
    model.load_state_dict(state["model"])
    optimiser.load(state["optimiser"])
    return {"curve": state["curve"], "resumed": state["resumed"] + 1}


def _fits(state: dict[str, Any], model: nn.Module, optimiser: Optimiser, epochs: int) -> bool:
    """Whether a checkpoint holds what this model and optimiser take, so that loading it cannot fail half-way."""
    if fault({key: state[key] for key in Checkpoint.__annotations__}, Checkpoint):
        return False
    own = model.state_dict()
    return (
        [epoch["epoch"] for epoch in state["curve"]] == list(range(1, len(state["curve"]) + 1))
        and len(state["curve"]) < epochs
        and [(key, _kind(tensor)) for key, tensor in state["model"].items()] == [(k, _kind(t)) for k, t in own.items()]
        and optimiser.fits(state["optimiser"])
    )


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.layout


def check_trainable(question: dict[str, Any], arm: str) -> None:
    """Build the arm once, so that what cannot work is said before any training.

    Raises:
        UserError: the mechanism does not fit the host, or the host does not classify these images.
    """
    model = build(question, arm, seed=0)
    if arm != PLAIN:
        _check_scores(model, question, training=False)
        return
    if Named.read(question["model"]).file and fingerprint(build(question, arm, seed=0)) != fingerprint(model):
        raise UserError(
            f"{question['model']} gives other weights when it is called again with the same seed, so that arms would "
            "differ in them: draw them from torch's global generator alone"
        )
    for mode in (True, False):
        _check_scores(model, question, training=mode)


def _check_scores(model: nn.Module, question: dict[str, Any], *, training: bool) -> None:
    classes, channels, size = len(question["classes"]), question["channels"], question["size"]
    named = Named.read(question["model"])
    hint = "choose another model, or other options"
    if named.file:
        hint = f"let {named.name} take num_classes and in_chans, which it is then told, or return a network that fits"
    images = f"{channels} x {size} x {size}"
    try:
        with torch.no_grad():
            output = model.train(training)(torch.zeros(2, channels, size, size))
    except Exception as error:  # whatever a network makes of images that it was not written for
        raise UserError(f"{named.text} cannot take images of {images} ({brief(error)}): {hint}") from error
    if not isinstance(output, Tensor) or output.shape != (2, classes):
        given = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UserError(
            f"{named.text} is no classifier: it should give (batch, {classes}) for a batch of images, and gives "
            f"{given} for 2 of {images} in {'training' if training else 'evaluation'}: {hint}"
        )
