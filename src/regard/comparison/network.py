"""The network of one arm: built, checked, and put where it is trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from regard.base.errors import UserError, brief
from regard.comparison import draws, hosts
from regard.comparison.arms import HOSTS, PLAIN, twinned
from regard.comparison.question import Question
from regard.comparison.twins import make_constant
from regard.insertion.attach import attach
from regard.insertion.attachment import attached
from regard.registry.named import Named
from regard.registry.spelling import parse


def build(question: Question, arm: str, seed: int, example: Tensor | None = None) -> nn.Module:
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
        question.model,
        len(question.classes),
        question.channels,
        seed=seed,
        size=question.size,
        pretrained=question.pretrained,
        weights=Path(question.weights) if question.weights else None,
        widening=question.width_of(arm) or 1.0,
        digest=question.model_sha256,
    )
    if question.trunk == "frozen":
        host.eval().requires_grad_(False)
        for classifier in hosts.classifiers(host, len(question.classes)):
            classifier.requires_grad_(True)
    if arm not in HOSTS:
        mechanism, options = parse(twinned(arm) or arm)
        if example is None:
            example = torch.zeros(2, question.channels, question.size, question.size)
        own = draws.stream(seed, 0, "mechanism").initial_seed()
        added = attach(host, mechanism, at=question.at, start=question.start, seed=own, example=example, **options)
        if twinned(arm):
            make_constant(added, example)
    return host


def on_device(model: nn.Module, device: str, layout: torch.memory_format | None = None) -> nn.Module:
    """The model where it is trained and timed, in a memory layout; by default the faster of those that are safe."""
    return model.to(device).to(memory_format=layout or hosts.memory_format(model))


def learning_parts(model: nn.Module, question: Question) -> list[nn.Module]:
    """What is trained: the batch norms and the dropout of a frozen trunk work as they do in evaluation."""
    if question.trunk == "trained":
        return [model]
    added = [module for attachment in attached(model) for module in attachment.modules.values()]
    return [*hosts.classifiers(model, len(question.classes)), *added]


def check_trainable(question: Question, arm: str) -> None:
    """Build the arm once, so that what cannot work is said before any training.

    Raises:
        UserError: the mechanism does not fit the host, or the host does not classify these images.
    """
    model = build(question, arm, seed=0)
    if arm != PLAIN:
        _check_scores(model, question, training=False)
        return
    if Named.read(question.model).file and fingerprint(build(question, arm, seed=0)) != fingerprint(model):
        raise UserError(
            f"{question.model} gives other weights when it is called again with the same seed, so that arms would "
            "differ in them: draw them from torch's global generator alone"
        )
    for mode in (True, False):
        _check_scores(model, question, training=mode)


def _check_scores(model: nn.Module, question: Question, *, training: bool) -> None:
    classes, channels, size = len(question.classes), question.channels, question.size
    named = Named.read(question.model)
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


def fingerprint(model: nn.Module) -> str:
    """sha256 of every weight and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().clone().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
