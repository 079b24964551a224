"""Networks of the user's own, and of torchvision, as hosts of a comparison; and whose file is run when."""

import json
import os
import shutil
import textwrap
from pathlib import Path

import pytest
import torch

import regard
import tiny
from regard.app.networks import offers
from regard.base.errors import UserError
from regard.cli import main as cli
from regard.comparison import grid, hosts, prices, report
from regard.comparison.results import Comparison
from regard.gallery.opening import open_subjects
from regard.networks import models
from regard.networks.source import Wanted
from regard.registry.named import Named
from stored import price

NET = """
import pathlib

import torch
from torch import nn

from beside import WIDTH

pathlib.Path(__file__).with_name("ran").touch()


class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
            nn.ReLU(),
        )
        self.scores = nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.scores(self.features(x).mean((2, 3)))


def build(num_classes, in_chans=1):
    return Net(num_classes, in_chans)


def two():
    return Net(2, 3)


def seven():
    return Net(7, 3), torch.zeros(1, 3, 16, 16)


def gray():
    return Net(2, 1)


def restless():
    net = Net(2, 3)
    nn.init.normal_(net.scores.weight, generator=torch.Generator().manual_seed(id(net) % 1000 + seen()))
    return net


def seen(at=[]):
    at.append(1)
    return int(torch.empty((), dtype=torch.int64).random_(generator=GENERATOR))


GENERATOR = torch.Generator()
GENERATOR.seed()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.fill(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A file of the user's in the working directory, and comparisons in this process."""
    tiny.train_here(monkeypatch)
    invented = {"device": "cpu", "batch": 4, "rounds": 5, "noisy": False}
    monkeypatch.setattr(prices, "measure", lambda _, arms: invented | {"arms": {a: price(0) for a in arms}})
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    (tmp_path / "mynet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mynet.py"


def compare(photos, out="out", model="mynet.py:build", **other):
    asked = tiny.ASKED | {"epochs": 1, "seeds": 1, "model": model, "data": photos, "out": out}
    return regard.compare("se", **asked | other)


def test_a_users_own_network_is_compared_and_told_its_classes_and_channels(net, photos):
    comparison = compare(photos)
    assert [run["status"] for run in comparison.records.values()] == ["done", "done"]
    assert comparison.question.model == "mynet.py:build"
    assert comparison.question.learning_rate == 1e-3
    assert "mynet.py:build" in str(comparison)
    report.write(Comparison.load("out"))
    weights = hosts.build("mynet.py:build", 2, 3, seed=0).state_dict()
    assert weights["features.0.weight"].shape[1] == 3
    again = hosts.build(f"{net}:build", 2, 3, seed=0).state_dict()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    other = hosts.build("mynet.py:build", 2, 3, seed=1).state_dict()
    assert not torch.equal(other["scores.weight"], weights["scores.weight"])


def test_the_same_question_is_asked_again_from_elsewhere_and_a_changed_file_is_another(net, photos, monkeypatch):
    first = compare(photos)
    (net.parent / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = compare(photos, "../out", f"{net}:build")
    assert len(again.asked) == 1
    assert again.scores == first.scores
    compare(photos, "../out", "../mynet.py:build")
    with pytest.raises(UserError, match=r'another question \(model was "../mynet.py:build", now "../mynet.py:two"\)'):
        compare(photos, "../out", "../mynet.py:two")
    net.write_text(NET + "\n")
    with pytest.raises(UserError, match=r"another question \(the text of ../mynet.py has changed\)"):
        compare(photos, "../out", "../mynet.py:build")


def test_a_file_that_changes_while_it_is_compared_is_seen(net, photos):
    digest = Named.read("mynet.py:build").digest()
    hosts.build("mynet.py:build", 2, 3, seed=0, digest=digest)
    net.write_text(NET + "\n")
    with pytest.raises(UserError, match=r"mynet.py has changed since the comparison was asked"):
        hosts.build("mynet.py:build", 2, 3, seed=0, digest=digest)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            "mynet.py:seven",
            r"mynet.py:seven is no classifier: it should give \(batch, 2\) for a batch of images, and gives \(2, 7\) "
            "for 2 of 3 x 16 x 16 in training: let seven take num_classes and in_chans",
        ),
        ("mynet.py:gray", r"mynet.py:gray cannot take images of 3 x 16 x 16 \(RuntimeError: .*: let gray take num_cl"),
        ("mynet.py:restless", "mynet.py:restless gives other weights when it is called again with the same seed"),
        ("mynet.py:buld", "has no function 'buld'; did you mean 'build'"),
        ("mynet.py", "say which function of mynet.py"),
        ("nonet.py:build", "there is no file nonet.py"),
        ("torchvision/resnt18", "no model 'resnt18' in torchvision; did you mean 'resnet18'"),
        ("torchvision/fcn_resnet50", "torchvision/fcn_resnet50 is no classifier"),
        ("my net", "cannot read the model 'my net': give small_resnet, a name of timm, torchvision/NAME or file.py:fu"),
        ("resnet18[oops]", r"cannot read 'oops' in the model 'resnet18\[oops\]'"),
    ],
)
def test_what_cannot_be_a_host_is_said_before_training(net, photos, monkeypatch, model, sentence):
    monkeypatch.setattr(grid, "run", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UserError, match=sentence) as raised:
        compare(photos, model=model)
    assert "\n" not in str(raised.value)


