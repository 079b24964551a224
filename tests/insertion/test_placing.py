"""Where things go, against where attaching puts them."""

import json
import re

import pytest
import timm
import torch
from torch import nn

import regard
from regard import UserError
from regard.insertion.plan import plan
from regard.insertion.words import WORDS
from regard.registry.info import PLACES

X = torch.randn(2, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet():
    return timm.create_model("resnet18")


def test_the_table_says_what_attaching_does(resnet):
    found = plan(resnet, X, mechanism="cbam[reduction=8]")
    assert [place.name for place in found.places if place.chosen] == [f"layer{s}.{b}.bn2" for s in "1234" for b in "01"]
    assert regard.attached(resnet) == []
    assert str(found).endswith("* cbam[reduction=8] goes to 8 sites.")
    assert sum(line.startswith("* ") for line in str(found).splitlines()) == 9
    for word in PLACES:
        try:
            sites = [site.name for site in regard.sites(resnet, word, example=X)]
        except UserError:
            sites = []
        assert [place.name for place in found.places if word in place.words] == sites


def test_there_is_one_list_of_words():
    assert tuple(WORDS) == ("auto", *PLACES)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    for word in WORDS.values():
        missing = re.escape(word.missing)
        with pytest.raises(
            UserError, match=f"^at={word.name!r} finds nothing in this Seq.*: the dry run saw no {missing};"
        ):
            regard.sites(net, word.name, example=X)


def test_at_marks_its_sites_and_a_pattern_shows_those_that_no_word_finds(resnet):
    found = plan(resnet, X, at="layer4.*.conv1")
    assert [place.name for place in found.places if place.chosen] == ["layer4.0.conv1", "layer4.1.conv1"]
    found = plan(resnet, X, at="nowhere")
    assert found.places
    assert not any(place.chosen for place in found.places)
    assert "matches no module" in found.refused


def test_every_module_with_the_reason_why_it_is_none():
    shared = nn.ReLU()
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 4, 3), shared, nn.Sequential(pool), nn.Flatten())
    places = {place.name: place for place in plan(net, X, at="0", every=True).places}
    assert list(places) == ["0", "1", "2", "4.0", "4", "5"]
    assert places["0"].reason == places["2"].reason == ""
    assert places["1"].calls == 2
    assert places["1"].reason.startswith(
        "called with maps that no one mechanism serves, (2, 4, 28, 28) and (2, 8, 30, 30)"
    )
    assert places["4"].reason == "its last child stands for it: 4.0"
    assert "no feature map" in places["5"].reason
    assert (places["5"].shape, places["5"].layout) == ((), None)
    assert places["0"].shape == (2, 8, 30, 30)
    few = [place.name for place in plan(net, X, at="0").places]
    assert "5" not in few


def test_a_network_without_any_map_shows_its_modules_and_why_they_are_none():
    found = plan(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), X)
    assert found.refused.startswith("at='auto' finds nothing")
    assert [place.name for place in found.places] == ["0", "1"]
    header, *rows = found.table.splitlines()
    assert header.endswith("why not")
    assert all("no feature map" in row for row in rows)
    assert str(found) == f"{found.table}\n\n{found.refused}"


def test_a_site_called_twice_with_one_shape():
    shared = nn.Conv2d(8, 8, 1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), shared, shared)
    assert "repeated=True" in plan(net, X, at="0", every=True).places[1].reason


def test_a_mechanism_that_is_refused_is_said(resnet):
    found = plan(resnet, X, mechanism="tam")
    assert not any(place.chosen for place in found.places)
    assert found.refused.startswith("tam cannot be attached: ")
    assert str(found).endswith(found.refused)
    assert json.loads(json.dumps(found.to_json()))["refused"] == found.refused
    found = plan(resnet, X, mechanism="glimpse")
    assert found.refused.startswith("glimpse cannot be attached: it is a whole classifier")
    assert plan(resnet, X, mechanism="se[foo=1]").refused.startswith("se[foo=1] cannot be attached: se has no option")
    with pytest.raises(UserError, match="no mechanism 'sse'"):
        plan(resnet, X, mechanism="sse")


def test_comparing_all_places_of_a_large_map_is_said():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    for side, notes in ((64, 0), (72, 1)):
        found = plan(net, torch.zeros(1, 3, side, side), mechanism="danet_position", at="0")
        assert len(found.notes) == notes
        assert plan(net, torch.zeros(1, 3, side, side), mechanism="simam", at="0").notes == ()
    assert "At '0' danet_position compares each of 72 x 72 places with every other (26,873,856 pairs" in str(found)
