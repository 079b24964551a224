"""What `import regard` brings, what it leaves alone, and what it says when something is not installed."""

import json
import subprocess
import sys

import pytest

import regard
from regard.base.errors import install, install_images

HEAVY = {"timm", "torchvision", "matplotlib", "scipy", "PIL", "jinja2", "rich", "cyclopts", "filelock", "triton"}
HEAVY |= {"gradio"}


def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_import_is_light():
    loaded = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    before, after, cuda, late = run(
        f"import sys, torch\n{loaded}\nimport regard\n{loaded}\n"
        "print(torch.cuda.is_initialized())\n"
        "regard.attach(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1)), 'se', at='0', example=torch.ones(1, 3, 2, 2))\n"
        f"{loaded}"
    )[:4]
    heavy = HEAVY - set(before.split())
    assert {"timm", "matplotlib", "scipy"} <= heavy, "the test sees nothing"
    assert not heavy & set(after.split())
    assert cuda == "False"
    assert not heavy & set(late.split()), "attaching stays light, too"


def test_the_public_names():
    assert set(regard.__all__) <= set(dir(regard))
    for name in regard.__all__:
        assert getattr(regard, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="module 'regard' has no attribute 'atach'"):
        regard.atach  # noqa: B018


BLOCKED = """
import os, sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import regard
sys.meta_path.insert(0, Missing())
for request in sys.argv[1:]:
    package, word = request.split(":")
    child = os.fork()  # each its own process, without loading torch again
    if child:
        os.waitpid(child, 0)
        continue
    try:
        getattr(regard, word)
        print("no error", flush=True)
    except regard.UserError as error:
        print(error, flush=True)
    os._exit(0)
"""


@pytest.mark.slow
def test_what_is_not_installed_is_named():
    requests = [
        ("matplotlib", "compare"),
        ("matplotlib", "overlay"),
        ("PIL", "sheet"),
        ("jinja2", "compare"),
        ("rich", "compare"),
        ("filelock", "compare"),
    ]
    lines = run(BLOCKED, *(f"{package}:{word}" for package, word in requests))
    for (package, word), line in zip(requests, lines[:-1], strict=True):
        assert line == f"regard.{word} needs the package {package!r}: {install('compare')}"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'regard[app]'"),
        ({"url": "file:///a%20b/src", "dir_info": {}}, "pip install '/a b/src[app]'"),
        ({"url": "file:///src", "dir_info": {"editable": True}}, "pip install -e '/src[app]'"),
        ({"url": "file:///r-1.whl", "archive_info": {}}, "pip install 'regard[app] @ file:///r-1.whl'"),
    ],
)
def test_an_extra_comes_from_where_the_package_came_from(origin, command, monkeypatch):
    class Distribution:
        def read_text(self, name):
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution())
    assert install("app") == command


@pytest.mark.parametrize("clone", [True, False])
def test_the_images_come_from_the_clone_that_the_package_came_from(clone, monkeypatch, tmp_path):
    class Distribution:
        def read_text(self, name):
            return json.dumps({"url": tmp_path.as_uri(), "dir_info": {}})

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution())
    if clone:
        (tmp_path / "images").mkdir()
        (tmp_path / "images/pyproject.toml").touch()
    command = f"pip install '{tmp_path}/images'" if clone else "pip install ./images, in a clone of regard"
    assert install_images() == command


def test_a_fault_of_our_own_is_not_called_a_missing_package(monkeypatch):
    monkeypatch.setitem(regard._HOME, "compare", "regard.comparison.no_such_room")
    monkeypatch.delitem(vars(regard), "compare", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_room"):
        regard.compare  # noqa: B018
