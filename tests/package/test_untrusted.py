"""Files and folders of strangers: whatever they hold, one sentence names the file and the field, and nothing runs."""

import asyncio
import copy
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import regard
import regard.app.guard as guards
import tiny
from regard.app import uploads
from regard.base.errors import DiskFull, UserError
from regard.base.files import opened, whole, write_text
from regard.comparison import checkpoint, data, grid, hosts, network, prices, report, training
from regard.comparison.optimising import Optimiser
from regard.comparison.question_file import Stored
from regard.comparison.results import Comparison
from regard.gallery.images import expand, read
from regard.gallery.opening import open_subject, open_subjects, trained
from regard.networks import from_timm
from regard.networks.from_timm import timm_model
from regard.networks.models import open_model
from regard.networks.options import OPTIONS
from stored import fit, store

DAMAGED = {
    "empty": "", "cut": '{"question": {"da', "array": "[]", "null": "null", "object": "{}", "text": '"x"',
    "number": "1e999", "deep": "[" * 100_000, "nested": '{"a":' * 60 + "1" + "}" * 60,
    "not-a-number": "NaN", "bytes": "\udcff\udcfe",
}  # fmt: skip
WRONG = [None, [], {}, "", "x", -1, 0.5, True, 10**40, float("nan"), float("inf"), [[]], "\ud800", {"a": 1}]


def refusal(call):
    """What a call refuses with, in one line; None where it does not."""
    try:
        call()
    except UserError as error:
        (line,) = str(error).splitlines()
        return line


def sentence(call, *words):
    """What a call refuses with: one line that holds the words."""
    with pytest.raises(UserError) as raised:
        call()
    said = str(raised.value)
    assert len(said.splitlines()) == 1, said
    assert len(said) < 600, said
    for word in words:
        assert word in said, said
    return said


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return fit(store(tmp_path_factory.mktemp("sound"), gains={"none": 0.0, "se": 0.01}, seeds=[3])).folder


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "mine"))


