"""What is kept of a run that has not ended: weights, optimiser and curve, after every epoch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.base.files import slug, whole
from regard.base.schema import fault
from regard.comparison.environment import environment
from regard.comparison.optimising import Optimiser
from regard.comparison.question import Question
from regard.comparison.records import Checkpoint


def path_of(folder: Path, arm: str, seed: int) -> Path:
    """Where the checkpoint of a run is, beside its record."""
    return folder / "runs" / slug(arm) / f"seed-{seed:04d}.ckpt"


def save(path: Path, model: nn.Module, optimiser: Optimiser, curve: list[Any], resumed: int) -> None:
    """Write it whole, in the place of the one before."""
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


def resume(path: Path, model: nn.Module, optimiser: Optimiser, question: Question) -> dict[str, Any]:
    """The checkpoint's state, put into model and optimiser; a fresh start where there is none to be trusted."""
    fresh: dict[str, Any] = {"curve": [], "resumed": 0}
    if not path.is_file():
        return fresh
    try:
        if zipfile.ZipFile(path).testzip():  # torch itself does not look at the check sums
            return fresh
        state = torch.load(path, map_location=question.device, weights_only=True)
        # other versions or threads compute other numbers: not one run
        if state["environment"] != environment() or not _fits(state, model, optimiser, question.epochs):
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
