"""docs/export.md is what `exporting.py` found, it asked every mechanism, and a sample of it is found again."""

import copy
import json

import pytest
import torch

import exporting
import regard
from exporting import CHECKS, PAGE, RESULTS, render

FOUND = json.loads(RESULTS.read_text())
ANSWERS = FOUND["mechanisms"]


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(FOUND), "run tests/exporting.py and commit what changes"


@pytest.mark.parametrize("name", exporting.leaving())
def test_every_mechanism_was_asked_everything(name):
    assert ANSWERS[name].keys() == CHECKS.keys()
    for column, answer in ANSWERS[name].items():
        if answer != exporting.NO_GPU:
            no = isinstance(answer, str)
            assert no == (column in regard.info(name).cannot_export), f"{column}: {answer}"
            assert no or answer <= CHECKS[column][1]


@pytest.mark.parametrize("name", ["se", pytest.param("danet_position", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "column",
    ["onnx", *(pytest.param(c, marks=pytest.mark.slow) for c in ("export", "bf16", "channels_last", "deterministic"))],
)
def test_a_sample_is_found_again(name, column):
    answer = exporting.ask(name, column)
    assert not isinstance(answer, str), answer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["se", "danet_position"])
def test_compiled_without_inductor(name):
    assert exporting.compiled(name, backend="aot_eager") < 1e-4


def test_what_does_not_agree_is_said(monkeypatch):
    """A table that could not say no would say nothing."""
    program = torch.export.ExportedProgram.module
    monkeypatch.setattr(torch.export.ExportedProgram, "module", lambda self: lambda x: program(self)(1.01 * x))
    assert exporting.ask("eca", "export").startswith("off by")
    monkeypatch.setattr(exporting, "learn", lambda parameters: None)
    assert "eca does nothing" in exporting.ask("eca", "export")


def test_csam_in_a_network_that_is_channels_last_already():
    """Its 3-D kernel cannot be converted, but what is attached after the conversion keeps the layout."""
    network, attached = exporting.host("csam")
    attached.remove()
    network.to(memory_format=torch.channels_last)
    x = exporting.images().contiguous(memory_format=torch.channels_last)
    again = regard.attach(network, "csam", example=x, start="paper")
    assert again.sites == attached.sites
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format).train()(exporting.images())
    for module in again.modules.values():
        module.register_forward_hook(exporting.same_layout)
    torch.testing.assert_close(network.train()(x), plain, rtol=1e-3, atol=1e-3)
