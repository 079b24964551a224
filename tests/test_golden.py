"""Every mechanism against numbers computed with the authors' own code."""

import pytest

import regard
from golden import CASES, deviations

QUIRKS = ("bam_official_wide_quirk",)  # recorded bugs that are not imitated


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['mechanism']}-{case['case']}")
def test_agrees_with_the_authors_code(case):
    if case["mechanism"] in QUIRKS:
        with pytest.raises(regard.UserError, match="no official key"):
            deviations(case)
        return
    found = deviations(case)
    assert found["value"] <= 1e-9
    assert max(found.values()) <= 1e-9, found


def test_every_key_has_its_numbers():
    keys = {key for name in regard.names() for key in regard.info(name).official}
    assert keys <= {case["mechanism"] for case in CASES}
