"""The pixel of every number, followed through what transformers do with their tokens."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regard.base.functions import tensors
from regard.base.noted import Noted
from regard.base.tracing import Tracer
from regard.insertion.dry_run import dry_run
from regard.insertion.positions import Positions, follow, whole

X = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Moved(nn.Module):
    """A convolution to a map of 4 x 6 with 8 channels, and then what is asked."""

    def __init__(self, move):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.linear = nn.Linear(8, 8)
        self.move = move
        self.end = nn.Identity()

    def forward(self, x):
        return self.end(self.move(self, self.stem(x)))


def windows(x, rows, columns):
    b, h, w, c = x.shape
    x = x.view(b, h // rows, rows, w // columns, columns, c).transpose(2, 3)
    return x.reshape(-1, rows * columns, c)


def joined(x, rows, columns, h, w):
    x = x.view(-1, h // rows, w // columns, rows, columns, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, h, w, x.shape[-1])


def attended(model, x):
    q = k = v = model.linear(x).view(x.shape[0], -1, 2, 4).transpose(1, 2)
    return (torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).reshape(x.shape)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def last(x):
    return x.permute(0, 2, 3, 1)


PICTURES = {
    "as it is": (lambda m, x: x, "channels_first", (4, 6), 0),
    "turned": (lambda m, x: x.mT, None, None, None),
    "channels last": (lambda m, x: last(x), "channels_last", (4, 6), 0),
    "tokens": (lambda m, x: tokens(x), "tokens", (4, 6), 0),
    "a class token": (lambda m, x: torch.cat([m.token.expand(2, -1, -1), tokens(x)], 1), "tokens", (4, 6), 1),
    "a class token behind": (lambda m, x: torch.cat([tokens(x), m.token.expand(2, -1, -1)], 1), None, None, None),
    "through a layer": (lambda m, x: m.linear(tokens(x)), "tokens", (4, 6), 0),
    "through attention": (lambda m, x: attended(m, tokens(x)), "tokens", (4, 6), 0),
    "through torch's attention": (
        lambda m, x: F.scaled_dot_product_attention(*[m.linear(tokens(x))] * 3),
        "tokens",
        (4, 6),
        0,
    ),
    "windows": (lambda m, x: windows(last(x), 2, 3), None, None, None),
    "windows as an axis": (lambda m, x: windows(last(x), 2, 3).view(2, 4, 6, 8), None, None, None),
    "windows joined": (lambda m, x: joined(m.linear(windows(last(x), 2, 3)), 2, 3, 4, 6), "channels_last", (4, 6), 0),
    "windows joined wrongly": (lambda m, x: joined(windows(last(x), 2, 3), 2, 2, 4, 6), None, None, None),
    "rolled and back": (lambda m, x: last(x).roll((-1, 2), (1, 2)).roll((1, -2), (1, 2)), "channels_last", (4, 6), 0),
    "rolled": (lambda m, x: last(x).roll(1, 1), None, None, None),
    "merged": (lambda m, x: torch.cat([last(x)[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1).flatten(1, 2),
               "tokens", (2, 3), 0),
    "unrolled": (lambda m, x: windows(last(x), 2, 2).reshape(2, 24, 8), None, None, None),
    "shuffled": (lambda m, x: tokens(x)[:, torch.randperm(24)], None, None, None),
    "frames in the batch": (lambda m, x: torch.cat([x, x.flip(2)], 0), None, None, None),
    "the map pooled, and a class token with it": (
        lambda m, x: torch.cat(
            [m.linear(torch.cat([m.token.expand(2, -1, -1), tokens(x)], 1)[:, :1]), tokens(F.max_pool2d(x, 2))], 1
        ),
        "tokens", (2, 3), 1,
    ),
    "the map pooled": (lambda m, x: tokens(F.max_pool2d(x, 2)), "tokens", (2, 3), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_told_from_what_is_none(name):
    move, word, sides, prefix = PICTURES[name]
    (output,) = dry_run(Moved(move), X).outputs["end"]
    if word is None:
        assert output.layout is None
    else:
        assert (output.layout.word, output.map[2:], output.layout.prefix) == (word, sides, prefix)


def test_what_is_not_known_is_no_picture_of_something_else():
    """einsum may do anything."""
    model = Moved(lambda m, x: torch.einsum("bnc,nm->bmc", tokens(x), torch.eye(24)))
    assert dry_run(model, X).outputs["end"][0].layout is None


def test_a_volume():
    index = whole(torch.Size((2, 8, 3, 4, 5)))
    assert index.picture(1) == (0, (3, 4, 5))
    flat = Positions(index.index.flatten(2).transpose(1, 2), index.sides)
    assert flat.picture(2) == (0, (3, 4, 5))
    assert Positions(flat.index.flip(1), index.sides).picture(2) is None


EXPANDED = {
    "view": lambda x: x.view(2, 2, 4, 24),
    "view, channels divided": lambda x: x.view(2, 4, 2, 4, 2, 3),
    "view, channels joined with others": lambda x: x.view(16, 24),
    "flatten": lambda x: x.flatten(2),
    "reshape": lambda x: last(x).reshape(2, 2, 2, 2, 3, 8),
    "reshape, windows": lambda x: last(x).view(2, 2, 2, 2, 3, 8).transpose(2, 3).reshape(-1, 6, 8),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "permute": lambda x: x.permute(3, 1, 0, 2),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "roll of channels": lambda x: x.roll(3, 1),
    "roll as one row": lambda x: x.roll(5),
    "flip": lambda x: x.flip(1, 2),
    "chunk": lambda x: x.chunk(2, 1),
    "split": lambda x: x.split([3, 5], 1),
    "split of pixels": lambda x: x.split(2, 2),
    "unbind": lambda x: x.unbind(1),
    "getitem": lambda x: x[:, 2:5, ::2, 1:],
    "getitem of pixels": lambda x: x[..., [0, 0, 2]],
    "getitem, from behind": lambda x: x[:, -3, :-1],
    "select": lambda x: x.select(1, 7),
    "narrow": lambda x: x.narrow(1, 3, 4),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1),
    "pad": lambda x: F.pad(x, (0, 1, 2, 0)),
    "pad of channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
    "cat": lambda x: torch.cat([x, x.flip(2)], 1),
    "stack": lambda x: torch.stack([x, x], 2),
    "by name": lambda x: torch.cat(tensors=[torch.flatten(input=x, start_dim=2)] * 2, dim=1),
}


@pytest.mark.parametrize("move", EXPANDED)
def test_moves_of_what_is_the_same_for_all_channels_are_those_of_every_channel(move):
    """Most are done with one channel for all, which must not show."""

    class Follow(Tracer):
        def __init__(self, start, positions):
            super().__init__({})
            self.known = Noted()
            self.known[start] = positions

        def follow(self, call):
            pairs = zip(tensors(call.result), follow(call, None, self.known.get), strict=True)
            self.known.update((leaf, positions) for leaf, positions in pairs if positions)

    x = torch.randn(2, 8, 4, 6)
    one = whole(x.shape)
    indices = []
    for positions in (one, Positions(one.index.contiguous(), one.sides)):
        with Follow(x, positions) as mode:
            moved = EXPANDED[move](x)
        leaves = [moved] if isinstance(moved, torch.Tensor) else moved
        indices.append([mode.known[leaf].index for leaf in leaves])
    for ours, dense, leaf in zip(*indices, leaves, strict=True):
        assert ours.shape == leaf.shape
        torch.testing.assert_close(ours, dense, rtol=0, atol=0)
