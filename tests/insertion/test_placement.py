"""The papers' own placements, found in networks by the words for them."""

import copy
import pickle
import re
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

import regard
from regard.insertion.plan import plan
from regard.insertion.words import WORDS
from strangers import logits, refused, site_names

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def names(model, word):
    return [site.name for site in regard.sites(model, word, example=X)]


def zoo(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def test_in_a_resnet():
    model = zoo("resnet50")
    blocks = [f"layer{s}.{b}" for s, depth in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(depth)]
    assert names(model, "blocks") == blocks
    assert names(model, "branches") == [f"{block}.bn3" for block in blocks]
    assert names(model, "convolutions") == [f"{block}.conv2" for block in blocks]
    assert names(model, "kernels") == [f"{block}.act2" for block in blocks]
    assert names(model, "stages") == ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]
    assert names(model, "transitions") == ["layer1.2", "layer2.3", "layer3.5"]
    assert names(model, "head") == ["layer4.2"]
    with refused("'expansions' finds nothing in this ResNet: the dry run saw no inverted residual.*try at='branches'"):
        names(model, "expansions")


def test_an_activation_that_serves_several_layers_ends_nothing():
    model = torchvision.models.resnet50().eval()
    assert names(model, "kernels")[0] == "layer1.0.bn2", "torchvision calls one ReLU three times"


EXPANSIONS = {  # number, first, last: every block that widens, also those without an addition
    "mobilenetv2_100": (16, "blocks.1.0.bn2", "blocks.6.0.bn2"),
    "efficientnet_b0": (15, "blocks.1.0.se", "blocks.6.0.se"),
    "mobilenetv3_large_100": (14, "blocks.1.0.bn2", "blocks.5.2.se"),
}


@pytest.mark.parametrize("name", EXPANSIONS)
def test_expanded_features(name):
    listed = names(zoo(name), "expansions")
    assert (len(listed), listed[0], listed[-1]) == EXPANSIONS[name]


def test_where_nothing_is_expanded():
    for model in (zoo("resnet18"), zoo("convnext_atto"), zoo("densenet121"), zoo("regnety_002")):
        with refused("finds nothing"):
            names(model, "expansions")


AUTO = {  # what the papers say, in a network where it can be had, and elsewhere
    "simam": ("layer1.0.conv2", "blocks.1.1.conv_dw"),
    "coordinate": ("layer1.0.bn2", "blocks.1.0.bn2"),
    "bam": ("layer1.1", "blocks.1.1"),
    "danet_position": ("layer4.1", "blocks.6.0"),
    "se": ("layer1.0.bn2", "blocks.1.1.bn3"),
    "sk": ("layer1.0.act1", "blocks.1.1.bn2"),
}


@pytest.mark.parametrize("mechanism", AUTO)
def test_auto_is_the_papers_own_placement(mechanism):
    for name, first in zip(("resnet18", "mobilenetv2_100"), AUTO[mechanism], strict=True):
        model = zoo(name)
        before = logits(model, X)
        attached = regard.attach(model, mechanism, example=X)
        assert attached.sites[0] == first
        assert torch.equal(logits(model, X), before)


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "nfnet_l0", "mobileone_s1", "inception_v3", "repvgg_a0"])
def test_auto_finds_a_place_in_every_convolutional_network(name):
    model = zoo(name)
    x = torch.randn(2, 3, 96, 96)
    before = logits(model, x)
    attached = regard.attach(model, "se", example=x)
    assert len(attached.sites) >= 4
    assert torch.equal(logits(model, x), before)


def test_ways_that_are_only_summed_are_no_branches():
    """RepVGG adds convolutions of one input; NASNet concatenates sums."""
    blocks = zoo("mobileone_s1")
    assert not any("conv_" in name for name in names(blocks, "auto"))


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.third = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return torch.cat([self.left(x) + x, self.right(self.third(x)) + x], 1)


class Fused(nn.Module):
    """As in RepVGG: three parallel ways, one of them a norm."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return (self.wide(x) + self.narrow(x) + self.norm(x)).relu()


@pytest.mark.parametrize("part", [Cell, Fused])
def test_sums_that_are_no_residuals(part):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), part()).eval()
    with refused("'branches' finds nothing"):
        site_names(model, "branches", X)


def test_what_is_narrowed_to_a_prediction_is_no_inverted_residual():
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    sites = regard.sites(detector, "expansions", example=[torch.rand(3, 96, 96)])
    assert sites
    assert all(site.name.startswith("backbone") for site in sites)


def test_convolutions_that_do_not_pad_are_no_kernels():
    for options in ({"kernel_size": 3}, {"kernel_size": 2, "padding": 1}, {"kernel_size": (1, 7), "padding": (0, 3)}):
        model = nn.Sequential(nn.Conv2d(3, 8, **options), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        with refused("'kernels' finds nothing"):
            names(model, "kernels")


# --- beside a convolution --------------------------------------------------------------------------------------------


def perturb(attached):
    generator = torch.Generator().manual_seed(1)
    for parameter in attached.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


class Plain(nn.Module):
    """A grouped convolution, its norm, its activation and one more layer: where the paper puts sk."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        self.out = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        return x + self.out(self.act(self.norm(self.conv(x))))


