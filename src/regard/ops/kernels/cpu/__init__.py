"""The kernels in C++, called through a plain C interface: a file for each, and here what the ops use of them."""

from regard.ops.kernels.cpu.affine import AffineSpec, affine, plan_affine, prepare_affine
from regard.ops.kernels.cpu.convolve import convolve, convolve_backward, plan_convolve, prepare_convolve
from regard.ops.kernels.cpu.pick import gather, scatter
from regard.ops.kernels.cpu.reduce import ReduceSpec, cannot_reduce, plan_reduce, prepare_reduce, reduce
from regard.ops.kernels.cpu.tensors import CPU, PAST_THE_CACHE, past_the_cache, why_not, why_not_plain
from regard.ops.kernels.cpu.weigh import cannot_weigh

__all__ = [
    "CPU",
    "PAST_THE_CACHE",
    "AffineSpec",
    "ReduceSpec",
    "affine",
    "cannot_reduce",
    "cannot_weigh",
    "convolve",
    "convolve_backward",
    "gather",
    "past_the_cache",
    "plan_affine",
    "plan_convolve",
    "plan_reduce",
    "prepare_affine",
    "prepare_convolve",
    "prepare_reduce",
    "reduce",
    "scatter",
    "why_not",
    "why_not_plain",
]
