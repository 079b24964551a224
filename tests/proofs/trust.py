"""docs/trust.md: what every mechanism was held to, and the same asked of other libraries.

    make trust [NAME=MECHANISM]

What was found of a mechanism, and of other libraries' modules for it, is a file of its own in benchmarks/results/trust.
"""

from __future__ import annotations

import json
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fuzzing
import regard
import resultfiles
from contract import PROMISES, Subject, from_formula, ours
from golden import CASES, GOLDEN, deviations, distance, part
from peers import PEERS, Peer
from regard.base.files import write_text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "trust.md"
NOTHING: dict[str, Any] = {"promises": {}, "others": []}  # of what was not asked yet
OTHERS = ROOT / ".venv" / "peers"  # what is installed for this table alone


def keep_promises(subject: Subject, anyone: bool) -> dict[str, str]:
    """Of each promise that has a meaning here: "yes", or in a line why not."""
    kept = {}
    for words, promise in PROMISES.items():
        if promise.where(subject.known) and (promise.anyone or not anyone) and not promise.slow:
            reason = subject.known.exceptions.get(words) if not anyone else None
            kept[words] = f"on the card: {reason}" if reason else outcome(promise.check, subject)
    return kept


def outcome(check: Any, *args: Any) -> str:
    try:
        check(*args)
    except Exception as error:  # whatever it is, it is the finding
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160]
    return "yes"


def examine(name: str) -> dict[str, Any]:
    """The promises, the deviations from the authors' numbers over all of its cases, and the same of other libraries."""
    prepare()
    known = regard.info(name)
    found = [(case, deviations(case)) for case in CASES if case["mechanism"] in known.official or uses(case, name)]
    sources = {describe(case["source"]) for case, _ in found}
    return {
        "cases": len(found),
        "value": max((d["value"] for _, d in found), default=None),
        "gradient": max((value for _, d in found for key, value in d.items() if "gradient" in key), default=None),
        "buffers": max((d["buffers"] for _, d in found if "buffers" in d), default=None),
        "sources": sorted(sources),
        "formula": from_formula(ours(name)) if known.formula else None,
        "promises": keep_promises(ours(name), anyone=False),
        "others": [examine_peer(peer) for peer in PEERS if peer.name == name],
    }


def uses(case: dict[str, Any], name: str) -> bool:
    """Whether a function of this mechanism answers a case that no weights belong to."""
    functions = {"stn": "stn", "ram_retina": "glimpse", "nadaraya_watson": "kernel_regression"}
    return case["call"] == "function" and functions[case["mechanism"]] == name


def describe(source: dict[str, Any]) -> str:
    """Kind, origin and commit of a golden case."""
    where = source.get("repo") or f"{source['package']} {source['version'].partition('+')[0]}"
    commit = f"@{source['commit'][:10]}" if source.get("commit") else ""
    return f"{source['kind']}: {where}{commit}"


def examine_peer(peer: Peer) -> dict[str, Any]:
    """The same of another library's module."""
    subject = Subject(peer.name, lambda channels: peer.build(peer.kind, channels), regard.info(peer.name))
    return {
        "name": peer.name,
        "library": f"{peer.package} {version(peer.package)}",
        "place": peer.place.rpartition(".")[2],
        "agreement": agreement(peer),
        "promises": keep_promises(subject, anyone=True),
    }


def agreement(peer: Peer) -> str:
    """With the authors' weights: the largest deviation of value and gradient, or why there is none."""
    if peer.key is None:
        return "has other weights than the authors'"
    worst, extra = 0.0, set()
    for case in CASES:
        if case["mechanism"] == peer.key:
            try:
                deviation, more = compare(peer, case)
            except LookupError as error:
                return f"cannot take the authors' weights: {error.args[0]}"
            worst, extra = max(worst, deviation), extra | more
    note = f", with its own {', '.join(sorted(extra))} at 0" if extra else ""
    return f"{worst:.0e}{note}"


