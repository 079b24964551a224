"""Mechanisms in other people's networks: found, put in, taken out, saved, and nothing else touched."""

import copy
import io
import pickle
import random
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import regard
from regard.insertion.container import Inserted
from strangers import VISION, X, assert_same, logits, photograph, refused, site_names, small, vision, zoo

# one map in, one of its shape out; all but those that need whole clips in the batch
SAME = [name for name in regard.names() if regard.info(name).place and regard.info(name).signature.startswith("(B, C")]


# --- where ---------------------------------------------------------------------------------------------------------

RESNET18 = [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in (0, 1)]
RESNET50 = [f"layer{s}.{b}.bn3" for s, depth in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(depth)]


def test_branches_are_the_last_norm_before_the_addition():
    assert site_names(vision("resnet18")) == RESNET18
    assert site_names(zoo("resnet18")) == RESNET18
    assert site_names(zoo("resnet50")) == RESNET50
    assert site_names(zoo("seresnet18")) == RESNET18, "not the convolution inside the gate"


BRANCHES = {  # number, first, last: read in the source of each network
    "mobilenetv2_100": (10, "blocks.1.1.bn3", "blocks.5.2.bn3"),
    "efficientnet_lite0": (9, "blocks.1.1.bn3", "blocks.5.3.bn3"),
    "regnety_002": (13, "s1.b1.conv3.bn", "s4.b7.conv3.bn"),
    "ghostnet_100": (16, "blocks.0.0.ghost2", "blocks.8.3.ghost2"),
    "convnext_atto": (12, "stages.0.blocks.0.mlp.fc2", "stages.3.blocks.1.mlp.fc2"),
    "skresnet18": (8, "layer1.0.conv2.bn", "layer4.1.conv2.bn"),
    "nfnet_l0": (12, "stages.0.0.conv3", "stages.3.2.conv3"),
}
SLOW_BRANCHES = {
    "res2net50_26w_4s": (16, "layer1.0.bn3", "layer4.2.bn3"),
    "resnest14d": (4, "layer1.0.bn3", "layer4.0.bn3"),
    "tresnet_m": (21, "body.layer1.0.conv2.bn", "body.layer4.2.conv3.bn"),
    "xception41": (12, "blocks.0.stack.conv3.bn_pw", "blocks.11.stack.conv3.bn_pw"),
    "darknet53": (23, "stages.0.blocks.0.conv2.bn", "stages.4.blocks.3.conv2.bn"),
    "cspresnet50": (13, "stages.0.blocks.0.conv3.bn", "stages.3.blocks.1.conv3.bn"),
    "dla34": (12, "level2.tree1.bn2", "level5.tree2.bn2"),
    "inception_resnet_v2": (40, "repeat.0.conv2d", "block8.conv2d"),
    "convmixer_768_32": (32, "blocks.0.0.fn.2", "blocks.31.0.fn.2"),
    "hardcorenas_a": (5, "blocks.1.1.bn3", "blocks.5.1.bn3"),
    "efficientformer_l1": (30, "stages.0.blocks.0.ls1", "stages.3.blocks.4.ls2"),  # the last ones on tokens
}


@pytest.mark.parametrize("name", [*BRANCHES, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW_BRANCHES)])
def test_branches_of_the_zoo(name):
    count, first, last = (BRANCHES | SLOW_BRANCHES)[name]
    fixed = name in ("inception_resnet_v2", "efficientformer_l1")
    sites = regard.sites(zoo(name), "branches", example=torch.randn(1, 3, 224, 224) if fixed else X[:1])
    assert (len(sites), sites[0].name, sites[-1].name) == (count, first, last)
    assert all(len(site.shape) == 4 and site.calls == 1 for site in sites)


def test_branches_of_torchvision():
    mobile = site_names(vision("mobilenet_v2"))
    assert (len(mobile), mobile[0], mobile[-1]) == (10, "features.3.conv.3", "features.16.conv.3")
    windows = regard.sites(vision("swin_t"), "branches", example=torch.randn(1, 3, 64, 64))
    assert (len(windows), windows[0].name, windows[1].name) == (24, "features.1.0.attn", "features.1.0.mlp.3")


def test_segmentation_and_volumes():
    segmentation = VISION.segmentation.fcn_resnet50(weights=None, weights_backbone=None).eval()
    assert site_names(segmentation) == [f"backbone.{name}" for name in RESNET50]
    assert site_names(segmentation, "stages") == [f"backbone.layer{s}.{b}" for s, b in ((1, 2), (2, 3), (3, 5), (4, 2))]
    volume = VISION.video.r3d_18(weights=None).eval()
    x = torch.randn(1, 3, 2, 16, 16)
    sites = regard.sites(volume, "branches", example=x)
    assert [site.name for site in sites] == [f"layer{s}.{b}.conv2.1" for s in (1, 2, 3, 4) for b in (0, 1)]
    before = logits(volume, x)
    attached = regard.attach(volume, "cbam", example=x)
    assert attached.options == {"spatial_dims": 3}
    assert torch.equal(logits(volume, x), before)