def test_a_network_that_fits_needs_no_arguments_and_a_frozen_trunk_finds_its_classifier(net, photos):
    weights = hosts.build("mynet.py:two", 2, 3, seed=7)
    torch.save(weights.state_dict(), "two.pt")
    comparison = compare(photos, model="mynet.py:two", weights="two.pt", trunk="frozen")
    assert {run["status"] for run in comparison.records.values()} == {"done"}
    assert hosts.classifiers(weights, 2) == (weights.scores,)
    with pytest.raises(UserError, match="no layer of this Net gives 9 numbers"):
        hosts.classifiers(weights, 9)
    with pytest.raises(UserError, match=r"mynet.py:two has no pretrained weights: take a model of timm, or --weights"):
        compare(photos, "learnt", model="mynet.py:two", pretrained=True)
    with pytest.raises(UserError, match=r"the wider control knows small_resnet and the ResNets of timm, not 'mynet.py"):
        compare(photos, "other", control="wider")


def test_a_network_of_torchvision_is_a_host(photos, net):
    model = hosts.build("torchvision/resnet18[zero_init_residual=true]", 5, 1, seed=0)
    assert (model.conv1.in_channels, model.fc.out_features) == (1, 5)
    assert hosts.classifiers(model, 5) == (model.fc,)
    assert hosts.image_size("torchvision/resnet18") == 224
    assert hosts.normalisation("torchvision/resnet18", 3)[0] == (0.485, 0.456, 0.406)
    comparison = compare(photos, model="torchvision/shufflenet_v2_x0_5", size=32)
    assert {run["status"] for run in comparison.records.values()} == {"done"}


# --- whose file is run ------------------------------------------------------------------------------------------------


def test_no_file_is_run_because_a_folder_names_it(net, photos, tmp_path, capsys):
    """The folder of a stranger, with the stranger's file where the question says it lies."""
    compare(photos)
    ran = tmp_path / "ran"
    weights = next(Path("out/weights").rglob("*.safetensors"))
    for text in ("mynet.py:build", f"{net}:build", "./out/../mynet.py:build"):
        stored = json.loads(Path("out/question.json").read_text())
        stored["question"]["model"] = text
        Path("out/question.json").write_text(json.dumps(stored))
        ran.unlink(missing_ok=True)
        sentence = (
            "out was made with mynet.py:build, and no file is run because a folder names it: if it is yours, pass --m"
        )
        for name in ("out", str(weights)):
            with pytest.raises(UserError, match=sentence):
                open_subjects(name)
        for offer in offers(["out"]).values():
            with pytest.raises(UserError, match=sentence):
                offer.open()
        assert cli.run(["report", "out"], debug=True) == 0
        assert not ran.exists()
        assert [subject.name for subject in open_subjects("out", own=f"{net}:build")] == [
            f"{arm} in {net}:build" for arm in ("none", "se")
        ]
        assert ran.exists()
    for offer in offers(["out"], own="mynet.py:build").values():
        assert offer.open().classes == ["dark", "light"]
    assert cli.run(["look", "out", str(photos), "--model", "mynet.py:build", "--quick"], debug=True) == 0
    capsys.readouterr()
    ran.unlink()
    net.write_text(NET + "\n")
    shutil.copy(net, "other.py")
    for own in ("mynet.py:build", "other.py:build", "mynet.py:two", "small_resnet"):
        with pytest.raises(UserError, match=r"out was made with another mynet.py:build than"):
            open_subjects("out", own=own)
    assert not ran.exists()


