"""The command line: what it prints where, every mistake as one line, and Ctrl-C at any moment."""

import inspect
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import regard
import tiny
from regard.base.errors import install, install_images
from regard.base.files import write_text
from regard.cli import main as cli
from regard.cli import progress as ticker
from regard.cli.program import COMMANDS, examples, program
from regard.cli.wording import as_options
from regard.comparison import prices
from regard.insertion.words import WORDS


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return tiny.fill(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture
def compared(photos, tmp_path, monkeypatch, capsys):
    """A comparison through the command line, in this process: what it printed, and the folder it filled."""
    tiny.train_here(monkeypatch)
    monkeypatch.setattr(prices, "SECONDS", 0.2)
    words = ["compare", "se", "cbam[squeeze=max]", "--data", str(photos), *tiny.WORDS, "--epochs", "1", "--seeds", "1"]
    return call(capsys, *words, "--out", str(tmp_path / "out"), "--json"), tmp_path / "out"


def call(capsys, *words):
    """The command line in this process: exit status, standard output and standard error."""
    status = cli.run(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# ---- help


def test_help_does_not_wait_for_torch():
    for words in (["--help"], ["list", "--help"], ["compare", "--help"], ["--version"]):
        program = f"import sys; sys.argv = ['regard', *{words}]\nfrom regard.cli.main import main\ntry: main()\n"
        program += "finally: print('torch' in sys.modules, file=sys.stderr)"
        ran = subprocess.run(
            [sys.executable, "-c", program], env=tiny.ENVIRONMENT, capture_output=True, text=True, check=True
        )
        assert ran.stderr == "False\n"
        assert ran.stdout


def without_torch(*words):
    """Run the command line in a process of its own, hold that it loads no torch, and give status and both outputs."""
    program = f"import sys; sys.argv = ['regard', *{words}]\nfrom regard.cli.main import main\ntry: main()\n"
    program += "finally: print('torch' in sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", program], env=tiny.ENVIRONMENT, capture_output=True, text=True)
    *said, loaded = ran.stderr.splitlines()
    assert loaded == "False", f"regard {' '.join(words)} loads torch"
    return ran.returncode, ran.stdout, "\n".join(said)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ("list --category channel", 0, ""),
        ("info cbam[squeeze=max]", 0, ""),
        ("info sse", 2, "no mechanism 'sse'; did you mean"),
        ("report /nowhere", 2, "/nowhere holds no comparison"),
        ("compare sse", 2, "no mechanism 'sse'; did you mean"),
        ("compare cbam[squeze=max]", 2, "cbam has no option 'squeze'"),
        ("compare se --data /nowhere", 2, "does not exist"),
        ("compare se --model nonet.py:build", 2, "there is no file nonet.py"),
    ],
)
def test_what_needs_no_torch_does_not_load_it(words, status, sentence):
    ended, out, err = without_torch(*words.split())
    assert (ended, bool(out)) == (status, status == 0)
    assert sentence in err


def test_a_changed_question_is_told_without_loading_torch(compared, photos):
    (_, _, _), folder = compared
    words = ["compare", "se", "--data", str(photos), *tiny.WORDS, "--seeds", "1", "--out", str(folder)]
    status, out, err = without_torch(*words, "--epochs", "2")
    assert (status, out) == (2, "")
    assert "holds another question (epochs was 1, now 2): ask that one, or pass another --out" in err


@pytest.mark.parametrize("command", [*COMMANDS])
def test_help_shows_every_option_and_examples(capsys, command):
    status, out, err = call(capsys, command, "--help")
    assert (status, err) == (0, "")
    for name, parameter in inspect.signature(COMMANDS[command]).parameters.items():
        shown = (
            name.upper() if parameter.kind is not parameter.KEYWORD_ONLY else "--" + name.strip("_").replace("_", "-")
        )
        assert re.search(rf"^│ (\*  |   )?{re.escape(shown)}\b.*\w{{4}}", out, re.MULTILINE), (
            f"{shown} is not explained"
        )
    assert f"Examples:\n\n  regard {command}" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", ["sites", "advise", "compare"])
