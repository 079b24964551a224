"""A diagram shows what a module really computes, and its chart says all of it."""

import copy
import re
from collections import Counter

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import diagram
import regard
from regard import ops
from regard.layers.tap import Tap

LETTERS = {3: "B", 64: "C", 10: "H", 14: "W"}


def maps(*shape):
    return torch.randn(shape or (3, 64, 10, 14))


def trace(module, *inputs):
    return diagram.trace(module, inputs or (maps(),), LETTERS)


def steps(flow):
    return str(flow).split("; ")


def node(flow, words):
    (found,) = [node for node in flow.nodes if str(node) == words]
    return found


def above(flow, words):
    return [str(source) for source in node(flow, words).sources]


class Says(nn.Module):
    """A module from a function and the modules that it needs."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.function(self, x)


class NonLocal(nn.Module):
    def __init__(self, fused=False):
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(64, 16, 1) for _ in range(3))
        self.weights = Tap("position", rest=None)
        self.out = nn.Conv2d(16, 64, 1)
        self.fused = fused

    def forward(self, x):
        q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = self.weights(torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1)) @ v
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta, self.phi, self.psi = nn.Conv2d(64, 8, 1), nn.Conv2d(32, 8, 1), nn.Conv2d(8, 1, 1)
        self.mask = Tap("spatial")

    def forward(self, skip, gating):
        gating = F.interpolate(self.phi(gating), size=skip.shape[2:])
        return ops.gate(skip, self.mask(torch.sigmoid(self.psi(F.relu(self.theta(skip) + gating)))))


class Recurrent(nn.Module):
    """Looks several times, each time elsewhere, with branches of Python and random steps."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks
        self.see, self.where, self.core, self.go = (
            nn.Linear(64, 32),
            nn.Linear(2, 32),
            nn.GRUCell(32, 32),
            nn.Linear(32, 2),
        )
        self.path = Tap("path", rest=None)

    def forward(self, x):
        memory, place, places = x.new_zeros(len(x), 32), torch.zeros(len(x), 2), []
        for _ in range(self.looks):
            seen = F.grid_sample(x, place[:, None, None], align_corners=False).flatten(1)
            memory = self.core(F.relu(self.see(seen) + self.where(place)), memory)
            place = torch.tanh(self.go(memory)) + 0.1 * torch.randn(len(x), 2)
            places.append(place)
        self.path(torch.stack(places, 1))
        return memory


DEEP = [torchvision.models.resnet.BasicBlock(64, 64) for _ in range(16)]
SAMPLES = {
    **{name: (lambda name=name: (regard.create(name, 64), (maps(),))) for name in ("se", "eca", "cbam", "coordinate")},
    "parallel": lambda: (regard.create("cbam", 64, arrangement="parallel"), (maps(),)),
    "non_local": lambda: (NonLocal(), (maps(),)),
    "gate": lambda: (Gate(), (maps(), maps(3, 32, 5, 7))),
    "recurrent": lambda: (Recurrent(6), (maps(),)),
    "deep": lambda: (nn.Sequential(*DEEP), (maps(2, 64, 8, 8),)),
}


def test_a_gate_is_told_step_by_step():
    flow = trace(regard.create("se", 64))
    assert steps(flow) == [
        "x", "mean over H, W", "Linear 64 → 4, relu", "Linear 4 → 64, sigmoid", "gate", "times gate", "y",
    ]  # fmt: skip
    assert above(flow, "times gate") == ["x", "gate"]
    assert [node.kind for node in flow.nodes] == ["input", "step", "layer", "layer", "tap", "step", "output"]
    assert [node.shape for node in flow.nodes] == [
        "(B, C, H, W)", "(B, C, 1, 1)", "(B, 4)", "(B, C)", "(B, C, 1, 1)", "(B, C, H, W)", "(B, C, H, W)",
    ]  # fmt: skip


