"""The gallery: from a word and pictures to a page."""

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data as photos
from torch import nn

import regard
from regard.cli.main import main
from regard.comparison import data, preprocessing
from regard.gallery.images import expand, read
from regard.gallery.masks import read_masks
from regard.gallery.opening import open_subject
from regard.gallery.subjects import Subject
from regard.maps.meaning import judge


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
    assert found["images"] == ["astronaut.png", "chelsea.png", "coffee.png"]
    (network,) = found["networks"]
    kinds = [one["kind"] for one in network["maps"]]
    assert kinds == ["channel"] * 4 + ["grad-cam"]
    assert network["maps"][-1]["name"] == "layer4"
    assert "random: pass --weights" in " ".join(network["notes"])
    assert any("broken.jpg cannot be read as a picture" in note for note in found["notes"])
    page = (tmp_path / "gallery.html").read_text()
    charts = page.count("<figure>")
    assert charts >= 5 + 1  # random weights for every column, places taken away for Grad-CAM
    assert page.count("<img") == 3 * (1 + 5) + charts
    assert not re.search(r"https?://", page)


def test_a_gallery_of_every_host(folder):
    for name, size, kinds in (
        ("resnet18[block_args={attn_layer:nl}]", 64, {"token"}),
        ("vit_tiny_patch16_224", 96, {"token"}),
    ):
        if "nl" in name:
            model = timm.create_model("resnet18", block_args={"attn_layer": "nl"})
            subject = Subject.of(model, "nl", (3, size, size))
        else:
            subject = open_subject(name, size=size)
        gallery = regard.look(
            subject, [folder / "astronaut.png", folder / "coffee.png"], query=(0.3, 0.5), checks=False
        )
        assert kinds <= {column.kind for column in gallery.views[0].columns}
        assert all(len(column.pictures) == 2 for column in gallery.views[0].columns)


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
    kinds = [column.kind for column in gallery.views[0].columns]
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
    assert [column.kind for column in gallery.views[0].columns] == ["grad-cam"]
    assert any("No attention that could be recognised" in note for note in gallery.views[0].notes)


def test_a_network_without_classes(folder):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), regard.create("cbam", 8))
    gallery = regard.look(net, [folder / "coffee.png"])
    assert {column.kind for column in gallery.views[0].columns} == {"channel", "spatial"}
    assert any("gives no classes" in note for note in gallery.views[0].notes)


def test_random_weights_tell_learnt_from_unlearnt(folder):
    """Against itself with randomised weights, a network that learnt nothing is compared with its like."""
    gallery = regard.look(open_subject("seresnet18", size=64), sorted(folder.glob("*.png")))
    assert all(column.meaning.random_weights is not None for column in gallery.views[0].columns)
    quick = regard.look(open_subject("seresnet18", size=64), sorted(folder.glob("*.png")), checks=False)
    assert all(column.meaning.random_weights is None for column in quick.views[0].columns)
    assert all(
        np.array_equal(a.values, b.values)
        for a, b in zip(gallery.views[0].columns, quick.views[0].columns, strict=True)
    )


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
    assert not (tmp_path / "never").exists()


def little(classes=4):
    """A network that takes no time."""
    torch.manual_seed(0)
    cbam = regard.create("cbam", 8, reduction=2)
    with torch.no_grad():  # as if it had learnt
        cbam.norm.weight.fill_(1)
        cbam.down.weight.abs_()
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), cbam, nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def test_networks_side_by_side(folder, tmp_path):
    subjects = [Subject(little(), "one", (32, 32)), Subject(little(), "two & three", (32, 32), classes=["a"] * 4)]
    said = []
    gallery = regard.look(
        subjects, sorted(folder.glob("*.png")), progress=lambda what, done, total: said.append((what, done, total))
    )
    assert [view.name for view in gallery.views] == ["one", "two & three"]
    assert [column.kind for column in gallery.views[1].columns] == ["channel", "spatial", "grad-cam"]
    assert gallery.views[0].columns[1].meaning == gallery.views[1].columns[1].meaning  # the same weights
    assert {what for what, _, _ in said} >= {"one: looking", "two & three: deleting and inserting"}
    assert all(done <= total for _, done, total in said)
    page = gallery.save(tmp_path, pictures="svg").read_text()
    assert "two &amp; three" in page
    files = sorted((tmp_path / "pictures").rglob("*.svg"))
    assert len(files) == 2 * 3 * 3
    for file in files:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 7 * 160
    gallery.save(tmp_path / "again", pictures="png")
    assert len(list((tmp_path / "again" / "pictures").rglob("*.png"))) == 2 * 3 * 3