def test_sk_beside_a_convolution_is_the_papers_function():
    """With the host's convolution and norm as the weights of its first branch."""
    torch.manual_seed(0)
    model = Plain().eval()
    x = torch.randn(2, 16, 9, 9)
    attached = regard.attach(model, "sk", at="kernels", example=x, start="paper", seed=0)
    assert attached.sites == ["act"]
    perturb(attached)
    whole = regard.create("sk", 16, groups=4).eval()
    tensors = dict(attached.modules["act"].state_dict())
    for branch in [name for name in tensors if name.startswith("branches.0")]:
        tensors[branch.replace("branches.0", "branches.1")] = tensors.pop(branch)
    tensors |= {f"branches.0.0.{name}": tensor for name, tensor in model.conv.state_dict().items()}
    tensors |= {f"branches.0.1.{name}": tensor for name, tensor in model.norm.state_dict().items()}
    whole.load_state_dict(tensors)
    with torch.no_grad():
        torch.testing.assert_close(model(x), x + model.out(whole(x)), rtol=1e-5, atol=1e-6)


def test_sk_keeps_what_was_learnt_and_goes_without_trace(tmp_path):
    model = zoo("resnext50_32x4d", zero_init_last=False)
    before, keys = logits(model, X), list(model.state_dict())
    attached = regard.attach(model, "sk", example=X, seed=0)
    assert len(attached.sites) == 16
    assert torch.equal(logits(model, X), before)
    assert [key for key in model.state_dict() if ".regard." not in key] == keys
    model.train()
    model(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in attached.parameters())
    model.eval()
    before = logits(model, X)  # the norms have seen a batch
    perturb(attached)
    changed = logits(model, X)
    assert not torch.equal(changed, before)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(again, X), changed)
        assert regard.attached(again)[0].orphans == {}
        regard.attached(again)[0].remove()
        assert torch.equal(logits(again, X), before)
    attached.save(tmp_path / "sk.safetensors")
    attached.remove()
    assert torch.equal(logits(model, X), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    regard.load(model, tmp_path / "sk.safetensors")
    torch.testing.assert_close(logits(model, X), changed, rtol=1e-4, atol=1e-5)


def test_sk_where_there_is_no_convolution_to_stand_beside():
    model = zoo("resnet18")
    assert regard.attach(model, "sk", at="layer1.0.conv1", example=X).sites == ["layer1.0.act1"]
    with refused("sk stands beside a spatial convolution.*'layer2.0.bn2' is the end of none: try 'layer1.0.act1'"):
        regard.attach(model, "sk", at="layer2.0.bn2", example=X, label="second")
    with refused("at='kernels' finds nothing"):
        regard.attach(timm.create_model("mixer_s32_224", img_size=64), "sk", example=X)


def test_sk_says_when_its_convolution_was_rebuilt():
    model = zoo("resnet18")
    attached = regard.attach(model, "sk", example=X)
    model.layer1[0].conv1 = nn.Conv2d(64, 64, 3, padding=1)
    assert attached.orphans == {"layer1.0.act1": "the hook of 'layer1.0.conv1' is gone: the convolution was rebuilt"}


def test_what_is_attached_already_is_not_seen():
    model = zoo("resnet18")
    before = {word: names(model, word) for word in WORDS if word != "expansions"}
    for mechanism in ("sk", "non_local", "shuffle", "cbam"):
        perturb(regard.attach(model, mechanism, example=X))
    assert {word: names(model, word) for word in before} == before


def test_sk_is_compiled_and_exported():
    model = Plain().eval()
    x = torch.randn(2, 16, 9, 9)
    perturb(regard.attach(model, "sk", example=x, seed=0))
    with regard.use_impl("reference"):
        expected = logits(model, x)
    assert torch.equal(logits(torch.compile(model, fullgraph=True, backend="eager"), x), expected)
    dynamic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (x,), dynamic_shapes=(dynamic,)).module()
    larger = torch.randn(3, 16, 12, 7)
    torch.testing.assert_close(exported(larger), model(larger))


# --- timm's own door -------------------------------------------------------------------------------------------------


def test_the_door_of_timm():
    model = timm.create_model("resnet50", num_classes=4, block_args={"attn_layer": partial(regard.create, "cbam")})
    assert sum(type(module).__name__ == "CBAM" for module in model.modules()) == 16
    model(X).sum().backward()
    assert all(parameter.grad is not None for parameter in model.layer3.parameters())


def test_every_word_is_explained():
    explained = re.findall(r'``"(\w+)"``', regard.sites.__doc__.partition("or a glob")[0])
    assert sorted(explained) == sorted(WORDS)


# --- sequences and volumes --------------------------------------------------------------------------------------------

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def network_over(axes):
    conv = CONV[axes]
    return nn.Sequential(conv(1, 16, 3), nn.ReLU(), conv(16, 32, 3), nn.ReLU()), torch.randn(2, 1, *[9] * axes)


