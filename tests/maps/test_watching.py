"""Attention in modules that nobody prepared, against what hooks on those very classes see."""

import pytest
import timm
import torch
import torchvision
from timm.layers import Attention, CecaModule, EcaModule, GlobalContext, NonLocalAttn, SEModule
from timm.layers.cbam import CbamModule, ChannelAttn, SpatialAttn
from torch import nn
from torch.nn import functional as F

import regard
from regard.layers.tap import Tap


def of(maps, kind):
    return [found for found in maps if found.kind == kind]


def hooked(model, kinds, read):
    """What hooks on modules of a class see: name -> value."""
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda module, args, y, name=name: seen.update({name: read(module, args, y)}))
    return seen


GATES = {
    "seresnet18": (lambda: timm.create_model("seresnet18"), SEModule, "channel"),
    "se in torchvision": (
        lambda: torchvision.models.mobilenet_v3_small(),
        torchvision.ops.SqueezeExcitation,
        "channel",
    ),
    "regnet": (lambda: torchvision.models.regnet_y_400mf(), torchvision.ops.SqueezeExcitation, "channel"),
    "efficientnet": (
        lambda: timm.create_model("efficientnet_b0"),
        timm.models._efficientnet_blocks.SqueezeExcite,
        "channel",
    ),
    "mobilenetv3": (
        lambda: timm.create_model("mobilenetv3_small_100"),
        timm.models._efficientnet_blocks.SqueezeExcite,
        "channel",
    ),
    "eca": (lambda: timm.create_model("resnet18", block_args={"attn_layer": "eca"}), EcaModule, "channel"),
    "ceca": (lambda: timm.create_model("resnet18", block_args={"attn_layer": "ceca"}), CecaModule, "channel"),
    "cbam, channels": (
        lambda: timm.create_model("resnet18", block_args={"attn_layer": "cbam"}),
        ChannelAttn,
        "channel",
    ),
    "cbam, pixels": (lambda: timm.create_model("resnet18", block_args={"attn_layer": "cbam"}), SpatialAttn, "spatial"),
    "gc": (lambda: timm.create_model("resnet18", block_args={"attn_layer": "gc"}), GlobalContext, "channel"),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_are_those_that_are_applied(name):
    build, kinds, kind = GATES[name]
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(2, 3, 64, 96)
    seen = hooked(model, kinds, lambda module, args, y: (args[0].clone(), y.clone()))
    with torch.no_grad(), regard.record(model) as maps:
        model(x)
    found = {found.name: found.value for found in of(maps, kind)}
    assert found.keys() == seen.keys()
    assert seen
    for where, (entered, left) in seen.items():
        gate = found[where]
        expected = (2, entered.shape[1], 1, 1) if kind == "channel" else (2, 1, *entered.shape[2:])
        assert gate.shape == expected
        assert torch.allclose(entered * gate, left, rtol=1e-4, atol=1e-5)


def test_coordinate_attention_has_two_gates():
    model = timm.create_model("resnet18", block_args={"attn_layer": "coord"}).eval()
    with torch.no_grad(), regard.record(model, kinds={"axis"}) as maps:
        model(torch.randn(2, 3, 64, 96))
    first = [tuple(found.value.shape) for found in maps if found.name == "layer1.0.se"]
    assert sorted(first) == [(2, 64, 1, 24), (2, 64, 16, 1)]


@pytest.mark.parametrize("name", ["skresnet18", "resnest14d"])
def test_branches(name):
    model = timm.create_model(name).eval()
    with torch.no_grad(), regard.record(model, kinds={"branch"}) as maps:
        model(torch.randn(2, 3, 64, 64))
    assert len(maps) >= 4
    assert all(torch.allclose(found.value.sum(1), torch.ones(())) for found in maps)


WEIGHTS = {
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), 12, (2, 3, 17, 17), (1, (4, 4))),
    "vit with registers": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, reg_tokens=4),
        12,
        (2, 3, 21, 21),
        (5, (4, 4)),
    ),
    "torchvision's vit": (lambda: torchvision.models.vit_b_32(image_size=64), 12, (2, 12, 5, 5), (1, (2, 2))),
    "bottleneck": (lambda: timm.create_model("botnet26t_256", img_size=128), 3, None, None),
    "non-local": (
        lambda: timm.create_model("resnet18", block_args={"attn_layer": "nl"}),
        8,
        (2, 1, 256, 256),
        (0, (16, 16)),
    ),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), 12, None, None),
    "torchvision's swin": (lambda: torchvision.models.swin_t(), 12, None, None),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_between_tokens(name, fused):
    build, count, shape, grid = WEIGHTS[name]
    model = build().eval()
    side = {"swin": 224, "torchvision's swin": 224, "bottleneck": 128}.get(name, 64)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    with torch.no_grad(), regard.record(model, kinds={"token"}) as maps:
        model(torch.randn(2, 3, side, side))
    assert len(maps) == count
    for found in maps:
        assert found.value.dim() == 4
        assert torch.allclose(found.value.sum(-1), torch.ones(()), atol=1e-5)
    if shape:
        assert tuple(maps[0].value.shape) == shape
        assert (maps[0].layout.prefix, maps[0].layout.grid) == grid


