"""The benchmark: only what is right gets a time, and what is known comes out of every measurement."""

import importlib
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import regard
import tiny
from regard import ops
from regard.base.errors import UserError
from regard.cli import main as cli
from regard.cli.program import COMMANDS
from regard.costs import agreement, other_libraries, support
from regard.costs import bench as benchmark
from regard.costs.bench import bench
from regard.costs.contest import contest
from regard.costs.contestants import Contestant, Setting, inputs_of, lower_bound
from regard.costs.goals import verdict
from regard.costs.growth import growth
from regard.costs.other_libraries import OTHER_LIBRARIES
from regard.costs.speed import Speed
from regard.costs.speed_picture import picture
from regard.costs.timing import ALLOCATOR
from regard.ops.dispatch import Op

SETTING = Setting("se", (2, 8, 6, 6), "float32", "contiguous", "cpu", 1, "training")
SPREAD = [float, float, float]
# of every record: a type, a list of types element by element, or several that may stand there
SCHEMA = {
    "name": str, "shape": list, "dtype": str, "layout": str, "device": str, "threads": int, "pass": str,
    "source": str, "implementation": (str, None), "compiled": bool, "seconds": (SPREAD, None),
    "over_floor": (SPREAD, None), "of_copy_bandwidth": (float, None), "maps_kept": (float, None),
    "peak_maps": (float, None), "agreement": (dict, None), "refused": (str, None), "floor_seconds": SPREAD,
    "copy_gb_per_second": float,
}  # fmt: skip
AGREEMENT = {"images": int, "worst": str, "deviation": float, "tolerance": float, "agrees": bool}
SLOPE = {key: SCHEMA[key] for key in list(SCHEMA)[:9]} | {"axis": str, "sizes": list, "seconds": list, "slope": SPREAD}


def fits(value, wanted):
    if isinstance(wanted, tuple):
        return any(fits(value, one) for one in wanted)
    if isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    if isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(fits(value[key], one) for key, one in wanted.items())
    return value is None if wanted is None else type(value) is wanted


@pytest.fixture
def here(monkeypatch):
    """Measure in this process."""
    monkeypatch.setattr(benchmark, "measure_elsewhere", benchmark.measure)
    yield
    torch.set_num_threads(threads)


threads = torch.get_num_threads()


