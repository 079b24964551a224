"""The kernels built with checks of every address and of what C++ leaves undefined, under the tests of the ops."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from regard.ops.kernels.library import levels

ROOT = Path(__file__).parents[2]
# last, so that they win over the flags of setup.py
COMPILER = '#!/bin/sh\nexec g++ "$@" -O1 -fsanitize=address,undefined -fno-sanitize-recover=all\n'


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the sources with kernels that check themselves."""
    if not (sys.platform.startswith("linux") and shutil.which("g++")):
        pytest.skip("needs GCC on Linux")
    copy = tmp_path_factory.mktemp("sanitized")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    compiler = copy / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    env = os.environ | {"CC": str(compiler), "CXX": str(compiler)}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
    assert list(copy.rglob("kernels.*.so")), done.stderr[-4000:]
    return copy / "src"


@pytest.mark.slow
@pytest.mark.parametrize("level", levels())
def test_the_ops(built, level):
    # with the C++ library, whose exceptions the checks pass through
    asked = [["g++", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    libraries = [subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip() for ask in asked]
    env = os.environ | {
        "PYTHONPATH": str(built),
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "REGARD_LEVEL": level,
    }
    known = "import regard, regard.ops.kernels.library as library; print(regard.__file__, library.missing())"
    said = subprocess.run([sys.executable, "-c", known], env=env, capture_output=True, text=True, check=False)
    assert said.stdout.split() == [str(built / "regard" / "__init__.py"), "None"], said.stdout + said.stderr[-4000:]
    files = [
        str(ROOT / "tests" / "ops" / name)
        for name in ("test_ops.py", "test_exactness.py", "test_gradients.py", "test_selfgating.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "--capture=sys", "-k", "not triton", *files]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
