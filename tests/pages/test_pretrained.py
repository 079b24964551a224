"""Attention in a network with ImageNet weights: what it knows survives the insertion, or shows that it did not."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import regard
from regard.gallery.subjects import Subject
from regard.layers.tap import Tap
from regard.maps.deletion import deletion_insertion
from regard.maps.meaning import judge
from regard.maps.randomisation import randomised
from regard.registry import registration as registry

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.delitem(sys.modules, "common", raising=False)
        spec = importlib.util.spec_from_file_location("pretrained_example", EXAMPLES / "pretrained.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "pretrained_example", module)  # where its dataclass looks for its module
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def model(example):
    return example.network()


@pytest.fixture(scope="module")
def photos(example):
    return example.photos()


def answers(model, x):
    with torch.inference_mode():
        return model(x)


def test_the_network_is_right_about_18_of_20_photos(model, photos):
    x, labels = photos
    assert len(x) == 20
    assert int((answers(model, x).argmax(1) == labels).sum()) == 18


@pytest.mark.parametrize("mechanism", ["se", "cbam", "coordinate"])
def test_identity_leaves_every_logit_and_the_papers_start_does_not(model, photos, mechanism):
    x = photos[0][:4]
    before, keys = answers(model, x), list(model.state_dict())
    identity = regard.attach(model, mechanism, example=x[:1], start="identity", seed=0)
    assert torch.equal(answers(model, x), before)
    identity.remove()
    paper = regard.attach(model, mechanism, example=x[:1], start="paper", seed=0)
    changed = (answers(model, x) - before).norm() / before.norm()
    paper.remove()
    assert changed > 0.1
    assert torch.equal(answers(model, x), before)
    assert list(model.state_dict()) == keys


def test_the_example_counts_what_it_says(example, model, photos, monkeypatch):
    """Against a mechanism whose effect is known: it turns the sign of every feature map it is behind."""
    x, labels = photos[0][:4], photos[1][:4]
    monkeypatch.setattr(registry, "registered", dict(registry.registered))

    @regard.register("turned", category="channel", paper="-", place="stages", parameters=lambda channels: 0)
    class Turned(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.tap = Tap("channel", low=-1)

        def forward(self, x):
            return x * self.tap(-torch.ones_like(x[:, :, :1, :1]))

    row = example.insertion(model, "turned", x, labels)
    assert (row.same, row.parameters) == (4, 0)
    assert row.change > 0.5
    assert row.kept == row.right == 0
    assert regard.attached(model) == []


@pytest.mark.slow
def test_its_reasons_are_captums_and_the_network_needs_them(model, photos):
    from captum.attr import LayerGradCam

    x, labels = photos[0][:6], photos[1][:6]
    found = regard.explain(model, x, labels)
    expected = LayerGradCam(model, model.get_submodule(found.name)).attribute(x, labels).detach().relu()
    assert torch.allclose(found.value, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    meaning = judge(found.value.squeeze(1), x, curves=deletion_insertion(model, x, found.value, labels, steps=5))
    assert meaning.matters > 0.1
    assert meaning.words == []
    *_, (_, copy) = randomised(model, x[:1])
    assert judge(found.value, random=regard.explain(copy, x, labels, layer=found.name).value).random_weights < 0.5


def test_a_gallery_of_real_photos_names_what_it_sees(model, example):
    files = sorted(example.package("foolbox").glob("data/imagenet_*.jpg"))
    gallery = regard.look(model, files, checks=False)
    (view,) = gallery.views
    names = [word.rpartition(",")[0] for word in view.classes]
    expected = [Subject.of(model).called(int(file.stem.split("_")[2])) for file in files]
    assert sum(name == right for name, right in zip(names, expected, strict=True)) >= 14  # squeezed, not cropped
    assert view.columns[-1].meaning.between_images > 0.3
