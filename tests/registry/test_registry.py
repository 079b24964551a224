"""The mechanisms by name: built, spelled, extended by a user, and filled with the authors' weights."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import regard
from regard.registry import registration as registry
from regard.registry.cards import cards
from regard.registry.info import PLACES, SLOTS
from regard.registry.signatures import example_inputs, shapes
from regard.registry.spelling import parse, spell


def refused(match):
    return pytest.raises(regard.UserError, match=match)


# --- arms as text ----------------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9_]+", fullmatch=True)


def is_word(text):
    """What a person would not read as a number or as true, false, none."""
    try:
        float(text)
    except ValueError:
        return text.lower() not in ("true", "false", "none")
    return False


WORDS = st.text("abcdefINFnaE0123456789_-+.:/", min_size=1).filter(is_word)
VALUES = st.one_of(st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), WORDS)
OPTIONS = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True), VALUES)


@given(NAMES, OPTIONS)
def test_what_is_spelled_is_parsed(name, options):
    text = spell(name, options)
    again = parse(text)
    assert again == (name, options)
    assert {option: type(value) for option, value in again[1].items()} == {o: type(v) for o, v in options.items()}
    assert spell(*again) == text


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        name, options = parse(text)
    except regard.UserError:
        return
    assert parse(spell(name, options)) == (name, options)


@given(st.text("se[]=,1a. -+eE_"))
def test_almost_arms_are_read_or_refused(text):
    test_any_text_is_read_or_refused.hypothesis.inner_test(text)


def test_parse():
    assert parse("se") == ("se", {})
    assert parse(" cbam [ squeeze = max , reduction=8 ] ") == ("cbam", {"squeeze": "max", "reduction": 8})
    assert parse("se[]") == ("se", {})
    values = parse("x[a=true,b=False,c=none,d=-1,e=0.5,f=1e-3,g=avg+max,h=...,i=channel-spatial,j=1.]")[1]
    assert values == {
        "a": True,
        "b": False,
        "c": None,
        "d": -1,
        "e": 0.5,
        "f": 0.001,
        "g": "avg+max",
        "h": "...",
        "i": "channel-spatial",
        "j": 1.0,
    }
    assert spell("cbam", {"squeeze": "max", "reduction": 8}) == "cbam[reduction=8,squeeze=max]"
    assert spell("se", {}) == "se"
    assert spell("se", {"bias": False}) == "se[bias=false]"


def test_parse_says_what_it_cannot_read():
    for text in ("", "se[", "se]", "se[a=1]b", "s e", "se[a=1\n]"):
        with refused("cannot read the arm .*: write a name, or name"):
            parse(text)
    for text in ("se[reduction]", "se[=8]", "se[reduction=]", "se[a=1,b]"):
        with refused("cannot read .* write option=value"):
            parse(text)
    with refused("gives 'a' twice"):
        parse("se[a=1,a=2]")


# --- create ----------------------------------------------------------------------------------------------------------


def test_names():
    assert {"se", "eca", "cbam", "coordinate"} <= set(regard.names())
    assert regard.names() == sorted(regard.names())
    assert {"se", "eca"} <= set(regard.names("channel"))
    assert "cbam" not in regard.names("channel")
    assert "cbam" in regard.names("channel and spatial")
    assert regard.names("no such category") == []


def test_info_is_a_card():
    known = regard.info("cbam")
    assert (known.name, known.category, known.place) == ("cbam", "channel and spatial", "branches")
    assert known.options["reduction"] == 16
    card = str(known)
    assert card.startswith("cbam: Weigh the channels by their averages and maxima")
    for slot in SLOTS:
        assert f"\n  {slot}:" in card
        assert known.slots[slot].splitlines()[0] in card
    assert "Options:  reduction=16, kernel_size=7, squeeze='both'" in card
    assert "slots" not in repr(known)


def test_create():
    module = regard.create("cbam", 32, reduction=8, dtype=torch.float64, device="meta")
    assert module.down.weight.shape == (4, 32)
    assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.float64, "meta")}


@pytest.mark.parametrize("channels", [0, -1, True, 1.5, 8.0, "8", None])
def test_channels_that_are_none(channels):
    with refused(f"se: channels is a positive whole number, got {channels!r}"):
        regard.create("se", channels)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sse", "no mechanism 'sse'; did you mean 'scse' or 'se'"),
        ("qqqq", "no mechanism 'qqqq': the names are .*cbam"),
        ("se[reducton=8]", "se has no option 'reducton'; did you mean 'reduction'"),
        ("se[zzz=8]", "se has no option 'zzz': its options are reduction, bias"),
        ("se[reduction=0]", "se: reduction is a positive whole number, got 0"),
        ("se[reduction=-4]", "reduction is a positive whole number, got -4"),
        ("se[reduction=half]", "reduction is a positive whole number, got 'half'"),
        ("se[reduction=2.5]", "reduction is a positive whole number, got 2.5"),
        ("se[reduction=true]", "reduction is a positive whole number, got True"),
        ("se[bias=no]", "se: bias is True or False, got 'no'"),
        ("se[bias=1]", "se: bias is True or False, got 1"),
        ("cbam[kernel_size=4]", "kernel_size is an odd number"),
        ("cbam[squeeze=mean]", "squeeze is 'both' or any of"),
        ("cbam[arrangement=serial]", "no arrangement 'serial'"),
        ("cbam[spatial_dims=4]", "spatial_dims is 1, 2 or 3, got 4"),
        ("eca[kernel_size=4]", "kernel_size is an odd number, 'adaptive' or 'released', got 4"),
        ("eca[kernel_size=true]", "kernel_size is an odd number, 'adaptive' or 'released', got True"),
        ("eca[kernel_size=released]", "is known for the widths of ResNet-50"),
        ("coordinate[min_width=0]", "coordinate: min_width is a positive whole number"),
        ("coordinate[spatial_dims=0]", "coordinate: spatial_dims is a positive whole number"),
    ],
)
def test_what_cannot_be_built(text, words):
    name, options = parse(text)
    with refused(words):
        regard.create(name, 64, **options)


# --- a user's own ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch):
    """A mechanism of the user's; what is registered here is forgotten after the test."""
    monkeypatch.setattr(registry, "registered", dict(registry.registered))

    @regard.register(
        "halve",
        category="channel",
        paper="-",
        place="blocks",
        parameters=lambda channels, *, factor=0.5: channels,
        identity=lambda module: nn.init.ones_(module.weight),
    )
    class Halve(nn.Module):
        """Weigh each channel by one learned number.

        Paper:    None.
        Formula:  y = w x,
                  w = 1 / 2
        """

        def __init__(self, channels, *, factor=0.5):
            super().__init__()
            self.weight = nn.Parameter(torch.full((channels, 1, 1), factor))

        def forward(self, x):
            return x * self.weight

    return Halve


