"""The table of tools in docs/frameworks.md: none of them drops attention in silence."""

import pytest

import rebuilding


@pytest.mark.parametrize("words", rebuilding.asked())
def test_attention_survives_or_the_tool_says_no(words):
    row = rebuilding.row(words)
    assert rebuilding.LOST not in row
    assert row in rebuilding.PAGE.read_text(), "`make tools` writes it"


def test_every_tool_stands_in_the_table():
    lines = rebuilding.PAGE.read_text().splitlines()
    assert all(any(line.startswith(f"| {words} | ") for line in lines) for words in rebuilding.TOOLS)


def test_a_network_without_its_attention_would_be_told(monkeypatch):
    def drop(net, x):
        rebuilding.regard.attached(net)[0].remove()
        return net

    monkeypatch.setitem(rebuilding.TOOLS, "drop", drop)
    assert [rebuilding.outcome("drop", at) for at in rebuilding.PLACES.values()] == [rebuilding.LOST] * 2
