"""What the contract and the golden numbers do not reach: other forms, against formulas written out by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regard
from regard.registry.signatures import example_inputs
from regard.registry.spelling import parse

BRANCHES = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3  # the widths of ResNet-50's blocks


def made(name, channels, **options):
    torch.manual_seed(0)
    module = regard.create(name, channels, **options).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.requires_grad_(False)


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def one_by_one(layer, x):
    """A pointwise layer, written out."""
    y = torch.einsum("oc,bc...->bo...", layer.weight, x)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * (x.dim() - 2))


def brute_attention(query, key, value, scale=1.0):
    """(B, C, N) each, one pair at a time."""
    y = torch.zeros(*value.shape[:2], query.shape[2], dtype=torch.float64)
    for b in range(len(query)):
        for i in range(query.shape[2]):
            logits = [float(query[b, :, i] @ key[b, :, j]) * scale for j in range(key.shape[2])]
            top = max(logits)
            weights = [math.exp(logit - top) for logit in logits]
            for j, weight in enumerate(weights):
                y[b, :, i] += weight / sum(weights) * value[b, :, j]
    return y


# --- the papers' own numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "widths", "published"),
    [
        ("se", {}, BRANCHES, 2_530_992),
        ("cbam", {}, BRANCHES, 2_532_592),
        ("bam", {}, [256, 512, 1024], 358_067),
        ("sge", {}, BRANCHES, 2_048),
        ("shuffle", {"groups": 64}, BRANCHES, 708),
        ("shuffle", {}, BRANCHES, 708),
        ("eca", {"kernel_size": "released"}, BRANCHES, 3 * 3 + 4 * 5 + 6 * 5 + 3 * 7),
        ("srm", {}, BRANCHES, 60_416),
        ("triplet", {}, BRANCHES, 4_800),
        ("simam", {}, BRANCHES, 0),
    ],
)
def test_parameters_added_to_resnet50(name, options, widths, published):
    built = sum(p.numel() for width in widths for p in regard.create(name, width, **options).parameters())
    assert built == published
    assert sum(regard.info(name).parameters(width, **options) for width in widths) == published


# --- every option changes what it says, and is checked ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("bam[combine=mean]", "combine is 'product' .* or 'sum'"),
        ("shuffle[groups=7]", "the groups that fit are 1, 2, 5, 10"),
        ("sge[groups=3]", "the groups that fit are 1, 2, 4, 5, 10, 20"),
        ("polarized[form=best]", "form is one of code, paper"),
        ("polarized[arrangement=both]", "arrangement is one of parallel, sequential"),
        ("gam[kernel_size=6]", "odd number"),
        ("gam[padding=reflect]", "'zeros' or 'replicate'"),
        ("danet_channel[form=no]", "form is 'code' or 'paper'"),
        ("non_local[pairwise=cosine]", "pairwise is one of"),
        ("non_local[subsample=both]", "subsample is one of"),
        ("qkv[heads=3]", "3 heads do not divide widths of 20 and 20"),
        ("local[heads=3]", "3 heads do not divide"),
        ("local[halo=-1]", "halo is a positive whole number"),
        ("gc[fusion=both]", "fusion is one of add, mul, add\\+mul"),
        ("gc[squeeze=max]", "squeeze is"),
        ("gct[mode=l3]", "mode is 'l2' or 'l1'"),
        ("scse[combine=mean]", "combine is one of max, add"),
        ("simam[regularization=0]", "regularization is above 0"),
        ("triplet[kernel_size=4]", "odd number"),
        ("ge[form=theta]", "needs its size="),
        ("ge[extent=3]", "power of 2"),
        ("cbam[spatial_dims=4]", "spatial_dims is 1, 2 or 3"),
    ],
)
def test_options_are_checked(arm, message):
    name, options = parse(arm)
    with pytest.raises(regard.UserError, match=message):
        regard.create(name, 20, **options)


def test_groups_that_fit_no_number_of_channels():
    with pytest.raises(
        regard.UserError, match=r"21 channels must divide by twice the groups.*no number of groups fits"
    ):
        regard.create("shuffle", 21)


@pytest.mark.parametrize("name", ["shuffle", "sge"])
def test_the_authors_64_groups_where_they_fit(name):
    assert regard.create(name, 256).groups == 64


# --- bam -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_bam_combines(combine):
    bam = made("bam", 32, combine=combine)
    x = image(2, 32, 5, 7)
    with regard.record(bam) as maps:
        y = bam(x)
    hidden = torch.relu(bam.norm(F.linear(x.mean((2, 3)), bam.down.weight, bam.down.bias)))
    channel = F.linear(hidden, bam.up.weight, bam.up.bias)[..., None, None]
    s = torch.relu(bam.reduce_norm(one_by_one(bam.reduce, x)))
    for layer, norm in zip(bam.dilated, bam.dilated_norms, strict=True):
        s = torch.relu(norm(F.conv2d(s, layer.weight, layer.bias, padding=4, dilation=4)))
    spatial = one_by_one(bam.mask, s)
    gate = 1 + torch.sigmoid(channel * spatial if combine == "product" else channel + spatial)
    torch.testing.assert_close(maps[0].value, gate)
    torch.testing.assert_close(y, x * gate)


# --- sge -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbiased", [True, False])
def test_sge_standardises(unbiased):
    sge = made("sge", 12, groups=3, unbiased=unbiased)
    x = image(2, 12, 4, 5)
    y = sge(x)
    for b in range(2):
        for g in range(3):
            part = x[b, 4 * g : 4 * g + 4]
            t = (part * part.mean((1, 2), keepdim=True)).sum(0)
            t = (t - t.mean()) / (t.std(unbiased=unbiased) + 1e-5)
            mask = torch.sigmoid(sge.weight[g] * t + sge.bias[g])
            torch.testing.assert_close(y[b, 4 * g : 4 * g + 4], part * mask)


# --- polarized -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", ["parallel", "sequential"])
def test_polarized_as_the_paper_has_it(arrangement):
    psa = made("polarized", 8, form="paper", arrangement=arrangement)
    x = image(2, 8, 3, 5)

    def channel(x):
        chosen = one_by_one(psa.channel_query, x).flatten(2).softmax(2)
        context = torch.einsum("bcn,bon->bc", one_by_one(psa.channel_value, x).flatten(2), chosen)
        up = F.linear(context, psa.up.weight, psa.up.bias)
        return torch.sigmoid(F.layer_norm(up, (8,), psa.norm.weight, psa.norm.bias))[..., None, None]

    def pixels(x):
        query = one_by_one(psa.pixel_query, x).mean((2, 3)).softmax(1)
        return torch.sigmoid(torch.einsum("bc,bchw->bhw", query, one_by_one(psa.pixel_value, x))).unsqueeze(1)

    if arrangement == "parallel":
        expected = x * channel(x) + x * pixels(x)
    else:
        expected = x * channel(x)
        expected = expected * pixels(expected)
    torch.testing.assert_close(psa(x), expected)


# --- danet and criss-cross -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "sign"), [("code", -1), ("paper", 1)])
def test_the_sign_of_channel_affinity(form, sign):
    danet = made("danet_channel", 5, form=form)
    x = image(2, 5, 3, 4) / 3
    flat = x.flatten(2)
    weights = (sign * flat @ flat.transpose(1, 2)).softmax(2)
    torch.testing.assert_close(danet(x), x + danet.gamma * (weights @ flat).view_as(x))


def test_position_attention_pair_by_pair():
    danet = made("danet_position", 16)
    x = image(2, 16, 3, 4)
    query, key, value = (one_by_one(layer, x).flatten(2) for layer in (danet.query, danet.key, danet.value))
    torch.testing.assert_close(danet(x), x + danet.gamma * brute_attention(query, key, value).view_as(x))


def test_criss_cross_pixel_by_pixel():
    cross = made("criss_cross", 4, recurrence=1)
    x = image(1, 4, 3, 5)
    query, key, value = (one_by_one(layer, x) for layer in (cross.query, cross.key, cross.value))
    expected = x.clone()
    for i in range(3):
        for j in range(5):
            seen = [(k, j) for k in range(3)] + [(i, k) for k in range(5) if k != j]
            logits = torch.stack([query[0, :, i, j] @ key[0, :, a, b] for a, b in seen])
            held = torch.stack([value[0, :, a, b] for a, b in seen], dim=1)
            expected[0, :, i, j] += cross.gamma[0] * (held @ logits.softmax(0))
    torch.testing.assert_close(cross(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_criss_cross_in_half_precision_and_with_few_channels(dtype):
    cross = made("criss_cross", 4)
    x = image(2, 4, 6, 7)
    y = cross.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), made("criss_cross", 4)(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["criss_cross", "danet_position", "non_local", "qkv"])
def test_nothing_between_all_pixels_is_built_unless_it_is_watched(name):
    module = regard.create(name, 8)
    x = torch.randn(1, 8, 48, 48)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            y = func(*args, **(kwargs or {}))
            if isinstance(y, torch.Tensor):
                largest = max(largest, y.numel())
            return y

    with torch.no_grad(), Watch():
        module(x)
        unwatched = largest
        if name != "criss_cross":
            with regard.record(module):
                module(x)
            assert largest == 48**4
    assert unwatched < 48**4 / 10


# --- non_local -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7,), (3, 4), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("pairwise", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("scale", [False, True])
def test_non_local_pair_by_pair(size, pairwise, scale):
    block = made("non_local", 6, pairwise=pairwise, scale=scale)
    x = image(2, 6, *size) / 2
    flat = x.flatten(2)
    query, key = (
        (flat, flat) if pairwise == "gaussian" else (one_by_one(layer, flat) for layer in (block.query, block.key))
    )
    value = one_by_one(block.value, flat)
    factor = query.shape[1] ** -0.5 if scale else 1.0
    if pairwise.endswith("gaussian"):
        y = brute_attention(query, key, value, factor)
    else:
        pairs = torch.einsum("bcn,bcm->bnm", query, key)
        if pairwise == "concatenation":
            ours, theirs = block.pair.weight[0, :3], block.pair.weight[0, 3:]
            pairs = torch.relu((ours @ query)[:, :, None] + (theirs @ key)[:, None, :])
        y = torch.einsum("bnm,bcm->bcn", pairs * factor / flat.shape[2], value)
    expected = flat + F.batch_norm(
        one_by_one(block.out, y), block.norm.running_mean, block.norm.running_var, block.norm.weight, block.norm.bias
    )
    torch.testing.assert_close(block(x), expected.view_as(x))


@pytest.mark.parametrize("subsample", ["before", "after"])
def test_non_local_pools_keys_and_values_over_space_only(subsample):
    block = made("non_local", 6, subsample=subsample, norm=False)
    x = image(2, 6, 3, 4, 6)
    pool = lambda t: F.max_pool3d(t, (1, 2, 2))  # noqa: E731
    if subsample == "before":
        key, value = one_by_one(block.key, pool(x)), one_by_one(block.value, pool(x))
    else:
        key, value = pool(one_by_one(block.key, x)), pool(one_by_one(block.value, x))
    y = brute_attention(one_by_one(block.query, x).flatten(2), key.flatten(2), value.flatten(2))
    torch.testing.assert_close(block(x), x + one_by_one(block.out, y.view(2, 3, 3, 4, 6)))
    with regard.record(block) as maps:
        block(x)
    assert maps[0].value.shape == (2, 1, 3, 4, 6, 3, 2, 3)
    assert block(image(2, 6, 1, 1)).shape == (2, 6, 1, 1)


# --- qkv and local ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [True, False])
def test_qkv_head_by_head(scale):
    module = made("qkv", 12, heads=3, width=6, value_width=9, scale=scale)
    x = image(2, 12, 3, 4)
    query, key, value = (one_by_one(layer, x).flatten(2) for layer in (module.query, module.key, module.value))
    heads = [
        brute_attention(q, k, v, 2**-0.5 if scale else 1.0)
        for q, k, v in zip(query.chunk(3, 1), key.chunk(3, 1), value.chunk(3, 1), strict=True)
    ]
    torch.testing.assert_close(module(x), torch.cat(heads, 1).view(2, 9, 3, 4))


@pytest.mark.parametrize("hide_padding", [True, False])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3)], ids=str)
def test_local_pixel_by_pixel(size, hide_padding):
    block, halo, heads = 2, 1, 2
    module = made("local", 4, heads=heads, block_size=block, halo=halo, hide_padding=hide_padding)
    x = image(1, 4, *size)
    window = block + 2 * halo
    query, key, value = (one_by_one(layer, x)[0] for layer in (module.query, module.key, module.value))
    expected = torch.zeros(4, *size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i // block * block - halo, j // block * block - halo
            for h in range(heads):
                q, channels = query[2 * h : 2 * h + 2, i, j], slice(2 * h, 2 * h + 2)
                logits, held = [], []
                for a in range(window):
                    for b in range(window):
                        inside = 0 <= top + a < size[0] and 0 <= left + b < size[1]
                        if not inside and hide_padding:
                            continue
                        k = key[channels, top + a, left + b] if inside else torch.zeros(2, dtype=torch.float64)
                        v = value[channels, top + a, left + b] if inside else torch.zeros(2, dtype=torch.float64)
                        at = module.rows[a - i % block + window - 1] + module.columns[b - j % block + window - 1]
                        logits.append(q @ k * 2**-0.5 + q @ at)
                        held.append(v)
                expected[channels, i, j] = torch.stack(held, 1) @ torch.stack(logits).softmax(0)
    torch.testing.assert_close(module(x)[0], expected)


# --- the gates -------------------------------------------------------------------------------------------------------


def test_cbam_as_the_paper_has_it():
    cbam = made("cbam", 16, reduction=4, norm=False, bias=False)
    assert sum(p.numel() for p in cbam.parameters()) == regard.info("cbam").parameters(
        16, reduction=4, norm=False, bias=False
    )
    x = image(2, 16, 5, 6)
    shared = lambda s: F.linear(torch.relu(F.linear(s, cbam.down.weight)), cbam.up.weight)  # noqa: E731
    y = x * torch.sigmoid(shared(x.mean((2, 3))) + shared(x.amax((2, 3))))[..., None, None]
    two = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
    torch.testing.assert_close(cbam(x), y * torch.sigmoid(F.conv2d(two, cbam.conv.weight, padding=3)))


@pytest.mark.parametrize("fusion", ["add", "mul", "add+mul"])
@pytest.mark.parametrize("squeeze", ["attention", "avg"])
def test_gc_fuses(fusion, squeeze):
    gc = made("gc", 12, reduction=3, fusion=fusion, squeeze=squeeze)
    count = sum(p.numel() for p in gc.parameters())
    assert count == regard.info("gc").parameters(12, reduction=3, fusion=fusion, squeeze=squeeze)
    x = image(2, 12, 4, 5)
    weights = one_by_one(gc.query, x).flatten(2).softmax(2) if squeeze == "attention" else torch.full((2, 1, 20), 0.05)
    context = torch.einsum("bcn,bon->bc", x.flatten(2), weights.double())

    def network(layers):
        hidden = F.linear(context, layers[0].weight, layers[0].bias)
        hidden = torch.relu(F.layer_norm(hidden, (4,), layers[1].weight, layers[1].bias, eps=1e-5))
        return F.linear(hidden, layers[3].weight, layers[3].bias)[..., None, None]

    expected = x * torch.sigmoid(network(gc.mul)) if "mul" in fusion else x
    torch.testing.assert_close(gc(x), expected + network(gc.add) if "add" in fusion else expected)


@pytest.mark.parametrize("after_relu", [True, False])
def test_gct_with_l1(after_relu):
    gct = made("gct", 6, mode="l1", after_relu=after_relu)
    x = image(2, 6, 3, 4).relu() if after_relu else image(2, 6, 3, 4)
    e = gct.alpha * x.abs().sum((2, 3))
    gate = 1 + torch.tanh(gct.gamma * e / (e.abs().mean(1, keepdim=True) + 1e-5) + gct.beta)
    torch.testing.assert_close(gct(x), x * gate[..., None, None])


@pytest.mark.parametrize("arrangement", ["parallel", "channel", "spatial"])
@pytest.mark.parametrize("combine", ["max", "add"])
def test_scse_combines(combine, arrangement):
    scse = made("scse", 8, combine=combine, arrangement=arrangement)
    assert sum(p.numel() for p in scse.parameters()) == regard.info("scse").parameters(8, arrangement=arrangement)
    x = image(2, 8, 3, 4)
    parts = []
    if arrangement != "spatial":
        hidden = torch.relu(F.linear(x.mean((2, 3)), scse.down.weight, scse.down.bias))
        parts.append(x * torch.sigmoid(F.linear(hidden, scse.up.weight, scse.up.bias))[..., None, None])
    if arrangement != "channel":
        parts.append(x * torch.sigmoid(one_by_one(scse.pixel, x)))
    expected = torch.stack(parts).amax(0) if combine == "max" else sum(parts)
    torch.testing.assert_close(scse(x), expected)


@pytest.mark.parametrize("form", ["theta-minus", "theta", "theta-plus"])
@pytest.mark.parametrize("extent", [0, 2, 4, 8])
def test_ge_gathers(form, extent):
    options = {"form": form, "extent": extent, "reduction": 2} | ({"size": (6, 9)} if extent == 0 else {})
    ge = made("ge", 4, **options)
    assert sum(p.numel() for p in ge.parameters()) == regard.info("ge").parameters(4, **options)
    x = image(2, 4, 6, 9)
    g = x
    if form == "theta-minus":
        counted = torch.ones_like(x)
        if extent == 0:
            g = x.mean((2, 3), keepdim=True)
        else:  # a mean that does not count what lies outside
            window = {"kernel_size": 2 * extent - 1, "stride": extent, "padding": extent - 1}
            g = F.avg_pool2d(x, **window) / F.avg_pool2d(counted, **window)
    else:
        for place, (conv, norm) in enumerate(zip(ge.gather, ge.norms, strict=True)):
            g = F.conv2d(g.relu() if place else g, conv.weight, stride=conv.stride, padding=conv.padding, groups=4)
            g = norm(g)
    if form == "theta-plus":
        g = one_by_one_conv(ge.up, torch.relu(one_by_one_conv(ge.down, g)))
    rows = torch.arange(6) * g.shape[2] // 6
    columns = torch.arange(9) * g.shape[3] // 9
    torch.testing.assert_close(ge(x), x * torch.sigmoid(g[:, :, rows][..., columns]))
    if form != "theta-minus" and extent == 0:
        with pytest.raises(regard.UserError, match="made for maps of"):
            ge(image(2, 4, 5, 9))


def one_by_one_conv(conv, x):
    return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def test_srm_and_simam_on_one_pixel_are_finite_and_right():
    x = image(3, 4, 1, 1)
    srm = made("srm", 4)
    z = srm.weight[:, 0] * x.flatten(1) + srm.weight[:, 1] * 1e-5**0.5
    torch.testing.assert_close(srm(x), x * torch.sigmoid(srm.norm(z))[..., None, None])
    torch.testing.assert_close(made("simam", 4)(x), x * torch.sigmoid(torch.tensor(0.5)))


@pytest.mark.parametrize(
    "name", ["se", "eca", "bam", "shuffle", "sge", "polarized", "danet_position", "danet_channel", "non_local", "qkv",
             "gc", "simam", "gct", "srm", "scse", "cbam", "gam"],
)  # fmt: skip
def test_a_sequence_is_a_map_of_one_column(name):
    """What convolves sees the middle column of its kernels: those are made to hold nothing else."""
    options = {"spatial_dims": 1} if "spatial_dims" in regard.info(name).options else {}
    line = made(name, 12, **options)
    wide = made(name, 12)
    state = dict(line.state_dict())
    for key, value in wide.state_dict().items():
        if key in state and state[key].shape != value.shape:
            state[key] = F.pad(state[key].unsqueeze(-1), [value.shape[-1] // 2] * 2)
        elif key not in state:  # a gate along an axis of one pixel
            state[key] = value
    wide.load_state_dict(state)
    x = image(2, 12, 9)
    y = wide(x.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(line(x), y)


@pytest.mark.parametrize("name", [name for name in regard.names() if regard.info(name).place])
def test_a_layer_that_somebody_watches_gives_the_same(name):
    """Ops read the weights of plain layers; a layer with a hook is called, and nothing else changes."""
    torch.manual_seed(0)
    known = regard.info(name)
    mechanism = regard.create(name, 16).double()
    for parameter in mechanism.parameters():
        nn.init.normal_(parameter, std=0.3)
    watched = copy.deepcopy(mechanism)
    called = set()
    for key, layer in watched.named_modules():
        layer.register_forward_hook(lambda *_, key=key: called.add(key))
    inputs = [x.double() for x in example_inputs(known, 16)]
    outputs = [part(*inputs) for part in (mechanism, watched)]
    assert torch.allclose(*outputs, atol=1e-9)
    for output in outputs:
        if output.requires_grad:  # some have no parameters
            output.square().sum().backward()
    for (key, one), (_, other) in zip(mechanism.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-8, rtol=1e-6), key
    layers = {key for key, layer in watched.named_modules() if key and [*layer.parameters(recurse=False)]}
    assert layers <= called