@pytest.fixture
def scale(monkeypatch, tmp_path):
    """An op `scale`, x * 3, whose fast file is written by the test."""
    package = tmp_path / "scale"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "reference.py").write_text("def run(x): return x * 3\n")
    (package / "cases.py").write_text(
        "import torch\ndef cases(): yield 'plain', lambda dtype, _: (torch.arange(1, 41, dtype=dtype).view(2, 4, 5),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def add(body):
        (package / "cpu.py").write_text(f"def why_not(x): return None\ndef run(x): {body}\n")
        importlib.invalidate_caches()

        def scale(x):
            """Tolerance: float32 1e-6, bfloat16 1e-2"""

        monkeypatch.setitem(ops.OPS, "scale", Op("scale", importlib.import_module("scale.reference").run))
        monkeypatch.setattr(ops, "scale", scale, False)

    yield add
    for name in [name for name in sys.modules if name.partition(".")[0] == "scale"]:
        del sys.modules[name]


def contests(pass_, **options):
    names = {"names": ["scale:plain"], "impls": ["cpu", "reference"], "passes": [pass_], "rounds": 2, "threads": [1]}
    return bench(**(names | options)).records


# ---- only what is right


@pytest.mark.parametrize(
    ("body", "inference", "training"),
    [
        ("return x * 3", None, None),
        ("return x + x + x", None, None),
        ("return x * 3.00001", "wrong: output 0", "wrong: "),
        ("return x * x.new_tensor(float('nan'))", "wrong: output 0 is off by nan", "wrong: "),
        ("return x + (2 * x).detach()", None, "wrong: input 0's gradient is off by 7e-01"),
        ("raise RuntimeError('no luck')", "does not run: RuntimeError: no luck", "does not run"),
    ],
)
def test_what_is_wrong_gets_no_time(here, scale, body, inference, training):
    scale(body)
    for pass_, refusal in (("inference", inference), ("training", training)):
        fast, reference = contests(pass_)
        assert (fast["refused"] is None) == (fast["seconds"] is not None) == (refusal is None)
        assert (fast["refused"] or "").startswith(refusal or "")
        assert (reference["refused"], reference["agreement"]["deviation"]) == (None, pytest.approx(0, abs=1e-7))


def test_a_wrong_one_ends_the_command_with_status_1(here, scale, capsys):
    scale("return x * 2")
    words = ["bench", "scale:plain", "--impl", "cpu", "--rounds", "1", "--threads", "1", "--pass", "inference"]
    assert cli.run(words) == 1
    out = capsys.readouterr().out
    assert "scale:plain 2x4x5  wrong" in out
    assert "scale:plain, cpu: wrong: output 0 is off by 3e-01" in out
    scale("return x * 3")
    sys.modules.pop("scale.cpu")
    assert cli.run(words) == 0


@pytest.mark.parametrize(
    ("off", "there", "elsewhere", "agrees"),
    [
        (9e-5, 0.0, 0.0, True),
        (2e-4, 0.0, 0.0, False),
        (2e-4, 1e-4, 0.0, True),
        (2e-4, 0.0, 1e-4, True),
        (9e-4, 1e-4, 1e-4, False),
        (0.6, 0.0, 9.0, False),
        (0.6, 0.2, 0.0, True),
    ],
)
def test_rounding_of_the_reference_makes_room(monkeypatch, off, there, elsewhere, agrees):
    monkeypatch.setattr(agreement, "outcome", lambda *_: {"weight b's gradient": torch.tensor(1 + off)})
    exact = {"weight b's gradient": torch.tensor(1.0, dtype=torch.float64)}
    own = {"weight a's gradient": elsewhere, "weight b's gradient": there, "output 0": 9.0}
    found = agreement.agreement(SETTING, Contestant("ours", "reference"), SETTING, exact, own)
    assert found["agrees"] is agrees
    assert found["deviation"] == pytest.approx(off, rel=1e-2)


def test_a_gradient_that_is_0_but_for_rounding_is_held_against_the_others():
    exact = {"weight a's gradient": torch.tensor([0.0, 1e-17]), "weight b's gradient": torch.tensor([100.0])}
    found = {"weight a's gradient": torch.tensor([1e-5, 0.0]), "weight b's gradient": torch.tensor([100.0])}
    assert agreement.deviations(found, exact) == pytest.approx({"weight a's gradient": 1e-5, "weight b's gradient": 0})
    assert agreement.deviations({}, exact) == dict.fromkeys(exact, math.inf)


def test_what_starts_at_zero_is_moved_before_it_is_compared():
    """Else SRM's gate would be constant, and agreement would say nothing."""
    module = Contestant("ours", "reference").module(Setting("srm", *list(vars(SETTING).values())[1:]))
    assert all(parameter.abs().min() > 0 for parameter in module.parameters())


# ---- what is measured


class Sleeper(nn.Module):
    """Takes a millisecond for each image."""

    def forward(self, x):
        time.sleep(1e-3 * len(x))
        return x * 1


@pytest.mark.usefixtures("clock")
def test_time_over_the_lower_bound_is_that_of_the_same_rounds(monkeypatch):
    monkeypatch.setitem(OTHER_LIBRARIES, "se", {"sleepers": lambda channels: Sleeper()})
    (record,) = contest(SETTING, [Contestant("sleepers", None)], rounds=5)
    assert record["seconds"][1] == pytest.approx(0.002, rel=1e-3)
    assert record["over_floor"][1] == pytest.approx(record["seconds"][1] / record["floor_seconds"][1])
    copied = 7 * 4 * math.prod(SETTING.shape) / record["seconds"][1] / record["copy_gb_per_second"] / 1e9
    assert record["of_copy_bandwidth"] == pytest.approx(copied)


def test_the_lower_bound_reads_and_writes_what_it_says():
    x = torch.randn(2, 3, 4, requires_grad=True)
    total, copy = lower_bound(x, training=False)()
    assert torch.equal(copy, x)
    assert total == x.sum()
    results = lower_bound(x, training=True)()
    assert [result.dim() for result in results] == [0, 3, 0, 0, 3]  # three sums, two copies


def test_another_librarys_module_that_does_not_run_says_so(monkeypatch):
    monkeypatch.setitem(OTHER_LIBRARIES, "se", {"broken": lambda channels: nn.Conv2d(channels + 1, 2, 1)})
    (record,) = contest(SETTING, [Contestant("broken", None)], rounds=1)
    assert record["refused"].startswith("does not run: RuntimeError: Given groups=1")
    assert (record["seconds"], record["agreement"]) == (None, None)


def test_ours_that_cannot_be_built_says_so_and_the_others_go_on(here):
    names, shapes = ["sge[groups=3]", "se"], ["1x8x4x4"]
    refused, runs = bench(
        names, shapes=shapes, passes=["inference"], rounds=1, threads=[1], impls=["reference"]
    ).records
    assert refused["refused"].startswith("sge: 8 channels do not divide into 3 groups")
    assert (refused["seconds"], runs["refused"]) == (None, None)


@pytest.mark.usefixtures("clock")
def test_growth_along_each_axis(monkeypatch):
    monkeypatch.setitem(OTHER_LIBRARIES, "se", {"sleepers": lambda channels: Sleeper()})
    slopes = {}
    for axis in ("batch", "channels", "side"):
        _, found = growth(
            Setting("se", (4, 8, 8, 8), *list(vars(SETTING).values())[2:]), axis, [Contestant("sleepers", None)]
        )
        slopes[axis] = found["slope"][1]
        assert found["sizes"] == ([1, 2, 4, 8, 16] if axis == "batch" else [2, 4, 8, 16, 32])
    assert slopes == pytest.approx({"batch": 1, "channels": 0, "side": 0}, abs=1e-3)


@pytest.mark.parametrize(
    ("module", "maps"),
    [
        (nn.Conv2d(8, 8, 1), 1),  # its input; weights are left out
        (nn.Identity(), 0),
        (nn.Sigmoid(), 1),  # its output
        (nn.Sequential(nn.SiLU(), nn.Sigmoid()), 2),
        (nn.Conv2d(8, 4, 1), 1),
        (nn.Sequential(nn.Conv2d(8, 4, 1), nn.Tanh()), 1.5),
    ],
)
def test_maps_kept(module, maps):
    assert Contestant("ours", "auto").kept(module, inputs_of(SETTING)) == maps


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_inputs_have_the_shape_dtype_and_layout_asked_for(layout):
    (x,) = inputs_of(Setting("se", (2, 8, 6, 5), "bfloat16", layout, "cpu", 1, "inference"))
    assert (x.shape, x.dtype, x.requires_grad) == ((2, 8, 6, 5), torch.bfloat16, False)
    assert x.is_contiguous(memory_format=getattr(torch, f"{layout}_format" if layout == "contiguous" else layout))


class Compiled(nn.Module):
    def __init__(self, module, factor):
        super().__init__()
        self._orig_mod, self.factor = module, factor

    def forward(self, x):
        return self._orig_mod(x) * self.factor


@pytest.mark.parametrize(("factor", "refused"), [(1, None), (1.1, "wrong: ")])
def test_compiled_ones_are_held_to_the_reference_too(monkeypatch, here, factor, refused):
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: Compiled(module, factor))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    options = {"shapes": ["2x8x4x4"], "passes": ["training"], "rounds": 1, "threads": [1]}
    eager, compiled = bench(["se"], compiled=True, impls=["reference"], **options).records
    assert (eager["compiled"], compiled["compiled"]) == (False, True)
    assert compiled["agreement"].keys() == AGREEMENT.keys()
    assert (compiled["refused"] or "").startswith(refused or "")
    assert (compiled["seconds"] is None) == (refused is not None)


