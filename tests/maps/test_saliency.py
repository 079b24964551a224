"""Grad-CAM and its relatives: against formulas, captum and pytorch-grad-cam; the layer found; the model left alone."""

import copy
from collections import namedtuple
from dataclasses import dataclass, replace
from itertools import pairwise

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

import regard
from regard.gallery.attention import see
from regard.gallery.subjects import Subject
from regard.maps.deletion import deletion_insertion
from regard.maps.gradcam import METHODS
from regard.maps.layer_choice import find_layer
from regard.maps.rollout import rollout
from regard.maps.targets import box, pixel

THEIRS = {
    "grad-cam": pytorch_grad_cam.GradCAM,
    "grad-cam++": pytorch_grad_cam.GradCAMPlusPlus,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "layercam": pytorch_grad_cam.LayerCAM,
}


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 96, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["layer4", "layer2.0.conv1"])
def test_equals_pytorch_grad_cam(resnet, images, method, layer):
    resnet, images = copy.deepcopy(resnet).double(), images.double()
    if method == "grad-cam++" and layer != "layer4":
        layer = "layer2"  # where sums may be negative its denominator may be 0, and their 1e-6 in it counts
    with torch.no_grad():
        resnet.fc.weight *= 1e4  # beside such gradients their 1e-6 in a denominator is nothing
    found = regard.explain(resnet, images, [5, 5, 9], method=method, layer=layer)
    module = resnet.get_submodule(layer)
    with THEIRS[method](resnet, [module]) as theirs:
        targets = [ClassifierOutputTarget(number) for number in (5, 5, 9)]
        theirs(images, targets)
        kept = theirs.activations_and_grads
        activations, gradients = kept.activations[0].numpy(), kept.gradients[0].numpy()
        expected = theirs.get_cam_image(images, module, targets, activations, gradients, False)
    expected = torch.as_tensor(expected).clamp(min=0)
    assert torch.allclose(found.value.squeeze(1), expected, rtol=1e-4, atol=1e-7 * float(expected.max()))


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer1.1.bn2"])
def test_equals_captum(resnet, images, layer):
    found = regard.explain(resnet, images, 7, layer=layer, relu=False)
    expected = captum.attr.LayerGradCam(resnet, resnet.get_submodule(layer)).attribute(images, 7)
    assert torch.allclose(found.value, expected.detach(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_formula_where_it_can_be_done_by_hand():
    """One convolution, the mean over pixels, one linear layer: the map is the weighted sum of the features."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    net[0].weight.data = torch.tensor([1.0, -2]).view(2, 1, 1, 1)
    net[3].weight.data = torch.tensor([[3.0, 1], [0, 1]])
    x = torch.arange(6.0).view(1, 1, 2, 3) - 2
    for method in ("grad-cam", "hirescam"):
        found = regard.explain(net, x, 0, method=method, relu=False)
        assert found.name == "0"
        assert torch.allclose(found.value, (3 * x - 2 * x) / 6)
        assert torch.equal(regard.explain(net, x, 0, method=method).value, found.value.relu())
    assert regard.explain(net, x).classes.tolist() == net(x).argmax(1).tolist()


def torchvision_vit():
    model = torchvision.models.vit_b_16(image_size=96)
    nn.init.normal_(model.heads.head.weight)  # it starts at 0, and then there is no evidence for anything
    return model


@pytest.mark.parametrize(
    ("build", "layer", "sides"),
    [
        (lambda: timm.create_model("resnet50"), "layer4", (3, 4)),
        (lambda: timm.create_model("efficientnet_b0"), "bn2", (3, 4)),
        (lambda: timm.create_model("convnext_atto"), "norm_pre", (3, 4)),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=(96, 128)), "blocks.11.norm1", (6, 8)),
        (torchvision_vit, "encoder.layers.encoder_layer_11.ln_1", (6, 6)),
        (lambda: torchvision.models.swin_t(), "permute", (3, 4)),
        (lambda: timm.create_model("seresnet18"), "layer4", (3, 4)),
    ],
    ids=["resnet", "efficientnet", "convnext", "vit", "torchvision_vit", "swin", "seresnet"],
)
def test_the_layer_is_found(build, layer, sides):
    model = build()
    images = torch.randn(2, 3, 96, 96 if sides == (6, 6) else 128)
    found = regard.explain(model, images, 3)
    assert (found.name, found.value.shape) == (layer, (2, 1, *sides))
    assert found.value.isfinite().all()


def test_what_follows_may_write_over_the_layer(images):
    """A ReLU in place behind the layer."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    apart = nn.Sequential(net[0], nn.ReLU(), *net[2:])
    assert torch.equal(
        regard.explain(net, images, 1, layer="0").value, regard.explain(apart, images, 1, layer="0").value
    )


def test_attached_mechanisms_are_part_of_the_network(images):
    net = torchvision.models.resnet18()
    regard.attach(net, "cbam", example=images[:1], start="paper")
    assert regard.explain(net, images, 1).value.shape == (3, 1, 3, 4)


def test_images_do_not_mix(resnet, images):
    together = regard.explain(resnet, images, [1, 2, 3], relu=False)
    for at, number in enumerate((1, 2, 3)):
        alone = regard.explain(resnet, images[at : at + 1], number, relu=False)
        assert torch.allclose(together.value[at], alone.value[0], rtol=1e-3, atol=1e-6)
        assert together.scores[at] == pytest.approx(float(alone.scores[0]), rel=1e-4)


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_as_it_was(images, surrounding):
    net = torchvision.models.resnet18().train()
    for parameter in net.layer1.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    with surrounding():
        regard.explain(net, images, 1, relu=False)
        with pytest.raises(RuntimeError, match="on purpose"):
            regard.explain(net, images, lambda output: (_ for _ in ()).throw(RuntimeError("on purpose")))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_other_targets(images):
    segmenter = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4)
    at = regard.explain(segmenter, images, pixel(2, 10, 20))
    assert at.classes is None
    assert at.value.shape[:2] == (3, 1)
    output = segmenter.eval()(images)["out"]
    assert torch.allclose(at.scores, output[:, 2, 10, 20], rtol=1e-3, atol=1e-5)

    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights_backbone=None, num_classes=3)
    detector.roi_heads.score_thresh = 0.0
    found = regard.explain(detector, ([torch.rand(3, 64, 64)],), box(0))
    assert found.value.dim() == 4
    assert found.value.isfinite().all()