def test_the_checks_run_the_network_again(folder):
    model = little()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pictures = [Image.open(path) for path in sorted(folder.glob("*.png"))] * 4  # twelve, of which eight are checked
    channel, spatial, evidence = regard.look(Subject(model, "little", (32, 32)), pictures).views[0].columns
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert channel.meaning.matters is None  # channels have no places
    for column in (spatial, evidence):
        left = column.figures["score_left"]
        assert set(left) == {"deletion", "insertion", "random deletion", "random insertion"}
        assert all(len(curve) == 11 for curve in left.values())
        areas = {name: np.mean(np.add(curve[1:], curve[:-1]) / 2) for name, curve in left.items()}
        gained = areas["insertion"] - areas["deletion"]
        assert column.meaning.matters == pytest.approx(
            gained - areas["random insertion"] + areas["random deletion"], abs=1e-5
        )
    for column in (channel, spatial, evidence):
        likeness = column.figures["random_weights_by_layer"]
        assert likeness[0] == 1
        assert likeness[-1] == column.meaning.random_weights
    # randomised from the output on: the classifier is not seen by what comes before it
    assert spatial.figures["random_weights_by_layer"][1] == pytest.approx(1)


def test_channels_and_their_classes(folder):
    """Gates that are the brightness of a picture follow a class that is nothing else."""
    model = little(2)
    for weight in model[2].parameters():
        weight.data.mul_(20)  # gates that differ
    pictures = [Image.new("RGB", (32, 32), (grey,) * 3) for grey in (0, 5, 10, 245, 250, 255)]
    with torch.no_grad():
        model[-1].weight[1] = 0
        model[-1].bias.zero_()
        scores = model(Subject(model, "grey", (32, 32)).prepare(pictures))[:, 0]
        model[-1].bias[1] = (scores[:3].mean() + scores[3:].mean()) / 2
    if scores[0] > scores[-1]:
        model[-1].weight.data, model[-1].bias.data = model[-1].weight.data.flip(0), model[-1].bias.data.flip(0)
    gallery = regard.look(Subject(model, "grey", (32, 32), classes=["light", "dark"]), pictures, checks=False)
    (channel, *_) = gallery.views[0].columns
    assert len({word.split(",")[0] for word in gallery.views[0].classes}) == 2
    assert channel.meaning.by_class > 0.9
    best = channel.figures["channels_by_class"][0]
    assert best["share"] > 0.9
    light = channel.values[[word.startswith("light") for word in gallery.views[0].classes]].mean(0)
    dark = channel.values[[word.startswith("dark") for word in gallery.views[0].classes]].mean(0)
    assert best["highest"] == ("light" if light[best["channel"]] > dark[best["channel"]] else "dark")
    page = gallery.save(folder / "classes").read_text()
    assert f"Channels that follow the class most: {best['channel']} (highest in {best['highest']})" in page


def test_masks(folder, tmp_path):
    for name in ("astronaut", "chelsea", "coffee"):
        mask = np.zeros((60, 90), np.uint8)
        mask[:30] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    subject = Subject(little(), "little", (32, 32))
    gallery = regard.look(subject, sorted(folder.glob("*.png")), masks=tmp_path, checks=False)
    spatial, evidence = gallery.views[0].columns[1:]
    assert spatial.meaning.object_area == evidence.meaning.object_area == 0.5
    assert 0 < spatial.meaning.on_object < 1
    (tmp_path / "coffee.png").unlink()
    with pytest.raises(regard.UserError, match=r"no mask for coffee\.png"):
        regard.look(subject, sorted(folder.glob("*.png")), masks=tmp_path)