@pytest.mark.slow
def test_workers_build_it_too_in_any_working_directory(photos, tmp_path):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "beside.py").write_text("WIDTH = 8\n")
    (tmp_path / "nets" / "mynet.py").write_text(NET)
    words = ["compare", "se", "--data", str(photos), *tiny.WORDS, "--epochs", "1", "--seeds", "2", "--json"]
    words[words.index("--model") + 1] = "nets/mynet.py:build"
    ran = tiny.regard(*words, "--out", "out", cwd=tmp_path, timeout=600)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert not answer["failed"]
    assert len(answer["scores"]["se"]) == 2
    moved = os.fspath(tmp_path / "nets" / "mynet.py") + ":build"
    words[words.index("nets/mynet.py:build")] = moved
    words[words.index("2", words.index("--seeds"))] = "3"
    ran = tiny.regard(*words, "--out", "../out", cwd=tmp_path / "nets", timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)["scores"]["se"]) == 3


# --- one way to name a network, for every command ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["small_resnet", "small_resnet[width=8,depth=2]"])
def test_the_small_network_is_named_like_any_other(text, capsys):
    model, example = models.open_model(text, batch=2)
    assert model.eval()(example).shape == (2, 10)
    assert example.shape == (2, 3, 64, 64)
    assert cli.run(["sites", text, "--mechanism", "se"], debug=True) == 0
    assert "* se goes to 3" in capsys.readouterr().out or "depth=2" in text
    (subject,) = open_subjects(text)
    assert (subject.name, subject.size, subject.random) == (text, (64, 64), True)
    with pytest.raises(UserError, match="small_resnet has no option 'wide'"):
        models.open_model("small_resnet[wide=3]")


def test_a_function_that_needs_the_number_of_classes_is_told_one_everywhere(net):
    model, _ = models.open_model("mynet.py:build", size=16, batch=2)
    assert model.scores.out_features == 1000
    assert model.features[0].in_channels == 1, "its own default stays"


def test_the_channels_of_a_width_are_not_those_of_images(tmp_path):
    (tmp_path / "wide.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def build(classes=3, channels=64):
            return nn.Conv2d(3, channels, classes)
        """)
    )
    model, _ = models.build(Named.read(f"{tmp_path / 'wide.py'}:build"), Wanted(classes=5, channels=3))
    assert (model.out_channels, model.kernel_size) == (64, (5, 5))


def test_a_tag_of_timm_says_which_weights(monkeypatch):
    assert Named.read("resnet50.a1_in1k[num_classes=3]").name == "resnet50.a1_in1k"
    assert hosts.image_size("resnet50.a1_in1k") == 224
    with pytest.raises(UserError, match=r"no model 'resnt50.a1_in1k' in timm; did you mean"):
        hosts.check("resnt50.a1_in1k")


def test_a_users_file_takes_no_other_modules_place(tmp_path):
    (tmp_path / "json.py").write_text("from torch import nn\n\ndef build():\n    return nn.Linear(2, 2)\n")
    model, _ = models.build(Named.read(f"{tmp_path / 'json.py'}:build"), Wanted())
    assert isinstance(model, torch.nn.Linear)
    import json as still

    assert still is json
