"""The README's screenshots: the report of the demo, and the interactive demo with two networks side by side.

``python tools/screenshots.py [REPORT_FOLDER [APP_FOLDER]]`` writes docs/images/{report,app}.webp; `make screenshots`
trains what is missing.
"""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "images"
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield chromium
        chromium.close()


def save(png: bytes, name: str) -> None:
    Image.open(io.BytesIO(png)).convert("RGB").save(IMAGES / name, quality=80, method=6)


def report(chromium: Any, folder: Path) -> None:
    """The first screen of a report."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((folder / "report.html").resolve().as_uri())
    save(page.screenshot(), "report.webp")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of `regard app` on a folder; afterwards it is stopped."""
    command = [sys.executable, "-m", "regard", "app", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield next(line for line in process.stdout if line.startswith("http")).split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def app(chromium: Any, folder: Path) -> None:
    """The baseline's evidence beside what one place looks at by the non-local block."""
    picture = sorted((folder / "shown" / "pictures").glob("ankle-boot-*.png"))[0]
    with served(folder) as address:
        page = chromium.new_page(viewport={"width": 1000, "height": 1040})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.set_input_files("#upload input[type=file]", str(picture))
        page.locator("#map-A img").wait_for()
        page.locator("#network-B input").click()
        page.get_by_role("option", name="non_local, seed 0", exact=True).click()
        page.locator("#panel-B").filter(has_text="non_local").wait_for()
        page.locator("#key-B input").click()
        page.get_by_role("option").filter(has_text="view").last.click()
        page.locator("#row input[type=number]").fill("75")
        page.locator("#column input[type=number]").fill("45")
        page.locator("#where").filter(has_text="45").wait_for()
        page.wait_for_timeout(3000)  # the last map is drawn
        save(page.screenshot(full_page=True), "app.webp")


if __name__ == "__main__":
    folders = [*sys.argv[1:], *("runs/demo", "runs/galleries/convolutions")[len(sys.argv) - 1 :]]
    with browser() as chromium:
        report(chromium, Path(folders[0]))
        app(chromium, Path(folders[1]))
