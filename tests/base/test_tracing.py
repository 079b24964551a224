"""The one tracer: torch's functions by name, what is known of tensors, the rules, and what the others see of them."""

import gc

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, get_overridable_functions

from regard.base import functions
from regard.base.axes import went
from regard.base.functions import Call, tensors, word
from regard.base.noted import Noted
from regard.base.tracing import Tracer
from regard.insertion.channels import channels

X = torch.arange(24.0).view(2, 3, 4)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.add, "add"),
        (torch.Tensor.__iadd__, "add"),
        (torch.Tensor.__radd__, "add"),
        (torch.Tensor.add_, "add"),
        (torch.Tensor.__rsub__, "rsub"),
        (torch.Tensor.multiply, "mul"),
        (torch.true_divide, "div"),
        (torch.concatenate, "cat"),
        (torch.special.softmax, "softmax"),
        (torch.linalg.matmul, "matmul"),
        (torch.mm, "matmul"),
        (torch.moveaxis, "movedim"),
        (F.conv2d, "conv2d"),
        (torch.Tensor.mT.__get__, "mT"),
        (torch.Tensor.shape.__get__, "shape"),
        (torch.Tensor.__cuda_array_interface__.__get__, ""),  # a property in Python, which may have no name
    ],
)
def test_a_word_for_all_that_do_the_same(function, name):
    assert word(function).removesuffix("cuda_array_interface") == name  # from Python 3.13 on it has one


GROUPS = [name for name in dir(functions) if isinstance(getattr(functions, name), frozenset) and name != "NAMED"]


@pytest.mark.parametrize("group", [name for name in GROUPS if name != "POOLINGS"])
def test_every_word_is_one_of_torch(group):
    words = {word(function) for several in get_overridable_functions().values() for function in several}
    assert getattr(functions, group) - words <= {"stride", "upsample"}


def test_every_convolution_and_pooling_is_in_its_group():
    words = {word(function) for several in get_overridable_functions().values() for function in several}
    assert {name for name in words if name.startswith("conv")} - functions.CONVOLUTIONS <= {"conv_tbc"}
    quantized = {f"quantized_max_pool{rank}d" for rank in (1, 2, 3)}
    assert {name for name in words if "pool" in name} - functions.POOLINGS <= quantized


def test_operands_stand_in_their_order_whether_they_are_named_or_not():
    call = Call("bmm", torch.bmm, (), {"mat2": 2, "input": 1, "out": 3})
    assert call.operands == (1, 2)
    assert Call("matmul", torch.matmul, (1, 2), {}).operands == (1, 2)


def test_options_are_found_by_place_by_name_and_by_numpys_word():
    cases = [((X, 1), {}), ((X,), {"dim": 1}), ((X,), {"axis": 1})]
    assert [Call("softmax", torch.softmax, *case).option(1, "dim", 0) for case in cases] == [1, 1, 1]
    assert Call("softmax", torch.softmax, (X,), {}).option(1, "dim", 0) == 0


def test_tensors_in_trees():
    a, b, c = torch.zeros(3, 1)
    assert [id(x) for x in tensors({"p": [a, 1], "q": (b, {"r": c})})] == [id(a), id(b), id(c)]
    assert tensors(a)[0] is a
    assert tensors(None) == []


def test_what_is_known_of_a_tensor_goes_with_it():
    noted = Noted()
    kept, gone = torch.zeros(1), torch.zeros(1)
    noted.update([(kept, "kept"), (gone, "gone")])
    place = id(gone)
    noted[kept] = "changed"
    assert (noted[kept], noted.get(gone), gone in noted) == ("changed", "gone", True)
    del gone
    gc.collect()
    assert noted.by_id(place) is None
    assert (noted.get(X, "nothing"), noted.get("no tensor"), X in noted) == ("nothing", None, False)
    assert kept in noted