def test_help_lists_every_word_for_sites(capsys, command):
    described = call(capsys, command, "--help")[1].partition("--at STR")[2].partition("[default: auto]")[0]
    assert re.findall(r"\w+", described)[1 : len(WORDS) + 1] == [*WORDS]


def test_examples_are_understood():
    """Every example in the help parses; what it would do is not done."""
    for name, command in COMMANDS.items():
        lines = examples(command).replace("\\\n", " ").splitlines()
        assert lines, name
        for line in lines:
            first, *words = shlex.split(line)
            assert (first, words[0]) == ("regard", name)
            parsed, _, ignored = program().parse_args(words, exit_on_error=False, print_error=False)
            assert parsed is command
            assert not ignored


def test_the_commands_help_lists_the_others(capsys):
    for words in ([], ["--help"]):
        status, out, _ = call(capsys, *words)
        assert status == 0
        assert all(f"│ {command} " in out for command in COMMANDS)
        assert "  regard compare se" in out
        assert "Exit status" in out


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"{regard.__version__}\n", "")
    module = subprocess.run([sys.executable, "-m", "regard", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == f"{regard.__version__}\n"


# ---- list and info


def test_list_shows_every_mechanism(capsys):
    status, out, err = call(capsys, "list")
    assert (status, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["attention", "attaches", "at", "parameters", "at", "C=256", "paper"]
    groups, category = {}, None
    for row in rows:
        if row.startswith("  "):
            groups[category].append(row.split()[0])
        else:
            category = row
            groups[category] = []
    assert groups == {category: regard.names(category) for category in groups}
    assert sorted(name for names in groups.values() for name in names) == regard.names()
    assert {"channel", "spatial", "temporal", "branch", "channel and spatial", "spatial and temporal"} <= groups.keys()
    assert f"{regard.info('se').parameters(256):,}" in out


def test_list_by_category_and_as_json(capsys):
    rows = json.loads(call(capsys, "list", "--json")[1])
    assert [row["name"] for row in rows] == regard.names()
    assert rows[0].keys() == {"name", "category", "attention", "paper", "parameters_at_256"}
    for row in rows:
        built = sum(p.numel() for p in regard.create(row["name"], 256).parameters())
        assert row["parameters_at_256"] == built
    some = json.loads(call(capsys, "list", "--category", "channel", "--json")[1])
    assert [row["name"] for row in some] == regard.names("channel")
    assert 0 < len(some) < len(rows)
    hard = json.loads(call(capsys, "list", "--attention", "hard", "--json")[1])
    assert [row["name"] for row in hard] == ["glimpse"]


def test_info_of_an_arm_has_its_options(capsys):
    card = json.loads(call(capsys, "info", "eca[kernel_size=9]", "--json")[1])
    assert (card["options"]["kernel_size"], card["parameters_at_256"]) == (9, 9)
    assert "squeeze='max'" in call(capsys, "info", "cbam[squeeze=max]")[1]
    status, _, err = call(capsys, "info", "cbam[squeze=max]")
    assert (status, err) == (2, "regard: cbam has no option 'squeze'; did you mean 'squeeze'?\n")


def test_info_shows_the_card(capsys):
    status, out, _ = call(capsys, "info", "cbam")
    assert status == 0
    assert out == f"{regard.info('cbam')}\n"
    card = json.loads(call(capsys, "info", "cbam", "--json")[1])
    assert card["name"] == "cbam"
    assert card["options"] == dict(regard.info("cbam").options)
    assert card["card"]["Paper"]


# ---- sites and advise


NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def gray():
    return nn.Conv2d(1, 4, 3)
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


def test_sites_as_a_table_and_as_json(capsys, net):
    status, out, err = call(capsys, "sites", net, "--size", "12", "--at", "1,2", "--all")
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines() if line.startswith("* ")] == ["1", "2", "1,2"]
    found = json.loads(
        call(capsys, "sites", net, "--size", "12", "--batch", "3", "--mechanism", "se", "--at", "1", "--json")[1]
    )
    marked = [place["name"] for place in found["places"] if place["chosen"]]
    assert marked == ["1"]
    assert found["places"][0]["shape"][0] == 3
    assert found["what"] == "se"


def test_what_is_refused_is_a_table_and_then_a_sentence_and_status_2(capsys, net):
    refused = {"--mechanism cbam[foo=1]": "no option 'foo'", "--mechanism glimpse": "classifier", "--at x": "no module"}
    for words, sentence in refused.items():
        status, out, err = call(capsys, "sites", net, "--size", "12", *words.split())
        assert status == 2
        assert out.split()[:2] == ["name", "kind"]
        assert sentence in err
        assert sentence not in out
        assert err.count("\n") == 1
    assert call(capsys, "sites", net, "--size", "12", "--at", "1, 2,")[0] == 0


def test_the_command_line_asks_for_a_function_where_python_asks_for_an_example(capsys, net):
    net = net.replace("build", "gray")
    for command in ("sites", "advise"):
        status, _, err = call(capsys, command, net, "--size", "12")
        assert status == 2
        assert f"let {net} return (model, example), with an example that the model accepts (" in err


def test_a_picture_that_cannot_be_written_is_said_before_anything_is_measured(capsys, net, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "net.svg", "/proc/net.svg"):
        status, out, err = call(capsys, "advise", net, "--picture", str(path))
        assert (status, out) == (2, "")
        assert err.startswith(f"regard: cannot write to {path} (")
    monkeypatch.setattr("regard.cli.advise.check_writable", lambda path: None)
    status, out, err = call(
        capsys, "advise", net, "se", "--at", "1", "--rounds", "1", "--size", "9", "--picture", "/proc/x"
    )
    assert status == 2
    assert out.startswith(net), "the table is kept"
    assert err.startswith("regard: cannot write to /proc/x (")


def test_advise_as_a_table_as_json_and_as_a_picture(capsys, net, tmp_path):
    picture = tmp_path / "net.svg"
    words = ["advise", net, "se", "gct", "--at", "1", "--size", "12", "--batch", "2", "--rounds", "1"]
    status, out, err = call(capsys, *words, "--picture", str(picture))
    assert (status, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines() if line} >= {"se", "gct", "mechanism"}
    assert picture.read_text().startswith("<svg ")
    status, out, _ = call(capsys, *words, "--json", "--max-memory", "0.5", "--predict", "4")
    found = json.loads(out)
    assert status == 0
    assert found["network"] == net
    assert set(found["over"]) == {"se", "gct"}
    assert found["larger"] == 4


def test_every_option_of_advise_reaches_it(capsys, monkeypatch, net):
    given = {}

    def advise(model, example, **options):
        given.update(options, example=example)
        raise regard.UserError("enough")

    monkeypatch.setattr(regard, "advise", advise)
    words = "--size 20 --batch 3 --predict 9 --at a,b --layout tokens --repeated --max-slowdown 1.1 --max-memory 1.2"
    assert call(capsys, "advise", net, "se", "eca", *words.split(), "--rounds", "7", "--budget", "3")[0] == 2
    assert given.pop("example").shape == (3, 3, 20, 20)
    assert given.pop("progress")
    assert given == {
        "mechanisms": ("se", "eca"), "at": ["a", "b"], "layout": "tokens", "repeated": True, "batch": 9,
        "max_slowdown": 1.1, "max_memory": 1.2, "rounds": 7, "budget": 3.0, "name": net,
    }  # fmt: skip
    call(capsys, "advise", net)
    assert (given["mechanisms"], given["at"], given["max_slowdown"]) == (None, "auto", None)


def test_a_long_measurement_shows_each_row(capsys, monkeypatch, net):
    monkeypatch.setattr(ticker, "PATIENCE", 0)
    words = ["advise", net, "se", "tam", "--at", "1", "--size", "12", "--batch", "2", "--rounds", "1", "--json"]
    _, out, err = call(capsys, *words)
    json.loads(out)
    assert re.search(r"^1/2 se: training step x \d\.\d\d, memory x \d\.\d\d\n2/2 tam: 'tam' cannot", err)


def test_the_shell_completes_mechanisms_and_words_for_sites(capsys):
    def completed(*words):
        return [line.partition("\t")[0] for line in call(capsys, "__complete", *words)[1].splitlines()[2:]]

    attachable = [name for name in regard.names() if regard.info(name).place]
    assert completed("compare", "se", "c") == completed("sites", "resnet18", "--mechanism", "c") == attachable
    assert completed("info", "") == regard.names()
    assert completed("advise", "resnet18", "--at", "") == list(WORDS)
    assert "channel" in completed("list", "--category", "")
    script = program().generate_completion(shell="bash")
    assert "__complete" in script
    assert "--install-completion" in call(capsys, "--help")[1]


# ---- compare and report


def test_compare_prints_nothing_but_json_when_asked(compared):
    (status, out, err), folder = compared
    assert status == 0
    answer = json.loads(out)
    assert answer["arms"] == ["none", "se", "cbam[squeeze=max]"]
    assert answer == json.loads((folder / "result.json").read_text())
    assert "1/3 none, seed 0: validation" in err
    assert "1 seed can never show a difference" in err
    assert "\x1b" not in out + err


def test_report_prints_what_compare_found(capsys, compared):
    _, folder = compared
    page = folder / "report.html"
    page.unlink()
    status, out, err = call(capsys, "report", str(folder))
    assert (status, err) == (0, "")
    assert "cbam[squeeze=max]" in out
    assert out.endswith(f"\nReport: {page}\n")
    assert page.is_file()
    assert json.loads(call(capsys, "report", str(folder), "--json")[1])["arms"][0] == "none"


def test_every_option_of_compare_reaches_it(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("w.pt").touch()
    defaults = inspect.signature(regard.compare).parameters
    given = {}

    def compare(arms, **options):
        given.update(options, arms=arms)
        raise regard.UserError("enough")

    monkeypatch.setattr("regard.comparison.compare.compare", compare)
    words = "compare se eca --data photos --model resnet18 --seed-list 3,5 --epochs 4 --size 32 --batch 9"
    words += " --optimiser adamw --augmentation none --tune 7"
    words += " --learning-rate 0.5 --at layer1,layer2 --start identity --trunk frozen --margin 0.02 --pretrained"
    words += " --weights w.pt --control wider --out o --skip-broken --keep all --workers 3 --device cpu"
    words += " --looks 4,6 --pairing none"
    assert call(capsys, *words.split())[0] == 2
    assert given == {
        "arms": ("se", "eca"), "data": "photos", "model": "resnet18", "seeds": [3, 5], "epochs": 4, "tune": 7,
        "size": 32, "batch": 9, "optimiser": "adamw", "augmentation": "none", "learning_rate": 0.5,
        "at": ["layer1", "layer2"], "start": "identity", "trunk": "frozen", "margin": 0.02, "pretrained": True,
        "weights": Path("w.pt"), "control": "wider", "out": Path("o"), "skip_broken": True, "keep": "all",
        "workers": 3, "device": "cpu", "looks": [4, 6], "pairing": "none",
    }  # fmt: skip
    assert call(capsys, "compare", "se")[0] == 2
    for name, value in given.items():
        if name != "arms":
            assert value == defaults[name].default, f"{name} has two defaults"
    call(capsys, "compare", "se", "--seeds", "3")
    assert given["seeds"] == 3


# ---- mistakes


@pytest.mark.parametrize(
    ("command", "python", "shown"),
    [
        ("compare", "leave it out (skip_broken=True)", "leave it out (--skip-broken)"),
        ("advise", "pass repeated=True if that is meant", "pass --repeated if that is meant"),
        ("sites", "pass repeated=True if that is meant", "pass repeated=True if that is meant"),
        ("sites", "try at='branches' or at='head', layout='tokens'", "try --at branches or --at head, --layout tokens"),
        ("compare", "pass hidden=3", "pass hidden=3"),
    ],
)
def test_pythons_arguments_are_options_on_the_command_line(command, python, shown):
    assert as_options(python, COMMANDS[command]) == shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("frobnicate", 'Unknown command "frobnicate"'),
        ("list --frob", "--frob"),
        ("list --category spatal", "no category 'spatal'"),
        ("list se", "se"),
        ("info", "NAME"),
        ("info sse", "no mechanism 'sse'; did you mean 'scse' or 'se'"),
        ("info se cbam", "cbam"),
        ("sites", "MODEL"),
        ("sites resnt18", "no model 'resnt18' in timm; did you mean 'resnet18'"),
        ("sites net.py:build", "there is no file net.py"),
        ("sites resnet18 --layout sideways", "--layout"),
        ("advise", "MODEL"),
        ("advise resnet18 sse --size 32", "no mechanism 'sse'"),
        ("advise resnet18 se --max-slowdown 0 --size 32", "max_slowdown is a factor"),
        ("advise resnet18 --device abacus", "no device 'abacus'"),
        ("advise resnet18 --size 0", "at least 1"),
        ("report", "FOLDER"),
        ("report /nowhere", "/nowhere holds no comparison"),
        ("compare", "nothing to compare"),
        ("compare sse", "no mechanism 'sse'"),
        ("compare se se", "given twice"),
        ("compare se[reduction", "cannot read the arm"),
        ("compare se --epochs many", "--epochs"),
        ("compare se --epochs", "--epochs"),
        ("compare se --epochs 0", "epochs must be at least 1"),
        ("compare se --epochs 2 --epochs 3", "--epochs specified multiple times"),
        ("compare se --seeds 0", "seeds is how many"),
        ("compare se --seeds 8 --looks 4,8", "looks belong to --seeds auto"),
        ("compare se --looks 8,4", "looks are at most 20 ascending numbers"),
        ("compare se --seeds 3 --seed-list 1,2", "give one of them"),
        ("compare se --seed-list 1,x", "--seed-list is numbers joined by commas"),
        ("compare se --batch 0", "batch must be at least 2"),
        ("compare se --margin 5", "margin is a fraction"),
        ("compare se --start here", "--start"),
        ("compare se --keep some", "--keep"),
        ("compare se --control deeper", "--control"),
        ("compare se --data /nowhere", "does not exist"),
        ("compare se --device abacus", "no device 'abacus'"),
        ("compare se --wieghts w.pt", "--wieghts"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *words.split())
    assert (status, out) == (2, "")
    assert err.startswith("regard: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_mistake_ends_the_process_and_debug_shows_where(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["regard", "info", "sse"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "regard: there is no mechanism 'sse'; did you mean 'scse' or 'se' or 'sge'?\n")
    debug = tiny.regard("info", "sse", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert (
        debug.stderr.splitlines()[-1]
        == "regard.UserError: there is no mechanism 'sse'; did you mean 'scse' or 'se' or 'sge'?"
    )


@pytest.mark.parametrize(("missing", "words"), [("cyclopts", "list"), ("scipy", "compare se")])
def test_a_missing_package_is_named_with_what_to_install(missing, words):
    program = f"""
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nothing())
sys.argv = ["regard", *{words.split()}]
from regard.cli.main import main
main()
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], env=tiny.ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    sentence = (
        rf"regard: (this command|the command line) needs the package '{missing}.*': {re.escape(install('compare'))}\n"
    )
    assert re.fullmatch(sentence, ran.stderr)


@pytest.mark.parametrize("decoded", [True, False])
def test_missing_images_are_refused_early_where_they_are_not_decoded_yet(decoded, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "regard_images", None)
    if decoded:
        write_text(tmp_path / "run/data/meta.json", "nothing that can be read")
    status, out, err = call(capsys, "compare", "se", "--data", "cluttered", "--out", str(tmp_path / "run"))
    assert (status, out) == (2, "")
    if decoded:
        assert "meta.json" in err
    else:
        assert err.endswith(f"regard-images, which is not installed: {install_images()}\n")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "unbuffered"), [("list", ""), ("list", "1"), ("--help", "")])
def test_a_reader_that_goes_away_is_no_drama(words, unbuffered):
    """As in `regard list | head -1`; unbuffered output fails at the first line, buffered at the last."""
    read, write = os.pipe()
    os.close(read)
    environment = tiny.ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered}
    ran = subprocess.run([tiny.REGARD, words], stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write)
    assert ran.stderr == b""
    assert ran.returncode == (1 if words == "--help" else 141)  # 141 is what a shell says where SIGPIPE ended a process


# ---- Ctrl-C

STOPPED = "Stopped; nothing finished is lost. The same command goes on from here."


def loading_torch(process, out):
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


PATIENCE = 3  # seconds: one or two, and what the tests beside this one take


def starting_a_worker(process, out):
    return tiny.workers(process.pid)


def training(process, out):
    return list(out.glob("runs/*/*.ckpt"))


def interrupt(photos, out, moment, **options):
    """Start a long comparison, wait for the moment, press Ctrl-C; the process, and how long it then took."""
    words = ["compare", "se", "--data", str(photos), *tiny.WORDS, "--epochs", "5000", "--seeds", "2"]
    process = tiny.begin(*words, "--out", str(out), **options)
    try:
        tiny.until(lambda: moment(process, out), process)
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
        return process, time.monotonic() - pressed
    finally:
        tiny.gone(process.pid)


@pytest.mark.parametrize("moment", [pytest.param(loading_torch), starting_a_worker])
def test_ctrl_c_ends_everything_with_one_sentence(photos, tmp_path, moment):
    process, seconds = interrupt(photos, tmp_path / "out", moment)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert err.endswith(f"\n{STOPPED}\n")
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err
    assert seconds < PATIENCE


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 1, 2, 3, 4, 5, 6, 8])
def test_ctrl_c_at_any_moment(photos, tmp_path, delay):
    begun = time.monotonic()
    process, seconds = interrupt(photos, tmp_path / "out", lambda *_: time.monotonic() - begun > delay)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.endswith(f"\n{STOPPED}\n")
    assert "Traceback" not in err
    assert seconds < PATIENCE


def test_ctrl_c_on_a_terminal(photos, tmp_path):
    """The live table is put away, the cursor comes back, and NO_COLOR is heard."""
    ours, theirs = pty.openpty()
    environment = tiny.ENVIRONMENT | {"TERM": "xterm-256color", "NO_COLOR": "1"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    pieces = []

    def read():  # a terminal reads all the time; one that does not would block the writer
        with suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536):
                pieces.append(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    process, seconds = interrupt(photos, tmp_path / "out", training, env=environment, **streams)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    text = b"".join(pieces).decode()
    assert process.returncode == 130
    assert seconds < PATIENCE
    assert text.startswith("Loading ...\r")
    assert text.endswith(f"{STOPPED}\r\n")
    assert "Traceback" not in text
    assert "validation accuracy" in text, "there was no live table"
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") > 0, "the cursor stays hidden"
    assert not re.search(r"\x1b\[(\d+;)*[34]\d", text), "there are colours"
