"""What Python and the kernels in C++ must agree on: the sources that were built, and every struct, field by field.

``setup.py`` runs this file by itself, so it imports the standard library alone.
"""

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent


def fingerprint() -> str:
    """Of the kernels' sources and of this file: it tells a library that was built from others."""
    digest = sha256()
    for path in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"), FOLDER / "interface.py"]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Operand(Structure):  # and Map
    _fields_ = [("data", c_void_p), ("stride", c_int64 * 4)]


class Request(Structure):
    _fields_ = [("kinds", c_int32), ("factors", c_int32), ("factor", Operand * 3), ("sum", c_void_p)]
    _fields_ += [("max", c_void_p), ("place", c_void_p), ("squares", c_void_p)]
    _fields_ += [("stride", c_int64 * 4), ("numel", c_int64), ("count", c_float), ("unused", c_int32)]


class Reduce(Structure):
    _fields_ = [("bfloat16", c_int32), ("threads", c_int32), ("requests", c_int32), ("unused", c_int32)]
    _fields_ += [("size", c_int64 * 4), ("x", Operand), ("other", Operand), ("request", Request * 6)]


class Term(Structure):
    _fields_ = [("factors", c_int32), ("unused", c_int32), ("factor", Operand * 2)]


class Maximum(Structure):
    _fields_ = [("factors", c_int32), ("unused", c_int32), ("place", c_void_p), ("value", Operand)]
    _fields_ += [("factor", Operand * 2)]


class Affine(Structure):
    _fields_ = [("bfloat16", c_int32), ("threads", c_int32), ("factors", c_int32), ("mean", c_int32)]
    _fields_ += [("terms", c_int32), ("stream", c_int32), ("weighted", c_int32), ("picks", c_int32)]
    _fields_ += [("size", c_int64 * 4), ("y", Operand), ("map", Operand), ("x", Operand)]
    _fields_ += [
        ("factor", Operand * 3),
        ("weight", Operand),
        ("about", Operand),
        ("term", Term * 4),
        ("pick", Maximum * 3),
    ]


class Convolve(Structure):
    _fields_ = [("threads", c_int32), ("channels", c_int32), ("batch", c_int32), ("unused", c_int32)]
    _fields_ += [("height", c_int64), ("width", c_int64), ("rows", c_int64), ("columns", c_int64)]
    _fields_ += [(name, c_void_p) for name in ("x", "weight", "dy", "y", "dx", "dweight")]


class Pick(Structure):
    _fields_ = [("bfloat16", c_int32), ("threads", c_int32), ("factors", c_int32), ("unused", c_int32)]
    _fields_ += [("size", c_int64 * 4), ("y", Operand), ("x", Operand), ("value", Operand), ("place", c_void_p)]
    _fields_ += [("factor", Operand * 3), ("gradient", c_void_p * 3)]


class Excite(Structure):
    _fields_ = [("threads", c_int32), ("inputs", c_int32), ("batch", c_int64), ("channels", c_int64)]
    _fields_ += [("hidden", c_int64), ("gate", c_void_p), ("squeezed", c_void_p * 4)]
    _fields_ += [(name, c_void_p) for name in ("down", "down_bias", "up", "up_bias", "activations")]


class Agree(Structure):
    _fields_ = [(name, c_int32) for name in ("bfloat16", "threads", "stream", "unbiased")]
    _fields_ += [("epsilon", c_float), ("last", c_int32), ("fades", c_int32), ("unused", c_int32)]
    _fields_ += [(name, c_int64) for name in ("batch", "groups", "width", "pixels")]
    _fields_ += [(name, c_void_p) for name in ("x", "dy", "y", "weight", "bias", "strength")]
    _fields_ += [(name, c_void_p) for name in ("means", "scales", "sums")]


class Recalibrate(Structure):
    _fields_ = [("threads", c_int32), ("fades", c_int32), ("excites", c_int32), ("unused", c_int32)]
    _fields_ += [("numel", c_int64), ("strength", c_void_p), ("gate", c_void_p), ("applied", c_void_p)]
    _fields_ += [("affine", Affine), ("reduce", Reduce), ("excite", Excite), ("convolve", Convolve)]


class SelfGate(Structure):
    _fields_ = [(name, c_int32) for name in ("bfloat16", "threads", "last", "shuffle", "stream", "energetic")]
    _fields_ += [("fades", c_int32), ("unused", c_int32)]
    _fields_ += [("energy", c_float), ("epsilon", c_float)]
    _fields_ += [(name, c_int64) for name in ("batch", "channels", "pixels", "period")]
    _fields_ += [(name, c_void_p) for name in ("x", "dy", "y", "slope", "level", "bias", "strength", "stats", "sums")]


STRUCTS = {struct.__name__: struct for struct in Structure.__subclasses__() if struct.__module__ == __name__}
"""By the names that they have in C++."""
