"""One thread for each test process: they run side by side. No deadlines: a busy machine is not a defect."""

import shutil
import time

import pytest
import torch
from hypothesis import settings

from regard.costs import timing

torch.set_num_threads(1)
settings.register_profile("regard", deadline=None)
settings.load_profile("regard")

CHROMIUM = shutil.which("chromium")


def pytest_collection_modifyitems(items):
    """What opens a page in a browser is left out where there is none."""
    for item in items:
        if CHROMIUM is None and "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="no Chromium on this machine: the page cannot be opened"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


class Clock:
    """Time that passes while somebody sleeps, and by a tick whenever it is read."""

    TICK = 1e-6

    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def __call__(self):
        self.now += self.TICK
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Nobody waits: what `regard.costs.timing` reads, and what `time.sleep` moves on."""
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock
