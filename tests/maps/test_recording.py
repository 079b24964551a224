"""Maps out of taps, and nothing left behind."""

import contextlib
import copy
import gc
import weakref

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules import module as everywhere
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import regard
from contract import ours
from regard.layers.tap import Tap, fade_in, taps

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_copies_in_threads_are_refused():
    model = nn.DataParallel(regard.create("se", 16))
    with regard.record(model) as maps:  # on a CPU it is the model itself
        model(torch.randn(2, 16, 4, 4))
    assert len(maps) == 1
    model.device_ids = [0, 1]
    with pytest.raises(regard.UserError, match=r"record model\.module"), regard.record(model):
        pass


def network(mechanism="cbam", **options):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    regard.attach(model, mechanism, example=X, start="paper", **options)
    return model


def hooks(model):
    return {name: list(module._forward_hooks) for name, module in model.named_modules()}


def test_maps_come_in_the_order_of_the_calls():
    model = network()
    with regard.record(model) as maps:
        assert maps == []
        model(X)
        first = len(maps)
        model(X)
    blocks = [f"layer{stage}.{block}.bn2.regard.cbam" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [seen.name for seen in maps] == 2 * [f"{block}.{tap}" for block in blocks for tap in ("gate", "mask")]
    assert first == 16
    assert (maps[0].kind, maps[1].kind) == ("channel", "spatial")
    assert (maps[0].value.shape, maps[1].value.shape) == ((2, 64, 1, 1), (2, 1, 8, 8))
    assert torch.equal(maps[0].value, maps[16].value)


def test_order_is_that_of_the_calls_not_of_the_definitions():
    cbam = regard.create("cbam", 8, arrangement="spatial-channel")
    with regard.record(cbam) as maps:
        cbam(torch.randn(1, 8, 5, 5))
    assert [seen.name for seen in maps] == ["mask", "gate"]


def test_a_map_is_what_was_applied():
    se = regard.create("se", 8)
    x = torch.randn(2, 8, 5, 5)
    for start in (lambda module: None, fade_in):
        start(se)
        if se.gate.strength is not None:
            nn.init.constant_(se.gate.strength, 0.5)
        with regard.record(se) as maps:
            y = se(x)
        torch.testing.assert_close(x * maps[0].value, y)
        assert maps[0].value.grad_fn is None
        assert not maps[0].value.requires_grad


def test_learning_is_not_disturbed():
    # on a map of one pixel, where nothing is squeezed, the ops round in another order
    images = torch.randn(2, 3, 64, 64)
    model = network("se").train()
    with regard.record(model) as maps:
        model(images).sum().backward()
    watched = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(maps) == 8
    model = network("se").train()
    model(images).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, watched[name]), name


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mechanism", ["se", "cbam", "non_local"])
def test_recomputation_under_checkpointing_is_no_second_call(mechanism, reentrant):
    block = nn.Sequential(nn.Conv2d(3, 16, 3), timm.layers.SEModule(16))
    regard.attach(block, mechanism, at="0", example=torch.randn(2, 3, 8, 8), start="paper")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    found = {}
    for checkpointed in (False, True):
        with regard.record(block) as maps:
            y = checkpoint(block, x, use_reentrant=reentrant) if checkpointed else block(x)
            y.square().sum().backward()
        found[checkpointed] = {seen.name: seen.value for seen in maps}
        assert len(maps) == len(found[checkpointed]) > 1
    assert found[False].keys() == found[True].keys()
    assert all(torch.equal(value, found[True][name]) for name, value in found[False].items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_gradient_mode(mode):
    model = network("coordinate")
    with mode(), regard.record(model) as maps:
        model(X)
    assert len(maps) == 16
    assert {seen.kind for seen in maps} == {"axis"}


def test_hooks_go_also_after_an_exception():
    model = network("eca")
    model.layer1[0].bn2.regard.eca.gate.register_forward_hook(lambda *_: None)
    before = hooks(model)
    with regard.record(model), regard.record(model):
        assert hooks(model) != before
        model(X)
    assert hooks(model) == before
    with pytest.raises(RuntimeError), regard.record(model) as maps:
        model.fc(model(X))
    assert hooks(model) == before
    assert len(maps) == 8


def test_two_watchers_see_the_same():
    model = network("eca")
    with regard.record(model) as outer:
        model(X)
        with regard.record(model.layer1) as inner:
            model(X)
        model(X)
    assert [len(outer), len(inner)] == [24, 2]
    assert inner[0].name == "0.bn2.regard.eca.gate"
    assert torch.equal(inner[0].value, outer[8].value)


def test_nothing_is_kept_when_nobody_records():
    se = regard.create("se", 8)
    seen = []

    def watch(module, args, value):
        seen.append(weakref.ref(value))

    se.gate.register_forward_hook(watch)
    with torch.no_grad():
        se(torch.randn(1, 8, 4, 4))
        with regard.record(se) as maps:
            se(torch.randn(1, 8, 4, 4))
        se(torch.randn(1, 8, 4, 4))
    gc.collect()
    assert len(maps) == 1
    assert [value() is not None for value in seen] == [False, False, False], "a map is detached from the pass"


def test_what_cannot_be_recorded():
    with pytest.raises(regard.UserError, match="no taps: attach a mechanism first"):  # noqa: SIM117
        with regard.record(nn.Linear(2, 2), every=False):
            pass
    model = network("se")
    compiled = torch.compile(model, backend="eager")
    for refused in (compiled, nn.Sequential(compiled)):
        with pytest.raises(regard.UserError, match=r"compiled.*look into the model itself"), regard.record(refused):
            pass
    model.layer1.compile(backend="eager")
    with pytest.raises(regard.UserError, match="compiled"), regard.record(model):
        pass


def test_tap_has_no_state_until_it_fades_in():
    tap = Tap("channel", low=-1.0, high=2.0)
    value = torch.rand(2, 8, 1, 1)
    assert tap(value) is value
    assert list(tap.state_dict()) == []
    assert (tap.kind, tap.low, tap.high, repr(tap)) == ("channel", -1.0, 2.0, "Tap(channel, -1..2)")
    tap.fade_in()
    assert list(tap.state_dict()) == ["strength"]
    assert tap.strength.shape == (1,)
    assert repr(tap) == "Tap(channel, -1..2, fades in)"
    assert torch.equal(tap(value), torch.ones_like(value))
    nn.init.ones_(tap.strength)
    torch.testing.assert_close(tap(value), value)
    nn.init.constant_(tap.strength, 0.25)
    torch.testing.assert_close(tap(value), 0.75 + 0.25 * value)


def test_a_tap_keeps_the_dtype_of_its_map():
    tap = Tap("channel")
    tap.fade_in()
    for dtype in (torch.bfloat16, torch.float64):
        assert tap(torch.rand(2, 8, 1, 1, dtype=dtype)).dtype == dtype


def test_taps_are_found_in_a_whole_network():
    model = network("cbam")
    found = dict(taps(model))
    assert len(found) == 16
    assert found["layer1.0.bn2.regard.cbam.mask"] is model.layer1[0].bn2.regard.cbam.mask
    assert not any("strength" in key for key in model.state_dict())
    fade_in(model)
    assert sum("strength" in key for key in model.state_dict()) == 16


@pytest.mark.parametrize("name", ["non_local", "qkv", "danet_position"])
def test_a_few_queries_are_the_rows_of_all(name):
    torch.manual_seed(0)
    module = regard.create(name, 16).eval()
    x = torch.randn(2, 16, 6, 8)
    places = [(0.5, 0.25), 11, (1.0, 1.0)]
    with torch.no_grad():
        plain = module(x)
        with regard.record(module) as whole:
            module(x)
        with regard.record(module, queries=places) as rows:
            y = module(x)
    assert module.weights.queries is None
    full, few = (next(seen.value for seen in maps if seen.kind == "position") for maps in (whole, rows))
    assert few.shape == (*full.shape[:2], 3, *full.shape[4:])
    for number, (row, column) in enumerate([(3, 2), divmod(11, 8), (5, 7)]):
        assert torch.allclose(few[:, :, number], full[:, :, row, column], atol=1e-6)
    assert torch.allclose(y, plain, atol=1e-6)


WAYS = {  # of being told of a module's calls
    "forward": lambda tap, tell: tap.register_forward_hook(tell),
    "forward-pre": lambda tap, tell: tap.register_forward_pre_hook(tell),
    "backward": lambda tap, tell: tap.register_full_backward_hook(tell),
    "backward-pre": lambda tap, tell: tap.register_full_backward_pre_hook(tell),
    "global forward": lambda tap, tell: everywhere.register_module_forward_hook(tell),
    "global forward-pre": lambda tap, tell: everywhere.register_module_forward_pre_hook(tell),
    "global backward": lambda tap, tell: everywhere.register_module_full_backward_hook(tell),
    "global backward-pre": lambda tap, tell: everywhere.register_module_full_backward_pre_hook(tell),
}


@pytest.mark.parametrize("name", regard.names())
def test_every_kind_of_hook_on_a_tap_is_called(name):
    subject = ours(name)
    module = subject.make()
    for label, tap in taps(module):
        for way, register in WAYS.items():
            if regard.info(name).attention == "hard" and "backward" in way:
                continue  # no gradient passes a choice
            told = []
            handle = register(tap, lambda seen, *_, told=told: told.append(seen))  # returns None: changes nothing
            inputs = [x.requires_grad_() if x.is_floating_point() else x for x in subject.inputs()]
            outputs = [y for y in tree_leaves(module(*inputs)) if y.requires_grad]
            sum(y.sum() for y in outputs).backward()
            handle.remove()
            assert any(seen is tap for seen in told), f"{label}: {way}"


def test_a_copy_that_is_called_inside_the_block_is_seen():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid()))
    regard.attach(net, "se", at="0", example=torch.randn(2, 3, 8, 8))
    with regard.record(net) as maps:
        copy.deepcopy(net)(torch.randn(2, 3, 8, 8))
    assert [found.name for found in maps] == ["0.regard.se.gate"]
    maps.clear()
    copy.deepcopy(net)(torch.randn(2, 3, 8, 8))
    assert maps == []