def test_the_head_that_joins_two_maps_is_no_block():
    lraspp = VISION.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    assert "classifier" not in site_names(lraspp, "blocks")
    assert site_names(lraspp)[-1] == "backbone.15.block.3.1"


class Gated(nn.Module):
    """Its gate is made from the input, on a shorter way than the branch that it weighs."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(3, 3, 1)
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        gate = self.gate(x.mean((2, 3), keepdim=True))
        return x + self.last(self.first(x).relu()) * gate


def test_a_branch_with_a_gate_ends_before_the_gate():
    assert site_names(nn.Sequential(Gated(), Gated())) == ["0.last", "1.last"]


def test_blocks_and_stages():
    model = vision("resnet18")
    assert site_names(model, "blocks") == [name.removesuffix(".bn2") for name in RESNET18]
    assert site_names(model, "stages") == [f"layer{stage}.1" for stage in (1, 2, 3, 4)]
    assert site_names(model, "auto") == RESNET18
    mobile = site_names(vision("mobilenet_v2"), "blocks")
    assert mobile == [f"features.{number}" for number in range(1, 18)], "also those without an addition"


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        (lambda: vision("vgg11"), ["features.1", "features.4", "features.9", "features.14", "features.19"]),
        (lambda: vision("densenet121"), None),
        pytest.param(
            lambda: zoo("vgg11_bn"), [f"features.{number}" for number in (2, 6, 13, 20, 27)], marks=pytest.mark.slow
        ),
        pytest.param(lambda: zoo("densenet121"), None, marks=pytest.mark.slow),
        pytest.param(lambda: zoo("inception_v3"), None, marks=pytest.mark.slow),
        pytest.param(lambda: vision("googlenet", init_weights=False), None, marks=pytest.mark.slow),
    ],
    ids=["vgg11", "densenet", "vgg11_bn", "timm densenet", "inception_v3", "googlenet"],
)
def test_stages_without_residual_blocks(model, stages):
    model = model()
    x = torch.randn(1, 3, 96, 96)
    with refused("finds nothing"):
        site_names(model, x=x)
    names = site_names(model, "auto", x)
    assert names == site_names(model, "stages", x)
    assert stages in (None, names)
    shapes = [site.shape[2:] for site in regard.sites(model, "stages", example=x)]
    assert len(shapes) >= 4
    assert shapes == sorted(set(shapes), reverse=True), "one for each resolution"
    before = logits(model, x)
    regard.attach(model, "se", example=x)
    assert torch.equal(logits(model, x), before)


def test_a_small_plain_stack():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert site_names(model, "auto") == ["2"]


def test_predictions_are_no_stages():
    detector = VISION.detection.ssd300_vgg16(weights=None, weights_backbone=None).eval()
    stages = regard.sites(detector, "stages", example=[torch.randn(3, 300, 300)])
    assert len(stages) >= 6
    assert not any("head" in site.name for site in stages)
    assert site_names(vision("squeezenet1_0"), "stages", torch.randn(1, 3, 64, 64))[-1] == "classifier.0"


def test_patterns():
    model = vision("resnet18")
    assert site_names(model, "layer1.*.bn2") == ["layer1.0.bn2", "layer1.1.bn2"]
    assert site_names(model, "layer*.0.bn1") == [f"layer{stage}.0.bn1" for stage in (1, 2, 3, 4)]
    assert site_names(model, "**.bn2") == RESNET18
    assert site_names(model, "layer[12].1.bn?") == ["layer1.1.bn1", "layer1.1.bn2", "layer2.1.bn1", "layer2.1.bn2"]
    assert site_names(model, "layer[!12].1.bn2") == ["layer3.1.bn2", "layer4.1.bn2"]
    assert site_names(model, "bn1") == ["bn1"], "a pattern is the whole name"
    with refused("matches no module"):
        site_names(model, "*bn2")


def test_lists_and_functions():
    model = vision("resnet18")
    assert site_names(model, ["layer4.1.bn2", "layer1.0.bn2", "layer1.0.bn2"]) == ["layer1.0.bn2", "layer4.1.bn2"]
    seen = {}

    def wide(name, module, shape):
        seen[name] = shape
        return isinstance(module, nn.BatchNorm2d) and shape[1] >= 512 and "downsample" not in name

    assert site_names(model, wide) == ["layer4.0.bn1", "layer4.0.bn2", "layer4.1.bn1", "layer4.1.bn2"]
    assert seen["layer4.0.bn1"] == (2, 512, 1, 1)
    assert "fc" not in seen, "only feature maps are offered"


def test_a_sequential_stands_for_its_last_child():
    assert site_names(vision("resnet18"), "layer2") == ["layer2.1"]
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())))
    assert site_names(nested, "0") == ["0.1.1"]
    before = logits(nested)
    regard.attach(nested, "se", at="0", example=X, start="paper")
    changed = logits(nested)
    assert not torch.equal(changed, before)
    # once, not twice
    nested[0][1][1]._forward_hooks.clear()
    nested._forward_pre_hooks.clear()  # which would put it back
    assert torch.equal(logits(nested), before)


@pytest.mark.parametrize("example", [X, (X,), {"x": X}], ids=["tensor", "tuple", "dict"])
def test_examples(example):
    assert site_names(vision("resnet18"), x=example) == RESNET18
    assert regard.attach(vision("resnet18"), "eca", example=example).sites == RESNET18


def test_arguments_of_more_than_one_kind():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, image, *, scale):
            return self.conv(x := image * scale) + x.mean()

    model = Two()
    assert site_names(model, "conv", {"image": X, "scale": 2.0}) == ["conv"]
    with refused(r"dry run failed \(TypeError: .*scale.*tuple is several arguments"):
        site_names(model, "conv", X)


# --- what attaching does -------------------------------------------------------------------------------------------


def test_keys_keep_their_names_and_order():
    model = small()
    old = model.state_dict()
    attached = regard.attach(model, "cbam", example=X)
    now = list(model.state_dict())
    assert [key for key in now if key in old] == list(old)
    new = [key for key in now if key not in old]
    assert new
    assert all(".regard.cbam." in key for key in new)
    assert sorted(attached.state_dict()) == sorted(new)
    missing, unexpected = model.load_state_dict(old, strict=False)
    counters = [key for key in new if key.endswith("num_batches_tracked")]  # torch fills these in by itself
    assert (sorted([*missing, *counters]), unexpected) == (sorted(new), [])
    assert "layer1.0.bn2.regard.cbam.gate.strength" in new


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize(
    ("layout", "autocast"),
    [
        (torch.contiguous_format, False),
        (torch.channels_last, True),
        pytest.param(torch.contiguous_format, True, marks=pytest.mark.slow),
        pytest.param(torch.channels_last, False, marks=pytest.mark.slow),
    ],
    ids=["nchw", "nhwc autocast", "nchw autocast", "nhwc"],
)
@pytest.mark.parametrize("training", [False, True])
def test_identity_start_is_bit_equal(name, autocast, layout, training):
    model = small().to(memory_format=layout).train(training)
    x = X.contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = logits(copy.deepcopy(model), x)
        regard.attach(model, name, example=x)
        assert torch.equal(logits(model, x), before)


@pytest.mark.parametrize("name", ["se", "eca", "cbam", "coordinate", "bam", "scse", "simam"])
def test_every_new_parameter_moves_within_three_steps(name):
    model = small().train()
    attached = regard.attach(model, name, example=X)
    before = {key: parameter.detach().clone() for key, parameter in attached.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), torch.tensor([0, 1])).backward()
        optimiser.step()
    still = {key for key, parameter in attached.named_parameters() if torch.equal(parameter, before[key])}
    # a bias before a batch norm is taken out again by it: only rounding moves it
    assert not {key for key in still if not key.endswith("coordinate.down.bias")}


def test_what_cannot_be_attached_says_why():
    for name, reason in (("attention_gate", "takes two maps"), ("danet_head", "a head")):
        with refused(f"{name} cannot be attached: it .*{reason}"):
            regard.attach(small(), name, example=X)
    with refused("localisation would be shared by all sites"):
        regard.attach(small(), "stn", example=X, localisation=nn.Flatten())
    model = small()
    before = photograph(model)
    with refused("choose other sites or options"):
        regard.attach(model, "qkv", example=X, value_width=4)
    assert_same(photograph(model), before)


def test_paper_start_differs_and_adds_no_strength():
    model = small()
    before = logits(model)
    attached = regard.attach(model, "se", example=X, start="paper")
    assert not torch.equal(logits(model), before)
    assert not any("strength" in key for key in attached.state_dict())


def test_follows_the_site():
    model = small().double()
    attached = regard.attach(model, "cbam", example=X.double())
    assert {parameter.dtype for parameter in attached.parameters()} == {torch.float64}
    assert not model.layer1[0].bn2.regard.training
    model.train()
    model.layer2.eval()
    attached = regard.attach(model, "se", example=X.double())
    modes = {site: module.training for site, module in attached.modules.items()}
    assert modes == {site: not site.startswith("layer2") for site in attached.sites}


def test_seed():
    def weights(seed, noise):
        model = small()
        torch.manual_seed(noise)
        return regard.attach(model, "se", example=X, seed=seed).state_dict()

    first, again, other = weights(1, 5), weights(1, 6), weights(2, 5)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["layer1.0.bn2.regard.se.up.weight"], other["layer1.0.bn2.regard.se.up.weight"])
    first, again, other = weights(None, 5), weights(None, 5), weights(None, 6)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["layer1.0.bn2.regard.se.up.weight"], other["layer1.0.bn2.regard.se.up.weight"])


def test_a_host_without_memory():
    with torch.device("meta"):
        model = VISION.resnet18(weights=None)
        x = torch.empty(2, 3, 32, 32)
    assert site_names(model, x=x) == RESNET18
    attached = regard.attach(model, "cbam", example=x)
    assert {parameter.device.type for parameter in attached.parameters()} == {"meta"}


def test_the_default_device_does_not_matter():
    model = small()
    torch.set_default_device("meta")
    try:
        attached = regard.attach(model, "cbam", example=X)
    finally:
        torch.set_default_device(None)
    assert {parameter.device.type for parameter in attached.parameters()} == {"cpu"}
    assert logits(model).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [("se", {}, 2_530_992), ("cbam", {}, 2_532_592), ("eca", {"kernel_size": "released"}, 80)],
)
def test_published_parameters_of_resnet50(name, options, count):
    with torch.device("meta"):
        host = VISION.resnet50(weights=None)
    sites = {
        f"layer{s}.{b}.bn3": 256 * 2 ** (s - 1) for s, depth in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(depth)
    }
    formula = regard.info(name).parameters
    assert sum(formula(channels, **options) for channels in sites.values()) == count
    model = host.to_empty(device="cpu").eval()
    attached = regard.attach(model, name, at="branches", example=X[:1], start="paper", **options)
    assert attached.sites == list(sites)
    assert sum(parameter.numel() for parameter in attached.parameters()) == count


# --- nothing else changes ------------------------------------------------------------------------------------------


def mixed():
    """A host in the middle of a training, with modes of every kind and gradients."""
    model = vision("resnet18", num_classes=4).train()
    model(X).sum().backward()
    model.layer2.eval()
    model.layer3[0].bn1.training = False
    model.layer1.requires_grad_(False)
    model.layer4.register_forward_hook(lambda module, args, output: None)
    model.layer4.register_forward_pre_hook(lambda module, args: None)
    return model


def test_looking_changes_nothing():
    model = mixed()
    before = photograph(model)
    regard.sites(model, "branches", example=X)
    assert_same(photograph(model), before)


def test_attaching_and_removing_changes_nothing():
    model = mixed()
    before = photograph(model)
    attached = regard.attach(model, "cbam", example=X)
    now = photograph(model)
    for key in ("modes", "tensors", "gradients", "identities"):
        assert {name for name in now[key] if "regard" not in name} == set(before[key])
    assert torch.equal(now["random"][0], before["random"][0])
    attached.remove()
    assert_same(photograph(model), before)


class Restless(nn.Module):
    """A host that draws random numbers, counts, and changes its mode and its buffers in the forward pass."""

    def __init__(self, fails):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fails = fails
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, x):
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        self.seen += 1
        self.last = x.mean()
        if "extra" not in self._buffers:
            self.register_buffer("extra", torch.ones(1))
        self.norm.train()
        x = self.norm(self.conv(x))
        if self.fails:
            raise RuntimeError("out of luck")
        return x


def test_a_restless_host():
    model = Restless(fails=False)
    model.norm.eval()
    before = photograph(model)
    regard.attach(model, "se", at="conv", example=X).remove()
    assert_same(photograph(model), before)


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda: Restless(fails=True), {"at": "conv"}),
        (mixed, {"at": "no_such_layer"}),
        (mixed, {"at": "branches", "mechanism": "eca", "kernel_size": "released"}),
        (mixed, {"at": "branches", "reduction": -1}),
        (mixed, {"at": "branches", "example": torch.randn(2, 5, 32, 32)}),
        (mixed, {"at": ["fc"]}),
        (lambda: vision("densenet121"), {"at": "features.denseblock1"}),
    ],
    ids=["dry run", "nothing matches", "cannot be built", "bad option", "bad example", "no map", "fails afterwards"],
)
def test_a_failure_changes_nothing(make, call):
    model = make()
    before = photograph(model)
    with pytest.raises(regard.UserError):
        regard.attach(model, call.pop("mechanism", "se"), **({"example": X} | call))
    assert_same(photograph(model), before)


# --- taking out, stacking, finding again -----------------------------------------------------------------------------


def test_remove_gives_back_the_host():
    model = small()
    before, output = photograph(model), logits(model)
    attached = regard.attach(model, "coordinate", example=X, start="paper")
    assert not torch.equal(logits(model), output)
    attached.remove()
    assert_same(photograph(model), before)
    assert torch.equal(logits(model), output)
    assert regard.attached(model) == []
    attached.remove()  # once more does no harm
    assert_same(photograph(model), before)


def test_two_labels_stack_in_order():
    model = small()
    first = regard.attach(model, "se", example=X, start="paper", seed=1)
    one = logits(model)
    second = regard.attach(model, "se", example=X, start="paper", seed=2, label="again")
    both = logits(model)
    assert [a.label for a in regard.attached(model)] == ["se", "again"]
    assert first.sites == second.sites
    assert len(model.layer1[0].bn2._forward_hooks) == 1
    assert not torch.equal(one, both)
    inserted, x = model.layer1[0].bn2.regard, torch.randn(2, 64, 4, 4)
    assert torch.equal(inserted(x), inserted.again(inserted.se(x)))
    second.remove()
    assert torch.equal(logits(model), one)
    regard.attach(model, "se", example=X, start="paper", seed=2, label="again")
    assert torch.equal(logits(model), both)
    first.remove()
    assert [a.label for a in regard.attached(model)] == ["again"]
    assert not any(".regard.se." in key for key in model.state_dict())


def test_the_same_sites_are_found_again():
    model = small()
    before = site_names(model)
    regard.attach(model, "cbam", example=X, start="paper")
    assert site_names(model) == before


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), lambda model: ModelEmaV3(model).module],
    ids=["deepcopy", "pickle", "ema"],
)
def test_copies_know_what_is_attached(again):
    model = small()
    regard.attach(model, "cbam", example=X, start="paper", reduction=8)
    twin = again(model)
    assert torch.equal(logits(twin), logits(model))
    (attached,) = regard.attached(twin)
    assert (attached.label, attached.options, attached.orphans) == ("cbam", {"reduction": 8}, {})
    assert not {id(p) for p in attached.parameters()} & {id(p) for p in model.parameters()}
    attached.remove()
    assert len(regard.attached(model)) == 1
    assert torch.equal(logits(twin), logits(small()))


@pytest.mark.parametrize("wrap", [AveragedModel, ModelEmaV3, lambda m: nn.ModuleDict({"net": m}), nn.DataParallel])
def test_wrappers_know_what_is_attached(wrap):
    model = small()
    regard.attach(model, "se", example=X, start="paper")
    wrapper = wrap(model)
    (attached,) = regard.attached(wrapper)
    assert attached.orphans == {}
    assert len(list(attached.parameters())) == 4 * 4
    attached.remove()
    assert regard.attached(wrapper) == []


@pytest.mark.parametrize("mechanism", ["cbam", "sk"])
def test_a_part_of_a_host_knows_what_is_attached(mechanism, tmp_path):
    model = nn.Sequential(vision("resnet18"), nn.Identity())
    whole = regard.attach(model, mechanism, example=X)
    (part,) = regard.attached(model[0])
    assert part.sites == [site.removeprefix("0.") for site in whole.sites]
    assert (part.orphans, len(list(part.parameters()))) == ({}, len(list(whole.parameters())))
    part.save(tmp_path / "part.safetensors")
    regard.load(vision("resnet18"), tmp_path / "part.safetensors")
    (layer,) = regard.attached(model[0].layer2)
    assert layer.sites == [site.removeprefix("0.layer2.") for site in whole.sites if "layer2" in site]
    part.remove()
    assert regard.attached(model) == []


def test_two_hosts_in_one_model():
    both = nn.ModuleDict({"left": small(), "right": small()})
    regard.attach(both["left"], "se", example=X)
    regard.attach(both["right"], "se", at="layer4.**.bn2", example=X)
    left, right = regard.attached(both)
    assert (left.model, right.model) == (both["left"], both["right"])
    assert (len(left.sites), len(right.sites)) == (4, 1)


def test_weights_average_with_the_host():
    model = small()
    averaged = AveragedModel(model)
    attached = regard.attach(model, "se", example=X)
    averaged = AveragedModel(model)
    for parameter in attached.parameters():
        nn.init.ones_(parameter)
    averaged.update_parameters(model)
    (mean,) = regard.attached(averaged)
    assert all(torch.equal(parameter, torch.ones_like(parameter)) for parameter in mean.parameters())


def test_norms_that_are_synchronised_or_frozen_keep_their_attention(tmp_path):
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.freeze_batch_norm_2d):
        model = small().eval()
        regard.attach(model, "se", example=X, start="paper")
        expected, plain = logits(model), logits(small().eval())
        converted = convert(model).eval()
        assert torch.allclose(logits(converted), expected, atol=1e-5)
        assert not torch.allclose(expected, plain, atol=1e-3)
        (after,) = regard.attached(converted)
        assert after.orphans == {}
        after.save(tmp_path / "se.safetensors")
        after.remove()
        assert regard.attached(converted) == []
        assert torch.allclose(logits(converted), plain, atol=1e-5)
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in converted.modules())


def test_a_block_that_is_wrapped_keeps_its_attention():
    class Wrapper(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, x):
            return self.inside(x)

    model = small().eval()
    regard.attach(model, "se", example=X, start="paper")
    expected = logits(model)
    model.layer1 = Wrapper(model.layer1)
    assert torch.equal(logits(model), expected)
    for one in regard.attached(model):  # in the wrapper, and beside it
        one.remove()
    assert torch.equal(logits(model), logits(small().eval()))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Conv2d, nn.ReLU])
def test_the_class_of_a_layer_is_its_own_again(kind):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    at = next(name for name, module in net.named_children() if type(module) is kind)
    attached = regard.attach(net, "se", at=at, example=X, start="paper")
    site = net[int(at)]
    assert isinstance(site, kind)
    assert type(site) is not kind, "what folds layers by their class would drop the attention"
    assert repr(site).startswith(kind.__name__ + "(")
    expected = net(X)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(again[int(at)]) is type(site)
        assert torch.equal(again(X), expected)
        regard.attached(again)[0].remove()
        assert type(again[int(at)]) is kind
    attached.remove()
    assert type(site) is kind


def test_orphans_after_replacing_a_module(tmp_path):
    model = small()
    attached = regard.attach(model, "se", example=X)
    model.layer1[0].bn2 = nn.BatchNorm2d(64)
    model.layer4 = nn.Identity()
    assert attached.orphans.keys() == {"layer4.0.bn2"}, "a new norm is given what the old one had"
    assert "site is gone" in attached.orphans["layer4.0.bn2"]
    (after,) = regard.attached(model)
    assert after.orphans == attached.orphans
    with refused("cannot save 'se'"):
        attached.save(tmp_path / "se.safetensors")
    attached.remove()
    assert not any(isinstance(module, Inserted) for module in model.modules())


def test_a_site_that_is_gone_is_told_once():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
    regard.attach(net, "se", at=["0", "1.1"], example=X)
    net[1] = nn.Conv2d(8, 8, 3)
    with pytest.warns(UserWarning, match=r"attention at '1.1' is gone"):
        net(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(X)


# --- saving and loading ----------------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    model = small()
    attached = regard.attach(model, "cbam", example=X, reduction=8, squeeze=("avg", "max"), label="mine")
    generator = torch.Generator().manual_seed(3)
    for tensor in attached.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model, attached


def test_save_and_load(trained, tmp_path):
    model, attached = trained
    path = tmp_path / "folder" / "mine.safetensors"
    attached.save(path)
    fresh = small()
    loaded = regard.load(fresh, path)
    assert torch.equal(logits(fresh), logits(model))
    assert not torch.equal(logits(fresh), logits(small()))
    assert (loaded.sites, loaded.label, loaded.mechanism) == (attached.sites, "mine", "cbam")
    assert loaded.options["reduction"] == 8
    assert load_file(path).keys() == attached.state_dict().keys()
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["regard"].startswith('{"mechanism": "cbam"')
    loaded.remove()
    assert torch.equal(logits(fresh), logits(small()))


def test_load_keeps_double_precision(trained, tmp_path):
    model, attached = trained
    model.double()
    for parameter in attached.parameters():
        parameter.data += 1e-12
    attached.save(tmp_path / "double.safetensors")
    fresh = small().double()
    regard.load(fresh, tmp_path / "double.safetensors")
    assert torch.equal(logits(fresh, X.double()), logits(model, X.double()))


def test_load_a_volume(tmp_path):
    model = nn.Sequential(nn.Conv3d(3, 8, 1))
    x = torch.randn(1, 3, 4, 5, 6)
    regard.attach(model, "coordinate", at="0", example=x, start="paper").save(tmp_path / "volume.safetensors")
    fresh = copy.deepcopy(model)
    regard.attached(fresh)[0].remove()
    regard.load(fresh, tmp_path / "volume.safetensors")
    assert torch.equal(logits(fresh, x), logits(model, x))


def change(path, **entries):
    """Rewrite the file with other metadata."""
    import json

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["regard"]) | entries
    save_file(load_file(path), path, metadata={"regard": json.dumps(header)})


def test_load_says_what_is_wrong(trained, tmp_path):
    _, attached = trained
    path = tmp_path / "mine.safetensors"
    attached.save(path)
    good = path.read_bytes()
    model, other = small(), small()
    other.add_module("more", nn.Linear(1, 1))
    before = photograph(model)

    with refused("there is no file"):
        regard.load(model, tmp_path / "other.safetensors")
    for broken in (good[: len(good) // 2], good[:5], b"", random.Random(0).randbytes(4096)):
        path.write_bytes(broken)
        with refused("damaged or no safetensors file"):
            regard.load(model, path)
    save_file({"weight": torch.ones(3)}, path)
    with refused("holds no attachment"):
        regard.load(model, path)
    save_file({"weight": torch.ones(3)}, path, metadata={"regard": "[1, 2]"})
    with refused("holds no attachment"):
        regard.load(model, path)

    path.write_bytes(good)
    change(path, options={"reduction": 4})
    with refused("does not hold the weights of cbam: it is cut short or was changed"):
        regard.load(model, path)
    path.write_bytes(good)
    change(path, mechanism="cbm")
    with refused("no mechanism 'cbm'; did you mean 'cbam'"):
        regard.load(model, path)
    path.write_bytes(good)
    with refused("was made for another host: only this host has 'more.bias', 'more.weight': build the host"):
        regard.load(other, path)
    with refused("was made for a site 'layer1.0.bn2' that this host lacks"):
        regard.load(nn.Sequential(nn.ReLU()), path)
    assert_same(photograph(model), before)

    regard.load(model, path)
    with refused("already has 'mine'"):
        regard.load(model, path)
    with refused("is already compiled"):
        regard.load(torch.compile(small(), backend="eager"), path)


def test_save_says_what_is_wrong(trained, tmp_path):
    _, attached = trained
    (tmp_path / "file").write_text("")
    with refused("cannot write"):
        attached.save(tmp_path / "file" / "mine.safetensors")


# --- what is refused -------------------------------------------------------------------------------------------------


def net(*layers):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers)


def test_compiled_models_are_refused():
    with refused("already compiled.*attach first, compile then"):
        regard.attach(torch.compile(net(), backend="eager"), "se", at="0", example=X)
    model = net()
    model.compile(backend="eager")
    with refused("the model is already compiled"):
        regard.sites(model, "0", example=X)
    inside = nn.Sequential(net())
    inside[0].compile(backend="eager")
    with refused("'0' is already compiled"):
        regard.attach(inside, "se", at="0.0", example=X)


def test_modules_that_take_no_hooks_are_refused():
    with refused("TorchScript"):
        regard.attach(torch.jit.trace(net(), X), "se", at="0", example=X)
    with refused("'0' is lazy.*run the model once"):
        regard.sites(nn.Sequential(nn.LazyConv2d(4, 1)), "0", example=X)


def test_distributed_models_are_refused():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with refused("DistributedDataParallel already: attach first"):
            regard.attach(nn.parallel.DistributedDataParallel(net()), "se", at="**.0", example=X)
    finally:
        distributed.destroy_process_group()


class Pyramid(nn.Module):
    """One head for every level, and one module for no level."""

    def __init__(self, sizes=(32, 16)):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 8, 1)
        self.spare = nn.Conv2d(8, 8, 1)
        self.sizes = sizes

    def forward(self, x):
        return [self.head(nn.functional.adaptive_avg_pool2d(self.stem(x), size)) for size in self.sizes]


def test_repeated_sites():
    shared = nn.ReLU()
    with refused(r"'1' is called with maps that no one mechanism serves, \(2, 8, 30, 30\) and \(2, 4, 28, 28\)"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 4, 3), shared)
        regard.attach(net, "se", at=["1"], example=X, repeated=True)
    model = Pyramid(sizes=(16, 16))
    assert regard.sites(model, ["head"], example=X)[0].calls == 2
    with refused("'head' is called 2 times.*repeated=True"):
        regard.attach(model, "se", at=["head"], example=X)
    before = logits(model)
    attached = regard.attach(model, "se", at=["head"], example=X, repeated=True)
    assert all(map(torch.equal, logits(model), before))
    with regard.record(model) as maps:
        logits(model)
    assert len(maps) == 2
    assert len(attached.sites) == 1


@pytest.mark.parametrize(
    "name", [name for name in regard.names() if regard.info(name).place and not regard.info(name).beside]
)
def test_one_mechanism_for_every_level(name):
    model = Pyramid()
    with refused("'head' is called 2 times.*repeated=True"):
        regard.attach(model, name, at=["head"], example=X)
    before = logits(model)
    options = {"frames": 2} if name == "tam" else {}
    attached = regard.attach(model, name, at=["head"], example=X, repeated=True, **options)
    assert all(map(torch.equal, logits(model), before))
    sum(y.square().sum() for y in model(X)).backward()
    assert all(parameter.grad is not None for parameter in attached.parameters())
    attached.remove()
    assert all(map(torch.equal, logits(model), before))


def test_modules_that_are_never_called():
    with refused("at='spare' matches 'spare', but the dry run never called it"):
        regard.attach(Pyramid(), "se", at="spare", example=X)
    with refused("never called 'spare'"):
        regard.attach(Pyramid(), "se", at=["spare"], example=X)


class Odd(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class Host(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.odd = Odd(make)

    def forward(self, x):
        x = self.conv(x)
        self.odd(x)
        return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: (x, x), "gives a tuple"),
        (lambda x: {"out": x}, "gives a dict"),
        (lambda x: x.mean((2, 3)), r"gives a tensor of shape \(2, 8\), float32"),
        (lambda x: x.argmax(1), r"gives a tensor of shape \(2, 32, 32\), int64"),
        (lambda x: None, "gives a NoneType"),
    ],
    ids=["tuple", "dict", "2-D", "numbers", "nothing"],
)
def test_what_is_no_feature_map_is_refused(make, words):
    with refused(f"'odd' .Odd. gives.*{words.removeprefix('gives ')}.*choose another site"):
        regard.attach(Host(make), "se", at="odd", example=X)


def test_what_holds_its_map_in_no_known_way_is_refused():
    mixed = Host(lambda x: torch.einsum("bchw,dc->bhwd", x, torch.eye(8)))
    with refused(r"'odd' .Odd. gives a tensor of shape \(2, 32, 32, 8\).*or layout='channels_last'"):
        regard.attach(mixed, "se", at="odd", example=X)
    (site,) = regard.sites(mixed, "odd", example=X, layout="channels_last")
    assert (site.shape, site.layout.word) == ((2, 8, 32, 32), "channels_last")
    with refused("layout is None or one of 'channels_first'.*got 'NHWC'"):
        regard.sites(mixed, "odd", example=X, layout="NHWC")


def test_patterns_that_match_nothing():
    model = vision("resnet18")
    with refused(r"'layer1.0.bn9' matches no module; did you mean .*'layer1.0.bn[12]'"):
        regard.attach(model, "se", at="layer1.0.bn9", example=X)
    with refused("there is no module 'layer1.0.bm2'; did you mean 'layer1.0.bn2'"):
        regard.attach(model, "se", at=["layer1.0.bm2"], example=X)
    with refused("matches no module; there are 'conv1'"):
        regard.attach(model, "se", at="zzz", example=X)
    with refused("chose none of the modules"):
        regard.attach(model, "se", at=lambda name, module, shape: False, example=X)
    with refused("empty list"):
        regard.attach(model, "se", at=[], example=X)


def test_containers_that_run_their_children():
    with refused("runs its children by itself"):
        regard.attach(vision("densenet121"), "se", at="features.denseblock1", example=X)

    class Loud(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    model = nn.Sequential(Loud(nn.Conv2d(3, 8, 1), nn.ReLU()))
    with refused("'0' runs all its children by itself: choose the last module inside it"):
        regard.attach(model, "se", at="0", example=X)
    assert regard.attached(model) == []


def test_bad_words():
    model = small()
    for label in ("", "a.b", "1st", "forward", "records", "training"):
        with refused("a label is an identifier .*: pass another label="):
            regard.attach(model, "se", example=X, label=label)
    with refused("start is 'identity', 'paper' or 'scaled', got 'zero'"):
        regard.attach(model, "se", example=X, start="zero")
    with refused("se has no option 'reducton'; did you mean 'reduction'"):
        regard.attach(model, "se", example=X, reducton=8)
    with refused("no mechanism 'sse'; did you mean 'scse' or 'se'"):
        regard.attach(model, "sse", example=X)
    regard.attach(model, "se", example=X)
    with refused("already has 'se': remove it first, or pass another label="):
        regard.attach(model, "cbam", example=X, label="se")


def test_a_site_with_an_attribute_of_our_name():
    model = net()
    model[0].regard = "high"
    with refused("attribute 'regard' of its own"):
        regard.attach(model, "se", at="0", example=X)


# --- other tools -----------------------------------------------------------------------------------------------------


def test_compile_export_and_trace():
    model = vision("resnet18", num_classes=4)
    before = logits(model)
    regard.attach(model, "cbam", example=X, seed=0)
    for name, parameter in model.named_parameters():
        if "strength" in name:
            nn.init.constant_(parameter, 0.5)
    expected = logits(model)
    assert not torch.equal(expected, before)
    with regard.use_impl("reference"):
        plain = logits(model)
    torch.testing.assert_close(plain, expected)
    assert torch.equal(logits(torch.compile(model, fullgraph=True, backend="eager")), plain)
    assert torch.equal(logits(torch.export.export(model, (X,)).module()), plain)
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(logits(graph), expected)
    hidden = {name for name in dict(graph.named_parameters()) if "regard" in name}
    assert hidden == {name for name, _ in model.named_parameters() if "regard" in name}


def test_a_whole_model_file(trained):
    model, _ = trained
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(logits(again), logits(model))
    assert regard.attached(again)[0].label == "mine"


def test_attached_shows_itself(trained):
    _, attached = trained
    count = sum(parameter.numel() for parameter in attached.parameters())
    assert repr(attached) == f"mine (cbam) at 4 sites, {count:,} parameters, start=identity"


def test_what_is_attached_in_inference_mode_can_learn():
    net = torchvision.models.resnet18()
    with torch.inference_mode():
        attached = regard.attach(net, "cbam", example=X)
    assert not any(parameter.is_inference() for parameter in attached.parameters())
    net(X).sum().backward()


def test_attention_that_a_trace_calls_by_itself_is_not_taken_out():
    net = torchvision.models.resnet18().eval()
    regard.attach(net, "se", at="blocks", example=X)
    traced = torch.fx.symbolic_trace(net)
    with pytest.raises(regard.UserError, match=r"traced by torch\.fx"):
        regard.attached(traced)[0].remove()
    assert torch.equal(traced(X), net(X))


def test_what_a_mechanism_says_of_a_network_is_said_of_its_label():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    with refused("^'clips' cannot stand there: a batch of 2 frames does not hold whole clips"):
        regard.attach(net, "tam", at="0", label="clips", example=torch.randn(2, 3, 9, 9))
    assert regard.attached(net) == []
