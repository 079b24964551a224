"""docs/export.md is what `exporting.py` found, what it was not asked yet is said, and a sample of it is found again."""

import copy

import pytest
import torch

import exporting
import regard
import resultfiles
from exporting import CHECKS, PAGE, render

FOUND = resultfiles.read("export")


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(FOUND), "run `make docs` and commit what changes"


@pytest.mark.parametrize("name", FOUND)
def test_every_answer_is_yes_or_explained(name):
    explained = regard.info(name).cannot_export
    for column, answer in FOUND[name]["answers"].items():
        if answer != exporting.NO_GPU:
            no = isinstance(answer, str)
            assert no == (column in explained), f"{column}: {answer}"
            assert no or answer <= CHECKS[column][1]
    assert explained.keys() <= CHECKS.keys()


def test_what_was_not_asked_yet_is_said():
    answers = FOUND["cbam"]["answers"] | {}
    del answers["onnx"]
    page = render({"bam": FOUND["bam"], "cbam": FOUND["cbam"] | {"answers": answers}})
    said = {line.split("]")[0][3:]: line.count("not asked yet") for line in page.splitlines() if line.startswith("| [")}
    assert said == dict.fromkeys(exporting.leaving(), len(CHECKS)) | {"bam": 0, "cbam": 1}


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