@pytest.mark.slow
def test_the_compiler_itself_runs_in_the_other_process():
    eager, compiled = bench(["se"], shapes=["2x8x4x4"], passes=["training"], rounds=1, compiled=True).records
    assert (eager["refused"], compiled["refused"]) == (None, None)
    assert compiled["maps_kept"] == pytest.approx(eager["maps_kept"], abs=0.5)


def test_other_libraries_modules_are_of_known_mechanisms_and_keep_the_shape(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(regard.__file__).parents[2] / ".venv" / "peers")])
    here = [(name, library, build) for name, by in OTHER_LIBRARIES.items() for library, build in by.items()]
    assert {name for name, _, _ in here} <= set(regard.names())
    x, broken = torch.randn(2, 64, 14, 14), []
    for name, library, build in here:
        if library not in other_libraries.missing():
            try:
                assert build(64)(x).shape == x.shape
            except (TypeError, RuntimeError):
                broken.append((name, library))
    assert set(broken) <= {("ge", "timm"), ("bam", "fightingcv-attention")}


def test_what_is_missing_is_named_with_its_command(monkeypatch, here):
    monkeypatch.setattr(other_libraries, "find_spec", lambda name: None)
    said = []
    records = bench(["gc"], shapes=["1x8x4x4"], passes=["inference"], rounds=1, peers=True, tell=said.append).records
    assert [record["source"] for record in records] == ["ours"]
    assert said[0] == "timm is not installed and stays out: pip install timm"
    assert "fightingcv-attention is not installed" in said[2]


