"""The kernels in C++: built once for each set of instructions, left out with a word where they cannot be built."""

import copy
import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from sysconfig import get_platform

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("src/regard/ops/kernels")
FINGERPRINT = runpy.run_path(str(FOLDER / "interface.py"))["fingerprint"]()
COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
COMMON += ["-g0", "-Wall", "-Wextra"]
if sys.platform == "linux":  # not for the linker: the symbols are those of the library that torch brings
    COMMON += ["-fopenmp"]


def levels(platform: str) -> dict[str, list[str]]:
    """The sets of instructions to build for, and their flags, where `platform` is like "linux-x86_64"."""
    avx2 = ["-mavx2", "-mfma"]
    avx512 = [*avx2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
    avx512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC 12 warns of its own header
    if platform == "linux-x86_64":  # from the bottom up, whatever the environment's flags ask for
        wanted = {"avx512": avx512, "avx2": [*avx2, "-mno-avx512f"], "generic": ["-mno-avx"]}
        return {level: ["-march=x86-64", *flags] for level, flags in wanted.items()}
    return {"generic": []} if platform.startswith(("linux", "macosx")) else {}


class Build(build_ext):
    """Each level apart: the same sources give other objects. The libraries are no Python modules."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        level = ext.name.rpartition(".")[2]
        apart = copy.copy(self)
        apart.build_temp = str(Path(self.build_temp, level))
        apart.force = True  # flags and fingerprint have no date
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        try:
            super(Build, apart).build_extension(ext)
        except Exception as error:
            say(f"the C++ kernels of level {level} were not built ({error}): what is faster with them runs without")
            raise

    def get_ext_filename(self, fullname: str) -> str:
        *package, level = fullname.split(".")
        return str(Path(*package, f"kernels.{level}.so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """One for every Python and every torch of a platform: the libraries use the interface of neither."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def say(sentence: str) -> None:
    """To whoever installs: pip and uv hide what a build prints, so where there is a terminal it is told, too."""
    print(f"regard: {sentence}", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        with suppress(OSError), Path("/dev/tty").open("w") as terminal:
            print(f"\nregard: {sentence}", file=terminal)


setup(
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            f"regard.ops.kernels.{level}",
            sources=sorted(map(str, FOLDER.glob("*.cpp"))),
            extra_compile_args=[*COMMON, *flags, f'-DREGARD_BUILT="{level} {FINGERPRINT}"'],
            language="c++",
            optional=True,
        )
        for level, flags in levels(get_platform()).items()
    ],
)
