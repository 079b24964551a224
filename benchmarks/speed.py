"""Measure every gate against its lower bound and against other libraries; write docs/speed.md and its picture.

Usage: python benchmarks/speed.py [--device cuda] [--again] [--page] [--rounds N] [--shapes LIST] [MECHANISM ...]

Nothing else may run meanwhile. What runs/speed holds is not measured again unless `--again` is given. The CPU takes
about half an hour, most of it compiling, which is done for the first shape alone. What was measured of a mechanism is a
file of its own in benchmarks/results/speed; on a GPU, in benchmarks/results/speed-cuda.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import resultfiles
from regard.base.files import slug, write_text
from regard.costs.bench import PASSES, SHAPES, bench
from regard.costs.goals import GATES, MAPS, faster, goal, verdict
from regard.costs.records import Record, as_used, best, by_name, whose
from regard.costs.speed import Speed
from regard.costs.speed_table import spread

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "speed"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "speed.md"
NAMES = {"cpu": "speed", "cuda": "speed-cuda"}  # of the folders and pictures of each device
PARTS = ("machines", "loads", "races", "threads", "scaling")
BASE = "8x256x28x28"  # from which batch, channels and side grow


def pieces(name: str, device: str, shapes: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
    """What is asked of one mechanism, in pieces that finish in minutes."""
    common = {"names": [name], "device": device, "rounds": rounds}
    contest = common | {"shapes": shapes, "peers": True}
    asked: dict[str, dict[str, Any]] = {"compiled": contest | {"shapes": shapes[:1], "compiled": True}}
    if shapes[1:]:
        asked["contiguous"] = contest | {"shapes": shapes[1:]}
    asked["channels_last"] = contest | {"layouts": ["channels_last"]}
    asked["bfloat16"] = contest | {"shapes": shapes[:1], "dtypes": ["bfloat16"]}
    asked["scaling"] = common | {"shapes": [BASE], "scaling": True}
    if device == "cpu":
        asked["threads"] = common | {"shapes": shapes[:1], "threads": [1, 2]}
    return asked


def measure(name: str, device: str, shapes: Sequence[str], rounds: int, again: bool) -> dict[str, Any]:
    """Every piece of a mechanism: measured now, or kept from before."""
    found: dict[str, Any] = {part: [] for part in PARTS}
    for piece, asked in pieces(name, device, shapes, rounds).items():
        path = RUNS / f"{slug(json.dumps(asked))[-8:]} {device} {name} {piece}.json"
        if again or not path.exists():
            print(f"{name}, {piece}:", file=sys.stderr)
            write_text(path, json.dumps(bench(**asked, tell=_tell).to_json()))
        kept = json.loads(path.read_text())
        machine = {key: value for key, value in kept["machine"].items() if not key.startswith("load")}
        if machine not in found["machines"]:
            found["machines"].append(machine)
        found["threads" if piece == "threads" else "races"] += kept["records"] if piece != "scaling" else []
        found["scaling"] += kept["scaling"]
        found["loads"].append(kept["machine"]["load_before"])
    return found


def collect(device: str) -> dict[str, Any]:
    """What was measured of all mechanisms on a device, those with a goal first; nothing where nothing was."""
    kept = resultfiles.read(NAMES[device])
    names = [*(name for name in GATES if name in kept), *(name for name in kept if name not in GATES)]
    if not names:
        return {}
    found = {part: [each for name in names for each in kept[name][part]] for part in PARTS}
    commits = dict.fromkeys(kept[name]["commit"] for name in names)
    return found | {"commits": [*commits], "missing": [name for name in GATES if name not in kept]}


def _tell(sentence: str) -> None:
    print(f"  {sentence}", file=sys.stderr)


# ---- The page


def render(results: dict[str, dict[str, Any]]) -> str:
    """The page, of what was measured on each device."""
    parts = [
        f"""# Speed

Made by `make speed`, which runs `regard bench` in pieces; nothing here is written by hand. Where the numbers come from
is said at the end.

## What is measured

A gate has to read the map to squeeze it, to read it again, and to write the result; that is its *lower bound*, measured
with torch's own sum and copy. Inference: `x.sum()` and `x.clone()`. Training, forward and backward pass: besides,
`x.sum()` for the gradient of the gate, `dy.sum()` and `dy.clone()`. What a row compares is timed side by side, in the
same rounds, in turns, and each round has its ratios; shown is their median, with the quartiles in parentheses. 1 is a
gate that costs what the memory costs. Below 1 is possible: a map that stays in the cache is not read from memory twice.