def compare(peer: Peer, case: dict[str, Any]) -> tuple[float, set[str]]:
    tensors = load_file(GOLDEN / case["file"])
    module = peer.fit(peer.kind, case["x_shape"][1], **case["args"])
    if module is None:
        return 0.0, set()
    module.double()
    own = module.state_dict()
    given = {rename(name, peer.names): tensor for name, tensor in part(tensors, "param/").items()}
    if unknown := sorted(given.keys() - own.keys()):
        raise LookupError(f"it lacks {len(unknown)} of them, such as {unknown[0]}")
    extra = {name for name in own if name not in given and "running" not in name and "tracked" not in name}
    if any(not name.endswith("bias") for name in extra):
        raise LookupError(f"it has {len(extra)} others, such as {min(extra)}")
    loaded = {name: given[name].reshape(value.shape) if name in given else 0 * value for name, value in own.items()}
    if peer.place.endswith("CbamModule"):  # it sees mean and maximum in the other order
        loaded["spatial.conv.conv.weight"] = loaded["spatial.conv.conv.weight"].flip(1)
    module.load_state_dict(loaded)
    module.train(case["mode"] == "train")
    x = tensors["x"].requires_grad_()
    y = module(x)
    (y * tensors["g"]).sum().backward()
    return max(distance(y, tensors["y"]), distance(x.grad, tensors["grad_x"])), extra


def rename(name: str, names: dict[str, str]) -> str:
    for theirs, its in sorted(names.items(), key=lambda pair: -len(pair[0])):
        if name.startswith(theirs):
            return its + name.removeprefix(theirs)
    return name


def prepare() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if str(OTHERS) not in sys.path:
        sys.path.append(str(OTHERS))


def measure(names: list[str]) -> None:
    """Ask everything of these mechanisms, two at a time, and keep what was found."""
    with ProcessPoolExecutor(2) as pool:
        for name, found in zip(names, pool.map(examine, names), strict=True):
            versions = {package: version(package).partition("+")[0] for package in ("regard", "torch")}
            resultfiles.write("trust", name, {"versions": versions} | found)
            for entry in ({"place": "ours"} | found, *found["others"]):
                broken = [words for words, answer in entry["promises"].items() if answer != "yes"]
                print(name, entry["place"], f"{len(broken)} not kept", flush=True)


def render(found: dict[str, dict[str, Any]], fuzzed: dict[str, Any]) -> str:
    """The page, from what the checks and the fuzzer found."""
    columns = [words for words, promise in PROMISES.items() if not promise.slow]
    legend = "\n".join(f"{number}. {words}" for number, words in enumerate(columns, start=1))
    numbers = " | ".join(map(str, range(1, len(columns) + 1)))
    names = regard.names()
    rows = "\n".join(f"| {name} | {_marks(name, found.get(name, NOTHING), columns)} |" for name in names)
    open_columns = [words for words in columns if PROMISES[words].anyone]
    open_numbers = " | ".join(str(columns.index(words) + 1) for words in open_columns)
    foreign = sorted((entry for name in names for entry in found.get(name, NOTHING)["others"]), key=_shelf)
    others = "\n".join(_other_row(entry, open_columns) for entry in foreign)
    cases = sum(found[name]["cases"] for name in names if name in found)
    exceptions = [
        f"- {name}: {words}: {answer.removeprefix('on the card: ')}"
        for name in names
        for words, answer in found.get(name, NOTHING)["promises"].items()
        if answer != "yes"
    ]
    failures = [line for entry in foreign for line in _failures(entry)]
    return f"""# What was checked

Made by `make trust` from the checks that `make test` runs ({resultfiles.versions(found)}), and by `make fuzz`;
nothing here is written by hand.

## Agreement with the authors, or what stands for them

{len(names)} mechanisms, {cases} cases computed with other people's code in float64. *Value* and
*gradient* are the largest absolute deviations over a mechanism's cases; the gradient is that of the input and of every
parameter; buffers after a training step agree as well. *Official* numbers come from the authors' own code, *port* from
the most used PyTorch version of code in another framework or of none, *transcription* from code read and written down
again, *formula* from the paper's formula. *Asked at*: the commit at which this and the promises below were looked at.

| mechanism | cases | value | gradient | numbers from | asked at |
|---|---|---|---|---|---|
{chr(10).join(_agreement(name, found.get(name)) for name in names)}

## Promises

{legend}

`+` kept, `-` not kept and said on the card with the reason, `?` {resultfiles.LATER}, blank: has no meaning for this
kind of mechanism.

| mechanism | {numbers} |
|---|{"---|" * len(columns)}
{rows}

{chr(10).join(exceptions) or "There are no exceptions."}

## Random use

`make fuzz` uses what is public at random and damages what is read, with seed {fuzzed["seed"]} (torch
{fuzzed["versions"]["torch"]}). A kernel is wrong where it is further from float64 than ten times the reference in the
same precision; a refusal is a sentence, nothing else, and leaves everything as it was.

{fuzzing.table(fuzzed)}
## The same asked of other libraries

Their modules with their default arguments (where default groups fit no map of 8, 20 and 64 channels, as few as fit).
*Agreement* is the largest deviation of value and input gradient with the authors' weights loaded, in a module built
with the authors' arguments. A module that refuses maps of 7 x 13 pixels, or other channels than it was made for, fails
wherever such a map is used: it was not found to be wrong there, but could not be asked.

| library | module | as | agreement | {open_numbers} |
|---|---|---|---|{"---|" * len(open_columns)}
{others}

What failed:

{chr(10).join(failures)}
"""