def test_weights_are_those_of_the_formula():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    attention: Attention = model.blocks[3].attn
    seen = hooked(attention, nn.Linear, lambda module, args, y: y)
    with torch.no_grad(), regard.record(model) as maps:
        model(torch.randn(2, 3, 64, 64))
    q, k, _ = seen["qkv"].reshape(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-1, -2) / 8).softmax(-1)
    found = next(found for found in maps if found.name == "blocks.3.attn")
    assert torch.allclose(found.value, expected, atol=1e-6)
    chosen = [0, (0.6, 0.3)]
    with torch.no_grad(), regard.record(model, queries=chosen) as fewer:
        model(torch.randn(2, 3, 64, 64))
    assert fewer[3].value.shape == (2, 3, 2, 17)


def test_the_row_of_a_query_is_the_row_of_the_whole():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 96)
    for build in (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=(64, 96)),
        lambda: timm.create_model("resnet18", block_args={"attn_layer": "nl"}),
    ):
        model = build().eval()
        with torch.no_grad(), regard.record(model) as whole:
            model(x)
        with torch.no_grad(), regard.record(model, queries=[(0.6, 0.3)]) as rows:
            model(x)
        for full, row in zip(of(whole, "token"), of(rows, "token"), strict=True):
            prefix, (height, width) = full.layout.prefix, full.layout.grid
            at = prefix + int(0.6 * height) * width + int(0.3 * width)
            assert torch.allclose(row.value[:, :, 0], full.value[:, :, at], atol=1e-6)


def test_multi_head_attention_with_masks():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 16)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    for masks in ({}, {"attn_mask": causal}, {"key_padding_mask": padding}, {"attn_mask": torch.randn(6, 5, 5)}):
        with torch.no_grad():
            _, expected = attention(x, x, x, average_attn_weights=False, **masks)
            with regard.record(attention) as maps:
                attention(x, x, x, need_weights=False, **masks)
        assert torch.allclose(maps[0].value, expected, atol=1e-6), masks