Ours has a time only where it agrees with the reference in float64, outputs and gradients; otherwise it says `wrong`.
The other libraries are timm, torchvision and fightingcv-attention, their modules with their defaults; *best* is the
fastest of them that runs, in that row. *Compiled* is `torch.compile` for exactly that shape, tried at the first one.
None of ours needs it.

The goals, in times the lower bound: on maps of 4 million numbers or more 1.2 for inference and 1.5 for training, for
triplet 2 and 2.5; on smaller ones, from 1 million, 1.5 and 2.2; on a GPU 1.3. Besides, at most {MAPS} maps kept for the
backward pass, and never slower than the best other library, compiled or not."""
    ]
    for device, found in results.items():
        parts += [
            f"## On the {device.upper() if device == 'cpu' else 'GPU'}\n\n{summary(found)}",
            *sections(device, found),
        ]
    for name, tell in (("whole", whole), ("pairs", pairs), ("training", training)):
        file = RESULTS / f"{name}.json"
        if file.exists():
            parts.append(tell(json.loads(file.read_text())))
    parts.append("## Where the numbers come from\n\n" + "\n\n".join(map(origin, results.values())))
    return "\n\n".join(parts) + "\n"


def summary(found: dict[str, Any]) -> str:
    """How many goals are reached, and each that is not."""
    rows = [row for contest in Speed({"records": found["races"]}).contests() for row in by_name(contest).values()]
    asked = [row for row in rows if (ours := as_used(row)) and goal(ours)]
    missed = [row for row in asked if "missed" in verdict(row)]
    slower = [row for row in asked if faster(row)]
    greedy = {r["name"]: r["maps_kept"] for r in map(as_used, asked) if r and (r["maps_kept"] or 0) > MAPS}
    wrong = [row[0] for row in rows if any((r["refused"] or "").startswith("wrong") for r in row)]
    lines = [
        f"**{len(asked) - len(missed)} of {len(asked)} times reach their goal; in {len(slower)} another library is "
        f"faster; {len(greedy)} of {len(by_name(found['races']))} mechanisms keep more than {MAPS} maps.**"
    ]
    for shape in dict.fromkeys(_shape(row[0]) for row in asked):
        there = [row for row in asked if _shape(row[0]) == shape]
        lines.append(f"- on {shape}: {sum(row in missed for row in there)} of {len(there)} missed")
    lines += [f"- wrong: {_where(record)}" for record in wrong]
    lines += [f"- {_where(row[0])}: {_ours(row)}, {verdict(row).partition(', ')[2]}" for row in missed]
    lines += [f"- {_where(row[0])}: {_ours(row)}, {_cell(other)}" for row in slower for other in faster(row)]
    lines += [f"- {name} keeps {maps:.2f} maps" for name, maps in greedy.items()]
    if found["missing"]:
        lines[0] += f"\n\n{resultfiles.LATER.capitalize()}: {', '.join(found['missing'])}."
    return lines[0] + ("\n\nWhat is missed:\n\n" + "\n".join(lines[1:]) if lines[1:] else "")


def sections(device: str, found: dict[str, Any]) -> list[str]:
    """The picture and the tables of one device."""
    picture = Speed({"records": found["races"]}).draw(ROOT / "docs" / "images" / f"{NAMES[device]}.svg")
    parts = [f"![Time over the lower bound: ours, the best other library, and both compiled](images/{picture.name})"]
    for contest in Speed({"records": found["races"]}).contests():
        first = contest[0]
        title = f"### {first['pass'].capitalize()}, {_shape(first)}, {first['dtype']}, {first['layout']}"
        milliseconds = 1e3 * first["floor_seconds"][1]
        bound = f"The lower bound takes {milliseconds:.3g} ms, a copy reaches {_copies(contest)} GB/s."
        parts.append(f"{title}\n\n{bound}\n\n{_contest(contest)}")
    parts.append(f"### Memory\n\n{MEMORY}\n\n{_memory(found['races'])}")
    if found["threads"]:
        parts.append(f"### Threads\n\n{THREADS}\n\n{_threads(found['threads'])}")
    return [*parts, f"### How time grows\n\n{SCALING}\n\n{_scaling(found['scaling'])}"]


MEMORY = """\
What waits for the backward pass after the forward pass, in maps: distinct tensors that autograd keeps, the map itself
among them, weights left out; eager, then compiled. On a GPU also the most that a training step holds at once beside its
input, as the allocator counts it."""
THREADS = "Milliseconds with one thread and with two, and how many times as fast two are."
SCALING = f"""\
The slope of the logarithm of time over the logarithm of size, by least squares; median of the rounds, quartiles in
parentheses. Sizes are powers of two around {BASE}. In proportion to the map is 1 along batch and channels and 2 along
the side. Less is a cost that does not grow with the map, such as that of the calls; more, as in the lower bound itself,
is a map that leaves the cache."""


def _contest(contest: list[Record]) -> str:
    cuda = contest[0]["device"] != "cpu"
    head = ["mechanism", "ours", "goal", "ours, compiled", "best other library", "best other library, compiled"]
    rows = [[*head, "of copy bandwidth"] if cuda else head]
    for name, row in by_name(contest).items():
        compiled = next((r for r in row if r["source"] == "ours" and r["compiled"]), None)
        cells = [f"[{name}](mechanisms/{name}.md)", _ours(row), verdict(row), _cell(compiled)]
        cells += [_cell(best(row, compiled=False)), _cell(best(row, compiled=True))]
        ours = as_used(row)
        rows.append([*cells, f"{ours['of_copy_bandwidth']:.0%}" if ours else ""] if cuda else cells)
    silent = [f"{r['source']}'s {r['name']} {r['refused']}" for r in contest if r["refused"] and r["source"] != "ours"]
    return _markdown(rows) + ("\n\n" + "; ".join(dict.fromkeys(silent)) + "." if silent else "")


def _memory(records: Sequence[Record]) -> str:
    first = tuple(next(iter(records))["shape"])
    kept = [r for r in records if r["maps_kept"] is not None and tuple(r["shape"]) == first]
    kept = [r for r in kept if (r["dtype"], r["layout"]) == ("float32", "contiguous")]
    libraries = list(dict.fromkeys(r["source"] for r in kept))
    rows = [["mechanism", *libraries]]
    for name, row in by_name(kept).items():
        cells = {
            library: ", ".join(_maps(r) for compiled in (False, True) for r in row if _is(r, library, compiled))
            for library in libraries
        }
        rows.append([name, *cells.values()])
    return _markdown(rows)


def _is(record: Record, library: str, compiled: bool) -> bool:
    return (record["source"], record["compiled"]) == (library, compiled)


def _maps(record: Record) -> str:
    peak = f" (peak {record['peak_maps']:.2f})" if record["peak_maps"] is not None else ""
    return f"{record['maps_kept']:.2f}{peak}"


def _threads(records: Sequence[Record]) -> str:
    rows = [["mechanism", *(f"{pass_}, {what}" for pass_ in PASSES for what in ("one", "two", "times as fast"))]]
    for name, row in by_name(r for r in records if r["seconds"]).items():
        milliseconds = {(r["pass"], r["threads"]): 1e3 * r["seconds"][1] for r in row}
        cells = []
        for pass_ in PASSES:
            one, two = (milliseconds.get((pass_, threads), math.nan) for threads in (1, 2))
            cells += [f"{one:.3g}", f"{two:.3g}", f"{one / two:.2f}"]
        rows.append([name, *cells])
    return _markdown(rows)


def _scaling(slopes: Sequence[Record]) -> str:
    axes = list(dict.fromkeys(slope["axis"] for slope in slopes))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for slope in slopes:
        row = rows.setdefault((slope["name"], slope["pass"], whose(slope)), {})
        row[slope["axis"]] = spread(slope["slope"])
    cells = [[*who, *(row.get(axis, "") for axis in axes)] for who, row in rows.items()]
    return _markdown([["mechanism", "pass", "whose", *axes], *cells])


# ---- What other benchmarks measured


def whole(found: dict[str, Any]) -> str:
    """Attention inside a network."""
    asked, machine = found["settings"], found["machine"]
    head = ["layout", "pass", "mechanism", "step time over the network without", "over timm's"]
    rows = [[*head, "lower bound's share", "goal"]]
    for r in found["records"]:
        share, met = f"{100 * r['floor']:.1f} %", ""
        if r["goal"]:
            met = f"{r['goal']:.3f}, {'reached' if r['over'][1] <= r['goal'] else 'missed'}"
        theirs = spread(r["theirs"]) if r["theirs"] else ""
        over = spread(r["over"]) + " busy" * r["noisy"]
        rows.append([r["layout"], r["pass"], r["name"], over, theirs, share, met])
    return f"""\