def test_what_cannot_be_explained_is_said(resnet, images):
    for options, words in (
        ({"method": "gradcam"}, r"no method 'gradcam'.*did you mean 'grad-cam'"),
        ({"layer": "layer5"}, r"no layer 'layer5' that is run; did you mean 'layer"),
        ({"layer": "fc"}, r"the layer 'fc' gives .*no map of pixels"),
        ({"target": 1000}, r"knows classes 0 to 999, got 1000"),
        ({"target": [1, 2]}, r"one for each of 3 images, got \[1, 2\]"),
        ({"target": lambda output: output}, r"returns one score for each image"),
        ({"target": lambda output: torch.zeros(3)}, r"does not depend on the network's layers"),
        ({"target": lambda output: torch.zeros(3), "layer": "layer4"}, r"does not depend on the layer 'layer4'"),
        ({"target": pixel(1, 2, 3)}, r"needs an output of \(B, classes, H, W\), got \(3, 1000\)"),
        ({"target": box(0)}, r"a box needs a detector"),
    ):
        with pytest.raises(regard.UserError, match=words):
            regard.explain(resnet, images, **options)
    with pytest.raises(regard.UserError, match="no layer gives a map of more than one pixel"):
        regard.explain(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(2, 3, 2, 2))
    segmenter = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4)
    with pytest.raises(regard.UserError, match=r"pass a function.*regard.pixel"):
        regard.explain(segmenter, images, 1)


class Levels(nn.Module):
    """A detector of one stage: three levels of one trunk, whose boxes come out in one row."""

    def __init__(self, shared=False):
        super().__init__()
        self.trunk = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(3))
        heads = [nn.Sequential(nn.Conv2d(8, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)) for _ in range(3)]
        self.heads = nn.ModuleList(heads[:1] * 3 if shared else heads)

    def forward(self, x):
        boxes = []
        for layer, head in zip(self.trunk, self.heads, strict=True):
            x = layer(x).tanh()
            boxes.append(head(x).flatten(2))
        return torch.cat(boxes, 2)