def test_classes_of_imagenet_have_names():
    assert Subject.of(timm.create_model("resnet18")).called(281) == "tabby"
    assert Subject.of(timm.create_model("resnet18", num_classes=10)).called(3) == "class 3"
    assert Subject.of(nn.Conv2d(3, 1000, 1)).called(3) == "class 3"


def test_strange_pictures_are_seen_as_they_are(tmp_path):
    """Sixteen bits are scaled and glass is white, for the network as for the reader."""
    grey = np.tile(np.linspace(0, 65535, 32, dtype=np.uint16), (32, 1))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(tmp_path / "glass.png")
    gallery = regard.look(Subject(little(), "little", (32, 32)), [tmp_path], checks=False)
    assert gallery.images == ["glass.png", "grey.png"]
    glass, ramp = (np.asarray(picture) for picture in gallery.pictures)
    assert (glass == 255).all()
    assert ramp[0, 0, 0] < 10 < 120 < ramp[80, 80, 0] < 135
    array = regard.look(Subject(little(), "little", (32, 32)), [np.zeros((8, 8, 3), np.uint8)], checks=False)
    assert array.images == ["picture 1"]


def test_deep_pictures_are_as_light_as_in_training(tmp_path):
    """Of 12 bits in files of 16, the largest number of all files says how many bits are used, as in `compare`."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number, top in enumerate((4096, 1500, 700, 4096, 3000, 2000)):
            scan = random.integers(0, top, (40, 40)).astype(np.uint16)
            Image.fromarray(scan).save(tmp_path / "scans" / name / f"{number}.tif")
    trained = data.prepare(tmp_path / "scans", tmp_path / "data", size=40)
    gallery = regard.look(Subject(little(), "little", (40, 40)), [tmp_path / "scans"], checks=False)
    for file, picture in zip(sorted(trained.files), gallery.pictures, strict=True):
        expected = trained.pixels[list(trained.files).index(file)].mean()
        assert abs(np.asarray(picture).mean() - expected) < 2

    assert trained.peak == data.load(tmp_path / "data").peak == 4095
    # one dark scan alone: as it was in training, where the network comes from there
    subject = Subject(little(), "little", (40, 40), peak=trained.peak)
    (alone,) = regard.look(subject, [tmp_path / "scans" / "a" / "2.tif"], checks=False).pictures
    assert abs(np.asarray(alone).mean() - trained.pixels[list(trained.files).index("a/2.tif")].mean()) < 2


def test_a_network_is_shown_what_it_was_trained_on(folder, tmp_path):
    """The middle square of a picture, where `compare` trained it on that; and the page says how it is prepared."""
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    squares = Subject(little(), "squares", (32, 32), mean=(0.5,) * 3, deviation=(0.25,) * 3, square=True)
    assert squares.prepare([Image.fromarray(wide)]).unique().numel() == 1
    gallery = regard.look(squares, [tmp_path / "wide.png"], checks=False)
    assert {picture.image().height for column in gallery.views[0].columns for picture in column.pictures} == {160}
    page = gallery.save(tmp_path / "out").read_text()
    assert "The network is shown the middle square of each picture, resized to 32 x 32 pixels" in page
    assert "normalised by the mean (0.5, 0.5, 0.5) and the standard deviation (0.25, 0.25, 0.25)" in page

    whole = regard.look(
        little(), [tmp_path / "wide.png"], checks=False, input_size=(16, 32), mean=[0, 0, 0], std=[1] * 3
    )
    assert "each whole picture, resized to 16 x 32 pixels, normalised by the mean (0, 0, 0)" in whole.views[0].notes[-1]
    for wrong in ({"mean": [0.5]}, {"std": [1, 0, 1]}, {"input_size": 0}, {"input_size": (3, 3, 3)}):
        with pytest.raises(regard.UserError, match=f"^{next(iter(wrong))} is"):
            regard.look(little(), [tmp_path / "wide.png"], **wrong)


def test_a_network_from_a_comparison_is_shown_what_it_was_evaluated_on(tmp_path):
    """The files are stored an eighth larger than the network sees them, and their middle is what counts."""
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, photo in enumerate([photos.astronaut(), photos.chelsea(), photos.coffee()] * 2):
            Image.fromarray(photo).resize((90, 60)).save(tmp_path / "photos" / name / f"{number}.png")
    stored = data.prepare(tmp_path / "photos", tmp_path / "data", size=40).pixels
    assert stored.shape[-1] == 45
    subject = Subject(little(), "little", (40, 40), mean=(0,) * 3, deviation=(1,) * 3, square=True, stored=45)
    pictures = [read(path) for path in expand([tmp_path / "photos"])]
    assert torch.equal(subject.prepare(pictures), preprocessing.centre(torch.tensor(stored), 40))
    assert subject.framed(pictures[0]).size == (53, 53)  # 40 of 45 of a square of 60: maps are drawn on that
    assert "the middle square of each picture (89 % of its shorter side)" in subject.prepared


@pytest.mark.parametrize("kind", ["palette", "grey labels", "grey palette", "soft"])
def test_labels_and_their_border(kind, tmp_path):
    values = np.zeros((64, 64), np.uint8)
    values[18:42, 18:42] = 120 if kind == "soft" else 255
    values[20:40, 20:40] = {"palette": 15, "grey labels": 1, "grey palette": 255, "soft": 250}[kind]
    if kind == "grey palette":
        values[values < 255] = 0
    mask = Image.fromarray(values)
    if "palette" in kind:
        mask = Image.fromarray(values, mode="P")
        colours = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        if kind == "palette":
            colours[15], colours[255] = (192, 128, 128), (224, 224, 192)
        mask.putpalette(colours.ravel().tolist())
    mask.save(tmp_path / "a.png")
    found = np.asarray(read_masks(tmp_path, ["a.jpg"])[0]) > 0
    expected = np.zeros((64, 64), bool)
    expected[20:40, 20:40] = True
    if kind == "grey palette":
        expected = values > 0
    assert (found == expected).all()


def test_masks_of_ones_and_none(folder, tmp_path):
    subject = Subject(little(), "little", (32, 32))
    half = np.zeros((60, 90), np.uint8)
    half[:30] = 1
    Image.fromarray(half).save(tmp_path / "coffee.png")
    found = regard.look(subject, [folder / "coffee.png"], masks=tmp_path, checks=False)
    assert found.views[0].columns[1].meaning.object_area == 0.5
    Image.fromarray(0 * half).save(tmp_path / "coffee.png")
    with pytest.raises(regard.UserError, match="black everywhere"):
        regard.look(subject, [folder / "coffee.png"], masks=tmp_path)
    (tmp_path / "coffee.png").write_bytes((folder / "coffee.png").read_bytes()[:500])
    with pytest.raises(regard.UserError, match=r"coffee\.png cannot be read as a picture"):
        regard.look(subject, [folder / "coffee.png"], masks=tmp_path)


def test_a_window_is_judged_by_what_lies_in_it(folder):
    subject = Subject.of(
        timm.create_model("swin_tiny_patch4_window7_224", img_size=112, depths=(2, 2), embed_dim=24, num_heads=(1, 2)),
        sides=(3, 112, 112),
    )
    gallery = regard.look(subject, sorted(folder.glob("*.png"))[:2])
    views = [column for column in gallery.views[0].columns if column.kind == "token"]
    assert views
    for column in views:
        within = (column.values != 0).any(0)
        assert within.sum() <= 49
        assert "flat: says nothing" not in column.meaning.words
        if not within.all():
            expected = judge(column.values[:, within])
            assert (column.meaning.spread, column.meaning.between_images) == (expected.spread, expected.between_images)
            assert column.meaning.random_weights == column.figures["random_weights_by_layer"][-1]


def test_weights_that_vanish_are_judged_with_the_others(folder):
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.mul_(1000)
    gallery = regard.look(Subject.of(model, sides=(3, 96, 96)), sorted(folder.glob("*.png"))[:2], checks=False)
    (view,) = (column for column in gallery.views[0].columns if column.kind == "token")
    assert (view.values == 0).mean() > 0.5
    assert view.meaning.edges is not None


def test_what_cannot_be_laid_on_the_picture_is_named(folder):
    gallery = regard.look(timm.create_model("mobilevit_xxs"), [folder / "coffee.png"], checks=False)
    notes = " ".join(gallery.views[0].notes)
    assert "Attention at 9 more places is not shown" in notes
    assert "No attention that could" not in notes


@pytest.mark.slow
def test_other_precisions(folder):
    gallery = regard.look(little().bfloat16(), [folder / "coffee.png"])
    assert [column.kind for column in gallery.views[0].columns] == ["channel", "spatial", "grad-cam"]
    with torch.autocast("cpu", torch.bfloat16):
        gallery = regard.look(little(), [folder / "coffee.png"])
    assert [column.kind for column in gallery.views[0].columns] == ["channel", "spatial", "grad-cam"]


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("what a pity\nreally")


def test_networks_that_cannot_be_looked_into(folder):
    picture = [folder / "coffee.png"]
    for model, sentence in (
        (Broken(), "cannot be run on pictures of"),
        (nn.Sequential(torch.compile(nn.Conv2d(3, 4, 3))), "is compiled"),
        (torch.jit.script(nn.Conv2d(3, 4, 3)), "is TorchScript"),
    ):
        with pytest.raises(regard.UserError, match=sentence) as raised:
            regard.look(model, picture)
        assert len(str(raised.value).splitlines()) == 1
    for query in ((7, 0.5), (-0.1, 0.5), (float("nan"), 0.5)):
        with pytest.raises(regard.UserError, match="from 0 to 1"):
            regard.look(little(), picture, query=query)
        with pytest.raises(regard.UserError, match="from 0 to 1"), regard.record(little(), queries=[query]):
            pass
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    (view,) = regard.look(Subject(flat, "flat", (32, 32)), picture).views
    assert any("No layer gives a map" in note for note in view.notes)
    assert any("there is nothing to show" in note for note in view.notes)


def test_what_was_seen_and_passed_over_is_named(folder):
    """One number for a whole image weighs neither channels nor places."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)

        def forward(self, x):
            y = self.conv(x)
            return y * torch.sigmoid(x.mean((1, 2, 3), keepdim=True))

    model = nn.Sequential(Odd(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    (view,) = regard.look(Subject(model, "odd", (32, 32)), [folder], checks=False).views
    notes = " ".join(view.notes)
    assert "No attention that could be recognised" in notes
    assert "What is multiplied at 0 was seen" in notes


def test_a_mask_may_be_what_is_not_transparent(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16] = 255
    for name, grey in (("white", 255), ("black", 0)):
        image = Image.merge("RGBA", [Image.fromarray(np.full_like(mask, grey))] * 3 + [Image.fromarray(mask)])
        image.save(tmp_path / f"{name}.png")
    for found in read_masks(tmp_path, ["white.jpg", "black.jpg"]):
        assert np.array_equal(np.asarray(found), mask)
    with pytest.raises(regard.UserError, match="there is no folder"):
        read_masks(tmp_path / "nowhere", ["white.jpg"])


def test_a_mean_that_is_no_number_is_said():
    subject = Subject(little(), "little", (32, 32))
    with pytest.raises(regard.UserError, match="mean is made of finite numbers"):
        regard.look(subject, [np.zeros((8, 8, 3), np.uint8)], mean=[math.nan, 0, 0], std=[1, 1, 1])