def test_both_gates_of_cbam():
    flow = trace(regard.create("cbam", 64))
    assert above(flow, "concat") == ["times gate, max over C", "times gate, mean over C"]
    assert above(flow, "times gate, max over C") == ["x", "gate"]
    assert above(flow, "times gate and mask") == ["x", "gate", "mask"]
    assert above(flow, "stack") == ["mean over H, W", "max over H, W"]
    assert above(flow, "sum over the 2, sigmoid") == ["Linear 4 → 64"]
    assert node(flow, "Conv 7×7, 2 → 1, batch norm, sigmoid").shape == "(B, 1, H, W)"


def test_a_part_is_named_on_its_arrow():
    notes = [node for node in trace(regard.create("coordinate", 64)).nodes if node.kind == "note"]
    assert [str(note) for note in notes] == ["(B, 8, H)", "(B, 8, W)"]


def test_attention_between_positions():
    flow = trace(NonLocal())
    assert node(flow, "matrix product over 16, ÷ 4, softmax over HW").shape == "(B, HW, HW)"
    assert above(flow, "weights") == ["matrix product over 16, ÷ 4, softmax over HW"]
    assert above(flow, "matrix product over HW") == ["weights", "Conv 1×1, 64 → 16"]
    assert above(flow, "add") == ["x", "Conv 1×1, 16 → 64"]
    fused = trace(NonLocal(fused=True))
    assert above(fused, "softmax(query · key) · value") == ["Conv 1×1, 64 → 16"] * 3


@pytest.mark.parametrize("watched", [True, False])
def test_the_op_for_attention_shows_its_weights_where_they_can_be_watched(watched):
    def attend(self, x):
        heads = x.unflatten(1, (8, 8))
        return ops.attend(heads, heads, heads, watch=self.weights if watched else None).flatten(1, 2)

    flow = trace(Says(attend, weights=Tap("position", rest=None)))
    assert ("weights" in steps(flow)) == watched
    if watched:
        assert node(flow, "weights").shape == "(B, 8, H, W, H, W)"


def test_two_inputs_keep_their_names():
    flow = trace(Gate(), maps(), maps(3, 32, 5, 7))
    assert [str(node) for node in flow.nodes if node.kind == "input"] == ["skip", "gating"]
    assert node(flow, "gating").shape == "(B, 32, H/2, W/2)"
    assert above(flow, "times mask") == ["skip", "mask"]


def test_several_outputs_keep_their_names():
    flow = trace(Says(lambda self, x: {"map": x.mean(1), "pair": (x.exp(), x.abs())}))
    assert [str(node) for node in flow.nodes if node.kind == "output"] == ["map", "y2", "y3"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda self, x: 1 - x, "1 − it"),
        (lambda self, x: x / 2, "÷ 2"),
        (lambda self, x: x**2, "square"),
        (lambda self, x: x * x, "square"),
        (lambda self, x: x * self.weight, "× weight"),
        (lambda self, x: x + torch.randn_like(x), "+ noise"),
        (lambda self, x: x / (x.shape[2] * x.shape[3] - 1), "÷ (HW − 1)"),
        (lambda self, x: torch.stack([x.exp(), x.tanh()]).sum(0), "add"),
        (lambda self, x: x.exp() + x.tanh() + x.sin(), "add"),
        (lambda self, x: torch.maximum(x.exp(), x.sin()), "larger of both"),
        (lambda self, x: torch.max(x.exp(), x.sin()), "larger of both"),
        (lambda self, x: x.max(1).values, "max over C"),
        (lambda self, x: x.max(1).indices, "max over C"),
        (lambda self, x: x.std((2, 3)), "std over H, W"),
        (lambda self, x: F.normalize(x), "unit length over C"),
        (lambda self, x: F.adaptive_avg_pool2d(x, 1), "mean over H, W"),
        (lambda self, x: F.max_pool2d(x, 2), "max pool 2×2"),
        (lambda self, x: x.view(3 * 8, 8, 10, 14).mean(1), "mean over the 8"),
        (lambda self, x: torch.einsum("bchw,bcgw->bhwg", x, x), "matrix product over C"),
    ],
)
def test_functions_in_words(function, words):
    module = Says(function, weight=nn.Parameter(torch.ones(64, 1, 1)))
    assert steps(trace(module))[-2] == words


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(64, 64, 3, padding=4, dilation=4, groups=64), "Conv 3×3, 64 → 64, dilation 4×4, depthwise"),
        (nn.AdaptiveMaxPool2d(1), "max over H, W"),
        (nn.AdaptiveAvgPool2d((4, 5)), "mean pool to 4×5"),
        (nn.GroupNorm(8, 64), "group norm, 8 groups"),
        (nn.Softmax(dim=1), "softmax over C"),
        (nn.ReLU(), "relu"),
        (nn.PixelShuffle(2), "pixel shuffle"),
        (nn.Sequential(nn.Dropout(), nn.Sigmoid(), nn.Identity()), "sigmoid"),
    ],
)
def test_layers_in_words(module, words):
    assert steps(trace(module))[1:] == [words, "y"]