def places(value, at=()):
    """The way to every field of a JSON file; of an array to its first entry alone."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def changed(value, at, to):
    value = copy.deepcopy(value)
    if not at:
        return to
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = to
    return value


# ---- the folder of a comparison


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["question.json", "cost.json", "linear.json", "runs/se/seed-0003.json"])
def test_a_damaged_file_is_named(folder, name, damage):
    (folder / name).write_bytes(os.fsencode(DAMAGED[damage]))
    sentence(lambda: Comparison.load(folder), str(folder / name), "damaged")
    sentence(lambda: trained(folder), str(folder / name))
    if name == "question.json":
        sentence(lambda: open_subject(str(folder_of_weights(folder))), "question.json")


def folder_of_weights(folder):
    path = folder / "weights" / "se" / "seed-0000.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, path)
    return path


@pytest.mark.parametrize("name", ["question.json", "cost.json", "linear.json", "runs/se/seed-0003.json"])
def test_every_field_is_checked(folder, name):
    """A changed field gets a sentence that names it, or else the whole answer can be written."""
    path, refused, tried, was = folder / name, 0, 0, json.loads((folder / name).read_text())
    for at in places(was):
        for to in (..., *WRONG):
            if to is ... and not at:
                continue
            path.write_text(json.dumps(changed(was, at, to)))
            tried += 1
            if said := refusal(lambda: Comparison.load(folder)):
                refused += 1
                assert str(path) in said
                named = [key for key in at if isinstance(key, str)]
                assert not named or to == "\ud800" or any(key in said for key in named), (at, to, said)
            else:
                comparison = Comparison.load(folder)
                json.dumps(comparison.to_json(), allow_nan=False).encode()
                repr(comparison).encode()
                comparison._repr_html_().encode()
                comparison.csv().encode()
                report.facts(comparison.question)
                report.environment(comparison)
    assert refused > 0.6 * tried


def test_what_is_unknown_is_left_alone(folder):
    """Fields of a newer version, and folders of an older one."""
    path = folder / "runs" / "se" / "seed-0003.json"
    run = json.loads(path.read_text())
    del run["environment"], run["seconds"]
    path.write_text(json.dumps(run | {"deaths": 2, "mood": {"a": [1]}}))
    asked = json.loads((folder / "question.json").read_text())
    assert "trunk" not in asked["question"]
    asked["question"]["layout"] = "channels_last"
    (folder / "question.json").write_text(json.dumps(asked))
    comparison = Comparison.load(folder)
    assert comparison.records["se", 3]["deaths"] == 2
    assert comparison.question.other == {"layout": "channels_last"}
    assert report.write(comparison).stat().st_size > 10_000


def test_a_run_belongs_where_it_lies(folder):
    shutil.copy(folder / "runs/se/seed-0003.json", folder / "runs/none/seed-0004.json")
    sentence(lambda: Comparison.load(folder), "runs/none/seed-0004.json", "'se'", "seed 3")


def test_maps_of_strangers(folder):
    path = folder / "maps" / "se.npz"
    with np.load(path) as stored:
        was = dict(stored)
    many = json.dumps([{"key": "map0", "name": "x", "kind": "nothing", "limits": None}])
    for to in (
        {"images": was["images"][..., :2]}, {"images": was["images"].astype(float)}, {"labels": was["labels"] + 99},
        {"labels": was["labels"][:3]}, {"predictions": was["predictions"] - 50}, {"map0": was["map0"][:2]},
        {"map0": was["map0"][0]}, {"map2": was["map2"].astype("U3")}, {"map0": np.zeros((8, 0, 0), np.float32)},
        {"map0": was["map0"].astype(complex)}, {"taps": np.array("{")}, {"taps": np.array("[1]")},
        {"taps": np.array(many)}, {"files": np.arange(8)}, {"masks": was["masks"][:, :3]},
    ):  # fmt: skip
        np.savez(path, **(was | to))
        sentence(lambda: report.write(Comparison.load(folder)), str(path))
    for missing in ("images", "taps", "map1", "labels"):
        np.savez(path, **{name: array for name, array in was.items() if name != missing})
        sentence(lambda: report.write(Comparison.load(folder)), str(path))
    for damage in (b"", b"PK", path.read_bytes()[:500], np.array([{}], object).dumps()):
        path.write_bytes(damage)
        sentence(lambda: report.write(Comparison.load(folder)), str(path), "damaged")


def test_pipes_and_folders_in_place_of_files(folder):
    for name in ("question.json", "cost.json", "linear.json", "runs/se/seed-0003.json"):
        there = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        sentence(lambda path=folder / name: Comparison.load(folder), str(folder / name), "no regular file")
        (folder / name).unlink()
        (folder / name).mkdir()
        sentence(lambda path=folder / name: Comparison.load(folder), str(folder / name), "no regular file")
        (folder / name).rmdir()
        (folder / name).write_bytes(there)


# ---- going on in such a folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("finished")
    photos = tiny.fill(place / "photos")
    with pytest.MonkeyPatch.context() as patch:
        tiny.train_here(patch)
        regard.compare(["eca"], data=photos, seeds=2, epochs=2, out=place / "out", **tiny.ASKED)
    return place


@pytest.fixture
def again(finished, tmp_path, monkeypatch):
    """The folder, and what asks the same again."""
    tiny.train_here(monkeypatch)
    monkeypatch.setattr(prices, "measure", lambda *_: pytest.fail("measured again"))
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))

    def ask():
        return regard.compare(["eca"], data=finished / "photos", seeds=2, epochs=2, out=out, **tiny.ASKED)

    return out, ask


def test_a_damaged_run_is_done_again_and_said(again, monkeypatch, capsys):
    out, ask = again
    before = tiny.outcomes(out)
    (out / "runs/eca/seed-0001.json").write_text('{"arm": "eca", "seed": 1, "status": "done", "top1": 7}')
    sentence(lambda: Comparison.load(out), "eca/seed-0001.json", "top1", "does this run again")
    monkeypatch.setitem(tiny.ASKED, "progress", True)
    ask()
    assert tiny.outcomes(out) == before
    assert "seed-0001.json is damaged (top1 is 7 " in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("damage", ["", "null", "[]", "{}", "cut", '{"question": {}}'])
@pytest.mark.parametrize("name", ["question.json", "cost.json", "data/meta.json"])
def test_asking_again_in_a_damaged_folder(again, name, damage):
    out, ask = again
    text = (out / name).read_text()
    (out / name).write_text(text[: len(text) // 2] if damage == "cut" else damage)
    sentence(ask, str(out / name), "damaged")
    if name == "data/meta.json":
        sentence(lambda: data.load(out / "data"), str(out / name))
        sentence(lambda: open_subjects(str(out)), str(out / name))


def pixel(array):
    array[3, 0, 2, 2] += 1
    return array


ARRAYS = {
    "images.npy": [
        lambda a: a[:-1], lambda a: a[:, :, :5], lambda a: a.astype(np.int8), lambda a: a.astype(object), np.ravel,
        pixel, lambda a: a[:, :, :, :0],
    ],
    "labels.npy": [
        lambda a: a[:0], lambda a: a.astype(object), lambda a: a + 2, lambda a: a - 1, lambda a: a.astype(float),
        lambda a: a[:-1], lambda a: a[:, None], lambda a: a[::-1].copy(),
    ],
    "parts.npy": [lambda a: a + 4, lambda a: a[1:], lambda a: a.astype(bool), lambda a: a * 0],
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_changed_are_noticed(again, name):
    out, ask = again
    path = out / "data" / name
    was, content = np.load(path), path.read_bytes()
    for change in ARRAYS[name]:
        np.save(path, change(was.copy()), allow_pickle=True)
        sentence(ask, name, "compare")
    for damage in (b"", content[:60], content[:-3], b"\x93NUMPY\x01\x00", b"PK\x03\x04", np.arange(3).dumps()):
        path.write_bytes(damage)
        sentence(lambda: data.load(out / "data"), str(path), "damaged")
    path.unlink()
    os.mkfifo(path)
    sentence(lambda: data.load(out / "data"), str(path), "no regular file")


def test_other_images_are_not_shown_to_a_trained_network(again, finished):
    out, _ = again
    other = data.prepare(tiny.fill(out / "photos", ("dark", "lit")), out / "other", size=tiny.SIZE)
    shutil.rmtree(out / "data")
    shutil.copytree(out / "other", out / "data")
    assert other.classes == ("dark", "lit")
    sentence(lambda: open_subjects(str(out)), "images in", "not those")


def test_looking_opens_no_other_file_and_fetches_nothing(again, monkeypatch):
    out, _ = again
    asked = json.loads((out / "question.json").read_text())
    asked["question"] |= {"weights": "/etc/hostname", "pretrained": True}
    (out / "question.json").write_text(json.dumps(asked))
    monkeypatch.setattr(from_timm, "timm_model", lambda *_, **__: pytest.fail("it fetches"))
    assert [subject.name.partition(" in")[0] for subject in open_subjects(str(out))] == ["none", "eca"]
    del asked["question"]["at"]
    (out / "question.json").write_text(json.dumps(asked))
    assert len(Comparison.load(out).done) == 4  # the report needs less than the network
    sentence(lambda: open_subjects(str(out)), "question.at is missing")


@pytest.mark.parametrize("change", ["complex", "int8", "bool", "shape", "missing", "more", "cut", "text"])
def test_kept_weights_that_do_not_fit(again, change):
    out, _ = again
    path = next(out.glob("weights/eca/*.safetensors"))
    tensors = load_file(path)
    key = next(iter(tensors))
    if change in ("complex", "int8", "bool"):
        kinds = {"complex": torch.complex64, "int8": torch.int8, "bool": torch.bool}
        tensors[key] = tensors[key].to(kinds[change])
    tensors = {
        "shape": tensors | {key: torch.zeros(3)},
        "missing": {name: tensor for name, tensor in tensors.items() if name != key},
        "more": tensors | {"more": torch.zeros(1)},
    }.get(change, tensors)
    save_file(tensors, path)
    if change in ("cut", "text"):
        path.write_bytes(path.read_bytes()[:300] if change == "cut" else b"hello")
    sentence(lambda: open_subject(str(path)), str(path))


def test_checkpoints_of_strangers_are_passed_over(finished, tmp_path):
    """A checkpoint of another shape, kind or curve is not used, and cannot fail half-way."""
    asked = Stored.read(finished / "out").question
    model = network.build(asked, "none", 0)
    optimiser = Optimiser(model, 1e-3, 0.05, 0.05)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(0.5)
    path = tmp_path / "seed-0000.ckpt"
    curve = [{"epoch": 1, "train_loss": 1.0, "val_top1": 0.5, "seconds": 1.0}]
    checkpoint.save(path, model, optimiser, curve, 0)
    assert checkpoint.resume(path, model, optimiser, asked)["curve"] == curve
    state = torch.load(path, weights_only=True)
    key = next(iter(state["model"]))
    adam, muon = state["optimiser"]
    for change in (
        {"curve": None}, {"curve": [{"epoch": 1}]}, {"curve": curve * 9}, {"resumed": "x"}, {"model": {}},
        {"model": state["model"] | {key: torch.zeros(1)}}, {"optimiser": {}},
        {"model": state["model"] | {key: state["model"][key].to(torch.complex64)}}, {"optimiser": [adam]},
        {"optimiser": [muon, adam]}, {"optimiser": [adam, {"state": {}, "param_groups": []}]},
        {"optimiser": [adam | {"state": {0: {"step": 1}}}, muon]},
    ):  # fmt: skip
        torch.save(state | change, path)
        fresh = network.build(asked, "none", 1)
        before = network.fingerprint(fresh)
        assert checkpoint.resume(path, fresh, Optimiser(fresh, 1e-3, 0.05, 0.05), asked) == {"curve": [], "resumed": 0}
        assert network.fingerprint(fresh) == before


# ---- what a network may be given


EVIL = [
    "checkpoint_path=evil.pth", "pretrained=true", "pretrained_cfg=evil", "pretrained_cfg_overlay=x", "cache_dir=/tmp",
    "scriptable=true", "weights=DEFAULT", "weights_backbone=DEFAULT", "pretrained_strict=false", "features=x",
    "block=x", "num_classes=abc", "num_classes=1e3", "num_classes=99999999999", "drop_rate=true", "drop_rate=nan",
    "act_layer=../x", "act_layer=3", "img_size=-99999999", "qkv_bias=1", "hf_hub_id=a/b", "kwargs=x",
]  # fmt: skip


@pytest.mark.parametrize("option", EVIL)
def test_no_option_of_a_stranger_reaches_a_constructor(option, monkeypatch):
    import timm
    from torchvision import models

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it was called"))
    monkeypatch.setattr(models, "get_model", lambda *_, **__: pytest.fail("it was called"))
    name = option.partition("=")[0]
    for text in (f"resnet18[{option}]", f"torchvision/resnet18[{option}]"):
        sentence(lambda text=text: open_model(text), name)
    for call in (
        lambda: open_subject(f"resnet18[{option}]", pretrained=True),
        lambda: hosts.build(f"resnet18[{option}]", 3, 3, seed=0),
        lambda: hosts.build(f"resnet18[{option}]", 3, 3, seed=0, widening=1.5),
    ):
        sentence(call, name)


def test_a_folder_cannot_name_a_checkpoint(again, monkeypatch):
    out, _ = again
    asked = json.loads((out / "question.json").read_text())
    asked["question"]["model"] = f"resnet18[checkpoint_path={out}/evil.pth]"
    (out / "question.json").write_text(json.dumps(asked))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    sentence(lambda: open_subjects(str(out)), "checkpoint_path")


def test_usual_options_are_still_taken():
    model = timm_model(
        "vit_tiny_patch16_224", {"img_size": 28, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}
    )
    assert len(model.blocks) == 2
    assert timm_model("resnet18", {"zero_init_last": False, "act_layer": "silu", "drop_path_rate": 0.1}) is not None
    assert (
        open_model("torchvision/resnet18[zero_init_residual=true,num_classes=3]", size=32, batch=1)[0].fc.out_features
        == 3
    )
    assert not {name for name in OPTIONS if "path" in name.split("_") and not name.endswith("rate")}
    assert not {name for name in OPTIONS if "pretrained" in name or name.endswith(("cfg", "dir"))}


# ---- a user's own file


STANDARD = """
import sys, statistics, beside
import torch

