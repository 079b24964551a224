"""Named inputs of `convolve` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(shape: tuple[int, ...], *kernel: int, layout: str = "") -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            elif layout == "turned":
                x = x.transpose(2, 3)
            weight = torch.randn((1, shape[1], *kernel), generator=generator, dtype=torch.float64)
            return x, weight.to(device=device, dtype=dtype)

        return arguments

    yield "7x7", case((2, 2, 14, 14), 7, 7)
    yield "7x7 odd", case((3, 2, 7, 63), 7, 7)
    yield "7x7 channels_last", case((2, 2, 7, 13), 7, 7, layout="channels_last")
    yield "7x7 turned", case((2, 2, 20, 7), 7, 7, layout="turned")
    yield "7x7 wide", case((1, 2, 5, 150), 7, 7)
    yield "7x7 over one pixel", case((1, 2, 1, 1), 7, 7)
    yield "3x5", case((2, 3, 9, 17), 3, 5)
    yield "1x1", case((2, 4, 9, 17), 1, 1)
    yield "sequence", case((2, 2, 63), 7)
    yield "volume", case((2, 2, 3, 5, 7), 3, 3, 3)