def test_shuffled_channels_are_said_and_moved_axes_are_not():
    shuffle = Says(lambda self, x: x.exp().view(3, 2, 32, 10, 14).transpose(1, 2).reshape(x.shape).sin())
    assert "reordered" in [str(node) for node in trace(shuffle).nodes]
    move = Says(lambda self, x: x.exp().view(3, 8, 8, 10 * 14).transpose(2, 3).tanh().transpose(2, 3).reshape(x.shape))
    assert "reordered" not in [str(node) for node in trace(move).nodes]


def test_the_order_of_a_difference_is_said():
    flow = trace(Says(lambda self, x: x.exp() - x.sin()))
    assert [str(source) for source in node(flow, "subtract").sources] == ["exp", "subtracted"]
    assert above(flow, "subtracted") == ["sin"]


def test_small_steps_share_a_box_only_where_nothing_branches_off():
    assert steps(trace(Says(lambda self, x: x.exp().tanh() * x))) == ["x", "exp, tanh", "multiply", "y"]
    assert steps(trace(Says(lambda self, x: (e := x.exp()).tanh() * e))) == ["x", "exp", "tanh", "multiply", "y"]


def test_what_leads_nowhere_is_not_drawn():
    assert steps(trace(Says(lambda self, x: (x.exp().cumsum(1), x.tanh())[1]))) == ["x", "tanh", "y"]


def test_what_torch_cannot_follow_is_one_box():
    class Roots(nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.cbrt(x.exp().numpy()))

    flow = trace(nn.Sequential(Roots(), nn.ReLU()))
    assert steps(flow) == ["input", "Roots, relu", "y"]
    assert above(flow, "Roots, relu") == ["input"]


def test_every_module_that_runs_is_drawn_once():
    """Against the modules that forward hooks of torch count."""
    network = torchvision.models.resnet.Bottleneck(64, 16)
    called = []
    leaves = [child for child in network.modules() if not child._modules]
    hooks = [child.register_forward_hook(lambda module, *_: called.append(module)) for child in leaves]
    network.eval()(maps())
    for hook in hooks:
        hook.remove()
    rows = [text for node in trace(network).nodes for text, _ in node.rows]
    for start, kind in (("Conv", nn.Conv2d), ("batch norm", nn.BatchNorm2d), ("relu", nn.ReLU)):
        assert sum(row.startswith(start) for row in rows) == sum(isinstance(module, kind) for module in called)


@pytest.mark.parametrize(
    "name", ["se", "eca", "cbam", "gc", "nl", "lambda", "bottleneck", "coord", "splat", "sk", "ecam"]
)
def test_modules_of_others(name):
    options = {"feat_size": (10, 14)} if name == "bottleneck" else {}
    flow = trace(timm.layers.create_attn(name, 64, **options))
    assert flow.nodes[0].kind == "input"
    assert flow.nodes[-1].shape == "(B, C, H, W)"
    check(flow)


def test_a_loop_is_drawn_once_where_its_rounds_would_be_too_many():
    few, many = trace(Recurrent(2)), trace(Recurrent(20))
    assert max(node.rounds for node in few.nodes) == 1
    assert node(many, "GRU cell").rounds == 20
    assert len(many.nodes) < len(few.nodes)
    assert "from the round before" in [str(source) for source in node(many, "GRU cell").sources]
    assert "path" in steps(many)


