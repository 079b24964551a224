"""What is installed is what was tested: built from a clean clone, and used in an environment of its own."""

import os
import pty
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

import instructions
import replaying
from regard.ops.kernels import interface, library

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
UV = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")

GATED = """
import sys, torch, regard
from torch import nn
from regard.ops.kernels import library

assert library.__file__.startswith(sys.prefix), library.__file__
for name in ("se", "eca", "cbam", "simam", "sge", "coordinate", "triplet", "shuffle"):
    found = []
    for implementation in ("auto", "reference"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 8, 1))
        x = torch.randn(2, 3, 21, 21)
        regard.attach(net, name, at="2", example=x, start="paper", seed=0)
        with regard.use_impl(implementation):
            y = net(x)
            y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
    most = max(law.abs().max().item() for law in found[1])  # a bias before a batch norm has a gradient of noise alone
    for mine, law in zip(*found, strict=True):
        torch.testing.assert_close(mine, law, rtol=1e-3, atol=1e-5 * most)
print(library.overview()["level"])
"""


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The tree as a commit of it would be cloned."""
    if UV is None or shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs uv, git and a clone")
    folder = tmp_path_factory.mktemp("clone")
    names = run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard", "-z").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def install(wheel, folder):
    """An environment of its own, which borrows torch and the rest: its folder of programs, where no compiler is."""
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    python = folder / "bin/python"
    add(wheel, python)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))  # whose own .pth files are not read
    return folder / "bin"


def add(wheel, python):
    run(UV, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-index", wheel)


def environment(programs, **more):
    kept = {name: value for name, value in os.environ.items() if name not in ("PATH", "PYTHONPATH", "REGARD_LEVEL")}
    return kept | {"PATH": str(programs)} | more


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the libraries are disassembled on Linux")
def test_a_wheel_from_a_clean_clone_gates_a_network_where_there_is_no_compiler(clone, tmp_path):
    log = run(UV, "build", "--python", sys.executable, "--out-dir", tmp_path / "dist", clone)  # by way of the sdist
    assert "building 'regard.ops.kernels." in log, "the test sees nothing"
    assert not re.findall(r"^.*:\d+: (?:warning|error):.*$", log, re.MULTILINE)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-{PLATFORM}.whl")
    levels = library.LEVELS if PLATFORM == "linux_x86_64" else ("generic",)
    with zipfile.ZipFile(wheel) as held:
        inside = {Path(name).name for name in held.namelist() if "/kernels/" in name}
        held.extractall(tmp_path / "held")
    assert {f"kernels.{level}.so" for level in levels} | {
        path.name for path in interface.FOLDER.glob("*.cpp")
    } <= inside
    for level in levels:
        if PLATFORM == "linux_x86_64":
            instructions.check(tmp_path / f"held/regard/ops/kernels/kernels.{level}.so", level)
    programs = install(wheel, tmp_path / "own")
    assert shutil.which("cc", path=programs) is None
    shown = run(programs / "regard", "ops", env=environment(programs))
    assert f"{library.levels()[0]} runs here; usable: {', '.join(library.levels())}" in shown
    for level in library.levels():
        assert run(programs / "python", "-c", GATED, env=environment(programs, REGARD_LEVEL=level)).split() == [level]


def test_a_failed_compile_is_said_and_the_reference_runs(clone, tmp_path):
    said = tmp_path / "log"
    child, handle = pty.fork()
    if child == 0:  # pip and uv keep what a build prints from the terminal: here a file takes it
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.environ.update(CC="no-compiler", CXX="no-compiler")
        os.execv(UV, ["uv", "build", "--wheel", "--python", sys.executable, "--out-dir", str(tmp_path), str(clone)])
    told = b""
    try:
        while part := os.read(handle, 4096):
            told += part
    except OSError:  # how a terminal ends on Linux
        pass
    assert os.waitpid(child, 0)[1] == 0, said.read_text()
    for level in library.LEVELS if PLATFORM == "linux_x86_64" else ("generic",):
        sentence = f"regard: the C++ kernels of level {level} were not built"
        assert sentence in told.decode()
        assert sentence in said.read_text()
    (wheel,) = tmp_path.glob("*.whl")
    programs = install(wheel, tmp_path / "own")
    shown = run(programs / "regard", "ops", env=environment(programs))
    assert "C++ kernels: none runs here; usable: none" in shown
    assert f"level {library.levels()[0]} were not built" in shown
    assert run(programs / "python", "-c", GATED, env=environment(programs)).split() == ["None"]


def test_the_images_are_a_package_of_their_own(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler")  # the kernels, which differ by platform, are left out
    for source in (clone, clone / "images"):
        run(UV, "build", "--wheel", "--python", sys.executable, "--out-dir", tmp_path, source)
    (wheel,), (images,) = tmp_path.glob("regard-*.whl"), tmp_path.glob("regard_images-*.whl")
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(images) as held:
        inside = {Path(name).name for name in held.namelist() if name.startswith("regard_images/")}
    assert inside == {"__init__.py", "py.typed", "fashion.xz", "fashion.LICENSE"}
    programs = install(wheel, tmp_path / "own")
    compare = [programs / "regard", "compare", "none", "--seeds", "1", "--epochs", "1", "--out", tmp_path / "run"]
    own = environment(programs, HOME=str(tmp_path))
    refused = subprocess.run(compare, env=own, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith("is not installed: pip install ./images, in a clone of regard\n")
    add(images, programs / "python")
    path = run(programs / "python", "-c", "import regard_images; print(regard_images.fashion())", env=own).strip()
    assert Path(path).is_relative_to(tmp_path / "own")
    assert Path(path).read_bytes() == (clone / "images/src/regard_images/fashion.xz").read_bytes()
    prepare = "import sys; from regard.comparison import data; print(len(data.prepare('fashion', sys.argv[1]).labels))"
    assert run(programs / "python", "-c", prepare, tmp_path / "data", env=own).split() == ["20000"]


CROSS = {  # the compiler of a Linux, and the one of a Mac, without the threads that macOS brings no library for
    "g++": (["aarch64-linux-gnu-g++"], ["-fopenmp"]),
    "clang": (["clang++", "--target=aarch64-linux-gnu"], []),
}
PACKAGES = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "clang++": "clang", "qemu-aarch64": "qemu-user"}


def needs(*programs):
    """Debian's programs, installed where that may be done."""
    absent = [PACKAGES[program] for program in programs if shutil.which(program) is None]
    if absent and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent], **quiet)
    if any(shutil.which(program) is None for program in programs):
        pytest.skip(f"needs the packages {', '.join(absent)}, and they could not be installed")


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """What the kernels are asked by the cases of every op, and what they answer here."""
    if library.missing():
        pytest.skip("no C++ kernels here whose calls could be recorded")
    path = tmp_path_factory.mktemp("calls") / "calls"
    with pytest.MonkeyPatch.context() as monkeypatch:
        path.write_bytes(replaying.record(monkeypatch))
    return path


@pytest.mark.parametrize("compiler", CROSS)
def test_the_generic_level_computes_the_same_on_aarch64(compiler, calls, tmp_path, monkeypatch):
    pytest.importorskip("setuptools", reason="the flags are those of setup.py")
    words, threads = CROSS[compiler]
    needs("aarch64-linux-gnu-g++", words[0], "qemu-aarch64")
    monkeypatch.chdir(ROOT)
    with mock.patch("setuptools.setup"):
        built = runpy.run_path("setup.py")
    flags = [flag for flag in built["COMMON"] if flag != "-fopenmp"] + built["levels"]("linux-aarch64")["generic"]
    flags += ["-Werror", *threads, '-DREGARD_BUILT="generic"']

    def translate(source):
        run(*words, *flags, "-c", source, "-o", tmp_path / f"{source.stem}.o")
        return tmp_path / f"{source.stem}.o"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [*pool.map(translate, [*interface.FOLDER.glob("*.cpp"), ROOT / "tests/support/replay.cpp"])]
    run(*words, "-static", *threads, *objects, "-o", tmp_path / "replay")
    said = run("qemu-aarch64", tmp_path / "replay", calls)
    assert " 0 wrong" in said
    assert int(said.split()[0]) > 300, "the test sees nothing"