def build():
    import beside_later
    assert statistics.__file__ != __file__
    return torch.nn.Conv2d(3, beside.WIDTH, 1)
"""


def test_a_file_replaces_no_module(tmp_path):
    import statistics

    for number, name in enumerate(("statistics", "json", "torch", "types")):
        place = tmp_path / str(number)
        place.mkdir()
        (place / f"{name}.py").write_text(STANDARD)
        (place / "beside.py").write_text(f"WIDTH = {number + 2}")
        (place / "beside_later.py").write_text("")
        (place / "random.py").write_text("raise ValueError")
        before = list(sys.path), list(sys.meta_path), sys.modules.get(name)
        model, _ = open_model(f"{place / name}.py:build", size=8, batch=1)
        assert model.out_channels == number + 2, "what lies beside another file"
        assert (list(sys.path), list(sys.meta_path), sys.modules.get(name)) == before
    assert sys.modules["statistics"] is statistics
    (place / "types.py").write_text("def build(: pass")
    sentence(lambda: open_model(f"{place / 'types'}.py:build"), "cannot be run")
    assert (list(sys.path), list(sys.meta_path)) == before[:2]


# ---- weights of attachments


@pytest.fixture(scope="module")
def attachment(tmp_path_factory):
    path = tmp_path_factory.mktemp("attachment") / "a.safetensors"
    model = host()
    regard.attach(model, "cbam", at="1", example=torch.zeros(1, 3, 8, 8), reduction=2, seed=0).save(path)
    return path


def host():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["regard"])


def refused(path, *words):
    """The file is refused in a sentence, and the model stays what it was."""
    model = host()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    said = sentence(lambda: regard.load(model, path), *words)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.state_dict().keys() == before.keys()
    assert not any(module._forward_hooks for module in model.modules())
    return said


def test_every_field_of_a_header_is_checked(attachment, tmp_path):
    was, tensors, path = header_of(attachment), load_file(attachment), tmp_path / "b.safetensors"
    for at in places(was):
        if at[:1] in (("version",), ("host",)):
            continue
        for to in (
            ...,
            *WRONG,
            70_000,
            [1, 2, 3, 4],
            ["channels_first", 1, []],
            ["tokens", 0, []],
            ["tokens", 0, [0, 3]],
        ):
            if (to is ... and not at) or (at and at[0] == "options" and (to is ... or len(at) == 1)):
                continue
            header = changed(was, at, to)
            save_file(tensors, path, metadata={"regard": json.dumps(header)})
            model = host()
            if refusal(lambda: regard.load(model, path)):  # noqa: B023
                assert not any(module._forward_hooks for module in model.modules())
            else:
                model(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("text", ["", "[" * 50_000, "null", "{", '{"label": 1}', "NaN", "1" * 5000])
def test_headers_that_are_none(attachment, tmp_path, text):
    save_file(load_file(attachment), tmp_path / "b.safetensors", metadata={"regard": text})
    refused(tmp_path / "b.safetensors", "holds no attachment")


@pytest.mark.parametrize("site", ["", "1.regard", "1.regard.cbam", "regard"])
def test_sites_that_are_none(attachment, tmp_path, site):
    header = header_of(attachment)
    header |= {"channels": {site: 8}, "layouts": {site: ["channels_first", 0, []]}}
    save_file(load_file(attachment), tmp_path / "b.safetensors", metadata={"regard": json.dumps(header)})
    refused(tmp_path / "b.safetensors", "site")


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8, torch.bool, torch.int64])
def test_weights_of_another_kind(attachment, tmp_path, kind):
    from regard.insertion.storage import digest

    tensors, header = load_file(attachment), header_of(attachment)
    key = next(name for name in tensors if tensors[name].is_floating_point() and tensors[name].dim())
    tensors[key] = tensors[key].to(kind)
    save_file(
        tensors, tmp_path / "b.safetensors", metadata={"regard": json.dumps(header | {"sha256": digest(tensors)})}
    )
    refused(tmp_path / "b.safetensors", key, "float32 belongs")


@pytest.mark.parametrize(
    ("mechanism", "options"),
    [
        ("criss_cross", {"recurrence": 65_536}), ("bam", {"dilation": 65_000}), ("local", {"halo": 4000}),
        ("local", {"block_size": 5000}), ("stn", {"size": [65_536, 65_536]}), ("stn", {"size": [0, 4]}),
        ("cbam", {"squeeze": 3}), ("cbam", {"squeeze": ["avg", "max", 7]}), ("cbam", {"kernel_size": -3}),
        ("cbam", {"reduction": "x"}), ("cbam", {"spatial_dims": 9}), ("gct", {"epsilon": "x"}), ("ge", {"extent": -2}),
        ("eca", {"kernel_size": 2}), ("eca", {"kernel_size": []}), ("simam", {"regularization": None}),
        ("se", {"bias": 1}),
    ],
)  # fmt: skip
def test_options_that_no_module_takes(attachment, tmp_path, mechanism, options):
    header = header_of(attachment) | {"mechanism": mechanism, "options": options}
    save_file(load_file(attachment), tmp_path / "b.safetensors", metadata={"regard": json.dumps(header)})
    refused(tmp_path / "b.safetensors")


# ---- images


def test_one_reader_for_all(tmp_path):
    """Formats are told by content, and only those that are decoded here; what is no regular file is broken."""
    photos = tiny.fill(tmp_path / "photos")
    there = photos / "dark"
    Image.new("RGB", (20, 20)).save(tmp_path / "x.eps", "EPS")
    Image.new("RGB", (20, 20)).save(tmp_path / "x.pdf", "PDF")
    shutil.copy(tmp_path / "x.eps", there / "eps.png")
    shutil.copy(tmp_path / "x.pdf", there / "pdf.jpg")
    os.mkfifo(there / "pipe.png")
    (there / "zero.png").symlink_to("/dev/zero")
    (there / "folder.png").mkdir()
    images = data.prepare(photos, tmp_path / "out", size=16, skip_broken=True)
    broken = {Path(name).name: reason for name, reason in images.broken}
    assert broken.keys() == {"eps.png", "pdf.jpg", "pipe.png", "zero.png"}
    assert broken["pipe.png"] == broken["zero.png"] == "it is no regular file"
    for name in broken:
        assert [path.name for path in expand([there / name])] == [name]
        sentence(lambda name=name: read(there / name), "cannot be read as a picture")
    for suffix in ("avif", "jp2", "tga", "ppm", "qoi"):
        try:
            Image.new("RGB", (20, 20), (200, 30, 40)).save(tmp_path / f"y.{suffix}")
        except (OSError, ValueError, KeyError):
            continue
        assert read(tmp_path / f"y.{suffix}").size == (20, 20)
        assert tmp_path / f"y.{suffix}" in expand([tmp_path])


def test_a_link_is_one_picture(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "0.png").symlink_to("a.png")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert expand([tmp_path]) == [tmp_path / "a.png"]
    assert expand([f"{tmp_path}/*.png", tmp_path / "a.png"]) == [tmp_path / "a.png"]


# ---- the disk


WRITERS = {
    "torch": lambda path: torch.save({"x": torch.zeros(2**20)}, path),
    "numpy": lambda path: np.save(path.open("wb"), np.zeros(2**20)),
    "safetensors": lambda path: save_file({"x": torch.zeros(2**20)}, path),
    "text": lambda path: path.write_text("x" * 2**22),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_called_a_full_disk(tmp_path, writer):
    """On a file system of 1 MiB, where one may be made."""
    small = tmp_path / "small"
    small.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True, check=False
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no file system can be made here")
    try:
        with pytest.raises(DiskFull, match=r"the disk is full: .*make room"), whole(small / "x" / "y.ckpt") as path:
            WRITERS[writer](path)
        assert not list((small / "x").iterdir())
        write_text(small / "x" / "y.ckpt", "there is room again")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_may_not_grow_is_a_sentence(tmp_path, writer):
    """As on file systems that hold no large files, or under a limit of the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with (
            pytest.raises(DiskFull, match="files as large as that are not allowed here: "),
            whole(tmp_path / "y") as path,
        ):
            WRITERS[writer](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_whatever_a_writer_makes_of_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DiskFull, match=r"the disk is full: .*y\.ckpt cannot be written"), whole(tmp_path / "y.ckpt"):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")
    with pytest.raises(DiskFull):
        write_text(tmp_path / "z", "x")
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="another"), whole(tmp_path / "y.ckpt"):
        raise RuntimeError("another fault")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stops_the_comparison(finished, tmp_path, monkeypatch):
    asked = Stored.read(finished / "out").question

    class Pipe:
        def __init__(self):
            self.sent = []

        def recv(self):
            return "none", 0, False, None

        def send(self, message):
            self.sent.append(message)

    def full(*_):
        raise DiskFull("the disk is full: x")

    pipe = Pipe()
    monkeypatch.setattr(training, "train", full)
    grid.serve(pipe, 1, str(tmp_path), asked, str(tmp_path / "data"))
    assert pipe.sent == [("full", {"reason": "the disk is full: x"})]