def test_rules_run_before_and_after_and_questions_are_not_seen():
    seen = []
    before = {"mul": lambda call: seen.append(("before", call.operands[0].sum().item()))}
    after = {"mul": lambda call: seen.append(("after", call.result.sum().item()))}
    with Tracer(before, after, {"mul": lambda call: seen.append(("then", call.word))}):
        x = torch.ones(2)
        assert x.shape == (2,)
        x *= 3
    assert seen == [("before", 2), ("after", 6), ("then", "mul")]


def test_no_other_mode_sees_what_rules_do():
    class Other(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen.append(word(function))
            return function(*args, **(kwargs or {}))

    rule = {"exp": lambda call: call.operands[0].sum()}
    with Other() as other, Tracer(rule, rule):
        X.exp()
    assert other.seen == ["exp"]


def test_a_tracer_leaves_from_below_others():
    first, second = [], []
    below = Tracer({}, {"exp": lambda call: first.append(call.word)})
    above = Tracer({}, {"exp": lambda call: second.append(call.word)})
    below.__enter__()
    with above:
        X.exp()
        below.__exit__(None, None, None)
        X.exp()
    X.exp()
    assert (first, second) == (["exp"], ["exp", "exp"])


MOVES = {
    "permute": lambda x: x.permute(2, 0, 1),
    "permute, a list": lambda x: torch.permute(x, [2, -3, 1]),
    "permute by name": lambda x: x.permute(dims=(2, 0, 1)),
    "transpose": lambda x: x.transpose(0, -1),
    "transpose by name": lambda x: torch.transpose(input=x, dim0=0, dim1=2),
    "transpose of others": lambda x: x.transpose(0, 1),
    "movedim": lambda x: torch.movedim(x, 2, 0),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "mT": lambda x: x.mT,
    "mH": lambda x: x.mH,
}


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("name", MOVES)
def test_where_an_axis_goes(name, axis):
    """All sides differ, so that the shape tells."""
    calls = []

    class Keep(Tracer):
        def follow(self, call):
            calls.append(call)

    with Keep({}):
        moved = MOVES[name](X)
    want = list(moved.shape).index(X.shape[axis])
    assert went(calls[0], axis) == (want, 3)
    assert channels(calls[0], axis, X.shape, moved.shape) == want


def test_an_axis_that_is_taken():
    call = Call("select", torch.select, (X, 1, 0), {})
    assert [went(call, axis) for axis in range(3)] == [(0, 2), (None, 2), (1, 2)]
    call = Call("getitem", torch.Tensor.__getitem__, (X, (slice(None), None)), {})
    assert [went(call, axis) for axis in range(3)] == [(0, 4), (2, 4), (3, 4)]


CHANNELS = {
    "a convolution": ("conv2d", (2, 3, 8, 8), None, (2, 5, 8, 8), 1),
    "a pooling": ("avg_pool2d", (2, 3, 8, 8), None, (2, 3, 4, 4), 1),
    "a layer": ("linear", (2, 64, 3), 1, (2, 64, 5), 2),
    "attention": ("matmul", (2, 64, 3), 2, (2, 64, 64), None),
    "attention of as many": ("matmul", (2, 64, 3), 2, (2, 64, 3), 2),
    "behind the pixels": ("reshape", (2, 8, 8, 3), 3, (2, 64, 3), 2),
    "before the pixels": ("flatten", (2, 3, 8, 8), 1, (2, 3, 64), 1),
    "joined": ("flatten", (2, 3, 8, 8), 1, (2, 192), None),
    "not known": ("relu", (2, 3, 8), None, (2, 3, 8), None),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_which_axis_holds_the_channels(name):
    function, before, axis, after, want = CHANNELS[name]
    assert channels(Call(function, None, (), {}), axis, torch.Size(before), torch.Size(after)) == want


def test_a_norm_over_the_last_axis_is_over_channels():
    shape = torch.Size((2, 8, 8, 3))
    for options, want in (({"normalized_shape": (3,)}, 3), ({"normalized_shape": (8, 3)}, 1)):
        assert channels(Call("layer_norm", F.layer_norm, (), options), 1, shape, shape) == want