## In a whole network

Made by `make whole`: {asked["model"]}, batch {asked["batch"]}, {asked["side"]} px, {machine["threads"]} threads, one
gate at the end of each residual branch; {asked["rounds"]} rounds in turns. The lower bound's share is what the gates'
maps would cost at the speed of memory, over the step of the network without gates. timm's are its own modules at the
same places, called by the block; ours are called by a hook on the layer before, whose input is held for as long. All
networks share their convolutions: the places of weights in memory alone make networks differ. *Busy*: the step without
gates varied by more than 10 %, too much to tell small differences.

{_markdown(rows)}"""


def pairs(found: dict[str, Any]) -> str:
    """Attention between pixels."""
    head = ["mechanism", "side", "inference", "training", "kept for the backward pass, without", "with the weights"]
    rows = [head]
    for r in found["rows"]:
        kept = [f"{r['kept_maps'][how]:.1f}" for how in ("without", "with")]
        rows.append([r["mechanism"], str(r["side"]), spread(r["infer_ratio"]), spread(r["train_ratio"]), *kept])
    return f"""\
## Between positions

Made by `make pairs`: one image of {found["channels"]} channels and side x side pixels, {found["machine"]["threads"]}
thread. Time without the weights of all pairs in memory over the time with them, as they are built while a tap is
watched; below 1 is faster without. Kept, in maps of the input.