@pytest.mark.parametrize("shared", [False, True])
def test_the_levels_that_a_target_reads(shared):
    torch.manual_seed(0)
    net, x = Levels(shared), torch.randn(2, 3, 32, 32)
    ends = [0, 256, 320, 336]
    alone = []
    for level, (first, last) in enumerate(pairwise(ends)):
        found = regard.explain(net, x, lambda y, a=first, b=last: y[:, 1, a:b].sum(1), method="hirescam", relu=False)
        assert found.name == f"heads.{0 if shared else level}.1"
        assert found.value.shape[2:] == (16 >> level, 16 >> level)
        # of a layer that sees one pixel at a time the map's sum is what is above its bias
        bias = net.heads[level][2].bias[1] * (last - first)
        assert torch.allclose(found.value.sum((1, 2, 3)), found.scores - bias, atol=1e-4)
        alone.append(found.value)
    both = regard.explain(net, x, lambda y: y[:, 1].sum(1), method="hirescam", relu=False)
    assert both.name == ("heads.0.1" if shared else "heads.0.1 + heads.1.1 + heads.2.1")
    assert both.value.shape == (2, 1, 16, 16)
    assert torch.allclose(both.value.sum((1, 2, 3)), sum(value.sum((1, 2, 3)) for value in alone), rtol=1e-4)
    again = regard.explain(net, x, lambda y: y[:, 1].sum(1), method="hirescam", layer=both.name, relu=False)
    assert torch.allclose(again.value, both.value, atol=1e-6)


class Frames(nn.Module):
    """A trunk over the frames of clips, which stand in the place of the batch: clip by clip, or frame by frame."""

    def __init__(self, turned):
        super().__init__()
        self.turned = turned
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, clips):
        axes = clips.transpose(0, 1) if self.turned else clips
        seen = self.trunk(axes.flatten(0, 1)).mean((2, 3)).unflatten(0, axes.shape[:2])
        return self.head(seen.mean(0 if self.turned else 1))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("frames", [2, 4])
def test_frames_in_the_place_of_the_batch(turned, frames):
    torch.manual_seed(0)
    net, clips = Frames(turned), torch.randn(2, frames, 3, 16, 16)
    found = regard.explain(net, clips, [1, 2], relu=False)
    assert found.value.shape == (2, 1, frames, 4, 4)
    for at, number in enumerate((1, 2)):
        alone = regard.explain(net, clips[at : at + 1], number, relu=False)
        assert torch.allclose(alone.value[0], found.value[at], atol=1e-6)
    with pytest.raises(regard.UserError, match=f"holds {2 * frames} maps for 2 images"):
        regard.explain(net, clips, lambda y: y[:, 1].sum(), layer="trunk.0")  # a sum tells no clip from another


def test_nothing_is_blank_in_silence(resnet, images):
    with pytest.raises(regard.UserError, match="gradient of the target is 0 everywhere at the layer 'layer4'"):
        regard.explain(resnet, images, lambda y: (1e6 * y).softmax(1)[:, 0], layer="layer4")
    with pytest.raises(regard.UserError, match="gradient of the target is 0 everywhere, as far as"):
        regard.explain(resnet, images, lambda y: (1e6 * y).softmax(1)[:, 0])
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    net[0].weight.data, net[0].bias.data = torch.ones(1, 1, 1, 1), torch.zeros(1)
    net[4].weight.data = torch.tensor([[1.0], [-1]])
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(regard.UserError, match=r"there is no evidence for the target .*relu=False"):
        regard.explain(net, x, 1)
    with pytest.warns(UserWarning, match="in the images 1 at '1' there is no evidence"):
        assert regard.explain(net, x, [0, 1]).value[0].any()
    assert regard.explain(net, x, 1, relu=False).value.any(3).all()


def test_two_pictures_are_two():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(8, 2)

        def forward(self, a, b):
            return self.head(torch.cat([self.trunk(a).mean((2, 3)), self.trunk(b).mean((2, 3))], 1))

    with pytest.raises(regard.UserError, match="reads several pictures in 'trunk'"):
        regard.explain(Pair(), (torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)), 1)


@dataclass
class Answer:
    logits: torch.Tensor
    states: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"out": y, "aux": y * 0},
        lambda y: {"scores": y},
        lambda y: (y, y.new_zeros(3)),
        lambda y: [y],
        lambda y: Answer(y, y[:, :2]),
        lambda y: namedtuple("Named", "states logits")(y[:, :2], y),
    ],
)
def test_where_the_scores_are(images, wrap):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            return wrap(self.head(self.net(x)))

    torch.manual_seed(0)
    model = Wrapped()
    plain = nn.Sequential(model.net, model.head)
    found, expected = (regard.explain(net, images, [1, 2, 3], relu=False) for net in (model, plain))
    assert torch.equal(found.value, expected.value)
    (figures,) = {type(deletion_insertion(net, images, found.value).deletion) for net in (model, plain)}
    assert figures is np.ndarray
    subject = Subject(model, "one")
    assert see(subject, images).classes == see(replace(subject, model=plain), images).classes


