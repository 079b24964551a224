"""torchvision, segmentation_models_pytorch, Ultralytics and timm: what docs/frameworks.md says is done here."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from PIL import Image
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import regard

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"

segmentation, detection, video = (getattr(torchvision.models, name) for name in ("segmentation", "detection", "video"))
plain = {"weights": None, "weights_backbone": None, "num_classes": 5}
small = {"num_classes": 5, "min_size": 64, "max_size": 96}

draw = torch.Generator().manual_seed(0)
BATCH = torch.rand(2, 3, 64, 64, generator=draw)
CLIPS = torch.rand(2, 3, 4, 24, 24, generator=draw)
IMAGES = [torch.rand(3, 64, 64, generator=draw), torch.rand(3, 64, 80, generator=draw)]
TARGETS = [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in IMAGES]


def pyramid():
    # without weights torchvision takes norms that learn; with weights these, which have no parameters
    return resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d, trainable_layers=3
    )


# a network, its example, the number of branches, and the first and the last of them
NETWORKS = {
    "fcn": (
        partial(segmentation.fcn_resnet50, aux_loss=True, **plain),
        BATCH[..., :32, :32], 16, "backbone.layer1.0.bn3", "backbone.layer4.2.bn3",
    ),
    "deeplab": (
        partial(segmentation.deeplabv3_mobilenet_v3_large, **plain),
        BATCH, 10, "backbone.1.block.1.1", "backbone.15.block.3.1",
    ),
    "lraspp": (
        partial(segmentation.lraspp_mobilenet_v3_large, **plain),
        BATCH, 10, "backbone.1.block.1.1", "backbone.15.block.3.1",
    ),
    "faster r-cnn": (
        partial(detection.fasterrcnn_mobilenet_v3_large_320_fpn, box_score_thresh=0.0, **plain | small),
        IMAGES, 10, "backbone.body.1.block.1.1", "backbone.body.15.block.3.1",
    ),
    "retinanet": (
        lambda: detection.RetinaNet(pyramid(), score_thresh=0.0, topk_candidates=50, **small),
        IMAGES, 8, "backbone.body.layer1.0.bn2", "backbone.body.layer4.1.bn2",
    ),
    "fcos": (
        lambda: detection.FCOS(pyramid(), score_thresh=0.0, topk_candidates=50, **small),
        IMAGES, 8, "backbone.body.layer1.0.bn2", "backbone.body.layer4.1.bn2",
    ),
    "ssdlite": (
        partial(detection.ssdlite320_mobilenet_v3_large, score_thresh=0.0, topk_candidates=50, **plain),
        IMAGES, 10, "backbone.features.0.1.block.1.1", "backbone.features.1.2.block.3.1",
    ),
    "r3d": (partial(video.r3d_18, num_classes=5), CLIPS, 8, "layer1.0.conv2.1", "layer4.1.conv2.1"),
    "mc3": (partial(video.mc3_18, num_classes=5), CLIPS, 8, "layer1.0.conv2.1", "layer4.1.conv2.1"),
    "r2plus1d": (partial(video.r2plus1d_18, num_classes=5), CLIPS, 8, "layer1.0.conv2.1", "layer4.1.conv2.1"),
    "unet": (
        partial(smp.Unet, "resnet18", encoder_weights=None, classes=5),
        BATCH, 8, "encoder.layer1.0.bn2", "encoder.layer4.1.bn2",
    ),
    "fpn": (
        partial(smp.FPN, "resnet18", encoder_weights=None, classes=5),
        BATCH, 8, "encoder.layer1.0.bn2", "encoder.layer4.1.bn2",
    ),
    "deeplab plus": (
        partial(smp.DeepLabV3Plus, "mobilenet_v2", encoder_weights=None, classes=5),
        BATCH, 10, "encoder.features.3.conv.3", "encoder.features.16.conv.3",
    ),
}  # fmt: skip
TWINS = ("fcn", "fcos", "mc3")  # much like deeplab, retinanet and r3d


def loss_of(network, example):
    outputs = network(example, TARGETS) if example is IMAGES else network(example)
    return sum(leaf.square().mean() if leaf.dim() else leaf for leaf in tree_leaves(outputs))


def gradients(network, example, parameters, steps=3):
    """The largest gradient that every parameter has seen in a few steps of training."""
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    largest = dict.fromkeys(parameters, 0.0)
    network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(network, example).backward()
        for name, parameter in parameters.items():
            largest[name] = max(largest[name], parameter.grad.abs().max().item())
        optimiser.step()
    return largest


@torch.no_grad()
def answers(network, example):
    return tree_leaves(network.eval()(example))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in TWINS else ()) for name in NETWORKS]
)
def test_a_network_keeps_its_answers_and_trains_what_is_added(name):
    build, example, count, first, last = NETWORKS[name]
    torch.manual_seed(0)
    network = build()
    keys = list(network.state_dict())
    before = answers(network, example)
    assert all(leaf.numel() for leaf in before)  # a detector that finds nothing would prove nothing
    attached = regard.attach(network, "cbam", at="branches", example=example, seed=0, reduction=2)
    assert (len(attached.sites), attached.sites[0], attached.sites[-1]) == (count, first, last)
    assert all(map(torch.equal, answers(network, example), before))
    seen = gradients(network, example, dict(attached.named_parameters()))
    assert not [parameter for parameter, gradient in seen.items() if not gradient > 0]
    attached.remove()
    assert list(network.state_dict()) == keys


def test_what_knows_two_axes_only_refuses_a_clip():
    with pytest.raises(regard.UserError, match="triplet"):
        regard.attach(video.r3d_18(num_classes=5), "triplet", example=CLIPS)


def run(section, **given):
    """Run the code of one section of the page, with the page's own line numbers, and hand back its names."""
    lines, current, inside = [], "", False
    for line in PAGE.read_text().splitlines():
        current = line.removeprefix("## ") if line.startswith("## ") else current
        inside = line == "```python" if line.startswith("```") else inside
        lines.append(line if inside and current == section and not line.startswith("```") else "")
    names = {"__name__": "page", **given}
    exec(compile("\n".join(lines), PAGE, "exec"), names)
    return names