def test_a_mechanism_of_the_users_own(own, tmp_path):
    assert "halve" in regard.names("channel")
    known = regard.info("halve")
    assert (known.factory, dict(known.options)) == (own, {"factor": 0.5})
    assert known.slots["Summary"] == "Weigh each channel by one learned number."
    assert known.slots["Formula"] == "y = w x,\nw = 1 / 2"
    assert "Cost:" in str(known)

    def host():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval()

    x = torch.randn(1, 3, 4, 4)
    model = host()
    attached = regard.attach(model, "halve", at="1", example=x, factor=0.25, start="paper")
    torch.testing.assert_close(model(x), host()(x) / 4)
    attached.save(tmp_path / "halve.safetensors")
    again = host()
    assert regard.load(again, tmp_path / "halve.safetensors").options == {"factor": 0.25}
    assert torch.equal(again(x), model(x))
    attached.remove()
    regard.attach(model, "halve", at="1", example=x)
    assert torch.equal(model(x), host()(x))


def test_a_factory_function_may_be_registered(own):
    def build(channels, *, bias=True):
        return nn.Conv2d(channels, channels, 1, bias=bias)

    regard.register("mix", category="channel", paper="-", place="stages", parameters=lambda channels: 0)(build)
    assert isinstance(regard.create("mix", 4, bias=False), nn.Conv2d)