# ---- the process, the command


@pytest.mark.slow
def test_a_benchmark_in_a_process_of_its_own(tmp_path):
    said = []
    names = ["eca[kernel_size=3]", "gate:spatial"]
    speed = bench(names, shapes=["2x8x7x9"], rounds=1, threads=[1], scaling=True, tell=said.append)
    found = speed.to_json()
    assert found == json.loads(json.dumps(found))
    assert found["schema"] == {"name": "regard.bench", "version": 1}
    assert {name: found["machine"]["allocator"][name] for name in ALLOCATOR} == ALLOCATOR
    assert [(r["name"], r["pass"]) for r in speed.records] == [(n, p) for p in benchmark.PASSES for n in names]
    assert [record for record in speed.records if not fits(record, SCHEMA)] == []
    assert [record for record in speed.records if not fits(record["agreement"], AGREEMENT)] == []
    assert [slope for slope in found["scaling"] if not fits(slope, SLOPE)] == []
    assert len(found["scaling"]) == 2 * 2 * 3  # passes, ours and the lower bound, axes
    assert not speed.wrong
    assert len(said) == 4 + 6
    assert said[0].startswith("1/10 inference eca[kernel_size=3] 2x8x7x9 float32 contiguous: auto ")
    assert [path.name for path in speed.save(tmp_path)] == ["bench.json", "bench.svg"]
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    picture = (tmp_path / "bench.svg").read_text()
    assert "</svg>" in picture
    assert speed.draw(tmp_path / "again.svg").read_text() == picture
    assert "gate:spatial 2x20x7x13" in str(speed)
    assert "floor" not in str(speed)  # a word of the files alone


def dies(asked, tell):
    tell("1/2 se: 1.05")
    os._exit(3)


def test_a_process_that_dies_is_said(monkeypatch):
    monkeypatch.setattr(benchmark, "_measure_quietly", dies)
    with pytest.raises(UserError, match=r"ended after 1/2 se, with status 3$"):
        bench(["se"])


