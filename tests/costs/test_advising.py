"""Advice, against what attaching really does and what memory really takes."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

import regard
from regard import UserError, advise
from regard.costs import advice_text, advising, warnings
from regard.costs.advice import Advice, Row
from regard.costs.costing import Cost
from regard.costs.examples import resized
from regard.costs.memory import peak_memory
from regard.costs.steps import training_step
from restless import everything, restless


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class Net(nn.Module):
    """Two residual blocks and a head; `answer` makes of the scores what it returns."""

    def __init__(self, answer=lambda net, scores: scores) -> None:
        super().__init__()
        self.answer = answer
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor):
        return self.answer(self, self.head(self.blocks(self.stem(x)).mean((2, 3))))


def ask(model=None, mechanisms=("se",), batch=2, side=12, **options):
    return advise(model or Net(), torch.randn(batch, 3, side, side), mechanisms=mechanisms, rounds=1, **options)


def test_a_row_says_what_attaching_does():
    x = torch.randn(2, 3, 12, 12)
    advice = advise(Net(), x, mechanisms=["se[reduction=4]", "bam", "sge"], rounds=2)
    assert {row.arm for row in advice.rows} == {"se[reduction=4]", "bam", "sge"}
    for row in advice.rows:
        net = Net()
        before = sum(p.numel() for p in net.parameters())
        name, options = regard.registry.spelling.parse(row.arm)
        if row.refused:
            with pytest.raises(UserError) as refused:
                regard.attach(net, name, example=x, **options)
            assert row.refused == str(refused.value)
            continue
        attached = regard.attach(net, name, example=x, **options)
        assert list(row.sites) == attached.sites
        assert row.cost.added_parameters == sum(p.numel() for p in net.parameters()) - before
        assert row.cost.parameters == row.cost.added_parameters + advice.none.parameters
        assert row.cost.macs == row.cost.added_macs + advice.none.macs
    macs = {row.arm: row.cost.added_macs for row in advice.rows if row.cost}
    assert macs["se[reduction=4]"] == 2 * (2 * 16 * 4)


def test_every_mechanism_that_can_be_attached_is_asked_and_nothing_changes():
    net, x = restless(), torch.randn(2, 3, 8, 8)
    before = everything(net), x.clone()
    seen = []
    advice = advise(net, x, at="0.0", rounds=1, progress=lambda row, done, total: seen.append((row.arm, done, total)))
    asked = [name for name in regard.names() if regard.info(name).place is not None]
    assert seen == [(name, place, len(asked)) for place, name in enumerate(asked, 1)]
    assert sorted(row.arm for row in advice.rows) == asked
    assert sum(row.cost is not None for row in advice.rows) > len(asked) / 2
    assert everything(net) == before[0]
    assert torch.equal(x, before[1])
    ordered = [row.slowdown[1] for row in advice.rows if row.cost]
    assert ordered == sorted(ordered)
    assert len(str(advice).splitlines()) > len(asked)


def test_a_network_with_gradients_keeps_them():
    net = Net()
    net(torch.randn(2, 3, 12, 12)).sum().backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    ask(net)
    assert all(torch.equal(p.grad, before[name]) for name, p in net.named_parameters())
    assert regard.attached(net) == []


# --- what is refused, and what is warned of ---------------------------------------------------------------------------


def test_a_site_that_is_called_twice_is_a_row_with_its_sentence():
    shared = nn.Conv2d(8, 8, 1)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.ReLU(), shared, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (row,) = ask(net, at="1").rows
    assert row.cost is None
    assert "repeated=True" in row.refused
    text = str(ask(net, at="1"))
    assert "Not possible here:" in text
    assert "repeated=True" in " ".join(text.split())
    assert ask(net, at="1", repeated=True).rows[0].cost


def test_single_pixels_and_single_values_are_warned_of():
    net = nn.Sequential(nn.Conv2d(3, 16, 12), nn.ReLU(), nn.Flatten())
    (row,) = ask(net, ["srm"], at="1").rows
    pixel, norm = row.warnings
    assert pixel.startswith("At '1' the map is a single pixel")
    assert norm.startswith("At '1' its batch norm sees one value per channel and image")
    assert ask(Net(), ["se[reduction=2]"]).rows[0].warnings == ()
    assert ask(Net(), ["triplet"]).rows[0].warnings == (), "its norms see many values"


def test_the_map_between_positions_is_warned_of_with_its_size(monkeypatch):
    size = 4 * (12 * 12) ** 2 * 4  # images, weights, bytes each
    monkeypatch.setattr(warnings, "LARGE", size - 1)
    (row,) = ask(Net(), ["danet_position"], batch=4).rows
    assert row.warnings == (
        "At 'blocks.1' the map between positions (144 x 144) takes up to 324 KiB where it is recorded or built.",
    )
    monkeypatch.setattr(warnings, "LARGE", size)
    assert ask(Net(), ["danet_position"], batch=4).rows[0].warnings == ()
    monkeypatch.setattr(warnings, "memory_of", lambda device: 4 * size - 4)
    assert len(ask(Net(), ["danet_position"], batch=4).rows[0].warnings) == 1, "a quarter of the device"


def test_a_promise_not_kept_outside_python_is_a_warning(monkeypatch):
    known = replace(
        regard.info("se"), exceptions=MappingProxyType({"torch.export": "it counts", "gradients": "it draws"})
    )
    monkeypatch.setattr(warnings, "info", lambda name: known)
    assert ask(Net(), ["se[reduction=2]"]).rows[0].warnings == ("No torch.export: it counts.",)


def test_what_fails_while_it_is_measured_is_a_row(monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out")

    measure = advising.costing.measure
    monkeypatch.setattr(
        advising.costing, "measure", lambda models, *a, **k: fail() if len(models) > 1 else measure(models, *a, **k)
    )
    (row,) = ask().rows
    assert row.refused.startswith("it does not fit into memory")


# --- training steps of any network ------------------------------------------------------------------------------------


def test_outputs_of_any_form_are_trained():
    nested = Net(lambda net, scores: {"out": scores, "aux": [scores * 2, torch.arange(3)]})
    advice = ask(nested)
    assert advice.none.train_ms
    assert advice.rows[0].cost.peak_ratio
    assert "Training" not in " ".join(advice.notes)


def test_where_training_needs_more_it_is_left_out_and_said():
    def answer(net, scores):
        if net.training:
            raise ValueError("targets should not be none")
        return [{"scores": scores}]

    advice = ask(Net(answer))
    (row,) = advice.rows
    assert (row.cost.train_ms, row.cost.peak_bytes, row.memory) == (None, None, None)
    assert row.slowdown == row.cost.infer_ratio
    assert "Training is not measured" in advice.notes[0]
    assert "targets should not be none" in advice.notes[0]
    assert "in Python, pass regard.advise a loss=" in advice.notes[0]
    assert " - " in str(advice)
    trained = ask(Net(answer), loss=lambda model, x: model.blocks(model.stem(x)).mean())
    assert trained.rows[0].cost.train_ms


def test_arguments_in_a_tuple_or_a_dict():
    class Two(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x + y)

    x = torch.randn(3, 3, 12, 12)
    for example in ((x, x), {"x": x, "y": x}):
        advice = advise(Two(), example, mechanisms=["se"], rounds=1, batch=6)
        assert advice.batch == 3
        assert advice.inputs == ((3, 3, 12, 12),) * 2
        assert advice.none.macs == advise(Net(), x, mechanisms=["se"], rounds=1).none.macs
        assert advice.predicted_bytes > advice.none.peak_bytes


# --- memory at a batch that does not fit ------------------------------------------------------------------------------


def test_predicted_memory_is_what_a_large_batch_takes():
    """With few images the peak falls on the gradients of the wide layer, with many on the maps."""
    net = nn.Sequential(Net(lambda net, scores: scores), nn.Linear(5, 20000), nn.Linear(20000, 9))
    x = torch.randn(4, 3, 24, 24)
    advice = advise(net, x, mechanisms=["cbam"], batch=40, rounds=1)
    large = resized(x, 40)
    measured = peak_memory(training_step(net, large), "cpu")
    assert advice.predicted_bytes == pytest.approx(measured, rel=0.02)
    assert measured > 1.5 * advice.none.peak_bytes
    naive = advice.none.peak_bytes * 10
    assert abs(naive - measured) > 0.1 * measured, "any guess would do"
    regard.attach(net, "cbam", example=x, seed=0)
    measured = peak_memory(training_step(net, large), "cpu")
    (row,) = advice.rows
    assert row.predicted_bytes == pytest.approx(measured, rel=0.02)
    assert row.memory == row.predicted_ratio == row.predicted_bytes / advice.predicted_bytes
    assert "batch 40" in str(advice)


def test_what_is_too_large_for_the_device_is_said(monkeypatch):
    monkeypatch.setattr(warnings, "memory_of", lambda device: 10**6)
    assert "the device has" not in str(ask())
    advice = advise(Net(), torch.randn(2, 3, 12, 12), mechanisms=["se"], batch=400, rounds=1)
    assert "At batch 400 a training step needs about" in advice.notes[0]
    assert "At batch 400" in advice.rows[0].warnings[-1]


# --- limits and how it reads ------------------------------------------------------------------------------------------


def made(arm, low, median, high, memory=1.0, **other):
    cost = Cost(1000, 10, 5000, 50, (1, 1, 1), (2, 2, 2), (1, 1, 1), (low, median, high), 100, memory)
    return Row(arm, ("a",), cost, **other)


def advice_of(*rows, **limits):
    none = made("none", 1, 1, 1).cost
    return Advice("net", "cpu", ((2, 3, 8, 8),), 2, none, rows, (), (), **limits)


def test_limits_sort_out_what_is_certainly_beyond_them():
    rows = [
        made("fast", 1.01, 1.02, 1.03), made("near", 1.03, 1.04, 1.06), made("edge", 1.04, 1.08, 1.2),
        made("slow", 1.06, 1.08, 1.1), made("fat", 1.0, 1.0, 1.0, memory=1.2), Row("no", refused="it cannot"),
    ]  # fmt: skip
    advice = advice_of(*rows, max_slowdown=1.05, max_memory=1.1)
    assert [row.arm for row in advice.passing] == ["fast", "near", "edge"]
    assert [row.arm for row in advice.unclear] == ["near", "edge"]
    assert [row.arm for row in advice.over] == ["slow", "fat"]
    text = str(advice)
    assert "do not tell whether these stay within 1.05: near, edge." in text
    assert "Beyond the limits (slower x 1.05 and memory x 1.1): slow, fat." in text
    assert "? 1.04" in text
    assert "? 1.02" not in text
    free = advice_of(*rows)
    assert len(free.passing) == 5
    assert not free.over + free.unclear
    assert "No mechanism is within the limits." in str(advice_of(rows[3], max_slowdown=1.05))
    assert "No mechanism can stand here." in str(advice_of(rows[-1]))


def test_the_table_is_aligned_and_fits_into_100_columns():
    long = "cbam[arrangement=parallel,reduction=8,squeeze=max]"
    warned = made(long, 1, 1.234, 2, warnings=("a word " * 40 + ".",))
    text = str(advice_of(made("se", 1, 1, 1), warned, Row("tam", refused="it cannot " * 30)))
    assert max(map(len, text.splitlines())) <= 100
    header = next(line for line in text.splitlines() if line.startswith("mechanism"))
    ends = [i for i, c in enumerate(header + " ") if c == " " and header[i - 1] != " "]
    row = next(line for line in text.splitlines() if line.startswith("se "))
    assert len(row) == len(header) == ends[-1]
    assert "1.23 (1.00-2.00)" in text
    assert "+10  1.0%" in row
    assert long in text.splitlines()


def test_json_holds_everything():
    advice = ask(Net(), ["se", "tam"], max_slowdown=100.0)
    found = json.loads(json.dumps(advice.to_json()))
    assert found["passing"] == ["se"]
    assert found["rows"][0]["cost"]["added_parameters"] == advice.rows[0].cost.added_parameters
    assert found["rows"][1]["refused"] == advice.rows[1].refused
    assert found["steps"][1]["shape"] == [2, 16, 12, 12]


def test_a_restless_machine_is_said(monkeypatch):
    costs = [replace(made("none", *spread).cost, train_ms=spread) for spread in [(1, 1, 1.04), (2, 2, 3), (3, 4, 5)]]
    monkeypatch.setattr(advising, "allocator_hint", lambda: "set the allocator")
    notes = advising.notes_of(costs, torch.device("cpu"), None, None, True)
    assert notes == [
        "The machine is busy, stop other programs: timings spread by up to 50% (2 of 3 mechanisms).",
        "Set MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 for steadier timings.",
    ]
    assert max(map(len, notes)) <= advice_text.WIDTH - 2, "a line each"
    monkeypatch.setattr(advising, "allocator_hint", lambda: None)
    assert advising.notes_of(costs[:1], torch.device("cpu"), None, None, True) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mechanisms": ["sse"]}, "no mechanism 'sse'"),
        ({"mechanisms": "se"}, r"pass \['se'\]"),
        ({"mechanisms": ["se[redction=2]"]}, "no option 'redction'"),
        ({"mechanisms": ["cbam[reduction=0]"]}, "reduction is a positive whole number"),
        ({"mechanisms": ["glimpse"]}, "glimpse cannot be attached"),
        ({"budget": -3.0}, "budget is a number of seconds above 0, got -3.0"),
        ({"budget": 0.0}, "budget is a number of seconds above 0"),
        ({"max_slowdown": 0.0}, "max_slowdown is a factor"),
        ({"max_memory": -1.0}, "max_memory is a factor"),
        ({"batch": 0}, "batch is at least 1"),
        ({"rounds": 0}, "rounds is at least 1"),
        ({"at": "nowhere"}, "nowhere"),
        ({"layout": "sideways"}, "layout"),
    ],
)
def test_mistakes_are_said_in_a_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        advise(Net(), torch.randn(2, 3, 12, 12), **options)