def test_a_restless_mechanism_leaves_the_random_states_alone(own):
    class Restless(nn.Module):
        def __init__(self, channels, *, fails=False):
            super().__init__()
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            if fails:
                raise ArithmeticError("no luck")

        def forward(self, x):
            return x

    regard.register("restless", category="channel", paper="-", place="blocks", parameters=lambda channels: 0)(Restless)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    model = nn.Sequential(nn.Identity())
    regard.attach(model, "restless", at="0", example=torch.ones(1, 3, 4, 4))
    with pytest.raises(ArithmeticError):
        regard.attach(model, "restless", at="0", example=torch.ones(1, 3, 4, 4), label="more", fails=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002
    assert [attached.label for attached in regard.attached(model)] == ["restless"]


def test_names_are_taken_once(own):
    words = {"category": "channel", "paper": "-", "place": "branches", "parameters": lambda channels: 0}
    with refused("the name 'se' is taken by regard.mechanisms.se.SE: register this one under another name"):
        regard.register("se", **words)(own)
    assert regard.info("se").factory is not own
    # the same one again, as a notebook's cell does
    assert regard.register("halve", **words)(own) is own
    for name in ("Halve", "2halve", "my-halve", "", "halve "):
        with refused("a lower-case identifier"):
            regard.register(name, **words)
    with refused("other: the place is None or one of branches, .*, head, got 'anywhere'"):
        regard.register("other", **(words | {"place": "anywhere"}))


def test_every_place_is_a_known_word():
    assert {regard.info(name).place for name in regard.names()} <= {*PLACES, None}


# --- the authors' weights ---------------------------------------------------------------------------------------------


def authors_se(channels=64, reduction=16, dtype=torch.float32, bias=False):
    """The layout of the authors' state dict; the numbers are ours."""
    generator = torch.Generator().manual_seed(0)
    hidden = channels // reduction
    shapes = {"fc.0.weight": (hidden, channels), "fc.2.weight": (channels, hidden)}
    if bias:
        shapes |= {"fc.0.bias": (hidden,), "fc.2.bias": (channels,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def test_official_weights_say_their_own_sizes():
    theirs = authors_se(48, 4)
    se = regard.load_official("se_nobias", theirs)
    assert torch.equal(se.down.weight, theirs["fc.0.weight"])
    assert torch.equal(se.up.weight, theirs["fc.2.weight"])
    assert se.down.bias is None
    assert se.training
    assert regard.load_official("se", authors_se(bias=True)).down.bias is not None


def test_official_weights_of_a_parallel_model():
    theirs = authors_se()
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
    assert torch.equal(regard.load_official("se_nobias", wrapped).down.weight, theirs["fc.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_official_weights_keep_their_dtype(dtype):
    torch.set_default_dtype(torch.float64 if dtype == torch.float32 else torch.float32)
    try:
        se = regard.load_official("se_nobias", authors_se(dtype=dtype))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in se.parameters()} == {dtype}


def test_official_weights_are_copied():
    theirs = authors_se()
    se = regard.load_official("se_nobias", theirs)
    nn.init.zeros_(se.down.weight)
    assert theirs["fc.0.weight"].abs().sum() > 0


def test_official_weights_from_a_1x1_convolution():
    theirs = {name: tensor[..., None, None] for name, tensor in authors_se().items()}
    assert torch.equal(regard.load_official("se_nobias", theirs).up.weight, theirs["fc.2.weight"][..., 0, 0])


def test_official_weights_that_do_not_fit():
    theirs = authors_se()
    with refused("no official key 'se_nobia'; did you mean 'se_nobias'"):
        regard.load_official("se_nobia", theirs)
    with refused("no official key 'qqqqqq': .*coord_attention, .*eca, .*se, se_nobias"):
        regard.load_official("qqqqqq", theirs)
    with refused("the tensors lack 'fc.0.weight'; they have fc.2.weight"):
        regard.load_official("se_nobias", {"fc.2.weight": theirs["fc.2.weight"]})
    with refused("the tensors do not give up.weight"):
        regard.load_official("se_nobias", {"fc.0.weight": theirs["fc.0.weight"]})
    with refused("tensor 'fc.4.weight' has no place in se"):
        regard.load_official("se_nobias", theirs | {"fc.4.weight": torch.ones(3)})
    with refused(r"'fc.2.weight' has shape \(64, 5\), se with 64 channels needs \(64, 4\): check their arguments"):
        regard.load_official("se_nobias", theirs | {"fc.2.weight": torch.ones(64, 5)})
    with refused(r"'fc.2.weight' has shape \(4, 64\), se with 64 channels needs \(64, 4\)"):
        regard.load_official("se_nobias", theirs | {"fc.2.weight": theirs["fc.2.weight"].T})
    with refused(r"'fc.0.weight' has shape \(4, 64\), se with 64 channels needs \(8, 64\)"):
        regard.load_official("se_nobias", theirs, reduction=8)
    with refused(r"load_official\('se_nobias'\): "):
        regard.load_official("se_nobias", theirs | {"fc.0.weight": torch.ones(4)})
    with refused(r"load_official\('se_nobias'\): "):
        regard.load_official("se_nobias", theirs | {"fc.0.weight": torch.ones(0, 64)})
    with refused("neither the tensors nor the arguments tell the channels: pass channels="):
        regard.load_official("eca", {"conv.weight": torch.ones(1, 1, 3)})
    assert regard.load_official("eca", {"conv.weight": torch.ones(1, 1, 3)}, channels=64).conv.kernel_size == (3,)
    with refused("needs .1, 1, 5"):
        regard.load_official("eca", {"conv.weight": torch.ones(1, 1, 3)}, channels=64, k_size=5)


def test_load_official_refuses_arguments_the_authors_do_not_have():
    tensors = {
        name.replace("down", "fc.0").replace("up", "fc.2"): t
        for name, t in regard.create("se", 32).state_dict().items()
    }
    with pytest.raises(regard.UserError, match="unexpected keyword argument 'ratio'"):
        regard.load_official("se", tensors, ratio=4)


def test_load_official_reads_another_kernel_size_off_the_weights():
    ours = regard.create("cbam", 32, kernel_size=3)
    names = {"down": "ChannelGate.mlp.1", "up": "ChannelGate.mlp.3", "conv": "SpatialGate.spatial.conv"}
    names["norm"] = "SpatialGate.spatial.bn"
    tensors = {names[name.partition(".")[0]] + "." + name.partition(".")[2]: t for name, t in ours.state_dict().items()}
    x = torch.randn(2, 32, 5, 6)
    assert torch.equal(regard.load_official("cbam", tensors).eval()(x), ours.eval()(x))


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "inputs", "outputs"),
    [
        ("se", {}, [(2, 8, 5, 7)], [(2, 8, 5, 7)]),
        ("attention_gate", {"gating": 6}, [(2, 8, 5, 7), (2, 6, 3, 4)], [(2, 8, 5, 7)]),
        ("attention_gate", {}, [(2, 8, 5, 7), (2, 8, 3, 4)], [(2, 8, 5, 7)]),
        ("tam", {"frames": 4}, [(8, 8, 5, 7)], [(8, 8, 5, 7)]),
        ("layer_attention", {}, [(2, 4, 8, 5, 7)], [(2, 32, 5, 7)]),
        ("danet_head", {"classes": 3}, [(2, 8, 5, 7)], [(2, 3, 5, 7)] * 3),
    ],
)
def test_a_signature_stands_for_shapes(name, options, inputs, outputs):
    assert shapes(regard.info(name), 8, size=(5, 7), **options) == (inputs, outputs)
    made = example_inputs(regard.info(name), 8, size=(5, 7), **options)
    assert [tuple(x.shape) for x in made] == inputs


def test_the_formula_takes_what_was_not_given_from_the_defaults():
    se = regard.info("se")
    assert se.parameters(64) == se.parameters(64, reduction=16, bias=True)
    with refused("se has no option 'size'"):
        se.parameters(64, size=3)


def test_attention_is_a_known_word():
    with refused("attention is one of soft, hard, self, got 'warm'"):
        regard.register(
            "other", category="channel", paper="-", place=None, parameters=lambda channels: 0, attention="warm"
        )


# --- without torch ----------------------------------------------------------------------------------------------------


def test_the_cards_read_without_torch_are_what_is_registered():
    read = cards()
    assert sorted(read) == [
        name for name in regard.names() if regard.info(name).factory.__module__.startswith("regard")
    ]
    for name, card in read.items():
        known = regard.info(name)
        assert str(card) == str(known)
        for part in (
            "name",
            "category",
            "attention",
            "paper",
            "place",
            "signature",
            "spatial",
            "options",
            "exceptions",
        ):
            assert getattr(card, part) == getattr(known, part)
        assert card.parameters(256) == known.parameters(256)
        assert card.official.keys() == known.official.keys()


def test_the_repr_of_what_is_known_holds_no_addresses():
    assert not any(" at 0x" in repr(regard.info(name)) for name in regard.names())