def test_ctrl_c_ends_both_processes():
    words = ["bench", "se", "--shapes", "2x8x9x9", "--rounds", "1000000", "--threads", "1", "--pass", "inference"]
    process = subprocess.Popen(
        [tiny.REGARD, *words], env=tiny.ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    worker = None
    while worker is None:
        time.sleep(0.1)
        worker = next(iter(tiny.workers(process.pid)), None)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[1].endswith("Stopped.\n")
    assert process.returncode == 130
    assert not Path(f"/proc/{worker}").exists()


def test_every_option_reaches_the_benchmark(monkeypatch):
    defaults = {name: parameter.default for name, parameter in inspect.signature(bench).parameters.items()}
    given = {}

    def ask(names, **options):
        given.update(options, names=names)
        raise UserError("enough")

    monkeypatch.setattr(benchmark, "bench", ask)
    words = "bench se gate:channel --shapes 1x2x3,4x5x6 --dtype float16 --layout channels_last --impl cpu,triton --pass"
    words += " training --device cuda --threads 1,2 --peers --compiled --rounds 3 --budget 9 --scaling"
    assert cli.run(words.split()) == 2
    given.pop("tell")
    assert given == {
        "names": ("se", "gate:channel"), "shapes": ["1x2x3", "4x5x6"], "dtypes": ["float16"],
        "layouts": ["channels_last"], "impls": ["cpu", "triton"], "passes": ["training"], "device": "cuda",
        "threads": [1, 2], "peers": True, "compiled": True, "rounds": 3, "budget": 9.0, "scaling": True,
    }  # fmt: skip
    cli.run(["bench"])
    given.pop("tell")
    given["shapes"] = tuple(tuple(benchmark.read_shape(shape)) for shape in given["shapes"])
    for name, value in given.items():
        assert value == defaults[name] or tuple(value) == tuple(defaults[name]), f"{name} has two defaults"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("bench sse", "no mechanism 'sse'; did you mean 'scse' or 'se'"),
        ("bench se[reductoin=4]", "se has no option 'reductoin'"),
        ("bench squeze:channel", "no op 'squeze'; did you mean 'squeeze'"),
        ("bench squeeze:chanel", "squeeze has no case 'chanel': its cases are channel"),
        ("bench kernel_regression", "kernel_regression takes no map"),
        ("bench --dtype int8", "no dtype 'int8'"),
        ("bench --impl cuda", "no implementation 'cuda'"),
        ("bench --pass train", "no pass 'train'; did you mean 'training'"),
        ("bench --layout nhwc", "no layout 'nhwc': choose from contiguous, channels_last"),
        ("bench --shapes 8x256", "a shape is batch, channels and sides, such as 8x256x56x56, got '8x256'"),
        ("bench --shapes 8x0x3", "a shape is batch"),
        ("bench --threads two", "--threads is numbers joined by commas"),
        ("bench --rounds 0", "rounds and threads are positive"),
        ("bench --out /proc/x", "cannot write"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, sentence):
    assert cli.run(words.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["bench", "ops"])
def test_help_explains_every_option_in_80_columns(capsys, name):
    assert cli.run([name, "--help"]) == 0
    out = capsys.readouterr().out
    for option in inspect.signature(COMMANDS[name]).parameters:
        _, found, rest = out.partition("NAMES" if option == "names" else f"--{option.strip('_')} ")
        assert found
        assert len(rest.partition("│ --")[0].partition("[default")[0].split()) > 3, option
    assert max(map(len, out.splitlines())) <= 80


# ---- what is shown


def record(name, over_floor, source="ours", compiled=False, **others):
    spread = over_floor and [0.9 * over_floor, over_floor, 1.1 * over_floor]
    implementation = "auto" if source == "ours" else None
    return dict.fromkeys(SCHEMA) | {
        "name": name, "shape": [8, 256, 56, 56], "dtype": "float32", "layout": "contiguous", "device": "cpu",
        "threads": 1, "pass": "inference", "source": source, "implementation": implementation, "compiled": compiled,
        "seconds": spread, "over_floor": spread, "floor_seconds": [1.0, 1.0, 1.0], "copy_gb_per_second": 9.0, **others,
    }  # fmt: skip


ROWS = [
    record("se", 1.1),
    record("se", 1.3, "timm"),
    record("se", 1.4, "torchvision"),
    record("se", 1.05, "timm", compiled=True),
    record("cbam", 1.8),
    record("cbam", 1.2, "timm"),
    record("cbam", 1.5, "timm", compiled=True),
    record("ge", 1.4),
    record("ge", None, "timm", refused="does not run: TypeError: no"),
]
MACHINE = dict.fromkeys(("cpu", "gpu", "capability", "torch")) | {"load_before": 0.0, "load_after": 1.0}


def test_tables_say_what_is_missed_and_who_is_faster():
    text = str(Speed({"machine": MACHINE, "records": ROWS, "scaling": []}))
    lines = {line.split()[0]: line for line in text.splitlines()[5:] if line}
    assert re.split("  +", lines["se"]) == [
        "se", "1.10 (0.99-1.21)", "timm 1.30 (1.17-1.43)", "timm 1.05 (0.95-1.16)", "<= 1.2",
    ]  # fmt: skip
    assert re.split("  +", lines["cbam"])[2:] == [
        "timm 1.20 (1.08-1.32)", "timm 1.50 (1.35-1.65)", "<= 1.2, missed by 50%",
    ]  # fmt: skip
    assert "another library is faster: cbam (timm 1.20), cbam (timm compiled 1.50)" in text
    assert "ge, timm: does not run: TypeError: no" in text
    assert lines["ge"].endswith(" -")  # no gate with a goal, no other library


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "<= 1.2, missed by 150%"),
        ({"pass": "training"}, "<= 1.5, missed by 100%"),
        ({"shape": [16, 512, 14, 14]}, "<= 1.5, missed by 100%"),
        ({"shape": [16, 512, 14, 14], "pass": "training"}, "<= 2.2, missed by 36%"),
        ({"shape": [1, 8, 14, 14]}, ""),
        ({"name": "triplet"}, "<= 2, missed by 50%"),
        ({"name": "triplet", "pass": "training"}, "<= 2.5, missed by 20%"),
        ({"name": "triplet", "shape": [16, 512, 14, 14]}, ""),
        ({"name": "non_local"}, ""),
        ({"device": "cuda"}, "<= 1.3, missed by 131%"),
    ],
)
def test_goals(changed, words):
    assert verdict([record("se", 3.0) | changed]) == words


