"""Results that are kept in one file for each mechanism, with the commit that they were made at."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from regard.base.files import slug, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("src", "tests", "benchmarks/*.py", "tools")  # what a result may depend on
LATER = "not asked yet"  # what a page says where there is no result


def commit() -> str:
    """The commit that the code is at, with a ``+`` where files differ from it."""
    at = _git("describe", "--always", "--abbrev=10", "--exclude=*")
    return at + "+" * bool(_git("status", "--porcelain", "--", *SOURCES))


def write(kind: str, name: str, found: dict[str, Any]) -> Path:
    """Keep what was found of a mechanism."""
    path = RESULTS / kind / f"{slug(name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, json.dumps({"name": name, "commit": commit()} | found, indent=1) + "\n")


def read(kind: str) -> dict[str, dict[str, Any]]:
    """What is kept of every mechanism, by name."""
    found = (json.loads(path.read_text()) for path in sorted((RESULTS / kind).glob("*.json")))
    return {each["name"]: each for each in found}


def versions(found: dict[str, dict[str, Any]]) -> str:
    """The versions of packages that results were made with, each once."""
    pairs = {(package, number): None for each in found.values() for package, number in each["versions"].items()}
    return ", ".join(f"{package} {number}" for package, number in pairs)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