def _agreement(name: str, entry: dict[str, Any] | None) -> str:
    link = f"[{name}](mechanisms/{name}.md)"
    if entry is None:
        return f"| {link} |  |  |  | {resultfiles.LATER} |  |"
    source, deviations = "; ".join(entry["sources"]), entry
    if not entry["cases"]:
        deviations, module = entry["formula"], regard.info(name).factory.__module__.rpartition(".")[2]
        source = f"nobody; the paper's formula, written out in [{module}.py](../src/regard/mechanisms/{module}.py)"
    numbers = " | ".join("" if deviations[key] is None else f"{deviations[key]:.0e}" for key in ("value", "gradient"))
    return f"| {link} | {entry['cases']} | {numbers} | {source} | {entry['commit']} |"


def _other_row(entry: dict[str, Any], columns: list[str]) -> str:
    start = f"| {entry['library']} | {entry['place']} | {entry['name']} | {_plain(entry['agreement'])} |"
    return f"{start} {_marks(entry['name'], entry, columns)} |"


def _shelf(entry: dict[str, Any]) -> int:
    """Where a module of another library stands in the table: libraries together."""
    return [(peer.name, peer.place.rpartition(".")[2]) for peer in PEERS].index((entry["name"], entry["place"]))


def _failures(entry: dict[str, Any]) -> list[str]:
    """What another library's module does not keep, together where the reason is the same."""
    by_reason: dict[str, list[str]] = {}
    for words, answer in entry["promises"].items():
        if answer != "yes":
            by_reason.setdefault(_plain(answer), []).append(words)
    who = f"- {entry['library']} {entry['place']}:"
    return [
        f"{who} {'all of them' if len(broken) == len(entry['promises']) else ', '.join(broken)}: {reason}"
        for reason, broken in by_reason.items()
    ]


def _marks(name: str, entry: dict[str, Any], columns: list[str]) -> str:
    known, answers = regard.info(name), entry["promises"]
    missing = {words: "?" if PROMISES[words].where(known) else "" for words in columns}
    marks = ({"yes": "+"}.get(answers[words], "-") if words in answers else missing[words] for words in columns)
    return " | ".join(marks)


def _plain(answer: str) -> str:
    return answer.replace("|", "/").replace("<", "(").replace(">", ")")


if __name__ == "__main__":
    if "--page" not in sys.argv:
        measure(sys.argv[1:] or regard.names())
    fuzzed = json.loads(fuzzing.RESULTS.read_text())
    print(write_text(PAGE, render(resultfiles.read("trust"), fuzzed)))
