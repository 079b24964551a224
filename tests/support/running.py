"""The ops, and how one is run forward and backward on any arguments."""

import torch

from regard.costs.implementations import known

OPS = known()


def every_tensor(args, change):
    """The arguments with each tensor changed, also those in tuples."""
    if isinstance(args, torch.Tensor):
        return change(args)
    return type(args)(every_tensor(arg, change) for arg in args) if isinstance(args, tuple | list) else args


def differentiable(args):
    return every_tensor(args, lambda arg: arg.detach().requires_grad_())


def tensors(values):
    found = []
    every_tensor(values, found.append)
    return found


def forward_and_gradients(run, args):
    outputs = tensors(run(*args))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
    sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True)).backward()
    return outputs, [arg.grad for arg in tensors(args)]