{_markdown(rows)}"""


def training(found: dict[str, Any]) -> str:
    """The loop of compare."""
    loops = [["images", "network", "px", "batch", "ours, images a second", "timm's pieces", "the network alone"]]
    for r in found["loops"]:
        rates = [f"{r['images_per_second'][who]:,.0f}" for who in ("regard", "timm", "network")]
        loops.append([r["data"], r["model"], str(r["size"]), str(r["batch"]), *rates])
    layouts = [["network", "px", "batch", "training", "inference"]]
    for r in found["layouts"]:
        ratios = [spread(r[ratio]) for ratio in ("train_ratio", "infer_ratio")]
        layouts.append([r["model"], str(r["size"]), str(r["batch"]), *ratios])
    return f"""\
## The loop of `regard compare`

Made by `make loop`, one thread. Images trained on and validated in a second, by our loop, by one of timm's pieces
({found["timm"]}), and by the network alone on a batch that lies ready.

{_markdown(loops)}

Time in channels_last over that in the contiguous layout, below 1 where channels_last is faster:

{_markdown(layouts)}"""


def origin(found: dict[str, Any]) -> str:
    """Machine and load."""
    machines = dict.fromkeys(
        f"{m['gpu'] or m['cpu']}, {m['cores']} cores, {m['capability']}, torch {m['torch']}" for m in found["machines"]
    )
    loads = sorted(found["loads"])
    settings = found["machines"][0]["allocator"]
    return fill(
        f"{'; '.join(machines)}; at commit {' and '.join(found['commits'])}. "
        f"The processes had {', '.join(f'{k}={v}' for k, v in settings.items() if v)}. The load "
        f"before each piece was {loads[0]:.1f} to {loads[-1]:.1f}, {loads[len(loads) // 2]:.1f} in the middle; a piece "
        "is a process that runs minutes and keeps the cores busy itself. Times vary with the machine: the ratios hold "
        "inside one row alone. All records, with their agreement, are in `benchmarks/results/`.",
        120,
    )


def _ours(row: list[Record]) -> str:
    return _cell(as_used(row) or next(r for r in row if r["source"] == "ours"))


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    if not record["over_floor"]:
        return (record["refused"] or "").partition(":")[0]
    who = "" if record["source"] == "ours" else f"{record['source']}{' compiled' * record['compiled']} "
    return f"{who}{spread(record['over_floor'])}"


def _copies(contest: Iterable[Record]) -> str:
    rates = sorted(record["copy_gb_per_second"] for record in contest)
    return f"{rates[len(rates) // 2]:.3g}"


def _where(record: Record) -> str:
    return f"{record['name']}, {record['pass']}, {_shape(record)}, {record['dtype']}, {record['layout']}"


def _shape(record: Record) -> str:
    return "x".join(map(str, record["shape"]))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return "\n".join([line(head), f"|{'---|' * len(head)}", *map(line, body)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=GATES, metavar="MECHANISM")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", default=",".join("x".join(map(str, shape)) for shape in SHAPES))
    parser.add_argument(
        "--page", action="store_true", help="measure nothing: the page, of what benchmarks/results holds"
    )
    given = parser.parse_args()
    for name in () if given.page else given.names:
        found = measure(name, given.device, given.shapes.split(","), given.rounds, given.again)
        resultfiles.write(NAMES[given.device], name, found)
    print(write_text(PAGE, render({device: found for device in NAMES if (found := collect(device))})))
