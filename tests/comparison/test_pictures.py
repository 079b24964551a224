"""What is kept of a trained arm for the report, and drawn there."""

import json
from types import SimpleNamespace

import numpy as np
import timm
import torch
from torch import nn

import regard
from regard.comparison import data, kept_maps, report_maps
from regard.comparison.loading import Loader
from tiny import fill


def kept(tmp_path, model):
    images = data.prepare(fill(tmp_path / "photos"), tmp_path / "data", size=32)
    loader = Loader(images, SimpleNamespace(size=32), lambda x: x)
    kept_maps.write(tmp_path, "arm", model, loader, np.arange(20))
    with np.load(tmp_path / "maps" / "arm.npz") as stored:
        found = [(tap["kind"], stored[tap["key"]].shape) for tap in json.loads(str(stored["taps"]))]
    return found, report_maps.gallery(tmp_path, "arm")


def test_the_hosts_own_attention(tmp_path):
    model = timm.create_model("seresnet18", num_classes=2, layers=(1, 1, 1, 1), channels=(16, 16, 16, 16))
    found, gallery = kept(tmp_path, model)
    assert [kind for kind, _ in found] == ["channel"] * 4 + ["grad-cam"]
    assert [row["kind"] for row in gallery["rows"]] == ["channel", "grad-cam"]  # the last of each size
    assert gallery["rows"][0]["site"] == "layer4.0.se"


def test_views_from_the_middle(tmp_path):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2, num_classes=2
    )
    found, gallery = kept(tmp_path, model)
    assert found[:2] == [("token", (8, 4, 4))] * 2
    assert all(cell.startswith("data:image/webp") for row in gallery["rows"] for cell in row["cells"])
    assert gallery["rows"][0]["caption"] == "Where the place with the cross looks"


def test_every_kind_of_the_library(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(16, 2))
    for name in ("cbam", "coordinate", "non_local", "criss_cross", "danet_channel"):
        regard.attach(model, name, at="2", example=torch.randn(1, 3, 32, 32), start="paper")
    regard.attach(model, "stn", at="0", example=torch.randn(1, 3, 32, 32))
    found, gallery = kept(tmp_path, model)
    kinds = {kind for kind, _ in found}
    assert kinds >= {"channel", "spatial", "token", "criss-cross", "pair", "frame", "grad-cam"}
    assert len(gallery["rows"]) == min(len(set(found)), report_maps.TAPS)
    assert gallery["rows"][-1]["kind"] == "grad-cam"


def test_a_network_without_a_map_keeps_nothing(tmp_path):
    images = data.prepare(fill(tmp_path / "photos"), tmp_path / "data", size=16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 2))
    loader = Loader(images, SimpleNamespace(size=16), lambda x: x)
    kept_maps.write(tmp_path, "arm", model, loader, np.arange(20))
    assert not (tmp_path / "maps").exists()
    assert report_maps.gallery(tmp_path, "arm") is None