def test_what_is_no_attention_is_passed_over():
    """Activations written out, convolution by sigmoid of itself, scalars, loss weights."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            x = self.conv(x)
            x = x * torch.sigmoid(x)  # swish
            x = x * F.relu6(x + 3) / 6  # hard swish
            x = F.hardtanh(x) * self.scale.sigmoid()
            x = x * torch.tanh(F.softplus(x))
            return x.mean((2, 3)).softmax(1)

    net = Net()
    with regard.record(net) as maps:
        net(torch.randn(2, 3, 8, 8))
    assert [(found.kind, found.name) for found in maps if found.kind != "element"] == []
    for name in ("resnet18", "mobilenetv2_100", "convnext_atto", "mobilenetv1_100", "repvgg_a0"):
        model = timm.create_model(name).eval()
        with torch.no_grad(), regard.record(model) as maps:
            model(torch.randn(1, 3, 64, 64))
        assert maps == [], name


def test_a_tap_is_told_of_once():
    for name in ("se", "eca", "cbam", "coordinate", "gc", "non_local", "scse", "shuffle", "simam", "sge", "qkv"):
        module = regard.create(name, 16).eval()
        taps = sum(isinstance(child, Tap) for child in module.modules())
        for impl in ("auto", "reference"):
            with torch.no_grad(), regard.use_impl(impl), regard.record(module) as maps:
                module(torch.randn(2, 16, 8, 8))
            assert len(maps) == taps, (name, impl, maps)


def test_the_network_is_as_it_was_and_gives_what_it_gave():
    for build in (lambda: timm.create_model("seresnet18"), lambda: timm.create_model("vit_tiny_patch16_224")):
        model = build().eval()
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            before = model(x)
            with regard.record(model):
                during = model(x)
            with pytest.raises(ValueError, match="on purpose"), regard.record(model):
                raise ValueError("on purpose")
            assert torch.equal(before, during)
            assert torch.equal(before, model(x))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_in_training_and_after_an_error_inside():
    model = timm.create_model("seresnet18").train()
    x = torch.randn(2, 3, 64, 64)
    with regard.record(model, kinds={"channel"}) as maps:
        with pytest.raises(RuntimeError):
            model(x[:, :1])
        model(x).sum().backward()
    assert [found.name for found in maps[-8:]] == [f"layer{n}.{k}.se" for n in range(1, 5) for k in range(2)]
    assert not maps[-1].value.requires_grad
    assert model.conv1.weight.grad is not None


def test_cbam_modules_alone():
    for kinds in (CbamModule, NonLocalAttn):
        module = kinds(32).eval()
        with torch.no_grad(), regard.record(module) as maps:
            module(torch.randn(1, 32, 8, 8))
        assert maps


def test_who_looks_is_told_apart():
    """Rows are places only where they are those of a map that the network has made."""

    def maps_of(name, size, **options):
        model = timm.create_model(name, **options).eval()
        with torch.inference_mode(), regard.record(model, queries=[(0.3, 0.6)]) as maps:
            model(torch.randn(1, 3, size, size))
        return maps

    kinds = {found.kind: found for found in maps_of("lambda_resnet26t", 96) if found.kind not in ("channel",)}
    assert set(kinds) == {"query"}  # sixteen keys, no grid of four by four
    assert kinds["query"].value.shape[1] == 16
    nets = maps_of("xcit_nano_12_p16_224", 64, img_size=64, depth=1, embed_dim=128, num_heads=2)
    across = [found for found in nets if found.value.shape[-2:] == (64, 64)]  # 64 channels look at one another
    assert across
    assert all(found.layout is None for found in across)
    (spatial, *_) = [found for found in maps_of("gcresnet33ts", 64) if found.kind != "channel"]
    assert (spatial.kind, spatial.value.shape) == ("spatial", (1, 1, 16, 16))  # one view for all places
    assert torch.allclose(spatial.value.sum((2, 3)), torch.ones(1, 1))


# --- the same attention in many spellings -----------------------------------------------------------------------------

# weights a (B, heads, N, M), rows are the queries; values v (B, heads, M, D) -> (B, heads, N, D)
PRODUCTS = {
    "a @ v": lambda a, v: a @ v,
    "matmul": lambda a, v: torch.matmul(a, v),
    "bmm": lambda a, v: torch.bmm(a.flatten(0, 1), v.flatten(0, 1)).unflatten(0, a.shape[:2]),
    "baddbmm": lambda a, v: torch.baddbmm(
        torch.zeros((), dtype=a.dtype), a.flatten(0, 1), v.flatten(0, 1), beta=0
    ).unflatten(0, a.shape[:2]),
    "v^T @ a^T": lambda a, v: (v.transpose(-1, -2) @ a.transpose(-2, -1)).mT,
    "v^T @ a.mT": lambda a, v: (v.mT @ a.mT).mT,
    "permuted": lambda a, v: (v.permute(0, 1, 3, 2) @ a.permute(0, 1, 3, 2)).permute(0, 1, 3, 2),
    "moved": lambda a, v: (v.swapaxes(2, 3) @ a.movedim(3, 2)).swapdims(-1, -2),
    "there and back": lambda a, v: a.transpose(2, 3).transpose(2, 3).contiguous() @ v,
    "einsum": lambda a, v: torch.einsum("bhnm,bhmd->bhnd", a, v),
    "einsum, values first": lambda a, v: torch.einsum("bhmd, bhnm -> bhnd", v, a),
    "einsum, channels first": lambda a, v: torch.einsum("bhnm,bhdm->bhdn", a, v.mT).mT,
    "einsum, keys before queries": lambda a, v: torch.einsum("bhmn,bhmd->bhnd", a.mT, v),
}  # fmt: skip
SOFTMAXES = {
    "softmax(-1)": lambda logits: logits.softmax(-1),
    "softmax(3)": lambda logits: F.softmax(logits, dim=3),
    "keys as rows": lambda logits: torch.softmax(logits.mT, 2).mT,
    "in float32": lambda logits: logits.float().softmax(-1).to(logits.dtype),
    "with dropout": lambda logits: F.dropout(logits.softmax(-1), 0.0),
    "rebound": lambda logits: _rebound(logits),
}


def _rebound(a):
    a = a - a.amax(-1, keepdim=True)
    a = a.softmax(-1)
    return a.clone()


class Spelled(nn.Module):
    def __init__(self, softmax, product, heads):
        super().__init__()
        self.softmax, self.product, self.heads = softmax, product, heads
        self.patch, self.qkv = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48)

    def forward(self, image):
        tokens = self.patch(image).flatten(2).mT
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        a = self.softmax(q @ k.mT * q.shape[-1] ** -0.5)
        self.true = a.detach()
        return self.product(a, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("at", "product"), list(enumerate(PRODUCTS)))
@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_weights_are_found_in_every_spelling(softmax, at, product):
    heads, dtype = ((1, torch.float32), (2, torch.float64))[(at + [*SOFTMAXES].index(softmax)) % 2]
    torch.manual_seed(0)
    model = Spelled(SOFTMAXES[softmax], PRODUCTS[product], heads).eval().to(dtype)
    image = torch.randn(2, 3, 16, 24, dtype=dtype)
    with torch.no_grad(), regard.record(model) as maps:
        model(image)
    (found,) = of(maps, "token")
    assert torch.equal(found.value.reshape(model.true.shape), model.true)
    with torch.no_grad(), regard.record(model, queries=[(0.6, 0.2)]) as maps:
        model(image)
    (found,) = of(maps, "token")
    assert torch.equal(found.value[:, :, 0].reshape(2, heads, 24), model.true[:, :, 2 * 6 + 1])


# tokens (B, N, 3 C) and heads -> weights (B, heads, N, N) as they were, and what came of the values, any order
def _scaled(q, k):
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def _heads_first(t, heads):
    q, k, v = (x.unflatten(2, (heads, -1)).permute(2, 0, 1, 3) for x in t.chunk(3, -1))
    a = _scaled(q, k)
    return a.transpose(0, 1), a @ v


def _heads_first_by_letters(t, heads):
    q, k, v = (x.unflatten(2, (heads, -1)).permute(2, 0, 1, 3) for x in t.chunk(3, -1))
    a = torch.softmax(torch.einsum("hbnd,hbmd->hbnm", q, k) / q.shape[-1] ** 0.5, -1)
    return a.transpose(0, 1), torch.einsum("hbnm,hbmd->hbnd", a, v)


def _heads_first_in_one(t, heads):
    q, k, v = (x.unflatten(2, (heads, -1)).permute(2, 0, 1, 3).reshape(-1, x.shape[1], 4) for x in t.chunk(3, -1))
    a = _scaled(q, k)
    return a.unflatten(0, (heads, -1)).transpose(0, 1), torch.bmm(a, v)


def _images_first_in_one(t, heads):
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in t.chunk(3, -1))
    a = _scaled(q, k)
    return a.unflatten(0, (-1, heads)), torch.bmm(a, v)


def _tokens_first(t, heads):  # as torch.nn.MultiheadAttention does it
    n, b, _ = (t := t.transpose(0, 1)).shape
    q, k, v = (x.contiguous().view(n, b * heads, 4).transpose(0, 1) for x in t.chunk(3, -1))
    a = _scaled(q, k)
    return a.view(b, heads, n, n), (a @ v).transpose(0, 1).reshape(n, b, -1).transpose(0, 1)


def _parts_first(t, heads):  # as timm does it
    q, k, v = t.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    a = _scaled(q, k)
    return a, a @ v


def _parts_and_heads_first(t, heads):
    qkv = t.unflatten(2, (3, heads, -1)).permute(2, 3, 0, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    a = _scaled(q, k)
    return a.movedim(1, 0), a @ v


def _fused_heads_first(t, heads):
    q, k, v = (x.unflatten(2, (heads, -1)).permute(2, 0, 1, 3) for x in t.chunk(3, -1))
    return _scaled(q, k).transpose(0, 1), F.scaled_dot_product_attention(q, k, v)


def _turned_twice(t, heads):
    q, k, v = (x.unflatten(2, (heads, -1)).permute(2, 0, 1, 3).transpose(0, 1) for x in t.chunk(3, -1))
    a = _scaled(q, k)
    return a, a @ v


ORDERS = [
    _heads_first, _heads_first_by_letters, _heads_first_in_one, _images_first_in_one, _tokens_first, _parts_first,
    _parts_and_heads_first, _fused_heads_first, _turned_twice,
]  # fmt: skip


class Ordered(nn.Module):
    def __init__(self, order, heads):
        super().__init__()
        self.order, self.heads = order, heads
        self.patch, self.qkv = nn.Conv2d(3, 4 * heads, 4, 4), nn.Linear(4 * heads, 12 * heads)

    def forward(self, image):
        weights, values = self.order(self.qkv(self.patch(image).flatten(2).mT), self.heads)
        self.true = weights.detach()
        return values


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("images", "heads"), [(1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (4, 2)])
def test_whose_weights_they_are_is_told_in_every_order(order, images, heads):
    torch.manual_seed(0)
    model = Ordered(order, heads).eval()
    image = torch.randn(images, 3, 16, 24)
    with torch.no_grad(), regard.record(model) as maps:
        model(image)
    found = of(maps, "token")[-1]
    assert torch.allclose(found.value.reshape(model.true.shape), model.true, atol=1e-6)
    assert found.layout.grid == (4, 6)
    with torch.no_grad(), regard.record(model, queries=[(0.6, 0.2)]) as maps:
        model(image)
    assert torch.allclose(of(maps, "token")[-1].value[:, :, 0], model.true[:, :, 2 * 6 + 1], atol=1e-6)


GATINGS = {
    "x * g": lambda x, g: x * g,
    "g * x": lambda x, g: g * x,
    "mul_": lambda x, g: x.clone().mul_(g),
    "addcmul": lambda x, g: torch.addcmul(torch.zeros(()), x, g),
    "expanded": lambda x, g: x * g.expand_as(x),
    "as 1 + g": lambda x, g: x * (1 + (g - 1)),
}
SQUASHED = {
    "sigmoid": lambda z: z.sigmoid(),
    "viewed": lambda z: torch.sigmoid(z.flatten(1)).view(*z.shape),
    "indexed": lambda z: torch.sigmoid(z).flatten(1)[:, :, None, None],
    "hard": lambda z: F.hardsigmoid(z),
    "clamped": lambda z: (z / 6 + 0.5).clamp(0, 1),
}


class Gated(nn.Module):
    def __init__(self, squash, gate, first):
        super().__init__()
        self.squash, self.gate, self.first = squash, gate, first
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        y = None if self.first else self.conv(x)
        g = self.fc(x.mean((2, 3), keepdim=True))
        g = self.squash(g)
        self.true = g.detach().reshape(2, 8, 1, 1)
        return self.gate(self.conv(x) if y is None else y, g)


@pytest.mark.parametrize("first", [False, True], ids=["map before gate", "gate before map"])
@pytest.mark.parametrize("gate", GATINGS)
@pytest.mark.parametrize("squash", SQUASHED)
def test_gates_are_found_in_every_spelling(squash, gate, first):
    for seed in range(3):  # a tensor that is gone leaves its place in memory to another
        torch.manual_seed(seed)
        model = Gated(SQUASHED[squash], GATINGS[gate], first)
        with torch.no_grad(), regard.record(model) as maps:
            model(torch.randn(2, 3, 9, 9))
        (found,) = maps
        assert found.kind == "channel"
        assert torch.allclose(found.value.reshape(model.true.shape), model.true, atol=1e-6)


JOINED = {
    "sum": (lambda a, b: a + b, "channel"),
    "half the sum": (lambda a, b: 0.5 * (a + b), "channel"),
    "product": (lambda a, b: a * b, "channel"),
    "maximum": (lambda a, b: torch.maximum(a, b), "channel"),
    "the larger": (lambda a, b: torch.max(a, b), "channel"),
    "of channels and pixels": (lambda a, b: a + b.mean(1, keepdim=True).sigmoid(), "element"),
}


class Joined(nn.Module):
    def __init__(self, join, wide):
        super().__init__()
        self.join, self.wide = join, wide
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.conv(x)
        s = x.mean((2, 3), keepdim=True)
        gate = self.join(self.a(s).sigmoid(), self.b(x) if self.wide else self.b(s).sigmoid())
        self.true = gate.detach()
        return x * gate


@pytest.mark.parametrize("name", JOINED)
def test_gates_made_of_two(name):
    join, kind = JOINED[name]
    model = Joined(join, kind == "element").eval()
    with torch.no_grad(), regard.record(model) as maps:
        model(torch.randn(2, 3, 9, 11))
    found = maps[-1]
    assert found.kind == kind
    assert torch.equal(found.value, model.true)


# --- gates where the channels are last --------------------------------------------------------------------------------

GATED = {  # a map (B, *places, C) and a layer of as many channels -> its gate
    "channel": lambda x, layer: torch.sigmoid(layer(x.mean(tuple(range(1, x.dim() - 1)), keepdim=True))),
    "channel, flat": lambda x, layer: torch.sigmoid(layer(x.mean(tuple(range(1, x.dim() - 1))))).view(
        len(x), *[1] * (x.dim() - 2), -1
    ),
    "spatial": lambda x, layer: torch.sigmoid(layer(x)[..., :1]),
    "spatial, mean": lambda x, layer: torch.sigmoid(layer(x).mean(-1, keepdim=True)),
    "element": lambda x, layer: F.hardsigmoid(layer(x)),
}


class Last(nn.Module):
    def __init__(self, gate, layout, channels):
        super().__init__()
        self.gate, self.layout = gate, layout
        self.conv, self.layer = nn.Conv2d(3, channels, 4, 4), nn.Linear(channels, channels)

    def forward(self, image):
        x = self.conv(image).permute(0, 2, 3, 1)
        sides = x.shape[1:3]
        if self.layout != "channels_last":
            x = x.flatten(1, 2)
        if self.layout == "behind a class token":
            x = torch.cat([x.mean(1, keepdim=True), x], 1)
        gate = self.gate(x, self.layer)
        shown = (
            gate
            if gate.dim() < 3 or gate.shape[1] == 1
            else gate[:, -sides[0] * sides[1] :].reshape(len(x), *sides, -1)
        )
        self.true = shown.reshape(len(x), -1, shown.shape[-1]).mT.detach()
        return x * gate


@pytest.mark.parametrize("layout", ["channels_last", "tokens", "behind a class token"])
@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize(("channels", "sides"), [(8, (32, 32)), (8, (16, 24)), (24, (16, 24)), (64, (32, 32))])
def test_gates_where_the_channels_are_last(layout, gate, channels, sides):
    torch.manual_seed(0)
    model = Last(GATED[gate], layout, channels).eval()
    with torch.no_grad(), regard.record(model) as maps:
        model(torch.randn(2, 3, *sides))
    (found,) = maps
    kind = gate.partition(",")[0]
    assert found.kind == kind
    places = (1, 1) if kind == "channel" else (sides[0] // 4, sides[1] // 4)
    assert found.value.shape == (2, 1 if kind == "spatial" else channels, *places)
    assert torch.equal(found.value.flatten(2), model.true)


def test_tensors_that_are_given_by_name_are_followed():
    class Named(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).permute(
                2, 0, 1
            )  # of nn.MultiheadAttention: the images are counted by the second axis
            tokens = torch.permute(input=tokens, dims=(1, 0, 2))
            return torch.softmax(tokens @ tokens.mT, -1) @ tokens

    x = torch.randn(3, 4, 5, 5)
    model = Named()
    with regard.record(model) as maps:
        model(x)
    tokens = x.flatten(2).mT
    torch.testing.assert_close(maps[0].value, (tokens @ tokens.mT).softmax(-1)[:, None])
