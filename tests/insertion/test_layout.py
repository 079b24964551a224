"""Mechanisms inside networks that hold their maps with the channels last, or as tokens."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import regard
from regard.insertion.layout import Layout
from strangers import logits, refused

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
HOSTS = {  # the network, and what its first branch gives, read in its source
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)
        ),
        (2, 16, 16, 16),
        "channels_last",
    ),
    "convnext": (lambda: timm.create_model("convnext_atto", conv_mlp=False), (2, 40, 16, 16), "channels_last"),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, reg_tokens=3),
        (2, 192, 4, 4),
        "tokens",
    ),
    "mixer": (lambda: timm.create_model("mixer_s32_224", img_size=64), (2, 512, 2, 2), "tokens"),
    "pvt": (lambda: timm.create_model("pvt_v2_b0"), (2, 32, 16, 16), "tokens"),
    "torchvision swin": (lambda: torchvision.models.swin_t(), (2, 96, 16, 16), "channels_last"),
    "torchvision vit": (lambda: torchvision.models.vit_b_32(image_size=64), (2, 768, 2, 2), "tokens"),
}


def test_windows_that_are_joined_again():
    """Both ways to merge patches, shifted and unshifted windows, one window and several."""
    for model in (HOSTS["swin"][0](), torchvision.models.swin_t()):
        sites = regard.sites(model.eval(), "branches", example=X)
        blocks = regard.sites(model, "blocks", example=X)
        assert len(sites) == 2 * len(blocks)
        assert all(block.layout.word == "channels_last" for block in blocks)


def open_gates(attached):
    for name, parameter in attached.named_parameters():
        if "strength" in name:
            nn.init.constant_(parameter, 0.7)


@pytest.mark.parametrize("host", HOSTS)
def test_a_map_is_found_however_the_network_holds_it(host):
    make, shape, word = HOSTS[host]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # some classifiers start at zero
            nn.init.normal_(module.weight)
    first = regard.sites(model, "branches", example=X)[0]
    assert (first.shape, first.layout.word) == (shape, word)
    before = logits(model, X)
    attached = regard.attach(model, "cbam", example=X, seed=0)
    assert torch.equal(logits(model, X), before)
    open_gates(attached)
    assert not torch.equal(logits(model, X), before)
    model(X).sum().backward()
    assert all(parameter.grad is not None for parameter in attached.parameters())
    attached.remove()
    assert torch.equal(logits(model, X), before)


@pytest.mark.parametrize(
    ("word", "tensor"),
    [
        ("channels_first", lambda x: x),
        ("channels_last", lambda x: x.movedim(1, -1)),
        ("tokens", lambda x: x.flatten(2).mT),
    ],
)
@pytest.mark.parametrize("size", [(6, 4), (12, 8)], ids=["as attached", "twice as large"])
def test_every_layout_gives_what_the_map_itself_gives(word, tensor, size):
    x = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1))
    cbam = regard.create("cbam", 8, reduction=2).eval()
    layout = Layout(word, grid=(6, 4) if word == "tokens" else ())
    assert torch.equal(layout.through(cbam, tensor(x)), tensor(cbam(x)))
    if size == (6, 4):
        assert layout.shape(tuple(tensor(x).shape)) == (2, 8, *size)


def test_tokens_that_belong_to_no_pixel_pass_beside():
    x = torch.randn(2, 3 + 24, 8, generator=torch.Generator().manual_seed(1))
    y = Layout("tokens", 3, (6, 4)).through(regard.create("se", 8), x)
    assert torch.equal(y[:, :3], x[:, :3])
    assert not torch.equal(y[:, 3:], x[:, 3:])


def test_tokens_of_another_shape_are_refused():
    with refused("25 tokens are no map in the proportions of 6 x 4.*attach again"):
        Layout("tokens", 0, (6, 4)).through(nn.Identity(), torch.randn(1, 25, 8))


@pytest.mark.parametrize("word", ["channels_last", "tokens"])
def test_the_memory_format_of_the_output_is_the_inputs(word):
    x = torch.randn(2, 6, 4, 8) if word == "channels_last" else torch.randn(2, 24, 8)
    for name in ("se", "cbam", "coordinate", "non_local"):
        y = Layout(word, 0, (6, 4)).through(regard.create(name, 8).eval(), x)
        assert y.is_contiguous(), name


def test_a_layout_survives_a_file(tmp_path):
    make, _, _ = HOSTS["vit"]
    torch.manual_seed(0)
    model = make().eval()
    fresh = make().eval()
    fresh.load_state_dict(model.state_dict())
    attached = regard.attach(model, "cbam", example=X, seed=0)
    open_gates(attached)
    attached.save(tmp_path / "cbam.safetensors")
    regard.load(fresh, tmp_path / "cbam.safetensors")
    assert torch.equal(logits(fresh, X), logits(model, X))


def test_a_network_of_sequences():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    x = torch.randn(2, 30, 4)
    (site,) = regard.sites(model, "1", example=x)
    assert (site.shape, site.layout.word) == ((2, 8, 30), "channels_last")
    attached = regard.attach(model, "coordinate", at="1", example=x)
    assert attached.options == {"spatial_dims": 1} or "spatial_dims" not in regard.info("coordinate").options


def test_where_only_the_class_token_is_read_there_is_no_site():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()
    assert [site.name for site in regard.sites(model, "blocks", example=X)] == ["blocks.0", "blocks.1"]
    assert [site.name for site in regard.sites(model, "head", example=X)] == ["blocks.1"]
    with refused("behind site 'blocks.2' .Block. no token of the map is read any more"):
        regard.attach(model, "se", at="blocks.2", example=X)
    averaged = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, global_pool="avg").eval()
    assert [site.name for site in regard.sites(averaged, "head", example=X)] == ["blocks.2"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_class_token_behind_the_map_is_no_first_pixel():
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.token = nn.Conv2d(3, 8, 16, 16), nn.Parameter(torch.zeros(1, 1, 8))
            self.block, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.patches(x).flatten(2).mT
            x = self.block(torch.cat([x, self.token.expand(len(x), -1, -1)], 1))
            return self.head(x[:, -1])

    for layout in (None, "tokens"):
        with refused("'block' .Linear. gives .*no feature map"):
            regard.sites(Behind(), "block", example=X, layout=layout)
