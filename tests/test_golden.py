"""Every mechanism against numbers computed with the authors' own code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import regard

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]


def part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['mechanism']}-{case['case']}")
def test_agrees_with_the_authors_code(case):
    tensors = load_file(GOLDEN / case["file"])
    x = tensors["x"].requires_grad_()
    module = regard.load_official(
        case["mechanism"], part(tensors, "param/"), channels=case["x_shape"][1], **case["args"]
    ).train(case["mode"] == "train")
    y = module(x)
    torch.testing.assert_close(y, tensors["y"], rtol=0, atol=1e-9)

    (y * tensors["g"]).sum().backward()
    torch.testing.assert_close(x.grad, tensors["grad_x"], rtol=0, atol=1e-9)
    # loading a state dict made of gradients, and of buffers, maps their names to ours
    expected = part(tensors, "grad/")
    assert expected.keys() == {name for name, _ in authors_parameters(case, tensors)}
    renamed = dict(
        regard.load_official(
            case["mechanism"], part(tensors, "param/") | expected, channels=case["x_shape"][1], **case["args"]
        ).named_parameters()
    )
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(
            parameter.grad, renamed[name].data, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
    after = part(tensors, "after/")
    assert bool(after) == (case["mode"] == "train")
    buffers = dict(
        regard.load_official(
            case["mechanism"], part(tensors, "param/") | after, channels=case["x_shape"][1], **case["args"]
        ).named_buffers()
    )
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def authors_parameters(case, tensors):
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return [(n, t) for n, t in part(tensors, "param/").items() if not n.endswith(buffers)]
