"""The kernels in C++: built once for AVX-512 and once for AVX2, and left out where they cannot be built."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("src/regard/ops/kernels")
# no -fopenmp for the linker: the symbols are those of the library that torch brings into the process
COMMON = ["-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
COMMON += ["-ffp-contract=fast", "-fvisibility=hidden", "-g0", "-w"]
LEVELS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}


class Build(build_ext):
    """The libraries are no Python modules, and are not named like one."""

    def get_ext_filename(self, fullname: str) -> str:
        *package, level = fullname.split(".")
        return str(Path(*package, f"kernels.{level}.so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(
    cmdclass={"build_ext": Build},
    options={"build_ext": {"parallel": os.cpu_count()}},
    ext_modules=[
        Extension(
            f"regard.ops.kernels.{level}",
            sources=sorted(map(str, FOLDER.glob("*.cpp"))),
            depends=sorted(map(str, FOLDER.glob("*.h"))),
            extra_compile_args=COMMON + flags,
            language="c++",
            optional=True,
        )
        for level, flags in LEVELS.items()
        if sys.platform == "linux"
    ],
)