@pytest.mark.parametrize("axes", [1, 3])
def test_a_mechanism_of_other_maps_says_how_many_spatial_axes_it_works_with(axes):
    net, x = network_over(axes)
    attachable = [name for name in regard.names() if regard.info(name).place and name not in ("sk", "tam")]
    for name in attachable:
        known = regard.info(name).spatial
        if axes in known:
            regard.attach(net, name, example=x).remove()
            continue
        words = f"{name} works on maps with {' or '.join(map(str, known))} spatial axes, and the map at '3' has {axes}"
        with pytest.raises(regard.UserError, match=f"^{words}$"):
            regard.attach(net, name, example=x)
        assert plan(net, x, mechanism=name).refused == f"{name} cannot be attached: {words}"
    (row,) = regard.advise(net, x, mechanisms=["triplet"], rounds=1).rows
    assert row.refused == f"triplet works on maps with 2 spatial axes, and the map at '3' has {axes}"


def test_a_wrong_number_of_spatial_axes_that_was_asked_for_is_said():
    net, x = network_over(1)
    with pytest.raises(regard.UserError, match="cbam was asked for with spatial_dims=2, and the map at '3' has 1 spat"):
        regard.attach(net, "cbam", example=x, spatial_dims=2)
    with pytest.raises(regard.UserError, match="no option 'spatial_dims': it works on maps with 2 spatial axes"):
        regard.create("triplet", 16, spatial_dims=1)


# --- modules that are called several times, or have several names ----------------------------------------------------


class Loop(nn.Module):
    """One ReLU behind every convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, 1, 1) for _ in range(3))
        self.act = self.relu = nn.ReLU()
        self.scores = nn.Linear(16, 4)

    def forward(self, x):
        x = self.act(self.stem(x))
        for conv in self.convs:
            x = self.act(conv(x))
        return self.scores(x.mean((2, 3)))


class Twice(nn.Module):
    """A residual block that calls one convolution and one norm twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(torch.relu(self.norm(self.conv(x))))))


class Recurrent(nn.Module):
    """One block, three times."""

    def __init__(self, block):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 16, 3, 2, 1), block

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return x


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())

    def forward(self, x):
        return self.net(x) + self.net(x.flip(-1))


def repeating(name):
    blocks = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), Twice(), Twice())
    return {"loop": Loop(), "blocks": blocks, "recurrent": Recurrent(Twice()), "siamese": Siamese()}[name]


@pytest.mark.parametrize(
    ("network", "sites"), [("loop", ["convs.2"]), ("blocks", ["1", "2"]), ("recurrent", ["stem"]), ("siamese", None)]
)
def test_auto_takes_no_site_that_is_called_several_times(network, sites):
    for mechanism in ("se", "simam", "bam", "danet_position"):
        net = repeating(network)
        if sites is None:
            with refused(f"every place for {mechanism} in this Siamese is called several times in one pass, such as '"):
                regard.attach(net, mechanism, example=X)
            assert regard.attach(net, mechanism, example=X, repeated=True).sites
            continue
        chosen = regard.attach(net, mechanism, example=X).sites
        assert set(chosen) <= set(sites)
        assert mechanism in ("bam", "danet_position") or chosen == sites
        assert [
            place.name for place in plan(repeating(network), X, mechanism=mechanism).places if place.chosen
        ] == chosen


def test_a_module_with_several_names_is_found_by_each():
    net = Recurrent(nn.Sequential(nn.Conv2d(16, 8, 3), nn.Conv2d(8, 16, 3)))
    net.alias, net.last = net.stem, net.block
    for at in ("alias", "ali*", ["alias"], ["stem", "alias"], lambda name, *_: name == "stem"):
        assert [site.name for site in regard.sites(net, at, example=X)] == ["stem"]
    for at in ("last.1", "last", "l*.1", ["last.1"]):
        assert [site.name for site in regard.sites(net, at, example=X)] == ["block.1"]
    attached = regard.attach(net, "se", at="alias", example=X)
    assert attached.sites == ["stem"]
    attached.train_only("last.0")
    assert net.block[0].weight.requires_grad
    with refused("at='lost' matches no module"):
        regard.sites(net, "lost", example=X)
    with refused(r"there is no module 'last\.7'"):
        regard.sites(net, ["last.7"], example=X)


@pytest.mark.filterwarnings("ignore")  # torch deprecates tracing
def test_what_was_traced_agrees_at_other_sizes():
    """docs/export.md says so."""
    net, x = network_over(1)
    for name in ("se", "cbam"):
        regard.attach(net, name, example=x, start="paper")
    traced = torch.jit.trace(net.eval(), x, check_trace=False)
    other = torch.randn(3, 1, 14)
    torch.testing.assert_close(traced(other), net(other))


def test_a_sequential_that_ends_in_a_module_it_has_twice():
    """Its last child is known by another name."""
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), block, block), nn.Conv2d(8, 8, 1))
    x = torch.randn(2, 3, 9, 9)
    with pytest.raises(regard.UserError, match=r"site '0\.1\.1' is called 2 times"):
        regard.attach(net, "se", at="0", example=x)
    assert regard.attach(net, "se", at="0", example=x, repeated=True).sites == ["0.1.1"]
