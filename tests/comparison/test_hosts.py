"""The networks that arms are compared in: options, weights from files, and every mistake in a sentence."""

import os

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

import tiny
from regard.base.errors import UserError
from regard.comparison import hosts, network

SMALL = "small_resnet[width=4]"


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def build(model=SMALL, classes=2, channels=3, seed=0, **options):
    return hosts.build(model, classes, channels, seed=seed, **options)


# ---- models and their options


@pytest.mark.parametrize(("options", "width", "depth"), [("", 16, 1), ("[width=4]", 4, 1), ("[depth=3,width=8]", 8, 3)])
@pytest.mark.parametrize("side", [8, 15, 28, 64])
def test_the_small_host_has_its_width_and_depth(options, width, depth, side):
    model = build(f"small_resnet{options}", classes=7, channels=1)
    assert model(torch.randn(2, 1, side, side)).shape == (2, 7)
    assert [len(stage) for stage in model.stages] == [depth] * 3
    assert [stage[-1].conv2.out_channels for stage in model.stages] == [width, 2 * width, 4 * width]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("small_resnet[wide=4]", "has no option 'wide': its options are width, depth"),
        ("small_resnet[width=0]", "width is a whole number from 1, got 0"),
        ("small_resnet[width=2.5]", "width is a whole number from 1, got 2.5"),
        ("small_resnet[depth=deep]", "depth is a whole number from 1, got 'deep'"),
        ("small_resnet[classes=3]", "has no option 'classes'"),
        ("resnet18[nonsense=3]", "timm cannot build 'resnet18' with these options: .*nonsense"),
        ("resnet18[act_layer=nope]", "timm cannot build 'resnet18' with these options"),
        ("resnet18[num_classes=3]", "timm cannot build 'resnet18' with these options: .*num_classes"),
    ],
)
def test_a_wrong_option_is_refused(model, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        build(model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("resnet81", "no model 'resnet81' in timm; did you mean '.*resnet"),
        ("smal_resnet", "did you mean 'small_resnet'"),
        ("qqqqqqqqqq", "no model 'qqqqqqqqqq' in timm, and it is not small_resnet"),
    ],
)
def test_an_unknown_model_is_refused_with_what_is_near(model, sentence):
    with pytest.raises(UserError, match=sentence):
        hosts.check(model)
    with pytest.raises(UserError, match=sentence):
        build(model)


def test_options_reach_timm():
    plain = build("resnet18", classes=5, channels=1)
    assert plain.conv1.in_channels == 1
    assert plain.fc.out_features == 5
    assert (plain.layer1[0].bn2.weight == 0).all()
    assert (build("resnet18[zero_init_last=false]").layer1[0].bn2.weight == 1).all()


def test_what_a_timm_model_expects():
    assert hosts.image_size("resnet18") == 224
    assert hosts.image_size("test_resnet") == 160
    assert hosts.image_size(SMALL) is None
    assert hosts.normalisation(SMALL, 3) is None


# ---- seeds


@pytest.mark.parametrize("model", [SMALL, "test_resnet"])
def test_the_seed_alone_draws_the_weights(model):
    first = build(model).state_dict()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = build(model).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(build(model, seed=1).state_dict()[next(iter(first))], first[next(iter(first))])


def test_the_random_state_is_put_back_after_a_mistake():
    state = torch.get_rng_state()
    with pytest.raises(UserError):
        build("resnet18[nonsense=3]")
    assert torch.equal(torch.get_rng_state(), state)


# ---- width


@pytest.mark.parametrize("model", [SMALL, "test_resnet", "resnet18"])
def test_widening_widens_and_one_changes_nothing(model):
    plain = build(model)
    assert parameters(build(model, widening=1.0)) == parameters(plain)
    sizes = [parameters(build(model, widening=factor)) for factor in (1.25, 1.5, 2.0)]
    assert parameters(plain) < sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] > 3 * parameters(plain)  # weights grow with the square of the width
    assert build(model, classes=3, widening=1.5)(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_what_cannot_be_widened_is_refused():
    with pytest.raises(UserError, match="the wider control knows small_resnet and the ResNets of timm, not 'test_vit'"):
        build("test_vit", widening=1.5)


# ---- weights from a file


@pytest.fixture
def trained():
    """A host for five classes, with weights that no seed here draws."""
    return build(classes=5, seed=41)


def save(model, path, wrap=None):
    state = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    return path


@pytest.mark.parametrize(
    ("name", "wrap"), [("w.safetensors", None), ("w.pt", None), ("w.pth", "state_dict"), ("w.ckpt", "model")]
)
def test_weights_are_read_and_another_classifier_starts_at_zero(trained, tmp_path, name, wrap):
    path = save(trained, tmp_path / name, wrap)
    same = build(classes=5, weights=path)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in same.state_dict().items())
    other = build(classes=2, weights=path).state_dict()
    for key, value in other.items():
        assert torch.equal(value, torch.zeros_like(value) if key.startswith("head.") else trained.state_dict()[key]), (
            key
        )