def test_child_modules_are_one_box_where_their_insides_would_be_too_many():
    flow = trace(nn.Sequential(*DEEP), maps(2, 64, 8, 8))
    assert len(flow.nodes) <= 40
    assert steps(flow).count("BasicBlock") == 16
    gates = nn.ModuleList(Says(lambda self, x: self.se(x) + x, se=regard.create("se", 64)) for _ in range(8))
    boxes = [node for node in trace(nn.Sequential(*gates)).nodes if ("SE", "0.se") in node.rows]
    assert boxes[0].rows[-1] == ("", "map 0.se.gate")


def test_tracing_leaves_no_trace():
    module = nn.Sequential(nn.BatchNorm2d(64), regard.create("cbam", 64)).train()
    before, call = copy.deepcopy(module.state_dict()), ops.dispatch.Op.__call__
    x, random = maps(), torch.get_rng_state()
    trace(module, x)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(child.training for child in module.modules())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert ops.dispatch.Op.__call__ is call


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_same_chart_every_time(sample):
    module, inputs = SAMPLES[sample]()
    first, second = (diagram.draw(diagram.trace(module, inputs, LETTERS), "t") for _ in range(2))
    again, _ = SAMPLES[sample]()
    assert first == second == diagram.draw(diagram.trace(again, inputs, LETTERS), "t")


def test_a_branch_taken_by_chance_is_the_same_every_time():
    module = Says(lambda self, x: x.exp() if torch.rand(()) < 0.5 else x.sin())
    assert len({str(trace(module)) for _ in range(16)}) == 1


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_chart_says_all_of_a_flow(sample):
    module, inputs = SAMPLES[sample]()
    check(diagram.trace(module, inputs, LETTERS))


@settings(max_examples=40)
@given(st.data())
def test_any_graph_is_written(data):
    count = data.draw(st.integers(1, 24))
    nodes = [diagram.Node("input", [("x", "")], "(B, C)", [])]
    for number in range(count):
        sources = data.draw(st.lists(st.sampled_from(nodes), unique=True, max_size=4))
        kind = data.draw(st.sampled_from(["step", "layer", "tap", "note"]))
        words = data.draw(
            st.sampled_from(["a", "Conv 3×3, 256 → 256, dilation 2×2, 32 groups", 'say "<b>#1"', "→×÷−+ = mW%"])
        )
        nodes.append(diagram.Node(kind, [(words, "name")] * data.draw(st.integers(1, 3)), f"({number})", sources))
    check(diagram.Flow([*nodes, diagram.Node("output", [("y", "")], "(B)", nodes[-2:])]))


BOX = re.compile(r'    (n\d+)(?:\["(.*)"\]|\(\["(.*)"\]\)):::(\w+)')
ARROW = re.compile(r'    (n\d+) -->(?:\|"(.*)"\|)? (n\d+)')


def check(flow):
    """The chart, read back: every box with its words and its kind, every arrow, and a style for each kind."""
    text = diagram.draw(flow, "What it does")
    boxes = {name: (square or round, kind) for name, square, round, kind in BOX.findall(text)}
    drawn = [node for node in flow.nodes if node.kind != "note" or not node.sources]
    name = dict(zip(drawn, boxes, strict=True))
    assert {kind for _, kind in boxes.values()} == set(re.findall(r"classDef (\w+) ", text))
    arrows = Counter((start, plain(words), end) for start, words, end in ARROW.findall(text))
    assert arrows == Counter((name[start], words, name[node]) for node in drawn for start, words in ways(node))
    for node in drawn:
        label, kind = boxes[name[node]]
        assert kind == node.kind
        assert set(re.findall("<[^>]*>", label)) <= {"<br>", "<small>", "</small>"}
        assert '"' not in label
        assert all(words in plain(label) for words, _ in node.rows)
        if node.kind in ("tap", "output"):
            assert node.shape in plain(label)
    assert f"accDescr: {flow}" in text


def ways(node, words=""):
    """Where the arrows of a node come from, and the notes on them."""
    for source in node.sources:
        if source.kind == "note" and source.sources:
            yield from ways(source, f"{source}, {words}" if words else str(source))
        else:
            yield source, words


def plain(label):
    return re.sub(r"#(\d+);", lambda code: chr(int(code[1])), re.sub("<[^>]*>", " ", label))
