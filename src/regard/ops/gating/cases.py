"""Named inputs of `gate` that tests and benchmarks both draw from."""

from collections.abc import Callable, Iterator

import torch

Arguments = Callable[[torch.dtype, str], tuple]


def cases() -> Iterator[tuple[str, Arguments]]:
    """Name and a function (dtype, device) -> the op's arguments, the big tensor first."""

    def case(shape: tuple[int, ...], *gates: tuple[int, ...], layout: str = "") -> Arguments:
        def arguments(dtype: torch.dtype, device: str) -> tuple:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            elif layout == "sliced":
                x = torch.cat([x, x], dim=-1)[..., : shape[-1]]
            drawn = (torch.rand(gate, generator=generator, dtype=torch.float64) for gate in gates)
            return (x, *(gate.to(device=device, dtype=dtype) for gate in drawn))

        return arguments

    yield "channel", case((2, 64, 14, 14), (2, 64, 1, 1))
    yield "channel odd", case((2, 20, 7, 63), (2, 20, 1, 1))
    yield "channel channels_last", case((2, 20, 7, 13), (2, 20, 1, 1), layout="channels_last")
    yield "channel sliced", case((2, 20, 7, 13), (2, 20, 1, 1), layout="sliced")
    yield "spatial", case((2, 20, 7, 13), (2, 1, 7, 13))
    yield "spatial channels_last", case((2, 20, 7, 13), (2, 1, 7, 13), layout="channels_last")
    yield "channel and spatial", case((2, 20, 7, 13), (2, 20, 1, 1), (2, 1, 7, 13))
    yield "rows and columns", case((2, 20, 7, 13), (2, 20, 7, 1), (2, 20, 1, 13))
    yield "rows and columns channels_last", case((2, 20, 7, 13), (2, 20, 7, 1), (2, 20, 1, 13), layout="channels_last")
    yield "1x1", case((1, 8, 1, 1), (1, 8, 1, 1))
    yield "sequence", case((2, 20, 63), (2, 20, 1))
    yield "volume", case((2, 20, 3, 5, 7), (2, 20, 1, 1, 1))
