"""The kernels in Triton: what those in C++ compute, on a GPU; a file for each, and here what the ops use of them.

Sums are taken in float32. Nothing is added atomically, so that repeated calls agree to the bit.
"""

from regard.ops.kernels.triton.affine import affine
from regard.ops.kernels.triton.device import why_not
from regard.ops.kernels.triton.pick import gather, scatter
from regard.ops.kernels.triton.reduce import cannot_reduce, reduce
from regard.ops.kernels.triton.weigh import cannot_weigh

__all__ = ["affine", "cannot_reduce", "cannot_weigh", "gather", "reduce", "scatter", "why_not"]
