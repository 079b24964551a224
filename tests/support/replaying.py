"""Calls of kernels, recorded with all that they read and wrote, for `replay.cpp` to make again on another processor.

A file is whole numbers of 8 bytes and raw bytes: how many calls, then for each its name, its plan, its buffers (size,
kind, bytes before, bytes after), where in the plan which address belongs, and the pointers beside it.
"""

import ctypes
import gc
import struct

import torch

from regard import ops
from regard.costs.support import cases
from regard.ops.kernels import interface, library

TAKES = {name.lower(): held for name, held in interface.STRUCTS.items()} | {"convolve_backward": interface.Convolve}
KINDS = {torch.float32: 0, torch.bfloat16: 1}


def numbers(*values):
    return struct.pack(f"<{len(values)}q", *values)


def text(held):
    return numbers(len(held)) + held


def storages():
    """Every memory that tensors hold: where it starts, its bytes and the kind of its numbers."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.layout == torch.strided and thing.is_cpu:
            memory = thing.untyped_storage()
            if memory.nbytes():
                found[memory.data_ptr()] = memory.nbytes(), KINDS.get(thing.dtype, 2)
    return found


class Recorder:
    """Stands in for `library.function`."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, name):
        def run(address, pointers):
            self.record(name, address, pointers)

        return run

    def record(self, name, address, pointers):
        plan, memories, buffers = TAKES[name].from_address(address), storages(), {}

        def locate(pointer):
            if not pointer:
                return numbers(-1, 0)
            start = max(start for start in memories if start <= pointer)
            assert pointer < start + memories[start][0], "a pointer into no tensor"
            which = list(buffers).index(start) if start in buffers else len(buffers)
            buffers.setdefault(start, memories[start])
            return numbers(which, pointer - start)

        places = []
        if not len(pointers):  # the plan holds the addresses themselves
            for field, kind in plan._fields_:
                if kind is ctypes.c_void_p and getattr(plan, field):
                    places.append(numbers(getattr(type(plan), field).offset) + locate(getattr(plan, field)))
        located = [locate(pointer) for pointer in pointers]
        before = [ctypes.string_at(start, size) for start, (size, _) in buffers.items()]
        held = bytes(plan)
        self.function(name)(address, pointers)
        after = [ctypes.string_at(start, size) for start, (size, _) in buffers.items()]
        parts = [text(name.encode()), text(held), numbers(len(buffers))]
        for (size, kind), was, became in zip(buffers.values(), before, after, strict=True):
            parts += [numbers(size, kind), was, became]
        parts += [numbers(len(places)), *places, numbers(len(located)), *located]
        self.calls.append(b"".join(parts))


def record(monkeypatch):
    """Every case of every op that has kernels, forward and backward, in both precisions, by two threads."""
    recorder = Recorder(library.function)
    monkeypatch.setattr(library, "function", recorder)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gc.freeze()  # what is there already is not looked through for tensors
    try:
        for op in ops.OPS.values():
            for draw in cases(op).values() if "cpu" in op.fast else ():
                for dtype in (torch.float32, torch.bfloat16):
                    _run(op, draw(dtype, "cpu"))
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)
    return numbers(len(recorder.calls)) + b"".join(recorder.calls)


def _run(op, args):
    leaves = []

    def leaf(value):
        if isinstance(value, tuple | list):
            return type(value)(map(leaf, value))
        if not isinstance(value, torch.Tensor):
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    args = leaf(args)
    if op.why_not("cpu", *args) is not None:
        return
    with ops.use_impl("cpu"):
        found = op(*args)
    found = [y for y in (found if isinstance(found, tuple | list) else [found]) if isinstance(y, torch.Tensor)]
    generator = torch.Generator().manual_seed(1)
    sum((y.float() * torch.randn(y.shape, generator=generator)).sum() for y in found).backward()
