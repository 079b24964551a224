"""docs/networks.md is what benchmarks/networks.py found, in every family of timm; and a few unlike networks, again."""

import json
from importlib.metadata import version

import pytest
import timm.models._registry as timm_registry

import networks

FOUND = json.loads(networks.RESULTS.read_text())
RESULTS = {result["name"]: result for result in FOUND["networks"]}
UNLIKE = [
    "dla46x_c",  # trees of residual blocks
    "ghostnet_050",  # concatenated branches
    "mobilenetv3_small_050",  # inverted residuals
    "swin_tiny_patch4_window7_224",  # channels last, in shifted windows
    "vit_tiny_patch16_224",  # tokens, and one of no pixel
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",  # a list of images in, a list of dicts out
    "torchvision/lraspp_mobilenet_v3_large",  # a dict out
    "torchvision/squeezenet1_1",  # no shortcuts
]


def test_the_page_is_made_from_the_results():
    assert networks.PAGE.read_text() == networks.render(FOUND), "run benchmarks/networks.py and commit what changes"


def test_every_family_is_in_the_results():
    if FOUND["versions"]["timm"] != version("timm"):
        pytest.skip(f"the results are of timm {FOUND['versions']['timm']}")
    ours = [result for name, result in RESULTS.items() if not name.startswith("torchvision/")]
    assert {result["family"] for result in ours} == set(timm_registry._module_to_models)
    theirs = {result["name"] for result in RESULTS.values()} - {result["name"] for result in ours}
    assert theirs == set(networks.torchvision_networks())


def test_nothing_fails_otherwise_than_with_a_sentence():
    for result in RESULTS.values():
        assert "defect" not in result, result["name"]
        assert set(result["words"]) == set(networks.WORDS)
        assert set(result["mechanisms"]) >= set(networks.SAMPLE)
        for answer in (*result["words"].values(), *result["mechanisms"].values()):
            assert "defect" not in answer, (result["name"], answer)


def answers(result):
    """Words and mechanisms, as JSON spells them."""
    return json.loads(json.dumps({key: result[key] for key in ("words", "mechanisms")}))


@pytest.mark.parametrize("name", UNLIKE)
def test_an_unlike_network_again(name):
    """Every word, and two mechanisms: one that adds to each of many places, and one to few."""
    fresh = answers(networks.try_network(name, "", ["se", "non_local"]))
    stored = answers(RESULTS[name])
    assert fresh["words"] == stored["words"]
    assert fresh["mechanisms"] == {key: stored["mechanisms"][key] for key in fresh["mechanisms"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RESULTS if name not in UNLIKE])
def test_every_other_network_again(name):
    assert answers(networks.try_network(name, "", list(networks.SAMPLE))) == answers(RESULTS[name])


# a network for each way in which an insertion can go wrong unseen
def broken(monkeypatch, how):
    """What `try_network` says of a small network when attaching is broken."""
    attach = networks.regard.attach

    def broken_attach(model, *args, **options):
        attached = attach(model, *args, **options)
        how(model, attached)
        return attached

    monkeypatch.setattr(networks.regard, "attach", broken_attach)
    return networks.try_network("resnet10t", "", ["se"])["mechanisms"]["se"].get("defect", "")


def change_a_bias(model, attached):
    model.fc.bias.data[0] += 1


def freeze(model, attached):
    for parameter in attached.parameters():
        parameter.requires_grad_(False)


def cut_off(model, attached):
    for module in attached.modules.values():
        module.register_forward_hook(lambda module, args, output: args[0] + 0 * output.sum())


def cut_off_one(model, attached):
    module = next(iter(attached.modules.values()))
    module.register_forward_hook(lambda module, args, output: args[0] + 0 * output.sum())


def leave_a_key(model, attached):
    model.register_buffer("forgotten", model.fc.bias.detach().clone())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (change_a_bias, "attaching changes the outputs"),
        (freeze, "get no finite gradient"),
        (cut_off, "other weights do not change the outputs"),
        (cut_off_one, "1 of 4 sites get no gradient"),
        (leave_a_key, "removing leaves other keys"),
    ],
)
def test_the_survey_sees_what_is_broken(monkeypatch, how, said):
    assert said in broken(monkeypatch, how)


def test_a_network_that_takes_too_long_is_said_so(monkeypatch):
    monkeypatch.setattr(networks, "LIMIT", 0.01)
    assert "seconds" in networks.try_network("resnet10t", "", ["se"])["defect"]
