"""The table of tools in docs/frameworks.md: none of them drops attention in silence."""

import pytest

import tools


@pytest.mark.parametrize("words", tools.asked())
def test_attention_survives_or_the_tool_says_no(words):
    row = tools.row(words)
    assert tools.LOST not in row
    assert row in tools.PAGE.read_text(), "`make tools` writes it"


def test_every_tool_stands_in_the_table():
    lines = tools.PAGE.read_text().splitlines()
    assert all(any(line.startswith(f"| {words} | ") for line in lines) for words in tools.TOOLS)


def test_a_network_without_its_attention_would_be_told(monkeypatch):
    def drop(net, x):
        tools.regard.attached(net)[0].remove()
        return net

    monkeypatch.setitem(tools.TOOLS, "drop", drop)
    assert [tools.outcome("drop", at) for at in tools.PLACES.values()] == [tools.LOST] * 2