def test_every_section_of_the_page_is_run_here():
    sections = PAGE.read_text().split("\n## ")[1:]
    headings = [section.partition("\n")[0] for section in sections if "```python" in section]
    assert headings == ["torchvision", "segmentation_models_pytorch", "Ultralytics YOLO", "timm"]


def test_the_page_on_torchvision():
    names = run("torchvision")
    assert [made.label for made in regard.attached(names["segmenter"])] == ["cbam", "eca"]
    assert len(regard.attached(names["clips"])[0].sites) == 8
    (inside,) = regard.attached(names["detector"])
    assert all(site.startswith("backbone.body.") for site in inside.sites)
    assert all(parameter.grad is not None for parameter in inside.parameters())
    (alone,) = regard.attached(names["ssd"])
    assert {site.split(".")[0] for site in alone.sites} == {"features", "extra"}


def test_the_page_on_segmentation_models(capsys):
    names = run("segmentation_models_pytorch")
    assert len(names["encoder"].sites) == 8
    assert names["decoder"].sites == [f"decoder.blocks.{i}" for i in range(5)]
    assert "scse (scse) at 5 sites" in capsys.readouterr().out


def few_images(folder):
    """Four images with a box in each, as Ultralytics wants them."""
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(4):
        pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        (folder / "labels" / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.4 0.4\n")
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [dark, light]\n")


def train_yolo(folder):
    """The page on YOLO, in the folder, and what is true after it."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    torch.set_num_threads(1)
    settings = {
        "epochs": 1, "imgsz": 64, "batch": 2, "nbs": 2, "warmup_epochs": 0, "workers": 0, "project": str(folder),
        "device": "cpu", "plots": False, "amp": False, "deterministic": False, "verbose": False,
    }  # fmt: skip
    names = run("Ultralytics YOLO", settings=settings)
    yolo, trained, maps = names["yolo"], names["trained"], names["maps"]

    # what was trained first was saved, loaded again and fused, and still looks somewhere
    (kept,) = regard.attached(trained.model)
    assert len(kept.sites) == 8
    assert not kept.orphans
    assert trained.model.is_fused()
    assert {map.name for map in maps} >= {f"{site}.regard.cbam.mask" for site in kept.sites}
    strengths = [value for name, value in kept.state_dict().items() if name.endswith("strength")]
    assert len(strengths) == 16
    assert all(strengths)

    # fused or not, it computes the same
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        unfused = YOLO(trained.ckpt_path).model(image)[0]
        fused = trained.model(image)[0]
    torch.testing.assert_close(fused, unfused, atol=1e-3, rtol=1e-3)
    for attached in regard.attached(trained.model):
        attached.remove()
    with torch.no_grad():
        assert not torch.equal(trained.model(image)[0], fused)

    # the second training began where the first ended, and moved what it was to move alone
    (own,) = regard.attached(yolo.trainer.model)
    (averaged,) = regard.attached(yolo.trainer.ema.ema)
    held = {id(parameter) for group in yolo.trainer.optimizer.param_groups for parameter in group["params"]}
    assert all(id(parameter) in held for parameter in own.parameters())
    first = dict(YOLO(trained.ckpt_path).model.named_parameters())
    moved = {
        name for name, parameter in yolo.trainer.model.named_parameters() if not torch.equal(parameter, first[name])
    }
    assert moved
    assert all(".regard." in name or name.startswith("model.23.") for name in moved)
    assert all(strength for name, strength in averaged.state_dict().items() if name.endswith("strength"))

    # the plain trainer builds without; ours brings what was learnt
    again = DetectionTrainer.get_model(yolo.trainer, cfg=yolo.model.yaml, weights=yolo.model, verbose=False)
    assert regard.attached(yolo.model)
    assert not regard.attached(again)
    ours = names["AttentiveTrainer"].get_model(yolo.trainer, cfg=yolo.model.yaml, weights=yolo.model, verbose=False)
    carried = regard.attached(ours)[0].state_dict()
    assert all(torch.equal(carried[name], value) for name, value in regard.attached(yolo.model)[0].state_dict().items())


@pytest.mark.slow
def test_the_page_on_yolo(tmp_path, monkeypatch):
    # in a process of its own: Ultralytics patches torch.load and torch.save, and reads these when it is imported
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "True")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "False")
    monkeypatch.setenv("YOLO_VERBOSE", "False")
    monkeypatch.chdir(tmp_path)
    few_images(tmp_path)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(train_yolo, tmp_path).result()


def test_the_page_on_timm():
    torch.manual_seed(0)
    for network in run("timm")["networks"]:
        made = [module for module in network.modules() if type(module).__name__ == "CBAM"]
        assert len(made) > 3
        loss_of(network.train(), BATCH).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_timm_hands_its_device_and_dtype_through_its_door():
    door = {"block_args": {"attn_layer": partial(regard.create, "se")}}
    network = timm.create_model("resnet10t", dtype=torch.float64, **door)
    assert network(BATCH.double()).dtype == torch.float64
    elsewhere = timm.create_model("resnet10t", device="meta", **door)
    assert all(parameter.is_meta for parameter in elsewhere.parameters())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"layer1.0.se.down.weight\""):
        network.load_state_dict(timm.create_model("resnet10t").state_dict())
