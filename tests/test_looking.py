"""The gallery: from a word and pictures to a page."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data as photos
from torch import nn

import regard
from regard.cli import main
from regard.looking import Subject, expand, open_subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three photographs, a broken file and one that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(photos, name)()).resize((90, 60)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "notes.txt").write_text("no picture")
    return folder


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["regard", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, *capsys.readouterr()


def test_from_the_command_line(folder, tmp_path, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "look", "seresnet18", folder, "--size", 64, "--out", tmp_path, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found == json.loads((tmp_path / "gallery.json").read_text())
    assert [image["name"] for image in found["images"]] == ["astronaut.png", "chelsea.png", "coffee.png"]
    kinds = [one["kind"] for one in found["maps"]]
    assert kinds == ["channel"] * 4 + ["grad-cam"]
    assert found["maps"][-1]["name"] == "layer4"
    assert "random: pass --weights" in " ".join(found["notes"])
    assert any("broken.jpg was left out" in note for note in found["notes"])
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("<img") == 3 * (1 + 5)
    assert not re.search(r"https?://", page)


def test_a_gallery_of_every_host(folder):
    for name, size, kinds in (
        ("resnet18[block_args={attn_layer:nl}]", 64, {"token"}),
        ("vit_tiny_patch16_224", 96, {"token"}),
    ):
        if "nl" in name:
            model = timm.create_model("resnet18", block_args={"attn_layer": "nl"})
            subject = regard.looking._subject(model, "nl", (3, size, size))
        else:
            subject = open_subject(name, size=size)
        gallery = regard.look(subject, [folder / "astronaut.png", folder / "coffee.png"], query=(0.3, 0.5))
        assert kinds <= {column.kind for column in gallery.columns}
        assert all(len(column.pictures) == 2 for column in gallery.columns)


def test_own_mechanisms_and_models_without_a_config(folder, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    for name in ("cbam", "coordinate", "non_local", "criss_cross"):
        regard.attach(net, name, at="2", example=torch.randn(1, 3, 64, 64), start="paper")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    subject = Subject(net, "own", (64, 64))
    gallery = regard.look(subject, [folder / "astronaut.png", Image.open(folder / "coffee.png")], every=True)
    kinds = [column.kind for column in gallery.columns]
    assert {"channel", "spatial", "axis", "token", "criss-cross", "grad-cam"} <= set(kinds)
    assert gallery.images == ["astronaut.png", "picture 2"]
    assert gallery.save(tmp_path).is_file()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.training


def test_what_is_written_is_escaped(folder, tmp_path):
    picture = tmp_path / "<script>alert(1)<"
    Image.new("RGB", (20, 20)).save(picture, "PNG")
    page = regard.look(open_subject("seresnet18", size=32), [picture]).save(tmp_path / "out").read_text()
    assert "<script" not in page


def test_a_network_without_attention_says_so(folder):
    gallery = regard.look(open_subject("resnet18", size=64), [folder / "coffee.png"])
    assert [column.kind for column in gallery.columns] == ["grad-cam"]
    assert any("No attention was found" in note for note in gallery.notes)


def test_a_network_without_classes(folder):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), regard.create("cbam", 8))
    gallery = regard.look(net, [folder / "coffee.png"])
    assert {column.kind for column in gallery.columns} == {"channel", "spatial"}
    assert any("gives no classes" in note for note in gallery.notes)


def test_random_weights_tell_learnt_from_unlearnt(folder):
    """Against itself drawn anew, a network that learnt nothing is compared with its like."""
    gallery = regard.look(open_subject("seresnet18", size=64), sorted(folder.glob("*.png")))
    assert all(column.meaning.stays is not None for column in gallery.columns)
    quick = regard.look(open_subject("seresnet18", size=64), sorted(folder.glob("*.png")), sanity=False)
    assert all(column.meaning.stays is None for column in quick.columns)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(gallery.columns, quick.columns, strict=True))


def test_pictures_are_found(folder, tmp_path, monkeypatch):
    assert [path.name for path in expand([folder])] == ["astronaut.png", "broken.jpg", "chelsea.png", "coffee.png"]
    assert [path.name for path in expand([f"{folder}/c*.png", folder / "coffee.png"])] == ["chelsea.png", "coffee.png"]
    monkeypatch.chdir(folder)
    assert [path.name for path in expand(["a*.png"])] == ["astronaut.png"]
    for word, sentence in (
        ("https://example.org/cat.jpg", "is an address, and nothing is fetched"),
        ("dog.jpg", "there is no picture dog.jpg"),
        (str(tmp_path), "holds no pictures"),
    ):
        with pytest.raises(regard.UserError, match=sentence):
            expand([word])


def test_bad_input_gets_a_sentence(folder, tmp_path, monkeypatch, capsys):
    for words, sentence in (
        (("seresnet18", folder / "broken.jpg"), "cannot be read"),
        (("seresnet18",), "no pictures to look at"),
        (("seresnet18", folder, "--query", "left"), "--query is row,column"),
        (("seresnet18", folder, "--query", "2,0"), "--query lies between 0 and 1"),
        (("seresnet17", folder), "there is no model 'seresnet17'"),
        (("seresnet18", folder, "--layer", "layer9"), "no layer 'layer9'"),
        (("seresnet18", folder, "--target", "5000"), "knows classes 0 to 999"),
        (("nothing.safetensors", folder), "there is no file nothing.safetensors"),
        (("torchvision/raft_small", folder), "not called with pictures alone"),
    ):
        code, _, err = run(monkeypatch, capsys, "look", *words, "--size", 64, "--out", tmp_path / "never")
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert sentence in err
    assert not list(tmp_path.rglob("gallery.*"))