def test_weights_of_a_wrapped_model_are_read(trained, tmp_path):
    torch.save({f"module.{key}": value for key, value in trained.state_dict().items()}, tmp_path / "w.pt")
    assert torch.equal(build(classes=5, weights=tmp_path / "w.pt").head.weight, trained.head.weight)


def test_weights_of_a_timm_model_are_read(tmp_path):
    path = save(build("test_resnet", classes=1000, seed=5), tmp_path / "w.safetensors")
    model = build("test_resnet", classes=2, weights=path)
    assert torch.equal(model.conv1[0].weight, build("test_resnet", classes=1000, seed=5).conv1[0].weight)
    assert model.fc.out_features == 2


@pytest.mark.parametrize(
    ("model", "channels", "sentence"),
    [
        ("small_resnet[width=8]", 3, "does not fit the model: it has 'stem.0.weight' in another shape"),
        ("small_resnet[width=4,depth=2]", 3, "does not fit the model: it lacks 'stages.0.1.conv1.weight'"),
        (SMALL, 1, "does not fit the model: it has 'stem.0.weight' in another shape"),
        ("test_resnet", 3, "does not fit the model: it lacks 'bn1"),
    ],
)
def test_weights_of_another_model_are_refused(trained, tmp_path, model, channels, sentence):
    path = save(trained, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=sentence) as raised:
        build(model, channels=channels, weights=path)
    assert str(path) in str(raised.value)


def test_weights_with_attention_in_them_are_refused(tmp_path):
    question = tiny.question(tmp_path, tiny.fill(tmp_path / "photos"), model=SMALL)
    path = save(network.build(question, "se", 0), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"it has 'stages.*\.regard\..* too many"):
        build(weights=path)


def test_a_file_that_holds_no_state_dict_is_refused(trained, tmp_path):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save(trained, tmp_path / "model.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(trained.head.weight, tmp_path / "tensor.pt")
    content = save(trained, tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    for path in [*tmp_path.glob("*"), tmp_path]:
        if path.name != "whole.pt":
            with pytest.raises(UserError, match="is no plain state dict, so it is not loaded") as raised:
                build(classes=5, weights=path)
            assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="there is no file"):
        build(weights=tmp_path / "missing.pt")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_does_not_run(trained, tmp_path):
    torch.save(trained.state_dict() | {"trap": Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="is no plain state dict, so it is not loaded"):
        build(classes=5, weights=tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "w.pt", weights_only=False)  # the trap works
    assert (tmp_path / "sprung").exists()


# ---- pretrained weights


def test_pretrained_weights_that_cannot_be_had_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the pretrained weights of 'test_resnet' cannot be had") as raised:
        build("test_resnet", pretrained=True)
    assert str(raised.value).endswith("): go online, or pass --weights FILE")
    assert "\n" not in str(raised.value)


def test_pretrained_weights_are_refused_where_there_are_none(monkeypatch):
    with pytest.raises(UserError, match="small_resnet has no pretrained weights"):
        build(pretrained=True)
    zoo = timm
    asked, create = {}, zoo.create_model

    def offline(name, **options):
        asked.update(options)
        return create(name, **options | {"pretrained": False})

    monkeypatch.setattr(zoo, "create_model", offline)
    new, kept = (build("test_resnet", classes=classes, pretrained=True).get_classifier() for classes in (2, 1000))
    assert asked == {"pretrained": True, "num_classes": 1000, "in_chans": 3}
    assert not any(parameter.any() for parameter in new.parameters())
    assert kept.weight.any()


def test_the_size_that_was_asked_for_is_the_networks():
    assert hosts.image_size("vit_tiny_patch16_224[img_size=28,patch_size=4]") == 28
    assert hosts.image_size("vit_tiny_patch16_224") == 224
