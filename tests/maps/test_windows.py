"""Tokens of windows: where they look is where the block's output depends on its input, whoever cut the windows."""

import pytest
import timm
import torch
import torchvision
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from torch import nn

import regard

torch.manual_seed(0)


def swin(shift, window=4, size=(8, 12), **other):
    from timm.models.swin_transformer import SwinTransformerBlock

    return SwinTransformerBlock(16, size, num_heads=2, window_size=window, shift_size=shift, **other)


def maxvit(kind):
    config = MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), grid_size=(4, 4))
    return PartitionAttentionCl(16, partition_type=kind, cfg=config)


def theirs(shift, **other):
    from torchvision.models.swin_transformer import SwinTransformerBlock

    return SwinTransformerBlock(16, 2, [4, 4], [shift, shift], **other)


class Square(nn.Module):
    """torchvision's MaxViT keeps its channels first, and sums over windows by Einstein's convention."""

    def __init__(self, kind):
        super().__init__()
        from torchvision.models.maxvit import PartitionAttentionLayer

        self.layer = PartitionAttentionLayer(
            16, 8, 4, kind, (8, 8), 2, nn.GELU, nn.LayerNorm, attention_dropout=0, mlp_dropout=0, p_stochastic_dropout=0
        )

    def forward(self, x):
        return self.layer(x.movedim(-1, 1)).movedim(1, -1)


BLOCKS = {
    "timm swin": (lambda: swin(0), (8, 12)),
    "timm swin, shifted": (lambda: swin(2), (8, 12)),
    "torchvision swin, shifted": (lambda: theirs(2), (8, 12)),
    "torchvision swin, shifted, padded": (lambda: theirs(2), (10, 11)),
    "timm maxvit, windows": (lambda: maxvit("block"), (8, 12)),
    "timm maxvit, grid": (lambda: maxvit("grid"), (8, 12)),
    "torchvision maxvit, windows": (lambda: Square("window"), (8, 8)),
    "torchvision maxvit, grid": (lambda: Square("grid"), (8, 8)),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.55, 0.3), (0.99, 0.99)])
def test_a_token_looks_where_its_output_comes_from(name, place):
    build, (height, width) = BLOCKS[name]
    block = build().eval()
    x = torch.randn(2, height, width, 16)
    with regard.record(block, queries=[place], kinds={"token"}) as maps:
        plain = block(x)
    assert torch.equal(plain, block(x))
    (found,) = maps
    h, w = found.layout.grid
    assert (h, w) == (height, width)
    total = found.value.sum(-1)
    assert torch.allclose(total, torch.ones(2, 2, 1), atol=1e-5) or "padded" in name  # the rest looks beside the map
    assert (total < 1 + 1e-5).all()
    seen = found.value[:, :, 0].unflatten(2, (h, w))
    row, column = int(place[0] * h), int(place[1] * w)
    for image in range(2):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(block(x)[image, row, column].sum(), x)
        assert not gradient[1 - image].any()
        # what the shift brought together is masked: weights near 0, gradients of the same size
        assert torch.equal(gradient[image].abs().sum(-1) > 1e-9, seen[image].amax(0) > 1e-9)


def test_merged_pixels_are_followed_no_further():
    """A layer that joins four pixels makes a map of its own; the next windows are cut out of that."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(1, 2)
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode(), regard.record(model, queries=[(0.3, 0.6)], kinds={"token"}) as maps:
        model(x)
    assert [found.layout.grid for found in maps] == [(16, 16)] * 2 + [(8, 8)] * 2
    assert all(int((found.value[0, 0, 0] > 0).sum()) <= 16 for found in maps)


def test_without_a_place_windows_are_told_as_they_are():
    block = swin(2).eval()
    with torch.inference_mode(), regard.record(block, kinds={"token"}) as maps:
        block(torch.randn(2, 8, 12, 16))
    (found,) = maps
    assert (found.value.shape, found.layout) == ((12, 2, 16, 16), None)


def test_several_places():
    block = swin(0).eval()
    with torch.inference_mode(), regard.record(block, queries=[(0.1, 0.1), (0.9, 0.9)], kinds={"token"}) as maps:
        block(torch.randn(1, 8, 12, 16))
    first, last = maps[0].value[0, 0].unflatten(1, (8, 12)) > 0
    assert first[:4, :4].all()
    assert last[4:, 8:].all()
    assert first.sum() == last.sum() == 16


def test_all_of_torchvisions_maxvit_is_seen():
    model = torchvision.models.MaxVit((64, 64), 16, 2, [16, 16], [1, 1], 8, 0.0).eval()
    with torch.inference_mode(), regard.record(model, queries=[(0.5, 0.5)], kinds={"token"}) as maps:
        model(torch.randn(1, 3, 64, 64))
    assert [found.layout.grid for found in maps] == [(16, 16)] * 2 + [(8, 8)] * 2


def test_what_one_pass_learnt_of_windows_serves_the_next_of_any_batch_and_mode():
    block, x = swin(2).eval(), torch.randn(3, 8, 12, 16)
    with torch.inference_mode(), regard.record(block, queries=[(0.5, 0.5)]) as first:
        block(x)
    with regard.record(block, queries=[(0.5, 0.5), (0.1, 0.9)]) as second:
        block(x.requires_grad_()).sum().backward()
    with torch.no_grad(), regard.record(block, queries=[(0.5, 0.5)]) as third:
        block(x[:1])
    (first,), (second,), (third,) = first, second, third
    torch.testing.assert_close(second.value[:, :, :1], first.value.clone(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(third.value, first.value[:1].clone(), rtol=1e-5, atol=1e-6)


def test_tokens_that_a_tensor_of_numbers_puts_in_order_are_followed():
    class Shuffled(nn.Module):
        """Windows in an order that is another one in every call."""

        def __init__(self):
            super().__init__()
            self.block, self.order = swin(0), None

        def forward(self, x):
            B, H, W, C = x.shape
            order = torch.as_tensor(self.order)
            windows = x.view(B, H // 4, 4, W // 4, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, C)[order]
            windows = self.block.attn(windows)[order.argsort()]
            return windows.view(B, H // 4, W // 4, 4, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)

    model, x = Shuffled().eval(), torch.randn(2, 8, 8, 16)
    seen = []
    for model.order in ([0, 1, 2, 3, 4, 5, 6, 7], [3, 1, 0, 2, 7, 4, 6, 5], [7, 6, 5, 4, 3, 2, 1, 0]):
        with torch.no_grad(), regard.record(model, queries=[(0.9, 0.1)]) as maps:
            model(x)
        seen.append(maps[0].value)
    assert seen[0].unflatten(3, (8, 8))[..., 4:, :4].sum(dim=(-1, -2)).allclose(torch.ones(2, 2, 1))
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0])
