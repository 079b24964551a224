"""Which instructions a library holds, read from its disassembly."""

import shutil
import subprocess
from collections import Counter

import pytest

PREFIXES = {"2e", "36", "3e", "26", "64", "65", "67", "66", "f2", "f3", "f0"}
FIRST = {"62": "AVX-512", "c4": "AVX", "c5": "AVX"}
"""What the first byte of an instruction says on x86 in 64 bits: EVEX alone starts with 62, VEX with c4 and c5."""
ABOVE = {"generic": {"AVX", "AVX-512"}, "avx2": {"AVX-512"}, "avx512": set()}


def count(path):
    """The instructions of each kind in a library for x86-64, and those that touch registers of 32 and 64 bytes."""
    if shutil.which("objdump") is None:
        pytest.skip("no objdump on this machine: the libraries cannot be disassembled")
    listing = subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    found = Counter()
    for line in listing.splitlines():
        _, *parts = line.split("\t")
        if len(parts) == 2:  # the bytes and the words
            opcode = next((byte for byte in parts[0].split() if byte not in PREFIXES), "")
            found[FIRST.get(opcode, "base")] += 1
            for register in ("%ymm", "%zmm"):
                found[register] += register in parts[1]
    return found


def check(path, level):
    """That a library holds no instruction above its level, and is of its level throughout."""
    found = count(path)
    above = {kind: found[kind] for kind in ABOVE[level] if found[kind]}
    assert not above, f"{path.name} holds instructions that {level} lacks: {above}"
    assert found["base"] > 10_000, "the test sees nothing"
    if level == "avx2":
        assert found["%ymm"] > 10_000
    if level == "avx512":
        assert found["%zmm"] > 2 * found["%ymm"] > 0, "half of it is built for AVX2"