def test_the_picture_has_a_point_for_everything():
    rows = [*ROWS, *({**row, "pass": "training"} for row in ROWS), *({**row, "shape": [1, 2, 3]} for row in ROWS)]
    figure = picture(rows + [{**row, "dtype": "bfloat16"} for row in ROWS])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["inference, 8 × 256 × 56 × 56", "inference, 1 × 2 × 3"]
    first = figure.axes[0]
    points = {
        (line.get_label(), float(line.get_xdata()[0])) for line in first.get_lines() if line.get_marker() != "None"
    }
    assert points == {
        ("ours", 1.1), ("ours", 1.8), ("ours", 1.4), ("best other library", 1.3), ("best other library", 1.2),
        ("best other library, compiled", 1.05), ("best other library, compiled", 1.5),
    }  # fmt: skip
    assert [label.get_text() for label in first.get_yticklabels()] == ["ge", "cbam", "se"]
    low, high = first.get_xlim()
    assert low < 0.99
    assert high > 1.98


# ---- ops


def test_every_op_has_a_word_and_every_refusal_a_reason(scale):
    scale("return x * 3")
    rows = [row for row in support.overview() if row["op"] == "scale" and row["device"] == "cpu"]
    assert {row["implementation"]: row["runs"] for row in rows} == {"triton": 0, "cpu": 1, "reference": 1}
    assert {row["implementation"]: row["refused"] for row in rows}["triton"] == {"not implemented": ["plain"]}
    for word, op in ops.OPS.items():
        assert callable(getattr(ops, word))
        assert support.cases(op)


def test_a_table_of_ops(monkeypatch):
    levels = {"avx512": "there was no compiler", "avx2": None, "generic": None}
    monkeypatch.setattr(support.kernels, "overview", lambda: {"level": "avx2", "levels": levels})
    refused = {"needs a GPU": ["a", "b"], "too odd": ["c"]}
    row = {"op": "gate", "device": "cpu", "implementation": "triton", "cases": 4, "runs": 1, "refused": refused}
    assert support.table([row]).splitlines() == [
        "op    device  implementation  runs    why not",
        "gate  cpu     triton          1 of 4  needs a GPU (a, b)",
        "                                      too odd (c)",
        "",
        "C++ kernels: avx2 runs here; usable: avx2, generic",
        "there was no compiler",
    ]


def test_ops_as_json(capsys):
    assert cli.run(["ops", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ops"] == support.overview()
