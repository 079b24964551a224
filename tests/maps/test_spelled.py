"""Attention as strangers write it: what was applied is recorded under the name of the module that applied it, image by
image, or the module is named among what was dropped."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import regard

torch.manual_seed(0)
X = torch.randn(3, 3, 64, 64)


class Written(nn.Module):
    """Self-attention over the pixels of a small map, as a function applies it; it keeps the true weights."""

    def __init__(self, apply):
        super().__init__()
        self.conv, self.qkv, self.apply_ = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 36), apply

    def forward(self, x):
        q, k, v = self.qkv(self.conv(x).flatten(2).mT).chunk(3, 2)
        result, self.true = self.apply_(q, k, v)
        return result


def cat(q, k, v):
    q, k, v = (torch.cat(t.chunk(2, 2), 0) for t in (q, k, v))
    a = (q @ k.mT).softmax(2)
    return torch.cat((a @ v).chunk(2, 0), 2), a.unflatten(0, (2, -1)).transpose(0, 1)


def stacked(q, k, v):
    q, k, v = (torch.stack(t.chunk(2, 2)) for t in (q, k, v))
    a = (q @ k.mT).softmax(-1)
    return torch.cat((a @ v).unbind(0), 2), a.transpose(0, 1)


def flattened(q, k, v):
    q, k, v = (torch.stack(t.chunk(2, 2)).flatten(0, 1) for t in (q, k, v))
    a = (q @ k.mT).softmax(-1)
    return (a @ v).unflatten(0, (2, -1)).permute(1, 2, 0, 3).flatten(2), a.unflatten(0, (2, -1)).transpose(0, 1)


def fused(q, k, v):
    q, k, v = (torch.cat(t.chunk(2, 2), 0) for t in (q, k, v))
    a = (q @ k.mT / 6**0.5).softmax(2)
    return torch.cat(F.scaled_dot_product_attention(q, k, v).chunk(2, 0), 2), a.unflatten(0, (2, -1)).transpose(0, 1)


def keys_first(q, k, v):
    q, k, v = (t.unflatten(2, (2, 6)) for t in (q, k, v))
    a = torch.einsum("bihd,bjhd->jhbi", q, k).softmax(0)
    return torch.einsum("jhbi,bjhd->bihd", a, v).flatten(2), a.permute(2, 1, 3, 0)


def mixed_heads(q, k, v):
    q, k, v = (t.unflatten(2, (2, 6)).transpose(1, 2) for t in (q, k, v))
    a = (q @ k.mT).softmax(-1)
    a = F.linear(a.permute(0, 2, 3, 1), nn.Parameter(torch.tensor([[0.7, 0.3], [0.2, 0.8]]))).permute(0, 3, 1, 2)
    return (a @ v).transpose(1, 2).flatten(2), a


def gated_weights(q, k, v):
    g = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1).sigmoid()
    q, k, v = (t.unflatten(2, (2, 6)).transpose(1, 2) for t in (q, k, v))
    a = (1 - g) * (q @ k.mT).softmax(-1) + g * (k @ q.mT).softmax(-1)
    a /= a.sum(-1).unsqueeze(-1)
    return (a @ v).transpose(1, 2).flatten(2), a


def masked_after(q, k, v):
    a = torch.nan_to_num((q @ k.mT).softmax(-1)).masked_fill(torch.eye(64, dtype=torch.bool), 0.0)
    a = a / (1e-9 + a.sum(1, keepdim=True))
    return a @ v, a[:, None]


def by_name(q, k, v):
    a = torch.special.softmax(torch.matmul(input=q, other=k.mT), dim=-1)
    return torch.bmm(a, mat2=v), a[:, None]


def overwritten(q, k, v):
    a = (q @ k.mT).softmax(-1)
    y, true = a @ v, a.clone()[:, None]
    a.zero_()
    return y, true


WAYS = [
    cat, stacked, flattened, fused, keys_first, mixed_heads, gated_weights, masked_after, by_name, overwritten,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("images", [2, 3])
def test_weights_belong_to_their_image(way, images):
    model = Written(way).eval()
    with torch.no_grad(), regard.record(model) as maps:
        model(X[:images])
    (found,) = (found for found in maps if found.kind == "token")
    torch.testing.assert_close(found.value, model.true, rtol=1e-4, atol=1e-6)
    assert found.layout is not None
    assert not maps.dropped


@pytest.mark.parametrize("way", [cat, stacked, keys_first])
def test_one_row_is_that_of_all(way):
    model = Written(way).eval()
    with torch.no_grad(), regard.record(model, queries=[(0.6, 0.2)]) as maps:
        model(X)
    torch.testing.assert_close(maps[0].value[:, :, 0], model.true[:, :, 4 * 8 + 1], rtol=1e-4, atol=1e-6)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 8, 8)

    def forward(self, x):
        t = self.conv(x).flatten(2).mT
        self.true = (t @ t.mT).softmax(-1)
        return self.true @ t


class Both(Plain):
    def forward(self, x):
        return super().forward(torch.cat([x, x.flip(3)]))


class Crops(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Plain()

    def forward(self, large, small):
        return self.net(large).mean() + self.net(small).mean()


class Masked(Plain):
    def forward(self, mask, x):
        return super().forward(mask * x)


def test_images_that_are_more_than_came_in_are_no_heads():
    model = Both()
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
    assert torch.equal(maps[0].value, model.true.unflatten(0, (2, 3)).transpose(0, 1))  # two views of each
    with torch.no_grad(), regard.record(Crops()) as maps:
        model = Crops()
    with torch.no_grad(), regard.record(model) as maps:
        model(X[:2], torch.randn(6, 3, 32, 32))
    assert [tuple(found.value.shape) for found in maps] == [(2, 1, 64, 64), (6, 1, 16, 16)]
    model = Masked()
    with torch.no_grad(), regard.record(model) as maps:
        model(torch.ones(1, 1, 64, 64), X)
    assert torch.equal(maps[0].value, model.true[:, None])


def test_tokens_in_columns_have_no_rows():
    class Turned(Plain):
        def forward(self, x):
            t = self.conv(x).permute(0, 3, 2, 1).flatten(1, 2)
            return (t @ t.mT).softmax(-1) @ t

    model = Turned()
    with torch.no_grad(), regard.record(model) as maps:
        model(torch.randn(1, 3, 64, 128))
    assert [found.layout for found in maps] == [None]


class Gate(nn.Module):
    def __init__(self, apply, channels=8):
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, channels, 4, 4), nn.Conv2d(channels, channels, 1)
        self.gamma, self.apply_ = nn.Parameter(torch.tensor([0.5])), apply

    def forward(self, x):
        y = self.conv(x)
        g = self.squeeze(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.apply_(y, g, self.gamma)


GATES = {
    "by name": (lambda y, g, _: torch.mul(input=y, other=g), lambda g, _: g),
    "by another name": (lambda y, g, _: y.mul(other=g), lambda g, _: g),
    "repeated": (lambda y, g, _: y * g.repeat(1, 1, 16, 16), lambda g, _: g),
    "tiled": (lambda y, g, _: y * g.tile(1, 1, 16, 16), lambda g, _: g),
    "broadcast": (lambda y, g, _: y * g.broadcast_to(y.shape), lambda g, _: g),
    "strength": (lambda y, g, gamma: y * (1 + gamma * g), lambda g, gamma: 1 + gamma * g),
    "squared": (lambda y, g, _: y * g**2, lambda g, _: g**2),
    "halves": (lambda y, g, _: y * torch.cat([g[:, :4], g[:, 4:]], 1), lambda g, _: g),
    "images second": (lambda y, g, _: (y.transpose(0, 1) * g.transpose(0, 1)).transpose(0, 1), lambda g, _: g),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_of_channels(name):
    apply, expected = GATES[name]
    model = Gate(apply)
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
        g = model.squeeze(model.conv(X).mean((2, 3), keepdim=True)).sigmoid()
    assert [(found.name, found.kind) for found in maps] == [("", "channel")]
    torch.testing.assert_close(maps[0].value, expected(g, model.gamma))
    assert not maps.dropped


DROPPED = {
    "division": lambda y, g, _: y / g,
    "lerp": lambda y, g, _: torch.lerp(torch.zeros(()), y, g),
    "sum": lambda y, g, _: torch.einsum("bchw,bcij->bchw", y, g),
    "weights that are no softmax": lambda y, g, _: y.flatten(2).mT @ g.flatten(2),
}


@pytest.mark.parametrize("name", DROPPED)
def test_what_looks_like_attention_is_named(name):
    model = nn.Sequential(nn.Identity(), Gate(DROPPED[name]))
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
    assert not maps
    assert list(maps.dropped) == ["1"]


def test_two_gates_and_what_is_written_over():
    def twice(y, g, _):
        foreground = y * g
        g.neg_().add_(1)
        return foreground - y * g

    model = Gate(twice)
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
    torch.testing.assert_close(maps[0].value, 1 - maps[1].value)


def test_a_gate_of_two_gates_is_one():
    model = Gate(lambda y, g, _: y * (g * y.mean(1, keepdim=True).sigmoid()))
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
    assert [found.kind for found in maps] == ["element"]
    assert not maps.dropped


@pytest.mark.parametrize("channels", [16, 17])
def test_channels_last_is_told_by_what_was_moved(channels):
    def last(y, _, __):
        y = y.permute(0, 2, 3, 1)
        return y * torch.sigmoid(y.mean(3, keepdim=True))

    with torch.no_grad(), regard.record(model := Gate(last, channels)) as maps:
        model(X)
    assert [(found.kind, tuple(found.value.shape)) for found in maps] == [("spatial", (3, 1, 16, 16))]


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 5, "vdim": 5}])
def test_forms_of_multi_head_attention_that_are_not_read_are_named(options):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.MultiheadAttention(16, 2, batch_first=True, **options)

        def forward(self, x):
            return self.heads(x, x[..., : options.get("kdim", 16)], x[..., : options.get("vdim", 16)])[0]

    with regard.record(model := Heads()) as maps:
        model(torch.randn(2, 9, 16))
    assert not maps
    assert list(maps.dropped) == ["heads"]


def test_forward_that_is_called_by_itself():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Gate(lambda y, g, _: y * g)

        def forward(self, x):
            y = self.inner.forward(x)
            return y * y.mean(1, keepdim=True).sigmoid()

    model = Outer()
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
        model.forward(X[:1])
    assert [(found.name, len(found.value)) for found in maps] == [("inner", 3), ("", 3), ("inner", 1), ("", 1)]


def test_a_module_that_is_replaced_has_a_name():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Gate(lambda y, g, _: y * g))
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
        model[1] = Gate(lambda y, g, _: y * g)
        model(X)
    assert [found.name for found in maps] == ["1", "1"]


@pytest.mark.parametrize("name", ["qkv", "danet_position", "non_local", "gc", "polarized"])
def test_own_mechanisms_are_recorded_once(name):
    model = timm.create_model("resnet10t", num_classes=5).eval()
    regard.attach(model, name, example=X, at="blocks")
    seen = []
    for queries in (None, [(0.5, 0.5)]):
        with torch.no_grad(), regard.record(model, queries=queries) as maps:
            model(X)
        seen.append([(found.name, found.kind) for found in maps])
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == len(seen[0])


def test_networks_whose_weights_are_mixed():
    for name, blocks in (("convit_tiny", 12), ("cait_xxs24_224", 26)):
        model = timm.create_model(name, img_size=64, num_classes=3).eval()
        with torch.no_grad(), regard.record(model) as maps:
            model(X[:2])
        assert len(maps) == blocks, name
        assert {found.kind for found in maps} <= {"token", "spatial"}
        for found in maps:
            if name == "convit_tiny" and found.kind == "token":
                assert torch.allclose(found.value.sum(-1), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kinds": "token"}, "the string 'token'"),
        ({"kinds": ["tokens"]}, "did you mean 'token'"),
        ({"queries": (0.5, 0.5)}, r"queries=\[\(0.5, 0.5\)\]"),
        ({"queries": [(0.5,)]}, r"got \(0.5,\)"),
        ({"queries": ["a"]}, "got 'a'"),
        ({"queries": [True]}, "got True"),
        ({"queries": [-1]}, "counted from 0"),
        ({"queries": 3}, "queries is a list"),
    ],
)
def test_what_is_asked_wrongly_is_said(asked, said):
    with pytest.raises(regard.UserError, match=said), regard.record(Plain(), **asked):
        pass


def test_numpys_word_for_an_axis():
    def beside(q, k, v):
        a = (torch.cat([q, q], axis=1) @ torch.cat([k, k], axis=1).mT).softmax(-1)
        return a @ torch.cat([v, v], axis=1), a[:, None]

    model = Written(beside).eval()
    with torch.no_grad(), regard.record(model) as maps:
        model(X)
    assert torch.equal(maps[0].value, model.true)