class Gated(nn.Module):
    def __init__(self, fails=False):
        super().__init__()
        self.gate, self.fails = nn.Conv2d(4, 4, 1), fails

    def forward(self, x):
        if self.fails:
            raise ValueError("as asked")
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Patient(nn.Module):
    """Goes on where a part of it fails."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Gated(fails=True), Gated()

    def forward(self, x):
        with contextlib.suppress(ValueError):
            self.first(x)
        y = self.second(x)
        return y * y.mean(1, keepdim=True).sigmoid()


def test_a_gate_is_named_after_the_module_that_runs():
    model, x = Patient(), torch.randn(2, 4, 8, 8)
    with regard.record(model) as maps:
        model(x)
        model.second(x[:1])  # a part of it, by itself
        copy.deepcopy(model)(x)
        Gated()(x)  # another network
        torch.relu(x) * x.mean(1, keepdim=True).sigmoid()  # no network
        model(x[:1])
    assert [(found.name, found.kind, len(found.value)) for found in maps] == [
        ("second", "channel", 2), ("", "spatial", 2), ("second", "channel", 1), ("second", "channel", 2),
        ("", "spatial", 2), ("second", "channel", 1), ("", "spatial", 1),
    ]  # fmt: skip


def test_a_call_that_fails_is_forgotten():
    model, x = nn.Sequential(Gated(), Gated()), torch.randn(2, 4, 8, 8)
    with regard.record(model) as maps:
        model[1].fails = True
        with pytest.raises(ValueError, match="as asked"):
            model(x)
        model[1].fails = False
        with regard.record(model[1]) as inner:
            model(x)
    assert [found.name for found in maps] == ["0", "0", "1"]
    assert [found.name for found in inner] == [""]


def test_nothing_hangs_on_the_modules_of_a_network_that_is_recorded():
    model = nn.Sequential(Gated(), nn.Sequential(Gated(), nn.ReLU()))
    with regard.record(model):
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules() if part is not model)