def test_scores_that_cannot_be_told(images):
    class Many(nn.Module):
        def forward(self, x):
            return {"a": x.mean((2, 3)), "b": x.mean((2, 3))}

    with pytest.raises(regard.UserError, match="gives dict of a, b: pass a function"):
        regard.explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Many()), images, 1)


def test_the_layer_is_remembered_until_the_network_changes(resnet, images, monkeypatch):
    first = find_layer(resnet, images)
    with monkeypatch.context() as patch:
        patch.setattr("regard.maps.layer_choice.dry_run", None)
        assert find_layer(resnet, images) == first
    net = torchvision.models.resnet18()
    assert find_layer(net, images) == "layer4"
    net.layer4 = nn.Identity()
    net.fc = nn.Linear(256, 5)
    assert find_layer(net, images) == "layer4"  # the identity passes layer3's map on
    del net.layer4
    net.layer4 = nn.Conv2d(256, 256, 1)
    assert find_layer(net, images) == "layer4"


def test_rollout_is_the_product_of_the_layers():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=3).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad(), regard.record(model) as maps:
        model(x)
    a, b, c = (torch.eye(25) / 2 + found.value.mean(1) / 2 for found in maps)
    found = rollout(model, x)
    assert found.value.shape == (2, 1, 4, 6)
    assert torch.allclose(found.value.flatten(1), (c @ b @ a)[:, 0, 1:], atol=1e-6)
    with pytest.raises(regard.UserError, match="rollout needs layers"):
        rollout(torchvision.models.resnet18(), x)
    with pytest.raises(regard.UserError, match="rollout needs layers"):
        rollout(torchvision.models.swin_t(), torch.randn(1, 3, 224, 224))


def test_a_network_that_writes_over_what_its_gradient_needs():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x).sigmoid()
            z = (y * y).mean((2, 3))
            y.zero_()
            return z

    with pytest.raises(regard.UserError, match="changes it in place"):
        regard.explain(Careless(), torch.randn(1, 3, 8, 8), 1, layer="conv")


def test_a_classifier_of_zeros(images):
    """Its reasons are blank, but the layer that it reads is found."""
    net = torchvision.models.resnet18(num_classes=3)
    for parameter in net.fc.parameters():
        nn.init.zeros_(parameter)
    assert find_layer(net, images) == "layer4"
    with pytest.raises(regard.UserError, match="gradient of the target is 0 everywhere at the layer 'layer4'"):
        regard.explain(net, images)


def test_a_list_of_pictures_is_one_batch():
    net = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=128
    ).eval()
    pictures = [torch.rand(3, 96, 128), torch.rand(3, 128, 96)]
    found = regard.explain(net, pictures, lambda output: sum(image["scores"].sum() for image in output))
    assert len(found.value) == 2
    assert "roi" not in found.name
    with pytest.raises(regard.UserError, match="there is no box 5000: the images have"):
        regard.explain(net, pictures, regard.box(5000))


@pytest.mark.parametrize("layer", ["layer3 + layer2", "layer2 + layer3"])
def test_layers_of_which_one_follows_the_other_are_not_joined(layer):
    net = timm.create_model("resnet10t", num_classes=5)
    with pytest.raises(regard.UserError, match="reads 'layer2' through 'layer3'"):
        regard.explain(net, torch.randn(1, 3, 64, 64), 1, layer=layer)


@pytest.mark.parametrize("target", [True, "cat", 2.5, [0, 1, 2]])
def test_what_is_no_class_is_said(target):
    with pytest.raises(regard.UserError, match="one class, or one for each of 2 images"):
        regard.explain(timm.create_model("resnet10t", num_classes=5), torch.randn(2, 3, 64, 64), target)


def test_a_pixel_lies_on_the_output():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    for target, said in ((regard.pixel(9, 1, 1), "4 for class"), (regard.pixel(1, 100, 1), "16 for row")):
        with pytest.raises(regard.UserError, match=said):
            regard.explain(net, torch.randn(1, 3, 16, 16), target, layer="0")
