"""Every example runs, from the images to the page, and has left its page in the docs."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
QUICK = ROOT / "runs" / "examples" / "quick"
DOCS = ROOT / "docs" / "examples"
SECONDS = 90  # of processor time, so that a slow machine fails nothing; a quick one needs about 8

EVERY = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "common"]
UNTRAINED = {"pretrained"}


def limit_time():
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def published(name):
    """When its page and figure in the docs were written."""
    return {path: path.stat().st_mtime_ns for path in DOCS.glob(f"{name}.*")}


@pytest.mark.slow
@pytest.mark.parametrize("script", EVERY, ids=lambda path: path.stem)
def test_a_quick_try_makes_a_page_and_leaves_that_in_the_docs_alone(script):
    page, figure = QUICK / f"{script.stem}.md", QUICK / f"{script.stem}.webp"
    page.unlink(missing_ok=True)
    figure.unlink(missing_ok=True)
    docs = published(script.stem)
    tried = subprocess.run(
        [sys.executable, script, "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=limit_time,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert tried.returncode == 0, tried.stderr
    assert published(script.stem) == docs
    assert f"]({figure.name})" in page.read_text()
    assert Image.open(figure).width >= 600


@pytest.mark.parametrize("script", [path for path in EVERY if path.stem not in UNTRAINED], ids=lambda path: path.stem)
def test_the_docs_have_its_page_with_enough_seeds_to_judge(script):
    page = (DOCS / f"{script.stem}.md").read_text()
    table = page.partition("| arm | runs |")[2].partition("\n\n")[0]
    arms = table.splitlines()[2:]
    assert len(arms) >= 2
    assert all(int(arm.split("|")[2]) >= 5 for arm in arms)
    assert Image.open(DOCS / f"{script.stem}.webp").width >= 600


def test_the_docs_say_that_identity_leaves_every_photo_as_it_was():
    page = (DOCS / "pretrained.md").read_text()
    rows = [row.split(" | ") for row in page.partition("|---|")[2].partition("\n\n")[0].splitlines()[1:]]
    assert len(rows) >= 20
    assert {row[4] for row in rows} == {"20"}
    assert Image.open(DOCS / "pretrained.webp").width >= 600
