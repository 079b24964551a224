"""The numbers computed with the authors' own code, and how far ours are from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import regard
from regard.mechanisms import glimpse, kernel_regression, stn

GOLDEN = Path(__file__).parents[1] / "golden"
QUIRKS = ("bam_official_wide_quirk",)  # recorded bugs that are not imitated
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def sample(x, theta, *, size, align_corners, padding_mode):
    return stn.sample(x, theta, size=tuple(size), align_corners=align_corners, padding=padding_mode)


def retina(x, l, *, g, k, s):  # noqa: E741  (the authors' names)
    return glimpse.look(x, l, side=g, scales=k, factor=s).flatten(1)


def regress(queries, keys, values, w=None, *, kernel, parametric):
    assert parametric == (w is not None)
    columns = (x.unsqueeze(-1) for x in (queries, keys, values))
    return kernel_regression.regress(*columns, kernel=kernel, w=w).squeeze(-1)


MAPS = {"theta": "frame", "att": "mask"}  # a further output of the authors -> the tap that shows it
FUNCTIONS = {"stn": sample, "ram_retina": retina, "nadaraya_watson": regress}


def load(case, tensors):
    return regard.load_official(case["mechanism"], tensors, **{"channels": case["x_shape"][1]} | case["args"])


def deviations(case) -> dict[str, float]:
    """The largest absolute deviation of each kind: value, outputs, gradient of the input, of the parameters, buffers.

    What the authors give and we do not, or the other way round, is a KeyError or an AssertionError.
    """
    tensors = load_file(GOLDEN / case["file"])
    inputs = part(tensors, "in/")
    wanted_inputs = part(tensors, "grad_in/")
    for name, tensor in inputs.items():
        inputs[name] = tensor.requires_grad_(name in wanted_inputs)
    x = tensors["x"].requires_grad_("grad_x" in tensors)
    wanted = part(tensors, "out/")
    module = None
    if case["call"] == "function":
        y, outputs = FUNCTIONS[case["mechanism"]](x, **inputs, **case["args"]), {}
    else:
        module = load(case, part(tensors, "param/")).train(case["mode"] == "train")
        y, outputs = apply(module, x, inputs, wanted)
    found = {"value": distance(y, tensors["y"])}
    (y * tensors["g"]).sum().backward()
    if wanted:
        found["further outputs"] = max(distance(outputs[name], value) for name, value in wanted.items())
    if x.requires_grad:
        found["gradient"] = distance(x.grad, tensors["grad_x"])
    for name, value in wanted_inputs.items():
        found["gradient"] = max(found.get("gradient", 0.0), distance(inputs[name].grad, value))
    if module is not None:
        found |= inside(module, case, tensors)
    return found


def apply(module, x, inputs, wanted):
    """The output, and the further outputs by the authors' names."""
    if hasattr(module, "play"):  # a game
        played = module.play(x, inputs["labels"], start=inputs["l0"], noise=inputs["eps"])
        return played.loss.reshape(1), played._asdict()
    outputs = {}
    for name in wanted.keys() & MAPS.keys():
        tap = module.get_submodule(MAPS[name])
        tap.register_forward_hook(lambda tap, args, value, name=name: outputs.update({name: value}))
    y = module(x, *inputs.values())
    if isinstance(y, tuple):
        y, *further = y
        outputs |= {f"y{place}": value for place, value in enumerate(further, start=1)}
    return y, outputs


def inside(module, case, tensors):
    """Of the gradients of parameters, and of the buffers afterwards."""
    found = {}
    before, gradients, after = (part(tensors, prefix) for prefix in ("param/", "grad/", "after/"))
    # their loader maps names: a state dict made of gradients, NaN where the authors have none
    nothing = {name: torch.full_like(value, float("nan")) for name, value in before.items() if floating(name)}
    renamed = dict(load(case, before | nothing | gradients).named_parameters())
    for name, parameter in module.named_parameters():
        if renamed[name].isnan().all():
            assert parameter.grad is None or not parameter.grad.any(), (
                f"{name} gets a gradient that the authors' has not"
            )
        else:
            assert parameter.grad is not None, f"{name} gets no gradient"
            distant = distance(parameter.grad, renamed[name])
            found["parameter gradients"] = max(found.get("parameter gradients", 0.0), distant)
    norms = any(name.endswith(BUFFERS) for name in before)
    assert bool(after) == (norms and case["mode"] == "train")
    expected = dict(load(case, before | after).named_buffers())
    for name, buffer in module.named_buffers():
        found["buffers"] = max(found.get("buffers", 0.0), distance(buffer, expected[name]))
    return found


def floating(name):
    return not name.endswith(BUFFERS)


def distance(ours, theirs):
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)}, not {tuple(theirs.shape)}"
    return (ours.detach().double() - theirs.detach().double()).abs().max().item() if ours.numel() else 0.0
