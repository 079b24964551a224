"""The libraries in C++ that were built: which runs, what is in them, and what is refused."""

import ctypes
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import instructions
import regard
from regard import ops
from regard.cli import main as cli
from regard.ops.kernels import interface, library

X86 = sys.platform == "linux" and platform.machine() == "x86_64"
BUILT = library.LEVELS if X86 else ("generic",)
here = pytest.mark.skipif(library.missing() is not None, reason="no C++ kernels here")


def fresh():
    """Forget what was loaded."""
    for remembered in (library._open, library._chosen, library.function):
        remembered.cache_clear()
    for op in ops.OPS.values():
        op.chosen.clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which the libraries are looked for."""
    expected = interface.fingerprint()
    monkeypatch.setattr(interface, "FOLDER", tmp_path)
    monkeypatch.setattr(interface, "fingerprint", lambda: expected)
    fresh()
    yield tmp_path
    fresh()


@pytest.fixture
def asked(monkeypatch):
    """Ask for a level."""

    def ask(level):
        monkeypatch.setenv("REGARD_LEVEL", level)
        fresh()

    monkeypatch.delenv("REGARD_LEVEL", raising=False)
    fresh()
    yield ask
    monkeypatch.undo()
    fresh()


def pooled():
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.squeeze(x, (2, 3))[1], x.mean((2, 3), keepdim=True))


def best():
    return interface.FOLDER / f"kernels.{library.levels()[0]}.so"


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no C++ kernels on this platform")
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_every_level_of_the_platform_is_built():
    for level in BUILT:
        assert isinstance(library._open(level), ctypes.CDLL), library._open(level)


@pytest.mark.skipif(not X86, reason="the levels differ on Linux x86-64 alone")
@pytest.mark.parametrize("level", BUILT)
def test_no_library_holds_an_instruction_above_its_level(level):
    path = interface.FOLDER / f"kernels.{level}.so"
    if not path.is_file():
        pytest.skip(library._open(level))
    instructions.check(path, level)


@here
def test_the_best_level_runs_unless_another_is_asked_for(asked):
    usable = [level for level, reason in library.overview()["levels"].items() if reason is None]
    assert library.overview()["level"] == usable[0]
    for level in usable:
        asked(level)
        assert library.overview()["level"] == level
        pooled()


@pytest.mark.parametrize(
    ("level", "capability", "sentence"),
    [
        ("avx3", "AVX512", "REGARD_LEVEL=avx3: the levels are avx512, avx2, generic; did you mean 'avx2' or 'avx512'?"),
        ("avx512", "AVX2", "REGARD_LEVEL=avx512: this machine lacks it and has avx2, generic"),
        ("avx2", "DEFAULT", "REGARD_LEVEL=avx2: this machine lacks it and has generic"),
    ],
)
def test_a_level_that_there_is_not_is_refused_in_a_sentence(level, capability, sentence, asked, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    asked(level)
    for _ in range(2):
        with pytest.raises(regard.UserError) as caught:
            pooled()
        assert str(caught.value) == sentence
    assert cli.run(["ops"]) == 2
    assert capsys.readouterr().err == f"regard: {sentence}\n"


@pytest.mark.parametrize(("capability", "level"), [("AVX512", "avx512"), ("AVX2", "avx2"), ("SVE256", "generic")])
def test_the_level_is_that_of_the_machine(capability, level, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert library.levels()[0] == level
    assert library.levels()[-1] == "generic"


def test_what_was_not_built_is_said_and_the_reference_runs(folder, asked, capsys, recwarn):
    assert "level generic were not built" in library.overview()["levels"]["generic"]
    pooled()
    assert not recwarn
    assert cli.run(["ops"]) == 0
    out = capsys.readouterr().out
    assert "C++ kernels: none runs here; usable: none" in out
    assert f"the C++ kernels of level {library.levels()[0]} were not built" in out
    asked("generic")
    with pytest.raises(regard.UserError, match="REGARD_LEVEL=generic: the C\\+\\+ kernels of level generic were not"):
        pooled()


STALE = {
    "built from other sources": (
        lambda held: held.replace(interface.fingerprint().encode(), b"0" * 16),
        "other sources",
    ),
    "built before it said from what": (lambda held: held.replace(b"regard_built", b"regard_cuilt"), "other sources"),
    "a level's library under another name": (lambda held: (here_or_skip("generic")).read_bytes(), "other sources"),
    "damaged": (lambda held: b"no library", "cannot be loaded"),
}


def here_or_skip(level):
    path = Path(library.__file__).parent / f"kernels.{level}.so"
    return path if path.is_file() else pytest.skip(f"no library of level {level}")


@here
@pytest.mark.skipif(not X86, reason="only one level here")
@pytest.mark.parametrize("case", STALE)
def test_a_library_that_is_not_of_this_regard_is_refused(case, folder, asked, capsys, recwarn):
    change, words = STALE[case]
    level = library.levels()[0]
    (folder / f"kernels.{level}.so").write_bytes(change(here_or_skip(level).read_bytes()))
    fresh()
    with pytest.warns(UserWarning, match=f"{words}.*; slower code runs in their place"):
        pooled()
    pooled()  # once
    assert not recwarn
    assert cli.run(["ops"]) == 0
    assert words in capsys.readouterr().out


@here
@pytest.mark.parametrize("name", interface.STRUCTS)
def test_structs_of_another_size_are_refused(name, monkeypatch, asked):
    class Longer(ctypes.Structure):
        _fields_ = [*interface.STRUCTS[name]._fields_, ("more", ctypes.c_int64)]

    monkeypatch.setitem(interface.STRUCTS, name, Longer)
    reason = library._open("generic")
    size = ctypes.sizeof(Longer)
    assert f"has a struct {name} of {size - 8} bytes, and Python one of {size}" in str(reason)


def test_every_struct_that_a_kernel_takes_is_compared():
    sources = "".join(path.read_text() for path in interface.FOLDER.glob("*.cpp"))
    shared = {word.partition(")")[0] for word in sources.split("SHARED(")[1:]}
    assert shared == set(interface.STRUCTS)
    taken = {word.split("const ")[1].split(" *")[0] for word in sources.split("void regard_")[1:]}
    assert taken <= shared
    assert len(taken) == 8


def test_what_a_library_was_built_from_is_every_source(tmp_path, monkeypatch):
    for path in [*interface.FOLDER.glob("*.cpp"), *interface.FOLDER.glob("*.h"), interface.FOLDER / "interface.py"]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    expected = interface.fingerprint()
    monkeypatch.setattr(interface, "FOLDER", tmp_path)
    assert interface.fingerprint() == expected
    for path in tmp_path.iterdir():
        held = path.read_bytes()
        path.write_bytes(held + b"\n")
        assert interface.fingerprint() != expected
        path.write_bytes(held)


@here
@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd here")
def test_the_libraries_need_neither_torch_nor_python():
    said = subprocess.run(["ldd", str(best())], capture_output=True, text=True, check=True).stdout
    needed = [line.partition(" (")[0] for line in said.splitlines()]  # without the address, which may spell c10
    assert not any(word in library for word in ("torch", "python", "gomp", "c10") for library in needed)