def test_opened_files_are_regular(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        sentence(lambda path=path: opened(path), "no regular file")
        sentence(lambda path=path: regard.load(host(), path), "no regular file")
        sentence(lambda path=path: hosts.load(host(), Path(path)), "is not loaded")
    sentence(lambda: opened(tmp_path / "nowhere"), "there is no file")
    sentence(lambda: opened("a\0b"))


# ---- python -OO


def test_without_docstrings():
    """Cards are docstrings: without them what needs one says so."""
    code = (
        "import regard, torch\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())\n"
        "x = torch.zeros(1, 3, 8, 8)\n"
        "try: regard.attach(net, 'glimpse', example=x)\n"
        "except regard.UserError as error: print(error)\n"
        "regard.attach(net, 'se', at='1', example=x)\n"
        "print(regard.info('se'))\n"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "glimpse cannot be attached: no docstring says more, since python -OO takes them away" in done.stdout
    assert "se: no docstring says more" in done.stdout


# ---- the page, without its server


class Page:
    """What stands behind the guard: an upload leaves a file, as gradio does."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    async def __call__(self, scope, receive, send):
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        self.asked.append((scope["path"], body))
        answer = b"{}"
        if scope["path"].endswith("upload"):
            path = self.folder / str(len(self.asked))
            path.write_bytes(body)
            answer = json.dumps([str(path)]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})


def ask(guarded, path, *parts, method="POST", host=b"localhost", length=None, pause=0.0, **headers):
    """The status of an answer to what is sent in parts."""
    size = sum(map(len, parts)) if length is None else length
    given = [(b"host", host), (b"content-length", b"%d" % size), *((k.encode(), v) for k, v in headers.items())]
    waiting, status = list(parts), []

    async def receive():
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": waiting.pop(0) if waiting else b"", "more_body": bool(waiting)}

    async def send(message):
        status.append(message.get("status"))

    scope = {"type": "http", "path": path, "method": method, "headers": given}
    asyncio.run(guarded(scope, receive, send))
    return status[0]


UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"


def test_what_lies_uploaded_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "TOTAL", 5_000_000)
    guarded = guards.Guard(Page(tmp_path), tmp_path, 2)
    assert [ask(guarded, UPLOAD, b"x" * 1_500_000) for _ in range(5)] == [200, 200, 200, 429, 429]
    (tmp_path / "1").unlink()  # it was asked about
    assert ask(guarded, UPLOAD, b"x" * 1_500_000) == 200
    monkeypatch.setattr(uploads, "FORGOTTEN", 0)
    assert [ask(guarded, UPLOAD, b"x" * 1_500_000) for _ in range(3)] == [200, 200, 200]
    assert len(list(tmp_path.iterdir())) == 1
    assert ask(guarded, UPLOAD, b"x", length=10**30) == 413


def test_what_comes_slowly_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "PATIENCE", 0.05)
    page = Page(tmp_path)
    guarded = guards.Guard(page, tmp_path, 2)
    for path in (UPLOAD, JOIN, "/gradio_api/cancel"):
        assert ask(guarded, path, *[b"x"] * 50, pause=0.01) == 408
    assert not page.asked
    assert ask(guarded, UPLOAD, *[b"x" * 20_000] * 10, pause=0.01) == 200
    assert page.asked == [(UPLOAD, b"x" * 200_000)]


@pytest.mark.parametrize(
    ("host", "name", "own"),
    [
        ("127.0.0.1", b"localhost:7860", True), ("127.0.0.1", b"127.0.0.1", True), ("::1", b"[::1]:7860", True),
        ("localhost", b"LocalHost.", True), ("127.0.0.1", b"evil.example", False), ("127.0.0.1", b"192.0.2.1", False),
        ("127.0.0.1", b"localhost.evil.example", False), ("127.0.0.1", b"", False), ("127.0.0.1", b":7860", False),
        ("0.0.0.0", b"192.0.2.1:7860", True), ("0.0.0.0", b"evil.example", False), ("0.0.0.0", b"localhost", True),
        ("studio.example", b"studio.example:7860", True), ("127.0.0.1", b"2130706433.example", False),
    ],
)  # fmt: skip
def test_the_page_knows_its_names(tmp_path, host, name, own):
    guarded = guards.Guard(Page(tmp_path), tmp_path, 2, host=host)
    assert ask(guarded, "/", method="GET", host=name) == (200 if own else 403)
    if own:
        assert ask(guarded, "/", method="GET", host=name, origin=b"http://" + name) == 200
        assert ask(guarded, "/", method="GET", host=name, origin=b"http://evil.example") == 403
        assert ask(guarded, "/", method="GET", host=name, origin=b"null") == 403
