"""Networks by a word, against the libraries that they come from."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from regard import UserError
from regard.networks.from_timm import check_timm
from regard.networks.models import open_model
from regard.networks.replica import call


def test_a_network_of_timm_at_its_own_size():
    model, example = open_model("resnet18[num_classes=5,in_chans=1]", batch=2)
    assert isinstance(model, timm.models.ResNet)
    assert example.shape == (2, 1, 224, 224)
    assert model.get_classifier().out_features == 5
    assert open_model("inception_v3.tv_in1k", batch=1)[1].shape == (1, 3, 299, 299)


def test_a_network_for_one_size_alone_is_built_for_the_size_that_is_asked():
    model, example = open_model("vit_tiny_patch16_224[depth=1]", size=64, batch=1)
    assert example.shape == (1, 3, 64, 64)
    assert model(example).shape == (1, 1000)


def test_the_same_text_gives_the_same_weights_and_images():
    state = torch.get_rng_state()
    (first, x), (second, y) = (open_model("mobilenetv3_small_050", size=32, batch=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, y)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("it downloads")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("squeezenet1_1[num_classes=7]", 64, (1, 7)),
        ("lraspp_mobilenet_v3_large", 64, None),
        ("ssdlite320_mobilenet_v3_large", None, None),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 96, None),
        ("r3d_18", 32, (1, 400)),
        ("raft_small", 128, None),
    ],
)
def test_torchvision(offline, name, size, shape):
    model, example = open_model(f"torchvision/{name}", size=size, batch=1)
    with torch.inference_mode():
        answer = call(model.eval(), example)
    assert shape is None or answer.shape == shape


def test_a_detector_resizes_to_the_size_that_is_asked():
    model, (images,) = open_model("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", size=96, batch=3)
    assert [image.shape for image in images] == [(3, 96, 96)] * 3
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    with torch.inference_mode():
        model.eval()(images)
    assert seen == [(3, 3, 96, 96)]


FILE = """
import torch
from beside import WIDTH

def build():
    return torch.nn.Conv2d(3, WIDTH, 1)

def both():
    return torch.nn.Linear(4, 2), torch.ones(5, 4)

def broken():
    return 1 / 0

def leaving():
    raise SystemExit(3)

def needing(width):
    return build()

def number():
    return 7
"""


def test_a_function_in_the_users_file(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    file = tmp_path / "mynet.py"
    file.write_text(FILE)
    model, example = open_model(f"{file}:build", size=40, batch=2)
    assert (model.out_channels, example.shape) == (6, (2, 3, 40, 40))
    model, example = open_model(f"{file}:both")
    assert (type(model), example.shape) == (nn.Linear, (5, 4))
    for text, sentence in {
        "biuld": "has no function 'biuld'; did you mean 'build'",
        "broken": r"broken failed \(ZeroDivisionError in line 12 of .*mynet.py: division by zero\)$",
        "leaving": r"leaving failed \(SystemExit in line 15 of .*mynet.py: 3\)",
        "needing": r"needing is called without arguments \(missing a required argument: 'width'\)",
        "": "say which function of .*mynet.py gives the network: .*mynet.py:NAME",
        "number": "returns int: return a torch.nn.Module",
    }.items():
        with pytest.raises(UserError, match=sentence):
            open_model(f"{file}:{text}")
    for options in ({"size": 40}, {"batch": 2}):
        with pytest.raises(UserError, match="both returns its own example, which size and batch do not change"):
            open_model(f"{file}:both", **options)
    with pytest.raises(UserError, match="say which function"):
        open_model(str(file))
    assert open_model(f"{file}:build", size=8, usual=3)[1].shape == (3, 3, 8, 8)
    for text, sentence in {
        "import nowhere_to_be_found": r"cannot be run \(ModuleNotFoundError in line 1 of .*mynet.py",
        "def build(": r"cannot be run \(SyntaxError: .*line 1\)",
        "raise SystemExit": r"cannot be run \(SystemExit in line 1",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            open_model(f"{file}:build")


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("resnt50", {}, "no model 'resnt50' in timm; did you mean 'resnet50'"),
        ("torchvision/resnt50", {}, "no model 'resnt50' in torchvision; did you mean 'resnet50'"),
        ("resnet18[colour=3]", {}, "timm cannot build 'resnet18' with these options: .*colour"),
        ("torchvision/resnet18[colour=3]", {}, "torchvision cannot build 'resnet18' with these options: .*colour"),
        ("nowhere.py:build", {}, "there is no file nowhere.py"),
        ("nowhere.py", {}, "there is no file nowhere.py"),
        ("torchvision/", {}, "cannot read the model 'torchvision/'"),
        (
            "torchvision/resnet18",
            {"size": 10**6, "batch": 2},
            "2 x 3 x 1000000 x 1000000 numbers do not fit into memory",
        ),
        ("torchvision/resnet18", {"size": 10**20}, "do not fit into memory"),
        ("my net", {}, "cannot read the model 'my net'"),
        ("resnet18", {"batch": 0}, "at least 1"),
        ("resnet18", {"size": 0}, "at least 1"),
        ("resnet18", {"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_mistakes_are_said_in_a_sentence(text, options, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        open_model(text, **options)
    assert "\n" not in str(error.value)


def test_other_names_that_would_do_are_near_matches_too():
    with pytest.raises(UserError, match="did you mean 'small_resnet'"):
        check_timm("small_resnets", "small_resnet")
    with pytest.raises(UserError, match="and it is not small_resnet"):
        check_timm("zzzzzzzz", "small_resnet")
