"""Other people's networks as tests want them, and all that must not change in one."""

import random

import numpy as np
import pytest
import timm
import torch
import torchvision

import regard

VISION = torchvision.models
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vision(name, **options):
    torch.manual_seed(0)
    return getattr(VISION, name)(weights=None, **options).eval()


def zoo(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **options).eval()


def small():
    # timm starts the last norm of every branch at 0, and what weighs a map of zeros neither shows nor learns anything
    return zoo("resnet10t", zero_init_last=False)


def site_names(model, at="branches", x=X):
    return [site.name for site in regard.sites(model, at, example=x)]


def refused(match):
    return pytest.raises(regard.UserError, match=match)


@torch.no_grad()
def logits(model, x=X):
    return model(x)


def photograph(model):
    """All that a user could see change: modes, tensors, gradients, hooks, children, random states."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {(name, kind): list(getattr(m, kind)) for name, m in model.named_modules() for kind in hooks},
        "identities": {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()},
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in named(model)},
        "children": [(name, type(module)) for name, module in model.named_modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
    }


def named(model):
    return list(model.named_parameters())


def assert_same(now, before):
    assert now.keys() == before.keys()
    for key in ("modes", "hooks", "identities", "children"):
        assert now[key] == before[key], key
    for name, tensor in before["tensors"].items():
        assert torch.equal(now["tensors"][name], tensor), name
    for name, (requires_grad, gradient) in before["gradients"].items():
        assert now["gradients"][name][0] == requires_grad
        assert gradient is None or torch.equal(now["gradients"][name][1], gradient)
    assert torch.equal(now["random"][0], before["random"][0])
    assert now["random"][1] == before["random"][1]
    assert str(now["random"][2]) == str(before["random"][2])
