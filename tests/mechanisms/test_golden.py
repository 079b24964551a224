"""Every mechanism against numbers computed with the authors' own code."""

import pytest
import torch
from torch import nn

import regard
from golden import CASES, QUIRKS, deviations


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['mechanism']}-{case['case']}")
def test_agrees_with_the_authors_code(case):
    if case["mechanism"] in QUIRKS:
        with pytest.raises(regard.UserError, match="no official key"):
            deviations(case)
        return
    found = deviations(case)
    assert found["value"] <= 1e-9
    assert max(found.values()) <= 1e-9, found


def test_every_key_has_its_numbers():
    keys = {key for name in regard.names() for key in regard.info(name).official}
    assert keys <= {case["mechanism"] for case in CASES}


# --- arguments that no stored case has: seen to agree with the authors' code, or to be refused -----------------------


def theirs(**shapes):
    return {name.replace("__", "."): torch.randn(*shape) for name, shape in shapes.items()}


def non_local(width, channels):
    projections = {f"{name}__{kind}": (width, channels)[: 2 - (kind == "bias")] for name in ("theta", "phi", "g")
                   for kind in ("weight", "bias")}  # fmt: skip
    return theirs(**projections, W__weight=(channels, width), W__bias=(channels,))


def test_a_width_that_no_reduction_gives():
    options = {"sub_sample": False, "bn_layer": False, "inter_channels": 5}
    block = regard.load_official("nonlocal_embedded_gaussian", non_local(5, 12), **options)
    assert block.query.weight.shape == (5, 12)


def test_the_released_dot_product_is_not_scaled():
    tensors = {name.replace("W.", "out."): tensor for name, tensor in non_local(4, 8).items()}
    tensors |= {f"bn.{name}": torch.ones(8) for name in ("weight", "bias", "running_mean", "running_var")}
    assert regard.load_official("nonlocal_official", tensors, softmax=False).scale == 1
    assert regard.load_official("nonlocal_official", tensors).scale == 0.5


def test_coordinate_with_the_least_width_and_no_reduction_told():
    tensors = theirs(
        conv1__weight=(8, 20, 1, 1), conv1__bias=(8,), conv_h__weight=(20, 8, 1, 1), conv_h__bias=(20,),
        conv_w__weight=(20, 8, 1, 1), conv_w__bias=(20,),
        **{f"bn1__{name}": (8,) for name in ("weight", "bias", "running_mean", "running_var")},
    )  # fmt: skip
    assert regard.load_official("coord_attention", tensors).down.weight.shape == (8, 20, 1)


@pytest.mark.parametrize(
    ("key", "tensors", "args", "message"),
    [
        ("se", nn.Linear(2, 2), {}, "takes names and their tensors"),
        ("se", {"fc.0.weight": 1.0}, {}, "takes names and their tensors"),
        ("coord_attention", {}, {}, "the tensors lack 'conv1.weight'"),
        ("psa_parallel", {"conv_q_right.weight": torch.ones(3)}, {}, "not the shapes or arguments of the authors'"),
        ("mhsa", theirs(in_proj_weight=(12, 4), out_proj__weight=(4, 4)), {}, "num_heads"),
        (
            "ge_theta",
            {},
            {"channels": 8, "extra_params": True, "extent": 0, "use_mlp": False},
            "extent is a power of 2",
        ),
        ("gcnet", {}, {"fusion_types": ()}, "fusion_types"),
        ("halo", theirs(q__weight=(6, 6), kv__weight=(12, 6)), {"num_heads": 4}, "heads do not divide"),
        ("attention_gate", {}, {"mode": "concatenation_debug"}, "mode is 'concatenation', the paper's equation, got"),
        ("tam", {}, {"frames": 8}, "unexpected keyword argument 'frames'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(key, tensors, args, message):
    with pytest.raises(regard.UserError, match=message) as refused:
        regard.load_official(key, tensors, **args)
    assert "\n" not in str(refused.value)
