"""docs/evidence.md is what `make evidence` found so far."""

import pytest

from evidence import PAGE, ROOT, TABLES, load, pack, render, rows, unpack

FOUND = load()


def test_the_readme_says_what_the_page_says():
    headline = next(line for line in PAGE.read_text().splitlines() if line.startswith("**"))
    assert headline.strip("*") in (ROOT / "README.md").read_text()


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == render(FOUND), "run `make evidence` and commit what changes"


@pytest.mark.parametrize("name", FOUND)
def test_every_arm_has_its_constant_and_its_own_rate(name):
    comparison = FOUND[name]
    assert len(comparison.twins) == len(TABLES[name].arms)
    assert comparison.question.rates.keys() == set(comparison.arms)
    assert {row["arm"] for row in rows(comparison)} == {"none", *TABLES[name].arms}
    assert comparison.missing == []


def test_what_is_packed_comes_out_again(tmp_path):
    name = next(iter(FOUND))
    packed = PAGE.parents[1] / "benchmarks" / "results" / "evidence" / f"{name}.json"
    unpack(packed, tmp_path / "out")
    pack(tmp_path / "out", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == packed.read_text()
